//! The fields of the configuration: their defaults and bounds. How they are read is `mezite-daemon`'s; a field `a.b` is
//! also the environment variable `MEZITE_INGEST__A__B`.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use ipnet::IpNet;
use mezite_daemon::{
    config::{ConfigError, Settings, check_counts, check_durations},
    logging::LogConfig,
    traces::TracesConfig,
};
use recording_format::{MAX_CHUNK_LEN, MAX_SEGMENT_PAYLOAD};
use serde::{Deserialize, Serialize};

use crate::{budget, objects::s3};

/// Configuration of a recording ingest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Folder of the identity and the trust bundle. Needed.
    pub data_dir: PathBuf,
    /// Where recordings go: `file:///absolute/path`, or `s3://BUCKET/PREFIX` of a bucket of S3 or of what speaks its protocol.
    /// Replicas that share it share the recordings. Needed.
    pub store: String,
    /// host:port of the auth nodes; each is as good as the other. Default: none (no heartbeats, no renewal, and
    /// nobody is told of recordings).
    #[serde(default)]
    pub auth_servers: Vec<String>,
    /// `sha256:` and the hex SPKI digest of the cluster's TLS CA, for `join`; while the CA is rotated that of the old one and of the
    /// new one, with a comma between them. Default: none.
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
    /// Proxies and load balancers that tell who connects, by the PROXY protocol (version 1 or 2): networks, such as
    /// `10.0.0.0/24`. Each connection from there must begin with its header, and none from elsewhere may; who may
    /// connect from there may claim to come from anywhere. Default: none.
    #[serde(default)]
    pub trusted_proxies: Vec<IpNet>,
    /// Address of `/healthz`, `/readyz` and `/metrics`: plain HTTP. Default: `127.0.0.1:3082`.
    #[serde(default = "default_diagnostics")]
    pub diagnostics_listen: SocketAddr,
    /// Labels that it reports, at most 64. Default: none.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Logging.
    #[serde(default)]
    pub log: LogConfig,
    /// Traces.
    #[serde(default)]
    pub traces: TracesConfig,
    /// Bounds.
    #[serde(default)]
    pub limits: LimitsConfig,
    /// How a bucket is reached, where `store` is one. Credentials come from AWS's standard chain: environment, profile, web
    /// identity, container, instance.
    #[serde(default)]
    pub s3: S3Config,
    /// How full the disk of a `file://` store may become.
    #[serde(default)]
    pub disk: DiskConfig,
    /// What becomes of recordings that nobody ends.
    #[serde(default)]
    pub abandon: AbandonConfig,
    /// How long recordings are kept.
    #[serde(default)]
    pub retention: RetentionConfig,
    /// The index that lists are answered from.
    #[serde(default)]
    pub index: IndexConfig,
    /// What is exchanged with the auth nodes, and when.
    #[serde(default)]
    pub control: ControlConfig,
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
    /// Recordings that auth nodes download at a time, each of which holds one segment in memory; more are RESOURCE_EXHAUSTED.
    /// Default: 64.
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
    /// Bytes, with the few that each chunk costs beside its payload, after which a segment is written. 64 KiB to
    /// 15 MiB. Default: 8 MiB.
    pub segment_bytes: usize,
    /// The longest that bytes which arrived wait for more of them before they are written as a segment. Default: 10 s.
    #[serde(with = "humantime_serde")]
    pub flush_interval: Duration,
    /// Bytes that all calls together hold in memory before they are durable. Where they are short, shorter segments are
    /// written. Beside them each call may have one message in hand, of 1 MiB at most, each connection what HTTP/2 lets it send
    /// ahead, each download a segment, and each of eight recordings that are read through at a time 8 MiB or a segment.
    /// 2 MiB to 1 TiB. Default: 96 MiB.
    pub memory_bytes: usize,
    /// Payload bytes of a recording. One that would become larger is sealed as truncated, with what is there. At least
    /// 64 KiB. Default: 10 GiB.
    pub max_recording_bytes: u64,
    /// Recordings, not being written just now, whose running digest is kept so that their end needs no reading.
    /// Default: 4096.
    pub kept_progress: usize,
    /// Segments, of little more than `segment_bytes` each, kept in memory for readers. Default: 4.
    pub cached_segments: usize,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            max_connections: 10_000,
            max_streams: 1_024,
            max_streams_per_agent: 128,
            max_downloads: 64,
            max_streams_per_connection: 1_024,
            handshake_timeout: Duration::from_secs(10),
            message_timeout: Duration::from_secs(60),
            drain_timeout: Duration::from_secs(25),
            segment_bytes: 8 << 20,
            flush_interval: Duration::from_secs(10),
            memory_bytes: 96 << 20,
            max_recording_bytes: 10 << 30,
            kept_progress: 4_096,
            cached_segments: 4,
        }
    }
}

/// How a bucket is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct S3Config {
    /// URL of the server. Default: AWS's, for the region.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Region. Default: what AWS's standard chain says, or `us-east-1` where `s3.endpoint` is set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Whether the bucket is in the path of URLs, as most servers but AWS's want it, and not in the host name. Default: false.
    pub path_style: bool,
    /// Whether `s3.endpoint` may be `http:`: recordings cross the network as they are. Default: false.
    pub allow_http: bool,
    /// PEM file with authorities of the server's certificate, beside those that the system trusts. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// The longest that one request takes. One carries at most a segment. Default: 30 s.
    #[serde(with = "humantime_serde")]
    pub request_timeout: Duration,
    /// The longest that connecting takes. Default: 5 s.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
}

impl Default for S3Config {
    fn default() -> Self {
        Self {
            endpoint: None,
            region: None,
            path_style: false,
            allow_http: false,
            ca_file: None,
            request_timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(5),
        }
    }
}

/// How full the disk of a `file://` store may become, in bytes that are free. Of other stores nothing is known.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DiskConfig {
    /// With less than this no recording is begun. Default: 5 % of the disk, at most 10 GiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refuse_new: Option<u64>,
    /// With less than this no recording grows; those that are whole can still be ended. Default: 2 % of the disk, at
    /// most 4 GiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refuse_appends: Option<u64>,
    /// Reserved, so that recordings can be ended on a disk that others have filled. 0: nothing. Default: 1 % of the
    /// disk, at most 64 MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reserve: Option<u64>,
}

/// What becomes of recordings that nobody ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AbandonConfig {
    /// A recording of which nothing was heard for so long is sealed as interrupted; it goes on if its agent comes back. Of a
    /// session that is quiet its agent says every 10 minutes that it goes on. Default: 1 h.
    #[serde(with = "humantime_serde")]
    pub grace: Duration,
}

impl Default for AbandonConfig {
    fn default() -> Self {
        Self { grace: Duration::from_secs(3_600) }
    }
}

/// How long recordings are kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetentionConfig {
    /// A recording is deleted so long after it was sealed, and not before the time that its manifest says. Recordings
    /// that were sealed while this was not set are kept for ever, and so is all while it is not set. Default: none.
    #[serde(with = "humantime_serde", skip_serializing_if = "Option::is_none")]
    pub keep: Option<Duration>,
    /// How often it is looked for recordings to delete. Default: 10 min.
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
}

impl Default for RetentionConfig {
    fn default() -> Self {
        Self { keep: None, interval: Duration::from_secs(600) }
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
    /// How often it is looked for recordings of which the cluster's audit log is to be told. Default: 2 s.
    #[serde(with = "humantime_serde")]
    pub report_interval: Duration,
    /// How long, while auth nodes can be reached, another ingest has to tell of what it sealed or deleted; after one to
    /// two times of it, this one does. Default: 10 min.
    #[serde(with = "humantime_serde")]
    pub report_takeover: Duration,
}

impl Default for ControlConfig {
    fn default() -> Self {
        Self {
            heartbeat_interval: Duration::from_secs(15),
            call_timeout: Duration::from_secs(10),
            bundle_interval: Duration::from_secs(300),
            renewal_check_interval: Duration::from_secs(60),
            report_interval: Duration::from_secs(2),
            report_takeover: Duration::from_secs(600),
        }
    }
}

fn default_listen() -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], 3_027))
}

fn default_diagnostics() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 3_082))
}

impl Settings for Config {
    const ENV_PREFIX: &'static str = "MEZITE_INGEST__";

    fn log(&self) -> &LogConfig {
        &self.log
    }

    fn traces(&self) -> &TracesConfig {
        &self.traces
    }

    fn check(&self) -> Result<(), ConfigError> {
        let bad = |field, reason| Err(ConfigError::value(field, reason));
        if !self.store.starts_with("file:///") && s3::split(&self.store).is_none() {
            return bad("store", "must be file:///absolute/path or s3://BUCKET/PREFIX");
        }
        if let Some(endpoint) = &self.s3.endpoint
            && !endpoint.starts_with("https://")
            && !(self.s3.allow_http && endpoint.starts_with("http://"))
        {
            return bad("s3.endpoint", "must be https://HOST, or http://HOST with s3.allow_http = true");
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
        check_counts(&[
            ("limits.max_connections", limits.max_connections),
            ("limits.max_streams", limits.max_streams),
            ("limits.max_streams_per_agent", limits.max_streams_per_agent),
            ("limits.max_downloads", limits.max_downloads),
            ("limits.max_streams_per_connection", limits.max_streams_per_connection as usize),
        ])?;
        if !(budget::LEAST..=budget::MOST).contains(&limits.memory_bytes) {
            return bad("limits.memory_bytes", "must be 2097152 to 1099511627776");
        }
        if limits.max_recording_bytes < 64 << 10 {
            return bad("limits.max_recording_bytes", "must be at least 65536");
        }
        if self.retention.keep.is_some_and(|keep| keep.is_zero()) {
            return bad(
                "retention.keep",
                "must be more than nothing; leave it out to keep recordings for ever",
            );
        }
        check_durations(&[
            ("limits.flush_interval", limits.flush_interval),
            ("abandon.grace", self.abandon.grace),
            ("retention.interval", self.retention.interval),
            ("limits.handshake_timeout", limits.handshake_timeout),
            ("limits.message_timeout", limits.message_timeout),
            ("limits.drain_timeout", limits.drain_timeout),
            ("s3.request_timeout", self.s3.request_timeout),
            ("s3.connect_timeout", self.s3.connect_timeout),
            ("index.refresh_interval", self.index.refresh_interval),
            ("control.heartbeat_interval", self.control.heartbeat_interval),
            ("control.call_timeout", self.control.call_timeout),
            ("control.bundle_interval", self.control.bundle_interval),
            ("control.renewal_check_interval", self.control.renewal_check_interval),
            ("control.report_interval", self.control.report_interval),
            ("control.report_takeover", self.control.report_takeover),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: &str = "data_dir = '/d'\nstore = 'file:///s'\n";

    fn parse(flags: &[&str]) -> Result<Config, ConfigError> {
        Config::parse(LEAST, [], &flags.iter().map(|flag| (*flag).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn what_is_printed_is_read_back() {
        let config = parse(&[]).unwrap();
        assert_eq!(config.listen.port(), 3_027);
        assert_eq!(config.log.level, "info");
        assert_eq!(Config::parse(&config.print().unwrap(), [], &[]).unwrap(), config);
    }

    #[test]
    fn unknown_fields_are_refused_in_every_table() {
        let tables = ["", "log.", "limits.", "s3.", "disk.", "abandon.", "retention.", "index.", "control."];
        for table in tables {
            let error = parse(&[&format!("{table}colour=1")]).unwrap_err();
            assert!(error.to_string().contains("colour"), "{error}");
        }
    }

    #[test]
    fn values_out_of_bounds_are_refused() {
        for flag in [
            "store=/no/url",
            "store=s3://",
            "s3.endpoint=http://minio:9000",
            "s3.endpoint=minio:9000",
            "s3.request_timeout=0s",
            "limits.segment_bytes=1",
            "limits.segment_bytes=15728641",
            "limits.max_streams=0",
            "limits.memory_bytes=2097151",
            "limits.max_recording_bytes=65535",
            "limits.flush_interval=0s",
            "disk.reserve=-1",
            "abandon.grace=0s",
            "retention.keep=0s",
            "limits.max_connections=1000001",
            "limits.message_timeout=0s",
            "listen=nowhere",
        ] {
            assert!(parse(&[flag]).is_err(), "{flag}");
        }
        parse(&["store=s3://recordings/ssh", "s3.endpoint=http://minio:9000", "s3.allow_http=true"]).unwrap();
        assert!(parse(&["ca_pin=sha256:00", "ca_file=/f"]).is_err());
    }
}
