use rcgen::{BasicConstraints, CertificateParams, CustomExtension};

use super::*;
use crate::x509::{CertificateInfo, KeyPair, X509Ca, certificate_der};

const ID: &str = "spiffe://red.example/ns/ci";

fn spec(id: &str) -> SvidSpec {
    let public_key = KeyPair::generate_p256().unwrap().spki_der();
    SvidSpec { public_key, spiffe_id: id.into(), not_before: 2, not_after: 100 }
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

/// A certificate of somebody else's: signed by itself, since that is not looked at here.
fn foreign(names: Vec<SanType>, usages: Vec<KeyUsagePurpose>, is_ca: IsCa) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.subject_alt_names = names;
    params.key_usages = usages;
    params.is_ca = is_ca;
    params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der().to_vec()
}

fn signs() -> Vec<KeyUsagePurpose> {
    vec![KeyUsagePurpose::DigitalSignature]
}

#[test]
fn a_workload_has_one_uri_and_a_key_that_signs_messages() {
    let read =
        |names, usages, is_ca| Svid::from_der(&foreign(names, usages, is_ca)).map(|svid| svid.spiffe_id);
    let good = || vec![uri(ID)];
    assert_eq!(read(good(), signs(), IsCa::NoCa).as_deref(), Ok(ID));
    assert_eq!(read(good(), signs(), IsCa::ExplicitNoCa).as_deref(), Ok(ID));
    // Other names may be beside it.
    let beside = vec![SanType::DnsName("ci.example".try_into().unwrap()), uri(ID)];
    assert_eq!(read(beside, signs(), IsCa::NoCa).as_deref(), Ok(ID));
    let with = |more| [signs(), vec![more]].concat();
    for (what, names, usages, is_ca) in [
        ("no name", vec![], signs(), IsCa::NoCa),
        ("a DNS name", vec![SanType::DnsName(ID.try_into().unwrap())], signs(), IsCa::NoCa),
        ("two ids", vec![uri(ID), uri("spiffe://red.example/root")], signs(), IsCa::NoCa),
        ("the same twice", vec![uri(ID), uri(ID)], signs(), IsCa::NoCa),
        ("an id and a page", vec![uri(ID), uri("https://red.example")], signs(), IsCa::NoCa),
        ("an id and a holder of ours", vec![uri(ID), uri("mezite://c/user/ann")], signs(), IsCa::NoCa),
        ("a page", vec![uri("https://red.example/ns/ci")], signs(), IsCa::NoCa),
        ("no id but like one", vec![uri("SPIFFE://red.example/ns/ci")], signs(), IsCa::NoCa),
        ("a long id", vec![uri(&format!("spiffe://a/{}", "x".repeat(2048)))], signs(), IsCa::NoCa),
        ("an authority", good(), signs(), IsCa::Ca(BasicConstraints::Unconstrained)),
        ("no use", good(), vec![], IsCa::NoCa),
        ("another use", good(), vec![KeyUsagePurpose::KeyEncipherment], IsCa::NoCa),
        ("certificates too", good(), with(KeyUsagePurpose::KeyCertSign), IsCa::NoCa),
        ("lists too", good(), with(KeyUsagePurpose::CrlSign), IsCa::NoCa),
    ] {
        assert!(read(names, usages, is_ca).is_err(), "{what}");
    }
    // Two extensions with names: readers differ in which one counts.
    let mut params = CertificateParams::default();
    params.subject_alt_names = good();
    params.key_usages = signs();
    let name = [&[0x30, 0x0d, 0x86, 0x0b][..], b"spiffe://a/b"].concat();
    params.custom_extensions = vec![CustomExtension::from_oid_content(&[2, 5, 29, 17], name)];
    let twice = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
    assert!(Svid::from_der(twice.der()).is_err());
    assert!(Svid::from_der(b"x").is_err());
}

#[test]
fn an_authority_of_others_may_sign_and_a_workload_may_not() {
    let ca = |usages| {
        foreign(vec![uri("spiffe://red.example")], usages, IsCa::Ca(BasicConstraints::Unconstrained))
    };
    assert_eq!(check_svid_authority(&ca(vec![KeyUsagePurpose::KeyCertSign])), Ok(()));
    assert_eq!(check_svid_authority(&ca(vec![])), Ok(()));
    assert!(matches!(check_svid_authority(&ca(signs())), Err(PkiError::NotAnAuthority(_))));
    let leaf = foreign(vec![uri(ID)], signs(), IsCa::NoCa);
    assert!(matches!(check_svid_authority(&leaf), Err(PkiError::NotAnAuthority(_))));
    assert!(check_svid_authority(b"x").is_err());
}

#[test]
fn what_is_issued_is_an_svid_and_nobody_of_the_cluster() {
    let ca = X509Ca::generate("spiffe", 1, 1000).unwrap();
    let der = certificate_der(&ca.issue_svid(&spec(ID)).unwrap()).unwrap();
    let read = Svid::from_der(&der).unwrap();
    assert_eq!((read.spiffe_id.as_str(), read.trust_domain()), (ID, "red.example"));
    assert_eq!((read.not_before, read.not_after), (2, 100));
    assert!(CertificateInfo::from_der(&der).is_err(), "its URI names no holder");
    assert!(crate::x509::is_signed_by(&der, ca.certificate_pem()).unwrap());
    let certificate = parse(&der).unwrap();
    assert!(certificate.key_usage().unwrap().unwrap().critical);
    let uses = certificate.extended_key_usage().unwrap().unwrap().value;
    assert!(uses.client_auth && uses.server_auth);
    for bad in
        ["", "spiffe://", "spiffe://red.example", "spiffe://red.example/", "spiffe:///x", "https://a/b"]
    {
        assert!(ca.issue_svid(&spec(bad)).is_err(), "{bad}");
    }
    let long = SvidSpec { not_after: 1001, ..spec(ID) };
    assert_eq!(ca.issue_svid(&long), Err(PkiError::OutlivesAuthority));
    let no_key = SvidSpec { public_key: b"x".to_vec(), ..spec(ID) };
    assert!(ca.issue_svid(&no_key).is_err());
}

#[test]
fn the_key_of_an_authority_is_the_point_in_its_certificate() {
    let ca = X509Ca::generate("spiffe", 1, 1000).unwrap();
    let key = AuthorityKey::from_pem(ca.certificate_pem()).unwrap();
    assert_eq!(key.der, ca.certificate_der());
    let spki = parse(&key.der).unwrap().public_key().raw.to_vec();
    assert!(spki.ends_with(&[&[4][..], &key.x, &key.y].concat()));
    assert!(AuthorityKey::from_pem("x").is_err());
}
