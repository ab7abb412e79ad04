//! The fields of the configuration: their defaults and bounds. How they are read is `mezite-daemon`'s; a field `a.b` is
//! also the environment variable `MEZITE_AUTH__A__B`.

mod web;

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use ipnet::IpNet;
use mezite_daemon::{
    config::{ConfigError, Settings, check_counts, check_durations},
    logging::LogConfig,
    traces::TracesConfig,
};
use raft_store::Timing;
use serde::{Deserialize, Serialize};

use crate::iam::authority;
pub use web::WebConfig;

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
    /// Proxies and load balancers that tell who connects, by the PROXY protocol (version 1 or 2): networks, such as
    /// `10.0.0.0/24`. Each connection from there must begin with its header, and none from elsewhere may; who may
    /// connect from there may claim to come from anywhere. Default: none.
    #[serde(default)]
    pub trusted_proxies: Vec<IpNet>,
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
    /// Traces.
    #[serde(default)]
    pub traces: TracesConfig,
    /// Bounds.
    #[serde(default)]
    pub limits: LimitsConfig,
    /// Replication.
    #[serde(default)]
    pub raft: RaftConfig,
    /// Agents' heartbeats.
    #[serde(default)]
    pub presence: PresenceConfig,
    /// The web API and its pages.
    #[serde(default)]
    pub web: WebConfig,
    /// Joining by an AWS identity.
    #[serde(default)]
    pub iam: IamConfig,
}

/// The node's own certificate. It always has the names `<cluster>.mezite.internal`, and the hosts of
/// `advertise` and `web.public_url`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsConfig {
    /// Further DNS names, such as a load balancer's; at most 32. Default: none.
    pub dns_names: Vec<String>,
    /// Further IP addresses, at most 32. Default: none.
    pub ip_addresses: Vec<IpAddr>,
}

/// Bounds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Open connections, handshakes included. Default: 10000.
    pub max_connections: usize,
    /// Of them, those without a client certificate: people with a session, and whoever joins. Default: three quarters,
    /// so that agents find room.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_anonymous_connections: Option<usize>,
    /// Bytes of all requests together that are arriving over such connections, each counted as 8 KiB at least; more are
    /// RESOURCE_EXHAUSTED. 4 MiB to 1 TiB. Default: 256 MiB.
    pub max_anonymous_bytes: usize,
    /// A TLS handshake that takes longer is dropped. Default: 10 s.
    #[serde(with = "humantime_serde")]
    pub handshake_timeout: Duration,
    /// Calls at a time on one connection. Default: 256.
    pub max_streams_per_connection: u32,
    /// The longest that a call takes, whatever its client allows; and before it, its request. Default: 30 s.
    #[serde(with = "humantime_serde")]
    pub call_timeout: Duration,
    /// Threads that hash passwords. Default: half of the processors, at least one.
    pub password_threads: usize,
    /// Passwords that may wait to be hashed; more are RESOURCE_EXHAUSTED. Of these and the threads together, one network (a
    /// /24, for IPv6 a /64) or user may have a quarter: behind a load balancer that hides where clients are, all who log in
    /// are one network, and a longer queue gives them more. Default: 64.
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
    /// Agents that may be told at a time what is new, each with at most two calls; more are RESOURCE_EXHAUSTED, and learn
    /// it by their heartbeats. Default: 100,000.
    pub max_agent_listeners: usize,
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
            max_anonymous_connections: None,
            max_anonymous_bytes: 256 << 20,
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
            max_agent_listeners: 100_000,
            message_timeout: Duration::from_secs(60),
            drain_timeout: Duration::from_secs(10),
        }
    }
}

impl LimitsConfig {
    /// Open connections without a client certificate.
    pub(crate) fn anonymous_connections(&self) -> usize {
        let three_quarters = self.max_connections - self.max_connections / 4;
        self.max_anonymous_connections.unwrap_or(three_quarters)
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
    /// Above this size of the node's database on disk, in bytes, nobody logs in, joins or gets certificates, and `mezctl
    /// cluster status` shows an alarm. What deletes, locks or revokes is taken, and has a twentieth of it, or 64 MiB, above
    /// it for what it writes. Where deleting does not help, raise it. 0: no bound. Default: 8 GiB.
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

/// Joining by an AWS identity. AWS is asked through no proxy: each node must reach the STS endpoints of the regions that
/// hosts sign for, by https.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IamConfig {
    /// STS to ask instead of AWS's own, `https://host[:port]`: that of a private cloud. Hosts must sign for the same, as
    /// they do with `AWS_ENDPOINT_URL_STS`. Default: AWS's, by region.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sts_endpoint: Option<String>,
    /// PEM file of the authorities that are believed for it, and no others. Default: those of the system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sts_ca_file: Option<PathBuf>,
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

impl Settings for Config {
    const ENV_PREFIX: &'static str = "MEZITE_AUTH__";

    fn log(&self) -> &LogConfig {
        &self.log
    }

    fn traces(&self) -> &TracesConfig {
        &self.traces
    }

    fn check(&self) -> Result<(), ConfigError> {
        for (field, address) in [("advertise", &self.advertise), ("peer_advertise", &self.peer_advertise)] {
            if host_of(address).is_none() {
                return Err(ConfigError::value(
                    field,
                    "must be host:port, with the host that others reach this node at",
                ));
            }
        }
        if self.tls.dns_names.len() > MAX_NAMES || self.tls.ip_addresses.len() > MAX_NAMES {
            return Err(ConfigError::value("tls", "at most 32 names and 32 addresses"));
        }
        let limits = &self.limits;
        check_counts(&[
            ("limits.max_connections", limits.max_connections),
            ("limits.max_anonymous_connections", limits.anonymous_connections()),
            ("limits.max_streams_per_connection", limits.max_streams_per_connection as usize),
            ("limits.password_threads", limits.password_threads),
            ("limits.password_queue", limits.password_queue),
            ("limits.max_relays", limits.max_relays),
            ("limits.max_relays_per_agent", limits.max_relays_per_agent),
            ("limits.max_downloads", limits.max_downloads),
            ("limits.max_downloads_per_caller", limits.max_downloads_per_caller),
            ("limits.max_access_listeners", limits.max_access_listeners),
            ("limits.max_agent_listeners", limits.max_agent_listeners),
        ])?;
        if !(4 << 20..=1 << 40).contains(&limits.max_anonymous_bytes) {
            return Err(ConfigError::value("limits.max_anonymous_bytes", "must be 4194304 to 1099511627776"));
        }
        self.web.check()?;
        check_durations(&[
            ("limits.handshake_timeout", limits.handshake_timeout),
            ("limits.call_timeout", limits.call_timeout),
            ("limits.message_timeout", limits.message_timeout),
            ("limits.drain_timeout", limits.drain_timeout),
            ("raft.heartbeat", self.raft.heartbeat),
            ("raft.deadline", self.raft.deadline),
            ("presence.interval", self.presence.interval),
        ])?;
        self.check_iam()?;
        self.check_timing()
    }
}

impl Config {
    /// File of the key-encryption key.
    pub fn kek_path(&self) -> PathBuf {
        self.kek_file.clone().unwrap_or_else(|| self.data_dir.join("kek"))
    }

    fn check_iam(&self) -> Result<(), ConfigError> {
        let IamConfig { sts_endpoint, sts_ca_file } = &self.iam;
        if sts_endpoint.as_deref().is_some_and(|endpoint| authority(endpoint).is_none()) {
            return Err(ConfigError::value("iam.sts_endpoint", "must be https://host or https://host:port"));
        }
        if sts_ca_file.is_some() && sts_endpoint.is_none() {
            return Err(ConfigError::value("iam.sts_ca_file", "is for iam.sts_endpoint, which is not set"));
        }
        Ok(())
    }

    fn check_timing(&self) -> Result<(), ConfigError> {
        let bad = |field, reason| Err(ConfigError::value(field, reason));
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

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: &str = "data_dir = '/d'\nadvertise = 'a.example:3025'\npeer_advertise = '10.0.0.1:3026'\n";

    fn parse(flags: &[&str]) -> Result<Config, ConfigError> {
        Config::parse(LEAST, [], &flags.iter().map(|flag| (*flag).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn what_is_printed_is_read_back() {
        let config = parse(&[]).unwrap();
        assert_eq!((config.listen.port(), config.peer_listen.port()), (3_025, 3_026));
        assert_eq!(config.kek_path(), PathBuf::from("/d/kek"));
        assert_eq!(config.log.level, "info");
        assert_eq!(Config::parse(&config.print().unwrap(), [], &[]).unwrap(), config);
    }

    #[test]
    fn strangers_get_a_share_of_the_connections() {
        assert_eq!(parse(&["limits.max_connections=7"]).unwrap().limits.anonymous_connections(), 6);
    }

    #[test]
    fn unknown_fields_are_refused_in_every_table() {
        for table in ["", "tls.", "log.", "limits.", "raft.", "presence.", "web.", "iam."] {
            let error = parse(&[&format!("{table}colour=1")]).unwrap_err();
            assert!(error.to_string().contains("colour"), "{error}");
        }
    }

    #[test]
    fn values_out_of_bounds_are_refused() {
        for flag in [
            "advertise=0.0.0.0:3025",
            "advertise=host",
            "advertise=host:0",
            "peer_advertise='[::]:3026'",
            "limits.max_relays=0",
            "limits.max_anonymous_connections=0",
            "limits.max_anonymous_bytes=4194303",
            "limits.call_timeout=0s",
            "raft.election_min=199ms",
            "raft.election_max=300ms",
            "raft.peer_certificate_life=9s",
            "raft.deadline=61s",
            "presence.ttl=29s",
            "iam.sts_endpoint=http://sts.example",
            "iam.sts_endpoint=https://sts.example/path",
            "iam.sts_ca_file=/ca.pem",
        ] {
            assert!(matches!(parse(&[flag]), Err(ConfigError::Value { .. })), "{flag}");
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
