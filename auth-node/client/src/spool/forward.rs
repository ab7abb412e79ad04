//! Sending what is spooled, while it grows and until there is a receipt for it.

use std::{collections::BTreeSet, fmt, io, path::PathBuf, sync::Arc, time::Duration};

use mezite_daemon::{clock, files};
use mezite_proto::v1::EmitAuditEventRequest;
use recording_format::RecordingId;
use tokio::{
    sync::{Semaphore, watch},
    task::{JoinSet, spawn_blocking},
    time::{Instant, sleep, timeout_at},
};
use tonic::Code;

use super::{Event, Spool, SpoolError, Standing};
use crate::{
    AuthClient, Client, ClientError, Extent, IdempotencyKey, KEY_REUSED, Payload, Retry, StatusError,
    UploadError, UploadLimits, Uploader,
};

/// How often the folder is looked through, whatever is told.
const RESCAN: Duration = Duration::from_secs(30);
/// Recordings that have ended which are sent at a time; those that grow do not wait for a place.
const AT_A_TIME: usize = 8;
/// Longest wait after a refusal that the cluster gives for good: whatever it is, a person has to see to it.
const REFUSED: Duration = Duration::from_secs(600);
/// The field which ingests say to be wrong in what is of another host.
const NODE: &str = "metadata.node";

/// Whom a forwarder asks.
#[derive(Debug, Clone)]
pub struct Route {
    /// For events: the auth nodes, with the agent's certificate.
    pub auth: Client,
    /// For recordings: made by [`Client::for_recordings`].
    pub recordings: Client,
}

/// How a forwarder goes about it.
#[derive(Debug, Clone, Copy)]
pub struct ForwardSettings {
    /// How recordings are cut.
    pub limits: UploadLimits,
    /// So long an entry whose writer is gone may be taken up again, before it is ended as it is: 60 s.
    pub grace: Duration,
    /// Least and longest wait after a failure, doubled each time: 1 s and a minute.
    pub backoff: (Duration, Duration),
}

impl Default for ForwardSettings {
    fn default() -> Self {
        Self {
            limits: UploadLimits::default(),
            grace: Duration::from_secs(60),
            backoff: (Duration::from_secs(1), Duration::from_secs(60)),
        }
    }
}

/// What a person must know.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Notice {
    /// A recording is where nothing sends it any more.
    #[error("recording {id} cannot be sent: {why}; it is in {path} now")]
    SetAside {
        /// Which one.
        id: RecordingId,
        /// Why.
        why: String,
        /// Where it is: [`super::SetAside::read`] reads it.
        path: PathBuf,
        /// Whether the cluster can be given it under another id.
        as_new: bool,
    },
    /// Something else.
    #[error("{0}")]
    Other(String),
}

/// Says it.
type Warn = Arc<dyn Fn(Notice) + Send + Sync>;

/// Sends what is in a spool.
#[derive(Clone)]
pub struct Forwarder {
    spool: Arc<Spool>,
    route: watch::Receiver<Option<Route>>,
    settings: ForwardSettings,
    warn: Warn,
    places: Arc<Semaphore>,
}

impl fmt::Debug for Forwarder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Forwarder").field("spool", &self.spool).finish_non_exhaustive()
    }
}

/// Why an entry is still there.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Spool(#[from] SpoolError),
    #[error(transparent)]
    Upload(#[from] UploadError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("a task failed: {0}")]
    Task(#[from] tokio::task::JoinError),
}

impl Forwarder {
    /// For a spool, by way of what `route` says at any time; `None` there: nobody can be asked yet. What a person must
    /// know is given to `warn`.
    pub fn new(
        spool: Arc<Spool>,
        route: watch::Receiver<Option<Route>>,
        settings: ForwardSettings,
        warn: impl Fn(Notice) + Send + Sync + 'static,
    ) -> Self {
        let places = Arc::new(Semaphore::new(AT_A_TIME));
        Self { spool, route, settings, warn: Arc::new(warn), places }
    }

    fn warn(&self, text: String) {
        (self.warn)(Notice::Other(text));
    }

    /// Sends, for as long as it is polled.
    pub async fn run(self) {
        tokio::join!(self.clone().recordings(), self.events());
    }

    async fn recordings(self) {
        let (mut tasks, mut under_way) = (JoinSet::new(), BTreeSet::new());
        let mut changes = self.spool.changes();
        loop {
            match self.spool.entries() {
                Ok(entries) => {
                    for id in entries.into_iter().filter(|id| under_way.insert(*id)) {
                        let forwarder = self.clone();
                        tasks.spawn(async move {
                            forwarder.recording(id).await;
                            id
                        });
                    }
                }
                Err(error) => self.warn(error.to_string()),
            }
            tokio::select! {
                _ = changes.changed() => {}
                () = sleep(RESCAN) => {}
                // Looked for again, it is not there; a task that panicked would leave its entry to the next start.
                Some(Ok(id)) = tasks.join_next() => { under_way.remove(&id); }
            }
        }
    }

    /// Sends one recording until it is gone from the spool.
    async fn recording(mut self, id: RecordingId) {
        let mut failures = 0;
        loop {
            let live = match self.spool.standing(id) {
                Ok(Standing::Live(extent)) => Some(extent),
                _ => None,
            };
            let failure = match self.attempt(id).await {
                Ok(()) => return,
                Err(failure) => failure,
            };
            match self.sets_aside(id, &failure).await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => self.warn(format!("recording {id}: {error}")),
            }
            if matches!(failure, Failure::Upload(UploadError::Abandoned)) {
                failures = 0;
                continue;
            }
            failures += 1;
            // What lasts is said once, and again now and then.
            if failures == 1 || failures % 20 == 0 {
                self.warn(format!("recording {id} is not sent yet: {failure}"));
            }
            let wait = match is_refusal(&failure) {
                true => REFUSED,
                false => self.backoff(failures),
            };
            tokio::select! {
                () = self.route_changed_within(wait) => {}
                // What a refusal means for it may be another thing then.
                () = ends(live) => {}
            }
        }
    }

    /// Whether an entry is damaged, or cannot be sent for good: then it is where nothing sends it, and people are told.
    /// One that is written, or may yet be, stays until it has ended.
    async fn sets_aside(&self, id: RecordingId, failure: &Failure) -> Result<bool, Failure> {
        let ended = match self.spool.standing(id) {
            Ok(Standing::Live(_)) => return Ok(false),
            Ok(Standing::Ended(_)) | Err(SpoolError::Damaged { .. }) => true,
            Ok(Standing::Orphan) => false,
            Err(error) => return Err(error.into()),
        };
        let lost = match failure {
            Failure::Spool(SpoolError::Damaged { .. }) => true,
            _ if !ended => false,
            Failure::Upload(error) if is_for_good(error) => true,
            failure => is_refusal(failure) && self.is_changed(id).await?,
        };
        if lost {
            let (spool, path) = (Arc::clone(&self.spool), self.spool.aside(id));
            spawn_blocking(move || spool.set_aside(id)).await??;
            let as_new = matches!(failure, Failure::Upload(error) if fits_as_new(error));
            (self.warn)(Notice::SetAside { id, why: failure.to_string(), path, as_new });
        }
        Ok(lost)
    }

    /// Whether the payload on disk is not the one that was recorded.
    async fn is_changed(&self, id: RecordingId) -> Result<bool, Failure> {
        let Some(end) = self.spool.end(id)? else { return Ok(false) };
        let path = self.spool.payload(id);
        let file =
            tokio::fs::File::open(&path).await.map_err(files::failed(&path)).map_err(SpoolError::from)?;
        let payload = Payload::measure(file).await.map_err(UploadError::from)?;
        Ok(payload.sha256() != Some(end.sha256))
    }

    async fn attempt(&mut self, id: RecordingId) -> Result<(), Failure> {
        let metadata = self.spool.session(id)?.metadata();
        let (extent, _place) = match self.spool.standing(id)? {
            Standing::Live(extent) => (extent, None),
            Standing::Ended(extent) => {
                let extent = watch::channel::<Extent>(extent).1;
                (extent, Arc::clone(&self.places).acquire_owned().await.ok())
            }
            Standing::Orphan => {
                self.orphan(id).await?;
                return Err(UploadError::Abandoned.into());
            }
        };
        let path = self.spool.payload(id);
        let file =
            tokio::fs::File::open(&path).await.map_err(files::failed(&path)).map_err(SpoolError::from)?;
        let mut payload = Payload::following(file, extent);
        loop {
            let shown = self.route.borrow_and_update().clone();
            let Some(route) = shown else {
                // Whoever tells it is gone only with this process.
                let _ = self.route.changed().await;
                continue;
            };
            let uploader = Uploader::new(route.recordings, self.settings.limits);
            tokio::select! {
                sent = uploader.upload(id, &metadata, &mut payload) => { sent?; }
                // Its certificate may have ended, or the ingests be others: the next one goes on where this one was.
                Ok(()) = self.route.changed() => continue,
            }
            let spool = Arc::clone(&self.spool);
            spawn_blocking(move || spool.remove(id)).await??;
            return Ok(());
        }
    }

    /// Waits until an entry without a writer has one again; ends it when that takes too long.
    async fn orphan(&self, id: RecordingId) -> Result<(), Failure> {
        let until = Instant::now() + self.settings.grace;
        let mut changes = self.spool.changes();
        let taken_up = async {
            while matches!(self.spool.standing(id), Ok(Standing::Orphan)) && changes.changed().await.is_ok() {
            }
        };
        if timeout_at(until, taken_up).await.is_ok() {
            return Ok(());
        }
        let spool = Arc::clone(&self.spool);
        match spawn_blocking(move || spool.end_orphan(id, clock::unix_ms())).await? {
            // Somebody took it up at the last moment.
            Err(SpoolError::Over(_)) | Ok(()) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    async fn events(mut self) {
        let mut failures = 0;
        loop {
            let told = self.tell_all().await;
            match told {
                Ok(()) => failures = 0,
                Err(error) => {
                    failures += 1;
                    if failures == 1 {
                        self.warn(format!("events for the audit log wait: {error}"));
                    }
                }
            }
            if failures > 0 {
                self.route_changed_within(self.backoff(failures)).await;
            } else {
                tokio::select! {
                    () = self.spool.outbox().changed() => {}
                    () = sleep(RESCAN) => {}
                }
            }
        }
    }

    /// Tells what waits, in order.
    async fn tell_all(&mut self) -> Result<(), Failure> {
        for (path, event) in self.spool.outbox().waiting()? {
            let Some(event) = event else {
                self.warn(format!("{} is no event of this release, and stays there", path.display()));
                continue;
            };
            let route = self.route.wait_for(Option::is_some).await.ok().and_then(|route| route.clone());
            let Some(route) = route else { return Ok(()) };
            match tell(&route.auth, &event).await {
                Ok(()) => {}
                Err(error) if error.code() == Some(Code::InvalidArgument) => {
                    self.warn(format!("the cluster does not take the event {}: {error}", event.event));
                }
                Err(error) => return Err(error.into()),
            }
            self.spool.outbox().forget(&path)?;
        }
        Ok(())
    }

    fn backoff(&self, failures: u32) -> Duration {
        let (least, longest) = self.settings.backoff;
        let full = least.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(longest);
        full.mul_f64(0.5 + rand::random::<f64>() / 2.0)
    }

    async fn route_changed_within(&mut self, wait: Duration) {
        let _ = timeout_at(Instant::now() + wait, self.route.changed()).await;
    }
}

/// Waits until what is written has its end, or nobody writes it any more.
async fn ends(live: Option<watch::Receiver<Extent>>) {
    match live {
        Some(mut extent) => drop(extent.wait_for(|extent| extent.end.is_some()).await),
        None => std::future::pending().await,
    }
}

/// Whether the cluster said no for good, as far as it knows.
fn is_refusal(failure: &Failure) -> bool {
    match failure {
        Failure::Upload(UploadError::Client(error)) => matches!(
            error.code(),
            Some(Code::PermissionDenied | Code::FailedPrecondition | Code::InvalidArgument | Code::DataLoss)
        ),
        Failure::Upload(error) => is_for_good(error),
        _ => false,
    }
}

/// Whether what has ended is answered the same at every attempt.
fn is_for_good(error: &UploadError) -> bool {
    match error {
        UploadError::Truncated { .. } => true,
        UploadError::Payload(error) => error.kind() == io::ErrorKind::UnexpectedEof,
        error => fits_as_new(error),
    }
}

/// Whether it can be sent under another id alone, as a recording of the agent that this host is now.
fn fits_as_new(error: &UploadError) -> bool {
    match error {
        UploadError::Differs(_) => true,
        // The host had another name in the cluster.
        UploadError::Client(refusal) if refusal.status().is_some_and(names_node) => true,
        error => error.is_of_another_agent(),
    }
}

/// Whether the field is wrong that says which host it is of.
fn names_node(status: &StatusError) -> bool {
    status.violations.iter().any(|violation| violation.field == NODE)
}

/// Tells one event. One that the cluster has by its key is told.
async fn tell(auth: &Client, event: &Event) -> Result<(), ClientError> {
    let request = EmitAuditEventRequest {
        event: event.event.clone(),
        target: event.target.clone(),
        fields: event.fields.clone(),
    };
    let retry = Retry::Keyed(IdempotencyKey::new(event.key.clone())?);
    let emit = |mut auth: AuthClient, request| async move { auth.emit_audit_event(request).await };
    match auth.call(retry, request, emit).await {
        Ok(_) => Ok(()),
        Err(error) if error.status().is_some_and(|status| status.reason.as_deref() == Some(KEY_REUSED)) => {
            Ok(())
        }
        Err(error) => Err(error),
    }
}
