//! Agent identities: bots, CI jobs, AI agents. What an admin says of one is apart from where it stands, which changes with
//! each renewal.

use std::collections::BTreeMap;

use store_txn::{Key, KeyReader, KeyWriter, Row, Table, UnixMillis};

use super::{MarkEndingRow, SessionRefRow, StringsRow};
use crate::{
    names::{IdentityName, SessionHandle},
    secret::SecretDigest,
};

text_key!(
    /// An agent identity.
    AgentIdentityKey(IdentityName, |text| IdentityName::parse("", text).ok()) -> AgentIdentityRow, 90, "agent_identities"
);

/// What an admin says of an agent identity.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AgentIdentityRow {
    /// Names of roles, ascending.
    #[prost(string, repeated, tag = "1")]
    pub roles: Vec<String>,
    /// For role templates.
    #[prost(btree_map = "string, message", tag = "2")]
    pub traits: BTreeMap<String, StringsRow>,
    /// Longest life of what it gets, in milliseconds.
    #[prost(uint64, tag = "3")]
    pub max_ttl_ms: u64,
    /// SPIFFE IDs that are its, ascending.
    #[prost(string, repeated, tag = "4")]
    pub spiffe_ids: Vec<String>,
    /// When it was made.
    #[prost(uint64, tag = "5")]
    pub created_at_ms: UnixMillis,
    /// Who made it.
    #[prost(string, tag = "6")]
    pub created_by: String,
}
rows!(AgentIdentityRow);

text_key!(
    /// Where an agent identity stands.
    AgentIdentityStateKey(IdentityName, |text| IdentityName::parse("", text).ok()) -> AgentIdentityStateRow, 91, "agent_identity_states"
);

/// Where an agent identity stands.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AgentIdentityStateRow {
    /// Of its last credentials; 0 before the first.
    #[prost(uint64, tag = "1")]
    pub generation: u64,
    /// SHA-256 of the TLS key (SubjectPublicKeyInfo) of its last credentials; empty before the first.
    #[prost(bytes = "vec", tag = "2")]
    pub key_digest: Vec<u8>,
    /// Handle of the session of its last credentials; empty before the first.
    #[prost(string, tag = "3")]
    pub session: String,
    /// Digest of the call that made them, by which its repetitions are known; empty: it cannot be repeated.
    #[prost(bytes = "vec", tag = "4")]
    pub last_call: Vec<u8>,
    /// When its last credentials end; 0 before the first.
    #[prost(uint64, tag = "5")]
    pub ends_at_ms: UnixMillis,
    /// Digest of its bootstrap secret; empty: it has none any more.
    #[prost(bytes = "vec", tag = "6")]
    pub secret_digest: Vec<u8>,
    /// When that ends.
    #[prost(uint64, tag = "7")]
    pub secret_ends_at_ms: UnixMillis,
    /// The cluster's session epoch when that was made.
    #[prost(uint64, tag = "8")]
    pub epoch: u64,
}
rows!(AgentIdentityStateRow);

digest_key!(
    /// Whose bootstrap secret a secret is.
    BootstrapSecretKey -> BootstrapSecretRow, 92, "bootstrap_secrets"
);

/// Whose bootstrap secret a secret is.
#[derive(Clone, PartialEq, prost::Message)]
pub struct BootstrapSecretRow {
    /// Canonical name of the agent identity.
    #[prost(string, tag = "1")]
    pub identity: String,
    /// When it ends.
    #[prost(uint64, tag = "2")]
    pub expires_at_ms: UnixMillis,
}
ending_rows!(BootstrapSecretRow);

/// A TLS key that an agent identity as it is now has a certificate for, or had: whoever shows another one has nothing to do
/// with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityTlsKeyKey {
    /// Whose.
    pub identity: IdentityName,
    /// SHA-256 of the key (SubjectPublicKeyInfo).
    pub key_digest: [u8; 32],
}

impl IdentityTlsKeyKey {
    /// The common front of an agent identity's keys.
    pub fn front(identity: &IdentityName) -> KeyWriter {
        let mut front = KeyWriter::table(Self::TABLE);
        front.text(identity.as_str());
        front
    }
}

impl Key for IdentityTlsKeyKey {
    type Row = MarkEndingRow;
    const TABLE: Table = Table { id: 93, name: "agent_identity_keys" };

    fn write(&self, out: &mut KeyWriter) {
        out.text(self.identity.as_str()).fixed(&self.key_digest);
    }

    fn read(parts: &mut KeyReader<'_>) -> Option<Self> {
        let identity = IdentityName::parse("", &parts.text()?).ok()?;
        Some(Self { identity, key_digest: parts.fixed()? })
    }
}

/// A session of an agent identity: to find all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentitySessionKey {
    /// Whose.
    pub identity: IdentityName,
    /// Its handle.
    pub handle: SessionHandle,
}

impl IdentitySessionKey {
    /// The common front of an agent identity's sessions.
    pub fn front(identity: &IdentityName) -> KeyWriter {
        let mut front = KeyWriter::table(Self::TABLE);
        front.text(identity.as_str());
        front
    }
}

impl Key for IdentitySessionKey {
    type Row = SessionRefRow;
    const TABLE: Table = Table { id: 94, name: "agent_identity_sessions" };

    fn write(&self, out: &mut KeyWriter) {
        out.text(self.identity.as_str()).text(self.handle.as_str());
    }

    fn read(parts: &mut KeyReader<'_>) -> Option<Self> {
        let identity = IdentityName::parse("", &parts.text()?).ok()?;
        Some(Self { identity, handle: SessionHandle::parse(&parts.text()?)? })
    }
}

text_key!(
    /// Whose a SPIFFE ID is.
    SpiffeIdKey(String, |text| Some(text.to_owned())) -> SpiffeIdRow, 95, "spiffe_ids"
);

/// Whose a SPIFFE ID is.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SpiffeIdRow {
    /// Canonical name of the agent identity.
    #[prost(string, tag = "1")]
    pub identity: String,
}
rows!(SpiffeIdRow);
