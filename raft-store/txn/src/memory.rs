//! A store in memory, for tests of domain code. It promises nothing but the interface.

use std::collections::BTreeMap;

use crate::{KeyRange, LogBounds, LogRecord, MAX_TRIM, RawRow, Read, Transaction, TxError, UnixMillis};

#[derive(Debug, Clone)]
struct Stored {
    raw: RawRow,
    expires_at: Option<UnixMillis>,
}

#[derive(Debug, Clone, Default)]
struct Log {
    bounds: LogBounds,
    records: Vec<LogRecord>,
}

impl Log {
    /// Hashes are not the chain of the replicated store: a record's is its index.
    fn hash(index: u64) -> [u8; 32] {
        let mut hash = [0; 32];
        if let Some(front) = hash.first_chunk_mut() {
            *front = index.to_be_bytes();
        }
        hash
    }

    fn append(&mut self, time: UnixMillis, record: Vec<u8>) {
        self.bounds.last += 1;
        self.bounds.head = Self::hash(self.bounds.last);
        self.records.push(LogRecord { index: self.bounds.last, time, hash: self.bounds.head, record });
    }

    fn trim(&mut self, before: u64) {
        let first = self.bounds.first;
        let first = before.min(first + MAX_TRIM).min(self.bounds.last + 1).max(first);
        self.records.retain(|record| record.index >= first);
        if first > self.bounds.first {
            (self.bounds.first, self.bounds.anchor) = (first, Self::hash(first - 1));
        }
    }
}

/// Rows and logs in memory.
#[derive(Debug, Clone, Default)]
pub struct MemoryStore {
    rows: BTreeMap<Vec<u8>, Stored>,
    logs: BTreeMap<&'static str, Log>,
    revision: u64,
}

impl MemoryStore {
    /// Runs a transaction at a time; keeps its writes when it answers `Ok`.
    pub fn transact<T, E>(
        &mut self,
        now: UnixMillis,
        run: impl FnOnce(&mut MemoryTransaction<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut tx = MemoryTransaction {
            store: self,
            now,
            writes: BTreeMap::new(),
            appends: Vec::new(),
            trims: Vec::new(),
        };
        let value = run(&mut tx)?;
        let MemoryTransaction { writes, appends, trims, .. } = tx;
        self.commit(now, writes, appends);
        for (log, before) in trims {
            self.logs.entry(log).or_default().trim(before);
        }
        Ok(value)
    }

    /// Revision of the last commit that wrote something.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The records of a log.
    pub fn log(&self, log: &str) -> &[LogRecord] {
        self.logs.get(log).map(|log| log.records.as_slice()).unwrap_or_default()
    }

    fn commit(&mut self, now: UnixMillis, writes: Writes, appends: Vec<(&'static str, Vec<u8>)>) {
        if writes.is_empty() && appends.is_empty() {
            return;
        }
        self.revision += 1;
        for (key, write) in writes {
            match write {
                None => self.rows.remove(&key),
                Some((value, expires_at)) => self
                    .rows
                    .insert(key, Stored { raw: RawRow { revision: self.revision, value }, expires_at }),
            };
        }
        for (log, record) in appends {
            self.logs.entry(log).or_default().append(now, record);
        }
    }
}

type Writes = BTreeMap<Vec<u8>, Option<(Vec<u8>, Option<UnixMillis>)>>;

/// A transaction of a [`MemoryStore`].
#[derive(Debug)]
pub struct MemoryTransaction<'a> {
    store: &'a MemoryStore,
    now: UnixMillis,
    writes: Writes,
    appends: Vec<(&'static str, Vec<u8>)>,
    trims: Vec<(&'static str, u64)>,
}

impl MemoryTransaction<'_> {
    fn live(&self, expires_at: Option<UnixMillis>) -> bool {
        expires_at.is_none_or(|end| self.now < end)
    }
}

impl Read for MemoryTransaction<'_> {
    fn now(&self) -> UnixMillis {
        self.now
    }

    fn get_raw(&mut self, key: &[u8]) -> Result<Option<RawRow>, TxError> {
        if let Some(write) = self.writes.get(key) {
            let write = write.as_ref().filter(|(_, expires_at)| self.live(*expires_at));
            return Ok(write.map(|(value, _)| RawRow { revision: 0, value: value.clone() }));
        }
        let stored = self.store.rows.get(key).filter(|stored| self.live(stored.expires_at));
        Ok(stored.map(|stored| stored.raw.clone()))
    }

    fn scan_raw(&mut self, range: &KeyRange, limit: usize) -> Result<Vec<(Vec<u8>, RawRow)>, TxError> {
        let written = self.writes.keys().filter(|key| range.contains(key));
        let stored = self.store.rows.keys().filter(|key| range.contains(key));
        let mut keys: Vec<_> = written.chain(stored).cloned().collect();
        keys.sort();
        keys.dedup();
        let mut out = Vec::new();
        for key in keys {
            if out.len() == limit {
                break;
            }
            if let Some(row) = self.get_raw(&key)? {
                out.push((key, row));
            }
        }
        Ok(out)
    }

    fn log_records(&mut self, log: &str, from: u64, limit: usize) -> Result<Vec<LogRecord>, TxError> {
        Ok(self.store.log(log).iter().filter(|r| r.index >= from).take(limit).cloned().collect())
    }

    fn log_bounds(&mut self, log: &str) -> Result<LogBounds, TxError> {
        Ok(self.store.logs.get(log).map(|log| log.bounds).unwrap_or_default())
    }
}

impl Transaction for MemoryTransaction<'_> {
    fn put_raw(&mut self, key: Vec<u8>, value: Vec<u8>, expires_at: Option<UnixMillis>) {
        self.writes.insert(key, Some((value, expires_at)));
    }

    fn delete_raw(&mut self, key: Vec<u8>) {
        self.writes.insert(key, None);
    }

    fn append(&mut self, log: &'static str, record: Vec<u8>) {
        self.appends.push((log, record));
    }

    fn trim(&mut self, log: &'static str, before: u64) {
        self.trims.push((log, before));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_writes_of_an_ok_alone() {
        let mut store = MemoryStore::default();
        let failed: Result<(), ()> = store.transact(1, |tx| {
            tx.put_raw(b"k".to_vec(), b"v".to_vec(), None);
            Err(())
        });
        assert_eq!((failed, store.revision()), (Err(()), 0));
        store
            .transact(1, |tx| {
                tx.put_raw(b"k".to_vec(), b"v".to_vec(), Some(5));
                tx.append("audit", b"one".to_vec());
                Ok::<_, TxError>(())
            })
            .unwrap();
        assert_eq!((store.revision(), store.log("audit").len()), (1, 1));
        let seen_at =
            |store: &mut MemoryStore, now| store.transact(now, |tx| tx.get_raw(b"k")).unwrap().is_some();
        assert!(seen_at(&mut store, 4) && !seen_at(&mut store, 5));
    }
}
