//! The client of `mezite.v1.AuthService`: whom to trust, which address to ask, what to do when one fails.
//!
//! [`FirstContact`] turns a pin or a CA file into a [`ClusterTrust`]; a [`Client`] made with that asks a list of
//! addresses and moves on from those that fail. [`Client::call`] is the one way to call a method: what may be
//! repeated is said by a [`Retry`], and what went wrong by a [`ClientError`]. [`Uploader`] sends a recording until
//! there is a receipt for it, and a [`Spool`] keeps recordings until then. There is no way to connect without verifying
//! the server, and nothing else here stores anything.

mod address;
mod client;
mod error;
mod failure;
#[cfg(feature = "iam")]
mod iam;
mod pages;
mod pool;
mod retry;
mod session;
mod spool;
mod tls;
mod trust;
mod upload;
mod verifier;

#[cfg(feature = "testing")]
pub mod testing;

pub use address::{Target, parse_addresses};
pub use client::{Client, ClientConfig};
pub use error::{ClientError, FieldViolation, StatusError};
#[cfg(feature = "iam")]
pub use iam::{IamError, IamSigner};
pub use pages::{PAGE_SIZE, all_pages, each_page};
pub use retry::{KEY_REUSED, NOT_COMMITTED, NOT_REGISTERED, Retry, RetryPolicy};
pub use session::{AuthClient, CallMetadata, IdempotencyKey, SessionSecret};
pub use spool::{
    End, Event, ForwardSettings, Forwarder, Holdings, Notice, Outbox, Route, Session, SetAside, Spool,
    SpoolError, Writer,
};
pub use tls::ClientIdentity;
pub use trust::{CaPin, CaPins, ClusterTrust, Established, FirstContact};
pub use upload::{Extent, Payload, PayloadEnd, Receipt, UploadError, UploadLimits, Uploader};
