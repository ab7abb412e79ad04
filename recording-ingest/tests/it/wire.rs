//! Callers: a connection with a certificate or without, and the calls over it, once each and never repeated.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use mezite_client::testing::{CLUSTER, Leaf, TestCa};
use mezite_proto::{
    transport::{self, ALPN_H2},
    v1::{
        self, RecordingChunk, RecordingFinal, RecordingHeader, RecordingMetadata,
        StreamSessionRecordingRequest, StreamSessionRecordingResponse,
        auth_service_client::AuthServiceClient, stream_session_recording_request::Message,
    },
};
use recording_format::{Digest, RecordingId};
use recording_ingest::{Handle, authn::RELAYED_AGENT};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status, transport::Channel};
use tonic_types::StatusExt as _;

use crate::cluster::{HOSTNAME, PATIENCE};

/// A caller.
#[derive(Clone)]
pub(crate) struct Wire {
    pub(crate) client: AuthServiceClient<Channel>,
    pub(crate) channel: Channel,
    relayed: Option<String>,
}

pub(crate) fn tls(ca: &TestCa, leaf: Option<&Leaf>) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.pem().as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match leaf {
        Some(leaf) => {
            let chain = vec![CertificateDer::from_pem_slice(leaf.certificate.as_bytes()).unwrap()];
            builder
                .with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).unwrap())
                .unwrap()
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    Arc::new(config)
}

pub(crate) fn server_name() -> ServerName<'static> {
    ServerName::try_from(format!("ingest.{CLUSTER}.mezite.internal")).unwrap()
}

impl Wire {
    /// A connection that trusts `ca` and shows `leaf`.
    pub(crate) fn new(ingest: &Handle, ca: &TestCa, leaf: Option<&Leaf>) -> Self {
        Self::to(ingest.address(), ca, leaf)
    }

    pub(crate) fn to(address: SocketAddr, ca: &TestCa, leaf: Option<&Leaf>) -> Self {
        let address = address.to_string();
        let channel = transport::channel(&address, tls(ca, leaf), server_name(), PATIENCE).unwrap();
        let client = AuthServiceClient::new(channel.clone())
            .max_encoding_message_size(64 << 20)
            .max_decoding_message_size(64 << 20);
        Self { client, channel, relayed: None }
    }

    /// Names an agent as the one whose calls are relayed.
    pub(crate) fn relaying(self, agent: &str) -> Self {
        Self { relayed: Some(agent.to_owned()), ..self }
    }

    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(agent) = &self.relayed {
            request.metadata_mut().insert(RELAYED_AGENT, agent.parse().unwrap());
        }
        request
    }

    /// A whole call of StreamSessionRecording.
    pub(crate) async fn stream(
        &self,
        messages: Vec<Message>,
    ) -> Result<StreamSessionRecordingResponse, Status> {
        let messages = messages.into_iter().map(wrapped).collect::<Vec<_>>();
        let request = self.request(tokio_stream::iter(messages));
        self.client.clone().stream_session_recording(request).await.map(tonic::Response::into_inner)
    }

    /// Where a recording stands.
    pub(crate) async fn probe(&self, id: RecordingId) -> Result<StreamSessionRecordingResponse, Status> {
        self.stream(vec![header(id, 0, None)]).await
    }

    /// A call that stays open: send to it, drop the sender to half-close, and await the reply.
    pub(crate) fn open(&self) -> (mpsc::Sender<StreamSessionRecordingRequest>, Reply) {
        let (sender, receiver) = mpsc::channel(16);
        let (mut client, request) = (self.client.clone(), self.request(ReceiverStream::new(receiver)));
        let reply = tokio::spawn(async move {
            client.stream_session_recording(request).await.map(tonic::Response::into_inner)
        });
        (sender, reply)
    }

    pub(crate) async fn upload(
        &self,
        id: &str,
        data: &[u8],
    ) -> Result<v1::UploadSessionRecordingResponse, Status> {
        let request = v1::UploadSessionRecordingRequest {
            recording_id: id.to_owned(),
            metadata: Some(metadata()),
            data: Bytes::copy_from_slice(data),
            payload_sha256: sha256(data),
        };
        let request = self.request(request);
        self.client.clone().upload_session_recording(request).await.map(tonic::Response::into_inner)
    }

    pub(crate) async fn get(
        &self,
        id: &str,
        offset: u64,
        limit: u32,
    ) -> Result<v1::GetSessionRecordingResponse, Status> {
        let request = v1::GetSessionRecordingRequest {
            recording_id: id.to_owned(),
            offset,
            limit,
            ..Default::default()
        };
        self.client.clone().get_session_recording(request).await.map(tonic::Response::into_inner)
    }

    pub(crate) async fn download(&self, id: &str, offset: u64) -> Result<Vec<u8>, Status> {
        let request = v1::DownloadSessionRecordingRequest { recording_id: id.to_owned(), offset };
        let mut stream = self.client.clone().download_session_recording(request).await?.into_inner();
        let mut data = Vec::new();
        while let Some(piece) = stream.message().await? {
            assert_eq!(piece.offset, offset + data.len() as u64);
            data.extend_from_slice(&piece.data);
        }
        Ok(data)
    }

    pub(crate) async fn list(
        &self,
        request: v1::ListSessionRecordingsRequest,
    ) -> Result<v1::ListSessionRecordingsResponse, Status> {
        self.client.clone().list_session_recordings(request).await.map(tonic::Response::into_inner)
    }
}

pub(crate) type Reply = tokio::task::JoinHandle<Result<StreamSessionRecordingResponse, Status>>;

pub(crate) fn wrapped(message: Message) -> StreamSessionRecordingRequest {
    StreamSessionRecordingRequest { message: Some(message) }
}

pub(crate) fn id(n: u8) -> RecordingId {
    RecordingId::from_bytes([n; 16])
}

pub(crate) fn metadata() -> RecordingMetadata {
    RecordingMetadata {
        user: "alice".into(),
        login: "root".into(),
        node: HOSTNAME.into(),
        started_at: Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 0 }),
        format: "asciicast-v3".into(),
        ..Default::default()
    }
}

pub(crate) fn header(id: RecordingId, start_offset: u64, metadata: Option<RecordingMetadata>) -> Message {
    Message::Header(RecordingHeader { recording_id: id.to_string(), start_offset, metadata })
}

pub(crate) fn chunk(offset: u64, data: &[u8]) -> Message {
    let crc32c = crc32c::crc32c(data);
    Message::Chunk(RecordingChunk { offset, data: Bytes::copy_from_slice(data), crc32c })
}

pub(crate) fn last(payload: &[u8]) -> Message {
    let (total_length, payload_sha256) = (payload.len() as u64, sha256(payload));
    Message::Final(RecordingFinal { total_length, payload_sha256, ended_at: None })
}

pub(crate) fn sha256(data: &[u8]) -> Bytes {
    Bytes::copy_from_slice(Digest::of(data).as_bytes())
}

/// A payload whose every part differs from every other.
pub(crate) fn payload(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    (0..len).map(|_| next()).collect()
}

/// The stable reason of an error, and what it says beside.
pub(crate) fn reason(status: &Status) -> (String, std::collections::HashMap<String, String>) {
    let info = status.get_details_error_info().unwrap_or_else(|| panic!("no ErrorInfo in {status:?}"));
    assert_eq!(info.domain, "mezite");
    (info.reason, info.metadata)
}

/// Status and body of a page of the diagnostics.
pub(crate) async fn page(address: SocketAddr, path: &str) -> (u16, String) {
    let mut connection = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    connection.write_all(request.as_bytes()).await.unwrap();
    let mut reply = String::new();
    connection.read_to_string(&mut reply).await.unwrap();
    let (head, body) = reply.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// Waits until something is so.
pub(crate) async fn eventually<F: Future<Output = bool>>(mut is_so: impl FnMut() -> F) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !is_so().await {
        assert!(tokio::time::Instant::now() < deadline, "it never came about");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
