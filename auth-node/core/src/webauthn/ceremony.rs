//! Ceremonies that have begun: where their state is kept until they are finished.
//!
//! A ceremony has a place, and each network or user has so many of them; a new one takes a random one of those, whatever is there.
//! So there are only so many rows, however often somebody begins, nobody is refused for what others have begun, and beginnings
//! do not wait for each other. Whoever floods its network's places makes those of its own network, and of the few that
//! share them, begin anew; users who have proved who they are have places of their own.

use sha2::{Digest, Sha256};
use store_txn::{ReadExt, Transaction, TransactionExt};

use super::WebauthnSecret;
use crate::{
    Context, CoreError,
    lockout::{self, TypedName},
    names::UserName,
    placed,
    secret::{PasswordHash, SecretDigest, SecretKind},
    session,
    tables::{CeremonyKey, CeremonyRow, Purpose},
};

/// How long a ceremony may take, in milliseconds: as long as browsers are told to wait.
pub const LIFE_MS: u64 = 5 * 60 * 1000;

/// What a ceremony is to be begun with.
#[derive(Debug, Clone)]
pub struct NewCeremony {
    /// What it is for.
    pub purpose: Purpose,
    /// Digest of the secret that names it.
    pub digest: SecretDigest,
    /// Which place it takes.
    pub random: u64,
    /// Challenge, and what is asked for, for whoever verifies.
    pub state: Vec<u8>,
    /// What places and fakes are to depend on, if the cluster has no such secret yet.
    pub secret: WebauthnSecret,
}

/// For whom a ceremony is.
#[derive(Debug, Clone, Default)]
pub(super) struct Bound<'a> {
    /// The user, if there is one.
    pub(super) user: Option<&'a UserName>,
    /// The name that was given.
    pub(super) typed: Option<TypedName>,
    /// Handle of the session that it belongs to.
    pub(super) session: Option<&'a str>,
    /// The password that was verified before.
    pub(super) proof: Option<&'a PasswordHash>,
}

/// Names a ceremony: its place, and a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChallengeId {
    place: u64,
    digest: SecretDigest,
}

impl ChallengeId {
    /// What the client gets of a ceremony at a place.
    pub fn text(place: u64, secret: &str) -> String {
        placed::text(place, secret)
    }

    /// Reads one. `None`: it cannot be one.
    pub fn parse(text: &str) -> Option<Self> {
        let (place, secret) = placed::parse(text)?;
        Some(Self { place, digest: SecretDigest::of(SecretKind::WebauthnChallenge, secret) })
    }
}

/// By what it is known which password was verified.
pub(super) fn proof(hash: &PasswordHash) -> Vec<u8> {
    Sha256::digest(hash.as_str()).to_vec()
}

/// Begins a ceremony, and answers its place.
///
/// # Errors
/// [`CoreError::Storage`].
pub(super) fn put(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    secret: &WebauthnSecret,
    new: &NewCeremony,
    bound: &Bound<'_>,
) -> Result<u64, CoreError> {
    let user = bound.user.map(UserName::to_string).unwrap_or_default();
    // Who has proved to be a user has places that no stranger takes.
    let slot = match new.purpose {
        Purpose::Unspecified | Purpose::Login => secret
            .slot(&format!("network:{}", lockout::network(&context.origin.client_address)), placed::SLOTS)?,
        Purpose::StepUp | Purpose::Passkey | Purpose::SecurityKey => {
            placed::SLOTS + secret.slot(&format!("user:{user}"), placed::SLOTS)?
        }
    };
    let place = placed::place(slot, new.random);
    let row = CeremonyRow {
        digest: new.digest.0.to_vec(),
        purpose: new.purpose.into(),
        user,
        typed: bound.typed.map(|typed| typed.to_bytes().to_vec()).unwrap_or_default(),
        session: bound.session.unwrap_or_default().to_owned(),
        proof: bound.proof.map(proof).unwrap_or_default(),
        state: new.state.clone(),
        epoch: session::epoch(tx)?,
        expires_at_ms: tx.now().saturating_add(LIFE_MS),
        named: bound.typed.is_some(),
    };
    tx.put(&CeremonyKey(place), &row);
    Ok(place)
}

/// Takes a ceremony away, to finish it. `None`: there is none, or not for one of these purposes; it is gone then, too.
///
/// # Errors
/// [`CoreError::Storage`].
pub(super) fn take(
    tx: &mut (impl Transaction + ?Sized),
    challenge: Option<&ChallengeId>,
    purposes: &[Purpose],
) -> Result<Option<CeremonyRow>, CoreError> {
    let Some(ChallengeId { place, digest }) = challenge else { return Ok(None) };
    let key = CeremonyKey(*place);
    let Some(stored) = tx.get(&key)?.filter(|stored| stored.row.digest == digest.0) else { return Ok(None) };
    tx.delete(&key);
    let epoch = session::epoch(tx)?;
    Ok(Some(stored.row).filter(|row| purposes.contains(&row.purpose()) && row.epoch == epoch))
}

#[cfg(test)]
#[path = "ceremony_tests.rs"]
mod tests;
