//! The wire between nodes: mutual TLS under the peer CA, and the join of a node that has no certificate yet.

pub(crate) mod client;
pub(crate) mod identity;
pub(crate) mod join;
pub(crate) mod server;

/// Version of the peer protocol that this release speaks. A call of a newer one is refused.
pub(crate) const PROTOCOL_VERSION: u32 = 1;

/// Metadata that carries the version.
pub(crate) const VERSION_HEADER: &str = "mezite-peer-version";

/// The largest message: a batch of log entries, or one large transaction, with room for framing.
pub(crate) const MAX_MESSAGE_BYTES: usize = 32 << 20;
