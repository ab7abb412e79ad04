//! The audit log: what was done, by whom, through which call. A record is appended in the same transaction as what it
//! tells of; the store numbers, stamps and chains it.

use std::collections::BTreeMap;

use store_txn::{LogRecord, Read, Transaction};

use crate::{Caller, Context, CoreError, Refusals};

/// Name of the log in the store.
pub const LOG: &str = "audit";

/// Longest value of a field that a data plane tells, in bytes; of a refusal, where it may be a stranger's, more is cut.
const MAX_VALUE: usize = 1024;
/// Longest value of a field of our own, in bytes. What is told is bounded where it is taken, and both sides of the largest change
/// (a role has 64 KiB) are less: so nothing is hidden by what is written around it.
const MAX_OWN_VALUE: usize = 160 << 10;

macro_rules! events {
    ($($(#[$doc:meta])* $event:ident = $name:literal, $code:literal;)+) => {
        /// What happened. Names and codes are stable: one code, one event.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum EventType {
            $($(#[$doc])* $event,)+
        }

        impl EventType {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$event,)+];

            /// Stable name.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$event => $name,)+ }
            }

            /// Stable code: `MZ`, four digits, and I (it was done) or W (it was refused).
            pub const fn code(self) -> &'static str {
                match self { $(Self::$event => $code,)+ }
            }
        }
    };
}

events! {
    /// The cluster was made.
    ClusterCreate = "cluster.create", "MZ0001I";
    /// A node of the auth cluster got its identity.
    AuthNodeJoin = "auth_node.join", "MZ0002I";
    /// A join token for an auth node was made.
    AuthNodeTokenCreate = "auth_node.token.create", "MZ0003I";
    /// A node could not join the auth cluster.
    AuthNodeJoinDenied = "auth_node.join.denied", "MZ0004W";
    /// An admin has a node of the auth cluster made a voter.
    AuthNodePromote = "auth_node.promote", "MZ0005I";
    /// An admin has a node of the auth cluster removed.
    AuthNodeRemove = "auth_node.remove", "MZ0006I";
    /// A change of the auth cluster's nodes that an admin ordered was not made.
    AuthNodeChangeRefused = "auth_node.change.refused", "MZ0007W";
    /// An admin fetches a backup.
    ClusterBackup = "cluster.backup", "MZ0008I";
    /// The cluster was made from a backup of another.
    ClusterRestore = "cluster.restore", "MZ0009I";
    /// The cluster was made from the one node that survived another.
    ClusterRecover = "cluster.recover", "MZ0010I";
    /// The cluster's configuration was changed.
    ClusterConfigUpdate = "cluster_config.update", "MZ0011I";
    /// The rotation of an authority's key moved on.
    CaRotate = "ca.rotate", "MZ0013I";
    /// A user logged in.
    Login = "user.login", "MZ1000I";
    /// A login failed.
    LoginFailed = "user.login.failed", "MZ1001W";
    /// A user logged out.
    Logout = "user.logout", "MZ1002I";
    /// A user changed its password.
    PasswordChange = "user.password.change", "MZ1003I";
    /// A change of password failed.
    PasswordChangeFailed = "user.password.change.failed", "MZ1004W";
    /// An admin set a user's password.
    PasswordReset = "user.password.reset", "MZ1005I";
    /// After too many failures, password logins as a user are refused for a while.
    Lockout = "user.lockout", "MZ1006W";
    /// An admin ended the lockouts of a user.
    LockoutClear = "user.lockout.clear", "MZ1007I";
    /// A user got an invite, with which it sets its password.
    Invite = "user.invite", "MZ1008I";
    /// A user has set its password with its invite.
    InviteAccept = "user.invite.accept", "MZ1009I";
    /// An invite was not accepted.
    InviteDenied = "user.invite.denied", "MZ1013W";
    /// A user began to register a WebAuthn device.
    DeviceRegisterBegin = "user.device.register.begin", "MZ1014I";
    /// A user has registered a WebAuthn device.
    DeviceRegister = "user.device.register", "MZ1015I";
    /// A WebAuthn device was not registered.
    DeviceRegisterFailed = "user.device.register.failed", "MZ1016W";
    /// A user has removed one of its WebAuthn devices.
    DeviceDelete = "user.device.delete", "MZ1017I";
    /// The signature counter of a WebAuthn device did not rise: there may be a copy of it.
    DeviceSuspect = "user.device.suspect", "MZ1018W";
    /// The password of a user was verified, and its authenticator's answer is waited for.
    StepUpBegin = "user.login.step_up", "MZ1019I";
    /// A user was created.
    UserCreate = "user.create", "MZ1010I";
    /// A user was changed.
    UserUpdate = "user.update", "MZ1011I";
    /// A user was deleted.
    UserDelete = "user.delete", "MZ1012I";
    /// A role was created.
    RoleCreate = "role.create", "MZ1020I";
    /// A role was changed.
    RoleUpdate = "role.update", "MZ1021I";
    /// A role was deleted.
    RoleDelete = "role.delete", "MZ1022I";
    /// A session was revoked.
    SessionRevoke = "session.revoke", "MZ1030I";
    /// A lock was made.
    LockCreate = "lock.create", "MZ1040I";
    /// A lock was removed.
    LockDelete = "lock.delete", "MZ1041I";
    /// A user asked for access.
    RequestCreate = "access_request.create", "MZ1050I";
    /// A request for access was reviewed, and is not decided yet.
    RequestReview = "access_request.review", "MZ1051I";
    /// A request for access was approved.
    RequestApprove = "access_request.approve", "MZ1052I";
    /// A request for access was denied.
    RequestDeny = "access_request.deny", "MZ1053I";
    /// A user took a request for access back.
    RequestCancel = "access_request.cancel", "MZ1054I";
    /// A single sign-on connector was created.
    ConnectorCreate = "connector.create", "MZ1060I";
    /// A single sign-on connector was changed.
    ConnectorUpdate = "connector.update", "MZ1061I";
    /// A single sign-on connector was deleted.
    ConnectorDelete = "connector.delete", "MZ1062I";
    /// Another cluster is trusted: its users are let in.
    TrustedClusterCreate = "trusted_cluster.create", "MZ1070I";
    /// What a trusted cluster's users may do was changed, or where it is.
    TrustedClusterUpdate = "trusted_cluster.update", "MZ1071I";
    /// A cluster is not trusted any more.
    TrustedClusterDelete = "trusted_cluster.delete", "MZ1072I";
    /// A trusted cluster has other authorities than before.
    TrustedClusterRefresh = "trusted_cluster.refresh", "MZ1073I";
    /// Another cluster got this one's authorities, to let its users in.
    TrustExchange = "trust.exchange", "MZ1074I";
    /// Another cluster did not get this one's authorities.
    TrustExchangeDenied = "trust.exchange.denied", "MZ1075W";
    /// An agent identity was created.
    IdentityCreate = "agent_identity.create", "MZ1090I";
    /// An agent identity was changed.
    IdentityUpdate = "agent_identity.update", "MZ1091I";
    /// An agent identity was deleted.
    IdentityDelete = "agent_identity.delete", "MZ1092I";
    /// An agent identity lost what it held, and got another bootstrap secret.
    IdentityReset = "agent_identity.reset", "MZ1093I";
    /// An agent identity got its first certificates for its bootstrap secret.
    IdentityBootstrap = "agent_identity.bootstrap", "MZ1094I";
    /// A bootstrap secret was not accepted.
    IdentityBootstrapDenied = "agent_identity.bootstrap.denied", "MZ1095W";
    /// An agent identity got its next certificates.
    IdentityRenew = "agent_identity.renew", "MZ1096I";
    /// An agent identity did not get its next certificates.
    IdentityRenewDenied = "agent_identity.renew.denied", "MZ1097W";
    /// Credentials of an agent identity were used that it had renewed already: there are two copies. It is locked.
    IdentityReplay = "agent_identity.replay", "MZ1098W";
    /// Workloads of a SPIFFE trust domain are let in.
    SpiffeDomainCreate = "spiffe_domain.create", "MZ1130I";
    /// Where the bundle of a trust domain comes from was changed, or the bundle.
    SpiffeDomainUpdate = "spiffe_domain.update", "MZ1131I";
    /// Workloads of a trust domain are not let in any more.
    SpiffeDomainDelete = "spiffe_domain.delete", "MZ1132I";
    /// A trust domain has told another bundle than before.
    SpiffeDomainRefresh = "spiffe_domain.refresh", "MZ1133I";
    /// A workload got a session for its SVID.
    SpiffeLogin = "spiffe.login", "MZ1134I";
    /// An SVID was not accepted.
    SpiffeLoginDenied = "spiffe.login.denied", "MZ1135W";
    /// An agent or agent identity got an SVID of the cluster.
    SvidIssue = "spiffe.svid.issue", "MZ1136I";
    /// An authority was made that the cluster did not have.
    CaCreate = "ca.create", "MZ1137I";
    /// A user of a single sign-on connector became one of this cluster alone.
    UserMakeLocal = "user.make_local", "MZ1110I";
    /// A user or agent identity got certificates.
    UserCertIssue = "cert.user.issue", "MZ2000I";
    /// An agent got certificates.
    HostCertIssue = "cert.host.issue", "MZ2001I";
    /// A join token was created.
    TokenCreate = "token.create", "MZ3000I";
    /// A join token was deleted.
    TokenDelete = "token.delete", "MZ3001I";
    /// An agent joined.
    AgentJoin = "agent.join", "MZ3010I";
    /// A join was refused.
    AgentJoinDenied = "agent.join.denied", "MZ3011W";
    /// An agent left.
    AgentLeave = "agent.leave", "MZ3012I";
    /// A node was changed.
    NodeUpdate = "node.update", "MZ3020I";
    /// The oldest records were forgotten, as the cluster's configuration says.
    AuditTrim = "audit.trim", "MZ0012I";
    /// A session began on a host.
    SessionStart = "session.start", "MZ4000I";
    /// A session ended on a host.
    SessionEnd = "session.end", "MZ4001I";
    /// A command was run in a session on a host.
    SessionCommand = "session.command", "MZ4002I";
    /// A session could not be recorded.
    SessionRecordingFailed = "session.recording.failed", "MZ4003W";
    /// The recording of a session was sealed.
    SessionUpload = "session.upload", "MZ4004I";
    /// The recording of a session was deleted, as the ingests' configuration says.
    SessionRecordingDelete = "session.recording.delete", "MZ4005I";
    /// A call was refused: its caller may not do that.
    AccessDenied = "access.denied", "MZ9000W";
}

impl EventType {
    /// Whether it tells of something that was done, rather than refused.
    pub fn is_success(self) -> bool {
        self.code().ends_with('I')
    }
}

/// An audit record as it is stored. Its number, time and hash are the log's.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AuditRow {
    /// Stable name of the event.
    #[prost(string, tag = "1")]
    pub event: String,
    /// Stable code of the event.
    #[prost(string, tag = "2")]
    pub code: String,
    /// Who did it.
    #[prost(string, tag = "3")]
    pub actor: String,
    /// What it was done to, such as `user:ann`.
    #[prost(string, tag = "4")]
    pub target: String,
    /// Whether it was done.
    #[prost(bool, tag = "5")]
    pub success: bool,
    /// Further fields.
    #[prost(btree_map = "string, string", tag = "6")]
    pub fields: BTreeMap<String, String>,
    /// Node that took the call.
    #[prost(uint64, tag = "7")]
    pub node_id: u64,
    /// Id of the call.
    #[prost(string, tag = "8")]
    pub request_id: String,
    /// IP address of the other end of the connection.
    #[prost(string, tag = "9")]
    pub client_address: String,
}

/// Appends a record of what the context's caller does. Never put a secret into `fields`.
pub fn append(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    event: EventType,
    target: impl Into<String>,
    fields: &[(&str, String)],
) {
    let row = AuditRow {
        event: event.name().into(),
        code: event.code().into(),
        actor: context.caller.actor(),
        target: target.into(),
        success: event.is_success(),
        fields: fields.iter().map(|(key, value)| ((*key).to_owned(), cut(value, MAX_OWN_VALUE))).collect(),
        node_id: context.origin.node_id,
        request_id: context.origin.request_id.clone(),
        client_address: context.origin.client_address.clone(),
    };
    tx.append(LOG, prost::Message::encode_to_vec(&row));
}

/// Name of the field that tells how many refusals before this one were not recorded.
pub const UNRECORDED: &str = "unrecorded";

/// Appends a record of what the context's caller was refused, if refusals of its call are recorded. Of a value of more than
/// 1 KiB the front is kept: it may be a stranger's. Never put a secret into `fields`.
pub fn append_refusal(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    event: EventType,
    target: impl Into<String>,
    fields: &[(&str, String)],
) {
    let Refusals::Recorded { unrecorded } = context.origin.refusals else { return };
    let mut fields: Vec<_> = fields.iter().map(|(name, value)| (*name, cut(value, MAX_VALUE))).collect();
    if unrecorded > 0 {
        fields.push((UNRECORDED, unrecorded.to_string()));
    }
    append(tx, context, event, target, &fields);
}

/// What data planes may tell. All else is the control plane's own.
const EMITTED: [EventType; 6] = [
    EventType::SessionStart,
    EventType::SessionEnd,
    EventType::SessionCommand,
    EventType::SessionRecordingFailed,
    EventType::SessionUpload,
    EventType::SessionRecordingDelete,
];
/// Of those, what ingests alone know.
const OF_INGESTS: [EventType; 2] = [EventType::SessionUpload, EventType::SessionRecordingDelete];

/// Longest target of an event that is told, in bytes.
const MAX_TARGET: usize = 256;
/// Most fields of an event that is told.
const MAX_FIELDS: usize = 64;
/// Longest name of a field, in bytes.
const MAX_FIELD_NAME: usize = 63;

/// Appends what the calling agent, ingest or admin tells. Who, when and through which node is not for it to say.
///
/// # Errors
/// [`CoreError::Invalid`] for an event that is not one of the data plane's, and for what is out of bounds;
/// [`CoreError::Denied`] for one that ingests alone tell, from anybody else.
pub fn emit(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    event: &str,
    target: &str,
    fields: &BTreeMap<String, String>,
) -> Result<(), CoreError> {
    let known = EMITTED.into_iter().find(|known| known.name() == event).ok_or_else(|| {
        let names = EMITTED.map(EventType::name).join(", ");
        CoreError::invalid("event", format!("one of {names}"))
    })?;
    if OF_INGESTS.contains(&known) && !matches!(context.caller, Caller::Ingest { .. }) {
        return Err(CoreError::Denied(format!("{event} is told by recording ingests alone")));
    }
    if !(1..=MAX_TARGET).contains(&target.len()) {
        return Err(CoreError::invalid("target", format!("1 to {MAX_TARGET} bytes")));
    }
    let is_name = |name: &String| {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_.-".contains(&byte);
        (1..=MAX_FIELD_NAME).contains(&name.len()) && name.bytes().all(allowed)
    };
    if fields.len() > MAX_FIELDS || !fields.keys().all(is_name) {
        let reason =
            format!("at most {MAX_FIELDS} fields, with names of 1 to {MAX_FIELD_NAME} bytes of [a-z0-9_.-]");
        return Err(CoreError::invalid("fields", reason));
    }
    if let Some((name, _)) = fields.iter().find(|(_, value)| value.len() > MAX_VALUE) {
        return Err(CoreError::invalid(format!("fields.{name}"), format!("at most {MAX_VALUE} bytes")));
    }
    let fields: Vec<_> = fields.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
    append(tx, context, known, target, &fields);
    Ok(())
}

/// Fields of a record that tells what is different, `before -> after`; both have the same names in the same order, and nothing
/// is `unset`.
pub(crate) fn changes(
    before: impl IntoIterator<Item = (&'static str, String)>,
    after: impl IntoIterator<Item = (&'static str, String)>,
) -> Vec<(&'static str, String)> {
    let pairs = before.into_iter().zip(after);
    let different = pairs.filter(|((_, before), (_, after))| before != after);
    let say = |((name, before), (_, after)): ((_, String), (_, String))| {
        (name, format!("{} -> {}", side(before), side(after)))
    };
    different.map(say).collect()
}

fn side(value: String) -> String {
    if value.is_empty() { "unset".to_owned() } else { value }
}

/// A value; of one of more than so many bytes the front, with a mark that says so.
fn cut(value: &str, most: usize) -> String {
    if value.len() <= most {
        return value.to_owned();
    }
    let front = value.get(..value.floor_char_boundary(most)).unwrap_or_default();
    format!("{front}… ({} bytes in all)", value.len())
}

/// The first `limit` records from number `from` on, decoded.
///
/// # Errors
/// [`CoreError::Storage`], [`CoreError::Internal`] for a record that does not decode.
pub fn records(
    state: &mut (impl Read + ?Sized),
    from: u64,
    limit: usize,
) -> Result<Vec<(LogRecord, AuditRow)>, CoreError> {
    let records = state.log_records(LOG, from, limit)?;
    let decode = |record: LogRecord| {
        let row = prost::Message::decode(record.record.as_slice());
        let row =
            row.map_err(|error| CoreError::Internal(format!("audit record {}: {error}", record.index)))?;
        Ok((record, row))
    };
    records.into_iter().map(decode).collect()
}

#[cfg(test)]
#[path = "audit_tests.rs"]
mod tests;
