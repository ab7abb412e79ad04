//! Channels to peers, one each, kept open.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
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
use crate::error::StoreError;

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

/// Channels to peers.
#[derive(Clone)]
pub(crate) struct PeerPool(Arc<Pool>);

struct Pool {
    identity: PeerIdentity,
    tls: Arc<ClientConfig>,
    channels: Mutex<HashMap<(u64, String), PeerClient>>,
}

impl PeerPool {
    pub(crate) fn new(identity: PeerIdentity) -> Result<Self, StoreError> {
        let tls = Arc::new(identity.client_config()?);
        Ok(Self(Arc::new(Pool { identity, tls, channels: Mutex::default() })))
    }

    /// A client of a node at an address; it connects when first used. TLS checks that it is that node.
    pub(crate) fn get(&self, node_id: u64, address: &str) -> Result<PeerClient, StoreError> {
        let mut channels = self.0.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = channels.get(&(node_id, address.to_owned())) {
            return Ok(client.clone());
        }
        let name = self.0.identity.server_name(node_id)?;
        let channel = channel(address, Arc::clone(&self.0.tls), name, CONNECT_TIMEOUT)
            .map_err(|error| StoreError::Config(format!("peer address {address}: {error}")))?;
        let client = PeerServiceClient::with_interceptor(channel, Versioned)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        channels.insert((node_id, address.to_owned()), client.clone());
        Ok(client)
    }
}
