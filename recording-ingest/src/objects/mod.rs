//! The object store: typed keys, conditional creation, and what counts as durable.
//!
//! Objects are created once and never changed, but for the marker of an open recording, which is renewed; a key that is taken is read back
//! and compared. On the local file
//! system an object is acknowledged after its file, its folder and every folder made for it were fsynced, in a bucket (`s3`)
//! when the server has said so. What a recording is, is not decided here.

mod local;
pub(crate) mod s3;

use std::{
    path::{Path as FsPath, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::{
    Error as ObjectError, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload,
    local::LocalFileSystem, path::Path,
};
use recording_format::{HEADER_LEN, ObjectKey, RecordingId, TRAILER_LEN, manifest_prefix, segment_prefix};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::{
    config::{DiskConfig, S3Config},
    disk::{Disk, Room},
    metrics,
};
use local::{Refusal, prepare, refusal, sync_folder};

/// A write whose answer is lost is repeated so often: whether it was done is seen then.
const LOST_ANSWERS: u32 = 2;
/// Recordings that are read through at a time; others wait. Each takes the memory of what `recover::walk` reads at a time.
const WALKS: usize = 8;

/// Why the store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No space.
    #[error("the store of this ingest is full; use another ingest")]
    Full,
    /// Anything else. The text is for the log.
    #[error("the store of this ingest failed; try again or use another ingest")]
    Failed(String),
    /// A write failed in a way that leaves open what is on the disk, so nothing is acknowledged any more.
    #[error("the store of this ingest takes no writes until it is restarted; use another ingest")]
    Untrusted,
}

/// What became of a conditional creation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Created {
    /// The object is there, durably, with these bytes.
    Durable,
    /// The key was taken, with other bytes.
    Taken(Bytes),
}

/// The store.
#[derive(Debug)]
pub struct Objects {
    store: Arc<dyn ObjectStore>,
    /// Folder of a store on the local file system.
    root: Option<PathBuf>,
    /// The disk under it, once it is watched.
    disk: Option<Arc<Disk>>,
    /// A failed fsync is not repeated: the kernel may have dropped the pages and would call the second one good.
    untrusted: AtomicBool,
    walks: Semaphore,
}

impl Objects {
    /// Opens the bucket of this URL.
    ///
    /// # Errors
    /// When it is no `s3:` URL, or the bucket cannot be used: it is written to and looked at.
    pub async fn open_bucket(url: &str, config: &S3Config) -> Result<Self, StoreError> {
        Ok(Self::with_store(s3::open(url, config).await?))
    }

    /// Opens the store of this URL and makes its folders.
    ///
    /// # Errors
    /// When it is not a `file:` URL of an absolute path, or the folder cannot be made.
    pub fn open(url: &str) -> Result<Self, StoreError> {
        let failed = |what: String| StoreError::Failed(what);
        let root = url.strip_prefix("file://").filter(|path| path.starts_with('/'));
        let root = PathBuf::from(root.ok_or_else(|| failed(format!("{url} is not file:///absolute/path")))?);
        prepare(&root).map_err(|error| failed(format!("{}: {error}", root.display())))?;
        let store = LocalFileSystem::new_with_prefix(&root).map_err(|error| failed(error.to_string()))?;
        Ok(Self { root: Some(root), ..Self::with_store(Arc::new(store.with_fsync(true))) })
    }

    /// Uses a store that is durable by itself.
    #[must_use]
    pub fn with_store(store: Arc<dyn ObjectStore>) -> Self {
        let (untrusted, walks) = (AtomicBool::new(false), Semaphore::new(WALKS));
        Self { store, root: None, disk: None, untrusted, walks }
    }

    /// Watches the disk of a store on the local file system.
    ///
    /// # Errors
    /// When the file system does not tell its size.
    pub fn watch_disk(&mut self, config: &DiskConfig) -> Result<(), StoreError> {
        let Some(root) = &self.root else { return Ok(()) };
        let disk = Disk::new(root, config);
        self.disk = Some(Arc::new(disk.map_err(|error| StoreError::Failed(error.to_string()))?));
        Ok(())
    }

    /// What there is room for; everything, where the disk is not watched.
    pub(crate) async fn room(&self) -> Room {
        let Some(disk) = self.disk.clone() else { return Room::New };
        tokio::task::spawn_blocking(move || disk.room()).await.unwrap_or(Room::New)
    }

    /// Creates an object with which a recording ends, also where that takes the reserve.
    ///
    /// # Errors
    /// As [`Objects::create`].
    pub async fn create_end(&self, key: ObjectKey, bytes: PutPayload) -> Result<Created, StoreError> {
        match self.create(key, bytes.clone()).await {
            Err(StoreError::Full) if self.disk.as_ref().is_some_and(|disk| disk.give_up_reserve()) => {
                self.create(key, bytes).await
            }
            created => created,
        }
    }

    /// Whether it still takes writes.
    #[must_use]
    pub fn is_trusted(&self) -> bool {
        !self.untrusted.load(Ordering::Acquire)
    }

    /// Creates an object where there is none. When the key is taken by the same bytes, that is as good.
    ///
    /// # Errors
    /// When the store fails; then nothing is known to be durable.
    pub async fn create(&self, key: ObjectKey, bytes: PutPayload) -> Result<Created, StoreError> {
        if !self.is_trusted() {
            return Err(StoreError::Untrusted);
        }
        let mut lost_answers = 0;
        loop {
            match self.create_once(key, &bytes).await {
                Err(StoreError::Failed(what)) if self.root.is_none() && lost_answers < LOST_ANSWERS => {
                    lost_answers += 1;
                    tracing::warn!(%key, what, "an object is created again: whether it was is not known");
                }
                done => return done,
            }
        }
    }

    async fn create_once(&self, key: ObjectKey, bytes: &PutPayload) -> Result<Created, StoreError> {
        let path = path(key);
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        match self.store.put_opts(&path, bytes.clone(), options).await {
            Ok(_) => Ok(Created::Durable),
            Err(ObjectError::AlreadyExists { .. }) => {
                let Some(existing) = self.get(key).await? else {
                    return Err(StoreError::Failed(format!("{key} is taken and yet not there")));
                };
                // Whoever created it may not have got as far as the folder's fsync.
                self.sync_folders(parents(&path)).await?;
                Ok(if is_same(&existing, bytes) { Created::Durable } else { Created::Taken(existing) })
            }
            Err(error) => Err(self.failed_write(&path, error).await),
        }
    }

    /// Distrusts the local store, unless the write was refused cleanly and left nothing behind.
    async fn failed_write(&self, path: &Path, error: ObjectError) -> StoreError {
        let refusal = refusal(&error);
        let clean = match (&self.root, refusal) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(_), Some(_)) => matches!(self.store.head(path).await, Err(ObjectError::NotFound { .. })),
        };
        if clean {
            let full = refusal == Some(Refusal::Full);
            if !full {
                return failed(error);
            }
            metrics::store_error("full");
            return StoreError::Full;
        }
        tracing::error!(%error, "a write failed in a way that leaves open what is on the disk; taking no more writes");
        metrics::store_error("untrusted");
        self.untrusted.store(true, Ordering::Release);
        StoreError::Untrusted
    }

    /// Writes an object anew, so that it counts as created now: only for one that says no more than that it is there. A
    /// failure changes nothing, and is not distrusted.
    ///
    /// # Errors
    /// When the store fails.
    pub(crate) async fn renew(&self, key: ObjectKey, bytes: PutPayload) -> Result<(), StoreError> {
        if !self.is_trusted() {
            return Err(StoreError::Untrusted);
        }
        self.store.put_opts(&path(key), bytes, PutOptions::default()).await.map(drop).map_err(failed)
    }

    /// The right to read a whole recording through, which takes memory. It is waited for.
    pub(crate) async fn walk(&self) -> Result<SemaphorePermit<'_>, StoreError> {
        self.walks.acquire().await.map_err(|closed| StoreError::Failed(closed.to_string()))
    }

    /// The object, or `None`.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn get(&self, key: ObjectKey) -> Result<Option<Bytes>, StoreError> {
        match self.store.get(&path(key)).await {
            Ok(found) => found.bytes().await.map(Some).map_err(failed),
            Err(ObjectError::NotFound { .. }) => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    /// The first bytes of an object that is so long at least, or `None`. It is quicker than [`Objects::get`] for whoever knows
    /// the length.
    ///
    /// # Errors
    /// When the store fails, or the object is shorter.
    pub async fn get_front(&self, key: ObjectKey, length: u64) -> Result<Option<Bytes>, StoreError> {
        if length == 0 {
            return Ok(Some(Bytes::new()));
        }
        match self.store.get_ranges(&path(key), std::slice::from_ref(&(0..length))).await {
            Ok(found) => Ok(found.into_iter().next()),
            Err(ObjectError::NotFound { .. }) => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    /// Length of an object, in bytes, or `None`.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn length(&self, key: ObjectKey) -> Result<Option<u64>, StoreError> {
        match self.store.head(&path(key)).await {
            Ok(object) => Ok(Some(object.size)),
            Err(ObjectError::NotFound { .. }) => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    /// Whether there is an object under a key.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn has(&self, key: ObjectKey) -> Result<bool, StoreError> {
        Ok(self.length(key).await?.is_some())
    }

    /// The first [`HEADER_LEN`] and the last [`TRAILER_LEN`] bytes of a segment object of `size` bytes. Shorter where
    /// the object is.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn segment_ends(
        &self,
        id: RecordingId,
        start: u64,
        size: u64,
    ) -> Result<(Bytes, Bytes), StoreError> {
        if size == 0 {
            return Ok((Bytes::new(), Bytes::new()));
        }
        let ends = [0..size.min(HEADER_LEN as u64), size.saturating_sub(TRAILER_LEN as u64)..size];
        let path = path(ObjectKey::Segment(id, start));
        let read = self.store.get_ranges(&path, &ends).await.map_err(failed)?;
        let [header, trailer] =
            read.try_into().map_err(|_| StoreError::Failed(format!("{path}: no ends")))?;
        Ok((header, trailer))
    }

    /// Keys and sizes of the objects under a prefix, in order. Names that are not ours are left out.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn list(&self, prefix: &str) -> Result<Vec<(ObjectKey, u64)>, StoreError> {
        let listed = self.listed(prefix).await?.into_iter();
        Ok(listed.map(|(key, object)| (key, object.size)).collect())
    }

    /// As [`Objects::list`], with when each object was created, in Unix milliseconds by the clock of the store.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn list_times(&self, prefix: &str) -> Result<Vec<(ObjectKey, u64)>, StoreError> {
        let listed = self.listed(prefix).await?.into_iter();
        let time = |object: ObjectMeta| u64::try_from(object.last_modified.timestamp_millis());
        Ok(listed.map(|(key, object)| (key, time(object).unwrap_or_default())).collect())
    }

    async fn listed(&self, prefix: &str) -> Result<Vec<(ObjectKey, ObjectMeta)>, StoreError> {
        let mut objects: Vec<(ObjectKey, ObjectMeta)> = self
            .store
            .list(Some(&Path::from(prefix)))
            .try_filter_map(|object| async move {
                let key = object.location.as_ref().parse::<ObjectKey>();
                Ok(key.ok().map(|key| (key, object)))
            })
            .try_collect()
            .await
            .map_err(failed)?;
        objects.sort_unstable_by_key(|(key, _)| *key);
        Ok(objects)
    }

    /// Ids of all recordings that have objects in one of the 256 shards.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn recordings(&self, shard: u8) -> Result<Vec<RecordingId>, StoreError> {
        let prefix = Path::from(format!("{}/{shard:02x}", ObjectKey::RECORDINGS));
        let listed = match self.store.list_with_delimiter(Some(&prefix)).await {
            Err(ObjectError::NotFound { .. }) => return Ok(Vec::new()),
            listed => listed.map_err(failed)?,
        };
        let names = listed.common_prefixes.iter().filter_map(|prefix| prefix.filename()?.parse().ok());
        Ok(names.collect())
    }

    /// Removes an object. That it is not there is as good.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn delete(&self, key: ObjectKey) -> Result<(), StoreError> {
        match self.store.delete(&path(key)).await {
            Ok(()) | Err(ObjectError::NotFound { .. }) => Ok(()),
            Err(error) => Err(failed(error)),
        }
    }

    /// Makes what is visible of a recording durable: another replica may have made a file or folder visible and not
    /// yet got as far as its folder's fsync. File contents are fsynced before they become visible.
    ///
    /// # Errors
    /// When an fsync fails.
    pub async fn settle(&self, id: RecordingId) -> Result<(), StoreError> {
        let manifests = FsPath::new(&manifest_prefix(id)).to_owned();
        let mut folders = vec![FsPath::new(&segment_prefix(id)).to_owned()];
        folders.extend(manifests.ancestors().take(3).map(FsPath::to_owned));
        self.sync_folders(folders).await
    }

    /// Fsyncs folders of the local store; those that are not there have nothing to lose.
    async fn sync_folders(&self, folders: Vec<PathBuf>) -> Result<(), StoreError> {
        let Some(root) = self.root.clone() else { return Ok(()) };
        if !self.is_trusted() {
            return Err(StoreError::Untrusted);
        }
        let synced = tokio::task::spawn_blocking(move || {
            folders.iter().try_for_each(|folder| sync_folder(&root.join(folder)))
        });
        match synced.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                tracing::error!(%error, "a folder's fsync failed; taking no more writes");
                metrics::store_error("untrusted");
                self.untrusted.store(true, Ordering::Release);
                Err(StoreError::Untrusted)
            }
            Err(error) => Err(StoreError::Failed(error.to_string())),
        }
    }
}

fn is_same(existing: &[u8], bytes: &PutPayload) -> bool {
    let mut left = Some(existing);
    for piece in bytes {
        left = left.and_then(|left| left.strip_prefix(&piece[..]));
    }
    left.is_some_and(<[u8]>::is_empty)
}

/// The folder of an object, and those above it that are not made at the start.
fn parents(path: &Path) -> Vec<PathBuf> {
    FsPath::new(path.as_ref()).ancestors().skip(1).take(3).map(FsPath::to_owned).collect()
}

fn path(key: ObjectKey) -> Path {
    Path::from(key.to_string())
}

fn failed(error: ObjectError) -> StoreError {
    metrics::store_error("failed");
    StoreError::Failed(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> RecordingId {
        RecordingId::from_bytes([0x0b; 16])
    }

    fn local() -> (tempfile::TempDir, Objects) {
        let dir = tempfile::tempdir().unwrap();
        let objects = Objects::open(&format!("file://{}", dir.path().display())).unwrap();
        (dir, objects)
    }

    #[test]
    fn the_local_store_fsyncs() {
        let (_dir, objects) = local();
        assert!(format!("{:?}", objects.store).contains("fsync: true"));
    }

    #[tokio::test]
    async fn a_key_is_taken_once() {
        let (_dir, objects) = local();
        let key = ObjectKey::Segment(id(), 0);
        assert_eq!(objects.create(key, "a".into()).await.unwrap(), Created::Durable);
        assert_eq!(objects.create(key, "a".into()).await.unwrap(), Created::Durable);
        assert_eq!(objects.create(key, "b".into()).await.unwrap(), Created::Taken("a".into()));
        assert_eq!(objects.get(key).await.unwrap().unwrap(), "a");
        assert_eq!((objects.length(key).await.unwrap(), objects.has(key).await.unwrap()), (Some(1), true));
        // In pieces it is the same, and a part is not.
        let key = ObjectKey::Segment(id(), 1);
        assert_eq!((objects.length(key).await.unwrap(), objects.has(key).await.unwrap()), (None, false));
        let pieces = |pieces: &[&'static str]| pieces.iter().map(|piece| Bytes::from(*piece)).collect();
        assert_eq!(objects.create(key, pieces(&["ab", "c"])).await.unwrap(), Created::Durable);
        assert_eq!(objects.create(key, pieces(&["a", "", "bc"])).await.unwrap(), Created::Durable);
        for other in [&["ab"][..], &["abc", "d"], &["abd"], &[]] {
            assert_eq!(objects.create(key, pieces(other)).await.unwrap(), Created::Taken("abc".into()));
        }
        let key = ObjectKey::Segment(id(), 0);
        objects.delete(key).await.unwrap();
        objects.delete(key).await.unwrap();
        assert_eq!(objects.get(key).await.unwrap(), None);
    }

    #[tokio::test]
    async fn lists_are_in_order_and_of_our_names_alone() {
        let (dir, objects) = local();
        for start in [30, 4, 100] {
            objects.create(ObjectKey::Segment(id(), start), "x".into()).await.unwrap();
        }
        let folder = dir.path().join(recording_format::segment_prefix(id()));
        std::fs::write(folder.join("00000000000000000004.seg#1"), "left over").unwrap();
        std::fs::write(folder.join("notes.txt"), "foreign").unwrap();
        let keys = objects.list(&recording_format::segment_prefix(id())).await.unwrap();
        let starts = [4, 30, 100].map(|start| (ObjectKey::Segment(id(), start), 1));
        assert_eq!(keys, starts);
        assert_eq!(objects.recordings(0x0b).await.unwrap(), [id()]);
        assert_eq!(objects.recordings(0x0c).await.unwrap(), []);
    }

    #[tokio::test]
    async fn a_failed_write_ends_the_trust() {
        let (dir, objects) = local();
        // A file where the folder should be: neither full nor a clean refusal.
        let blocked = dir.path().join("rec/v1/0b").join(id().to_string());
        std::fs::write(&blocked, "").unwrap();
        let key = ObjectKey::Segment(id(), 0);
        assert!(matches!(objects.create(key, "a".into()).await, Err(StoreError::Untrusted)));
        std::fs::remove_file(&blocked).unwrap();
        assert!(matches!(objects.create(key, "a".into()).await, Err(StoreError::Untrusted)));
        assert!(matches!(objects.settle(id()).await, Err(StoreError::Untrusted)));
        assert!(matches!(objects.renew(key, "a".into()).await, Err(StoreError::Untrusted)));
        assert_eq!(objects.get(key).await.unwrap(), None);
    }

    #[test]
    fn only_absolute_file_urls_are_taken() {
        for url in ["s3://bucket", "file://relative", "/plain", "file:"] {
            assert!(Objects::open(url).is_err(), "{url}");
        }
    }
}
