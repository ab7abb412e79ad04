use super::*;
use crate::ssh::{CertificateKind, parse_certificate};

fn user() -> UserCertSpec {
    UserCertSpec {
        public_key: SshKeyPair::generate_ed25519("").unwrap().public_key().clone(),
        key_id: "ann".into(),
        principals: vec!["root".into(), "ann@6f9619ff-8b86-4011-b42d-00c04fc964ff".into()],
        serial: u64::MAX,
        valid_after: 1_000,
        valid_before: 2_000,
        extensions: UserExtensions::default(),
        source_addresses: Vec::new(),
    }
}

fn host() -> HostCertSpec {
    let UserCertSpec { public_key, .. } = user();
    let principals = vec!["web-1.example.com".into(), "192.0.2.7".into()];
    HostCertSpec {
        public_key,
        key_id: "web-1".into(),
        principals,
        serial: 7,
        valid_after: 1_000,
        valid_before: 2_000,
    }
}

#[test]
fn a_user_certificate_says_what_was_asked_and_no_more() {
    let ca = SshCa::generate().unwrap();
    let spec = user();
    let line = ca.sign_user(&spec).unwrap();
    assert!(line.starts_with("ssh-ed25519-cert-v01@openssh.com ") && line.split(' ').count() == 2);
    let info = parse_certificate(&line).unwrap();
    assert_eq!(info.kind, CertificateKind::User);
    assert_eq!(info.public_key, spec.public_key);
    assert_eq!(info.key_id, "ann");
    assert_eq!(info.principals, spec.principals);
    assert_eq!(info.serial, u64::MAX);
    assert_eq!((info.valid_after, info.valid_before), (1_000, 2_000));
    assert_eq!(info.ca_fingerprint, ca.public_key().fingerprint());
    assert!(info.critical_options.is_empty() && info.extensions.is_empty());
}

#[test]
fn each_extension_is_given_only_when_asked_for() {
    let ca = SshCa::generate().unwrap();
    let none = UserExtensions::default();
    let cases = [
        (UserExtensions { pty: true, ..none }, vec!["permit-pty"]),
        (UserExtensions { port_forwarding: true, ..none }, vec!["permit-port-forwarding"]),
        (UserExtensions { agent_forwarding: true, ..none }, vec!["permit-agent-forwarding"]),
        (UserExtensions { x11_forwarding: true, ..none }, vec!["permit-X11-forwarding"]),
        (
            UserExtensions { pty: true, port_forwarding: true, agent_forwarding: true, x11_forwarding: true },
            vec!["permit-X11-forwarding", "permit-agent-forwarding", "permit-port-forwarding", "permit-pty"],
        ),
    ];
    for (extensions, names) in cases {
        let info = parse_certificate(&ca.sign_user(&UserCertSpec { extensions, ..user() }).unwrap()).unwrap();
        assert_eq!(info.extensions.into_keys().collect::<Vec<_>>(), names);
    }
}

#[test]
fn source_addresses_are_a_critical_option() {
    let source_addresses = vec!["10.0.0.0/8".into(), "2001:DB8::/32".into()];
    let line = SshCa::generate().unwrap().sign_user(&UserCertSpec { source_addresses, ..user() }).unwrap();
    let options = parse_certificate(&line).unwrap().critical_options;
    assert_eq!(
        options.into_iter().collect::<Vec<_>>(),
        [("source-address".into(), "10.0.0.0/8,2001:db8::/32".into())]
    );
}

#[test]
fn a_host_certificate_has_no_options_at_all() {
    let info = parse_certificate(&SshCa::generate().unwrap().sign_host(&host()).unwrap()).unwrap();
    assert_eq!(info.kind, CertificateKind::Host);
    assert_eq!(info.principals, host().principals);
    assert!(info.critical_options.is_empty() && info.extensions.is_empty());
}

#[test]
fn specs_that_openssh_would_read_as_any_or_forever_are_refused() {
    let ca = SshCa::generate().unwrap();
    assert_eq!(ca.sign_user(&UserCertSpec { principals: Vec::new(), ..user() }), Err(PkiError::NoPrincipals));
    assert_eq!(ca.sign_host(&HostCertSpec { principals: Vec::new(), ..host() }), Err(PkiError::NoPrincipals));
    for (valid_after, valid_before) in [(5, 5), (5, 4), (0, 0), (0, u64::MAX), (u64::MAX, 0), (0, 1 << 40)] {
        let refused = Err(PkiError::InvalidLifetime);
        assert_eq!(ca.sign_user(&UserCertSpec { valid_after, valid_before, ..user() }), refused);
        assert_eq!(ca.sign_host(&HostCertSpec { valid_after, valid_before, ..host() }), refused);
    }
}

#[test]
fn names_that_are_not_names_are_refused() {
    let ca = SshCa::generate().unwrap();
    let invalid = |result| matches!(result, Err(PkiError::InvalidName { .. }));
    assert!(invalid(ca.sign_user(&UserCertSpec { principals: vec!["ann,root".into()], ..user() })));
    assert!(invalid(ca.sign_host(&HostCertSpec { principals: vec!["*.example.com".into()], ..host() })));
    for key_id in ["", "a\nb", &"x".repeat(256)] {
        assert!(invalid(ca.sign_user(&UserCertSpec { key_id: key_id.into(), ..user() })), "{key_id:?}");
        assert!(invalid(ca.sign_host(&HostCertSpec { key_id: key_id.into(), ..host() })), "{key_id:?}");
    }
    let many = (0..257).map(|n| format!("u{n}")).collect();
    let refused = Err(PkiError::TooManyPrincipals { limit: 256 });
    assert_eq!(ca.sign_user(&UserCertSpec { principals: many, ..user() }), refused);
    let source_addresses = vec!["10.0.0.1/8".into()];
    let refused = Err(PkiError::InvalidSourceAddress("10.0.0.1/8".into()));
    assert_eq!(ca.sign_user(&UserCertSpec { source_addresses, ..user() }), refused);
}

#[test]
fn a_changed_certificate_does_not_verify() {
    let line = SshCa::generate().unwrap().sign_user(&user()).unwrap();
    let start = line.find(' ').unwrap() + 1;
    for index in start..line.len() {
        let mut bytes = line.clone().into_bytes();
        bytes[index] = if bytes[index] == b'A' { b'B' } else { b'A' };
        assert!(parse_certificate(&String::from_utf8(bytes).unwrap()).is_err(), "byte {index}");
    }
}

#[test]
fn what_is_no_certificate_is_not_read_as_one() {
    let ca = SshCa::generate().unwrap();
    let line = ca.sign_user(&user()).unwrap();
    let malformed = PkiError::Malformed { expected: "an OpenSSH certificate" };
    let blob = line.split(' ').nth(1).unwrap();
    let bad = [
        String::new(),
        ca.public_line(),
        format!("ssh-ed25519 {blob}"),
        format!("ssh-rsa-cert-v01@openssh.com {blob}"),
        format!("{line}\n{line}"),
        line[..line.len() - 8].to_owned(),
    ];
    for text in bad {
        assert_eq!(parse_certificate(&text), Err(malformed.clone()), "{text}");
    }
    assert!(parse_certificate(&format!("{line} a comment\n")).is_ok());
    let long = format!("{line} {}", "x".repeat(128 * 1024));
    assert!(matches!(parse_certificate(&long), Err(PkiError::TooLong { .. })));
}

#[test]
fn an_authority_comes_back_from_its_file_and_hides_its_key() {
    let ca = SshCa::generate().unwrap();
    let again = SshCa::from_openssh(&ca.private_openssh().unwrap()).unwrap();
    assert_eq!(again.public_line(), ca.public_line());
    assert_eq!(format!("{ca:?}"), format!("SshCa({}, private key hidden)", ca.public_key().fingerprint()));
}
