//! Heartbeats of agents and ingests.

use auth_core::{CoreError, Credential, presence::Report};
use mezite_proto::v1;
use prost::Message as _;

use super::{
    convert,
    joining::{audited, with_jitter},
    trust,
};
use crate::{authn::Call, error::ApiError, service::Service};

/// Takes down that an agent lives, and tells it what is new.
pub(crate) async fn heartbeat(
    service: &Service,
    call: &Call,
    request: v1::AgentHeartbeatRequest,
) -> Result<v1::AgentHeartbeatResponse, ApiError> {
    // Whoever else calls is refused here: the queue is for those whom the transaction may let in.
    let caller = match &call.credential {
        Credential::Agent { id, .. } => format!("agent:{id}"),
        Credential::Ingest { id, .. } => format!("ingest:{id}"),
        _ => {
            return Err(
                CoreError::Unauthenticated("show the client certificate of a registered agent").into()
            );
        }
    };
    let bytes = request.encoded_len();
    let report = Report::new(request.version, request.labels, request.address, request.load)?
        .following(request.followed_trust_revision);
    let beat = service.presence.beat(call.credential.clone(), report, bytes).await;
    let news = audited(service, call, beat).await?;
    // It was let in with many others, and not as the caller of this call.
    call.span.note(|| caller);
    Ok(v1::AgentHeartbeatResponse {
        next_interval: Some(convert::duration_out(with_jitter(service.settings.heartbeat_interval))),
        phases: news.phases.iter().copied().map(trust::phase).collect(),
        ingest_addresses: news.ingest_addresses.to_vec(),
        trust_bundle_revision: news.trust_bundle_revision,
        revocation_revision: news.revocation_revision,
        recording_mode: news.recording_mode.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        presence::Presence,
        rpc::testing::{Node, anonymous, with},
    };

    #[tokio::test]
    async fn whoever_is_no_agent_takes_no_place_among_the_heartbeats() {
        let mut node = Node::start().await;
        let session = node.boss().await;
        // Where nobody takes anything from the queue, only what is refused before it is answered.
        let service = std::sync::Arc::get_mut(&mut node.service).unwrap();
        service.presence = Presence::stuck();
        for call in [anonymous("AgentHeartbeat"), with(&session, "AgentHeartbeat")] {
            for _ in 0..2 {
                let refused = heartbeat(&node.service, &call, v1::AgentHeartbeatRequest::default()).await;
                assert!(matches!(refused, Err(ApiError::Core(CoreError::Unauthenticated(_)))), "{refused:?}");
            }
        }
        let credential =
            Credential::Agent { id: auth_core::names::AgentId::from_random([1; 16]), key_digest: [0; 32] };
        let agent = Call { credential, ..anonymous("AgentHeartbeat") };
        let waits = heartbeat(&node.service, &agent, v1::AgentHeartbeatRequest::default());
        let waits = tokio::time::timeout(std::time::Duration::from_millis(1), waits);
        assert!(waits.await.is_err());
        let busy = heartbeat(&node.service, &agent, v1::AgentHeartbeatRequest::default()).await;
        assert!(matches!(busy, Err(ApiError::Busy { .. })));
    }
}
