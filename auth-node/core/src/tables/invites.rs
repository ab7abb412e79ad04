//! Invites: with which users set a password that nobody else ever knew.

use store_txn::{Key, KeyReader, KeyWriter, Row, Table, UnixMillis};

use crate::{names::UserName, secret::SecretDigest};

text_key!(
    /// The invite of a user.
    InviteKey(UserName, |text| UserName::parse("", text).ok()) -> InviteRow, 63, "invites"
);

/// The invite of a user.
#[derive(Clone, PartialEq, prost::Message)]
pub struct InviteRow {
    /// Digest of its secret.
    #[prost(bytes = "vec", tag = "1")]
    pub secret_digest: Vec<u8>,
    /// When it ends.
    #[prost(uint64, tag = "2")]
    pub expires_at_ms: UnixMillis,
    /// Who made it.
    #[prost(string, tag = "3")]
    pub created_by: String,
    /// The cluster's session epoch when it was made.
    #[prost(uint64, tag = "4")]
    pub epoch: u64,
}
ending_rows!(InviteRow);

digest_key!(
    /// Whose invite a secret is of.
    InviteSecretKey -> InviteSecretRow, 64, "invite_secrets"
);

/// Whose invite a secret is of.
#[derive(Clone, PartialEq, prost::Message)]
pub struct InviteSecretRow {
    /// Canonical name of the user.
    #[prost(string, tag = "1")]
    pub user: String,
    /// When the invite ends.
    #[prost(uint64, tag = "2")]
    pub expires_at_ms: UnixMillis,
}
ending_rows!(InviteSecretRow);
