//! What admins decide for the whole cluster: its configuration, and locks.

use store_txn::{Key, KeyReader, KeyWriter, Row, Table, UnixMillis};

use crate::names::LockId;

only_key!(
    /// The one row of the cluster's configuration.
    ClusterConfigKey -> ClusterConfigRow, 4, "cluster_config"
);

/// What a login needs beyond a password. The numbers are those of the API's `SecondFactor`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum SecondFactor {
    /// A row that does not say: as `Off`.
    Unspecified = 0,
    /// Nothing.
    Off = 1,
    /// A WebAuthn device where the user has one.
    Optional = 2,
    /// A WebAuthn device, always.
    Webauthn = 3,
}

/// What happens to a session that cannot be recorded. The numbers are those of the API's `RecordingMode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum RecordingMode {
    /// A row that does not say: as `BestEffort`.
    Unspecified = 0,
    /// It is not recorded.
    Off = 1,
    /// It goes on.
    BestEffort = 2,
    /// It is refused, or ended.
    Strict = 3,
}

/// The cluster's configuration. What is unset has a default, which `cluster_config` knows.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ClusterConfigRow {
    /// What a login needs beyond a password.
    #[prost(enumeration = "SecondFactor", tag = "1")]
    pub second_factor: i32,
    /// Longest life of a session, in milliseconds.
    #[prost(uint64, optional, tag = "2")]
    pub session_ttl_ms: Option<u64>,
    /// A session that is not used for so long ends, in milliseconds.
    #[prost(uint64, optional, tag = "3")]
    pub session_idle_timeout_ms: Option<u64>,
    /// How long audit events are kept, in milliseconds.
    #[prost(uint64, optional, tag = "4")]
    pub audit_retention_ms: Option<u64>,
    /// What happens to a session that cannot be recorded.
    #[prost(enumeration = "RecordingMode", tag = "5")]
    pub recording_mode: i32,
    /// Failed logins before a lockout.
    #[prost(uint32, optional, tag = "6")]
    pub lockout_threshold: Option<u32>,
    /// How long a lockout lasts, in milliseconds.
    #[prost(uint64, optional, tag = "7")]
    pub lockout_duration_ms: Option<u64>,
    /// How many audit events are kept.
    #[prost(uint64, optional, tag = "8")]
    pub audit_max_events: Option<u64>,
    /// Since when a session may be unused for no longer than it may now. No use before that was noted for it.
    #[prost(uint64, tag = "9")]
    pub session_idle_since_ms: UnixMillis,
    /// Sessions that were used last at this time or before are over: they were unused for too long when that was changed.
    #[prost(uint64, tag = "10")]
    pub session_over_before_ms: UnixMillis,
    /// Id of the relying party of WebAuthn, a DNS name; empty: there is none.
    #[prost(string, tag = "11")]
    pub webauthn_rp_id: String,
    /// Origins of its pages; none: that of its host.
    #[prost(string, repeated, tag = "12")]
    pub webauthn_origins: Vec<String>,
}
rows!(ClusterConfigRow);

text_key!(
    /// A lock.
    LockKey(LockId, LockId::parse) -> LockRow, 16, "locks"
);

/// What kind of thing a lock or a revocation is on. The numbers are stored, in keys too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum TargetKind {
    /// A row that does not say.
    Unspecified = 0,
    /// A user.
    User = 1,
    /// A role.
    Role = 2,
    /// A login on hosts.
    Login = 3,
    /// A node, or an ingest.
    Node = 4,
    /// A WebAuthn device.
    Device = 5,
    /// An agent identity.
    AgentIdentity = 6,
    /// A session, by its handle. It can be revoked, and not locked.
    Session = 7,
    /// A trusted cluster. It can be revoked, and not locked.
    TrustedCluster = 8,
    /// The labels of a node, by its id: what was issued for the node by them. It can be revoked, and not locked.
    NodeLabels = 9,
}

/// A lock.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LockRow {
    /// What it is on.
    #[prost(enumeration = "TargetKind", tag = "1")]
    pub kind: i32,
    /// Its name or id, canonical.
    #[prost(string, tag = "2")]
    pub name: String,
    /// For the one who is locked out.
    #[prost(string, tag = "3")]
    pub message: String,
    /// When it was made.
    #[prost(uint64, tag = "4")]
    pub created_at_ms: UnixMillis,
    /// Who made it.
    #[prost(string, tag = "5")]
    pub created_by: String,
    /// When it ends; 0: when it is deleted.
    #[prost(uint64, tag = "6")]
    pub expires_at_ms: UnixMillis,
}
rows_that_may_end!(LockRow);

/// A lock on something: to find those on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockTargetKey {
    /// What kind of thing.
    pub kind: TargetKind,
    /// Its name or id.
    pub name: String,
    /// The lock.
    pub id: LockId,
}

impl LockTargetKey {
    /// The common front of the locks on things of a kind.
    pub fn kind_front(kind: TargetKind) -> KeyWriter {
        let mut front = KeyWriter::table(Self::TABLE);
        front.number(kind as u64);
        front
    }

    /// The common front of the locks on one thing.
    pub fn front(kind: TargetKind, name: &str) -> KeyWriter {
        let mut front = Self::kind_front(kind);
        front.text(name);
        front
    }
}

impl Key for LockTargetKey {
    type Row = LockTargetRow;
    const TABLE: Table = Table { id: 17, name: "lock_targets" };

    fn write(&self, out: &mut KeyWriter) {
        out.number(self.kind as u64).text(&self.name).text(self.id.as_str());
    }

    fn read(parts: &mut KeyReader<'_>) -> Option<Self> {
        let kind = TargetKind::try_from(i32::try_from(parts.number()?).ok()?).ok()?;
        Some(Self { kind, name: parts.text()?, id: LockId::parse(&parts.text()?)? })
    }
}

/// A lock on something.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LockTargetRow {
    /// When it ends; 0: when it is deleted.
    #[prost(uint64, tag = "1")]
    pub expires_at_ms: UnixMillis,
}
rows_that_may_end!(LockTargetRow);
