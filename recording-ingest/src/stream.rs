//! One call that writes a recording: from its header to its reply.
//!
//! The call is run to its end in a task of its own, whatever becomes of the connection: what was received whole is
//! made durable also when the stream breaks off, the agent falls silent, a later chunk is refused, or the ingest
//! leaves. Offsets are judged in `session`, the end of a recording in `seal`.

use std::sync::Arc;

use futures::{Stream, StreamExt};
use mezite_daemon::clock;
use mezite_proto::v1::{
    RecordingChunk, RecordingFinal, RecordingHeader, StreamSessionRecordingRequest,
    StreamSessionRecordingResponse, UploadSessionRecordingRequest, stream_session_recording_request::Message,
};
use recording_format::{
    Begin, Digest, MAX_CHUNK_LEN, Metadata, ObjectKey, OpenMarker, RecordingId, SignedManifest,
};
use tokio::time::timeout;
use tonic::{Code, Status};

use crate::{
    authn::Writer,
    claims::Claim,
    convert,
    error::IngestError,
    index::row_of,
    metrics,
    objects::Created,
    recover::{self, Stored},
    seal::{self, End},
    service::Ingest,
    session::{Progress, Session},
};

/// A call that writes a recording.
struct Call {
    ingest: Arc<Ingest>,
    writer: Writer,
    id: RecordingId,
    stored: Stored,
    writing: Option<Writing>,
}

/// What a call has once it writes: a probe has none of it and disturbs nobody.
struct Writing {
    claim: Claim,
    session: Session,
    /// Whether the folders that other processes may have made are known to be durable.
    settled: bool,
}

/// Runs a whole `StreamSessionRecording`.
pub(crate) async fn run(
    ingest: Arc<Ingest>,
    writer: Writer,
    mut inbound: impl Stream<Item = Result<StreamSessionRecordingRequest, Status>> + Send + Unpin,
) -> Result<StreamSessionRecordingResponse, IngestError> {
    let first = tokio::select! {
        biased;
        () = ingest.leaving() => return Err(IngestError::Leaving),
        () = ingest.access.revoked(writer.agent_id) => return Err(IngestError::NotRegistered),
        first = next(&ingest, &mut inbound) => first?,
    };
    let Some(Message::Header(header)) = first else {
        return Err(IngestError::invalid("message", "the first message must be a header"));
    };
    let mut call = Call::begin(ingest, writer, header).await?;
    let reply = call.serve(&mut inbound).await;
    call.end(reply).await
}

/// Runs a whole `UploadSessionRecording`: a stream of one chunk and its end.
pub(crate) async fn upload(
    ingest: Arc<Ingest>,
    writer: Writer,
    request: UploadSessionRecordingRequest,
) -> Result<StreamSessionRecordingResponse, IngestError> {
    let UploadSessionRecordingRequest { recording_id, metadata, data, payload_sha256 } = request;
    if data.len() > MAX_CHUNK_LEN {
        return Err(IngestError::invalid("data", format!("at most {MAX_CHUNK_LEN} bytes")));
    }
    if Digest::of(&data) != convert::digest("payload_sha256", &payload_sha256)? {
        return Err(IngestError::PayloadMismatch);
    }
    let ended_at = metadata.as_ref().and_then(|metadata| metadata.ended_at);
    let header = RecordingHeader { recording_id, start_offset: 0, metadata };
    let mut call = Call::begin(ingest, writer, header).await?;
    let (crc32c, total_length) = (crc32c::crc32c(&data), data.len() as u64);
    let work = async {
        call.chunk(RecordingChunk { offset: 0, data, crc32c }).await?;
        call.finish(RecordingFinal { total_length, payload_sha256, ended_at }).await?;
        Ok(call.reply(false))
    };
    let reply = work.await;
    call.end(reply).await
}

/// What a call waits for.
enum Event {
    Message(Message),
    /// The agent half-closed the call.
    End,
    /// The ingest is leaving.
    Leaving,
    /// The agent is not registered any more.
    Revoked,
    /// A newer call wants to write.
    Superseded,
}

/// The next message, or `None` after the half-close.
async fn next(
    ingest: &Ingest,
    inbound: &mut (impl Stream<Item = Result<StreamSessionRecordingRequest, Status>> + Unpin),
) -> Result<Option<Message>, IngestError> {
    match timeout(ingest.limits().message_timeout, inbound.next()).await {
        Err(_) => Err(IngestError::Idle),
        Ok(None) => Ok(None),
        // How the codec refuses a message above its bound.
        Ok(Some(Err(status))) if status.code() == Code::OutOfRange => {
            Err(IngestError::invalid("message", "is too long; send chunks of at most 1 MiB"))
        }
        Ok(Some(Err(status))) => Err(IngestError::BrokenOff(Box::new(status))),
        Ok(Some(Ok(request))) => match request.message {
            Some(message) => Ok(Some(message)),
            None => Err(IngestError::invalid("message", "is not set")),
        },
    }
}

impl Call {
    /// Finds the recording, or begins it where the header has metadata.
    ///
    /// # Errors
    /// When the header is out of bounds, the recording is another agent's or of another session, it is begun for
    /// another host, or bytes are missing before the offset.
    async fn begin(
        ingest: Arc<Ingest>,
        writer: Writer,
        header: RecordingHeader,
    ) -> Result<Self, IngestError> {
        let id = convert::recording_id("header.recording_id", &header.recording_id)?;
        tracing::Span::current().record("recording", tracing::field::display(id));
        let metadata = header.metadata.map(convert::metadata).transpose()?;
        let stored = match (recover::load(&ingest.objects, id).await?, metadata) {
            (Some(stored), metadata) => {
                check_owner(&stored, &writer, metadata)?;
                stored
            }
            (None, Some(_)) if header.start_offset > 0 => {
                return Err(IngestError::OffsetAhead { expected: 0 });
            }
            (None, Some(metadata)) => {
                check_node(&writer, &metadata.node)?;
                create(&ingest, &writer, id, metadata).await?
            }
            (None, None) => return Err(IngestError::UnknownRecording),
        };
        if header.start_offset > stored.committed {
            return Err(match stored.sealed() {
                Some(_) => IngestError::Sealed,
                None => IngestError::OffsetAhead { expected: stored.committed },
            });
        }
        ingest.objects.settle(id).await?;
        Ok(Self { ingest, writer, id, stored, writing: None })
    }

    /// Takes messages until the call ends.
    async fn serve(
        &mut self,
        inbound: &mut (impl Stream<Item = Result<StreamSessionRecordingRequest, Status>> + Unpin),
    ) -> Result<StreamSessionRecordingResponse, IngestError> {
        let mut last = None;
        loop {
            match (self.event(inbound).await?, last.take()) {
                (Event::End, Some(end)) => {
                    self.finish(end).await?;
                    return Ok(self.reply(false));
                }
                (Event::End, None) => {
                    self.flush().await?;
                    return Ok(self.reply(false));
                }
                (Event::Leaving, _) => {
                    self.flush().await?;
                    return Ok(self.reply(true));
                }
                (Event::Revoked, _) => {
                    self.flush().await?;
                    return Err(IngestError::NotRegistered);
                }
                (Event::Superseded, _) => {
                    self.flush().await?;
                    return Err(IngestError::Superseded { committed: self.committed() });
                }
                (Event::Message(_), Some(_)) => {
                    return Err(IngestError::invalid("message", "nothing may follow the final message"));
                }
                (Event::Message(Message::Chunk(chunk)), None) => self.chunk(chunk).await?,
                (Event::Message(Message::Final(end)), None) => last = Some(end),
                (Event::Message(Message::Header(_)), None) => {
                    return Err(IngestError::invalid("message", "a call has one header, and it comes first"));
                }
            }
        }
    }

    async fn event(
        &self,
        inbound: &mut (impl Stream<Item = Result<StreamSessionRecordingRequest, Status>> + Unpin),
    ) -> Result<Event, IngestError> {
        tokio::select! {
            biased;
            () = self.ingest.leaving() => Ok(Event::Leaving),
            () = self.ingest.access.revoked(self.writer.agent_id) => Ok(Event::Revoked),
            () = self.superseded() => Ok(Event::Superseded),
            message = next(&self.ingest, inbound) => Ok(message?.map_or(Event::End, Event::Message)),
        }
    }

    async fn superseded(&self) {
        match &self.writing {
            Some(writing) => writing.claim.superseded().await,
            None => std::future::pending().await,
        }
    }

    fn committed(&self) -> u64 {
        self.writing.as_ref().map_or(self.stored.committed, |writing| writing.session.committed())
    }

    /// Takes a chunk, and writes a segment when enough has come together.
    async fn chunk(&mut self, chunk: RecordingChunk) -> Result<(), IngestError> {
        if let Some(signed) = self.stored.sealed() {
            return check_sealed_chunk(signed, &chunk);
        }
        let segment_bytes = self.ingest.limits().segment_bytes;
        let Some(writing) = self.writing().await? else { return self.sealed_meanwhile(&chunk) };
        writing.session.chunk(chunk.offset, &chunk.data, chunk.crc32c)?;
        metrics::received(chunk.data.len());
        if writing.session.pending_object() >= segment_bytes {
            self.flush().await?;
        }
        Ok(())
    }

    fn sealed_meanwhile(&self, chunk: &RecordingChunk) -> Result<(), IngestError> {
        self.stored.sealed().map_or(Ok(()), |signed| check_sealed_chunk(signed, chunk))
    }

    /// Claims the recording and looks again where it stands: the call before may have written in between. `None` when
    /// it was sealed.
    async fn writing(&mut self) -> Result<Option<&mut Writing>, IngestError> {
        if self.writing.is_none() {
            let claim = timeout(self.ingest.limits().message_timeout, self.ingest.claims.claim(self.id));
            let held = IngestError::Superseded { committed: self.stored.committed };
            let mut claim = claim.await.map_err(|_| held)?;
            self.look_again().await?;
            if self.stored.sealed().is_some() {
                return Ok(None);
            }
            let found = Progress { committed: self.stored.committed, head: self.stored.head, history: None };
            let progress = match claim.take().filter(|left| left.same_place(&found)) {
                Some(left) => left,
                None if found.committed == 0 => Progress::empty(found.head),
                None => found,
            };
            if self.stored.manifest.is_some() {
                mark_open(&self.ingest, self.id).await?;
            }
            self.writing = Some(Writing { claim, session: Session::new(self.id, progress), settled: false });
        }
        Ok(self.writing.as_mut())
    }

    /// Loads the recording again. What another process added is made durable before it counts.
    async fn look_again(&mut self) -> Result<(), IngestError> {
        let stored = recover::load(&self.ingest.objects, self.id).await?.ok_or(IngestError::Missing)?;
        if (stored.head, &stored.manifest) != (self.stored.head, &self.stored.manifest) {
            self.ingest.objects.settle(self.id).await?;
        }
        self.stored = stored;
        Ok(())
    }

    /// Writes what was received as a segment. When this returns, it is durable.
    ///
    /// # Errors
    /// When the store fails, or another process wrote something else in this place; then this call must end.
    async fn flush(&mut self) -> Result<(), IngestError> {
        let Some(mut writing) = self.writing.take() else { return Ok(()) };
        if let Some(builder) = writing.session.take_pending() {
            // Without its segment the session is of no use: it is put back only after a success.
            let began = tokio::time::Instant::now();
            let segment = tokio::task::spawn_blocking(move || builder.finish()).await?;
            let segment =
                segment.ok_or_else(|| IngestError::Internal("a pending segment was empty".to_owned()))?;
            let key = ObjectKey::Segment(self.id, segment.header.start);
            if let Created::Taken(_) = self.ingest.objects.create(key, segment.bytes.clone()).await? {
                let stored =
                    recover::load(&self.ingest.objects, self.id).await?.ok_or(IngestError::Missing)?;
                return Err(IngestError::Superseded { committed: stored.committed });
            }
            if !writing.settled {
                self.ingest.objects.settle(self.id).await?;
                writing.settled = true;
            }
            writing.session.commit(&segment);
            metrics::segment_written(segment.bytes.len(), began.elapsed());
            self.ingest.catalog.grow(self.id, writing.session.committed());
        }
        (self.stored.committed, self.stored.head) = (writing.session.committed(), writing.session.head());
        self.writing = Some(writing);
        Ok(())
    }

    /// Seals the recording, or answers what sealed it before.
    async fn finish(&mut self, end: RecordingFinal) -> Result<(), IngestError> {
        let end = End {
            total: end.total_length,
            payload_sha256: convert::digest("final.payload_sha256", &end.payload_sha256)?,
            ended_at_ms: convert::time("final.ended_at", end.ended_at)?,
        };
        if self.stored.sealed().is_none() {
            self.flush().await?;
            self.writing().await?;
        }
        if let Some(signed) = self.stored.sealed() {
            return if end.is_of(&signed.manifest) { Ok(()) } else { Err(IngestError::Sealed) };
        }
        let Some(writing) = &mut self.writing else {
            return Err(IngestError::Internal("a recording was finished without a session".to_owned()));
        };
        if !writing.session.has_history() {
            let (verified, payload) = recover::walk(&self.ingest.objects, self.id).await?;
            writing.session.learn(verified, payload)?;
        }
        let segments = writing.session.finish(end.total, end.payload_sha256)?.to_vec();
        let signed = seal::seal(&self.ingest, &self.writer, &self.stored, segments, &end).await?;
        self.stored.manifest = Some(signed);
        self.writing = None;
        self.ingest.claims.forget(self.id);
        Ok(())
    }

    /// What the caller is told.
    fn reply(&self, reconnect: bool) -> StreamSessionRecordingResponse {
        StreamSessionRecordingResponse {
            recording_id: self.id.to_string(),
            committed_offset: self.stored.committed,
            chain_head: self.stored.head.as_bytes().to_vec().into(),
            state: convert::state(row_of(&self.stored).state).into(),
            receipt: self.stored.sealed().map(convert::receipt),
            reconnect,
        }
    }

    /// Ends the call: what was received whole is kept, also after an error, and the next call of this process goes on
    /// from there.
    async fn end<T>(mut self, reply: Result<T, IngestError>) -> Result<T, IngestError> {
        let flushed = self.flush().await;
        if let Some(Writing { mut claim, session, .. }) = self.writing {
            claim.leave(session.into_progress());
        }
        flushed.and(reply)
    }
}

fn check_owner(stored: &Stored, writer: &Writer, metadata: Option<Metadata>) -> Result<(), IngestError> {
    let begin = &stored.begin;
    if begin.agent_id != writer.agent_id {
        return Err(IngestError::NotOwner);
    }
    let Some(mut metadata) = metadata else { return Ok(()) };
    if metadata.started_at_ms == 0 {
        metadata.started_at_ms = begin.metadata.started_at_ms;
    }
    if metadata.same_session(&begin.metadata) { Ok(()) } else { Err(IngestError::MetadataDiffers) }
}

/// An agent records the sessions of its own host. A recording that is there already is of the host that it began with.
fn check_node(writer: &Writer, node: &str) -> Result<(), IngestError> {
    match &writer.hostnames {
        Some(names) if !names.iter().any(|name| name == node) => {
            let reason = format!("must be the hostname that the agent joined with: {}", names.join(" or "));
            Err(IngestError::invalid("metadata.node", reason))
        }
        Some(_) | None => Ok(()),
    }
}

/// A chunk for a sealed recording may only repeat what is in it.
fn check_sealed_chunk(signed: &SignedManifest, chunk: &RecordingChunk) -> Result<(), IngestError> {
    if crc32c::crc32c(&chunk.data) != chunk.crc32c {
        return Err(IngestError::BadChecksum { offset: chunk.offset });
    }
    let end = chunk.offset.checked_add(chunk.data.len() as u64);
    if end.is_some_and(|end| end <= signed.manifest.length) { Ok(()) } else { Err(IngestError::Sealed) }
}

async fn mark_open(ingest: &Ingest, id: RecordingId) -> Result<(), IngestError> {
    let marker = OpenMarker::new(clock::unix_ms(), ingest.identity().agent_id()).encode()?;
    // Whoever's marker is there says the same.
    ingest.objects.create(ObjectKey::Open(id), marker.into()).await?;
    Ok(())
}

/// Marker, then `begin.json`: a crash in between leaves a marker without a recording, which hurts nobody.
async fn create(
    ingest: &Ingest,
    writer: &Writer,
    id: RecordingId,
    metadata: Metadata,
) -> Result<Stored, IngestError> {
    let now = clock::unix_ms();
    let mut begun = metadata.clone();
    if begun.started_at_ms == 0 {
        begun.started_at_ms = now;
    }
    mark_open(ingest, id).await?;
    let begin = Begin::new(id, writer.agent_id, begun, now, ingest.identity().agent_id());
    let document = begin.encode()?;
    let stored = match ingest.objects.create(ObjectKey::Begin(id), document.clone().into()).await? {
        Created::Durable => {
            metrics::recording_begun();
            Stored::begun(begin, &document)
        }
        Created::Taken(_) => {
            let stored = recover::load(&ingest.objects, id).await?.ok_or(IngestError::Missing)?;
            check_owner(&stored, writer, Some(metadata))?;
            stored
        }
    };
    ingest.catalog.put(row_of(&stored));
    Ok(stored)
}
