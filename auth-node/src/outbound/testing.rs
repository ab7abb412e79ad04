//! A server of somebody else's, which answers anything with what it is told.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use mezite_daemon::clock;
use mezite_pki::x509::{KeyPair, LeafSpec, X509Ca};
use rustls::ServerConfig;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

/// What it answers: bytes, with this pause after each, or at once.
#[derive(Clone)]
pub(crate) struct Reply(pub(crate) Vec<u8>, pub(crate) Duration);

pub(crate) fn reply(status: &str, headers: &str, body: &str) -> Reply {
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n{headers}\r\n{body}", body.len());
    Reply(head.into_bytes(), Duration::ZERO)
}

/// One of more than so many bytes that does not say how long it is.
pub(crate) fn endless(status: &str, bytes: usize) -> Reply {
    let chunk = format!("8000\r\n{}\r\n", " ".repeat(0x8000));
    let chunks = chunk.repeat(bytes / 0x8000 + 1);
    let text = format!("HTTP/1.1 {status}\r\ntransfer-encoding: chunked\r\n\r\n{chunks}");
    Reply(text.into_bytes(), Duration::ZERO)
}

pub(crate) fn ca() -> X509Ca {
    let now = clock::unix_seconds();
    X509Ca::generate("other", now - 1000, now + 1_000_000).unwrap()
}

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    asked: Arc<AtomicUsize>,
    reply: Arc<Mutex<Reply>>,
}

impl Server {
    /// With a certificate (PEM) for a key.
    pub(crate) async fn start(certificate: String, key: KeyPair, reply: Reply) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let leaf = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
        let key = PrivateKeyDer::from_pem_slice(key.private_pem().as_bytes()).unwrap();
        let tls = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![leaf], key).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, acceptor) = (listener.local_addr().unwrap(), TlsAcceptor::from(Arc::new(tls)));
        let (asked, reply) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(reply)));
        let (count, told) = (Arc::clone(&asked), Arc::clone(&reply));
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, count, told) = (acceptor.clone(), Arc::clone(&count), Arc::clone(&told));
                tokio::spawn(async move {
                    let Ok(mut stream) = acceptor.accept(stream).await else { return };
                    if !request(&mut stream).await {
                        return;
                    }
                    count.fetch_add(1, Ordering::SeqCst);
                    let Reply(bytes, pause) = told.lock().unwrap().clone();
                    let step = if pause.is_zero() { bytes.len() } else { 1 };
                    for part in bytes.chunks(step.max(1)) {
                        if stream.write_all(part).await.is_err() || stream.flush().await.is_err() {
                            return;
                        }
                        tokio::time::sleep(pause).await;
                    }
                    // Until the other side has gone.
                    let _ = stream.read(&mut [0; 1]).await;
                });
            }
        });
        Self { address, asked, reply }
    }

    /// Known by its address, and the authority that vouches for it.
    pub(crate) async fn on_the_web(reply: Reply) -> (Self, X509Ca) {
        let (web, key, now) = (ca(), KeyPair::generate_p256().unwrap(), clock::unix_seconds());
        let leaf = web.issue(&LeafSpec {
            public_key: key.spki_der(),
            common_name: "web".into(),
            identity: None,
            dns_names: Vec::new(),
            ip_addresses: vec!["127.0.0.1".parse().unwrap()],
            not_before: now - 60,
            not_after: now + 3600,
            client_auth: false,
            server_auth: true,
        });
        (Self::start(leaf.unwrap(), key, reply).await, web)
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.address)
    }

    /// What it answers from now on.
    pub(crate) fn tell(&self, reply: Reply) {
        *self.reply.lock().unwrap() = reply;
    }

    /// How often it was asked.
    pub(crate) fn count(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

/// Reads a request to its end.
async fn request(stream: &mut TlsStream<TcpStream>) -> bool {
    let mut seen = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&seen).to_lowercase();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
                return true;
            }
        }
        let mut chunk = [0; 4096];
        let Ok(read @ 1..) = stream.read(&mut chunk).await else { return false };
        seen.extend_from_slice(&chunk[..read]);
    }
}
