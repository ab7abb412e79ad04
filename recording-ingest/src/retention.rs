//! Deletes recordings whose time is over.
//!
//! A deletion is decided once, in a document of its own, `gone/v1/{id}.json`, and then carried out by whichever
//! replica comes across it, in steps that can all be repeated: index, manifests, segments, begin, marker. The document
//! stays until the cluster was told (`report`). So a crash leaves nothing that is half there and forgotten. A
//! recording that is open is never deleted; one that was told of while it was interrupted, and goes on, is spared.

use std::{sync::Arc, time::Duration};

use mezite_daemon::clock;
use recording_format::{
    Deletion, MAX_TIME_MS, ObjectKey, RecordingId, SignedManifest, manifest_prefix, quarantine_prefix,
    segment_prefix,
};
use tokio_util::sync::CancellationToken;

use crate::{
    config::RetentionConfig,
    error::IngestError,
    index::{RowState, row_of},
    metrics, recover,
    service::Ingest,
};

/// Deletes what need not be kept.
pub(crate) struct Retention {
    ingest: Arc<Ingest>,
    keep_ms: u64,
    interval: Duration,
}

impl Retention {
    /// `None` where everything is kept for ever.
    pub(crate) fn new(ingest: Arc<Ingest>, config: &RetentionConfig) -> Option<Self> {
        let keep_ms = millis(config.keep?);
        Some(Self { ingest, keep_ms, interval: config.interval })
    }

    /// Goes on until cancelled.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let work = async {
            loop {
                tokio::time::sleep(self.interval.mul_f64(0.5 + rand::random::<f64>())).await;
                if let Err(error) = self.round().await {
                    tracing::warn!(error = error.internals(), "old recordings could not be deleted");
                }
            }
        };
        tokio::select! {
            () = work => (),
            () = stop.cancelled() => (),
        }
    }

    async fn round(&self) -> Result<(), IngestError> {
        let now = clock::unix_ms();
        for id in self.ingest.catalog.expired(now, now.saturating_sub(self.keep_ms)) {
            self.each(id, self.decide(id, now).await)?;
        }
        for (key, _) in self.ingest.objects.list(ObjectKey::GONE).await? {
            if let ObjectKey::Gone(id) = key {
                self.each(id, self.delete(id).await)?;
            }
        }
        Ok(())
    }

    /// One recording that cannot be deleted must not keep the others from it.
    fn each(&self, id: RecordingId, result: Result<(), IngestError>) -> Result<(), IngestError> {
        match result {
            Err(IngestError::Store(error)) => Err(error.into()),
            Err(error) => {
                tracing::warn!(%id, error = error.internals(), "an old recording could not be deleted");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Decides that a recording goes, if it is closed and its time is over.
    async fn decide(&self, id: RecordingId, now: u64) -> Result<(), IngestError> {
        let objects = &self.ingest.objects;
        let Some(_claim) = self.ingest.claims.try_claim(id) else { return Ok(()) };
        let Some(stored) = recover::load(objects, id).await? else {
            // An entry of the index that outlived its recording.
            return self.forget(id).await;
        };
        let is_open = row_of(&stored).state == RowState::InProgress || self.is_marked(id).await?;
        let Some(signed) = stored.manifest.as_ref().filter(|_| !is_open) else { return Ok(()) };
        // What the cluster was not told of yet is told first.
        let notice = ObjectKey::Audit(id, signed.manifest.revision);
        let untold = self.ingest.tells && objects.has(notice).await?;
        if untold || due(signed, self.keep_ms).is_none_or(|due| now < due) {
            return Ok(());
        }
        let deletion = Deletion::new(signed, now, self.ingest.identity().agent_id());
        // Another replica may have decided it already.
        objects.create(ObjectKey::Gone(id), deletion.encode()?.into()).await?;
        tracing::info!(%id, bytes = deletion.length, "a recording need not be kept any longer and is deleted");
        metrics::recording_deleted();
        Ok(())
    }

    /// Carries a decision out, from wherever it was left.
    async fn delete(&self, id: RecordingId) -> Result<(), IngestError> {
        let objects = &self.ingest.objects;
        let Some(_claim) = self.ingest.claims.try_claim(id) else { return Ok(()) };
        let Some(document) = objects.get(ObjectKey::Gone(id)).await? else { return Ok(()) };
        let deletion = Deletion::decode(id, &document)?;
        let manifests = objects.list(&manifest_prefix(id)).await?;
        let newest = manifests.iter().filter_map(|(key, _)| revision(*key)).max();
        if newest > Some(deletion.revision) || newest.is_some() && self.is_marked(id).await? {
            // Its agent has come back, and nothing is gone yet but what the next seal makes anew. While this decision is
            // there, nobody adds to the recording.
            return Ok(objects.delete(ObjectKey::Gone(id)).await?);
        }
        let entries = (0..=deletion.revision).map(|revision| ObjectKey::Index {
            start_ms: deletion.metadata.started_at_ms.min(MAX_TIME_MS),
            id,
            revision,
        });
        let entries: Vec<_> = entries.collect();
        self.delete_all(entries.iter().copied()).await?;
        self.ingest.catalog.remove(id);
        // The newest manifest last: the ones before it say less.
        self.delete_all(manifests.into_iter().map(|(key, _)| key)).await?;
        for prefix in [segment_prefix(id), quarantine_prefix(id)] {
            let keys = objects.list(&prefix).await?;
            self.delete_all(keys.into_iter().rev().map(|(key, _)| key)).await?;
        }
        // Another replica may have repaired the index meanwhile.
        self.delete_all([ObjectKey::Begin(id), ObjectKey::Open(id)].into_iter().chain(entries)).await?;
        self.ingest.catalog.remove(id);
        if !self.ingest.tells {
            objects.delete(ObjectKey::Gone(id)).await?;
        }
        Ok(())
    }

    async fn delete_all(&self, keys: impl IntoIterator<Item = ObjectKey>) -> Result<(), IngestError> {
        for key in keys {
            self.ingest.objects.delete(key).await?;
        }
        Ok(())
    }

    async fn forget(&self, id: RecordingId) -> Result<(), IngestError> {
        if let Some(row) = self.ingest.catalog.get(id) {
            let start_ms = row.metadata.started_at_ms.min(MAX_TIME_MS);
            let revisions = 0..=row.revision.unwrap_or_default();
            self.delete_all(revisions.map(|revision| ObjectKey::Index { start_ms, id, revision })).await?;
        }
        self.ingest.catalog.remove(id);
        Ok(())
    }

    async fn is_marked(&self, id: RecordingId) -> Result<bool, IngestError> {
        Ok(self.ingest.objects.has(ObjectKey::Open(id)).await?)
    }
}

fn revision(key: ObjectKey) -> Option<u16> {
    match key {
        ObjectKey::Manifest(_, revision) => Some(revision),
        _ => None,
    }
}

/// When a recording may go, Unix milliseconds; `None`: never.
fn due(signed: &SignedManifest, keep_ms: u64) -> Option<u64> {
    let promised = signed.manifest.retain_until_ms?;
    Some(promised.max(signed.manifest.sealed_at_ms.saturating_add(keep_ms)))
}

/// Whole milliseconds.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
