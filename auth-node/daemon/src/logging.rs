//! The log: lines on standard error.

use std::io::{self, IsTerminal as _};

use serde::{Deserialize, Serialize};
use tracing::Subscriber;
use tracing_subscriber::{
    EnvFilter, Layer,
    filter::{LevelFilter, ParseError},
    fmt::MakeWriter,
    layer::SubscriberExt as _,
    registry::LookupSpan,
    util::SubscriberInitExt as _,
};

use crate::{calls, traces::Exporter};

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
    /// A level, or directives as of tracing's EnvFilter, such as `info,auth_node=debug`. Libraries that say at length what the
    /// program says itself are heard only where they are named: `openraft=info`. Default: `info`.
    #[serde(default = "usual_level")]
    pub level: String,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { format: LogFormat::default(), level: usual_level() }
    }
}

fn usual_level() -> String {
    "info".into()
}

/// Libraries that are not heard unless they are named. Of a cluster without a leader openraft has hundreds of lines, and what it comes
/// to is said by the store; the WebAuthn library says what any stranger has wrong.
const QUIET: &str = "openraft=off,webauthn_rs_core=off";

/// What is logged at this level; and the spans of calls, whatever it is, since a line says by its span whose it is.
///
/// # Errors
/// When it is neither a level nor directives.
pub(crate) fn filter(log: &LogConfig) -> Result<EnvFilter, ParseError> {
    let directives = format!("{QUIET},{}", log.level);
    Ok(EnvFilter::try_new(directives)?.add_directive(format!("{}=error", calls::TARGET).parse()?))
}

/// Logs from now on, and traces where there is an exporter for that: spans of the level INFO, whatever is logged. Once in a
/// process.
pub(crate) fn start(log: &LogConfig, traces: Option<&Exporter>) -> Result<(), ParseError> {
    tracing_subscriber::registry()
        .with(lines(log, io::stderr, io::stderr().is_terminal())?)
        .with(traces.map(|exporter| exporter.layer().with_filter(LevelFilter::INFO)))
        .init();
    Ok(())
}

/// What writes lines.
fn lines<S, W>(log: &LogConfig, writer: W, colours: bool) -> Result<impl Layer<S> + use<S, W>, ParseError>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    W: for<'writer> MakeWriter<'writer> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(colours);
    let lines = match log.format {
        LogFormat::Text => lines.boxed(),
        // No span of ours lies within another, so the list would say the same again.
        LogFormat::Json => lines.json().with_span_list(false).boxed(),
    };
    Ok(lines.with_filter(filter(log)?))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::calls::CallSpan;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_line_of_a_failed_call_says_whose_it_is_whatever_is_logged() {
        for (format, level) in
            [(LogFormat::Text, "warn"), (LogFormat::Json, "error"), (LogFormat::Text, "mezite_daemon=warn")]
        {
            let written = Written::default();
            let writer = written.clone();
            let log = LogConfig { format, level: level.into() };
            let lines = lines(&log, move || writer.clone(), false).unwrap();
            tracing::subscriber::with_default(tracing_subscriber::registry().with(lines), || {
                let span = CallSpan::begin("GetUser", "0123456789abcdef", "192.0.2.7");
                span.note(|| "user:ann".into());
                span.in_scope(|| tracing::info!("nobody asked"));
                span.in_scope(|| tracing::error!("the call failed"));
            });
            let line = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
            assert!(line.contains("the call failed") && line.lines().count() == 1, "{level}: {line}");
            for part in ["GetUser", "0123456789abcdef", "192.0.2.7", "user:ann"] {
                assert!(line.contains(part), "{level}: {part}: {line}");
            }
        }
    }

    #[test]
    fn libraries_are_heard_where_they_are_named() {
        for (level, heard) in
            [("info", false), ("info,mezite_daemon=debug", false), ("info,openraft=info", true)]
        {
            let written = Written::default();
            let writer = written.clone();
            let log = LogConfig { level: level.into(), ..LogConfig::default() };
            let lines = lines(&log, move || writer.clone(), false).unwrap();
            tracing::subscriber::with_default(tracing_subscriber::registry().with(lines), || {
                tracing::info!(target: "openraft::core", "a vote was lost");
            });
            assert_eq!(!written.0.lock().unwrap().is_empty(), heard, "{level}");
        }
    }
}
