//! A replicated, transactional, ordered key-value store: openraft on RocksDB. It knows nothing of what is stored.
//!
//! [`Store::transact`] runs a closure over a snapshot of this node's state, remembers what it read, and commits
//! what it writes through Raft if none of that has changed; [`Store::read`] reads a state that a quorum has
//! confirmed to be current; [`Store::watch`] follows committed changes.
//!
//! The way of a write: `transact` -> `propose` (group commit; to the leader in one hop) -> `raft` (log, fsync on a
//! majority) -> `apply` (pure, the same everywhere) -> `watch` and the answer. The way of a read: `read` (one
//! quorum round serves all that wait) -> a snapshot of the local state.
//!
//! `membership` says who belongs to the cluster, and `handover` how a leader leaves it to another.

mod apply;
mod backup;
mod check;
mod config;
mod db;
mod durable;
mod error;
mod failure;
mod fatal;
mod handover;
mod ids;
mod membership;
mod memo;
mod metrics;
mod net;
mod offline;
mod owner;
mod propose;
mod raft;
mod read;
mod restore;
mod space;
mod state;
mod status;
mod store;
mod survey;
#[cfg(test)]
mod tests;
mod time;
mod transact;
mod views;
mod watch;

pub use backup::Backup;
pub use check::{CheckReport, check};
pub use config::{Clock, Limits, StoreConfig, Timing};
pub use error::{StoreError, TransactError};
pub use fatal::Fatal;
pub use membership::{MembershipError, Role};
pub use mezite_proto::peer::{JoinRequest, JoinResponse, Member};
pub use net::{
    identity::{PeerIdentity, peer_dns_name},
    join::{JoinError, JoinHandler, request_join},
};
pub use offline::{Exported, export, look, remembers_removal};
pub use restore::{Restored, restore};
pub use space::Compaction;
pub use status::{MemberStatus, NotReady, Status};
pub use store::{Committed, Store};
pub use survey::{Report, Surveyed};
pub use transact::{StoreTransaction, View};
pub use watch::{WatchEvent, Watcher};
