//! SSHSIG (PROTOCOL.sshsig): signatures over documents that `ssh-keygen -Y` reads too. Signing is in
//! [`super::SshKeyPair`].

use ssh_key::{PublicKey, SshSig, public::KeyData};

use super::SshPublicKey;
use crate::{PkiError, text};

/// Longest signature that is read, in bytes of PEM. One by an RSA key of 16384 bits takes less than 8 KiB.
const MAX_PEM: usize = 16 * 1024;

/// Longest namespace, in bytes.
const MAX_NAMESPACE: usize = 255;

/// Checks that `pem` is a signature by `key` over `message` in `namespace`, as `ssh-keygen -Y verify` does.
///
/// Ed25519, ECDSA, and RSA of at most 4096 bits with SHA-2 are verified. Signatures of security keys are refused:
/// whether someone touched the key is a question that this function does not answer.
///
/// # Errors
/// [`PkiError::TooLong`] above 16 KiB, [`PkiError::Malformed`], [`PkiError::InvalidName`] for the namespace,
/// [`PkiError::KeyAlgorithm`] for a security key, [`PkiError::BadSignature`] for all else, be it another key,
/// namespace or message.
pub fn verify_sshsig(pem: &str, namespace: &str, message: &[u8], key: &SshPublicKey) -> Result<(), PkiError> {
    check_namespace(namespace)?;
    if pem.len() > MAX_PEM {
        return Err(PkiError::TooLong { what: "a signature", limit: MAX_PEM });
    }
    if matches!(key.key_data(), KeyData::SkEd25519(_) | KeyData::SkEcdsaSha2NistP256(_)) {
        return Err(PkiError::KeyAlgorithm { allowed: "a key that is not a security key" });
    }
    let malformed = PkiError::Malformed { expected: "an SSH signature in PEM" };
    let Ok(signature) = SshSig::from_pem(pem.trim_ascii()) else { return Err(malformed) };
    // The version is outside what is signed, and the parser lets version 0 through.
    if signature.version() != SshSig::VERSION {
        return Err(malformed);
    }
    PublicKey::from(key.key_data().clone())
        .verify(namespace, message, &signature)
        .map_err(|_| PkiError::BadSignature)
}

/// Checks a namespace.
///
/// # Errors
/// [`PkiError::InvalidName`] for one that is empty, above 255 bytes or with control characters.
pub(super) fn check_namespace(namespace: &str) -> Result<(), PkiError> {
    text::check("this namespace", namespace, MAX_NAMESPACE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ssh::SshKeyPair;

    #[test]
    fn a_signature_is_good_for_one_key_namespace_and_message() {
        let pair = SshKeyPair::generate_ed25519("").unwrap();
        let other = SshKeyPair::generate_ed25519("").unwrap();
        let pem = pair.sign_sshsig("manifest@mezite", b"text").unwrap();
        let verify = |namespace: &str, message: &[u8], by: &SshKeyPair| {
            verify_sshsig(&pem, namespace, message, by.public_key())
        };
        assert_eq!(verify("manifest@mezite", b"text", &pair), Ok(()));
        assert_eq!(verify("manifest@mezite", b"test", &pair), Err(PkiError::BadSignature));
        assert_eq!(verify("manifest@mezite", b"", &pair), Err(PkiError::BadSignature));
        assert_eq!(verify("manifest", b"text", &pair), Err(PkiError::BadSignature));
        assert_eq!(verify("manifest@mezite", b"text", &other), Err(PkiError::BadSignature));
        assert!(matches!(verify("", b"text", &pair), Err(PkiError::InvalidName { .. })));
    }

    #[test]
    fn damaged_signatures_are_refused() {
        let pair = SshKeyPair::generate_ed25519("").unwrap();
        let pem = pair.sign_sshsig("n", b"text").unwrap();
        let body = pem.find('\n').unwrap() + 1..pem.rfind("-----END").unwrap() - 1;
        for index in body.filter(|&index| pem.as_bytes()[index] != b'\n') {
            let mut bytes = pem.clone().into_bytes();
            bytes[index] = if bytes[index] == b'A' { b'B' } else { b'A' };
            let damaged = String::from_utf8(bytes).unwrap();
            assert!(verify_sshsig(&damaged, "n", b"text", pair.public_key()).is_err(), "byte {index}");
        }
        for bad in ["", "x", &pem[..100], &pem.replace("SIGNATURE", "SIGNATURES")] {
            assert!(matches!(
                verify_sshsig(bad, "n", b"text", pair.public_key()),
                Err(PkiError::Malformed { .. })
            ));
        }
        let long = format!("{pem}{}", "\n".repeat(16 * 1024));
        assert!(matches!(
            verify_sshsig(&long, "n", b"text", pair.public_key()),
            Err(PkiError::TooLong { .. })
        ));
    }
}
