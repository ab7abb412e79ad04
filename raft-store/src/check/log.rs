//! The log, and what is said about it.

use mezite_proto::peer;
use prost::Message;

use super::CheckReport;
use crate::{
    db::{Db, meta_key},
    error::StoreError,
    raft::{convert::decode_stored, log_store::read_meta},
    state::Applied,
};

/// Checks that the log is contiguous from where it was purged, decodes, and agrees with the other records.
pub(super) fn check(db: &Db, applied: &Applied, report: &mut CheckReport) {
    let purged = report.note(read_meta::<peer::LogId>(db, meta_key::PURGED)).flatten();
    let committed = report.note(read_meta::<peer::LogId>(db, meta_key::COMMITTED)).flatten();
    report.purged_index = purged.map(|id| id.index);
    report.committed_index = committed.map(|id| id.index);
    if report.purged_index > report.applied_index {
        report.problem("the log was purged past the state");
    }
    let mut walk = Walk {
        expected: purged.map_or(0, |id| id.index + 1),
        previous: purged.unwrap_or_default(),
        known: [("applied", applied.last_log_id), ("committed", committed)],
        report,
    };
    if let Err(error) = walk.all(db) {
        walk.report.problem(format!("the log cannot be read: {error}"));
    }
    let last_term = walk.previous.term;
    if last_term > report.term {
        report.problem(format!("the log has an entry of term {last_term}, past the vote's {}", report.term));
    }
}

struct Walk<'a> {
    expected: u64,
    previous: peer::LogId,
    /// Entries that other records speak of.
    known: [(&'static str, Option<peer::LogId>); 2],
    report: &'a mut CheckReport,
}

impl Walk<'_> {
    fn all(&mut self, db: &Db) -> Result<(), StoreError> {
        // What is before was purged; some of it may still take space.
        let start = self.expected.to_be_bytes();
        let mode = rocksdb::IteratorMode::From(&start, rocksdb::Direction::Forward);
        for item in db.rocks().iterator_cf(&db.raft_log()?, mode) {
            let (key, value) = item?;
            match <[u8; 8]>::try_from(key.as_ref()) {
                Ok(index) => self.entry(u64::from_be_bytes(index), &value),
                Err(_) => self.report.problem(format!("a log entry has the key {}", key.escape_ascii())),
            }
        }
        Ok(())
    }

    fn entry(&mut self, index: u64, bytes: &[u8]) {
        if index != self.expected {
            let missing = format!("log entries {} to {} are missing", self.expected, index.saturating_sub(1));
            self.report.problem(missing);
        }
        self.expected = index.saturating_add(1);
        self.report.log_entries += 1;
        self.report.last_log_index = Some(index);
        let Some(entry) = self.report.note(decode_stored(bytes)) else { return };
        let id = entry.log_id.unwrap_or_default();
        if id.index != index {
            self.report.problem(format!("log entry {index} says that it is {}", id.index));
        }
        if (id.term, id.leader_id) < (self.previous.term, self.previous.leader_id) {
            self.report.problem(format!("log entry {index} is of an earlier leader than the one before it"));
        }
        for (what, known) in self.known {
            if known.is_some_and(|known| known.index == index && known != id) {
                self.report.problem(format!("the {what} entry {index} is not the one in the log"));
            }
        }
        if let Some(peer::entry::Payload::Batch(batch)) = entry.payload
            && let Err(error) = peer::Batch::decode(batch)
        {
            self.report.problem(format!("log entry {index} does not decode: {error}"));
        }
        self.previous = id;
    }
}
