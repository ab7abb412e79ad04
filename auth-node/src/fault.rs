//! Why a node cannot be made, cannot start, or cannot go on. Its text is for the operator at the terminal.

use std::path::PathBuf;

use auth_core::CoreError;
use mezite_daemon::{files::FileError, program::ListenError};
use mezite_pki::PkiError;
use raft_store::{StoreError, TransactError};

use crate::error::ApiError;

/// Why a node cannot be made, cannot start, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// A file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// Another process has the data directory.
    #[error("{0} is used by another auth-node process: stop that one first")]
    InUse(PathBuf),
    /// A file of the data directory does not hold what it should.
    #[error("{file} {reason}")]
    Malformed {
        /// Which file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The data directory is not in the state that the command is for. Nothing was changed.
    #[error("{0}")]
    Refused(String),
    /// The data directory holds a node of a cluster already. Nothing was changed.
    #[error(
        "{data_dir} holds node {node_id} of cluster {cluster_id} already, and nothing was changed: start it with `auth-node run`, \
         or choose another data_dir"
    )]
    Member {
        /// Id of the node.
        node_id: u64,
        /// Id of the cluster.
        cluster_id: String,
        /// Its data directory.
        data_dir: PathBuf,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The domain refused what is in the command or the configuration.
    #[error(transparent)]
    Core(#[from] CoreError),
    /// A key or certificate cannot be made or used.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// TLS cannot be set up.
    #[error("TLS cannot be set up: {0}")]
    Tls(String),
    /// An address cannot be listened on.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// What the cluster answered to a join cannot be used.
    #[error("the cluster's answer cannot be used: {0}")]
    Answer(String),
    /// No member that was asked let the node join; what each said.
    #[error(
        "{0}; `mezctl cluster token` prints the command with the token, --ca-pin and --peer that are to be given"
    )]
    NotJoined(String),
    /// The node was removed from its cluster; its process ends.
    #[error(
        "node {node_id} was removed from cluster {cluster_id}, and its id never returns: nothing is left to do with \
         {data_dir}. To take part again, empty it and join as a new node, with a token of `mezctl cluster token`"
    )]
    Removed {
        /// Id of the node.
        node_id: u64,
        /// Id of the cluster.
        cluster_id: String,
        /// Its data directory.
        data_dir: PathBuf,
    },
    /// The node cannot go on.
    #[error("the node has failed: {0}")]
    Failed(String),
}

impl From<TransactError<CoreError>> for NodeError {
    fn from(error: TransactError<CoreError>) -> Self {
        match error {
            TransactError::Refused(refusal) => Self::Core(refusal),
            TransactError::Store(error) => Self::Store(error),
        }
    }
}

impl From<ApiError> for NodeError {
    fn from(error: ApiError) -> Self {
        match error {
            ApiError::Core(error) => Self::Core(error),
            ApiError::Store(error) => Self::Store(error),
            other => Self::Failed(other.to_string()),
        }
    }
}
