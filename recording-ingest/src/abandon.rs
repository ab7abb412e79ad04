//! Ends recordings whose agents have fallen silent, so that they can be found, read and, one day, deleted.
//!
//! Each replica looks at the markers of open recordings now and then, at times of its own and without asking the
//! others. One of which nothing was heard for the grace time, neither bytes nor that it
//! goes on, is sealed as interrupted: that takes nothing from its agent,
//! which goes on when it returns, and the next revision of the manifest covers both parts. Two replicas that do it at
//! once want the same object, which is created once. Where a replica cannot tell, it leaves the recording alone.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use mezite_daemon::clock;
use recording_format::{Gap, ObjectKey, RecordingId, RecordingState, recording_prefix};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    claims::Claim,
    error::IngestError,
    index::{RowState, row_of},
    quarantine::{self, Found},
    recover::{self, Stored},
    retention::millis,
    seal::{self, End, Sealing},
    service::Ingest,
    stream::mark_open,
};

/// So many times in a grace time it is looked, but at least once in [`LONGEST_WAIT`].
const ROUNDS: u32 = 6;
const LONGEST_WAIT: Duration = Duration::from_secs(300);
/// What cannot be ended is tried again after this at the latest, or after the grace time where that is longer.
const LONGEST_RETRY: Duration = Duration::from_secs(24 * 3_600);

/// Looks after open recordings.
pub(crate) struct Abandoned {
    ingest: Arc<Ingest>,
    grace: Duration,
    /// Those that could not be ended, and when they are tried again.
    failed: HashMap<RecordingId, Retry>,
}

/// When what failed is tried again.
#[derive(Debug, Clone, Copy)]
struct Retry {
    failures: u32,
    due: Instant,
}

impl Abandoned {
    pub(crate) fn new(ingest: Arc<Ingest>, grace: Duration) -> Self {
        Self { ingest, grace, failed: HashMap::new() }
    }

    /// Goes on until cancelled.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let work = async {
            loop {
                tokio::time::sleep(wait(self.grace, rand::random())).await;
                if let Err(error) = self.round().await {
                    tracing::warn!(error = error.internals(), "open recordings could not be looked at");
                }
            }
        };
        tokio::select! {
            () = work => (),
            () = stop.cancelled() => (),
        }
    }

    async fn round(&mut self) -> Result<(), IngestError> {
        let since = self.silent_since();
        let open = self.ingest.objects.list_times(ObjectKey::OPEN).await?;
        let open = open.into_iter().filter_map(|(key, created)| match key {
            ObjectKey::Open(id) => Some((id, created)),
            _ => None,
        });
        let open: Vec<_> = open.collect();
        let is_open: HashSet<_> = open.iter().map(|(id, _)| *id).collect();
        self.failed.retain(|id, _| is_open.contains(id));
        for (id, created) in open {
            if created > since || self.failed.get(&id).is_some_and(|retry| retry.due > Instant::now()) {
                continue;
            }
            match self.look_at(id, since).await {
                Ok(()) => drop(self.failed.remove(&id)),
                Err(IngestError::Store(error)) => return Err(error.into()),
                // One that cannot be ended must not keep the others from it.
                Err(error) => self.put_off(id, &error),
            }
        }
        Ok(())
    }

    /// Tries it again, after a time that grows: another replica may be mending it, or an upgrade be needed.
    fn put_off(&mut self, id: RecordingId, error: &IngestError) {
        let failures = self.failed.get(&id).map_or(0, |retry| retry.failures) + 1;
        let wait = self.grace.saturating_mul(1 << failures.min(10)).min(LONGEST_RETRY.max(self.grace));
        self.failed.insert(id, Retry { failures, due: Instant::now() + wait });
        tracing::error!(%id, failures, error = error.internals(), "an abandoned recording cannot be ended");
    }

    /// What has not changed since then, in Unix milliseconds, is silent.
    fn silent_since(&self) -> u64 {
        clock::unix_ms().saturating_sub(millis(self.grace))
    }

    async fn look_at(&self, id: RecordingId, since: u64) -> Result<(), IngestError> {
        // Held by a call of this process: somebody writes it.
        let Some(claim) = self.ingest.claims.try_claim(id) else { return Ok(()) };
        let objects = self.ingest.objects.list_times(&recording_prefix(id)).await?;
        // A marker without a recording: its agent did not get far, and may begin it any time.
        let Some(newest) = objects.iter().map(|(_, created)| *created).max() else { return Ok(()) };
        if newest > since {
            return Ok(());
        }
        match self.end(id, newest, Vec::new()).await {
            Err(IngestError::Damaged(_) | IngestError::Missing) => self.end_damaged(id, newest).await?,
            ended => ended?,
        }
        self.leave(id, claim).await
    }

    /// Ends what is good of a recording.
    async fn end_damaged(&self, id: RecordingId, last_ms: u64) -> Result<(), IngestError> {
        let whole = recover::load(&self.ingest.objects, id).await.ok().flatten();
        match quarantine::isolate(&self.ingest.objects, self.ingest.identity().agent_id(), id).await? {
            Found::Good => self.end(id, last_ms, Vec::new()).await,
            Found::Shorter(start) => {
                let end = whole.map_or(start, |stored| stored.committed);
                let length = end.saturating_sub(start);
                let gaps = if length == 0 { Vec::new() } else { vec![Gap { start, length }] };
                self.end(id, last_ms, gaps).await
            }
            Found::Nothing => {
                self.ingest.catalog.remove(id);
                Ok(())
            }
        }
    }

    /// Ends a recording that was last written at `last_ms`.
    async fn end(&self, id: RecordingId, last_ms: u64, gaps: Vec<Gap>) -> Result<(), IngestError> {
        let objects = &self.ingest.objects;
        let Some(stored) = recover::load(objects, id).await? else { return Ok(()) };
        objects.settle(id).await?;
        match &stored.manifest {
            // It was sealed, and whoever did it got no further.
            Some(signed) if stored.is_covered_by(signed) => {
                let entry = signed.manifest.index_entry(&signed.document);
                Ok(seal::publish_again(objects, &entry, self.ingest.tells).await?)
            }
            Some(_) | None => self.interrupt(&stored, last_ms, gaps).await,
        }
    }

    async fn interrupt(&self, stored: &Stored, last_ms: u64, gaps: Vec<Gap>) -> Result<(), IngestError> {
        let id = stored.begin.recording_id;
        let (verified, _) = recover::walk(&self.ingest.objects, id).await?;
        if (verified.length, verified.head) != (stored.committed, stored.head) {
            // Somebody writes it after all.
            return Ok(());
        }
        // Nobody knows when its session ended: it went on until then at least.
        let ended_at_ms = Some(last_ms.max(stored.begin.metadata.started_at_ms));
        let end = End { total: verified.length, payload_sha256: verified.payload_sha256, ended_at_ms };
        let (state, segments) = (RecordingState::Interrupted, verified.segments);
        let sealing = Sealing { writer: None, stored, state, segments, gaps, end };
        match seal::seal(&self.ingest, sealing).await {
            Ok(_) => {
                tracing::info!(%id, bytes = end.total, "a recording was abandoned and is sealed as interrupted");
                Ok(())
            }
            // Another process was first, with more of it.
            Err(IngestError::Sealed | IngestError::Superseded { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// An agent that came back while its recording was sealed found the marker that was removed then.
    async fn leave(&self, id: RecordingId, claim: Claim) -> Result<(), IngestError> {
        let stored = recover::load(&self.ingest.objects, id).await?;
        if stored.is_some_and(|stored| row_of(&stored).state == RowState::InProgress) {
            mark_open(&self.ingest.objects, self.ingest.identity().agent_id(), id).await?;
        }
        drop(claim);
        Ok(())
    }
}

/// `chance` is between 0 and 1. Between a half and one and a half times as long, so that replicas do not come together.
fn wait(grace: Duration, chance: f64) -> Duration {
    (grace / ROUNDS).min(LONGEST_WAIT).mul_f64(0.5 + chance.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replicas_come_at_times_of_their_own() {
        let hour = Duration::from_secs(3_600);
        assert_eq!([0.0, 0.5, 1.0].map(|chance| wait(hour, chance).as_secs()), [150, 300, 450]);
        assert_eq!(wait(Duration::from_secs(6), 0.5), Duration::from_secs(1));
    }
}
