//! The domain of the auth service: who exists, what they may do, what was decided. Pure functions over a transaction.
//!
//! A function takes the transaction, the [`Context`] of the call and typed input, checks, writes rows, appends the
//! audit record of what it did, and answers. It never waits, reads no clock (the time is [`store_txn::Read::now`]),
//! draws no randomness and knows no transport: ids, secrets' digests, password hashes and signatures are made by the
//! caller, before or after. Signing policy ends here in a specification; `mezite-pki` carries it out.

pub mod access_request;
pub mod agent_identity;
pub mod audit;
pub mod audit_log;
pub mod ca;
pub mod cluster;
pub mod cluster_config;
pub mod connector;
pub mod context;
mod error;
pub mod evaluate;
pub mod host_login;
pub mod iam;
pub mod invite;
pub mod issue;
pub mod join;
pub mod labels;
pub mod lock;
pub mod lockout;
pub mod login;
mod mapped;
pub mod names;
pub mod network;
pub mod node;
pub mod page;
pub mod password;
mod placed;
pub mod presence;
pub mod principal;
pub mod registration;
pub mod remote;
pub mod repeat;
pub mod revocation;
pub mod role;
pub mod roster;
pub mod rotation;
pub mod rules;
mod seal;
pub mod second_factor;
pub mod secret;
pub mod session;
pub mod spiffe;
pub mod sso;
pub mod tables;
#[cfg(test)]
mod testing;
pub mod token;
pub mod trust;
pub mod trusted_cluster;
pub mod user;
mod verdict;
mod web;
pub mod webauthn;
#[cfg(test)]
mod world;

pub use context::{Caller, Context, Credential, Origin, Refusals};
pub use error::CoreError;
pub use verdict::Verdict;
