//! recording-ingest: joins a cluster, and serves recordings until it is told to stop.

use std::{
    io::IsTerminal as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand};
use recording_ingest::{
    config::{Config, LogConfig, LogFormat},
    join, start, token_from,
};
use tokio::{
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
};
use tracing_subscriber::EnvFilter;

/// How long work that cannot be interrupted, such as a write, may go on after everything else has ended.
const RUNTIME_PATIENCE: Duration = Duration::from_secs(1);

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
    Join {
        #[command(flatten)]
        common: Common,
        /// File with the join token, mode 0600; `-` reads standard input. Not needed once joined
        #[arg(long, value_name = "FILE")]
        token_file: Option<PathBuf>,
    },
    /// Serve until SIGTERM
    Run {
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Debug, Args)]
struct Common {
    /// Configuration, TOML
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Override a field, such as `limits.max_streams=64`
    #[arg(long = "set", value_name = "FIELD=VALUE")]
    set: Vec<String>,
    /// Check the configuration and do nothing else
    #[arg(long)]
    check_config: bool,
    /// Print the configuration, defaults and overrides included, and do nothing else
    #[arg(long)]
    print_config: bool,
}

impl Common {
    /// The configuration; `None` when there is nothing more to do.
    fn load(&self) -> Result<Option<Config>> {
        // What is not Unicode is not ours.
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        let config = Config::load(&self.config, environment, &self.set)
            .with_context(|| format!("configuration {}", self.config.display()))?;
        filter(&config.log)?;
        if self.print_config {
            print!("{}", config.print()?);
        }
        Ok((!self.print_config && !self.check_config).then_some(config))
    }
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("recording-ingest: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    let (Command::Join { common, .. } | Command::Run { common }) = &cli.command;
    let Some(config) = common.load()? else { return Ok(()) };
    // A second installation can only fail because the first one stands.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    log(&config.log)?;
    let runtime = Runtime::new().context("the runtime cannot be started")?;
    let done = match &cli.command {
        Command::Join { token_file, .. } => runtime.block_on(join_cluster(&config, token_file.as_deref())),
        Command::Run { .. } => runtime.block_on(serve(config)),
    };
    runtime.shutdown_timeout(RUNTIME_PATIENCE);
    done
}

fn filter(log: &LogConfig) -> Result<EnvFilter> {
    EnvFilter::try_new(&log.level).context("log.level")
}

fn log(log: &LogConfig) -> Result<()> {
    let builder = tracing_subscriber::fmt().with_env_filter(filter(log)?).with_writer(std::io::stderr);
    let builder = builder.with_ansi(std::io::stderr().is_terminal());
    match log.format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}

async fn join_cluster(config: &Config, token_file: Option<&Path>) -> Result<()> {
    let joined = join(config, || token_from(token_file)).await?;
    let how = if joined.already_joined { "had joined" } else { "joined" };
    println!("ingest {} {how} cluster {}", joined.agent_id, joined.cluster_name);
    Ok(())
}

async fn serve(config: Config) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut handle = start(config).await?;
    tokio::select! {
        _ = terminate.recv() => (),
        _ = interrupt.recv() => (),
        broken = handle.broken() => return Err(broken.into()),
    }
    tracing::info!("leaving");
    if !handle.stop().await {
        tracing::warn!("some calls were not answered in time; their agents go on from what is durable");
    }
    Ok(())
}
