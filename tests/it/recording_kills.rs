//! Recordings while ingests and senders are killed: what was acknowledged is there, once, and sealed once.
//!
//! `MEZITE_KILLS` says how often somebody is killed: 20 times by default.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Child,
    time::{Duration, Instant},
};

use mezite_client::Client;
use mezite_e2e::{Agent, AgentSpec, Cluster, Ingest, IngestSpec, eventually};
use mezite_proto::v1::{
    RecordingFinal, RecordingState, StreamSessionRecordingRequest, stream_session_recording_request::Message,
};
use recording_format::{
    Digest, Manifest, ObjectKey, RecordingId, Verifier, decode_signed_manifest, manifest_prefix,
    segment_prefix,
};
use tokio::{task::JoinHandle, time::sleep};

use crate::support::{asciicast, chunk, header, metadata, recording_id, stream};

const INGESTS: usize = 2;
/// Small, so that there are many of them.
const SEGMENT_BYTES: usize = 64 << 10;
const CHUNK: usize = 10_000;
/// The longest that a recording takes, however many are killed meanwhile.
const PATIENCE: Duration = Duration::from_secs(180);
/// The longest time between two kills.
const MOST_BETWEEN: u64 = 400;

/// What was killed how often.
#[derive(Debug, Default)]
struct Kills {
    ingests: usize,
    senders: usize,
    both: usize,
}

impl Kills {
    fn all(&self) -> usize {
        self.ingests + self.senders + self.both
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_or_doubled_by_kills() {
    let wanted = env::var("MEZITE_KILLS").map_or(20, |count| count.parse().unwrap());
    let cluster = Cluster::start(1).await;
    let store = cluster.dir().join("recordings");
    let set = vec![format!("limits.segment_bytes={SEGMENT_BYTES}")];
    let spec = IngestSpec { set, ..IngestSpec::local(&store) };
    let mut ingests = Ingest::start_all_with(&cluster, INGESTS, &spec).await;
    let agent = Agent::join(&cluster, AgentSpec::default());
    let addresses: Vec<String> = ingests.iter().map(Ingest::address).collect();
    let (mut kills, mut rounds) = (Kills::default(), 0);
    while kills.all() < wanted {
        let payload = asciicast(rand::random_range(1..2 << 20));
        let client = agent.client(&cluster).for_recordings(&addresses).unwrap();
        let mut streamed = Streamed::start(client, payload.clone());
        let mut sender = Sender::start(&agent, cluster.dir().join(format!("payload-{rounds}")), &payload);
        let begun = Instant::now();
        // At random points: whatever they do just then.
        while !(streamed.is_done().await & sender.is_done()) {
            assert!(begun.elapsed() < PATIENCE, "{} is not sealed", streamed.id);
            sleep(Duration::from_millis(rand::random_range(1..MOST_BETWEEN))).await;
            if kills.all() >= wanted {
                continue;
            }
            let victim = rand::random_range(0..INGESTS);
            let (ingest, both) = (&mut ingests[victim], rand::random_range(0..4));
            match both {
                0 if sender.kill() => kills.senders += 1,
                1 if sender.kill() => {
                    ingest.kill();
                    ingest.start();
                    kills.both += 1;
                }
                _ => {
                    ingest.kill();
                    ingest.start();
                    kills.ingests += 1;
                }
            }
        }
        verify(&store, streamed.id, &payload).await;
        verify(&store, sender.id, &payload).await;
        rounds += 1;
    }
    println!("{kills:?}, {} recordings", rounds * 2);
}

/// Somebody who streams, and remembers what was acknowledged.
struct Streamed {
    id: RecordingId,
    task: Option<JoinHandle<()>>,
}

impl Streamed {
    fn start(client: Client, payload: Vec<u8>) -> Self {
        let id = recording_id();
        Self { id, task: Some(tokio::spawn(async move { send(&client, id, &payload).await })) }
    }

    /// Whether there is a receipt. What failed in it fails here.
    async fn is_done(&mut self) -> bool {
        if self.task.as_ref().is_some_and(JoinHandle::is_finished) {
            self.task.take().unwrap().await.unwrap();
        }
        self.task.is_none()
    }
}

/// Sends in calls of a random length, each from where the cluster says that the recording stands.
async fn send(client: &Client, id: RecordingId, payload: &[u8]) {
    let mut acknowledged = 0;
    loop {
        // A look at where it stands, now and then, and whenever that is not known.
        let reply = match stream(client, vec![header(id, 0, None)]).await {
            Ok(reply) => reply,
            Err(error) if error.code() == Some(tonic::Code::NotFound) => {
                assert_eq!(acknowledged, 0, "{id} is gone");
                let begins = vec![header(id, 0, Some(metadata("alice")))];
                let Ok(reply) = stream(client, begins).await else { continue };
                reply
            }
            Err(_) => continue,
        };
        let mut reply = reply;
        loop {
            let committed = reply.committed_offset;
            assert!(committed >= acknowledged, "{id}: {acknowledged} were durable, and {committed} are");
            assert!(committed <= payload.len() as u64, "{id}: {committed} bytes of {}", payload.len());
            acknowledged = committed;
            if reply.state() == RecordingState::Complete {
                return;
            }
            match stream(client, batch(id, committed, payload)).await {
                Ok(next) => reply = next,
                Err(_) => break,
            }
        }
    }
}

/// The messages of one call.
fn batch(id: RecordingId, from: u64, payload: &[u8]) -> Vec<StreamSessionRecordingRequest> {
    let from = usize::try_from(from).unwrap();
    let to = (from + rand::random_range(1..300_000)).min(payload.len());
    let mut messages = vec![header(id, from as u64, None)];
    let mut at = from;
    for data in payload[from..to].chunks(CHUNK) {
        messages.push(chunk(at as u64, data));
        at += data.len();
    }
    if to == payload.len() {
        let end = RecordingFinal {
            total_length: payload.len() as u64,
            payload_sha256: Digest::of(payload).as_bytes().to_vec().into(),
            ended_at: None,
        };
        messages.push(StreamSessionRecordingRequest { message: Some(Message::Final(end)) });
    }
    messages
}

/// `mezctl recordings upload`, started anew until it has a receipt.
struct Sender<'a> {
    agent: &'a Agent,
    id: RecordingId,
    file: PathBuf,
    child: Option<Child>,
}

impl<'a> Sender<'a> {
    fn start(agent: &'a Agent, file: PathBuf, payload: &[u8]) -> Self {
        fs::write(&file, payload).unwrap();
        let mut sender = Self { agent, id: recording_id(), file, child: None };
        sender.child = Some(sender.spawn());
        sender
    }

    fn spawn(&self) -> Child {
        let (dir, file, id) =
            (self.agent.dir.to_str().unwrap(), self.file.to_str().unwrap(), self.id.to_string());
        let receipt = self.receipt();
        let args =
            ["recordings", "upload", file, "--agent", dir, "--id", &id, "--user", "alice", "--receipt"];
        let mut command = self.agent.ctl().command(&[&args[..], &[receipt.to_str().unwrap()]].concat());
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        command.spawn().unwrap()
    }

    fn receipt(&self) -> PathBuf {
        self.file.with_extension("receipt")
    }

    /// Whether it has a receipt. One that has failed or was killed begins again.
    fn is_done(&mut self) -> bool {
        match self.child.as_mut().map(|child| child.try_wait().unwrap()) {
            None => {}
            Some(None) => return false,
            Some(Some(status)) if status.success() => {
                let manifest = Manifest::decode(self.id, &fs::read(self.receipt()).unwrap()).unwrap();
                assert_eq!(manifest.payload_sha256, Digest::of(&fs::read(&self.file).unwrap()));
                self.child = None;
            }
            Some(Some(_)) => {
                self.child = Some(self.spawn());
                return false;
            }
        }
        true
    }

    /// Kills it, unless it has ended.
    fn kill(&mut self) -> bool {
        let Some(child) = &mut self.child else { return false };
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        child.kill().unwrap();
        true
    }
}

impl Drop for Sender<'_> {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What is on the disk is the recording, whole and once.
async fn verify(store: &Path, id: RecordingId, payload: &[u8]) {
    let object = |key: ObjectKey| fs::read(store.join(key.to_string())).unwrap();
    let keys = |prefix: String| {
        let entries = fs::read_dir(store.join(&prefix)).into_iter().flatten();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        // What a killed writer left beside is no object.
        let mut keys: Vec<ObjectKey> =
            names.filter_map(|name| format!("{prefix}/{name}").parse().ok()).collect();
        keys.sort_unstable();
        keys
    };
    assert_eq!(keys(manifest_prefix(id)), [ObjectKey::Manifest(id, 0)]);
    let mut verifier = Verifier::new(id, &object(ObjectKey::Begin(id))).unwrap();
    let mut stored = Vec::new();
    for key in keys(segment_prefix(id)) {
        let segment = verifier.segment(object(key).into()).unwrap();
        segment.payload().for_each(|frame| stored.extend_from_slice(frame));
    }
    assert!(stored == payload, "{id} differs: {} bytes of {}", stored.len(), payload.len());
    let signed = decode_signed_manifest(id, &object(ObjectKey::Manifest(id, 0))).unwrap();
    verifier.finish().0.matches(&signed.manifest).unwrap();
    eventually("it is not open any more", PATIENCE, async || {
        (!store.join(ObjectKey::Open(id).to_string()).exists()).then_some(()).ok_or("not yet")
    })
    .await;
}
