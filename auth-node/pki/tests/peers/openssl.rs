//! OpenSSL reads and verifies what this crate issues, and this crate certifies keys that OpenSSL made.

use base64::{Engine, engine::general_purpose::STANDARD};
use mezite_pki::{
    PkiError,
    identity::Identity,
    x509::{CertificateInfo, KeyPair, LeafSpec, X509Ca, check_public_key},
};

use crate::tool::Folder;

/// 2026-01-01 and 2036-01-01, UTC.
const LIFETIME: (u64, u64) = (1_767_225_600, 2_082_758_400);

fn spec(public_key: Vec<u8>) -> LeafSpec {
    LeafSpec {
        public_key,
        common_name: "web-1".into(),
        identity: Some(Identity::Auth { cluster: "test".into(), node_id: 1 }),
        dns_names: vec!["web-1.example.com".into(), "test.mezite.internal".into()],
        ip_addresses: vec!["192.0.2.7".parse().unwrap(), "2001:db8::7".parse().unwrap()],
        not_before: LIFETIME.0,
        not_after: LIFETIME.1,
        client_auth: true,
        server_auth: true,
    }
}

fn openssl(folder: &Folder, arguments: &[&str]) -> crate::tool::Answer {
    folder.run("openssl", arguments, None)
}

/// Makes a key pair with OpenSSL; returns the public key in DER.
fn make_key(folder: &Folder, algorithm: &str, option: Option<&str>) -> Vec<u8> {
    let option: Vec<&str> = option.iter().flat_map(|option| ["-pkeyopt", option]).collect();
    openssl(folder, &[&["genpkey", "-quiet", "-algorithm", algorithm, "-out", "key"], &option[..]].concat())
        .ok();
    openssl(folder, &["pkey", "-in", "key", "-pubout", "-out", "key.pub"]).ok();
    let pem = folder.read("key.pub");
    STANDARD.decode(pem.lines().filter(|line| !line.starts_with('-')).collect::<String>()).unwrap()
}

#[test]
fn openssl_verifies_leaves_for_every_key_type() {
    let ca = X509Ca::generate("mezite test TLS", LIFETIME.0, LIFETIME.1).unwrap();
    let kinds = [
        ("EC", Some("ec_paramgen_curve:P-256")),
        ("EC", Some("ec_paramgen_curve:P-384")),
        ("ED25519", None),
        ("RSA", Some("rsa_keygen_bits:2048")),
        ("RSA", Some("rsa_keygen_bits:3072")),
    ];
    for (algorithm, option) in kinds {
        let folder = Folder::new();
        let public_key = make_key(&folder, algorithm, option);
        folder.write("ca.pem", ca.certificate_pem());
        folder.write("leaf.pem", ca.issue(&spec(public_key)).unwrap());
        for purpose in ["sslclient", "sslserver"] {
            let arguments = ["verify", "-x509_strict", "-CAfile", "ca.pem", "-purpose", purpose, "leaf.pem"];
            assert_eq!(openssl(&folder, &arguments).ok().trim(), "leaf.pem: OK", "{algorithm} {option:?}");
        }
        let key = openssl(&folder, &["x509", "-in", "leaf.pem", "-noout", "-pubkey"]).ok();
        assert_eq!(key, folder.read("key.pub"), "the key is the one that was given");
    }
}

#[test]
fn openssl_reads_the_fields() {
    let ca = X509Ca::generate("mezite test TLS", LIFETIME.0, LIFETIME.1).unwrap();
    let folder = Folder::new();
    folder.write("ca.pem", ca.certificate_pem());
    let leaf = ca.issue(&spec(KeyPair::generate_p256().unwrap().spki_der())).unwrap();
    folder.write("leaf.pem", &leaf);
    let text = |file| openssl(&folder, &["x509", "-in", file, "-noout", "-text"]).ok();
    let expected = [
        "Version: 3 (0x2)",
        "Signature Algorithm: ecdsa-with-SHA256",
        "Issuer: CN = mezite test TLS",
        "Not Before: Jan  1 00:00:00 2026 GMT",
        "Not After : Jan  1 00:00:00 2036 GMT",
        "Subject: CN = web-1",
        "X509v3 Key Usage: critical\n                Digital Signature\n",
        "X509v3 Extended Key Usage: \n                TLS Web Client Authentication, TLS Web Server Authentication\n",
        "URI:mezite://test/auth/1, DNS:web-1.example.com, DNS:test.mezite.internal, IP Address:192.0.2.7, \
         IP Address:2001:DB8:0:0:0:0:0:7",
        "X509v3 Basic Constraints: critical\n                CA:FALSE\n",
    ];
    let shown = text("leaf.pem");
    for part in expected {
        assert!(shown.contains(part), "{part}\n{shown}");
    }
    let shown = text("ca.pem");
    for part in [
        "X509v3 Key Usage: critical\n                Certificate Sign, CRL Sign\n",
        "X509v3 Basic Constraints: critical\n                CA:TRUE, pathlen:0\n",
    ] {
        assert!(shown.contains(part), "{part}\n{shown}");
    }
    let digest = openssl(&folder, &["x509", "-in", "leaf.pem", "-noout", "-fingerprint", "-sha256"]).ok();
    let digest = digest.trim().rsplit('=').next().unwrap().replace(':', "").to_lowercase();
    assert_eq!(hex::encode(CertificateInfo::from_pem(&leaf).unwrap().fingerprint_sha256), digest);
}

#[test]
fn openssl_refuses_another_use_and_another_authority() {
    let ca = X509Ca::generate("mezite test TLS", LIFETIME.0, LIFETIME.1).unwrap();
    let other = X509Ca::generate("mezite test TLS", LIFETIME.0, LIFETIME.1).unwrap();
    let folder = Folder::new();
    folder.write("ca.pem", ca.certificate_pem());
    folder.write("other.pem", other.certificate_pem());
    let public_key = KeyPair::generate_p256().unwrap().spki_der();
    folder.write("leaf.pem", ca.issue(&LeafSpec { server_auth: false, ..spec(public_key) }).unwrap());
    let verify = |authority, purpose| {
        openssl(&folder, &["verify", "-CAfile", authority, "-purpose", purpose, "leaf.pem"]).success
    };
    assert!(verify("ca.pem", "sslclient"));
    assert!(!verify("ca.pem", "sslserver"));
    assert!(!verify("other.pem", "sslclient"));
}

#[test]
fn openssl_reads_our_private_keys_and_we_read_its() {
    let ours = KeyPair::generate_p256().unwrap();
    let folder = Folder::new();
    folder.write("key", ours.private_pem().as_bytes());
    let public = openssl(&folder, &["pkey", "-in", "key", "-pubout"]).ok();
    let body: String = public.lines().filter(|line| !line.starts_with('-')).collect();
    assert_eq!(STANDARD.decode(body).unwrap(), ours.spki_der());
    let folder = Folder::new();
    let public = make_key(&folder, "EC", Some("ec_paramgen_curve:P-256"));
    assert_eq!(KeyPair::from_pem(&folder.read("key")).unwrap().spki_der(), public);
}

#[test]
fn weak_and_foreign_keys_by_openssl_are_refused() {
    let make = |algorithm, option| make_key(&Folder::new(), algorithm, option);
    let weak = check_public_key(&make("RSA", Some("rsa_keygen_bits:1024")));
    assert!(matches!(weak, Err(PkiError::WeakKey(_))), "{weak:?}");
    for (algorithm, option) in [
        ("EC", Some("ec_paramgen_curve:P-521")),
        ("EC", Some("ec_paramgen_curve:secp256k1")),
        ("ED448", None),
        ("X25519", None),
        ("RSA-PSS", Some("rsa_keygen_bits:2048")),
    ] {
        let refused = check_public_key(&make(algorithm, option));
        assert!(matches!(refused, Err(PkiError::KeyAlgorithm { .. })), "{algorithm} {option:?}: {refused:?}");
    }
}
