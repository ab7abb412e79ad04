//! The auth cluster itself: how it is, and tokens with which further nodes join it.

use auth_core::{
    CoreError, ca, cluster, node,
    secret::{SecretDigest, SecretKind},
    tables::CaKind,
};
use mezite_pki::x509::CertificateInfo;
use mezite_proto::v1;
use store_txn::Read as _;

use super::{convert, members, nodes};
use crate::{authn::Call, error::ApiError, once::Once, service::Service};

pub(crate) async fn status(
    service: &Service,
    call: &Call,
    _request: v1::GetClusterStatusRequest,
) -> Result<v1::GetClusterStatusResponse, ApiError> {
    let ttl = service.settings.presence_ttl;
    let read = service.read(call, move |view, _| {
        let now = view.now();
        let ingests = node::ingests(view)?;
        Ok((ingests.into_iter().map(|node| nodes::node(node, now, ttl)).collect(), node::count(view, ttl)?))
    });
    let (ingests, counts) = read.await?;
    let members = members::all(service).await;
    let status = service.store.status();
    Ok(v1::GetClusterStatusResponse {
        cluster_name: service.settings.cluster.clone(),
        cluster_id: service.settings.cluster_id.clone(),
        node_id: status.node_id,
        leader_id: status.leader_id.unwrap_or_default(),
        term: status.term,
        committed_index: status.committed_index,
        applied_index: status.applied_index,
        last_log_index: status.last_log_index,
        snapshot_index: status.snapshot_index,
        database_size: status.database_size,
        members,
        ingests,
        nodes_online: counts.online,
        nodes_total: counts.total,
        revision: status.revision,
        database_full: status.database_full,
    })
}

pub(crate) async fn create_join_token(
    service: &Service,
    call: &Call,
    request: v1::CreateAuthJoinTokenRequest,
) -> Result<v1::CreateAuthJoinTokenResponse, ApiError> {
    let once = Once::of(call, &request);
    let ttl = request.ttl.map(|ttl| convert::duration_in("ttl", ttl)).transpose()?;
    let token = convert::secret();
    let digest = SecretDigest::of(SecretKind::AuthJoinToken, &token);
    let members = service.store.status().members;
    let peer_addresses: Vec<_> = members.into_iter().map(|member| member.peer_address).collect();
    let create = service.write_once(call, once, move |tx, context| {
        let ends = cluster::create_auth_join_token(tx, context, digest, ttl)?;
        let peer_ca = ca::active(tx, CaKind::Peer)?.key.public;
        let ca = CertificateInfo::from_pem(&peer_ca)
            .map_err(|error| CoreError::Internal(format!("the peer CA cannot be read: {error}")))?;
        Ok(v1::CreateAuthJoinTokenResponse {
            token: token.to_string(),
            ca_pin: ca.spki_pin,
            expires_at: Some(convert::timestamp(ends)),
            peer_addresses: peer_addresses.clone(),
            name: cluster::auth_join_token_name(digest)?.into(),
        })
    });
    create.await
}
