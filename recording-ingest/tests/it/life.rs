//! The life of an ingest beside its calls: leaving, following the cluster, doing without it, and its diagnostics.

use std::net::SocketAddr;

use mezite_client::testing::TestCa;
use mezite_daemon::clock;
use mezite_pki::identity::Identity;
use mezite_proto::v1::{AgentHeartbeatRequest, RecordingState, StreamSessionRecordingRequest};
use recording_format::Digest;
use recording_ingest::{Handle, StartError, start};
use tokio::{net::TcpStream, sync::mpsc};
use tokio_rustls::TlsConnector;
use tonic::Code;

use crate::{
    cluster::{AGENT, Cluster, INGEST_ID, LIFETIME},
    wire::{
        Reply, Wire, chunk, eventually, header, id, last, metadata, page, reason, server_name, tls, wrapped,
    },
};

/// Digest of the certificate that the ingest shows.
async fn shown(ingest: &Handle, ca: &TestCa) -> Digest {
    let tcp = TcpStream::connect(ingest.address()).await.unwrap();
    let stream = TlsConnector::from(tls(ca, None)).connect(server_name(), tcp).await.unwrap();
    Digest::of(&stream.get_ref().1.peer_certificates().unwrap()[0])
}

/// A call that has begun a recording, whose five bytes were received.
async fn begun(
    agent: &Wire,
    diagnostics: SocketAddr,
) -> (mpsc::Sender<StreamSessionRecordingRequest>, Reply) {
    let (sender, reply) = agent.open();
    sender.send(wrapped(header(id(1), 0, Some(metadata())))).await.unwrap();
    sender.send(wrapped(chunk(0, b"hello"))).await.unwrap();
    eventually(|| async move {
        page(diagnostics, "/metrics").await.1.contains("mezite_ingest_received_bytes_total 5")
    })
    .await;
    (sender, reply)
}

#[tokio::test]
async fn leaving_makes_durable_what_came_and_answers_open_calls() {
    let cluster = Cluster::new();
    let ingest = cluster.ingest("a", &[]).await;
    let (address, diagnostics) = (ingest.address(), ingest.diagnostics_address());
    let agent = cluster.as_agent(&ingest, AGENT);
    let (sender, reply) = begun(&agent, diagnostics).await;
    // Another call has not said yet which recording it is of.
    let (silent, unanswered) = agent.open();
    eventually(
        || async move { page(diagnostics, "/metrics").await.1.contains("mezite_ingest_open_streams 2") },
    )
    .await;

    assert!(ingest.stop().await);
    let reply = reply.await.unwrap().unwrap();
    assert!(reply.reconnect);
    assert_eq!((reply.committed_offset, reply.state()), (5, RecordingState::InProgress));
    assert_eq!(unanswered.await.unwrap().unwrap_err().code(), Code::Unavailable);
    drop((sender, silent));
    for gone in [address, diagnostics] {
        assert!(TcpStream::connect(gone).await.is_err());
    }

    let ingest = cluster.ingest("a", &[]).await;
    let sealed =
        cluster.as_agent(&ingest, AGENT).stream(vec![header(id(1), 5, None), last(b"hello")]).await.unwrap();
    assert_eq!(sealed.state(), RecordingState::Complete);
}

#[tokio::test]
async fn one_that_was_removed_answers_what_is_open_takes_nothing_more_and_ends() {
    let cluster = Cluster::new();
    let mut ingest = cluster.ingest("a", &[]).await;
    let diagnostics = ingest.diagnostics_address();
    let agent = cluster.as_agent(&ingest, AGENT);
    let (sender, reply) = begun(&agent, diagnostics).await;
    // What says nothing of the registry ends nothing.
    cluster.script.failing.lock().unwrap().insert("AgentHeartbeat", 1);
    let beats = cluster.calls("AgentHeartbeat");
    eventually(|| async { cluster.calls("AgentHeartbeat") > beats + 2 }).await;
    assert_eq!(page(diagnostics, "/readyz").await.0, 200);

    cluster.script.remove_ingest();
    match ingest.broken().await {
        StartError::Removed { agent_id, .. } => assert_eq!(agent_id, INGEST_ID),
        other => panic!("{other}"),
    }
    let (status, reasons) = page(diagnostics, "/readyz").await;
    assert!(status == 503 && reasons.contains("removed from the cluster"), "{reasons}");
    let reply = reply.await.unwrap().unwrap();
    assert_eq!((reply.reconnect, reply.committed_offset), (true, 5));
    for refused in
        [agent.upload(&id(2).to_string(), b"x").await.map(drop), agent.probe(id(1)).await.map(drop)]
    {
        let refused = refused.unwrap_err();
        assert_eq!((refused.code(), reason(&refused).0.as_str()), (Code::Unavailable, "INGEST_REMOVED"));
    }
    drop(sender);
    assert!(ingest.stop().await);
}

/// The word comes with the end of what it listens to, long before a heartbeat.
#[tokio::test]
async fn one_that_was_removed_hears_of_it_at_once() {
    let cluster = Cluster::new();
    let mut ingest = cluster.ingest("a", &["control.heartbeat_interval=1h"]).await;
    eventually(|| async { cluster.script.listeners() == 1 }).await;
    cluster.script.remove_ingest();
    cluster.script.send_away();
    assert!(matches!(ingest.broken().await, StartError::Removed { .. }));
    assert!(ingest.stop().await);
}

#[tokio::test]
async fn the_cluster_hears_of_it() {
    let cluster = Cluster::new();
    let ingest = cluster.ingest("a", &["labels.zone=eu"]).await;
    let (sender, reply) = cluster.as_agent(&ingest, AGENT).open();
    sender.send(wrapped(header(id(1), 0, Some(metadata())))).await.unwrap();
    eventually(|| async {
        let calls = cluster.auth.calls().into_iter().filter(|call| call.method == "AgentHeartbeat");
        calls.into_iter().any(|call| {
            let beat: AgentHeartbeatRequest = call.request();
            assert_eq!((beat.address.as_str(), beat.labels["zone"].as_str()), ("ingest.example:3027", "eu"));
            beat.load == 1
        })
    })
    .await;
    drop(sender);
    reply.await.unwrap().unwrap();
}

#[tokio::test]
async fn the_certificate_is_renewed_before_it_ends_and_without_a_restart() {
    let cluster = Cluster::new();
    let now = clock::unix_seconds();
    // In the last third of its life.
    *cluster.script.lifetime.lock().unwrap() = (now - 1_000, now + 300);
    let config = cluster.config("a", &[]);
    cluster.join(&config).await.unwrap();
    *cluster.script.lifetime.lock().unwrap() = LIFETIME;
    cluster.script.failing.lock().unwrap().insert("GenerateHostCerts", 1);
    let before = std::fs::read_to_string(config.data_dir.join("tls.crt")).unwrap();
    let ingest = start(config.clone()).await.unwrap();
    let first = shown(&ingest, &cluster.script.ca).await;
    eventually(|| async { shown(&ingest, &cluster.script.ca).await != first }).await;
    assert_ne!(std::fs::read_to_string(config.data_dir.join("tls.crt")).unwrap(), before);
    let receipt =
        cluster.as_agent(&ingest, AGENT).upload(&id(1).to_string(), b"x").await.unwrap().receipt.unwrap();
    let manifest = recording_format::Manifest::decode(id(1), &receipt.manifest).unwrap();
    assert_eq!(manifest.ingest_certificate_sha256, shown(&ingest, &cluster.script.ca).await);
    // Once lost, once renewed by the certificate, and then left alone.
    assert_eq!(cluster.calls("GenerateHostCerts"), 3);
    let beats = cluster.calls("AgentHeartbeat");
    eventually(|| async { cluster.calls("AgentHeartbeat") > beats + 3 }).await;
    assert_eq!(cluster.calls("GenerateHostCerts"), 3);
    // A restart finds it.
    let renewed = shown(&ingest, &cluster.script.ca).await;
    assert!(ingest.stop().await);
    let ingest = cluster.ingest("a", &[]).await;
    assert_eq!(shown(&ingest, &cluster.script.ca).await, renewed);
}

#[tokio::test]
async fn a_new_authority_is_believed_once_the_cluster_says_so() {
    let cluster = Cluster::new();
    let ingest = cluster.ingest("a", &[]).await;
    let new_ca = TestCa::new();
    let identity = Identity::Agent { cluster: mezite_client::testing::CLUSTER.into(), id: AGENT.into() };
    let leaf = new_ca.issue(Some(identity), &["a"], LIFETIME);
    let wire = || Wire::new(&ingest, &cluster.script.ca, Some(&leaf));
    let refused = wire().upload(&id(1).to_string(), b"x").await.unwrap_err();
    assert!(std::error::Error::source(&refused).is_some(), "the server answered: {refused:?}");
    {
        let mut bundle = cluster.script.bundle.lock().unwrap();
        bundle.authorities[0].certificates.push(new_ca.pem());
        bundle.revision += 1;
    }
    eventually(|| async { wire().upload(&id(1).to_string(), b"x").await.is_ok() }).await;
    // The old one is believed still, and both after a restart.
    cluster.as_agent(&ingest, AGENT).probe(id(1)).await.unwrap();
    assert!(ingest.stop().await);
    let ingest = cluster.ingest("a", &[]).await;
    Wire::new(&ingest, &cluster.script.ca, Some(&leaf)).probe(id(1)).await.unwrap();
}

#[tokio::test]
async fn it_serves_while_no_auth_node_answers_and_starts_without_one() {
    let mut cluster = Cluster::new();
    let ingest = cluster.ingest("a", &[]).await;
    cluster.auth.kill();
    let diagnostics = ingest.diagnostics_address();
    eventually(|| async move {
        page(diagnostics, "/metrics").await.1.contains("mezite_ingest_heartbeats_total{result=\"failure\"}")
    })
    .await;
    cluster.as_agent(&ingest, AGENT).upload(&id(1).to_string(), b"x").await.unwrap();
    assert!(ingest.stop().await);
    let ingest = start(cluster.config("a", &[])).await.unwrap();
    let reply = cluster.as_agent(&ingest, AGENT).upload(&id(2).to_string(), b"x").await.unwrap();
    assert_eq!(reply.state(), RecordingState::Complete);
    let auth = cluster.as_auth(&ingest);
    eventually(|| async { auth.list(Default::default()).await.is_ok_and(|page| page.recordings.len() == 2) })
        .await;
    assert!(ingest.stop().await);
}

#[tokio::test]
async fn diagnostics_tell_what_an_operator_needs() {
    let cluster = Cluster::new();
    let ingest = cluster.ingest("a", &[]).await;
    let diagnostics = ingest.diagnostics_address();
    cluster.as_agent(&ingest, AGENT).upload(&id(1).to_string(), b"hello").await.unwrap();
    assert_eq!(page(diagnostics, "/healthz").await, (200, "ok\n".to_owned()));
    assert_eq!(page(diagnostics, "/readyz").await, (200, "ok\n".to_owned()));
    assert_eq!(page(diagnostics, "/other").await.0, 404);
    // Which are open is looked at now and then: it may have been while this one was.
    eventually(|| async {
        let (_, metrics) = page(diagnostics, "/metrics").await;
        metrics.contains("mezite_ingest_open_recordings 0\n")
    })
    .await;
    let (status, metrics) = page(diagnostics, "/metrics").await;
    assert_eq!(status, 200);
    for line in [
        "mezite_ingest_received_bytes_total 5",
        "mezite_ingest_segments_total 1",
        "mezite_ingest_recordings_begun_total 1",
        "mezite_ingest_recordings_sealed_total{state=\"complete\"} 1",
        "mezite_ingest_ack_seconds_count 1",
        "mezite_ingest_memory_held_bytes 0",
        "mezite_ingest_open_recordings 0",
        "mezite_ingest_oldest_open_recording_timestamp_seconds 0",
        "mezite_ingest_certificate_expiry_timestamp_seconds 4000000000",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} is not in\n{metrics}");
    }
    // Whose values are not known beforehand.
    for name in ["store_free_bytes", "index_refreshed_timestamp_seconds", "segment_write_seconds_count"] {
        let value = metrics.lines().find_map(|line| line.strip_prefix("mezite_ingest_")?.strip_prefix(name));
        let value: f64 = value.and_then(|value| value.trim().parse().ok()).unwrap_or_default();
        assert!(value >= 1.0, "{name} is not in\n{metrics}");
    }
}

#[tokio::test]
async fn a_store_that_cannot_be_trusted_is_not_written_to_again() {
    let cluster = Cluster::new();
    let ingest = cluster.ingest("a", &[]).await;
    let (agent, diagnostics) = (cluster.as_agent(&ingest, AGENT), ingest.diagnostics_address());
    agent.upload(&id(1).to_string(), b"hello").await.unwrap();
    // A file where the markers' folder should be.
    let (blocked, aside) = (cluster.store().join("open/v1"), cluster.store().join("open/aside"));
    std::fs::rename(&blocked, &aside).unwrap();
    std::fs::write(&blocked, "").unwrap();
    let failed = agent.upload(&id(2).to_string(), b"hello").await.unwrap_err();
    assert_eq!(failed.code(), Code::Unavailable);
    assert!(!failed.message().contains(cluster.store().to_str().unwrap()), "{}", failed.message());
    std::fs::remove_file(&blocked).unwrap();
    std::fs::rename(&aside, &blocked).unwrap();
    assert_eq!(agent.upload(&id(3).to_string(), b"hello").await.unwrap_err().code(), Code::Unavailable);
    assert_eq!((page(diagnostics, "/healthz").await.0, page(diagnostics, "/readyz").await.0), (503, 503));
    // What is there can be read, and a restart helps.
    assert_eq!(cluster.as_auth(&ingest).download(&id(1).to_string(), 0).await.unwrap(), b"hello");
    assert!(ingest.stop().await);
    let ingest = cluster.ingest("a", &[]).await;
    cluster.as_agent(&ingest, AGENT).upload(&id(2).to_string(), b"hello").await.unwrap();
}
