//! Who lives: heartbeats of many agents are written together, whoever falls silent is offline after the TTL and nobody before,
//! also while a leader changes, and what an agent says of itself stays apart from what an admin says.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use mezite_e2e::{
    Cluster, Setup, call, eventually,
    fleet::{self, Agent, Pace, Verdicts},
    http,
};
use mezite_proto::v1;

const AGENTS: usize = 300;
/// One agent in so many falls silent.
const SILENT: usize = 10;
const INTERVAL: Duration = Duration::from_secs(3);
/// For a while they report so many times as often.
const CROWD: u32 = 10;
/// Well above an interval and a change of the leader, on a machine that is busy.
const TTL: Duration = Duration::from_secs(20);
/// Between two lists.
const LOOK: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(60);

async fn cluster() -> Cluster {
    let of = |name: &str, time: Duration| format!("presence.{name}={}s", time.as_secs());
    let set = vec![of("interval", INTERVAL), of("ttl", TTL)];
    Cluster::start_with(&Setup { nodes: 3, set, ..Setup::default() }).await
}

/// Transactions with heartbeats, and heartbeats in them, of all nodes.
async fn written(cluster: &Cluster) -> (f64, f64) {
    let mut written = (0.0, 0.0);
    for node in cluster.nodes() {
        let (_, page) = http::get(&node.diagnostics_address(), "/metrics").await.unwrap();
        let value = |name: &str| -> f64 {
            let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
            line.unwrap_or_default()
        };
        written.0 += value("mezite_auth_heartbeat_batch_count");
        written.1 += value("mezite_auth_heartbeat_batch_sum");
    }
    written
}

#[tokio::test(flavor = "multi_thread")]
async fn heartbeats_are_written_together_and_nobody_who_lives_is_offline() {
    let mut cluster = cluster().await;
    let agents = fleet::join_all(&cluster, AGENTS).await.unwrap();
    let step = INTERVAL / u32::try_from(AGENTS).unwrap();
    let beat = |agent: Arc<Agent>| async move { agent.beat().await };
    // As many as of a fleet of thousands: a node then waits up to a second for more of them.
    let mut crowd = Pace::new(step / CROWD);
    let mut beats = crowd.until(Instant::now() + INTERVAL, &agents, beat).await;
    beats.add(crowd.rest().await);
    let (transactions, heartbeats) = written(&cluster).await;
    assert!(heartbeats >= 2.0 * AGENTS as f64, "{heartbeats} heartbeats");
    assert!(heartbeats >= 8.0 * transactions, "{heartbeats} heartbeats in {transactions} transactions");

    let mut pace = Pace::new(step);
    beats.add(pace.until(Instant::now() + INTERVAL, &agents, beat).await);
    let silent: Vec<_> = agents.iter().step_by(SILENT).cloned().collect();
    silent.iter().for_each(|agent| agent.fall_silent());
    let ends = Instant::now() + TTL + INTERVAL;
    let others = agents.clone();
    let beating = tokio::spawn(async move {
        let mut beats = pace.until(ends, &others, beat).await;
        beats.add(pace.rest().await);
        beats
    });
    let (mut verdicts, mut killed) = (Verdicts::new(TTL), None);
    let mut looks = tokio::time::interval(LOOK);
    while Instant::now() < ends {
        looks.tick().await;
        verdicts.look(&cluster, &agents).await.unwrap();
        if killed.is_none() {
            let leader = cluster.leader().await;
            cluster.node(leader).kill();
            killed = Some(leader);
        }
    }
    beats.add(beating.await.unwrap());
    println!("{verdicts:?}; {}", beats.summary(1.0));
    assert!(verdicts.are_right() && verdicts.lists > 1, "{verdicts:?}");
    assert!(beats.failed == 0, "{beats:?}");
    assert!(beats.moved > 0, "nobody noticed that a node died");
    eventually("who is silent is offline, and nobody else", PATIENCE, async || {
        let online = fleet::online(&cluster).await.map_err(|error| error.to_string())?;
        let wrong = agents.iter().filter(|agent| online[&agent.id] == agent.is_silent()).count();
        if wrong == 0 { Ok(()) } else { Err(format!("{wrong} of {}", agents.len())) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_agent_and_an_admin_say_of_its_labels_stays_apart() {
    let cluster = cluster().await;
    let agents = fleet::join_all(&cluster, 11).await.unwrap();
    let (client, id) = (cluster.admin(), agents[0].id.clone());
    let node = async || {
        let reply = call!(client, list_nodes, v1::ListNodesRequest::default()).unwrap();
        reply.nodes.into_iter().filter_map(|entry| entry.node).find(|node| node.agent_id == id).unwrap()
    };
    let of = |value: &str| [("env".to_owned(), value.to_owned())].into();
    let with = async |value: &str| {
        let request = v1::ListNodesRequest { labels: of(value), ..Default::default() };
        let nodes = call!(client, list_nodes, request).unwrap().nodes;
        nodes.into_iter().filter_map(|entry| entry.node).any(|node| node.agent_id == id)
    };
    let own = fleet::labels(0);
    assert!(own["env"] == "dev" && with("dev").await);
    let request = v1::UpdateNodeRequest { agent_id: id.clone(), admin_labels: of("prod"), revision: 0 };
    let updated = call!(client, update_node, request).unwrap().node.unwrap();
    for _ in 0..2 {
        // What is reported again takes nothing back, and makes no new revision of what the admin wrote.
        agents[0].beat().await.unwrap();
        let node = node().await;
        assert_eq!((node.agent_labels, node.admin_labels), (own.clone(), of("prod")));
        assert_eq!(node.revision, updated.revision);
        assert!(with("prod").await && !with("dev").await);
    }
    let request = v1::UpdateNodeRequest { agent_id: id.clone(), ..Default::default() };
    call!(client, update_node, request).unwrap();
    assert!(with("dev").await && !with("prod").await);
}
