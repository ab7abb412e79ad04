//! What the peer port takes from whoever has no certificate: requests to join, small ones, and not for long.

use std::{
    convert::Infallible,
    future::poll_fn,
    pin::Pin,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::Frame;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use tonic::{Code, Status, body::Body, client::GrpcService, transport::Channel};

use super::*;

const APPEND: &str = "/mezite.peer.v1.PeerService/Append";
const JOIN: &str = "/mezite.peer.v1.JoinService/Join";

/// A message that announces `length` bytes. Of it and its prefix, `present` bytes are sent; then no more ever, or the
/// end if it is whole.
struct Announced {
    length: u32,
    present: usize,
    sent: Arc<AtomicUsize>,
}

impl http_body::Body for Announced {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let sent = self.sent.load(Relaxed);
        let piece: Bytes = match sent {
            0 => [&[0], self.length.to_be_bytes().as_slice()].concat().into(),
            sent if sent < self.present => vec![0; (self.present - sent).min(16 << 10)].into(),
            sent if sent == self.length as usize + 5 => return Poll::Ready(None),
            _ => return Poll::Pending,
        };
        self.sent.fetch_add(piece.len(), Relaxed);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }
}

/// A channel to the first node, without a certificate.
fn stranger(cluster: &Cluster) -> Channel {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(cluster.authority.pem.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let mut tls = builder.with_no_client_auth();
    tls.alpn_protocols = vec![mezite_proto::transport::ALPN_H2.to_vec()];
    let name = cluster.nodes[0].identity.server_name(1).unwrap();
    let address = &cluster.addresses()[0].1;
    mezite_proto::transport::channel(address, Arc::new(tls), name, PATIENCE).unwrap()
}

/// How a call ends that sends so much of so much, `Unknown` if its connection does; and how much was sent until then.
async fn call(mut channel: Channel, path: &str, length: u32, present: usize) -> (Code, usize) {
    let sent = Arc::new(AtomicUsize::new(0));
    let body = Body::new(Announced { length, present, sent: Arc::clone(&sent) });
    let request = http::Request::post(path)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header(crate::net::VERSION_HEADER, crate::net::PROTOCOL_VERSION)
        .body(body)
        .unwrap();
    let ready = poll_fn(|cx| GrpcService::<Body>::poll_ready(&mut channel, cx));
    ready.await.unwrap();
    let answer = tokio::time::timeout(PATIENCE, GrpcService::<Body>::call(&mut channel, request));
    let code = match answer.await.expect("the call ends") {
        Ok(response) => Status::from_header_map(response.headers()).map_or(Code::Ok, |status| status.code()),
        Err(_) => Code::Unknown,
    };
    (code, sent.load(Relaxed))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_certificate_only_a_small_request_to_join_is_read() {
    let cluster = Cluster::start(1, Limits::default()).await;
    let channel = stranger(&cluster);
    let whole = 32_usize << 20;
    // Refused though the rest never comes, and before much of it came.
    assert_eq!(call(channel.clone(), APPEND, whole as u32, 1024).await.0, Code::Unauthenticated);
    let (code, sent) = call(channel.clone(), APPEND, whole as u32, whole).await;
    assert_eq!(code, Code::Unauthenticated);
    // What fits into the windows of HTTP/2 and the buffers on the way, which nobody reads.
    assert!(sent < 4 << 20, "{sent} bytes");
    for path in ["/mezite.peer.v1.PeerService/InstallSnapshot", "/mezite.v1.AuthService/Ping"] {
        assert_eq!(call(channel.clone(), path, 1024, 8).await.0, Code::Unauthenticated, "{path}");
    }
    // A join is read, up to its bound: here nobody decides about it.
    assert_eq!(call(channel.clone(), JOIN, 0, 5).await.0, Code::Unavailable);
    assert_eq!(call(channel.clone(), JOIN, (16 << 10) + 1, 1024).await.0, Code::OutOfRange);
    put(&cluster.store(0), "k", "v").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_cut_off_and_members_are_not() {
    let limits = Limits { joiner_age: Duration::from_millis(500), ..Limits::default() };
    let cluster = Cluster::start_patient(3, limits).await;
    let began = Instant::now();
    // More than have a place at a time.
    let stalled = (0..100).map(|_| call(stranger(&cluster), JOIN, 16 << 10, 1024));
    let ended = join_all(stalled).await;
    assert!(ended.iter().all(|(code, _)| *code == Code::Unknown), "{ended:?}");
    assert!(began.elapsed() < PATIENCE);
    // There is room for the next one.
    eventually("a place is free", async || {
        let (code, sent) = call(stranger(&cluster), JOIN, (16 << 10) + 1, 1024).await;
        code == Code::OutOfRange && sent > 0
    })
    .await;
    let term = cluster.store(0).status().term;
    put(&cluster.store(2), "k", "v").await.unwrap();
    assert_eq!(cluster.store(1).status().term, term);
    cluster.assert_replicas_equal().await;
}
