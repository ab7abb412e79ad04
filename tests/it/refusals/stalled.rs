//! Requests that are begun and never ended: they are given a time, and nothing without a certificate that need not be.

use std::{
    convert::Infallible,
    fs::OpenOptions,
    io::Write as _,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use http_body::Frame;
use mezite_e2e::{Agent, AgentSpec, Cluster, Ingest, Setup, api};
use mezite_proto::{
    transport::channel,
    v1::{self, auth_service_client::AuthServiceClient},
};
use rustls::pki_types::ServerName;
use tonic::{Code, Status, body::Body, transport::Channel};
use tower::ServiceExt as _;

const PATIENCE: Duration = Duration::from_secs(60);

/// Some bytes; then an end, or nothing ever.
struct Said {
    bytes: Option<bytes::Bytes>,
    ends: bool,
}

impl http_body::Body for Said {
    type Data = bytes::Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<bytes::Bytes>, Infallible>>> {
        match (self.bytes.take(), self.ends) {
            (Some(bytes), _) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
            (None, true) => Poll::Ready(None),
            (None, false) => Poll::Pending,
        }
    }
}

/// How a call ends for which this body is all that comes.
async fn code_of(channel: Channel, path: &str, body: Said) -> Code {
    let request = http::Request::post(path)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Body::new(body))
        .unwrap();
    let answer = tokio::time::timeout(PATIENCE, channel.oneshot(request)).await.expect("the call ends");
    Status::from_header_map(answer.unwrap().headers()).map_or(Code::Ok, |status| status.code())
}

/// A message of 1 MiB, of which 32 KiB come.
fn half() -> Said {
    let mut bytes = vec![0];
    bytes.extend_from_slice(&(1_u32 << 20).to_be_bytes());
    bytes.extend_from_slice(&[b'x'; 32 << 10]);
    Said { bytes: Some(bytes.into()), ends: false }
}

/// An empty message, and the end.
fn empty() -> Said {
    Said { bytes: Some(bytes::Bytes::from_static(&[0; 5])), ends: true }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_ends_requests_that_stall_and_gives_their_streams_back() {
    let set = ["limits.call_timeout=5s", "limits.max_streams_per_connection=8"];
    let set = set.map(str::to_owned).to_vec();
    let cluster = Cluster::start_with(&Setup { set, ..Setup::default() }).await;
    let trust = cluster.trust();
    let connect = || {
        let (tls, name) = (api::tls(trust, true, None), api::auth_server_name(trust));
        channel(&cluster.nodes()[0].address(), tls, name, PATIENCE).unwrap()
    };
    let channel = connect();
    // From then on the client knows how many streams it may have, and the others wait.
    AuthServiceClient::new(channel.clone()).ping(v1::PingRequest {}).await.unwrap();
    // More than have a stream at a time; those that come without a certificate may not last either.
    let methods = ["AuthenticateLocal", "CreateRole", "UploadSessionRecording", "StreamSessionRecording"];
    let stalled = (0..24).map(|number| {
        let path = format!("/mezite.v1.AuthService/{}", methods[number % methods.len()]);
        let channel = channel.clone();
        async move { code_of(channel, &path, half()).await }
    });
    let began = Instant::now();
    let codes = futures::future::join_all(stalled).await;
    assert!(began.elapsed() >= Duration::from_secs(5), "they were read");
    // A stream is refused by its method, and that at once.
    let ended = |code: &Code| matches!(code, Code::DeadlineExceeded | Code::Unauthenticated);
    assert!(codes.iter().all(ended), "{codes:?}");
    assert!(codes.iter().filter(|code| **code == Code::DeadlineExceeded).count() >= 18, "{codes:?}");
    // The connection goes on.
    AuthServiceClient::new(channel).ping(v1::PingRequest {}).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ingest_reads_nothing_without_a_certificate_and_waits_for_nobody_for_ever() {
    let cluster = Cluster::start(1).await;
    let (mut ingests, _) = Ingest::start_all(&cluster, 1).await;
    let agent = Agent::join(&cluster, AgentSpec::default());
    let ingest = &mut ingests[0];
    ingest.kill();
    let mut config = OpenOptions::new().append(true).open(ingest.config()).unwrap();
    config.write_all(b"[limits]\nmessage_timeout = \"3s\"\n").unwrap();
    ingest.start();
    ingest.ready().await;

    let trust = cluster.trust();
    let name = ServerName::try_from(format!("ingest.{}.mezite.internal", trust.cluster_name())).unwrap();
    let connect = |identity: Option<(&str, &str)>| {
        channel(&ingest.address(), api::tls(trust, true, identity), name.clone(), PATIENCE).unwrap()
    };
    let stranger = connect(None);
    for method in ["UploadSessionRecording", "StreamSessionRecording", "ListSessionRecordings", "Ping"] {
        let path = format!("/mezite.v1.AuthService/{method}");
        assert_eq!(code_of(stranger.clone(), &path, half()).await, Code::Unauthenticated, "{method}");
    }
    let health = "/grpc.health.v1.Health/Check";
    assert_eq!(code_of(stranger.clone(), health, empty()).await, Code::Ok);
    assert_eq!(code_of(stranger, health, half()).await, Code::DeadlineExceeded);

    let (certificate, key) = agent.pems();
    let certified = connect(Some((&certificate, &key)));
    let upload = "/mezite.v1.AuthService/UploadSessionRecording";
    assert_eq!(code_of(certified, upload, half()).await, Code::DeadlineExceeded);
}
