//! Relays to servers that answer as a test says, over real sockets and TLS.

use mezite_client::testing::{CLUSTER, FakeServer, TestCa, dead_address};
use mezite_proto::{transport::ALPN_H2, v1::stream_session_recording_request::Message};
use prost::Message as _;
use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};

use super::*;

fn relay(ca: &TestCa, limits: &LimitsConfig) -> Relay {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.pem().as_bytes()).unwrap()).unwrap();
    let own = ca.auth_node();
    let chain = CertificateDer::pem_slice_iter(own.certificate.as_bytes()).collect::<Result<_, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_slice(own.key.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut tls = builder.with_root_certificates(roots).with_client_auth_cert(chain, key).unwrap();
    tls.alpn_protocols = vec![ALPN_H2.to_vec()];
    Relay::new(CLUSTER, Arc::new(ArcSwap::from_pointee(tls)), limits).unwrap()
}

fn agent() -> AgentId {
    AgentId::from_random([7; 16])
}

fn chunk(offset: u64) -> Result<v1::StreamSessionRecordingRequest, Status> {
    let chunk = v1::RecordingChunk { offset, ..Default::default() };
    Ok(v1::StreamSessionRecordingRequest { message: Some(Message::Chunk(chunk)) })
}

/// An ingest that says what it has after a call.
fn ingest(ca: &TestCa, committed_offset: u64) -> FakeServer {
    let reply = v1::StreamSessionRecordingResponse { committed_offset, ..Default::default() };
    FakeServer::start(&ca.ingest(), ca, move |_| {
        let reply = reply.encode_to_vec();
        async move { Ok(reply) }
    })
}

#[tokio::test]
async fn a_recording_reaches_a_live_ingest_in_the_name_of_its_agent() {
    let ca = TestCa::new();
    let (ingest, relay) = (ingest(&ca, 9), relay(&ca, &LimitsConfig::default()));
    let messages = stream::iter([chunk(0), chunk(3), chunk(6)]);
    let reply = relay.stream(vec![dead_address(), ingest.address()], &agent(), messages).await.unwrap();
    assert_eq!(reply.committed_offset, 9);
    let calls = ingest.calls();
    assert_eq!(
        (calls.len(), calls[0].method.as_str(), calls[0].certified),
        (1, "StreamSessionRecording", true)
    );
    assert_eq!(calls[0].metadata.get(RELAYED_AGENT).unwrap().to_str().unwrap(), agent().as_str());
    let sent: Vec<_> = calls[0].requests::<v1::StreamSessionRecordingRequest>();
    assert_eq!(sent, [chunk(0).unwrap(), chunk(3).unwrap(), chunk(6).unwrap()]);
}

#[tokio::test]
async fn a_stream_that_breaks_off_or_falls_silent_is_not_answered_as_if_it_were_whole() {
    let ca = TestCa::new();
    let limits = LimitsConfig { message_timeout: Duration::from_millis(50), ..LimitsConfig::default() };
    let (ingest, relay) = (ingest(&ca, 9), relay(&ca, &limits));
    let broken = stream::iter([chunk(0), Err(Status::cancelled("gone"))]);
    let failure = relay.stream(vec![ingest.address()], &agent(), broken).await.unwrap_err();
    assert_eq!(failure.code(), Code::Cancelled);
    let silent = stream::iter([chunk(0)]).chain(stream::pending());
    let failure = relay.stream(vec![ingest.address()], &agent(), silent).await.unwrap_err();
    assert!(matches!(failure, ApiError::Idle));
    // Neither holds a place any longer.
    assert_eq!(relay.writes.count(), 0);
}

#[tokio::test]
async fn a_refusal_reaches_the_agent_while_it_still_sends() {
    let ca = TestCa::new();
    let refusing =
        FakeServer::start(&ca.ingest(), &ca, |_| async { Err(Status::out_of_range("go on from 7")) });
    let relay = relay(&ca, &LimitsConfig::default());
    let failure =
        relay.stream(vec![refusing.address()], &agent(), stream::iter([chunk(9)])).await.unwrap_err();
    assert!(
        matches!(&failure, ApiError::Relayed(status) if status.message() == "go on from 7"),
        "{failure:?}"
    );
    let failure = relay.stream(vec![dead_address()], &agent(), stream::iter([chunk(9)])).await.unwrap_err();
    assert!(matches!(failure, ApiError::Unavailable(_)), "{failure:?}");
}

#[tokio::test]
async fn a_call_moves_on_from_ingests_that_cannot_serve_it_and_not_from_an_answer() {
    let ca = TestCa::new();
    let limits = LimitsConfig::default();
    let leaving = FakeServer::start(&ca.ingest(), &ca, |_| async { Err(Status::unavailable("leaving")) });
    let serving = FakeServer::start(&ca.ingest(), &ca, |call| async move {
        match call.request::<v1::ListSessionRecordingsRequest>().user.as_str() {
            "ann" => Ok(v1::ListSessionRecordingsResponse::default().encode_to_vec()),
            _ => Err(Status::invalid_argument("user")),
        }
    });
    let relay = relay(&ca, &limits);
    let ask = |user: &'static str| {
        let ingests = vec![dead_address(), leaving.address(), serving.address()];
        relay.ask(ingests, move |mut ingest| async move {
            let request = v1::ListSessionRecordingsRequest { user: user.into(), ..Default::default() };
            ingest.list_session_recordings(request).await
        })
    };
    for _ in 0..8 {
        ask("ann").await.unwrap();
    }
    assert_eq!(ask("").await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(serving.calls().len(), 9, "an answer is not asked for twice");
    let none: Result<v1::ListSessionRecordingsResponse, _> =
        relay.ask(Vec::new(), |_| async { Err(Status::internal("never called")) }).await;
    assert!(matches!(none, Err(ApiError::Unavailable(_))));
}

/// An ingest whose recordings never end.
fn endless(ca: &TestCa) -> FakeServer {
    FakeServer::streaming_at("127.0.0.1:0", &ca.ingest(), ca, |_| async {
        let data = vec![7; 64 << 10].into();
        let piece = v1::DownloadSessionRecordingResponse { offset: 0, data }.encode_to_vec();
        Ok(stream::repeat(piece).map(Ok).boxed())
    })
}

#[tokio::test]
async fn a_client_that_never_reads_a_download_holds_its_place_no_longer_than_it_may() {
    let ca = TestCa::new();
    let message_timeout = Duration::from_millis(300);
    let limits = LimitsConfig { message_timeout, max_downloads: 1, ..LimitsConfig::default() };
    let (ingest, relay) = (endless(&ca), relay(&ca, &limits));
    let download = |user: &str| {
        let request = v1::DownloadSessionRecordingRequest::default();
        relay.download(vec![ingest.address()], format!("user:{user}"), request, std::future::pending(), "r")
    };
    let unread = download("ann").await.unwrap();
    assert!(matches!(download("bob").await.err(), Some(ApiError::Busy { .. })));
    let begun = tokio::time::Instant::now();
    while relay.downloads.count() > 0 {
        assert!(begun.elapsed() < Duration::from_secs(20), "the place is held");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let next = download("bob").await.unwrap();
    // Who comes back to it finds that it is not whole.
    let mut pieces: Vec<_> = unread.collect().await;
    assert_eq!(pieces.pop().unwrap().unwrap_err().code(), Code::DeadlineExceeded);
    assert!(!pieces.is_empty() && pieces.iter().all(Result::is_ok));
    drop(next);
}

#[tokio::test]
async fn relays_are_capped_and_those_of_one_agent_leave_places_to_others() {
    let ca = TestCa::new();
    let (ingest, limits) = (ingest(&ca, 9), LimitsConfig::default());
    let relay = relay(&ca, &LimitsConfig { max_relays: 3, max_relays_per_agent: 2, ..limits });
    let call = |agent: AgentId| {
        let relay = &relay;
        let address = ingest.address();
        async move { relay.stream(vec![address], &agent, stream::iter([chunk(0)])).await }
    };
    let mut held = vec![relay.place(&agent()).unwrap(), relay.place(&agent()).unwrap()];
    assert!(matches!(call(agent()).await, Err(ApiError::Busy { .. })));
    let other = AgentId::from_random([8; 16]);
    assert_eq!(call(other.clone()).await.unwrap().committed_offset, 9);
    held.push(relay.place(&other).unwrap());
    assert!(matches!(call(AgentId::from_random([9; 16])).await, Err(ApiError::Busy { .. })));
    drop(held);
    assert_eq!(call(agent()).await.unwrap().committed_offset, 9);
    // Downloads have places of their own.
    assert_eq!((relay.writes.count(), relay.downloads.count()), (0, 0));
}

#[tokio::test]
async fn only_an_ingest_is_believed() {
    let ca = TestCa::new();
    let id = mezite_pki::identity::Identity::Agent { cluster: CLUSTER.into(), id: agent().into() };
    let impostor = ca.issue(Some(id), &["web.example"], (1_600_000_000, 4_000_000_000));
    let impostor = FakeServer::start(&impostor, &ca, |_| async { Ok(Vec::new()) });
    let relay = relay(&ca, &LimitsConfig::default());
    let refused = relay.stream(vec![impostor.address()], &agent(), stream::iter([chunk(0)]).boxed()).await;
    assert!(matches!(refused, Err(ApiError::Unavailable(_))));
    assert!(impostor.calls().is_empty());
}

#[test]
fn an_answer_is_passed_on_and_a_broken_connection_is_not_an_answer() {
    let answered = Status::out_of_range("go on from offset 7");
    assert!(!is_elsewhere_better(&answered));
    assert!(matches!(relayed(answered), ApiError::Relayed(status) if status.code() == Code::OutOfRange));
    let local = || Status::from_error(Box::new(std::io::Error::from(std::io::ErrorKind::ConnectionReset)));
    assert!(is_elsewhere_better(&local()));
    assert!(matches!(relayed(local()), ApiError::RelayBroken));
}
