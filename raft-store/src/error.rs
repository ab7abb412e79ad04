//! What can go wrong, told so that a caller knows whether the write may have happened.

use std::io;

/// What to do about damaged data.
const DAMAGED: &str = ": the data of this node is damaged; move its data directory away and join the node again as a new \
                       member, or, if it was the only one, restore a backup";

/// A failure of the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No leader, no quorum, or the node cannot confirm that it is current. Nothing was written; try again.
    #[error("the cluster cannot serve this now: {0}")]
    Unavailable(&'static str),
    /// Too much is waiting already. Nothing was written; try again later.
    #[error("too many requests are waiting")]
    Overloaded,
    /// The write may or may not have been applied: the answer was lost.
    #[error("the outcome is unknown: the write may have been applied")]
    OutcomeUnknown,
    /// Other transactions kept changing what this one reads. Nothing was written.
    #[error("gave up after {0} conflicts with other transactions")]
    Contended(u32),
    /// The transaction is over a bound.
    #[error("the transaction is too large: {0}")]
    TooLarge(&'static str),
    /// The database is over its bound. Nothing was written; delete before writing more.
    #[error(
        "the database holds {size} bytes and may hold {limit}: delete what is not needed, or raise the bound"
    )]
    DatabaseFull {
        /// Bytes on disk.
        size: u64,
        /// The bound.
        limit: u64,
    },
    /// A read failed: the data is damaged, or the disk is.
    #[error(transparent)]
    Read(#[from] store_txn::TxError),
    /// The store is stopped, its Raft core has died, or the node was removed. Nothing was written: what stops in the
    /// middle of a write is [`StoreError::OutcomeUnknown`].
    #[error("the store has stopped: {0}")]
    Stopped(String),
    /// The data directory cannot be used.
    #[error("{0}")]
    DataDirectory(String),
    /// The configuration cannot be used.
    #[error("configuration: {0}")]
    Config(String),
    /// TLS material cannot be used.
    #[error("peer identity: {0}")]
    Identity(String),
    /// A file or socket failed.
    #[error("{context}: {cause}")]
    Io {
        /// What was tried.
        context: String,
        /// Why it failed.
        cause: io::Error,
    },
}

impl StoreError {
    pub(crate) fn io(context: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let context = context.into();
        move |cause| Self::Io { context, cause }
    }

    /// Whether nothing was written, for certain, and trying again is worthwhile.
    pub fn is_retriable(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Overloaded | Self::Contended(_))
    }
}

impl From<rocksdb::Error> for StoreError {
    fn from(error: rocksdb::Error) -> Self {
        let advice = match error.kind() {
            rocksdb::ErrorKind::Corruption => DAMAGED,
            _ => "",
        };
        Self::Read(store_txn::TxError::Storage(format!("{error}{advice}")))
    }
}

/// Why a transaction or read answered no value.
#[derive(Debug, thiserror::Error)]
pub enum TransactError<E> {
    /// The closure refused. Nothing was written; the refusal was made on a current view.
    #[error(transparent)]
    Refused(E),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}
