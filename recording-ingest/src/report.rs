//! Tells the cluster's audit log of recordings that were sealed and of those that were deleted.
//!
//! What is to be told is in the store before it can be seen by others: a notice for each manifest, a document for each
//! deletion. It is removed once an auth node has taken it, so a cluster that is away is told afterwards. The ingest
//! that sealed or deleted tells it; another one only when that has not come about for long while the cluster could
//! be reached. Each event is told under one idempotency key, by which auth nodes know repetitions.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use mezite_client::{AuthClient, Client, ClientError, IdempotencyKey, Retry};
use mezite_proto::v1::EmitAuditEventRequest;
use recording_format::{
    AgentId, Deletion, Digest, Manifest, Metadata, ObjectKey, RecordingId, RecordingState,
    decode_signed_manifest, recording_prefix,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::{
    config::Config,
    error::IngestError,
    identity::{Identity, IdentityError},
    metrics,
    service::Ingest,
};

const UPLOAD: &str = "session.upload";
const DELETE: &str = "session.recording.delete";
/// After a failure it is waited so many times as long.
const AFTER_FAILURE: u32 = 5;

/// Since when auth nodes have taken what they were told, without a failure in between.
#[derive(Debug, Default)]
pub(crate) struct Reach(Mutex<Option<Instant>>);

impl Reach {
    pub(crate) fn note(&self, reached: bool) {
        let mut since = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *since = if reached { since.or_else(|| Some(Instant::now())) } else { None };
    }

    fn lasts(&self, at_least: Duration) -> bool {
        let since = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        since.is_some_and(|since| since.elapsed() >= at_least)
    }
}

/// Why something could not be told.
#[derive(Debug, thiserror::Error)]
enum ReportError {
    #[error("{}", .0.internals())]
    Ingest(#[from] IngestError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// What the cluster is to be told.
struct Event {
    name: &'static str,
    id: RecordingId,
    revision: u16,
    /// Whose it is to tell.
    by: AgentId,
    fields: BTreeMap<String, String>,
}

/// Tells the cluster.
pub(crate) struct Reporter {
    ingest: Arc<Ingest>,
    config: Config,
    /// With the identity that it shows.
    client: Option<(Arc<Identity>, Client)>,
    /// How long another ingest has to tell its own.
    takeover: Duration,
    /// Since when something of another ingest has been there.
    seen: HashMap<ObjectKey, Instant>,
    /// What no auth node takes, as the log says.
    refused: HashSet<ObjectKey>,
}

impl Reporter {
    pub(crate) fn new(config: Config, ingest: Arc<Ingest>) -> Self {
        // Not two at once where the one whose it is has gone.
        let takeover = config.control.report_takeover.mul_f64(1.0 + rand::random::<f64>());
        Self { ingest, config, client: None, takeover, seen: HashMap::new(), refused: HashSet::new() }
    }

    /// Goes on until cancelled.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let work = async {
            let interval = self.config.control.report_interval;
            let mut failing = false;
            loop {
                tokio::time::sleep(if failing { interval * AFTER_FAILURE } else { interval }).await;
                let told = self.round().await;
                if let (Err(error), false) = (&told, failing) {
                    tracing::warn!(%error, "the cluster could not be told of recordings; it is told later");
                }
                failing = told.is_err();
            }
        };
        tokio::select! {
            () = work => (),
            () = stop.cancelled() => (),
        }
    }

    async fn round(&mut self) -> Result<(), ReportError> {
        let objects = Arc::clone(&self.ingest.objects);
        let mut untold = objects.list_times(ObjectKey::AUDIT).await.map_err(IngestError::from)?;
        untold.extend(objects.list_times(ObjectKey::GONE).await.map_err(IngestError::from)?);
        metrics::untold(untold.len(), untold.iter().map(|(_, created)| *created).min());
        let keys: BTreeSet<_> = untold.into_iter().map(|(key, _)| key).collect();
        self.seen.retain(|key, _| keys.contains(key));
        for key in keys {
            if !self.refused.contains(&key) && !self.is_anothers(key) {
                self.look_at(key).await?;
            }
        }
        Ok(())
    }

    /// Whether it was seen before, and its own ingest still has time.
    fn is_anothers(&self, key: ObjectKey) -> bool {
        let (seen, takeover) = (self.seen.get(&key), self.takeover);
        seen.is_some_and(|seen| seen.elapsed() < takeover || !self.ingest.reach.lasts(takeover))
    }

    async fn look_at(&mut self, key: ObjectKey) -> Result<(), ReportError> {
        let event = match self.event(key).await {
            Ok(event) => event,
            Err(IngestError::Store(error)) => return Err(IngestError::from(error).into()),
            Err(error) => {
                tracing::error!(%key, error = error.internals(), "the cluster cannot be told of a recording");
                self.refused.insert(key);
                return Ok(());
            }
        };
        let Some(event) = event else { return Ok(()) };
        if event.by != self.ingest.identity().agent_id() && !self.seen.contains_key(&key) {
            self.seen.insert(key, Instant::now());
            return Ok(());
        }
        match self.tell(event).await {
            Ok(()) => Ok(self.ingest.objects.delete(key).await.map_err(IngestError::from)?),
            Err(ReportError::Client(error)) if error.code() == Some(Code::InvalidArgument) => {
                tracing::error!(%key, %error, "the auth nodes refuse to be told of a recording");
                self.refused.insert(key);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// What there is to tell; nothing where it is not the time, or nobody can say it any more.
    async fn event(&self, key: ObjectKey) -> Result<Option<Event>, IngestError> {
        let objects = &self.ingest.objects;
        match key {
            ObjectKey::Audit(id, revision) => match objects.get(ObjectKey::Manifest(id, revision)).await? {
                Some(object) => {
                    let signed = decode_signed_manifest(id, &object)?;
                    Ok(Some(upload(&signed.manifest, Digest::of(&signed.document))))
                }
                None => {
                    tracing::warn!(%id, revision, "a recording is gone before the cluster was told of it");
                    objects.delete(key).await?;
                    Ok(None)
                }
            },
            ObjectKey::Gone(id) => {
                let Some(document) = objects.get(key).await? else { return Ok(None) };
                let deletion = Deletion::decode(id, &document)?;
                let done = objects.list(&recording_prefix(id)).await?.is_empty();
                Ok(done.then(|| deleted(&deletion)))
            }
            _ => Ok(None),
        }
    }

    async fn tell(&mut self, event: Event) -> Result<(), ReportError> {
        let client = self.client()?;
        let key = Digest::of_parts(&[
            b"mezite audit event\n",
            event.name.as_bytes(),
            event.id.as_bytes(),
            &event.revision.to_be_bytes(),
        ]);
        let retry = Retry::Keyed(IdempotencyKey::new(key.to_string())?);
        let request = EmitAuditEventRequest {
            event: event.name.to_owned(),
            target: format!("recording:{}", event.id),
            fields: event.fields,
        };
        let emit = |mut auth: AuthClient, request| async move { auth.emit_audit_event(request).await };
        client.call(retry, request, emit).await?;
        Ok(())
    }

    fn client(&mut self) -> Result<Client, IdentityError> {
        let identity = self.ingest.identity();
        if let Some((shown, client)) = &self.client
            && Arc::ptr_eq(shown, &identity)
        {
            return Ok(client.clone());
        }
        let client = identity.client(&self.config)?;
        self.client = Some((identity, client.clone()));
        Ok(client)
    }
}

fn upload(manifest: &Manifest, manifest_sha256: Digest) -> Event {
    let state = match manifest.state {
        RecordingState::Complete => "COMPLETE",
        RecordingState::Interrupted => "INTERRUPTED",
        RecordingState::Truncated => "TRUNCATED",
    };
    let mut fields =
        fields(&manifest.metadata, manifest.agent_id, manifest.revision, manifest.length, manifest_sha256);
    fields.insert("state".to_owned(), state.to_owned());
    let (id, revision, by) = (manifest.recording_id, manifest.revision, manifest.ingest_id);
    Event { name: UPLOAD, id, revision, by, fields }
}

fn deleted(deletion: &Deletion) -> Event {
    let Deletion { recording_id, revision, agent_id, metadata, length, manifest_sha256, .. } = deletion;
    let fields = fields(metadata, *agent_id, *revision, *length, *manifest_sha256);
    Event { name: DELETE, id: *recording_id, revision: *revision, by: deletion.ingest_id, fields }
}

fn fields(
    metadata: &Metadata,
    agent_id: AgentId,
    revision: u16,
    size: u64,
    manifest_sha256: Digest,
) -> BTreeMap<String, String> {
    [
        ("user", metadata.user.clone()),
        ("login", metadata.login.clone()),
        ("node", metadata.node.clone()),
        ("agent_id", agent_id.to_string()),
        ("revision", revision.to_string()),
        ("size", size.to_string()),
        ("manifest_sha256", manifest_sha256.to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}
