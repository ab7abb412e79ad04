//! The peer listener: Raft, forwarding and join.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use mezite_proto::{
    peer::{
        self,
        join_service_server::{self, JoinService, JoinServiceServer},
        peer_service_server::{PeerService, PeerServiceServer},
    },
    transport::{ConnectionInfo, Gate, GateRules, ListenerLimits, TlsListener, is_of},
};
use rustls::ServerConfig;
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};
use tonic::{Request, Response, Status, Streaming};

use super::{MAX_MESSAGE_BYTES, PROTOCOL_VERSION, VERSION_HEADER, identity::node_id_of};
use crate::{
    config::Timing,
    error::StoreError,
    membership::{Change, MembershipError, REMOVED},
    raft::{SnapshotFile, receive::Incoming},
    store::Inner,
};

/// When the listener stops, calls that are being answered may take this long.
const DRAIN: Duration = Duration::from_millis(500);

/// Connections of nodes that have no certificate yet. They must not take the members' places.
const MAX_JOINERS: usize = 64;
/// Largest request to join, in bytes.
const MAX_JOIN_BYTES: usize = 16 << 10;
/// What arrives over connections without a certificate, and nothing but requests to join does.
const RULES: GateRules = GateRules {
    open: |path| is_of(path, join_service_server::SERVICE_NAME),
    beside: |_| false,
    lasting: |path| path == "/mezite.peer.v1.PeerService/InstallSnapshot",
    request_timeout: Timing::MAX_DEADLINE,
    anonymous_bytes: 4 << 20,
};
/// Calls at a time on one connection. A peer's are batched, and few.
const MAX_STREAMS: u32 = 256;
/// A ping after so much silence finds a dead connection.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// A running peer listener.
pub(crate) struct PeerServer {
    tls: Arc<ArcSwap<ServerConfig>>,
    stop: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl PeerServer {
    pub(crate) fn start(listener: TcpListener, inner: &Arc<Inner>) -> Result<Self, StoreError> {
        let tls = Arc::new(ArcSwap::from_pointee(inner.identity.load().server_config()?));
        let limits = ListenerLimits {
            max_anonymous: MAX_JOINERS,
            anonymous_age: Some(inner.config.limits.joiner_age),
            ..ListenerLimits::default()
        };
        let incoming = TlsListener::new(listener, Arc::clone(&tls), limits);
        let peers = PeerServiceServer::new(Handler(Arc::clone(inner)))
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let join =
            JoinServiceServer::new(Handler(Arc::clone(inner))).max_decoding_message_size(MAX_JOIN_BYTES);
        let (stop, stopped) = oneshot::channel::<()>();
        let server = tonic::transport::Server::builder()
            .layer(Gate::new(RULES))
            .max_concurrent_streams(MAX_STREAMS)
            .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
            .add_service(peers)
            .add_service(join);
        let task = tokio::spawn(async move {
            let stopped = async {
                // Dropping the handle stops it as well.
                let _ = stopped.await;
            };
            if let Err(error) = server.serve_with_incoming_shutdown(incoming, stopped).await {
                tracing::error!(%error, "the peer listener failed");
            }
        });
        Ok(Self { tls, stop: Some((stop, task)) })
    }

    /// Serves new connections under another configuration.
    pub(crate) fn set_tls(&self, config: ServerConfig) {
        self.tls.store(Arc::new(config));
    }

    /// Stops listening. The answer is to be waited for: it lets calls end, for a short time, and drops the
    /// connections.
    pub(crate) fn stop(&mut self) -> impl Future<Output = ()> + use<> {
        let stopping = self.stop.take();
        async move {
            let Some((stop, mut task)) = stopping else { return };
            drop(stop);
            if tokio::time::timeout(DRAIN, &mut task).await.is_err() {
                task.abort();
            }
        }
    }
}

struct Handler(Arc<Inner>);

impl Handler {
    /// Refuses whoever is not a node of this cluster, was removed from it, or speaks a newer protocol. Answers the
    /// peer's id.
    fn check_peer<T>(&self, request: &Request<T>) -> Result<u64, Status> {
        check_version(request)?;
        let info = request.extensions().get::<ConnectionInfo>();
        let leaf = info.and_then(|info| info.peer_certificates.first());
        let leaf = leaf.ok_or_else(|| Status::unauthenticated("a peer certificate is needed"))?;
        let node_id = node_id_of(leaf, &self.0.identity.load().cluster_id)
            .ok_or_else(|| Status::permission_denied("the certificate is not of a node of this cluster"))?;
        match self.0.progress.is_removed(node_id) {
            true => Err(Status::permission_denied(REMOVED)),
            false => Ok(node_id),
        }
    }

    /// As [`Handler::check_peer`], and refuses whoever is not a member yet.
    fn check_member<T>(&self, request: &Request<T>) -> Result<u64, Status> {
        let node_id = self.check_peer(request)?;
        let member = self.0.core.member(node_id);
        member.map(|_| node_id).ok_or_else(|| Status::permission_denied("only a member may ask for this"))
    }

    /// As [`Handler::check_peer`], and refuses whoever speaks for another leader or candidate. It need not be a member
    /// that this node knows: one that is behind, or new, does not know all of them.
    fn check_speaker<T>(&self, request: &Request<T>, ballot: Option<&peer::Ballot>) -> Result<(), Status> {
        check_own(self.check_peer(request)?, ballot)
    }
}

/// Whether a vote is the caller's own.
fn check_own(caller: u64, ballot: Option<&peer::Ballot>) -> Result<(), Status> {
    match ballot {
        Some(ballot) if ballot.node_id == caller => Ok(()),
        _ => Err(Status::permission_denied("a node speaks for itself alone")),
    }
}

fn check_version<T>(request: &Request<T>) -> Result<(), Status> {
    let version =
        request.metadata().get(VERSION_HEADER).and_then(|value| value.to_str().ok()?.parse::<u32>().ok());
    match version {
        Some(version) if version <= PROTOCOL_VERSION => Ok(()),
        Some(version) => Err(Status::failed_precondition(format!(
            "peer protocol {version} is newer than {PROTOCOL_VERSION}, which this node speaks: upgrade this node"
        ))),
        None => Err(Status::failed_precondition("the call does not name a peer protocol version")),
    }
}

fn to_status(error: StoreError) -> Status {
    match error {
        StoreError::Unavailable(_) | StoreError::Stopped(_) => Status::unavailable(error.to_string()),
        StoreError::DataDirectory(_) => Status::invalid_argument(error.to_string()),
        other => Status::internal(other.to_string()),
    }
}

#[tonic::async_trait]
impl PeerService for Handler {
    async fn append(
        &self,
        request: Request<peer::AppendRequest>,
    ) -> Result<Response<peer::AppendResponse>, Status> {
        self.check_speaker(&request, request.get_ref().vote.as_ref())?;
        self.0.core.append(request.into_inner()).await.map(Response::new).map_err(to_status)
    }

    async fn vote(
        &self,
        request: Request<peer::VoteRequest>,
    ) -> Result<Response<peer::VoteResponse>, Status> {
        self.check_speaker(&request, request.get_ref().vote.as_ref())?;
        self.0.core.vote(request.into_inner()).await.map(Response::new).map_err(to_status)
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<peer::InstallSnapshotRequest>>,
    ) -> Result<Response<peer::InstallSnapshotResponse>, Status> {
        let caller = self.check_peer(&request)?;
        let mut messages = request.into_inner();
        let first = messages.message().await?.and_then(|message| message.message);
        let Some(peer::install_snapshot_request::Message::Header(header)) = first else {
            return Err(Status::invalid_argument("a snapshot begins with its header"));
        };
        check_own(caller, header.vote.as_ref())?;
        let incoming = self.0.state.inbox().begin(&header).await.map_err(to_status)?;
        let file = receive(&mut messages, incoming).await?;
        let response = self.0.core.install_snapshot(&header, file).await.map_err(to_status)?;
        Ok(Response::new(response))
    }

    async fn snapshot_progress(
        &self,
        request: Request<peer::SnapshotProgressRequest>,
    ) -> Result<Response<peer::SnapshotProgressResponse>, Status> {
        self.check_peer(&request)?;
        let request = request.into_inner();
        let progress = self.0.state.inbox().progress(&request.snapshot_id, request.length).await;
        let offset = progress.map_err(to_status)?;
        Ok(Response::new(peer::SnapshotProgressResponse { offset }))
    }

    async fn propose(
        &self,
        request: Request<peer::ProposeRequest>,
    ) -> Result<Response<peer::ProposeResponse>, Status> {
        self.check_member(&request)?;
        let outcomes = self.0.proposer.propose_for_peer(request.into_inner().transactions).await;
        let leader_id = self.0.core.leader().map_or(0, |(id, _)| id);
        Ok(Response::new(peer::ProposeResponse { outcomes, leader_id }))
    }

    async fn read_index(
        &self,
        request: Request<peer::ReadIndexRequest>,
    ) -> Result<Response<peer::ReadIndexResponse>, Status> {
        self.check_member(&request)?;
        let log_index = self.0.reads.index_for_peer().await.map_err(to_status)?;
        Ok(Response::new(peer::ReadIndexResponse { log_index }))
    }

    async fn activate(
        &self,
        request: Request<peer::ActivateRequest>,
    ) -> Result<Response<peer::ActivateResponse>, Status> {
        let caller = self.check_peer(&request)?;
        let request = request.into_inner();
        if request.member.as_ref().is_none_or(|member| member.node_id != caller) {
            return Err(Status::permission_denied("a node can only bring itself in"));
        }
        let change = Change::from(request);
        match self.0.change_once(&change, Instant::now() + Timing::MAX_DEADLINE).await {
            Ok(()) => Ok(Response::new(peer::ActivateResponse {})),
            Err(MembershipError::Removed(_)) => Err(Status::permission_denied(REMOVED)),
            Err(MembershipError::Store(error)) => Err(to_status(error)),
            Err(refusal) => Err(Status::failed_precondition(refusal.to_string())),
        }
    }

    async fn change_membership(
        &self,
        request: Request<peer::ChangeMembershipRequest>,
    ) -> Result<Response<peer::ChangeMembershipResponse>, Status> {
        self.check_member(&request)?;
        let change = Change::try_from(request.into_inner()).map_err(|()| {
            Status::invalid_argument("a change of the members that this release does not know")
        })?;
        // The caller's deadline ends the call.
        let refusal = match self.0.change_as_leader(&change, Instant::now() + Timing::MAX_DEADLINE).await {
            Ok(()) => None,
            Err(error) => Some(error.into_refusal().map_err(to_status)?),
        };
        Ok(Response::new(peer::ChangeMembershipResponse { refusal }))
    }

    async fn ping(
        &self,
        request: Request<peer::PingRequest>,
    ) -> Result<Response<peer::PingResponse>, Status> {
        self.check_peer(&request)?;
        Ok(Response::new(peer::PingResponse { clock_ms: self.0.time.own() }))
    }

    async fn report(
        &self,
        request: Request<peer::ReportRequest>,
    ) -> Result<Response<peer::ReportResponse>, Status> {
        self.check_member(&request)?;
        Ok(Response::new(self.0.report().await))
    }

    async fn timeout_now(
        &self,
        request: Request<peer::TimeoutNowRequest>,
    ) -> Result<Response<peer::TimeoutNowResponse>, Status> {
        let caller = self.check_member(&request)?;
        let ballot = request.into_inner().vote.unwrap_or_default();
        if ballot.node_id != caller {
            return Err(Status::permission_denied("only the leader hands over"));
        }
        let standing = self.0.core.stand(&ballot).await.map_err(to_status)?;
        Ok(Response::new(peer::TimeoutNowResponse { standing }))
    }
}

/// Takes the bytes of a snapshot stream; all of them, and sound, or it is an error.
async fn receive(
    messages: &mut Streaming<peer::InstallSnapshotRequest>,
    mut incoming: Incoming,
) -> Result<SnapshotFile, Status> {
    let superseded = incoming.superseded();
    loop {
        let message = tokio::select! {
            message = messages.message() => message?,
            () = superseded.cancelled() => return Err(Status::aborted("a newer transfer took over")),
        };
        match message.map(|message| message.message) {
            Some(Some(peer::install_snapshot_request::Message::Data(data))) => {
                incoming.write(&data).await.map_err(to_status)?;
            }
            Some(_) => return Err(Status::invalid_argument("a snapshot has one header")),
            None => return incoming.finish().await.map_err(to_status),
        }
    }
}

#[tonic::async_trait]
impl JoinService for Handler {
    async fn join(
        &self,
        request: Request<peer::JoinRequest>,
    ) -> Result<Response<peer::JoinResponse>, Status> {
        check_version(&request)?;
        let handler = self.0.join_handler.get();
        let handler =
            handler.ok_or_else(|| Status::unavailable("this node does not admit nodes yet; try again"))?;
        handler.join(request.into_inner()).await.map(Response::new)
    }
}
