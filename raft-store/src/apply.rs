//! Applies a batch of transactions to the state: pure, and the same on every node.
//!
//! It checks that what each transaction read is unchanged, and then writes all of it or nothing. There is no domain
//! in it, no clock, no randomness and no order that depends on memory: two releases of the program above can run in
//! one cluster and never diverge.

use std::collections::BTreeMap;

use bytes::Bytes;
use mezite_proto::peer::{self, outcome::Kind};
use store_txn::{LogBounds, MAX_TRIM, UnixMillis};

use crate::{
    db::{Space, state_key},
    error::StoreError,
    ids::{self, IdWindow, MAX_WINDOW_MS, TransactionId},
    state::{
        StateView, StoredRow, Visit, chain_hash, decode_log_record, encode_log_record, expiry_key,
        log_record_key,
    },
};

/// Writes that are not in the database yet, over a view of it.
pub(crate) struct Overlay<'a, V> {
    base: &'a V,
    writes: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
}

impl<'a, V: StateView> Overlay<'a, V> {
    pub(crate) fn new(base: &'a V) -> Self {
        Self { base, writes: BTreeMap::new() }
    }

    /// What to write, by state key; `None` deletes.
    pub(crate) fn into_writes(self) -> BTreeMap<Vec<u8>, Option<Vec<u8>>> {
        self.writes
    }

    fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.writes.insert(key, Some(value));
    }

    fn delete(&mut self, key: Vec<u8>) {
        self.writes.insert(key, None);
    }
}

impl<V: StateView> StateView for Overlay<'_, V> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        match self.writes.get(key) {
            Some(write) => Ok(write.clone()),
            None => self.base.get(key),
        }
    }

    fn scan(&self, start: &[u8], end: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        let mut written = self.writes.range(start.to_vec()..end.to_vec()).peekable();
        let mut more = true;
        self.base.scan(start, end, &mut |key, value| {
            while let Some((at, write)) = written.next_if(|(at, _)| at.as_slice() < key) {
                if let Some(write) = write {
                    more = visit(at, write)?;
                    if !more {
                        return Ok(false);
                    }
                }
            }
            more = match written.next_if(|(at, _)| at.as_slice() == key) {
                Some((_, Some(write))) => visit(key, write)?,
                Some((_, None)) => true,
                None => visit(key, value)?,
            };
            Ok(more)
        })?;
        for (at, write) in written {
            if !more {
                break;
            }
            if let Some(write) = write {
                more = visit(at, write)?;
            }
        }
        Ok(())
    }
}

/// Time and revision of the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Counters {
    pub(crate) stamp_ms: UnixMillis,
    pub(crate) revision: u64,
}

/// A change of one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    /// Key of the row.
    pub(crate) key: Bytes,
    /// New value; `None`: the row is gone.
    pub(crate) value: Option<Bytes>,
}

/// What one revision changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Commit {
    pub(crate) revision: u64,
    pub(crate) changes: Vec<Change>,
}

/// What a batch did.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    /// One per transaction.
    pub(crate) outcomes: Vec<peer::Outcome>,
    /// In order of revision.
    pub(crate) commits: Vec<Commit>,
}

/// Applies a batch. Writes go to the overlay; the caller stores them together with the counters.
pub(crate) fn apply_batch<V: StateView>(
    state: &mut Overlay<'_, V>,
    counters: &mut Counters,
    window: &mut IdWindow,
    log_index: u64,
    batch: &peer::Batch,
) -> Result<Effects, StoreError> {
    counters.stamp_ms = counters.stamp_ms.max(batch.stamp_ms);
    for expired in window.expire(counters.stamp_ms) {
        state.delete(state_key(Space::DecidedIds, &expired.to_be_bytes()));
    }
    let mut effects = Effects::default();
    let mut decided: Vec<(TransactionId, u64)> = Vec::new();
    let mut keep_until_ms = 0;
    for transaction in &batch.transactions {
        let id = TransactionId::try_from(transaction.id.as_ref()).ok();
        let (kind, revision, fresh) = match id.and_then(|id| window.decision(&id)) {
            Some(ids::REFUSED) => (Kind::Conflict, 0, false),
            Some(revision) => (Kind::Committed, revision, false),
            None if is_late(transaction, counters.stamp_ms) => (Kind::Expired, 0, false),
            None if !is_unchanged(state, transaction)? => (Kind::Conflict, ids::REFUSED, true),
            None => {
                let commit = commit(state, counters, transaction)?;
                let revision = commit.revision;
                effects.commits.push(commit);
                (Kind::Committed, revision, true)
            }
        };
        if let (Some(id), true) = (id, fresh) {
            window.note(id, revision);
            decided.push((id, revision));
            keep_until_ms = keep_until_ms.max(transaction.not_after_ms);
        }
        let kind = kind.into();
        effects.outcomes.push(peer::Outcome { kind, revision, log_index, ..peer::Outcome::default() });
    }
    if !decided.is_empty() {
        state.put(
            state_key(Space::DecidedIds, &log_index.to_be_bytes()),
            ids::encode(keep_until_ms, &decided),
        );
        window.seal(log_index, keep_until_ms, &decided);
    }
    if batch.sweep_limit > 0 {
        effects.commits.extend(sweep(state, counters, batch.sweep_limit as usize)?);
    }
    Ok(effects)
}

/// A transaction that came too late, or asks to be remembered for too long: its sender's clock is wrong.
fn is_late(transaction: &peer::Transaction, now_ms: UnixMillis) -> bool {
    transaction.not_after_ms < now_ms || transaction.not_after_ms > now_ms.saturating_add(MAX_WINDOW_MS)
}

fn is_unchanged(state: &impl StateView, transaction: &peer::Transaction) -> Result<bool, StoreError> {
    for read in &transaction.reads {
        let stored = state.get(&state_key(Space::Rows, &read.key))?;
        let revision = match &stored {
            Some(bytes) => StoredRow::decode(bytes)?.revision,
            None => 0,
        };
        if revision != read.revision {
            return Ok(false);
        }
    }
    for range in &transaction.ranges {
        if range_digest(state, &range.start, &range.end)? != (range.count, range.newest) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Number of rows in a range, expired ones included, and the highest revision among them. Any insert, update or
/// delete in the range changes one of the two: an insert or update has a new highest revision, a delete alone
/// lowers the number.
pub(crate) fn range_digest(
    state: &impl StateView,
    start: &[u8],
    end: &[u8],
) -> Result<(u64, u64), StoreError> {
    let (mut count, mut newest) = (0, 0);
    if start >= end {
        return Ok((count, newest));
    }
    state.scan(&state_key(Space::Rows, start), &state_key(Space::Rows, end), &mut |_, bytes| {
        count += 1;
        newest = StoredRow::decode(bytes)?.revision.max(newest);
        Ok(true)
    })?;
    Ok((count, newest))
}

fn commit<V: StateView>(
    state: &mut Overlay<'_, V>,
    counters: &mut Counters,
    transaction: &peer::Transaction,
) -> Result<Commit, StoreError> {
    counters.revision += 1;
    let revision = counters.revision;
    let mut changes = Vec::with_capacity(transaction.writes.len());
    for write in &transaction.writes {
        write_row(state, revision, write)?;
        changes.push(Change { key: write.key.clone(), value: write.value.clone() });
    }
    for append in &transaction.appends {
        append_record(state, counters.stamp_ms, append)?;
    }
    for trim in &transaction.trims {
        trim_log(state, trim)?;
    }
    Ok(Commit { revision, changes })
}

/// Writes or deletes a row, and its place in the expiry index. A row that goes on to end when it did keeps that place: of what is
/// reported again and again, half of the writes.
fn write_row<V: StateView>(
    state: &mut Overlay<'_, V>,
    revision: u64,
    write: &peer::Write,
) -> Result<(), StoreError> {
    let ends = |expires_at_ms| Some(expires_at_ms).filter(|&end| end != 0);
    let row_key = state_key(Space::Rows, &write.key);
    let old = state.get(&row_key)?;
    let before = match &old {
        Some(old) => ends(StoredRow::decode(old)?.expires_at_ms),
        None => None,
    };
    let after = write.value.as_ref().and_then(|_| ends(write.expires_at_ms));
    match &write.value {
        Some(value) => {
            let row = StoredRow { revision, expires_at_ms: write.expires_at_ms, value };
            state.put(row_key, row.encode());
        }
        None if old.is_some() => state.delete(row_key),
        None => {}
    }
    if before != after {
        before.into_iter().for_each(|end| state.delete(expiry_key(end, &write.key)));
        after.into_iter().for_each(|end| state.put(expiry_key(end, &write.key), Vec::new()));
    }
    Ok(())
}

fn append_record<V: StateView>(
    state: &mut Overlay<'_, V>,
    stamp_ms: UnixMillis,
    append: &peer::Append,
) -> Result<(), StoreError> {
    let head_key = state_key(Space::LogHeads, append.log.as_bytes());
    let mut bounds = log_bounds(state, &head_key)?;
    bounds.last += 1;
    bounds.head = chain_hash(&bounds.head, bounds.last, stamp_ms, &append.record);
    state.put(
        state_key(Space::Logs, &log_record_key(&append.log, bounds.last)),
        encode_log_record(stamp_ms, &bounds.head, &append.record),
    );
    state.put(head_key, encode_head(&bounds));
    Ok(())
}

/// Deletes the oldest records of a log. The hash of the last one that goes stays, as what the rest is chained to.
fn trim_log<V: StateView>(state: &mut Overlay<'_, V>, trim: &peer::Trim) -> Result<(), StoreError> {
    let head_key = state_key(Space::LogHeads, trim.log.as_bytes());
    let mut bounds = log_bounds(state, &head_key)?;
    let first = trim.before.min(bounds.first.saturating_add(MAX_TRIM)).min(bounds.last + 1);
    if first <= bounds.first {
        return Ok(());
    }
    for index in bounds.first..first {
        let key = state_key(Space::Logs, &log_record_key(&trim.log, index));
        if let Some(record) = state.get(&key)? {
            bounds.anchor = decode_log_record(index, &record)?.hash;
        }
        state.delete(key);
    }
    bounds.first = first;
    state.put(head_key, encode_head(&bounds));
    Ok(())
}

fn log_bounds(state: &impl StateView, head_key: &[u8]) -> Result<LogBounds, StoreError> {
    state.get(head_key)?.map_or_else(|| Ok(LogBounds::default()), |head| decode_head(&head))
}

/// The head of a log: `last (u64) | hash (32)`, and, once records were forgotten, `first (u64) | anchor (32)`.
fn encode_head(bounds: &LogBounds) -> Vec<u8> {
    let mut head = bounds.last.to_be_bytes().to_vec();
    head.extend(bounds.head);
    if bounds.first > 1 {
        head.extend(bounds.first.to_be_bytes());
        head.extend(bounds.anchor);
    }
    head
}

pub(crate) fn decode_head(bytes: &[u8]) -> Result<LogBounds, StoreError> {
    let damaged = || StoreError::DataDirectory("the head of a log does not decode".into());
    let place = |bytes: &[u8]| {
        let (index, hash) = bytes.split_first_chunk::<8>()?;
        Some((u64::from_be_bytes(*index), <[u8; 32]>::try_from(hash).ok()?))
    };
    let (head, rest) = bytes.split_at_checked(40).ok_or_else(damaged)?;
    let (last, head) = place(head).ok_or_else(damaged)?;
    let whole = LogBounds { last, head, ..LogBounds::default() };
    if rest.is_empty() {
        return Ok(whole);
    }
    let (first, anchor) = place(rest).ok_or_else(damaged)?;
    Ok(LogBounds { first, anchor, ..whole })
}

/// Deletes rows whose time is over, oldest first.
fn sweep<V: StateView>(
    state: &mut Overlay<'_, V>,
    counters: &mut Counters,
    limit: usize,
) -> Result<Option<Commit>, StoreError> {
    let mut expired: Vec<Vec<u8>> = Vec::new();
    // A row ends at its time: those at `stamp_ms` are over.
    let end = expiry_key(counters.stamp_ms.saturating_add(1), &[]);
    state.scan(&expiry_key(0, &[]), &end, &mut |key, _| {
        expired.push(key.get(1 + size_of::<u64>()..).unwrap_or_default().to_vec());
        Ok(expired.len() < limit)
    })?;
    if expired.is_empty() {
        return Ok(None);
    }
    counters.revision += 1;
    let mut changes = Vec::with_capacity(expired.len());
    for key in expired {
        let gone = peer::Write { key: key.into(), value: None, expires_at_ms: 0 };
        write_row(state, counters.revision, &gone)?;
        changes.push(Change { key: gone.key, value: None });
    }
    Ok(Some(Commit { revision: counters.revision, changes }))
}

#[cfg(test)]
mod tests;
