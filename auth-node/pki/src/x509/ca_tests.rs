use std::net::IpAddr;

use super::*;
use crate::identity::Identity;

const START: u64 = 1_700_000_000;
const END: u64 = 1_800_000_000;
const ID: &str = "6f9619ff-8b86-4011-b42d-00c04fc964ff";

fn ca() -> X509Ca {
    X509Ca::generate("mezite test TLS", START, END).unwrap()
}

fn spec() -> LeafSpec {
    LeafSpec {
        public_key: KeyPair::generate_p256().unwrap().spki_der(),
        common_name: "web-1".into(),
        identity: Some(Identity::Agent { cluster: "test".into(), id: ID.into() }),
        dns_names: vec!["web-1.example.com".into()],
        ip_addresses: vec!["192.0.2.7".parse().unwrap(), "2001:db8::7".parse().unwrap()],
        not_before: START,
        not_after: START + 3600,
        client_auth: true,
        server_auth: true,
    }
}

fn parsed<T>(pem: &str, read: impl FnOnce(&X509Certificate<'_>) -> T) -> T {
    let der = pem::read_certificate(pem).unwrap();
    let (rest, certificate) = X509Certificate::from_der(&der).unwrap();
    assert!(rest.is_empty());
    read(&certificate)
}

#[test]
fn a_leaf_says_what_was_asked() {
    let (ca, spec) = (ca(), spec());
    let pem = ca.issue(&spec).unwrap();
    let info = CertificateInfo::from_pem(&pem).unwrap();
    assert_eq!(info.identity, spec.identity);
    assert_eq!(info.dns_names, spec.dns_names);
    assert_eq!(info.ip_addresses, spec.ip_addresses);
    assert_eq!((info.not_before, info.not_after), (spec.not_before, spec.not_after));
    assert_eq!(info.spki_pin, spki::pin(&spec.public_key));
    assert!(!info.is_ca);
    parsed(&pem, |leaf| {
        assert_eq!(leaf.subject().to_string(), "CN=web-1");
        assert_eq!(leaf.issuer().to_string(), "CN=mezite test TLS");
        let usage = leaf.key_usage().unwrap().unwrap();
        assert!(usage.critical && usage.value.digital_signature() && !usage.value.key_cert_sign());
        let constraints = leaf.basic_constraints().unwrap().unwrap();
        assert!(constraints.critical && !constraints.value.ca);
    });
}

#[test]
fn uses_are_those_asked_for() {
    let ca = ca();
    for (client_auth, server_auth) in [(true, false), (false, true), (true, true)] {
        let pem = ca.issue(&LeafSpec { client_auth, server_auth, ..spec() }).unwrap();
        parsed(&pem, |leaf| {
            let usage = leaf.extended_key_usage().unwrap().unwrap().value;
            assert_eq!((usage.client_auth, usage.server_auth), (client_auth, server_auth));
            assert!(!usage.any && !usage.code_signing && usage.other.is_empty());
        });
    }
    let neither = LeafSpec { client_auth: false, server_auth: false, ..spec() };
    assert!(matches!(ca.issue(&neither), Err(PkiError::Incomplete(_))));
}

#[test]
fn an_authority_signs_leaves_only() {
    let ca = ca();
    assert!(ca.info().is_ca && ca.info().identity.is_none());
    parsed(ca.certificate_pem(), |certificate| {
        let constraints = certificate.basic_constraints().unwrap().unwrap();
        assert!(constraints.critical && constraints.value.ca);
        assert_eq!(constraints.value.path_len_constraint, Some(0));
        let usage = certificate.key_usage().unwrap().unwrap();
        assert!(usage.critical);
        assert_eq!(usage.value.to_string(), "Key Cert Sign, CRL Sign");
    });
}

#[test]
fn key_identifiers_lead_from_leaf_to_authority() {
    use x509_parser::extensions::ParsedExtension::{AuthorityKeyIdentifier, SubjectKeyIdentifier};
    let ca = ca();
    let read = |certificate: &X509Certificate<'_>| {
        let (mut subject, mut authority) = (Vec::new(), Vec::new());
        for extension in certificate.extensions() {
            match extension.parsed_extension() {
                SubjectKeyIdentifier(id) => subject = id.0.to_vec(),
                AuthorityKeyIdentifier(id) => authority = id.key_identifier.as_ref().unwrap().0.to_vec(),
                _ => {}
            }
        }
        (subject, authority)
    };
    let (ca_subject, ca_authority) = parsed(ca.certificate_pem(), read);
    let (leaf_subject, leaf_authority) = parsed(&ca.issue(&spec()).unwrap(), read);
    assert_eq!(ca_subject.len(), 20);
    assert_eq!((&ca_authority, &leaf_authority), (&ca_subject, &ca_subject));
    assert!(leaf_subject.len() == 20 && leaf_subject != ca_subject);
}

#[test]
fn serial_numbers_are_long_positive_and_never_the_same() {
    let (ca, spec) = (ca(), spec());
    let serial = |pem: &str| parsed(pem, |certificate| certificate.raw_serial().to_vec());
    let (one, other) = (serial(&ca.issue(&spec).unwrap()), serial(&ca.issue(&spec).unwrap()));
    assert_ne!(one, other);
    for serial in [one, other, serial(ca.certificate_pem())] {
        assert!(serial.len() == 16 && (0x40..0x80).contains(&serial[0]), "{serial:?}");
    }
}

#[test]
fn lifetimes_are_bounded_by_the_authority() {
    let ca = ca();
    let lives = |not_before, not_after| ca.issue(&LeafSpec { not_before, not_after, ..spec() });
    assert!(lives(START, END).is_ok());
    assert!(lives(START - 60, END).is_ok(), "set back for slow clocks");
    assert_eq!(lives(START, END + 1), Err(PkiError::OutlivesAuthority));
    for (from, to) in [(END, START), (START, START), (START, u64::MAX), (START, 1 << 40)] {
        assert_eq!(lives(from, to), Err(PkiError::InvalidLifetime));
    }
    for (from, to) in [(END, START), (START, u64::MAX), (START, 253_402_300_800)] {
        assert_eq!(X509Ca::generate("x", from, to).unwrap_err(), PkiError::InvalidLifetime);
    }
    let long = X509Ca::generate("x", 0, 253_402_300_799).unwrap();
    assert_eq!((long.info().not_before, long.info().not_after), (0, 253_402_300_799));
}

#[test]
fn names_and_identities_are_checked() {
    let ca = ca();
    let invalid = |spec: LeafSpec| matches!(ca.issue(&spec), Err(PkiError::InvalidName { .. }));
    assert!(invalid(LeafSpec { common_name: String::new(), ..spec() }));
    assert!(invalid(LeafSpec { common_name: "x".repeat(65), ..spec() }));
    for name in ["*.example.com", "Web", "192.0.2.1", "a b", "a\0.example"] {
        assert!(invalid(LeafSpec { dns_names: vec![name.into()], ..spec() }), "{name:?}");
    }
    let escape = Identity::User { cluster: "test".into(), name: "ann/agent/x".into() };
    let refused = ca.issue(&LeafSpec { identity: Some(escape), ..spec() });
    assert!(matches!(refused, Err(PkiError::InvalidIdentity(_))));
    let nobody = LeafSpec { identity: None, dns_names: Vec::new(), ip_addresses: Vec::new(), ..spec() };
    assert!(matches!(ca.issue(&nobody), Err(PkiError::Incomplete(_))));
    let addresses: Vec<IpAddr> = vec!["::1".parse().unwrap(); 128];
    assert!(matches!(
        ca.issue(&LeafSpec { ip_addresses: addresses, ..spec() }),
        Err(PkiError::TooMany { .. })
    ));
    assert!(X509Ca::generate("", START, END).is_err());
}

#[test]
fn a_certificate_without_identity_has_none() {
    let pem = ca().issue(&LeafSpec { identity: None, ..spec() }).unwrap();
    assert_eq!(CertificateInfo::from_pem(&pem).unwrap().identity, None);
}

#[test]
fn an_authority_comes_back_from_its_files() {
    let ca = ca();
    let again = X509Ca::from_pems(ca.certificate_pem(), &ca.private_pem()).unwrap();
    assert_eq!(again.certificate_pem(), ca.certificate_pem());
    assert_eq!(again.certificate_der(), ca.certificate_der());
    assert_eq!(again.info(), ca.info());
    assert!(again.issue(&spec()).is_ok());
    assert_eq!(format!("{ca:?}"), format!("X509Ca({}, private key hidden)", ca.info().spki_pin));
}

#[test]
fn what_is_no_authority_is_not_taken_for_one() {
    let (ca, other) = (ca(), ca());
    assert_eq!(
        X509Ca::from_pems(ca.certificate_pem(), &other.private_pem()).unwrap_err(),
        PkiError::KeyMismatch
    );
    let key = KeyPair::generate_p256().unwrap();
    let leaf = ca.issue(&LeafSpec { public_key: key.spki_der(), ..spec() }).unwrap();
    let refused = X509Ca::from_pems(&leaf, &key.private_pem()).unwrap_err();
    assert!(matches!(refused, PkiError::NotAnAuthority(_)));
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::CrlSign];
    let no_sign = params.self_signed(key.signer()).unwrap().pem();
    let refused = X509Ca::from_pems(&no_sign, &key.private_pem()).unwrap_err();
    assert_eq!(refused, PkiError::NotAnAuthority("its key may not sign certificates"));
    assert!(X509Ca::from_pems("", &key.private_pem()).is_err());
    assert!(X509Ca::from_pems(ca.certificate_pem(), "").is_err());
}
