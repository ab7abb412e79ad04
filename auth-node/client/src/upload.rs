//! Sends a recording until there is a receipt for it.
//!
//! The payload goes in batches, each a call of its own and each answered with what is durable, so any failure costs
//! at most a batch: the next one, to whichever ingest, starts where the cluster says. A caller may delete its copy
//! against the receipt and nothing less.

use std::{io, time::Duration};

use bytes::Bytes;
use futures::stream;
use mezite_pki::ssh::{SshPublicKey, verify_sshsig};
use mezite_proto::v1::{
    RecordingChunk, RecordingFinal, RecordingHeader, RecordingMetadata, RecordingReceipt,
    RecordingState as WireState, StreamSessionRecordingRequest, StreamSessionRecordingResponse,
    stream_session_recording_request::Message,
};
use recording_format::{Digest, MANIFEST_NAMESPACE, Manifest, PayloadHasher, RecordingId, RecordingState};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncSeek, AsyncSeekExt as _};
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
}

impl Default for UploadLimits {
    fn default() -> Self {
        Self { chunk: 64 << 10, batch: 4 << 20, stalls: 8 }
    }
}

/// Why there is no receipt. The caller keeps its copy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UploadError {
    /// A call failed for good.
    #[error(transparent)]
    Client(#[from] ClientError),
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
    /// The recording does not come forward, although calls succeed.
    #[error("the recording stays at byte {committed} of {total}; try again")]
    Stalled {
        /// Bytes that are durable.
        committed: u64,
        /// Bytes of the payload.
        total: u64,
    },
    /// The receipt is not one for this payload.
    #[error("the receipt is not for this recording: {0}")]
    BadReceipt(&'static str),
}

/// A payload whose length and digest are known.
#[derive(Debug)]
pub struct Payload<S> {
    source: S,
    length: u64,
    sha256: Digest,
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
        Ok(Self { source, length, sha256: hasher.digest() })
    }

    /// Length in bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Digest of all of it.
    pub fn sha256(&self) -> Digest {
        self.sha256
    }

    async fn chunks(&mut self, offset: u64, limits: &UploadLimits) -> io::Result<Vec<RecordingChunk>> {
        let left = self.length.saturating_sub(offset);
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

    /// Sends what the cluster does not have of a payload yet, and returns with the receipt for the whole of it.
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
        let mut standing = self.probe(id).await?;
        let (mut furthest, mut stalls) = (None, 0);
        loop {
            let (offset, begin) = match standing {
                Standing::Open(offset) => (offset, None),
                Standing::Unknown => (0, Some(metadata.clone())),
                Standing::Sealed(reply) => return check(id, payload, *reply),
            };
            if furthest < Some(offset) || begin.is_some() && furthest.is_none() {
                (furthest, stalls) = (Some(offset), 0);
            } else {
                stalls += 1;
                if stalls > self.limits.stalls {
                    return Err(UploadError::Stalled { committed: offset, total: payload.length });
                }
                // Another call has the recording, mostly: it may be gone in a moment.
                tokio::time::sleep(self.client.policy().backoff(stalls, rand::random())).await;
            }
            if offset > payload.length {
                return Err(UploadError::BadReceipt("the cluster has more bytes than the payload"));
            }
            let batch = self.batch(id, offset, begin, metadata, payload).await?;
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
        begin: Option<RecordingMetadata>,
        metadata: &RecordingMetadata,
        payload: &mut Payload<S>,
    ) -> Result<Vec<StreamSessionRecordingRequest>, UploadError> {
        let header = RecordingHeader { recording_id: id.to_string(), start_offset: offset, metadata: begin };
        let chunks = payload.chunks(offset, &self.limits).await?;
        let end = chunks.last().map_or(offset, |chunk| chunk.offset + chunk.data.len() as u64);
        let mut batch = vec![message(Message::Header(header))];
        batch.extend(chunks.into_iter().map(|chunk| message(Message::Chunk(chunk))));
        if end == payload.length {
            batch.push(message(Message::Final(RecordingFinal {
                total_length: payload.length,
                payload_sha256: Bytes::copy_from_slice(payload.sha256.as_bytes()),
                ended_at: metadata.ended_at,
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

/// Checks that a sealed recording is this payload, whole.
fn check<S>(
    id: RecordingId,
    payload: &Payload<S>,
    reply: StreamSessionRecordingResponse,
) -> Result<Receipt, UploadError> {
    let bad = UploadError::BadReceipt;
    if reply.state() == WireState::Truncated {
        return Err(UploadError::Truncated { committed: reply.committed_offset, total: payload.length });
    }
    let signed = reply.receipt.ok_or(bad("there is none"))?;
    let manifest = Manifest::decode(id, &signed.manifest).map_err(|_| bad("its manifest cannot be read"))?;
    if manifest.state != RecordingState::Complete {
        return Err(bad("the manifest does not say that it is complete"));
    }
    if manifest.length != payload.length || reply.committed_offset != payload.length {
        return Err(bad("the length differs"));
    }
    if manifest.payload_sha256 != payload.sha256 {
        return Err(bad("the payload differs"));
    }
    let key = SshPublicKey::parse(&manifest.signing_key).map_err(|_| bad("its key cannot be read"))?;
    verify_sshsig(&signed.signature, MANIFEST_NAMESPACE, &signed.manifest, &key)
        .map_err(|_| bad("the signature is wrong"))?;
    Ok(Receipt { manifest, signed })
}

#[cfg(test)]
#[path = "upload_tests.rs"]
mod tests;
