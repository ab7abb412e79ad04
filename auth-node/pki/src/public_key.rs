//! What makes a public key sound, by one rule for SSH and X.509: RSA sizes and exponents, points on their curve.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ECDSA_P521_SHA512_ASN1, ParsedPublicKey,
    VerificationAlgorithm,
};

use crate::PkiError;

/// Least size of an RSA modulus, in bits (NIST SP 800-131A).
pub(crate) const MIN_RSA_BITS: usize = 2048;

/// Greatest size of an RSA modulus that OpenSSL, and so OpenSSH, works with, in bits.
const MAX_RSA_BITS: usize = 16_384;

/// Greatest RSA exponent that OpenSSL works with beside a long modulus, in bits.
const MAX_RSA_EXPONENT_BITS: usize = 64;

/// First byte of an uncompressed point (SEC 1, 2.3.3). OpenSSH and rustls read no other form.
const UNCOMPRESSED: u8 = 4;

/// A NIST curve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Curve {
    /// P-256.
    P256,
    /// P-384.
    P384,
    /// P-521.
    P521,
}

/// Checks an RSA public key; both numbers are big-endian and positive.
///
/// # Errors
/// [`PkiError::WeakKey`].
pub(crate) fn check_rsa(modulus: &[u8], exponent: &[u8]) -> Result<(), PkiError> {
    let (bits, exponent_bits) = (bit_length(modulus), bit_length(exponent));
    if bits < MIN_RSA_BITS {
        return Err(PkiError::WeakKey("an RSA key needs at least 2048 bits"));
    }
    if bits > MAX_RSA_BITS {
        return Err(PkiError::WeakKey("an RSA key has at most 16384 bits"));
    }
    if !is_odd(modulus) {
        return Err(PkiError::WeakKey("its modulus is even"));
    }
    // An exponent of 1 makes every signature its own message.
    if !is_odd(exponent) || !(2..=MAX_RSA_EXPONENT_BITS).contains(&exponent_bits) {
        return Err(PkiError::WeakKey("its exponent is even, 1 or too long"));
    }
    Ok(())
}

/// Checks that `point` is an uncompressed point on `curve`.
///
/// # Errors
/// [`PkiError::WeakKey`].
pub(crate) fn check_point(curve: Curve, point: &[u8]) -> Result<(), PkiError> {
    let (algorithm, length): (&'static dyn VerificationAlgorithm, usize) = match curve {
        Curve::P256 => (&ECDSA_P256_SHA256_ASN1, 65),
        Curve::P384 => (&ECDSA_P384_SHA384_ASN1, 97),
        Curve::P521 => (&ECDSA_P521_SHA512_ASN1, 133),
    };
    if point.first() != Some(&UNCOMPRESSED) || point.len() != length {
        return Err(PkiError::WeakKey("its point is not in uncompressed form"));
    }
    ParsedPublicKey::new(algorithm, point)
        .map(drop)
        .map_err(|_| PkiError::WeakKey("its point is not on the curve"))
}

fn bit_length(number: &[u8]) -> usize {
    let mut bytes = number.iter().skip_while(|&&byte| byte == 0);
    let Some(first) = bytes.next() else { return 0 };
    let first_bits = u8::BITS - first.leading_zeros();
    bytes.count() * 8 + first_bits as usize
}

fn is_odd(number: &[u8]) -> bool {
    number.last().is_some_and(|byte| byte & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modulus(bits: usize) -> Vec<u8> {
        let mut bytes = vec![0xff; bits.div_ceil(8)];
        if !bits.is_multiple_of(8) {
            bytes[0] = (1 << (bits % 8)) - 1;
        }
        bytes
    }

    #[test]
    fn rsa_sizes_are_counted_in_bits() {
        let e = [1, 0, 1];
        for good in [2048, 2049, 3072, 16_384] {
            assert_eq!(check_rsa(&modulus(good), &e), Ok(()), "{good}");
        }
        // 2041 bits fill as many bytes as 2048.
        for bad in [0, 8, 1024, 2040, 2041, 2047, 16_385] {
            assert!(check_rsa(&modulus(bad), &e).is_err(), "{bad}");
        }
        let padded = [vec![0; 128], modulus(1024)].concat();
        assert!(check_rsa(&padded, &e).is_err(), "leading zeros are no bits");
    }

    #[test]
    fn rsa_numbers_that_cannot_be_a_key_are_refused() {
        let n = modulus(2048);
        for e in [&[][..], &[0], &[1], &[2], &[1, 0, 0], &[1, 0, 0, 0, 0, 0, 0, 0, 1]] {
            assert!(check_rsa(&n, e).is_err(), "{e:?}");
        }
        assert_eq!(check_rsa(&n, &[3]), Ok(()));
        let mut even = n;
        even[255] = 0xfe;
        assert!(check_rsa(&even, &[3]).is_err());
    }

    #[test]
    fn points_off_the_curve_or_compressed_are_refused() {
        let key = rcgen::KeyPair::generate().unwrap();
        let point = key.public_key_raw().to_vec();
        assert_eq!(check_point(Curve::P256, &point), Ok(()));
        assert!(check_point(Curve::P384, &point).is_err());
        let mut off = point.clone();
        off[64] ^= 1;
        assert!(check_point(Curve::P256, &off).is_err());
        let mut compressed = point[..33].to_vec();
        compressed[0] = 2 + (point[64] & 1);
        assert!(check_point(Curve::P256, &compressed).is_err());
        assert!(check_point(Curve::P256, &[0]).is_err(), "the point at infinity");
        assert!(check_point(Curve::P256, &[]).is_err());
    }
}
