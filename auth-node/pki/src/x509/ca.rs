//! The authority that signs TLS certificates for agents, ingests, auth nodes and users. It signs leaves only, never
//! another authority, and takes nothing of a leaf from the one who asks but the public key.

use std::fmt;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyUsagePurpose};
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use super::{CertificateInfo, KeyPair, LeafSpec, SvidSpec, leaf, pem, roles, spki};
use crate::PkiError;

/// A certificate authority with an ECDSA P-256 key.
pub struct X509Ca {
    key: KeyPair,
    certificate: CertificateDer<'static>,
    certificate_pem: String,
    info: CertificateInfo,
}

impl X509Ca {
    /// Makes an authority: a new key and a self-signed certificate with path length 0. Times are Unix seconds.
    ///
    /// # Errors
    /// [`PkiError::InvalidName`], [`PkiError::InvalidLifetime`] and [`PkiError::Randomness`].
    pub fn generate(common_name: &str, not_before: u64, not_after: u64) -> Result<Self, PkiError> {
        let mut params = leaf::base_params(common_name, not_before, not_after)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate_p256()?;
        let certificate = params.self_signed(key.signer());
        let certificate = certificate.map_err(|_| PkiError::Internal("a certificate cannot be signed"))?;
        Self::new(key, certificate.into())
    }

    /// Reads an authority's certificate and PKCS#8 private key, both in PEM.
    ///
    /// # Errors
    /// Those of [`CertificateInfo::from_pem`] and [`KeyPair::from_pem`]; [`PkiError::NotAnAuthority`] for a
    /// certificate that may not sign leaves, [`PkiError::KeyMismatch`] for one of another key.
    pub fn from_pems(certificate: &str, private_key: &str) -> Result<Self, PkiError> {
        Self::new(KeyPair::from_pem(private_key)?, pem::read_certificate(certificate)?)
    }

    fn new(key: KeyPair, certificate: CertificateDer<'static>) -> Result<Self, PkiError> {
        let info = CertificateInfo::from_der(&certificate)?;
        check_authority(&certificate)?;
        if info.spki_pin != spki::pin(&key.spki_der()) {
            return Err(PkiError::KeyMismatch);
        }
        let certificate_pem = pem::certificate(&certificate);
        Ok(Self { key, certificate, certificate_pem, info })
    }

    /// The certificate in PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The certificate in DER.
    pub fn certificate_der(&self) -> &[u8] {
        &self.certificate
    }

    /// What the certificate says.
    pub fn info(&self) -> &CertificateInfo {
        &self.info
    }

    /// The private key as PKCS#8 in PEM.
    pub fn private_pem(&self) -> Zeroizing<String> {
        self.key.private_pem()
    }

    /// Signs a leaf certificate; returns it alone, in PEM.
    ///
    /// # Errors
    /// Those of [`super::check_public_key`]; [`PkiError::InvalidName`], [`PkiError::InvalidIdentity`],
    /// [`PkiError::InvalidLifetime`], [`PkiError::OutlivesAuthority`], [`PkiError::Incomplete`] without a use or
    /// without an identity or name, [`PkiError::TooMany`] above 128 names, and [`PkiError::Randomness`].
    pub fn issue(&self, spec: &LeafSpec) -> Result<String, PkiError> {
        self.issue_to_user(spec, &[])
    }

    /// As [`X509Ca::issue`], for a user with these roles, at most 64: the certificate names them for other clusters, in an
    /// extension of its own that readers who do not know it pass over. Without roles there is none.
    ///
    /// # Errors
    /// As of [`X509Ca::issue`]; [`PkiError::InvalidName`] for a role.
    pub fn issue_to_user(&self, spec: &LeafSpec, roles: &[String]) -> Result<String, PkiError> {
        let mut params = spec.params()?;
        params.custom_extensions.extend(roles::extension(roles)?);
        self.sign(&spec.public_key, params, spec.not_after)
    }

    /// Signs an X.509-SVID; returns it alone, in PEM.
    ///
    /// # Errors
    /// As of [`X509Ca::issue`].
    pub fn issue_svid(&self, spec: &SvidSpec) -> Result<String, PkiError> {
        self.sign(&spec.public_key, spec.params()?, spec.not_after)
    }

    fn sign(&self, public_key: &[u8], params: CertificateParams, not_after: u64) -> Result<String, PkiError> {
        let public_key = spki::parse(public_key)?;
        if not_after > self.info.not_after {
            return Err(PkiError::OutlivesAuthority);
        }
        let internal = PkiError::Internal("a certificate cannot be signed");
        let Ok(issuer) = Issuer::from_ca_cert_der(&self.certificate, self.key.signer()) else {
            return Err(internal);
        };
        let leaf = params.signed_by(&public_key, &issuer).map_err(|_| internal)?;
        Ok(pem::certificate(leaf.der()))
    }
}

impl fmt::Debug for X509Ca {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "X509Ca({}, private key hidden)", self.info.spki_pin)
    }
}

/// Checks that a certificate may sign leaves.
pub(super) fn check_authority(der: &[u8]) -> Result<(), PkiError> {
    let malformed = |_| PkiError::Malformed { expected: "a certificate" };
    let (_, certificate) = X509Certificate::from_der(der).map_err(malformed)?;
    let constraints =
        certificate.basic_constraints().map_err(|_| PkiError::NotAnAuthority("basic constraints"))?;
    if !constraints.is_some_and(|extension| extension.value.ca) {
        return Err(PkiError::NotAnAuthority("it may not sign at all"));
    }
    let usage = certificate.key_usage().map_err(|_| PkiError::NotAnAuthority("key usage"))?;
    if !usage.is_some_and(|extension| extension.value.key_cert_sign()) {
        return Err(PkiError::NotAnAuthority("its key may not sign certificates"));
    }
    // An issuer is named by one attribute per part; other forms cannot be copied into a leaf byte for byte.
    if certificate.subject().iter().any(|part| part.iter().count() != 1) {
        return Err(PkiError::NotAnAuthority("its name"));
    }
    Ok(())
}

#[cfg(test)]
#[path = "ca_tests.rs"]
mod tests;
