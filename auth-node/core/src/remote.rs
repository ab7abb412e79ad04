//! Users of other clusters, who are let in: what their certificate says, what they are here, and what they have in common
//! with users of this one. Whether one is let in is decided by `trusted_cluster`.

use std::collections::BTreeMap;

use store_txn::UnixMillis;

use crate::{
    Caller, CoreError,
    context::{Holder, NO_SESSION, Role, UserCaller},
    evaluate::Traits,
    names::{ClusterName, UserName},
    tables::TargetKind,
};

/// The client certificate of a user of another cluster. TLS has verified its time; who signed it is looked at where it is
/// believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteCredential {
    /// The cluster that the certificate says it is of.
    pub cluster: ClusterName,
    /// The user's name there.
    pub name: UserName,
    /// The user's roles there.
    pub roles: Vec<String>,
    /// The certificate, DER.
    pub certificate: Vec<u8>,
    /// When it ends.
    pub ends_at_ms: UnixMillis,
}

/// A user of another cluster.
#[derive(Debug, Clone, PartialEq)]
pub struct RemoteCaller {
    /// Its name here: `ann@other`. No local user has such a name.
    pub name: UserName,
    /// The cluster that it is of.
    pub cluster: ClusterName,
    /// The roles here that its roles there are mapped to, ascending by name; none: it may do nothing.
    pub roles: Vec<Role>,
    /// When its certificate ends.
    pub ends_at_ms: UnixMillis,
}

/// What another cluster says of its users' logins does not count here.
static NO_TRAITS: Traits = BTreeMap::new();

/// Somebody who gets certificates for nodes, and sees nodes: a user of this cluster or of another, or an agent identity.
#[derive(Debug, Clone)]
pub(crate) struct Subject<'a> {
    /// `User` or `AgentIdentity`.
    pub(crate) kind: TargetKind,
    /// Name here, among others of the kind.
    pub(crate) name: &'a str,
    /// Name among all kinds, as certificates for ssh have it: an agent identity never looks like a user.
    pub(crate) principal: String,
    /// Roles here.
    pub(crate) roles: &'a [Role],
    /// For templates in roles.
    pub(crate) traits: &'a Traits,
    /// When what proves who it is ends.
    pub(crate) ends_at_ms: UnixMillis,
    /// Handle of its session; empty without one.
    pub(crate) session: &'a str,
    /// Whether it has proved no second factor, for all that is known.
    pub(crate) weak: bool,
    /// The cluster that it is of; empty: this one.
    pub(crate) cluster: &'a str,
    /// As somebody of this cluster, whose roles open methods.
    pub(crate) holder: Option<Holder<'a>>,
    /// As a user of this cluster.
    pub(crate) local: Option<&'a UserCaller>,
}

impl Caller {
    /// The user behind the call, of this cluster or of another, or the agent identity.
    ///
    /// # Errors
    /// [`CoreError::Unauthenticated`] when it is none.
    pub(crate) fn subject(&self) -> Result<Subject<'_>, CoreError> {
        match self {
            Self::User(user) => Ok(Subject {
                kind: TargetKind::User,
                name: user.name.as_str(),
                principal: user.name.to_string(),
                roles: &user.roles,
                traits: &user.user.traits,
                ends_at_ms: user.session.expires_at_ms,
                session: &user.session.handle,
                weak: !user.has_second_factor(),
                cluster: "",
                holder: Some(user.holder()),
                local: Some(user),
            }),
            Self::AgentIdentity(identity) => Ok(Subject {
                kind: TargetKind::AgentIdentity,
                name: identity.name.as_str(),
                principal: identity.name.principal(),
                roles: &identity.roles,
                traits: &identity.identity.traits,
                ends_at_ms: identity.session.expires_at_ms,
                session: &identity.session.handle,
                // A role that asks for a second factor asks for a person.
                weak: true,
                cluster: "",
                holder: Some(identity.holder()),
                local: None,
            }),
            Self::Remote(user) => Ok(Subject {
                kind: TargetKind::User,
                name: user.name.as_str(),
                principal: user.name.to_string(),
                roles: &user.roles,
                traits: &NO_TRAITS,
                ends_at_ms: user.ends_at_ms,
                session: "",
                weak: true,
                cluster: user.cluster.as_str(),
                holder: None,
                local: None,
            }),
            Self::Anonymous
            | Self::Init
            | Self::Cluster
            | Self::Agent { .. }
            | Self::Ingest { .. }
            | Self::Unregistered { .. } => Err(NO_SESSION),
        }
    }
}
