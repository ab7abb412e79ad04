//! Configuration: one TOML file, with overrides by one rule.
//!
//! A field `a.b` of the file is also the environment variable `MEZITE_INGEST__A__B` and the flag `--set a.b=value`;
//! the flag wins over the environment, and that over the file. An override's value is read as TOML, or taken as text
//! where it is none. Unknown fields are refused wherever they come from.

use std::{collections::BTreeMap, fs, net::SocketAddr, path::PathBuf, time::Duration};

use recording_format::{MAX_CHUNK_LEN, MAX_SEGMENT_PAYLOAD};
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

/// Environment variables with this prefix override fields.
pub const ENV_PREFIX: &str = "MEZITE_INGEST__";

/// Most connections and streams that can be configured.
const MAX_COUNT: usize = 1_000_000;

/// Configuration of a recording ingest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Folder of the identity and the trust bundle. Needed.
    pub data_dir: PathBuf,
    /// Where recordings go: `file:///absolute/path`. Replicas that share it share the recordings. Needed.
    pub store: String,
    /// host:port of the auth nodes; each is as good as the other. Default: none (no heartbeats, no renewal).
    #[serde(default)]
    pub auth_servers: Vec<String>,
    /// `sha256:` and the hex SPKI digest of the cluster's TLS CA, for `join`. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_pin: Option<String>,
    /// PEM file with the cluster's TLS CA, for `join`, instead of the pin. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// Address of the recording RPCs. Default: `0.0.0.0:3027`.
    #[serde(default = "default_listen")]
    pub listen: SocketAddr,
    /// host:port that agents and auth nodes are told. Needed to join.
    #[serde(default)]
    pub advertise: String,
    /// DNS name of this host: the first principal of its certificates. Needed to join.
    #[serde(default)]
    pub hostname: String,
    /// Further DNS names and IP addresses in its certificates, at most 32. Default: none.
    #[serde(default)]
    pub additional_principals: Vec<String>,
    /// Address of `/healthz`, `/readyz` and `/metrics`: plain HTTP. Default: `127.0.0.1:3082`.
    #[serde(default = "default_diagnostics")]
    pub diagnostics_listen: SocketAddr,
    /// Labels that it reports, at most 64. Default: none.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Logging.
    #[serde(default)]
    pub log: LogConfig,
    /// Bounds.
    #[serde(default)]
    pub limits: LimitsConfig,
    /// The index that lists are answered from.
    #[serde(default)]
    pub index: IndexConfig,
    /// What is exchanged with the auth nodes, and when.
    #[serde(default)]
    pub control: ControlConfig,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Logging.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// `text` or `json`. Default: `text`.
    pub format: LogFormat,
    /// A level, or directives as of tracing's EnvFilter, such as `info,recording_ingest=debug`. Default: `info`.
    pub level: String,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { format: LogFormat::Text, level: "info".to_owned() }
    }
}

/// Bounds. Durations are written like `30s` or `5m`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Open connections, handshakes included. Default: 10000.
    pub max_connections: usize,
    /// Recording calls that write at a time; more are RESOURCE_EXHAUSTED. Default: 1024.
    pub max_streams: usize,
    /// And those of one agent. Default: 128.
    pub max_streams_per_agent: usize,
    /// Recordings that auth nodes download at a time; more are RESOURCE_EXHAUSTED. Default: 256.
    pub max_downloads: usize,
    /// HTTP/2 streams on one connection. Default: 1024.
    pub max_streams_per_connection: u32,
    /// A TLS handshake that takes longer is dropped. Default: 10 s.
    #[serde(with = "humantime_serde")]
    pub handshake_timeout: Duration,
    /// The longest silence between two messages of a call, and the longest that a download may not be taken from. Default:
    /// 60 s.
    #[serde(with = "humantime_serde")]
    pub message_timeout: Duration,
    /// The longest that stopping takes. Default: 25 s.
    #[serde(with = "humantime_serde")]
    pub drain_timeout: Duration,
    /// Payload bytes after which a segment is written. 64 KiB to 15 MiB. Default: 8 MiB.
    pub segment_bytes: usize,
    /// Recordings, not being written just now, whose running digest is kept so that their end needs no reading.
    /// Default: 4096.
    pub kept_progress: usize,
    /// Segments, of up to `segment_bytes` each, kept in memory for readers. Default: 4.
    pub cached_segments: usize,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            max_connections: 10_000,
            max_streams: 1_024,
            max_streams_per_agent: 128,
            max_downloads: 256,
            max_streams_per_connection: 1_024,
            handshake_timeout: Duration::from_secs(10),
            message_timeout: Duration::from_secs(60),
            drain_timeout: Duration::from_secs(25),
            segment_bytes: 8 << 20,
            kept_progress: 4_096,
            cached_segments: 4,
        }
    }
}

/// The index that lists are answered from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IndexConfig {
    /// How often it looks for what other replicas wrote. Default: 1 s.
    #[serde(with = "humantime_serde")]
    pub refresh_interval: Duration,
}

impl Default for IndexConfig {
    fn default() -> Self {
        Self { refresh_interval: Duration::from_secs(1) }
    }
}

/// What is exchanged with the auth nodes, and when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ControlConfig {
    /// Wait between heartbeats until an auth node names another. Default: 15 s.
    #[serde(with = "humantime_serde")]
    pub heartbeat_interval: Duration,
    /// The longest that a call to an auth node takes. Default: 10 s.
    #[serde(with = "humantime_serde")]
    pub call_timeout: Duration,
    /// How often the trust bundle is fetched although its revision has not risen. Default: 5 min.
    #[serde(with = "humantime_serde")]
    pub bundle_interval: Duration,
    /// How often it is looked whether the certificate is due: renewed after two thirds of its life. Default: 60 s.
    #[serde(with = "humantime_serde")]
    pub renewal_check_interval: Duration,
}

impl Default for ControlConfig {
    fn default() -> Self {
        Self {
            heartbeat_interval: Duration::from_secs(15),
            call_timeout: Duration::from_secs(10),
            bundle_interval: Duration::from_secs(300),
            renewal_check_interval: Duration::from_secs(60),
        }
    }
}

fn default_listen() -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], 3_027))
}

fn default_diagnostics() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 3_082))
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not TOML, an unknown field, or a value of the wrong type.
    #[error("{0}")]
    Parse(String),
    /// An override that names no field.
    #[error("override {0:?} is not of the form field=value")]
    Override(String),
    /// A value out of its bounds.
    #[error("{field}: {reason}")]
    Value {
        /// Which field.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

impl Config {
    /// Reads the file, applies the overrides and checks the result. `environment` is name and value of each variable;
    /// `flags` is each `--set`.
    ///
    /// # Errors
    /// When the file cannot be read or the result is not a valid configuration.
    pub fn load(
        path: &std::path::Path,
        environment: impl IntoIterator<Item = (String, String)>,
        flags: &[String],
    ) -> Result<Self, ConfigError> {
        let text =
            fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, environment, flags)
    }

    /// As [`Config::load`], from the file's text.
    ///
    /// # Errors
    /// When the result is not a valid configuration.
    pub fn parse(
        text: &str,
        environment: impl IntoIterator<Item = (String, String)>,
        flags: &[String],
    ) -> Result<Self, ConfigError> {
        let mut table: Table = text.parse().map_err(|error| ConfigError::Parse(format!("{error}")))?;
        let mut variables: Vec<_> = environment
            .into_iter()
            .filter_map(|(name, value)| {
                let path = name.strip_prefix(ENV_PREFIX)?.to_lowercase();
                Some((path.split("__").map(str::to_owned).collect::<Vec<_>>(), value))
            })
            .collect();
        variables.sort();
        for (path, value) in variables {
            set(&mut table, &path, &value)?;
        }
        for flag in flags {
            let (path, value) = flag.split_once('=').ok_or_else(|| ConfigError::Override(flag.clone()))?;
            set(&mut table, &path.split('.').map(str::to_owned).collect::<Vec<_>>(), value)?;
        }
        let config: Self = table.try_into().map_err(|error| ConfigError::Parse(format!("{error}")))?;
        config.check()?;
        Ok(config)
    }

    /// The configuration as TOML, defaults included. There is no secret in it.
    ///
    /// # Errors
    /// When it cannot be written as TOML.
    pub fn print(&self) -> Result<String, ConfigError> {
        toml::to_string_pretty(self).map_err(|error| ConfigError::Parse(format!("{error}")))
    }

    fn check(&self) -> Result<(), ConfigError> {
        let bad = |field, reason: &str| Err(ConfigError::Value { field, reason: reason.to_owned() });
        if !self.store.starts_with("file:///") {
            return bad("store", "must be file:///absolute/path");
        }
        if self.ca_pin.is_some() && self.ca_file.is_some() {
            return bad("ca_pin", "give ca_pin or ca_file, not both");
        }
        if self.additional_principals.len() > 32 {
            return bad("additional_principals", "at most 32");
        }
        if self.labels.len() > 64 {
            return bad("labels", "at most 64");
        }
        let limits = &self.limits;
        if !(64 << 10..=MAX_SEGMENT_PAYLOAD - MAX_CHUNK_LEN).contains(&limits.segment_bytes) {
            return bad("limits.segment_bytes", "must be 65536 to 15728640");
        }
        let counts = [
            ("limits.max_connections", limits.max_connections),
            ("limits.max_streams", limits.max_streams),
            ("limits.max_streams_per_agent", limits.max_streams_per_agent),
            ("limits.max_downloads", limits.max_downloads),
            ("limits.max_streams_per_connection", limits.max_streams_per_connection as usize),
        ];
        if let Some((field, _)) = counts.into_iter().find(|(_, count)| !(1..=MAX_COUNT).contains(count)) {
            return bad(field, "must be 1 to 1000000");
        }
        let durations = [
            ("limits.handshake_timeout", limits.handshake_timeout),
            ("limits.message_timeout", limits.message_timeout),
            ("limits.drain_timeout", limits.drain_timeout),
            ("index.refresh_interval", self.index.refresh_interval),
            ("control.heartbeat_interval", self.control.heartbeat_interval),
            ("control.call_timeout", self.control.call_timeout),
            ("control.bundle_interval", self.control.bundle_interval),
            ("control.renewal_check_interval", self.control.renewal_check_interval),
        ];
        match durations.into_iter().find(|(_, duration)| *duration < Duration::from_millis(1)) {
            Some((field, _)) => bad(field, "must be at least 1 ms"),
            None => Ok(()),
        }
    }
}

fn set(table: &mut Table, path: &[String], text: &str) -> Result<(), ConfigError> {
    let refused = || ConfigError::Override(path.join("."));
    let (last, parents) = path.split_last().filter(|(last, _)| !last.is_empty()).ok_or_else(refused)?;
    let mut table = table;
    for parent in parents {
        let entry = table.entry(parent.clone()).or_insert_with(|| Value::Table(Table::new()));
        table = entry.as_table_mut().ok_or_else(refused)?;
    }
    let parsed = format!("value = {text}").parse::<Table>().ok().and_then(|mut table| table.remove("value"));
    table.insert(last.clone(), parsed.unwrap_or_else(|| Value::String(text.to_owned())));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: &str = "data_dir = '/d'\nstore = 'file:///s'\n";

    fn parse(text: &str, environment: &[(&str, &str)], flags: &[&str]) -> Result<Config, ConfigError> {
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Config::parse(text, environment, &flags.iter().map(|flag| (*flag).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn what_is_printed_is_read_back() {
        let config = parse(LEAST, &[], &[]).unwrap();
        assert_eq!(config.listen.port(), 3_027);
        assert_eq!(parse(&config.print().unwrap(), &[], &[]).unwrap(), config);
    }

    #[test]
    fn flags_win_over_the_environment_and_that_over_the_file() {
        let text = format!("{LEAST}[limits]\nmax_streams = 1\nsegment_bytes = 65536\n");
        let environment = [
            ("MEZITE_INGEST__LIMITS__MAX_STREAMS", "2"),
            ("MEZITE_INGEST__LIMITS__MESSAGE_TIMEOUT", "5s"),
            ("MEZITE_INGEST__ADVERTISE", "host:3027"),
            ("OTHER", "x"),
        ];
        let flags = ["limits.max_streams=3", "auth_servers=['a:1', 'b:2']"];
        let config = parse(&text, &environment, &flags).unwrap();
        assert_eq!(config.limits.max_streams, 3);
        assert_eq!(config.limits.segment_bytes, 65_536);
        assert_eq!(config.limits.message_timeout, Duration::from_secs(5));
        assert_eq!(config.advertise, "host:3027");
        assert_eq!(config.auth_servers, ["a:1", "b:2"]);
    }

    #[test]
    fn unknown_fields_are_refused_wherever_they_come_from() {
        for (text, flags) in [
            ("colour = 'green'\n", &[][..]),
            ("[limits]\ncolour = 1\n", &[]),
            ("", &["colour=green"]),
            ("", &["index.colour=1"]),
        ] {
            let error = parse(&format!("{LEAST}{text}"), &[], flags).unwrap_err();
            assert!(error.to_string().contains("colour"), "{error}");
        }
        assert!(parse(LEAST, &[("MEZITE_INGEST__COLOUR", "1")], &[]).is_err());
    }

    #[test]
    fn values_out_of_bounds_are_refused() {
        for flag in [
            "store=/no/url",
            "limits.segment_bytes=1",
            "limits.segment_bytes=15728641",
            "limits.max_streams=0",
            "limits.max_connections=1000001",
            "limits.message_timeout=0s",
            "listen=nowhere",
            "log.format=xml",
            "data_dir.x=1",
            "=1",
            "x",
        ] {
            assert!(parse(LEAST, &[], &[flag]).is_err(), "{flag}");
        }
        assert!(parse(LEAST, &[], &["ca_pin=sha256:00", "ca_file=/f"]).is_err());
    }
}
