//! Whose session it is: by the certificate with which sshd let it in, and by nothing that a recorder claims.

use mezite_pki::ssh::{CertificateKind, SshPublicKey, parse_certificate};

/// Why a session is nobody's that the cluster knows.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Stranger {
    #[error(
        "sshd tells no certificate: it needs `ExposeAuthInfo yes`, and users their certificates of the cluster"
    )]
    NoCertificate,
    #[error("the certificate cannot be read")]
    Malformed,
    #[error("the certificate is none of the cluster's user CA")]
    Untrusted,
    #[error("the certificate is not good now")]
    Expired,
    #[error("the certificate is not good for this login on this host")]
    OtherLogin,
}

/// Reads the user out of what sshd tells (`ExposeAuthInfo`, a method a line: `publickey ssh-ed25519-cert-v01@… AAAA…`).
///
/// The certificate must be by one of the `trusted` keys (lines as in `TrustedUserCAKeys`), good at `now` (Unix seconds),
/// and for the login that the system says it is. Several users may have one login: which of them it is, is what
/// the certificate says.
pub(crate) fn user(
    auth_info: &str,
    trusted: &str,
    login: &str,
    agent_id: &str,
    now: u64,
) -> Result<String, Stranger> {
    let certificate = auth_info
        .lines()
        .filter_map(|line| line.strip_prefix("publickey "))
        .find(|key| key.split(' ').next().is_some_and(|kind| kind.contains("-cert-v01@")))
        .ok_or(Stranger::NoCertificate)?;
    let certificate = parse_certificate(certificate).map_err(|_| Stranger::Malformed)?;
    let is_trusted = trusted
        .lines()
        .filter_map(|line| SshPublicKey::parse(line).ok())
        .any(|key| key.fingerprint() == certificate.ca_fingerprint);
    if !is_trusted || certificate.kind != CertificateKind::User {
        return Err(Stranger::Untrusted);
    }
    if !(certificate.valid_after..certificate.valid_before).contains(&now) {
        return Err(Stranger::Expired);
    }
    let here = format!("{login}@{agent_id}");
    match certificate.principals.iter().any(|name| name == login || *name == here) {
        true => Ok(certificate.key_id),
        false => Err(Stranger::OtherLogin),
    }
}

#[cfg(test)]
mod tests {
    use mezite_pki::ssh::{SshCa, SshKeyPair, UserCertSpec, UserExtensions};

    use super::*;

    const NOW: u64 = 1_795_512_000;
    const AGENT: &str = "6f9619ff-8b86-4011-b42d-00c04fc964ff";

    fn certificate(ca: &SshCa, principals: &[&str]) -> String {
        let spec = UserCertSpec {
            public_key: SshKeyPair::generate_ed25519("").unwrap().public_key().clone(),
            key_id: "ann".into(),
            principals: principals.iter().map(|&name| name.to_owned()).collect(),
            serial: 7,
            valid_after: NOW - 10,
            valid_before: NOW + 10,
            extensions: UserExtensions::default(),
            source_addresses: Vec::new(),
        };
        format!("publickey {}\n", ca.sign_user(&spec).unwrap())
    }

    #[test]
    fn a_session_is_the_users_of_its_certificate_and_nobody_elses() {
        let (ca, other) = (SshCa::generate().unwrap(), SshCa::generate().unwrap());
        let trusted = format!("{}\n{}\n", SshCa::generate().unwrap().public_line(), ca.public_line());
        let check = |info: &str, login: &str, now| user(info, &trusted, login, AGENT, now);
        let good = certificate(&ca, &["root", &format!("deploy@{AGENT}"), "web@another"]);
        assert_eq!(check(&good, "root", NOW), Ok("ann".into()));
        assert_eq!(check(&good, "deploy", NOW), Ok("ann".into()));
        assert_eq!(check(&format!("password\n{good}"), "root", NOW), Ok("ann".into()));

        assert_eq!(check(&good, "web", NOW), Err(Stranger::OtherLogin));
        assert_eq!(check(&good, "roo", NOW), Err(Stranger::OtherLogin));
        for now in [NOW - 11, NOW + 10] {
            assert_eq!(check(&good, "root", now), Err(Stranger::Expired));
        }
        assert_eq!(check(&certificate(&other, &["root"]), "root", NOW), Err(Stranger::Untrusted));
        let key = SshKeyPair::generate_ed25519("").unwrap().public_line();
        for none in
            ["", "ann", "user ann\n", &format!("publickey {key}\n"), good.trim_start_matches("publickey ")]
        {
            assert_eq!(check(none, "root", NOW), Err(Stranger::NoCertificate), "{none}");
        }
        // Another name in the certificate: what was signed is no more.
        let forged = good.replacen("AAAAB", "AAAAC", 1);
        assert!(check(&forged, "root", NOW).is_err());
        assert_eq!(check(&good[..good.len() / 2], "root", NOW), Err(Stranger::Malformed));
    }
}
