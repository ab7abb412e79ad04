//! The log of a service (`agent run`, `bot run`): all that is said and printed becomes lines on standard error, each with its time and
//! level, as those of the servers.

use std::{
    io::{self, IsTerminal as _},
    sync::atomic::{AtomicBool, Ordering},
};

use tracing_subscriber::EnvFilter;

use crate::cli::Format;

/// Whose lines are of interest: the libraries beneath have no user here who knows them.
const HEARD: &str = "mezctl=info";

static BEGUN: AtomicBool = AtomicBool::new(false);

/// Logs from now on: for programs a JSON object a line. Once in a process.
pub(crate) fn begin(format: Format) {
    let lines = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(HEARD))
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false);
    match format {
        Format::Json => lines.json().with_span_list(false).init(),
        Format::Text | Format::Yaml => lines.init(),
    }
    BEGUN.store(true, Ordering::Relaxed);
}

/// Whether there is a log.
pub(crate) fn has_begun() -> bool {
    BEGUN.load(Ordering::Relaxed)
}
