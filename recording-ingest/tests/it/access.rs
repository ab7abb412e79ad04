//! Whose recordings are taken: of agents that auth nodes say are registered, and what holds while they say nothing.

use std::time::Duration;

use mezite_client::testing::Leaf;
use mezite_daemon::clock;
use mezite_pki::identity::Identity;
use mezite_proto::v1::{RecordingMetadata, RecordingState};
use recording_ingest::{Handle, start};
use tokio::{sync::mpsc, time::Instant};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::{
    cluster::{AGENT, Cluster, HOSTNAME, LIFETIME, OTHER_AGENT},
    wire::{Reply, Wire, chunk, eventually, header, id, last, metadata, page, reason, wrapped},
};

/// Registered nowhere.
const STRANGER: &str = "8f9619ff-8b86-4011-b42d-00c04fc964ff";

type Sender = mpsc::Sender<mezite_proto::v1::StreamSessionRecordingRequest>;

/// A call that has begun a recording and brought five bytes.
async fn begun(ingest: &Handle, wire: &Wire, n: u8) -> (Sender, Reply) {
    let received = received(ingest).await;
    let (sender, reply) = wire.open();
    sender.send(wrapped(header(id(n), 0, Some(metadata())))).await.unwrap();
    sender.send(wrapped(chunk(0, b"hello"))).await.unwrap();
    eventually(|| async { self::received(ingest).await == received + 5 }).await;
    (sender, reply)
}

async fn received(ingest: &Handle) -> u64 {
    number(ingest, "mezite_ingest_received_bytes_total").await.unwrap_or_default()
}

/// What the metrics say.
async fn number(ingest: &Handle, name: &str) -> Option<u64> {
    let metrics = page(ingest.diagnostics_address(), "/metrics").await.1;
    metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

/// Waits until the ingest was told everything.
async fn told(ingest: &Handle, agents: u64) {
    eventually(|| async {
        number(ingest, "mezite_ingest_agents_listed").await == Some(1)
            && number(ingest, "mezite_ingest_agents_known").await == Some(agents)
    })
    .await;
}

#[track_caller]
fn assert_not_registered(status: &Status) {
    assert_eq!((status.code(), reason(status).0.as_str()), (Code::Unauthenticated, "NOT_REGISTERED"));
    assert!(status.message().contains("new token"), "{}", status.message());
}

#[tokio::test]
async fn an_agent_that_is_removed_is_cut_off_and_what_it_sent_stays() {
    let cluster = Cluster::new();
    let ingest = cluster.ingest("a", &[]).await;
    let (direct, relayed) = (cluster.as_agent(&ingest, AGENT), cluster.as_auth(&ingest).relaying(AGENT));
    let other = cluster.as_agent(&ingest, OTHER_AGENT);
    let (one, two) = (begun(&ingest, &direct, 1).await, begun(&ingest, &relayed, 2).await);
    let (sender, goes_on) = begun(&ingest, &other, 3).await;
    // This one has not even said what it is of.
    let (_silent, silent) = direct.open();
    eventually(|| async { number(&ingest, "mezite_ingest_open_streams").await == Some(4) }).await;

    let removed = Instant::now();
    cluster.script.remove(AGENT);
    for reply in [one.1, two.1, silent] {
        assert_not_registered(&reply.await.unwrap().unwrap_err());
    }
    assert!(removed.elapsed() < Duration::from_secs(1), "{:?}", removed.elapsed());
    for wire in [&direct, &relayed] {
        assert_not_registered(&wire.probe(id(1)).await.unwrap_err());
        assert_not_registered(&wire.upload(&id(4).to_string(), b"x").await.unwrap_err());
    }

    // What it sent is there, and can be read; the agent that stayed goes on.
    let auth = cluster.as_auth(&ingest);
    for n in [1, 2] {
        let kept = auth.get(&id(n).to_string(), 0, 10).await.unwrap();
        assert_eq!(
            (kept.data.as_ref(), kept.recording.unwrap().state()),
            (b"hello".as_slice(), RecordingState::InProgress)
        );
    }
    sender.send(wrapped(last(b"hello"))).await.unwrap();
    drop(sender);
    assert_eq!(goes_on.await.unwrap().unwrap().state(), RecordingState::Complete);
    assert_eq!(auth.get(&id(4).to_string(), 0, 0).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn a_certificate_alone_is_not_enough() {
    let cluster = Cluster::new();
    let ingest = cluster.ingest("a", &[]).await;
    told(&ingest, 2).await;
    for wire in [cluster.as_agent(&ingest, STRANGER), cluster.as_auth(&ingest).relaying(STRANGER)] {
        let begin = vec![header(id(1), 0, Some(metadata())), chunk(0, b"hello")];
        assert_not_registered(&wire.stream(begin).await.unwrap_err());
        assert_not_registered(&wire.upload(&id(1).to_string(), b"x").await.unwrap_err());
    }
    assert!(cluster.objects().is_empty());
    cluster.script.register(STRANGER, HOSTNAME);
    cluster.as_agent(&ingest, STRANGER).upload(&id(1).to_string(), b"x").await.unwrap();
}

#[tokio::test]
async fn a_recording_is_of_the_agents_own_host() {
    let cluster = Cluster::new();
    let ingest = cluster.ingest("a", &[]).await;
    let (direct, relayed) = (cluster.as_agent(&ingest, AGENT), cluster.as_auth(&ingest).relaying(AGENT));
    for node in ["", "other.example", "AGENT.example"] {
        let metadata = RecordingMetadata { node: node.into(), ..metadata() };
        for wire in [&direct, &relayed] {
            let refused = wire.stream(vec![header(id(1), 0, Some(metadata.clone()))]).await.unwrap_err();
            assert_eq!(refused.code(), Code::InvalidArgument, "{node}");
            let violation = refused.get_details_bad_request().unwrap().field_violations.remove(0);
            assert_eq!(violation.field, "metadata.node");
            assert!(violation.description.contains(HOSTNAME), "{violation:?}");
        }
    }
    assert!(cluster.objects().is_empty());
    // The name that counts is the one that auth nodes know.
    cluster.script.register(AGENT, "renamed.example");
    let renamed = RecordingMetadata { node: "renamed.example".into(), ..metadata() };
    eventually(|| async { direct.stream(vec![header(id(2), 0, Some(renamed.clone()))]).await.is_ok() }).await;
    let stale = direct.stream(vec![header(id(3), 0, Some(metadata()))]).await.unwrap_err();
    assert_eq!(stale.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn while_no_auth_node_tells_the_last_word_counts() {
    let mut cluster = Cluster::new();
    let ingest = cluster.ingest("a", &[]).await;
    told(&ingest, 2).await;
    let (agent, other) = (cluster.as_agent(&ingest, AGENT), cluster.as_agent(&ingest, OTHER_AGENT));
    let (sender, reply) = begun(&ingest, &agent, 1).await;
    cluster.auth.kill();
    eventually(|| async { cluster.script.listeners() == 0 }).await;

    // A stranger is put off, once it is known that nobody can be asked.
    let stranger = cluster.as_agent(&ingest, STRANGER);
    eventually(|| async {
        let refused = stranger.upload(&id(9).to_string(), b"x").await.unwrap_err();
        refused.code() == Code::Unavailable && reason(&refused).0 == "REGISTRATION_UNCONFIRMED"
    })
    .await;
    other.upload(&id(2).to_string(), b"x").await.unwrap();
    assert_eq!(page(ingest.diagnostics_address(), "/readyz").await.0, 200);
    sender.send(wrapped(chunk(5, b" world"))).await.unwrap();
    sender.send(wrapped(last(b"hello world"))).await.unwrap();
    drop(sender);
    assert_eq!(reply.await.unwrap().unwrap().state(), RecordingState::Complete);

    // One was removed meanwhile, and one has come.
    let (_sender, cut) = begun(&ingest, &other, 3).await;
    cluster.script.remove(OTHER_AGENT);
    cluster.script.register(STRANGER, HOSTNAME);
    cluster.restart_auth();
    assert_not_registered(&cut.await.unwrap().unwrap_err());
    stranger.upload(&id(4).to_string(), b"x").await.unwrap();
    agent.upload(&id(5).to_string(), b"x").await.unwrap();
}

#[tokio::test]
async fn a_node_that_sends_it_away_is_asked_again_or_another() {
    let cluster = Cluster::new();
    let ingest = cluster.ingest("a", &[]).await;
    told(&ingest, 2).await;
    let (_sender, cut) = begun(&ingest, &cluster.as_agent(&ingest, AGENT), 1).await;
    let calls = cluster.calls("WatchAccess");
    cluster.script.failing.lock().unwrap().insert("WatchAccess", 2);
    cluster.script.send_away();
    eventually(|| async { cluster.calls("WatchAccess") == calls + 3 && cluster.script.listeners() == 1 })
        .await;
    // A listing in the middle of a call ends those that are not in it.
    cluster.script.remove_and_list(AGENT);
    assert_not_registered(&cut.await.unwrap().unwrap_err());
    told(&ingest, 1).await;
}

#[tokio::test]
async fn before_it_was_told_anything_it_goes_by_certificates_and_judges_again_later() {
    let cluster = Cluster::new();
    let config = cluster.config("a", &[]);
    cluster.join(&config).await.unwrap();
    cluster.script.failing.lock().unwrap().insert("WatchAccess", u32::MAX);
    let ingest = start(config).await.unwrap();
    let stranger = cluster.as_agent(&ingest, STRANGER);
    stranger.upload(&id(1).to_string(), b"x").await.unwrap();
    assert_eq!(number(&ingest, "mezite_ingest_agents_listed").await, Some(0));
    // The names in the certificate are all that is known of the host.
    let foreign = RecordingMetadata { node: "other.example".into(), ..metadata() };
    let refused = stranger.stream(vec![header(id(2), 0, Some(foreign))]).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);

    let (_sender, cut) = begun(&ingest, &stranger, 3).await;
    let (sender, stays) = begun(&ingest, &cluster.as_agent(&ingest, AGENT), 4).await;
    cluster.script.failing.lock().unwrap().clear();
    assert_not_registered(&cut.await.unwrap().unwrap_err());
    told(&ingest, 2).await;
    drop(sender);
    assert_eq!(stays.await.unwrap().unwrap().committed_offset, 5);
}

#[tokio::test]
async fn without_auth_nodes_it_goes_by_certificates() {
    let cluster = Cluster::new();
    cluster.join(&cluster.config("a", &[])).await.unwrap();
    let ingest = start(cluster.config("a", &["auth_servers=[]"])).await.unwrap();
    cluster.as_agent(&ingest, STRANGER).upload(&id(1).to_string(), b"x").await.unwrap();
    assert_eq!(number(&ingest, "mezite_ingest_agents_listed").await, Some(0));
    assert_eq!(cluster.calls("WatchAccess"), 0);
}

#[tokio::test]
async fn an_operator_sees_how_much_is_known_and_how_old_it_is() {
    let cluster = Cluster::new();
    let before = clock::unix_seconds();
    let ingest = cluster.ingest("a", &[]).await;
    told(&ingest, 2).await;
    eventually(|| async {
        let confirmed = number(&ingest, "mezite_ingest_agents_confirmed_timestamp_seconds").await;
        confirmed.is_some_and(|at| (before..=clock::unix_seconds()).contains(&at))
    })
    .await;
    cluster.script.register(STRANGER, HOSTNAME);
    told(&ingest, 3).await;
}

#[tokio::test]
async fn with_a_new_certificate_it_listens_anew() {
    let cluster = Cluster::new();
    let now = clock::unix_seconds();
    // In the last third of its life.
    *cluster.script.lifetime.lock().unwrap() = (now - 1_000, now + 300);
    let config = cluster.config("a", &[]);
    cluster.join(&config).await.unwrap();
    *cluster.script.lifetime.lock().unwrap() = LIFETIME;
    // Not before it listens with the old one.
    cluster.script.failing.lock().unwrap().insert("GenerateHostCerts", u32::MAX);
    let ingest = start(config).await.unwrap();
    told(&ingest, 2).await;
    let calls = cluster.calls("WatchAccess");
    cluster.script.failing.lock().unwrap().clear();
    eventually(|| async { cluster.calls("WatchAccess") == calls + 1 && cluster.script.listeners() == 1 })
        .await;
    cluster.script.remove(AGENT);
    told(&ingest, 1).await;
}

#[tokio::test]
async fn names_of_a_certificate_do_not_matter_once_the_roster_is_known() {
    let cluster = Cluster::new();
    let ingest = cluster.ingest("a", &[]).await;
    told(&ingest, 2).await;
    let identity = Identity::Agent { cluster: mezite_client::testing::CLUSTER.into(), id: AGENT.into() };
    let leaf: Leaf = cluster.script.ca.issue(Some(identity), &["other.example"], LIFETIME);
    let wire = Wire::new(&ingest, &cluster.script.ca, Some(&leaf));
    wire.upload(&id(1).to_string(), b"x").await.unwrap();
}
