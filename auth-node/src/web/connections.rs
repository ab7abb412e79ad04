//! Connections of browsers: HTTP/2 or HTTP/1.1, as TLS agreed on, with the same bounds.

use std::{
    convert::Infallible,
    pin::pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    BoxError, Router,
    body::{Bytes, HttpBody},
    http::Request,
    response::Response,
    routing::future::RouteFuture,
};
use futures::StreamExt as _;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use mezite_proto::transport::{ConnectionInfo, TlsConnection, TlsListener};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::server::Connected as _;

use super::{MAX_FORGOTTEN, lingering::Lingering};
use crate::{
    config::Config,
    passwords,
    places::{Places, Room},
};

/// Of so many connections, one network may have one.
const SHARES: usize = 4;
/// Largest head of a request, in bytes; of HTTP/1.1, with what is read beside it.
const MAX_HEAD: usize = 16 << 10;
/// Most header fields of a request.
const MAX_HEADERS: usize = 64;
/// Requests at a time on one connection.
const MAX_STREAMS: u32 = 32;
/// Bytes that a client of HTTP/2 may send ahead, of one request and of all.
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 128 << 10;
/// An HTTP/2 ping after so much silence finds a dead client.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection that is so old is closed when its requests were answered: no client has one for ever.
const MAX_AGE: Duration = Duration::from_secs(600);

/// How connections are served.
#[derive(Clone)]
pub(super) struct Connections {
    routes: Router,
    http1: Builder<TokioExecutor>,
    http2: Builder<TokioExecutor>,
    places: Places,
    /// The longest that a client is waited for to close its connection, too.
    linger: Duration,
    /// The longest that a request takes.
    request_timeout: Duration,
}

impl Connections {
    pub(super) fn new(routes: Router, config: &Config) -> Self {
        let (web, limits) = (&config.web, &config.limits);
        let mut http1 = Builder::new(TokioExecutor::new()).http1_only();
        http1
            .http1()
            .timer(TokioTimer::new())
            // From the beginning of the connection, and of the silence after each answer.
            .header_read_timeout(limits.handshake_timeout)
            .max_headers(MAX_HEADERS)
            .max_buf_size(MAX_HEAD);
        let mut http2 = Builder::new(TokioExecutor::new()).http2_only();
        http2
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX));
        let places = Places::new(Room {
            most: web.max_connections,
            each: (web.max_connections / SHARES).max(1),
            full: "too many connections are open",
            own_full: "too many connections of your network are open",
            measure: |_| (),
        });
        let (linger, request_timeout) = (limits.handshake_timeout, limits.call_timeout);
        Self { routes, http1, http2, places, linger, request_timeout }
    }

    /// Serves connections until `stop`, and those that there are to the end of their requests.
    pub(super) async fn serve(self, mut listener: TlsListener, stop: CancellationToken) {
        let open = TaskTracker::new();
        loop {
            let next = tokio::select! {
                () = stop.cancelled() => break,
                next = listener.next() => next,
            };
            match next {
                Some(Ok(connection)) => drop(open.spawn(self.clone().serve_one(connection, stop.clone()))),
                Some(Err(error)) => tracing::debug!(%error, "a connection could not be taken"),
                None => break,
            }
        }
        drop(listener);
        open.close();
        open.wait().await;
    }

    async fn serve_one(self, connection: TlsConnection, stop: CancellationToken) {
        let info = connection.connect_info();
        let network = passwords::network(&info.remote_addr.ip().to_canonical().to_string());
        // Whoever has no place is cut off: who it is, and what it wants, is not known yet.
        let Ok(_place) = self.places.take(network) else { return };
        let builder = if connection.is_http2() { &self.http2 } else { &self.http1 };
        let service = OfConnection { routes: self.routes.clone(), info };
        let connection = Lingering::new(connection, self.linger, MAX_FORGOTTEN);
        let served = builder.serve_connection(TokioIo::new(connection), TowerToHyperService::new(service));
        let mut served = pin!(served);
        tokio::select! {
            // Whatever breaks a connection is its client's business.
            _ = served.as_mut() => return,
            () = stop.cancelled() => (),
            () = tokio::time::sleep(MAX_AGE) => (),
        }
        served.as_mut().graceful_shutdown();
        // Whoever does not take its answers is not waited for.
        let _ = tokio::time::timeout(self.request_timeout, served).await;
    }
}

/// The routes, for the requests of one connection: they find in their extensions whose it is.
#[derive(Clone)]
struct OfConnection {
    routes: Router,
    info: ConnectionInfo,
}

impl<B> tower::Service<Request<B>> for OfConnection
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response;
    type Error = Infallible;
    type Future = RouteFuture<Infallible>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        tower::Service::<Request<B>>::poll_ready(&mut self.routes, cx)
    }

    fn call(&mut self, mut request: Request<B>) -> RouteFuture<Infallible> {
        request.extensions_mut().insert(self.info.clone());
        tower::Service::call(&mut self.routes, request)
    }
}
