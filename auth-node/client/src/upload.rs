//! Sends a recording until there is a receipt for it.
//!
//! The payload goes in batches, each a call of its own and each answered with what is durable, so any failure costs
//! at most a batch: the next one, to whichever ingest, starts where the cluster says. A payload may still grow while
//! it is sent. A caller may delete its copy against the receipt and nothing less.

use std::{
    io,
    time::{Duration, UNIX_EPOCH},
};

use bytes::Bytes;
use futures::stream;
use mezite_pki::ssh::{SshPublicKey, verify_sshsig};
use mezite_proto::v1::{
    RecordingChunk, RecordingFinal, RecordingHeader, RecordingMetadata, RecordingReceipt,
    RecordingState as WireState, StreamSessionRecordingRequest, StreamSessionRecordingResponse,
    stream_session_recording_request::Message,
};
use recording_format::{Digest, MANIFEST_NAMESPACE, Manifest, PayloadHasher, RecordingId, RecordingState};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncSeek, AsyncSeekExt as _},
    sync::watch,
    time::{Instant, timeout_at},
};
use tonic::Code;

use crate::{AuthClient, Client, ClientError, Retry, RetryPolicy};

/// A batch of 4 MiB takes so long at half a megabit a second. A dead connection is found sooner.
const BATCH_TIMEOUT: Duration = Duration::from_secs(60);

/// How a payload is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UploadLimits {
    /// Bytes of a chunk: 64 KiB; servers take 1 MiB at most.
    pub chunk: usize,
    /// Bytes of a batch: 4 MiB. So much is held in memory.
    pub batch: usize,
    /// Batches in a row that may fail to bring the recording forward: 8.
    pub stalls: u32,
    /// Least and longest time from one batch of a payload that grows to the next, unless one is full or the last: 1 s and
    /// a minute. In between it is [`PACE`] of the time that the upload has taken, for each batch is an object in the store:
    /// a session of a day has some two thousand.
    pub pace: (Duration, Duration),
    /// A payload that may still grow and does not is told to the cluster so often, lest it take the recording for abandoned: 10 min,
    /// which is well below the hour that ingests give by default.
    pub keep_alive: Duration,
}

/// See [`UploadLimits::pace`].
const PACE: f64 = 0.02;

impl Default for UploadLimits {
    fn default() -> Self {
        let pace = (Duration::from_secs(1), Duration::from_secs(60));
        Self { chunk: 64 << 10, batch: 4 << 20, stalls: 8, pace, keep_alive: Duration::from_secs(600) }
    }
}

/// Why there is no receipt. The caller keeps its copy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UploadError {
    /// A call failed for good.
    #[error(transparent)]
    Client(ClientError),
    /// The payload cannot be read, or changed while it was sent.
    #[error("the payload cannot be read: {0}")]
    Payload(#[from] io::Error),
    /// The cluster keeps less than was sent: the recording reached its size limit.
    #[error("the recording was sealed at the cluster's size limit: {committed} of {total} bytes are kept")]
    Truncated {
        /// Bytes that are kept.
        committed: u64,
        /// Bytes of the payload.
        total: u64,
    },
    /// The cluster has something else under this id, and does not change it.
    #[error("the cluster has another payload under this id: {0}")]
    Differs(&'static str),
    /// The recording does not come forward, although calls succeed.
    #[error("the recording stays at byte {committed} of {total}; try again")]
    Stalled {
        /// Bytes that are durable.
        committed: u64,
        /// Bytes of the payload.
        total: u64,
    },
    /// Whoever writes the payload has gone without ending it.
    #[error("the payload was left without an end")]
    Abandoned,
    /// The receipt is not one for this payload.
    #[error("the receipt is not for this recording: {0}")]
    BadReceipt(&'static str),
}

/// Reasons (`google.rpc.ErrorInfo`) with which ingests refuse a recording under its id for good.
const NOT_OWNER: &str = "NOT_OWNER";
const SEALED: &str = "SEALED";

impl From<ClientError> for UploadError {
    fn from(error: ClientError) -> Self {
        match error.status().and_then(|status| status.reason.as_deref()) {
            Some(SEALED) => Self::Differs("it is sealed"),
            _ => Self::Client(error),
        }
    }
}

impl UploadError {
    /// Whether the cluster has the recording from another agent: it takes nothing of it from this one.
    #[must_use]
    pub fn is_of_another_agent(&self) -> bool {
        let Self::Client(error) = self else { return false };
        error.status().is_some_and(|status| status.reason.as_deref() == Some(NOT_OWNER))
    }
}

/// How far a payload has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Extent {
    /// Bytes that there are for good: what is sent is never more.
    pub length: u64,
    /// Set once there will be no more.
    pub end: Option<PayloadEnd>,
}

/// The end of a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PayloadEnd {
    /// Digest of all of it.
    pub sha256: Digest,
    /// When the session ended, in Unix milliseconds; `None`: as the metadata says.
    pub ended_at_ms: Option<u64>,
}

/// A payload: where its bytes are, and how many of them there are by now.
#[derive(Debug)]
pub struct Payload<S> {
    source: S,
    extent: watch::Receiver<Extent>,
}

impl<S: AsyncRead + AsyncSeek + Unpin> Payload<S> {
    /// Reads `source` through once, from its start, to measure it.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn measure(mut source: S) -> io::Result<Self> {
        source.rewind().await?;
        let (mut hasher, mut length) = (PayloadHasher::default(), 0_u64);
        let mut buffer = vec![0; 256 << 10];
        loop {
            let read = source.read(&mut buffer).await?;
            let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else { break };
            hasher.update(bytes);
            length += bytes.len() as u64;
        }
        let end = PayloadEnd { sha256: hasher.digest(), ended_at_ms: None };
        Ok(Self::following(source, watch::channel(Extent { length, end: Some(end) }).1))
    }

    /// A payload that somebody else writes, who tells how far it has come. If the teller goes without an end, uploading
    /// ends with [`UploadError::Abandoned`] once all is sent.
    pub fn following(source: S, extent: watch::Receiver<Extent>) -> Self {
        Self { source, extent }
    }

    /// Length so far, in bytes.
    pub fn length(&self) -> u64 {
        self.extent.borrow().length
    }

    /// Digest of all of it; `None` while it grows.
    pub fn sha256(&self) -> Option<Digest> {
        self.extent.borrow().end.map(|end| end.sha256)
    }

    /// Waits until there is something beyond `offset`, or the end; and if that is less than `full` bytes and no end, until
    /// `due` for more.
    async fn beyond(&mut self, offset: u64, full: usize, due: Instant) -> Result<Extent, UploadError> {
        let full = offset.saturating_add(full as u64);
        let some = self.extent.wait_for(|extent| extent.end.is_some() || extent.length != offset).await;
        let some = *some.map_err(|_| UploadError::Abandoned)?;
        let more = self.extent.wait_for(|extent| extent.end.is_some() || extent.length >= full);
        Ok(match timeout_at(due, more).await {
            Ok(Ok(more)) => *more,
            // What there is is sent, also when there will be no more.
            Ok(Err(_)) | Err(_) => some,
        })
    }

    async fn chunks(
        &mut self,
        offset: u64,
        length: u64,
        limits: &UploadLimits,
    ) -> io::Result<Vec<RecordingChunk>> {
        let left = length.saturating_sub(offset);
        let size = usize::try_from(left).unwrap_or(usize::MAX).min(limits.batch);
        let mut batch = vec![0; size];
        self.source.seek(io::SeekFrom::Start(offset)).await?;
        self.source.read_exact(&mut batch).await?;
        let mut batch = Bytes::from(batch);
        let (mut chunks, mut offset) = (Vec::new(), offset);
        while !batch.is_empty() {
            let data = batch.split_to(limits.chunk.clamp(1, batch.len()));
            let length = data.len() as u64;
            chunks.push(RecordingChunk { offset, crc32c: crc32c::crc32c(&data), data });
            offset += length;
        }
        Ok(chunks)
    }
}

/// Proof that a recording is sealed in the cluster, checked against the payload.
#[derive(Debug, Clone)]
pub struct Receipt {
    /// The manifest, read.
    pub manifest: Manifest,
    /// The manifest's bytes and the signature over them, as the ingest gave them.
    pub signed: RecordingReceipt,
}

/// Sends recordings.
#[derive(Debug, Clone)]
pub struct Uploader {
    client: Client,
    limits: UploadLimits,
}

/// Where a recording stands.
enum Standing {
    Open(u64),
    Sealed(Box<StreamSessionRecordingResponse>),
    Unknown,
}

impl Uploader {
    /// With a client from [`Client::for_recordings`] that has an agent's certificate. A batch has a minute, and two
    /// with repetitions, where the client's own bounds are closer.
    #[must_use]
    pub fn new(client: Client, limits: UploadLimits) -> Self {
        let policy = *client.policy();
        let client = client.with_policy(RetryPolicy {
            call_timeout: policy.call_timeout.max(BATCH_TIMEOUT),
            overall_timeout: policy.overall_timeout.max(2 * BATCH_TIMEOUT),
            ..policy
        });
        Self { client, limits }
    }

    /// Sends what the cluster does not have of a payload yet, as it grows, and returns with the receipt for the whole of
    /// it.
    ///
    /// A recording that was begun before goes on where it stands; its metadata stays as it was begun with, but for
    /// `ended_at`.
    ///
    /// # Errors
    /// See [`UploadError`]. After any of them it can be called again.
    pub async fn upload<S: AsyncRead + AsyncSeek + Unpin>(
        &self,
        id: RecordingId,
        metadata: &RecordingMetadata,
        payload: &mut Payload<S>,
    ) -> Result<Receipt, UploadError> {
        let begun = Instant::now();
        let mut due = begun;
        let mut standing = self.probe(id).await?;
        let (mut furthest, mut stalls) = (None, 0);
        loop {
            let (offset, begin) = match standing {
                Standing::Open(offset) => (offset, None),
                Standing::Unknown => (0, Some(metadata.clone())),
                Standing::Sealed(reply) => return check(id, *payload.extent.borrow(), *reply),
            };
            let beyond = payload.beyond(offset, self.limits.batch, due);
            let Ok(extent) = timeout_at(Instant::now() + self.limits.keep_alive, beyond).await else {
                standing = self.probe(id).await?;
                continue;
            };
            let extent = extent?;
            let step = (offset, extent.end.is_some());
            if furthest < Some(step) {
                (furthest, stalls) = (Some(step), 0);
            } else {
                stalls += 1;
                if stalls > self.limits.stalls {
                    return Err(UploadError::Stalled { committed: offset, total: extent.length });
                }
                // Another call has the recording, mostly: it may be gone in a moment.
                tokio::time::sleep(self.client.policy().backoff(stalls, rand::random())).await;
            }
            if offset > extent.length {
                return Err(UploadError::Differs("it is longer"));
            }
            let (least, longest) = self.limits.pace;
            due = Instant::now() + begun.elapsed().mul_f64(PACE).clamp(least, longest);
            let batch = self.batch(id, offset, extent, begin, metadata, payload).await?;
            standing = match self.send(batch).await {
                Ok(reply) => self.standing(reply),
                Err(error) => self.after(error, id).await?,
            };
        }
    }

    async fn probe(&self, id: RecordingId) -> Result<Standing, ClientError> {
        let header = RecordingHeader { recording_id: id.to_string(), start_offset: 0, metadata: None };
        match self.send(vec![message(Message::Header(header))]).await {
            Ok(reply) => Ok(self.standing(reply)),
            Err(error) if error.code() == Some(Code::NotFound) => Ok(Standing::Unknown),
            Err(error) => Err(error),
        }
    }

    async fn batch<S: AsyncRead + AsyncSeek + Unpin>(
        &self,
        id: RecordingId,
        offset: u64,
        extent: Extent,
        begin: Option<RecordingMetadata>,
        metadata: &RecordingMetadata,
        payload: &mut Payload<S>,
    ) -> io::Result<Vec<StreamSessionRecordingRequest>> {
        let header = RecordingHeader { recording_id: id.to_string(), start_offset: offset, metadata: begin };
        let chunks = payload.chunks(offset, extent.length, &self.limits).await?;
        let end = chunks.last().map_or(offset, |chunk| chunk.offset + chunk.data.len() as u64);
        let mut batch = vec![message(Message::Header(header))];
        batch.extend(chunks.into_iter().map(|chunk| message(Message::Chunk(chunk))));
        if let Some(whole) = extent.end.filter(|_| end == extent.length) {
            let ended_at = whole.ended_at_ms.map(|ms| (UNIX_EPOCH + Duration::from_millis(ms)).into());
            batch.push(message(Message::Final(RecordingFinal {
                total_length: extent.length,
                payload_sha256: Bytes::copy_from_slice(whole.sha256.as_bytes()),
                ended_at: ended_at.or(metadata.ended_at),
            })));
        }
        Ok(batch)
    }

    /// One batch, at whichever address takes it. Chunks carry their offsets, so twice is as good as once.
    async fn send(
        &self,
        batch: Vec<StreamSessionRecordingRequest>,
    ) -> Result<StreamSessionRecordingResponse, ClientError> {
        let send = |mut auth: AuthClient, batch| async move {
            auth.stream_session_recording(stream::iter::<Vec<_>>(batch)).await
        };
        self.client.call(Retry::Idempotent, batch, send).await
    }

    fn standing(&self, reply: StreamSessionRecordingResponse) -> Standing {
        if reply.reconnect {
            self.client.leave_last_server();
        }
        match reply.state() {
            WireState::Complete | WireState::Truncated => Standing::Sealed(Box::new(reply)),
            WireState::Unspecified | WireState::InProgress | WireState::Interrupted => {
                Standing::Open(reply.committed_offset)
            }
        }
    }

    /// Where to go on after an error that a look at the recording may resolve.
    async fn after(&self, error: ClientError, id: RecordingId) -> Result<Standing, UploadError> {
        match error.code() {
            // Another ingest, or another call, has it elsewhere than we thought; or a chunk was damaged on its way.
            Some(Code::OutOfRange | Code::Aborted | Code::DataLoss | Code::NotFound) => {
                Ok(self.probe(id).await?)
            }
            _ => Err(error.into()),
        }
    }
}

fn message(message: Message) -> StreamSessionRecordingRequest {
    StreamSessionRecordingRequest { message: Some(message) }
}

/// Checks that a sealed recording is the payload of this extent, whole.
fn check(
    id: RecordingId,
    extent: Extent,
    reply: StreamSessionRecordingResponse,
) -> Result<Receipt, UploadError> {
    let (bad, differs) = (UploadError::BadReceipt, UploadError::Differs);
    if reply.state() == WireState::Truncated {
        return Err(UploadError::Truncated { committed: reply.committed_offset, total: extent.length });
    }
    let signed = reply.receipt.ok_or(bad("there is none"))?;
    let manifest = Manifest::decode(id, &signed.manifest).map_err(|_| bad("its manifest cannot be read"))?;
    let key = SshPublicKey::parse(&manifest.signing_key).map_err(|_| bad("its key cannot be read"))?;
    verify_sshsig(&signed.signature, MANIFEST_NAMESPACE, &signed.manifest, &key)
        .map_err(|_| bad("the signature is wrong"))?;
    if manifest.state != RecordingState::Complete {
        return Err(bad("the manifest does not say that it is complete"));
    }
    if reply.committed_offset != manifest.length {
        return Err(bad("the manifest is not of as many bytes as the answer"));
    }
    let end = extent.end.ok_or(differs("it is sealed, and this one goes on"))?;
    if manifest.length != extent.length {
        return Err(differs("it is sealed with another length"));
    }
    if manifest.payload_sha256 != end.sha256 {
        return Err(differs("it is sealed with another digest"));
    }
    Ok(Receipt { manifest, signed })
}

#[cfg(test)]
#[path = "upload_tests.rs"]
mod tests;
