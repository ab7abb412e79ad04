//! What agents report of themselves: that they live, where they are reached, their labels and their load. Many reports
//! are written in one transaction; each stands or falls by itself.

use std::time::Duration;

use store_txn::{Read, ReadExt, Rows, Transaction, TransactionExt};

use crate::{
    Caller, CoreError, Credential, context,
    labels::{self, Labels},
    lock,
    names::AgentId,
    principal,
    tables::{AgentLabelsKey, AgentLabelsRow, NodeRow, PresenceKey, PresenceRow, TargetKind},
};

/// Longest version of an agent, in bytes.
const MAX_VERSION: usize = 64;

/// What an agent reports, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    version: String,
    labels: Labels,
    address: Option<String>,
    load: u32,
    followed_trust: u64,
}

impl Report {
    /// Reads a report. `version` has at most 64 bytes of visible ASCII; `address` is host:port, or empty: as before.
    ///
    /// # Errors
    /// [`CoreError::Invalid`].
    pub fn new(version: String, labels: Labels, address: String, load: u32) -> Result<Self, CoreError> {
        if version.len() > MAX_VERSION || !version.bytes().all(|byte| byte.is_ascii_graphic()) {
            let reason = format!("at most {MAX_VERSION} visible ASCII characters, without spaces");
            return Err(CoreError::invalid("version", reason));
        }
        labels::check("labels", &labels)?;
        if address.is_empty() {
            return Ok(Self { version, labels, address: None, load, followed_trust: 0 });
        }
        principal::check_address("address", &address)?;
        Ok(Self { version, labels, address: Some(address), load, followed_trust: 0 })
    }

    /// Of an agent that has taken up this revision of the trust bundle: it trusts what that names, and shows certificates
    /// of the keys that signed then.
    #[must_use]
    pub fn following(self, trust_revision: u64) -> Self {
        Self { followed_trust: trust_revision, ..self }
    }

    /// Where the service is reached; `None`: as before.
    pub fn address(&self) -> Option<&str> {
        self.address.as_deref()
    }
}

/// How long after its last report an agent counts as alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PresenceTtl(pub Duration);

impl PresenceTtl {
    /// Whether an agent that reported last at `last_seen_ms` is alive at `now`.
    pub fn is_alive(self, last_seen_ms: u64, now: u64) -> bool {
        u128::from(now.saturating_sub(last_seen_ms)) < self.0.as_millis()
    }
}

/// Takes down reports of the agents that show these credentials, in this order; answers what came of each. Whether any of
/// them is locked is read once for all.
///
/// # Errors
/// [`CoreError::Storage`]. Of one report: [`CoreError::NotRegistered`] for an agent that is not in the registry;
/// [`CoreError::Locked`]; [`CoreError::Unauthenticated`] for somebody else; [`CoreError::Storage`].
pub fn record(
    tx: &mut (impl Transaction + ?Sized),
    reports: &[(Credential, Report)],
) -> Result<Vec<Result<AgentId, CoreError>>, CoreError> {
    let locks = lock::Known::read(tx, TargetKind::Node)?;
    Ok(reports.iter().map(|(credential, report)| record_one(tx, &locks, credential, report)).collect())
}

fn record_one(
    tx: &mut (impl Transaction + ?Sized),
    locks: &lock::Known,
    credential: &Credential,
    report: &Report,
) -> Result<AgentId, CoreError> {
    match context::identify(tx, credential)? {
        Caller::Agent { id, node } | Caller::Ingest { id, node } => {
            locks.check(tx, id.as_str())?;
            put(tx, &id, &node, report)?;
            Ok(id)
        }
        Caller::Unregistered { id, .. } => {
            locks.check(tx, id.as_str())?;
            Err(CoreError::NotRegistered)
        }
        Caller::Anonymous
        | Caller::Init
        | Caller::Cluster
        | Caller::User(_)
        | Caller::Remote(_)
        | Caller::AgentIdentity(_) => {
            Err(CoreError::Unauthenticated("show the client certificate of a registered agent"))
        }
    }
}

pub(crate) fn put(
    tx: &mut (impl Transaction + ?Sized),
    id: &AgentId,
    node: &NodeRow,
    report: &Report,
) -> Result<(), CoreError> {
    let key = PresenceKey(id.clone());
    let address = match &report.address {
        Some(address) => address.clone(),
        None => tx.get(&key)?.map(|stored| stored.row.address).unwrap_or_default(),
    };
    let row = PresenceRow {
        last_seen_ms: tx.now(),
        address,
        version: report.version.clone(),
        load: report.load,
        expires_at_ms: node.expires_at_ms,
        followed_trust: report.followed_trust,
    };
    tx.put(&key, &row);
    let labels = AgentLabelsRow { labels: report.labels.clone(), expires_at_ms: node.expires_at_ms };
    let key = AgentLabelsKey(id.clone());
    if tx.get(&key)?.is_none_or(|stored| stored.row != labels) {
        tx.put(&key, &labels);
    }
    Ok(())
}

/// The last report of an agent, if there was one.
pub(crate) fn get(state: &mut (impl Read + ?Sized), id: &AgentId) -> Result<Option<PresenceRow>, CoreError> {
    Ok(state.get(&PresenceKey(id.clone()))?.map(|stored| stored.row))
}

/// The last reports of the agents after `after`, up to `last` and with it.
pub(crate) fn through(
    state: &mut (impl Read + ?Sized),
    after: Option<&AgentId>,
    last: &AgentId,
) -> Result<Rows<PresenceKey>, CoreError> {
    Ok(state.scan_through(after.cloned().map(PresenceKey).as_ref(), &PresenceKey(last.clone()))?)
}

#[cfg(test)]
#[path = "presence_tests.rs"]
mod tests;
