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

mod certs;
mod request;

use store_txn::{Read, ReadExt, Transaction, TransactionExt, UnixMillis};

pub(crate) use self::certs::BACKDATE_SECONDS;
use self::certs::issue;
pub use self::{certs::HostCerts, request::HostCertRequest};
use crate::{
    Caller, Context, CoreError,
    audit::EventType,
    lock,
    names::{AgentId, TokenName},
    principal::{Principal, PrincipalPattern},
    secret::SecretDigest,
    tables::{
        AgentLabelsKey, IngestKey, IngestRow, JoinKey, JoinRow, NodeKey, NodeKind, NodeRow, PrincipalKey,
        TargetKind, TokenKey, TokenRow, TokenUseKey, TokenUseRow,
    },
    token,
    verdict::{Refusal, Stop, Verdict, audited},
};

/// Life of an agent's certificates: 30 days.
pub const HOST_CERT_TTL_MS: UnixMillis = 30 * 24 * 3600 * 1000;

/// Decides on an agent's certificates: with a token's secret for a join, of which `fresh` becomes the id if it is a new
/// one, without for a renewal by the agent's own certificate. A refusal is audited.
///
/// # Errors
/// [`CoreError::Unauthenticated`] with neither; [`CoreError::NotRegistered`] for a renewal by who is not in the registry;
/// [`CoreError::Invalid`]; [`CoreError::Storage`].
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
        (None, Caller::Unregistered { .. }) => Err(CoreError::NotRegistered.into()),
        (
            None,
            Caller::Anonymous
            | Caller::Init
            | Caller::Cluster
            | Caller::User(_)
            | Caller::Remote(_)
            | Caller::AgentIdentity(_),
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
    join_by(tx, context, name, token, request, fresh)
}

/// Joins by a token that the caller may use.
pub(crate) fn join_by(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    name: TokenName,
    token: TokenRow,
    request: &HostCertRequest,
    fresh: &AgentId,
) -> Result<HostCerts, Stop> {
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
    match lock::reason(lock::check(state, TargetKind::Node, id.as_str()))? {
        Some(reason) => {
            let answer = CoreError::Locked(reason.clone());
            Err(Stop::Refused(Refusal { answer, reason, target: target.into() }))
        }
        None => Ok(()),
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

/// As the audit log names it.
pub(crate) fn target(kind: NodeKind, id: &AgentId) -> String {
    if kind == NodeKind::Ingest { format!("ingest:{id}") } else { format!("agent:{id}") }
}

#[cfg(test)]
#[path = "join_tests.rs"]
mod tests;
