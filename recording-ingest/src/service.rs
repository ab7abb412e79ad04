//! What the calls of an ingest share: its store, index and identity, and the bounds on how many run at a time.
//! What a call does with them is not decided here.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use mezite_daemon::{
    clock,
    diagnostics::Health,
    places::{Full, Places},
};
use recording_format::{AgentId, RecordingId};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::{
    sync::{CancellationToken, WaitForCancellationFutureOwned},
    task::TaskTracker,
};
use tracing::Instrument as _;

use crate::{
    access::{Access, PATIENCE},
    budget::Budget,
    claims::Claims,
    config::{Config, LimitsConfig},
    error::IngestError,
    identity::Identity,
    index::{Catalog, Tail},
    metrics,
    objects::Objects,
    read::{Reader, SegmentCache},
    report::Reach,
};

/// Why an ingest is of no use that the cluster does not have any more.
const REMOVED: &str = "the ingest was removed from the cluster";
/// Why an ingest is of no use when its store has failed.
const UNTRUSTED: &str = "the store takes no writes until a restart";

/// The state of an ingest.
#[derive(Debug)]
pub(crate) struct Ingest {
    pub(crate) objects: Arc<Objects>,
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) tail: Tail,
    pub(crate) claims: Claims,
    pub(crate) access: Access,
    pub(crate) budget: Arc<Budget>,
    pub(crate) reach: Reach,
    /// How long recordings are kept that are sealed now; `None`: for ever.
    pub(crate) keep: Option<Duration>,
    /// Whether there is a cluster to tell of recordings.
    pub(crate) tells: bool,
    cache: Arc<SegmentCache>,
    identity: ArcSwap<Identity>,
    renewals: watch::Sender<()>,
    limits: LimitsConfig,
    streams: Arc<Places<AgentId>>,
    downloads: Arc<Semaphore>,
    calls: TaskTracker,
    leaving: CancellationToken,
    removed: CancellationToken,
}

impl Ingest {
    pub(crate) fn new(objects: Objects, identity: Identity, config: &Config) -> Self {
        let limits = config.limits.clone();
        let (objects, catalog) = (Arc::new(objects), Arc::new(Catalog::default()));
        let tells = !config.auth_servers.is_empty();
        Self {
            tail: Tail::new(Arc::clone(&objects), Arc::clone(&catalog), tells),
            objects,
            catalog,
            claims: Claims::new(limits.kept_progress),
            access: Access::new(PATIENCE),
            budget: Budget::new(limits.memory_bytes),
            reach: Reach::default(),
            keep: config.retention.keep,
            tells,
            cache: Arc::new(SegmentCache::new(limits.cached_segments)),
            identity: ArcSwap::from_pointee(identity),
            renewals: watch::channel(()).0,
            streams: Places::new(limits.max_streams, limits.max_streams_per_agent, metrics::open_streams),
            downloads: Arc::new(Semaphore::new(limits.max_downloads)),
            calls: TaskTracker::new(),
            leaving: CancellationToken::new(),
            removed: CancellationToken::new(),
            limits,
        }
    }

    /// Who this ingest is now. A call that needs several parts of it asks once.
    pub(crate) fn identity(&self) -> Arc<Identity> {
        self.identity.load_full()
    }

    pub(crate) fn replace_identity(&self, identity: Identity) {
        self.identity.store(Arc::new(identity));
        self.renewals.send_replace(());
    }

    /// Changes whenever the identity is replaced from now on.
    pub(crate) fn renewals(&self) -> watch::Receiver<()> {
        self.renewals.subscribe()
    }

    pub(crate) fn limits(&self) -> &LimitsConfig {
        &self.limits
    }

    /// Opens a recording for reading.
    pub(crate) async fn reader(&self, id: RecordingId) -> Result<Reader, IngestError> {
        Reader::open(Arc::clone(&self.objects), Arc::clone(&self.cache), id).await
    }

    /// Runs a call that writes a recording of an agent, to its end, whatever becomes of the connection.
    ///
    /// # Errors
    /// [`IngestError::Busy`] when as many run as may, [`IngestError::AgentBusy`] when as many of the agent do; otherwise what the call fails with.
    pub(crate) async fn write<T: Send + 'static>(
        &self,
        agent: AgentId,
        call: impl Future<Output = Result<T, IngestError>> + Send + 'static,
    ) -> Result<T, IngestError> {
        let place = self.streams.take(agent).map_err(|full| match full {
            Full::All => IngestError::Busy,
            Full::Own => IngestError::AgentBusy,
        })?;
        let call = async move {
            let result = call.await;
            drop(place);
            result
        };
        self.calls.spawn(call.in_current_span()).await?
    }

    /// Calls that write just now.
    pub(crate) fn open_streams(&self) -> usize {
        self.streams.count()
    }

    /// One of the downloads that there may be at a time.
    ///
    /// # Errors
    /// [`IngestError::TooManyDownloads`] when there are as many.
    pub(crate) fn download(&self) -> Result<OwnedSemaphorePermit, IngestError> {
        Arc::clone(&self.downloads).try_acquire_owned().map_err(|_| IngestError::TooManyDownloads)
    }

    /// Resolves when the ingest begins to leave.
    pub(crate) fn leaving(&self) -> WaitForCancellationFutureOwned {
        self.leaving.clone().cancelled_owned()
    }

    /// Cancelled when the ingest begins to leave.
    pub(crate) fn until_leaving(&self) -> CancellationToken {
        self.leaving.child_token()
    }

    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving.is_cancelled()
    }

    /// Begins to leave: calls that write are answered with what is durable, new ones are refused.
    pub(crate) fn leave(&self) {
        self.leaving.cancel();
        self.calls.close();
    }

    /// The cluster does not have this ingest any more: it leaves, and nothing is begun, added to or sealed by it from now on.
    pub(crate) fn remove(&self) {
        self.removed.cancel();
        self.leave();
    }

    /// Resolves when the cluster does not have this ingest any more.
    pub(crate) async fn removed(&self) {
        self.removed.cancelled().await;
    }

    /// Refuses what an ingest takes only as one of its cluster.
    ///
    /// # Errors
    /// [`IngestError::Removed`] when the cluster does not have it any more.
    pub(crate) fn check_member(&self) -> Result<(), IngestError> {
        if self.removed.is_cancelled() { Err(IngestError::Removed) } else { Ok(()) }
    }

    /// Resolves when no call writes any more, after [`Ingest::leave`].
    pub(crate) async fn calls_ended(&self) {
        self.calls.wait().await;
    }

    /// Why it should not be sent calls at `now` (Unix seconds); nothing when it should.
    pub(crate) fn unready(&self, now: u64) -> Vec<&'static str> {
        let reasons = [
            (self.removed.is_cancelled(), REMOVED),
            (self.is_leaving(), "the ingest is leaving"),
            (!self.tail.is_ready(), "the index of recordings is being built"),
            (!self.objects.is_trusted(), UNTRUSTED),
            (!self.identity().is_valid_at(now), "the certificate is not valid now"),
        ];
        reasons.into_iter().filter_map(|(applies, reason)| applies.then_some(reason)).collect()
    }
}

impl Health for Ingest {
    /// A restart is what helps a store that is not trusted any more.
    fn alive(&self) -> Result<(), String> {
        if self.objects.is_trusted() { Ok(()) } else { Err(UNTRUSTED.to_owned()) }
    }

    async fn ready(&self) -> Result<(), String> {
        let reasons = self.unready(clock::unix_seconds());
        if reasons.is_empty() { Ok(()) } else { Err(reasons.join("\n")) }
    }
}
