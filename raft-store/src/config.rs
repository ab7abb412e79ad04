//! Settings of a store. The embedding program reads them from wherever it likes.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use store_txn::UnixMillis;

/// Reads the wall clock; the one place where the store learns the time.
pub type Clock = Arc<dyn Fn() -> UnixMillis + Send + Sync>;

/// Settings of a store.
#[derive(Clone)]
pub struct StoreConfig {
    /// Folder that the store has for itself.
    pub data_dir: PathBuf,
    /// Where peers connect.
    pub listen: SocketAddr,
    /// host:port at which the other nodes reach `listen`.
    pub advertise: String,
    /// Data of the application that members know of each other, such as its API address.
    pub app_address: String,
    /// The wall clock.
    pub clock: Clock,
    /// Raft timing.
    pub timing: Timing,
    /// Bounds.
    pub limits: Limits,
}

/// Raft timing. `heartbeat` is well below `election_min`, which is well below the time between failures.
///
/// Voters keep to a leader until they have not heard it for `election_max`; a follower stands for election after that
/// and a random time between `election_min` and `election_max` more. So a leader that dies is replaced within about
/// twice `election_max`, and one that stalls for less than `election_max + election_min` goes on.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// A leader's heartbeat. Also how long one append or read-index round trip may take.
    pub heartbeat: Duration,
    /// A follower that hears nothing stands for election after at least this.
    pub election_min: Duration,
    /// And at most this.
    pub election_max: Duration,
    /// Default deadline of a transaction or read; at most [`Timing::MAX_DEADLINE`].
    pub deadline: Duration,
}

impl Timing {
    /// A transaction is never retried for longer. Ids of transactions are remembered longer than this.
    pub const MAX_DEADLINE: Duration = Duration::from_secs(60);
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(100),
            election_min: Duration::from_millis(300),
            election_max: Duration::from_millis(600),
            deadline: Duration::from_secs(5),
        }
    }
}

/// Bounds.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Transactions that may wait to be proposed on this node, beside those of the next batch; more are refused at once.
    pub queue: usize,
    /// Encoded size of the transactions that wait on this node or are in flight from it, in bytes; more are refused
    /// at once. At least `transaction_bytes`.
    pub queue_bytes: usize,
    /// Transactions in one log entry.
    pub batch_transactions: usize,
    /// Encoded size of one log entry, in bytes; a single larger transaction has an entry to itself.
    pub batch_bytes: usize,
    /// Log entries in flight at most. Past four nothing is gained: the disk and the network are busy.
    pub batches_in_flight: usize,
    /// Encoded size of one transaction, in bytes.
    pub transaction_bytes: usize,
    /// A snapshot is taken after so many log entries.
    pub snapshot_every: u64,
    /// Log entries that are kept although a snapshot has them, for followers that lag a little.
    pub keep_entries: u64,
    /// Committed changes that are kept in memory for watchers to resume from, in bytes.
    pub watch_history_bytes: usize,
    /// Above this size of the database on disk, in bytes, only transactions that delete are taken. 0: no bound.
    pub max_database_bytes: u64,
    /// Log entries that a learner may lack when it becomes a voter.
    pub voter_lag: u64,
    /// A peer connection without a certificate is closed after this. To join takes seconds.
    pub joiner_age: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            queue: 16_384,
            queue_bytes: 64 << 20,
            batch_transactions: 512,
            batch_bytes: 1 << 20,
            batches_in_flight: 4,
            transaction_bytes: 4 << 20,
            snapshot_every: 20_000,
            keep_entries: 5_000,
            watch_history_bytes: 8 << 20,
            max_database_bytes: 0,
            voter_lag: 100,
            joiner_age: Duration::from_secs(30),
        }
    }
}
