//! Users, roles, and who holds which.

use std::collections::BTreeMap;

use store_txn::{Key, KeyReader, KeyWriter, Row, Table, UnixMillis};

use crate::names::{RoleName, UserName};

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

/// A user: of this cluster alone, or of a connector.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub struct UserRow {
    /// Names of roles, ascending.
    #[prost(string, repeated, tag = "1")]
    pub roles: Vec<String>,
    /// For role templates.
    #[prost(btree_map = "string, message", tag = "2")]
    pub traits: BTreeMap<String, StringsRow>,
    /// PHC string of the password's Argon2id hash; empty: it has none, and no password is its.
    #[prost(string, tag = "3")]
    pub password_hash: String,
    /// When it was made.
    #[prost(uint64, tag = "4")]
    pub created_at_ms: UnixMillis,
    /// Who made it.
    #[prost(string, tag = "5")]
    pub created_by: String,
    /// Name of the connector that it logs in by, and by nothing else; empty: it is a user of this cluster alone.
    #[prost(string, tag = "6")]
    pub connector: String,
    /// Who it is at the connector's provider: the same name there may be somebody else's later.
    #[prost(string, tag = "7")]
    pub subject: String,
    /// When it is forgotten if it does not log in again; 0: never.
    #[prost(uint64, tag = "8")]
    pub expires_at_ms: UnixMillis,
}
rows_that_may_end!(UserRow);

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

/// That a user holds a role.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MemberRow {
    /// When the user is forgotten; 0: never.
    #[prost(uint64, tag = "1")]
    pub expires_at_ms: UnixMillis,
}
rows_that_may_end!(MemberRow);

impl RoleMemberKey {
    /// The common front of a role's members.
    pub fn front(role: &RoleName) -> KeyWriter {
        let mut front = KeyWriter::table(Self::TABLE);
        front.text(role.as_str());
        front
    }
}

impl Key for RoleMemberKey {
    type Row = MemberRow;
    const TABLE: Table = Table { id: 15, name: "role_members" };

    fn write(&self, out: &mut KeyWriter) {
        out.text(self.role.as_str()).text(self.user.as_str());
    }

    fn read(parts: &mut KeyReader<'_>) -> Option<Self> {
        let role = RoleName::parse("", &parts.text()?).ok()?;
        Some(Self { role, user: UserName::parse("", &parts.text()?).ok()? })
    }
}
