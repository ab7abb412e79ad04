//! One call that writes a recording: from its header to its reply.
//!
//! The call is run to its end in a task of its own, whatever becomes of the connection: what was received whole is
//! made durable also when the stream breaks off, the agent falls silent, a later chunk is refused, or the ingest
//! leaves. Here a call waits for what comes next; `begin` finds or makes its recording, `write` takes chunks and the end.
//! Offsets are judged in `session`, the end of a recording in `seal`, and room in memory in `budget`.

mod begin;
mod write;

pub(crate) use begin::mark_open;

use std::sync::Arc;

use futures::{Stream, StreamExt};
use mezite_proto::v1::{
    RecordingChunk, RecordingFinal, RecordingHeader, StreamSessionRecordingRequest,
    StreamSessionRecordingResponse, UploadSessionRecordingRequest, stream_session_recording_request::Message,
};
use recording_format::{Digest, MAX_CHUNK_LEN, RecordingId, RecordingState, SignedManifest};
use tokio::time::{Instant, sleep_until, timeout};
use tonic::{Code, Status};

use crate::{
    authn::Writer,
    budget::Share,
    claims::Claim,
    convert,
    error::IngestError,
    index::{RowState, row_of},
    metrics,
    recover::Stored,
    service::Ingest,
    session::Session,
};

/// A call that writes a recording.
struct Call {
    ingest: Arc<Ingest>,
    writer: Writer,
    id: RecordingId,
    stored: Stored,
    /// Whether what is stored is known to be durable, with the folders that other processes may have made.
    settled: bool,
    writing: Option<Writing>,
    /// Room in memory for what is received and not yet durable.
    share: Share,
    /// When that is written at the latest.
    due: Option<Instant>,
}

/// What a call has once it writes: a probe has none of it and disturbs nobody.
struct Writing {
    claim: Claim,
    session: Session,
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
    let began = Instant::now();
    let header = RecordingHeader { recording_id, start_offset: 0, metadata };
    let mut call = Call::begin(ingest, writer, header).await?;
    let (crc32c, total_length) = (crc32c::crc32c(&data), data.len() as u64);
    let work = async {
        call.chunk(RecordingChunk { offset: 0, data, crc32c }).await?;
        call.finish(RecordingFinal { total_length, payload_sha256, ended_at }).await?;
        metrics::acknowledged(began.elapsed());
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
    /// Others wait for the memory that the call holds, or it has held it for long enough.
    Due,
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
    /// Takes messages until the call ends.
    async fn serve(
        &mut self,
        inbound: &mut (impl Stream<Item = Result<StreamSessionRecordingRequest, Status>> + Unpin),
    ) -> Result<StreamSessionRecordingResponse, IngestError> {
        let mut last = None;
        loop {
            match (self.event(inbound).await?, last.take()) {
                (Event::End, end) => {
                    let began = Instant::now();
                    match end {
                        Some(end) => self.finish(end).await?,
                        None if self.writing.is_some() => self.flush().await?,
                        None => self.probed().await,
                    }
                    metrics::acknowledged(began.elapsed());
                    return Ok(self.reply(false));
                }
                (Event::Due, end) => {
                    self.flush().await?;
                    last = end;
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
                (Event::Message(Message::Chunk(chunk)), None) => {
                    self.chunk(chunk).await?;
                    if self.stored.sealed().is_some_and(is_truncated) {
                        // Nothing more is taken; the agent learns it before it has sent the rest.
                        return Ok(self.reply(false));
                    }
                }
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
            () = self.share.pressed() => Ok(Event::Due),
            () = self.due() => Ok(Event::Due),
            message = next(&self.ingest, inbound) => Ok(message?.map_or(Event::End, Event::Message)),
        }
    }

    /// Nothing but a header came: with it an agent says that a session which is quiet goes on.
    async fn probed(&self) {
        if row_of(&self.stored).state == RowState::InProgress {
            begin::stay_open(&self.ingest.objects, self.ingest.identity().agent_id(), self.id).await;
        }
    }

    async fn superseded(&self) {
        match &self.writing {
            Some(writing) => writing.claim.superseded().await,
            None => std::future::pending().await,
        }
    }

    async fn due(&self) {
        match self.due {
            Some(due) => sleep_until(due).await,
            None => std::future::pending().await,
        }
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
            claim.leave(session.into_progress(), self.stored);
        }
        flushed.and(reply)
    }
}

/// Whether the recording reached its largest size: what its agent sends beyond is answered with the receipt.
fn is_truncated(signed: &SignedManifest) -> bool {
    signed.manifest.state == RecordingState::Truncated
}
