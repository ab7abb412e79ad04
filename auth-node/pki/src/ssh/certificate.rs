//! Reading OpenSSH certificates back: for display, for inventories, and for holders who check what they were given.

use std::collections::BTreeMap;

use ssh_key::{Certificate, certificate::CertType};

use super::SshPublicKey;
use crate::PkiError;

/// Longest certificate line that is read, in bytes. One with 256 principals of 255 bytes takes less than 96 KiB.
const MAX_LINE: usize = 128 * 1024;

/// Whom a certificate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CertificateKind {
    /// A user.
    User,
    /// A host.
    Host,
}

/// What an OpenSSH certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateInfo {
    /// Whom it is for.
    pub kind: CertificateKind,
    /// The certified key.
    pub public_key: SshPublicKey,
    /// Who the holder is.
    pub key_id: String,
    /// Names that it is good for. OpenSSH takes an empty list for "any name".
    pub principals: Vec<String>,
    /// Serial number.
    pub serial: u64,
    /// First second of the lifetime, Unix time.
    pub valid_after: u64,
    /// End of the lifetime, exclusive, Unix time; `u64::MAX`: forever.
    pub valid_before: u64,
    /// Digest of the signing key: `SHA256:` and unpadded base64.
    pub ca_fingerprint: String,
    /// Options that a verifier must understand or else refuse.
    pub critical_options: BTreeMap<String, String>,
    /// Options that a verifier may ignore.
    pub extensions: BTreeMap<String, String>,
}

/// Reads a certificate and checks its signature with the key that it names.
///
/// That key proves nothing by itself: the caller must compare [`CertificateInfo::ca_fingerprint`] with an authority it
/// trusts, and check the time, kind and principals.
///
/// # Errors
/// [`PkiError::TooLong`] above 128 KiB, [`PkiError::Malformed`], [`PkiError::KeyAlgorithm`] and
/// [`PkiError::WeakKey`] for the certified or the signing key, [`PkiError::BadSignature`].
pub fn parse_certificate(line: &str) -> Result<CertificateInfo, PkiError> {
    if line.len() > MAX_LINE {
        return Err(PkiError::TooLong { what: "a certificate", limit: MAX_LINE });
    }
    let malformed = PkiError::Malformed { expected: "an OpenSSH certificate" };
    let line = line.trim_ascii();
    if line.contains(['\n', '\r', '\0']) {
        return Err(malformed);
    }
    let certificate = Certificate::from_openssh(line).map_err(|_| malformed)?;
    let authority = SshPublicKey::from_key_data(certificate.signature_key().clone())?;
    certificate.verify_signature().map_err(|_| PkiError::BadSignature)?;
    Ok(CertificateInfo {
        kind: match certificate.cert_type() {
            CertType::User => CertificateKind::User,
            CertType::Host => CertificateKind::Host,
        },
        public_key: SshPublicKey::from_key_data(certificate.public_key().clone())?,
        key_id: certificate.key_id().to_owned(),
        principals: certificate.valid_principals().to_vec(),
        serial: certificate.serial(),
        valid_after: certificate.valid_after(),
        valid_before: certificate.valid_before(),
        ca_fingerprint: authority.fingerprint(),
        critical_options: certificate.critical_options().0.clone(),
        extensions: certificate.extensions().0.clone(),
    })
}
