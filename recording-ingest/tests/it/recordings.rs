//! Recordings that are written and read back: batches, resuming, sealing.

use std::{fs, io::Cursor, sync::Arc};

use mezite_client::{Client, ClientConfig, Payload, UploadLimits, Uploader};
use mezite_proto::v1::RecordingState;
use recording_format::{Manifest, RecordingState as Ended};
use recording_ingest::Handle;
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::{
    cluster::{AGENT, Cluster, INGEST_ID},
    wire::{Wire, chunk, eventually, header, id, last, metadata, page, payload, reason, sha256, wrapped},
};

#[tokio::test]
async fn an_agent_uploads_in_batches_and_an_auth_node_reads_it_back() {
    let cluster = Cluster::new();
    let ingest = cluster.ingest("a", &[]).await;
    let agent = ClientConfig {
        identity: Some(cluster.agent(AGENT).client_identity()),
        ..ClientConfig::new(vec![cluster.auth.address()], cluster.script.ca.trust())
    };
    let client = Client::new(agent).unwrap().for_recordings(&[ingest.address().to_string()]).unwrap();
    let limits = UploadLimits { chunk: 10_000, batch: 300_000, ..UploadLimits::default() };
    let bytes = payload(1_000_000);
    let mut source = Payload::measure(Cursor::new(bytes.clone())).await.unwrap();
    let receipt = Uploader::new(client, limits).upload(id(7), &metadata(), &mut source).await.unwrap();
    assert_eq!(receipt.manifest.length, 1_000_000);
    assert_eq!(
        (receipt.manifest.ingest_id.to_string(), receipt.manifest.agent_id.to_string()),
        (INGEST_ID.into(), AGENT.into())
    );
    assert!(receipt.manifest.agent_certificate_sha256.is_some() && receipt.manifest.relayed_by.is_none());
    assert!(receipt.manifest.segments.len() > 10);

    let (auth, name) = (cluster.as_auth(&ingest), id(7).to_string());
    let got = auth.get(&name, 0, 0).await.unwrap();
    let shown = got.recording.unwrap();
    assert_eq!(
        (shown.state(), shown.size, shown.agent_id.as_str()),
        (RecordingState::Complete, 1_000_000, AGENT)
    );
    assert_eq!((shown.payload_sha256, got.data.len()), (sha256(&bytes), 0));
    assert_eq!(shown.manifest_sha256, sha256(&receipt.signed.manifest));
    for (offset, limit) in [(0, 10), (65_000, 70_000), (999_990, 100), (1_000_000, 1)] {
        let (from, to) = (offset as usize, (offset as usize + limit as usize).min(bytes.len()));
        assert_eq!(auth.get(&name, offset, limit).await.unwrap().data, bytes[from..to], "{offset} {limit}");
    }
    assert_eq!(auth.get(&name, 1_000_001, 1).await.unwrap_err().code(), Code::OutOfRange);
    assert_eq!(auth.download(&name, 0).await.unwrap(), bytes);
    assert_eq!(auth.download(&name, 999_000).await.unwrap(), bytes[999_000..]);
    assert_eq!(auth.download(&name, 1_000_001).await.unwrap_err().code(), Code::OutOfRange);

    let folder = format!("rec/v1/07/{name}");
    let objects = cluster.objects();
    for key in [
        format!("{folder}/begin.json"),
        format!("{folder}/manifest/0000.json"),
        format!("{folder}/seg/00000000000000000000.seg"),
    ] {
        assert!(objects.contains(&key), "{key} is not among {objects:?}");
    }
    assert!(objects.contains(&format!("idx/v1/2023/11/14/22/1700000000000-{name}-0000.json")));
    assert!(!objects.iter().any(|key| key.starts_with("open/") || key.contains('#')), "{objects:?}");
}

#[tokio::test]
async fn what_is_pending_is_bounded_by_what_it_takes_and_not_by_its_payload() {
    let cluster = Cluster::new();
    let ingest = cluster.ingest("a", &[]).await;
    let agent = cluster.as_agent(&ingest, AGENT);
    // Each byte is a chunk of its own, which takes nine in memory and in the object.
    let bytes = payload(20_000);
    let mut messages = vec![header(id(3), 0, Some(metadata()))];
    messages.extend((0..).zip(&bytes).map(|(offset, byte)| chunk(offset, &[*byte])));
    messages.push(last(&bytes));
    let receipt = agent.stream(messages).await.unwrap().receipt.unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&receipt.manifest).unwrap();
    let segments = manifest["segments"].as_array().unwrap();
    // 65,536 bytes are configured; a segment ends with the chunk that reaches them.
    let longest = segments.iter().map(|segment| segment["object_length"].as_u64().unwrap()).max().unwrap();
    assert!(segments.len() >= 3 && longest < 66_000, "{} of at most {longest}", segments.len());
    let auth = cluster.as_auth(&ingest);
    assert_eq!(auth.download(&id(3).to_string(), 0).await.unwrap(), bytes);
}

#[tokio::test]
async fn a_probe_tells_what_is_durable() {
    let cluster = Cluster::new();
    let ingest = cluster.ingest("a", &[]).await;
    let agent = cluster.as_agent(&ingest, AGENT);
    let unknown = agent.probe(id(1)).await.unwrap_err();
    assert_eq!((unknown.code(), reason(&unknown).0.as_str()), (Code::NotFound, "UNKNOWN_RECORDING"));

    let begun = agent.stream(vec![header(id(1), 0, Some(metadata()))]).await.unwrap();
    assert_eq!((begun.committed_offset, begun.state()), (0, RecordingState::InProgress));
    let first =
        agent.stream(vec![header(id(1), 0, None), chunk(0, b"hello "), chunk(6, b"world")]).await.unwrap();
    assert_eq!(
        (first.committed_offset, first.state(), first.receipt),
        (11, RecordingState::InProgress, None)
    );
    assert_ne!(first.chain_head, begun.chain_head);
    let probed = agent.probe(id(1)).await.unwrap();
    assert_eq!((probed.committed_offset, &probed.chain_head), (11, &first.chain_head));
    assert!(cluster.objects().contains(&format!("open/v1/{}", id(1))));
    // What is open can be read as far as it is durable.
    let name = id(1).to_string();
    assert_eq!(cluster.as_auth(&ingest).download(&name, 0).await.unwrap(), b"hello world");
    let shown = cluster.as_auth(&ingest).get(&name, 6, 100).await.unwrap();
    assert_eq!(
        (shown.data.as_ref(), shown.recording.unwrap().state()),
        (&b"world"[..], RecordingState::InProgress)
    );
}

#[tokio::test]
async fn a_recording_goes_on_after_a_restart_and_at_another_replica() {
    let cluster = Cluster::new();
    let bytes = payload(300_000);
    let one = cluster.ingest("a", &[]).await;
    let agent = cluster.as_agent(&one, AGENT);
    agent.stream(vec![header(id(1), 0, Some(metadata())), chunk(0, &bytes[..100_000])]).await.unwrap();
    assert!(one.stop().await);

    let one = cluster.ingest("a", &[]).await;
    let agent = cluster.as_agent(&one, AGENT);
    assert_eq!(agent.probe(id(1)).await.unwrap().committed_offset, 100_000);
    // Half of it is known.
    let reply = agent.stream(vec![header(id(1), 50_000, None), chunk(50_000, &bytes[50_000..200_000])]).await;
    assert_eq!(reply.unwrap().committed_offset, 200_000);

    let two = cluster.ingest("b", &[]).await;
    let agent = cluster.as_agent(&two, AGENT);
    let sealed = agent
        .stream(vec![header(id(1), 200_000, None), chunk(200_000, &bytes[200_000..]), last(&bytes)])
        .await;
    let sealed = sealed.unwrap();
    assert_eq!((sealed.committed_offset, sealed.state()), (300_000, RecordingState::Complete));
    let manifest = Manifest::decode(id(1), &sealed.receipt.unwrap().manifest).unwrap();
    assert_eq!((manifest.state, manifest.revision), (Ended::Complete, 0));
    // Either replica shows it, and so does the first one's list, which learns of it from the store.
    let name = id(1).to_string();
    for replica in [&one, &two] {
        assert_eq!(cluster.as_auth(replica).download(&name, 0).await.unwrap(), bytes);
        let auth = cluster.as_auth(replica);
        eventually(|| async {
            let page = auth.list(Default::default()).await.unwrap();
            page.recordings
                .iter()
                .any(|row| row.recording_id == name && row.state() == RecordingState::Complete)
        })
        .await;
    }
}

#[tokio::test]
async fn what_is_sealed_answers_the_same_receipt_and_nothing_else() {
    let cluster = Cluster::new();
    let ingest = cluster.ingest("a", &[]).await;
    let agent = cluster.as_agent(&ingest, AGENT);
    let whole = || vec![header(id(1), 0, Some(metadata())), chunk(0, b"hello"), last(b"hello")];
    let receipt = agent.stream(whole()).await.unwrap().receipt.unwrap();
    assert_eq!(agent.stream(whole()).await.unwrap().receipt.as_ref(), Some(&receipt));
    assert_eq!(agent.probe(id(1)).await.unwrap().receipt.as_ref(), Some(&receipt));
    assert_eq!(agent.upload(&id(1).to_string(), b"hello").await.unwrap().receipt.as_ref(), Some(&receipt));
    for wrong in [
        vec![header(id(1), 0, None), last(b"hellO")],
        vec![header(id(1), 0, None), last(b"hello!")],
        vec![header(id(1), 0, None), last(b"")],
        vec![header(id(1), 5, None), chunk(5, b"!")],
        vec![header(id(1), 6, None)],
    ] {
        let refused = agent.stream(wrong).await.unwrap_err();
        assert_eq!((refused.code(), reason(&refused).0.as_str()), (Code::FailedPrecondition, "SEALED"));
    }
}

#[tokio::test]
async fn a_whole_recording_is_uploaded_in_one_call() {
    let cluster = Cluster::new();
    let ingest = cluster.ingest("a", &[]).await;
    let (agent, auth) = (cluster.as_agent(&ingest, AGENT), cluster.as_auth(&ingest));
    let (full, empty) = (payload(1 << 20), Vec::new());
    for (n, bytes) in [(1, &full), (2, &empty)] {
        let name = id(n).to_string();
        let reply = agent.upload(&name, bytes).await.unwrap();
        assert_eq!((reply.committed_offset, reply.state()), (bytes.len() as u64, RecordingState::Complete));
        assert_eq!(agent.upload(&name, bytes).await.unwrap(), reply);
        assert_eq!(&auth.download(&name, 0).await.unwrap(), bytes);
    }
    let long = agent.upload(&id(3).to_string(), &payload((1 << 20) + 1)).await.unwrap_err();
    assert_eq!((long.code(), reason(&long).0.as_str()), (Code::InvalidArgument, "INVALID_FIELD"));
    assert_eq!(agent.probe(id(3)).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn what_was_received_whole_outlives_a_call_that_is_cancelled() {
    let cluster = Cluster::new();
    let ingest = cluster.ingest("a", &[]).await;
    let (sender, reply) = cluster.as_agent(&ingest, AGENT).open();
    sender.send(wrapped(header(id(1), 0, Some(metadata())))).await.unwrap();
    sender.send(wrapped(chunk(0, b"hello"))).await.unwrap();
    received(&ingest, 5).await;
    // Dropping the call resets the stream.
    reply.abort();
    drop(sender);
    let agent = cluster.as_agent(&ingest, AGENT);
    eventually(|| async { agent.probe(id(1)).await.unwrap().committed_offset == 5 }).await;
}

#[tokio::test]
async fn what_was_received_whole_outlives_a_connection_that_breaks() {
    let cluster = Cluster::new();
    let ingest = cluster.ingest("a", &[]).await;
    let (address, ca, leaf) = (ingest.address(), Arc::clone(&cluster.script), cluster.agent(AGENT));
    let elsewhere =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    elsewhere.spawn(async move {
        let (sender, reply) = Wire::to(address, &ca.ca, Some(&leaf)).open();
        sender.send(wrapped(header(id(1), 0, Some(metadata())))).await.unwrap();
        sender.send(wrapped(chunk(0, b"hello"))).await.unwrap();
        reply.await
    });
    received(&ingest, 5).await;
    // Its socket closes, and nothing is said before that.
    elsewhere.shutdown_background();
    let agent = cluster.as_agent(&ingest, AGENT);
    eventually(|| async { agent.probe(id(1)).await.unwrap().committed_offset == 5 }).await;
}

/// Waits until so many payload bytes have arrived.
async fn received(ingest: &Handle, bytes: u64) {
    let (diagnostics, line) =
        (ingest.diagnostics_address(), format!("mezite_ingest_received_bytes_total {bytes}\n"));
    eventually(|| async { page(diagnostics, "/metrics").await.1.contains(&line) }).await;
}

#[tokio::test]
async fn the_newer_call_takes_over() {
    let cluster = Cluster::new();
    let ingest = cluster.ingest("a", &[]).await;
    let (sender, older) = cluster.as_agent(&ingest, AGENT).open();
    sender.send(wrapped(header(id(1), 0, Some(metadata())))).await.unwrap();
    sender.send(wrapped(chunk(0, b"hello"))).await.unwrap();
    received(&ingest, 5).await;
    let newer = cluster.as_agent(&ingest, AGENT);
    let sealed =
        newer.stream(vec![header(id(1), 0, None), chunk(0, b"hello world"), last(b"hello world")]).await;
    assert_eq!(sealed.unwrap().state(), RecordingState::Complete);
    let superseded = older.await.unwrap().unwrap_err();
    let (why, info) = reason(&superseded);
    assert_eq!(
        (superseded.code(), why.as_str(), info["committed_offset"].as_str()),
        (Code::Aborted, "SUPERSEDED", "5")
    );
}

#[tokio::test]
async fn damage_in_the_store_is_never_handed_out() {
    let cluster = Cluster::new();
    let ingest = cluster.ingest("a", &["limits.cached_segments=0"]).await;
    let (agent, auth, bytes) = (cluster.as_agent(&ingest, AGENT), cluster.as_auth(&ingest), payload(200_000));
    let name = id(1).to_string();
    agent.upload(&name, &bytes).await.unwrap();
    let segment = cluster.store().join(format!("rec/v1/01/{name}/seg/00000000000000000000.seg"));
    let whole = fs::read(&segment).unwrap();
    let mut damaged = whole.clone();
    damaged[1_000] ^= 1;
    fs::write(&segment, &damaged).unwrap();
    for refused in [auth.get(&name, 0, 10).await.unwrap_err(), auth.download(&name, 0).await.unwrap_err()] {
        assert_eq!((refused.code(), reason(&refused).0.as_str()), (Code::DataLoss, "DAMAGED"));
        assert!(!refused.get_details_request_info().unwrap().request_id.is_empty());
    }
    fs::remove_file(&segment).unwrap();
    let refused = auth.get(&name, 0, 10).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).0.as_str()), (Code::DataLoss, "MISSING_OBJECT"));
    assert!(!refused.message().contains("/"), "{}", refused.message());
    fs::write(&segment, &whole).unwrap();
    assert_eq!(auth.download(&name, 0).await.unwrap(), bytes);
}

#[tokio::test]
async fn a_resumed_recording_with_damage_is_not_sealed() {
    let cluster = Cluster::new();
    let one = cluster.ingest("a", &[]).await;
    let agent = cluster.as_agent(&one, AGENT);
    agent.stream(vec![header(id(1), 0, Some(metadata())), chunk(0, b"hello ")]).await.unwrap();
    let segment = cluster.store().join(format!("rec/v1/01/{}/seg/00000000000000000000.seg", id(1)));
    let mut damaged = fs::read(&segment).unwrap();
    damaged[92] ^= 1;
    fs::write(&segment, damaged).unwrap();
    // Another replica has to read what it did not write.
    let two = cluster.ingest("b", &[]).await;
    let agent = cluster.as_agent(&two, AGENT);
    let refused = agent.stream(vec![header(id(1), 6, None), chunk(6, b"world"), last(b"hello world")]).await;
    assert_eq!(refused.unwrap_err().code(), Code::DataLoss);
    assert_eq!(agent.probe(id(1)).await.unwrap().state(), RecordingState::InProgress);
}
