//! What end-to-end tests work with: the real programs as a cluster on loopback, real peers, and the means to hurt
//! them.
//!
//! [`Cluster`] starts auth nodes, [`Ingest`] recording ingests, [`Agent`] makes a host of the cluster, [`Bot`] is an agent identity, and
//! [`Sshd`] a real OpenSSH server of it, [`fleet`] has very many agents in few processes; [`Ctl`] runs `mezctl`, [`tools`] has programs that nobody here wrote. [`chaos`] and
//! [`soak`] run the replicated store alone, over links that can be cut, and check what its clients saw. All of it
//! listens on leased ports, logs to files that a failing test prints, and dies with the test. Nothing here is part of
//! any program, and no test shares anything with another.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot be set up has failed"
)]

mod agent;
pub mod api;
mod bins;
mod bot;
mod browser;
pub mod chaos;
mod cluster;
pub mod control;
mod ctl;
mod eventually;
mod faults;
mod files;
pub mod fleet;
pub mod history;
pub mod http;
mod ingest;
mod interrupt;
pub mod linear;
mod moto;
mod percentile;
mod process;
mod program;
mod proxies;
pub mod proxy;
mod scratch;
pub mod soak;
mod sshd;
pub mod store_cluster;
mod terminal;
pub mod tools;
mod workload;

pub use agent::{Agent, AgentSpec};
pub use bins::binary;
pub use bot::{Bot, BotCall};
pub use browser::Browser;
pub use cluster::{ADMIN, AuthNode, CLUSTER, Cluster, PASSWORD, Setup};
pub use ctl::{Ctl, Output, run, run_on};
pub use eventually::eventually;
pub use files::{all_files, secret_file};

pub use ingest::{Ingest, IngestSpec};
pub use interrupt::interrupted;
pub use mezite_test_ports::Port;
pub use moto::Moto;
pub use percentile::percentile;
pub use process::{Process, resident_bytes, tied};
pub use program::Program;
pub use proxies::{LoadBalancer, PROXY_ADDRESS, ProxyKind};
pub use scratch::Scratch;
pub use sshd::{Shell, Ssh, Sshd, account};
pub use terminal::{Session, in_terminal};
