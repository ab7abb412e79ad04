//! Runs the replicated store under faults and checks what its clients saw. Ends with 1 when that cannot have happened.

use std::{process::ExitCode, time::Duration};

use clap::Parser;
use mezite_e2e::{
    chaos::{Plan, run},
    interrupted,
};

/// Hurts a cluster of real processes while clients work, and checks what they saw.
#[derive(Debug, Parser)]
struct Arguments {
    /// For how long faults come.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Which faults come; one is drawn when it is not given.
    #[arg(long)]
    seed: Option<u64>,
    /// Voters at first.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(3..=5))]
    nodes: u64,
    /// Clients.
    #[arg(long, default_value_t = 12)]
    clients: usize,
    /// A mutation, to see that the checks find it: nodes read what they have, and ask no quorum.
    #[arg(long)]
    stale_reads: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let Arguments { seconds, seed, nodes, clients, stale_reads } = Arguments::parse();
    let seed = seed.unwrap_or_else(|| rand::random_range(0..1_000_000));
    println!("seed {seed}");
    let time = Duration::from_secs(seconds);
    let report = tokio::select! {
        report = run(Plan { time, seed, nodes, clients, stale_reads }) => report,
        () = interrupted() => return ExitCode::FAILURE,
    };
    print!("{report}");
    if report.checked.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
