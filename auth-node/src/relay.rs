//! Calls to recording ingests, on behalf of callers that were authorised here.
//!
//! So many at a time, fewer of each caller, and message by message: a slow side slows the other down, and nothing piles
//! up between.
//! A call of one message each way is made again at the next ingest when one cannot be used; a stream has a
//! connection of its own and, once it flows, is gone on with by its caller.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use auth_core::names::AgentId;
use futures::{Stream, StreamExt as _, stream};
use mezite_daemon::traces;
use mezite_proto::{
    MAX_REPLY, transport,
    v1::{self, auth_service_client::AuthServiceClient},
};
use rand::seq::SliceRandom as _;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::sync::oneshot;
use tonic::{
    Code, Request, Response, Status, metadata::MetadataValue, service::interceptor::InterceptedService,
    transport::Channel,
};

use crate::{
    config::LimitsConfig,
    error::ApiError,
    fault::NodeError,
    metrics,
    outlet::{self, Pace},
    places::{Place, Places, Room},
};

/// Metadata in which an ingest is told whose call it is.
const RELAYED_AGENT: &str = "mezite-relayed-agent";
/// For a connection to an ingest, handshake included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// For one attempt at one ingest.
const ATTEMPT: Duration = Duration::from_secs(10);
/// Largest message to an ingest, in bytes: what ingests take.
const MAX_MESSAGE: usize = 4 << 20;
/// Connections that are kept for calls of one message each way.
const MAX_KEPT: usize = 64;

const NO_INGEST: ApiError = ApiError::Unavailable("no recording ingest can be reached now");

/// A client of one ingest.
pub(crate) type IngestClient = AuthServiceClient<InterceptedService<Channel, Traced>>;
/// Has a request carry the trace of the call that it is made for.
type Traced = fn(Request<()>) -> Result<Request<()>, Status>;

/// A connection, and the TLS that it was made with.
struct Kept {
    tls: Arc<ClientConfig>,
    channel: Channel,
}

/// Calls ingests.
pub(crate) struct Relay {
    tls: Arc<ArcSwap<ClientConfig>>,
    server_name: ServerName<'static>,
    writes: Places,
    downloads: Places,
    message_timeout: Duration,
    kept: Mutex<BTreeMap<String, Kept>>,
}

/// What an agent sends.
pub(crate) trait Inbound:
    Stream<Item = Result<v1::StreamSessionRecordingRequest, Status>> + Send + Unpin + 'static
{
}

impl<S> Inbound for S where
    S: Stream<Item = Result<v1::StreamSessionRecordingRequest, Status>> + Send + Unpin + 'static
{
}

impl Relay {
    /// For the ingests of a cluster.
    ///
    /// # Errors
    /// When the cluster's name is no DNS name.
    pub(crate) fn new(
        cluster: &str,
        tls: Arc<ArcSwap<ClientConfig>>,
        limits: &LimitsConfig,
    ) -> Result<Self, NodeError> {
        let server_name = ServerName::try_from(format!("ingest.{cluster}.mezite.internal"));
        Ok(Self {
            tls,
            server_name: server_name.map_err(|error| NodeError::Tls(error.to_string()))?,
            writes: Places::new(Room {
                most: limits.max_relays,
                each: limits.max_relays_per_agent,
                full: "too many recordings are relayed",
                own_full: "too many recordings of this agent are relayed",
                measure: metrics::relays,
            }),
            downloads: Places::new(Room {
                most: limits.max_downloads,
                each: limits.max_downloads_per_caller,
                full: "too many recordings are downloaded",
                own_full: "this caller downloads too many recordings",
                measure: metrics::downloads,
            }),
            message_timeout: limits.message_timeout,
            kept: Mutex::default(),
        })
    }

    /// A place for a recording that an agent sends.
    ///
    /// # Errors
    /// [`ApiError::Busy`] when all are taken, or all that one agent may have.
    pub(crate) fn place(&self, agent: &AgentId) -> Result<Place, ApiError> {
        self.writes.take(format!("agent:{agent}"))
    }

    /// Makes a call of one message each way at one ingest after the other, in random order, until one
    /// answers.
    ///
    /// # Errors
    /// What the last one answered; [`ApiError::Unavailable`] when there is none.
    pub(crate) async fn ask<T, F>(
        &self,
        mut ingests: Vec<String>,
        call: impl Fn(IngestClient) -> F,
    ) -> Result<T, ApiError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        ingests.shuffle(&mut rand::rng());
        let mut failure = NO_INGEST;
        for address in ingests {
            let attempt = tokio::time::timeout(ATTEMPT, call(self.client(&address)?)).await;
            match attempt {
                Ok(Ok(reply)) => return Ok(reply.into_inner()),
                Ok(Err(status)) if is_elsewhere_better(&status) => failure = relayed(status),
                Ok(Err(status)) => return Err(relayed(status)),
                Err(_) => failure = ApiError::DeadlineExceeded,
            }
            tracing::debug!(address, error = %failure, "an ingest did not answer");
        }
        Err(failure)
    }

    /// A connection of its own to the first ingest, in random order, that can be reached.
    ///
    /// # Errors
    /// [`ApiError::Unavailable`] when there is none.
    pub(crate) async fn connect(&self, mut ingests: Vec<String>) -> Result<IngestClient, ApiError> {
        ingests.shuffle(&mut rand::rng());
        for address in ingests {
            let (tls, name) = (self.tls.load_full(), self.server_name.clone());
            let connecting = transport::connect(&address, tls, name, CONNECT_TIMEOUT);
            // The endpoint's own bound does not cover a handshake that stalls.
            match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
                Ok(Ok(channel)) => return Ok(bounded(channel)),
                Ok(Err(error)) => tracing::debug!(address, %error, "an ingest cannot be reached"),
                Err(_) => tracing::debug!(address, "an ingest cannot be reached in time"),
            }
        }
        Err(NO_INGEST)
    }

    /// Relays a recording that an agent sends.
    ///
    /// # Errors
    /// What the ingest answered; what went wrong with either side's stream.
    pub(crate) async fn stream(
        &self,
        ingests: Vec<String>,
        agent: &AgentId,
        inbound: impl Inbound,
    ) -> Result<v1::StreamSessionRecordingResponse, ApiError> {
        let _place = self.place(agent)?;
        let mut ingest = self.connect(ingests).await?;
        let (failed, failure) = oneshot::channel();
        let request = on_behalf(agent, forward(inbound, self.message_timeout, failed))?;
        let mut answer = std::pin::pin!(ingest.stream_session_recording(request));
        let ended = tokio::select! {
            biased;
            answer = &mut answer => return answer.map(Response::into_inner).map_err(relayed),
            ended = failure => ended,
        };
        match ended {
            // The call is dropped, and not ended as if the agent had.
            Ok(failure) => Err(failure),
            Err(_) => match tokio::time::timeout(self.message_timeout, answer).await {
                Ok(answer) => answer.map(Response::into_inner).map_err(relayed),
                Err(_) => Err(ApiError::RelayBroken),
            },
        }
    }

    /// Relays a recording that is downloaded by `caller`, as the audit log names it, until `lost` says why it may not have more
    /// of it. `request_id` is the call's.
    ///
    /// # Errors
    /// [`ApiError::Busy`] when all places are taken, or all that one caller may have; what the ingest answered, or
    /// [`ApiError::Unavailable`].
    pub(crate) async fn download<L: Future<Output = ApiError> + Send + 'static>(
        &self,
        ingests: Vec<String>,
        caller: String,
        request: v1::DownloadSessionRecordingRequest,
        lost: L,
        request_id: &str,
    ) -> Result<impl Stream<Item = Result<v1::DownloadSessionRecordingResponse, Status>> + use<L>, ApiError>
    {
        let place = self.downloads.take(caller)?;
        let mut ingest = self.connect(ingests).await?;
        let pieces = tokio::time::timeout(ATTEMPT, ingest.download_session_recording(request)).await;
        let pieces = pieces.map_err(|_| ApiError::DeadlineExceeded)?.map_err(relayed)?.into_inner();
        let pieces = pieces.map(|piece| piece.map_err(relayed));
        let pace = Pace { silence: self.message_timeout, whole: None };
        Ok(outlet::open(pieces, pace, lost, request_id.to_owned(), (place, ingest)))
    }

    /// A client of one ingest, over a connection that is kept.
    fn client(&self, address: &str) -> Result<IngestClient, ApiError> {
        let tls = self.tls.load_full();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = kept.get(address).filter(|known| Arc::ptr_eq(&known.tls, &tls)) {
            return Ok(bounded(known.channel.clone()));
        }
        let channel =
            transport::channel(address, Arc::clone(&tls), self.server_name.clone(), CONNECT_TIMEOUT);
        let channel = channel.map_err(|error| ApiError::Internal(format!("ingest {address}: {error}")))?;
        if kept.len() >= MAX_KEPT {
            kept.clear();
        }
        kept.insert(address.to_owned(), Kept { tls, channel: channel.clone() });
        Ok(bounded(channel))
    }
}

fn bounded(channel: Channel) -> IngestClient {
    let traced: Traced = traced;
    AuthServiceClient::with_interceptor(channel, traced)
        .max_decoding_message_size(MAX_REPLY)
        .max_encoding_message_size(MAX_MESSAGE)
}

fn traced(mut request: Request<()>) -> Result<Request<()>, Status> {
    traces::pass_on(|name, value| {
        // It is of hexadecimal digits.
        if let Ok(value) = MetadataValue::try_from(value) {
            request.metadata_mut().insert(name, value);
        }
    });
    Ok(request)
}

/// A request that an agent's call is relayed with.
///
/// # Errors
/// Never for an id that was parsed.
pub(crate) fn on_behalf<T>(agent: &AgentId, message: T) -> Result<Request<T>, ApiError> {
    let mut request = Request::new(message);
    let agent =
        MetadataValue::try_from(agent.as_str()).map_err(|error| ApiError::Internal(error.to_string()))?;
    request.metadata_mut().insert(RELAYED_AGENT, agent);
    Ok(request)
}

/// The messages of `inbound`, as they are asked for. When it breaks off or falls silent, `failed` is told and
/// nothing more comes: the call is then cancelled, and not half-closed as if the agent had done that.
fn forward(
    inbound: impl Inbound,
    patience: Duration,
    failed: oneshot::Sender<ApiError>,
) -> impl Stream<Item = v1::StreamSessionRecordingRequest> + Send + 'static {
    stream::unfold((inbound, Some(failed)), move |(mut inbound, mut failed)| async move {
        let failure = match tokio::time::timeout(patience, inbound.next()).await {
            Ok(Some(Ok(message))) => return Some((message, (inbound, failed))),
            Ok(None) => return None,
            Ok(Some(Err(status))) => ApiError::Relayed(Box::new(status)),
            Err(_) => ApiError::Idle,
        };
        if let Some(failed) = failed.take() {
            // Nobody listens any more once the ingest has answered.
            let _ = failed.send(failure);
        }
        std::future::pending().await
    })
}

/// Whether another ingest may do better: this one cannot be reached, is leaving, or is busy.
fn is_elsewhere_better(status: &Status) -> bool {
    is_local(status)
        || matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::ResourceExhausted)
}

/// A status with a source was made on this side of the wire.
fn is_local(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
}

/// What a caller is told of an ingest's failure: what the ingest said, or that the connection broke.
fn relayed(status: Status) -> ApiError {
    if is_local(&status) {
        tracing::debug!(%status, "the connection to an ingest broke");
        return ApiError::RelayBroken;
    }
    ApiError::Relayed(Box::new(status))
}

#[cfg(test)]
#[path = "relay_tests.rs"]
mod tests;
