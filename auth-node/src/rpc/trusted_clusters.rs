//! Trusted clusters, and the exchange by which one comes to be trusted.

use std::{ops::ControlFlow, time::Duration};

use auth_core::{
    CoreError,
    names::ClusterName,
    secret::{SecretDigest, SecretKind},
    tables::{CaKind, ForeignCaRow, RoleMappingRow, RotationPhase},
    trust::Authority,
    trusted_cluster::{self, NewTrustedCluster, TrustedCluster},
};
use mezite_proto::v1;
use raft_store::StoreError;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::{convert, trust};
use crate::{
    authn::Call,
    error::ApiError,
    foreign::{self, Asker, Token, Unanswered},
    once::Once,
    service::Service,
};

/// Length of an exchange's id, in bytes.
const EXCHANGE_ID: usize = 32;
/// Longest secret of a token that is looked at, in bytes.
const MAX_SECRET: usize = 256;
/// First part of the digest that makes an exchange's id.
const EXCHANGE_DOMAIN: &[u8] = b"mezite trust exchange\0";

/// Answers one trusted cluster.
pub(crate) async fn get(
    service: &Service,
    call: &Call,
    request: v1::GetTrustedClusterRequest,
) -> Result<v1::GetTrustedClusterResponse, ApiError> {
    let name = ClusterName::parse("name", &request.name)?;
    let found = service.read(call, move |view, _| trusted_cluster::get(view, &name)).await?;
    Ok(v1::GetTrustedClusterResponse { trusted_cluster: Some(reply(found)) })
}

/// Lists trusted clusters, ordered by name.
pub(crate) async fn list(
    service: &Service,
    call: &Call,
    request: v1::ListTrustedClustersRequest,
) -> Result<v1::ListTrustedClustersResponse, ApiError> {
    let page = convert::page(request.page_size, &request.page_token)?;
    let page = service.read(call, move |view, _| trusted_cluster::list(view, &page)).await?.map(reply);
    Ok(v1::ListTrustedClustersResponse {
        trusted_clusters: page.items,
        next_page_token: convert::page_token(page.next),
    })
}

/// Trusts another cluster: first it is asked, with the token, and then what it said is committed.
pub(crate) async fn create(
    service: &Service,
    call: &Call,
    request: v1::CreateTrustedClusterRequest,
) -> Result<v1::CreateTrustedClusterResponse, ApiError> {
    let once = Once::of(call, &request);
    let token = Zeroizing::new(request.token);
    let (new, _) = parse(request.trusted_cluster)?;
    let token = Token::parse(&token)?;
    let asked = new.clone();
    let begun = service.unless_answered(call, &once, move |view, context| {
        trusted_cluster::may_create(view, context, &asked)
    });
    if let ControlFlow::Break(answered) = begun.await? {
        return Ok(answered);
    }
    let asker = Asker { cluster: &service.settings.cluster, exchange_id: exchange_id(call) };
    let told = foreign::exchange(new.addresses(), new.name(), &token, asker, time_to_ask(call)).await;
    let told = told.map_err(|unanswered| refusal(call, unanswered))?;
    let create = service.write_once(call, once, move |tx, context| {
        let made = trusted_cluster::create(tx, context, &new, &told)?;
        Ok(v1::CreateTrustedClusterResponse { trusted_cluster: Some(reply(made)) })
    });
    create.await.map_err(|error| spent(call, error))
}

/// What the caller is told of a cluster that told nothing: of one that has not proved itself, always the same.
fn refusal(call: &Call, unanswered: Unanswered) -> CoreError {
    let found = match unanswered {
        Unanswered::Refused(error) => return error,
        Unanswered::Unproved(found) => found,
    };
    let request_id = &call.origin.request_id;
    tracing::warn!(request_id, found, "a cluster that is to be trusted has not proved itself");
    CoreError::Precondition(format!(
        "the other cluster could not be reached, or did not prove that it is the one that made the token: look at the addresses and \
         the token; the node's log has more under request id {request_id}"
    ))
}

/// The same for all attempts of the call: one that breaks off between exchange and commit can go on at another node.
fn exchange_id(call: &Call) -> [u8; EXCHANGE_ID] {
    call.key.as_ref().map_or_else(rand::random, |key| key.derived(EXCHANGE_DOMAIN))
}

/// Half of what is left, so that the commit has the other half.
fn time_to_ask(call: &Call) -> Duration {
    let left = call.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    left.map_or(foreign::LONGEST, |left| foreign::LONGEST.min(left / 2))
}

/// What went wrong after the exchange. An attempt of the same call goes on with it, which only an idempotency key makes one.
fn spent(call: &Call, error: ApiError) -> ApiError {
    let goes_on = match &error {
        ApiError::Store(StoreError::OutcomeUnknown) => true,
        ApiError::Store(_) => call.key.is_some(),
        _ => false,
    };
    if goes_on || error.is_ours() {
        return error;
    }
    let told = "the token of the other cluster is spent: before you try again, make a new one there";
    CoreError::Precondition(format!("{error}; {told}")).into()
}

/// Replaces addresses, mappings and the switch of a trusted cluster.
pub(crate) async fn update(
    service: &Service,
    call: &Call,
    request: v1::UpdateTrustedClusterRequest,
) -> Result<v1::UpdateTrustedClusterResponse, ApiError> {
    let once = Once::of(call, &request);
    let (new, revision) = parse(request.trusted_cluster)?;
    let update = service.write_once(call, once, move |tx, context| {
        let updated = trusted_cluster::update(tx, context, &new, revision)?;
        Ok(v1::UpdateTrustedClusterResponse { trusted_cluster: Some(reply(updated)) })
    });
    update.await
}

/// Ends the trust in a cluster.
pub(crate) async fn delete(
    service: &Service,
    call: &Call,
    request: v1::DeleteTrustedClusterRequest,
) -> Result<v1::DeleteTrustedClusterResponse, ApiError> {
    let name = ClusterName::parse("name", &request.name)?;
    service.write(call, move |tx, context| trusted_cluster::delete(tx, context, &name)).await?;
    Ok(v1::DeleteTrustedClusterResponse {})
}

/// Answers this cluster's authorities to one that lets the users of this one in, against a token.
pub(crate) async fn exchange(
    service: &Service,
    call: &Call,
    request: v1::ExchangeTrustRequest,
) -> Result<v1::ExchangeTrustResponse, ApiError> {
    let token = Zeroizing::new(request.token);
    if token.len() > MAX_SECRET {
        return Err(CoreError::invalid("token", "it is too long to be the secret of a token").into());
    }
    if request.exchange_id.len() != EXCHANGE_ID {
        return Err(CoreError::invalid("exchange_id", format!("{EXCHANGE_ID} bytes")).into());
    }
    let secret = SecretDigest::of(SecretKind::JoinToken, &token);
    let exchange = Sha256::digest(&request.exchange_id).into();
    let asker = ClusterName::parse("cluster_name", &request.cluster_name)?;
    let told = service
        .decide(call, move |tx, context| trusted_cluster::exchange(tx, context, secret, exchange, &asker));
    Ok(v1::ExchangeTrustResponse { trust_bundle: Some(trust::reply(told.await?)?) })
}

/// What is asked for, and the revision that it replaces.
fn parse(cluster: Option<v1::TrustedCluster>) -> Result<(NewTrustedCluster, u64), CoreError> {
    let cluster = cluster.ok_or_else(|| CoreError::invalid("trusted_cluster", "it is needed"))?;
    let mapping = |mapping: v1::RoleMapping| RoleMappingRow { remote: mapping.remote, local: mapping.local };
    let mappings = cluster.role_mappings.into_iter().map(mapping).collect();
    let new = NewTrustedCluster::new(&cluster.name, cluster.addresses, mappings, cluster.disabled)?;
    Ok((new, cluster.revision))
}

fn reply(cluster: TrustedCluster) -> v1::TrustedCluster {
    let TrustedCluster { name, revision, row, refresh } = cluster;
    let mapping = |row: RoleMappingRow| v1::RoleMapping { remote: row.remote, local: row.local };
    let authority = |row: ForeignCaRow| {
        let kind = CaKind::try_from(row.kind).ok()?;
        // Where its rotation stands is that cluster's own business: whatever it trusts is trusted here.
        let phase = RotationPhase::Standby;
        Some(trust::authority(Authority { kind, keys: row.keys, phase }))
    };
    v1::TrustedCluster {
        name: name.into(),
        addresses: row.addresses,
        role_mappings: row.mappings.into_iter().map(mapping).collect(),
        disabled: row.disabled,
        authorities: row.authorities.into_iter().filter_map(authority).collect(),
        revision,
        refreshed_at: (refresh.refreshed_at_ms != 0).then(|| convert::timestamp(refresh.refreshed_at_ms)),
        refresh_error: refresh.error,
    }
}

#[cfg(test)]
#[path = "trusted_clusters_tests.rs"]
mod tests;
