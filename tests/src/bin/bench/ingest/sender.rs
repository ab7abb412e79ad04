//! Agents that send recordings, by the API alone: what they take of the processors is not the client's.

use std::{ops::Range, sync::Arc};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use futures::stream;
use mezite_e2e::{Agent, AgentSpec, Cluster, Ingest, api};
use mezite_proto::v1::{
    RecordingChunk, RecordingFinal, RecordingHeader, RecordingMetadata, RecordingState,
    StreamSessionRecordingRequest, StreamSessionRecordingResponse, auth_service_client::AuthServiceClient,
    stream_session_recording_request::Message,
};
use recording_format::{Digest, PayloadHasher, RecordingId};
use tonic::transport::Channel;

/// Bytes of a chunk: what is recommended.
pub(crate) const CHUNK: usize = 64 << 10;
/// Bytes that payloads are cut out of, again and again: nothing in it compresses.
const NOISE: usize = 16 << 20;

/// Bytes that payloads are cut out of, again and again.
#[derive(Debug, Clone)]
pub(crate) struct Noise(Bytes);

impl Noise {
    pub(crate) fn new() -> Self {
        let mut noise = vec![0; NOISE];
        rand::fill(&mut noise[..]);
        Self(noise.into())
    }

    /// The chunks of the bytes of a range.
    fn chunks(&self, range: Range<u64>) -> impl Iterator<Item = (u64, Bytes)> + use<> {
        let (noise, end) = (self.0.clone(), range.end);
        range.step_by(CHUNK).map(move |at| {
            let size = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
            let from = usize::try_from(at % (NOISE - CHUNK) as u64).unwrap_or_default();
            (at, noise.slice(from..from + size))
        })
    }
}

/// What is sent as one recording.
#[derive(Debug, Clone)]
pub(crate) struct Payload {
    noise: Noise,
    length: u64,
    sha256: Digest,
}

impl Payload {
    fn new(noise: &Noise, length: u64) -> Self {
        let mut hasher = PayloadHasher::default();
        noise.chunks(0..length).for_each(|(_, data)| hasher.update(&data));
        Self { noise: noise.clone(), length, sha256: hasher.digest() }
    }

    /// All of it, piece by piece.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = Bytes> {
        self.noise.chunks(0..self.length).map(|(_, data)| data)
    }
}

/// The messages of one call with a range of a recording's bytes, which begins it where it begins at 0; or ends it, too.
pub(crate) fn messages(
    noise: &Noise,
    node: &str,
    id: RecordingId,
    range: Range<u64>,
    ends: Option<&Payload>,
) -> impl Iterator<Item = StreamSessionRecordingRequest> + use<> {
    let metadata = (range.start == 0).then(|| RecordingMetadata {
        user: "alice".into(),
        login: "root".into(),
        node: node.to_owned(),
        format: "asciicast-v3".into(),
        ..RecordingMetadata::default()
    });
    let header = RecordingHeader { recording_id: id.to_string(), start_offset: range.start, metadata };
    let last = ends.map(|payload| {
        Message::Final(RecordingFinal {
            total_length: payload.length,
            payload_sha256: Bytes::copy_from_slice(payload.sha256.as_bytes()),
            ended_at: None,
        })
    });
    let chunks = noise
        .chunks(range)
        .map(|(offset, data)| Message::Chunk(RecordingChunk { offset, crc32c: crc32c::crc32c(&data), data }));
    let messages = std::iter::once(Message::Header(header)).chain(chunks).chain(last);
    messages.map(|message| StreamSessionRecordingRequest { message: Some(message) })
}

/// Agents, each with a connection of its own to an ingest.
pub(crate) struct Sender {
    agents: Vec<(AuthServiceClient<Channel>, String)>,
    noise: Noise,
}

impl Sender {
    /// So many agents join.
    pub(crate) fn join(cluster: &Cluster, ingest: &Ingest, count: usize) -> Self {
        let agent = |number: usize| {
            let hostname = format!("host{number}.example.org");
            let agent = Agent::join(cluster, AgentSpec { hostname: &hostname, ..AgentSpec::default() });
            let (certificate, key) = agent.pems();
            let tls = api::tls(cluster.trust(), true, Some((&certificate, &key)));
            (api::recording_stub(&ingest.address(), cluster.trust(), tls), hostname)
        };
        Self { agents: (0..count).map(agent).collect(), noise: Noise::new() }
    }

    /// A payload of so many bytes.
    pub(crate) fn payload(&self, length: u64) -> Payload {
        Payload::new(&self.noise, length)
    }

    /// Sends a whole recording in one call, as the agent of this number or of one so many further.
    pub(crate) async fn send(self: Arc<Self>, number: usize, payload: Payload) -> Result<()> {
        let id = RecordingId::from_bytes(rand::random());
        let reply = self.call(number, id, 0..payload.length, Some(&payload)).await?;
        ensure!(reply.state() == RecordingState::Complete, "{id} is {:?}", reply.state());
        Ok(())
    }

    /// One call with a range of a recording's bytes.
    pub(crate) async fn call(
        &self,
        number: usize,
        id: RecordingId,
        range: Range<u64>,
        ends: Option<&Payload>,
    ) -> Result<StreamSessionRecordingResponse> {
        let (client, node) = self.agents.get(number % self.agents.len()).context("no agent")?;
        let messages = messages(&self.noise, node, id, range, ends);
        Ok(client.clone().stream_session_recording(stream::iter(messages)).await?.into_inner())
    }
}
