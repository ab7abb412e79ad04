//! A cluster for tests: its CA, servers that answer as a test says, and a WebAuthn authenticator. No part of any program.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod authenticator;
mod pki;
mod recording;
mod server;

pub use authenticator::Authenticator;
pub use pki::{CLUSTER, Leaf, TestCa};
pub use recording::{manifest, receipt, sign};
pub use server::{Call, FakeServer, Replies, dead_address};
