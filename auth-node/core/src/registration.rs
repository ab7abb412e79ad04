//! Registration: what completes a join. An agent that has certificates comes back with them, and is in the registry from
//! then on.

use store_txn::{ReadExt, Transaction, TransactionExt};

use crate::{
    Caller, Context, CoreError,
    audit::{self, EventType},
    cluster,
    join::{self, put_node, target},
    names::AgentId,
    presence::{self, Report},
    secret::SecretDigest,
    tables::{JoinKey, NodeKey, NodeKind, NodeRow},
    token,
    verdict::{Stop, Verdict, audited},
};

/// An agent that is in the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registered {
    /// Its id.
    pub agent_id: AgentId,
    /// Name of the cluster.
    pub cluster_name: String,
}

/// Enters the calling agent in the registry, against the token that its certificates were issued for, or another one
/// that goes on with its join. An agent that is in it already is told so again, and its report counts. A refusal is
/// audited.
///
/// # Errors
/// [`CoreError::Unauthenticated`] without an agent's certificate; [`CoreError::Invalid`] for a report without an
/// address; [`CoreError::Storage`].
pub fn register(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    secret: SecretDigest,
    report: &Report,
) -> Result<Verdict<Registered>, CoreError> {
    check_address(report)?;
    let decision = enter(tx, context, secret, report);
    audited(tx, context, EventType::AgentJoinDenied, decision)
}

/// Whoever registers says where it is reached.
pub(crate) fn check_address(report: &Report) -> Result<(), CoreError> {
    let missing = || CoreError::invalid("address", "host:port where the service is reached");
    report.address().map(drop).ok_or_else(missing)
}

fn enter(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    secret: SecretDigest,
    report: &Report,
) -> Result<Registered, Stop> {
    let cluster_name = cluster::get(tx)?.row.name;
    let (id, node) = match &context.caller {
        Caller::Agent { id, node } | Caller::Ingest { id, node } => (id, node.as_ref().clone()),
        Caller::Unregistered { id, kind, key_digest } => {
            let node = finished(tx, id, *kind, key_digest, secret)?;
            enroll(tx, context, id, &node, report, &[]);
            (id, node)
        }
        Caller::Anonymous
        | Caller::Init
        | Caller::Cluster
        | Caller::User(_)
        | Caller::Remote(_)
        | Caller::AgentIdentity(_) => {
            let reason = "show the client certificate that GenerateHostCerts issued";
            return Err(CoreError::Unauthenticated(reason).into());
        }
    };
    presence::put(tx, id, &node, report)?;
    Ok(Registered { agent_id: id.clone(), cluster_name })
}

/// Enters the agent whose join is finished. `more` is for the audit log.
fn enroll(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    id: &AgentId,
    node: &NodeRow,
    report: &Report,
    more: &[(&str, String)],
) {
    put_node(tx, id, node);
    tx.delete(&JoinKey(id.clone()));
    let fields = [
        ("token", node.token.clone()),
        ("hostname", node.hostname.clone()),
        ("address", report.address().unwrap_or_default().to_owned()),
    ];
    audit::append(
        tx,
        context,
        EventType::AgentJoin,
        target(node.kind(), id),
        &[fields.as_slice(), more].concat(),
    );
}

/// Enters an agent that has just been given certificates by its join, against nothing more. One that is in the registry
/// is told so again, and its report does not count: whoever joins has not shown that it has the agent's key. `more` is for the
/// audit log.
pub(crate) fn complete(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    id: &AgentId,
    report: &Report,
    more: &[(&str, String)],
) -> Result<Registered, CoreError> {
    let cluster_name = cluster::get(tx)?.row.name;
    match join::unfinished(tx, id)? {
        Some(node) => {
            let node = NodeRow { registered_at_ms: tx.now(), ..node };
            enroll(tx, context, id, &node, report, more);
            presence::put(tx, id, &node, report)?;
        }
        None if tx.get(&NodeKey(id.clone()))?.is_none() => {
            return Err(CoreError::Internal(format!("agent {id} has certificates and no row")));
        }
        None => {}
    }
    Ok(Registered { agent_id: id.clone(), cluster_name })
}

/// The node that a join becomes, if the token is good and the join is this agent's.
fn finished(
    tx: &mut (impl Transaction + ?Sized),
    id: &AgentId,
    kind: NodeKind,
    key_digest: &[u8; 32],
    secret: SecretDigest,
) -> Result<NodeRow, Stop> {
    let (name, token) = token::find(tx, secret)?;
    let node = join::unfinished(tx, id)?;
    let Some(node) = node.filter(|node| node.kind() == kind && node.key_digest == key_digest) else {
        let reason = "this certificate is of no join that waits to be registered: the agent has left since";
        return Err(Stop::denied(target(kind, id), reason));
    };
    let node = join::adopt(tx, id, node, &name, token)?;
    Ok(NodeRow { registered_at_ms: tx.now(), ..node })
}

#[cfg(test)]
#[path = "registration_tests.rs"]
mod tests;
