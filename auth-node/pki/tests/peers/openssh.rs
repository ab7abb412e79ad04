//! OpenSSH's `ssh-keygen` reads what this crate writes, and the other way round.

use mezite_pki::{
    PkiError,
    ssh::{
        CertificateKind, HostCertSpec, SshCa, SshKeyPair, SshPublicKey, UserCertSpec, UserExtensions,
        parse_certificate, verify_sshsig,
    },
};

use crate::tool::{Answer, Folder};

/// 2026-01-01 to 2026-01-02, UTC.
const LIFETIME: (u64, u64) = (1_767_225_600, 1_767_312_000);
const NAMESPACE: &str = "manifest@mezite";

/// A security key's public half, with the application string that ssh-keygen gives by default.
const SK_ED25519: &str = "sk-ssh-ed25519@openssh.com AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29tAAAAILM+rvN+ot98qgEN796jTiQfZ\
                          fG1KaT0PtFDJ/XFSqtiAAAABHNzaDo=";

fn keygen(folder: &Folder, arguments: &[&str]) -> Answer {
    folder.run("ssh-keygen", arguments, None)
}

/// Makes a key pair in files `key` and `key.pub`; returns the public line.
fn make_key(folder: &Folder, kind: &str, bits: &str) -> String {
    keygen(folder, &["-q", "-t", kind, "-b", bits, "-N", "", "-C", "a comment", "-f", "key"]).ok();
    folder.read("key.pub")
}

fn subjects() -> Vec<(String, &'static str)> {
    let made = [
        ("ed25519", "256", "ED25519"),
        ("ecdsa", "256", "ECDSA"),
        ("ecdsa", "384", "ECDSA"),
        ("ecdsa", "521", "ECDSA"),
        ("rsa", "2048", "RSA"),
        ("rsa", "3072", "RSA"),
    ];
    let mut subjects: Vec<_> =
        made.map(|(kind, bits, shown)| (make_key(&Folder::new(), kind, bits), shown)).into_iter().collect();
    subjects.push((SK_ED25519.to_owned(), "ED25519-SK"));
    subjects.push((sk_ecdsa(), "ECDSA-SK"));
    subjects
}

/// A security key's form of a P-256 key: the same point, with the application string behind it.
fn sk_ecdsa() -> String {
    let plain = make_key(&Folder::new(), "ecdsa", "256");
    let blob = decode(plain.split(' ').nth(1).unwrap());
    let rest = &blob[4 + "ecdsa-sha2-nistp256".len()..];
    let name = "sk-ecdsa-sha2-nistp256@openssh.com";
    let field = |text: &str| [&u32::try_from(text.len()).unwrap().to_be_bytes(), text.as_bytes()].concat();
    format!("{name} {}", encode(&[field(name), rest.to_vec(), field("ssh:")].concat()))
}

fn decode(text: &str) -> Vec<u8> {
    use base64::{Engine, engine::general_purpose::STANDARD};
    STANDARD.decode(text).unwrap()
}

fn encode(bytes: &[u8]) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    STANDARD.encode(bytes)
}

fn user(public_key: &str) -> UserCertSpec {
    UserCertSpec {
        public_key: SshPublicKey::parse(public_key).unwrap(),
        key_id: "ann@example.com".into(),
        principals: vec!["root".into(), "ann@6f9619ff-8b86-4011-b42d-00c04fc964ff".into()],
        serial: 18_446_744_073_709_551_615,
        valid_after: LIFETIME.0,
        valid_before: LIFETIME.1,
        extensions: UserExtensions { pty: true, agent_forwarding: true, ..UserExtensions::default() },
        source_addresses: vec!["192.0.2.0/24".into(), "2001:db8::/32".into()],
    }
}

/// `ssh-keygen -L` of a certificate, without the indentation.
fn listed(certificate: &str) -> Vec<String> {
    let folder = Folder::new();
    folder.write("key-cert.pub", certificate);
    keygen(&folder, &["-L", "-f", "key-cert.pub"]).ok().lines().map(|line| line.trim().to_owned()).collect()
}

#[test]
fn ssh_keygen_reads_user_certificates_of_every_key_type() {
    let ca = SshCa::generate().unwrap();
    for (public_key, shown) in subjects() {
        let spec = user(&public_key);
        let lines = listed(&ca.sign_user(&spec).unwrap());
        assert!(lines[1].ends_with("user certificate"), "{lines:#?}");
        assert_eq!(lines[2], format!("Public key: {shown}-CERT {}", spec.public_key.fingerprint()));
        let authority = ca.public_key().fingerprint();
        assert_eq!(lines[3], format!("Signing CA: ED25519 {authority} (using ssh-ed25519)"));
        let rest = [
            "Key ID: \"ann@example.com\"",
            "Serial: 18446744073709551615",
            "Valid: from 2026-01-01T00:00:00 to 2026-01-02T00:00:00",
            "Principals:",
            "root",
            "ann@6f9619ff-8b86-4011-b42d-00c04fc964ff",
            "Critical Options:",
            "source-address 192.0.2.0/24,2001:db8::/32",
            "Extensions:",
            "permit-agent-forwarding",
            "permit-pty",
        ];
        assert_eq!(lines[4..], rest);
    }
}

#[test]
fn ssh_keygen_reads_host_certificates_of_every_key_type() {
    let ca = SshCa::generate().unwrap();
    for (public_key, _) in subjects() {
        let spec = HostCertSpec {
            public_key: SshPublicKey::parse(&public_key).unwrap(),
            key_id: "web-1".into(),
            principals: vec!["web-1.example.com".into(), "192.0.2.7".into(), "2001:db8::7".into()],
            serial: 7,
            valid_after: LIFETIME.0,
            valid_before: LIFETIME.1,
        };
        let lines = listed(&ca.sign_host(&spec).unwrap());
        assert!(lines[1].ends_with("host certificate"), "{lines:#?}");
        let rest = [
            "Principals:",
            "web-1.example.com",
            "192.0.2.7",
            "2001:db8::7",
            "Critical Options: (none)",
            "Extensions: (none)",
        ];
        assert_eq!(lines[7..], rest);
    }
}

#[test]
fn ssh_keygen_reads_the_longest_list_of_principals() {
    let principals: Vec<String> = (0..256).map(|n| format!("{n:x>255}")).collect();
    let spec = UserCertSpec { principals: principals.clone(), ..user(SK_ED25519) };
    let certificate = SshCa::generate().unwrap().sign_user(&spec).unwrap();
    assert_eq!(listed(&certificate)[8..264], principals);
    assert_eq!(parse_certificate(&certificate).unwrap().principals, principals);
}

#[test]
fn certificates_by_ssh_keygen_are_read() {
    let folder = Folder::new();
    let ca = SshCa::generate().unwrap();
    folder.write("ca", ca.private_openssh().unwrap().as_bytes());
    for (public_key, _) in subjects() {
        folder.write("subject.pub", &public_key);
        let options =
            ["-n", "root,ann", "-z", "7", "-V", "0x695db200:0x695f0380", "-O", "clear", "-O", "permit-pty"];
        let sign = ["-q", "-s", "ca", "-I", "ann", "-O", "source-address=192.0.2.0/24"];
        keygen(&folder, &[&sign[..], &options, &["subject.pub"]].concat()).ok();
        let info = parse_certificate(&folder.read("subject-cert.pub")).unwrap();
        assert_eq!(info.kind, CertificateKind::User);
        assert_eq!(info.public_key, SshPublicKey::parse(&public_key).unwrap());
        assert_eq!((info.key_id.as_str(), info.serial), ("ann", 7));
        assert_eq!(info.principals, ["root", "ann"]);
        assert_eq!((info.valid_after, info.valid_before), (0x695d_b200, 0x695f_0380));
        assert_eq!(info.ca_fingerprint, ca.public_key().fingerprint());
        assert_eq!(info.critical_options["source-address"], "192.0.2.0/24");
        assert_eq!(info.extensions.into_keys().collect::<Vec<_>>(), ["permit-pty"]);
    }
}

#[test]
fn source_addresses_are_taken_just_when_openssh_takes_them() {
    let folder = Folder::new();
    let ca = SshCa::generate().unwrap();
    folder.write("ca", ca.private_openssh().unwrap().as_bytes());
    folder.write("key.pub", ca.public_line());
    let entries = [
        ("192.0.2.1", true),
        ("10.0.0.0/8", true),
        ("0.0.0.0/0", true),
        ("2001:db8::/32", true),
        ("::/0", true),
        ("2001:DB8::1/128", true),
        ("10.0.0.1/8", false),
        ("10.0.0.0/33", false),
        ("2001:db8::1/32", false),
        ("host.example", false),
        ("*", false),
        ("fe80::1%lo", false),
    ];
    for (entry, good) in entries {
        let option = format!("source-address={entry}");
        let theirs = keygen(&folder, &["-q", "-s", "ca", "-I", "x", "-n", "x", "-O", &option, "key.pub"]);
        assert_eq!(theirs.success, good, "ssh-keygen on {entry}: {}", theirs.text);
        let ours = ca.sign_user(&UserCertSpec { source_addresses: vec![entry.into()], ..user(SK_ED25519) });
        assert_eq!(ours.is_ok(), good, "{entry}: {ours:?}");
    }
}

#[test]
fn private_keys_go_both_ways() {
    let ours = SshKeyPair::generate_ed25519("a comment").unwrap();
    let folder = Folder::new();
    folder.write("key", ours.private_openssh().unwrap().as_bytes());
    assert_eq!(
        keygen(&folder, &["-y", "-f", "key"]).ok().trim_end(),
        format!("{} a comment", ours.public_line())
    );
    let folder = Folder::new();
    let public = make_key(&folder, "ed25519", "256");
    let pair = SshKeyPair::from_openssh(&folder.read("key")).unwrap();
    assert_eq!(*pair.public_key(), SshPublicKey::parse(&public).unwrap());
    assert_eq!(pair.private_openssh().unwrap().lines().next(), Some("-----BEGIN OPENSSH PRIVATE KEY-----"));
}

#[test]
fn encrypted_private_keys_and_those_of_other_algorithms_are_refused() {
    let folder = Folder::new();
    keygen(&folder, &["-q", "-t", "ed25519", "-N", "secret", "-f", "key"]).ok();
    assert_eq!(SshKeyPair::from_openssh(&folder.read("key")).unwrap_err(), PkiError::EncryptedKey);
    for (kind, bits) in [("ecdsa", "521"), ("rsa", "2048")] {
        let folder = Folder::new();
        make_key(&folder, kind, bits);
        let refused = PkiError::KeyAlgorithm { allowed: "ed25519" };
        assert_eq!(SshKeyPair::from_openssh(&folder.read("key")).unwrap_err(), refused, "{kind}");
    }
}

#[test]
fn public_keys_that_are_too_weak_are_refused() {
    let weak = make_key(&Folder::new(), "rsa", "1024");
    assert!(matches!(SshPublicKey::parse(&weak), Err(PkiError::WeakKey(_))));
}

#[test]
fn ssh_keygen_verifies_our_signatures() {
    let folder = Folder::new();
    let pair = SshKeyPair::generate_ed25519("").unwrap();
    folder.write("document", b"text\0\xff");
    folder.write("altered", b"text\0\xfe");
    folder.write("document.sig", pair.sign_sshsig(NAMESPACE, b"text\0\xff").unwrap());
    folder.write("signers", format!("ingest namespaces=\"{NAMESPACE}\" {}\n", pair.public_line()));
    let other = SshKeyPair::generate_ed25519("").unwrap().public_line();
    folder.write("others", format!("ingest {other}\n"));
    let verify = |signers, namespace, document| {
        let arguments =
            ["-Y", "verify", "-f", signers, "-I", "ingest", "-n", namespace, "-s", "document.sig"];
        folder.run("ssh-keygen", &arguments, Some(document)).success
    };
    assert!(verify("signers", NAMESPACE, "document"));
    assert!(!verify("signers", NAMESPACE, "altered"));
    assert!(!verify("signers", "file", "document"));
    assert!(!verify("others", NAMESPACE, "document"));
}

#[test]
fn signatures_by_ssh_keygen_are_verified() {
    let kinds = [
        ("ed25519", "256"),
        ("ecdsa", "256"),
        ("ecdsa", "384"),
        ("ecdsa", "521"),
        ("rsa", "2048"),
        ("rsa", "4096"),
    ];
    for (kind, bits) in kinds {
        for hash in ["sha256", "sha512"] {
            let folder = Folder::new();
            let key = SshPublicKey::parse(&make_key(&folder, kind, bits)).unwrap();
            folder.write("document", b"text");
            let hash = format!("hashalg={hash}");
            keygen(&folder, &["-q", "-Y", "sign", "-O", &hash, "-f", "key", "-n", NAMESPACE, "document"])
                .ok();
            let pem = folder.read("document.sig");
            assert_eq!(verify_sshsig(&pem, NAMESPACE, b"text", &key), Ok(()), "{kind} {bits} {hash}");
            assert_eq!(verify_sshsig(&pem, NAMESPACE, b"test", &key), Err(PkiError::BadSignature));
            assert_eq!(verify_sshsig(&pem, "file", b"text", &key), Err(PkiError::BadSignature));
        }
    }
}

#[test]
fn both_sides_make_the_same_ed25519_signature() {
    let folder = Folder::new();
    let pair = SshKeyPair::generate_ed25519("").unwrap();
    folder.write("key", pair.private_openssh().unwrap().as_bytes());
    folder.write("document", b"text");
    keygen(&folder, &["-q", "-Y", "sign", "-f", "key", "-n", NAMESPACE, "document"]).ok();
    assert_eq!(folder.read("document.sig"), pair.sign_sshsig(NAMESPACE, b"text").unwrap());
}

#[test]
fn signatures_of_security_keys_are_refused() {
    let pem = SshKeyPair::generate_ed25519("").unwrap().sign_sshsig(NAMESPACE, b"text").unwrap();
    let key = SshPublicKey::parse(SK_ED25519).unwrap();
    assert!(matches!(verify_sshsig(&pem, NAMESPACE, b"text", &key), Err(PkiError::KeyAlgorithm { .. })));
}
