//! The interface of a transaction, as domain code sees the store: typed rows in one ordered key space.
//!
//! A row lives in a [`Table`] under a typed [`Key`]; every row carries the revision of the commit that wrote it
//! last, and may carry the time at which it ends. [`Read`] and [`Transaction`] are implemented by the replicated
//! store and by [`memory::MemoryStore`], which is for tests. Nothing here knows of Raft, disks or networks, and
//! nothing here reads a clock: the time is [`Read::now`].

pub mod key;
pub mod memory;
mod typed;

pub use key::{Key, KeyReader, KeyWriter, Table};
pub use typed::{ReadExt, Row, Rows, TransactionExt, Versioned};

/// Most records of a log that one transaction forgets.
pub const MAX_TRIM: u64 = 1000;

/// Milliseconds since the Unix epoch.
pub type UnixMillis = u64;

/// Why a read inside a transaction failed. Neither is the caller's fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TxError {
    /// A stored key or row does not decode.
    Corrupt {
        /// Name of the table.
        table: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The storage below failed.
    Storage(String),
}

impl std::fmt::Display for TxError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Corrupt { table, reason } => write!(f, "corrupt row in table {table}: {reason}"),
            Self::Storage(reason) => write!(f, "storage failed: {reason}"),
        }
    }
}

impl std::error::Error for TxError {}

/// A stored row, undecoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawRow {
    /// Revision of the commit that wrote it; 0 for a write of this same transaction.
    pub revision: u64,
    /// The encoded row.
    pub value: Vec<u8>,
}

/// A half-open range of encoded keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRange {
    /// First key.
    pub start: Vec<u8>,
    /// End, exclusive.
    pub end: Vec<u8>,
}

impl KeyRange {
    /// All keys that begin with `prefix`, which must not be empty nor all `0xff`.
    pub fn prefix(prefix: &[u8]) -> Self {
        let mut end = prefix.to_vec();
        while let Some(last) = end.pop() {
            if last < u8::MAX {
                end.push(last + 1);
                break;
            }
        }
        Self { start: prefix.to_vec(), end }
    }

    /// All keys of a table.
    pub fn table(table: Table) -> Self {
        Self::prefix(&KeyWriter::table(table).finish())
    }

    /// Whether the range holds no key.
    pub fn is_empty(&self) -> bool {
        self.start >= self.end
    }

    /// Whether `key` lies in the range.
    pub fn contains(&self, key: &[u8]) -> bool {
        self.start.as_slice() <= key && key < self.end.as_slice()
    }
}

/// A record of an append-only log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRecord {
    /// Place in the log, from 1, without gaps.
    pub index: u64,
    /// Time of the commit.
    pub time: UnixMillis,
    /// SHA-256 chain: over the hash before, the index, the time and the record.
    pub hash: [u8; 32],
    /// The record.
    pub record: Vec<u8>,
}

/// Which records of a log there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogBounds {
    /// Index of the oldest record that is kept; `last + 1` when there is none.
    pub first: u64,
    /// Index of the newest record; 0 when there never was one.
    pub last: u64,
    /// Hash of the record before `first`; zeros when that is 1.
    pub anchor: [u8; 32],
    /// Hash of the newest record; zeros when there never was one.
    pub head: [u8; 32],
}

impl Default for LogBounds {
    fn default() -> Self {
        Self { first: 1, last: 0, anchor: [0; 32], head: [0; 32] }
    }
}

/// A consistent view of the store. Expired rows are not in it.
pub trait Read {
    /// The time of this view.
    fn now(&self) -> UnixMillis;

    /// The row under a key.
    fn get_raw(&mut self, key: &[u8]) -> Result<Option<RawRow>, TxError>;

    /// The first `limit` rows of a range, in key order.
    fn scan_raw(&mut self, range: &KeyRange, limit: usize) -> Result<Vec<(Vec<u8>, RawRow)>, TxError>;

    /// The first `limit` records of a log from index `from` on.
    fn log_records(&mut self, log: &str, from: u64, limit: usize) -> Result<Vec<LogRecord>, TxError>;

    /// Which records of a log there are.
    fn log_bounds(&mut self, log: &str) -> Result<LogBounds, TxError>;
}

/// A transaction: a view that remembers what was read, and buffers what is written. It sees its own writes.
pub trait Transaction: Read {
    /// Writes a row; from `expires_at` on it is not there any more.
    fn put_raw(&mut self, key: Vec<u8>, value: Vec<u8>, expires_at: Option<UnixMillis>);

    /// Deletes a row; deleting one that is not there does nothing.
    fn delete_raw(&mut self, key: Vec<u8>);

    /// Adds a record to a named append-only log. The index is given when the transaction commits.
    fn append(&mut self, log: &'static str, record: Vec<u8>);

    /// Forgets the oldest records of a log, those before an index: at most [`MAX_TRIM`] in one transaction.
    fn trim(&mut self, log: &'static str, before: u64);
}
