//! Verifies a server at the first contact, when the cluster's name is not known yet.
//!
//! The name check is replaced by something stronger: the leaf must be signed by the CA that the caller named, and
//! must be the identity of an auth node. A certificate of that CA alone is not enough: every agent has one, and
//! could otherwise take logins.

use std::{fmt, sync::Arc};

use mezite_pki::{identity::Identity, x509::CertificateInfo};
use rustls::{
    CertificateError, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor, verify_server_name,
    },
    crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature},
    server::ParsedCertificate,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::{CaPin, CaPins, tls::provider, trust::auth_server_name};

/// What the caller knows of the CA.
#[derive(Debug)]
pub(crate) enum Anchor {
    /// Its pin, or those of its keys; the server must send the certificate.
    Pin(CaPins),
    /// Its certificate.
    Roots(RootCertStore),
}

/// Why a server is refused.
#[derive(Debug, Clone, Copy, thiserror::Error)]
enum Refusal {
    #[error("it did not show a CA certificate with the pinned key; check the address and the pin")]
    NoPinnedCa,
    #[error("its certificate is not that of an auth node")]
    NotAnAuthNode,
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(refusal))))
    }
}

/// Accepts auth nodes of the cluster that [`Anchor`] names.
pub(crate) struct FirstContactVerifier {
    anchor: Anchor,
    algorithms: WebPkiSupportedAlgorithms,
}

impl FirstContactVerifier {
    pub(crate) fn new(anchor: Anchor) -> Self {
        Self { anchor, algorithms: provider().signature_verification_algorithms }
    }

    /// The CA that must have signed the leaf. A certificate with the pinned key is a trust anchor whoever sent it:
    /// an anchor is a key and a name, and the key is the pinned one.
    fn roots(&self, sent: &[CertificateDer<'_>]) -> Result<RootCertStore, Error> {
        let pins = match &self.anchor {
            Anchor::Roots(roots) => return Ok(roots.clone()),
            Anchor::Pin(pins) => pins,
        };
        let mut roots = RootCertStore::empty();
        for certificate in sent.iter().filter(|der| CaPin::of(der).is_some_and(|pin| pins.contains(&pin))) {
            roots.add(certificate.clone().into_owned())?;
        }
        if roots.is_empty() {
            return Err(Refusal::NoPinnedCa.into());
        }
        Ok(roots)
    }
}

impl fmt::Debug for FirstContactVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FirstContactVerifier").field("anchor", &self.anchor).finish_non_exhaustive()
    }
}

impl ServerCertVerifier for FirstContactVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let roots = self.roots(intermediates)?;
        let leaf = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(&leaf, &roots, intermediates, now, self.algorithms.all)?;
        let cluster = auth_node_cluster(end_entity).ok_or(Refusal::NotAnAuthNode)?;
        let name = auth_server_name(&cluster).map_err(|_| Refusal::NotAnAuthNode)?;
        verify_server_name(&leaf, &name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// The cluster that the certificate makes its holder an auth node of.
fn auth_node_cluster(leaf: &CertificateDer<'_>) -> Option<String> {
    match CertificateInfo::from_der(leaf).ok()?.identity? {
        Identity::Auth { cluster, .. } => Some(cluster),
        Identity::Agent { .. } | Identity::Ingest { .. } | Identity::User { .. } | Identity::Bot { .. } => {
            None
        }
    }
}

#[cfg(test)]
#[path = "verifier_tests.rs"]
mod tests;
