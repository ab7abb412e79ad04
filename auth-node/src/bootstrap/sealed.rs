//! The key-encryption key on its way to a node that joins: HPKE (RFC 9180) in base mode, to a key that the
//! node made for that. The server that seals is authenticated by TLS and its pin, the node by its token.

use auth_core::ca::{KEK_LENGTH, Kek};
use rustls::crypto::{
    aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_CHACHA20_POLY1305 as SUITE,
    hpke::{EncapsulatedSecret, Hpke, HpkePrivateKey, HpkePublicKey},
};
use zeroize::Zeroizing;

use crate::fault::NodeError;

/// What it is for; the number is the format's.
const INFO: &[u8] = b"mezite auth node join v1";
/// Length of an X25519 public key, in bytes.
pub(super) const PUBLIC_KEY_LENGTH: usize = 32;

/// Makes a key to seal to: public and private.
pub(super) fn generate() -> Result<(Vec<u8>, Zeroizing<Vec<u8>>), NodeError> {
    let (public, private) = SUITE.generate_key_pair().map_err(|error| NodeError::Tls(error.to_string()))?;
    Ok((public.0, Zeroizing::new(private.secret_bytes().to_vec())))
}

/// What a sealed key is bound to: whom it is for.
fn bound_to(cluster_id: &str, node_id: u64) -> Vec<u8> {
    format!("{cluster_id}/{node_id}").into_bytes()
}

/// Seals the key to a node: encapsulated secret and ciphertext. `None`: that is not a key to seal to.
pub(super) fn seal(
    kek: &Kek,
    public_key: &[u8],
    cluster_id: &str,
    node_id: u64,
) -> Option<(Vec<u8>, Vec<u8>)> {
    let key = HpkePublicKey(public_key.to_vec());
    let (encapsulated, sealed) = SUITE.seal(INFO, &bound_to(cluster_id, node_id), kek.bytes(), &key).ok()?;
    Some((encapsulated.0, sealed))
}

/// Opens a sealed key.
///
/// # Errors
/// [`NodeError::Answer`] when it was not sealed to this node.
pub(super) fn open(
    private_key: &[u8],
    encapsulated: &[u8],
    sealed: &[u8],
    cluster_id: &str,
    node_id: u64,
) -> Result<Kek, NodeError> {
    let refused = || NodeError::Answer("the key-encryption key was not sealed to this node".into());
    let encapsulated = EncapsulatedSecret(encapsulated.to_vec());
    let private_key = HpkePrivateKey::from(private_key.to_vec());
    let opened = SUITE.open(&encapsulated, INFO, &bound_to(cluster_id, node_id), sealed, &private_key);
    let opened = Zeroizing::new(opened.map_err(|_| refused())?);
    let mut bytes = Zeroizing::new([0; KEK_LENGTH]);
    if opened.len() != bytes.len() {
        return Err(refused());
    }
    bytes.copy_from_slice(&opened);
    Ok(Kek::new(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_node_that_it_is_for_opens_it() {
        let kek = Kek::new(Zeroizing::new([7; KEK_LENGTH]));
        let (public, private) = generate().unwrap();
        assert_eq!(public.len(), PUBLIC_KEY_LENGTH);
        let (encapsulated, sealed) = seal(&kek, &public, "c", 2).unwrap();
        let open_as = |key: &[u8], cluster: &str, node| open(key, &encapsulated, &sealed, cluster, node);
        assert_eq!(open_as(&private, "c", 2).unwrap().bytes(), kek.bytes());
        let (_, other) = generate().unwrap();
        assert!(open_as(&other, "c", 2).is_err());
        assert!(open_as(&private, "d", 2).is_err() && open_as(&private, "c", 3).is_err());
        let mut altered = sealed.clone();
        altered[0] ^= 1;
        assert!(open(&private, &encapsulated, &altered, "c", 2).is_err());
        assert!(seal(&kek, b"short", "c", 2).is_none());
    }
}
