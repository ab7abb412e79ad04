//! The cluster itself: its one row, the join tokens of auth nodes, the certificate authorities.

use store_txn::{Key, KeyReader, KeyWriter, Row, Table, UnixMillis};

use crate::secret::SecretDigest;

only_key!(
    /// The one row of the cluster itself.
    ClusterKey -> ClusterRow, 1, "cluster"
);

/// The cluster.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ClusterRow {
    /// Identifies the cluster for good; a restored backup has another.
    #[prost(string, tag = "1")]
    pub cluster_id: String,
    /// Name, as in certificates.
    #[prost(string, tag = "2")]
    pub name: String,
    /// When it was made.
    #[prost(uint64, tag = "3")]
    pub created_at_ms: UnixMillis,
    /// The id that the next auth node gets; ids are never used again.
    #[prost(uint64, tag = "4")]
    pub next_node_id: u64,
    /// Sessions of another epoch are void.
    #[prost(uint64, tag = "5")]
    pub session_epoch: u64,
    /// The first id of an auth node that this cluster gave, apart from its first node's; those before it are of the cluster
    /// that it goes on from. 0: there was none.
    #[prost(uint64, tag = "6")]
    pub first_node_id: u64,
}
rows!(ClusterRow);

digest_key!(
    /// A join token for auth nodes, by its secret's digest.
    AuthJoinTokenKey -> AuthJoinTokenRow, 2, "auth_join_tokens"
);

/// A single-use join token for auth nodes.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AuthJoinTokenRow {
    /// Who made it.
    #[prost(string, tag = "1")]
    pub created_by: String,
    /// When it ends.
    #[prost(uint64, tag = "2")]
    pub expires_at_ms: UnixMillis,
    /// SHA-256 over the sealing key and the public key that used it; empty: unused.
    #[prost(bytes = "vec", tag = "3")]
    pub used_by: Vec<u8>,
    /// The node id that its user got; 0: unused.
    #[prost(uint64, tag = "4")]
    pub node_id: u64,
}
ending_rows!(AuthJoinTokenRow);

/// The key of a certificate authority.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CaKey(pub CaKind);

/// Which certificate authority. The numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum CaKind {
    /// Signs SSH user certificates.
    User = 1,
    /// Signs SSH host certificates.
    Host = 2,
    /// Signs the TLS certificates of nodes, agents, ingests and users.
    Tls = 3,
    /// Signs the certificates that auth nodes show each other.
    Peer = 4,
    /// Signs X.509-SVIDs.
    Spiffe = 5,
    /// Signs checkpoints of the audit log.
    Audit = 6,
}

impl CaKind {
    /// All kinds, in the order of their numbers.
    pub const ALL: [Self; 6] = [Self::User, Self::Host, Self::Tls, Self::Peer, Self::Spiffe, Self::Audit];
}

impl Key for CaKey {
    type Row = CaRow;
    const TABLE: Table = Table { id: 3, name: "cas" };

    fn write(&self, out: &mut KeyWriter) {
        out.number(self.0 as u64);
    }

    fn read(parts: &mut KeyReader<'_>) -> Option<Self> {
        let number = i32::try_from(parts.number()?).ok()?;
        CaKind::try_from(number).ok().map(Self)
    }
}

/// A certificate authority.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CaRow {
    /// The key that signs.
    #[prost(message, optional, tag = "1")]
    pub active: Option<CaKeyRow>,
    /// Keys that are trusted too. While a rotation goes on, the other of its two keys is the first.
    #[prost(message, repeated, tag = "2")]
    pub trusted: Vec<CaKeyRow>,
    /// The rotation that goes on.
    #[prost(message, optional, tag = "3")]
    pub rotation: Option<RotationRow>,
}
rows!(CaRow);

impl CaRow {
    /// Of a key alone, which signs.
    pub fn new(key: CaKeyRow) -> Self {
        Self { active: Some(key), trusted: Vec::new(), rotation: None }
    }

    /// Where its rotation stands.
    pub fn phase(&self) -> RotationPhase {
        self.rotation.as_ref().map_or(RotationPhase::Standby, RotationRow::phase)
    }
}

/// Where the rotation of an authority's key stands. The numbers are stored, and those of the API's `RotationPhase`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum RotationPhase {
    /// No rotation goes on.
    Standby = 1,
    /// The new key is there and trusted; the old one signs.
    Init = 2,
    /// The new key signs for clients, the old one for servers.
    UpdateClients = 3,
    /// The new key signs; the old one is trusted.
    UpdateServers = 4,
    /// The old key signs again; the new one is trusted until nothing of it is in use.
    Rollback = 5,
}

/// A rotation of an authority's key.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RotationRow {
    /// Where it stands.
    #[prost(enumeration = "RotationPhase", tag = "1")]
    pub phase: i32,
    /// When this phase began.
    #[prost(uint64, tag = "2")]
    pub phase_started_at_ms: UnixMillis,
    /// How long a phase lasts before it moves on by itself, in milliseconds; 0: until somebody moves it.
    #[prost(uint64, tag = "3")]
    pub phase_ms: u64,
    /// Whether it moves on by itself although something stands against it.
    #[prost(bool, tag = "4")]
    pub force: bool,
    /// Revision of this row with which the new key began to sign for clients; 0: it has not, or that is this revision.
    #[prost(uint64, tag = "5")]
    pub switched_at: u64,
    /// Revision of this row with which the new key began to be trusted; 0: that is this revision.
    #[prost(uint64, tag = "6")]
    pub begun_at: u64,
}

/// One key of a certificate authority.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CaKeyRow {
    /// Public side: an OpenSSH public key line, or a PEM certificate.
    #[prost(string, tag = "1")]
    pub public: String,
    /// Private key, encrypted under the key-encryption key: see `ca`.
    #[prost(bytes = "vec", tag = "2")]
    pub sealed_private: Vec<u8>,
    /// When it was made.
    #[prost(uint64, tag = "3")]
    pub created_at_ms: UnixMillis,
}

number_key!(
    /// What an auth node has taken up of the authorities' rows.
    FollowedKey -> FollowedRow, 5, "followed_authorities"
);

/// Revisions of rows: the node shows a certificate of the key that signs there, and trusts all that they name.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct FollowedRow {
    /// Of the TLS CA.
    #[prost(uint64, tag = "1")]
    pub tls: u64,
    /// Of the peer CA.
    #[prost(uint64, tag = "2")]
    pub peer: u64,
}
rows!(FollowedRow);
