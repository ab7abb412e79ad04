//! Public keys as SubjectPublicKeyInfo (RFC 5280, 4.1.2.7): which ones are certified, and their pins.

use rcgen::{PublicKeyData, SubjectPublicKeyInfo};
use sha2::{Digest, Sha256};
use x509_parser::{prelude::FromDer, public_key::RSAPublicKey};

use crate::{
    PkiError,
    public_key::{Curve, check_point, check_rsa},
};

/// Longest key that is read, in bytes. An RSA key of 16384 bits takes less than 3 KiB.
const MAX_LENGTH: usize = 8 * 1024;

/// The algorithms that are taken.
const ALLOWED: &str = "ECDSA on P-256 or P-384, Ed25519, or RSA of 2048 bits or more";

/// Length of an Ed25519 public key (RFC 8032).
const ED25519_LENGTH: usize = 32;

/// Checks that a DER SubjectPublicKeyInfo is a key that may be certified: P-256, P-384, Ed25519, or RSA of 2048 bits
/// or more, in canonical form and with nothing after it.
///
/// # Errors
/// [`PkiError::TooLong`] above 8 KiB, [`PkiError::Malformed`], [`PkiError::KeyAlgorithm`] and
/// [`PkiError::WeakKey`].
pub fn check_public_key(spki_der: &[u8]) -> Result<(), PkiError> {
    parse(spki_der).map(drop)
}

/// Reads a key that may be certified.
pub(super) fn parse(spki_der: &[u8]) -> Result<SubjectPublicKeyInfo, PkiError> {
    if spki_der.len() > MAX_LENGTH {
        return Err(PkiError::TooLong { what: "a public key", limit: MAX_LENGTH });
    }
    let malformed = || PkiError::Malformed { expected: "a DER SubjectPublicKeyInfo" };
    let key = SubjectPublicKeyInfo::from_der(spki_der).map_err(|error| match error {
        rcgen::Error::UnsupportedSignatureAlgorithm => PkiError::KeyAlgorithm { allowed: ALLOWED },
        _ => malformed(),
    })?;
    // The certificate will hold the canonical form; what was checked and what is certified must be the same bytes.
    if key.subject_public_key_info() != spki_der {
        return Err(malformed());
    }
    let (algorithm, bytes) = (key.algorithm(), key.der_bytes());
    if algorithm == &rcgen::PKCS_ECDSA_P256_SHA256 {
        check_point(Curve::P256, bytes)?;
    } else if algorithm == &rcgen::PKCS_ECDSA_P384_SHA384 {
        check_point(Curve::P384, bytes)?;
    } else if algorithm == &rcgen::PKCS_RSA_SHA256 {
        let (rest, rsa) = RSAPublicKey::from_der(bytes).map_err(|_| malformed())?;
        let positive = |number: &[u8]| number.first().is_some_and(|byte| byte & 0x80 == 0);
        if !rest.is_empty() || !positive(rsa.modulus) || !positive(rsa.exponent) {
            return Err(malformed());
        }
        check_rsa(rsa.modulus, rsa.exponent)?;
    } else if algorithm == &rcgen::PKCS_ED25519 {
        if bytes.len() != ED25519_LENGTH {
            return Err(malformed());
        }
    } else {
        return Err(PkiError::KeyAlgorithm { allowed: ALLOWED });
    }
    Ok(key)
}

/// `sha256:` and the digest of a SubjectPublicKeyInfo in hexadecimal.
pub(super) fn pin(spki_der: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(spki_der)))
}

#[cfg(test)]
mod tests {
    use rcgen::{KeyPair, RsaKeySize};

    use super::*;

    fn spki(algorithm: &'static rcgen::SignatureAlgorithm) -> Vec<u8> {
        KeyPair::generate_for(algorithm).unwrap().subject_public_key_info()
    }

    /// A DER value with its tag and length.
    fn tagged(tag: u8, content: &[u8]) -> Vec<u8> {
        let length = u16::try_from(content.len()).unwrap().to_be_bytes();
        let header = match content.len() {
            0..=0x7f => vec![tag, length[1]],
            0x80..=0xff => vec![tag, 0x81, length[1]],
            _ => vec![tag, 0x82, length[0], length[1]],
        };
        [header, content.to_vec()].concat()
    }

    fn rsa_spki(modulus: &[u8], exponent: &[u8]) -> Vec<u8> {
        let algorithm = hex::decode("300d06092a864886f70d0101010500").unwrap();
        let key = tagged(0x30, &[tagged(2, modulus), tagged(2, exponent)].concat());
        tagged(0x30, &[algorithm, tagged(3, &[vec![0], key].concat())].concat())
    }

    #[test]
    fn allowed_keys_are_taken() {
        for algorithm in
            [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519]
        {
            assert_eq!(check_public_key(&spki(algorithm)), Ok(()), "{algorithm:?}");
        }
        for size in [RsaKeySize::_2048, RsaKeySize::_3072] {
            let key = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, size).unwrap();
            assert_eq!(check_public_key(&key.subject_public_key_info()), Ok(()), "{size:?}");
        }
    }

    #[test]
    fn other_algorithms_are_refused() {
        let refused = Err(PkiError::KeyAlgorithm { allowed: ALLOWED });
        assert_eq!(check_public_key(&spki(&rcgen::PKCS_ECDSA_P521_SHA512)), refused);
        // id-X25519, a key that cannot sign.
        let x25519 = [hex::decode("302a300506032b656e032100").unwrap(), vec![9; 32]].concat();
        assert_eq!(check_public_key(&x25519), refused);
        // rsassaPss, which would bind the holder to a padding that stock clients lack.
        let pss = [hex::decode("300d06092a864886f70d01010a0500").unwrap(), tagged(3, &[0; 9])].concat();
        assert_eq!(check_public_key(&tagged(0x30, &pss)), refused);
    }

    #[test]
    fn weak_rsa_keys_are_refused() {
        let modulus = |bytes: usize| [vec![0], vec![0xff; bytes]].concat();
        assert_eq!(check_public_key(&rsa_spki(&modulus(256), &[1, 0, 1])), Ok(()));
        for (bytes, exponent) in [(128, &[1, 0, 1][..]), (255, &[1, 0, 1]), (256, &[1]), (256, &[2])] {
            let refused = check_public_key(&rsa_spki(&modulus(bytes), exponent));
            assert!(matches!(refused, Err(PkiError::WeakKey(_))), "{bytes} {exponent:?}");
        }
        let negative = check_public_key(&rsa_spki(&[0xff; 256], &[1, 0, 1]));
        assert!(matches!(negative, Err(PkiError::Malformed { .. })));
    }

    #[test]
    fn points_off_the_curve_are_refused() {
        let mut off = spki(&rcgen::PKCS_ECDSA_P256_SHA256);
        *off.last_mut().unwrap() ^= 1;
        assert!(matches!(check_public_key(&off), Err(PkiError::WeakKey(_))));
    }

    #[test]
    fn a_key_is_its_canonical_form_and_nothing_more() {
        let good = spki(&rcgen::PKCS_ECDSA_P256_SHA256);
        let trailing = [good.clone(), vec![0]].concat();
        let mut unused_bits = good.clone();
        let bits = good.len() - 66;
        assert_eq!(unused_bits[bits], 0);
        unused_bits[bits] = 1;
        let short_ed25519 = [hex::decode("3029300506032b6570032000").unwrap(), vec![9; 31]].concat();
        for bad in [&trailing[..], &unused_bits, &good[..good.len() - 1], b"", b"0", &short_ed25519] {
            assert!(check_public_key(bad).is_err(), "{}", hex::encode(bad));
        }
        assert!(matches!(check_public_key(&vec![0; 8 * 1024 + 1]), Err(PkiError::TooLong { .. })));
    }

    #[test]
    fn a_certificate_request_or_certificate_is_no_key() {
        let key = KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["a.example".into()]).unwrap();
        assert!(check_public_key(params.serialize_request(&key).unwrap().der()).is_err());
        assert!(check_public_key(params.self_signed(&key).unwrap().der()).is_err());
    }
}
