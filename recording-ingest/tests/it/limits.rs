//! Bounds that are the operator's to set: memory, the disk, and how large a recording may become.

use std::{fs, io::Cursor, path::Path, process::Command};

use mezite_client::{Client, ClientConfig, Payload, UploadError, UploadLimits, Uploader};
use mezite_pki::ssh::SshKeyPair;
use mezite_proto::v1::RecordingState;
use recording_format::{
    Begin, ChainHead, Codec, Digest, MANIFEST_NAMESPACE, MAX_SEGMENTS, Manifest, RecordingState as Ended,
    SegmentBuilder, SegmentRef, encode_signed_manifest, manifest_prefix, recording_prefix, segment_prefix,
};
use recording_ingest::Handle;
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::{
    cluster::{AGENT, Cluster},
    wire::{chunk, eventually, header, id, last, metadata, page, payload, reason, wrapped},
};

/// The value of a metric of this process.
async fn metric(ingest: &Handle, name: &str) -> Option<f64> {
    let (_, page) = page(ingest.diagnostics_address(), "/metrics").await;
    let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    Some(line.parse().unwrap())
}

fn uploader(cluster: &Cluster, ingest: &Handle) -> Uploader {
    let agent = ClientConfig {
        identity: Some(cluster.agent(AGENT).client_identity()),
        ..ClientConfig::new(vec![cluster.auth.address()], cluster.script.ca.trust())
    };
    let client = Client::new(agent).unwrap().for_recordings(&[ingest.address().to_string()]).unwrap();
    Uploader::new(client, UploadLimits::default())
}

#[tokio::test]
async fn calls_that_hold_memory_and_fall_silent_keep_no_others_waiting() {
    const CALLS: u8 = 12;
    const HALF: usize = 400_000;
    let cluster = Cluster::new();
    let set = ["limits.memory_bytes=2097152", "limits.segment_bytes=1048576", "limits.flush_interval=1h"];
    let ingest = cluster.ingest("a", &set).await;
    let agent = cluster.as_agent(&ingest, AGENT);
    let bytes = payload(2 * HALF);
    let mut calls = Vec::new();
    // All together hold more than twice what there is, none has a whole segment, and none ends.
    for n in 1..=CALLS {
        let (sender, reply) = agent.open();
        sender.send(wrapped(header(id(n), 0, Some(metadata())))).await.unwrap();
        sender.send(wrapped(chunk(0, &bytes[..HALF]))).await.unwrap();
        calls.push((n, sender, reply));
    }
    let taken = |halves: usize| {
        let (ingest, bytes) = (&ingest, (halves * HALF) as f64);
        move || async move {
            let held = metric(ingest, "mezite_ingest_memory_held_bytes").await.unwrap_or_default();
            assert!(held <= 2_097_152.0, "{held}");
            metric(ingest, "mezite_ingest_received_bytes_total").await == Some(bytes)
        }
    };
    eventually(taken(CALLS.into())).await;
    for (_, sender, _) in &calls {
        sender.send(wrapped(chunk(HALF as u64, &bytes[HALF..]))).await.unwrap();
        sender.send(wrapped(last(&bytes))).await.unwrap();
    }
    eventually(taken(2 * usize::from(CALLS))).await;
    let auth = cluster.as_auth(&ingest);
    for (n, sender, reply) in calls {
        drop(sender);
        assert_eq!(reply.await.unwrap().unwrap().state(), RecordingState::Complete);
        assert_eq!(auth.download(&id(n).to_string(), 0).await.unwrap(), bytes);
    }
    assert_eq!(metric(&ingest, "mezite_ingest_memory_held_bytes").await, Some(0.0));
}

#[tokio::test]
async fn what_a_long_call_brings_is_durable_before_it_ends() {
    let cluster = Cluster::new();
    let ingest = cluster.ingest("a", &["limits.flush_interval=50ms"]).await;
    let agent = cluster.as_agent(&ingest, AGENT);
    let (sender, reply) = agent.open();
    sender.send(wrapped(header(id(1), 0, Some(metadata())))).await.unwrap();
    sender.send(wrapped(chunk(0, b"hello"))).await.unwrap();
    let committed = || async { agent.probe(id(1)).await.is_ok_and(|reply| reply.committed_offset == 5) };
    eventually(committed).await;
    sender.send(wrapped(chunk(5, b" world"))).await.unwrap();
    sender.send(wrapped(last(b"hello world"))).await.unwrap();
    drop(sender);
    assert_eq!(reply.await.unwrap().unwrap().state(), RecordingState::Complete);
}

#[tokio::test]
async fn a_recording_that_becomes_too_large_is_sealed_with_what_is_there() {
    const MOST: usize = 100_000;
    let cluster = Cluster::new();
    let set = [format!("limits.max_recording_bytes={MOST}")];
    let set = set.each_ref().map(String::as_str);
    let bytes = payload(150_000);
    let one = cluster.ingest("a", &set).await;
    let agent = cluster.as_agent(&one, AGENT);
    let begun = vec![header(id(1), 0, Some(metadata())), chunk(0, &bytes[..90_000])];
    assert_eq!(agent.stream(begun).await.unwrap().committed_offset, 90_000);
    assert!(one.stop().await);

    // One that did not write the beginning has to read it.
    let two = cluster.ingest("b", &set).await;
    let agent = cluster.as_agent(&two, AGENT);
    let (sender, reply) = agent.open();
    sender.send(wrapped(header(id(1), 80_000, None))).await.unwrap();
    sender.send(wrapped(chunk(80_000, &bytes[80_000..120_000]))).await.unwrap();
    // The agent is answered while it still sends.
    let sealed = reply.await.unwrap().unwrap();
    assert_eq!((sealed.state(), sealed.committed_offset), (RecordingState::Truncated, MOST as u64));
    let manifest = Manifest::decode(id(1), &sealed.receipt.as_ref().unwrap().manifest).unwrap();
    assert_eq!((manifest.state, manifest.length), (Ended::Truncated, MOST as u64));
    assert!(manifest.metadata.ended_at_ms.is_some_and(|end| end <= manifest.sealed_at_ms));
    assert_eq!(manifest.payload_sha256.as_bytes()[..], crate::wire::sha256(&bytes[..MOST])[..]);

    // Whatever the agent goes on with is answered with the same receipt.
    for repeated in [
        vec![header(id(1), 0, None)],
        vec![header(id(1), 100_000, None), chunk(100_000, &bytes[100_000..])],
        vec![header(id(1), 120_000, None), chunk(120_000, &bytes[120_000..]), last(&bytes)],
        vec![header(id(1), 90_000, None), last(&bytes)],
    ] {
        assert_eq!(agent.stream(repeated).await.unwrap().receipt, sealed.receipt);
    }
    assert_eq!(cluster.as_auth(&two).download(&id(1).to_string(), 0).await.unwrap(), bytes[..MOST]);
    let mut source = Payload::measure(Cursor::new(bytes.clone())).await.unwrap();
    let refused = uploader(&cluster, &two).upload(id(2), &metadata(), &mut source).await.unwrap_err();
    assert!(matches!(refused, UploadError::Truncated { committed: 100_000, total: 150_000 }), "{refused}");
    let sealed = metric(&two, "mezite_ingest_recordings_sealed_total{state=\"truncated\"}").await;
    assert_eq!(sealed, Some(2.0));
    // One of just that size is whole.
    let mut source = Payload::measure(Cursor::new(bytes[..MOST].to_vec())).await.unwrap();
    let receipt = uploader(&cluster, &two).upload(id(3), &metadata(), &mut source).await.unwrap();
    assert_eq!(receipt.manifest.state, Ended::Complete);
}

/// What the store has of a recording of so many segments of one byte each; only as many of their objects as `objects`.
fn many_segments(cluster: &Cluster, bytes: &[u8], objects: usize) -> (ChainHead, Vec<SegmentRef>) {
    let folder = cluster.store().join(segment_prefix(id(1)));
    fs::create_dir_all(&folder).unwrap();
    let begin = fs::read(folder.with_file_name("begin.json")).unwrap();
    let (mut head, mut segments) = (Begin::chain(id(1), &begin), Vec::new());
    for (start, byte) in (0_u64..).zip(bytes) {
        let mut builder = SegmentBuilder::new(id(1), start, Codec::Identity, head);
        builder.push(&[*byte], crc32c::crc32c(&[*byte])).unwrap();
        let segment = builder.finish().unwrap();
        if segments.len() < objects {
            fs::write(folder.join(format!("{start:020}.seg")), segment.to_bytes()).unwrap();
        }
        let object_length = segment.object_len();
        segments.push(SegmentRef { start, length: 1, object_length, sha256: segment.sha256 });
        head = segment.head;
    }
    (head, segments)
}

#[tokio::test]
async fn many_small_segments_are_read_by_who_seals_what_another_wrote() {
    let cluster = Cluster::new();
    let ingest = cluster.ingest("a", &["index.refresh_interval=1h"]).await;
    cluster.as_agent(&ingest, AGENT).stream(vec![header(id(1), 0, Some(metadata()))]).await.unwrap();
    let bytes = payload(2_000);
    let (head, segments) = many_segments(&cluster, &bytes, bytes.len());
    let mut source = Payload::measure(Cursor::new(bytes)).await.unwrap();
    let receipt = uploader(&cluster, &ingest).upload(id(1), &metadata(), &mut source).await.unwrap();
    assert_eq!((receipt.manifest.chain_head, receipt.manifest.segments), (head, segments));
}

#[tokio::test]
async fn the_receipt_of_the_most_segments_reaches_its_agent() {
    let cluster = Cluster::new();
    let ingest = cluster.ingest("a", &["index.refresh_interval=1h"]).await;
    let agent = cluster.as_agent(&ingest, AGENT);
    agent.stream(vec![header(id(1), 0, Some(metadata()))]).await.unwrap();
    let small = agent.upload(&id(2).to_string(), b"x").await.unwrap().receipt.unwrap();
    let bytes = payload(MAX_SEGMENTS);
    let (chain_head, segments) = many_segments(&cluster, &bytes, 0);
    let begin = fs::read(cluster.store().join(recording_prefix(id(1))).join("begin.json")).unwrap();
    let key = SshKeyPair::generate_ed25519("").unwrap();
    let manifest = Manifest {
        recording_id: id(1),
        length: bytes.len() as u64,
        payload_sha256: Digest::of(&bytes),
        begin_sha256: Digest::of(&begin),
        signing_key: key.public_line().to_owned(),
        chain_head,
        segments,
        ..Manifest::decode(id(2), &small.manifest).unwrap()
    };
    let document = manifest.encode().unwrap();
    assert!((11 << 20..15 << 20).contains(&document.len()), "{}", document.len());
    let signature = key.sign_sshsig(MANIFEST_NAMESPACE, &document).unwrap();
    let folder = cluster.store().join(manifest_prefix(id(1)));
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("0000.json"), encode_signed_manifest(&document, &signature).unwrap()).unwrap();
    let mut source = Payload::measure(Cursor::new(bytes)).await.unwrap();
    let receipt = uploader(&cluster, &ingest).upload(id(1), &metadata(), &mut source).await.unwrap();
    assert_eq!(receipt.signed.manifest, document);
}

/// A small disk of its own, where the tests may mount one.
struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    fn mount(at: &'a Path, options: &str) -> Option<Self> {
        fs::create_dir_all(at).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(at);
        mount.output().is_ok_and(|output| output.status.success()).then_some(Self(at))
    }

    /// Fills it so that so many bytes are left, or as many as there are.
    fn leave(&self, free: usize) {
        let ballast = self.0.join("ballast");
        let _ = fs::remove_file(&ballast);
        let left = nix::sys::statvfs::statvfs(self.0).unwrap();
        let left = usize::try_from(left.fragment_size() * left.blocks_available()).unwrap();
        fs::write(&ballast, vec![1; left.saturating_sub(free)]).unwrap();
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

#[tokio::test]
async fn a_disk_that_fills_up_refuses_what_is_new_then_what_grows_and_never_the_end() {
    let cluster = Cluster::new();
    let store = cluster.store();
    let Some(disk) = SmallDisk::mount(&store, "size=32m") else {
        assert!(!nix::unistd::geteuid().is_root(), "root can mount a file system");
        println!("no right to mount: the marks are tested beside their code alone");
        return;
    };
    let marks = ["disk.refuse_new=16000000", "disk.refuse_appends=8000000", "disk.reserve=1000000"];
    let ingest = cluster.ingest("a", &marks).await;
    let agent = cluster.as_agent(&ingest, AGENT);
    for n in 1..=3 {
        agent.stream(vec![header(id(n), 0, Some(metadata())), chunk(0, b"hello")]).await.unwrap();
    }
    let is_full = |result: Result<mezite_proto::v1::StreamSessionRecordingResponse, tonic::Status>| {
        let refused = result.unwrap_err();
        assert_eq!((refused.code(), reason(&refused).0.as_str()), (Code::ResourceExhausted, "STORE_LOW"));
        assert!(refused.get_details_retry_info().unwrap().retry_delay.is_some());
    };
    disk.leave(12_000_000);
    is_full(agent.stream(vec![header(id(9), 0, Some(metadata())), chunk(0, b"x")]).await);
    let grown = agent.stream(vec![header(id(1), 5, None), chunk(5, b" ")]).await.unwrap();
    assert_eq!(grown.committed_offset, 6);

    disk.leave(4_000_000);
    is_full(agent.stream(vec![header(id(1), 6, None), chunk(6, b"world")]).await);
    assert_eq!(
        agent.stream(vec![header(id(1), 6, None), last(b"hello ")]).await.unwrap().committed_offset,
        6
    );

    // Others have taken the last byte: the reserve is what the end is written to.
    disk.leave(0);
    let sealed = agent.stream(vec![header(id(2), 5, None), last(b"hello")]).await.unwrap();
    assert_eq!(sealed.state(), RecordingState::Complete);
    assert_eq!(cluster.as_auth(&ingest).download(&id(2).to_string(), 0).await.unwrap(), b"hello");

    disk.leave(20_000_000);
    let on = agent.stream(vec![header(id(3), 5, None), chunk(5, b"!"), last(b"hello!")]).await.unwrap();
    assert_eq!(on.state(), RecordingState::Complete);
    // It was taken again, and helps again.
    disk.leave(20_000_000);
    agent.stream(vec![header(id(4), 0, Some(metadata())), chunk(0, b"hello")]).await.unwrap();
    disk.leave(0);
    let sealed = agent.stream(vec![header(id(4), 5, None), last(b"hello")]).await.unwrap();
    assert_eq!(sealed.state(), RecordingState::Complete);
    assert!(ingest.stop().await);
}
