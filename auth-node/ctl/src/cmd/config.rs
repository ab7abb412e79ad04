//! `config`: what admins decide for the whole cluster.

use std::time::Duration;

use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};
use mezite_client::{Client, Retry};
use mezite_proto::v1;
use serde::Serialize;

use crate::{
    args::{human_duration, proto_duration, shown_duration},
    cmd::{call, present},
    context::Context,
    exit::Usage,
    output::{self, Report},
};

/// Commands on the cluster's configuration.
#[derive(Debug, Subcommand)]
pub(crate) enum Config {
    /// Show the configuration
    Show,
    /// Change what is named, and leave the rest; it counts at once, on every node
    Set(Box<Set>),
}

const SET_EXAMPLES: &str = "\
Examples:
  mezctl config set --session-ttl 8h
  mezctl config set --audit-retention 400d
  mezctl config set --audit-retention off";

/// A duration, or `off` for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct OrOff(Option<Duration>);

fn or_off(text: &str) -> Result<OrOff, String> {
    match text {
        "off" => Ok(OrOff(None)),
        _ => human_duration(text)
            .map(|duration| OrOff(Some(duration)))
            .map_err(|error| format!("{error}, or `off`")),
    }
}

/// Arguments of `config set`.
#[derive(Debug, Args)]
#[command(after_help = SET_EXAMPLES)]
pub(crate) struct Set {
    /// What a login needs beyond a password
    #[arg(long, value_enum)]
    second_factor: Option<Factor>,
    /// Life of a session, 1m to 30d
    #[arg(long, value_parser = human_duration, value_name = "DURATION")]
    session_ttl: Option<Duration>,
    /// A session that is not used for so long ends, 1m to 30d; `off`: it does not
    #[arg(long, value_parser = or_off, value_name = "DURATION|off")]
    session_idle_timeout: Option<OrOff>,
    /// How long audit events are kept, at least 1d; `off`: for ever
    #[arg(long, value_parser = or_off, value_name = "DURATION|off")]
    audit_retention: Option<OrOff>,
    /// How many audit events are kept, at least 1000; 0: all
    #[arg(long, value_name = "COUNT")]
    audit_max_events: Option<u64>,
    /// What happens to a session that cannot be recorded, on hosts that joined with --spool; on others no session is recorded,
    /// nor refused for that, and the log of `agent run` there says so
    #[arg(long, value_enum)]
    recording_mode: Option<Recording>,
    /// Failed logins before a lockout, 1 to 1000
    #[arg(long, value_name = "COUNT")]
    lockout_threshold: Option<u32>,
    /// How long a lockout lasts, 1s to 1d
    #[arg(long, value_parser = human_duration, value_name = "DURATION")]
    lockout_duration: Option<Duration>,
    /// Domain of the cluster's web pages, for WebAuthn. Devices are for the domain that they were registered for: another one makes
    /// all of them useless, until it is set back
    #[arg(long, value_name = "DOMAIN")]
    webauthn_rp_id: Option<String>,
    /// Origins of those pages: of that domain or below it [default: https:// and the domain]
    #[arg(long, value_delimiter = ',', value_name = "URL,…")]
    webauthn_origins: Option<Vec<String>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Factor {
    Off,
    Optional,
    Webauthn,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Recording {
    /// No session is recorded
    Off,
    /// It goes on, with a notice
    BestEffort,
    /// It is refused, or ended
    Strict,
}

#[derive(Serialize)]
pub(crate) struct ConfigView {
    second_factor: &'static str,
    session_ttl: String,
    session_idle_timeout: String,
    audit_retention: String,
    audit_max_events: String,
    recording_mode: &'static str,
    lockout_threshold: u32,
    lockout_duration: String,
    webauthn_rp_id: String,
    webauthn_origins: Vec<String>,
    revision: u64,
}

impl From<v1::ClusterConfig> for ConfigView {
    fn from(config: v1::ClusterConfig) -> Self {
        let shown = |duration: Option<prost_types::Duration>, default: &str| {
            let duration = duration.and_then(|duration| Duration::try_from(duration).ok());
            duration.map_or_else(|| default.to_owned(), shown_duration)
        };
        Self {
            second_factor: match config.second_factor() {
                v1::SecondFactor::Unspecified | v1::SecondFactor::Off => "off",
                v1::SecondFactor::Optional => "optional",
                v1::SecondFactor::Webauthn => "webauthn",
            },
            session_ttl: shown(config.session_ttl, "12h (default)"),
            session_idle_timeout: shown(config.session_idle_timeout, "off"),
            audit_retention: shown(config.audit_retention, "off"),
            audit_max_events: match config.audit_max_events {
                0 => "all".into(),
                count => count.to_string(),
            },
            recording_mode: match config.recording_mode() {
                v1::RecordingMode::Off => "off",
                v1::RecordingMode::Unspecified | v1::RecordingMode::BestEffort => "best-effort",
                v1::RecordingMode::Strict => "strict",
            },
            lockout_threshold: if config.lockout_threshold == 0 { 10 } else { config.lockout_threshold },
            lockout_duration: shown(config.lockout_duration, "15m (default)"),
            revision: config.revision,
            webauthn_rp_id: config.webauthn_rp_id,
            webauthn_origins: config.webauthn_origins,
        }
    }
}

impl Report for ConfigView {
    fn text(&self) -> String {
        output::fields(&[
            ("second factor", self.second_factor.into()),
            ("session ttl", self.session_ttl.clone()),
            ("session idle timeout", self.session_idle_timeout.clone()),
            ("audit retention", self.audit_retention.clone()),
            ("audit max events", self.audit_max_events.clone()),
            ("recording mode", self.recording_mode.into()),
            ("lockout threshold", self.lockout_threshold.to_string()),
            ("lockout duration", self.lockout_duration.clone()),
            ("webauthn rp id", self.webauthn_rp_id.clone()),
            ("webauthn origins", self.webauthn_origins.join(",")),
            ("revision", self.revision.to_string()),
        ])
    }
}

impl Set {
    /// The configuration with what is named here; the revision stays, so that nothing is overwritten unseen.
    fn over(&self, mut config: v1::ClusterConfig) -> Result<v1::ClusterConfig> {
        let before = config.clone();
        if let Some(factor) = self.second_factor {
            config.second_factor = match factor {
                Factor::Off => v1::SecondFactor::Off,
                Factor::Optional => v1::SecondFactor::Optional,
                Factor::Webauthn => v1::SecondFactor::Webauthn,
            }
            .into();
        }
        if let Some(mode) = self.recording_mode {
            config.recording_mode = match mode {
                Recording::Off => v1::RecordingMode::Off,
                Recording::BestEffort => v1::RecordingMode::BestEffort,
                Recording::Strict => v1::RecordingMode::Strict,
            }
            .into();
        }
        let or = |given: Option<Duration>, kept| given.map(proto_duration).or(kept);
        let or_off = |given: Option<OrOff>, kept| given.map_or(kept, |given| given.0.map(proto_duration));
        config.session_ttl = or(self.session_ttl, config.session_ttl);
        config.lockout_duration = or(self.lockout_duration, config.lockout_duration);
        config.session_idle_timeout = or_off(self.session_idle_timeout, config.session_idle_timeout);
        config.audit_retention = or_off(self.audit_retention, config.audit_retention);
        config.audit_max_events = self.audit_max_events.unwrap_or(config.audit_max_events);
        config.lockout_threshold = self.lockout_threshold.unwrap_or(config.lockout_threshold);
        if let Some(id) = &self.webauthn_rp_id {
            config.webauthn_rp_id.clone_from(id);
        }
        if let Some(origins) = &self.webauthn_origins {
            config.webauthn_origins = origins.iter().filter(|origin| !origin.is_empty()).cloned().collect();
        }
        if config == before {
            return Err(Usage(
                "nothing would be changed: name what to set; `mezctl config show` shows it".into(),
            )
            .into());
        }
        Ok(config)
    }
}

pub(crate) async fn run(context: &Context, command: Config) -> Result<()> {
    match command {
        Config::Show => show(context).await,
        Config::Set(args) => set(context, &args).await,
    }
}

/// The configuration.
pub(crate) async fn one(client: &Client) -> Result<v1::ClusterConfig> {
    let reply = call!(client, Retry::Idempotent, get_cluster_config, v1::GetClusterConfigRequest {})?;
    present(reply.config, "the configuration")
}

/// Replaces the configuration.
pub(crate) async fn replace(client: &Client, config: v1::ClusterConfig) -> Result<v1::ClusterConfig> {
    let request = v1::UpdateClusterConfigRequest { config: Some(config) };
    let reply = call!(client, Retry::once("see `mezctl config show`"), update_cluster_config, request)?;
    present(reply.config, "the configuration")
}

async fn show(context: &Context) -> Result<()> {
    context.print(&ConfigView::from(one(&context.user().await?).await?))
}

async fn set(context: &Context, args: &Set) -> Result<()> {
    let client = context.user().await?;
    let config = args.over(one(&client).await?)?;
    context.print(&ConfigView::from(replace(&client, config).await?))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        set: Set,
    }

    fn over(line: &[&str], config: v1::ClusterConfig) -> Result<v1::ClusterConfig> {
        Line::try_parse_from([&["set"], line].concat()).unwrap().set.over(config)
    }

    #[test]
    fn what_is_not_named_stays() {
        let before = v1::ClusterConfig { lockout_threshold: 5, revision: 7, ..Default::default() };
        let config = over(&["--session-ttl", "8h", "--session-idle-timeout", "30m"], before.clone()).unwrap();
        assert_eq!(config.session_ttl.unwrap().seconds, 8 * 3600);
        assert_eq!((config.lockout_threshold, config.revision), (5, 7));
        let ttl = config.session_ttl;
        let off =
            over(&["--session-idle-timeout", "off", "--recording-mode", "best-effort"], config).unwrap();
        assert_eq!((off.session_idle_timeout, off.session_ttl), (None, ttl));
        let pages =
            ["--webauthn-rp-id", "a.example", "--webauthn-origins", "https://a.example,https://b.a.example"];
        let pages = over(&pages, off.clone()).unwrap();
        assert_eq!((pages.webauthn_rp_id.as_str(), pages.webauthn_origins.len()), ("a.example", 2));
        let default = over(&["--webauthn-origins", ""], pages).unwrap();
        assert_eq!((default.webauthn_rp_id.as_str(), default.webauthn_origins.len()), ("a.example", 0));
        assert_eq!(off.recording_mode(), v1::RecordingMode::BestEffort);
        assert!(over(&[], before).unwrap_err().is::<Usage>());
        assert!(Line::try_parse_from(["set", "--session-ttl", "off"]).is_err());
    }
}
