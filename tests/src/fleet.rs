//! Very many agents in few processes. They are real to the cluster: each joins with keys of its own, and keeps a connection with its
//! certificate, over which it reports and listens for news, as `mezctl agent run` does. None has a process of its own, a folder or an sshd.

mod agent;
mod join;
mod pace;
mod verdicts;

pub use agent::{Agent, labels};
pub use join::{Share, join_all};
pub use pace::{Beats, Pace};
pub use verdicts::{Verdicts, online};
