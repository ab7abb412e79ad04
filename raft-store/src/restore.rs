//! Makes the data directory of a new cluster's first node from a backup.

use std::path::Path;

use mezite_proto::peer;
use prost::Message;
use rocksdb::WriteBatch;

use crate::{
    config::StoreConfig,
    db::{Db, Space, meta_key},
    durable::{TemporaryFolder, sync_parent},
    error::StoreError,
    failure::{Point, pass},
    owner::Owner,
    raft::{SnapshotFile, install::load_rows},
    state::{Applied, StateSnapshot, state_hash},
};

/// Where the work is done; a run that was interrupted leaves it, and the next one deletes it.
const WORKING: &str = "restore.tmp";

/// What was restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restored {
    /// Revision of the state; the new cluster goes on from there.
    pub revision: u64,
    /// Log index at which the new cluster begins.
    pub log_index: u64,
    /// SHA-256 over the whole restored state.
    pub state_hash: [u8; 32],
}

/// Makes a data directory from a backup: rows, append-only logs, time and revision are the backup's; the cluster,
/// the node and the membership, which is this node alone, are new. Ids of past transactions are left out: none of
/// the old cluster can be retried in the new one. [`crate::Store::open`] then finds a cluster of one node.
///
/// The log begins after the backup, so nodes that join get the state as a snapshot first.
///
/// # Errors
/// When the directory holds anything, the backup is damaged, or the disk fails. Then there is no database: a crash
/// at any moment leaves either none or all of it.
pub fn restore(
    config: &StoreConfig,
    cluster_id: &str,
    node_id: u64,
    backup: &Path,
) -> Result<Restored, StoreError> {
    let folder = &config.data_dir;
    std::fs::create_dir_all(folder).map_err(StoreError::io(format!("cannot create {}", folder.display())))?;
    require_empty(folder)?;
    let backup = SnapshotFile::at(backup.to_owned());
    let working = TemporaryFolder::create(folder.join(WORKING))?;
    let database = working.path().join("db");
    let db = Db::open(&database)?;
    let is_id = |key: &[u8]| key.first() == Some(&(Space::DecidedIds as u8));
    let applied = load_rows(&db, working.path(), &backup, FIRST_GENERATION, |key| !is_id(key))?;
    pass(Point::RestoreRowsWritten)?;
    let member = peer::Member {
        node_id,
        peer_address: config.advertise.clone(),
        app_address: config.app_address.clone(),
    };
    let applied = begin(applied, member);
    write_raft_state(&db, &applied, &Owner { cluster_id: cluster_id.to_owned(), node_id })?;
    let restored = describe(&db, &applied)?;
    drop(db);

    pass(Point::RestoreBeforeRename)?;
    let place = folder.join("db");
    std::fs::rename(&database, &place)
        .map_err(StoreError::io(format!("cannot move the database to {}", place.display())))?;
    pass(Point::RestoreAfterRename)?;
    sync_parent(&place)?;
    sync_parent(folder)?;
    Ok(restored)
}

const FIRST_GENERATION: u32 = 1;

fn require_empty(folder: &Path) -> Result<(), StoreError> {
    let unreadable = || StoreError::io(format!("cannot read {}", folder.display()));
    for entry in std::fs::read_dir(folder).map_err(unreadable())? {
        let name = entry.map_err(unreadable())?.file_name();
        if name != WORKING {
            return Err(StoreError::DataDirectory(format!(
                "{} is not empty ({} is in it): restore into a new directory",
                folder.display(),
                name.display()
            )));
        }
    }
    Ok(())
}

/// The backup's state as the first thing that the new cluster has agreed on: one past the old log, in a term past
/// the old ones.
fn begin(backup: Applied, member: peer::Member) -> Applied {
    let old = backup.last_log_id.unwrap_or_default();
    let first = peer::LogId { term: old.term + 1, leader_id: member.node_id, index: old.index + 1 };
    let voters = peer::VoterSet { node_ids: vec![member.node_id] };
    Applied {
        last_log_id: Some(first),
        membership_log_id: Some(first),
        membership: Some(peer::Membership { configs: vec![voters], members: vec![member] }),
        generation: FIRST_GENERATION,
        // Those who left were of another cluster.
        removed_ids: Vec::new(),
        ..backup
    }
}

/// The log is empty up to and with the entry that `applied` names.
fn write_raft_state(db: &Db, applied: &Applied, owner: &Owner) -> Result<(), StoreError> {
    let first = applied.last_log_id.unwrap_or_default();
    let vote = peer::Ballot { term: first.term, node_id: first.leader_id, committed: false };
    let meta = db.raft_meta()?;
    let mut batch = WriteBatch::default();
    owner.write(db, &mut batch)?;
    batch.put_cf(&meta, meta_key::VOTE, vote.encode_to_vec());
    batch.put_cf(&meta, meta_key::COMMITTED, first.encode_to_vec());
    batch.put_cf(&meta, meta_key::PURGED, first.encode_to_vec());
    batch.put_cf(&db.sm_meta()?, meta_key::APPLIED, applied.encode_to_vec());
    Ok(db.write(batch, true)?)
}

fn describe(db: &Db, applied: &Applied) -> Result<Restored, StoreError> {
    let state = StateSnapshot::take(db)?;
    let log_index = applied.last_log_id.map_or(0, |id| id.index);
    Ok(Restored { revision: applied.revision, log_index, state_hash: state_hash(&state)? })
}
