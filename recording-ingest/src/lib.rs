//! The recording ingest: takes session recordings from agents, makes them durable on an object store, and answers
//! auth nodes that list and read them.
//!
//! A call is read from the outside in: `server` carries it, `call` begins and ends it, `rpc` parses and authorises it (`authn`,
//! `convert`), `stream` runs one that writes, `read` one that reads. What is written is judged by `session` (offsets and chain,
//! no I/O), found again by `recover`, ended by `seal` and stored by `objects`; `index` answers lists. Beside the
//! calls, `identity` keeps who this ingest is, `control` tells the cluster that it lives, `access` follows which
//! agents may write, and `report` tells the audit log of recordings. `abandon` ends those whose agents have fallen
//! silent, `quarantine` puts aside what is damaged, and `retention` deletes what need not be kept. How much memory calls
//! take is in `budget`, how full the disk may be in `disk`. [`start`] puts all of it together.
//!
//! Never here: which user may see a recording (auth nodes decide), the layout of an object (crate
//! `recording-format`), and any state that another replica could not take over from the object store.

mod abandon;
mod access;
pub mod authn;
mod budget;
mod call;
pub mod claims;
pub mod config;
mod control;
pub mod convert;
mod disk;
pub mod error;
mod identity;
pub mod index;
mod metrics;
pub mod objects;
mod outlet;
mod quarantine;
pub mod read;
pub mod recover;
mod report;
mod retention;
mod rpc;
mod seal;
mod server;
mod service;
pub mod session;
mod start;
mod stream;

pub use identity::{IdentityError, Joined, join, token_from};
pub use start::{Handle, StartError, start};
