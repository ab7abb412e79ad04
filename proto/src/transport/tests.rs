use futures::StreamExt as _;
use tokio::io::AsyncWriteExt as _;
use tokio_rustls::{
    client,
    rustls::{RootCertStore, crypto::aws_lc_rs::default_provider},
};

use super::*;

const PATIENCE: Duration = Duration::from_secs(60);

struct Server {
    listener: TlsListener,
    address: SocketAddr,
    config: Arc<ArcSwap<ServerConfig>>,
    tls: Arc<ClientConfig>,
}

impl Server {
    async fn start(limits: ListenerLimits) -> Self {
        let (config, tls) = Self::tls();
        let config = Arc::new(ArcSwap::from_pointee(config));
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = tcp.local_addr().unwrap();
        let listener = TlsListener::new(tcp, Arc::clone(&config), limits);
        Self { listener, address, config, tls: Arc::new(tls) }
    }

    /// A certificate, and who believes it alone.
    fn tls() -> (ServerConfig, ClientConfig) {
        let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let certificate = own.cert.der().clone();
        let key = own.signing_key.serialize_der().try_into().unwrap();
        let provider = Arc::new(default_provider());
        let config = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key)
            .unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(certificate).unwrap();
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        (config, tls)
    }

    async fn try_connect(&self, tls: &Arc<ClientConfig>) -> io::Result<client::TlsStream<TcpStream>> {
        let tcp = TcpStream::connect(self.address).await?;
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::clone(tls)).connect(name, tcp).await
    }

    async fn connect(&self) -> client::TlsStream<TcpStream> {
        self.try_connect(&self.tls).await.unwrap()
    }

    /// A connection that was taken to be served.
    async fn taken(&mut self) -> TlsConnection {
        tokio::time::timeout(PATIENCE, self.listener.next()).await.unwrap().unwrap().unwrap()
    }
}

/// Waits until the server has closed a connection, whether politely or not.
async fn is_closed(stream: &mut client::TlsStream<TcpStream>) -> bool {
    let read = tokio::time::timeout(PATIENCE, stream.read(&mut [0; 1])).await;
    read.is_ok_and(|read| !matches!(read, Ok(1..)))
}

#[tokio::test]
async fn who_says_nothing_after_the_handshake_is_dropped() {
    let limits = ListenerLimits {
        handshake_timeout: Duration::from_secs(3),
        max_connections: 1,
        ..ListenerLimits::default()
    };
    let mut server = Server::start(limits).await;
    let mut silent = server.connect().await;
    assert!(is_closed(&mut silent).await);
    // It left the one place that there is.
    let mut good = server.connect().await;
    good.write_all(PREFACE).await.unwrap();
    let taken = tokio::time::timeout(PATIENCE, server.listener.next()).await.unwrap();
    assert!(taken.is_some_and(|connection| connection.is_ok()));
}

#[tokio::test]
async fn who_speaks_something_else_is_dropped() {
    let server = Server::start(ListenerLimits::default()).await;
    let mut http1 = server.connect().await;
    http1.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    assert!(is_closed(&mut http1).await);
}

#[tokio::test]
async fn http1_is_taken_where_it_is_served_and_whoever_agreed_on_http2_keeps_to_it() {
    let mut server = Server::start(ListenerLimits { http1: true, ..ListenerLimits::default() }).await;
    let mut config = ServerConfig::clone(&server.config.load());
    config.alpn_protocols = vec![ALPN_H2.to_vec(), ALPN_HTTP1.to_vec()];
    server.config.store(Arc::new(config));
    let offering = |protocols: &[&[u8]]| {
        let mut tls = ClientConfig::clone(&server.tls);
        tls.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        Arc::new(tls)
    };
    let (http1, none) = (offering(&[ALPN_HTTP1]), offering(&[]));
    let both = offering(&[ALPN_HTTP1, ALPN_H2]);
    for tls in [http1, none] {
        // Taken before it has said anything.
        let mut client = server.try_connect(&tls).await.unwrap();
        let mut taken = server.taken().await;
        assert!(!taken.is_http2());
        client.write_all(b"GET").await.unwrap();
        let mut said = [0; 3];
        taken.read_exact(&mut said).await.unwrap();
        assert_eq!(&said, b"GET");
    }
    let mut client = server.try_connect(&both).await.unwrap();
    client.write_all(PREFACE).await.unwrap();
    assert!(server.taken().await.is_http2());
    let mut liar = server.try_connect(&both).await.unwrap();
    liar.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    assert!(is_closed(&mut liar).await);
}

#[tokio::test]
async fn the_preface_is_handed_on_and_strangers_are_bounded() {
    let mut server = Server::start(ListenerLimits { max_anonymous: 1, ..ListenerLimits::default() }).await;
    let mut first = server.connect().await;
    first.write_all(PREFACE).await.unwrap();
    first.write_all(b"more").await.unwrap();
    let mut taken = tokio::time::timeout(PATIENCE, server.listener.next()).await.unwrap().unwrap().unwrap();
    let mut said = [0; PREFACE.len() + 4];
    // In pieces, as a reader with little room would.
    for piece in said.chunks_mut(5) {
        taken.read_exact(piece).await.unwrap();
    }
    assert_eq!(said, [PREFACE.as_slice(), b"more"].concat().as_slice());
    let mut second = server.connect().await;
    assert!(is_closed(&mut second).await);
    drop(taken);
    let mut third = server.connect().await;
    third.write_all(PREFACE).await.unwrap();
    let taken = tokio::time::timeout(PATIENCE, server.listener.next()).await.unwrap();
    assert!(taken.is_some_and(|connection| connection.is_ok()));
}

#[tokio::test]
async fn a_stranger_is_cut_off_when_its_time_is_up_though_it_reads_and_writes() {
    let limits = ListenerLimits {
        max_anonymous: 1,
        anonymous_age: Some(Duration::from_millis(200)),
        ..ListenerLimits::default()
    };
    let mut server = Server::start(limits).await;
    let mut first = server.connect().await;
    first.write_all(PREFACE).await.unwrap();
    let mut taken = tokio::time::timeout(PATIENCE, server.listener.next()).await.unwrap().unwrap().unwrap();
    taken.read_exact(&mut [0; PREFACE.len()]).await.unwrap();
    let cut = tokio::time::timeout(PATIENCE, taken.read(&mut [0; 1])).await.unwrap();
    assert_eq!(cut.unwrap_err().kind(), io::ErrorKind::TimedOut);
    assert_eq!(taken.write(b"x").await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    // Its place is the next one's.
    drop(taken);
    let mut next = server.connect().await;
    next.write_all(PREFACE).await.unwrap();
    assert!(tokio::time::timeout(PATIENCE, server.listener.next()).await.unwrap().is_some());
}

#[tokio::test]
async fn the_port_closes_with_the_listener_though_every_place_is_taken() {
    let mut server = Server::start(ListenerLimits { max_connections: 1, ..ListenerLimits::default() }).await;
    let mut only = server.connect().await;
    only.write_all(PREFACE).await.unwrap();
    let taken = tokio::time::timeout(PATIENCE, server.listener.next()).await.unwrap();
    let address = server.address;
    drop(server);
    let closed = async {
        while TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, closed).await.unwrap();
    assert!(taken.is_some_and(|connection| connection.is_ok()));
}

#[tokio::test]
async fn only_so_many_connections_are_taken() {
    let limits = ListenerLimits { max_connections: 2, ..ListenerLimits::default() };
    let mut server = Server::start(limits).await;
    // One is served, and one has a handshake that it does not go on with.
    let mut served = server.connect().await;
    served.write_all(PREFACE).await.unwrap();
    let taken = server.taken().await;
    let shaking = TcpStream::connect(server.address).await.unwrap();
    let tls = Arc::clone(&server.tls);
    let mut third = Box::pin(server.try_connect(&tls));
    // A listener that has room shakes hands meanwhile, though it is asked later, on the same thread.
    let roomy = Server::start(ListenerLimits::default()).await;
    let meanwhile = async {
        for _ in 0..8 {
            let _ = roomy.connect().await;
        }
    };
    tokio::select! {
        biased;
        _ = &mut third => panic!("a third one was shaken hands with"),
        () = meanwhile => {}
    }
    drop(taken);
    let mut third = third.await.unwrap();
    third.write_all(PREFACE).await.unwrap();
    let _third = server.taken().await;
    drop(shaking);
}

#[tokio::test]
async fn a_new_certificate_counts_from_the_next_connection_on() {
    let mut server = Server::start(ListenerLimits::default()).await;
    let mut old = server.connect().await;
    old.write_all(PREFACE).await.unwrap();
    let mut taken = server.taken().await;
    taken.read_exact(&mut [0; PREFACE.len()]).await.unwrap();

    let (config, tls) = Server::tls();
    server.config.store(Arc::new(config));
    let believed = server.try_connect(&server.tls).await;
    assert!(believed.is_err(), "the old certificate was shown");
    let mut new = server.try_connect(&Arc::new(tls)).await.unwrap();
    new.write_all(PREFACE).await.unwrap();
    let _new = server.taken().await;
    // A connection that stands goes on.
    old.write_all(b"x").await.unwrap();
    assert_eq!(taken.read_u8().await.unwrap(), b'x');
}
