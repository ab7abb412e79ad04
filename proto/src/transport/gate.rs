//! What a request takes before it is known whose it is: its path is looked at before its messages are read, they have a
//! time to arrive in, and those of connections without a client certificate share a number of bytes.
//!
//! gRPC servers read a whole message before they call a method. So whatever a method checks, memory has been taken by then,
//! for as long as the client likes. Who may call what is decided by the methods, not here.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures::future::{Either, Ready, ready};
use http_body::{Frame, SizeHint};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Sleep,
};
use tonic::{Status, body::Body};

use super::ConnectionInfo;

/// What a request takes of the shared bytes from its beginning: the buffer that tonic decodes it from.
const LEAST: usize = 8 << 10;
/// Shared, in the same way, by requests to the services beside the program's own: bytes that none of them need.
const BESIDE_BYTES: usize = 1 << 20;

/// What is taken of requests.
#[derive(Debug, Clone, Copy)]
pub struct GateRules {
    /// Whether the method of this path may be called without a client certificate; others are refused before their
    /// messages are read.
    pub open: fn(&str) -> bool,
    /// Whether the request of the method of this path lasts, and the method itself bounds the silence between its
    /// messages. Without a client certificate none lasts.
    pub lasting: fn(&str) -> bool,
    /// Whether a path is of a service beside the program's own, such as reflection. What holds up those, and never lets go
    /// of its bytes, holds up nothing else.
    pub beside: fn(&str) -> bool,
    /// Any other request has arrived, to its end, within this.
    pub request_timeout: Duration,
    /// Bytes of all requests together that are arriving over connections without a client certificate, each counted as
    /// 8 KiB at least; what goes beyond is refused.
    pub anonymous_bytes: usize,
}

/// Whether a path is of a method of the service with this full name.
pub fn is_of(path: &str, service: &str) -> bool {
    let rest = path.strip_prefix('/').and_then(|path| path.strip_prefix(service));
    rest.is_some_and(|rest| rest.starts_with('/'))
}

/// The layer that holds a server to its [`GateRules`].
#[derive(Debug, Clone)]
pub struct Gate {
    rules: GateRules,
    bytes: Arc<Semaphore>,
    beside: Arc<Semaphore>,
}

impl Gate {
    /// A gate, with all of its bytes to give.
    pub fn new(rules: GateRules) -> Self {
        let bytes = Arc::new(Semaphore::new(rules.anonymous_bytes.min(Semaphore::MAX_PERMITS)));
        Self { rules, bytes, beside: Arc::new(Semaphore::new(BESIDE_BYTES)) }
    }

    /// The request as the server is to see it.
    fn admit(&self, request: http::Request<Body>) -> Result<http::Request<Body>, Status> {
        let info = request.extensions().get::<ConnectionInfo>();
        let anonymous = info.is_none_or(|info| info.peer_certificates.is_empty());
        let path = request.uri().path();
        if anonymous && !(self.rules.open)(path) {
            return Err(Status::unauthenticated("this method needs a client certificate"));
        }
        let bytes = if (self.rules.beside)(path) { &self.beside } else { &self.bytes };
        let share = if anonymous { Some(Share::new(bytes)?) } else { None };
        if share.is_none() && (self.rules.lasting)(path) {
            return Ok(request);
        }
        let ends = Box::pin(tokio::time::sleep(self.rules.request_timeout));
        Ok(request.map(|body| Body::new(Arriving { body, ends, share })))
    }
}

impl<S> tower::Layer<S> for Gate {
    type Service = Gated<S>;

    fn layer(&self, inner: S) -> Gated<S> {
        Gated { gate: self.clone(), inner }
    }
}

/// A service behind a [`Gate`].
#[derive(Debug, Clone)]
pub struct Gated<S> {
    gate: Gate,
    inner: S,
}

impl<S> tower::Service<http::Request<Body>> for Gated<S>
where
    S: tower::Service<http::Request<Body>, Response = http::Response<Body>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<S::Response, S::Error>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        match self.gate.admit(request) {
            Ok(request) => Either::Left(self.inner.call(request)),
            Err(refusal) => Either::Right(ready(Ok(refusal.into_http()))),
        }
    }
}

/// Part of the bytes that requests without a certificate share. Dropping it gives them back.
struct Share {
    bytes: Arc<Semaphore>,
    held: OwnedSemaphorePermit,
    arrived: usize,
}

impl Share {
    fn new(bytes: &Arc<Semaphore>) -> Result<Self, Status> {
        let held = take(bytes, LEAST)?;
        Ok(Self { bytes: Arc::clone(bytes), held, arrived: 0 })
    }

    /// Takes what is lacking when so much more has arrived.
    fn grow(&mut self, more: usize) -> Result<(), Status> {
        self.arrived = self.arrived.saturating_add(more);
        let lacking = self.arrived.saturating_sub(self.held.num_permits());
        if lacking > 0 {
            self.held.merge(take(&self.bytes, lacking)?);
        }
        Ok(())
    }
}

fn take(bytes: &Arc<Semaphore>, count: usize) -> Result<OwnedSemaphorePermit, Status> {
    let count = u32::try_from(count).ok();
    count.and_then(|count| Arc::clone(bytes).try_acquire_many_owned(count).ok()).ok_or_else(|| {
        Status::resource_exhausted("too many requests are arriving without a client certificate")
    })
}

/// The messages of a request, bounded in time and, by its share, in bytes.
struct Arriving {
    body: Body,
    ends: Pin<Box<Sleep>>,
    share: Option<Share>,
}

impl http_body::Body for Arriving {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        // Looked at first: one that never stops sending is never waited for.
        if self.ends.as_mut().poll(cx).is_ready() {
            let late = "the request did not arrive within the time that is given to one";
            return Poll::Ready(Some(Err(Status::deadline_exceeded(late))));
        }
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        let length = match &frame {
            Some(Ok(frame)) => frame.data_ref().map_or(0, Bytes::len),
            _ => 0,
        };
        match self.share.as_mut().map_or(Ok(()), |share| share.grow(length)) {
            Ok(()) => Poll::Ready(frame),
            Err(refusal) => Poll::Ready(Some(Err(refusal))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use futures::{SinkExt as _, channel::mpsc, future::BoxFuture};
    use tonic::{Code, server::Grpc};
    use tonic_prost::ProstCodec;
    use tower::{Layer as _, ServiceExt as _};

    use super::*;

    const RULES: GateRules = GateRules {
        open: |path| matches!(path, "/open" | "/beside"),
        beside: |path| path == "/beside",
        lasting: |path| path == "/lasting",
        request_timeout: Duration::from_secs(5),
        anonymous_bytes: 4 * LEAST,
    };

    /// What the client has sent and will.
    struct Sent(mpsc::Receiver<Bytes>);

    impl http_body::Body for Sent {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            use futures::Stream as _;
            Pin::new(&mut self.0).poll_next(cx).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
        }
    }

    /// A request over a connection whose client has so many certificates, and what sends its body.
    fn request(path: &str, certificates: usize) -> (http::Request<Body>, mpsc::Sender<Bytes>) {
        let (sender, sent) = mpsc::channel(0);
        let mut request = http::Request::post(path).body(Body::new(Sent(sent))).unwrap();
        request.extensions_mut().insert(ConnectionInfo {
            remote_addr: ([127, 0, 0, 1], 1).into(),
            peer_certificates: vec![vec![0].into(); certificates].into(),
        });
        (request, sender)
    }

    /// A server of unary methods that answer what they were sent, as tonic makes them.
    fn server(gate: &Gate) -> impl Fn(http::Request<Body>) -> BoxFuture<'static, Code> + use<> {
        let echo = tower::service_fn(|request: tonic::Request<String>| async move {
            Ok::<_, Status>(tonic::Response::new(request.into_inner()))
        });
        let served = tower::service_fn(move |request| async move {
            let mut grpc = Grpc::new(ProstCodec::<String, String>::default());
            Ok::<_, std::convert::Infallible>(grpc.unary(echo, request).await)
        });
        let gated = gate.layer(served);
        move |request| {
            let answer = gated.clone().oneshot(request);
            Box::pin(async move {
                let response = answer.await.unwrap();
                Status::from_header_map(response.headers()).map_or(Code::Ok, |status| status.code())
            })
        }
    }

    /// The beginning of a message of so many bytes.
    fn prefix(length: u32) -> Bytes {
        [&[0], length.to_be_bytes().as_slice()].concat().into()
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_stalls_or_drips_is_ended_and_gives_back_what_it_took() {
        let gate = Gate::new(RULES);
        let call = server(&gate);
        for (path, certificates) in [("/open", 0), ("/open", 1), ("/lasting", 0)] {
            let gate = Gate::new(GateRules { open: |_| true, ..RULES });
            let (half, mut sender) = request(path, certificates);
            let drip = async {
                sender.send(prefix(1 << 20)).await.unwrap();
                while sender.send(Bytes::from_static(b"x")).await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            };
            let began = tokio::time::Instant::now();
            let (code, ()) = tokio::join!(server(&gate)(half), drip);
            assert_eq!(code, Code::DeadlineExceeded);
            assert!(began.elapsed() < RULES.request_timeout * 2);
            assert_eq!(gate.bytes.available_permits(), RULES.anonymous_bytes);
        }
        // One that is whole but not ended is no better.
        let (open_ended, mut sender) = request("/open", 0);
        let (code, sent) = tokio::join!(call(open_ended), sender.send(prefix(0)));
        assert_eq!((code, sent), (Code::DeadlineExceeded, Ok(())));
        let (good, mut sender) = request("/open", 0);
        let send = async move { sender.send(prefix(0)).await };
        assert_eq!(tokio::join!(call(good), send), (Code::Ok, Ok(())));
        assert_eq!(gate.bytes.available_permits(), RULES.anonymous_bytes);
    }

    #[tokio::test(start_paused = true)]
    async fn what_lasts_may_take_its_time_if_its_client_has_a_certificate() {
        let call = server(&Gate::new(RULES));
        let (slow, mut sender) = request("/lasting", 1);
        let send = async move {
            tokio::time::sleep(RULES.request_timeout * 10).await;
            sender.send(prefix(0)).await
        };
        assert_eq!(tokio::join!(call(slow), send), (Code::Ok, Ok(())));
    }

    #[tokio::test]
    async fn without_a_certificate_only_what_is_open_is_read() {
        let call = server(&Gate::new(RULES));
        for path in ["/lasting", "/other"] {
            // Nothing is sent, and the answer is there.
            let (refused, sender) = request(path, 0);
            assert_eq!(call(refused).await, Code::Unauthenticated);
            assert!(sender.is_closed());
        }
    }

    #[tokio::test]
    async fn what_is_beside_takes_nothing_from_what_is_the_programs_own() {
        let gate = Gate::new(RULES);
        let call = server(&gate);
        let mut held = Vec::new();
        for _ in 0..BESIDE_BYTES / LEAST {
            let (stalled, sender) = request("/beside", 0);
            held.push((tokio::spawn(call(stalled)), sender));
        }
        while gate.beside.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(call(request("/beside", 0).0).await, Code::ResourceExhausted);
        assert_eq!(gate.bytes.available_permits(), RULES.anonymous_bytes);
        let (good, mut sender) = request("/open", 0);
        let send = async move { sender.send(prefix(0)).await };
        assert_eq!(tokio::join!(call(good), send), (Code::Ok, Ok(())));
        held.iter().for_each(|(stalled, _)| stalled.abort());
    }

    #[tokio::test]
    async fn requests_without_a_certificate_share_their_bytes_and_no_others_do() {
        let gate = Gate::new(RULES);
        let call = server(&gate);
        // Two that say nothing, and one that takes the rest.
        let (first, mut first_sender) = request("/open", 0);
        let first = tokio::spawn(call(first));
        let (second, _second_sender) = request("/open", 0);
        let second = tokio::spawn(call(second));
        let (large, mut large_sender) = request("/open", 0);
        let large = tokio::spawn(call(large));
        large_sender.send(prefix(1 << 20)).await.unwrap();
        large_sender.send(vec![0; 2 * LEAST - 5].into()).await.unwrap();
        while gate.bytes.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        // Neither another nor a byte more.
        assert_eq!(call(request("/open", 0).0).await, Code::ResourceExhausted);
        first_sender.send(vec![0; LEAST + 1].into()).await.unwrap();
        assert_eq!(first.await.unwrap(), Code::ResourceExhausted);
        // With a certificate it is as ever.
        let (certified, mut sender) = request("/open", 1);
        let send = async move { sender.send(prefix(0)).await };
        assert_eq!(tokio::join!(call(certified), send), (Code::Ok, Ok(())));
        second.abort();
        large.abort();
        assert!(second.await.is_err() && large.await.is_err());
        assert_eq!(gate.bytes.available_permits(), RULES.anonymous_bytes);
    }

    #[test]
    fn paths_are_of_the_service_that_they_name() {
        assert!(is_of("/a.B/C", "a.B"));
        for path in ["/a.B", "/a.BB/C", "a.B/C", "/x/a.B/C", "/", ""] {
            assert!(!is_of(path, "a.B"), "{path}");
        }
    }
}
