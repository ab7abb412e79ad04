//! The log, the vote and the commit point on disk.
//!
//! One thread does all writing, in the order in which it was asked: it takes what is waiting into one batch, writes
//! it with one fsync, and only then tells those who wait. Entries can be read as soon as they were handed over,
//! because the newest stay in memory at least until they are on disk.
//!
//! The core does not wait for entries to be on disk, but for a change of the membership: what must not happen before
//! that waits for [`Flushed`]. A leader's entries are written here and by the peers at the same time.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    ops::{Bound, RangeBounds},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, Sender, channel},
    },
    thread::JoinHandle,
    time::Instant,
};

use mezite_proto::peer;
use openraft::{
    Entry, EntryPayload, LogId, LogState, OptionalSend, RaftLogId, RaftLogReader, StorageError,
    StorageIOError, Vote,
    storage::{LogFlushed, RaftLogStorage},
};
use prost::Message;
use rocksdb::WriteBatch;
use tokio::sync::oneshot;

use super::{Flushed, TypeConfig, convert};
use crate::{
    db::{Db, meta_key},
    error::StoreError,
    failure::{Point, pass},
    fatal::Fatal,
    metrics,
    owner::Owner,
};

/// Entries that are on disk stay in memory up to this many bytes, for replication and apply.
const TAIL_BYTES: usize = 16 << 20;
/// One read of the log answers at most about this much, so that a message to a peer stays within its bound.
const READ_BYTES: usize = 4 << 20;
/// Operations in one write.
const DRAIN: usize = 256;

enum Op {
    Append { entries: Vec<(u64, Vec<u8>)>, end: End, done: Option<LogFlushed<TypeConfig>> },
    Vote { vote: Vec<u8>, done: oneshot::Sender<()> },
    Committed(Option<Vec<u8>>),
    Truncate { since: u64, end: End },
    Purge { upto: peer::LogId },
}

/// Where the log ends after an append or a truncation, and in which epoch: a truncation begins a new one, so that an
/// append from before it is not taken for the entries that came in its place.
#[derive(Clone, Copy)]
struct End {
    last: Option<LogId<u64>>,
    epoch: u64,
}

/// What of the log there is, and its newest entries.
#[derive(Default)]
struct Index {
    purged: Option<LogId<u64>>,
    last: Option<LogId<u64>>,
    tail: BTreeMap<u64, (Entry<TypeConfig>, usize)>,
    tail_bytes: usize,
}

impl Index {
    fn push(&mut self, entry: Entry<TypeConfig>, size: usize) {
        self.last = Some(entry.log_id);
        self.tail_bytes += size;
        self.tail.insert(entry.log_id.index, (entry, size));
    }

    fn drop_tail_from(&mut self, since: u64) {
        for (_, (_, size)) in self.tail.split_off(&since) {
            self.tail_bytes -= size;
        }
    }

    /// Lets go of the oldest entries that are on disk.
    fn evict(&mut self, flushed: Option<u64>) {
        while self.tail_bytes > TAIL_BYTES {
            match self.tail.first_entry() {
                Some(first) if Some(*first.key()) <= flushed => self.tail_bytes -= first.remove().1,
                _ => break,
            }
        }
    }
}

struct Shared {
    db: Arc<Db>,
    index: Arc<Mutex<Index>>,
    /// Changes under the lock of the index.
    flushed: Flushed,
    /// The node, as the data directory says.
    node_id: Option<u64>,
    /// `None` only while it is dropped.
    writer: Option<(Sender<Op>, JoinHandle<()>)>,
}

impl Drop for Shared {
    /// Waits for the writer: the database must be closed before the process leaves.
    fn drop(&mut self) {
        if let Some((operations, thread)) = self.writer.take() {
            drop(operations);
            if thread.join().is_err() {
                tracing::error!("the log writer panicked");
            }
        }
    }
}

/// The log of a node.
#[derive(Clone)]
pub(crate) struct LogStore(Arc<Shared>);

impl LogStore {
    pub(crate) fn open(db: Arc<Db>, fatal: Fatal) -> Result<Self, StoreError> {
        let purged = read_meta::<peer::LogId>(&db, meta_key::PURGED)?.as_ref().map(convert::log_id);
        let last = match last_entry(&db)? {
            Some(entry) => Some(entry.log_id),
            None => purged,
        };
        let node_id = Owner::read(&db)?.map(|owner| owner.node_id);
        let index = Arc::new(Mutex::new(Index { purged, last, ..Index::default() }));
        let flushed = Flushed::new(last);
        let (operations, waiting) = channel();
        let (writing, flushing) = (Arc::clone(&db), Arc::clone(&index));
        let stop = StopOnDrop(flushed.clone());
        let on_disk = move |end: End| {
            let mut index = flushing.lock().unwrap_or_else(PoisonError::into_inner);
            if stop.0.epoch() == end.epoch {
                stop.0.rise(end.last);
                index.evict(end.last.map(|last| last.index));
            }
        };
        let thread = std::thread::Builder::new()
            .name("raft-log".into())
            .spawn(move || write_all(&writing, &waiting, &fatal, on_disk))
            .map_err(StoreError::io("cannot start the log writer"))?;
        let writer = Some((operations, thread));
        Ok(Self(Arc::new(Shared { db, index, flushed, node_id, writer })))
    }

    /// What of it is on disk.
    pub(super) fn flushed(&self) -> Flushed {
        self.0.flushed.clone()
    }
}

/// Says that nothing is written any more when the writer ends, however it does.
struct StopOnDrop(Flushed);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop();
    }
}

impl Shared {
    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[allow(clippy::result_large_err, reason = "openraft's storage traits answer this error")]
    fn send(&self, op: Op) -> Result<(), StorageError<u64>> {
        let sent = self.writer.as_ref().is_some_and(|(operations, _)| operations.send(op).is_ok());
        let stopped =
            || StorageIOError::write_logs(&std::io::Error::other("the log writer has stopped")).into();
        sent.then_some(()).ok_or_else(stopped)
    }
}

/// The writer thread: until every handle is gone, or a write fails.
fn write_all(db: &Db, operations: &Receiver<Op>, fatal: &Fatal, on_disk: impl Fn(End)) {
    while let Ok(first) = operations.recv() {
        let mut staged = Staged::default();
        let mut drained = std::iter::once(first).chain(operations.try_iter().take(DRAIN - 1));
        let built = drained.try_for_each(|op| staged.add(db, op));
        let Staged { batch, sync, end, appended, voted } = staged;
        let result = built.and_then(|()| {
            pass(Point::LogBeforeWrite)?;
            let started = Instant::now();
            db.write(batch, sync)?;
            if sync {
                metrics::fsync(started.elapsed());
            }
            pass(Point::LogAfterWrite)
        });
        if let Err(error) = result {
            for done in appended {
                done.log_io_completed(Err(std::io::Error::other(error.to_string())));
            }
            fatal.call(&format!("writing the log failed: {error}"));
            return;
        }
        if let Some(end) = end {
            on_disk(end);
        }
        for done in appended {
            done.log_io_completed(Ok(()));
        }
        for done in voted {
            // The core may be gone by now; then nobody waits.
            let _ = done.send(());
        }
        if let Err(error) = pass(Point::LogAfterCallbacks) {
            fatal.call(&format!("after writing the log: {error}"));
            return;
        }
    }
}

/// What one write of the log holds, and who is told when it is done.
#[derive(Default)]
struct Staged {
    batch: WriteBatch,
    sync: bool,
    end: Option<End>,
    appended: Vec<LogFlushed<TypeConfig>>,
    voted: Vec<oneshot::Sender<()>>,
}

impl Staged {
    fn add(&mut self, db: &Db, op: Op) -> Result<(), StoreError> {
        let (meta, log) = (db.raft_meta()?, db.raft_log()?);
        // A commit point alone need not be synced: it only says how far the log may be applied again.
        self.sync |= !matches!(op, Op::Committed(_));
        match op {
            Op::Append { entries, end, done } => {
                pass(Point::LogStageAppend)?;
                for (index, bytes) in entries {
                    self.batch.put_cf(&log, index.to_be_bytes(), bytes);
                }
                self.end = Some(end);
                self.appended.extend(done);
            }
            Op::Vote { vote, done } => {
                pass(Point::LogStageVote)?;
                self.batch.put_cf(&meta, meta_key::VOTE, vote);
                self.voted.push(done);
            }
            Op::Committed(Some(committed)) => self.batch.put_cf(&meta, meta_key::COMMITTED, committed),
            Op::Committed(None) => self.batch.delete_cf(&meta, meta_key::COMMITTED),
            Op::Truncate { since, end } => {
                pass(Point::LogStageTruncate)?;
                self.batch.delete_range_cf(&log, since.to_be_bytes(), u64::MAX.to_be_bytes());
                self.end = Some(end);
            }
            Op::Purge { upto } => {
                pass(Point::LogStagePurge)?;
                self.batch.delete_range_cf(&log, 0u64.to_be_bytes(), (upto.index + 1).to_be_bytes());
                self.batch.put_cf(&meta, meta_key::PURGED, upto.encode_to_vec());
            }
        }
        Ok(())
    }
}

pub(crate) fn read_meta<M: Message + Default>(db: &Db, key: &[u8]) -> Result<Option<M>, StoreError> {
    let bytes = db.rocks().get_cf(&db.raft_meta()?, key)?;
    let decoded = bytes.map(|bytes| M::decode(bytes.as_slice())).transpose();
    decoded.map_err(|error| {
        StoreError::DataDirectory(format!("{} does not decode: {error}", String::from_utf8_lossy(key)))
    })
}

/// Gives the table files back that hold nothing but purged entries, without waiting for a compaction.
pub(crate) fn release_purged(db: &Db) -> Result<(), StoreError> {
    if let Some(purged) = read_meta::<peer::LogId>(db, meta_key::PURGED)? {
        let log = db.raft_log()?;
        db.rocks().delete_file_in_range_cf(&log, 0u64.to_be_bytes(), purged.index.to_be_bytes())?;
    }
    Ok(())
}

fn last_entry(db: &Db) -> Result<Option<Entry<TypeConfig>>, StoreError> {
    let mut newest = db.rocks().iterator_cf(&db.raft_log()?, rocksdb::IteratorMode::End);
    newest.next().map(|item| convert::decode_entry(&item?.1)).transpose()
}

/// Reads entries `from..to` from disk, up to a bound in bytes but at least one; and whether the bound cut it short.
pub(crate) fn read_disk(
    db: &Db,
    from: u64,
    to: u64,
    bound: usize,
) -> Result<(Vec<Entry<TypeConfig>>, bool), StoreError> {
    let mut options = rocksdb::ReadOptions::default();
    options.set_iterate_upper_bound(to.to_be_bytes().to_vec());
    let start = from.to_be_bytes();
    let mode = rocksdb::IteratorMode::From(&start, rocksdb::Direction::Forward);
    let (mut entries, mut bytes) = (Vec::new(), 0);
    for item in db.rocks().iterator_cf_opt(&db.raft_log()?, options, mode) {
        let (_, value) = item?;
        bytes += value.len();
        entries.push(convert::decode_entry(&value)?);
        if bytes >= bound {
            return Ok((entries, true));
        }
    }
    Ok((entries, false))
}

fn read_error(error: &(impl std::error::Error + 'static)) -> StorageError<u64> {
    StorageIOError::read_logs(error).into()
}

impl LogStore {
    /// Entries `start..end` that exist: from disk below the tail, from memory in it; up to a bound in bytes.
    async fn read(
        &self,
        start: u64,
        end: u64,
        bound: usize,
    ) -> Result<Vec<Entry<TypeConfig>>, StorageError<u64>> {
        let (start, end, tail_start) = {
            let index = self.0.index();
            let first = index.purged.map_or(0, |id| id.index + 1);
            let end = end.min(index.last.map_or(0, |id| id.index + 1));
            let tail_start = index.tail.first_key_value().map_or(u64::MAX, |(index, _)| *index);
            (start.max(first), end, tail_start)
        };
        let mut entries = Vec::new();
        if start < end.min(tail_start) {
            let db = Arc::clone(&self.0.db);
            let upto = end.min(tail_start);
            let read = tokio::task::spawn_blocking(move || read_disk(&db, start, upto, bound)).await;
            let cut;
            (entries, cut) = read.map_err(|error| read_error(&error))?.map_err(|error| read_error(&error))?;
            if cut {
                return Ok(entries);
            }
        }
        let index = self.0.index();
        let mut bytes = 0;
        for (_, (entry, size)) in index.tail.range(start.max(tail_start)..end.max(start.max(tail_start))) {
            entries.push(entry.clone());
            bytes += size;
            if bytes >= bound {
                break;
            }
        }
        Ok(entries)
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry<TypeConfig>>, StorageError<u64>> {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(before) => before + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(last) => last + 1,
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        self.read(start, end, usize::MAX).await
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry<TypeConfig>>, StorageError<u64>> {
        let entries = self.read(start, end, READ_BYTES).await?;
        if entries.is_empty() && start < end {
            // The core panics on an empty answer; an error makes it stop with a reason.
            let gone = std::io::Error::other(format!("log entries {start}..{end} are not there"));
            return Err(read_error(&gone));
        }
        Ok(entries)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError<u64>> {
        let index = self.0.index();
        Ok(LogState { last_purged_log_id: index.purged, last_log_id: index.last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote<u64>) -> Result<(), StorageError<u64>> {
        let (done, written) = oneshot::channel();
        self.0.send(Op::Vote { vote: convert::vote_to_proto(vote).encode_to_vec(), done })?;
        written.await.map_err(|error| StorageIOError::write_vote(&error).into())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote<u64>>, StorageError<u64>> {
        let stored = read_meta::<peer::Ballot>(&self.0.db, meta_key::VOTE);
        let stored = stored.map_err(|error| StorageError::from(StorageIOError::read_vote(&error)))?;
        let mut vote = stored.as_ref().map(convert::vote);
        // A leader that starts again must not go on in its term: peers may hold entries that it sent and lost, and it
        // would give other entries the same ids. So its vote is that of one who has not won.
        if let Some(vote) = vote.as_mut().filter(|vote| Some(vote.leader_id.node_id) == self.0.node_id) {
            vote.committed = false;
        }
        Ok(vote)
    }

    async fn save_committed(&mut self, committed: Option<LogId<u64>>) -> Result<(), StorageError<u64>> {
        self.0.send(Op::Committed(committed.map(|id| convert::from_log_id(&id).encode_to_vec())))
    }

    async fn read_committed(&mut self) -> Result<Option<LogId<u64>>, StorageError<u64>> {
        let stored =
            read_meta::<peer::LogId>(&self.0.db, meta_key::COMMITTED).map_err(|error| read_error(&error))?;
        // It was not synced on its own, and the log may have been: it never points past what is there.
        Ok(stored.as_ref().map(convert::log_id).min(self.0.index().last))
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: LogFlushed<TypeConfig>,
    ) -> Result<(), StorageError<u64>>
    where
        I: IntoIterator<Item = Entry<TypeConfig>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<_> = entries.into_iter().collect();
        let Some(last) = entries.last().map(|entry| *entry.get_log_id()) else {
            callback.log_io_completed(Ok(()));
            return Ok(());
        };
        let encoded: Vec<_> =
            entries.iter().map(|entry| (entry.log_id.index, convert::encode_entry(entry))).collect();
        // The core may build on a membership as soon as it is committed, so that has to be on disk.
        let membership = entries.iter().any(|entry| matches!(entry.payload, EntryPayload::Membership(_)));
        let epoch = {
            let mut index = self.0.index();
            for (entry, (_, bytes)) in entries.into_iter().zip(&encoded) {
                index.push(entry, bytes.len());
            }
            self.0.flushed.epoch()
        };
        let (now, done) = if membership { (None, Some(callback)) } else { (Some(callback), None) };
        self.0.send(Op::Append { entries: encoded, end: End { last: Some(last), epoch }, done })?;
        if let Some(taken) = now {
            taken.log_io_completed(Ok(()));
        }
        Ok(())
    }

    async fn truncate(&mut self, log_id: LogId<u64>) -> Result<(), StorageError<u64>> {
        let before = match log_id.index.checked_sub(1) {
            Some(before) => {
                self.read(before, log_id.index, usize::MAX).await?.pop().map(|entry| entry.log_id)
            }
            None => None,
        };
        let end = {
            let mut index = self.0.index();
            index.drop_tail_from(log_id.index);
            index.last = before.or(index.purged);
            self.0.flushed.truncate(index.last);
            End { last: index.last, epoch: self.0.flushed.epoch() }
        };
        self.0.send(Op::Truncate { since: log_id.index, end })
    }

    async fn purge(&mut self, log_id: LogId<u64>) -> Result<(), StorageError<u64>> {
        {
            let mut index = self.0.index();
            index.purged = index.purged.max(Some(log_id));
            index.last = index.last.max(Some(log_id));
            let kept = index.tail.split_off(&(log_id.index + 1));
            index.tail_bytes = kept.values().map(|(_, size)| size).sum();
            index.tail = kept;
            // What was purged is in a snapshot.
            self.0.flushed.rise(Some(log_id));
        }
        self.0.send(Op::Purge { upto: convert::from_log_id(&log_id) })
    }
}

#[cfg(test)]
pub(crate) mod scripted;
