//! Heartbeats of agents and ingests.

use auth_core::{CoreError, presence::Report};
use mezite_proto::v1;
use prost::Message as _;

use super::{
    convert,
    joining::{audited, with_jitter},
    trust,
};
use crate::{authn::Call, error::ApiError, service::Service};

/// Most acknowledged phases in one report.
const MAX_PHASES: usize = 16;

/// Takes down that an agent lives, and tells it what is new.
pub(crate) async fn heartbeat(
    service: &Service,
    call: &Call,
    request: v1::AgentHeartbeatRequest,
) -> Result<v1::AgentHeartbeatResponse, ApiError> {
    // This release rotates nothing: which phases an agent follows decides nothing yet.
    if request.acknowledged_phases.len() > MAX_PHASES {
        return Err(CoreError::invalid("acknowledged_phases", format!("at most {MAX_PHASES}")).into());
    }
    let bytes = request.encoded_len();
    let report = Report::new(request.version, request.labels, request.address, request.load)?;
    let beat = service.presence.beat(call.credential.clone(), report, bytes).await;
    let news = audited(service, call, beat).await?;
    Ok(v1::AgentHeartbeatResponse {
        next_interval: Some(convert::duration_out(with_jitter(service.settings.heartbeat_interval))),
        phases: news.authorities.iter().copied().map(trust::phase).collect(),
        ingest_addresses: news.ingest_addresses.clone(),
        trust_bundle_revision: news.trust_bundle_revision,
    })
}
