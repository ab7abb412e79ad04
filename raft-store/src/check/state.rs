//! The replicated state: rows, their ends, append-only logs and remembered ids.

use std::collections::BTreeMap;

use store_txn::LogBounds;

use super::CheckReport;
use crate::{
    apply::decode_head,
    db::{Space, state_key},
    error::StoreError,
    ids,
    state::{StateSnapshot, StateView, StoredRow, chain_hash, decode_log_record, expiry_key},
};

/// Bytes after a log's name in the key of a record: a zero byte and the index.
const RECORD_SUFFIX: usize = 1 + size_of::<u64>();

/// Checks every row and record.
pub(super) fn check(state: &StateSnapshot<'_>, report: &mut CheckReport) {
    let mut walk = Walk { state, report, chains: BTreeMap::new() };
    if let Err(error) = walk.all() {
        walk.report.problem(format!("the state cannot be read: {error}"));
    }
    let chains = std::mem::take(&mut walk.chains);
    for name in chains.keys() {
        walk.report.problem(format!("log {} has records and no head", name.escape_ascii()));
    }
}

/// How far the chain of a log was followed.
#[derive(Clone, Copy, Default)]
struct Chain {
    last: u64,
    hash: [u8; 32],
}

struct Walk<'a> {
    state: &'a StateSnapshot<'a>,
    report: &'a mut CheckReport,
    /// By name; until the head was compared.
    chains: BTreeMap<Vec<u8>, Chain>,
}

impl Walk<'_> {
    fn all(&mut self) -> Result<(), StoreError> {
        let state = self.state;
        state.scan_all(&mut |key, value| {
            let Some((space, rest)) = key.split_first() else { return Ok(true) };
            match *space {
                space if space == Space::Rows as u8 => self.row(rest, value)?,
                space if space == Space::Expiry as u8 => self.end(rest)?,
                space if space == Space::Logs as u8 => self.record(rest, value),
                space if space == Space::LogHeads as u8 => self.head(rest, value),
                space if space == Space::DecidedIds as u8 => self.ids(rest, value),
                other => self.report.problem(format!("there is a record of an unknown kind, {other}")),
            }
            Ok(true)
        })
    }

    fn row(&mut self, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        self.report.rows += 1;
        let name = key.escape_ascii();
        let Some(row) = self.report.note(StoredRow::decode(value).map_err(StoreError::from)) else {
            return Ok(());
        };
        if row.revision == 0 || row.revision > self.report.revision {
            self.report.problem(format!("row {name} has revision {}, which never was", row.revision));
        }
        if row.expires_at_ms != 0 {
            self.report.expiring_rows += 1;
            if self.state.get(&expiry_key(row.expires_at_ms, key))?.is_none() {
                self.report.problem(format!("row {name} ends and is not in the expiry index"));
            }
        }
        Ok(())
    }

    fn end(&mut self, key: &[u8]) -> Result<(), StoreError> {
        let Some((at, row_key)) = key.split_first_chunk::<8>() else {
            self.report.problem("the expiry index has a key without a time");
            return Ok(());
        };
        let row = self.state.get(&state_key(Space::Rows, row_key))?;
        let ends = row.as_deref().and_then(|row| StoredRow::decode(row).ok()).map(|row| row.expires_at_ms);
        if ends != Some(u64::from_be_bytes(*at)) {
            let name = row_key.escape_ascii();
            self.report.problem(format!("the expiry index has row {name}, which does not end then"));
        }
        Ok(())
    }

    fn record(&mut self, key: &[u8], value: &[u8]) {
        self.report.log_records += 1;
        let parts = key.split_at_checked(key.len().saturating_sub(RECORD_SUFFIX));
        let parts = parts.and_then(|(name, suffix)| match suffix.split_first_chunk::<1>() {
            Some(([0], index)) => Some((name, u64::from_be_bytes(index.try_into().ok()?))),
            _ => None,
        });
        let Some((name, index)) = parts else {
            return self.report.problem(format!("a log record has the key {}", key.escape_ascii()));
        };
        let shown = name.escape_ascii();
        let chain = match self.chains.get(name) {
            Some(chain) => *chain,
            None => {
                self.report.logs += 1;
                self.begin(name)
            }
        };
        if index != chain.last + 1 {
            self.report.problem(format!("log {shown} has no record {} before {index}", chain.last + 1));
        }
        let Some(record) = self.report.note(decode_log_record(index, value).map_err(StoreError::from)) else {
            return;
        };
        if record.hash != chain_hash(&chain.hash, index, record.time, &record.record) {
            self.report.problem(format!("record {index} of log {shown} breaks the hash chain"));
        }
        self.chains.insert(name.to_vec(), Chain { last: index, hash: record.hash });
    }

    /// What the first record of a log is chained to: what the head says of records that were forgotten.
    fn begin(&self, name: &[u8]) -> Chain {
        let head = self.state.get(&state_key(Space::LogHeads, name)).ok().flatten();
        let bounds = head.and_then(|head| decode_head(&head).ok()).unwrap_or_default();
        Chain { last: bounds.first - 1, hash: bounds.anchor }
    }

    fn head(&mut self, name: &[u8], value: &[u8]) {
        let chain = self.chains.remove(name).unwrap_or_default();
        let head = self.report.note(decode_head(value));
        // Of a log whose records were all forgotten there is only the head.
        let empty = |head: &LogBounds| head.first == head.last + 1 && head.anchor == head.head;
        if head.is_some_and(|head| (head.last, head.head) != (chain.last, chain.hash) && !empty(&head)) {
            let name = name.escape_ascii();
            self.report.problem(format!("the head of log {name} is not its last record"));
        }
    }

    fn ids(&mut self, key: &[u8], value: &[u8]) {
        let index = <[u8; 8]>::try_from(key).map(u64::from_be_bytes);
        let index = match index {
            Ok(index) if Some(index) <= self.report.applied_index => index,
            _ => return self.report.problem("there are applied ids of an entry that was never applied"),
        };
        match ids::decode(value) {
            Some((_, ids)) => self.report.applied_ids += ids.len() as u64,
            None => self.report.problem(format!("the applied ids of entry {index} do not decode")),
        }
    }
}
