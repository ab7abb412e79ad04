use std::{
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering},
};

use mezite_pki::x509::{KeyPair, LeafSpec, X509Ca};
use rustls::ServerConfig;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    time::Instant,
};
use tokio_rustls::TlsAcceptor;
use zeroize::Zeroizing;

use super::*;

const GOOD: &str = r#"{"GetCallerIdentityResponse":{"GetCallerIdentityResult":{"Account":"123456789012",
    "Arn":"arn:aws:iam::123456789012:user/ann","UserId":"AIDA"}}}"#;

/// What stands in for STS, and how often it was asked.
struct Server {
    address: SocketAddr,
    ca: tempfile::NamedTempFile,
    asked: Arc<AtomicUsize>,
}

/// What it answers: bytes, at this pause between each.
#[derive(Clone)]
struct Reply(Vec<u8>, Duration);

fn reply(status: &str, headers: &str, body: &str) -> Reply {
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n{headers}\r\n{body}", body.len());
    Reply(head.into_bytes(), Duration::ZERO)
}

impl Server {
    /// One that answers this to anything.
    async fn start(reply: Reply) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let (from, until) = (1_577_836_800, 4_000_000_000);
        let (ca, key) = (X509Ca::generate("sts", from, until).unwrap(), KeyPair::generate_p256().unwrap());
        let leaf = ca.issue(&LeafSpec {
            public_key: key.spki_der(),
            common_name: "sts".into(),
            identity: None,
            dns_names: Vec::new(),
            ip_addresses: vec!["127.0.0.1".parse().unwrap()],
            not_before: from,
            not_after: until,
            client_auth: false,
            server_auth: true,
        });
        let leaf = CertificateDer::from_pem_slice(leaf.unwrap().as_bytes()).unwrap();
        let key = PrivateKeyDer::from_pem_slice(key.private_pem().as_bytes()).unwrap();
        let tls = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![leaf], key).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), ca.certificate_pem()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, asked) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
        let (acceptor, count) = (TlsAcceptor::from(Arc::new(tls)), Arc::clone(&asked));
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, count, Reply(bytes, pause)) =
                    (acceptor.clone(), Arc::clone(&count), reply.clone());
                tokio::spawn(async move {
                    let Ok(mut stream) = acceptor.accept(stream).await else { return };
                    let mut seen = Vec::new();
                    while !seen.ends_with(BODY.as_bytes()) {
                        let mut chunk = [0; 4096];
                        let Ok(read @ 1..) = stream.read(&mut chunk).await else { return };
                        seen.extend_from_slice(&chunk[..read]);
                    }
                    count.fetch_add(1, Ordering::SeqCst);
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
        Self { address, ca: file, asked }
    }

    fn sts(&self) -> Sts {
        Sts::new(&IamConfig {
            sts_endpoint: Some(format!("https://{}", self.address)),
            sts_ca_file: Some(self.ca.path().to_owned()),
        })
        .unwrap()
    }

    fn request(&self) -> SignedRequest {
        let headers = vec![("accept", Zeroizing::new("application/json".to_owned()))];
        SignedRequest { url: format!("https://{}/", self.address), headers, partition: None }
    }

    async fn ask(&self) -> Result<Result<AwsIdentity, String>, ApiError> {
        self.sts().ask("192.0.2.1", self.request()).await
    }
}

#[tokio::test]
async fn an_answer_is_believed_from_who_proves_to_be_the_endpoint() {
    let server = Server::start(reply("200 OK", "", GOOD)).await;
    let identity = server.ask().await.unwrap().unwrap();
    assert_eq!(identity.arn(), "arn:aws:iam::123456789012:user/ann");
    // By another authority.
    let other = Server::start(reply("200 OK", "", GOOD)).await;
    let sts = Sts::new(&IamConfig {
        sts_endpoint: Some(format!("https://{}", server.address)),
        sts_ca_file: Some(other.ca.path().to_owned()),
    });
    let refused = sts.unwrap().ask("192.0.2.1", server.request()).await;
    assert!(matches!(refused, Err(ApiError::Unavailable(_))));
    assert_eq!(server.asked.load(Ordering::SeqCst), 1);
    // And nothing is asked in plain text.
    let plain = SignedRequest { url: format!("http://{}/", server.address), ..server.request() };
    assert!(matches!(server.sts().ask("192.0.2.1", plain).await, Err(ApiError::Unavailable(_))));
}

#[tokio::test]
async fn no_redirect_is_followed() {
    let target = Server::start(reply("200 OK", "", GOOD)).await;
    for status in ["301 Moved Permanently", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"] {
        let location = format!("location: https://{}/\r\n", target.address);
        let server = Server::start(reply(status, &location, "")).await;
        assert!(matches!(server.ask().await, Err(ApiError::Unavailable(_))), "{status}");
        assert_eq!(server.asked.load(Ordering::SeqCst), 1);
    }
    assert_eq!(target.asked.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn an_answer_is_read_up_to_its_bound() {
    let padded = |length: usize| format!("{GOOD}{}", " ".repeat(length - GOOD.len()));
    let server = Server::start(reply("200 OK", "", &padded(MAX_ANSWER))).await;
    assert!(server.ask().await.unwrap().is_ok());
    let server = Server::start(reply("200 OK", "", &padded(MAX_ANSWER + 1))).await;
    assert!(matches!(server.ask().await, Err(ApiError::Unavailable(_))));
    // Also one that does not say how long it is, and an error's.
    let chunk = format!("8000\r\n{}\r\n", " ".repeat(0x8000));
    for status in ["200 OK", "403 Forbidden"] {
        let endless = format!("HTTP/1.1 {status}\r\ntransfer-encoding: chunked\r\n\r\n{}", chunk.repeat(9));
        let server = Server::start(Reply(endless.into_bytes(), Duration::ZERO)).await;
        assert!(matches!(server.ask().await, Err(ApiError::Unavailable(_))), "{status}");
    }
}

#[tokio::test]
async fn an_answer_that_drips_is_waited_for_no_longer_than_its_time() {
    let Reply(bytes, _) = reply("200 OK", "", GOOD);
    let server = Server::start(Reply(bytes, Duration::from_millis(100))).await;
    let begun = Instant::now();
    assert!(matches!(server.ask().await, Err(ApiError::Unavailable(_))));
    assert!((TIMEOUT..TIMEOUT * 4).contains(&begun.elapsed()), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn so_many_are_asked_at_a_time_and_no_network_takes_all() {
    let server = Server::start(Reply(b"H".to_vec(), Duration::ZERO)).await;
    let sts = server.sts();
    let mut held: Vec<_> =
        (0..EACH).map(|_| sts.places.take(passwords::network("192.0.2.1")).unwrap()).collect();
    let before = Instant::now();
    let busy = sts.ask("192.0.2.77", server.request()).await;
    assert!(matches!(busy, Err(ApiError::Busy { .. })) && before.elapsed() < TIMEOUT);
    for network in 0..MOST {
        held.extend(sts.places.take(format!("network:{network}")));
    }
    assert_eq!((held.len(), sts.places.count()), (MOST, MOST));
    assert!(matches!(sts.ask("198.51.100.1", server.request()).await, Err(ApiError::Busy { .. })));
    assert_eq!(server.asked.load(Ordering::SeqCst), 0);
}

#[test]
fn an_endpoint_is_a_host_behind_https_and_nothing_else() {
    for (good, host) in [
        ("https://sts.cloud.example", "sts.cloud.example"),
        ("https://127.0.0.1:8443", "127.0.0.1:8443"),
        ("https://[::1]:8443", "[::1]:8443"),
    ] {
        assert_eq!(authority(good), Some(host));
    }
    for bad in [
        "",
        "sts.cloud.example",
        "http://sts.cloud.example",
        "https://",
        "https://a/",
        "https://a/b",
        "https://a?b",
        "https://a#b",
        "https://user@a",
        "https://a:b",
        "https://a b",
    ] {
        assert_eq!(authority(bad), None, "{bad}");
    }
}

#[test]
fn authorities_that_cannot_be_read_stop_the_node() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let config = IamConfig {
        sts_endpoint: Some("https://sts.cloud.example".into()),
        sts_ca_file: Some(file.path().to_owned()),
    };
    assert!(matches!(Sts::new(&config), Err(NodeError::Malformed { .. })));
}
