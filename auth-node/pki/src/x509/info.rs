//! What a certificate says. Nothing here is verified: signatures and trust are rustls' business, before this is read.

use std::net::IpAddr;

use sha2::{Digest, Sha256};
use x509_parser::{
    certificate::X509Certificate,
    extensions::{GeneralName, ParsedExtension},
    prelude::FromDer,
    x509::X509Version,
};

use super::{pem, roles, spki};
use crate::{PkiError, identity::Identity};

/// Longest certificate that is read, in bytes.
const MAX_LENGTH: usize = 64 * 1024;

/// A certificate's fields that decisions are made by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateInfo {
    /// Whom the certificate names: the one URI in it. `None` without any URI.
    pub identity: Option<Identity>,
    /// DNS names, as they are in the certificate.
    pub dns_names: Vec<String>,
    /// IP addresses.
    pub ip_addresses: Vec<IpAddr>,
    /// First second of the lifetime, Unix time.
    pub not_before: u64,
    /// Last second of the lifetime, Unix time.
    pub not_after: u64,
    /// SHA-256 over the whole certificate in DER.
    pub fingerprint_sha256: [u8; 32],
    /// `sha256:` and the digest, in hexadecimal, of the SubjectPublicKeyInfo.
    pub spki_pin: String,
    /// Whether it is an authority's.
    pub is_ca: bool,
    /// Identifier of its key (RFC 5280, 4.2.1.2); empty without one.
    pub key_id: Vec<u8>,
    /// Identifier of the key that signed it (RFC 5280, 4.2.1.1); empty without one.
    pub authority_key_id: Vec<u8>,
    /// Roles that its issuer says a user has; none where it says nothing.
    pub roles: Vec<String>,
}

impl CertificateInfo {
    /// Reads a certificate in DER.
    ///
    /// # Errors
    /// [`PkiError::TooLong`] above 64 KiB; [`PkiError::Malformed`] for anything but one X.509 v3 certificate;
    /// [`PkiError::InvalidIdentity`] for more than one URI, one that is no identity, or one in an authority's
    /// certificate.
    pub fn from_der(der: &[u8]) -> Result<Self, PkiError> {
        let certificate = parse(der)?;
        let names = Names::read(&certificate)?;
        let is_ca = certificate.basic_constraints().map_err(|_| malformed())?.is_some_and(|it| it.value.ca);
        if is_ca && names.identity.is_some() {
            return Err(PkiError::InvalidIdentity("an authority has none"));
        }
        Ok(Self {
            identity: names.identity,
            dns_names: names.dns_names,
            ip_addresses: names.ip_addresses,
            not_before: seconds(certificate.validity().not_before.timestamp())?,
            not_after: seconds(certificate.validity().not_after.timestamp())?,
            fingerprint_sha256: Sha256::digest(der).into(),
            spki_pin: spki::pin(certificate.public_key().raw),
            is_ca,
            key_id: key_id(&certificate),
            authority_key_id: authority_key_id(&certificate),
            roles: roles::read(&certificate)?,
        })
    }

    /// Whether it says that it was signed by this key of an authority: of two that have the same name, it was one. Its
    /// signature is not checked.
    pub fn names_authority(&self, authority: &Self) -> bool {
        !self.authority_key_id.is_empty() && self.authority_key_id == authority.key_id
    }

    /// Reads the first certificate of a PEM text: in a chain, the holder's own.
    ///
    /// # Errors
    /// As [`CertificateInfo::from_der`].
    pub fn from_pem(text: &str) -> Result<Self, PkiError> {
        Self::from_der(&pem::read_certificate(text)?)
    }
}

/// The pin of a certificate's key: `sha256:` and the digest, in hexadecimal, of its SubjectPublicKeyInfo.
///
/// # Errors
/// [`PkiError::TooLong`] above 64 KiB, [`PkiError::Malformed`].
pub fn spki_pin(cert_der: &[u8]) -> Result<String, PkiError> {
    Ok(spki::pin(parse(cert_der)?.public_key().raw))
}

/// The subject's alternative names.
#[derive(Default)]
struct Names {
    identity: Option<Identity>,
    dns_names: Vec<String>,
    ip_addresses: Vec<IpAddr>,
}

impl Names {
    fn read(certificate: &X509Certificate<'_>) -> Result<Self, PkiError> {
        let mut names = Self::default();
        let extension = certificate.subject_alternative_name().map_err(|_| malformed())?;
        for name in extension.iter().flat_map(|extension| &extension.value.general_names) {
            match name {
                GeneralName::URI(uri) => {
                    let before = names.identity.replace(uri.parse()?);
                    if before.is_some() {
                        return Err(PkiError::InvalidIdentity("there is more than one"));
                    }
                }
                GeneralName::DNSName(name) => names.dns_names.push((*name).to_owned()),
                GeneralName::IPAddress(bytes) => names.ip_addresses.push(address(bytes)?),
                GeneralName::Invalid(..) => return Err(malformed()),
                _ => {}
            }
        }
        Ok(names)
    }
}

pub(super) fn parse(der: &[u8]) -> Result<X509Certificate<'_>, PkiError> {
    if der.len() > MAX_LENGTH {
        return Err(PkiError::TooLong { what: "a certificate", limit: MAX_LENGTH });
    }
    let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| malformed())?;
    if !rest.is_empty() || certificate.version() != X509Version::V3 {
        return Err(malformed());
    }
    Ok(certificate)
}

/// What the first of the extensions says that `pick` takes; nothing without one.
fn identifier(
    certificate: &X509Certificate<'_>,
    pick: impl Fn(&ParsedExtension<'_>) -> Option<Vec<u8>>,
) -> Vec<u8> {
    let mut extensions = certificate.extensions().iter().map(|extension| extension.parsed_extension());
    extensions.find_map(pick).unwrap_or_default()
}

fn key_id(certificate: &X509Certificate<'_>) -> Vec<u8> {
    identifier(certificate, |extension| match extension {
        ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
        _ => None,
    })
}

fn authority_key_id(certificate: &X509Certificate<'_>) -> Vec<u8> {
    identifier(certificate, |extension| match extension {
        ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.as_ref().map(|id| id.0.to_vec()),
        _ => None,
    })
}

fn malformed() -> PkiError {
    PkiError::Malformed { expected: "an X.509 v3 certificate" }
}

fn seconds(timestamp: i64) -> Result<u64, PkiError> {
    u64::try_from(timestamp).map_err(|_| PkiError::InvalidLifetime)
}

fn address(bytes: &[u8]) -> Result<IpAddr, PkiError> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    let v6 = || <[u8; 16]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| v6()).map_err(|_| malformed())
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, IsCa, KeyPair, SanType};

    use super::*;

    const URI: &str = "mezite://test/user/ann";

    #[test]
    fn two_keys_of_an_authority_are_told_apart_by_what_they_signed() {
        let ca = || crate::x509::X509Ca::generate("the same name", 1, 2_000_000_000).unwrap();
        let (old, new) = (ca(), ca());
        let leaf = crate::x509::LeafSpec {
            public_key: crate::x509::KeyPair::generate_p256().unwrap().spki_der(),
            common_name: "leaf".into(),
            identity: None,
            dns_names: vec!["leaf".into()],
            ip_addresses: vec![],
            not_before: 1,
            not_after: 1_000_000_000,
            client_auth: true,
            server_auth: false,
        };
        let leaf = CertificateInfo::from_pem(&old.issue(&leaf).unwrap()).unwrap();
        assert!(leaf.names_authority(old.info()) && !leaf.names_authority(new.info()));
        let nameless = CertificateInfo { authority_key_id: vec![], ..leaf };
        let authority = CertificateInfo { key_id: vec![], ..old.info().clone() };
        assert!(!nameless.names_authority(&authority), "nothing is no name");
    }

    fn certificate(names: Vec<SanType>, is_ca: IsCa) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names;
        params.is_ca = is_ca;
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    fn uri(text: &str) -> SanType {
        SanType::URI(text.try_into().unwrap())
    }

    #[test]
    fn there_is_one_identity_or_none() {
        let read =
            |names| CertificateInfo::from_der(&certificate(names, IsCa::NoCa)).map(|info| info.identity);
        assert_eq!(read(vec![uri(URI)]), Ok(Some(URI.parse().unwrap())));
        assert_eq!(read(vec![]), Ok(None));
        assert_eq!(read(vec![SanType::DnsName("mezite".try_into().unwrap())]), Ok(None));
        let two = [vec![uri(URI), uri(URI)], vec![uri(URI), uri("mezite://test/auth/1")]];
        let other =
            [vec![uri("spiffe://test/user/ann")], vec![uri(URI), uri("https://example.com")], vec![uri("")]];
        for names in two.into_iter().chain(other) {
            assert!(matches!(read(names), Err(PkiError::InvalidIdentity(_))));
        }
        // A name of another sort is never taken for the identity.
        assert_eq!(read(vec![SanType::Rfc822Name(URI.try_into().unwrap())]), Ok(None));
        assert_eq!(read(vec![SanType::DnsName(URI.try_into().unwrap())]), Ok(None));
    }

    #[test]
    fn an_authority_has_no_identity() {
        let is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let refused = CertificateInfo::from_der(&certificate(vec![uri(URI)], is_ca));
        assert_eq!(refused, Err(PkiError::InvalidIdentity("an authority has none")));
        assert!(CertificateInfo::from_der(&certificate(vec![], is_ca)).unwrap().is_ca);
    }

    #[test]
    fn only_one_whole_certificate_is_read() {
        let good = certificate(vec![uri(URI)], IsCa::NoCa);
        for bad in [&[][..], b"x", &good[1..], &good[..good.len() - 1], &[good.clone(), vec![0]].concat()] {
            assert_eq!(CertificateInfo::from_der(bad), Err(malformed()));
            assert_eq!(spki_pin(bad), Err(malformed()));
        }
        let limit = Err(PkiError::TooLong { what: "a certificate", limit: MAX_LENGTH });
        assert_eq!(CertificateInfo::from_der(&vec![0x30; MAX_LENGTH + 1]), limit);
    }

    #[test]
    fn of_a_chain_the_first_certificate_is_read() {
        let leaf = certificate(vec![uri(URI)], IsCa::NoCa);
        let chain = format!(
            "text\n{}{}",
            pem::certificate(&leaf),
            pem::certificate(&certificate(vec![], IsCa::NoCa))
        );
        let info = CertificateInfo::from_pem(&chain).unwrap();
        assert_eq!(info, CertificateInfo::from_der(&leaf).unwrap());
        assert_eq!(info.fingerprint_sha256, <[u8; 32]>::from(Sha256::digest(&leaf)));
        assert_eq!(Ok(info.spki_pin), spki_pin(&leaf));
        for bad in ["", "x", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            assert!(matches!(CertificateInfo::from_pem(bad), Err(PkiError::Malformed { .. })), "{bad}");
        }
    }
}
