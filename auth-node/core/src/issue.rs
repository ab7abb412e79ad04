//! Certificates for users: who gets them, for which logins and nodes, for how long. What comes out is a specification,
//! signed elsewhere once the transaction has committed.
//!
//! A principal is a login, where the caller's roles allow it on every node, and otherwise `login@agent_id`, one for
//! each node on which they do; a node accepts both forms of its own logins.
//!
//! Where there are such, they are looked for in a view of all nodes, before the transaction: that reads the nodes that were
//! found, and judges them again, so that it conflicts with changes of these alone.

mod grant;

use std::{collections::BTreeSet, time::Duration};

use mezite_pki::{
    identity::Identity,
    ssh::{SshPublicKey, UserCertSpec},
    x509::{LeafSpec, check_public_key},
};
use store_txn::{Read, ReadExt, Transaction, UnixMillis};

use self::grant::{Grant, grant, too_many};
use crate::{
    Context, CoreError, access_request,
    audit::{self, EventType},
    ca::{self, ActiveCa},
    evaluate::{Access, Options},
    host_login::is_login,
    join::BACKDATE_SECONDS,
    labels, lock,
    names::{AgentId, RequestId},
    node,
    principal::Principal,
    remote::Subject,
    revocation,
    tables::{CaKind, IssuedRow, NodeKey, NodeKind, NodeRow, TargetKind},
    trust::{self, TrustBundle},
};

/// Most SSH keys in one request.
const MAX_KEYS: usize = 4;
/// Most principals that OpenSSH reads in one certificate.
const MAX_PRINCIPALS: usize = 256;
/// Shortest life of a certificate that can be asked for.
const MIN_TTL: Duration = Duration::from_secs(1);
/// Nodes that are read at a time.
const CHUNK: usize = 256;

/// Certificates that a user asks for, checked.
#[derive(Debug, Clone)]
pub struct UserCertRequest {
    ssh_public_keys: Vec<SshPublicKey>,
    tls_public_key: Option<Vec<u8>>,
    ttl: Option<Duration>,
    logins: BTreeSet<String>,
    node: Option<Wanted>,
    requests: BTreeSet<RequestId>,
    serials: Vec<u64>,
}

/// The one node that a certificate is to be good for.
#[derive(Debug, Clone)]
enum Wanted {
    Id(AgentId),
    Name(Principal),
}

impl UserCertRequest {
    /// Reads a request: 1 to 4 OpenSSH public key lines, or none beside a TLS key; a DER SubjectPublicKeyInfo (empty: none); the lifetime wanted,
    /// at least one second (`None`: the longest); logins wanted (none: all); agent id or hostname of the one node that
    /// it is for (empty: none). `random` gives one serial number a call.
    ///
    /// # Errors
    /// [`CoreError::Invalid`].
    pub fn new(
        ssh_public_keys: &[String],
        tls_public_key: Vec<u8>,
        ttl: Option<Duration>,
        logins: Vec<String>,
        node: &str,
        mut random: impl FnMut() -> u64,
    ) -> Result<Self, CoreError> {
        let least = usize::from(tls_public_key.is_empty());
        if !(least..=MAX_KEYS).contains(&ssh_public_keys.len()) {
            return Err(CoreError::invalid(
                "ssh_public_keys",
                format!("1 to {MAX_KEYS}; none with a TLS key alone"),
            ));
        }
        let key = |line: &String| SshPublicKey::parse(line).map_err(CoreError::pki("ssh_public_keys"));
        let ssh_public_keys = ssh_public_keys.iter().map(key).collect::<Result<Vec<_>, _>>()?;
        if !tls_public_key.is_empty() {
            check_public_key(&tls_public_key).map_err(CoreError::pki("tls_public_key"))?;
        }
        if ttl.is_some_and(|ttl| ttl < MIN_TTL) {
            return Err(CoreError::invalid("ttl", "at least one second"));
        }
        if logins.len() > MAX_PRINCIPALS {
            return Err(CoreError::invalid("logins", format!("at most {MAX_PRINCIPALS}")));
        }
        if let Some(index) = logins.iter().position(|login| !is_login(login)) {
            return Err(CoreError::invalid(format!("logins[{index}]"), "this is not the name of a login"));
        }
        let node = match node {
            "" => None,
            text => Some(match AgentId::parse("node", text) {
                Ok(id) => Wanted::Id(id),
                Err(_) => Wanted::Name(Principal::parse("node", text)?),
            }),
        };
        let serials = (0..ssh_public_keys.len().max(1)).map(|_| random()).collect();
        Ok(Self {
            ssh_public_keys,
            tls_public_key: Some(tls_public_key).filter(|key| !key.is_empty()),
            ttl,
            logins: logins.into_iter().collect(),
            node,
            requests: BTreeSet::new(),
            serials,
        })
    }

    /// With the roles of these access requests, at most 16, which must be approved.
    ///
    /// # Errors
    /// [`CoreError::Invalid`].
    pub fn with_requests(mut self, ids: &[String]) -> Result<Self, CoreError> {
        if ids.len() > access_request::MAX_USED {
            let reason = format!("at most {}", access_request::MAX_USED);
            return Err(CoreError::invalid("access_request_ids", reason));
        }
        for (index, id) in ids.iter().enumerate() {
            let refused = || {
                let field = format!("access_request_ids[{index}]");
                CoreError::invalid(field, "32 hexadecimal digits, as lists show it")
            };
            self.requests.insert(RequestId::parse(id).ok_or_else(refused)?);
        }
        Ok(self)
    }

    fn wanted(&self, logins: BTreeSet<String>) -> BTreeSet<String> {
        if self.logins.is_empty() { logins } else { &logins & &self.logins }
    }

    /// The wanted logins that are allowed everywhere, and those that may be allowed on some nodes.
    fn wanted_logins(&self, access: &Access) -> (BTreeSet<String>, BTreeSet<String>) {
        let everywhere = self.wanted(access.logins_everywhere());
        let somewhere = &self.wanted(access.all_logins()) - &everywhere;
        (everywhere, somewhere)
    }
}

/// What is to be signed for a user, once the transaction has committed.
#[derive(Debug, Clone)]
pub struct UserCerts {
    /// SSH certificates, in the order of the keys.
    pub ssh: Vec<UserCertSpec>,
    /// X.509 client certificate.
    pub tls: Option<LeafSpec>,
    /// Roles that it names, for clusters that trust this one.
    pub tls_roles: Vec<String>,
    /// Signs the SSH certificates.
    pub user_ca: ActiveCa,
    /// Signs the X.509 certificate.
    pub tls_ca: ActiveCa,
    /// What the user trusts.
    pub trust: TrustBundle,
    /// When the certificates end.
    pub expires_at_ms: UnixMillis,
    /// Logins that they carry.
    pub logins: BTreeSet<String>,
}

/// Nodes on which a caller's roles may allow a login that they do not allow everywhere: at most 256.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Candidates(BTreeSet<AgentId>);

/// Looks for the nodes that certificates for the caller may name. For a request that names its node it looks for none.
///
/// # Errors
/// As of [`user_certs`].
pub fn candidates(
    state: &mut (impl Read + ?Sized),
    context: &Context,
    request: &UserCertRequest,
) -> Result<Candidates, CoreError> {
    let allowed = Allowed::to(state, &context.caller.subject()?, request)?;
    let mut candidates = Candidates::default();
    if request.node.is_some() || request.ssh_public_keys.is_empty() {
        return Ok(candidates);
    }
    let (everywhere, somewhere) = request.wanted_logins(&allowed.access);
    let (mut principals, mut after) = (everywhere.len(), None);
    while !somewhere.is_empty() && principals <= MAX_PRINCIPALS {
        let nodes = state.scan::<NodeKey>(after.as_ref(), CHUNK)?;
        let Some((last, _)) = nodes.last() else { break };
        after = Some(last.clone());
        for (NodeKey(id), node) in nodes {
            let logins = &allowed.logins_on(state, &id, &node.row)? & &somewhere;
            if !logins.is_empty() {
                principals = principals.saturating_add(logins.len());
                candidates.0.insert(id);
            }
        }
    }
    if principals > MAX_PRINCIPALS { Err(too_many()) } else { Ok(candidates) }
}

/// Decides on certificates for the caller, within what its roles allow, and those of its access requests that it names.
/// They end with the caller's session, and with the first of the requests, at the latest. Without a node, those nodes count that were found to be `candidates`, if the roles still allow a login there.
///
/// # Errors
/// [`CoreError::Denied`] when nothing is allowed, a wanted login is not, or a role asks for a second factor;
/// [`CoreError::Precondition`] when it takes more than 256 principals to say what is allowed;
/// [`CoreError::Unauthenticated`] when the caller is not a user, or its session is about to end;
/// [`CoreError::Storage`].
pub fn user_certs(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    request: &UserCertRequest,
    candidates: &Candidates,
) -> Result<UserCerts, CoreError> {
    let allowed = Allowed::to(tx, &context.caller.subject()?, request)?;
    certify(tx, context, request, &allowed, candidates)
}

/// As [`user_certs`], where no candidates are needed: for a request that names its node, and for a caller whose roles allow its logins
/// everywhere or nowhere. `None`: they are.
///
/// # Errors
/// As of [`user_certs`].
pub fn user_certs_at_once(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    request: &UserCertRequest,
) -> Result<Option<UserCerts>, CoreError> {
    let allowed = Allowed::to(tx, &context.caller.subject()?, request)?;
    let needs_none = request.node.is_some()
        || request.ssh_public_keys.is_empty()
        || request.wanted_logins(&allowed.access).1.is_empty();
    needs_none.then(|| certify(tx, context, request, &allowed, &Candidates::default())).transpose()
}

fn certify(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    request: &UserCertRequest,
    allowed: &Allowed,
    candidates: &Candidates,
) -> Result<UserCerts, CoreError> {
    let caller = context.caller.subject()?;
    let options = allowed.access.options();
    let grant = match request.ssh_public_keys.as_slice() {
        [] => Grant::default(),
        _ => grant(tx, allowed, request, candidates)?,
    };
    let latest = allowed.ends_at_ms.min(caller.ends_at_ms);
    let lifetime = lifetime(tx.now(), latest, options, request.ttl)?;
    let source_addresses = options.source_addresses.entries()?;
    let expires_at_ms = lifetime.end.saturating_mul(1000);
    let spec = |(public_key, serial): (&SshPublicKey, &u64)| UserCertSpec {
        public_key: public_key.clone(),
        key_id: caller.principal.clone(),
        principals: grant.principals.iter().cloned().collect(),
        serial: *serial,
        valid_after: lifetime.start,
        valid_before: lifetime.end,
        extensions: options.extensions,
        source_addresses: source_addresses.clone(),
    };
    let ssh: Vec<_> = request.ssh_public_keys.iter().zip(&request.serials).map(spec).collect();
    let issued = IssuedRow {
        kind: caller.kind.into(),
        holder: caller.name.to_owned(),
        roles: allowed.roles.iter().cloned().collect(),
        logins: grant.logins.iter().cloned().collect(),
        nodes: grant.nodes.iter().map(AgentId::to_string).collect(),
        session: caller.session.to_owned(),
        device: caller.local.map(|user| user.session.device.clone()).unwrap_or_default(),
        expires_at_ms,
        cluster: caller.cluster.to_owned(),
    };
    // Also one for TLS alone: a rotation waits for its end.
    request.serials.iter().for_each(|serial| revocation::note(tx, *serial, &issued));
    let requests: Vec<_> = request.requests.iter().map(RequestId::to_string).collect();
    record(tx, context, &caller, &ssh, &grant, (expires_at_ms, requests.join(",")));

    let trust = trust::bundle(tx)?;
    let tls = request.tls_public_key.as_ref().map(|public_key| LeafSpec {
        public_key: public_key.clone(),
        common_name: caller.name.to_string(),
        identity: Some(Identity::User { cluster: trust.cluster_name.clone(), name: caller.name.to_string() }),
        dns_names: Vec::new(),
        ip_addresses: Vec::new(),
        not_before: lifetime.start,
        // The last second of the lifetime here, the first one after it in SSH's.
        not_after: lifetime.end.saturating_sub(1),
        client_auth: true,
        server_auth: false,
    });
    let tls_roles = caller.roles.iter().map(|role| role.name.to_string()).collect();
    let (user_ca, tls_ca) = (ca::for_clients(tx, CaKind::User)?, ca::for_clients(tx, CaKind::Tls)?);
    Ok(UserCerts { ssh, tls, tls_roles, user_ca, tls_ca, trust, expires_at_ms, logins: grant.logins })
}

/// What a caller may have certificates for.
struct Allowed {
    /// By its roles, without logins that are locked.
    access: Access,
    /// Nodes that are locked.
    locked: BTreeSet<String>,
    /// Names of the roles.
    roles: BTreeSet<String>,
    /// When the first of the access requests ends.
    ends_at_ms: UnixMillis,
}

impl Allowed {
    /// What the caller's roles allow, and those of its access requests, if its session may have certificates.
    fn to(
        state: &mut (impl Read + ?Sized),
        caller: &Subject<'_>,
        request: &UserCertRequest,
    ) -> Result<Self, CoreError> {
        if caller.local.is_none() && request.tls_public_key.is_some() {
            return Err(CoreError::Denied(match caller.kind {
                // It would be the certificate of a user. Its own come with its credentials.
                TargetKind::AgentIdentity => {
                    "an agent identity gets certificates for ssh here, and renews its client certificate"
                        .into()
                }
                // Else whoever is trusted would be trusted with whom it trusts.
                _ => "a user of another cluster gets certificates for ssh alone".into(),
            }));
        }
        let mut granted = Vec::with_capacity(request.requests.len());
        for id in &request.requests {
            let Some(user) = caller.local else {
                return Err(CoreError::Denied("access requests are for users of this cluster".into()));
            };
            granted.push(access_request::granted(state, user, id)?);
        }
        let beside: Vec<_> =
            granted.iter().map(|granted| (granted.roles.as_slice(), &granted.nodes)).collect();
        let access = Access::with_granted(caller.roles, caller.traits, &beside);
        if access.options().require_mfa && caller.weak {
            let reason = "your roles ask for a second factor, and this session was made without one";
            return Err(CoreError::Denied(reason.into()));
        }
        let access = access.without(lock::all_on(state, TargetKind::Login)?);
        let roles = caller.roles.iter().chain(granted.iter().flat_map(|granted| &granted.roles));
        Ok(Self {
            access,
            locked: lock::all_on(state, TargetKind::Node)?,
            roles: roles.map(|role| role.name.to_string()).collect(),
            ends_at_ms: granted.iter().map(|granted| granted.ends_at_ms).min().unwrap_or(UnixMillis::MAX),
        })
    }

    /// The logins that are allowed on a node. An ingest has none, nor a node that is locked.
    fn logins_on(
        &self,
        state: &mut (impl Read + ?Sized),
        id: &AgentId,
        node: &NodeRow,
    ) -> Result<BTreeSet<String>, CoreError> {
        if node.kind() != NodeKind::Ssh || self.locked.contains(id.as_str()) {
            return Ok(BTreeSet::new());
        }
        let agent_labels = node::agent_labels(state, id)?;
        Ok(self.access.logins_on(id.as_str(), &labels::effective(&agent_labels, &node.admin_labels)))
    }
}

/// Unix seconds: a minute back, to the end by role and wish, and the latest end that there can be, whichever comes first.
fn lifetime(
    now: UnixMillis,
    latest: UnixMillis,
    options: &Options,
    wanted: Option<Duration>,
) -> Result<std::ops::Range<u64>, CoreError> {
    let ttl = wanted.map_or(options.max_ttl, |wanted| wanted.min(options.max_ttl));
    let ttl = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
    let end = now.saturating_add(ttl).min(latest) / 1000;
    if end <= now / 1000 {
        return Err(CoreError::Unauthenticated(
            "the session, or the access request, is about to end: log in again",
        ));
    }
    Ok((now / 1000).saturating_sub(BACKDATE_SECONDS)..end)
}

fn record(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    caller: &Subject<'_>,
    certificates: &[UserCertSpec],
    grant: &Grant,
    (expires_at_ms, requests): (UnixMillis, String),
) {
    let joined = |parts: &mut dyn Iterator<Item = String>| parts.collect::<Vec<_>>().join(",");
    let fields = [
        ("session", caller.session.to_owned()),
        ("logins", joined(&mut grant.logins.iter().cloned())),
        ("principals", joined(&mut grant.principals.iter().cloned())),
        ("serials", joined(&mut certificates.iter().map(|spec| spec.serial.to_string()))),
        ("keys", joined(&mut certificates.iter().map(|spec| spec.public_key.fingerprint()))),
        ("expires_at_ms", expires_at_ms.to_string()),
        ("access_requests", requests),
    ];
    let target = match caller.kind {
        TargetKind::AgentIdentity => caller.principal.clone(),
        _ => format!("user:{}", caller.name),
    };
    audit::append(tx, context, EventType::UserCertIssue, target, &fields);
}

#[cfg(test)]
#[path = "issue_tests.rs"]
mod tests;
