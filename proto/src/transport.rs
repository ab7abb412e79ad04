//! How gRPC is carried: TLS connections in, TLS channels out.
//!
//! The server side takes its TLS configuration from an [`ArcSwap`], so that certificates change without a restart,
//! and tells a handler who is on the other end through [`ConnectionInfo`] in the request's extensions. What a
//! certificate means is not decided here, but whether there is one is looked at: a [`Gate`] bounds what a request
//! takes before anybody knows whose it is.

mod gate;
mod judged;
mod proxied;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use arc_swap::ArcSwap;
use futures::Stream;
use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::Sleep,
};
use tokio_rustls::{
    TlsAcceptor, TlsConnector,
    rustls::{ClientConfig, ServerConfig},
    server::TlsStream,
};
use tonic::transport::{Channel, Endpoint, server::Connected};

pub use gate::{Gate, GateRules, Gated, is_of};

/// Name that HTTP/2 has in TLS's protocol negotiation (RFC 7540, section 3.1).
pub const ALPN_H2: &[u8] = b"h2";
/// Name that HTTP/1.1 has there (RFC 7301, section 6).
pub const ALPN_HTTP1: &[u8] = b"http/1.1";

/// Connections that wait to be served after their handshake.
const HANDSHAKEN_BACKLOG: usize = 64;

/// Who is on the other end of a connection. Handlers find it in the request's extensions.
#[derive(Debug, Clone)]
pub struct ConnectionInfo {
    /// Address of the peer; behind a proxy, that of its client.
    pub remote_addr: SocketAddr,
    /// The client's certificate chain, leaf first, as TLS verified it; empty when it showed none.
    pub peer_certificates: Arc<[CertificateDer<'static>]>,
}

/// Bounds of a listener.
#[derive(Debug, Clone)]
pub struct ListenerLimits {
    /// A TLS handshake, with the HTTP/2 preface after it, that takes longer is dropped.
    pub handshake_timeout: Duration,
    /// Open connections, handshakes included; more wait in the kernel's backlog.
    pub max_connections: usize,
    /// Open connections without a client certificate; more are dropped after their handshake.
    pub max_anonymous: usize,
    /// A connection without a client certificate is closed after this, whatever it does. `None`: never.
    pub anonymous_age: Option<Duration>,
    /// Whether a connection that has not agreed on HTTP/2 is taken too, as one of HTTP/1.1. Whoever serves it gives its first
    /// request a time to begin in.
    pub http1: bool,
    /// Proxies that say who connects: each connection from there begins with a header of the PROXY protocol, and no other does.
    pub proxies: Arc<[IpNet]>,
}

impl Default for ListenerLimits {
    fn default() -> Self {
        Self {
            handshake_timeout: Duration::from_secs(10),
            max_connections: 10_000,
            max_anonymous: usize::MAX,
            anonymous_age: None,
            http1: false,
            proxies: Arc::default(),
        }
    }
}

/// What a client sends first in HTTP/2 (RFC 9113, section 3.4). Whoever does not would hold a connection for nothing:
/// keep-alive begins only after it.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Accepted connections, for `serve_with_incoming_shutdown`. Dropping it closes the port.
#[derive(Debug)]
pub struct TlsListener {
    accepted: mpsc::Receiver<TlsConnection>,
}

impl TlsListener {
    /// Accepts on `listener` until dropped. Each handshake runs in its own task, so a slow one delays nobody.
    pub fn new(listener: TcpListener, config: Arc<ArcSwap<ServerConfig>>, limits: ListenerLimits) -> Self {
        let (sender, accepted) = mpsc::channel(HANDSHAKEN_BACKLOG);
        tokio::spawn(accept(listener, config, limits, sender));
        Self { accepted }
    }
}

impl Stream for TlsListener {
    type Item = io::Result<TlsConnection>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.accepted.poll_recv(cx).map(|connection| connection.map(Ok))
    }
}

async fn accept(
    listener: TcpListener,
    config: Arc<ArcSwap<ServerConfig>>,
    limits: ListenerLimits,
    sender: mpsc::Sender<TlsConnection>,
) {
    let permits = Arc::new(Semaphore::new(limits.max_connections.min(Semaphore::MAX_PERMITS)));
    let anonymous = Arc::new(Semaphore::new(limits.max_anonymous.min(Semaphore::MAX_PERMITS)));
    loop {
        // Also while every place is taken: the port closes when the listener is dropped.
        let permit = tokio::select! {
            permit = Arc::clone(&permits).acquire_owned() => permit,
            () = sender.closed() => return,
        };
        let Ok(permit) = permit else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = sender.closed() => return,
        };
        let (tcp, remote_addr) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, mostly: without a pause this would spin.
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let acceptor = TlsAcceptor::from(config.load_full());
        let places = Places { _connection: permit, anonymous: Arc::clone(&anonymous) };
        let (sender, limits) = (sender.clone(), limits.clone());
        tokio::spawn(async move {
            match tokio::time::timeout(
                limits.handshake_timeout,
                handshake(acceptor, tcp, remote_addr, places, limits),
            )
            .await
            {
                // The receiver is gone when the server stops: then the connection is dropped.
                Ok(Ok(connection)) => drop(sender.send(connection).await),
                Ok(Err(error)) => tracing::debug!(%remote_addr, %error, "TLS handshake failed"),
                Err(_) => tracing::debug!(%remote_addr, "TLS handshake timed out"),
            }
        });
    }
}

/// What a connection takes of the listener's bounds.
#[derive(Debug)]
struct Places {
    _connection: OwnedSemaphorePermit,
    anonymous: Arc<Semaphore>,
}

async fn handshake(
    acceptor: TlsAcceptor,
    mut tcp: TcpStream,
    mut remote_addr: SocketAddr,
    places: Places,
    limits: ListenerLimits,
) -> io::Result<TlsConnection> {
    tcp.set_nodelay(true)?;
    if proxied::is_proxy(&limits.proxies, remote_addr) {
        remote_addr = proxied::client(&mut tcp, remote_addr).await?;
    }
    let mut stream = acceptor.accept(tcp).await?;
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let peer_certificates: Arc<[_]> = certificates.iter().map(|der| der.clone().into_owned()).collect();
    let anonymous = if peer_certificates.is_empty() {
        let full = |_| io::Error::other("too many connections without a client certificate");
        Some(Arc::clone(&places.anonymous).try_acquire_owned().map_err(full)?)
    } else {
        None
    };
    let http2 = !limits.http1 || stream.get_ref().1.alpn_protocol() == Some(ALPN_H2);
    let unread: &[u8] = if http2 { take_preface(&mut stream).await? } else { &[] };
    let age = limits.anonymous_age.filter(|_| anonymous.is_some());
    let ends = age.map(|age| Box::pin(tokio::time::sleep(age)));
    let info = ConnectionInfo { remote_addr, peer_certificates };
    Ok(TlsConnection { stream, http2, unread, ends, info, _places: places, _anonymous: anonymous })
}

/// Waits for the preface, and answers it.
async fn take_preface(stream: &mut TlsStream<TcpStream>) -> io::Result<&'static [u8]> {
    let mut preface = [0; PREFACE.len()];
    stream.read_exact(&mut preface).await?;
    if &preface == PREFACE { Ok(PREFACE) } else { Err(io::Error::other("the client does not speak HTTP/2")) }
}

/// One accepted connection.
#[derive(Debug)]
pub struct TlsConnection {
    stream: TlsStream<TcpStream>,
    http2: bool,
    /// What is left of the preface, which was read already.
    unread: &'static [u8],
    /// When it is closed, whatever it does.
    ends: Option<Pin<Box<Sleep>>>,
    info: ConnectionInfo,
    _places: Places,
    _anonymous: Option<OwnedSemaphorePermit>,
}

impl TlsConnection {
    /// Whether it is one of HTTP/2, and its preface has come; else it is one of HTTP/1.1.
    pub fn is_http2(&self) -> bool {
        self.http2
    }

    /// Fails once the connection is as old as it may become; wakes the task when that is.
    fn check_age(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let over = self.ends.as_mut().is_some_and(|ends| ends.as_mut().poll(cx).is_ready());
        if over { Err(io::ErrorKind::TimedOut.into()) } else { Ok(()) }
    }
}

impl Connected for TlsConnection {
    type ConnectInfo = ConnectionInfo;

    fn connect_info(&self) -> ConnectionInfo {
        self.info.clone()
    }
}

impl AsyncRead for TlsConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check_age(cx)?;
        if !self.unread.is_empty() {
            let (now, later) = self.unread.split_at(self.unread.len().min(buf.remaining()));
            buf.put_slice(now);
            self.unread = later;
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for TlsConnection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check_age(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check_age(cx)?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check_age(cx)?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// An HTTP/2 ping after so much silence finds a dead server. Calls have deadlines of their own: what waits for this is who
/// only listens. Of those there may be a hundred thousand, which make every ping a cost; they report once a minute, and who is
/// answered is not silent.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(75);
/// A server that is overloaded is not dead: if its clients took it for that, they would all come back at once, which costs it more
/// than their pings. As long as gRPC's default.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// HTTP/2 windows: the connection's well above the stream's, so that one stalled stream does not block the rest.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;

/// A channel to `addr` (host:port) that connects when it is first used, and again after a failure.
///
/// # Errors
/// When `addr` is not host:port.
pub fn channel(
    addr: &str,
    tls: Arc<ClientConfig>,
    server_name: ServerName<'static>,
    connect_timeout: Duration,
) -> Result<Channel, tonic::transport::Error> {
    let (endpoint, connector) = endpoint(addr.into(), None, tls, server_name, connect_timeout)?;
    Ok(endpoint.connect_with_connector_lazy(connector))
}

/// A channel to `addr` (host:port), connected.
///
/// # Errors
/// When `addr` is not host:port, cannot be reached within `connect_timeout`, or fails TLS.
pub async fn connect(
    addr: &str,
    tls: Arc<ClientConfig>,
    server_name: ServerName<'static>,
    connect_timeout: Duration,
) -> Result<Channel, tonic::transport::Error> {
    let (endpoint, connector) = endpoint(addr.into(), None, tls, server_name, connect_timeout)?;
    endpoint.connect_with_connector(connector).await
}

/// As [`connect`], from a local address: where one has not enough ports.
///
/// # Errors
/// As of [`connect`]; also when `local` is no address of this machine.
pub async fn connect_from(
    local: IpAddr,
    addr: &str,
    tls: Arc<ClientConfig>,
    server_name: ServerName<'static>,
    connect_timeout: Duration,
) -> Result<Channel, tonic::transport::Error> {
    let (endpoint, connector) = endpoint(addr.into(), Some(local), tls, server_name, connect_timeout)?;
    endpoint.connect_with_connector(connector).await
}

async fn dial(addr: &str, local: Option<IpAddr>) -> io::Result<TcpStream> {
    let Some(local) = local else { return TcpStream::connect(addr).await };
    let addr: SocketAddr = addr.parse().map_err(io::Error::other)?;
    let socket = if local.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.bind((local, 0).into())?;
    socket.connect(addr).await
}

type TlsIo = TokioIo<judged::Judged>;

fn endpoint(
    addr: Arc<str>,
    local: Option<IpAddr>,
    tls: Arc<ClientConfig>,
    server_name: ServerName<'static>,
    connect_timeout: Duration,
) -> Result<
    (
        Endpoint,
        impl tower::Service<http::Uri, Response = TlsIo, Error = io::Error, Future = impl Send> + Send,
    ),
    tonic::transport::Error,
> {
    let origin = http::Uri::builder().scheme("https").authority(&*addr).path_and_query("/").build();
    let mut endpoint = Endpoint::from_shared(format!("http://{addr}"))?
        .connect_timeout(connect_timeout)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    if let Ok(origin) = origin {
        endpoint = endpoint.origin(origin);
    }
    let connector = tower::service_fn(move |_: http::Uri| {
        let (addr, tls, server_name) = (Arc::clone(&addr), Arc::clone(&tls), server_name.clone());
        async move {
            let tcp = dial(&addr, local).await?;
            tcp.set_nodelay(true)?;
            let stream = TlsConnector::from(tls).connect(server_name, tcp).await?;
            Ok::<_, io::Error>(TokioIo::new(judged::Judged(stream)))
        }
    });
    Ok((endpoint, connector))
}

#[cfg(test)]
mod tests;
