//! Channels to peers, kept open until the identity under which they were opened is replaced.
//!
//! A peer has two: what is large has its own, so that heartbeats and votes never wait behind it in a socket's buffer.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use mezite_proto::{peer::peer_service_client::PeerServiceClient, transport::channel};
use rustls::ClientConfig;
use tonic::{
    metadata::MetadataValue,
    service::{Interceptor, interceptor::InterceptedService},
    transport::Channel,
};

use super::{MAX_MESSAGE_BYTES, PROTOCOL_VERSION, VERSION_HEADER, identity::PeerIdentity};
use crate::{error::StoreError, membership::REMOVED, status::Progress};

/// A connection that takes longer is given up: within an election timeout, so that a dead peer delays nothing.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

/// Names the protocol version in each call.
#[derive(Clone)]
pub(crate) struct Versioned;

impl Interceptor for Versioned {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> {
        request.metadata_mut().insert(VERSION_HEADER, MetadataValue::from(PROTOCOL_VERSION));
        Ok(request)
    }
}

/// A client of a peer.
pub(crate) type PeerClient = PeerServiceClient<InterceptedService<Channel, Versioned>>;

/// What a channel is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Lane {
    /// What is small, and must not wait.
    Calls,
    /// Log entries and snapshots.
    Bulk,
}

/// Channels to peers.
#[derive(Clone)]
pub(crate) struct PeerPool(Arc<Pool>);

struct Pool {
    progress: Progress,
    current: Mutex<Current>,
}

struct Current {
    identity: PeerIdentity,
    tls: Arc<ClientConfig>,
    channels: HashMap<(u64, String, Lane), PeerClient>,
}

impl Current {
    fn new(identity: PeerIdentity) -> Result<Self, StoreError> {
        let tls = Arc::new(identity.client_config()?);
        Ok(Self { identity, tls, channels: HashMap::new() })
    }
}

impl PeerPool {
    pub(crate) fn new(identity: PeerIdentity, progress: Progress) -> Result<Self, StoreError> {
        let current = Mutex::new(Current::new(identity)?);
        Ok(Self(Arc::new(Pool { progress, current })))
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.0.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens new channels under another identity from now on. Calls that are under way end on the old ones.
    pub(crate) fn set_identity(&self, identity: PeerIdentity) -> Result<(), StoreError> {
        let next = Current::new(identity)?;
        *self.current() = next;
        Ok(())
    }

    /// A client of a node at an address; it connects when first used. TLS checks that it is that node.
    pub(crate) fn get(&self, node_id: u64, address: &str) -> Result<PeerClient, StoreError> {
        self.client(node_id, address, Lane::Calls)
    }

    /// As [`PeerPool::get`], for log entries and snapshots.
    pub(crate) fn get_bulk(&self, node_id: u64, address: &str) -> Result<PeerClient, StoreError> {
        self.client(node_id, address, Lane::Bulk)
    }

    fn client(&self, node_id: u64, address: &str, lane: Lane) -> Result<PeerClient, StoreError> {
        let mut current = self.current();
        if let Some(client) = current.channels.get(&(node_id, address.to_owned(), lane)) {
            return Ok(client.clone());
        }
        let name = current.identity.server_name(node_id)?;
        let channel = channel(address, Arc::clone(&current.tls), name, CONNECT_TIMEOUT)
            .map_err(|error| StoreError::Config(format!("peer address {address}: {error}")))?;
        let client = PeerServiceClient::with_interceptor(channel, Versioned)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        current.channels.insert((node_id, address.to_owned(), lane), client.clone());
        Ok(client)
    }

    /// Notes when a peer's refusal says that this node was removed.
    pub(crate) fn heed(&self, refusal: &tonic::Status) {
        if is_removal(refusal) {
            let node_id = self.current().identity.node_id;
            self.0.progress.removed(&[node_id]);
        }
    }
}

/// Whether a peer refuses the caller because it was removed.
pub(crate) fn is_removal(refusal: &tonic::Status) -> bool {
    refusal.code() == tonic::Code::PermissionDenied && refusal.message() == REMOVED
}
