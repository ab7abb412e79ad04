use auth_core::{
    CoreError,
    spiffe::{self, NewSpiffeDomain, SpiffeDomain, TrustDomain},
};
use mezite_daemon::clock;
use mezite_pki::x509::{KeyPair, SvidSpec, X509Ca};
use raft_store::Store;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::*;
use crate::{
    outbound::testing::{Reply, Server, ca, endless, reply},
    rpc::testing::Node,
    spiffe::{refresh, testing::Issuer},
};

const NAME: &str = "red.example";
const SERVER: &str = "spiffe://red.example/spire/server";

/// One that shows an SVID.
async fn with_svid(ca: &X509Ca, id: &str, reply: Reply) -> Server {
    let (key, now) = (KeyPair::generate_p256().unwrap(), clock::unix_seconds());
    let spec = SvidSpec {
        public_key: key.spki_der(),
        spiffe_id: id.into(),
        not_before: now - 60,
        not_after: now + 3600,
    };
    Server::start(ca.issue_svid(&spec).unwrap(), key, reply).await
}

/// Where a server is, and how it is believed.
fn at(server: &Server, spiffe_id: &str, web: &[&X509Ca]) -> SpiffeEndpointRow {
    SpiffeEndpointRow {
        url: server.url("/bundle"),
        spiffe_id: spiffe_id.into(),
        web_authorities: web.iter().map(|ca| ca.certificate_pem().to_owned()).collect(),
    }
}

fn document(issuers: &[&Issuer], sequence: u64) -> Value {
    json!({ "keys": issuers.iter().map(|issuer| issuer.jwk()).collect::<Vec<_>>(), "spiffe_sequence": sequence })
}

fn told(issuers: &[&Issuer], sequence: u64) -> Reply {
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
    let now = follow(&node, at(&server, "", &[&web]), None).await.unwrap();
    assert_eq!((now.bundle.jwt_authorities.len(), now.bundle.sequence), (1, Some(3)));
    assert_eq!(node.audited("spiffe_domain.refresh").await[0].actor, "cluster");
    // It is not asked again before its time, and by nobody but the leader.
    ask_now(&node.service.store).await.unwrap();
    refresh::look(&node.service.store, 2).await.unwrap();
    assert_eq!(server.count(), 1);

    let stranger = ca();
    assert!(follow(&node, at(&server, "", &[&stranger]), None).await.is_err());
    assert_eq!(server.count(), 1, "whoever is not believed is not asked");
}

#[tokio::test]
async fn what_is_older_or_worse_is_not_taken_and_the_last_good_bundle_stays() {
    let node = Node::start().await;
    let issuer = Issuer::new("k");
    let (server, web) = Server::on_the_web(told(&[&issuer], 3)).await;
    let endpoint = || at(&server, "", &[&web]);
    follow(&node, endpoint(), None).await.unwrap();
    let big =
        |length: usize| reply("200 OK", "", &format!("{}{}", document(&[&issuer], 9), " ".repeat(length)));
    for (what, answer, why) in [
        ("older", told(&[&Issuer::new("old")], 2), "spiffe_sequence 2, and 3 is known"),
        ("other keys of the same number", told(&[&Issuer::new("other")], 3), "other keys"),
        ("no keys", told(&[], 4), "without any key"),
        ("no bundle", reply("200 OK", "", "<html>"), "no SPIFFE bundle"),
        ("an error", reply("503 Service Unavailable", "", ""), "status 503"),
        ("a redirect", reply("302 Found", "location: https://127.0.0.1:1/\r\n", ""), "status 302"),
        ("too much", big(MAX_DOCUMENT), "more than"),
        ("too much, without saying so", endless("200 OK", MAX_DOCUMENT), "more than"),
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
    let server = with_svid(&red, SERVER, told(&[&issuer], 1)).await;
    let now = follow(&node, at(&server, SERVER, &[]), Some(vouching(&red))).await.unwrap();
    assert_eq!((now.bundle.jwt_authorities.len(), server.count()), (1, 1));
    for (what, id, bundle) in [
        ("another authority", SERVER, vouching(&other)),
        ("another workload", "spiffe://red.example/spire/agent", vouching(&red)),
        ("nobody vouches", SERVER, SpiffeBundleRow::default()),
    ] {
        assert!(follow(&node, at(&server, id, &[]), Some(bundle)).await.is_err(), "{what}");
    }
    // An id of the web is none of SPIFFE.
    let (web, authority) = Server::on_the_web(told(&[&issuer], 1)).await;
    assert!(follow(&node, at(&web, SERVER, &[]), Some(vouching(&authority))).await.is_err());
    assert_eq!((server.count(), web.count()), (1, 0));
}

#[tokio::test]
async fn an_endpoint_that_says_nothing_is_waited_for_no_longer_than_its_time() {
    let node = Node::start().await;
    let (server, web) = Server::on_the_web(Reply(b"H".to_vec(), Duration::ZERO)).await;
    let begun = Instant::now();
    assert!(follow(&node, at(&server, "", &[&web]), None).await.is_err());
    assert!((TIMEOUT..TIMEOUT * 3).contains(&begun.elapsed()), "{:?}", begun.elapsed());
}
