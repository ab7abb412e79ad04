//! The auth node: the control plane of a cluster, replicated over its nodes, behind one gRPC API.
//!
//! The way of a call: `server` (TLS, limits), or `web` for browsers, -> `rpc` (the one table of methods; a family's module parses,
//! has the domain decide, and converts) -> `service` (who calls, and may it: in the same view or transaction
//! as the work) -> `auth-core` (decides) -> `raft-store` (commits). Signing, hashing and randomness happen
//! here, never in the domain.
//!
//! [`init`], [`join`], [`restore`] and [`recover`] make a node, [`start`] runs it, [`inspect()`] looks whether a
//! stopped one is sound.

mod access;
mod attendance;
mod audit_retention;
mod authn;
mod authz;
mod beside;
mod bootstrap;
mod ca_keys;
mod ca_rotation;
mod census;
pub mod config;
mod error;
mod fault;
mod foreign;
mod iam;
mod ingests;
mod inspect;
mod metrics;
mod missing_cas;
mod new_ca;
mod news;
mod node;
mod once;
mod outbound;
mod outlet;
mod pace;
mod passwords;
mod peer_certificate;
mod places;
mod presence;
mod readiness;
mod recent;
mod refusals;
mod relay;
mod rpc;
mod server;
mod service;
mod spiffe;
mod sso;
mod standing;
mod start;
mod trust_refresh;
#[doc(hidden)]
pub mod untrusted;
mod uses;
mod web;
mod webauthn;

pub use bootstrap::{
    Init, Initialized, Join, Joined, Restore, Succeeded, init, join, recover, restore, secret_from,
};
pub use fault::NodeError;
pub use inspect::{Inspection, inspect};
pub use rpc::RESERVED;
pub use start::{Handle, start};
