//! What a call does to its recording: chunks become segments, and segments a sealed recording.

use mezite_daemon::clock;
use mezite_proto::v1::{RecordingChunk, RecordingFinal};
use recording_format::{FRAME_HEADER_LEN, ObjectKey, RecordingState, SegmentRef, SignedManifest};
use tokio::time::{Instant, timeout};

use super::{
    Call, Writing,
    begin::{check_not_going, mark_open},
    is_truncated,
};
use crate::{
    budget::MOST_AT_ONCE,
    convert,
    disk::Room,
    error::IngestError,
    metrics,
    objects::Created,
    quarantine,
    recover::{self, LastSegment},
    seal::{self, End, Sealing},
    session::{Progress, Session},
};

const NO_SESSION: &str = "a recording was written without a session";

impl Call {
    pub(super) fn committed(&self) -> u64 {
        self.writing.as_ref().map_or(self.stored.committed, |writing| writing.session.committed())
    }

    /// Takes a chunk, writes a segment when enough has come together, and seals the recording when it is as large as
    /// one may be.
    pub(super) async fn chunk(&mut self, chunk: RecordingChunk) -> Result<(), IngestError> {
        if self.stored.sealed().is_none() {
            self.write().await?;
        }
        if let Some(signed) = self.stored.sealed() {
            return check_sealed_chunk(signed, &chunk);
        }
        self.make_room(&chunk).await?;
        let session = self.session()?;
        let whole = session.chunk(chunk.offset, &chunk.data, chunk.crc32c)?;
        let pending = session.pending_object();
        metrics::received(chunk.data.len());
        self.share.keep(pending);
        if !whole {
            return self.truncate().await;
        }
        if pending >= self.ingest.limits().segment_bytes {
            return self.flush().await;
        }
        if pending > 0 && self.due.is_none() {
            self.due = Some(Instant::now() + self.ingest.limits().flush_interval);
        }
        Ok(())
    }

    /// Room for a chunk, on the disk and in memory. Whoever waits for it holds nothing.
    async fn make_room(&mut self, chunk: &RecordingChunk) -> Result<(), IngestError> {
        let session = self.session()?;
        let is_news = chunk.offset.saturating_add(chunk.data.len() as u64) > session.received();
        if is_news && session.pending() == 0 && self.ingest.objects.room().await == Room::Ends {
            return Err(IngestError::NoRoom("more of a recording"));
        }
        let bytes = (chunk.data.len() + FRAME_HEADER_LEN).min(MOST_AT_ONCE);
        if !self.share.try_take(bytes) {
            self.flush().await?;
            let patience = self.ingest.limits().message_timeout;
            timeout(patience, self.share.take(bytes)).await.map_err(|_| IngestError::NoMemory)?;
        }
        Ok(())
    }

    async fn mark_open(&self) -> Result<(), IngestError> {
        mark_open(&self.ingest.objects, self.ingest.identity().agent_id(), self.id).await
    }

    fn session(&mut self) -> Result<&mut Session, IngestError> {
        let writing = self.writing.as_mut().ok_or_else(|| IngestError::Internal(NO_SESSION.to_owned()))?;
        Ok(&mut writing.session)
    }

    /// Claims the recording and looks again where it stands, unless the call before left it just there: it may have written
    /// in between, or sealed it. Then there is nothing to write.
    async fn write(&mut self) -> Result<(), IngestError> {
        if self.writing.is_some() {
            return Ok(());
        }
        let claim = timeout(self.ingest.limits().message_timeout, self.ingest.claims.claim(self.id));
        let held = IngestError::Superseded { committed: self.stored.committed };
        let mut claim = claim.await.map_err(|_| held)?;
        let left = claim.take();
        if !left.as_ref().is_some_and(|left| left.same_place(&self.found())) {
            self.look_again().await?;
        }
        if self.stored.sealed().is_some() {
            return Ok(());
        }
        let found = self.found();
        let progress = match left.filter(|left| left.same_place(&found)) {
            Some(left) => left,
            None if found.committed == 0 => Progress::empty(found.head),
            None => found,
        };
        if self.stored.manifest.is_some() {
            self.mark_open().await?;
        }
        check_not_going(&self.ingest, self.id).await?;
        let session = Session::new(self.id, progress, self.most());
        self.writing = Some(Writing { claim, session });
        Ok(())
    }

    /// The place at which the recording was seen, whoever wrote it.
    fn found(&self) -> Progress {
        Progress { committed: self.stored.committed, head: self.stored.head, history: None }
    }

    fn most(&self) -> u64 {
        self.stored.most(self.ingest.limits().max_recording_bytes)
    }

    /// Loads the recording again. What another process added is made durable before it counts.
    async fn look_again(&mut self) -> Result<(), IngestError> {
        let (stored, is_known) =
            recover::look(&self.ingest.objects, self.id, Some(self.stored.clone())).await?;
        let stored = stored.ok_or(IngestError::Missing)?;
        if !is_known && (stored.head, &stored.manifest) != (self.stored.head, &self.stored.manifest) {
            self.ingest.objects.settle(self.id).await?;
            self.settled = false;
        }
        self.stored = stored;
        Ok(())
    }

    /// Writes what was received as a segment. When this returns, it is durable.
    ///
    /// # Errors
    /// When the store fails, or another process wrote something else in this place; then this call must end.
    pub(super) async fn flush(&mut self) -> Result<(), IngestError> {
        self.due = None;
        // Without its segment the session is of no use: it is put back only after a success.
        let Some(mut writing) = self.writing.take() else { return Ok(()) };
        if let Some(builder) = writing.session.take_pending() {
            let began = Instant::now();
            let segment = tokio::task::spawn_blocking(move || builder.finish()).await?;
            let segment =
                segment.ok_or_else(|| IngestError::Internal("a pending segment was empty".to_owned()))?;
            let key = ObjectKey::Segment(self.id, segment.header.start);
            let object = segment.object.iter().cloned().collect();
            if let Created::Taken(_) = self.ingest.objects.create(key, object).await? {
                let stored =
                    recover::load(&self.ingest.objects, self.id).await?.ok_or(IngestError::Missing)?;
                return Err(IngestError::Superseded { committed: stored.committed });
            }
            if !self.settled {
                self.ingest.objects.settle(self.id).await?;
                self.settled = true;
            }
            // Whoever sealed it as interrupted may have removed the marker since this call began, and then others may delete it.
            if !self.ingest.objects.has(ObjectKey::Open(self.id)).await? {
                self.mark_open().await?;
                check_not_going(&self.ingest, self.id).await?;
            }
            writing.session.commit(&segment);
            self.stored.segments += 1;
            self.stored.last =
                Some(LastSegment { start: segment.header.start, object_len: segment.object_len() });
            metrics::segment_written(segment.object_len(), began.elapsed());
            self.ingest.catalog.grow(self.id, writing.session.committed());
        }
        (self.stored.committed, self.stored.head) = (writing.session.committed(), writing.session.head());
        writing.session.end_at(self.most());
        self.writing = Some(writing);
        self.share.give_back();
        Ok(())
    }

    /// Seals the recording, or answers what sealed it before.
    pub(super) async fn finish(&mut self, end: RecordingFinal) -> Result<(), IngestError> {
        let end = End {
            total: end.total_length,
            payload_sha256: convert::digest("final.payload_sha256", &end.payload_sha256)?,
            ended_at_ms: convert::time("final.ended_at", end.ended_at)?,
        };
        if self.stored.sealed().is_none() {
            self.flush().await?;
            self.write().await?;
        }
        if let Some(signed) = self.stored.sealed() {
            let answered = end.is_of(&signed.manifest) || is_truncated(signed);
            return if answered { Ok(()) } else { Err(IngestError::Sealed) };
        }
        self.learn().await?;
        let segments = self.session()?.finish(end.total, end.payload_sha256)?.to_vec();
        self.seal(RecordingState::Complete, segments, end).await
    }

    /// Seals the recording with what is there of it: it is as large as one may be.
    async fn truncate(&mut self) -> Result<(), IngestError> {
        self.flush().await?;
        self.learn().await?;
        let session = self.session()?;
        let (segments, payload_sha256) = session.sum()?;
        let (segments, total) = (segments.to_vec(), session.committed());
        tracing::warn!(id = %self.id, bytes = total, "a recording reached its largest size and ends there");
        let end = End { total, payload_sha256, ended_at_ms: Some(clock::unix_ms()) };
        self.seal(RecordingState::Truncated, segments, end).await
    }

    /// Reads what another process wrote, where the manifest needs it.
    async fn learn(&mut self) -> Result<(), IngestError> {
        if !self.session()?.has_history() {
            let (verified, payload) = match recover::walk(&self.ingest.objects, self.id).await {
                Err(IngestError::Damaged(why)) => {
                    return Err(quarantine::isolate_for(&self.ingest, self.id, why).await);
                }
                walked => walked?,
            };
            self.session()?.learn(verified, payload)?;
        }
        Ok(())
    }

    async fn seal(
        &mut self,
        state: RecordingState,
        segments: Vec<SegmentRef>,
        end: End,
    ) -> Result<(), IngestError> {
        let (writer, gaps) = (Some(&self.writer), Vec::new());
        let sealing = Sealing { writer, stored: &self.stored, state, segments, gaps, end };
        let signed = seal::seal(&self.ingest, sealing).await?;
        self.stored.manifest = Some(signed.into());
        self.writing = None;
        self.ingest.claims.forget(self.id);
        Ok(())
    }
}

/// A chunk for a sealed recording may only repeat what is in it, unless the recording was cut short.
fn check_sealed_chunk(signed: &SignedManifest, chunk: &RecordingChunk) -> Result<(), IngestError> {
    if crc32c::crc32c(&chunk.data) != chunk.crc32c {
        return Err(IngestError::BadChecksum { offset: chunk.offset });
    }
    let end = chunk.offset.checked_add(chunk.data.len() as u64);
    let is_in = end.is_some_and(|end| end <= signed.manifest.length);
    if is_in || is_truncated(signed) { Ok(()) } else { Err(IngestError::Sealed) }
}
