//! How a secret is kept in the store: sealed with ChaCha20-Poly1305 under a key that the store does not have, and bound
//! to its place. Where such keys come from is the business of those who seal.

use chacha20poly1305::{
    ChaCha20Poly1305, KeyInit,
    aead::{Aead, Payload},
};
use zeroize::Zeroizing;

use crate::CoreError;

/// Version of the sealed form: `version (1) | nonce (12) | ciphertext and tag`.
const VERSION: u8 = 1;
/// Length of a nonce, in bytes.
pub const NONCE_LENGTH: usize = 12;
/// Length of a key, in bytes.
pub(crate) const KEY_LENGTH: usize = 32;

/// What a sealed secret is bound to beside its key.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    /// What kind of secret it is. No domain is the beginning of another.
    pub(crate) domain: &'static [u8],
    /// Where it belongs, unambiguously within the domain.
    pub(crate) within: &'a [u8],
}

impl Place<'_> {
    fn associated(self) -> Vec<u8> {
        [self.domain, &[VERSION], self.within].concat()
    }
}

/// Seals a secret. A nonce is random and never used twice with a key.
///
/// # Errors
/// [`CoreError::Internal`] for a secret of an absurd length.
pub(crate) fn seal(
    key: &[u8; KEY_LENGTH],
    place: Place<'_>,
    secret: &[u8],
    nonce: [u8; NONCE_LENGTH],
) -> Result<Vec<u8>, CoreError> {
    let payload = Payload { msg: secret, aad: &place.associated() };
    let sealed = ChaCha20Poly1305::new(key.into()).encrypt(&nonce.into(), payload);
    let sealed = sealed.map_err(|_| CoreError::Internal("a secret cannot be sealed".into()))?;
    Ok([&[VERSION], &nonce[..], &sealed].concat())
}

/// Opens what [`seal`] made with the same key for the same place.
///
/// # Errors
/// Why it cannot be opened, for the log.
pub(crate) fn unseal(
    key: &[u8; KEY_LENGTH],
    place: Place<'_>,
    sealed: &[u8],
) -> Result<Zeroizing<Vec<u8>>, &'static str> {
    let (version, rest) = sealed.split_first().ok_or("it is empty")?;
    if *version != VERSION {
        return Err("its format is of a later release");
    }
    let (nonce, ciphertext) = rest.split_first_chunk::<NONCE_LENGTH>().ok_or("it is cut off")?;
    let payload = Payload { msg: ciphertext, aad: &place.associated() };
    let secret = ChaCha20Poly1305::new(key.into()).decrypt(&(*nonce).into(), payload);
    secret.map(Zeroizing::new).map_err(|_| "it was altered, or the key is not its own")
}
