//! Configuration: one TOML file, with overrides by one rule.
//!
//! A field `a.b` of the file is also the environment variable `MEZITE_AUTH__A__B` and the flag `--set
//! a.b=value`; the flag wins over the environment, and that over the file. An override's value is read as
//! TOML, or taken as text where it is none. Unknown fields are refused wherever they come from.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use raft_store::Timing;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

/// Environment variables with this prefix override fields.
pub const ENV_PREFIX: &str = "MEZITE_AUTH__";

/// Most of anything that is counted.
const MAX_COUNT: usize = 1_000_000;
/// Most further names or addresses in the node's certificate.
const MAX_NAMES: usize = 32;

/// Configuration of an auth node. Durations are written like `30s` or `12h`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Folder of the node's identity and state. One process uses it at a time. Needed.
    pub data_dir: PathBuf,
    /// Address of the API. Default: `0.0.0.0:3025`.
    #[serde(default = "default_listen")]
    pub listen: SocketAddr,
    /// host:port at which clients reach `listen`; its host is in the node's certificate. Needed.
    pub advertise: String,
    /// Address of the peer traffic between auth nodes. Default: `0.0.0.0:3026`.
    #[serde(default = "default_peer_listen")]
    pub peer_listen: SocketAddr,
    /// host:port at which the other auth nodes reach `peer_listen`. Needed.
    pub peer_advertise: String,
    /// Address of `/healthz`, `/readyz` and `/metrics`: plain HTTP. Default: `127.0.0.1:3081`.
    #[serde(default = "default_diagnostics")]
    pub diagnostics_listen: SocketAddr,
    /// File with the key that CA private keys are encrypted under, mode 0600. It is made by `init` and
    /// received by `join`; never put it beside a backup. Default: `kek` in `data_dir`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kek_file: Option<PathBuf>,
    /// The node's own certificate.
    #[serde(default)]
    pub tls: TlsConfig,
    /// Logging.
    #[serde(default)]
    pub log: LogConfig,
    /// Bounds.
    #[serde(default)]
    pub limits: LimitsConfig,
    /// Replication.
    #[serde(default)]
    pub raft: RaftConfig,
    /// Users' sessions.
    #[serde(default)]
    pub sessions: SessionsConfig,
    /// Agents' heartbeats.
    #[serde(default)]
    pub presence: PresenceConfig,
}

/// The node's own certificate. It always has the names `<cluster>.mezite.internal` and the host of
/// `advertise`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsConfig {
    /// Further DNS names, such as a load balancer's; at most 32. Default: none.
    pub dns_names: Vec<String>,
    /// Further IP addresses, at most 32. Default: none.
    pub ip_addresses: Vec<IpAddr>,
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
    /// A level, or directives as of tracing's EnvFilter, such as `info,auth_node=debug`. Default: `info`, and
    /// nothing of the Raft library, which says each failed attempt; what it comes to is said by the store.
    pub level: String,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { format: LogFormat::Text, level: "info,openraft=off".to_owned() }
    }
}

/// Bounds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Open connections, handshakes included. Default: 10000.
    pub max_connections: usize,
    /// A TLS handshake that takes longer is dropped. Default: 10 s.
    #[serde(with = "humantime_serde")]
    pub handshake_timeout: Duration,
    /// Calls at a time on one connection. Default: 256.
    pub max_streams_per_connection: u32,
    /// The longest that a call takes, whatever its client allows. Default: 30 s.
    #[serde(with = "humantime_serde")]
    pub call_timeout: Duration,
    /// Threads that hash passwords. Default: half of the processors, at least one.
    pub password_threads: usize,
    /// Passwords that may wait to be hashed; more are RESOURCE_EXHAUSTED. Default: 64.
    pub password_queue: usize,
    /// Recordings that are relayed to ingests at a time; more are RESOURCE_EXHAUSTED. Default: 128.
    pub max_relays: usize,
    /// And those of one agent. Default: 16.
    pub max_relays_per_agent: usize,
    /// Recordings that are downloaded at a time; more are RESOURCE_EXHAUSTED. Default: 64.
    pub max_downloads: usize,
    /// And those of one user or ingest. Default: 8.
    pub max_downloads_per_caller: usize,
    /// Ingests that may follow at a time who has access, each with at most four calls; more are RESOURCE_EXHAUSTED.
    /// Default: 1000.
    pub max_access_listeners: usize,
    /// The longest silence between two messages of a relayed recording, and the longest that a client may take nothing of
    /// what is streamed to it. Default: 60 s.
    #[serde(with = "humantime_serde")]
    pub message_timeout: Duration,
    /// The longest that calls in progress are waited for when the node stops. Default: 10 s.
    #[serde(with = "humantime_serde")]
    pub drain_timeout: Duration,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            max_connections: 10_000,
            handshake_timeout: Duration::from_secs(10),
            max_streams_per_connection: 256,
            call_timeout: Duration::from_secs(30),
            password_threads: (processors / 2).max(1),
            password_queue: 64,
            max_relays: 128,
            max_relays_per_agent: 16,
            max_downloads: 64,
            max_downloads_per_caller: 8,
            max_access_listeners: 1_000,
            message_timeout: Duration::from_secs(60),
            drain_timeout: Duration::from_secs(10),
        }
    }
}

/// Replication. The same on every node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RaftConfig {
    /// A leader's heartbeat, and the longest that a round trip between two nodes may take: where it takes longer, nothing
    /// can be read. Default: 100 ms.
    #[serde(with = "humantime_serde")]
    pub heartbeat: Duration,
    /// A follower that hears nothing stands for election after at least this. Default: 300 ms.
    #[serde(with = "humantime_serde")]
    pub election_min: Duration,
    /// And at most this. Default: 600 ms.
    #[serde(with = "humantime_serde")]
    pub election_max: Duration,
    /// The longest that a read or a write waits for the cluster; at most 60 s. Default: 5 s.
    #[serde(with = "humantime_serde")]
    pub deadline: Duration,
    /// Life of the certificate that the node shows its peers. It is renewed after two thirds of it; a node that was
    /// away for longer renews it at its start. 10 s to 10 years. Default: 90 days.
    #[serde(with = "humantime_serde")]
    pub peer_certificate_life: Duration,
    /// Above this size of the node's database on disk, in bytes, it takes only what deletes, which a login is not, and
    /// `mezctl cluster status` shows an alarm. Where deleting does not help, raise it. 0: no bound. Default: 8 GiB.
    pub max_database_bytes: u64,
}

impl Default for RaftConfig {
    fn default() -> Self {
        let Timing { heartbeat, election_min, election_max, deadline } = Timing::default();
        Self {
            heartbeat,
            election_min,
            election_max,
            deadline,
            peer_certificate_life: Duration::from_secs(90 * 24 * 3600),
            max_database_bytes: 8 << 30,
        }
    }
}

/// Users' sessions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SessionsConfig {
    /// How long a session lasts: 1 minute to 30 days. Default: 12 h.
    #[serde(with = "humantime_serde")]
    pub ttl: Duration,
}

impl Default for SessionsConfig {
    fn default() -> Self {
        Self { ttl: Duration::from_secs(12 * 3600) }
    }
}

/// Agents' heartbeats.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PresenceConfig {
    /// How often an agent is told to report. Default: 15 s.
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
    /// An agent that has not reported for so long is offline; at least twice the interval. Default: 45 s.
    #[serde(with = "humantime_serde")]
    pub ttl: Duration,
}

impl Default for PresenceConfig {
    fn default() -> Self {
        Self { interval: Duration::from_secs(15), ttl: Duration::from_secs(45) }
    }
}

fn default_listen() -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], 3_025))
}

fn default_peer_listen() -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], 3_026))
}

fn default_diagnostics() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 3_081))
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
    /// Reads the file, applies the overrides and checks the result. `environment` is name and value of each
    /// variable; `flags` is each `--set`.
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

    /// File of the key-encryption key.
    pub fn kek_path(&self) -> PathBuf {
        self.kek_file.clone().unwrap_or_else(|| self.data_dir.join("kek"))
    }

    fn check(&self) -> Result<(), ConfigError> {
        let bad = |field, reason: &str| Err(ConfigError::Value { field, reason: reason.to_owned() });
        for (field, address) in [("advertise", &self.advertise), ("peer_advertise", &self.peer_advertise)] {
            if host_of(address).is_none() {
                return bad(field, "must be host:port, with the host that others reach this node at");
            }
        }
        if self.tls.dns_names.len() > MAX_NAMES || self.tls.ip_addresses.len() > MAX_NAMES {
            return bad("tls", "at most 32 names and 32 addresses");
        }
        let limits = &self.limits;
        let counts = [
            ("limits.max_connections", limits.max_connections),
            ("limits.max_streams_per_connection", limits.max_streams_per_connection as usize),
            ("limits.password_threads", limits.password_threads),
            ("limits.password_queue", limits.password_queue),
            ("limits.max_relays", limits.max_relays),
            ("limits.max_relays_per_agent", limits.max_relays_per_agent),
            ("limits.max_downloads", limits.max_downloads),
            ("limits.max_downloads_per_caller", limits.max_downloads_per_caller),
            ("limits.max_access_listeners", limits.max_access_listeners),
        ];
        if let Some((field, _)) = counts.into_iter().find(|(_, count)| !(1..=MAX_COUNT).contains(count)) {
            return bad(field, "must be 1 to 1000000");
        }
        let durations = [
            ("limits.handshake_timeout", limits.handshake_timeout),
            ("limits.call_timeout", limits.call_timeout),
            ("limits.message_timeout", limits.message_timeout),
            ("limits.drain_timeout", limits.drain_timeout),
            ("raft.heartbeat", self.raft.heartbeat),
            ("raft.deadline", self.raft.deadline),
            ("presence.interval", self.presence.interval),
        ];
        if let Some((field, _)) = durations.into_iter().find(|(_, it)| *it < Duration::from_millis(1)) {
            return bad(field, "must be at least 1 ms");
        }
        self.check_timing()
    }

    fn check_timing(&self) -> Result<(), ConfigError> {
        let bad = |field, reason: &str| Err(ConfigError::Value { field, reason: reason.to_owned() });
        let raft = &self.raft;
        if raft.election_min < raft.heartbeat * 2 {
            return bad("raft.election_min", "must be at least twice raft.heartbeat");
        }
        if raft.election_max <= raft.election_min {
            return bad("raft.election_max", "must be above raft.election_min");
        }
        if raft.deadline > Timing::MAX_DEADLINE {
            return bad("raft.deadline", "must be at most 60 s");
        }
        let day = Duration::from_secs(24 * 3600);
        if !(Duration::from_secs(10)..=3650 * day).contains(&raft.peer_certificate_life) {
            return bad("raft.peer_certificate_life", "must be 10 seconds to 10 years");
        }
        if !(Duration::from_secs(60)..=30 * day).contains(&self.sessions.ttl) {
            return bad("sessions.ttl", "must be 1 minute to 30 days");
        }
        if self.presence.ttl < self.presence.interval * 2 {
            return bad("presence.ttl", "must be at least twice presence.interval");
        }
        Ok(())
    }
}

/// The host of host:port, without the brackets of an IPv6 address. `None`: it is not one that others can
/// reach.
pub(crate) fn host_of(address: &str) -> Option<&str> {
    let (host, port) = address.rsplit_once(':')?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let good_host = match (bare, host.parse::<IpAddr>()) {
        (Some(v6), _) => v6.parse::<std::net::Ipv6Addr>().is_ok_and(|address| !address.is_unspecified()),
        (None, Ok(address)) => address.is_ipv4() && !address.is_unspecified(),
        (None, Err(_)) => rustls_pki_types::DnsName::try_from(host).is_ok(),
    };
    let good_port = port.parse::<u16>().is_ok_and(|port| port > 0);
    (good_host && good_port).then_some(bare.unwrap_or(host))
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

    const LEAST: &str = "data_dir = '/d'\nadvertise = 'a.example:3025'\npeer_advertise = '10.0.0.1:3026'\n";

    fn parse(text: &str, environment: &[(&str, &str)], flags: &[&str]) -> Result<Config, ConfigError> {
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Config::parse(text, environment, &flags.iter().map(|flag| (*flag).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn what_is_printed_is_read_back() {
        let config = parse(LEAST, &[], &[]).unwrap();
        assert_eq!((config.listen.port(), config.peer_listen.port()), (3_025, 3_026));
        assert_eq!(config.kek_path(), PathBuf::from("/d/kek"));
        assert_eq!(parse(&config.print().unwrap(), &[], &[]).unwrap(), config);
    }

    #[test]
    fn flags_win_over_the_environment_and_that_over_the_file() {
        let text = format!("{LEAST}[limits]\nmax_relays = 1\nmax_connections = 7\n");
        let environment = [
            ("MEZITE_AUTH__LIMITS__MAX_RELAYS", "2"),
            ("MEZITE_AUTH__SESSIONS__TTL", "1h"),
            ("MEZITE_AUTH__ADVERTISE", "b.example:1"),
            ("OTHER", "x"),
        ];
        let flags = ["limits.max_relays=3", "tls.dns_names=['lb.example']"];
        let config = parse(&text, &environment, &flags).unwrap();
        assert_eq!((config.limits.max_relays, config.limits.max_connections), (3, 7));
        assert_eq!(config.sessions.ttl, Duration::from_secs(3600));
        assert_eq!(config.advertise, "b.example:1");
        assert_eq!(config.tls.dns_names, ["lb.example"]);
    }

    #[test]
    fn unknown_fields_are_refused_wherever_they_come_from() {
        for (text, flags) in [
            ("colour = 'green'\n", &[][..]),
            ("[limits]\ncolour = 1\n", &[]),
            ("", &["colour=green"]),
            ("", &["raft.colour=1"]),
        ] {
            let error = parse(&format!("{LEAST}{text}"), &[], flags).unwrap_err();
            assert!(error.to_string().contains("colour"), "{error}");
        }
        assert!(parse(LEAST, &[("MEZITE_AUTH__COLOUR", "1")], &[]).is_err());
    }

    #[test]
    fn values_out_of_bounds_are_refused() {
        for flag in [
            "advertise=0.0.0.0:3025",
            "advertise=host",
            "advertise=host:0",
            "peer_advertise='[::]:3026'",
            "limits.max_relays=0",
            "limits.call_timeout=0s",
            "raft.election_min=199ms",
            "raft.election_max=300ms",
            "raft.peer_certificate_life=9s",
            "raft.deadline=61s",
            "sessions.ttl=59s",
            "sessions.ttl=31days",
            "presence.ttl=29s",
        ] {
            assert!(matches!(parse(LEAST, &[], &[flag]), Err(ConfigError::Value { .. })), "{flag}");
        }
    }

    #[test]
    fn hosts_are_told_from_addresses() {
        assert_eq!(host_of("a.example:1"), Some("a.example"));
        assert_eq!(host_of("[::1]:1"), Some("::1"));
        assert_eq!(host_of("127.0.0.1:1"), Some("127.0.0.1"));
        for bad in ["", "a", ":1", "::1:1", "[a]:1", "a b:1", "a:x"] {
            assert_eq!(host_of(bad), None, "{bad}");
        }
    }
}
