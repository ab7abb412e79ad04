//! Measures the programs: `mezite-bench store` sets the replicated store beside etcd, `mezite-bench fleet` a cluster before very
//! many agents, `mezite-bench ingest` a recording ingest beside scp. See `tests/bench`.
//!
//! In the comparison both systems run as three processes on loopback, with TLS between clients and members and between members, and
//! answer the same gRPC calls of the same clients: [`node`] is the store behind etcd's API. [`load`] makes the calls,
//! [`system`] runs the processes and reads what they cost, [`comparison`] goes through the rows, one after the other
//! for one system and then the other.

#![allow(clippy::indexing_slicing, reason = "members are numbered")]

mod calls;
mod certificates;
mod comparison;
mod disk;
mod failover;
mod fleet;
mod ingest;
mod load;
mod node;
mod system;

/// etcd's API, as far as it is used.
#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated")]
mod api {
    tonic::include_proto!("etcdserverpb");
}

use std::{path::PathBuf, time::Duration};

use anyhow::Result;
use clap::Parser;

/// Measures the programs.
#[derive(Debug, Parser)]
enum Args {
    /// Sets the replicated store beside etcd.
    Store {
        /// Length of each row, in seconds.
        #[arg(long, default_value_t = 10)]
        seconds: u64,
        /// Only the rows whose name contains this.
        #[arg(long)]
        only: Option<String>,
        /// Leaves etcd out.
        #[arg(long)]
        alone: bool,
        /// Folder for the data: on the disk that is to be measured. Default: the temporary folder.
        #[arg(long)]
        dir: Option<PathBuf>,
        /// Times that a leader is killed.
        #[arg(long, default_value_t = 5)]
        trials: usize,
    },
    /// Measures auth nodes with very many agents: each has a connection, and reports once a minute.
    #[command(visible_alias = "fleet")]
    Heartbeat(fleet::Plan),
    /// Measures how many user certificates three auth nodes issue, beside empty calls, bare signatures and ssh-keygen.
    Issue(calls::issue::Plan),
    /// Measures logins by password at the limit of their hashes, and the heartbeats of agents meanwhile.
    Login(calls::login::Plan),
    /// Measures a recording ingest: how fast recordings become durable, beside scp and dd; and lists of very many.
    Ingest(ingest::Plan),
    /// Runs one member; `store` starts them.
    #[command(hide = true)]
    Node(node::NodeArgs),
    /// Has a share of the agents; `fleet` starts them.
    #[command(hide = true)]
    Worker,
}

#[tokio::main]
async fn main() -> Result<()> {
    match Args::parse() {
        Args::Store { seconds, only, alone, dir, trials } => {
            let dir = dir.unwrap_or_else(std::env::temp_dir);
            comparison::run(comparison::Plan { time: Duration::from_secs(seconds), only, alone, dir, trials })
                .await
        }
        Args::Heartbeat(plan) => fleet::run(plan).await,
        Args::Issue(plan) => calls::issue::run_plan(plan).await,
        Args::Login(plan) => calls::login::run_plan(plan).await,
        Args::Ingest(plan) => ingest::run(plan).await,
        Args::Node(args) => node::run(args).await,
        Args::Worker => fleet::worker::run().await,
    }
}
