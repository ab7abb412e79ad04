//! What becomes of recordings when nobody calls: abandoned ones, damaged ones, old ones.

use std::{collections::BTreeSet, fs, io::Cursor, path::PathBuf};

use mezite_client::{Client, ClientConfig, Payload, UploadLimits, Uploader};
use mezite_proto::v1::{ListSessionRecordingsRequest as List, RecordingState};
use recording_format::{
    Deletion, Gap, Manifest, Metadata, RecordingId, RecordingState as Ended, decode_signed_manifest,
    recording_prefix,
};
use recording_ingest::Handle;
use tonic::Code;

use crate::{
    cluster::{AGENT, Cluster},
    wire::{Wire, chunk, eventually, header, id, last, metadata, page, reason, wrapped},
};

/// Short enough to be waited for.
const GRACE: &str = "abandon.grace=300ms";

async fn begin(agent: &Wire, id: RecordingId, parts: &[&[u8]]) {
    let mut offset = 0;
    for part in parts {
        let metadata = (offset == 0).then(metadata);
        let reply = agent.stream(vec![header(id, offset, metadata), chunk(offset, part)]).await.unwrap();
        offset = reply.committed_offset;
    }
}

async fn state(auth: &Wire, id: RecordingId) -> Option<RecordingState> {
    let listed = auth.list(List::default()).await.unwrap().recordings;
    listed.into_iter().find(|row| row.recording_id == id.to_string()).map(|row| row.state())
}

async fn interrupted(auth: &Wire, id: RecordingId) {
    eventually(|| async { state(auth, id).await == Some(RecordingState::Interrupted) }).await;
}

fn folder(cluster: &Cluster, id: RecordingId) -> PathBuf {
    cluster.store().join(recording_prefix(id))
}

fn manifest(cluster: &Cluster, id: RecordingId, revision: u16) -> Manifest {
    let object = fs::read(folder(cluster, id).join(format!("manifest/{revision:04}.json"))).unwrap();
    decode_signed_manifest(id, &object).unwrap().manifest
}

/// Objects whose keys have this in them.
fn of(cluster: &Cluster, part: &str) -> Vec<String> {
    cluster.objects().into_iter().filter(|key| key.contains(part)).collect()
}

fn damage(cluster: &Cluster, id: RecordingId, start: u64) {
    let segment = folder(cluster, id).join(format!("seg/{start:020}.seg"));
    let mut bytes = fs::read(&segment).unwrap();
    bytes[93] ^= 1;
    fs::write(&segment, bytes).unwrap();
}

async fn upload(cluster: &Cluster, ingest: &Handle, id: RecordingId, bytes: &[u8]) -> Manifest {
    let agent = ClientConfig {
        identity: Some(cluster.agent(AGENT).client_identity()),
        ..ClientConfig::new(vec![cluster.auth.address()], cluster.script.ca.trust())
    };
    let client = Client::new(agent).unwrap().for_recordings(&[ingest.address().to_string()]).unwrap();
    let mut source = Payload::measure(Cursor::new(bytes.to_vec())).await.unwrap();
    let uploader = Uploader::new(client, UploadLimits::default());
    uploader.upload(id, &metadata(), &mut source).await.unwrap().manifest
}

#[tokio::test]
async fn a_silent_recording_is_sealed_and_goes_on_when_its_agent_returns() {
    let cluster = Cluster::new();
    let ingest = cluster.ingest("a", &[GRACE]).await;
    let (agent, auth) = (cluster.as_agent(&ingest, AGENT), cluster.as_auth(&ingest));
    begin(&agent, id(1), &[b"hello"]).await;
    interrupted(&auth, id(1)).await;
    let first = manifest(&cluster, id(1), 0);
    assert_eq!((first.state, first.length, first.agent_certificate_sha256), (Ended::Interrupted, 5, None));
    let Metadata { started_at_ms, ended_at_ms, .. } = first.metadata;
    assert!(
        ended_at_ms.is_some_and(|end| (started_at_ms..=first.sealed_at_ms).contains(&end)),
        "{ended_at_ms:?}"
    );
    assert_eq!(auth.download(&id(1).to_string(), 0).await.unwrap(), b"hello");
    eventually(|| async { of(&cluster, "open/").is_empty() }).await;

    let probed = agent.probe(id(1)).await.unwrap();
    assert_eq!((probed.committed_offset, probed.state()), (5, RecordingState::Interrupted));
    assert_eq!(probed.receipt, None);
    let on = vec![header(id(1), 5, None), chunk(5, b" world"), last(b"hello world")];
    let receipt = agent.stream(on).await.unwrap().receipt.unwrap();
    let second = Manifest::decode(id(1), &receipt.manifest).unwrap();
    assert_eq!((second.state, second.revision, second.length), (Ended::Complete, 1, 11));
    // The same chain, only longer.
    assert_eq!(second.segments[..first.segments.len()], first.segments);
    assert_eq!(auth.download(&id(1).to_string(), 0).await.unwrap(), b"hello world");
    assert_eq!(state(&auth, id(1)).await, Some(RecordingState::Complete));
}

#[tokio::test]
async fn a_session_that_is_quiet_goes_on_while_its_agent_says_so() {
    let cluster = Cluster::new();
    let ingest = cluster.ingest("a", &["abandon.grace=2s"]).await;
    let (agent, auth) = (cluster.as_agent(&ingest, AGENT), cluster.as_auth(&ingest));
    begin(&agent, id(1), &[b"quiet"]).await;
    // Of those that are younger, two are ended one after the other: it has had its turn in between.
    for n in [2, 3] {
        begin(&agent, id(n), &[b"x"]).await;
        eventually(|| async {
            assert_eq!(agent.probe(id(1)).await.unwrap().state(), RecordingState::InProgress);
            state(&auth, id(n)).await == Some(RecordingState::Interrupted)
        })
        .await;
    }
    interrupted(&auth, id(1)).await;
    // Saying so of one that was given up is not going on with it.
    assert_eq!(agent.probe(id(1)).await.unwrap().state(), RecordingState::Interrupted);
    assert_eq!(of(&cluster, "open/"), [] as [&str; 0]);
}

#[tokio::test]
async fn one_that_a_call_writes_is_left_alone() {
    let cluster = Cluster::new();
    let ingest = cluster.ingest("a", &[GRACE, "limits.flush_interval=1h"]).await;
    let (agent, auth) = (cluster.as_agent(&ingest, AGENT), cluster.as_auth(&ingest));
    let (sender, reply) = agent.open();
    sender.send(wrapped(header(id(1), 0, Some(metadata())))).await.unwrap();
    sender.send(wrapped(chunk(0, b"hello"))).await.unwrap();
    eventually(|| async { !of(&cluster, &format!("open/v1/{}", id(1))).is_empty() }).await;
    // Of those that are younger, two are ended one after the other: it has had its turn in between.
    for n in [2, 3] {
        begin(&agent, id(n), &[b"x"]).await;
        interrupted(&auth, id(n)).await;
    }
    sender.send(wrapped(last(b"hello"))).await.unwrap();
    drop(sender);
    assert_eq!(reply.await.unwrap().unwrap().state(), RecordingState::Complete);
    assert_eq!(manifest(&cluster, id(1), 0).state, Ended::Complete);
}

#[tokio::test]
async fn replicas_that_end_the_same_recordings_make_one_manifest_of_each() {
    let cluster = Cluster::new();
    let one = cluster.ingest("a", &[GRACE]).await;
    let two = cluster.ingest("b", &[GRACE]).await;
    let agent = cluster.as_agent(&one, AGENT);
    for n in 1..=20 {
        begin(&agent, id(n), &[b"hello"]).await;
    }
    for replica in [&one, &two] {
        for n in 1..=20 {
            interrupted(&cluster.as_auth(replica), id(n)).await;
        }
    }
    eventually(|| async { of(&cluster, "open/").is_empty() }).await;
    assert_eq!((of(&cluster, "/manifest/").len(), of(&cluster, "idx/").len()), (20, 20));
}

#[tokio::test]
async fn a_damaged_segment_is_put_aside_and_the_agent_sends_the_rest_again() {
    let cluster = Cluster::new();
    let one = cluster.ingest("a", &[]).await;
    let agent = cluster.as_agent(&one, AGENT);
    begin(&agent, id(1), &[b"aaaa", b"bbbb", b"cccc"]).await;
    begin(&agent, id(2), &[b"good"]).await;
    assert!(one.stop().await);
    damage(&cluster, id(1), 4);

    let two = cluster.ingest("b", &[GRACE]).await;
    let auth = cluster.as_auth(&two);
    for n in [1, 2] {
        interrupted(&auth, id(n)).await;
    }
    let first = manifest(&cluster, id(1), 0);
    assert_eq!((first.length, first.gaps), (4, vec![Gap { start: 4, length: 8 }]));
    assert_eq!(auth.download(&id(1).to_string(), 0).await.unwrap(), b"aaaa");
    assert_eq!(of(&cluster, "quarantine/").len(), 2);
    let (_, metrics) = page(two.diagnostics_address(), "/metrics").await;
    assert!(metrics.contains("mezite_ingest_quarantined_objects_total 2\n"), "{metrics}");

    let second = upload(&cluster, &two, id(1), b"aaaabbbbcccc").await;
    assert_eq!((second.state, second.length, second.gaps), (Ended::Complete, 12, vec![]));
    assert_eq!(auth.download(&id(1).to_string(), 0).await.unwrap(), b"aaaabbbbcccc");
    assert_eq!(of(&cluster, "quarantine/").len(), 2);
}

#[tokio::test]
async fn a_damaged_manifest_is_put_aside_and_the_next_is_another_revision() {
    let cluster = Cluster::new();
    let ingest = cluster.ingest("a", &[]).await;
    let (agent, auth) = (cluster.as_agent(&ingest, AGENT), cluster.as_auth(&ingest));
    assert_eq!(upload(&cluster, &ingest, id(1), b"hello").await.revision, 0);
    let told = || {
        let told = crate::telling::told(&cluster).into_iter().filter(|event| event.event == "session.upload");
        told.map(|event| event.fields["manifest_sha256"].clone()).collect::<BTreeSet<_>>().len()
    };
    eventually(|| async { told() == 1 }).await;
    let path = folder(&cluster, id(1)).join("manifest/0000.json");
    let whole = fs::read(&path).unwrap();
    // What a later release wrote is nobody's to move.
    let later = String::from_utf8(whole.clone()).unwrap().replacen("\"version\":1", "\"version\":9", 1);
    for (damaged, why) in
        [(later.into_bytes(), "DAMAGED"), (whole[..whole.len() / 2].to_vec(), "QUARANTINED")]
    {
        fs::write(&path, damaged).unwrap();
        let refused = agent.probe(id(1)).await.unwrap_err();
        assert_eq!((refused.code(), reason(&refused).0.as_str()), (Code::DataLoss, why));
    }
    assert_eq!((of(&cluster, "quarantine/").len(), of(&cluster, "idx/").len()), (1, 0));
    eventually(|| async { state(&auth, id(1)).await == Some(RecordingState::InProgress) }).await;

    let again = upload(&cluster, &ingest, id(1), b"hello").await;
    assert_eq!((again.state, again.revision), (Ended::Complete, 1));
    eventually(|| async { state(&auth, id(1)).await == Some(RecordingState::Complete) }).await;
    eventually(|| async { told() == 2 }).await;
    assert_eq!(auth.download(&id(1).to_string(), 0).await.unwrap(), b"hello");
    eventually(|| async { of(&cluster, "open/").is_empty() }).await;
}

#[tokio::test]
async fn an_end_that_finds_damage_says_where_to_go_on_from() {
    let cluster = Cluster::new();
    let one = cluster.ingest("a", &[]).await;
    begin(&cluster.as_agent(&one, AGENT), id(1), &[b"aaaa", b"bbbb"]).await;
    damage(&cluster, id(1), 4);
    let two = cluster.ingest("b", &[]).await;
    let agent = cluster.as_agent(&two, AGENT);
    let refused = agent.stream(vec![header(id(1), 8, None), last(b"aaaabbbb")]).await.unwrap_err();
    let (why, info) = reason(&refused);
    assert_eq!(
        (refused.code(), why.as_str(), info["committed_offset"].as_str()),
        (Code::DataLoss, "QUARANTINED", "4")
    );
    assert_eq!(agent.probe(id(1)).await.unwrap().committed_offset, 4);
    let again = vec![header(id(1), 4, None), chunk(4, b"bbbb"), last(b"aaaabbbb")];
    assert_eq!(agent.stream(again).await.unwrap().state(), RecordingState::Complete);
}

#[tokio::test]
async fn without_its_begin_a_recording_is_put_aside_whole_and_readers_are_told() {
    let cluster = Cluster::new();
    let ingest = cluster.ingest("a", &[]).await;
    let (agent, auth) = (cluster.as_agent(&ingest, AGENT), cluster.as_auth(&ingest));
    begin(&agent, id(1), &[b"hello"]).await;
    fs::write(folder(&cluster, id(1)).join("begin.json"), "{").unwrap();
    let refused = auth.get(&id(1).to_string(), 0, 5).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).0.as_str()), (Code::DataLoss, "DAMAGED"));
    let refused = agent.probe(id(1)).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).0.as_str()), (Code::DataLoss, "QUARANTINED"));
    let refused = auth.get(&id(1).to_string(), 0, 5).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).0.as_str()), (Code::DataLoss, "QUARANTINED"));
    eventually(|| async { state(&auth, id(1)).await.is_none() }).await;
    assert_eq!((of(&cluster, "quarantine/").len(), of(&cluster, "open/").len()), (2, 0));
    // Its agent has it still, and another recording was never in the way.
    assert_eq!(upload(&cluster, &ingest, id(1), b"hello").await.state, Ended::Complete);
    assert_eq!(upload(&cluster, &ingest, id(2), b"hello").await.state, Ended::Complete);
    assert_eq!(auth.download(&id(1).to_string(), 0).await.unwrap(), b"hello");
}

#[tokio::test]
async fn what_need_not_be_kept_is_deleted_and_an_open_recording_never() {
    let cluster = Cluster::new();
    let set = ["retention.keep=300ms", "retention.interval=50ms"];
    let one = cluster.ingest("a", &set).await;
    let two = cluster.ingest("b", &[]).await;
    let (agent, auth) = (cluster.as_agent(&one, AGENT), cluster.as_auth(&one));
    begin(&agent, id(2), &[b"open"]).await;
    agent.upload(&id(1).to_string(), b"hello").await.unwrap();
    let sealed = manifest(&cluster, id(1), 0);
    assert_eq!(sealed.retain_until_ms, Some(sealed.sealed_at_ms + 300));
    let gone = || async { of(&cluster, &id(1).to_string()).is_empty() };
    eventually(gone).await;
    for replica in [&one, &two] {
        let auth = cluster.as_auth(replica);
        eventually(|| async { state(&auth, id(1)).await.is_none() }).await;
        eventually(|| async { state(&auth, id(2)).await == Some(RecordingState::InProgress) }).await;
    }
    assert_eq!(auth.get(&id(1).to_string(), 0, 1).await.unwrap_err().code(), Code::NotFound);
    // Both replicas have one name here, and may tell the same; auth nodes know that by the key.
    let told = crate::telling::told(&cluster);
    let told = ["session.upload", "session.recording.delete"]
        .map(|name| told.iter().any(|event| event.event == name));
    assert_eq!(told, [true, true]);
    assert_eq!(upload(&cluster, &one, id(2), b"open").await.state, Ended::Complete);
    // It is another recording that begins under the name.
    agent.upload(&id(1).to_string(), b"anew").await.unwrap();
}

#[tokio::test]
async fn a_deletion_that_a_crash_cut_short_is_gone_on_with() {
    let cluster = Cluster::new();
    let ingest = cluster.ingest("a", &["retention.keep=1h"]).await;
    let agent = cluster.as_agent(&ingest, AGENT);
    let name = id(1).to_string();
    agent.upload(&name, b"hello").await.unwrap();
    agent.upload(&id(2).to_string(), b"kept").await.unwrap();
    eventually(|| async { of(&cluster, "audit/").is_empty() }).await;
    assert!(ingest.stop().await);
    // It was decided; the index and the manifest are gone, and more is not.
    let path = folder(&cluster, id(1)).join("manifest/0000.json");
    let signed = decode_signed_manifest(id(1), &fs::read(&path).unwrap()).unwrap();
    let deletion = Deletion::new(&signed, signed.manifest.sealed_at_ms, signed.manifest.ingest_id);
    fs::write(cluster.store().join(format!("gone/v1/{name}.json")), deletion.encode().unwrap()).unwrap();
    fs::remove_file(path).unwrap();
    for entry in of(&cluster, &format!("idx/v1/2023/11/14/22/1700000000000-{name}")) {
        fs::remove_file(cluster.store().join(entry)).unwrap();
    }
    // Nobody adds to what is going: it would go with it.
    let ingest = cluster.ingest("a", &["retention.keep=1h"]).await;
    let agent = cluster.as_agent(&ingest, AGENT);
    let refused = agent.stream(vec![header(id(1), 5, None), chunk(5, b" world")]).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).0.as_str()), (Code::Unavailable, "GOING"));
    assert!(ingest.stop().await);
    let ingest = cluster.ingest("a", &["retention.keep=1h", "retention.interval=50ms"]).await;
    eventually(|| async { of(&cluster, &name).is_empty() }).await;
    let auth = cluster.as_auth(&ingest);
    eventually(|| async { state(&auth, id(1)).await.is_none() }).await;
    assert_eq!(auth.download(&id(2).to_string(), 0).await.unwrap(), b"kept");
}
