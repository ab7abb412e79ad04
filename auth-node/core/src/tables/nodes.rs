//! Registered agents: what changes seldom apart from what they report, and the names that they hold.

use std::collections::BTreeMap;

use store_txn::{Key, KeyReader, KeyWriter, Row, Table, UnixMillis};

use crate::names::AgentId;

/// What a registered agent serves. The numbers are stored, and those of the API's `NodeKind` and `TokenKind`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum NodeKind {
    /// A row that does not say.
    Unspecified = 0,
    /// An SSH server.
    Ssh = 1,
    /// A recording ingest.
    Ingest = 2,
}

text_key!(
    /// A registered agent.
    NodeKey(AgentId, |text| AgentId::parse("", text).ok()) -> NodeRow, 24, "nodes"
);

/// A registered agent: what changes seldom. Its revision is the one that an admin sees. It ends with the agent's last
/// certificate, without which the agent is nobody; a renewal moves the end.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NodeRow {
    /// What it serves.
    #[prost(enumeration = "NodeKind", tag = "1")]
    pub kind: i32,
    /// First principal of its host certificate.
    #[prost(string, tag = "2")]
    pub hostname: String,
    /// All principals of its host certificate, the hostname first.
    #[prost(string, repeated, tag = "3")]
    pub principals: Vec<String>,
    /// Labels that an admin, or the token, gave it.
    #[prost(btree_map = "string, string", tag = "4")]
    pub admin_labels: BTreeMap<String, String>,
    /// When it registered.
    #[prost(uint64, tag = "5")]
    pub registered_at_ms: UnixMillis,
    /// SHA-256 of its TLS public key (SubjectPublicKeyInfo).
    #[prost(bytes = "vec", tag = "6")]
    pub key_digest: Vec<u8>,
    /// Name of the token that it joined with.
    #[prost(string, tag = "7")]
    pub token: String,
    /// SHA-256 of its SSH host key's line; empty without one.
    #[prost(bytes = "vec", tag = "8")]
    pub ssh_key_digest: Vec<u8>,
    /// When its last certificate ends.
    #[prost(uint64, tag = "9")]
    pub expires_at_ms: UnixMillis,
}
ending_rows!(NodeRow);

/// Who holds a name that host certificates are issued for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrincipalKey(pub String);

impl Key for PrincipalKey {
    type Row = PrincipalRow;
    const TABLE: Table = Table { id: 25, name: "principals" };

    fn write(&self, out: &mut KeyWriter) {
        out.text(&self.0);
    }

    fn read(parts: &mut KeyReader<'_>) -> Option<Self> {
        parts.text().map(Self)
    }
}

/// Who holds a name.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PrincipalRow {
    /// The agent's id.
    #[prost(string, tag = "1")]
    pub agent_id: String,
    /// When the last certificate for the name ends.
    #[prost(uint64, tag = "2")]
    pub expires_at_ms: UnixMillis,
}
ending_rows!(PrincipalRow);

text_key!(
    /// What an agent last reported.
    PresenceKey(AgentId, |text| AgentId::parse("", text).ok()) -> PresenceRow, 26, "presence"
);

/// What an agent last reported.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PresenceRow {
    /// When.
    #[prost(uint64, tag = "1")]
    pub last_seen_ms: UnixMillis,
    /// host:port of its service.
    #[prost(string, tag = "2")]
    pub address: String,
    /// Version of the agent.
    #[prost(string, tag = "3")]
    pub version: String,
    /// Work in hand.
    #[prost(uint32, tag = "4")]
    pub load: u32,
    /// When the agent's last certificate ends.
    #[prost(uint64, tag = "5")]
    pub expires_at_ms: UnixMillis,
    /// Revision of the trust bundle that it has taken up: it trusts what that names, and shows certificates of the keys
    /// that signed then.
    #[prost(uint64, tag = "6")]
    pub followed_trust: u64,
}
ending_rows!(PresenceRow);

text_key!(
    /// Labels that an agent reports. They are apart from its presence because access is decided by them, and they
    /// change seldom: a decision must not run again for every heartbeat.
    AgentLabelsKey(AgentId, |text| AgentId::parse("", text).ok()) -> AgentLabelsRow, 27, "agent_labels"
);

/// Labels that an agent reports.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AgentLabelsRow {
    /// The labels.
    #[prost(btree_map = "string, string", tag = "1")]
    pub labels: BTreeMap<String, String>,
    /// When the agent's last certificate ends.
    #[prost(uint64, tag = "2")]
    pub expires_at_ms: UnixMillis,
}
ending_rows!(AgentLabelsRow);

text_key!(
    /// A registered ingest: to find all of them without looking at every node.
    IngestKey(AgentId, |text| AgentId::parse("", text).ok()) -> IngestRow, 28, "ingests"
);

/// A registered ingest.
#[derive(Clone, PartialEq, prost::Message)]
pub struct IngestRow {
    /// When its last certificate ends.
    #[prost(uint64, tag = "1")]
    pub expires_at_ms: UnixMillis,
}
ending_rows!(IngestRow);
