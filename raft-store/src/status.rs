//! How far the node is, for those who wait and those who ask.

use std::{collections::BTreeSet, time::Duration};

use tokio::sync::watch;

use crate::error::StoreError;

/// The index that is applied here, and the ids of removed nodes; others wait for them.
#[derive(Clone)]
pub(crate) struct Progress {
    applied: watch::Sender<Option<u64>>,
    removed: watch::Sender<BTreeSet<u64>>,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self { applied: watch::channel(None).0, removed: watch::channel(BTreeSet::new()).0 }
    }

    /// These nodes were removed. An id that was removed once stays so.
    pub(crate) fn removed(&self, node_ids: &[u64]) {
        self.removed.send_if_modified(|known| {
            let before = known.len();
            known.extend(node_ids);
            known.len() > before
        });
    }

    /// Whether a node was removed from the cluster.
    pub(crate) fn is_removed(&self, node_id: u64) -> bool {
        self.removed.borrow().contains(&node_id)
    }

    /// Waits until a node is removed from the cluster.
    pub(crate) async fn wait_for_removal(&self, node_id: u64) {
        // The sender is in `self`, so the wait does not fail.
        let _ = self.removed.subscribe().wait_for(|removed| removed.contains(&node_id)).await;
    }

    pub(crate) fn applied(&self, index: Option<u64>) {
        self.applied.send_if_modified(|current| {
            let rises = index > *current;
            if rises {
                *current = index;
            }
            rises
        });
    }

    pub(crate) fn current(&self) -> Option<u64> {
        *self.applied.borrow()
    }

    /// Waits until `index` is applied here.
    pub(crate) async fn wait_for(&self, index: u64, timeout: Duration) -> Result<(), StoreError> {
        let mut receiver = self.applied.subscribe();
        let reached = receiver.wait_for(|current| current.is_some_and(|current| current >= index));
        match tokio::time::timeout(timeout, reached).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(StoreError::Stopped("the state is gone".into())),
            Err(_) => Err(StoreError::Unavailable("this node lags behind the leader")),
        }
    }
}

/// A member of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberStatus {
    /// Its id.
    pub node_id: u64,
    /// host:port of its peer listener.
    pub peer_address: String,
    /// Data of the application.
    pub app_address: String,
    /// Whether it votes.
    pub voter: bool,
    /// Last index that the leader knows it to hold; `None` if this node does not lead.
    pub matched_index: Option<u64>,
}

/// The state of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// Its id.
    pub node_id: u64,
    /// The leader that it knows.
    pub leader_id: Option<u64>,
    /// Raft term.
    pub term: u64,
    /// Last index in its log.
    pub last_log_index: u64,
    /// Last index known to be committed.
    pub committed_index: u64,
    /// Last index applied.
    pub applied_index: u64,
    /// Last index in its snapshot.
    pub snapshot_index: u64,
    /// Bytes on disk and in memory tables.
    pub database_size: u64,
    /// Whether the database is over its bound: only what deletes, and what may take from the
    /// reserve, is still taken through this node.
    pub database_full: bool,
    /// Revision of the state.
    pub revision: u64,
    /// Members, ascending by id.
    pub members: Vec<MemberStatus>,
    /// Whether a change of the voters is between its two steps, as far as this node's log says: elections and commits
    /// need a quorum of the voters before it and of those after it.
    pub joint: bool,
    /// Whether the node was removed from the cluster: it serves nothing, and never will again under its id.
    pub removed: bool,
}

/// Why a node should not be sent work now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotReady {
    /// No leader is known, it is not heard any more, or as leader the node has lost its quorum.
    #[error("no leader with a quorum")]
    NoLeader,
    /// The state is behind what is committed.
    #[error("the state is {lag} log entries behind")]
    Lagging {
        /// Entries to be applied.
        lag: u64,
    },
    /// The Raft core has stopped, or does not answer.
    #[error("the Raft core is dead: {0}")]
    Dead(String),
    /// The node was removed from the cluster.
    #[error("this node was removed from the cluster")]
    Removed,
}
