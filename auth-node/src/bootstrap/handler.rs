//! The other side of a join: decides on a node that wants to join this cluster, and gives it what it needs.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use auth_core::{
    Caller, Context, CoreError, Credential, Origin,
    ca::Kek,
    cluster,
    secret::{SecretDigest, SecretKind},
};
use mezite_pki::x509::check_public_key;
use raft_store::{Clock, JoinHandler, JoinRequest, JoinResponse, Member, Store};
use sha2::{Digest as _, Sha256};
use tonic::Status;

use super::sealed;
use crate::{ca_keys::CaKeys, config::host_of, error::ApiError, peer_certificate, refusals::Refusals};

/// Longest token that is looked at, in bytes.
const MAX_TOKEN: usize = 256;
/// Longest peer address that is looked at, in bytes.
const MAX_ADDRESS: usize = 261;

/// Decides on nodes that want to join.
pub(crate) struct Joiner {
    pub(crate) store: Store,
    pub(crate) cas: Arc<CaKeys>,
    pub(crate) kek: Arc<Kek>,
    pub(crate) clock: Clock,
    /// Bounds the refusals that are audited.
    pub(crate) refusals: Arc<Refusals>,
    pub(crate) cluster_id: String,
    pub(crate) node_id: u64,
    /// Life of peer certificates.
    pub(crate) life: Duration,
}

#[async_trait]
impl JoinHandler for Joiner {
    async fn join(&self, request: JoinRequest) -> Result<JoinResponse, Status> {
        let request_id = hex::encode(rand::random::<[u8; 8]>());
        self.admit(request, &request_id).await.map_err(|error| {
            if error.is_ours() {
                tracing::error!(request_id, %error, "a node could not join");
            } else {
                // Anybody can have this said as often as they like; the audit log has it.
                tracing::debug!(request_id, %error, "a node was refused");
            }
            error.into_status(&request_id)
        })
    }
}

impl Joiner {
    async fn admit(&self, request: JoinRequest, request_id: &str) -> Result<JoinResponse, ApiError> {
        check(&request)?;
        let JoinRequest { token, public_key, sealing_key, peer_address } = request;
        let secret = SecretDigest::of(SecretKind::AuthJoinToken, &token);
        // Both keys: the public one is seen in handshakes, and the secret goes to whoever holds the other.
        let joiner = joiner_digest(&public_key, &sealing_key);
        let ticket = self.refusals.reserve(&Credential::None);
        let origin = Origin {
            node_id: self.node_id,
            request_id: request_id.to_owned(),
            refusals: ticket.mode(),
            ..Origin::default()
        };
        let context = Context { caller: Caller::Anonymous, origin };
        let joined = self.store.transact(move |tx| {
            let verdict = cluster::use_auth_join_token(tx, &context, secret, joiner)?;
            Ok::<_, CoreError>((verdict, peer_certificate::authorities(tx)?))
        });
        let (verdict, (active, ca_certificates)) = joined.await?.value;
        let node_id = ticket.settle(verdict)?;

        let authority = self.cas.x509(&active)?;
        let now = (self.clock)() / 1000;
        let public_key = public_key.into();
        let certificate =
            peer_certificate::issue(&authority, public_key, &self.cluster_id, node_id, now, self.life)?;
        let (encapsulated_key, sealed) = sealed::seal(&self.kek, &sealing_key, &self.cluster_id, node_id)
            .ok_or_else(|| CoreError::invalid("sealing_key", "not an X25519 public key"))?;
        tracing::info!(node_id, request_id, peer_address, "a node got its identity");
        Ok(JoinResponse {
            node_id,
            cluster_id: self.cluster_id.clone(),
            certificate,
            ca_certificates,
            members: self.members(),
            sealed: sealed.into(),
            encapsulated_key: encapsulated_key.into(),
        })
    }

    fn members(&self) -> Vec<Member> {
        let member = |known: raft_store::MemberStatus| Member {
            node_id: known.node_id,
            peer_address: known.peer_address,
            app_address: known.app_address,
        };
        self.store.status().members.into_iter().map(member).collect()
    }
}

/// What a token is used up for: the same keys are the same join again.
fn joiner_digest(public_key: &[u8], sealing_key: &[u8]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    // The sealing key's length is fixed: see `check`.
    hasher.update(sealing_key);
    hasher.update(public_key);
    hasher.finalize().into()
}

/// Checks what a token need not be used up for.
fn check(request: &JoinRequest) -> Result<(), CoreError> {
    if request.token.len() > MAX_TOKEN {
        return Err(CoreError::invalid("token", "it is too long to be a token"));
    }
    check_public_key(&request.public_key).map_err(CoreError::pki("public_key"))?;
    if request.sealing_key.len() != sealed::PUBLIC_KEY_LENGTH {
        return Err(CoreError::invalid("sealing_key", "not an X25519 public key"));
    }
    if request.peer_address.len() > MAX_ADDRESS || host_of(&request.peer_address).is_none() {
        return Err(CoreError::invalid(
            "peer_address",
            "must be host:port, as other nodes reach the joining one",
        ));
    }
    Ok(())
}
