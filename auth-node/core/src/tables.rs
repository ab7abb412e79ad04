//! Every table and its keys. Rows are protobuf messages of our own: a release adds fields, and never gives a number
//! another meaning. Times are milliseconds since the Unix epoch.

use std::collections::BTreeMap;

use store_txn::{Key, KeyReader, KeyWriter, Row, Table, UnixMillis};

use crate::{
    names::{AgentId, RoleName, SessionHandle, TokenName, UserName},
    secret::SecretDigest,
};

/// Makes protobuf messages rows that never end.
macro_rules! rows {
    ($($row:ty),+ $(,)?) => {$(
        impl Row for $row {
            fn encode_row(&self) -> Vec<u8> {
                prost::Message::encode_to_vec(self)
            }

            fn decode_row(bytes: &[u8]) -> Result<Self, String> {
                prost::Message::decode(bytes).map_err(|error: prost::DecodeError| error.to_string())
            }
        }
    )+};
}

/// Makes protobuf messages rows that end at their `expires_at_ms`.
macro_rules! ending_rows {
    ($($row:ty),+ $(,)?) => {$(
        impl Row for $row {
            fn encode_row(&self) -> Vec<u8> {
                prost::Message::encode_to_vec(self)
            }

            fn decode_row(bytes: &[u8]) -> Result<Self, String> {
                prost::Message::decode(bytes).map_err(|error: prost::DecodeError| error.to_string())
            }

            fn expires_at(&self) -> Option<UnixMillis> {
                Some(self.expires_at_ms)
            }
        }
    )+};
}

/// Makes a key of one text part, whose canonical form is checked when it is read back.
macro_rules! text_key {
    ($(#[$doc:meta])* $key:ident($part:ty, $parse:expr) -> $row:ty, $id:literal, $name:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $key(pub $part);

        impl Key for $key {
            type Row = $row;
            const TABLE: Table = Table { id: $id, name: $name };

            fn write(&self, out: &mut KeyWriter) {
                out.text(self.0.as_str());
            }

            fn read(parts: &mut KeyReader<'_>) -> Option<Self> {
                let parse: fn(&str) -> Option<$part> = $parse;
                parse(&parts.text()?).map(Self)
            }
        }
    };
}

/// Makes a key of a secret's digest.
macro_rules! digest_key {
    ($(#[$doc:meta])* $key:ident -> $row:ty, $id:literal, $name:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $key(pub SecretDigest);

        impl Key for $key {
            type Row = $row;
            const TABLE: Table = Table { id: $id, name: $name };

            fn write(&self, out: &mut KeyWriter) {
                out.fixed(&self.0.0);
            }

            fn read(parts: &mut KeyReader<'_>) -> Option<Self> {
                parts.fixed().map(|digest| Self(SecretDigest(digest)))
            }
        }
    };
}

/// Nothing but the key counts.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MarkRow {}
rows!(MarkRow);

// --- The cluster -------------------------------------------------------------------------------------------------

/// The one row of the cluster itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterKey;

impl Key for ClusterKey {
    type Row = ClusterRow;
    const TABLE: Table = Table { id: 1, name: "cluster" };

    fn write(&self, _out: &mut KeyWriter) {}

    fn read(_parts: &mut KeyReader<'_>) -> Option<Self> {
        Some(Self)
    }
}

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
}

impl CaKind {
    /// All kinds, in the order of their numbers.
    pub const ALL: [Self; 4] = [Self::User, Self::Host, Self::Tls, Self::Peer];
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
    /// Keys that are trusted too, and do not sign.
    #[prost(message, repeated, tag = "2")]
    pub trusted: Vec<CaKeyRow>,
}
rows!(CaRow);

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

// --- Users, roles, sessions --------------------------------------------------------------------------------------

text_key!(
    /// A user.
    UserKey(UserName, |text| UserName::parse("", text).ok()) -> UserRow, 10, "users"
);

/// Values of one trait.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct StringsRow {
    /// The values.
    #[prost(string, repeated, tag = "1")]
    pub values: Vec<String>,
}

/// A local user.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub struct UserRow {
    /// Names of roles, ascending.
    #[prost(string, repeated, tag = "1")]
    pub roles: Vec<String>,
    /// For role templates.
    #[prost(btree_map = "string, message", tag = "2")]
    pub traits: BTreeMap<String, StringsRow>,
    /// PHC string of the password's Argon2id hash.
    #[prost(string, tag = "3")]
    pub password_hash: String,
    /// When it was made.
    #[prost(uint64, tag = "4")]
    pub created_at_ms: UnixMillis,
    /// Who made it.
    #[prost(string, tag = "5")]
    pub created_by: String,
}
rows!(UserRow);

impl std::fmt::Debug for UserRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UserRow").field("roles", &self.roles).finish_non_exhaustive()
    }
}

text_key!(
    /// A role.
    RoleKey(RoleName, |text| RoleName::parse("", text).ok()) -> RoleRow, 11, "roles"
);

/// A role.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RoleRow {
    /// For people.
    #[prost(string, tag = "1")]
    pub description: String,
    /// What it allows.
    #[prost(message, optional, tag = "2")]
    pub allow: Option<ConditionsRow>,
    /// What it denies.
    #[prost(message, optional, tag = "3")]
    pub deny: Option<ConditionsRow>,
    /// Options.
    #[prost(message, optional, tag = "4")]
    pub options: Option<RoleOptionsRow>,
    /// Whether it came with the cluster.
    #[prost(bool, tag = "5")]
    pub built_in: bool,
}
rows!(RoleRow);

/// One side of a role.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ConditionsRow {
    /// Logins or templates.
    #[prost(string, repeated, tag = "1")]
    pub logins: Vec<String>,
    /// Labels that a node must have, each with one of the values.
    #[prost(btree_map = "string, message", tag = "2")]
    pub node_labels: BTreeMap<String, StringsRow>,
    /// Rules on the API's resources.
    #[prost(message, repeated, tag = "3")]
    pub rules: Vec<RuleRow>,
    /// Access requests.
    #[prost(message, optional, tag = "4")]
    pub requests: Option<RequestRulesRow>,
}

/// A rule on resources.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RuleRow {
    /// Resources.
    #[prost(string, repeated, tag = "1")]
    pub resources: Vec<String>,
    /// Verbs.
    #[prost(string, repeated, tag = "2")]
    pub verbs: Vec<String>,
}

/// What a role says about access requests.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RequestRulesRow {
    /// Roles that may be asked for.
    #[prost(string, repeated, tag = "1")]
    pub request_roles: Vec<String>,
    /// Roles whose requests may be reviewed.
    #[prost(string, repeated, tag = "2")]
    pub review_roles: Vec<String>,
    /// Approvals needed; 0: one.
    #[prost(uint32, tag = "3")]
    pub approvals: u32,
}

/// Options of a role.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RoleOptionsRow {
    /// Longest life of a user certificate, in milliseconds; unset: 12 hours.
    #[prost(uint64, optional, tag = "1")]
    pub max_session_ttl_ms: Option<u64>,
    /// A terminal; unset: allowed.
    #[prost(bool, optional, tag = "2")]
    pub permit_pty: Option<bool>,
    /// Port forwarding; unset: refused.
    #[prost(bool, optional, tag = "3")]
    pub permit_port_forwarding: Option<bool>,
    /// Agent forwarding; unset: refused.
    #[prost(bool, optional, tag = "4")]
    pub permit_agent_forwarding: Option<bool>,
    /// X11 forwarding; unset: refused.
    #[prost(bool, optional, tag = "5")]
    pub permit_x11_forwarding: Option<bool>,
    /// Networks that a certificate is good from; empty: any.
    #[prost(string, repeated, tag = "6")]
    pub source_addresses: Vec<String>,
    /// A second factor is needed to issue certificates.
    #[prost(bool, tag = "7")]
    pub require_mfa: bool,
}

/// A user that holds a role: to find all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleMemberKey {
    /// Which role.
    pub role: RoleName,
    /// Who holds it.
    pub user: UserName,
}

impl RoleMemberKey {
    /// The common front of a role's members.
    pub fn front(role: &RoleName) -> KeyWriter {
        let mut front = KeyWriter::table(Self::TABLE);
        front.text(role.as_str());
        front
    }
}

impl Key for RoleMemberKey {
    type Row = MarkRow;
    const TABLE: Table = Table { id: 15, name: "role_members" };

    fn write(&self, out: &mut KeyWriter) {
        out.text(self.role.as_str()).text(self.user.as_str());
    }

    fn read(parts: &mut KeyReader<'_>) -> Option<Self> {
        let role = RoleName::parse("", &parts.text()?).ok()?;
        Some(Self { role, user: UserName::parse("", &parts.text()?).ok()? })
    }
}

digest_key!(
    /// A session, by its id's digest.
    SessionKey -> SessionRow, 12, "sessions"
);

/// How a user proved itself. The numbers are those of the API's `AuthMethod`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum AuthMethod {
    /// A row that does not say.
    Unspecified = 0,
    /// A password alone.
    Password = 1,
    /// A WebAuthn authenticator.
    Webauthn = 2,
}

/// A session.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SessionRow {
    /// Canonical name of the user.
    #[prost(string, tag = "1")]
    pub user: String,
    /// Public handle.
    #[prost(string, tag = "2")]
    pub handle: String,
    /// When the user logged in.
    #[prost(uint64, tag = "3")]
    pub created_at_ms: UnixMillis,
    /// When it ends.
    #[prost(uint64, tag = "4")]
    pub expires_at_ms: UnixMillis,
    /// How the user proved itself.
    #[prost(enumeration = "AuthMethod", tag = "5")]
    pub method: i32,
    /// Address that the login came from.
    #[prost(string, tag = "6")]
    pub client_address: String,
    /// The cluster's session epoch at login.
    #[prost(uint64, tag = "7")]
    pub epoch: u64,
}
ending_rows!(SessionRow);

text_key!(
    /// A session's public handle.
    SessionHandleKey(SessionHandle, SessionHandle::parse) -> SessionRefRow, 13, "session_handles"
);

/// Which session a handle names.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SessionRefRow {
    /// Digest of the session's id.
    #[prost(bytes = "vec", tag = "1")]
    pub digest: Vec<u8>,
    /// When the session ends.
    #[prost(uint64, tag = "2")]
    pub expires_at_ms: UnixMillis,
}
ending_rows!(SessionRefRow);

/// A session of a user: to find all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserSessionKey {
    /// Whose.
    pub user: UserName,
    /// Its handle.
    pub handle: SessionHandle,
}

impl UserSessionKey {
    /// The common front of a user's sessions.
    pub fn front(user: &UserName) -> KeyWriter {
        let mut front = KeyWriter::table(Self::TABLE);
        front.text(user.as_str());
        front
    }
}

impl Key for UserSessionKey {
    type Row = SessionRefRow;
    const TABLE: Table = Table { id: 14, name: "user_sessions" };

    fn write(&self, out: &mut KeyWriter) {
        out.text(self.user.as_str()).text(self.handle.as_str());
    }

    fn read(parts: &mut KeyReader<'_>) -> Option<Self> {
        let user = UserName::parse("", &parts.text()?).ok()?;
        Some(Self { user, handle: SessionHandle::parse(&parts.text()?)? })
    }
}

// --- Joining and nodes -------------------------------------------------------------------------------------------

text_key!(
    /// A join token.
    TokenKey(TokenName, |text| TokenName::parse("", text).ok()) -> TokenRow, 20, "tokens"
);

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

/// How a joiner proves that it may use a token. The numbers are those of the API's `JoinMethod`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum JoinMethod {
    /// A row that does not say.
    Unspecified = 0,
    /// It knows the secret.
    Token = 1,
    /// It signs an AWS STS request.
    Iam = 2,
}

/// A join token.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TokenRow {
    /// What it lets join.
    #[prost(enumeration = "NodeKind", tag = "1")]
    pub kind: i32,
    /// How.
    #[prost(enumeration = "JoinMethod", tag = "2")]
    pub method: i32,
    /// When it ends.
    #[prost(uint64, tag = "3")]
    pub expires_at_ms: UnixMillis,
    /// How many joins it is good for.
    #[prost(uint32, tag = "4")]
    pub max_uses: u32,
    /// How many there were.
    #[prost(uint32, tag = "5")]
    pub uses: u32,
    /// Labels, as an admin's, of a node that joins with it.
    #[prost(btree_map = "string, string", tag = "6")]
    pub labels: BTreeMap<String, String>,
    /// Host certificate principals that it allows; empty: any ordinary one.
    #[prost(string, repeated, tag = "7")]
    pub allowed_principals: Vec<String>,
    /// Who made it.
    #[prost(string, tag = "8")]
    pub created_by: String,
    /// When.
    #[prost(uint64, tag = "9")]
    pub created_at_ms: UnixMillis,
    /// Digest of its secret; empty for a method without one.
    #[prost(bytes = "vec", tag = "10")]
    pub secret_digest: Vec<u8>,
}
ending_rows!(TokenRow);

digest_key!(
    /// Which token a secret is of.
    TokenSecretKey -> TokenSecretRow, 21, "token_secrets"
);

/// Which token a secret is of.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TokenSecretRow {
    /// Name of the token.
    #[prost(string, tag = "1")]
    pub token: String,
    /// When the token ends.
    #[prost(uint64, tag = "2")]
    pub expires_at_ms: UnixMillis,
}
ending_rows!(TokenSecretRow);

/// A join that a token was used for: the same token with the same TLS key is the same join again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenUseKey {
    /// Which token.
    pub token: TokenName,
    /// SHA-256 of the joiner's TLS public key (SubjectPublicKeyInfo).
    pub key_digest: [u8; 32],
}

impl Key for TokenUseKey {
    type Row = TokenUseRow;
    const TABLE: Table = Table { id: 22, name: "token_uses" };

    fn write(&self, out: &mut KeyWriter) {
        out.text(self.token.as_str()).fixed(&self.key_digest);
    }

    fn read(parts: &mut KeyReader<'_>) -> Option<Self> {
        let token = TokenName::parse("", &parts.text()?).ok()?;
        Some(Self { token, key_digest: parts.fixed()? })
    }
}

/// Who joined by this use.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TokenUseRow {
    /// The agent's id.
    #[prost(string, tag = "1")]
    pub agent_id: String,
    /// When the token ends.
    #[prost(uint64, tag = "2")]
    pub expires_at_ms: UnixMillis,
    /// Digest of the token's secret: a later token of the same name is another token.
    #[prost(bytes = "vec", tag = "3")]
    pub secret_digest: Vec<u8>,
}
ending_rows!(TokenUseRow);

text_key!(
    /// An agent that has certificates and has not registered yet.
    JoinKey(AgentId, |text| AgentId::parse("", text).ok()) -> JoinRow, 23, "joins"
);

/// An agent that has certificates and has not registered yet.
#[derive(Clone, PartialEq, prost::Message)]
pub struct JoinRow {
    /// Name of the token.
    #[prost(string, tag = "1")]
    pub token: String,
    /// The node that it becomes.
    #[prost(message, optional, tag = "2")]
    pub node: Option<NodeRow>,
    /// When the join is void: the end of the token.
    #[prost(uint64, tag = "3")]
    pub expires_at_ms: UnixMillis,
}
ending_rows!(JoinRow);

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

// --- Calls -------------------------------------------------------------------------------------------------------

digest_key!(
    /// A call that took effect once, by a digest of its idempotency key, its caller and its method: see `repeat`.
    AnswerKey -> AnswerRow, 40, "answers"
);

/// What a call was answered, for its repetitions.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AnswerRow {
    /// SHA-256 of the request and the reply, encrypted under a key that only the client can make: see `repeat`.
    #[prost(bytes = "vec", tag = "1")]
    pub sealed: Vec<u8>,
    /// Until when it is kept.
    #[prost(uint64, tag = "2")]
    pub expires_at_ms: UnixMillis,
}
ending_rows!(AnswerRow);

#[cfg(test)]
mod tests {
    use super::*;

    /// The keys on disk are these bytes: a change here is a change of the format.
    #[test]
    fn golden_keys() {
        let golden = [
            (ClusterKey.encode(), "0001"),
            (AuthJoinTokenKey(SecretDigest([1; 32])).encode(), &format!("0002{}", "01".repeat(32))),
            (CaKey(CaKind::Tls).encode(), "00030000000000000003"),
            (UserKey(UserName::parse("", "ann").unwrap()).encode(), "000a616e6e0001"),
            (RoleKey(RoleName::parse("", "dev").unwrap()).encode(), "000b6465760001"),
            (SessionKey(SecretDigest([2; 32])).encode(), &format!("000c{}", "02".repeat(32))),
            (
                RoleMemberKey {
                    role: RoleName::parse("", "dev").unwrap(),
                    user: UserName::parse("", "ann").unwrap(),
                }
                .encode(),
                "000f6465760001616e6e0001",
            ),
            (TokenKey(TokenName::parse("", "t").unwrap()).encode(), "0014740001"),
            (PrincipalKey("h".into()).encode(), "0019680001"),
        ];
        for (bytes, hex) in golden {
            assert_eq!(hex::encode(bytes), hex);
        }
    }

    #[test]
    fn golden_rows() {
        let user = UserRow {
            roles: vec!["dev".into()],
            traits: [("logins".to_owned(), StringsRow { values: vec!["root".into()] })].into(),
            password_hash: "$x".into(),
            created_at_ms: 300,
            created_by: "user:a".into(),
        };
        let bytes = user.encode_row();
        assert_eq!(
            hex::encode(&bytes),
            "0a0364657612100a066c6f67696e7312060a04726f6f741a02247820ac022a06757365723a61"
        );
        assert_eq!(UserRow::decode_row(&bytes), Ok(user));
        let session = SessionRow {
            user: "ann".into(),
            handle: "h".into(),
            created_at_ms: 1,
            expires_at_ms: 2,
            method: AuthMethod::Password.into(),
            client_address: "a".into(),
            epoch: 3,
        };
        assert_eq!(
            hex::encode(session.encode_row()),
            "0a03616e6e120168180120022801320161 3803".replace(' ', "")
        );
        assert_eq!(session.expires_at(), Some(2));
    }

    #[test]
    fn golden_keys_of_joining_and_calls() {
        let id = || AgentId::from_random([0xff; 16]);
        let agent = format!("{}0001", hex::encode(id().as_str()));
        let token = || TokenName::parse("", "t").unwrap();
        let golden = [
            (TokenSecretKey(SecretDigest([1; 32])).encode(), format!("0015{}", "01".repeat(32))),
            (
                TokenUseKey { token: token(), key_digest: [2; 32] }.encode(),
                format!("0016740001{}", "02".repeat(32)),
            ),
            (JoinKey(id()).encode(), format!("0017{agent}")),
            (NodeKey(id()).encode(), format!("0018{agent}")),
            (PresenceKey(id()).encode(), format!("001a{agent}")),
            (AgentLabelsKey(id()).encode(), format!("001b{agent}")),
            (IngestKey(id()).encode(), format!("001c{agent}")),
            (AnswerKey(SecretDigest([3; 32])).encode(), format!("0028{}", "03".repeat(32))),
        ];
        for (bytes, hex) in golden {
            assert_eq!(hex::encode(bytes), hex);
        }
    }

    #[test]
    fn golden_rows_of_joining_and_calls() {
        let labels = || [("a".to_owned(), "b".to_owned())].into();
        let node = NodeRow {
            kind: NodeKind::Ssh.into(),
            hostname: "h".into(),
            principals: vec!["h".into(), "i".into()],
            admin_labels: labels(),
            registered_at_ms: 1,
            key_digest: vec![1, 2],
            token: "t".into(),
            ssh_key_digest: vec![3],
            expires_at_ms: 4,
        };
        let node_hex =
            "08011201681a01681a016922060a0161120162280132020102 3a017442010348 04".replace(' ', "");
        let token = TokenRow {
            kind: NodeKind::Ingest.into(),
            method: JoinMethod::Token.into(),
            expires_at_ms: 5,
            max_uses: 2,
            uses: 1,
            labels: labels(),
            allowed_principals: vec!["*.x".into()],
            created_by: "u".into(),
            created_at_ms: 6,
            secret_digest: vec![7],
        };
        let token_hex = "0802100118052002280132060a01611201623a032a2e7842017548065201 07".replace(' ', "");
        let used = TokenUseRow { agent_id: "a".into(), expires_at_ms: 8, secret_digest: vec![9] };
        let presence = PresenceRow {
            last_seen_ms: 1,
            address: "h:1".into(),
            version: "2".into(),
            load: 3,
            expires_at_ms: 4,
        };
        let join = JoinRow { token: "t".into(), node: Some(node.clone()), expires_at_ms: 5 };
        let golden = [
            (node.encode_row(), node_hex.clone()),
            (token.encode_row(), token_hex),
            (used.encode_row(), "0a016110081a0109".into()),
            (presence.encode_row(), "08011203683a311a013220032804".into()),
            (join.encode_row(), format!("0a01741221{node_hex}1805")),
            (PrincipalRow { agent_id: "a".into(), expires_at_ms: 1 }.encode_row(), "0a01611001".into()),
            (
                AgentLabelsRow { labels: labels(), expires_at_ms: 1 }.encode_row(),
                "0a060a01611201621001".into(),
            ),
            (IngestRow { expires_at_ms: 1 }.encode_row(), "0801".into()),
            (AnswerRow { sealed: vec![1, 2], expires_at_ms: 3 }.encode_row(), "0a0201021003".into()),
        ];
        for (bytes, hex) in golden {
            assert_eq!(hex::encode(bytes), hex);
        }
        assert_eq!(
            (node.expires_at(), token.expires_at(), presence.expires_at()),
            (Some(4), Some(5), Some(4))
        );
    }

    #[test]
    fn no_password_hash_is_shown() {
        let user = UserRow { password_hash: "$argon2id$secret".into(), ..UserRow::default() };
        assert!(!format!("{user:?}").contains("secret"));
    }
}
