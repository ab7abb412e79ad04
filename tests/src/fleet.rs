//! Very many agents in one process. They are real to the cluster: each joins with keys of its own, and keeps a connection with its
//! certificate, over which it reports and listens for news, as `mezctl agent run` does. None has a process, a folder or an sshd.

mod agent;
mod pace;
mod verdicts;

pub use agent::{Agent, join_all, labels};
pub use pace::{Beats, Pace};
pub use verdicts::{Verdicts, online};
