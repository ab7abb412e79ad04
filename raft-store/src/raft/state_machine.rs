//! The replicated state on disk: applies entries, takes and installs snapshots.
//!
//! Data, counters, membership and the applied index go into one batch. It is not synced: the log can replay it.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use mezite_proto::peer;
use openraft::{
    Entry, EntryPayload, LogId, OptionalSend, RaftSnapshotBuilder, Snapshot, SnapshotMeta, StorageError,
    StorageIOError, StoredMembership, storage::RaftStateMachine,
};
use prost::Message;
use rocksdb::WriteBatch;

use super::{Command, Outcomes, PeerNode, SnapshotFile, TypeConfig, convert, snapshot_file};
use crate::{
    apply::{Commit, Counters, Overlay, apply_batch},
    config::StoreConfig,
    db::{Db, Space, meta_key, state_key, stored_key},
    durable,
    error::StoreError,
    fatal::Fatal,
    ids::{self, IdWindow},
    metrics,
    state::{Applied, StateSnapshot, StateView},
    status::Progress,
    watch::Hub,
};

/// Rows of an installation are written in batches of about this size, in bytes.
const INSTALL_BATCH_BYTES: usize = 1 << 20;

struct Shared {
    db: Arc<Db>,
    hub: Arc<Hub>,
    progress: Progress,
    fatal: Fatal,
    snapshots: PathBuf,
    /// What is in memory of the applied state; whoever changes the state holds it.
    current: Mutex<Current>,
}

#[derive(Default)]
struct Current {
    applied: Applied,
    window: IdWindow,
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
        snapshot_file::delete_unfinished(&snapshots)
            .map_err(StoreError::io("cannot delete unfinished snapshots"))?;
        let current = load(&db)?;
        drop_other_generations(&db, current.applied.generation)?;
        hub.begin(current.applied.revision);
        progress.removed(&current.applied.removed_ids);
        progress.applied(current.applied.last_log_id.map(|id| id.index));
        let shared = Shared { db, hub, progress, fatal, snapshots, current: Mutex::new(current) };
        Ok(Self(Arc::new(shared)))
    }

    /// Time and revision of the state.
    pub(crate) fn counters(&self) -> Counters {
        counters(&self.0.current().applied)
    }

    /// Size of the newest snapshot, in bytes; 0 where there is none.
    pub(crate) fn snapshot_bytes(&self) -> u64 {
        let newest = snapshot_file::newest(&self.0.snapshots).ok().flatten();
        let size = newest.and_then(|file| std::fs::metadata(&file.path).ok());
        size.map_or(0, |size| size.len())
    }

    /// A new name for a snapshot that is being received.
    pub(crate) fn receiving_path(&self) -> PathBuf {
        self.0.snapshots.join(format!("received-{:016x}.tmp", rand::random::<u64>()))
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
fn load(db: &Db) -> Result<Current, StoreError> {
    let state = StateSnapshot::take(db)?;
    let mut window = IdWindow::default();
    let (start, end) = (state_key(Space::AppliedIds, &[]), state_key(Space::AppliedIds, &[u8::MAX; 9]));
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
    let (first, last) = (stored_key(0, &[]), stored_key(u32::MAX, &[u8::MAX]));
    let mut batch = WriteBatch::default();
    batch.delete_range_cf(&data, first, stored_key(generation, &[]));
    if let Some(next) = generation.checked_add(1) {
        batch.delete_range_cf(&data, stored_key(next, &[]), last);
    }
    Ok(db.write(batch, false)?)
}

impl Shared {
    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells watchers and waiting readers, in this order.
    fn announce(&self, applied: &Applied, commits: Vec<Commit>) {
        self.hub.publish(commits);
        self.progress.removed(&applied.removed_ids);
        self.progress.applied(applied.last_log_id.map(|id| id.index));
    }

    fn apply(&self, entries: Vec<Entry<TypeConfig>>) -> Result<Vec<Outcomes>, StoreError> {
        let started = Instant::now();
        let mut current = self.current();
        let mut applied = current.applied.clone();
        let mut counters = counters(&applied);
        let base = StateSnapshot::take(&self.db)?;
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
                        StoreError::DataDirectory(format!(
                            "log entry {} does not decode: {error}",
                            log_id.index
                        ))
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
        self.write(&applied, writes)?;
        current.applied = applied;
        self.announce(&current.applied, commits);
        metrics::applied(started.elapsed(), answers.len(), current.window.len());
        Ok(answers)
    }

    /// Data and applied record in one batch.
    fn write(
        &self,
        applied: &Applied,
        writes: impl IntoIterator<Item = (Vec<u8>, Option<Vec<u8>>)>,
    ) -> Result<(), StoreError> {
        let data = self.db.sm_data()?;
        let mut batch = WriteBatch::default();
        for (key, write) in writes {
            let key = stored_key(applied.generation, &key);
            match write {
                Some(value) => batch.put_cf(&data, key, value),
                None => batch.delete_cf(&data, key),
            }
        }
        batch.put_cf(&self.db.sm_meta()?, meta_key::APPLIED, applied.encode_to_vec());
        Ok(self.db.write(batch, false)?)
    }

    fn build_snapshot(&self) -> Result<Snapshot<TypeConfig>, StoreError> {
        let started = Instant::now();
        let state = StateSnapshot::take(&self.db)?;
        let file = SnapshotFile::build(&self.snapshots, &state)?;
        file.delete_older(&self.snapshots).map_err(StoreError::io("cannot delete old snapshots"))?;
        let snapshot = describe(state.applied(), file);
        metrics::snapshot_built(started.elapsed());
        Ok(snapshot)
    }

    /// Checks the whole file, writes its rows under the next generation, and switches to it by one synced write.
    /// The file becomes the current snapshot only then: a snapshot is never ahead of the state.
    fn install(&self, file: &SnapshotFile) -> Result<(), StoreError> {
        let applied = file.verify()?;
        let mut current = self.current();
        let generation = current.applied.generation.wrapping_add(1);
        drop_other_generations(&self.db, current.applied.generation)?;
        let data = self.db.sm_data()?;
        let mut batch = WriteBatch::default();
        file.read(|key, value| {
            batch.put_cf(&data, stored_key(generation, key), value);
            if batch.size_in_bytes() >= INSTALL_BATCH_BYTES {
                self.db.write(std::mem::take(&mut batch), false)?;
            }
            Ok(())
        })?;
        let applied = Applied { generation, ..applied };
        batch.put_cf(&self.db.sm_meta()?, meta_key::APPLIED, applied.encode_to_vec());
        self.db.write(batch, true)?;

        *current = load(&self.db)?;
        drop_other_generations(&self.db, generation)?;
        let path = self.snapshots.join(format!("{}.snap", snapshot_file::snapshot_id(&current.applied)));
        durable::publish(&file.path, &path).map_err(StoreError::io("cannot keep the snapshot"))?;
        SnapshotFile { path }
            .delete_older(&self.snapshots)
            .map_err(StoreError::io("cannot delete old snapshots"))?;
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
        Ok(Box::new(SnapshotFile { path: self.receiving_path() }))
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
