//! recording-ingest: joins a cluster, and serves recordings until it is told to stop.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Result;
use clap::{Parser, Subcommand};
use mezite_daemon::{
    program::{self, Common, StopSignals},
    supervisor,
};
use nix::sys::stat::{Mode, umask};
use recording_ingest::{StartError, config::Config, join, start, token_from};

/// The recording data plane of Mezite
#[derive(Debug, Parser)]
#[command(name = "recording-ingest", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Join a cluster with a token of kind `ingest`; run again to finish a join that was interrupted
    ///
    /// Where an ingest has joined nothing is done, unless it is good for nothing any more: its certificate has ended, the cluster
    /// has it no more, or has authorities that it does not know. Then a new one joins, and takes its place in `data_dir`.
    Join {
        #[command(flatten)]
        common: Common,
        /// File with the join token, mode 0600; `-` reads standard input. Not needed once joined
        #[arg(long, value_name = "FILE")]
        token_file: Option<PathBuf>,
    },
    /// Serve until SIGTERM
    ///
    /// Exit codes: 0 stopped, 1 failed, 78 the cluster does not have this ingest any more: to start it again changes nothing.
    Run {
        #[command(flatten)]
        common: Common,
    },
}

/// Threads that wait for a disk, or hash what is written to it: each holds memory of its own, and more make no disk faster.
const BLOCKING_THREADS: usize = 64;

fn main() -> ExitCode {
    program::exit_code("recording-ingest", run(Cli::parse()), |error| {
        matches!(error.downcast_ref(), Some(StartError::Removed { .. }))
    })
}

fn run(cli: Cli) -> Result<ExitCode> {
    let (Command::Join { common, .. } | Command::Run { common }) = &cli.command;
    let Some(config) = common.load::<Config>()? else { return Ok(ExitCode::SUCCESS) };
    // Recordings in a folder are for its owner alone, and the library that writes them takes no mode.
    umask(Mode::S_IRWXG | Mode::S_IRWXO);
    let runtime = program::begin("recording-ingest", &config, BLOCKING_THREADS)?;
    let done = match &cli.command {
        Command::Join { token_file, .. } => runtime.block_on(join_cluster(&config, token_file.as_deref())),
        Command::Run { .. } => runtime.block_on(serve(config)),
    };
    runtime.end();
    done.map(|()| ExitCode::SUCCESS)
}

async fn join_cluster(config: &Config, token_file: Option<&Path>) -> Result<()> {
    let joined = join(config, || token_from(token_file)).await?;
    let (id, cluster) = (joined.agent_id, joined.cluster_name);
    if joined.already_joined {
        println!(
            "ingest {id} had joined cluster {cluster}, and nothing was changed: to join anew, have it removed first"
        );
    } else {
        println!("ingest {id} joined cluster {cluster}");
    }
    Ok(())
}

async fn serve(config: Config) -> Result<()> {
    let mut stop = StopSignals::catch()?;
    let mut handle = start(config).await?;
    supervisor::ready();
    let mut ended = Ok(());
    tokio::select! {
        () = stop.received() => (),
        broken = handle.broken() => match broken {
            // Calls in progress are answered with what is durable.
            StartError::Removed { .. } => ended = Err(broken.into()),
            broken => return Err(broken.into()),
        },
    }
    tracing::info!("leaving");
    supervisor::stopping();
    if !handle.stop().await {
        tracing::warn!("some calls were not answered in time; their agents go on from what is durable");
    }
    ended
}
