//! What can be had of a stopped node's data directory: single rows and what became of the node; and the whole state, when
//! the rest of its cluster is lost.

use std::path::Path;

use mezite_proto::peer;
use store_txn::TxError;

use crate::{
    db::{self, Db, meta_key},
    durable::{self, Temporary, TemporaryFolder},
    error::StoreError,
    membership,
    owner::Owner,
    raft::{
        SnapshotFile, convert,
        log_store::{read_disk, read_meta},
        state_machine::{apply_entries, check_contiguous, load},
    },
    state::{Applied, StateSnapshot},
    transact::View,
};

/// Where the work is done; a run that was interrupted leaves it, and the next one deletes it.
const WORKING: &str = "export.tmp";
/// Log entries are applied in steps of at most this many bytes.
const STEP_BYTES: usize = 4 << 20;

/// Reads the state of a stopped node as it is on its disk, which may be behind the cluster's. Nothing is changed.
///
/// # Errors
/// When the node runs, there is no database, or it cannot be read; what `work` answers.
pub fn look<T>(
    data_dir: &Path,
    work: impl FnOnce(&mut View<'_>) -> Result<T, TxError>,
) -> Result<T, StoreError> {
    let db = read_only(data_dir)?;
    let state = StateSnapshot::take(&db)?;
    Ok(work(&mut View::new(&state, 0))?)
}

/// Whether a stopped node knows that it was removed from its cluster: it was told so while it ran.
///
/// # Errors
/// When the node runs, there is no database, or it cannot be read.
pub fn remembers_removal(data_dir: &Path) -> Result<bool, StoreError> {
    membership::remembers_removal(&read_only(data_dir)?)
}

fn read_only(data_dir: &Path) -> Result<Db, StoreError> {
    let path = data_dir.join("db");
    Db::open_read_only(&path, db::lock(&path)?)
}

/// What was exported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    /// Cluster that the directory belongs to.
    pub cluster_id: String,
    /// Node that the directory belongs to.
    pub node_id: u64,
    /// Last log index in the backup.
    pub applied_index: u64,
    /// Revision of its state.
    pub revision: u64,
    /// Log entries that were on disk and not yet part of the state.
    pub replayed: u64,
    /// Bytes of the backup.
    pub length: u64,
    /// SHA-256 of the backup.
    pub sha256: [u8; 32],
    /// Whether the node is the only voter of its cluster, so that it needs no other to serve.
    pub only_voter: bool,
}

/// Writes a backup of a stopped node's state to a new file, with every log entry that is on its disk, whether it is
/// known to be committed or not: with the rest of the cluster lost, any of them may have been acknowledged. With
/// [`crate::restore`] this makes a new cluster from one surviving node. Nothing that the node knows is changed, so it could
/// still go back to its cluster.
///
/// # Errors
/// When the node runs, the data is damaged, the file exists, or the disk fails. Then there is no file.
pub fn export(data_dir: &Path, out: &Path) -> Result<Exported, StoreError> {
    if out.exists() {
        return Err(StoreError::DataDirectory(format!("{} exists already", out.display())));
    }
    let db = Db::open_existing(&data_dir.join("db"))?;
    let owner = Owner::read(&db)?
        .ok_or_else(|| StoreError::DataDirectory("the database belongs to no node".into()))?;
    let working = TemporaryFolder::create(data_dir.join(WORKING))?;
    let copy = working.path().join("db");
    rocksdb::checkpoint::Checkpoint::new(db.rocks())?.create_checkpoint(&copy)?;
    let copy = Db::open_existing(&copy)?;
    let replayed = replay(&copy)?;

    let temporary = Temporary(out.with_extension("tmp"));
    let state = StateSnapshot::take(&copy)?;
    let written = SnapshotFile::write(&temporary.0, &state)?;
    durable::publish(&temporary.0, out)?;
    Ok(Exported {
        cluster_id: owner.cluster_id,
        node_id: owner.node_id,
        applied_index: state.applied().last_log_id.map_or(0, |id| id.index),
        revision: state.applied().revision,
        replayed,
        length: written.length,
        sha256: written.sha256,
        only_voter: only_voter(state.applied(), owner.node_id),
    })
}

fn only_voter(applied: &Applied, node_id: u64) -> bool {
    let configs = applied.membership.iter().flat_map(|membership| &membership.configs);
    let mut voters = configs.flat_map(|config| &config.node_ids).peekable();
    voters.peek().is_some() && voters.all(|voter| *voter == node_id)
}

/// Applies what is left of the log. Answers the number of entries.
fn replay(db: &Db) -> Result<u64, StoreError> {
    let mut current = load(db)?;
    let purged = read_meta::<peer::LogId>(db, meta_key::PURGED)?.map(|id| id.index);
    let applied = current.applied.last_log_id.map(|id| id.index);
    if purged > applied {
        return Err(StoreError::DataDirectory("the log was purged past the state".into()));
    }
    let first = applied.map_or(0, |index| index + 1);
    let mut next = first;
    loop {
        let (entries, _) = read_disk(db, next, u64::MAX, STEP_BYTES)?;
        if entries.is_empty() {
            return Ok(next - first);
        }
        for entry in &entries {
            if entry.log_id.index != next {
                return Err(StoreError::DataDirectory(format!("log entry {next} is missing")));
            }
            next += 1;
        }
        let last = entries.last().map(|entry| convert::from_log_id(&entry.log_id));
        check_contiguous(&current.applied, &entries)?;
        apply_entries(db, &mut current, entries)?;
        tracing::debug!(index = last.map(|id| id.index), "applied a part of the log");
    }
}
