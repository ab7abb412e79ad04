//! The replicated state on disk: applies entries, takes and installs snapshots.
//!
//! Data, counters, membership and the applied index go into one batch. It is not synced: the log can replay it.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use mezite_proto::peer;
use openraft::{
    Entry, EntryPayload, LogId, OptionalSend, RaftSnapshotBuilder, Snapshot, SnapshotMeta, StorageError,
    StorageIOError, StoredMembership, storage::RaftStateMachine,
};
use prost::Message;
use rocksdb::WriteBatch;

use super::{
    Command, Outcomes, PeerNode, SnapshotFile, TypeConfig, convert, install::load_rows, log_store,
    receive::Inbox, snapshot_file,
};
use crate::{
    apply::{Commit, Counters, Overlay, apply_batch},
    config::StoreConfig,
    db::{Db, GENERATION_LEN, Space, meta_key, state_key, stored_key},
    durable,
    error::StoreError,
    failure::{Point, pass},
    fatal::Fatal,
    ids::{self, IdWindow},
    metrics,
    state::{Applied, StateSnapshot, StateView},
    status::Progress,
    watch::Hub,
};

struct Shared {
    db: Arc<Db>,
    hub: Arc<Hub>,
    progress: Progress,
    fatal: Fatal,
    snapshots: PathBuf,
    inbox: Inbox,
    /// What is in memory of the applied state; whoever changes the state holds it, on a thread that may block.
    current: Mutex<Current>,
    /// Of the applied state, for those who may not wait.
    counters: Mutex<Counters>,
    /// Whether entries must follow each other: see [`StateMachine::refuse_gaps`].
    gapless: AtomicBool,
}

/// What is in memory of the applied state.
#[derive(Default)]
pub(crate) struct Current {
    pub(crate) applied: Applied,
    pub(crate) window: IdWindow,
}

/// The state of a node.
#[derive(Clone)]
pub(crate) struct StateMachine(Arc<Shared>);

impl StateMachine {
    pub(crate) fn open(
        db: Arc<Db>,
        config: &StoreConfig,
        hub: Arc<Hub>,
        progress: Progress,
        fatal: Fatal,
    ) -> Result<Self, StoreError> {
        let snapshots = config.data_dir.join("snapshots");
        std::fs::create_dir_all(&snapshots).map_err(StoreError::io("cannot create the snapshot folder"))?;
        snapshot_file::delete_unfinished(&snapshots)?;
        let current = load(&db)?;
        drop_other_generations(&db, current.applied.generation)?;
        hub.begin(current.applied.revision);
        progress.removed(&current.applied.removed_ids);
        progress.applied(current.applied.last_log_id.map(|id| id.index));
        let inbox = Inbox::new(snapshots.clone());
        let counters = Mutex::new(counters(&current.applied));
        let current = Mutex::new(current);
        let gapless = AtomicBool::new(false);
        Ok(Self(Arc::new(Shared { db, hub, progress, fatal, snapshots, inbox, current, counters, gapless })))
    }

    /// From now on an entry that does not follow the one before ends the process. openraft's own storage suite leaves
    /// entries out on purpose; nothing else may.
    pub(crate) fn refuse_gaps(&self) {
        self.0.gapless.store(true, Ordering::Relaxed);
    }

    /// Index after the last entry that is in the state.
    pub(crate) fn next_index(&self) -> u64 {
        self.0.current().applied.last_log_id.map_or(0, |id| id.index + 1)
    }

    /// Deletes the snapshots that there are; the core takes a new one where it needs one.
    pub(crate) fn forget_snapshots(&self) -> Result<(), StoreError> {
        snapshot_file::delete_all(&self.0.snapshots)
    }

    /// Time and revision of the state.
    pub(crate) fn counters(&self) -> Counters {
        *self.0.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Size of the newest snapshot, in bytes; 0 where there is none.
    pub(crate) fn snapshot_bytes(&self) -> u64 {
        let newest = snapshot_file::newest(&self.0.snapshots).ok().flatten();
        let size = newest.and_then(|file| std::fs::metadata(&file.path).ok());
        size.map_or(0, |size| size.len())
    }

    /// Where snapshots from peers come in.
    pub(crate) fn inbox(&self) -> &Inbox {
        &self.0.inbox
    }

    /// A new name for a file that is gone when the process is.
    pub(crate) fn temporary_path(&self, what: &str) -> PathBuf {
        self.0.snapshots.join(format!("{what}-{:016x}.tmp", rand::random::<u64>()))
    }

    #[cfg(test)]
    pub(crate) fn install_file(&self, file: &SnapshotFile) -> Result<(), StoreError> {
        self.0.install(file)
    }

    /// Runs work on the state's disk away from the async workers. A failure ends the process.
    async fn blocking<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce(&Shared) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StorageError<u64>> {
        let shared = Arc::clone(&self.0);
        let done = tokio::task::spawn_blocking(move || work(&shared)).await;
        let result = done.map_err(|error| StoreError::Stopped(error.to_string())).and_then(|result| result);
        result.map_err(|error| {
            self.0.fatal.call(&format!("{what} failed: {error}"));
            StorageIOError::write_state_machine(&error).into()
        })
    }
}

fn counters(applied: &Applied) -> Counters {
    Counters { stamp_ms: applied.stamp_ms, revision: applied.revision }
}

/// Reads what memory holds of the state from disk: at start, and after an installation.
pub(crate) fn load(db: &Db) -> Result<Current, StoreError> {
    let state = StateSnapshot::take(db)?;
    let mut window = IdWindow::default();
    let (start, end) = (state_key(Space::DecidedIds, &[]), state_key(Space::DecidedIds, &[u8::MAX; 9]));
    state.scan(&start, &end, &mut |key, value| {
        let damaged = || StoreError::DataDirectory("a record of applied ids does not decode".into());
        let index = key.get(1..).and_then(|index| index.try_into().ok()).map(u64::from_be_bytes);
        let (keep_until_ms, applied) = ids::decode(value).ok_or_else(damaged)?;
        window.load(index.ok_or_else(damaged)?, keep_until_ms, &applied);
        Ok(true)
    })?;
    Ok(Current { applied: state.applied().clone(), window })
}

/// Removes what an installation left behind: the state before it, or its own rows if it was not finished.
fn drop_other_generations(db: &Db, generation: u32) -> Result<(), StoreError> {
    let data = db.sm_data()?;
    let mut batch = WriteBatch::default();
    let mut drop = |from: Vec<u8>, to: Vec<u8>| -> Result<(), StoreError> {
        let mut options = rocksdb::ReadOptions::default();
        options.set_iterate_upper_bound(to.clone());
        let mode = rocksdb::IteratorMode::From(&from, rocksdb::Direction::Forward);
        // A range tombstone for nothing would be carried along for ever.
        if db.rocks().iterator_cf_opt(&data, options, mode).next().transpose()?.is_some() {
            batch.delete_range_cf(&data, from, to);
        }
        Ok(())
    };
    drop(stored_key(0, &[]), stored_key(generation, &[]))?;
    if let Some(next) = generation.checked_add(1) {
        drop(stored_key(next, &[]), vec![u8::MAX; GENERATION_LEN + 1])?;
    }
    Ok(db.write(batch, false)?)
}

/// Applies entries to the state on disk. Answers what came of each entry, and what was committed.
pub(crate) fn apply_entries(
    db: &Db,
    current: &mut Current,
    entries: Vec<Entry<TypeConfig>>,
) -> Result<(Vec<Outcomes>, Vec<Commit>), StoreError> {
    let mut applied = current.applied.clone();
    let mut counters = counters(&applied);
    let base = StateSnapshot::take(db)?;
    let mut state = Overlay::new(&base);
    let (mut answers, mut commits) = (Vec::with_capacity(entries.len()), Vec::new());
    for entry in entries {
        let log_id = convert::from_log_id(&entry.log_id);
        applied.last_log_id = Some(log_id);
        match entry.payload {
            EntryPayload::Blank => answers.push(Vec::new()),
            EntryPayload::Membership(membership) => {
                applied.set_membership(log_id, convert::membership_to_proto(&membership));
                answers.push(Vec::new());
            }
            EntryPayload::Normal(Command(batch)) => {
                let batch = peer::Batch::decode(batch).map_err(|error| {
                    StoreError::DataDirectory(format!("log entry {} does not decode: {error}", log_id.index))
                })?;
                let effects =
                    apply_batch(&mut state, &mut counters, &mut current.window, log_id.index, &batch)?;
                answers.push(effects.outcomes);
                commits.extend(effects.commits);
            }
        }
    }
    (applied.stamp_ms, applied.revision) = (counters.stamp_ms, counters.revision);
    let writes = state.into_writes();
    pass(Point::ApplyBeforeWrite)?;
    write(db, &applied, writes)?;
    pass(Point::ApplyAfterWrite)?;
    current.applied = applied;
    Ok((answers, commits))
}

/// Refuses entries that do not follow the state: one that was passed over would be missing on this replica for good,
/// without anybody noticing.
pub(crate) fn check_contiguous(applied: &Applied, entries: &[Entry<TypeConfig>]) -> Result<(), StoreError> {
    let mut last = applied.last_log_id.map(|id| id.index);
    for index in entries.iter().map(|entry| entry.log_id.index) {
        if last.is_some_and(|last| last + 1 != index) {
            let last = last.unwrap_or_default();
            return Err(StoreError::DataDirectory(format!(
                "log entry {index} was to be applied after {last}: the log has a gap"
            )));
        }
        last = Some(index);
    }
    Ok(())
}

/// Data and applied record in one batch.
fn write(
    db: &Db,
    applied: &Applied,
    writes: impl IntoIterator<Item = (Vec<u8>, Option<Vec<u8>>)>,
) -> Result<(), StoreError> {
    let data = db.sm_data()?;
    let mut batch = WriteBatch::default();
    for (key, write) in writes {
        let key = stored_key(applied.generation, &key);
        match write {
            Some(value) => batch.put_cf(&data, key, value),
            None => batch.delete_cf(&data, key),
        }
    }
    batch.put_cf(&db.sm_meta()?, meta_key::APPLIED, applied.encode_to_vec());
    Ok(db.write(batch, false)?)
}

impl Shared {
    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_counters(&self, applied: &Applied) {
        *self.counters.lock().unwrap_or_else(PoisonError::into_inner) = counters(applied);
    }

    /// Tells watchers and waiting readers, in this order.
    fn announce(&self, applied: &Applied, commits: Vec<Commit>) {
        self.set_counters(applied);
        self.hub.publish(commits);
        self.progress.removed(&applied.removed_ids);
        self.progress.applied(applied.last_log_id.map(|id| id.index));
    }

    fn apply(&self, entries: Vec<Entry<TypeConfig>>) -> Result<Vec<Outcomes>, StoreError> {
        let started = Instant::now();
        let mut current = self.current();
        if self.gapless.load(Ordering::Relaxed) {
            check_contiguous(&current.applied, &entries)?;
        }
        let (answers, commits) = apply_entries(&self.db, &mut current, entries)?;
        self.announce(&current.applied, commits);
        metrics::applied(started.elapsed(), answers.len(), current.window.len());
        Ok(answers)
    }

    fn build_snapshot(&self) -> Result<Snapshot<TypeConfig>, StoreError> {
        let started = Instant::now();
        let state = StateSnapshot::take(&self.db)?;
        let file = SnapshotFile::build(&self.snapshots, &state)?;
        file.delete_older(&self.snapshots)?;
        log_store::release_purged(&self.db)?;
        let snapshot = describe(state.applied(), file);
        metrics::snapshot_built(started.elapsed());
        Ok(snapshot)
    }

    /// Checks the whole file, takes its rows over under the next generation, and switches to it by one synced
    /// write. The file becomes the current snapshot only then: a snapshot is never ahead of the state.
    fn install(&self, file: &SnapshotFile) -> Result<(), StoreError> {
        let mut current = self.current();
        let generation = current.applied.generation.wrapping_add(1);
        drop_other_generations(&self.db, current.applied.generation)?;
        let applied = load_rows(&self.db, &self.snapshots, file, generation, |_| true)?;
        let applied = Applied { generation, ..applied };
        let mut batch = WriteBatch::default();
        batch.put_cf(&self.db.sm_meta()?, meta_key::APPLIED, applied.encode_to_vec());
        self.db.write(batch, true)?;
        pass(Point::InstallAfterSwitch)?;

        current.window = IdWindow::default();
        *current = load(&self.db)?;
        drop_other_generations(&self.db, generation)?;
        let path = self.snapshots.join(format!("{}.snap", snapshot_file::snapshot_id(&current.applied)));
        durable::publish(&file.path, &path)?;
        pass(Point::InstallAfterKeep)?;
        SnapshotFile::at(path).delete_older(&self.snapshots)?;
        self.set_counters(&current.applied);
        self.hub.reset(current.applied.revision);
        self.progress.removed(&current.applied.removed_ids);
        self.progress.applied(current.applied.last_log_id.map(|id| id.index));
        Ok(())
    }
}

fn describe(applied: &Applied, file: SnapshotFile) -> Snapshot<TypeConfig> {
    let meta = peer::SnapshotMeta {
        last_log_id: applied.last_log_id,
        membership_log_id: applied.membership_log_id,
        membership: applied.membership.clone(),
        snapshot_id: snapshot_file::snapshot_id(applied),
    };
    Snapshot { meta: convert::snapshot_meta(&meta), snapshot: Box::new(file) }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotBuilder = Self;

    async fn applied_state(
        &mut self,
    ) -> Result<(Option<LogId<u64>>, StoredMembership<u64, PeerNode>), StorageError<u64>> {
        let current = self.0.current();
        let applied = &current.applied;
        let membership =
            convert::stored_membership(applied.membership_log_id.as_ref(), applied.membership.as_ref());
        Ok((applied.last_log_id.as_ref().map(convert::log_id), membership))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Outcomes>, StorageError<u64>>
    where
        I: IntoIterator<Item = Entry<TypeConfig>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<_> = entries.into_iter().collect();
        self.blocking("applying the log", move |shared| shared.apply(entries)).await
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<SnapshotFile>, StorageError<u64>> {
        Ok(Box::new(SnapshotFile::temporary(self.temporary_path("received"))))
    }

    async fn install_snapshot(
        &mut self,
        _meta: &SnapshotMeta<u64, PeerNode>,
        snapshot: Box<SnapshotFile>,
    ) -> Result<(), StorageError<u64>> {
        self.blocking("installing a snapshot", move |shared| shared.install(&snapshot)).await
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<TypeConfig>>, StorageError<u64>> {
        self.blocking("reading the snapshot", |shared| {
            let newest = snapshot_file::newest(&shared.snapshots)?;
            newest.map(|file| Ok(describe(&file.applied()?, file))).transpose()
        })
        .await
    }
}

impl RaftSnapshotBuilder<TypeConfig> for StateMachine {
    async fn build_snapshot(&mut self) -> Result<Snapshot<TypeConfig>, StorageError<u64>> {
        self.blocking("taking a snapshot", |shared| shared.build_snapshot()).await
    }
}

#[cfg(test)]
mod tests;
