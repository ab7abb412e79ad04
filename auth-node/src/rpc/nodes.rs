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
    use std::{
        collections::BTreeMap,
        time::{Duration, Instant},
    };

    use auth_core::{
        CoreError,
        tables::{AgentLabelsKey, AgentLabelsRow, NodeKey, NodeRow, PresenceKey},
    };
    use store_txn::TransactionExt as _;

    use super::*;
    use crate::rpc::testing::{self, with};

    const ENDS: u64 = u64::MAX;

    fn id(number: u32) -> AgentId {
        AgentId::parse("id", &format!("{number:08}-0000-4000-8000-000000000000")).unwrap()
    }

    /// Registers nodes with these numbers; one in a thousand is in the rack `a`.
    async fn add(node: &testing::Node, numbers: impl Iterator<Item = u32>) {
        let numbers: Vec<u32> = numbers.collect();
        for some in numbers.chunks(2000) {
            let some = some.to_vec();
            let put = node.service.store.transact(move |tx| {
                for &number in &some {
                    let row = NodeRow {
                        kind: NodeKind::Ssh.into(),
                        hostname: format!("host-{number}.example.org"),
                        expires_at_ms: ENDS,
                        ..NodeRow::default()
                    };
                    let rack = if number.is_multiple_of(1000) { "a" } else { "b" };
                    let labels = BTreeMap::from([("rack".to_owned(), rack.to_owned())]);
                    let seen =
                        PresenceRow { last_seen_ms: tx.now(), expires_at_ms: ENDS, ..Default::default() };
                    tx.put(&NodeKey(id(number)), &row);
                    tx.put(&AgentLabelsKey(id(number)), &AgentLabelsRow { labels, expires_at_ms: ENDS });
                    tx.put(&PresenceKey(id(number)), &seen);
                }
                Ok::<_, CoreError>(())
            });
            put.await.unwrap();
        }
    }

    async fn remove(node: &testing::Node, number: u32) {
        let gone = node.service.store.transact(move |tx| {
            tx.delete(&NodeKey(id(number)));
            tx.delete(&AgentLabelsKey(id(number)));
            tx.delete(&PresenceKey(id(number)));
            Ok::<_, CoreError>(())
        });
        gone.await.unwrap();
    }

    /// Far more nodes than a page holds, and than one call looks at.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_long_list_has_every_node_once_while_others_come_and_go() {
        const NODES: u32 = 20_000;
        const PAGE: u32 = 1000;
        // One page reads a thousandth of what there may be; this is for a machine that is busy.
        const LONGEST: Duration = Duration::from_secs(5);
        let node = testing::Node::start().await;
        // Every tenth number is left to those that come.
        add(&node, (0..NODES).filter(|number| number % 10 != 9)).await;
        let call = with(&node.boss().await, "ListNodes");
        let page = async |request: v1::ListNodesRequest| {
            let asked = Instant::now();
            let reply = list(&node.service, &call, request).await.unwrap();
            assert!(asked.elapsed() < LONGEST, "{:?}", asked.elapsed());
            let told =
                reply.nodes.into_iter().filter_map(|entry| entry.node).inspect(|node| assert!(node.online));
            let ids: Vec<_> = told.map(|node| AgentId::parse("id", &node.agent_id).unwrap()).collect();
            (ids, reply.next_page_token)
        };
        let (mut found, mut token, mut step) = (Vec::new(), String::new(), 0);
        loop {
            let request = v1::ListNodesRequest { page_size: PAGE, page_token: token, ..Default::default() };
            let (ids, next) = page(request).await;
            assert!(ids.len() <= PAGE as usize);
            found.extend(ids);
            if next.is_empty() {
                break;
            }
            token = next;
            // One comes and one goes where the list has been, and one each where it is going.
            let (behind, ahead) = (step * 10, NODES - 1000 + step * 10);
            add(&node, [behind + 9, ahead + 9].into_iter()).await;
            for number in [behind, ahead] {
                remove(&node, number).await;
            }
            step += 1;
        }
        assert!(found.is_sorted_by(|one, next| one < next), "out of order, or twice");
        let steps = 0..step;
        let gone_before = |number: u32| steps.clone().any(|step| number == NODES - 1000 + step * 10);
        let came_ahead = |number: u32| steps.clone().any(|step| number == NODES - 1000 + step * 10 + 9);
        let wanted = (0..NODES).filter(|&number| match number % 10 {
            9 => came_ahead(number),
            _ => !gone_before(number),
        });
        assert_eq!(found, wanted.map(id).collect::<Vec<_>>());

        // Few match: pages may be short, and none reads all rows to fill itself.
        let (mut found, mut token, mut pages) = (Vec::new(), String::new(), 0);
        loop {
            let labels = [("rack".to_owned(), "a".to_owned())].into();
            let request = v1::ListNodesRequest { labels, page_token: token, ..Default::default() };
            let (ids, next) = page(request).await;
            (pages, token) = (pages + 1, next);
            found.extend(ids);
            if token.is_empty() {
                break;
            }
        }
        let wanted: Vec<_> =
            (0..NODES).step_by(1000).filter(|&number| number != 0 && !gone_before(number)).collect();
        assert_eq!(found, wanted.into_iter().map(id).collect::<Vec<_>>());
        assert!(pages >= 4, "{pages} pages");
    }

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
