//! Measures the programs, beside peers or what the machine can do at most, in the same run. See `tests/bench`.
//!
//! [`report`] prints. [`comparison`] sets the replicated store beside etcd, [`calls`] are certificates and logins, [`fleet`] has very
//! many agents, [`ingest`] a recording ingest beside scp. In the comparison both systems run as three processes on loopback, with TLS between clients and members and between members, and
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
mod report;
mod system;

/// etcd's API, as far as it is used.
#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated")]
mod api {
    tonic::include_proto!("etcdserverpb");
}

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};

use self::report::Report;

/// Measures the programs.
#[derive(Debug, Parser)]
struct Args {
    /// Prints JSON: a list of rows, each with its part, its name and its figures. Tables go to standard error then.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    what: What,
}

/// What is measured.
#[derive(Debug, Subcommand)]
enum What {
    /// Sets the replicated store beside etcd.
    Store(comparison::Plan),
    /// Measures auth nodes with very many agents: each has a connection, and reports once a minute.
    #[command(visible_alias = "fleet")]
    Heartbeat(fleet::Plan),
    /// Measures how many user certificates three auth nodes issue, beside empty calls, bare signatures and ssh-keygen.
    Issue(calls::issue::Plan),
    /// Measures logins by password at the limit of their hashes, and the heartbeats of agents meanwhile.
    Login(calls::login::Plan),
    /// Measures a recording ingest: how fast recordings become durable, beside scp and dd; and lists of very many.
    Ingest(ingest::Plan),
    /// All of these, one after the other: with 10,000 agents, and 100,000 recordings in the index.
    All {
        /// Folder for the data of `store` and `ingest`: on the disk that is to be measured. Default: the temporary folder.
        #[arg(long)]
        dir: Option<PathBuf>,
    },
    /// Runs one member; `store` starts them.
    #[command(hide = true)]
    Node(node::NodeArgs),
    /// Has a share of the agents; `fleet` starts them.
    #[command(hide = true)]
    Worker,
}

/// What `all` is.
const ALL: [&[&str]; 5] = [
    &["store"],
    &["issue"],
    &["login"],
    &["heartbeat", "--agents", "10000"],
    &["ingest", "--recordings", "100000"],
];

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let mut report = Report::new(args.json);
    match args.what {
        What::All { dir } => {
            for words in ALL {
                let of_disk = ["store", "ingest"].contains(&words[0]);
                let dir = dir.iter().filter(|_| of_disk).flat_map(|dir| ["--dir".into(), dir.clone()]);
                let line = ["mezite-bench"].iter().chain(words).map(PathBuf::from).chain(dir);
                measure(Args::try_parse_from(line)?.what, &mut report).await?;
            }
        }
        what => measure(what, &mut report).await?,
    }
    report.end()
}

async fn measure(what: What, report: &mut Report) -> Result<()> {
    match what {
        What::Store(plan) => comparison::run(plan, report).await,
        What::Heartbeat(plan) => fleet::run(plan, report).await,
        What::Issue(plan) => calls::issue::run(&plan, report).await,
        What::Login(plan) => calls::login::run(&plan, report).await,
        What::Ingest(plan) => ingest::run(plan, report).await,
        What::Node(args) => node::run(args).await,
        What::Worker => fleet::worker::run().await,
        What::All { .. } => anyhow::bail!("all is not a part of itself"),
    }
}
