//! Who calls. A [`Credential`] is what a call brings; [`authenticate`] turns it into a [`Caller`] by what the state
//! says now, in the same view or transaction as the work itself, so that a session, user or role that ends in between
//! counts. Who may call which method is not decided here.

use store_txn::{Read, ReadExt};

use crate::{
    CoreError,
    evaluate::{Access, Traits},
    lock,
    names::{AgentId, ConnectorName, IdentityName, RoleName, SessionHandle, UserName},
    remote::{RemoteCaller, RemoteCredential},
    rules::{Resource, Verb},
    secret::SecretDigest,
    session,
    tables::{
        AgentIdentityKey, AgentIdentityRow, AuthMethod, ClusterKey, ConnectorKey, NodeKey, NodeKind, NodeRow,
        RoleKey, RoleRow, SessionKey, SessionRow, TargetKind, UserKey, UserRow,
    },
    trusted_cluster,
};

/// What a call brings to prove who makes it. TLS has verified certificates, and their time, before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    /// Nothing, or what is in the request itself.
    None,
    /// A session id, by its digest.
    Session(SecretDigest),
    /// The client certificate of an agent.
    Agent {
        /// The id that the certificate names.
        id: AgentId,
        /// SHA-256 of the certificate's public key (SubjectPublicKeyInfo).
        key_digest: [u8; 32],
    },
    /// The client certificate of an ingest.
    Ingest {
        /// The id that the certificate names.
        id: AgentId,
        /// SHA-256 of the certificate's public key (SubjectPublicKeyInfo).
        key_digest: [u8; 32],
    },
    /// The client certificate of a user of another cluster.
    Remote(Box<RemoteCredential>),
    /// An X.509-SVID of another trust domain as the client certificate, with what was shown beside it: DER, its own first. With it
    /// a workload gets a session; for all else it has that.
    Svid(Vec<Vec<u8>>),
    /// The client certificate of an agent identity. With it the identity renews what it has; for all else it has a session.
    AgentIdentity {
        /// The name that the certificate has.
        name: IdentityName,
        /// SHA-256 of the certificate's public key (SubjectPublicKeyInfo).
        key_digest: [u8; 32],
    },
}

/// A caller, as the state knows it.
#[derive(Debug, Clone, PartialEq)]
pub enum Caller {
    /// Somebody without a credential beyond what is in the request.
    Anonymous,
    /// Whoever makes the cluster, with `auth-node init` on the machine of its first node. No call is one's.
    Init,
    /// The cluster itself: what nobody asked for. No call is one's.
    Cluster,
    /// A user with a valid session.
    User(Box<UserCaller>),
    /// A user of a trusted cluster.
    Remote(Box<RemoteCaller>),
    /// An agent identity with a valid session.
    AgentIdentity(Box<IdentityCaller>),
    /// A registered SSH node.
    Agent {
        /// Its id.
        id: AgentId,
        /// Its row.
        node: Box<NodeRow>,
    },
    /// A registered ingest.
    Ingest {
        /// Its id.
        id: AgentId,
        /// Its row.
        node: Box<NodeRow>,
    },
    /// An agent or ingest with a certificate, which is not in the registry: it has not registered yet, or not any
    /// more.
    Unregistered {
        /// The id that its certificate names.
        id: AgentId,
        /// What its certificate lets it be.
        kind: NodeKind,
        /// SHA-256 of the certificate's public key (SubjectPublicKeyInfo).
        key_digest: [u8; 32],
    },
}

/// A user with a valid session.
#[derive(Debug, Clone, PartialEq)]
pub struct UserCaller {
    /// Canonical name.
    pub name: UserName,
    /// The user.
    pub user: UserRow,
    /// The user's roles, ascending by name. One that was deleted is left out.
    pub roles: Vec<Role>,
    /// Digest of the session's id.
    pub digest: SecretDigest,
    /// The session.
    pub session: SessionRow,
    /// Whether it was not noted for so long that it is used that this call is to be noted.
    pub use_is_due: bool,
}

/// An agent identity with a valid session.
#[derive(Debug, Clone, PartialEq)]
pub struct IdentityCaller {
    /// Canonical name.
    pub name: IdentityName,
    /// The agent identity.
    pub identity: AgentIdentityRow,
    /// Its roles, ascending by name. One that was deleted is left out.
    pub roles: Vec<Role>,
    /// Digest of the session's id.
    pub digest: SecretDigest,
    /// The session.
    pub session: SessionRow,
}

impl IdentityCaller {
    /// As somebody with roles.
    pub fn holder(&self) -> Holder<'_> {
        Holder { roles: &self.roles, traits: &self.identity.traits }
    }
}

/// Somebody of this cluster with roles, and what these open: a user or an agent identity.
#[derive(Debug, Clone, Copy)]
pub struct Holder<'a> {
    /// The roles, ascending by name.
    pub roles: &'a [Role],
    /// For role templates.
    pub traits: &'a Traits,
}

impl Holder<'_> {
    /// Whether it holds the role `admin`.
    pub fn is_admin(&self) -> bool {
        self.roles.iter().any(|role| role.name.is_admin())
    }

    /// Whether it holds a role.
    pub fn holds(&self, name: &RoleName) -> bool {
        self.roles.iter().any(|role| role.name == *name)
    }

    /// Whether it is an admin, or a rule of its roles allows this and none denies it.
    pub fn may(&self, resource: Resource, verb: Verb) -> bool {
        self.is_admin() || Access::of(self.roles, self.traits).may(resource, verb)
    }
}

/// A role and its name.
#[derive(Debug, Clone, PartialEq)]
pub struct Role {
    /// Name.
    pub name: RoleName,
    /// What it says.
    pub row: RoleRow,
}

impl UserCaller {
    /// As somebody with roles.
    pub fn holder(&self) -> Holder<'_> {
        Holder { roles: &self.roles, traits: &self.user.traits }
    }

    /// Whether the user holds the role `admin`.
    pub fn is_admin(&self) -> bool {
        self.holder().is_admin()
    }

    /// Whether the user is an admin, or a rule of its roles allows this and none denies it.
    pub fn may(&self, resource: Resource, verb: Verb) -> bool {
        self.holder().may(resource, verb)
    }

    /// Public handle of the session.
    pub fn handle(&self) -> Option<SessionHandle> {
        SessionHandle::parse(&self.session.handle)
    }

    /// How the user proved itself.
    pub fn method(&self) -> AuthMethod {
        self.session.method()
    }

    /// Whether the session was made with a second factor: an authenticator, or one that a connector vouches for.
    pub fn has_second_factor(&self) -> bool {
        match self.method() {
            AuthMethod::Webauthn => true,
            AuthMethod::Sso => self.session.second_factor,
            AuthMethod::Password
            | AuthMethod::Unspecified
            | AuthMethod::AgentIdentity
            | AuthMethod::Spiffe => false,
        }
    }
}

impl Caller {
    /// As the audit log names it: `user:ann`, `user:ann@other`, `bot:ci`, `agent:<id>`, `ingest:<id>`, `anonymous`, `init`, `cluster`.
    pub fn actor(&self) -> String {
        match self {
            Self::Anonymous => "anonymous".into(),
            Self::Init => "init".into(),
            Self::Cluster => "cluster".into(),
            Self::User(user) => format!("user:{}", user.name),
            Self::Remote(user) => format!("user:{}", user.name),
            Self::AgentIdentity(identity) => identity.name.principal(),
            Self::Agent { id, .. }
            | Self::Unregistered { id, kind: NodeKind::Ssh | NodeKind::Unspecified, .. } => {
                format!("agent:{id}")
            }
            Self::Ingest { id, .. } | Self::Unregistered { id, kind: NodeKind::Ingest, .. } => {
                format!("ingest:{id}")
            }
        }
    }

    /// The user behind the call: for what is for people alone.
    ///
    /// # Errors
    /// [`CoreError::Denied`] for an agent identity; [`CoreError::Unauthenticated`] when it is not a user.
    pub fn user(&self) -> Result<&UserCaller, CoreError> {
        match self {
            Self::User(user) => Ok(user),
            Self::AgentIdentity(_) => Err(CoreError::Denied(
                "this is for users: an agent identity may not do it, whatever its roles".into(),
            )),
            _ => Err(NO_SESSION),
        }
    }

    /// Whoever of this cluster has roles and is behind the call: a user or an agent identity.
    ///
    /// # Errors
    /// [`CoreError::Unauthenticated`] when it is neither.
    pub fn holder(&self) -> Result<Holder<'_>, CoreError> {
        match self {
            Self::User(user) => Ok(user.holder()),
            Self::AgentIdentity(identity) => Ok(identity.holder()),
            _ => Err(NO_SESSION),
        }
    }
}

pub(crate) const NO_SESSION: CoreError =
    CoreError::Unauthenticated("this call needs a session: log in first");
const NO_SUCH_SESSION: CoreError =
    CoreError::Unauthenticated("the session is not valid, or not any more: log in again");

/// Through which node and call something is done. It goes into the audit record.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Origin {
    /// Node that took the call.
    pub node_id: u64,
    /// Id of the call, as in the node's log.
    pub request_id: String,
    /// IP address of the other end of the connection.
    pub client_address: String,
    /// Whether a refusal goes into the audit log.
    pub refusals: Refusals,
}

/// Whether a refusal of a call goes into the audit log, which is replicated and kept for long, while anybody can be refused at will: so
/// each node bounds how many it writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusals {
    /// It does.
    Recorded {
        /// How many did not since the last one that did. The record tells it.
        unrecorded: u64,
    },
    /// It does not; the node counts it.
    Counted,
}

impl Default for Refusals {
    fn default() -> Self {
        Self::Recorded { unrecorded: 0 }
    }
}

/// Who does something, and through which call.
#[derive(Debug, Clone, PartialEq)]
pub struct Context {
    /// Who.
    pub caller: Caller,
    /// Through which call.
    pub origin: Origin,
}

/// Tells who calls, and refuses whoever is locked out.
///
/// # Errors
/// As of [`identify`]; [`CoreError::Locked`].
pub fn authenticate(state: &mut (impl Read + ?Sized), credential: &Credential) -> Result<Caller, CoreError> {
    let caller = identify(state, credential)?;
    match &caller {
        Caller::Anonymous | Caller::Init | Caller::Cluster => {}
        Caller::User(user) => {
            lock::check_user(state, &user.name, &user.roles)?;
            if !user.session.device.is_empty() {
                lock::check(state, TargetKind::Device, &user.session.device)?;
            }
        }
        Caller::Remote(user) => lock::check_user(state, &user.name, &user.roles)?,
        Caller::AgentIdentity(identity) => lock::check_identity(state, &identity.name, &identity.roles)?,
        Caller::Agent { id, .. } | Caller::Ingest { id, .. } | Caller::Unregistered { id, .. } => {
            lock::check(state, TargetKind::Node, id.as_str())?;
        }
    }
    Ok(caller)
}

/// Tells who calls, locked out or not: for the record of what was refused.
///
/// # Errors
/// [`CoreError::Unauthenticated`] for a session that is not valid, or unused for too long, or whose user is gone; for a
/// certificate whose key is not the registered agent's; for one of a cluster that is not trusted. [`CoreError::Storage`].
pub fn identify(state: &mut (impl Read + ?Sized), credential: &Credential) -> Result<Caller, CoreError> {
    match credential {
        // The one call that takes the certificate of an agent identity, or an SVID, looks at it itself.
        Credential::None | Credential::AgentIdentity { .. } | Credential::Svid(_) => Ok(Caller::Anonymous),
        Credential::Session(digest) => holder(state, *digest),
        Credential::Agent { id, key_digest } => agent(state, id, key_digest, NodeKind::Ssh),
        Credential::Ingest { id, key_digest } => agent(state, id, key_digest, NodeKind::Ingest),
        Credential::Remote(shown) => {
            trusted_cluster::admit(state, shown).map(|it| Caller::Remote(Box::new(it)))
        }
    }
}

fn holder(state: &mut (impl Read + ?Sized), digest: SecretDigest) -> Result<Caller, CoreError> {
    let session = state.get(&SessionKey(digest))?.ok_or(NO_SUCH_SESSION)?.row;
    let epoch = state.get(&ClusterKey)?.map_or(0, |cluster| cluster.row.session_epoch);
    if session.epoch != epoch {
        return Err(NO_SUCH_SESSION);
    }
    let usage = session::usage(state, digest, &session)?;
    if usage.is_over {
        return Err(NO_SUCH_SESSION);
    }
    if !session.agent_identity.is_empty() {
        let name = IdentityName::parse("session", &session.agent_identity)?;
        let identity = state.get(&AgentIdentityKey(name.clone()))?.ok_or(NO_SUCH_SESSION)?.row;
        let roles = roles_of(state, &identity.roles)?;
        return Ok(Caller::AgentIdentity(Box::new(IdentityCaller {
            name,
            identity,
            roles,
            digest,
            session,
        })));
    }
    let name = UserName::parse("session", &session.user)?;
    let user = state.get(&UserKey(name.clone()))?.ok_or(NO_SUCH_SESSION)?.row;
    if !user.connector.is_empty() {
        // Who is not believed any more has nobody here.
        let connector = ConnectorName::parse("user.connector", &user.connector)?;
        let connector = state.get(&ConnectorKey(connector))?.ok_or(NO_SUCH_SESSION)?.row;
        if session.created_at_ms < connector.since_ms {
            return Err(NO_SUCH_SESSION);
        }
    }
    let roles = roles(state, &user)?;
    let use_is_due = usage.is_due;
    Ok(Caller::User(Box::new(UserCaller { name, user, roles, digest, session, use_is_due })))
}

/// The roles of a user that exist.
///
/// # Errors
/// [`CoreError::Storage`].
pub fn roles(state: &mut (impl Read + ?Sized), user: &UserRow) -> Result<Vec<Role>, CoreError> {
    roles_of(state, &user.roles)
}

/// Those of these roles that exist.
///
/// # Errors
/// [`CoreError::Storage`].
pub(crate) fn roles_of(state: &mut (impl Read + ?Sized), names: &[String]) -> Result<Vec<Role>, CoreError> {
    let mut roles = Vec::with_capacity(names.len());
    for name in names {
        let name = RoleName::parse("roles", name)?;
        if let Some(role) = state.get(&RoleKey(name.clone()))? {
            roles.push(Role { name, row: role.row });
        }
    }
    Ok(roles)
}

fn agent(
    state: &mut (impl Read + ?Sized),
    id: &AgentId,
    key_digest: &[u8; 32],
    kind: NodeKind,
) -> Result<Caller, CoreError> {
    let Some(node) = state.get(&NodeKey(id.clone()))? else {
        return Ok(Caller::Unregistered { id: id.clone(), kind, key_digest: *key_digest });
    };
    let node = Box::new(node.row);
    if node.key_digest != key_digest || node.kind() != kind {
        return Err(CoreError::Unauthenticated(
            "the client certificate is not the one of this agent any more",
        ));
    }
    let id = id.clone();
    Ok(if kind == NodeKind::Ingest { Caller::Ingest { id, node } } else { Caller::Agent { id, node } })
}
