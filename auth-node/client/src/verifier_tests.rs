use mezite_proto::v1::GetTrustBundleResponse;
use prost::Message as _;
use rustls_pki_types::pem::PemObject as _;

use super::*;
use crate::{
    ClientError, FirstContact, RetryPolicy,
    testing::{CLUSTER, FakeServer, Leaf, TestCa},
};

/// Within the lifetime of the test certificates: 2026.
const NOW: u64 = 1_790_000_000;

fn der(pem: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().unwrap()
}

fn verify(anchor: Anchor, leaf: &Leaf) -> Result<(), String> {
    let name = ServerName::try_from("first-contact.mezite.internal").unwrap();
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(NOW));
    FirstContactVerifier::new(anchor)
        .verify_server_cert(&der(&leaf.certificate)[0], &der(&leaf.chain), &name, &[], now)
        .map(drop)
        .map_err(|error| format!("{error:?}"))
}

fn pinned(ca: &TestCa) -> Anchor {
    Anchor::Pin(ca.pin().into())
}

fn auth() -> Option<Identity> {
    Some(Identity::Auth { cluster: CLUSTER.into(), node_id: 1 })
}

fn roots_of(ca: &TestCa) -> Anchor {
    Anchor::Roots(crate::tls::roots(&der(&ca.pem())).unwrap())
}

#[test]
fn an_auth_node_of_the_pinned_ca_is_accepted() {
    let ca = TestCa::new();
    verify(pinned(&ca), &ca.auth_node()).unwrap();
    verify(roots_of(&ca), &ca.auth_node()).unwrap();
    // A known CA need not be sent.
    verify(roots_of(&ca), &ca.auth_node().with_chain(&[])).unwrap();
}

#[test]
fn a_wrong_ca_with_the_right_names_is_refused() {
    let (ca, evil) = (TestCa::new(), TestCa::new());
    assert!(verify(pinned(&ca), &evil.auth_node()).unwrap_err().contains("NoPinnedCa"));
    assert!(verify(roots_of(&ca), &evil.auth_node()).is_err());
}

#[test]
fn a_pinned_ca_in_the_chain_that_did_not_sign_the_leaf_is_refused() {
    let (ca, evil) = (TestCa::new(), TestCa::new());
    for chain in [vec![ca.pem()], vec![evil.pem(), ca.pem()], vec![ca.pem(), evil.pem()]] {
        let chain: Vec<_> = chain.iter().map(String::as_str).collect();
        let error = verify(pinned(&ca), &evil.auth_node().with_chain(&chain)).unwrap_err();
        assert!(error.contains("BadSignature") || error.contains("UnknownIssuer"), "{error}");
    }
}

#[test]
fn a_server_that_does_not_show_the_ca_is_refused() {
    let ca = TestCa::new();
    assert!(verify(pinned(&ca), &ca.auth_node().with_chain(&[])).unwrap_err().contains("NoPinnedCa"));
}

#[test]
fn the_ca_itself_is_no_server() {
    let ca = TestCa::new();
    let itself = Leaf { certificate: ca.pem(), key: String::new(), chain: ca.pem() };
    assert!(verify(pinned(&ca), &itself).is_err());
}

#[test]
fn an_agent_of_the_cluster_cannot_pose_as_an_auth_node() {
    let ca = TestCa::new();
    let named_so = ca.agent(&[&format!("{CLUSTER}.mezite.internal")]);
    assert!(verify(pinned(&ca), &named_so).unwrap_err().contains("NotAnAuthNode"));
    assert!(verify(pinned(&ca), &ca.ingest()).unwrap_err().contains("NotAnAuthNode"));
    assert!(verify(roots_of(&ca), &named_so).unwrap_err().contains("NotAnAuthNode"));
}

#[test]
fn an_auth_identity_needs_the_name_of_its_cluster() {
    let ca = TestCa::new();
    for names in [&["other.mezite.internal"][..], &["mezite.internal"], &["localhost"]] {
        assert!(verify(pinned(&ca), &ca.issue(auth(), names, (0, 4_000_000_000))).is_err(), "{names:?}");
    }
    assert!(verify(pinned(&ca), &ca.issue(None, &["test.mezite.internal"], (0, 4_000_000_000))).is_err());
}

#[test]
fn a_certificate_that_ended_or_has_not_begun_is_refused() {
    let ca = TestCa::new();
    for lifetime in [(NOW - 10, NOW - 1), (NOW + 1, NOW + 10)] {
        assert!(verify(pinned(&ca), &ca.issue(auth(), &["test.mezite.internal"], lifetime)).is_err());
    }
}

fn once() -> RetryPolicy {
    RetryPolicy { attempts_per_address: 1, ..RetryPolicy::default() }
}

fn server(leaf: &Leaf, ca: &TestCa, bundle: GetTrustBundleResponse) -> FakeServer {
    FakeServer::start(leaf, ca, move |call| {
        assert_eq!(call.method, "GetTrustBundle");
        let reply = bundle.encode_to_vec();
        async move { Ok(reply) }
    })
}

#[tokio::test]
async fn the_first_contact_learns_the_cluster() {
    let ca = TestCa::new();
    let server = server(&ca.auth_node(), &ca, ca.bundle(&[]));
    for first in [FirstContact::Pin(ca.pin().into()), FirstContact::CaPem(ca.pem())] {
        let established = first.establish(&[server.address()], once()).await.unwrap();
        assert_eq!(established.trust.cluster_name(), CLUSTER);
        assert_eq!(established.trust.pins(), [ca.pin()]);
    }
}

#[tokio::test]
async fn the_first_contact_passes_an_impostor_by() {
    let (ca, evil) = (TestCa::new(), TestCa::new());
    let fake = evil.auth_node().with_chain(&[&ca.pem()]);
    let impostor = server(&fake, &ca, evil.bundle(&[]));
    let first = FirstContact::Pin(ca.pin().into());
    let error = first.establish(&[impostor.address()], once()).await.unwrap_err();
    assert!(matches!(error, ClientError::Untrusted { .. }), "{error:?}");
    let real = server(&ca.auth_node(), &ca, ca.bundle(&[]));
    let both = [impostor.address(), real.address()];
    assert_eq!(first.establish(&both, once()).await.unwrap().trust.pins(), [ca.pin()]);
    assert!(impostor.calls().is_empty());
}

/// In the middle of a rotation nobody need know which of the two shows itself.
#[tokio::test]
async fn each_of_several_pins_is_good() {
    let (old, new) = (TestCa::new(), TestCa::new());
    let both = format!("{},{}", old.pin(), new.pin());
    let first = FirstContact::Pin(both.parse().unwrap());
    for ca in [&old, &new] {
        let server = server(&ca.auth_node(), ca, ca.bundle(&[]));
        assert_eq!(first.establish(&[server.address()], once()).await.unwrap().trust.pins(), [ca.pin()]);
    }
    let evil = TestCa::new();
    let server = server(&evil.auth_node(), &evil, evil.bundle(&[]));
    assert!(first.establish(&[server.address()], once()).await.is_err());
}

#[tokio::test]
async fn a_bundle_without_the_pinned_ca_is_refused() {
    let (ca, other) = (TestCa::new(), TestCa::new());
    let server = server(&ca.auth_node(), &ca, other.bundle(&[]));
    for first in [FirstContact::Pin(ca.pin().into()), FirstContact::CaPem(ca.pem())] {
        let error = first.establish(&[server.address()], once()).await.unwrap_err();
        assert!(matches!(error, ClientError::Untrusted { .. }), "{error:?}");
    }
}
