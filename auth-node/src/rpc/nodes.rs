//! Registered agents, as users and admins see them.

use auth_core::{
    names::AgentId,
    node::{self, AccessibleNode, Filter, Node},
    presence::PresenceTtl,
    tables::{NodeKind, PresenceRow},
};
use mezite_proto::v1;
use store_txn::Read as _;

use super::convert;
use crate::{authn::Call, error::ApiError, once::Once, service::Service};

/// Lists the nodes that the caller's roles let it see, or, for an admin, the joins that were not finished; ordered by id.
pub(crate) async fn list(
    service: &Service,
    call: &Call,
    request: v1::ListNodesRequest,
) -> Result<v1::ListNodesResponse, ApiError> {
    let ttl = service.settings.presence_ttl;
    let page = convert::page(request.page_size, &request.page_token);
    let filter = Filter { labels: request.labels, online_only: request.online_only };
    let unfinished = request.unfinished;
    let listed = service.read(call, move |view, context| match unfinished {
        true => Ok(node::unfinished(view, context, &filter, &page?)?.map(joining)),
        false => Ok(node::list(view, context, &filter, &page?, ttl)?.map(accessible)),
    });
    let page = listed.await?;
    Ok(v1::ListNodesResponse { nodes: page.items, next_page_token: convert::page_token(page.next) })
}

/// Replaces the labels that an admin gave a node.
pub(crate) async fn update(
    service: &Service,
    call: &Call,
    request: v1::UpdateNodeRequest,
) -> Result<v1::UpdateNodeResponse, ApiError> {
    let once = Once::of(call, &request);
    let (ttl, revision) = (service.settings.presence_ttl, request.revision);
    let asked = AgentId::parse("agent_id", &request.agent_id).map(|id| (id, request.admin_labels));
    let update = service.write_once(call, once, move |tx, context| {
        let (id, labels) = asked.clone()?;
        let updated = node::update_labels(tx, context, &id, labels, revision)?;
        Ok(v1::UpdateNodeResponse { node: Some(node(updated, tx.now(), ttl)) })
    });
    update.await
}

fn accessible(item: AccessibleNode) -> v1::AccessibleNode {
    let AccessibleNode { node, online, logins } = item;
    v1::AccessibleNode { node: Some(reply(node, online)), logins: logins.into_iter().collect() }
}

/// Nobody may do anything on a node that has not registered.
fn joining(node: Node) -> v1::AccessibleNode {
    v1::AccessibleNode { node: Some(reply(node, false)), logins: Vec::new() }
}

/// A node as it is told, at a time.
pub(super) fn node(node: Node, now: u64, ttl: PresenceTtl) -> v1::Node {
    let online = node.is_online(now, ttl);
    reply(node, online)
}

fn reply(node: Node, online: bool) -> v1::Node {
    let kind = match node.row.kind() {
        NodeKind::Unspecified => v1::NodeKind::Unspecified,
        NodeKind::Ssh => v1::NodeKind::Ssh,
        NodeKind::Ingest => v1::NodeKind::Ingest,
    };
    let last_seen_at = node.presence.as_ref().map(|presence| convert::timestamp(presence.last_seen_ms));
    let registered = Some(node.row.registered_at_ms).filter(|&at| at != 0);
    let registered_at = registered.map(convert::timestamp);
    let PresenceRow { address, version, load, .. } = node.presence.unwrap_or_default();
    v1::Node {
        agent_id: node.id.into(),
        kind: kind.into(),
        hostname: node.row.hostname,
        address,
        agent_labels: node.agent_labels,
        admin_labels: node.row.admin_labels,
        version,
        online,
        last_seen_at,
        registered_at,
        revision: node.revision,
        load,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use auth_core::tables::NodeRow;

    use super::*;

    #[test]
    fn a_node_is_told_with_its_last_report() {
        let presence =
            PresenceRow { last_seen_ms: 1000, address: "web1:22".into(), load: 3, ..PresenceRow::default() };
        let row = NodeRow { kind: NodeKind::Ssh.into(), hostname: "web1".into(), ..NodeRow::default() };
        let told = |presence, now| {
            let id = AgentId::from_random([1; 16]);
            let stored = Node { id, revision: 4, row: row.clone(), agent_labels: [].into(), presence };
            node(stored, now, PresenceTtl(Duration::from_secs(45)))
        };
        let online = told(Some(presence.clone()), 2000);
        assert_eq!((online.kind(), online.address.as_str(), online.load), (v1::NodeKind::Ssh, "web1:22", 3));
        assert!(online.online && online.last_seen_at == Some(convert::timestamp(1000)));
        assert!(!told(Some(presence), 46_000).online);
        let silent = told(None, 2000);
        assert!(!silent.online && silent.last_seen_at.is_none() && silent.revision == 4);
    }
}
