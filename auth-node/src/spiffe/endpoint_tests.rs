use std::{
    net::SocketAddr,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use auth_core::{
    CoreError,
    spiffe::{self, NewSpiffeDomain, SpiffeDomain, TrustDomain},
};
use mezite_daemon::clock;
use mezite_pki::x509::{KeyPair, LeafSpec, SvidSpec, X509Ca};
use raft_store::Store;
use rustls::ServerConfig;
use rustls_pki_types::{PrivateKeyDer, pem::PemObject as _};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    time::Instant,
};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::{
    rpc::testing::Node,
    spiffe::{refresh, testing::Issuer},
};

const NAME: &str = "red.example";
const SERVER: &str = "spiffe://red.example/spire/server";

fn ca() -> X509Ca {
    let now = clock::unix_seconds();
    X509Ca::generate("red", now - 1000, now + 1_000_000).unwrap()
}

/// An endpoint, and how often it was asked.
struct Server {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
    answer: Arc<Mutex<Vec<u8>>>,
}

fn reply(status: &str, headers: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n{headers}\r\n{body}", body.len()).into_bytes()
}

impl Server {
    /// With a certificate for a key, PEM.
    async fn start(certificate: String, key: KeyPair, answer: Vec<u8>) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let leaf = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
        let key = PrivateKeyDer::from_pem_slice(key.private_pem().as_bytes()).unwrap();
        let tls = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![leaf], key).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, asked) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
        let (acceptor, count) = (TlsAcceptor::from(Arc::new(tls)), Arc::clone(&asked));
        let answer = Arc::new(Mutex::new(answer));
        let told = Arc::clone(&answer);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, count, told) = (acceptor.clone(), Arc::clone(&count), Arc::clone(&told));
                tokio::spawn(async move {
                    let Ok(mut stream) = acceptor.accept(stream).await else { return };
                    let mut seen = Vec::new();
                    while !seen.ends_with(b"\r\n\r\n") {
                        let mut chunk = [0; 4096];
                        let Ok(read @ 1..) = stream.read(&mut chunk).await else { return };
                        seen.extend_from_slice(&chunk[..read]);
                    }
                    count.fetch_add(1, Ordering::SeqCst);
                    let bytes = told.lock().unwrap().clone();
                    if stream.write_all(&bytes).await.is_ok() && stream.flush().await.is_ok() {
                        // Until the other side has gone.
                        let _ = stream.read(&mut [0; 1]).await;
                    }
                });
            }
        });
        Self { address, asked, answer }
    }

    /// That is known by its address on the web, and the authority that vouches for it.
    async fn on_the_web(answer: Vec<u8>) -> (Self, X509Ca) {
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
        (Self::start(leaf.unwrap(), key, answer).await, web)
    }

    /// That shows an SVID.
    async fn with_svid(ca: &X509Ca, id: &str, answer: Vec<u8>) -> Self {
        let (key, now) = (KeyPair::generate_p256().unwrap(), clock::unix_seconds());
        let spec = SvidSpec {
            public_key: key.spki_der(),
            spiffe_id: id.into(),
            not_before: now - 60,
            not_after: now + 3600,
        };
        Self::start(ca.issue_svid(&spec).unwrap(), key, answer).await
    }

    fn endpoint(&self, spiffe_id: &str, web: &[&X509Ca]) -> SpiffeEndpointRow {
        SpiffeEndpointRow {
            url: format!("https://{}/bundle", self.address),
            spiffe_id: spiffe_id.into(),
            web_authorities: web.iter().map(|ca| ca.certificate_pem().to_owned()).collect(),
        }
    }

    fn tell(&self, answer: Vec<u8>) {
        *self.answer.lock().unwrap() = answer;
    }

    fn count(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

fn document(issuers: &[&Issuer], sequence: u64) -> Value {
    json!({ "keys": issuers.iter().map(|issuer| issuer.jwk()).collect::<Vec<_>>(), "spiffe_sequence": sequence })
}

fn told(issuers: &[&Issuer], sequence: u64) -> Vec<u8> {
    reply("200 OK", "", &document(issuers, sequence).to_string())
}

/// What vouches for an endpoint with an SVID.
fn vouching(ca: &X509Ca) -> SpiffeBundleRow {
    SpiffeBundleRow { x509_authorities: vec![ca.certificate_der().to_vec()], ..SpiffeBundleRow::default() }
}

/// Says where the bundle of the trust domain is, anew, and asks.
async fn follow(
    node: &Node,
    endpoint: SpiffeEndpointRow,
    bundle: Option<SpiffeBundleRow>,
) -> Result<SpiffeDomain, String> {
    let store = &node.service.store;
    let new = NewSpiffeDomain::new(NAME, Some(endpoint), bundle).unwrap();
    let put = store.transact(move |tx| {
        let context = auth_core::Context { caller: auth_core::Caller::Cluster, origin: Default::default() };
        match spiffe::update(tx, &context, &new, 0) {
            Err(CoreError::NotFound { .. }) => spiffe::create(tx, &context, &new),
            done => done,
        }
    });
    put.await.unwrap();
    ask_now(store).await
}

async fn ask_now(store: &Store) -> Result<SpiffeDomain, String> {
    refresh::look(store, 1).await.unwrap();
    let name = TrustDomain::parse("", NAME).unwrap();
    let now = store.read(move |view| spiffe::get(view, &name)).await.unwrap();
    match now.refresh.error.as_str() {
        "" => Ok(now),
        error => Err(error.to_owned()),
    }
}

#[tokio::test]
async fn an_endpoint_on_the_web_is_believed_by_its_name_and_its_bundle_is_taken() {
    let node = Node::start().await;
    let issuer = Issuer::new("k");
    let (server, web) = Server::on_the_web(told(&[&issuer], 3)).await;
    let now = follow(&node, server.endpoint("", &[&web]), None).await.unwrap();
    assert_eq!((now.bundle.jwt_authorities.len(), now.bundle.sequence), (1, Some(3)));
    assert_eq!(node.audited("spiffe_domain.refresh").await[0].actor, "cluster");
    // It is not asked again before its time, and by nobody but the leader.
    ask_now(&node.service.store).await.unwrap();
    refresh::look(&node.service.store, 2).await.unwrap();
    assert_eq!(server.count(), 1);

    let stranger = ca();
    assert!(follow(&node, server.endpoint("", &[&stranger]), None).await.is_err());
    assert_eq!(server.count(), 1, "whoever is not believed is not asked");
}

#[tokio::test]
async fn what_is_older_or_worse_is_not_taken_and_the_last_good_bundle_stays() {
    let node = Node::start().await;
    let issuer = Issuer::new("k");
    let (server, web) = Server::on_the_web(told(&[&issuer], 3)).await;
    let endpoint = || server.endpoint("", &[&web]);
    follow(&node, endpoint(), None).await.unwrap();
    let big =
        |length: usize| reply("200 OK", "", &format!("{}{}", document(&[&issuer], 9), " ".repeat(length)));
    let chunk = format!("8000\r\n{}\r\n", " ".repeat(0x8000));
    let endless = format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{}", chunk.repeat(9));
    for (what, answer, why) in [
        ("older", told(&[&Issuer::new("old")], 2), "spiffe_sequence 2, and 3 is known"),
        ("other keys of the same number", told(&[&Issuer::new("other")], 3), "other keys"),
        ("no keys", told(&[], 4), "without any key"),
        ("no bundle", reply("200 OK", "", "<html>"), "no SPIFFE bundle"),
        ("an error", reply("503 Service Unavailable", "", ""), "status 503"),
        ("a redirect", reply("302 Found", "location: https://127.0.0.1:1/\r\n", ""), "status 302"),
        ("too much", big(MAX_DOCUMENT), "more than"),
        ("too much, without saying so", endless.into_bytes(), "more than"),
    ] {
        server.tell(answer);
        let refused = follow(&node, endpoint(), None).await.unwrap_err();
        assert!(refused.contains(why), "{what}: {refused}");
        let name = TrustDomain::parse("", NAME).unwrap();
        let kept = node.service.store.read(move |view| spiffe::get(view, &name)).await.unwrap();
        assert_eq!((kept.bundle.sequence, kept.bundle.jwt_authorities.len()), (Some(3), 1), "{what}");
    }
    server.tell(told(&[&Issuer::new("a"), &Issuer::new("b")], 4));
    let now = follow(&node, endpoint(), None).await.unwrap();
    assert_eq!((now.bundle.sequence, now.bundle.jwt_authorities.len()), (Some(4), 2));
}

#[tokio::test]
async fn an_endpoint_with_a_spiffe_id_is_believed_by_the_bundle_that_is_known_and_this_id() {
    let node = Node::start().await;
    let (red, other, issuer) = (ca(), ca(), Issuer::new("k"));
    let server = Server::with_svid(&red, SERVER, told(&[&issuer], 1)).await;
    let now = follow(&node, server.endpoint(SERVER, &[]), Some(vouching(&red))).await.unwrap();
    assert_eq!((now.bundle.jwt_authorities.len(), server.count()), (1, 1));
    for (what, id, bundle) in [
        ("another authority", SERVER, vouching(&other)),
        ("another workload", "spiffe://red.example/spire/agent", vouching(&red)),
        ("nobody vouches", SERVER, SpiffeBundleRow::default()),
    ] {
        assert!(follow(&node, server.endpoint(id, &[]), Some(bundle)).await.is_err(), "{what}");
    }
    // An id of the web is none of SPIFFE.
    let (web, authority) = Server::on_the_web(told(&[&issuer], 1)).await;
    assert!(follow(&node, web.endpoint(SERVER, &[]), Some(vouching(&authority))).await.is_err());
    assert_eq!((server.count(), web.count()), (1, 0));
}

#[tokio::test]
async fn an_endpoint_that_says_nothing_is_waited_for_no_longer_than_its_time() {
    let node = Node::start().await;
    let (server, web) = Server::on_the_web(b"H".to_vec()).await;
    let begun = Instant::now();
    assert!(follow(&node, server.endpoint("", &[&web]), None).await.is_err());
    assert!((TIMEOUT..TIMEOUT * 3).contains(&begun.elapsed()), "{:?}", begun.elapsed());
}
