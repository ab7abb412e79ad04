//! How far the node is, for those who wait and those who ask.

use std::time::Duration;

use tokio::sync::watch;

use crate::error::StoreError;

/// The index that is applied here; others wait for it to rise.
#[derive(Clone)]
pub(crate) struct Progress(watch::Sender<Option<u64>>);

impl Progress {
    pub(crate) fn new() -> Self {
        Self(watch::channel(None).0)
    }

    pub(crate) fn applied(&self, index: Option<u64>) {
        self.0.send_if_modified(|current| {
            let rises = index > *current;
            if rises {
                *current = index;
            }
            rises
        });
    }

    pub(crate) fn current(&self) -> Option<u64> {
        *self.0.borrow()
    }

    /// Waits until `index` is applied here.
    pub(crate) async fn wait_for(&self, index: u64, timeout: Duration) -> Result<(), StoreError> {
        let mut receiver = self.0.subscribe();
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
    /// Whether the database is over its bound: only what deletes is still taken through this node.
    pub database_full: bool,
    /// Revision of the state.
    pub revision: u64,
    /// Members, ascending by id.
    pub members: Vec<MemberStatus>,
}
