//! The data directory: the node's peer key and certificate, and how far it has come.
//!
//! Each file is replaced whole. The state, which says what the others are good for, is written first when
//! something begins and last when it is done, so that a command that was interrupted is run again and goes
//! on. One process uses a directory at a time.

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
};

use mezite_daemon::files::{
    self, PRIVATE, PUBLIC, create_dir, create_private_dir, read_secret, read_text, try_lock, write_atomic,
};
use mezite_pki::x509::KeyPair;
use raft_store::PeerIdentity;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::fault::NodeError;

/// Marks the state file.
const KIND: &str = "mezite.auth-node";
/// Version of the state file that this program writes and reads.
const VERSION: u32 = 1;

const LOCK: &str = "lock";
pub(crate) const STATE: &str = "node.json";
pub(crate) const PEER_KEY: &str = "peer.key";
pub(crate) const PEER_CERTIFICATE: &str = "peer.crt";
pub(crate) const PEER_CA: &str = "peer-ca.crt";
/// Folder of the database.
pub(crate) const STORE: &str = "store";

/// How far a node has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Progress {
    /// `init` has begun.
    Initializing,
    /// `join` has begun: there are keys, and the token may have been used for them.
    Joining,
    /// It belongs to a cluster.
    Member,
    /// `restore` has begun.
    Restoring,
    /// `recover` has begun: what it began from is set aside, or about to be.
    Recovering,
}

impl Progress {
    /// The command that goes on from here.
    pub(crate) fn command(self) -> &'static str {
        match self {
            Self::Initializing => "init",
            Self::Joining => "join",
            Self::Member => "run",
            Self::Restoring => "restore",
            Self::Recovering => "recover",
        }
    }
}

/// What a node knows of itself beside its keys and its database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NodeState {
    kind: String,
    version: u32,
    pub(crate) progress: Progress,
    /// Empty while it joins.
    pub(crate) cluster_id: String,
    /// 0 while it joins.
    pub(crate) node_id: u64,
    /// Members that it joined through: their peer addresses by node id. Empty for the first node.
    pub(crate) members: BTreeMap<u64, String>,
    /// Whether its database was made. One that is gone since then does not come back empty: the node's votes and
    /// acknowledgements were in it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) store_made: bool,
    /// Whether it joined to stay a learner.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) learner: bool,
    /// SHA-256 of the backup that it is made from, hexadecimal; empty when it is not.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) backup_sha256: String,
    /// Folder, beside this file, with what a recovery began from; empty without one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) aside: String,
}

impl NodeState {
    /// At the beginning of `init`.
    pub(crate) fn initializing(cluster_id: String) -> Self {
        Self { progress: Progress::Initializing, cluster_id, node_id: 1, ..Self::joining() }
    }

    /// At the beginning of `restore`.
    pub(crate) fn restoring(cluster_id: String, backup_sha256: String) -> Self {
        Self { progress: Progress::Restoring, backup_sha256, ..Self::initializing(cluster_id) }
    }

    /// At the beginning of `recover`.
    pub(crate) fn recovering(cluster_id: String, backup_sha256: String, aside: String) -> Self {
        Self { progress: Progress::Recovering, aside, ..Self::restoring(cluster_id, backup_sha256) }
    }

    /// Of a node that has joined a cluster through these members.
    pub(crate) fn member(cluster_id: String, node_id: u64, members: BTreeMap<u64, String>) -> Self {
        Self { progress: Progress::Member, cluster_id, node_id, members, ..Self::joining() }
    }

    /// At the beginning of `join`.
    pub(crate) fn joining() -> Self {
        Self {
            kind: KIND.to_owned(),
            version: VERSION,
            progress: Progress::Joining,
            cluster_id: String::new(),
            node_id: 0,
            members: BTreeMap::new(),
            store_made: false,
            learner: false,
            backup_sha256: String::new(),
            aside: String::new(),
        }
    }
}

/// The data directory, locked until it is dropped.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    _lock: File,
}

impl Folder {
    /// Opens the directory; it is made if it is not there.
    ///
    /// # Errors
    /// [`NodeError::InUse`] while another process has it.
    pub(crate) fn open(path: &Path) -> Result<Self, NodeError> {
        create_dir(path)?;
        let lock = try_lock(&path.join(LOCK))?.ok_or_else(|| NodeError::InUse(path.to_owned()))?;
        // The directory itself may be the service manager's, and wider.
        create_private_dir(&path.join(STORE))?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// Path of a file in it.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Folder of the database.
    pub(crate) fn store_dir(&self) -> PathBuf {
        self.file(STORE)
    }

    /// Whether there is a database.
    pub(crate) fn has_database(&self) -> bool {
        // RocksDB has this file in every one.
        self.database().join("CURRENT").exists()
    }

    /// Refuses to start a node whose database is gone.
    ///
    /// # Errors
    /// [`NodeError::Refused`].
    pub(crate) fn check_store(&self, state: &NodeState) -> Result<(), NodeError> {
        if !state.store_made || self.has_database() {
            return Ok(());
        }
        Err(NodeError::Refused(format!(
            "the database in {} is gone. A node must not come back without what it has promised: remove node {} from \
             the cluster, and join anew with another data_dir",
            self.store_dir().display(),
            state.node_id
        )))
    }

    /// Remembers that the database was made.
    pub(crate) fn store_was_made(&self, state: &mut NodeState) -> Result<(), NodeError> {
        if state.store_made {
            return Ok(());
        }
        state.store_made = true;
        self.save(state)
    }

    /// The database in it; not there before the node has one.
    pub(crate) fn database(&self) -> PathBuf {
        self.store_dir().join("db")
    }

    /// How far the node has come; `None` when it has not begun.
    pub(crate) fn load(&self) -> Result<Option<NodeState>, NodeError> {
        let path = self.file(STATE);
        let Some(text) = read_text(&path)? else { return Ok(None) };
        let bad = |reason: String| NodeError::Malformed { file: path.clone(), reason };
        let state: NodeState =
            serde_json::from_str(&text).map_err(|error| bad(format!("is damaged: {error}")))?;
        if state.kind != KIND || state.version != VERSION {
            return Err(bad("is of another program or of a later release".to_owned()));
        }
        Ok(Some(state))
    }

    pub(crate) fn save(&self, state: &NodeState) -> Result<(), NodeError> {
        let path = self.file(STATE);
        let text = serde_json::to_string_pretty(state)
            .map_err(|error| NodeError::Malformed { file: path.clone(), reason: error.to_string() })?;
        Ok(write_atomic(&path, format!("{text}\n").as_bytes(), PUBLIC)?)
    }

    /// The secret in a file, made by `make` and kept now if there is none.
    pub(crate) fn secret(
        &self,
        name: &str,
        make: impl FnOnce() -> Result<Zeroizing<String>, NodeError>,
    ) -> Result<Zeroizing<String>, NodeError> {
        let path = self.file(name);
        if path.exists() {
            return Ok(read_secret(&path)?);
        }
        let secret = make()?;
        write_atomic(&path, secret.as_bytes(), PRIVATE)?;
        Ok(secret)
    }

    pub(crate) fn remove(&self, name: &str) -> Result<(), NodeError> {
        Ok(files::remove(&self.file(name))?)
    }

    /// The key that the node proves itself to peers with, made and kept now if there is none.
    pub(crate) fn peer_key(&self) -> Result<KeyPair, NodeError> {
        let pem = self.secret(PEER_KEY, || Ok(KeyPair::generate_p256()?.private_pem()))?;
        Ok(KeyPair::from_pem(&pem)?)
    }

    /// Keeps the certificates of the peer CA.
    pub(crate) fn keep_peer_ca(&self, pem: &str) -> Result<(), NodeError> {
        Ok(write_atomic(&self.file(PEER_CA), pem.as_bytes(), PUBLIC)?)
    }

    /// The certificates of the peer CA.
    pub(crate) fn peer_ca(&self) -> Result<String, NodeError> {
        self.text(PEER_CA)
    }

    /// Keeps the node's peer certificate.
    pub(crate) fn keep_peer_certificate(&self, pem: &str) -> Result<(), NodeError> {
        Ok(write_atomic(&self.file(PEER_CERTIFICATE), pem.as_bytes(), PUBLIC)?)
    }

    /// The node's peer certificate.
    pub(crate) fn peer_certificate(&self) -> Result<String, NodeError> {
        self.text(PEER_CERTIFICATE)
    }

    fn text(&self, name: &str) -> Result<String, NodeError> {
        let file = self.file(name);
        let text = read_text(&file)?;
        text.ok_or_else(|| NodeError::Malformed { file, reason: "is missing".to_owned() })
    }

    /// Who the node is to its peers.
    pub(crate) fn peer_identity(&self, state: &NodeState) -> Result<PeerIdentity, NodeError> {
        let key = read_secret(&self.file(PEER_KEY))?;
        let (certificate, authorities) = (self.text(PEER_CERTIFICATE)?, self.peer_ca()?);
        Ok(PeerIdentity::from_pem(&state.cluster_id, state.node_id, &certificate, &key, &authorities)?)
    }

    /// The state of a node that belongs to a cluster.
    pub(crate) fn member(&self) -> Result<NodeState, NodeError> {
        let path = self.path.display();
        let refused = |what: String| Err(NodeError::Refused(what));
        match self.load()? {
            Some(state) if state.progress == Progress::Member => Ok(state),
            Some(state) => {
                let command = state.progress.command();
                refused(format!("`auth-node {command}` was interrupted in {path}: run it again, it goes on"))
            }
            None => {
                refused(format!("there is no node in {path}: run `auth-node init` or `auth-node join` first"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    #[test]
    fn one_process_uses_a_directory_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        assert!(matches!(Folder::open(dir.path()), Err(NodeError::InUse(_))));
        drop(folder);
        Folder::open(dir.path()).unwrap();
    }

    #[test]
    fn the_state_is_pinned_and_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        assert_eq!(folder.load().unwrap(), None);
        let state = NodeState::member("c".into(), 2, [(1, "a:3026".to_owned())].into());
        folder.save(&state).unwrap();
        let text = fs::read_to_string(dir.path().join("node.json")).unwrap();
        folder.check_store(&state).unwrap();
        let golden = r#"{"kind":"mezite.auth-node","version":1,"progress":"member","cluster_id":"c","node_id":2,"members":{"1":"a:3026"}}"#;
        assert_eq!(text.split_whitespace().collect::<String>(), golden);
        assert_eq!(folder.load().unwrap(), Some(state));

        let state = NodeState::recovering("c".into(), "ab".into(), "old".into());
        folder.save(&NodeState { learner: true, ..state.clone() }).unwrap();
        let text = fs::read_to_string(dir.path().join("node.json")).unwrap();
        let golden = r#"{"kind":"mezite.auth-node","version":1,"progress":"recovering","cluster_id":"c","node_id":1,"members":{},"learner":true,"backup_sha256":"ab","aside":"old"}"#;
        assert_eq!(text.split_whitespace().collect::<String>(), golden);
    }

    #[test]
    fn a_node_whose_database_is_gone_is_refused_and_told_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        let mut state = NodeState::member("c".into(), 2, [(1, "a:3026".to_owned())].into());
        folder.save(&state).unwrap();
        // Until it has started once there is nothing to lose.
        folder.check_store(&state).unwrap();
        fs::create_dir(folder.store_dir().join("db")).unwrap();
        fs::write(folder.store_dir().join("db/CURRENT"), "MANIFEST-1").unwrap();
        folder.store_was_made(&mut state).unwrap();
        assert_eq!(folder.load().unwrap(), Some(state));
        drop(folder);

        // In whatever way it went.
        let empty = || {
            fs::remove_file(dir.path().join("store/db/CURRENT")).unwrap();
            fs::write(dir.path().join("store/db/000001.log"), "left over").unwrap();
        };
        for wipe in [&empty as &dyn Fn(), &|| fs::remove_dir_all(dir.path().join("store")).unwrap()] {
            let check = || {
                let folder = Folder::open(dir.path()).unwrap();
                folder.check_store(&folder.member().unwrap())
            };
            if dir.path().join("store/db/CURRENT").exists() {
                check().unwrap();
            }
            wipe();
            for _ in 0..2 {
                let refused = check().unwrap_err();
                assert!(matches!(refused, NodeError::Refused(_)), "{refused:?}");
                let said = refused.to_string();
                for words in ["store is gone", "remove node 2", "join anew with another data_dir"] {
                    assert!(said.contains(words), "{said}");
                }
            }
        }
    }

    #[test]
    fn that_the_database_was_made_is_pinned() {
        let state = NodeState { store_made: true, ..NodeState::member("c".into(), 2, BTreeMap::new()) };
        let golden = r#"{"kind":"mezite.auth-node","version":1,"progress":"member","cluster_id":"c","node_id":2,"members":{},"store_made":true}"#;
        assert_eq!(serde_json::to_string(&state).unwrap(), golden);
    }

    #[test]
    fn the_database_and_the_lock_are_for_their_owner_alone() {
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let dir = tempfile::tempdir().unwrap();
        let (place, store) = (dir.path().join("data"), dir.path().join("data/store"));
        drop(Folder::open(&place).unwrap());
        assert_eq!((mode(&place), mode(&store), mode(&place.join("lock"))), (0o700, 0o700, 0o600));
        // As an earlier release or an operator left them; a wider data_dir may be meant.
        for path in [&place, &store] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        drop(Folder::open(&place).unwrap());
        assert_eq!((mode(&place), mode(&store)), (0o755, 0o700));
    }

    #[test]
    fn what_is_of_another_release_or_damaged_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        folder.save(&NodeState::joining()).unwrap();
        let path = dir.path().join("node.json");
        let good = fs::read_to_string(&path).unwrap();
        for bad in
            [good.replace("1,", "2,"), good.replace("auth-node", "x"), good[..9].to_owned(), String::new()]
        {
            fs::write(&path, bad).unwrap();
            assert!(matches!(folder.load(), Err(NodeError::Malformed { .. })));
        }
    }

    #[test]
    fn a_node_that_is_not_a_member_is_told_what_to_run() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        let told = |folder: &Folder| folder.member().unwrap_err().to_string();
        assert!(told(&folder).contains("auth-node init"));
        folder.save(&NodeState::joining()).unwrap();
        assert!(told(&folder).contains("auth-node join"));
        folder.save(&NodeState::initializing("c".into())).unwrap();
        assert!(told(&folder).contains("init` was interrupted"));
    }

    #[test]
    fn keys_are_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        let first = folder.peer_key().unwrap();
        assert_eq!(folder.peer_key().unwrap().spki_der(), first.spki_der());
    }
}
