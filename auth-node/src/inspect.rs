//! `auth-node check`: looks whether a stopped node's data directory is sound. It changes nothing.

use std::fmt;

use auth_core::tables::{CaKey, CaKind};
use mezite_pki::x509::CertificateInfo;
use raft_store::CheckReport;
use serde_json::{Value, json};
use store_txn::ReadExt as _;

use crate::{
    config::Config,
    fault::NodeError,
    node::{Folder, NodeState, STORE, load_kek},
};

/// What was found in a data directory.
#[derive(Debug)]
pub struct Inspection {
    /// What the database holds, and what is wrong with it.
    pub store: CheckReport,
    /// What is wrong beside the database, a line each.
    pub problems: Vec<String>,
    /// Pin of the TLS CA, which is the `ca pin` of `mezctl login` and of ingests; as the node knows it, if it does.
    pub ca_pin: Option<String>,
    /// Pin of the peer CA, which is the `ca pin` of `auth-node join`.
    pub peer_ca_pin: Option<String>,
}

impl Inspection {
    /// Whether nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.problems.is_empty() && self.store.is_sound()
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let store = &self.store;
        let problems: Vec<_> = self.problems.iter().chain(&store.problems).collect();
        json!({
            "sound": self.is_sound(),
            "problems": problems,
            "more_problems": store.more_problems,
            "cluster_id": store.cluster_id,
            "node_id": store.node_id,
            "term": store.term,
            "voted_for": store.voted_for,
            "purged_index": store.purged_index,
            "log_entries": store.log_entries,
            "last_log_index": store.last_log_index,
            "committed_index": store.committed_index,
            "applied_index": store.applied_index,
            "revision": store.revision,
            "rows": store.rows,
            "expiring_rows": store.expiring_rows,
            "logs": store.logs,
            "log_records": store.log_records,
            "applied_ids": store.applied_ids,
            "snapshots": store.snapshots,
            "state_hash": hex::encode(store.state_hash),
            "ca_pin": self.ca_pin,
            "peer_ca_pin": self.peer_ca_pin,
        })
    }
}

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.store)?;
        let unknown = || "unknown".to_owned();
        writeln!(f, "ca pin     {}", self.ca_pin.clone().unwrap_or_else(unknown))?;
        writeln!(f, "peer pin   {}", self.peer_ca_pin.clone().unwrap_or_else(unknown))?;
        self.problems.iter().try_for_each(|problem| writeln!(f, "problem    {problem}"))?;
        writeln!(f, "{}", if self.is_sound() { "sound" } else { "NOT SOUND" })
    }
}

/// Looks at the data directory of a stopped node: the database with every row, record and hash chain, and whether the
/// files beside it fit. A restart would need all of it.
///
/// # Errors
/// When it cannot be looked at: it is not there, or a process uses it. What is wrong inside is in the inspection.
pub fn inspect(config: &Config) -> Result<Inspection, NodeError> {
    // Opening it would make it.
    let store = config.data_dir.join(STORE);
    match store.try_exists() {
        Ok(true) => {}
        Ok(false) => {
            return Err(NodeError::Refused(format!("there is no node in {}", config.data_dir.display())));
        }
        Err(error) => {
            let path = store.display();
            return Err(NodeError::Refused(format!(
                "cannot look at {path}: {error}; run this as the node's user"
            )));
        }
    }
    let folder = Folder::open(&config.data_dir)?;
    let store = raft_store::check(&folder.store_dir())?;
    let mut problems = Vec::new();
    match folder.member() {
        Ok(state) => identity(&folder, &state, &store, &mut problems),
        Err(error) => problems.push(error.to_string()),
    }
    if let Err(error) = load_kek(&config.kek_path()) {
        problems.push(error.to_string());
    }
    let ca_pin = pin(&folder, CaKind::Tls);
    Ok(Inspection { store, problems, ca_pin, peer_ca_pin: pin(&folder, CaKind::Peer) })
}

/// The pin of a CA's key that signs. A node that has just joined knows none, and what is wrong with the database has been
/// said.
fn pin(folder: &Folder, kind: CaKind) -> Option<String> {
    let read = raft_store::look(&folder.store_dir(), |view| view.get(&CaKey(kind)));
    let public = read.ok()??.row.active?.public;
    Some(CertificateInfo::from_pem(&public).ok()?.spki_pin)
}

fn identity(folder: &Folder, state: &NodeState, store: &CheckReport, problems: &mut Vec<String>) {
    let owned = (store.cluster_id.as_str(), store.node_id);
    if !store.cluster_id.is_empty() && owned != (state.cluster_id.as_str(), state.node_id) {
        problems.push(format!(
            "node.json is of node {} of cluster {}, and the database of node {} of cluster {}",
            state.node_id, state.cluster_id, store.node_id, store.cluster_id
        ));
    }
    if let Err(error) = folder.peer_identity(state) {
        problems.push(error.to_string());
    }
}
