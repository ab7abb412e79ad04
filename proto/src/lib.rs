//! The wire: the messages that Mezite's programs exchange, and how they are carried.
//!
//! Three features, so that each crate sees its own part: `auth` is the public API (`v1/auth.proto`), `peer` the
//! protocol between the nodes of a store (`peer/v1/peer.proto`), `transport` the TLS listener and client channel under
//! both. No behaviour of either service lives here.

/// The public API: `mezite.v1`.
#[cfg(feature = "auth")]
pub mod v1 {
    #![allow(missing_docs, clippy::all)]
    tonic::include_proto!("mezite.v1");
    include!(concat!(env!("OUT_DIR"), "/auth_debug.rs"));
}

/// Between the nodes of a store: `mezite.peer.v1`.
#[cfg(feature = "peer")]
pub mod peer {
    #![allow(missing_docs, clippy::all)]
    tonic::include_proto!("mezite.peer.v1");
    include!(concat!(env!("OUT_DIR"), "/peer_debug.rs"));
}

#[cfg(feature = "auth")]
pub mod access;
#[cfg(feature = "transport")]
pub mod transport;

/// The encoded `FileDescriptorSet` of the public API, with comments and method options, for reflection and tests.
#[cfg(feature = "auth")]
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/auth_descriptor.bin"));

/// Full name of the public service.
pub const SERVICE_NAME: &str = "mezite.v1.AuthService";

/// Largest reply of the public API, in bytes: the receipt of a recording of the most segments fits into it. All others
/// are far smaller.
#[cfg(feature = "auth")]
pub const MAX_REPLY: usize = 16 << 20;

/// Name of the metadata that carries the idempotency key of a call of the public API.
#[cfg(feature = "auth")]
pub const IDEMPOTENCY_KEY: &str = "mezite-idempotency-key";
