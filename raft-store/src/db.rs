//! The one RocksDB of a node: its column families, keys and options.
//!
//! `raft_log` holds log entries and `raft_meta` the vote, the commit point and the purge point; `sm_data` holds the
//! replicated state and `sm_meta` one record that says what has been applied. All share one write-ahead log, so
//! what was written before a synced write is durable with it.
//!
//! Keys of `sm_data` are `generation (u32) | space (u8) | key`. A snapshot is installed under a new generation,
//! and one write of `sm_meta` switches to it.

use std::path::Path;

use rocksdb::{
    BlockBasedOptions, BoundColumnFamily, Cache, ColumnFamilyDescriptor, DBCompressionType, DBRecoveryMode,
    Options, WriteBatch, WriteOptions,
};

use crate::error::StoreError;

pub(crate) type Rocks = rocksdb::DBWithThreadMode<rocksdb::MultiThreaded>;

/// Version of everything in the data directory. A newer one is refused.
pub(crate) const FORMAT_VERSION: u32 = 1;

const RAFT_META: &str = "raft_meta";
const RAFT_LOG: &str = "raft_log";
const SM_META: &str = "sm_meta";
const SM_DATA: &str = "sm_data";

/// Keys of `raft_meta`.
pub(crate) mod meta_key {
    pub(crate) const FORMAT: &[u8] = b"format";
    pub(crate) const OWNER: &[u8] = b"owner";
    pub(crate) const VOTE: &[u8] = b"vote";
    pub(crate) const COMMITTED: &[u8] = b"committed";
    pub(crate) const PURGED: &[u8] = b"purged";
    /// The one key of `sm_meta`.
    pub(crate) const APPLIED: &[u8] = b"applied";
}

/// The database of a node.
pub(crate) struct Db {
    rocks: Rocks,
}

impl Db {
    /// Opens or creates the database.
    ///
    /// A torn tail of the write-ahead log is dropped: nothing in it was acknowledged. Damage before the tail is an
    /// error, because what it hid may have been acknowledged.
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        let families = [RAFT_META, RAFT_LOG, SM_META, SM_DATA]
            .map(|name| ColumnFamilyDescriptor::new(name, family_options(name)));
        let rocks = Rocks::open_cf_descriptors(&database_options(), path, families).map_err(|error| {
            StoreError::DataDirectory(format!(
                "cannot open the database in {}: {error}. If it is damaged, move the data directory away and join \
                 the node again as a new member; do not delete single files",
                path.display()
            ))
        })?;
        Ok(Self { rocks })
    }

    pub(crate) fn rocks(&self) -> &Rocks {
        &self.rocks
    }

    pub(crate) fn raft_meta(&self) -> Result<Family<'_>, StoreError> {
        self.family(RAFT_META)
    }

    pub(crate) fn raft_log(&self) -> Result<Family<'_>, StoreError> {
        self.family(RAFT_LOG)
    }

    pub(crate) fn sm_meta(&self) -> Result<Family<'_>, StoreError> {
        self.family(SM_META)
    }

    pub(crate) fn sm_data(&self) -> Result<Family<'_>, StoreError> {
        self.family(SM_DATA)
    }

    fn family(&self, name: &'static str) -> Result<Family<'_>, StoreError> {
        let missing = || StoreError::DataDirectory(format!("the database has no column family {name}"));
        self.rocks.cf_handle(name).ok_or_else(missing)
    }

    /// Writes a batch; when `sync`, it and all that was written before is on disk at return.
    pub(crate) fn write(&self, batch: WriteBatch, sync: bool) -> Result<(), rocksdb::Error> {
        let mut options = WriteOptions::default();
        options.set_sync(sync);
        self.rocks.write_opt(batch, &options)
    }

    /// Bytes in table files and memory tables.
    pub(crate) fn size(&self) -> u64 {
        let property = |family: Result<Family<'_>, StoreError>, name: &str| {
            let family = family.ok()?;
            self.rocks.property_int_value_cf(&family, name).ok().flatten()
        };
        let of = |family: fn(&Self) -> Result<Family<'_>, StoreError>| {
            property(family(self), "rocksdb.total-sst-files-size").unwrap_or_default()
                + property(family(self), "rocksdb.cur-size-all-mem-tables").unwrap_or_default()
        };
        of(Self::raft_meta) + of(Self::raft_log) + of(Self::sm_meta) + of(Self::sm_data)
    }
}

pub(crate) type Family<'a> = std::sync::Arc<BoundColumnFamily<'a>>;

fn database_options() -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
    options.set_paranoid_checks(true);
    // Column families that are rarely written would otherwise keep old write-ahead logs alive for ever.
    options.set_max_total_wal_size(256 << 20);
    options.set_max_background_jobs(2);
    options.set_bytes_per_sync(1 << 20);
    options.set_keep_log_file_num(4);
    options.set_max_log_file_size(4 << 20);
    options
}

fn family_options(name: &str) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&Cache::new_lru_cache(64 << 20));
    table.set_bloom_filter(10.0, false);
    table.set_format_version(5);
    let mut options = Options::default();
    options.set_block_based_table_factory(&table);
    options.set_write_buffer_size(if name == SM_DATA || name == RAFT_LOG { 64 << 20 } else { 4 << 20 });
    options.set_compression_type(DBCompressionType::Lz4);
    options
}

/// The parts of `sm_data`. Numbers are stored; never used for something else again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Space {
    /// Rows: `key` -> `revision (u64) | expires_at_ms (u64) | value`.
    Rows = 1,
    /// Index of rows that end: `expires_at_ms (u64) | key` -> nothing.
    Expiry = 2,
    /// Append-only logs: `name | 0x00 | index (u64)` -> `time_ms (u64) | hash (32) | record`.
    Logs = 3,
    /// Heads of the logs: `name` -> `last index (u64) | hash (32)`.
    LogHeads = 4,
    /// Ids of transactions that were applied: `log index (u64)` -> see [`crate::ids`].
    AppliedIds = 5,
}

/// A key of `sm_data` within a generation.
pub(crate) fn state_key(space: Space, key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(key.len() + 1);
    out.push(space as u8);
    out.extend(key);
    out
}

/// A key of `sm_data` as it is stored.
pub(crate) fn stored_key(generation: u32, state_key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(state_key.len() + 4);
    out.extend(generation.to_be_bytes());
    out.extend(state_key);
    out
}
