//! `cluster_config`: what admins decide for the whole cluster. There is one, always.

use anyhow::Result;
use mezite_client::Client;
use mezite_proto::v1;
use serde::{Deserialize, Serialize};

use super::{
    Kind, Made, Options,
    document::{Document, refuse_existing},
};
use crate::{
    args::{Human, proto_duration},
    cmd::config::{self, ConfigView},
    exit::{NotFound, Usage},
    output::Report as _,
};

pub(super) struct ClusterConfig;

/// What is absent has its default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Spec {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    second_factor: Option<Factor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    session_ttl: Option<Human>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    session_idle_timeout: Option<Human>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    audit_retention: Option<Human>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    audit_max_events: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    recording_mode: Option<Recording>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lockout_threshold: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lockout_duration: Option<Human>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    webauthn_rp_id: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    webauthn_origins: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Factor {
    Off,
    Optional,
    Webauthn,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Recording {
    Off,
    BestEffort,
    Strict,
}

/// Nothing is said beside it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Status {}

type ConfigDocument = Document<Spec, Status>;

impl From<v1::ClusterConfig> for ConfigDocument {
    fn from(config: v1::ClusterConfig) -> Self {
        let spec = Spec {
            second_factor: match config.second_factor() {
                v1::SecondFactor::Unspecified => None,
                v1::SecondFactor::Off => Some(Factor::Off),
                v1::SecondFactor::Optional => Some(Factor::Optional),
                v1::SecondFactor::Webauthn => Some(Factor::Webauthn),
            },
            session_ttl: Human::of(config.session_ttl),
            session_idle_timeout: Human::of(config.session_idle_timeout),
            audit_retention: Human::of(config.audit_retention),
            audit_max_events: Some(config.audit_max_events).filter(|count| *count > 0),
            recording_mode: match config.recording_mode() {
                v1::RecordingMode::Unspecified => None,
                v1::RecordingMode::Off => Some(Recording::Off),
                v1::RecordingMode::BestEffort => Some(Recording::BestEffort),
                v1::RecordingMode::Strict => Some(Recording::Strict),
            },
            lockout_threshold: Some(config.lockout_threshold).filter(|count| *count > 0),
            lockout_duration: Human::of(config.lockout_duration),
            webauthn_rp_id: config.webauthn_rp_id,
            webauthn_origins: config.webauthn_origins,
        };
        Self::without_status(ClusterConfig::NAME, ClusterConfig::NAME.to_owned(), Some(config.revision), spec)
    }
}

fn message(document: &ConfigDocument) -> v1::ClusterConfig {
    let spec = &document.spec;
    let duration = |human: Option<Human>| human.map(|human| proto_duration(human.0));
    let second_factor = match spec.second_factor {
        None => v1::SecondFactor::Unspecified,
        Some(Factor::Off) => v1::SecondFactor::Off,
        Some(Factor::Optional) => v1::SecondFactor::Optional,
        Some(Factor::Webauthn) => v1::SecondFactor::Webauthn,
    };
    let recording_mode = match spec.recording_mode {
        None => v1::RecordingMode::Unspecified,
        Some(Recording::Off) => v1::RecordingMode::Off,
        Some(Recording::BestEffort) => v1::RecordingMode::BestEffort,
        Some(Recording::Strict) => v1::RecordingMode::Strict,
    };
    v1::ClusterConfig {
        second_factor: second_factor.into(),
        session_ttl: duration(spec.session_ttl),
        session_idle_timeout: duration(spec.session_idle_timeout),
        audit_retention: duration(spec.audit_retention),
        audit_max_events: spec.audit_max_events.unwrap_or_default(),
        recording_mode: recording_mode.into(),
        lockout_threshold: spec.lockout_threshold.unwrap_or_default(),
        lockout_duration: duration(spec.lockout_duration),
        webauthn_rp_id: spec.webauthn_rp_id.clone(),
        webauthn_origins: spec.webauthn_origins.clone(),
        revision: document.revision(),
    }
}

impl Kind for ClusterConfig {
    const NAME: &'static str = "cluster_config";
    const PLURAL: &'static str = "cluster_configs";
    type Item = v1::ClusterConfig;
    type Document = ConfigDocument;
    const REPLACEABLE: bool = true;

    fn name(document: &ConfigDocument) -> Option<&str> {
        Some(document.name().unwrap_or(Self::NAME))
    }

    fn check(document: &ConfigDocument, _: &Options) -> Result<()> {
        match Self::name(document) {
            Some(Self::NAME) => Ok(()),
            _ => Err(Usage(format!("the one configuration is called {}", Self::NAME)).into()),
        }
    }

    fn settle(document: &mut ConfigDocument) {
        document.metadata.name.get_or_insert_with(|| Self::NAME.to_owned());
        let spec = &mut document.spec;
        // None at all is the default, as a field that is absent.
        spec.audit_max_events = spec.audit_max_events.filter(|count| *count > 0);
        spec.lockout_threshold = spec.lockout_threshold.filter(|count| *count > 0);
    }

    fn table(configs: Vec<v1::ClusterConfig>) -> String {
        configs.into_iter().map(|config| ConfigView::from(config).text()).collect()
    }

    async fn all(client: &Client) -> Result<Vec<v1::ClusterConfig>> {
        Ok(vec![config::one(client).await?])
    }

    async fn one(client: &Client, name: &str) -> Result<v1::ClusterConfig> {
        match name {
            Self::NAME => config::one(client).await,
            _ => Err(NotFound(format!("the one configuration is called {}, not {name}", Self::NAME)).into()),
        }
    }

    async fn create(client: &Client, document: ConfigDocument, _: &Options) -> Result<Made> {
        refuse_existing::<Self>(client, Self::name(&document)).await?;
        Err(Usage(format!("the one configuration is called {}", Self::NAME)).into())
    }

    async fn replace(client: &Client, document: ConfigDocument) -> Result<()> {
        config::replace(client, message(&document)).await.map(drop)
    }

    async fn remove(_: &Client, _: &str) -> Result<()> {
        Err(Usage("the configuration cannot be removed: a field that is left out has its default".into())
            .into())
    }
}
