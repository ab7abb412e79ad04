//! Which SSH certificates are revoked. Every certificate that is issued is noted until it ends; a revocation is one row,
//! which tells of what: what was noted before that row was written, by the store's revisions, is revoked, and what comes
//! after is not. So revoking is one write, however many certificates it ends, and no clock decides.

use std::collections::BTreeMap;

use store_txn::{Read, ReadExt, Transaction, TransactionExt, UnixMillis};

use crate::{
    CoreError,
    join::HOST_CERT_TTL_MS,
    tables::{IssuedKey, IssuedRow, MarkRow, RevocationHeadKey, RevocationKey, RevocationRow, TargetKind},
};

/// A revocation is kept until every certificate that it can be of has ended: hosts' live longest. An hour is added, for
/// clocks that are behind.
const KEPT_MS: UnixMillis = HOST_CERT_TTL_MS + 3_600_000;
/// Rows that are looked at in one step.
const STEP: usize = 1000;

/// Notes a certificate that is issued, by its serial number.
pub(crate) fn note(tx: &mut (impl Transaction + ?Sized), serial: u64, issued: &IssuedRow) {
    tx.put(&IssuedKey(serial), issued);
}

/// Revokes what was issued before to or for a thing.
pub(crate) fn revoke(tx: &mut (impl Transaction + ?Sized), kind: TargetKind, name: &str) {
    let expires_at_ms = tx.now().saturating_add(KEPT_MS);
    tx.put(&RevocationKey { kind, name: name.to_owned() }, &RevocationRow { expires_at_ms });
    tx.put(&RevocationHeadKey, &MarkRow {});
}

/// Revision of the last revocation; 0 before the first.
///
/// # Errors
/// [`CoreError::Storage`].
pub fn head(state: &mut (impl Read + ?Sized)) -> Result<u64, CoreError> {
    Ok(state.get(&RevocationHeadKey)?.map_or(0, |stored| stored.revision))
}

/// Serial numbers of the certificates that are revoked and have not ended, ascending.
///
/// # Errors
/// [`CoreError::Storage`].
pub fn serials(state: &mut (impl Read + ?Sized)) -> Result<Vec<u64>, CoreError> {
    let revocations = Revocations::read(state)?;
    let (mut serials, mut after) = (Vec::new(), None);
    while !revocations.0.is_empty() {
        let rows = state.scan::<IssuedKey>(after.as_ref(), STEP)?;
        let Some((last, _)) = rows.last() else { break };
        after = Some(*last);
        let revoked = rows.iter().filter(|(_, issued)| revocations.hold(issued.revision, &issued.row));
        serials.extend(revoked.map(|(key, _)| key.0));
    }
    Ok(serials)
}

/// Revisions of all revocations.
pub(crate) struct Revocations(BTreeMap<(TargetKind, String), u64>);

impl Revocations {
    /// Reads them.
    ///
    /// # Errors
    /// [`CoreError::Storage`].
    pub(crate) fn read(state: &mut (impl Read + ?Sized)) -> Result<Self, CoreError> {
        let (mut all, mut after) = (BTreeMap::new(), None);
        loop {
            let rows = state.scan::<RevocationKey>(after.as_ref(), STEP)?;
            let Some((last, _)) = rows.last() else { return Ok(Self(all)) };
            after = Some(last.clone());
            all.extend(rows.into_iter().map(|(key, stored)| ((key.kind, key.name), stored.revision)));
        }
    }

    /// Whether one of them is of a certificate that was noted at a revision.
    pub(crate) fn hold(&self, revision: u64, issued: &IssuedRow) -> bool {
        let is_later = |kind, name: &String| {
            self.0.get(&(kind, name.clone())).is_some_and(|revoked| revision < *revoked)
        };
        let any = |kind, names: &[String]| names.iter().any(|name| is_later(kind, name));
        is_later(issued.kind(), &issued.holder)
            || is_later(TargetKind::Session, &issued.session)
            || is_later(TargetKind::Device, &issued.device)
            || is_later(TargetKind::TrustedCluster, &issued.cluster)
            || any(TargetKind::Role, &issued.roles)
            || any(TargetKind::Login, &issued.logins)
            || any(TargetKind::Node, &issued.nodes)
            || any(TargetKind::NodeLabels, &issued.nodes)
    }
}

#[cfg(test)]
#[path = "revocation_tests.rs"]
mod tests;
