use std::time::Duration;

use auth_core::{
    Credential,
    names::AgentId,
    roster::PAGE,
    tables::{NodeKey, NodeKind, NodeRow},
};
use store_txn::{Transaction as _, TransactionExt as _};
use tonic::{Code, Status};

use super::*;
use crate::{
    access::PER_INGEST,
    rpc::{
        cluster_config, locks,
        testing::{MAX_LISTENERS, Node, anonymous, with},
    },
};

const KEY: [u8; 32] = [7; 32];
/// Long enough for a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// The end of a certificate that is good.
const LATER: u64 = 4_000_000_000;

fn id(number: u32) -> AgentId {
    AgentId::parse("id", &format!("{number:08}-0000-4000-8000-000000000000")).unwrap()
}

/// The ingest that listens.
fn ingest() -> AgentId {
    id(99_999_999)
}

fn row(kind: NodeKind, hostname: &str) -> NodeRow {
    NodeRow {
        kind: kind.into(),
        hostname: hostname.into(),
        key_digest: KEY.to_vec(),
        expires_at_ms: LATER * 1000,
        ..NodeRow::default()
    }
}

async fn put(node: &Node, rows: Vec<(AgentId, NodeRow)>) {
    let written = node.service.store.transact(move |tx| {
        rows.iter().for_each(|(id, row)| tx.put(&NodeKey(id.clone()), row));
        Ok::<_, auth_core::CoreError>(())
    });
    written.await.map_err(ApiError::from).unwrap();
}

async fn register(node: &Node, number: u32) {
    put(node, vec![(id(number), row(NodeKind::Ssh, &format!("web{number}")))]).await;
}

async fn remove(node: &Node, id: AgentId) {
    let removed = node.service.store.transact(move |tx| {
        tx.delete(&NodeKey(id.clone()));
        Ok::<_, auth_core::CoreError>(())
    });
    removed.await.map_err(ApiError::from).unwrap();
}

/// A node at which the ingest is registered.
async fn node() -> Node {
    let node = Node::start().await;
    put(&node, vec![(ingest(), row(NodeKind::Ingest, "ingest"))]).await;
    node
}

fn call() -> Call {
    let credential = Credential::Ingest { id: ingest(), key_digest: KEY };
    Call { credential, ..anonymous("WatchAccess") }
}

struct Listener(Replies<v1::WatchAccessResponse>);

impl Listener {
    async fn begin(node: &Node) -> Result<Self, ApiError> {
        watch(Arc::clone(&node.service), call(), LATER).await.map(Self)
    }

    /// One that was told everything.
    async fn caught_up(node: &Node) -> Self {
        let mut listener = Self::begin(node).await.unwrap();
        while listener.told().await != Told::Current(v1::AccessCurrent { revision: revision(node) }) {}
        listener
    }

    async fn next(&mut self) -> Result<Told, Status> {
        let next = tokio::time::timeout(PATIENCE, self.0.next()).await;
        Ok(next.expect("nothing comes").expect("it has ended")?.event.unwrap())
    }

    async fn told(&mut self) -> Told {
        self.next().await.unwrap()
    }

    /// What is told next beside confirmations.
    async fn news(&mut self) -> Told {
        loop {
            let told = self.told().await;
            if !matches!(told, Told::Current(_)) {
                return told;
            }
        }
    }

    /// Why it ends.
    async fn end(mut self) -> Status {
        loop {
            if let Err(status) = self.next().await {
                assert!(self.0.next().await.is_none(), "it goes on after its end");
                return status;
            }
        }
    }
}

fn revision(node: &Node) -> u64 {
    node.service.store.status().revision
}

fn registered(numbers: &[u32]) -> Told {
    let agent = |number: &u32| v1::AccessAgent {
        agent_id: id(*number).to_string(),
        hostname: format!("web{number}"),
    };
    Told::Registered(v1::AccessAgents { agents: numbers.iter().map(agent).collect() })
}

fn removed(number: u32) -> Told {
    Told::Removed(v1::AccessRemoval { agent_id: id(number).to_string() })
}

#[tokio::test]
async fn first_everybody_then_every_change_in_order_and_then_that_there_is_no_other() {
    let node = node().await;
    register(&node, 1).await;
    register(&node, 2).await;
    let mut listener = Listener::begin(&node).await.unwrap();
    assert_eq!(listener.told().await, Told::Listing(v1::AccessListing {}));
    assert_eq!(listener.told().await, registered(&[1, 2]));
    assert_eq!(listener.told().await, Told::Listed(v1::AccessListed {}));
    let current = |node| Told::Current(v1::AccessCurrent { revision: revision(node) });
    assert_eq!(listener.told().await, current(&node));

    register(&node, 3).await;
    remove(&node, id(1)).await;
    put(&node, vec![(id(2), row(NodeKind::Ssh, "renamed"))]).await;
    assert_eq!(listener.news().await, registered(&[3]));
    assert_eq!(listener.news().await, removed(1));
    let agents = vec![v1::AccessAgent { agent_id: id(2).to_string(), hostname: "renamed".into() }];
    assert_eq!(listener.news().await, Told::Registered(v1::AccessAgents { agents }));
    assert_eq!(listener.told().await, current(&node));
    // Without any change, too, and again.
    assert_eq!(listener.told().await, current(&node));
}

#[tokio::test]
async fn a_long_listing_comes_in_parts_and_changes_meanwhile_are_not_missed() {
    let node = node().await;
    let all: Vec<_> = (0..=u32::try_from(PAGE).unwrap()).collect();
    put(&node, all.iter().map(|n| (id(*n), row(NodeKind::Ssh, &format!("web{n}")))).collect()).await;
    let mut listener = Listener::begin(&node).await.unwrap();
    assert_eq!(listener.told().await, Told::Listing(v1::AccessListing {}));
    assert_eq!(listener.told().await, registered(&all[..PAGE]));
    // One is in the part that was told, the other in the part that comes.
    remove(&node, id(5)).await;
    remove(&node, id(all[PAGE])).await;
    assert_eq!(listener.told().await, Told::Listed(v1::AccessListed {}));
    assert_eq!(listener.news().await, removed(5));
    assert_eq!(listener.told().await, Told::Current(v1::AccessCurrent { revision: revision(&node) }));
}

#[tokio::test]
async fn who_missed_changes_is_told_everything_again() {
    let node = node().await;
    register(&node, 1).await;
    register(&node, 2).await;
    let mut listener = Listener::caught_up(&node).await;
    remove(&node, id(1)).await;
    // More than the store remembers.
    for number in 0..4_u8 {
        let written = node.service.store.transact(move |tx| {
            tx.put_raw(vec![0xee, 0xee, number], vec![0; 3 << 20], None);
            Ok::<_, auth_core::CoreError>(())
        });
        written.await.map_err(ApiError::from).unwrap();
    }
    assert_eq!(listener.news().await, Told::Listing(v1::AccessListing {}));
    assert_eq!(listener.news().await, registered(&[2]));
    assert_eq!(listener.news().await, Told::Listed(v1::AccessListed {}));
    register(&node, 3).await;
    assert_eq!(listener.news().await, registered(&[3]));
}

#[tokio::test]
async fn an_ingest_that_is_removed_is_told_no_more() {
    let node = node().await;
    let listener = Listener::caught_up(&node).await;
    let begun = tokio::time::Instant::now();
    remove(&node, ingest()).await;
    let ended = listener.end().await;
    assert_eq!(ended.code(), Code::Unauthenticated, "{ended:?}");
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    assert_eq!(Listener::begin(&node).await.err().unwrap().code(), Code::Unauthenticated);
}

#[tokio::test]
async fn an_ingest_that_is_locked_is_told_no_more() {
    let node = node().await;
    let boss = node.boss().await;
    let listener = Listener::caught_up(&node).await;
    lock_node(&node, &boss, 99_999_999).await;
    assert_eq!(listener.end().await.code(), Code::PermissionDenied);
    assert_eq!(Listener::begin(&node).await.err().unwrap().reason(), "LOCKED");
}

#[tokio::test]
async fn an_ingest_whose_certificate_ends_is_told_no_more() {
    let node = node().await;
    let ended = (node.service.clock)() / 1000 - 1;
    let listener = Listener(watch(Arc::clone(&node.service), call(), ended).await.unwrap());
    let ended = listener.end().await;
    assert_eq!(ended.code(), Code::Unauthenticated, "{ended:?}");
}

#[tokio::test]
async fn a_node_that_stops_sends_its_listeners_away() {
    let node = node().await;
    let listener = Listener::caught_up(&node).await;
    let ended = tokio::spawn(listener.end());
    node.stopping.cancel();
    assert_eq!(ended.await.unwrap().code(), Code::Unavailable);
    let mut late = Listener::begin(&node).await.unwrap();
    assert_eq!(late.next().await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn only_so_many_listen_at_a_time_and_no_ingest_takes_all_places() {
    let node = node().await;
    put(&node, vec![(id(1), row(NodeKind::Ingest, "other"))]).await;
    let credential = Credential::Ingest { id: id(1), key_digest: KEY };
    let other = Call { credential, ..call() };
    let begin_other = || watch(Arc::clone(&node.service), other.clone(), LATER);
    let mut listeners = Vec::new();
    for _ in 0..PER_INGEST {
        listeners.push(Listener::begin(&node).await.unwrap());
    }
    let refused = Listener::begin(&node).await.err().unwrap();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let mut others = Vec::new();
    for _ in PER_INGEST..MAX_LISTENERS {
        others.push(begin_other().await.unwrap());
    }
    assert_eq!(begin_other().await.err().unwrap().code(), Code::ResourceExhausted);
    // Who may not listen at all is not told that it is full.
    let stranger = watch(Arc::clone(&node.service), anonymous("WatchAccess"), LATER).await;
    assert_eq!(stranger.err().unwrap().code(), Code::Unauthenticated);
    listeners.truncate(1);
    others.push(begin_other().await.unwrap());
    Listener::begin(&node).await.unwrap();
}

#[tokio::test]
async fn users_and_agents_that_are_not_registered_are_told_nothing() {
    let node = node().await;
    let boss = node.boss().await;
    for (call, code) in
        [(agent(1), Code::Unauthenticated), (with(&boss, "WatchAccess"), Code::PermissionDenied)]
    {
        let refused = watch(Arc::clone(&node.service), call, LATER).await.err().unwrap();
        assert_eq!(refused.code(), code);
    }
    assert_eq!(node.audited("access.denied").await.len(), 1);
}

fn agent(number: u32) -> Call {
    let credential = Credential::Agent { id: id(number), key_digest: KEY };
    Call { credential, ..anonymous("WatchAccess") }
}

async fn lock_node(node: &Node, boss: &str, number: u32) -> String {
    let target = Some(v1::lock_target::Target::Node(id(number).to_string()));
    let target = Some(v1::LockTarget { target });
    let request = v1::CreateLockRequest { target, ..Default::default() };
    let made = locks::create(&node.service, &with(boss, "CreateLock"), request).await.unwrap();
    made.lock.unwrap().lock_id
}

#[tokio::test]
async fn an_agent_is_told_when_something_is_revoked_and_by_every_node_that_stops() {
    let node = node().await;
    let boss = node.boss().await;
    register(&node, 1).await;
    register(&node, 2).await;
    let told = watch(Arc::clone(&node.service), agent(1), LATER).await.unwrap();
    let mut listener = Listener(told);
    let at = |revocation_revision| {
        let recording_mode = v1::RecordingMode::BestEffort.into();
        Told::News(v1::AccessNews { trust_bundle_revision: 0, revocation_revision, recording_mode })
    };
    assert_eq!(listener.told().await, at(0));
    lock_node(&node, &boss, 2).await;
    assert_eq!(listener.told().await, at(revision(&node)));
    // One that is locked itself begins to listen no more.
    lock_node(&node, &boss, 1).await;
    let refused = watch(Arc::clone(&node.service), agent(1), LATER).await.err().unwrap();
    assert_eq!((refused.code(), refused.reason()), (Code::PermissionDenied, "LOCKED"));
    node.stopping.cancel();
    assert_eq!(listener.end().await.code(), Code::Unavailable);
}

#[tokio::test]
async fn an_agent_is_told_at_once_how_sessions_are_recorded() {
    let node = node().await;
    let boss = node.boss().await;
    register(&node, 1).await;
    let mut listener = Listener(watch(Arc::clone(&node.service), agent(1), LATER).await.unwrap());
    let modes = [v1::RecordingMode::BestEffort, v1::RecordingMode::Strict, v1::RecordingMode::Off];
    for (index, mode) in modes.into_iter().enumerate() {
        if index > 0 {
            let config = v1::ClusterConfig { recording_mode: mode.into(), ..Default::default() };
            let request = v1::UpdateClusterConfigRequest { config: Some(config) };
            cluster_config::update(&node.service, &with(&boss, "UpdateClusterConfig"), request)
                .await
                .unwrap();
        }
        let Told::News(news) = listener.told().await else { panic!("an agent is told news alone") };
        assert_eq!(news.recording_mode(), mode);
    }
}

#[tokio::test]
async fn an_agent_listens_as_long_as_its_certificate_is_good() {
    let node = node().await;
    register(&node, 1).await;
    let told = watch(Arc::clone(&node.service), agent(1), 1).await.unwrap();
    assert_eq!(Listener(told).end().await.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn an_agent_that_is_locked_is_removed_until_it_is_unlocked() {
    let node = node().await;
    let boss = node.boss().await;
    register(&node, 1).await;
    let mut listener = Listener::caught_up(&node).await;
    let lock_id = lock_node(&node, &boss, 1).await;
    assert_eq!(listener.news().await, removed(1));
    let request = v1::DeleteLockRequest { lock_id };
    locks::delete(&node.service, &with(&boss, "DeleteLock"), request).await.unwrap();
    assert_eq!(listener.news().await, registered(&[1]));
}
