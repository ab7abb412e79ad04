//! `auth-node restore`: makes the first node of a new cluster from a backup.
//!
//! A restore that was interrupted is run again with the same backup, and goes on.

use std::path::PathBuf;

use super::{
    init,
    succession::{self, Succeeded, digest_of},
};
use crate::{
    config::Config,
    fault::NodeError,
    node::{Folder, NodeState, Progress, load_kek},
};

/// What to restore.
#[derive(Debug, Clone)]
pub struct Restore {
    /// The backup.
    pub backup: PathBuf,
    /// File of the key-encryption key of the cluster that the backup is of; `None`: it is where the configuration says.
    pub kek_file: Option<PathBuf>,
}

/// Makes the first node of a new cluster from a backup, and the cluster.
///
/// # Errors
/// [`NodeError::Refused`] when there is a node in the data directory: it is left as it is; or when the key-encryption
/// key is not the one of the backup. Anything else may be tried again.
pub async fn restore(config: &Config, from: Restore) -> Result<Succeeded, NodeError> {
    let kek = from.kek_file.clone().unwrap_or_else(|| config.kek_path());
    if !kek.exists() {
        return Err(NodeError::Refused(format!(
            "there is no key-encryption key in {}: a backup holds CA keys that are sealed under it, so name the kek file \
             of a node of the old cluster with --kek-file",
            kek.display()
        )));
    }
    let kek = load_kek(&kek)?;
    let sha256 = digest_of(&from.backup).await?;
    let folder = Folder::open(&config.data_dir)?;
    let state = begin(&folder, config, sha256)?;
    succession::carry_out(config, &folder, state, &from.backup, &kek).await
}

/// Begins, or goes on with what was interrupted.
fn begin(folder: &Folder, config: &Config, sha256: String) -> Result<NodeState, NodeError> {
    let place = config.data_dir.display();
    match folder.load()? {
        Some(state) if state.progress == Progress::Restoring && state.backup_sha256 == sha256 => Ok(state),
        // Nothing is in place of the one that was tried before.
        Some(mut state) if state.progress == Progress::Restoring && !folder.database().exists() => {
            state.backup_sha256 = sha256;
            folder.save(&state)?;
            Ok(state)
        }
        Some(state) if state.progress == Progress::Restoring => Err(NodeError::Refused(format!(
            "a restore of another backup (SHA-256 {}) was interrupted in {place}: run it again with that one, or \
             choose another data_dir",
            state.backup_sha256
        ))),
        Some(state) if state.progress == Progress::Member => {
            init::forget_init(folder)?;
            Err(NodeError::Member {
                node_id: state.node_id,
                cluster_id: state.cluster_id,
                data_dir: config.data_dir.clone(),
            })
        }
        Some(state) => Err(NodeError::Refused(format!(
            "`auth-node {}` was interrupted in {place}: run it again, or choose another data_dir to restore into",
            state.progress.command()
        ))),
        None if folder.has_database() => Err(NodeError::Refused(format!(
            "{place} holds a database and no node.json: move the directory away, or choose another data_dir"
        ))),
        None => {
            let state = NodeState::restoring(init::uuid(), sha256);
            folder.save(&state)?;
            Ok(state)
        }
    }
}

#[cfg(test)]
mod tests {
    use mezite_daemon::config::Settings as _;

    use super::*;

    #[test]
    fn only_the_same_backup_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        let text = format!(
            "data_dir = {:?}\nadvertise = 'a.example:1'\npeer_advertise = 'a.example:2'\n",
            dir.path()
        );
        let config = Config::parse(&text, [], &[]).unwrap();
        let mut begun = begin(&folder, &config, "aa".into()).unwrap();
        assert_eq!(begin(&folder, &config, "aa".into()).unwrap(), begun);
        // One that was damaged, say, left nothing.
        let other = begin(&folder, &config, "bb".into()).unwrap();
        assert_eq!((other.cluster_id, other.backup_sha256.as_str()), (begun.cluster_id.clone(), "bb"));
        std::fs::create_dir_all(folder.database()).unwrap();
        let other = begin(&folder, &config, "aa".into()).unwrap_err().to_string();
        assert!(other.contains("another backup (SHA-256 bb)"), "{other}");
        begun.progress = Progress::Member;
        folder.save(&begun).unwrap();
        let member = begin(&folder, &config, "aa".into()).unwrap_err().to_string();
        assert!(member.contains("nothing was changed"), "{member}");
        folder.save(&NodeState::joining()).unwrap();
        let joining = begin(&folder, &config, "aa".into()).unwrap_err().to_string();
        assert!(joining.contains("auth-node join"), "{joining}");
    }
}
