//! The idempotency window: what was decided on transactions, so that a retry is not applied twice, and one that was
//! refused is not applied by a copy that was long under way, after the caller has begun anew.
//!
//! One stored record per log entry keeps the cost of remembering to one write a batch. A record is dropped, through
//! the log, once the state's time is past the latest `not_after` in it: from then on a retry is refused as too late,
//! so it need not be recognised. The map in memory is built from the records, at start and after a snapshot was
//! installed.

use std::collections::{HashMap, VecDeque};

/// Idempotency key of a transaction.
pub(crate) type TransactionId = [u8; 16];

/// A transaction may not ask to be remembered for longer than this after the entry's stamp, in milliseconds.
pub(crate) const MAX_WINDOW_MS: u64 = 10 * 60 * 1000;

/// Stands in place of a revision where a transaction was refused for a conflict. Revisions begin at 1.
pub(crate) const REFUSED: u64 = 0;

const ID_LEN: usize = 16;
const REVISION_LEN: usize = 8;

/// The ids of one log entry.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Record {
    log_index: u64,
    keep_until_ms: u64,
    ids: Vec<TransactionId>,
}

/// Ids of decided transactions, and the revision that each got.
#[derive(Debug, Clone, Default)]
pub(crate) struct IdWindow {
    revisions: HashMap<TransactionId, u64>,
    records: VecDeque<Record>,
}

impl IdWindow {
    /// The revision that a transaction got, or [`REFUSED`], if it was decided within the window.
    pub(crate) fn decision(&self, id: &TransactionId) -> Option<u64> {
        self.revisions.get(id).copied()
    }

    /// Ids remembered.
    pub(crate) fn len(&self) -> usize {
        self.revisions.len()
    }

    /// Remembers one id at once, so that the rest of the same entry sees it. [`IdWindow::seal`] follows.
    pub(crate) fn note(&mut self, id: TransactionId, revision: u64) {
        self.revisions.insert(id, revision);
    }

    /// Ends an entry whose ids were noted.
    pub(crate) fn seal(&mut self, log_index: u64, keep_until_ms: u64, decided: &[(TransactionId, u64)]) {
        let ids = decided.iter().map(|(id, _)| *id).collect();
        self.records.push_back(Record { log_index, keep_until_ms, ids });
    }

    /// Takes a stored record in, in the order of log indexes.
    pub(crate) fn load(&mut self, log_index: u64, keep_until_ms: u64, decided: &[(TransactionId, u64)]) {
        for (id, revision) in decided {
            self.note(*id, *revision);
        }
        self.seal(log_index, keep_until_ms, decided);
    }

    /// Forgets the oldest records whose time is over, and answers their log indexes.
    pub(crate) fn expire(&mut self, now_ms: u64) -> Vec<u64> {
        let mut expired = Vec::new();
        while self.records.front().is_some_and(|record| record.keep_until_ms < now_ms) {
            if let Some(record) = self.records.pop_front() {
                for id in &record.ids {
                    self.revisions.remove(id);
                }
                expired.push(record.log_index);
            }
        }
        expired
    }
}

/// Encodes a record: `keep_until_ms (u64)`, then `id (16) | revision (u64)` per transaction.
pub(crate) fn encode(keep_until_ms: u64, decided: &[(TransactionId, u64)]) -> Vec<u8> {
    let mut out = Vec::with_capacity(8 + decided.len() * (ID_LEN + REVISION_LEN));
    out.extend(keep_until_ms.to_be_bytes());
    for (id, revision) in decided {
        out.extend(id);
        out.extend(revision.to_be_bytes());
    }
    out
}

/// Decodes a record. `None`: it is damaged.
pub(crate) fn decode(bytes: &[u8]) -> Option<(u64, Vec<(TransactionId, u64)>)> {
    let (keep_until, rest) = bytes.split_first_chunk::<8>()?;
    let pairs = rest.chunks_exact(ID_LEN + REVISION_LEN);
    if !pairs.remainder().is_empty() {
        return None;
    }
    let pairs = pairs.map(|pair| {
        let (id, revision) = pair.split_first_chunk::<ID_LEN>()?;
        Some((*id, u64::from_be_bytes(revision.try_into().ok()?)))
    });
    Some((u64::from_be_bytes(*keep_until), pairs.collect::<Option<_>>()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes_and_round_trip() {
        let applied = [([7; 16], 258)];
        let bytes = encode(3, &applied);
        let mut golden = vec![0, 0, 0, 0, 0, 0, 0, 3];
        golden.extend([7; 16]);
        golden.extend([0, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!(bytes, golden);
        assert_eq!(decode(&bytes), Some((3, applied.to_vec())));
        assert_eq!(decode(&bytes[..20]), None);
        assert_eq!(decode(&[]), None);
    }

    #[test]
    fn forgets_in_order_and_not_too_early() {
        let mut window = IdWindow::default();
        window.load(1, 100, &[([1; 16], 11)]);
        window.load(2, 200, &[([2; 16], 12), ([3; 16], 13)]);
        assert_eq!(window.expire(100), Vec::<u64>::new());
        assert_eq!(window.decision(&[1; 16]), Some(11));
        assert_eq!(window.expire(101), vec![1]);
        assert_eq!((window.decision(&[1; 16]), window.decision(&[3; 16])), (None, Some(13)));
        assert_eq!(window.expire(1000), vec![2]);
        assert_eq!(window.len(), 0);
    }
}
