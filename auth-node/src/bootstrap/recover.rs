//! `auth-node recover`: makes a new cluster from the one node that is left of another.
//!
//! The node's state, with all that is in its log, becomes a backup; what the node was is set aside, whole, in a folder
//! of the data directory; and the new cluster is made from the backup. A recovery that was interrupted is run again and
//! goes on. Before the state file says that it has begun, nothing of the node has changed.

use std::{
    fs::{self, File},
    path::Path,
};

use mezite_daemon::files::{self, PRIVATE, PUBLIC, create_private_dir, failed, write_atomic};

use super::{
    init,
    succession::{self, Succeeded, blocking, digest_of},
};
use crate::{
    config::Config,
    fault::NodeError,
    node::{Folder, NodeState, PEER_CA, PEER_CERTIFICATE, PEER_KEY, Progress, STATE, STORE, load_kek},
};

/// The state that the new cluster begins with, in the folder that is set aside.
const BACKUP: &str = "state.backup";

/// Makes a new cluster from this node's state, in place. Writes that were acknowledged and never reached this node are
/// lost; those that did are all there. The other nodes of the old cluster must never run again: they would go on as the
/// old one.
///
/// # Errors
/// [`NodeError::Refused`] when there is no node in the data directory, its key-encryption key is not its cluster's, or
/// it is the only voter of its cluster, as after a recovery.
/// Anything else may be tried again.
pub async fn recover(config: &Config) -> Result<Succeeded, NodeError> {
    if !config.data_dir.is_dir() {
        return Err(NodeError::Refused(format!("there is no node in {}", config.data_dir.display())));
    }
    let kek = load_kek(&config.kek_path())?;
    let folder = Folder::open(&config.data_dir)?;
    let state = match folder.load()? {
        Some(state) if state.progress == Progress::Recovering => state,
        _ => prepare(&folder, folder.member()?).await?,
    };
    let aside = folder.file(&state.aside);
    set_aside(&folder, &aside)?;
    let backup = aside.join(BACKUP);
    if digest_of(&backup).await? != state.backup_sha256 {
        let reason = format!("is not what was taken: put {} back, and begin again", aside.display());
        return Err(NodeError::Malformed { file: backup, reason });
    }
    succession::carry_out(config, &folder, state, &backup, &kek).await
}

/// Takes the backup and keeps copies of the node's files. Then the recovery has begun.
async fn prepare(folder: &Folder, old: NodeState) -> Result<NodeState, NodeError> {
    // Of a recovery before this one, which ended before it could.
    init::forget_init(folder)?;
    let name = format!("before-recovery-{}", old.cluster_id);
    let aside = folder.file(&name);
    // The backup in it holds password hashes.
    create_private_dir(&aside)?;
    let backup = aside.join(BACKUP);
    // Of a run that did not come to the state file.
    files::remove(&backup)?;
    let (store, out) = (folder.store_dir(), backup.clone());
    let exported = blocking(move || raft_store::export(&store, &out)).await??;
    if exported.only_voter {
        files::remove(&backup)?;
        // Nothing else is in it, unless an earlier recovery left something.
        let _ = fs::remove_dir(&aside);
        return Err(NodeError::Refused(
            "there is nothing to recover: this node is the only voter of its cluster, so start it with `auth-node run`; \
             a recovery that was begun is finished"
                .into(),
        ));
    }
    tracing::info!(
        revision = exported.revision,
        replayed = exported.replayed,
        "the node's state was taken, with what was in its log alone"
    );
    for (file, mode) in [(STATE, PUBLIC), (PEER_KEY, PRIVATE), (PEER_CERTIFICATE, PUBLIC), (PEER_CA, PUBLIC)]
    {
        let bytes = fs::read(folder.file(file)).map_err(failed(&folder.file(file)))?;
        write_atomic(&aside.join(file), &bytes, mode)?;
    }
    sync(&folder.file(""))?;
    let state = NodeState::recovering(init::uuid(), hex::encode(exported.sha256), name);
    folder.save(&state)?;
    Ok(state)
}

/// Moves the old database away, unless that was done. The old key goes before it: as long as the old database is in its
/// place, so is nothing new.
fn set_aside(folder: &Folder, aside: &Path) -> Result<(), NodeError> {
    let (from, to) = (folder.store_dir(), aside.join(STORE));
    if !to.exists() {
        for file in [PEER_KEY, PEER_CERTIFICATE, PEER_CA] {
            folder.remove(file)?;
        }
        fs::rename(&from, &to).map_err(failed(&from))?;
    }
    // Also of a run that ended between the two: before anything new takes its place.
    sync(aside)?;
    create_private_dir(&from)?;
    sync(&folder.file(""))
}

fn sync(dir: &Path) -> Result<(), NodeError> {
    Ok(File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed(dir))?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn what_is_set_aside_is_whole_and_its_place_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        let aside = dir.path().join("aside");
        create_private_dir(&aside).unwrap();
        fs::create_dir(folder.database()).unwrap();
        for file in [PEER_KEY, PEER_CERTIFICATE, PEER_CA] {
            fs::write(folder.file(file), "old").unwrap();
        }
        // The second time is that of a run that goes on, with what is new.
        for _ in 0..2 {
            set_aside(&folder, &aside).unwrap();
            assert!(aside.join(STORE).join("db").exists() && !folder.database().exists());
            let mode = fs::metadata(folder.store_dir()).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o700, "rows hold password hashes");
        }
        let key = folder.file(PEER_KEY);
        assert!(!key.exists());
        fs::write(&key, "new").unwrap();
        set_aside(&folder, &aside).unwrap();
        assert_eq!(fs::read_to_string(&key).unwrap(), "new");
    }
}
