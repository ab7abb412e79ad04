//! A cluster for tests: its CA, and servers that answer as a test says. No part of any program.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod pki;
mod server;

pub use pki::{CLUSTER, Leaf, TestCa};
pub use server::{Call, FakeServer, Replies, dead_address};
