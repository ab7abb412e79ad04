//! X.509-SVIDs (SPIFFE X509-SVID): what one of another trust domain says, and the profile of those that are signed here. Chains
//! are verified by rustls where they are shown, not here.

use rcgen::{ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType};
use x509_parser::{certificate::X509Certificate, extensions::GeneralName};

use super::{info::parse, leaf, pem};
use crate::PkiError;

/// Longest SPIFFE ID, in bytes (SPIFFE-ID, section 2.3).
const MAX_ID: usize = 2048;
/// What every SPIFFE ID begins with.
const SCHEME: &str = "spiffe://";

/// What an X.509-SVID says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Svid {
    /// Its one URI, `spiffe://<trust domain>/<path>`. Whether it is in its one form is for the reader to look at.
    pub spiffe_id: String,
    /// First second of the lifetime, Unix time.
    pub not_before: u64,
    /// Last second of the lifetime, Unix time.
    pub not_after: u64,
}

impl Svid {
    /// Reads the certificate of a workload, DER: it has exactly one URI, is no authority's, and its key signs messages, and
    /// neither certificates nor revocation lists (X509-SVID, sections 2, 4.1, 4.3, 5.2).
    ///
    /// # Errors
    /// [`PkiError::TooLong`] above 64 KiB; [`PkiError::Malformed`]; [`PkiError::InvalidIdentity`] says which rule it breaks.
    pub fn from_der(der: &[u8]) -> Result<Self, PkiError> {
        let certificate = parse(der)?;
        if is_authority(&certificate)? {
            return Err(PkiError::InvalidIdentity("an authority's certificate is no workload's"));
        }
        let usage = certificate.key_usage().map_err(|_| malformed())?;
        let usage = usage.ok_or(PkiError::InvalidIdentity("an SVID says what its key is used for"))?.value;
        if !usage.digital_signature() || usage.key_cert_sign() || usage.crl_sign() {
            return Err(PkiError::InvalidIdentity(
                "the key of an SVID signs, and neither certificates nor lists",
            ));
        }
        let spiffe_id = one_uri(&certificate)?;
        let seconds = |timestamp: i64| u64::try_from(timestamp).map_err(|_| PkiError::InvalidLifetime);
        Ok(Self {
            spiffe_id,
            not_before: seconds(certificate.validity().not_before.timestamp())?,
            not_after: seconds(certificate.validity().not_after.timestamp())?,
        })
    }

    /// Name of the trust domain that it says it is of.
    pub fn trust_domain(&self) -> &str {
        let rest = self.spiffe_id.strip_prefix(SCHEME).unwrap_or_default();
        rest.split('/').next().unwrap_or_default()
    }
}

/// The one URI of a certificate; other names may be beside it.
fn one_uri(certificate: &X509Certificate<'_>) -> Result<String, PkiError> {
    let names = certificate.subject_alternative_name().map_err(|_| malformed())?;
    let mut uris = Vec::new();
    for name in names.iter().flat_map(|names| &names.value.general_names) {
        match name {
            GeneralName::URI(uri) => uris.push(*uri),
            GeneralName::Invalid(..) => return Err(malformed()),
            _ => {}
        }
    }
    match uris.as_slice() {
        [uri] if uri.starts_with(SCHEME) && uri.len() <= MAX_ID => Ok((*uri).to_owned()),
        [_] => Err(PkiError::InvalidIdentity("its URI is no SPIFFE ID")),
        _ => Err(PkiError::InvalidIdentity("an SVID has exactly one URI")),
    }
}

/// Checks that a certificate in DER is of an authority that may sign certificates of workloads: an authority's, and its key, where
/// the certificate says what it is used for, signs certificates (X509-SVID, sections 4.2 and 4.3).
///
/// # Errors
/// [`PkiError::TooLong`], [`PkiError::Malformed`], [`PkiError::NotAnAuthority`].
pub fn check_svid_authority(der: &[u8]) -> Result<(), PkiError> {
    let certificate = parse(der)?;
    if !is_authority(&certificate)? {
        return Err(PkiError::NotAnAuthority("it may not sign at all"));
    }
    let usage = certificate.key_usage().map_err(|_| malformed())?;
    match usage.is_none_or(|usage| usage.value.key_cert_sign()) {
        true => Ok(()),
        false => Err(PkiError::NotAnAuthority("its key may not sign certificates")),
    }
}

fn is_authority(certificate: &X509Certificate<'_>) -> Result<bool, PkiError> {
    let constraints = certificate.basic_constraints().map_err(|_| malformed())?;
    Ok(constraints.is_some_and(|constraints| constraints.value.ca))
}

fn malformed() -> PkiError {
    PkiError::Malformed { expected: "an X.509 v3 certificate" }
}

/// An X.509-SVID to sign.
#[derive(Debug, Clone)]
pub struct SvidSpec {
    /// The holder's public key: DER SubjectPublicKeyInfo, as [`super::check_public_key`] takes it.
    pub public_key: Vec<u8>,
    /// The one URI: a SPIFFE ID with a path.
    pub spiffe_id: String,
    /// First second of the lifetime, Unix time.
    pub not_before: u64,
    /// Last second of the lifetime, Unix time; not after the authority's.
    pub not_after: u64,
}

impl SvidSpec {
    /// Checks everything but the public key.
    pub(super) fn params(&self) -> Result<rcgen::CertificateParams, PkiError> {
        let path = self.spiffe_id.strip_prefix(SCHEME).and_then(|rest| rest.split_once('/'));
        if self.spiffe_id.len() > MAX_ID
            || path.is_none_or(|(domain, path)| domain.is_empty() || path.is_empty())
        {
            return Err(PkiError::InvalidIdentity("it must be spiffe://<trust domain>/<path>"));
        }
        let mut params = leaf::base_params("mezite SVID", self.not_before, self.not_after)?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        params.subject_alt_names = vec![SanType::URI(leaf::ia5(&self.spiffe_id)?)];
        Ok(params)
    }
}

/// The certificate of an authority of the cluster, and its public key as a JWK has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorityKey {
    /// The certificate in DER.
    pub der: Vec<u8>,
    /// The point on P-256: x.
    pub x: [u8; 32],
    /// The point on P-256: y.
    pub y: [u8; 32],
}

impl AuthorityKey {
    /// Reads the certificate of an authority as this crate makes them, PEM.
    ///
    /// # Errors
    /// [`PkiError::TooLong`], [`PkiError::Malformed`]; [`PkiError::KeyAlgorithm`] for a key that is not on P-256.
    pub fn from_pem(text: &str) -> Result<Self, PkiError> {
        let der = pem::read_certificate(text)?.to_vec();
        let point = parse(&der)?.public_key().subject_public_key.data.to_vec();
        let (x, y) = coordinates(&point).ok_or(PkiError::KeyAlgorithm { allowed: "ECDSA on P-256" })?;
        Ok(Self { der, x, y })
    }
}

/// The coordinates of a point on P-256 in its uncompressed form (SEC 1, 2.3.3).
fn coordinates(point: &[u8]) -> Option<([u8; 32], [u8; 32])> {
    let (x, y) = point.strip_prefix(&[4])?.split_at_checked(32)?;
    Some((x.try_into().ok()?, y.try_into().ok()?))
}

#[cfg(test)]
#[path = "svid_tests.rs"]
mod tests;
