//! TLS key pairs. ECDSA on P-256 alone: clients of stock gRPC libraries take no Ed25519.

use std::fmt;

use rcgen::{PKCS_ECDSA_P256_SHA256, PublicKeyData};
use zeroize::{Zeroize, Zeroizing};

use super::{pem, spki};
use crate::PkiError;

/// An ECDSA P-256 key pair, zeroized when dropped.
pub struct KeyPair(rcgen::KeyPair);

impl KeyPair {
    /// Makes a key pair.
    ///
    /// # Errors
    /// [`PkiError::Randomness`].
    pub fn generate_p256() -> Result<Self, PkiError> {
        rcgen::KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map(Self).map_err(|_| PkiError::Randomness)
    }

    /// Reads a PKCS#8 private key in PEM.
    ///
    /// # Errors
    /// [`PkiError::TooLong`] above 256 KiB, [`PkiError::Malformed`], [`PkiError::KeyAlgorithm`] for anything but a
    /// valid P-256 key.
    pub fn from_pem(text: &str) -> Result<Self, PkiError> {
        let der = pem::read_private_key(text)?;
        rcgen::KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ECDSA_P256_SHA256)
            .map(Self)
            .map_err(|_| PkiError::KeyAlgorithm { allowed: "ECDSA on P-256" })
    }

    /// The public key as DER SubjectPublicKeyInfo.
    pub fn spki_der(&self) -> Vec<u8> {
        self.0.subject_public_key_info()
    }

    /// The private key as PKCS#8 in PEM.
    pub fn private_pem(&self) -> Zeroizing<String> {
        pem::private_key(self.0.serialized_der())
    }

    pub(super) fn signer(&self) -> &rcgen::KeyPair {
        &self.0
    }
}

impl Drop for KeyPair {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyPair({}, private key hidden)", spki::pin(&self.spki_der()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::x509::check_public_key;

    #[test]
    fn a_pair_comes_back_from_its_pem() {
        let pair = KeyPair::generate_p256().unwrap();
        let pem = pair.private_pem();
        assert!(
            pem.starts_with("-----BEGIN PRIVATE KEY-----\n") && pem.ends_with("-----END PRIVATE KEY-----\n")
        );
        assert!(pem.lines().all(|line| line.len() <= 64));
        let again = KeyPair::from_pem(&pem).unwrap();
        assert_eq!(again.spki_der(), pair.spki_der());
        assert_eq!(again.private_pem(), pem);
        assert_eq!(check_public_key(&pair.spki_der()), Ok(()));
        assert_ne!(KeyPair::generate_p256().unwrap().spki_der(), pair.spki_der());
    }

    #[test]
    fn the_text_never_grew_and_left_a_copy() {
        let pem = KeyPair::generate_p256().unwrap().private_pem();
        let body: usize = pem.lines().filter(|line| !line.starts_with('-')).map(str::len).sum();
        assert!(pem.capacity() <= body + body / 64 + 80, "it was allocated once");
    }

    #[test]
    fn other_keys_are_refused() {
        let others = [&rcgen::PKCS_ED25519, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_RSA_SHA256];
        for algorithm in others {
            let pem = rcgen::KeyPair::generate_for(algorithm).unwrap().serialize_pem();
            assert_eq!(
                KeyPair::from_pem(&pem).unwrap_err(),
                PkiError::KeyAlgorithm { allowed: "ECDSA on P-256" },
                "{algorithm:?}"
            );
        }
        for bad in ["", "x", "-----BEGIN PRIVATE KEY-----\n!\n-----END PRIVATE KEY-----\n"] {
            assert!(matches!(KeyPair::from_pem(bad), Err(PkiError::Malformed { .. })), "{bad}");
        }
        assert!(matches!(KeyPair::from_pem(&" ".repeat(256 * 1024 + 1)), Err(PkiError::TooLong { .. })));
    }

    #[test]
    fn debug_shows_no_key() {
        let pair = KeyPair::generate_p256().unwrap();
        let shown = format!("{pair:?}");
        assert!(shown.starts_with("KeyPair(sha256:") && shown.ends_with(", private key hidden)"), "{shown}");
        assert_eq!(shown.len(), "KeyPair(sha256:, private key hidden)".len() + 64);
    }
}
