//! The configuration of the whole cluster.

use std::time::Duration;

use auth_core::{CoreError, cluster_config, tables::ClusterConfigRow};
use mezite_proto::v1;
use store_txn::Versioned;

use super::convert;
use crate::{authn::Call, error::ApiError, once::Once, service::Service};

/// Answers the configuration.
pub(crate) async fn get(
    service: &Service,
    call: &Call,
    _request: v1::GetClusterConfigRequest,
) -> Result<v1::GetClusterConfigResponse, ApiError> {
    let stored = service.read(call, |view, _| cluster_config::get(view)).await?;
    Ok(v1::GetClusterConfigResponse { config: Some(reply(stored)) })
}

/// Replaces the configuration.
pub(crate) async fn update(
    service: &Service,
    call: &Call,
    request: v1::UpdateClusterConfigRequest,
) -> Result<v1::UpdateClusterConfigResponse, ApiError> {
    let once = Once::of(call, &request);
    let config = request.config.ok_or_else(|| CoreError::invalid("config", "it is needed"))?;
    let revision = config.revision;
    let row = parse(config)?;
    let update = service.write_once(call, once, move |tx, context| {
        let row = cluster_config::update(tx, context, &row, revision)?;
        Ok(v1::UpdateClusterConfigResponse { config: Some(reply(Versioned { revision: 0, row })) })
    });
    update.await
}

fn parse(config: v1::ClusterConfig) -> Result<ClusterConfigRow, CoreError> {
    let milliseconds = |field: &str, duration: Option<prost_types::Duration>| {
        let read = duration.map(|duration| convert::duration_in(&format!("config.{field}"), duration));
        Ok::<_, CoreError>(read.transpose()?.map(|read| u64::try_from(read.as_millis()).unwrap_or(u64::MAX)))
    };
    Ok(ClusterConfigRow {
        second_factor: config.second_factor,
        session_ttl_ms: milliseconds("session_ttl", config.session_ttl)?,
        session_idle_timeout_ms: milliseconds("session_idle_timeout", config.session_idle_timeout)?,
        audit_retention_ms: milliseconds("audit_retention", config.audit_retention)?,
        recording_mode: config.recording_mode,
        lockout_threshold: (config.lockout_threshold != 0).then_some(config.lockout_threshold),
        lockout_duration_ms: milliseconds("lockout_duration", config.lockout_duration)?,
        audit_max_events: (config.audit_max_events != 0).then_some(config.audit_max_events),
        // The domain's.
        session_idle_since_ms: 0,
        session_over_before_ms: 0,
        webauthn_rp_id: config.webauthn_rp_id,
        webauthn_origins: config.webauthn_origins,
    })
}

fn reply(stored: Versioned<ClusterConfigRow>) -> v1::ClusterConfig {
    let Versioned { revision, row } = stored;
    let duration =
        |milliseconds: Option<u64>| milliseconds.map(|ms| convert::duration_out(Duration::from_millis(ms)));
    v1::ClusterConfig {
        second_factor: row.second_factor,
        session_ttl: duration(row.session_ttl_ms),
        session_idle_timeout: duration(row.session_idle_timeout_ms),
        audit_retention: duration(row.audit_retention_ms),
        recording_mode: row.recording_mode,
        lockout_threshold: row.lockout_threshold.unwrap_or_default(),
        lockout_duration: duration(row.lockout_duration_ms),
        audit_max_events: row.audit_max_events.unwrap_or_default(),
        revision,
        webauthn_rp_id: row.webauthn_rp_id,
        webauthn_origins: row.webauthn_origins,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_comes_back_as_it_was_given() {
        let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
        let config = v1::ClusterConfig {
            second_factor: v1::SecondFactor::Optional.into(),
            session_ttl: seconds(7200),
            session_idle_timeout: seconds(600),
            audit_retention: seconds(90 * 86_400),
            recording_mode: v1::RecordingMode::Strict.into(),
            lockout_threshold: 5,
            lockout_duration: seconds(60),
            audit_max_events: 10_000,
            revision: 3,
            webauthn_rp_id: "example.com".into(),
            webauthn_origins: vec!["https://a.example.com".into()],
        };
        let row = parse(config.clone()).unwrap();
        assert_eq!(reply(Versioned { revision: 3, row }), config);
        let nothing = v1::ClusterConfig::default();
        let row = parse(nothing.clone()).unwrap();
        assert_eq!(row, ClusterConfigRow::default());
        assert_eq!(reply(Versioned { revision: 0, row }), nothing);
    }

    #[test]
    fn negative_durations_name_their_field() {
        let negative = Some(prost_types::Duration { seconds: -1, nanos: 0 });
        let config = v1::ClusterConfig { lockout_duration: negative, ..v1::ClusterConfig::default() };
        let refused = parse(config).unwrap_err();
        assert!(matches!(refused, CoreError::Invalid { field, .. } if field == "config.lockout_duration"));
    }
}
