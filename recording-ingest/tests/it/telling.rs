//! What the cluster's audit log is told of recordings.

use std::fs;

use mezite_proto::{IDEMPOTENCY_KEY, v1::EmitAuditEventRequest};
use recording_format::{decode_signed_manifest, encode_signed_manifest, recording_prefix};

use crate::{
    cluster::{AGENT, Cluster, HOSTNAME},
    wire::{eventually, id, page, sha256},
};

/// The events that the auth node was told, in order, repetitions included.
pub(crate) fn told(cluster: &Cluster) -> Vec<EmitAuditEventRequest> {
    let calls = cluster.auth.calls().into_iter().filter(|call| call.method == "EmitAuditEvent");
    calls.map(|call| call.request()).collect()
}

fn notices(cluster: &Cluster) -> usize {
    cluster.objects().iter().filter(|key| key.starts_with("audit/")).count()
}

#[tokio::test]
async fn a_cluster_that_is_away_is_told_afterwards_also_by_an_ingest_that_was_started_anew() {
    let mut cluster = Cluster::new();
    let ingest = cluster.ingest("a", &[]).await;
    cluster.auth.kill();
    let agent = cluster.as_agent(&ingest, AGENT);
    let receipt = agent.upload(&id(1).to_string(), b"hello").await.unwrap().receipt.unwrap();
    let diagnostics = ingest.diagnostics_address();
    eventually(|| async move {
        page(diagnostics, "/metrics").await.1.contains("mezite_ingest_audit_pending 1\n")
    })
    .await;
    assert!(ingest.stop().await);
    assert_eq!(notices(&cluster), 1);
    cluster.restart_auth();
    let _ingest = cluster.ingest("a", &[]).await;
    eventually(|| async { notices(&cluster) == 0 }).await;
    let event = told(&cluster).remove(0);
    assert_eq!((event.event.as_str(), event.target), ("session.upload", format!("recording:{}", id(1))));
    let field = |name: &str| event.fields[name].as_str();
    assert_eq!(
        ["user", "login", "node", "agent_id", "state", "size", "revision"].map(field),
        ["alice", "root", HOSTNAME, AGENT, "COMPLETE", "5", "0"]
    );
    assert_eq!(field("manifest_sha256"), hex::encode(sha256(&receipt.manifest)));
}

#[tokio::test]
async fn an_event_whose_answer_is_lost_is_told_again_under_the_same_key() {
    let cluster = Cluster::new();
    cluster.script.failing.lock().unwrap().insert("EmitAuditEvent", 2);
    let ingest = cluster.ingest("a", &[]).await;
    let agent = cluster.as_agent(&ingest, AGENT);
    for n in [1, 2] {
        agent.upload(&id(n).to_string(), b"hello").await.unwrap();
        eventually(|| async { notices(&cluster) == 0 }).await;
    }
    let calls = cluster.auth.calls().into_iter().filter(|call| call.method == "EmitAuditEvent");
    let keys: Vec<_> = calls.map(|call| call.metadata.get(IDEMPOTENCY_KEY).unwrap().clone()).collect();
    let [first, second, third, other] = keys.as_slice() else { panic!("{keys:?}") };
    assert!(first == second && second == third && other != first);
}

#[tokio::test]
async fn what_another_ingest_sealed_is_left_to_it_for_a_while_and_no_longer() {
    let mut cluster = Cluster::new();
    let ingest = cluster.ingest("a", &[]).await;
    cluster.auth.kill();
    cluster.as_agent(&ingest, AGENT).upload(&id(1).to_string(), b"hello").await.unwrap();
    assert!(ingest.stop().await);
    // As if it were another's.
    let path = cluster.store().join(recording_prefix(id(1))).join("manifest/0000.json");
    let mut manifest = decode_signed_manifest(id(1), &fs::read(&path).unwrap()).unwrap().manifest;
    manifest.ingest_id = AGENT.parse().unwrap();
    fs::write(&path, encode_signed_manifest(&manifest.encode().unwrap(), "").unwrap()).unwrap();
    cluster.restart_auth();

    let ingest = cluster.ingest("a", &[]).await;
    cluster.as_agent(&ingest, AGENT).upload(&id(2).to_string(), b"hello").await.unwrap();
    eventually(|| async { notices(&cluster) == 1 }).await;
    assert!(told(&cluster).iter().all(|event| event.target.ends_with(&id(2).to_string())));
    assert!(ingest.stop().await);
    let _ingest = cluster.ingest("a", &["control.report_takeover=200ms"]).await;
    eventually(|| async { notices(&cluster) == 0 }).await;
    assert!(told(&cluster).last().unwrap().target.ends_with(&id(1).to_string()));
}
