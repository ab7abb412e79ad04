//! The ingest as its callers see it: a server in this process, over real TLS, on a folder of its own.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot be set up has failed")]

mod access;
mod cluster;
mod join;
mod keeping;
mod life;
mod limits;
mod lists;
mod observed;
mod program;
mod recordings;
mod refusals;
mod telling;
mod wire;
