//! `Ping`: answered from this node's own state, so that it works without a quorum too.

use auth_core::cluster;
use mezite_proto::v1;
use raft_store::NotReady;

use super::convert;
use crate::{authn::Call, error::ApiError, readiness::MAX_LAG, service::Service};

pub(crate) async fn ping(
    service: &Service,
    call: &Call,
    _request: v1::PingRequest,
) -> Result<v1::PingResponse, ApiError> {
    let cluster = service.read_local(call, |view| Ok(cluster::get(view)?.row)).await?;
    Ok(v1::PingResponse {
        cluster_name: cluster.name,
        cluster_id: cluster.cluster_id,
        node_id: service.settings.node_id,
        server_version: env!("CARGO_PKG_VERSION").into(),
        server_time: Some(convert::timestamp((service.clock)())),
        ingest_addresses: service.ingests.addresses().await?.to_vec(),
        problem: service.problem.get(problem(service)).await?,
    })
}

/// What anybody may know of why the node is not ready; empty: it is.
async fn problem(service: &Service) -> Result<String, ApiError> {
    Ok(match service.store.ready(MAX_LAG).await {
        Ok(()) => String::new(),
        // What stopped it is for the node's own log.
        Err(NotReady::Dead(_)) => "the node has failed".into(),
        Err(reason @ (NotReady::NoLeader | NotReady::Lagging { .. } | NotReady::Removed)) => {
            reason.to_string()
        }
    })
}
