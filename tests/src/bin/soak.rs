//! Writes to the replicated store for long while nodes are restarted, and shows what it costs in memory. Ends with 1
//! when a write is lost, memory grows or a node dies by itself.

use std::{process::ExitCode, time::Duration};

use clap::Parser;
use mezite_e2e::{
    interrupted,
    soak::{Plan, run},
};

/// Writes to a cluster of real processes as fast as they are taken, while nodes come and go.
#[derive(Debug, Parser)]
struct Arguments {
    /// For how long.
    #[arg(long, default_value_t = 1_200)]
    seconds: u64,
    /// Writers at once.
    #[arg(long, default_value_t = 64)]
    writers: u64,
    /// Log entries between two snapshots.
    #[arg(long, default_value_t = 2_000)]
    snapshot_every: u64,
}

#[tokio::main]
async fn main() -> ExitCode {
    let Arguments { seconds, writers, snapshot_every } = Arguments::parse();
    let report = tokio::select! {
        report = run(Plan { time: Duration::from_secs(seconds), writers, snapshot_every }) => report,
        () = interrupted() => return ExitCode::FAILURE,
    };
    print!("{report}");
    if report.is_sound() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
