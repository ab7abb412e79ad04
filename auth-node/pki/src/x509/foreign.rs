//! Certificates that others sign: of identity providers, and of other clusters.

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use x509_parser::{certificate::X509Certificate, oid_registry::OID_SIG_ECDSA_WITH_SHA256};

use super::{ca::check_authority, info::parse, pem, spki};
use crate::PkiError;

/// Reads a PEM text of one certificate whose key may sign messages: one that may be certified here, and whose use, where the
/// certificate names any, includes signatures. Its lifetime is not looked at. Answers it in the one form that is kept.
///
/// # Errors
/// [`PkiError::TooLong`]; [`PkiError::Malformed`] for anything but one X.509 v3 certificate; [`PkiError::KeyAlgorithm`] and
/// [`PkiError::WeakKey`]; [`PkiError::Incomplete`] for a key that may not sign.
pub fn signing_certificate(text: &str) -> Result<String, PkiError> {
    let der = pem::read_single(text)?;
    let certificate = parse(&der)?;
    spki::check_public_key(certificate.public_key().raw)?;
    let usage =
        certificate.key_usage().map_err(|_| PkiError::Malformed { expected: "an X.509 v3 certificate" })?;
    let signs =
        |usage: &x509_parser::extensions::KeyUsage| usage.digital_signature() || usage.non_repudiation();
    if usage.is_some_and(|extension| !signs(extension.value)) {
        return Err(PkiError::Incomplete("a key usage that includes digitalSignature"));
    }
    Ok(pem::certificate(&der))
}

/// Reads a PEM text of one certificate of an authority of somebody else, which vouches for servers. Its lifetime is not looked
/// at. Answers it in the one form that is kept.
///
/// # Errors
/// [`PkiError::TooLong`]; [`PkiError::Malformed`]; [`PkiError::KeyAlgorithm`] and [`PkiError::WeakKey`];
/// [`PkiError::NotAnAuthority`].
pub fn trust_anchor(text: &str) -> Result<String, PkiError> {
    let der = pem::read_single(text)?;
    let certificate = parse(&der)?;
    spki::check_public_key(certificate.public_key().raw)?;
    if !certificate.is_ca() {
        return Err(PkiError::NotAnAuthority("it may not sign certificates"));
    }
    Ok(pem::certificate(&der))
}

/// Reads a PEM text of one certificate of an authority as this crate makes them: on P-256, and allowed to sign leaves.
/// Answers it in the one form that is kept.
///
/// # Errors
/// [`PkiError::TooLong`]; [`PkiError::Malformed`]; [`PkiError::NotAnAuthority`].
pub fn authority_certificate(text: &str) -> Result<String, PkiError> {
    let der = pem::read_single(text)?;
    check_authority(&der)?;
    spki::check_public_key(parse(&der)?.public_key().raw)?;
    // As the authority's own: a name and a key belong together.
    if !is_signed_by(&der, text)? {
        return Err(PkiError::NotAnAuthority("it is not signed by its own key, ECDSA on P-256 with SHA-256"));
    }
    Ok(pem::certificate(&der))
}

/// Whether an authority, whose certificate is in PEM, signed a certificate, DER: by name and by key, with ECDSA on P-256 and
/// SHA-256, which is how authorities here sign. Lifetimes are not looked at.
///
/// # Errors
/// [`PkiError::TooLong`], [`PkiError::Malformed`].
pub fn is_signed_by(certificate_der: &[u8], authority_pem: &str) -> Result<bool, PkiError> {
    let authority_der = pem::read_certificate(authority_pem)?;
    let (authority, certificate) = (parse(&authority_der)?, parse(certificate_der)?);
    let named = certificate.issuer().as_raw() == authority.subject().as_raw();
    Ok(named && is_signed(&certificate, &authority))
}

fn is_signed(certificate: &X509Certificate<'_>, authority: &X509Certificate<'_>) -> bool {
    let algorithms =
        [&certificate.signature_algorithm.algorithm, &certificate.tbs_certificate.signature.algorithm];
    if algorithms.iter().any(|algorithm| **algorithm != OID_SIG_ECDSA_WITH_SHA256) {
        return false;
    }
    let point = &authority.public_key().subject_public_key.data;
    let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point);
    key.verify(certificate.tbs_certificate.as_ref(), &certificate.signature_value.data).is_ok()
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyUsagePurpose};

    use super::*;
    use crate::{
        identity::Identity,
        x509::{CertificateInfo, KeyPair, LeafSpec, X509Ca},
    };

    fn ca(name: &str) -> X509Ca {
        X509Ca::generate(name, 1, 4_000_000_000).unwrap()
    }

    fn leaf(ca: &X509Ca, roles: &[String]) -> Vec<u8> {
        let spec = LeafSpec {
            public_key: KeyPair::generate_p256().unwrap().spki_der(),
            common_name: "ann".into(),
            identity: Some(Identity::User { cluster: "c".into(), name: "ann".into() }),
            dns_names: vec![],
            ip_addresses: vec![],
            not_before: 2,
            not_after: 3,
            client_auth: true,
            server_auth: false,
        };
        pem::read_certificate(&ca.issue_to_user(&spec, roles).unwrap()).unwrap().to_vec()
    }

    #[test]
    fn only_the_key_that_signed_is_the_issuer() {
        // Authorities of the same name: a name proves nothing.
        let (one, other, named) = (ca("a"), ca("a"), ca("b"));
        let der = leaf(&one, &[]);
        assert_eq!(is_signed_by(&der, one.certificate_pem()), Ok(true));
        assert_eq!(is_signed_by(&der, other.certificate_pem()), Ok(false));
        assert_eq!(is_signed_by(&der, named.certificate_pem()), Ok(false));
        // What is signed cannot be changed, nor the signature. Around them there are bits that nobody reads.
        let signed = |der: &[u8]| {
            let read = parse(der).unwrap();
            (read.tbs_certificate.as_ref().to_vec(), read.signature_value.data.to_vec())
        };
        let mut unread = 0;
        for index in 0..der.len() {
            let mut altered = der.clone();
            altered[index] ^= 1;
            if is_signed_by(&altered, one.certificate_pem()) == Ok(true) {
                assert_eq!(signed(&altered), signed(&der), "byte {index}");
                unread += 1;
            }
        }
        assert!(unread < 8, "{unread} bytes");
        assert!(is_signed_by(b"x", one.certificate_pem()).is_err() && is_signed_by(&der, "x").is_err());
    }

    #[test]
    fn an_authority_is_one_of_this_crate() {
        let ca = ca("a");
        let kept = authority_certificate(&format!("text\n{}", ca.certificate_pem())).unwrap();
        assert_eq!(kept, ca.certificate_pem());
        let leaf = pem::certificate(&leaf(&ca, &[]));
        assert!(matches!(authority_certificate(&leaf), Err(PkiError::NotAnAuthority(_))));
        let two = [ca.certificate_pem(), ca.certificate_pem()].concat();
        assert!(matches!(authority_certificate(&two), Err(PkiError::Malformed { .. })));
        assert!(matches!(authority_certificate(""), Err(PkiError::Malformed { .. })));
        // Its key is not the one that signed it.
        let mut params = CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        let p384 = params.self_signed(&key).unwrap();
        assert!(matches!(authority_certificate(&p384.pem()), Err(PkiError::NotAnAuthority(_))));
    }

    #[test]
    fn a_certificate_that_signs_says_so_or_says_nothing() {
        let with = |usages: Vec<KeyUsagePurpose>| {
            let mut params = CertificateParams::default();
            params.key_usages = usages;
            params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem()
        };
        let allowed =
            [vec![], vec![KeyUsagePurpose::DigitalSignature], vec![KeyUsagePurpose::ContentCommitment]];
        for usages in allowed {
            assert!(signing_certificate(&with(usages.clone())).is_ok(), "{usages:?}");
        }
        let refused = signing_certificate(&with(vec![KeyUsagePurpose::KeyEncipherment]));
        assert!(matches!(refused, Err(PkiError::Incomplete(_))));
        for bad in ["", "x", &with(vec![]).replace("M", "*"), &[with(vec![]), with(vec![])].concat()] {
            assert!(signing_certificate(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn roles_are_in_the_certificate_and_old_readers_pass_over_them() {
        let roles = ["admin".to_owned(), "a@b.c_d-e".to_owned()];
        let info = CertificateInfo::from_der(&leaf(&ca("a"), &roles)).unwrap();
        assert_eq!(info.roles, roles);
        let many: Vec<_> = (0..64).map(|number| format!("{number:063}")).collect();
        assert_eq!(CertificateInfo::from_der(&leaf(&ca("a"), &many)).unwrap().roles, many);
        assert!(CertificateInfo::from_der(&leaf(&ca("a"), &[])).unwrap().roles.is_empty());
    }
}
