//! Recordings while ingests and those who send are killed: what was acknowledged is there, once, and sealed once.
//!
//! Three send at a time: a client that streams and remembers what was acknowledged, `mezctl recordings upload`, and `mezctl
//! agent run` of a host whose ssh sessions are recorded.
//! `MEZITE_KILLS` says how often somebody is killed, with each of two settings: 20 times by default.

use std::{
    collections::BTreeMap,
    env,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use mezite_client::{Client, ClientError};
use mezite_e2e::{Agent, AgentSpec, Cluster, Ingest, IngestSpec, Process, all_files, call, eventually};
use mezite_proto::v1::{
    ListSessionRecordingsRequest, RecordingFinal, RecordingState, StreamSessionRecordingRequest,
    stream_session_recording_request::Message,
};
use recording_format::{
    Digest, Manifest, ObjectKey, RecordingId, Verifier, decode_signed_manifest, manifest_prefix,
    segment_prefix,
};
use tokio::{task::JoinHandle, time::sleep};
use tonic::Code;

use crate::{
    host::{Host, output, parse},
    support::{asciicast, chunk, fetch, header, metadata, recording_id, stream},
};

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
    uploads: usize,
    agents: usize,
    /// An ingest, and one who sends.
    both: usize,
}

impl Kills {
    fn all(&self) -> usize {
        self.ingests + self.uploads + self.agents + self.both
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_or_doubled_by_kills() {
    kill(None).await;
}

/// What falls silent for a moment is sealed as interrupted, and goes on.
#[tokio::test(flavor = "multi_thread")]
async fn nor_is_it_while_what_is_silent_is_given_up_at_once() {
    kill(Some("300ms")).await;
}

/// `grace`: so long nobody sends before a recording is given up; far longer than here by default.
async fn kill(grace: Option<&str>) {
    let wanted = env::var("MEZITE_KILLS").map_or(20, |count| count.parse().unwrap());
    let cluster = Cluster::start(1).await;
    let store = cluster.dir().join("recordings");
    let mut set = vec![format!("limits.segment_bytes={SEGMENT_BYTES}")];
    set.extend(grace.map(|grace| format!("abandon.grace={grace}")));
    let most_revisions = if grace.is_some() { u16::MAX } else { 1 };
    let spec = IngestSpec { set, ..IngestSpec::local(&store) };
    let mut ingests = Ingest::start_all_with(&cluster, INGESTS, &spec).await;
    let agent = Agent::join(&cluster, AgentSpec::default());
    let host = Host::of(&cluster).await;
    let mut recording_agent = host.run(&[]).await;
    // What ends well was recorded whole, or it would not have ended well.
    let _ = cluster.ctl().ok(&["config", "set", "--recording-mode", "strict"]);
    host.knows("strict").await;
    let addresses: Vec<String> = ingests.iter().map(Ingest::address).collect();
    let (mut kills, mut rounds, mut revisions) = (Kills::default(), 0, 0);
    while kills.all() < wanted {
        let payload = asciicast(rand::random_range(1..2 << 20));
        let client = agent.client(&cluster).for_recordings(&addresses).unwrap();
        let mut streamed = Streamed::start(client, payload.clone());
        let mut upload = Upload::start(&agent, cluster.dir().join(format!("payload-{rounds}")), &payload);
        let mut session = Session::start(&host, cluster.dir().join(format!("session-{rounds}")));
        let begun = Instant::now();
        // At random points: whatever they do just then.
        while !(streamed.is_done().await & upload.is_done() & session.is_done()) {
            assert!(begun.elapsed() < PATIENCE, "{} is not sealed", streamed.id);
            sleep(Duration::from_millis(rand::random_range(1..MOST_BETWEEN))).await;
            if kills.all() >= wanted {
                continue;
            }
            let (sender, ingest) = (rand::random_range(0..3), rand::random_range(0..3) > 0);
            let killed = match sender {
                0 => upload.kill(),
                1 => session.kill(&mut recording_agent).await,
                _ => false,
            };
            let ingest = (ingest || !killed).then(|| &mut ingests[rand::random_range(0..INGESTS)]);
            match (killed, &ingest) {
                (true, Some(_)) => kills.both += 1,
                (true, None) if sender == 0 => kills.uploads += 1,
                (true, None) => kills.agents += 1,
                (false, _) => kills.ingests += 1,
            }
            if let Some(ingest) = ingest {
                ingest.kill();
                ingest.start();
            }
        }
        let (id, cast) = session.recording(&cluster.admin()).await;
        for (id, payload) in [(streamed.id, &payload), (upload.id, &payload), (id, &cast)] {
            let found = verify(&store, id, payload).await;
            assert!(found <= most_revisions, "{id} has {found} revisions");
            revisions += u32::from(found);
        }
        rounds += 1;
    }
    // Nobody cut power or changed a byte: nothing was found damaged, neither there nor with the host.
    for folder in [store.join("quarantine"), host.spool.join("aside")] {
        let found = if folder.exists() { all_files(&folder) } else { Vec::new() };
        assert_eq!(found, [] as [PathBuf; 0]);
    }
    println!("{kills:?}, {} recordings, {revisions} manifests", rounds * 3);
}

/// Whether an error is one that killing brings about: nobody there, or another one who writes or has come further.
fn passes(error: &ClientError) -> bool {
    const PASS: [Code; 6] = [
        Code::Unavailable,
        Code::Aborted,
        Code::OutOfRange,
        Code::Cancelled,
        Code::DeadlineExceeded,
        Code::Unknown,
    ];
    error.code().is_some_and(|code| PASS.contains(&code))
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
            Err(error) if error.code() == Some(Code::NotFound) => {
                assert_eq!(acknowledged, 0, "{id} is gone");
                let begins = vec![header(id, 0, Some(metadata("alice")))];
                match stream(client, begins).await {
                    Ok(reply) => reply,
                    Err(error) => {
                        assert!(passes(&error), "{id}: {error}");
                        continue;
                    }
                }
            }
            Err(error) => {
                assert!(passes(&error), "{id}: {error}");
                continue;
            }
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
                Err(error) => {
                    assert!(passes(&error), "{id}: {error}");
                    break;
                }
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
struct Upload<'a> {
    agent: &'a Agent,
    id: RecordingId,
    file: PathBuf,
    child: Option<Child>,
}

impl<'a> Upload<'a> {
    fn start(agent: &'a Agent, file: PathBuf, payload: &[u8]) -> Self {
        fs::write(&file, payload).unwrap();
        let mut upload = Self { agent, id: recording_id(), file, child: None };
        upload.child = Some(upload.spawn());
        upload
    }

    fn spawn(&self) -> Child {
        let (dir, file, id) =
            (self.agent.dir.to_str().unwrap(), self.file.to_str().unwrap(), self.id.to_string());
        let receipt = self.receipt();
        let args =
            ["recordings", "upload", file, "--agent", dir, "--id", &id, "--user", "alice", "--receipt"];
        let mut command = self.agent.ctl().command(&[&args[..], &[receipt.to_str().unwrap()]].concat());
        command.stdout(Stdio::null()).stderr(Stdio::null());
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

impl Drop for Upload<'_> {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A session on the host by ssh, begun anew where it may not go on because it cannot be recorded.
struct Session<'a> {
    host: &'a Host,
    /// Where what it prints goes.
    file: PathBuf,
    lines: u32,
    attempts: usize,
    child: Option<Child>,
}

impl<'a> Session<'a> {
    fn start(host: &'a Host, file: PathBuf) -> Self {
        let mut session = Self { host, file, lines: rand::random_range(1..60), attempts: 0, child: None };
        session.child = Some(session.spawn());
        session
    }

    fn spawn(&mut self) -> Child {
        self.attempts += 1;
        let mut command = self.host.ssh.start(&self.host.login, &self.command());
        let file = File::create(&self.file).unwrap();
        command.stdin(Stdio::null()).stdout(file).stderr(Stdio::null()).spawn().unwrap()
    }

    /// By which its recording is found: there is no other like it.
    fn command(&self) -> String {
        let name = self.file.file_name().unwrap().to_str().unwrap();
        format!("for i in $(seq {}); do echo {name} {} $i; sleep 0.02; done", self.lines, self.attempts)
    }

    /// Whether it ended well.
    fn is_done(&mut self) -> bool {
        match self.child.as_mut().map(|child| child.try_wait().unwrap()) {
            None => {}
            Some(None) => return false,
            Some(Some(status)) if status.success() => self.child = None,
            Some(Some(_)) => {
                self.child = Some(self.spawn());
                return false;
            }
        }
        true
    }

    /// Kills the agent that has the session recorded, and has it started again; not when the session has ended.
    async fn kill(&mut self, agent: &mut Process) -> bool {
        if self.is_done() {
            return false;
        }
        agent.kill();
        *agent = self.host.run(&[]).await;
        true
    }

    /// The one recording of it, which has all that it printed.
    async fn recording(&self, client: &Client) -> (RecordingId, Vec<u8>) {
        let labels = BTreeMap::from([("command".to_owned(), self.command())]);
        let request = ListSessionRecordingsRequest { labels, ..ListSessionRecordingsRequest::default() };
        let (id, cast) = eventually("the session is a recording", PATIENCE, async || {
            let listed = call!(client, list_session_recordings, request.clone());
            let recordings = listed.map_err(|error| error.to_string())?.recordings;
            let [one] = recordings.as_slice() else { return Err(format!("{recordings:?}")) };
            if one.state() != RecordingState::Complete {
                return Err(format!("{one:?}"));
            }
            let id = one.recording_id.parse().unwrap();
            let fetched = fetch(client, id).await.map_err(|error| error.to_string())?;
            // The agent has the receipt.
            let waits = self.host.spool.join("sessions").join(&one.recording_id).exists();
            if waits { Err(format!("{id} is in the spool")) } else { Ok((id, fetched.1)) }
        })
        .await;
        assert_eq!(output(&parse(&cast).1), fs::read_to_string(&self.file).unwrap());
        (id, cast)
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What is on the disk is the recording, whole and once, with the last of its manifests for all of it. Answers how many there are.
async fn verify(store: &Path, id: RecordingId, payload: &[u8]) -> u16 {
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
    let manifests = keys(manifest_prefix(id));
    let revisions = u16::try_from(manifests.len()).unwrap();
    assert_eq!(
        manifests,
        (0..revisions).map(|revision| ObjectKey::Manifest(id, revision)).collect::<Vec<_>>()
    );
    let mut signed: Vec<_> =
        manifests.into_iter().map(|key| decode_signed_manifest(id, &object(key)).unwrap().manifest).collect();
    let last = signed.pop().unwrap();
    assert_eq!(last.state, recording_format::RecordingState::Complete);
    assert!(
        signed.iter().all(|earlier| !earlier.state.is_final() && earlier.length <= last.length),
        "{signed:?}"
    );
    let mut verifier = Verifier::new(id, &object(ObjectKey::Begin(id))).unwrap();
    let mut stored = Vec::new();
    for key in keys(segment_prefix(id)) {
        let segment = verifier.segment(object(key).into()).unwrap();
        segment.payload().for_each(|frame| stored.extend_from_slice(frame));
    }
    assert!(stored == payload, "{id} differs: {} bytes of {}", stored.len(), payload.len());
    verifier.finish().0.matches(&last).unwrap();
    eventually("it is not open any more", PATIENCE, async || {
        (!store.join(ObjectKey::Open(id).to_string()).exists()).then_some(()).ok_or("not yet")
    })
    .await;
    revisions
}
