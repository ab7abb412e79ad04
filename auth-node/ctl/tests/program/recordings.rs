//! Recordings through the program: sent until there is a receipt, fetched in ranges, and checked.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    process::Command,
    sync::{Arc, Mutex},
};

use mezite_client::testing::{Call, manifest, receipt, sign};
use mezite_pki::ssh::SshKeyPair;
use mezite_proto::v1::{self, stream_session_recording_request::Message};
use prost::Message as _;
use recording_format::{Digest, Gap, MANIFEST_NAMESPACE, Manifest, RecordingState};
use tonic::Status;

use crate::cluster::{AGENT, Cluster};

const ID: &str = "0190a1b2-0000-4000-8000-000000000001";

/// More than two ranges, and more than one batch.
fn payload() -> Vec<u8> {
    (0..5_000_000_u32).map(|index| (index % 251) as u8).collect()
}

/// One recording, as an ingest keeps it.
#[derive(Default)]
struct Kept {
    payload: Vec<u8>,
    metadata: Option<v1::RecordingMetadata>,
    receipt: Option<v1::RecordingReceipt>,
}

impl Kept {
    fn take(&mut self, call: &Call) -> Result<v1::StreamSessionRecordingResponse, Status> {
        for message in call.requests::<v1::StreamSessionRecordingRequest>() {
            match message.message.unwrap() {
                Message::Header(header) => {
                    assert_eq!(header.recording_id, ID);
                    self.metadata = self.metadata.take().or(header.metadata);
                    if self.metadata.is_none() {
                        return Err(Status::not_found("no such recording"));
                    }
                }
                Message::Chunk(chunk) => {
                    assert_eq!(chunk.offset, self.payload.len() as u64);
                    self.payload.extend_from_slice(&chunk.data);
                }
                Message::Final(_) => self.receipt = Some(self.seal()),
            }
        }
        let state = match self.receipt {
            Some(_) => v1::RecordingState::Complete,
            None => v1::RecordingState::InProgress,
        };
        Ok(v1::StreamSessionRecordingResponse {
            recording_id: ID.into(),
            committed_offset: self.payload.len() as u64,
            state: state.into(),
            receipt: self.receipt.clone(),
            ..Default::default()
        })
    }

    fn seal(&self) -> v1::RecordingReceipt {
        receipt(ID.parse().unwrap(), AGENT.parse().unwrap(), &self.payload)
    }

    fn recording(&self) -> v1::Recording {
        v1::Recording {
            recording_id: ID.into(),
            state: v1::RecordingState::Complete.into(),
            metadata: self.metadata.clone(),
            size: self.payload.len() as u64,
            payload_sha256: Digest::of(&self.payload).as_bytes().to_vec().into(),
            ..Default::default()
        }
    }

    fn range(&self, request: &v1::GetSessionRecordingRequest) -> v1::GetSessionRecordingResponse {
        assert!(request.recording_id == ID && request.limit <= 1 << 20);
        let begin = usize::try_from(request.offset).unwrap();
        let end = self.payload.len().min(begin + request.limit as usize);
        let data = self.payload[begin..end].to_vec().into();
        v1::GetSessionRecordingResponse { recording: Some(self.recording()), data, ..Default::default() }
    }
}

/// A cluster with an ingest behind it; `spoil` may change what is fetched.
fn cluster(spoil: fn(&mut v1::GetSessionRecordingResponse)) -> (Cluster, Arc<Mutex<Kept>>) {
    let kept = Arc::new(Mutex::new(Kept::default()));
    let shared = Arc::clone(&kept);
    let cluster = Cluster::answering(move |call| {
        let mut kept = shared.lock().unwrap();
        Ok(match call.method.as_str() {
            "StreamSessionRecording" if call.certified => kept.take(call)?.encode_to_vec(),
            "ListSessionRecordings" => {
                let request: v1::ListSessionRecordingsRequest = call.request();
                let all = [kept.recording()].into_iter().filter(|_| request.user == "alice");
                v1::ListSessionRecordingsResponse { recordings: all.collect(), ..Default::default() }
                    .encode_to_vec()
            }
            "GetSessionRecording" => {
                let mut reply = kept.range(&call.request());
                spoil(&mut reply);
                reply.encode_to_vec()
            }
            _ => return Err(Status::permission_denied("not for you")),
        })
    });
    fs::write(cluster.path("session.cast"), payload()).unwrap();
    let join = ["agent", "join", "--out", "agent", "--token-file", "token", "--hostname", "web1.example.org"];
    cluster.first(&join).ok();
    cluster.log_in();
    (cluster, kept)
}

const UPLOAD: [&str; 10] = [
    "recordings",
    "upload",
    "session.cast",
    "--agent",
    "agent",
    "--id",
    ID,
    "--user=alice",
    "--login=root",
    "--receipt=receipt",
];

#[test]
fn what_is_sent_is_receipted_listed_and_fetched_back() {
    let (cluster, kept) = cluster(|_| {});
    assert!(cluster.run(&UPLOAD).ok().contains(&Digest::of(&payload()).to_string()));
    assert_eq!(kept.lock().unwrap().payload, payload());
    let metadata = kept.lock().unwrap().metadata.clone().unwrap();
    assert_eq!((metadata.user.as_str(), metadata.login.as_str()), ("alice", "root"));
    assert_eq!((metadata.node.as_str(), metadata.format.as_str()), ("web1.example.org", "asciicast-v3"));

    // The receipt is what OpenSSH's own tool verifies.
    let verified = Command::new("ssh-keygen")
        .args(["-Y", "check-novalidate", "-n", MANIFEST_NAMESPACE, "-s", "receipt.sig"])
        .current_dir(cluster.path(""))
        .stdin(fs::File::open(cluster.path("receipt")).unwrap())
        .output()
        .unwrap();
    assert!(verified.status.success(), "{verified:?}");

    let listed = cluster.run(&["recordings", "ls", "--user", "alice"]).ok();
    assert!(listed.contains(ID) && listed.contains("complete"), "{listed}");
    assert!(!cluster.run(&["recordings", "ls", "--user", "bob"]).ok().contains(ID));

    cluster.run(&["recordings", "get", ID, "--out", "fetched"]).ok();
    assert_eq!(fs::read(cluster.path("fetched")).unwrap(), payload());
    assert_eq!(fs::metadata(cluster.path("fetched")).unwrap().mode() & 0o7777, 0o600);
    // Sealed already: the same receipt, and no byte is sent.
    let before = cluster.calls().len();
    cluster.run(&UPLOAD).ok();
    assert_eq!(cluster.calls()[before..], ["Ping", "StreamSessionRecording"]);
}

#[test]
fn standard_output_gets_the_payload_and_nothing_else() {
    let (cluster, kept) = cluster(|_| {});
    kept.lock().unwrap().payload = b"a line\n".to_vec();
    assert_eq!(cluster.run(&["recordings", "get", ID, "--out", "-"]).ok(), "a line\n");
    assert!(cluster.run(&["recordings", "get", ID]).ok().contains("7 B"));
}

#[test]
fn what_is_missing_of_a_recording_is_told() {
    const CAST: &str = "{\"version\":3,\"term\":{\"cols\":80,\"rows\":24}}\n[0.1,\"o\",\"hello\\r\\n\"]\n";
    let (cluster, kept) = cluster(|reply| {
        let recording = reply.recording.as_mut().unwrap();
        recording.state = v1::RecordingState::Interrupted.into();
        let (key, gap) = (SshKeyPair::generate_ed25519("").unwrap(), Gap { start: 7, length: 41 });
        let whole = manifest(ID.parse().unwrap(), AGENT.parse().unwrap(), CAST.as_bytes(), &key);
        let manifest = Manifest { state: RecordingState::Interrupted, gaps: vec![gap], ..whole };
        reply.receipt = Some(sign(&manifest, &key));
    });
    kept.lock().unwrap().payload = CAST.as_bytes().to_vec();
    for arguments in [&["get", ID][..], &["get", ID, "--out", "fetched"], &["play", ID]] {
        let ran = cluster.run(&[&["recordings"], arguments].concat());
        assert!(ran.code == Some(0) && ran.stderr.contains("warning: 41 bytes"), "{ran:?}");
    }
}

#[test]
fn a_payload_that_was_changed_is_not_kept() {
    let (cluster, kept) = cluster(|reply| {
        reply.data = reply.data.iter().map(|byte| byte ^ 1).collect::<Vec<_>>().into();
    });
    kept.lock().unwrap().payload = b"a line\n".to_vec();
    let error = cluster.run(&["recordings", "get", ID, "--out", "fetched"]).fails(1);
    assert!(error.contains("not the one that was recorded"), "{error}");
    assert!(!cluster.path("fetched").exists());
}

#[test]
fn a_cluster_that_answers_too_little_is_not_asked_for_ever() {
    let (cluster, kept) = cluster(|reply| reply.data.clear());
    kept.lock().unwrap().payload = b"a line\n".to_vec();
    assert!(cluster.run(&["recordings", "get", ID, "--out", "fetched"]).fails(1).contains("0 bytes"));
}
