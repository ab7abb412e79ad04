//! Registered agents: what callers see of them, what an admin says of them, and how they go.

use std::{collections::BTreeSet, iter::Peekable};

use prost::Message as _;
use store_txn::{Read, ReadExt, Transaction, TransactionExt, Versioned};

use crate::{
    Caller, Context, CoreError,
    audit::{self, EventType},
    evaluate::Access,
    join,
    labels::{self, Labels},
    names::AgentId,
    page::{Page, PageRequest, look_through},
    presence::{self, PresenceTtl},
    revocation,
    rules::{Resource, Verb},
    tables::{
        AgentLabelsKey, IngestKey, JoinKey, JoinRow, NodeKey, NodeKind, NodeRow, PresenceKey, PresenceRow,
        PrincipalKey, TargetKind,
    },
};

/// Nodes that are read at a time.
const CHUNK: usize = 256;
/// Most ingests that are told of.
const MAX_INGESTS: usize = 1000;

impl NodeKind {
    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unspecified => "unspecified",
            Self::Ssh => "node",
            Self::Ingest => "ingest",
        }
    }
}

/// A registered agent.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Its id.
    pub id: AgentId,
    /// Revision that an admin's update names.
    pub revision: u64,
    /// What changes seldom.
    pub row: NodeRow,
    /// Labels that it reports.
    pub agent_labels: Labels,
    /// Its last report.
    pub presence: Option<PresenceRow>,
}

impl Node {
    /// Its labels: its own, and over them an admin's.
    pub fn labels(&self) -> Labels {
        labels::effective(&self.agent_labels, &self.row.admin_labels)
    }

    /// How large it is, as it is stored.
    fn bytes(&self) -> usize {
        let label = |(key, value): (&String, &String)| key.len() + value.len();
        self.row.encoded_len() + self.agent_labels.iter().map(label).sum::<usize>()
    }

    /// Whether it reported within the TTL.
    pub fn is_online(&self, now: u64, ttl: PresenceTtl) -> bool {
        self.presence.as_ref().is_some_and(|presence| ttl.is_alive(presence.last_seen_ms, now))
    }
}

/// A node, and what the caller may do there.
#[derive(Debug, Clone, PartialEq)]
pub struct AccessibleNode {
    /// The node.
    pub node: Node,
    /// Whether it reported within the TTL.
    pub online: bool,
    /// Logins that the caller's roles allow there.
    pub logins: BTreeSet<String>,
}

/// Which nodes are asked for.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only those with all of these labels.
    pub labels: Labels,
    /// Only those that are online.
    pub online_only: bool,
}

impl Filter {
    fn has_labels(&self, labels: &Labels) -> bool {
        self.labels.iter().all(|(key, value)| labels.get(key) == Some(value))
    }
}

/// A registered agent.
///
/// # Errors
/// [`CoreError::Storage`].
pub fn get(state: &mut (impl Read + ?Sized), id: &AgentId) -> Result<Option<Node>, CoreError> {
    match state.get(&NodeKey(id.clone()))? {
        Some(stored) => complete(state, id.clone(), stored).map(Some),
        None => Ok(None),
    }
}

fn complete(
    state: &mut (impl Read + ?Sized),
    id: AgentId,
    stored: Versioned<NodeRow>,
) -> Result<Node, CoreError> {
    let agent_labels = agent_labels(state, &id)?;
    let presence = presence::get(state, &id)?;
    Ok(Node { id, revision: stored.revision, row: stored.row, agent_labels, presence })
}

/// Labels that an agent reports.
pub(crate) fn agent_labels(state: &mut (impl Read + ?Sized), id: &AgentId) -> Result<Labels, CoreError> {
    Ok(state.get(&AgentLabelsKey(id.clone()))?.map(|stored| stored.row.labels).unwrap_or_default())
}

/// Nodes by id: all for an admin, and for whoever has a rule to list nodes; for others the SSH nodes on which their roles allow a login. A page may hold fewer
/// than asked for, or none, and still not be the last one.
///
/// # Errors
/// [`CoreError::Unauthenticated`] when the caller is not a user; [`CoreError::Invalid`] for a page token of another
/// list or labels out of bounds; [`CoreError::Storage`].
pub fn list(
    state: &mut (impl Read + ?Sized),
    context: &Context,
    filter: &Filter,
    page: &PageRequest,
    ttl: PresenceTtl,
) -> Result<Page<AccessibleNode>, CoreError> {
    let caller = context.caller.subject()?;
    labels::check("labels", &filter.labels)?;
    let access = Access::of(caller.roles, caller.traits);
    // Roles of a user of another cluster open no methods here, and so no more of this one.
    let sees_all = caller.holder.is_some_and(|holder| holder.may(Resource::Nodes, Verb::List));
    let now = state.now();
    let read = |after: Option<&AgentId>, most| registered(state, after, most);
    look_through(
        page,
        agent_id,
        read,
        |_, node| seen(node, &access, sees_all, filter, now, ttl),
        |found| found.node.bytes(),
    )
}

/// Nodes after an id, so many at most. Their rows in three tables are read side by side: to look up each by itself would take
/// several times as long.
fn registered(
    state: &mut (impl Read + ?Sized),
    after: Option<&AgentId>,
    most: usize,
) -> Result<Vec<(AgentId, Node)>, CoreError> {
    let rows = state.scan(after.cloned().map(NodeKey).as_ref(), most)?;
    let Some((NodeKey(last), _)) = rows.last() else { return Ok(Vec::new()) };
    let labels =
        state.scan_through(after.cloned().map(AgentLabelsKey).as_ref(), &AgentLabelsKey(last.clone()))?;
    let presences = presence::through(state, after, last)?;
    let (mut labels, mut presences) = (labels.into_iter().peekable(), presences.into_iter().peekable());
    let complete = |(NodeKey(id), stored): (NodeKey, Versioned<NodeRow>)| {
        let own = of_id(&mut labels, &id, |key| &key.0).map(|row| row.labels);
        let presence = of_id(&mut presences, &id, |key| &key.0);
        let agent_labels = own.unwrap_or_default();
        let node =
            Node { id: id.clone(), revision: stored.revision, row: stored.row, agent_labels, presence };
        (id, node)
    };
    Ok(rows.into_iter().map(complete).collect())
}

/// The row of an agent among those that come in order of their ids; those before it are passed over.
fn of_id<K, R>(
    rows: &mut Peekable<impl Iterator<Item = (K, Versioned<R>)>>,
    id: &AgentId,
    id_of: impl Fn(&K) -> &AgentId,
) -> Option<R> {
    while rows.next_if(|(key, _)| id_of(key) < id).is_some() {}
    rows.next_if(|(key, _)| id_of(key) == id).map(|(_, stored)| stored.row)
}

/// Joins that were not finished, by id, as the nodes that they would become: their agents have certificates, hold their
/// names, and have not registered.
///
/// # Errors
/// [`CoreError::Denied`] to all but admins and whoever has a rule to list nodes; [`CoreError::Unauthenticated`];
/// [`CoreError::Invalid`] for a page token of another list or labels out of bounds; [`CoreError::Storage`].
pub fn unfinished(
    state: &mut (impl Read + ?Sized),
    context: &Context,
    filter: &Filter,
    page: &PageRequest,
) -> Result<Page<Node>, CoreError> {
    if !context.caller.subject()?.holder.is_some_and(|holder| holder.may(Resource::Nodes, Verb::List)) {
        let reason = "joins that were not finished are for the role admin, or one with a rule to list nodes";
        return Err(CoreError::Denied(reason.into()));
    }
    labels::check("labels", &filter.labels)?;
    let read = |after: Option<&AgentId>, most| {
        let rows = state.scan(after.cloned().map(JoinKey).as_ref(), most)?;
        Ok(rows.into_iter().map(|(key, stored)| (key.0, stored)).collect())
    };
    look_through(
        page,
        agent_id,
        read,
        |id, stored: Versioned<JoinRow>| {
            let (agent_labels, revision) = (Labels::new(), stored.revision);
            let node = Node { id, revision, row: stored.row.node?, agent_labels, presence: None };
            Some(node).filter(|node| !filter.online_only && filter.has_labels(&node.labels()))
        },
        Node::bytes,
    )
}

/// In a page token.
fn agent_id(text: &str) -> Option<AgentId> {
    AgentId::parse("", text).ok()
}

fn seen(
    node: Node,
    access: &Access,
    sees_all: bool,
    filter: &Filter,
    now: u64,
    ttl: PresenceTtl,
) -> Option<AccessibleNode> {
    let labels = node.labels();
    let online = node.is_online(now, ttl);
    if !filter.has_labels(&labels) || (filter.online_only && !online) {
        return None;
    }
    let ssh = node.row.kind() == NodeKind::Ssh;
    let logins = if ssh { access.logins_on(node.id.as_str(), &labels) } else { BTreeSet::new() };
    (sees_all || !logins.is_empty()).then_some(AccessibleNode { node, online, logins })
}

/// Replaces the labels that an admin gave a node. Its revision is that of the commit. Roles reach nodes by their labels: so
/// certificates that name the node are revoked if its labels change. Those of a login that roles allow on every node name none. What
/// an agent says of itself revokes nothing: it could take their certificates from all who may log in there.
///
/// # Errors
/// [`CoreError::NotFound`], [`CoreError::StaleRevision`], [`CoreError::Invalid`], [`CoreError::Storage`];
/// [`CoreError::Denied`] for who is no admin and would get a login there that it does not have.
pub fn update_labels(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    id: &AgentId,
    admin_labels: Labels,
    revision: u64,
) -> Result<Node, CoreError> {
    labels::check("admin_labels", &admin_labels)?;
    let mut node = get(tx, id)?.ok_or_else(|| not_found(id))?;
    CoreError::check_revision("node", id.as_str(), revision, node.revision)?;
    let before = node.labels();
    node.row.admin_labels = admin_labels;
    gains_no_login(&context.caller, &node, &before)?;
    tx.put(&NodeKey(id.clone()), &node.row);
    if node.labels() != before {
        revocation::revoke(tx, TargetKind::NodeLabels, id.as_str());
    }
    let target = join::target(node.row.kind(), id);
    let fields = [("admin_labels", labels::shown(&node.row.admin_labels))];
    audit::append(tx, context, EventType::NodeUpdate, target, &fields);
    Ok(node)
}

/// Refuses labels by which a caller, who may give them by a rule, would give itself a login on the node: who is no admin
/// grants nothing that it does not hold.
fn gains_no_login(caller: &Caller, node: &Node, before: &Labels) -> Result<(), CoreError> {
    let caller = caller.holder()?;
    if caller.is_admin() {
        return Ok(());
    }
    let access = Access::of(caller.roles, caller.traits);
    let had = access.logins_on(node.id.as_str(), before);
    match access.logins_on(node.id.as_str(), &node.labels()).difference(&had).next() {
        Some(login) => Err(CoreError::Denied(format!(
            "with these labels you could log in there as {login}, which you could not before: that needs the role admin"
        ))),
        None => Ok(()),
    }
}

/// Removes an agent: the one that calls, or, for an admin or whoever has a rule to delete nodes, the one that is named. One whose join was not finished is
/// an agent as well. Its names are free, its certificates are revoked and no credential any more, and it comes back only
/// by a new join.
///
/// # Errors
/// [`CoreError::Denied`] for an agent that names another, or has none of its own; [`CoreError::NotFound`];
/// [`CoreError::Unauthenticated`]; [`CoreError::Storage`].
pub fn remove(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    named: Option<&AgentId>,
) -> Result<(), CoreError> {
    let id = match &context.caller {
        Caller::Agent { id, .. } | Caller::Ingest { id, .. } | Caller::Unregistered { id, .. }
            if named.is_none_or(|named| named == id) =>
        {
            id
        }
        Caller::Agent { .. } | Caller::Ingest { .. } | Caller::Unregistered { .. } => {
            return Err(CoreError::Denied("an agent removes itself alone".into()));
        }
        Caller::User(_) | Caller::AgentIdentity(_)
            if context.caller.holder()?.may(Resource::Nodes, Verb::Delete) =>
        {
            named.ok_or_else(|| CoreError::invalid("agent_id", "say which agent to remove"))?
        }
        Caller::User(_) | Caller::AgentIdentity(_) | Caller::Remote(_) => {
            let reason = "removing another agent needs the role admin, or one with a rule to delete nodes";
            return Err(CoreError::Denied(reason.into()));
        }
        Caller::Anonymous | Caller::Init | Caller::Cluster => {
            return Err(CoreError::Unauthenticated("show the client certificate of the agent that leaves"));
        }
    };
    let registered = tx.get(&NodeKey(id.clone()))?.map(|node| node.row);
    // One that has certificates and never registered holds its names as well.
    let node = match registered {
        Some(node) => Some(node),
        None => join::unfinished(tx, id)?,
    };
    let node = match &context.caller {
        Caller::Unregistered { kind, key_digest, .. } => node
            .filter(|node| node.kind() == *kind && node.key_digest == key_digest)
            .ok_or_else(|| CoreError::Denied("this agent is not registered, nor about to be".into()))?,
        _ => node.ok_or_else(|| not_found(id))?,
    };
    forget(tx, id, &node)?;
    revocation::revoke(tx, TargetKind::Node, id.as_str());
    let fields = [("hostname", node.hostname.clone()), ("principals", node.principals.join(","))];
    audit::append(tx, context, EventType::AgentLeave, join::target(node.kind(), id), &fields);
    Ok(())
}

fn forget(tx: &mut (impl Transaction + ?Sized), id: &AgentId, node: &NodeRow) -> Result<(), CoreError> {
    for name in &node.principals {
        let key = PrincipalKey(name.clone());
        if tx.get(&key)?.is_some_and(|holder| holder.row.agent_id == id.as_str()) {
            tx.delete(&key);
        }
    }
    // With the same token and keys it would otherwise be the same join again.
    join::drop_use(tx, id, node)?;
    tx.delete(&JoinKey(id.clone()));
    tx.delete(&NodeKey(id.clone()));
    tx.delete(&PresenceKey(id.clone()));
    tx.delete(&AgentLabelsKey(id.clone()));
    tx.delete(&IngestKey(id.clone()));
    Ok(())
}

fn not_found(id: &AgentId) -> CoreError {
    CoreError::NotFound { kind: "node", name: id.as_str().to_owned() }
}

/// Registered ingests: the first 1000 by their ids, dead ones among them.
///
/// # Errors
/// [`CoreError::Storage`].
pub fn ingests(state: &mut (impl Read + ?Sized)) -> Result<Vec<Node>, CoreError> {
    let mut ingests = Vec::new();
    for (key, _) in state.scan::<IngestKey>(None, MAX_INGESTS)? {
        ingests.extend(get(state, &key.0)?);
    }
    Ok(ingests)
}

/// host:port of each live ingest, those with the least work in hand first: the first 1000 of them. Dead ones, of which there may
/// be many more until their certificates end, take nobody's place.
///
/// # Errors
/// [`CoreError::Storage`].
pub fn live_ingests(state: &mut (impl Read + ?Sized), ttl: PresenceTtl) -> Result<Vec<String>, CoreError> {
    let (mut live, mut after, now) = (Vec::new(), None, state.now());
    loop {
        let rows = state.scan::<IngestKey>(after.as_ref(), CHUNK)?;
        for (IngestKey(id), _) in &rows {
            // By itself: between the ids of two ingests are those of any number of agents.
            let alive = presence::get(state, id)?.filter(|presence| ttl.is_alive(presence.last_seen_ms, now));
            let reached = alive.filter(|presence| !presence.address.is_empty());
            live.extend(reached.map(|presence| (presence.load, presence.address)));
        }
        match rows.into_iter().next_back() {
            Some((last, _)) => after = Some(last),
            None => break,
        }
    }
    live.sort_unstable();
    live.truncate(MAX_INGESTS);
    Ok(live.into_iter().map(|(_, address)| address).collect())
}

/// How many SSH nodes there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Registered.
    pub total: u32,
    /// Of these, online.
    pub online: u32,
}

/// Counts the SSH nodes.
///
/// # Errors
/// [`CoreError::Storage`].
pub fn count(state: &mut (impl Read + ?Sized), ttl: PresenceTtl) -> Result<Counts, CoreError> {
    let (mut counts, mut after, now) = (Counts::default(), None, state.now());
    loop {
        let rows = state.scan(after.clone().map(NodeKey).as_ref(), CHUNK)?;
        let Some((NodeKey(last), _)) = rows.last() else { return Ok(counts) };
        let mut presences = presence::through(state, after.as_ref(), last)?.into_iter().peekable();
        after = Some(last.clone());
        for (NodeKey(id), _) in rows.iter().filter(|(_, stored)| stored.row.kind() == NodeKind::Ssh) {
            let presence = of_id(&mut presences, id, |key| &key.0);
            let online = presence.is_some_and(|presence| ttl.is_alive(presence.last_seen_ms, now));
            counts.total = counts.total.saturating_add(1);
            counts.online = counts.online.saturating_add(u32::from(online));
        }
    }
}

#[cfg(test)]
#[path = "node_tests.rs"]
mod tests;
