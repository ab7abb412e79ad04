use mezite_pki::x509::{KeyPair, SvidSpec, X509Ca, certificate_der};

use super::*;
use crate::spiffe::testing::Issuer;

fn ca() -> X509Ca {
    X509Ca::generate("test", 1, 4_000_000_000).unwrap()
}

fn x509(der: &[u8]) -> Value {
    json!({ "use": "x509-svid", "kty": "EC", "x5c": [STANDARD.encode(der)] })
}

fn document(keys: &[Value]) -> Value {
    json!({ "keys": keys, "spiffe_sequence": 7, "spiffe_refresh_hint": 60 })
}

fn parse(document: &Value) -> Result<SpiffeBundleRow, String> {
    read(document.to_string().as_bytes())
}

#[test]
fn keys_are_read_by_their_use_and_others_are_passed_over() {
    let (ca, ec, rsa) = (ca(), Issuer::new("b"), Issuer::rsa("a"));
    let other = json!({ "use": "wit-svid", "kty": "OKP" });
    let told = document(&[x509(ca.certificate_der()), ec.jwk(), other, json!({ "kty": "EC" }), rsa.jwk()]);
    let bundle = parse(&told).unwrap();
    assert_eq!(bundle.x509_authorities, [ca.certificate_der()]);
    assert_eq!(bundle.jwt_authorities.iter().map(|key| key.key_id.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!((bundle.sequence, bundle.refresh_hint_s), (Some(7), 60));
    let empty = parse(&json!({ "keys": [] })).unwrap();
    assert_eq!(empty, SpiffeBundleRow::default());
}

#[test]
fn what_is_no_bundle_is_refused_and_the_key_is_named() {
    let (ca, issuer) = (ca(), Issuer::new("k"));
    let spec = SvidSpec {
        public_key: KeyPair::generate_p256().unwrap().spki_der(),
        spiffe_id: "spiffe://x/y".into(),
        not_before: 1,
        not_after: 2,
    };
    let leaf = certificate_der(&ca.issue_svid(&spec).unwrap()).unwrap();
    let with = |name: &str, value: Value| {
        let mut key = issuer.jwk();
        key[name] = value;
        key
    };
    let chain =
        json!({ "use": "x509-svid", "x5c": [STANDARD.encode(ca.certificate_der()), STANDARD.encode(&leaf)] });
    for (what, key) in [
        ("a workload's certificate", x509(&leaf)),
        ("no certificate", x509(b"x")),
        ("a chain", chain),
        ("nothing", json!({ "use": "x509-svid" })),
        ("no base64", json!({ "use": "x509-svid", "x5c": ["!"] })),
        ("a secret", with("kty", json!("oct"))),
        ("a private key", with("d", json!("AA"))),
        ("no id", with("kid", json!(""))),
        ("a long id", with("kid", json!("x".repeat(257)))),
        ("a long key", with("alg", json!("x".repeat(9000)))),
    ] {
        let refused = parse(&document(&[issuer.jwk(), key])).unwrap_err();
        assert!(refused.starts_with("keys[1]: "), "{what}: {refused}");
    }
    assert!(parse(&document(&[issuer.jwk(), issuer.jwk()])).unwrap_err().contains("another key"));
    let many: Vec<_> = (0..33).map(|_| x509(ca.certificate_der())).collect();
    assert!(parse(&document(&many)).unwrap_err().contains("at most 32"));
    for bad in ["", "x", "[]", "{}", r#"{"keys": 1}"#, r#"{"keys": [], "spiffe_sequence": -1}"#] {
        assert!(read(bad.as_bytes()).is_err(), "{bad}");
    }
    assert!(read(&vec![b' '; MAX_DOCUMENT + 1]).unwrap_err().contains("at most"));
}

#[test]
fn nothing_of_a_key_is_kept_but_what_verifies() {
    let issuer = Issuer::new("k");
    let mut key = issuer.jwk();
    key["x5u"] = json!("https://elsewhere");
    let kept = parse(&document(&[key])).unwrap().jwt_authorities.remove(0).jwk;
    assert_eq!(serde_json::from_str::<Value>(&kept).unwrap(), issuer.jwk());
}

#[test]
fn the_own_bundle_can_be_read_as_that_of_another() {
    let (old, new) = (ca(), ca());
    let pems = [new.certificate_pem().to_owned(), old.certificate_pem().to_owned()];
    let written = write(&pems, 42).unwrap();
    let read = parse(&written).unwrap();
    assert_eq!(read.x509_authorities, [new.certificate_der(), old.certificate_der()]);
    assert_eq!((read.sequence, read.refresh_hint_s, read.jwt_authorities.len()), (Some(42), 300, 0));
    assert_eq!(written["keys"][0]["use"], "x509-svid");
    assert!(write(&["x".into()], 1).is_err());
}
