//! What the replicated state looks like on disk: the applied record, rows and log records, and how a transaction's
//! closure and `apply` see them.

use std::collections::BTreeSet;

use mezite_proto::peer;
use sha2::{Digest, Sha256};
use store_txn::{LogRecord, TxError, UnixMillis};

use crate::{
    db::{Db, GENERATION_LEN, Rocks, Space, meta_key, state_key, stored_key},
    error::StoreError,
    memo::Memo,
};

/// What has been applied, in one record: it is written in the same batch as the data that it speaks of.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Applied {
    /// Last entry.
    #[prost(message, optional, tag = "1")]
    pub(crate) last_log_id: Option<peer::LogId>,
    /// Entry that set the membership.
    #[prost(message, optional, tag = "2")]
    pub(crate) membership_log_id: Option<peer::LogId>,
    /// Membership.
    #[prost(message, optional, tag = "3")]
    pub(crate) membership: Option<peer::Membership>,
    /// Generation of `sm_data` that is the state; others are leftovers.
    #[prost(uint32, tag = "4")]
    pub(crate) generation: u32,
    /// The state's time: the highest stamp applied.
    #[prost(uint64, tag = "5")]
    pub(crate) stamp_ms: UnixMillis,
    /// Revision: counts transactions that wrote something.
    #[prost(uint64, tag = "6")]
    pub(crate) revision: u64,
    /// Ids that were members and are not any more, ascending; they never are again.
    #[prost(uint64, repeated, tag = "7")]
    pub(crate) removed_ids: Vec<u64>,
}

impl Applied {
    /// Takes a membership entry in.
    pub(crate) fn set_membership(&mut self, log_id: peer::LogId, membership: peer::Membership) {
        let before = self.membership.iter().flat_map(|before| &before.members);
        let gone = before.map(|member| member.node_id).filter(|node_id| {
            let stays = |member: &peer::Member| member.node_id == *node_id;
            !membership.members.iter().any(stays)
        });
        let removed: BTreeSet<u64> = self.removed_ids.iter().copied().chain(gone).collect();
        self.removed_ids = removed.into_iter().collect();
        (self.membership_log_id, self.membership) = (Some(log_id), Some(membership));
    }
}

/// A row as it is stored: `revision (u64) | expires_at_ms (u64, 0: never) | value`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StoredRow<'a> {
    pub(crate) revision: u64,
    pub(crate) expires_at_ms: UnixMillis,
    pub(crate) value: &'a [u8],
}

impl<'a> StoredRow<'a> {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(16 + self.value.len());
        out.extend(self.revision.to_be_bytes());
        out.extend(self.expires_at_ms.to_be_bytes());
        out.extend(self.value);
        out
    }

    pub(crate) fn decode(bytes: &'a [u8]) -> Result<Self, TxError> {
        let damaged = || TxError::Storage("a stored row is shorter than its header".into());
        let (revision, rest) = bytes.split_first_chunk::<8>().ok_or_else(damaged)?;
        let (expires_at, value) = rest.split_first_chunk::<8>().ok_or_else(damaged)?;
        Ok(Self {
            revision: u64::from_be_bytes(*revision),
            expires_at_ms: u64::from_be_bytes(*expires_at),
            value,
        })
    }

    /// Whether the row is still there at a time.
    pub(crate) fn is_live(&self, now_ms: UnixMillis) -> bool {
        self.expires_at_ms == 0 || now_ms < self.expires_at_ms
    }
}

/// Key of a record of a log: `name | 0x00 | index`. Names contain no zero byte.
pub(crate) fn log_record_key(log: &str, index: u64) -> Vec<u8> {
    let mut out = log.as_bytes().to_vec();
    out.push(0);
    out.extend(index.to_be_bytes());
    out
}

/// The chain hash of a log record: SHA-256 over the hash before (32 zero bytes for the first), the index, the time
/// and the record; numbers are 64 bits, big-endian.
pub(crate) fn chain_hash(previous: &[u8; 32], index: u64, time_ms: UnixMillis, record: &[u8]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    hasher.update(previous);
    hasher.update(index.to_be_bytes());
    hasher.update(time_ms.to_be_bytes());
    hasher.update(record);
    hasher.finalize().into()
}

/// Encodes a log record: `time_ms (u64) | hash (32) | record`.
pub(crate) fn encode_log_record(time_ms: UnixMillis, hash: &[u8; 32], record: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(40 + record.len());
    out.extend(time_ms.to_be_bytes());
    out.extend(hash);
    out.extend(record);
    out
}

/// Decodes a stored log record.
pub(crate) fn decode_log_record(index: u64, bytes: &[u8]) -> Result<LogRecord, TxError> {
    let damaged = || TxError::Storage(format!("log record {index} is shorter than its header"));
    let (time, rest) = bytes.split_first_chunk::<8>().ok_or_else(damaged)?;
    let (hash, record) = rest.split_first_chunk::<32>().ok_or_else(damaged)?;
    Ok(LogRecord { index, time: u64::from_be_bytes(*time), hash: *hash, record: record.to_vec() })
}

/// The state at one instant: a RocksDB snapshot and the applied record that belongs to it.
pub(crate) struct StateSnapshot<'a> {
    db: &'a Db,
    snapshot: rocksdb::SnapshotWithThreadMode<'a, Rocks>,
    applied: Applied,
    memo: Memo,
}

impl<'a> StateSnapshot<'a> {
    pub(crate) fn take(db: &'a Db) -> Result<Self, StoreError> {
        let snapshot = db.rocks().snapshot();
        let applied = match snapshot.get_cf(&db.sm_meta()?, meta_key::APPLIED)? {
            Some(bytes) => decode_applied(&bytes)?,
            None => Applied::default(),
        };
        Ok(Self { db, snapshot, applied, memo: Memo::new() })
    }

    pub(crate) fn applied(&self) -> &Applied {
        &self.applied
    }

    pub(crate) fn db(&self) -> &'a Db {
        self.db
    }

    /// Visits the whole state in order, past the block cache: it would only push out what is in use.
    pub(crate) fn scan_all(&self, visit: &mut Visit<'_>) -> Result<(), StoreError> {
        let mut options = rocksdb::ReadOptions::default();
        options.fill_cache(false);
        options.set_readahead_size(READAHEAD_BYTES);
        self.scan_with(options, &STATE.0, &STATE.1, visit)
    }

    fn scan_with(
        &self,
        mut options: rocksdb::ReadOptions,
        start: &[u8],
        end: &[u8],
        visit: &mut Visit<'_>,
    ) -> Result<(), StoreError> {
        let generation = self.applied.generation;
        let (start, end) = (stored_key(generation, start), stored_key(generation, end));
        options.set_iterate_upper_bound(end);
        let mode = rocksdb::IteratorMode::From(&start, rocksdb::Direction::Forward);
        for item in self.snapshot.iterator_cf_opt(&self.db.sm_data()?, options, mode) {
            let (key, value) = item.map_err(|error| self.db.unreadable(error))?;
            let key = key.get(GENERATION_LEN..).unwrap_or_default();
            if !visit(key, &value)? {
                break;
            }
        }
        Ok(())
    }
}

/// Before the first and after the last state key.
const STATE: ([u8; 1], [u8; 1]) = ([0], [u8::MAX]);
/// Bytes that a scan of everything reads at once.
const READAHEAD_BYTES: usize = 1 << 20;

pub(crate) fn decode_applied(bytes: &[u8]) -> Result<Applied, StoreError> {
    prost::Message::decode(bytes)
        .map_err(|error| StoreError::DataDirectory(format!("the applied record does not decode: {error}")))
}

/// Is shown keys and values, and says whether it wants more.
pub(crate) type Visit<'a> = dyn FnMut(&[u8], &[u8]) -> Result<bool, StoreError> + 'a;

/// Reads of the state by state keys (space and key).
pub(crate) trait StateView {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;

    /// Visits `start..end` in order until `visit` answers false.
    fn scan(&self, start: &[u8], end: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError>;
}

impl StateView for StateSnapshot<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.memo.row(key, || {
            let found = self.snapshot.get_cf(&self.db.sm_data()?, stored_key(self.applied.generation, key));
            found.map_err(|error| self.db.unreadable(error))
        })
    }

    fn scan(&self, start: &[u8], end: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        self.memo.range(start, end, visit, |visit| {
            self.scan_with(rocksdb::ReadOptions::default(), start, end, visit)
        })
    }
}

/// SHA-256 over the whole state at one instant: equal on every node at an equal applied index.
pub(crate) fn state_hash(view: &impl StateView) -> Result<[u8; 32], StoreError> {
    let mut hasher = Sha256::new();
    view.scan(&STATE.0, &STATE.1, &mut |key, value| {
        hasher.update((key.len() as u64).to_be_bytes());
        hasher.update(key);
        hasher.update((value.len() as u64).to_be_bytes());
        hasher.update(value);
        Ok(true)
    })?;
    Ok(hasher.finalize().into())
}

/// The expiry index's key of a row.
pub(crate) fn expiry_key(expires_at_ms: UnixMillis, row_key: &[u8]) -> Vec<u8> {
    let mut key = expires_at_ms.to_be_bytes().to_vec();
    key.extend(row_key);
    state_key(Space::Expiry, &key)
}

/// Whether the first row of the expiry index is over.
pub(crate) fn has_expired(view: &impl StateView, now_ms: UnixMillis) -> Result<bool, StoreError> {
    let mut found = false;
    let end = expiry_key(now_ms.saturating_add(1), &[]);
    view.scan(&expiry_key(0, &[]), &end, &mut |_, _| {
        found = true;
        Ok(false)
    })?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes() {
        let row = StoredRow { revision: 1, expires_at_ms: 258, value: b"v" };
        let bytes = row.encode();
        assert_eq!(bytes, b"\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\x01\x02v");
        assert_eq!(StoredRow::decode(&bytes), Ok(row));
        assert!(StoredRow::decode(&bytes[..15]).is_err());
        assert_eq!(log_record_key("audit", 1), b"audit\0\0\0\0\0\0\0\0\x01");
        assert_eq!(expiry_key(1, b"k"), b"\x02\0\0\0\0\0\0\0\x01k");
        let applied = Applied { generation: 2, stamp_ms: 3, revision: 4, ..Applied::default() };
        assert_eq!(prost::Message::encode_to_vec(&applied), [0x20, 2, 0x28, 3, 0x30, 4]);
        let applied = Applied { removed_ids: vec![2, 300], ..Applied::default() };
        assert_eq!(prost::Message::encode_to_vec(&applied), [0x3a, 3, 2, 0xac, 2]);
        let id = peer::LogId { term: 1, leader_id: 2, index: 3 };
        let member = peer::Member { node_id: 2, peer_address: "p".into(), app_address: "a".into() };
        let membership =
            peer::Membership { configs: vec![peer::VoterSet { node_ids: vec![2] }], members: vec![member] };
        let applied = Applied {
            last_log_id: Some(id),
            membership_log_id: Some(id),
            membership: Some(membership),
            ..Applied::default()
        };
        let log_id = [6, 0x08, 1, 0x10, 2, 0x18, 3];
        let membership = [15, 0x0a, 3, 0x0a, 1, 2, 0x12, 8, 0x08, 2, 0x12, 1, b'p', 0x1a, 1, b'a'];
        let golden = [&[0x0a][..], &log_id, &[0x12], &log_id, &[0x1a], &membership].concat();
        assert_eq!(prost::Message::encode_to_vec(&applied), golden);
        let record = encode_log_record(258, &[7; 32], b"r");
        assert_eq!(record, [&[0, 0, 0, 0, 0, 0, 1, 2][..], &[7; 32], b"r"].concat());
        assert_eq!(decode_log_record(5, &record).unwrap().record, b"r");
        assert!(decode_log_record(5, &record[..39]).is_err());
    }

    #[test]
    fn who_leaves_the_membership_is_remembered() {
        let membership = |ids: &[u64]| peer::Membership {
            members: ids.iter().map(|id| peer::Member { node_id: *id, ..peer::Member::default() }).collect(),
            ..peer::Membership::default()
        };
        let mut applied = Applied::default();
        for (ids, removed) in
            [(&[1][..], &[][..]), (&[1, 2, 3], &[]), (&[1, 3], &[2]), (&[1, 3, 4], &[2]), (&[4], &[1, 2, 3])]
        {
            applied.set_membership(peer::LogId::default(), membership(ids));
            assert_eq!(applied.removed_ids, removed);
        }
    }

    #[test]
    fn a_row_ends_at_its_time() {
        let row = |expires_at_ms| StoredRow { revision: 1, expires_at_ms, value: b"" };
        assert!(row(0).is_live(u64::MAX) && row(5).is_live(4) && !row(5).is_live(5));
    }

    #[test]
    fn the_chain_covers_every_part() {
        let base = chain_hash(&[0; 32], 1, 2, b"r");
        for other in [
            chain_hash(&[1; 32], 1, 2, b"r"),
            chain_hash(&[0; 32], 2, 2, b"r"),
            chain_hash(&[0; 32], 1, 3, b"r"),
            chain_hash(&[0; 32], 1, 2, b"s"),
        ] {
            assert_ne!(base, other);
        }
    }
}
