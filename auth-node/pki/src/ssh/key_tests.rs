use base64::{Engine, engine::general_purpose::STANDARD};

use super::*;
use crate::ssh::{HostCertSpec, SshCa, SshKeyPair};

const ED25519: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti";

/// A field of an SSH message: its length, then its bytes (RFC 4251, 5).
fn field(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
}

fn line(algorithm: &str, fields: &[&[u8]]) -> String {
    let mut blob = field(algorithm.as_bytes());
    fields.iter().for_each(|bytes| blob.extend(field(bytes)));
    format!("{algorithm} {}", STANDARD.encode(blob))
}

fn p256_point() -> Vec<u8> {
    rcgen::KeyPair::generate().unwrap().public_key_raw().to_vec()
}

fn rsa(bits: usize, exponent: &[u8]) -> String {
    // An SSH number is signed: a leading zero keeps it positive.
    line("ssh-rsa", &[exponent, &[vec![0], vec![0xff; bits / 8]].concat()])
}

const WEAK: fn(Result<SshPublicKey, PkiError>) -> bool = |result| matches!(result, Err(PkiError::WeakKey(_)));

#[test]
fn a_known_key_has_a_known_fingerprint_and_loses_its_comment() {
    for text in
        [ED25519.to_owned(), format!("{ED25519} user@example.com\n"), format!(" {ED25519} a b\tc \r\n")]
    {
        let key = SshPublicKey::parse(&text).unwrap();
        assert_eq!(key.line(), ED25519);
        assert_eq!(key.fingerprint(), "SHA256:UCUiLr7Pjs9wFFJMDByLgc3NrtdU344OgUM45wZPcIQ");
    }
}

#[test]
fn every_allowed_algorithm_is_read() {
    let point = p256_point();
    let lines = [
        line("ssh-ed25519", &[&[9; 32]]),
        line("sk-ssh-ed25519@openssh.com", &[&[9; 32], b"ssh:"]),
        line("ecdsa-sha2-nistp256", &[b"nistp256", &point]),
        line("sk-ecdsa-sha2-nistp256@openssh.com", &[b"nistp256", &point, b"ssh:"]),
        rsa(2048, &[1, 0, 1]),
        rsa(3072, &[3]),
        rsa(16_384, &[1, 0, 1]),
    ];
    for text in lines {
        assert_eq!(SshPublicKey::parse(&text).unwrap().line(), text);
    }
}

#[test]
fn a_certificate_is_no_key() {
    let pair = SshKeyPair::generate_ed25519("").unwrap();
    let spec = HostCertSpec {
        public_key: pair.public_key().clone(),
        key_id: "h".into(),
        principals: vec!["h".into()],
        serial: 1,
        valid_after: 1,
        valid_before: 2,
    };
    let certificate = SshCa::generate().unwrap().sign_host(&spec).unwrap();
    assert_eq!(SshPublicKey::parse(&certificate), Err(PkiError::CertificateAsKey));
    // The same bytes under the name of a bare key.
    let blob = certificate.split(' ').nth(1).unwrap();
    assert_eq!(SshPublicKey::parse(&format!("ssh-ed25519 {blob}")), Err(PkiError::CertificateAsKey));
}

#[test]
fn weak_keys_are_refused() {
    assert!(WEAK(SshPublicKey::parse(&rsa(1024, &[1, 0, 1]))));
    assert!(WEAK(SshPublicKey::parse(&rsa(2040, &[1, 0, 1]))));
    assert!(WEAK(SshPublicKey::parse(&rsa(2048, &[1]))), "exponent 1");
    assert!(WEAK(SshPublicKey::parse(&rsa(2048, &[2]))), "even exponent");
    let point = p256_point();
    let mut off = point.clone();
    off[40] ^= 1;
    assert!(WEAK(SshPublicKey::parse(&line("ecdsa-sha2-nistp256", &[b"nistp256", &off]))));
    assert!(WEAK(SshPublicKey::parse(&line(
        "sk-ecdsa-sha2-nistp256@openssh.com",
        &[b"nistp256", &off, b"ssh:"]
    ))));
    let mut compressed = point[..33].to_vec();
    compressed[0] = 2 + (point[64] & 1);
    assert!(WEAK(SshPublicKey::parse(&line("ecdsa-sha2-nistp256", &[b"nistp256", &compressed]))));
}

#[test]
fn other_algorithms_are_refused() {
    let numbers: [&[u8]; 4] = [&[0x7f; 128], &[0x7f; 20], &[0x7f; 128], &[0x7f; 128]];
    let dsa = line("ssh-dss", &numbers);
    assert_eq!(SshPublicKey::parse(&dsa), Err(PkiError::KeyAlgorithm { allowed: ALLOWED }));
    let unknown = line("ssh-ed448", &[&[9; 57]]);
    assert!(SshPublicKey::parse(&unknown).is_err());
    let named = line("key@vendor.example", &[&[9; 32]]);
    assert!(SshPublicKey::parse(&named).is_err());
}

#[test]
fn anything_but_one_line_with_one_key_is_malformed() {
    let blob = ED25519.split(' ').nth(1).unwrap();
    let trailing = STANDARD.encode([STANDARD.decode(blob).unwrap(), vec![0]].concat());
    let bad = [
        String::new(),
        " ".into(),
        "ssh-ed25519".into(),
        format!("ssh-rsa {blob}"),
        format!("ssh-ed25519 {trailing}"),
        format!("ssh-ed25519 {}", &blob[..40]),
        format!("no-pty {ED25519}"),
        format!("{ED25519} one\n{ED25519} two"),
        format!("{ED25519} a\rb"),
        format!("{ED25519} a\0b"),
        format!("ssh-ed25519\n{blob}"),
        line("ssh-ed25519", &[&[9; 31]]),
        line("ecdsa-sha2-nistp256", &[b"nistp384", &p256_point()]),
        "-----BEGIN OPENSSH PRIVATE KEY-----".into(),
    ];
    for text in bad {
        let malformed = PkiError::Malformed { expected: "a public key in OpenSSH's one-line form" };
        assert_eq!(SshPublicKey::parse(&text), Err(malformed), "{text:?}");
    }
    let long = format!("{ED25519} {}", "x".repeat(16 * 1024));
    assert_eq!(SshPublicKey::parse(&long), Err(PkiError::TooLong { what: "a public key", limit: 16 * 1024 }));
}
