//! Certificates of agents: against a join token for a join, by the agent's own certificate for a renewal. What makes a
//! join complete is `registration`.
//!
//! A join is a token and a TLS key. Asking again with both, and with the same SSH key, is the same join: it gets the
//! same agent id, is counted once, and can be for no other names. So whoever knows only the token and the public key
//! of a joiner gets nothing that is of use without the joiner's private keys. A renewal keeps the TLS key, by which the
//! agent is known: an agent that wants another one leaves and joins again.
//!
//! A join that broke off before it was registered outlives its token, because certificates for its names do. Another
//! token goes on with it, for the same keys: by the rules of a new join, and as one use of that token.
//!
//! A name is held from the first certificate for it to the end of the last one, whether its holder has registered or
//! not, unless the holder leaves.

use mezite_pki::{
    identity::Identity,
    ssh::{HostCertSpec, SshPublicKey},
    x509::{LeafSpec, check_public_key},
};
use sha2::{Digest, Sha256};
use store_txn::{Read, ReadExt, Transaction, TransactionExt, UnixMillis};

use crate::{
    Caller, Context, CoreError,
    audit::{self, EventType},
    ca::{self, ActiveCa},
    lock,
    names::{AgentId, TokenName},
    principal::{Principal, PrincipalPattern},
    revocation,
    secret::SecretDigest,
    tables::{
        AgentLabelsKey, CaKind, IngestKey, IngestRow, IssuedRow, JoinKey, JoinRow, NodeKey, NodeKind,
        NodeRow, PrincipalKey, PrincipalRow, TargetKind, TokenKey, TokenRow, TokenUseKey, TokenUseRow,
    },
    token,
    trust::{self, TrustBundle},
    verdict::{Refusal, Stop, Verdict, audited},
};

/// Life of an agent's certificates: 30 days.
pub const HOST_CERT_TTL_MS: UnixMillis = 30 * 24 * 3600 * 1000;
/// Certificates are good from so long before they are issued, in seconds, for clocks that are behind.
pub(crate) const BACKDATE_SECONDS: u64 = 60;
/// Most principals beside the hostname.
const MAX_ADDITIONAL: usize = 32;

/// Certificates that an agent asks for, checked.
#[derive(Debug, Clone)]
pub struct HostCertRequest {
    ssh_public_key: Option<SshPublicKey>,
    tls_public_key: Vec<u8>,
    key_digest: [u8; 32],
    /// The hostname first; no name twice.
    principals: Vec<Principal>,
    serial: u64,
}

impl HostCertRequest {
    /// Reads a request: an OpenSSH public key line (empty: none), a DER SubjectPublicKeyInfo, a DNS name, and at most
    /// 32 further names and addresses. `serial` is random.
    ///
    /// # Errors
    /// [`CoreError::Invalid`].
    pub fn new(
        ssh_public_key: &str,
        tls_public_key: Vec<u8>,
        hostname: &str,
        additional: &[String],
        serial: u64,
    ) -> Result<Self, CoreError> {
        let ssh_public_key = match ssh_public_key {
            "" => None,
            line => Some(SshPublicKey::parse(line).map_err(CoreError::pki("ssh_public_key"))?),
        };
        check_public_key(&tls_public_key).map_err(CoreError::pki("tls_public_key"))?;
        if additional.len() > MAX_ADDITIONAL {
            return Err(CoreError::invalid("additional_principals", format!("at most {MAX_ADDITIONAL}")));
        }
        let mut principals = vec![Principal::parse_dns("hostname", hostname)?];
        for (index, text) in additional.iter().enumerate() {
            let principal = Principal::parse(&format!("additional_principals[{index}]"), text)?;
            if !principals.contains(&principal) {
                principals.push(principal);
            }
        }
        let key_digest = Sha256::digest(&tls_public_key).into();
        Ok(Self { ssh_public_key, tls_public_key, key_digest, principals, serial })
    }

    fn hostname(&self) -> String {
        self.principals.first().map(Principal::to_string).unwrap_or_default()
    }

    fn names(&self) -> Vec<String> {
        self.principals.iter().map(Principal::to_string).collect()
    }

    fn ssh_key_digest(&self) -> Vec<u8> {
        let digest = |key: &SshPublicKey| Sha256::digest(key.line().as_bytes()).to_vec();
        self.ssh_public_key.as_ref().map(digest).unwrap_or_default()
    }
}

/// What is to be signed for an agent, once the transaction has committed.
#[derive(Debug, Clone)]
pub struct HostCerts {
    /// The agent's id.
    pub agent_id: AgentId,
    /// SSH host certificate; an ingest may do without.
    pub ssh: Option<HostCertSpec>,
    /// The agent's identity.
    pub tls: LeafSpec,
    /// Signs the SSH certificate.
    pub host_ca: ActiveCa,
    /// Signs the identity.
    pub tls_ca: ActiveCa,
    /// What the agent trusts.
    pub trust: TrustBundle,
    /// When the certificates end.
    pub expires_at_ms: UnixMillis,
}

/// Decides on an agent's certificates: with a token's secret for a join, of which `fresh` becomes the id if it is a new
/// one, without for a renewal by the agent's own certificate. A refusal is audited.
///
/// # Errors
/// [`CoreError::Unauthenticated`] with neither; [`CoreError::Invalid`]; [`CoreError::Storage`].
pub fn certify(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    secret: Option<SecretDigest>,
    request: &HostCertRequest,
    fresh: &AgentId,
) -> Result<Verdict<HostCerts>, CoreError> {
    let decision = match (secret, &context.caller) {
        (Some(secret), _) => join(tx, context, secret, request, fresh),
        (None, Caller::Agent { id, node } | Caller::Ingest { id, node }) => {
            renew(tx, context, id, node.as_ref().clone(), request)
        }
        (
            None,
            Caller::Anonymous
            | Caller::Init
            | Caller::Cluster
            | Caller::User(_)
            | Caller::Remote(_)
            | Caller::Unregistered { .. },
        ) => {
            let reason = "give a join token, or show the client certificate of an agent that has registered";
            Err(CoreError::Unauthenticated(reason).into())
        }
    };
    audited(tx, context, EventType::AgentJoinDenied, decision)
}

/// Where an agent stands.
enum Place {
    /// It has certificates, by a join.
    Joining,
    /// It has registered.
    Registered,
}

fn join(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    secret: SecretDigest,
    request: &HostCertRequest,
    fresh: &AgentId,
) -> Result<HostCerts, Stop> {
    let (name, token) = token::find(tx, secret)?;
    let target = format!("token:{name}");
    check_ssh_key(token.kind(), request)?;
    check_allowed(&target, &token.allowed_principals, &request.principals)?;
    let until = tx.now().saturating_add(HOST_CERT_TTL_MS);
    let known = match earlier(tx, &name, &token, request)? {
        Some(known) => Some(known),
        None => broken_off(tx, request)?,
    };
    let (id, kind) = match known {
        Some((id, place, node)) => {
            check_unlocked(tx, &target, &id)?;
            check_same(&target, &node, request)?;
            check_free(tx, &target, &id, request)?;
            let node = match place {
                Place::Joining => adopt(tx, &id, node, &name, token)?,
                Place::Registered => node,
            };
            let kind = node.kind();
            extend(tx, &id, place, NodeRow { expires_at_ms: until, ..node })?;
            (id, kind)
        }
        None => {
            token::check_unused(&name, &token)?;
            check_free(tx, &target, fresh, request)?;
            let kind = token.kind();
            begin(tx, fresh, &name, token, request, until);
            (fresh.clone(), kind)
        }
    };
    issue(tx, context, &id, kind, request, &target)
}

/// The agent that joined with this token and TLS key before. Nothing is left of one whose certificates have ended, or
/// that left.
fn earlier(
    tx: &mut (impl Transaction + ?Sized),
    name: &TokenName,
    token: &TokenRow,
    request: &HostCertRequest,
) -> Result<Option<(AgentId, Place, NodeRow)>, Stop> {
    let Some(id) = user_of(tx, name, token, &request.key_digest)? else { return Ok(None) };
    if let Some(node) = tx.get(&NodeKey(id.clone()))? {
        return Ok(Some((id, Place::Registered, node.row)));
    }
    Ok(unfinished(tx, &id)?.map(|node| (id, Place::Joining, node)))
}

/// The join of this TLS key and hostname that another token began, and that was not registered.
fn broken_off(
    tx: &mut (impl Transaction + ?Sized),
    request: &HostCertRequest,
) -> Result<Option<(AgentId, Place, NodeRow)>, Stop> {
    let Some(holder) = tx.get(&PrincipalKey(request.hostname()))? else { return Ok(None) };
    let id = AgentId::parse("principal", &holder.row.agent_id)?;
    let node = unfinished(tx, &id)?.filter(|node| node.key_digest == request.key_digest);
    Ok(node.map(|node| (id, Place::Joining, node)))
}

/// The node that an agent becomes, if it has not registered yet.
pub(crate) fn unfinished(
    state: &mut (impl Read + ?Sized),
    id: &AgentId,
) -> Result<Option<NodeRow>, CoreError> {
    Ok(state.get(&JoinKey(id.clone()))?.and_then(|join| join.row.node))
}

/// Lets a token go on with a join that is not registered. For the token that it was begun with there is nothing to do;
/// another one must let in such an agent, with all of its names, and is used once. From then on the join is that
/// token's, and so are the labels.
///
/// Whoever asks has proved to be the joiner, or gets nothing that is of use to another.
pub(crate) fn adopt(
    tx: &mut (impl Transaction + ?Sized),
    id: &AgentId,
    node: NodeRow,
    name: &TokenName,
    token: TokenRow,
) -> Result<NodeRow, Stop> {
    let Ok(key_digest) = <[u8; 32]>::try_from(node.key_digest.as_slice()) else {
        return Err(Stop::denied(target(node.kind(), id), "this join has no key"));
    };
    if user_of(tx, name, &token, &key_digest)?.as_ref() == Some(id) {
        return Ok(node);
    }
    let by = format!("token:{name}");
    if node.kind() != token.kind() {
        let reason =
            format!("this agent began to join as {}, and the token is for another kind", node.kind().name());
        return Err(Stop::denied(by, reason));
    }
    let principal = |name: &String| Principal::parse("principals", name);
    let principals = node.principals.iter().map(principal).collect::<Result<Vec<_>, _>>()?;
    check_allowed(&by, &token.allowed_principals, &principals)?;
    token::check_unused(name, &token)?;
    drop_use(tx, id, &node)?;
    let node = NodeRow { admin_labels: token.labels.clone(), token: name.as_str().to_owned(), ..node };
    use_token(tx, id, name, token, key_digest);
    put_join(tx, id, &node);
    Ok(node)
}

/// Forgets by which token an agent joined: the same token and key are no longer the same join.
pub(crate) fn drop_use(
    tx: &mut (impl Transaction + ?Sized),
    id: &AgentId,
    node: &NodeRow,
) -> Result<(), CoreError> {
    if let (Ok(token), Ok(key_digest)) =
        (TokenName::parse("token", &node.token), node.key_digest.as_slice().try_into())
    {
        let used = TokenUseKey { token, key_digest };
        if tx.get(&used)?.is_some_and(|stored| stored.row.agent_id == id.as_str()) {
            tx.delete(&used);
        }
    }
    Ok(())
}

/// Who used a token with a TLS key.
fn user_of(
    tx: &mut (impl Transaction + ?Sized),
    name: &TokenName,
    token: &TokenRow,
    key_digest: &[u8; 32],
) -> Result<Option<AgentId>, CoreError> {
    let used = tx.get(&TokenUseKey { token: name.clone(), key_digest: *key_digest })?;
    let of_this_token = used.filter(|used| used.row.secret_digest == token.secret_digest);
    of_this_token.map(|used| AgentId::parse("token use", &used.row.agent_id)).transpose()
}

/// Makes a new join: one use of the token.
fn begin(
    tx: &mut (impl Transaction + ?Sized),
    id: &AgentId,
    name: &TokenName,
    token: TokenRow,
    request: &HostCertRequest,
    until: UnixMillis,
) {
    let node = NodeRow {
        kind: token.kind,
        hostname: request.hostname(),
        principals: request.names(),
        admin_labels: token.labels.clone(),
        registered_at_ms: 0,
        key_digest: request.key_digest.to_vec(),
        token: name.as_str().to_owned(),
        ssh_key_digest: request.ssh_key_digest(),
        expires_at_ms: until,
    };
    put_join(tx, id, &node);
    use_token(tx, id, name, token, request.key_digest);
}

/// Counts a join, and remembers whose it is.
fn use_token(
    tx: &mut (impl Transaction + ?Sized),
    id: &AgentId,
    name: &TokenName,
    mut token: TokenRow,
    key_digest: [u8; 32],
) {
    token.uses = token.uses.saturating_add(1);
    let used = TokenUseRow {
        agent_id: id.as_str().to_owned(),
        expires_at_ms: token.expires_at_ms,
        secret_digest: token.secret_digest.clone(),
    };
    tx.put(&TokenUseKey { token: name.clone(), key_digest }, &used);
    tx.put(&TokenKey(name.clone()), &token);
}

/// Writes the row of an agent that has not registered yet.
fn put_join(tx: &mut (impl Transaction + ?Sized), id: &AgentId, node: &NodeRow) {
    let (token, expires_at_ms) = (node.token.clone(), node.expires_at_ms);
    tx.put(&JoinKey(id.clone()), &JoinRow { token, node: Some(node.clone()), expires_at_ms });
}

/// Keeps an agent to the end of its new certificates.
fn extend(
    tx: &mut (impl Transaction + ?Sized),
    id: &AgentId,
    place: Place,
    node: NodeRow,
) -> Result<(), CoreError> {
    match place {
        Place::Joining => put_join(tx, id, &node),
        Place::Registered => {
            let labels = AgentLabelsKey(id.clone());
            if let Some(mut stored) = tx.get(&labels)? {
                stored.row.expires_at_ms = node.expires_at_ms;
                tx.put(&labels, &stored.row);
            }
            put_node(tx, id, &node);
        }
    }
    Ok(())
}

/// Writes the row of an agent that has registered.
pub(crate) fn put_node(tx: &mut (impl Transaction + ?Sized), id: &AgentId, node: &NodeRow) {
    tx.put(&NodeKey(id.clone()), node);
    if node.kind() == NodeKind::Ingest {
        tx.put(&IngestKey(id.clone()), &IngestRow { expires_at_ms: node.expires_at_ms });
    }
}

fn renew(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    id: &AgentId,
    node: NodeRow,
    request: &HostCertRequest,
) -> Result<HostCerts, Stop> {
    let kind = node.kind();
    check_ssh_key(kind, request)?;
    if node.key_digest != request.key_digest {
        let reason = "a renewal keeps the key of the client certificate: to change it, leave and join again";
        return Err(CoreError::invalid("tls_public_key", reason).into());
    }
    let target = target(kind, id);
    check_names(&target, &node, request)?;
    check_free(tx, &target, id, request)?;
    // The holder of the TLS key has proved to be the agent, so its SSH key may be another one from now on.
    let ssh_key_digest = match &request.ssh_public_key {
        Some(_) => request.ssh_key_digest(),
        None => node.ssh_key_digest.clone(),
    };
    let expires_at_ms = tx.now().saturating_add(HOST_CERT_TTL_MS);
    extend(tx, id, Place::Registered, NodeRow { ssh_key_digest, expires_at_ms, ..node })?;
    issue(tx, context, id, kind, request, "renewal")
}

fn check_ssh_key(kind: NodeKind, request: &HostCertRequest) -> Result<(), CoreError> {
    if kind == NodeKind::Ssh && request.ssh_public_key.is_none() {
        return Err(CoreError::invalid("ssh_public_key", "an SSH node needs a certificate for its host key"));
    }
    Ok(())
}

/// Refuses names that the token does not allow, and those that no token does.
fn check_allowed(target: &str, allowed: &[String], principals: &[Principal]) -> Result<(), Stop> {
    let pattern = |text: &String| PrincipalPattern::parse("allowed_principals", text);
    let allowed = allowed.iter().map(pattern).collect::<Result<Vec<_>, _>>()?;
    for principal in principals {
        if principal.is_internal() {
            return Err(Stop::denied(target, format!("{principal} is kept for the cluster's own services")));
        }
        if principal.is_loopback() && !allowed.iter().any(|pattern| pattern.names(principal)) {
            let reason = format!("{principal} means every host: a token must allow it by its exact name");
            return Err(Stop::denied(target, reason));
        }
        if !allowed.is_empty() && !allowed.iter().any(|pattern| pattern.allows(principal)) {
            return Err(Stop::denied(target, format!("the join token does not allow the name {principal}")));
        }
    }
    Ok(())
}

/// Refuses to go on with a join that was begun by somebody with other keys, or for other names.
fn check_same(target: &str, node: &NodeRow, request: &HostCertRequest) -> Result<(), Stop> {
    if node.ssh_key_digest != request.ssh_key_digest() {
        let reason = "this join was begun with another SSH key: use that one, or make new keys to join anew";
        return Err(Stop::denied(target, reason));
    }
    check_names(target, node, request)
}

fn check_unlocked(state: &mut (impl Read + ?Sized), target: &str, id: &AgentId) -> Result<(), Stop> {
    match lock::check(state, TargetKind::Node, id.as_str()) {
        Err(CoreError::Locked(reason)) => Err(Stop::Refused(Refusal {
            answer: CoreError::Locked(reason.clone()),
            reason,
            target: target.into(),
        })),
        checked => Ok(checked?),
    }
}

/// Refuses names that the agent does not have.
fn check_names(target: &str, node: &NodeRow, request: &HostCertRequest) -> Result<(), Stop> {
    let other = request.names().into_iter().find(|name| !node.principals.contains(name));
    let other = other.or_else(|| Some(request.hostname()).filter(|name| *name != node.hostname));
    let Some(other) = other else { return Ok(()) };
    let reason = format!(
        "{other}: this agent joined as {} for {}; to change its names, leave and join again",
        node.hostname,
        node.principals.join(", ")
    );
    Err(Stop::denied(target, reason))
}

/// Refuses names that another agent holds.
fn check_free(
    state: &mut (impl Read + ?Sized),
    target: &str,
    id: &AgentId,
    request: &HostCertRequest,
) -> Result<(), Stop> {
    for name in request.names() {
        let holder = state.get(&PrincipalKey(name.clone()))?.map(|holder| holder.row.agent_id);
        if let Some(holder) = holder.filter(|holder| holder != id.as_str()) {
            // Who holds it is for the audit log: an admin can remove that agent.
            let answer = CoreError::Denied(format!("the name {name} belongs to another agent"));
            let reason = format!("the name {name} belongs to agent {holder}");
            return Err(Stop::Refused(Refusal { answer, reason, target: target.to_owned() }));
        }
    }
    Ok(())
}

/// Says what to sign, and holds its names until it ends.
fn issue(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    id: &AgentId,
    kind: NodeKind,
    request: &HostCertRequest,
    by: &str,
) -> Result<HostCerts, Stop> {
    let expires_at_ms = tx.now().saturating_add(HOST_CERT_TTL_MS);
    let names = request.names();
    for name in &names {
        let row = PrincipalRow { agent_id: id.as_str().to_owned(), expires_at_ms };
        tx.put(&PrincipalKey(name.clone()), &row);
    }
    let fields = [
        ("by", by.to_owned()),
        ("principals", names.join(",")),
        ("serial", request.serial.to_string()),
        ("expires_at_ms", expires_at_ms.to_string()),
        ("tls_key_sha256", hex::encode(request.key_digest)),
    ];
    audit::append(tx, context, EventType::HostCertIssue, target(kind, id), &fields);
    let issued = IssuedRow {
        kind: TargetKind::Node.into(),
        holder: id.as_str().to_owned(),
        expires_at_ms,
        ..IssuedRow::default()
    };
    if request.ssh_public_key.is_some() {
        revocation::note(tx, request.serial, &issued);
    }

    let trust = trust::bundle(tx)?;
    let lifetime = (tx.now() / 1000).saturating_sub(BACKDATE_SECONDS)..expires_at_ms / 1000;
    let ssh = request.ssh_public_key.clone().map(|public_key| HostCertSpec {
        public_key,
        key_id: id.as_str().to_owned(),
        principals: names,
        serial: request.serial,
        valid_after: lifetime.start,
        valid_before: lifetime.end,
    });
    let tls = leaf(id, kind, request, &trust.cluster_name, lifetime);
    // An ingest serves with its certificate; an SSH node is but a client.
    let tls_ca = match kind {
        NodeKind::Ingest => ca::active(tx, CaKind::Tls)?,
        NodeKind::Ssh | NodeKind::Unspecified => ca::for_clients(tx, CaKind::Tls)?,
    };
    let host_ca = ca::active(tx, CaKind::Host)?;
    Ok(HostCerts { agent_id: id.clone(), ssh, tls, host_ca, tls_ca, trust, expires_at_ms })
}

fn leaf(
    id: &AgentId,
    kind: NodeKind,
    request: &HostCertRequest,
    cluster: &str,
    lifetime: std::ops::Range<u64>,
) -> LeafSpec {
    let (mut dns_names, mut ip_addresses) = (Vec::new(), Vec::new());
    for principal in &request.principals {
        match principal {
            Principal::Dns(name) => dns_names.push(name.clone()),
            Principal::Ip(address) => ip_addresses.push(*address),
        }
    }
    let (cluster, holder) = (cluster.to_owned(), id.as_str().to_owned());
    let identity = if kind == NodeKind::Ingest {
        dns_names.push(format!("ingest.{cluster}.mezite.internal"));
        Identity::Ingest { cluster, id: holder.clone() }
    } else {
        Identity::Agent { cluster, id: holder.clone() }
    };
    LeafSpec {
        public_key: request.tls_public_key.clone(),
        common_name: holder,
        identity: Some(identity),
        dns_names,
        ip_addresses,
        not_before: lifetime.start,
        // The last second of the lifetime here, the first one after it in SSH's.
        not_after: lifetime.end.saturating_sub(1),
        client_auth: true,
        server_auth: true,
    }
}

/// As the audit log names it.
pub(crate) fn target(kind: NodeKind, id: &AgentId) -> String {
    if kind == NodeKind::Ingest { format!("ingest:{id}") } else { format!("agent:{id}") }
}

#[cfg(test)]
#[path = "join_tests.rs"]
mod tests;
