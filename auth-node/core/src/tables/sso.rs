//! Logins by single sign-on that are under way.

use store_txn::{Key, KeyReader, KeyWriter, Row, Table, UnixMillis};

use crate::secret::SecretDigest;

number_key!(
    /// A login that has begun, by its place: there are only so many, and a new one may take the place of another.
    SsoLoginKey -> SsoLoginRow, 96, "sso_logins"
);

/// A login that has begun, and waits for its browser to come back from the provider.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SsoLoginRow {
    /// Digest of the state that the provider hands back.
    #[prost(bytes = "vec", tag = "1")]
    pub digest: Vec<u8>,
    /// Digest of the secret that the browser has in a cookie.
    #[prost(bytes = "vec", tag = "2")]
    pub browser: Vec<u8>,
    /// Name of the connector.
    #[prost(string, tag = "3")]
    pub connector: String,
    /// Revision of the connector: another one is not what the browser was sent to.
    #[prost(uint64, tag = "4")]
    pub connector_revision: u64,
    /// The program that logs in; unset: the browser does.
    #[prost(message, optional, tag = "5")]
    pub program: Option<ProgramRow>,
    /// The cluster's session epoch when it began.
    #[prost(uint64, tag = "6")]
    pub epoch: u64,
    /// When it ends.
    #[prost(uint64, tag = "7")]
    pub expires_at_ms: UnixMillis,
}
ending_rows!(SsoLoginRow);

/// A program that waits on the browser's own machine.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ProgramRow {
    /// SHA-256 of the verifier that it alone has.
    #[prost(bytes = "vec", tag = "1")]
    pub challenge: Vec<u8>,
    /// Port of 127.0.0.1 at which it listens.
    #[prost(uint32, tag = "2")]
    pub port: u32,
    /// Path at which it listens, without its slash.
    #[prost(string, tag = "3")]
    pub path: String,
}

digest_key!(
    /// What a program fetches its session with, by the digest of a code.
    SsoCodeKey -> SsoCodeRow, 97, "sso_codes"
);

/// A user that has proved itself, and whose program fetches the session.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SsoCodeRow {
    /// Canonical name of the user.
    #[prost(string, tag = "1")]
    pub user: String,
    /// Name of the connector.
    #[prost(string, tag = "2")]
    pub connector: String,
    /// Who it is at the provider.
    #[prost(string, tag = "3")]
    pub subject: String,
    /// SHA-256 of the verifier of the program that began.
    #[prost(bytes = "vec", tag = "4")]
    pub challenge: Vec<u8>,
    /// The cluster's session epoch.
    #[prost(uint64, tag = "5")]
    pub epoch: u64,
    /// When it ends.
    #[prost(uint64, tag = "6")]
    pub expires_at_ms: UnixMillis,
    /// Revision of the connector.
    #[prost(uint64, tag = "7")]
    pub connector_revision: u64,
}
ending_rows!(SsoCodeRow);
