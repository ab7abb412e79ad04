//! How a program that serves begins and ends: its flags, its runtime, its ports, and the signals that stop it.

use std::{fmt::Display, io, net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration};

use clap::Args;
use opentelemetry_otlp::ExporterBuildError;
use tokio::{
    net::TcpListener,
    runtime::Runtime,
    signal::unix::{Signal, SignalKind, signal},
};
use tracing_subscriber::filter::ParseError;

use crate::{
    REMOVED,
    config::{ConfigError, Settings},
    logging,
    traces::{self, Exporter},
};

/// How long work that cannot be interrupted, such as a write, may go on after everything else has ended.
const RUNTIME_PATIENCE: Duration = Duration::from_secs(1);

/// Why a program does not begin. A cause is told by the source, not by the text.
#[derive(Debug, thiserror::Error)]
pub enum BeginError {
    /// The configuration cannot be used.
    #[error("configuration {path}")]
    Config {
        /// Its file.
        path: PathBuf,
        /// Why.
        source: ConfigError,
    },
    /// `log.level` cannot be read.
    #[error("log.level")]
    LogLevel(#[from] ParseError),
    /// `traces.endpoint` cannot be used.
    #[error("traces.endpoint")]
    Traces(#[from] ExporterBuildError),
    /// There are no threads to be had.
    #[error("the runtime cannot be started")]
    Runtime(#[source] io::Error),
}

/// An address that cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {cause}")]
pub struct ListenError {
    /// Which address.
    pub address: SocketAddr,
    /// Why.
    pub cause: io::Error,
}

/// Flags of every command: where the configuration is, and what to do with it.
#[derive(Debug, Args)]
pub struct Common {
    /// Configuration, TOML
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Override a field, such as `limits.max_connections=64`
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
    ///
    /// # Errors
    /// When it cannot be used.
    pub fn load<C: Settings>(&self) -> Result<Option<C>, BeginError> {
        let wrong = |source| BeginError::Config { path: self.config.clone(), source };
        // What is not Unicode is not ours.
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        let config = C::load(&self.config, environment, &self.set).map_err(wrong)?;
        logging::filter(config.log())?;
        if self.print_config {
            print!("{}", config.print().map_err(wrong)?);
        }
        Ok((!self.print_config && !self.check_config).then_some(config))
    }
}

/// Threads for work that blocks, unless a program wants fewer: tokio's own default.
pub const BLOCKING_THREADS: usize = 512;

/// A program that has begun.
#[derive(Debug)]
pub struct Begun {
    runtime: Runtime,
    traces: Option<Exporter>,
}

/// Begins as the program `name`: logs and traces from now on, settles which cryptography TLS uses, and starts the threads that the
/// program runs on, with at most so many for work that blocks. Once in a process; [`Begun::end`] follows.
///
/// # Errors
/// See [`BeginError`].
pub fn begin(
    name: &'static str,
    config: &impl Settings,
    blocking_threads: usize,
) -> Result<Begun, BeginError> {
    // A second installation can only fail because the first one stands.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.enable_all().max_blocking_threads(blocking_threads).build();
    let runtime = runtime.map_err(BeginError::Runtime)?;
    let traces = {
        let _within = runtime.enter();
        traces::start(name, config.traces())?
    };
    logging::start(config.log(), traces.as_ref())?;
    Ok(Begun { runtime, traces })
}

impl Begun {
    /// Does the program's work.
    pub fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// Ends: the last traces are sent, and the threads end; work that cannot be interrupted is waited for, for a second at most.
    pub fn end(self) {
        drop(self.traces);
        self.runtime.shutdown_timeout(RUNTIME_PATIENCE);
    }
}

/// The exit code of a program of this name. A failure is told on standard error, in the error's alternate form; one of which
/// `is_removal` says so ends with [`REMOVED`].
pub fn exit_code<E: Display>(
    name: &str,
    ended: Result<ExitCode, E>,
    is_removal: impl FnOnce(&E) -> bool,
) -> ExitCode {
    ended.unwrap_or_else(|error| {
        eprintln!("{name}: {error:#}");
        if is_removal(&error) { ExitCode::from(REMOVED) } else { ExitCode::FAILURE }
    })
}

/// Opens a port: the listener, and the address that it has.
///
/// # Errors
/// See [`ListenError`].
pub async fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), ListenError> {
    let failed = |cause| ListenError { address, cause };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

/// The signals that ask a program to stop: SIGTERM and SIGINT.
#[derive(Debug)]
pub struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    /// From now on they do not end the process. Within a runtime.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn catch() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Resolves when one of them has come. One that comes while nobody waits is not lost.
    pub async fn received(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => (),
            _ = self.interrupt.recv() => (),
        }
    }
}
