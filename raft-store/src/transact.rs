//! Runs a closure as a transaction: reads from a snapshot of this node's state, writes buffered, and what was read
//! remembered, so that the commit can check it.

use std::collections::BTreeMap;

use bytes::Bytes;
use mezite_proto::peer;
use store_txn::{KeyRange, LogBounds, LogRecord, RawRow, Read, Transaction, TxError, UnixMillis};

use crate::{
    apply::{decode_head, range_digest},
    db::{Space, state_key},
    error::StoreError,
    state::{StateSnapshot, StateView, StoredRow, decode_log_record, log_record_key},
};

fn storage(error: StoreError) -> TxError {
    match error {
        StoreError::Read(error) => error,
        other => TxError::Storage(other.to_string()),
    }
}

/// A view of the state at one instant.
pub struct View<'a> {
    state: &'a StateSnapshot<'a>,
    now: UnixMillis,
}

impl<'a> View<'a> {
    pub(crate) fn new(state: &'a StateSnapshot<'a>, clock_ms: UnixMillis) -> Self {
        // A clock that is behind does not bring back what the cluster has seen end.
        Self { state, now: clock_ms.max(state.applied().stamp_ms) }
    }

    /// Revision of the state that is seen.
    pub fn revision(&self) -> u64 {
        self.state.applied().revision
    }

    /// SHA-256 over the whole state: equal on every node at an equal applied index.
    ///
    /// # Errors
    /// When the state cannot be read.
    pub fn state_hash(&self) -> Result<[u8; 32], TxError> {
        crate::state::state_hash(self.state).map_err(storage)
    }

    /// Index of the last log entry in the state that is seen.
    pub fn applied_index(&self) -> u64 {
        self.state.applied().last_log_id.map_or(0, |id| id.index)
    }

    /// The stored row, whether its time is over or not, and whether it is.
    fn stored(&self, key: &[u8]) -> Result<Option<(RawRow, bool)>, TxError> {
        let Some(bytes) = self.state.get(&state_key(Space::Rows, key)).map_err(storage)? else {
            return Ok(None);
        };
        let row = StoredRow::decode(&bytes)?;
        Ok(Some((RawRow { revision: row.revision, value: row.value.to_vec() }, row.is_live(self.now))))
    }
}

impl Read for View<'_> {
    fn now(&self) -> UnixMillis {
        self.now
    }

    fn get_raw(&mut self, key: &[u8]) -> Result<Option<RawRow>, TxError> {
        Ok(self.stored(key)?.filter(|(_, live)| *live).map(|(row, _)| row))
    }

    fn scan_raw(&mut self, range: &KeyRange, limit: usize) -> Result<Vec<(Vec<u8>, RawRow)>, TxError> {
        let mut rows = Vec::new();
        if range.is_empty() || limit == 0 {
            return Ok(rows);
        }
        let (start, end) = (state_key(Space::Rows, &range.start), state_key(Space::Rows, &range.end));
        let visit = &mut |key: &[u8], bytes: &[u8]| {
            let row = StoredRow::decode(bytes)?;
            if row.is_live(self.now) {
                let key = key.get(1..).unwrap_or_default().to_vec();
                rows.push((key, RawRow { revision: row.revision, value: row.value.to_vec() }));
            }
            Ok(rows.len() < limit)
        };
        self.state.scan(&start, &end, visit).map_err(storage)?;
        Ok(rows)
    }

    fn log_records(&mut self, log: &str, from: u64, limit: usize) -> Result<Vec<LogRecord>, TxError> {
        let mut records = Vec::new();
        if limit == 0 {
            return Ok(records);
        }
        let start = state_key(Space::Logs, &log_record_key(log, from));
        let end = state_key(Space::Logs, &log_record_key(log, u64::MAX));
        let visit = &mut |key: &[u8], bytes: &[u8]| {
            let index = key.last_chunk().copied().map(u64::from_be_bytes).unwrap_or_default();
            records.push(decode_log_record(index, bytes)?);
            Ok(records.len() < limit)
        };
        self.state.scan(&start, &end, visit).map_err(storage)?;
        Ok(records)
    }

    fn log_bounds(&mut self, log: &str) -> Result<LogBounds, TxError> {
        let head = self.state.get(&state_key(Space::LogHeads, log.as_bytes())).map_err(storage)?;
        head.map_or_else(|| Ok(LogBounds::default()), |head| decode_head(&head).map_err(storage))
    }
}

type Writes = BTreeMap<Vec<u8>, Option<(Vec<u8>, Option<UnixMillis>)>>;

/// A transaction in progress.
pub struct StoreTransaction<'a> {
    view: View<'a>,
    reads: BTreeMap<Vec<u8>, u64>,
    ranges: Vec<peer::RangeCheck>,
    writes: Writes,
    appends: Vec<peer::Append>,
    trims: Vec<peer::Trim>,
}

impl<'a> StoreTransaction<'a> {
    pub(crate) fn new(view: View<'a>) -> Self {
        Self {
            view,
            reads: BTreeMap::new(),
            ranges: Vec::new(),
            writes: BTreeMap::new(),
            appends: Vec::new(),
            trims: Vec::new(),
        }
    }

    /// What to propose; `None` when nothing is written.
    pub(crate) fn into_proposal(self) -> Option<peer::Transaction> {
        if self.writes.is_empty() && self.appends.is_empty() && self.trims.is_empty() {
            return None;
        }
        let reads =
            self.reads.into_iter().map(|(key, revision)| peer::ReadCheck { key: key.into(), revision });
        let writes = self.writes.into_iter().map(|(key, write)| {
            let (value, expires_at) = match write {
                Some((value, expires_at)) => (Some(Bytes::from(value)), expires_at),
                None => (None, None),
            };
            peer::Write { key: key.into(), value, expires_at_ms: expires_at.unwrap_or_default() }
        });
        Some(peer::Transaction {
            reads: reads.collect(),
            ranges: self.ranges,
            writes: writes.collect(),
            appends: self.appends,
            trims: self.trims,
            ..peer::Transaction::default()
        })
    }

    /// Remembers that `start..end` was read.
    fn observe_range(&mut self, start: &[u8], end: &[u8]) -> Result<(), TxError> {
        let (count, newest) = range_digest(self.view.state, start, end).map_err(storage)?;
        let (start, end) = (Bytes::copy_from_slice(start), Bytes::copy_from_slice(end));
        self.ranges.push(peer::RangeCheck { start, end, count, newest });
        Ok(())
    }

    fn is_live(&self, expires_at: Option<UnixMillis>) -> bool {
        expires_at.is_none_or(|end| self.view.now < end)
    }
}

impl Read for StoreTransaction<'_> {
    fn now(&self) -> UnixMillis {
        self.view.now
    }

    fn get_raw(&mut self, key: &[u8]) -> Result<Option<RawRow>, TxError> {
        if let Some(write) = self.writes.get(key) {
            let live = write.as_ref().filter(|(_, expires_at)| self.is_live(*expires_at));
            return Ok(live.map(|(value, _)| RawRow { revision: 0, value: value.clone() }));
        }
        let stored = self.view.stored(key)?;
        self.reads.insert(key.to_vec(), stored.as_ref().map_or(0, |(row, _)| row.revision));
        Ok(stored.filter(|(_, live)| *live).map(|(row, _)| row))
    }

    fn scan_raw(&mut self, range: &KeyRange, limit: usize) -> Result<Vec<(Vec<u8>, RawRow)>, TxError> {
        if range.is_empty() || limit == 0 {
            return Ok(Vec::new());
        }
        // Enough rows that deletions of this transaction do not leave the page short.
        let written: Vec<_> = self.writes.range(range.start.clone()..range.end.clone()).collect();
        let mut rows: BTreeMap<_, _> =
            self.view.scan_raw(range, limit + written.len())?.into_iter().collect();
        let complete = rows.len() < limit + written.len();
        let read_to = rows.last_key_value().map(|(key, _)| key.clone());
        for (key, write) in written {
            match write {
                Some((value, expires_at)) if self.is_live(*expires_at) => {
                    rows.insert(key.clone(), RawRow { revision: 0, value: value.clone() })
                }
                _ => rows.remove(key),
            };
        }
        // What was read ends where the page ends, so that changes beyond it do not conflict.
        let end = match read_to {
            Some(mut last) if !complete => {
                last.push(0);
                last
            }
            _ => range.end.clone(),
        };
        rows.retain(|key, _| key < &end);
        self.observe_range(&range.start, &end)?;
        Ok(rows.into_iter().take(limit).collect())
    }

    fn log_records(&mut self, log: &str, from: u64, limit: usize) -> Result<Vec<LogRecord>, TxError> {
        // Records never change once written; what comes after is not part of what was read.
        self.view.log_records(log, from, limit)
    }

    fn log_bounds(&mut self, log: &str) -> Result<LogBounds, TxError> {
        // What was forgotten meanwhile was old by then, too; what was added is not part of what was read.
        self.view.log_bounds(log)
    }
}

impl Transaction for StoreTransaction<'_> {
    fn put_raw(&mut self, key: Vec<u8>, value: Vec<u8>, expires_at: Option<UnixMillis>) {
        self.writes.insert(key, Some((value, expires_at)));
    }

    fn delete_raw(&mut self, key: Vec<u8>) {
        self.writes.insert(key, None);
    }

    fn append(&mut self, log: &'static str, record: Vec<u8>) {
        self.appends.push(peer::Append { log: log.into(), record: record.into() });
    }

    fn trim(&mut self, log: &'static str, before: u64) {
        self.trims.push(peer::Trim { log: log.into(), before });
    }
}
