//! Ends recordings whose agents have fallen silent, so that they can be found, read and, one day, deleted.
//!
//! Each replica looks at the markers of open recordings now and then, at times of its own and without asking the
//! others. One that has not grown for the grace time is sealed as interrupted: that takes nothing from its agent,
//! which goes on when it returns, and the next revision of the manifest covers both parts. Two replicas that do it at
//! once want the same object, which is created once. Where a replica cannot tell, it leaves the recording alone.

use std::{collections::HashSet, sync::Arc, time::Duration};

use mezite_daemon::clock;
use recording_format::{Gap, ObjectKey, RecordingId, RecordingState, recording_prefix};
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

/// Looks after open recordings.
pub(crate) struct Abandoned {
    ingest: Arc<Ingest>,
    grace: Duration,
    /// Those that cannot be ended, as the log says already.
    given_up: HashSet<RecordingId>,
}

impl Abandoned {
    pub(crate) fn new(ingest: Arc<Ingest>, grace: Duration) -> Self {
        Self { ingest, grace, given_up: HashSet::new() }
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
        for (key, created) in self.ingest.objects.list_times(ObjectKey::OPEN).await? {
            let ObjectKey::Open(id) = key else { continue };
            if created > since || self.given_up.contains(&id) {
                continue;
            }
            match self.look_at(id, since).await {
                Ok(()) => (),
                Err(IngestError::Store(error)) => return Err(error.into()),
                // One that cannot be ended must not keep the others from it, nor be tried for ever.
                Err(error) => {
                    tracing::error!(%id, error = error.internals(), "an abandoned recording cannot be ended");
                    self.given_up.insert(id);
                }
            }
        }
        Ok(())
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
        match self.end(id, Vec::new()).await {
            Err(IngestError::Damaged(_) | IngestError::Missing) => self.end_damaged(id).await?,
            ended => ended?,
        }
        self.leave(id, claim).await
    }

    /// Ends what is good of a recording.
    async fn end_damaged(&self, id: RecordingId) -> Result<(), IngestError> {
        let whole = recover::load(&self.ingest.objects, id).await.ok().flatten();
        match quarantine::isolate(&self.ingest.objects, self.ingest.identity().agent_id(), id).await? {
            Found::Good => self.end(id, Vec::new()).await,
            Found::Shorter(start) => {
                let end = whole.map_or(start, |stored| stored.committed);
                let length = end.saturating_sub(start);
                let gaps = if length == 0 { Vec::new() } else { vec![Gap { start, length }] };
                self.end(id, gaps).await
            }
            Found::Nothing => {
                self.ingest.catalog.remove(id);
                Ok(())
            }
        }
    }

    async fn end(&self, id: RecordingId, gaps: Vec<Gap>) -> Result<(), IngestError> {
        let objects = &self.ingest.objects;
        let Some(stored) = recover::load(objects, id).await? else { return Ok(()) };
        objects.settle(id).await?;
        match &stored.manifest {
            // It was sealed, and whoever did it got no further.
            Some(signed) if stored.is_covered_by(signed) => {
                let entry = signed.manifest.index_entry(&signed.document);
                Ok(seal::publish_again(objects, &entry, self.ingest.tells).await?)
            }
            Some(_) | None => self.interrupt(&stored, gaps).await,
        }
    }

    async fn interrupt(&self, stored: &Stored, gaps: Vec<Gap>) -> Result<(), IngestError> {
        let id = stored.begin.recording_id;
        let (verified, _) = recover::walk(&self.ingest.objects, id).await?;
        if (verified.length, verified.head) != (stored.committed, stored.head) {
            // Somebody writes it after all.
            return Ok(());
        }
        let end = End { total: verified.length, payload_sha256: verified.payload_sha256, ended_at_ms: None };
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
