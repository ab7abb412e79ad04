//! A public key in OpenSSH's one-line form, checked when it is read. Private keys are in [`super::SshKeyPair`].

use std::fmt;

use ssh_key::{EcdsaCurve, HashAlg, Mpint, PublicKey, public::KeyData};

use crate::{
    PkiError,
    public_key::{Curve, check_point, check_rsa},
};

/// Longest line that is read, in bytes. An RSA key of 16384 bits takes less than 3 KiB.
const MAX_LINE: usize = 16 * 1024;

/// The algorithms that are taken.
const ALLOWED: &str = "ed25519, ecdsa, rsa of 2048 bits or more, or their sk- forms";

/// How the algorithm names of certificates end (PROTOCOL.certkeys).
const CERTIFICATE_SUFFIX: &str = "-cert-v01@openssh.com";

/// A public key that may be certified: Ed25519, ECDSA on P-256, P-384 or P-521, RSA of 2048 bits or more, or a
/// security key's form of the first two. Never a certificate, and without a comment.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct SshPublicKey {
    data: KeyData,
    line: String,
}

impl SshPublicKey {
    /// Reads `<algorithm> <base64> [comment]`. The comment is dropped.
    ///
    /// # Errors
    /// [`PkiError::TooLong`] above 16 KiB, [`PkiError::Malformed`], [`PkiError::CertificateAsKey`],
    /// [`PkiError::KeyAlgorithm`] and [`PkiError::WeakKey`].
    pub fn parse(line: &str) -> Result<Self, PkiError> {
        if line.len() > MAX_LINE {
            return Err(PkiError::TooLong { what: "a public key", limit: MAX_LINE });
        }
        let line = line.trim_ascii();
        let malformed = PkiError::Malformed { expected: "a public key in OpenSSH's one-line form" };
        if line.contains(['\n', '\r', '\0']) {
            return Err(malformed);
        }
        if line.split(' ').next().is_some_and(|algorithm| algorithm.ends_with(CERTIFICATE_SUFFIX)) {
            return Err(PkiError::CertificateAsKey);
        }
        let key = PublicKey::from_openssh(line).map_err(|_| malformed)?;
        Self::from_key_data(key.key_data().clone())
    }

    /// Checks a key that was read as part of something else.
    pub(super) fn from_key_data(data: KeyData) -> Result<Self, PkiError> {
        match &data {
            KeyData::Ed25519(_) | KeyData::SkEd25519(_) => {}
            KeyData::Ecdsa(key) => check_point(curve(key.curve()), key.as_sec1_bytes())?,
            KeyData::SkEcdsaSha2NistP256(key) => check_point(Curve::P256, key.ec_point().as_bytes())?,
            KeyData::Rsa(key) => check_rsa(positive(key.n()), positive(key.e()))?,
            // The line's algorithm may be that of a bare key, and what follows it a certificate all the same.
            KeyData::Certificate(_) => return Err(PkiError::CertificateAsKey),
            _ => return Err(PkiError::KeyAlgorithm { allowed: ALLOWED }),
        }
        let line = PublicKey::from(data.clone()).to_openssh();
        let line = line.map_err(|_| PkiError::Internal("a public key cannot be written"))?;
        Ok(Self { data, line })
    }

    /// The key in OpenSSH's one-line form, without a comment and without a line end.
    pub fn line(&self) -> String {
        self.line.clone()
    }

    /// Digest of the key as OpenSSH shows it: `SHA256:` and unpadded base64.
    pub fn fingerprint(&self) -> String {
        self.data.fingerprint(HashAlg::Sha256).to_string()
    }

    pub(super) fn key_data(&self) -> &KeyData {
        &self.data
    }
}

impl fmt::Debug for SshPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SshPublicKey({})", self.line)
    }
}

fn curve(curve: EcdsaCurve) -> Curve {
    match curve {
        EcdsaCurve::NistP256 => Curve::P256,
        EcdsaCurve::NistP384 => Curve::P384,
        EcdsaCurve::NistP521 => Curve::P521,
    }
}

/// The number's bytes; none when it is zero or negative.
fn positive(number: &Mpint) -> &[u8] {
    number.as_positive_bytes().unwrap_or_default()
}

#[cfg(test)]
#[path = "key_tests.rs"]
mod tests;
