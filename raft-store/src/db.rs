//! The one RocksDB of a node: its column families, keys and options.
//!
//! `raft_log` holds log entries and `raft_meta` the vote, the commit point and the purge point; `sm_data` holds the
//! replicated state and `sm_meta` one record that says what has been applied. All share one write-ahead log, so
//! what was written before a synced write is durable with it.
//!
//! Keys of `sm_data` are `generation (u32) | space (u8) | key`. A snapshot is installed under a new generation,
//! and one write of `sm_meta` switches to it.

use std::{
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
};

use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, BottommostLevelCompaction, BoundColumnFamily, Cache,
    ColumnFamilyDescriptor, CompactOptions, DBCompressionType, DBRecoveryMode, ErrorKind,
    IngestExternalFileOptions, Options, WriteBatch, WriteOptions,
};
use tokio::sync::watch;

use crate::{durable, error::StoreError};

pub(crate) type Rocks = rocksdb::DBWithThreadMode<rocksdb::MultiThreaded>;

/// Version of everything in the data directory. A newer one is refused.
pub(crate) const FORMAT_VERSION: u32 = 1;

const RAFT_META: &str = "raft_meta";
const RAFT_LOG: &str = "raft_log";
const SM_META: &str = "sm_meta";
const SM_DATA: &str = "sm_data";
const FAMILIES: [&str; 4] = [RAFT_META, RAFT_LOG, SM_META, SM_DATA];

/// One block cache serves all column families, in bytes. Indexes and filters live in it too, so that memory does
/// not grow with the data.
const CACHE_BYTES: usize = 64 << 20;
/// A part of a table's index or filter is of this size, in bytes: RocksDB's own default, and that of its data blocks.
const METADATA_BLOCK_BYTES: usize = 4 << 10;
/// All memtables together are flushed at about this size, in bytes.
const MEMTABLES_BYTES: usize = 64 << 20;
/// One memtable of a busy column family, in bytes.
const MEMTABLE_BYTES: usize = 32 << 20;
/// Column families that are rarely written would otherwise keep old write-ahead logs alive for ever; what there is
/// of them is also what a start has to replay.
const WAL_BYTES: u64 = 128 << 20;

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
    /// Counts what the database does.
    #[cfg(test)]
    options: Options,
    /// Held while the database is open, in whatever way: so that an offline check never reads a live database.
    _lock: File,
    /// Why the data cannot be read, once it cannot.
    damage: watch::Sender<Option<String>>,
}

impl Db {
    /// Opens or creates the database.
    ///
    /// A torn tail of the write-ahead log is dropped: nothing in it was acknowledged. Damage before the tail is an
    /// error, because what it hid may have been acknowledged.
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        let (lock, options) = (lock(path)?, database_options());
        require_log(path)?;
        let rocks =
            Rocks::open_cf_descriptors(&options, path, families()).map_err(|error| unusable(path, &error))?;
        mark_made(path)?;
        Ok(Self {
            rocks,
            #[cfg(test)]
            options,
            _lock: lock,
            damage: watch::channel(None).0,
        })
    }

    /// Opens a database that exists.
    pub(crate) fn open_existing(path: &Path) -> Result<Self, StoreError> {
        require(path)?;
        Self::open(path)
    }

    /// Opens a database that exists for reading, under its lock. Nothing in the folder changes; the write-ahead log
    /// is replayed in memory.
    pub(crate) fn open_read_only(path: &Path, lock: File) -> Result<Self, StoreError> {
        require(path)?;
        require_log(path)?;
        let options = database_options();
        let rocks = Rocks::open_cf_descriptors_read_only(&options, path, families(), false)
            .map_err(|error| unusable(path, &error))?;
        Ok(Self {
            rocks,
            #[cfg(test)]
            options,
            _lock: lock,
            damage: watch::channel(None).0,
        })
    }

    /// Takes note of a read that failed. What is damaged does not get better, and hides what was acknowledged.
    pub(crate) fn unreadable(&self, error: rocksdb::Error) -> StoreError {
        if matches!(error.kind(), ErrorKind::Corruption | ErrorKind::IOError) {
            self.damage.send_if_modified(|damage| {
                let first = damage.is_none();
                damage.get_or_insert_with(|| {
                    format!("the state cannot be read: {}", StoreError::from(error.clone()))
                });
                first
            });
        }
        error.into()
    }

    /// Resolves, with the reason, when a read has failed.
    pub(crate) async fn damage(&self) -> String {
        let mut damage = self.damage.subscribe();
        let found = damage.wait_for(Option::is_some).await.ok().and_then(|damage| damage.clone());
        found.unwrap_or_default()
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

    /// Makes all that was written before durable.
    pub(crate) fn sync(&self) -> Result<(), rocksdb::Error> {
        self.rocks.flush_wal(true)
    }

    /// How often the write-ahead log was synced.
    #[cfg(test)]
    pub(crate) fn syncs(&self) -> u64 {
        self.options.get_ticker_count(rocksdb::statistics::Ticker::WalFileSynced)
    }

    /// Takes table files of `sm_data` over, all or none, durably. They are moved into the database.
    pub(crate) fn ingest_state(&self, tables: Vec<PathBuf>) -> Result<(), StoreError> {
        if tables.is_empty() {
            return Ok(());
        }
        let mut options = IngestExternalFileOptions::default();
        options.set_move_files(true);
        Ok(self.rocks.ingest_external_file_cf_opts(&self.sm_data()?, &options, tables)?)
    }

    /// Merges every table file, so that what was deleted or overwritten takes no more space.
    pub(crate) fn compact(&self) -> Result<(), StoreError> {
        let mut options = CompactOptions::default();
        options.set_exclusive_manual_compaction(false);
        options.set_bottommost_level_compaction(BottommostLevelCompaction::Force);
        for name in FAMILIES {
            let family = self.family(name)?;
            self.rocks.compact_range_cf_opt(&family, None::<&[u8]>, None::<&[u8]>, &options);
        }
        Ok(())
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

fn unusable(path: &Path, error: &rocksdb::Error) -> StoreError {
    StoreError::DataDirectory(format!(
        "cannot open the database in {}: {error}. If it is damaged, move the data directory away and join the node \
         again as a new member; do not delete single files",
        path.display()
    ))
}

/// Refuses a folder without a database, where opening it would make one.
fn require(path: &Path) -> Result<(), StoreError> {
    if path.join("CURRENT").is_file() {
        return Ok(());
    }
    Err(StoreError::DataDirectory(format!("there is no database in {}", path.display())))
}

/// What tells, beside the database, that it was opened whole once: from then on it always has a write-ahead log.
fn made(path: &Path) -> PathBuf {
    path.with_extension("made")
}

fn mark_made(path: &Path) -> Result<(), StoreError> {
    let mark = made(path);
    if mark.exists() {
        return Ok(());
    }
    let write = || File::create(&mark)?.sync_all();
    write().map_err(StoreError::io(format!("cannot write {}", mark.display())))?;
    durable::sync_parent(&mark)
}

/// Refuses a database whose write-ahead log is gone: the vote in it, and writes that were acknowledged, would be forgotten
/// without a word.
fn require_log(path: &Path) -> Result<(), StoreError> {
    if !made(path).exists() {
        return Ok(());
    }
    let entries = fs::read_dir(path).map_err(StoreError::io(format!("cannot read {}", path.display())))?;
    let is_log = |entry: &fs::DirEntry| entry.path().extension().is_some_and(|extension| extension == "log");
    if entries.filter_map(Result::ok).any(|entry| is_log(&entry)) {
        return Ok(());
    }
    Err(StoreError::DataDirectory(format!(
        "the write-ahead log of the database in {} is gone, and with it what was acknowledged last: move the data \
         directory away and join the node again as a new member; do not delete single files",
        path.display()
    )))
}

/// Takes the lock beside the database. It is free again when the file is closed, also by a crash.
pub(crate) fn lock(path: &Path) -> Result<File, StoreError> {
    let name = path.with_extension("lock");
    // On a read-only disk the file need only be there.
    let file = File::options().create(true).append(true).open(&name);
    let file = file.or_else(|error| File::open(&name).map_err(|_| error));
    let file = file.map_err(StoreError::io(format!("cannot open {}", name.display())))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::DataDirectory(format!(
            "another process uses the database in {}: stop it first",
            path.display()
        ))),
        Err(TryLockError::Error(error)) => {
            Err(StoreError::io(format!("cannot lock {}", name.display()))(error))
        }
    }
}

fn families() -> Vec<ColumnFamilyDescriptor> {
    let cache = Cache::new_lru_cache(CACHE_BYTES);
    FAMILIES.iter().map(|name| ColumnFamilyDescriptor::new(*name, family_options(name, &cache))).collect()
}

fn database_options() -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
    // A log that was closed whole and is short or gone now is not a torn tail.
    options.set_track_and_verify_wals_in_manifest(true);
    options.set_paranoid_checks(true);
    options.set_db_write_buffer_size(MEMTABLES_BYTES);
    options.set_max_total_wal_size(WAL_BYTES);
    options.set_max_background_jobs(2);
    options.set_bytes_per_sync(1 << 20);
    options.set_keep_log_file_num(4);
    options.set_max_log_file_size(4 << 20);
    #[cfg(test)]
    options.enable_statistics();
    options
}

fn family_options(name: &str, cache: &Cache) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    table.set_bloom_filter(10.0, false);
    // A filter of a whole table is about as large as a shard of the cache (1 MiB): in one piece it would be thrown out and
    // read again with every few lookups.
    table.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
    table.set_partition_filters(true);
    table.set_metadata_block_size(METADATA_BLOCK_BYTES);
    table.set_pin_top_level_index_and_filter(true);
    table.set_format_version(5);
    let mut options = Options::default();
    options.set_block_based_table_factory(&table);
    options.set_write_buffer_size(if name == SM_DATA || name == RAFT_LOG { MEMTABLE_BYTES } else { 4 << 20 });
    options.set_compression_type(DBCompressionType::Lz4);
    options
}

/// For writing table files that [`Db::ingest_state`] takes.
pub(crate) fn state_table_options() -> Options {
    family_options(SM_DATA, &Cache::new_lru_cache(1 << 20))
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
    /// Ids of transactions that were decided on: `log index (u64)` -> see [`crate::ids`].
    DecidedIds = 5,
}

/// A key of `sm_data` within a generation.
pub(crate) fn state_key(space: Space, key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(key.len() + 1);
    out.push(space as u8);
    out.extend(key);
    out
}

/// Bytes of the generation at the front of a stored key.
pub(crate) const GENERATION_LEN: usize = 4;

/// A key of `sm_data` as it is stored.
pub(crate) fn stored_key(generation: u32, state_key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(state_key.len() + GENERATION_LEN);
    out.extend(generation.to_be_bytes());
    out.extend(state_key);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_on_disk_never_change() {
        assert_eq!(FORMAT_VERSION, 1);
        assert_eq!(FAMILIES, ["raft_meta", "raft_log", "sm_meta", "sm_data"]);
        let keys = [
            meta_key::FORMAT,
            meta_key::OWNER,
            meta_key::VOTE,
            meta_key::COMMITTED,
            meta_key::PURGED,
            meta_key::APPLIED,
        ];
        assert_eq!(keys, [&b"format"[..], b"owner", b"vote", b"committed", b"purged", b"applied"]);
        let spaces = [Space::Rows, Space::Expiry, Space::Logs, Space::LogHeads, Space::DecidedIds];
        assert_eq!(spaces.map(|space| space as u8), [1, 2, 3, 4, 5]);
        assert_eq!(stored_key(258, &state_key(Space::Rows, b"k")), b"\0\0\x01\x02\x01k");
    }

    #[test]
    fn what_is_to_be_synced_is() {
        let folder = tempfile::tempdir().unwrap();
        let db = Db::open(&folder.path().join("db")).unwrap();
        let write = |sync| {
            let before = db.syncs();
            let mut batch = WriteBatch::default();
            batch.put_cf(&db.raft_meta().unwrap(), b"k", b"v");
            db.write(batch, sync).unwrap();
            db.syncs() - before
        };
        assert_eq!((write(true), write(false)), (1, 0));
        let before = db.syncs();
        db.sync().unwrap();
        assert_eq!(db.syncs(), before + 1);
    }

    #[test]
    fn a_database_is_open_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db");
        let held = Db::open(&path).unwrap();
        for again in [Db::open(&path).map(|_| ()), lock(&path).map(|_| ())] {
            let error = again.unwrap_err().to_string();
            assert!(error.contains("another process uses"), "{error}");
        }
        drop(held);
        Db::open_read_only(&path, lock(&path).unwrap()).unwrap();
        let missing = Db::open_existing(&folder.path().join("other")).err().unwrap().to_string();
        assert!(missing.contains("there is no database"), "{missing}");
        assert!(!folder.path().join("other").exists());
    }
}
