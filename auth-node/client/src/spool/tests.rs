use std::{
    collections::{BTreeMap, HashMap},
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    sync::Mutex as StdMutex,
    time::Duration,
};

use mezite_proto::v1::{
    self, EmitAuditEventRequest, StreamSessionRecordingRequest, StreamSessionRecordingResponse,
    stream_session_recording_request::Message,
};
use prost::Message as _;
use recording_format::{AgentId, Digest};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::*;
use crate::{
    Client, ClientConfig, RetryPolicy, UploadLimits,
    testing::{self, Call, FakeServer, TestCa},
};

const LIMIT: u64 = 1 << 20;
const SECRET: &[u8] = b"secret";

fn id(number: u8) -> RecordingId {
    RecordingId::from_bytes([number; 16])
}

fn session(number: u8) -> Session {
    let mut session = Session::new(id(number), 1_000 + u64::from(number), Digest::of(SECRET));
    (session.user, session.login, session.format) = ("ann".into(), "root".into(), "asciicast-v3".into());
    session
}

fn open(dir: &Path) -> (Arc<Spool>, Vec<String>) {
    Spool::open(dir, LIMIT).unwrap()
}

fn events(spool: &Spool) -> Vec<String> {
    spool.outbox().waiting().unwrap().into_iter().map(|(_, event)| event.unwrap().event).collect()
}

/// What a process that was killed leaves: everything on disk, and no lock.
fn killed(writer: Writer) {
    drop(writer);
}

#[test]
fn what_is_written_is_there_after_a_crash_at_any_step() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = open(dir.path());
    // Before the entry has its name.
    fs::create_dir(dir.path().join("sessions/.new-x")).unwrap();
    let mut writer = spool.create(session(1)).unwrap();
    assert_eq!(writer.append(b"line 1\n").unwrap(), 7);
    let mode = fs::metadata(spool.payload(id(1))).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    killed(writer);
    // In the middle of a write that nobody was told of.
    fs::OpenOptions::new().append(true).open(spool.payload(id(1))).unwrap().write_all(b"half a li").unwrap();
    drop(spool);

    let (spool, warnings) = open(dir.path());
    assert_eq!((warnings, spool.entries().unwrap()), (Vec::new(), vec![id(1)]));
    assert!(!dir.path().join("sessions/.new-x").exists());
    assert!(matches!(spool.resume(id(1), b"wrong"), Err(SpoolError::Over(_))));
    let mut writer = spool.resume(id(1), SECRET).unwrap();
    assert_eq!(writer.length(), 7);
    // One writer at a time.
    assert!(matches!(spool.resume(id(1), SECRET), Err(SpoolError::Over(_))));
    writer.append(b"line 2\n").unwrap();
    // Between the event of the end and the end.
    spool.outbox().put(&Event::end(writer.session(), &End::new(14, Digest::of(b"x"), 5), &[])).unwrap();
    killed(writer);
    drop(spool);

    let (spool, _) = open(dir.path());
    spool.end_orphan(id(1), 9_000).unwrap();
    let end = spool.end(id(1)).unwrap().unwrap();
    assert_eq!((end.length, end.sha256), (14, Digest::of(b"line 1\nline 2\n")));
    assert!(matches!(spool.resume(id(1), SECRET), Err(SpoolError::Over(_))));
    let mut told = events(&spool);
    told.sort_unstable();
    assert_eq!(told, ["session.end", "session.recording.failed", "session.start"]);
    // While it is removed.
    spool.rename(&spool.entry(id(1)), &spool.passing(id(1), "gone")).unwrap();
    drop(spool);
    let (spool, _) = open(dir.path());
    assert_eq!(spool.entries().unwrap(), []);
    assert_eq!(fs::read_dir(dir.path().join("sessions")).unwrap().count(), 0);
    assert_eq!(spool.used.load(Ordering::Relaxed), 0);
}

#[test]
fn one_process_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let (_spool, _) = open(dir.path());
    assert!(matches!(Spool::open(dir.path(), LIMIT), Err(SpoolError::Busy(_))));
}

#[test]
fn what_does_not_fit_is_refused_and_nothing_is_removed_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = Spool::open(dir.path(), 2 * OVERHEAD + 10).unwrap();
    let mut first = spool.create(session(1)).unwrap();
    let _second = spool.create(session(2)).unwrap();
    assert!(matches!(spool.create(session(3)), Err(SpoolError::Full { .. })));
    assert_eq!(first.append(b"12345678\n").unwrap(), 9);
    assert!(matches!(first.append(b"xx"), Err(SpoolError::Full { .. })));
    // What fits still does, and what did not left nothing behind.
    assert_eq!(first.append(b"\n").unwrap(), 10);
    first.end(2_000, &[]).unwrap();
    assert_eq!(fs::read(spool.payload(id(1))).unwrap(), b"12345678\n\n");
    assert_eq!(spool.entries().unwrap(), [id(1), id(2)]);
    spool.remove(id(1)).unwrap();
    let _ = spool.create(session(3)).unwrap();
}

#[test]
fn what_is_damaged_is_set_aside_and_the_others_stay() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = open(dir.path());
    for number in 1..=6 {
        let mut writer = spool.create(session(number)).unwrap();
        writer.append(b"line\n").unwrap();
        writer.end(2_000, &[]).unwrap();
    }
    fs::write(spool.entry(id(5)).join("end.json"), b"{\xff}").unwrap();
    fs::remove_file(spool.payload(id(6))).unwrap();
    fs::write(spool.entry(id(1)).join("meta.json"), "{").unwrap();
    fs::write(spool.entry(id(2)).join("end.json"), "{}").unwrap();
    fs::OpenOptions::new().write(true).open(spool.payload(id(3))).unwrap().set_len(2).unwrap();
    drop(spool);
    let (spool, warnings) = open(dir.path());
    assert_eq!(spool.entries().unwrap(), [id(4)]);
    assert_eq!(warnings.len(), 5);
    for number in [1, 2, 3, 5, 6] {
        assert!(warnings.iter().any(|text| text.contains(&id(number).to_string())), "{warnings:?}");
        assert!(spool.aside(id(number)).is_dir());
    }
}

/// The cluster, as far as a forwarder can tell.
#[derive(Default)]
struct Cluster {
    payloads: BTreeMap<String, Vec<u8>>,
    sealed: BTreeMap<String, v1::RecordingReceipt>,
    events: Vec<(String, String)>,
    away: bool,
    /// Recordings end here.
    longest: Option<usize>,
    /// Recordings that are refused.
    refused: BTreeMap<String, Status>,
}

/// As ingests refuse what another agent began.
fn not_owner() -> Status {
    let details = ErrorDetails::with_error_info("NOT_OWNER", "mezite", HashMap::new());
    Status::with_error_details(Code::PermissionDenied, "the recording belongs to another agent", details)
}

/// As ingests refuse what was recorded while the host had another name.
fn other_node() -> Status {
    let mut details = ErrorDetails::with_error_info("INVALID_FIELD", "mezite", HashMap::new());
    details.add_bad_request_violation("metadata.node", "must be the hostname that the agent joined with");
    Status::with_error_details(Code::InvalidArgument, "metadata.node", details)
}

fn receipt(id: RecordingId, payload: &[u8]) -> v1::RecordingReceipt {
    testing::receipt(id, AgentId::from_bytes([2; 16]), payload)
}

impl Cluster {
    fn answer(&mut self, call: &Call) -> Result<Vec<u8>, Status> {
        if self.away {
            return Err(Status::unavailable("away"));
        }
        if call.method == "EmitAuditEvent" {
            let event: EmitAuditEventRequest = call.request();
            self.events.push((event.event, event.target));
            return Ok(v1::EmitAuditEventResponse::default().encode_to_vec());
        }
        let mut id = String::new();
        for message in call.requests::<StreamSessionRecordingRequest>() {
            match message.message.unwrap() {
                Message::Header(header) => {
                    id = header.recording_id;
                    if let Some(refusal) = self.refused.get(&id) {
                        return Err(refusal.clone());
                    }
                    match header.metadata {
                        Some(metadata) => {
                            assert_eq!(metadata.user, "ann");
                            self.payloads.entry(id.clone()).or_default();
                        }
                        None if !self.payloads.contains_key(&id) => {
                            return Err(Status::not_found("no such recording"));
                        }
                        None => {}
                    }
                }
                Message::Chunk(chunk) => {
                    let payload = self.payloads.get_mut(&id).unwrap();
                    let start = usize::try_from(chunk.offset).unwrap();
                    if start > payload.len() {
                        return Err(Status::out_of_range("beyond"));
                    }
                    let have = payload.len();
                    payload.extend_from_slice(chunk.data.get(have - start..).unwrap_or_default());
                    payload.truncate(self.longest.unwrap_or(usize::MAX));
                }
                Message::Final(end) => {
                    let payload = &self.payloads[&id];
                    if end.payload_sha256.as_ref() != Digest::of(payload).as_bytes() {
                        return Err(Status::failed_precondition("the digest differs"));
                    }
                    self.sealed.insert(id.clone(), receipt(id.parse().unwrap(), payload));
                }
            }
        }
        let sealed = self.sealed.get(&id).cloned();
        let committed = self.payloads.get(&id).map_or(0, Vec::len);
        let state = match &sealed {
            Some(_) => v1::RecordingState::Complete,
            None if Some(committed) == self.longest => v1::RecordingState::Truncated,
            None => v1::RecordingState::InProgress,
        };
        let reply = StreamSessionRecordingResponse {
            committed_offset: committed as u64,
            recording_id: id,
            state: state.into(),
            receipt: sealed,
            ..Default::default()
        };
        Ok(reply.encode_to_vec())
    }
}

struct World {
    _ca: TestCa,
    _servers: [FakeServer; 2],
    state: Arc<StdMutex<Cluster>>,
    route: Route,
}

impl World {
    fn new() -> Self {
        let (ca, state) = (TestCa::new(), Arc::<StdMutex<Cluster>>::default());
        let [ingest, auth] = [ca.ingest(), ca.auth_node()].map(|leaf| {
            let state = Arc::clone(&state);
            FakeServer::start(&leaf, &ca, move |call| {
                let answer = state.lock().unwrap().answer(&call);
                async move { answer }
            })
        });
        let policy = RetryPolicy {
            backoff_base: Duration::from_millis(1),
            attempts_per_address: 1,
            overall_timeout: Duration::from_secs(5),
            ..RetryPolicy::default()
        };
        let config = ClientConfig::new(vec![auth.address()], ca.trust());
        let client = Client::new(ClientConfig { policy, ..config }).unwrap();
        let recordings = client.for_recordings(&[ingest.address()]).unwrap();
        let route = Route { auth: client, recordings };
        Self { _ca: ca, _servers: [ingest, auth], state, route }
    }

    /// A forwarder that runs until it is aborted, and what it warns of.
    fn forward(&self, spool: &Arc<Spool>) -> (tokio::task::JoinHandle<()>, Arc<StdMutex<Vec<String>>>) {
        let settings = ForwardSettings {
            limits: UploadLimits {
                pace: (Duration::from_millis(1), Duration::from_millis(5)),
                ..UploadLimits::default()
            },
            grace: Duration::from_millis(200),
            backoff: (Duration::from_millis(5), Duration::from_millis(20)),
        };
        let warnings = Arc::<StdMutex<Vec<String>>>::default();
        let said = Arc::clone(&warnings);
        let route = watch::channel(Some(self.route.clone())).1;
        let forwarder = Forwarder::new(Arc::clone(spool), route, settings, move |notice| {
            let as_new = matches!(notice, Notice::SetAside { as_new: true, .. });
            said.lock().unwrap().push(format!("{notice}{}", if as_new { ", as new" } else { "" }));
        });
        (tokio::spawn(forwarder.run()), warnings)
    }

    fn payload(&self, number: u8) -> Vec<u8> {
        self.state.lock().unwrap().payloads.get(&id(number).to_string()).cloned().unwrap_or_default()
    }

    fn is_sealed(&self, number: u8) -> bool {
        self.state.lock().unwrap().sealed.contains_key(&id(number).to_string())
    }
}

async fn until(condition: impl Fn() -> bool) {
    let all = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), all).await.unwrap();
}

#[tokio::test]
async fn a_recording_is_sent_while_it_grows_and_removed_against_the_receipt() {
    let (dir, world) = (tempfile::tempdir().unwrap(), World::new());
    let (spool, _) = open(dir.path());
    let (task, warnings) = world.forward(&spool);
    let mut writer = spool.create(session(1)).unwrap();
    writer.append(b"line 1\n").unwrap();
    until(|| world.payload(1) == b"line 1\n").await;
    assert!(!world.is_sealed(1));
    writer.append(b"line 2\n").unwrap();
    writer.end(5_000, &[("exit", "0".into())]).unwrap();
    until(|| spool.entries().unwrap().is_empty()).await;
    assert!(world.is_sealed(1));
    assert_eq!(world.payload(1), b"line 1\nline 2\n");
    until(|| world.state.lock().unwrap().events.len() == 2).await;
    until(|| events(&spool).is_empty()).await;
    let target = format!("session:{}", id(1));
    let told = world.state.lock().unwrap().events.clone();
    assert_eq!(told, [("session.start".into(), target.clone()), ("session.end".into(), target)]);
    assert_eq!(*warnings.lock().unwrap(), Vec::<String>::new());
    task.abort();
}

#[tokio::test]
async fn what_was_spooled_in_an_outage_is_sent_after_it_and_after_a_kill_at_any_time() {
    let (dir, world) = (tempfile::tempdir().unwrap(), World::new());
    world.state.lock().unwrap().away = true;
    let (spool, _) = open(dir.path());
    let (task, warnings) = world.forward(&spool);
    for number in 1..=20 {
        let mut writer = spool.create(session(number)).unwrap();
        writer.append(&vec![b'\n'; usize::from(number) * 1000]).unwrap();
        // Every third is left by its writer.
        match number % 3 {
            0 => killed(writer),
            _ => writer.end(5_000, &[]).unwrap(),
        }
    }
    until(|| !warnings.lock().unwrap().is_empty()).await;
    assert_eq!(spool.entries().unwrap().len(), 20);
    world.state.lock().unwrap().away = false;
    // Killed again and again before it is through.
    let mut task = task;
    for round in 0..6 {
        until(|| world.state.lock().unwrap().sealed.len() >= round).await;
        task.abort();
        let _ = task.await;
        task = world.forward(&spool).0;
    }
    until(|| spool.entries().unwrap().is_empty() && events(&spool).is_empty()).await;
    task.abort();
    for number in 1..=20 {
        assert!(world.is_sealed(number));
        assert_eq!(world.payload(number).len(), usize::from(number) * 1000);
    }
    let told = world.state.lock().unwrap().events.clone();
    for number in 1..=20 {
        for event in ["session.start", "session.end"] {
            let wanted = (event.to_owned(), format!("session:{}", id(number)));
            assert!(told.contains(&wanted), "{wanted:?}");
        }
    }
    assert_eq!(spool.used.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn an_entry_that_changed_on_disk_is_set_aside_and_others_are_sent() {
    let (dir, world) = (tempfile::tempdir().unwrap(), World::new());
    let (spool, _) = open(dir.path());
    for number in 1..=2 {
        let mut writer = spool.create(session(number)).unwrap();
        writer.append(b"line\n").unwrap();
        writer.end(5_000, &[]).unwrap();
    }
    fs::write(spool.payload(id(1)), b"LINE\n").unwrap();
    let (task, warnings) = world.forward(&spool);
    until(|| spool.entries().unwrap().is_empty()).await;
    assert!(world.is_sealed(2) && !world.is_sealed(1));
    assert_eq!(fs::read(spool.aside(id(1)).join("payload")).unwrap(), b"LINE\n");
    until(|| warnings.lock().unwrap().iter().any(|text| text.contains(&id(1).to_string()))).await;
    task.abort();
}

#[tokio::test]
async fn what_is_more_than_the_cluster_keeps_is_whole_on_the_host_once_its_session_is_over() {
    let (dir, world) = (tempfile::tempdir().unwrap(), World::new());
    world.state.lock().unwrap().longest = Some(7);
    let (spool, _) = open(dir.path());
    let (task, warnings) = world.forward(&spool);
    let mut writer = spool.create(session(1)).unwrap();
    writer.append(b"line 1\nline 2\n").unwrap();
    until(|| warnings.lock().unwrap().iter().any(|text| text.contains("not sent yet"))).await;
    // Its session goes on.
    writer.append(b"line 3\n").unwrap();
    assert_eq!(spool.entries().unwrap(), [id(1)]);
    writer.end(5_000, &[]).unwrap();
    until(|| spool.entries().unwrap().is_empty()).await;
    assert_eq!(fs::read(spool.aside(id(1)).join("payload")).unwrap(), b"line 1\nline 2\nline 3\n");
    until(|| warnings.lock().unwrap().iter().any(|text| text.contains("aside"))).await;
    assert!(!warnings.lock().unwrap().iter().any(|text| text.contains("as new")), "{warnings:?}");
    assert!(!world.is_sealed(1));
    task.abort();
}

#[tokio::test]
async fn what_another_agent_of_the_host_had_begun_is_set_aside_once_it_has_ended_and_takes_no_room() {
    let (dir, world) = (tempfile::tempdir().unwrap(), World::new());
    let refused = [(1, not_owner()), (2, not_owner()), (3, other_node())];
    world.state.lock().unwrap().refused = refused.map(|(number, why)| (id(number).to_string(), why)).into();
    let (spool, _) = open(dir.path());
    let mut writers: Vec<_> = (1..=4).map(|number| spool.create(session(number)).unwrap()).collect();
    for writer in &mut writers {
        writer.append(b"line\n").unwrap();
    }
    // The second one's session goes on.
    let mut going_on = writers.remove(1);
    writers.into_iter().for_each(|writer| writer.end(5_000, &[]).unwrap());
    let (task, warnings) = world.forward(&spool);
    let has_said = |number: u8, what: &str| {
        let (said, of) = (warnings.lock().unwrap(), id(number).to_string());
        said.iter().any(|text| text.contains(&of) && text.ends_with(what))
    };
    until(|| has_said(1, ", as new") && has_said(3, ", as new") && has_said(2, "belongs to another agent"))
        .await;
    until(|| spool.entries().unwrap() == [id(2)]).await;
    assert!(world.is_sealed(4));
    going_on.append(b"more\n").unwrap();
    going_on.end(6_000, &[]).unwrap();
    until(|| spool.entries().unwrap().is_empty() && events(&spool).is_empty()).await;
    assert_eq!(Holdings::of(dir.path()).unwrap(), Holdings { sessions: 0, events: 0, aside: 3 });
    until(|| spool.used.load(Ordering::Relaxed) == 0).await;
    task.abort();

    let aside = SetAside::read(&spool.aside(id(2))).unwrap();
    assert_eq!((aside.session.user.as_str(), aside.end.unwrap().ended_at_ms), ("ann", 6_000));
    assert_eq!(fs::read(aside.payload).unwrap(), b"line\nmore\n");
}

#[test]
fn a_spool_is_looked_at_while_another_process_has_it() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(Holdings::of(&dir.path().join("none")).unwrap(), Holdings::default());
    let (spool, _) = open(dir.path());
    let writer = spool.create(session(1)).unwrap();
    let held = Holdings::of(dir.path()).unwrap();
    assert_eq!((held.to_string(), held.are_sent()), ("1 session and 1 event".into(), false));
    writer.end(5_000, &[]).unwrap();
    assert_eq!(Holdings::of(dir.path()).unwrap().to_string(), "1 session and 2 events");
    spool.set_aside(id(1)).unwrap();
    assert_eq!(Holdings::of(dir.path()).unwrap(), Holdings { sessions: 0, events: 2, aside: 1 });

    assert!(matches!(SetAside::read(dir.path()), Err(SpoolError::NoEntry { .. })));
    fs::remove_file(spool.aside(id(1)).join("meta.json")).unwrap();
    assert!(matches!(SetAside::read(&spool.aside(id(1))), Err(SpoolError::Damaged { .. })));
}
