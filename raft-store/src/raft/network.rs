//! How the Raft core reaches its peers.

use std::{
    future::Future,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use mezite_proto::peer;
use openraft::{
    LogId, RaftNetwork, RaftNetworkFactory, Snapshot, Vote,
    error::{NetworkError, RPCError, RaftError, ReplicationClosed, StreamingError, Timeout, Unreachable},
    network::{Backoff, RPCOption, RPCTypes},
    raft::{AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse},
};
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::AbortOnDropHandle;

use super::{PeerNode, TypeConfig, convert};
use crate::{
    error::StoreError,
    net::client::{PeerClient, PeerPool},
};

/// A message of a snapshot stream carries so many bytes.
const SNAPSHOT_CHUNK: usize = 1 << 20;
/// Messages of a snapshot stream that are read ahead.
const READ_AHEAD: usize = 4;
/// How long a peer may take to say how much of a snapshot it has.
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(5);
/// A peer that cannot be reached is tried again after this.
const RETRY: Duration = Duration::from_millis(100);
/// Entries that take longer on their way are sent anew.
const SEND_TIMEOUT: Duration = Duration::from_secs(60);

/// Makes clients of peers.
#[derive(Clone)]
pub(crate) struct Peers {
    pub(crate) node_id: u64,
    pub(crate) pool: PeerPool,
    /// An election in this term is one that the leader asked for; voters are told so.
    pub(crate) handover_term: Arc<AtomicU64>,
}

impl RaftNetworkFactory<TypeConfig> for Peers {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, node: &PeerNode) -> Peer {
        Peer {
            node_id: self.node_id,
            target,
            address: node.peer_address.clone(),
            pool: self.pool.clone(),
            handover_term: Arc::clone(&self.handover_term),
            sending: None,
        }
    }
}

/// One peer.
pub(crate) struct Peer {
    node_id: u64,
    target: u64,
    address: String,
    pool: PeerPool,
    handover_term: Arc<AtomicU64>,
    /// Entries that are on their way, perhaps for longer than the core waited for them.
    sending: Option<Sending>,
}

/// A call with entries. It goes on when the core has stopped waiting for it, and is found again when the core tries
/// again: else what takes longer than a heartbeat to send would be sent from its beginning for ever.
struct Sending {
    vote: Vote<u64>,
    prev: Option<LogId<u64>>,
    last: Option<LogId<u64>>,
    call: AbortOnDropHandle<Result<peer::AppendResponse, tonic::Status>>,
}

impl Sending {
    /// Whether it carries what a request asks for, or the front of it.
    fn carries(&self, request: &AppendEntriesRequest<TypeConfig>) -> bool {
        let last = request.entries.last().map(|entry| entry.log_id);
        self.vote == request.vote && self.prev == request.prev_log_id && self.last <= last
    }
}

type Failure = RPCError<u64, PeerNode, RaftError<u64>>;

impl Peer {
    fn client(&self) -> Result<PeerClient, StoreError> {
        self.pool.get(self.target, &self.address)
    }

    fn bulk_client(&self) -> Result<PeerClient, StoreError> {
        self.pool.get_bulk(self.target, &self.address)
    }

    /// Makes a call within the time that the core gives it.
    async fn call<T>(
        &self,
        action: RPCTypes,
        option: &RPCOption,
        call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T, Failure> {
        let timeout = option.hard_ttl();
        match tokio::time::timeout(timeout, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            // Also what answers, and refuses: without a pause the core would ask again at once, for ever.
            Ok(Err(status)) => {
                self.pool.heed(&status);
                Err(RPCError::Unreachable(Unreachable::new(&status)))
            }
            Err(_) => {
                Err(RPCError::Timeout(Timeout { action, id: self.node_id, target: self.target, timeout }))
            }
        }
    }
}

/// Sends entries.
fn send(mut client: PeerClient, request: &AppendEntriesRequest<TypeConfig>) -> Sending {
    let mut message = tonic::Request::new(convert::append_request_to_proto(request));
    message.set_timeout(SEND_TIMEOUT);
    let call = tokio::spawn(async move { client.append(message).await.map(tonic::Response::into_inner) });
    Sending {
        vote: request.vote,
        prev: request.prev_log_id,
        last: request.entries.last().map(|entry| entry.log_id),
        call: AbortOnDropHandle::new(call),
    }
}

fn is_success(response: &peer::AppendResponse) -> bool {
    matches!(response.result, Some(peer::append_response::Result::Success(_)))
}

fn unreachable_peer(error: StoreError) -> Failure {
    RPCError::Unreachable(Unreachable::new(&error))
}

impl RaftNetwork<TypeConfig> for Peer {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, Failure> {
        let mut client = self.client().map_err(unreachable_peer)?;
        if rpc.entries.is_empty() {
            let request = convert::append_request_to_proto(&rpc);
            let response = self.call(RPCTypes::AppendEntries, &option, client.append(request)).await?;
            return convert::append_response(&response).map_err(unreachable_peer);
        }
        let bulk = self.bulk_client().map_err(unreachable_peer)?;
        let on_its_way = self.sending.take().filter(|sending| sending.carries(&rpc));
        let again = on_its_way.is_some();
        let sending = self.sending.insert(on_its_way.unwrap_or_else(|| send(bulk, &rpc)));
        let (last, call) = (sending.last, &mut sending.call);
        // The entries hold up the heartbeats that the core would send, so one goes beside them.
        let heartbeat = again.then(|| peer::AppendRequest {
            vote: Some(convert::vote_to_proto(&rpc.vote)),
            prev_log_id: rpc.prev_log_id.as_ref().map(convert::from_log_id),
            entries: Vec::new(),
            leader_commit: rpc.leader_commit.as_ref().map(convert::from_log_id),
        });
        let ended = async move {
            if let Some(heartbeat) = heartbeat {
                tokio::select! {
                    biased;
                    ended = &mut *call => return ended,
                    beat = client.append(heartbeat) => match beat {
                        Ok(beat) if is_success(beat.get_ref()) => {}
                        Ok(refused) => return Ok(Ok(refused.into_inner())),
                        Err(status) => return Ok(Err(status)),
                    }
                }
            }
            call.await
        };
        let timeout = option.hard_ttl();
        let Ok(ended) = tokio::time::timeout(timeout, ended).await else {
            let (id, target) = (self.node_id, self.target);
            return Err(RPCError::Timeout(Timeout { action: RPCTypes::AppendEntries, id, target, timeout }));
        };
        self.sending = None;
        let ended = ended.unwrap_or_else(|error| Err(tonic::Status::internal(error.to_string())));
        let response = self.call(RPCTypes::AppendEntries, &option, async { ended.map(tonic::Response::new) });
        match convert::append_response(&response.await?).map_err(unreachable_peer)? {
            // The front of what was asked for may be all that was sent.
            AppendEntriesResponse::Success => Ok(AppendEntriesResponse::PartialSuccess(last)),
            other => Ok(other),
        }
    }

    async fn vote(&mut self, rpc: VoteRequest<u64>, option: RPCOption) -> Result<VoteResponse<u64>, Failure> {
        let mut client = self.client().map_err(unreachable_peer)?;
        let handover = rpc.vote.leader_id.term == self.handover_term.load(Ordering::Acquire);
        let request = peer::VoteRequest { handover, ..convert::vote_request_to_proto(&rpc) };
        let response = self.call(RPCTypes::Vote, &option, client.vote(request)).await?;
        convert::vote_response(&response).map_err(unreachable_peer)
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote<u64>,
        snapshot: Snapshot<TypeConfig>,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<u64>, StreamingError<TypeConfig, openraft::error::Fatal<u64>>> {
        let unreachable = |error: &StoreError| StreamingError::Unreachable(Unreachable::new(error));
        let mut client = self.bulk_client().map_err(|error| unreachable(&error))?;
        let broken = |error: &io::Error| StreamingError::Network(NetworkError::new(error));
        let file = tokio::fs::File::open(&snapshot.snapshot.path).await.map_err(|error| broken(&error))?;
        let length = file.metadata().await.map_err(|error| broken(&error))?.len();
        let offset = progress(&mut client, &snapshot.meta.snapshot_id, length)
            .await
            .map_err(|status| StreamingError::Unreachable(Unreachable::new(&status)))?;
        let header = peer::SnapshotHeader {
            vote: Some(convert::vote_to_proto(&vote)),
            meta: Some(convert::snapshot_meta_to_proto(&snapshot.meta)),
            length,
            offset,
        };
        let messages = read_messages(file, header).await.map_err(|error| broken(&error))?;
        let started = Instant::now();
        tracing::info!(
            target = self.target,
            snapshot = %snapshot.meta.snapshot_id,
            length,
            offset,
            "sending a snapshot"
        );
        let call = client.install_snapshot(messages);
        let response = tokio::select! {
            closed = cancel => return Err(StreamingError::Closed(closed)),
            response = tokio::time::timeout(option.hard_ttl(), call) => response,
        };
        match response {
            Ok(Ok(response)) => {
                tracing::info!(target = self.target, elapsed = ?started.elapsed(), "the snapshot is installed");
                let ballot = response.into_inner().vote.unwrap_or_default();
                Ok(SnapshotResponse { vote: convert::vote(&ballot) })
            }
            Ok(Err(status)) => Err(StreamingError::Unreachable(Unreachable::new(&status))),
            Err(elapsed) => Err(StreamingError::Unreachable(Unreachable::new(&elapsed))),
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(RETRY))
    }
}

/// Asks how much of a snapshot the peer has already.
async fn progress(client: &mut PeerClient, snapshot_id: &str, length: u64) -> Result<u64, tonic::Status> {
    let mut request =
        tonic::Request::new(peer::SnapshotProgressRequest { snapshot_id: snapshot_id.to_owned(), length });
    request.set_timeout(PROGRESS_TIMEOUT);
    match client.snapshot_progress(request).await {
        Ok(response) => Ok(response.into_inner().offset.min(length)),
        // A release that knows nothing of it receives from the beginning.
        Err(status) if status.code() == tonic::Code::Unimplemented => Ok(0),
        Err(status) => Err(status),
    }
}

/// Streams a snapshot file from the header's offset on, as messages; a few are read ahead.
async fn read_messages(
    mut reader: tokio::fs::File,
    header: peer::SnapshotHeader,
) -> io::Result<ReceiverStream<peer::InstallSnapshotRequest>> {
    use peer::install_snapshot_request::Message;
    reader.seek(io::SeekFrom::Start(header.offset)).await?;
    let (sender, receiver) = tokio::sync::mpsc::channel(READ_AHEAD);
    tokio::spawn(async move {
        let mut next = Message::Header(header);
        loop {
            // The call has ended when nobody receives.
            if sender.send(peer::InstallSnapshotRequest { message: Some(next) }).await.is_err() {
                return;
            }
            let mut chunk = bytes::BytesMut::with_capacity(SNAPSHOT_CHUNK);
            match reader.read_buf(&mut chunk).await {
                Ok(0) => return,
                Ok(_) => next = Message::Data(chunk.freeze()),
                Err(error) => {
                    // The receiver counts the bytes: a stream that ends early is refused there.
                    tracing::warn!(%error, "reading a snapshot failed");
                    return;
                }
            }
        }
    });
    Ok(ReceiverStream::new(receiver))
}
