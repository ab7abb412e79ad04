//! The log: lines on standard error.

use std::io::{self, IsTerminal as _};

use serde::{Deserialize, Serialize};
use tracing_subscriber::{
    EnvFilter, Layer as _,
    filter::{LevelFilter, ParseError},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

use crate::traces::Exporter;

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Logging: the table `log` of a configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogConfig {
    /// `text` or `json`. Default: `text`.
    #[serde(default)]
    pub format: LogFormat,
    /// A level, or directives as of tracing's EnvFilter, such as `info,auth_node=debug`. Default:
    /// [`LOG_LEVEL`](crate::config::Settings::LOG_LEVEL) of the program.
    pub level: String,
}

/// What is logged at this level.
///
/// # Errors
/// When it is neither a level nor directives.
pub(crate) fn filter(log: &LogConfig) -> Result<EnvFilter, ParseError> {
    EnvFilter::try_new(&log.level)
}

/// Logs from now on, and traces where there is an exporter for that: spans of the level INFO, whatever is logged. Once in a
/// process.
pub(crate) fn start(log: &LogConfig, traces: Option<&Exporter>) -> Result<(), ParseError> {
    let lines =
        tracing_subscriber::fmt::layer().with_writer(io::stderr).with_ansi(io::stderr().is_terminal());
    let lines = match log.format {
        LogFormat::Text => lines.boxed(),
        // No span of ours lies within another, so the list would say the same again.
        LogFormat::Json => lines.json().with_span_list(false).boxed(),
    };
    tracing_subscriber::registry()
        .with(lines.with_filter(filter(log)?))
        .with(traces.map(|exporter| exporter.layer().with_filter(LevelFilter::INFO)))
        .init();
    Ok(())
}
