//! Certificates that were issued, and what revokes them.

use store_txn::{Key, KeyReader, KeyWriter, Row, Table, UnixMillis};

use super::{MarkRow, TargetKind};

/// A revocation: of the certificates that were issued to a holder, by a role or session, or for a login or node, before
/// the row was written. See `revocation`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevocationKey {
    /// What kind of thing.
    pub kind: TargetKind,
    /// Its name or id.
    pub name: String,
}

impl Key for RevocationKey {
    type Row = RevocationRow;
    const TABLE: Table = Table { id: 51, name: "revocations" };

    fn write(&self, out: &mut KeyWriter) {
        out.number(self.kind as u64).text(&self.name);
    }

    fn read(parts: &mut KeyReader<'_>) -> Option<Self> {
        let kind = TargetKind::try_from(i32::try_from(parts.number()?).ok()?).ok()?;
        Some(Self { kind, name: parts.text()? })
    }
}

/// Since when: the revision of the row.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RevocationRow {
    /// When every certificate that it can be of has ended.
    #[prost(uint64, tag = "1")]
    pub expires_at_ms: UnixMillis,
}
ending_rows!(RevocationRow);

only_key!(
    /// The row whose revision is that of the last revocation: rows of those that ended are swept.
    RevocationHeadKey -> MarkRow, 52, "revocation_head"
);

number_key!(
    /// An SSH certificate that was issued and has not ended.
    IssuedKey -> IssuedRow, 50, "issued_certificates"
);

/// What an SSH certificate was issued for.
#[derive(Clone, PartialEq, prost::Message)]
pub struct IssuedRow {
    /// Whose: `User` or `AgentIdentity` for a user certificate, `Node` for a host's.
    #[prost(enumeration = "TargetKind", tag = "1")]
    pub kind: i32,
    /// Name of the user or identity, or the agent's id.
    #[prost(string, tag = "2")]
    pub holder: String,
    /// Roles by which it was issued.
    #[prost(string, repeated, tag = "3")]
    pub roles: Vec<String>,
    /// Logins that it names.
    #[prost(string, repeated, tag = "4")]
    pub logins: Vec<String>,
    /// Nodes that it names, by agent id.
    #[prost(string, repeated, tag = "5")]
    pub nodes: Vec<String>,
    /// When it ends.
    #[prost(uint64, tag = "6")]
    pub expires_at_ms: UnixMillis,
    /// Handle of the session that it was issued to; empty without one.
    #[prost(string, tag = "7")]
    pub session: String,
    /// WebAuthn device of that session; empty without one.
    #[prost(string, tag = "8")]
    pub device: String,
    /// Trusted cluster that the user is of; empty for a user of this one.
    #[prost(string, tag = "9")]
    pub cluster: String,
}
ending_rows!(IssuedRow);
