//! Fills the catalog from the objects, and keeps up with what other replicas write.
//!
//! A refresh looks at the open markers, at recordings whose marker has gone, and at the index of the last hours;
//! what a crash left undone after a manifest was written is done when it is come across. A
//! full scan looks at the whole index, for sessions that began long ago and were sealed just now. Either runs only
//! after a pause in proportion to what it took the last time, so that a small store is always fresh, and a large one
//! is not listed all day. At the start every recording is looked up, so a lost index loses nothing.

use std::{
    collections::HashSet,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt, TryStreamExt, stream};
use mezite_daemon::clock;
use recording_format::{IndexEntry, ObjectKey, RecordingId, index_hour_prefix};
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{Catalog, Row, RowState};
use crate::{
    error::IngestError, metrics, objects::Objects, recover, recover::Stored, seal, stream::mark_open,
};

/// Recordings looked up at a time: each may have a long manifest.
const LOOKS: usize = 16;
/// Entries read at a time: they are short, and a bucket takes its time for each.
const READS: usize = 64;
/// A refresh may take a tenth of the time.
const REFRESH_SHARE: u32 = 10;
/// A full scan may take a twentieth of the time.
const SCAN_SHARE: u32 = 20;
/// A list waits for a full scan only where it is as short as this.
const SHORT_SCAN: Duration = Duration::from_millis(25);
/// The longest that a list waits to be fresh.
const LIST_PATIENCE: Duration = Duration::from_millis(250);
/// Hours of the index, up to now and one beyond, that a refresh looks at.
const HOURS: u64 = 2;
const HOUR_MS: u64 = 3_600_000;

/// Keeps a catalog up to date.
#[derive(Debug)]
pub struct Tail {
    objects: Arc<Objects>,
    catalog: Arc<Catalog>,
    refreshed: Mutex<Option<Run>>,
    scanned: Mutex<Option<Run>>,
    ready: AtomicBool,
    /// Whether the cluster is to be told of what is sealed.
    tells: bool,
    /// Recordings that cannot be read, as the log says already.
    damaged: std::sync::Mutex<HashSet<RecordingId>>,
}

/// The last run of something, to space the next.
#[derive(Debug, Clone, Copy)]
struct Run {
    ended: Instant,
    took: Duration,
}

impl Run {
    fn since(began: Instant) -> Self {
        Self { ended: Instant::now(), took: began.elapsed() }
    }

    fn is_due(last: Option<Self>, share: u32) -> bool {
        last.is_none_or(|last| last.ended.elapsed() >= last.took * share)
    }
}

impl Tail {
    /// Fills `catalog` from `objects`. `tells`: what was sealed by others, who got no further, is told to the cluster.
    #[must_use]
    pub fn new(objects: Arc<Objects>, catalog: Arc<Catalog>, tells: bool) -> Self {
        let (refreshed, scanned) = (Mutex::default(), Mutex::default());
        let (ready, damaged) = (AtomicBool::new(false), std::sync::Mutex::default());
        Self { objects, catalog, refreshed, scanned, ready, tells, damaged }
    }

    /// Whether the whole index was read once.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// Builds the catalog and keeps it up to date until cancelled.
    pub async fn run(&self, interval: Duration, stop: CancellationToken) {
        let work = async {
            let mut complete = false;
            loop {
                if let Err(error) = self.keep_up(&mut complete).await {
                    tracing::warn!(
                        error = error.internals(),
                        "the index of recordings could not be refreshed"
                    );
                }
                tokio::time::sleep(interval).await;
            }
        };
        tokio::select! {
            () = work => (),
            () = stop.cancelled() => (),
        }
    }

    async fn keep_up(&self, complete: &mut bool) -> Result<(), IngestError> {
        self.refresh().await?;
        self.scan().await?;
        if !self.ready.swap(true, Ordering::AcqRel) {
            tracing::info!(recordings = self.catalog.len(), "the index of recordings is built");
        }
        if !*complete {
            self.look_up_all().await?;
            *complete = true;
        }
        Ok(())
    }

    /// Before a list: looks for what is new, as far as that is quick.
    pub async fn freshen(&self) {
        let work = async {
            self.refresh().await?;
            // A scan that runs just now is not waited for.
            let short =
                self.scanned.try_lock().is_ok_and(|last| last.is_some_and(|last| last.took <= SHORT_SCAN));
            if short { self.scan().await } else { Ok(()) }
        };
        if let Ok(Err(error)) = timeout(LIST_PATIENCE, work).await {
            tracing::warn!(error = error.internals(), "the index of recordings could not be refreshed");
        }
    }

    /// Looks at the open markers, at recordings whose marker has gone, and at the index of the last hours.
    async fn refresh(&self) -> Result<(), IngestError> {
        let mut last = self.refreshed.lock().await;
        if !Run::is_due(*last, REFRESH_SHARE) {
            return Ok(());
        }
        let began = Instant::now();
        let known_open = self.catalog.open();
        let now = clock::unix_ms();
        let markers = self.objects.list_times(ObjectKey::OPEN).await?;
        metrics::open_recordings(markers.len(), markers.iter().map(|(_, created)| *created).min());
        let marked: HashSet<RecordingId> = markers.into_iter().filter_map(|(key, _)| open_id(key)).collect();
        let gone = known_open.into_iter().filter(|id| !marked.contains(id)).collect();
        self.look_up(marked.into_iter().collect(), true).await?;
        self.look_up(gone, false).await?;
        for hour in 0..=HOURS {
            self.read_entries(&index_hour_prefix((now + HOUR_MS).saturating_sub(hour * HOUR_MS))).await?;
        }
        metrics::index_refreshed(now);
        // Measured also where nobody writes: others may fill the disk.
        let _ = self.objects.room().await;
        *last = Some(Run::since(began));
        Ok(())
    }

    /// Looks at the whole index, and at what is not in it any more: it was deleted, or its entry was lost.
    async fn scan(&self) -> Result<(), IngestError> {
        let mut last = self.scanned.lock().await;
        if !Run::is_due(*last, SCAN_SHARE) {
            return Ok(());
        }
        let began = Instant::now();
        let known = self.catalog.sealed();
        let listed = self.read_entries(ObjectKey::INDEX).await?;
        self.look_up(known.into_iter().filter(|id| !listed.contains(id)).collect(), false).await?;
        *last = Some(Run::since(began));
        Ok(())
    }

    /// Looks up every recording that the index does not know, shard by shard.
    async fn look_up_all(&self) -> Result<(), IngestError> {
        for shard in 0..=u8::MAX {
            let ids = self.objects.recordings(shard).await?;
            let unknown = ids.into_iter().filter(|id| self.catalog.get(*id).is_none()).collect();
            self.look_up(unknown, false).await?;
        }
        Ok(())
    }

    /// `marked`: they have markers.
    async fn look_up(&self, ids: Vec<RecordingId>, marked: bool) -> Result<(), IngestError> {
        stream::iter(ids)
            .map(|id| async move {
                match recover::load(&self.objects, id).await {
                    Ok(Some(stored)) => self.take(&stored, marked).await?,
                    // The marker comes before begin.json; the next refresh finds it.
                    Ok(None) if marked => (),
                    Ok(None) => self.catalog.remove(id),
                    Err(IngestError::Store(error)) => return Err(IngestError::from(error)),
                    // One damaged recording must not hide the others, nor fill the log.
                    Err(error) if self.is_first_time(id) => {
                        tracing::warn!(%id, error = error.internals(), "a recording cannot be indexed");
                    }
                    Err(_) => (),
                }
                Ok(())
            })
            .buffer_unordered(LOOKS)
            .try_collect()
            .await
    }

    /// Takes a recording in. One that is sealed gets its index entry and loses its marker, where that is still to do; one
    /// that is open and has lost its marker gets it again. What is being deleted is let go.
    async fn take(&self, stored: &Stored, marked: bool) -> Result<(), IngestError> {
        let (id, row) = (stored.begin.recording_id, row_of(stored));
        if !marked && self.objects.get(ObjectKey::Gone(id)).await?.is_some() {
            self.catalog.remove(id);
            return Ok(());
        }
        let is_open = row.state == RowState::InProgress;
        self.catalog.put(row);
        if is_open && !marked {
            mark_open(&self.objects, stored.begin.ingest_id, id).await?;
        }
        let Some(signed) = stored.sealed() else { return Ok(()) };
        let entry = signed.manifest.index_entry(&signed.document);
        // The marker goes last: where it has gone, there is nothing to tell.
        if let Err(error) = seal::publish_again(&self.objects, &entry, marked && self.tells).await {
            tracing::warn!(%id, %error, "a sealed recording could not be put into the index");
        }
        Ok(())
    }

    fn is_first_time(&self, damaged: RecordingId) -> bool {
        self.damaged.lock().unwrap_or_else(PoisonError::into_inner).insert(damaged)
    }

    /// Takes in the entries that are news; answers the recordings that have entries.
    async fn read_entries(&self, prefix: &str) -> Result<HashSet<RecordingId>, IngestError> {
        let entries = self.objects.list(prefix).await?;
        let unknown: Vec<_> = entries.iter().copied().filter(|(key, _)| self.is_news(*key)).collect();
        stream::iter(unknown)
            .map(|(key, length)| async move {
                let Some(object) = self.objects.get_front(key, length).await? else { return Ok(()) };
                match IndexEntry::decode(key, &object) {
                    Ok(entry) => self.catalog.put(entry.into()),
                    Err(error) => tracing::warn!(%key, %error, "an index entry cannot be read"),
                }
                Ok::<_, IngestError>(())
            })
            .buffer_unordered(READS)
            .try_collect::<()>()
            .await?;
        Ok(entries.into_iter().filter_map(|(key, _)| indexed_id(key)).collect())
    }

    fn is_news(&self, key: ObjectKey) -> bool {
        let ObjectKey::Index { id, revision, .. } = key else { return false };
        self.catalog.revision(id) < Some(revision)
    }
}

fn open_id(key: ObjectKey) -> Option<RecordingId> {
    match key {
        ObjectKey::Open(id) => Some(id),
        _ => None,
    }
}

fn indexed_id(key: ObjectKey) -> Option<RecordingId> {
    match key {
        ObjectKey::Index { id, .. } => Some(id),
        _ => None,
    }
}

/// What a list shows of a stored recording. One whose bytes go beyond an interruption is open again.
#[must_use]
pub fn row_of(stored: &Stored) -> Row {
    match &stored.manifest {
        Some(signed) if stored.is_covered_by(signed) => signed.manifest.index_entry(&signed.document).into(),
        manifest => Row {
            id: stored.begin.recording_id,
            agent_id: stored.begin.agent_id,
            metadata: stored.begin.metadata.clone(),
            state: RowState::InProgress,
            size: stored.committed,
            revision: manifest.as_ref().map(|signed| signed.manifest.revision),
            payload_sha256: None,
            manifest_sha256: None,
            retain_until_ms: None,
        },
    }
}
