//! rustls' verifiers, as the services use them, take what this crate issues for the use it was issued for.

use std::sync::Arc;

use mezite_pki::{
    identity::Identity,
    x509::{KeyPair, LeafSpec, X509Ca},
};
use rustls::{
    RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
    server::WebPkiClientVerifier,
};

const START: u64 = 1_767_225_600;
const END: u64 = 1_800_000_000;

fn ca() -> X509Ca {
    X509Ca::generate("mezite test TLS", START, END).unwrap()
}

fn leaf(ca: &X509Ca, client_auth: bool, server_auth: bool) -> CertificateDer<'static> {
    let pem = ca.issue(&LeafSpec {
        public_key: KeyPair::generate_p256().unwrap().spki_der(),
        common_name: "node 1".into(),
        identity: Some(Identity::Auth { cluster: "test".into(), node_id: 1 }),
        dns_names: vec!["test.mezite.internal".into()],
        ip_addresses: vec!["192.0.2.7".parse().unwrap()],
        not_before: START,
        not_after: START + 3600,
        client_auth,
        server_auth,
    });
    CertificateDer::from_pem_slice(pem.unwrap().as_bytes()).unwrap()
}

fn roots(authorities: &[&X509Ca]) -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for ca in authorities {
        roots.add(CertificateDer::from_pem_slice(ca.certificate_pem().as_bytes()).unwrap()).unwrap();
    }
    Arc::new(roots)
}

fn at(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds))
}

fn is_client(trusted: &[&X509Ca], leaf: &CertificateDer<'_>, now: u64) -> bool {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(trusted), Arc::new(default_provider()))
        .build()
        .unwrap();
    verifier.verify_client_cert(leaf, &[], at(now)).is_ok()
}

fn is_server(trusted: &[&X509Ca], leaf: &CertificateDer<'_>, name: &str, now: u64) -> bool {
    let verifier = WebPkiServerVerifier::builder_with_provider(roots(trusted), Arc::new(default_provider()))
        .build()
        .unwrap();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    verifier.verify_server_cert(leaf, &[], &name, &[], at(now)).is_ok()
}

#[test]
fn a_leaf_is_good_for_its_uses_names_and_time() {
    let ca = ca();
    let both = leaf(&ca, true, true);
    assert!(is_client(&[&ca], &both, START));
    assert!(is_client(&[&ca], &both, START + 3600));
    assert!(!is_client(&[&ca], &both, START - 1));
    assert!(!is_client(&[&ca], &both, START + 3601));
    assert!(is_server(&[&ca], &both, "test.mezite.internal", START));
    assert!(is_server(&[&ca], &both, "192.0.2.7", START));
    assert!(!is_server(&[&ca], &both, "other.mezite.internal", START));
    assert!(!is_server(&[&ca], &both, "192.0.2.8", START));
    assert!(!is_server(&[&ca], &both, "test.mezite.internal", START - 1));
}

#[test]
fn a_leaf_is_good_for_no_other_use() {
    let ca = ca();
    let (client, server) = (leaf(&ca, true, false), leaf(&ca, false, true));
    assert!(is_client(&[&ca], &client, START));
    assert!(!is_server(&[&ca], &client, "test.mezite.internal", START));
    assert!(!is_client(&[&ca], &server, START));
    assert!(is_server(&[&ca], &server, "test.mezite.internal", START));
}

#[test]
fn authorities_of_one_name_are_told_apart() {
    let (old, new, stranger) = (ca(), ca(), ca());
    let (by_old, by_new) = (leaf(&old, true, true), leaf(&new, true, true));
    for leaf in [&by_old, &by_new] {
        assert!(is_client(&[&old, &new], leaf, START), "both are trusted during a rotation");
        assert!(!is_client(&[&stranger], leaf, START));
    }
    assert!(!is_client(&[&new], &by_old, START));
}

#[test]
fn a_leaf_is_no_authority() {
    let ca = ca();
    let key = KeyPair::generate_p256().unwrap();
    let leaf_pem = ca
        .issue(&LeafSpec {
            public_key: key.spki_der(),
            common_name: "agent".into(),
            identity: Some(Identity::User { cluster: "test".into(), name: "ann".into() }),
            dns_names: Vec::new(),
            ip_addresses: Vec::new(),
            not_before: START,
            not_after: START + 3600,
            client_auth: true,
            server_auth: false,
        })
        .unwrap();
    // What this crate refuses to do, the attacker does by other means: sign with the leaf's key.
    let signer = rcgen::KeyPair::from_pem(&key.private_pem()).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_pem(&leaf_pem, signer).unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let forged = params.signed_by(&rcgen::KeyPair::generate().unwrap(), &issuer).unwrap();
    let intermediate = CertificateDer::from_pem_slice(leaf_pem.as_bytes()).unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(&[&ca]), Arc::new(default_provider()))
        .build()
        .unwrap();
    assert!(verifier.verify_client_cert(&intermediate, &[], at(START)).is_ok());
    let refused = verifier.verify_client_cert(forged.der(), &[intermediate], at(START)).unwrap_err();
    assert_eq!(format!("{refused:?}"), "InvalidCertificate(Other(OtherError(EndEntityUsedAsCa)))");
}
