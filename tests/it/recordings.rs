//! Recordings: sent in batches to an ingest or through an auth node, kept as files, listed and fetched through every
//! node, by those who may.

use std::{
    collections::BTreeSet, fs, fs::File, io::Write as _, os::unix::fs::PermissionsExt as _, path::Path,
    process::Command, time::Duration,
};

use mezite_client::Client;
use mezite_e2e::{Agent, AgentSpec, Cluster, Ingest, all_files, api, call, eventually, run_on};
use mezite_pki::x509::CertificateInfo;
use mezite_proto::v1;
use recording_format::{Digest, ObjectKey, PayloadHasher, RecordingId};
use tonic::{Code, Request};

use crate::support::{asciicast, chunk, fetch, header, metadata, recording_id, stream, texts, upload};

/// For the ingests to tell the cluster.
const PATIENCE: Duration = Duration::from_secs(60);
/// More than a segment and more than two batches.
const LONG: usize = 10 << 20;

fn digest(payload: &[u8]) -> Digest {
    let mut hasher = PayloadHasher::default();
    hasher.update(payload);
    hasher.digest()
}

/// Keys of all objects under a store.
fn objects(store: &Path) -> Vec<ObjectKey> {
    let key = |path: &Path| path.strip_prefix(store).unwrap().to_str().unwrap().parse().unwrap();
    all_files(store).iter().map(|path| key(path)).collect()
}

async fn list(client: &Client, user: &str) -> Vec<v1::Recording> {
    let request = v1::ListSessionRecordingsRequest { user: user.into(), ..Default::default() };
    call!(client, list_session_recordings, request).unwrap().recordings
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_ingest_keeps_in_a_folder_is_for_its_owner_alone() {
    let cluster = Cluster::start(1).await;
    let (_ingests, store) = Ingest::start_all(&cluster, 1).await;
    let agent = Agent::join(&cluster, AgentSpec::default());
    let file = cluster.dir().join("session.cast");
    fs::write(&file, asciicast(1000)).unwrap();
    let _ = agent.upload(&file, &["--user", "alice", "--login", "root"]);
    let files = all_files(&store);
    assert!(files.len() >= 2, "{files:?}");
    for path in files.iter().flat_map(|file| file.ancestors().take_while(|path| path.starts_with(&store))) {
        let mode = fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{} has mode {mode:o}", path.display());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recording_lands_as_files_and_comes_back_through_every_node() {
    let cluster = Cluster::start(3).await;
    let (ingests, store) = Ingest::start_all(&cluster, 2).await;
    let agent = Agent::join(&cluster, AgentSpec::default());
    let cast = asciicast(LONG);
    let file = cluster.dir().join("session.cast");
    fs::write(&file, &cast).unwrap();

    let receipt = cluster.dir().join("receipt");
    let args = ["--user", "alice", "--login", "root", "--receipt", receipt.to_str().unwrap()];
    let uploaded = agent.upload(&file, &args);
    let id: RecordingId = uploaded["recording_id"].as_str().unwrap().parse().unwrap();
    assert_eq!(uploaded["size"], cast.len());
    assert_eq!(uploaded["payload_sha256"], digest(&cast).to_string().as_str());
    let sealed_by = uploaded["ingest_id"].as_str().unwrap();
    assert!(ingests.iter().any(|ingest| ingest.id() == sealed_by));

    // OpenSSH itself finds the receipt's signature good, and finds out what was changed.
    let verify = || {
        let mut check = Command::new("ssh-keygen");
        check.args(["-Y", "check-novalidate", "-n", "manifest@mezite", "-s"]);
        run_on(check.arg(receipt.with_extension("sig")), File::open(&receipt).unwrap())
    };
    assert!(verify().ok().contains("Good \"manifest@mezite\" signature"));
    let manifest = fs::read(&receipt).unwrap();
    let parsed = recording_format::Manifest::decode(id, &manifest).unwrap();
    assert!(parsed.segments.len() >= 2, "{:?}", parsed.segments);
    assert_eq!(parsed.relayed_by, None, "the agent went to the ingest itself");
    let certificate = CertificateInfo::from_pem(&agent.pems().0).unwrap();
    assert_eq!(
        parsed.agent_certificate_sha256.unwrap().to_string(),
        hex::encode(certificate.fingerprint_sha256)
    );
    fs::write(&receipt, [&manifest, b" ".as_slice()].concat()).unwrap();
    assert_ne!(verify().code, 0);

    // The audit log is told which manifest it was, once, by the ingest.
    let told = told(&cluster, &store, "session.upload").await;
    let [event] = told.as_slice() else { panic!("{told:?}") };
    assert_eq!(
        (event.actor.as_str(), event.target.as_str()),
        (&*format!("ingest:{sealed_by}"), &*format!("recording:{id}"))
    );
    assert_eq!(event.fields["manifest_sha256"], digest(&manifest).to_string());
    assert_eq!((event.fields["user"].as_str(), event.fields["state"].as_str()), ("alice", "COMPLETE"));

    // What is on disk is what the design says, and nothing is left open.
    let mut expected: Vec<_> =
        parsed.segments.iter().map(|segment| ObjectKey::Segment(id, segment.start)).collect();
    let start_ms = parsed.metadata.started_at_ms;
    expected.extend([
        ObjectKey::Begin(id),
        ObjectKey::Manifest(id, 0),
        ObjectKey::Index { start_ms, id, revision: 0 },
    ]);
    assert_eq!(objects(&store).into_iter().collect::<BTreeSet<_>>(), expected.into_iter().collect());

    for index in 0..3 {
        let ctl = cluster.ctl().at(&[cluster.nodes()[index].address()]);
        let listed = ctl.json(&["recordings", "ls", "--user", "alice"]);
        let [listed] = listed.as_array().unwrap().as_slice() else { panic!("{listed}") };
        assert_eq!(listed["recording_id"], id.to_string().as_str());
        assert_eq!((&listed["state"], &listed["size"]), (&"complete".into(), &cast.len().into()));
        assert_eq!(listed["node"], "web1.example.org");
        let out = cluster.dir().join(format!("fetched-{index}"));
        let _ = ctl.ok(&["recordings", "get", &id.to_string(), "--out", out.to_str().unwrap()]);
        assert!(fs::read(&out).unwrap() == cast, "what node {index} answered differs");
        assert!(download(&cluster, index, id).await == cast, "what node {index} streamed differs");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_ingest_that_died_left_open_is_ended_told_of_and_deleted_by_another() {
    let cluster = Cluster::start(1).await;
    let (mut ingests, store) = Ingest::start_all(&cluster, 2).await;
    let agent = Agent::join(&cluster, AgentSpec::default());
    let other = &mut ingests[1];
    other.kill();
    let mut config = fs::OpenOptions::new().append(true).open(other.config()).unwrap();
    let times = b"[abandon]\ngrace = \"2s\"\n[retention]\nkeep = \"1s\"\ninterval = \"200ms\"\n";
    config.write_all(times).unwrap();
    other.start();
    other.ready().await;
    let client = agent.client(&cluster).for_recordings(&[ingests[0].address()]).unwrap();
    let (id, cast) = (recording_id(), asciicast(20_000));
    let begun = vec![header(id, 0, Some(metadata("alice"))), chunk(0, &cast)];
    assert_eq!(stream(&client, begun).await.unwrap().committed_offset, cast.len() as u64);
    ingests[0].kill();
    eventually("the recording is gone", PATIENCE, async || match all_files(&store) {
        left if left.is_empty() => Ok(()),
        left => Err(format!("{left:?}")),
    })
    .await;
    let by = format!("ingest:{}", ingests[1].id());
    for (name, state) in [("session.upload", Some("INTERRUPTED")), ("session.recording.delete", None)] {
        let events = told(&cluster, &store, name).await;
        let [event] = events.as_slice() else { panic!("{events:?}") };
        assert_eq!((&event.actor, &event.target), (&by, &format!("recording:{id}")));
        assert_eq!(event.fields.get("state").map(String::as_str), state);
        assert_eq!(
            (event.fields["user"].as_str(), &event.fields["size"]),
            ("alice", &cast.len().to_string())
        );
    }
}

/// The events of this name, once the ingests have told all that they had to tell.
async fn told(cluster: &Cluster, store: &Path, event: &str) -> Vec<v1::AuditEvent> {
    eventually("the cluster is told of all recordings", PATIENCE, async || {
        let untold = all_files(&store.join(ObjectKey::AUDIT));
        if untold.is_empty() { Ok(()) } else { Err(format!("{untold:?}")) }
    })
    .await;
    let query = v1::QueryAuditEventsRequest { events: vec![event.to_owned()], ..Default::default() };
    call!(cluster.admin(), query_audit_events, query).unwrap().events
}

/// Fetches a recording as one stream.
async fn download(cluster: &Cluster, index: usize, id: RecordingId) -> Vec<u8> {
    let trust = cluster.trust();
    let mut stub = api::stub(&cluster.nodes()[index].address(), trust, api::tls(trust, true, None));
    let message = v1::DownloadSessionRecordingRequest { recording_id: id.to_string(), offset: 0 };
    let mut request = Request::new(message);
    let bearer = format!("Bearer {}", cluster.session().expose());
    request.metadata_mut().insert("authorization", bearer.parse().unwrap());
    let mut stream = stub.download_session_recording(request).await.unwrap().into_inner();
    let mut payload = Vec::new();
    while let Some(part) = stream.message().await.unwrap() {
        assert_eq!(part.offset, payload.len() as u64);
        payload.extend_from_slice(&part.data);
    }
    payload
}

#[tokio::test(flavor = "multi_thread")]
async fn every_auth_node_relays_a_recording_to_an_ingest() {
    let cluster = Cluster::start(3).await;
    let (_ingests, _) = Ingest::start_all(&cluster, 2).await;
    let agent = Agent::join(&cluster, AgentSpec::default());
    let cast = asciicast(LONG / 2);
    for index in 0..3 {
        let address = [cluster.nodes()[index].address()];
        let client = api::client(&address, cluster.trust(), None, Some(&agent.identity()));
        let id = recording_id();
        let receipt = upload(&client, id, &metadata("alice"), &cast).await.unwrap();
        let node = cluster.anonymous_at(index).ping().await.unwrap().node_id;
        assert_eq!(receipt.manifest.relayed_by, Some(format!("auth:{node}")));
        assert_eq!(receipt.manifest.agent_id.to_string(), agent.id);
        let (recording, payload) = fetch(&cluster.admin(), id).await.unwrap();
        assert!(payload == cast, "what node {index} relayed differs");
        assert_eq!(recording.agent_id, agent.id);

        // A short one goes in a single message.
        let id = recording_id();
        let data = asciicast(100 << 10);
        let request = v1::UploadSessionRecordingRequest {
            recording_id: id.to_string(),
            metadata: Some(metadata("alice")),
            payload_sha256: digest(&data).as_bytes().to_vec().into(),
            data: data.clone().into(),
        };
        let reply = call!(client, upload_session_recording, request).unwrap();
        assert_eq!(
            (reply.state(), reply.committed_offset),
            (v1::RecordingState::Complete, data.len() as u64)
        );
        assert!(fetch(&cluster.admin(), id).await.unwrap().1 == data);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn people_see_their_own_recordings_and_auditors_all() {
    let cluster = Cluster::start(1).await;
    let (ingests, _) = Ingest::start_all(&cluster, 1).await;
    let agent = Agent::join(&cluster, AgentSpec::default());
    cluster.add_user("alice", &["access"], &[]).await;
    cluster.add_user("bob", &["access"], &[]).await;
    cluster.add_user("carol", &["auditor"], &[]).await;
    let client = agent.client(&cluster).for_recordings(&[ingests[0].address()]).unwrap();
    let (of_alice, of_bob) = (recording_id(), recording_id());
    let cast = asciicast(1000);
    upload(&client, of_alice, &metadata("alice"), &cast).await.unwrap();
    upload(&client, of_bob, &metadata("bob"), &cast).await.unwrap();

    let ids = |recordings: Vec<v1::Recording>| -> BTreeSet<_> {
        recordings.into_iter().map(|recording| recording.recording_id).collect()
    };
    let [alice, bob] = [of_alice, of_bob].map(|id| id.to_string());
    let as_user = async |user: &str| cluster.user_at(0, &cluster.session_of(user).await);

    let client = as_user("alice").await;
    assert_eq!(ids(list(&client, "").await), BTreeSet::from([alice.clone()]));
    assert_eq!(ids(list(&client, "bob").await), BTreeSet::new());
    assert!(fetch(&client, of_alice).await.unwrap().1 == cast);
    // Another's recording looks like none at all.
    let nowhere = recording_id();
    let foreign = api::refused(fetch(&client, of_bob).await, Code::NotFound);
    let none = api::refused(fetch(&client, nowhere).await, Code::NotFound);
    assert_eq!(foreign.message.replace(&bob, "ID"), none.message.replace(&nowhere.to_string(), "ID"));
    assert_eq!((foreign.reason, foreign.violations), (none.reason, none.violations));

    let client = as_user("carol").await;
    assert_eq!(ids(list(&client, "").await), BTreeSet::from([alice.clone(), bob.clone()]));
    assert_eq!(ids(list(&client, "bob").await), BTreeSet::from([bob]));
    assert!(fetch(&client, of_bob).await.unwrap().1 == cast);

    let listed = cluster.ctl().json(&["recordings", "ls", "--user", "alice"]);
    let listed = listed.as_array().unwrap().iter().map(|recording| recording["recording_id"].clone());
    assert_eq!(texts(&listed.collect()), [alice.as_str()]);
}
