use std::{
    collections::HashMap,
    io::Cursor,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use mezite_pki::ssh::SshKeyPair;
use prost::Message as _;
use recording_format::AgentId;
use tonic::Status;
use tonic_types::{ErrorDetails, StatusExt as _};

use super::*;
use crate::{
    ClientConfig,
    testing::{self, Call, FakeServer, Leaf, TestCa, sign},
};

const PACE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(5));
const LIMITS: UploadLimits =
    UploadLimits { chunk: 10, batch: 35, stalls: 3, pace: PACE, keep_alive: Duration::from_millis(20) };

fn id() -> RecordingId {
    RecordingId::from_bytes([7; 16])
}

fn metadata() -> RecordingMetadata {
    RecordingMetadata { user: "alice".into(), format: "asciicast-v3".into(), ..Default::default() }
}

/// What ingests share: the payload so far, and whether it is sealed.
#[derive(Default)]
struct Stored {
    begun: bool,
    payload: Vec<u8>,
    sealed: Option<RecordingReceipt>,
    state: WireState,
}

type Store = Arc<Mutex<Stored>>;

/// Follows the rules of the protocol, as far as an uploader can tell.
fn ingest(store: &mut Stored, call: &Call) -> Result<StreamSessionRecordingResponse, Status> {
    for message in call.requests::<StreamSessionRecordingRequest>() {
        match message.message.unwrap() {
            Message::Header(header) => {
                assert_eq!(header.recording_id, id().to_string());
                store.begun |= header.metadata.is_some();
                if !store.begun {
                    return Err(Status::not_found("no such recording"));
                }
                if header.start_offset > store.payload.len() as u64 {
                    return Err(Status::out_of_range("beyond"));
                }
            }
            Message::Chunk(chunk) => {
                assert_eq!(chunk.crc32c, crc32c::crc32c(&chunk.data));
                let have = store.payload.len();
                let start = usize::try_from(chunk.offset).unwrap();
                if start > have {
                    return Err(Status::out_of_range("beyond"));
                }
                let new = chunk.data.get(have - start..).unwrap_or_default();
                store.payload.extend_from_slice(new);
            }
            Message::Final(end) => {
                assert_eq!(end.total_length, store.payload.len() as u64);
                assert_eq!(end.payload_sha256.as_ref(), Digest::of(&store.payload).as_bytes());
                store.sealed = Some(receipt(&store.payload));
                store.state = WireState::Complete;
            }
        }
    }
    Ok(StreamSessionRecordingResponse {
        recording_id: id().to_string(),
        committed_offset: store.payload.len() as u64,
        state: store.state.into(),
        receipt: store.sealed.clone(),
        ..Default::default()
    })
}

fn manifest(payload: &[u8], key: &SshKeyPair) -> Manifest {
    testing::manifest(id(), AgentId::from_bytes([2; 16]), payload, key)
}

fn receipt(payload: &[u8]) -> RecordingReceipt {
    let key = SshKeyPair::generate_ed25519("").unwrap();
    sign(&manifest(payload, &key), &key)
}

fn serve<F>(ca: &TestCa, answer: F) -> FakeServer
where
    F: Fn(Call) -> Result<StreamSessionRecordingResponse, Status> + Send + Sync + 'static,
{
    FakeServer::start(&ca.ingest(), ca, move |call| {
        let answer = answer(call).map(|reply| reply.encode_to_vec());
        async move { answer }
    })
}

fn uploader(ca: &TestCa, ingests: &[String], auth: &str) -> Uploader {
    let quick = RetryPolicy {
        backoff_base: std::time::Duration::from_millis(5),
        attempts_per_address: 3,
        ..RetryPolicy::default()
    };
    let config = ClientConfig::new(vec![auth.to_owned()], ca.trust());
    let client = Client::new(ClientConfig { policy: quick, ..config }).unwrap();
    Uploader::new(client.for_recordings(ingests).unwrap(), LIMITS)
}

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index % 251) as u8).collect()
}

async fn upload(uploader: &Uploader, payload: &[u8]) -> Result<Receipt, UploadError> {
    let mut payload = Payload::measure(Cursor::new(payload.to_vec())).await.unwrap();
    uploader.upload(id(), &metadata(), &mut payload).await
}

const NOBODY: &str = "127.0.0.1:1";

#[tokio::test]
async fn a_payload_arrives_in_batches_and_is_receipted() {
    for length in [0, 1, 10, 35, 36, 200] {
        let (ca, store) = (TestCa::new(), Store::default());
        let shared = Arc::clone(&store);
        let server = serve(&ca, move |call| ingest(&mut shared.lock().unwrap(), &call));
        let payload = bytes(length);
        let receipt = upload(&uploader(&ca, &[server.address()], NOBODY), &payload).await.unwrap();
        assert_eq!(receipt.manifest.length, length as u64);
        assert_eq!(store.lock().unwrap().payload, payload);
        // A probe, and then one call a batch; the first one begins the recording.
        assert_eq!(server.calls().len(), 1 + length.div_ceil(35).max(1));
        // Sealed already: the same receipt, and nothing is sent.
        upload(&uploader(&ca, &[server.address()], NOBODY), &payload).await.unwrap();
        assert_eq!(server.calls().len(), 2 + length.div_ceil(35).max(1));
    }
}

#[tokio::test]
async fn an_upload_goes_on_at_another_ingest_and_at_last_through_the_auth_nodes() {
    let (ca, store) = (TestCa::new(), Store::default());
    let dying = |limit: usize, leaf: Leaf| {
        let (shared, asked) = (Arc::clone(&store), Mutex::new(0));
        FakeServer::start(&leaf, &ca, move |call| {
            let mut asked = asked.lock().unwrap();
            *asked += 1;
            let answer = match *asked > limit {
                // It takes the batch, and its answer is lost.
                true => {
                    ingest(&mut shared.lock().unwrap(), &call).unwrap();
                    Err(Status::unavailable("leaving"))
                }
                false => ingest(&mut shared.lock().unwrap(), &call).map(|reply| reply.encode_to_vec()),
            };
            async move { answer }
        })
    };
    let one = dying(2, ca.ingest());
    let two = dying(1, ca.ingest());
    let auth = dying(usize::MAX, ca.auth_node());
    let payload = bytes(400);
    upload(&uploader(&ca, &[one.address(), two.address()], &auth.address()), &payload).await.unwrap();
    assert_eq!(store.lock().unwrap().payload, payload);
    assert!(!auth.calls().is_empty());
}

#[tokio::test]
async fn an_ingest_that_is_behind_is_believed() {
    let (ca, store) = (TestCa::new(), Store::default());
    let (shared, forgot) = (Arc::clone(&store), Mutex::new(false));
    let server = serve(&ca, move |call| {
        let mut store = shared.lock().unwrap();
        let mut forgot = forgot.lock().unwrap();
        if store.payload.len() > 60 && !*forgot {
            *forgot = true;
            store.payload.truncate(20);
        }
        ingest(&mut store, &call)
    });
    let payload = bytes(150);
    upload(&uploader(&ca, &[server.address()], NOBODY), &payload).await.unwrap();
    assert_eq!(store.lock().unwrap().payload, payload);
}

#[tokio::test]
async fn an_ingest_that_leaves_is_left() {
    let (ca, store) = (TestCa::new(), Store::default());
    let (a, b) = (Arc::clone(&store), Arc::clone(&store));
    let leaving = serve(&ca, move |call| {
        let reply = ingest(&mut a.lock().unwrap(), &call)?;
        Ok(StreamSessionRecordingResponse { reconnect: true, ..reply })
    });
    let staying = serve(&ca, move |call| ingest(&mut b.lock().unwrap(), &call));
    store.lock().unwrap().begun = true;
    upload(&uploader(&ca, &[leaving.address(), staying.address()], NOBODY), &bytes(200)).await.unwrap();
    assert_eq!(leaving.calls().len(), 1);
}

#[tokio::test]
async fn a_recording_that_does_not_come_forward_ends_in_an_error() {
    let ca = TestCa::new();
    let server = serve(&ca, |_| Ok(StreamSessionRecordingResponse::default()));
    let error = upload(&uploader(&ca, &[server.address()], NOBODY), &bytes(5)).await.unwrap_err();
    assert!(matches!(error, UploadError::Stalled { committed: 0, total: 5 }), "{error:?}");
    let damaged = serve(&ca, |call| match call.requests::<StreamSessionRecordingRequest>().len() {
        1 => Ok(StreamSessionRecordingResponse::default()),
        _ => Err(Status::data_loss("checksum")),
    });
    let error = upload(&uploader(&ca, &[damaged.address()], NOBODY), &bytes(5)).await.unwrap_err();
    assert!(matches!(error, UploadError::Stalled { .. }), "{error:?}");
}

#[tokio::test]
async fn refusals_are_final() {
    for code in [Code::PermissionDenied, Code::FailedPrecondition, Code::InvalidArgument] {
        let ca = TestCa::new();
        let server = serve(&ca, move |_| Err(Status::new(code, "no")));
        let error = upload(&uploader(&ca, &[server.address()], NOBODY), &bytes(5)).await.unwrap_err();
        assert!(matches!(&error, UploadError::Client(error) if error.code() == Some(code)), "{error:?}");
        assert!(!error.is_of_another_agent());
        assert_eq!(server.calls().len(), 1);
    }
}

#[tokio::test]
async fn what_the_cluster_has_under_the_id_for_good_is_told_apart_from_what_passes() {
    for (code, reason) in [(Code::PermissionDenied, NOT_OWNER), (Code::FailedPrecondition, SEALED)] {
        let ca = TestCa::new();
        let server = serve(&ca, move |_| {
            let details = ErrorDetails::with_error_info(reason, "mezite", HashMap::new());
            Err(Status::with_error_details(code, "no", details))
        });
        let error = upload(&uploader(&ca, &[server.address()], NOBODY), &bytes(5)).await.unwrap_err();
        let told = (error.is_of_another_agent(), matches!(error, UploadError::Differs(_)));
        assert_eq!(told, (reason == NOT_OWNER, reason == SEALED), "{error:?}");
    }
    // Another recording is under way there, and longer than this one.
    let (ca, store) = (TestCa::new(), Store::default());
    *store.lock().unwrap() = Stored { begun: true, payload: bytes(6), ..Stored::default() };
    let server = serve(&ca, move |call| ingest(&mut store.lock().unwrap(), &call));
    let error = upload(&uploader(&ca, &[server.address()], NOBODY), &bytes(5)).await.unwrap_err();
    assert!(matches!(error, UploadError::Differs(_)), "{error:?}");
}

#[tokio::test]
async fn a_full_store_is_waited_for() {
    let (ca, store) = (TestCa::new(), Store::default());
    let refusals = Mutex::new(2);
    let server = serve(&ca, move |call| {
        let mut refusals = refusals.lock().unwrap();
        if *refusals > 0 {
            *refusals -= 1;
            let wait = ErrorDetails::with_retry_info(Some(std::time::Duration::from_millis(20)));
            return Err(Status::with_error_details(Code::ResourceExhausted, "full", wait));
        }
        ingest(&mut store.lock().unwrap(), &call)
    });
    upload(&uploader(&ca, &[server.address()], NOBODY), &bytes(50)).await.unwrap();
}

#[tokio::test]
async fn a_receipt_for_something_else_is_none() {
    let payload = bytes(20);
    let extent = *Payload::measure(Cursor::new(payload.clone())).await.unwrap().extent.borrow();
    let key = SshKeyPair::generate_ed25519("").unwrap();
    let good = manifest(&payload, &key);
    let reply = |state: WireState, committed_offset, receipt| StreamSessionRecordingResponse {
        recording_id: id().to_string(),
        committed_offset,
        state: state.into(),
        receipt,
        ..Default::default()
    };
    let complete = |manifest: &Manifest, key: &SshKeyPair| {
        check(id(), extent, reply(WireState::Complete, 20, Some(sign(manifest, key))))
    };
    assert!(complete(&good, &key).is_ok());

    let mut wrong: HashMap<&str, Manifest> = HashMap::new();
    wrong.insert("recording", Manifest { recording_id: RecordingId::from_bytes([8; 16]), ..good.clone() });
    wrong.insert("state", Manifest { state: RecordingState::Interrupted, ..good.clone() });
    wrong.insert("length", manifest(&bytes(19), &key));
    for (what, manifest) in &wrong {
        assert!(matches!(complete(manifest, &key), Err(UploadError::BadReceipt(_))), "{what}");
    }
    let other = Manifest { payload_sha256: Digest::of(b"other"), ..good.clone() };
    assert!(matches!(complete(&other, &key), Err(UploadError::Differs(_))));
    // Signed with a key that the manifest does not name.
    let other = SshKeyPair::generate_ed25519("").unwrap();
    assert!(matches!(complete(&good, &other), Err(UploadError::BadReceipt(_))));
    // Signed, and changed afterwards.
    let mut changed = sign(&good, &key);
    let mut document = changed.manifest.to_vec();
    *document.iter_mut().rev().find(|byte| byte.is_ascii_digit()).unwrap() ^= 1;
    changed.manifest = document.into();
    assert!(check(id(), extent, reply(WireState::Complete, 20, Some(changed))).is_err());

    assert!(check(id(), extent, reply(WireState::Complete, 20, None)).is_err());
    let less = reply(WireState::Complete, 19, Some(sign(&good, &key)));
    assert!(matches!(check(id(), extent, less), Err(UploadError::BadReceipt(_))));
    let less = reply(WireState::Complete, 19, Some(sign(&manifest(&bytes(19), &key), &key)));
    assert!(matches!(check(id(), extent, less), Err(UploadError::Differs(_))));
    let truncated = check(id(), extent, reply(WireState::Truncated, 7, None));
    assert!(matches!(truncated, Err(UploadError::Truncated { committed: 7, total: 20 })));
}

/// A payload that is written while it is sent.
fn growing(path: &std::path::Path) -> (std::fs::File, watch::Sender<Extent>, watch::Receiver<Extent>) {
    let (told, extent) = watch::channel(Extent::default());
    (std::fs::File::create(path).unwrap(), told, extent)
}

fn add(file: &mut std::fs::File, told: &watch::Sender<Extent>, bytes: &[u8]) {
    std::io::Write::write_all(file, bytes).unwrap();
    told.send_modify(|extent| extent.length += bytes.len() as u64);
}

async fn arrived(store: &Store, length: usize) {
    while store.lock().unwrap().payload.len() < length {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_payload_is_sent_as_it_grows_and_sealed_when_it_has_ended() {
    let (ca, store) = (TestCa::new(), Store::default());
    let shared = Arc::clone(&store);
    let server = serve(&ca, move |call| ingest(&mut shared.lock().unwrap(), &call));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("payload");
    let (mut file, told, extent) = growing(&path);
    let whole = bytes(150);
    add(&mut file, &told, &whole[..20]);
    let uploader = uploader(&ca, &[server.address()], NOBODY);
    let mut payload = Payload::following(tokio::fs::File::open(&path).await.unwrap(), extent);
    let sent = tokio::spawn(async move { uploader.upload(id(), &metadata(), &mut payload).await });
    arrived(&store, 20).await;
    assert!(store.lock().unwrap().sealed.is_none());
    add(&mut file, &told, &whole[20..]);
    arrived(&store, 150).await;
    // All bytes are there before the end is told: the last batch has no bytes.
    let end = PayloadEnd { sha256: Digest::of(&whole), ended_at_ms: Some(1_000) };
    told.send_modify(|extent| extent.end = Some(end));
    assert_eq!(sent.await.unwrap().unwrap().manifest.length, 150);
    assert_eq!(store.lock().unwrap().payload, whole);
}

#[tokio::test]
async fn what_a_writer_left_without_an_end_is_sent_and_not_sealed() {
    let (ca, store) = (TestCa::new(), Store::default());
    let shared = Arc::clone(&store);
    let server = serve(&ca, move |call| ingest(&mut shared.lock().unwrap(), &call));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("payload");
    let (mut file, told, extent) = growing(&path);
    add(&mut file, &told, &bytes(50));
    drop(told);
    let mut payload = Payload::following(tokio::fs::File::open(&path).await.unwrap(), extent);
    let left = uploader(&ca, &[server.address()], NOBODY).upload(id(), &metadata(), &mut payload).await;
    assert!(matches!(left, Err(UploadError::Abandoned)), "{left:?}");
    let stored = store.lock().unwrap();
    assert_eq!((stored.payload.len(), stored.sealed.is_none()), (50, true));
}

#[tokio::test]
async fn a_payload_that_does_not_grow_for_long_is_told_to_go_on() {
    let (ca, store) = (TestCa::new(), Store::default());
    let (shared, probes) = (Arc::clone(&store), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&probes);
    let server = serve(&ca, move |call| {
        let mut stored = shared.lock().unwrap();
        if stored.begun && call.requests::<StreamSessionRecordingRequest>().len() == 1 {
            counted.fetch_add(1, Ordering::Relaxed);
        }
        ingest(&mut stored, &call)
    });
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("payload");
    let (mut file, told, extent) = growing(&path);
    let whole = bytes(30);
    add(&mut file, &told, &whole[..20]);
    let uploader = uploader(&ca, &[server.address()], NOBODY);
    let mut payload = Payload::following(tokio::fs::File::open(&path).await.unwrap(), extent);
    let sent = tokio::spawn(async move { uploader.upload(id(), &metadata(), &mut payload).await });
    arrived(&store, 20).await;
    // More often than it may stall: silence is no failure.
    while probes.load(Ordering::Relaxed) <= 2 * LIMITS.stalls as usize {
        tokio::task::yield_now().await;
    }
    add(&mut file, &told, &whole[20..]);
    let end = PayloadEnd { sha256: Digest::of(&whole), ended_at_ms: None };
    told.send_modify(|extent| extent.end = Some(end));
    assert_eq!(sent.await.unwrap().unwrap().manifest.length, 30);
}
