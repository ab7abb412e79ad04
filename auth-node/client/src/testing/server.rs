//! A server that answers calls of `mezite.v1.AuthService` as a test says.

use std::{
    convert::Infallible,
    fmt,
    net::{Ipv4Addr, TcpListener},
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use arc_swap::ArcSwap;
use bytes::{Buf as _, BufMut as _, Bytes};
use futures::{
    FutureExt as _, StreamExt as _, TryStreamExt as _, future::BoxFuture, stream, stream::BoxStream,
};
use mezite_proto::{
    SERVICE_NAME,
    transport::{ALPN_H2, ConnectionInfo, ListenerLimits, TlsListener},
};
use prost::Message;
use rustls::{RootCertStore, ServerConfig, server::WebPkiClientVerifier};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio::{net::TcpSocket, runtime::Runtime};
use tonic::{
    Request, Response, Status, Streaming,
    body::Body,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    metadata::MetadataMap,
    server::{Grpc, NamedService, StreamingService},
    transport::Server,
};

use super::{Leaf, TestCa};

/// A call, as it arrived.
#[derive(Debug, Clone)]
pub struct Call {
    /// Name of the method, such as `Ping`.
    pub method: String,
    /// Its metadata.
    pub metadata: MetadataMap,
    /// Whether the client showed a certificate.
    pub certified: bool,
    messages: Vec<Bytes>,
}

impl Call {
    /// The request; of a stream its first message.
    pub fn request<M: Message + Default>(&self) -> M {
        self.requests().remove(0)
    }

    /// All messages of a stream.
    pub fn requests<M: Message + Default>(&self) -> Vec<M> {
        self.messages.iter().map(|message| M::decode(message.clone()).unwrap()).collect()
    }
}

/// Encoded messages that a call is answered with, one after the other.
pub type Replies = BoxStream<'static, Result<Vec<u8>, Status>>;

type Answer = BoxFuture<'static, Result<Replies, Status>>;
type Handler = Arc<dyn Fn(Call) -> Answer + Send + Sync>;

/// host:port on loopback where nobody listens, and nobody else can before the process ends.
pub fn dead_address() -> String {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let address = socket.local_addr().unwrap().to_string();
    // Bound, and not listening: who connects is refused.
    std::mem::forget(socket);
    address
}

/// A server on a free port of loopback, with threads of its own.
pub struct FakeServer {
    address: String,
    runtime: Option<Runtime>,
    calls: Arc<Mutex<Vec<Call>>>,
}

impl fmt::Debug for FakeServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeServer").field("address", &self.address).finish_non_exhaustive()
    }
}

impl FakeServer {
    /// Answers each call with what `handler` gives: the encoded reply, or an error.
    pub fn start<F, Fut>(leaf: &Leaf, client_ca: &TestCa, handler: F) -> Self
    where
        F: Fn(Call) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Vec<u8>, Status>> + Send + 'static,
    {
        Self::start_at("127.0.0.1:0", leaf, client_ca, handler)
    }

    /// As [`FakeServer::start`], at an address: that of one that was killed.
    pub fn start_at<F, Fut>(address: &str, leaf: &Leaf, client_ca: &TestCa, handler: F) -> Self
    where
        F: Fn(Call) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Vec<u8>, Status>> + Send + 'static,
    {
        Self::streaming_at(address, leaf, client_ca, move |call| {
            let answer = handler(call);
            async move {
                let reply = answer.await?;
                Ok(stream::once(async move { Ok(reply) }).boxed())
            }
        })
    }

    /// As [`FakeServer::start_at`], for methods that answer a stream: that of a unary call has one message.
    pub fn streaming_at<F, Fut>(address: &str, leaf: &Leaf, client_ca: &TestCa, handler: F) -> Self
    where
        F: Fn(Call) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Replies, Status>> + Send + 'static,
    {
        let listener = TcpListener::bind(address).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let tls = Arc::new(ArcSwap::from_pointee(server_config(leaf, client_ca)));
        let calls = Arc::new(Mutex::new(Vec::new()));
        let service =
            Service { handler: Arc::new(move |call| handler(call).boxed()), calls: Arc::clone(&calls) };
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let incoming = TlsListener::new(listener, tls, ListenerLimits::default());
            Server::builder().add_service(service).serve_with_incoming(incoming).await.unwrap();
        });
        Self { address, runtime: Some(runtime), calls }
    }

    /// host:port.
    pub fn address(&self) -> String {
        self.address.clone()
    }

    /// The calls that came, in order.
    pub fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().clone()
    }

    /// Ends it as `kill -9` would: connections break, calls in hand are not answered, and the port is free again.
    pub fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // A runtime must not be dropped from within another one's task, and that is where tests are.
            std::thread::spawn(move || drop(runtime)).join().unwrap();
        }
    }
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        self.kill();
    }
}

fn server_config(leaf: &Leaf, client_ca: &TestCa) -> ServerConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(client_ca.pem().as_bytes()).unwrap()).unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .allow_unauthenticated()
        .build()
        .unwrap();
    let chain = format!("{}\n{}", leaf.certificate, leaf.chain);
    let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<_, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).unwrap();
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .unwrap();
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config
}

/// Takes every method as a stream of messages; of a unary call there is one.
#[derive(Clone)]
struct Service {
    handler: Handler,
    calls: Arc<Mutex<Vec<Call>>>,
}

impl NamedService for Service {
    const NAME: &'static str = SERVICE_NAME;
}

impl tower::Service<http::Request<Body>> for Service {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        let method = Method { method, service: self.clone() };
        async move { Ok(Grpc::new(Raw).streaming(method, request).await) }.boxed()
    }
}

struct Method {
    method: String,
    service: Service,
}

impl StreamingService<Bytes> for Method {
    type Response = Bytes;
    type ResponseStream = BoxStream<'static, Result<Bytes, Status>>;
    type Future = BoxFuture<'static, Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let (method, service) = (self.method.clone(), self.service.clone());
        async move {
            let info = request.extensions().get::<ConnectionInfo>();
            let certified = info.is_some_and(|info| !info.peer_certificates.is_empty());
            let metadata = request.metadata().clone();
            let messages = request.into_inner().try_collect().await?;
            let call = Call { method, metadata, certified, messages };
            service.calls.lock().unwrap().push(call.clone());
            let replies = (service.handler)(call).await?;
            Ok(Response::new(replies.map_ok(Bytes::from).boxed()))
        }
        .boxed()
    }
}

/// Passes messages on as they are.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, dst: &mut EncodeBuf<'_>) -> Result<(), Status> {
        dst.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, src: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(src.copy_to_bytes(src.remaining())))
    }
}
