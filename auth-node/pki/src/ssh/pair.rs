//! SSH key pairs: of authorities, hosts and users. The private half is zeroized when dropped, and shown nowhere but
//! in the text that [`SshKeyPair::private_openssh`] returns.

use std::fmt;

use aws_lc_rs::signature::Ed25519KeyPair;
use signature::Signer;
use ssh_key::{
    Algorithm, HashAlg, LineEnding, PrivateKey, Signature, SshSig,
    private::{Ed25519Keypair, KeypairData},
    public::KeyData,
};
use zeroize::Zeroizing;

use super::SshPublicKey;
use crate::{PkiError, random, text};

/// Longest private key file that is read, in bytes.
const MAX_FILE: usize = 16 * 1024;

/// Longest comment, in bytes.
const MAX_COMMENT: usize = 255;

/// An Ed25519 key pair.
pub struct SshKeyPair {
    private: PrivateKey,
    public: SshPublicKey,
    /// Signs in its place: `ssh-key` derives the public key anew for each signature, and takes four times as long.
    signer: Ed25519KeyPair,
}

impl SshKeyPair {
    /// Makes an Ed25519 key pair. The comment, which may be empty, goes into the private key's file only.
    ///
    /// # Errors
    /// [`PkiError::InvalidName`] for a comment above 255 bytes or with control characters, [`PkiError::Randomness`].
    pub fn generate_ed25519(comment: &str) -> Result<Self, PkiError> {
        if !comment.is_empty() {
            text::check("this comment", comment, MAX_COMMENT)?;
        }
        let mut seed = Zeroizing::new([0; 32]);
        random::fill(seed.as_mut())?;
        let pair = KeypairData::Ed25519(Ed25519Keypair::from_seed(&seed));
        let private = PrivateKey::new(pair, comment);
        Self::new(private.map_err(|_| PkiError::Internal("a key pair cannot be made"))?)
    }

    /// Reads an Ed25519 private key file in OpenSSH's format, without a passphrase. Keys of other algorithms are
    /// refused: none is made here.
    ///
    /// # Errors
    /// [`PkiError::TooLong`] above 16 KiB, [`PkiError::Malformed`], [`PkiError::EncryptedKey`] and
    /// [`PkiError::KeyAlgorithm`].
    pub fn from_openssh(file: &str) -> Result<Self, PkiError> {
        if file.len() > MAX_FILE {
            return Err(PkiError::TooLong { what: "a private key", limit: MAX_FILE });
        }
        let private = PrivateKey::from_openssh(file.trim_ascii())
            .map_err(|_| PkiError::Malformed { expected: "a private key in OpenSSH's format" })?;
        if private.is_encrypted() {
            return Err(PkiError::EncryptedKey);
        }
        Self::new(private)
    }

    fn new(private: PrivateKey) -> Result<Self, PkiError> {
        let KeypairData::Ed25519(pair) = private.key_data() else {
            return Err(PkiError::KeyAlgorithm { allowed: "ed25519" });
        };
        let (seed, point) = (Zeroizing::new(pair.private.to_bytes()), pair.public.as_ref());
        let signer = Ed25519KeyPair::from_seed_and_public_key(seed.as_ref(), point)
            .map_err(|_| PkiError::KeyMismatch)?;
        let public = SshPublicKey::from_key_data(private.public_key().key_data().clone())?;
        Ok(Self { private, public, signer })
    }

    /// The private key file in OpenSSH's format.
    ///
    /// # Errors
    /// [`PkiError::Internal`].
    pub fn private_openssh(&self) -> Result<Zeroizing<String>, PkiError> {
        self.private
            .to_openssh(LineEnding::LF)
            .map_err(|_| PkiError::Internal("a private key cannot be written"))
    }

    /// The public key in OpenSSH's one-line form, without a comment and without a line end.
    pub fn public_line(&self) -> String {
        self.public.line()
    }

    /// The public key.
    pub fn public_key(&self) -> &SshPublicKey {
        &self.public
    }

    /// Signs `message` as `ssh-keygen -Y sign -n <namespace>` does: an SSHSIG in PEM, with SHA-512.
    ///
    /// # Errors
    /// [`PkiError::InvalidName`] for a namespace that is empty, above 255 bytes or with control characters.
    pub fn sign_sshsig(&self, namespace: &str, message: &[u8]) -> Result<String, PkiError> {
        super::sshsig::check_namespace(namespace)?;
        SshSig::sign(self, namespace, HashAlg::Sha512, message)
            .and_then(|signature| signature.to_pem(LineEnding::LF))
            .map_err(|_| PkiError::Internal("a document cannot be signed"))
    }
}

impl Signer<Signature> for SshKeyPair {
    fn try_sign(&self, message: &[u8]) -> Result<Signature, signature::Error> {
        let signed = self.signer.try_sign(message).map_err(|_| signature::Error::new())?;
        Ok(Signature::new(Algorithm::Ed25519, signed.as_ref())?)
    }
}

impl From<&SshKeyPair> for KeyData {
    fn from(pair: &SshKeyPair) -> Self {
        pair.private.public_key().key_data().clone()
    }
}

impl fmt::Debug for SshKeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SshKeyPair({}, private key hidden)", self.public.fingerprint())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The test key of ssh-key's documentation, as `ssh-keygen` wrote it.
    const ED25519: &str = "-----BEGIN OPENSSH PRIVATE KEY-----
b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAMwAAAAtzc2gtZW
QyNTUxOQAAACCzPq7zfqLffKoBDe/eo04kH2XxtSmk9D7RQyf1xUqrYgAAAJgAIAxdACAM
XQAAAAtzc2gtZWQyNTUxOQAAACCzPq7zfqLffKoBDe/eo04kH2XxtSmk9D7RQyf1xUqrYg
AAAEC2BsIi0QwW2uFscKTUUXNHLsYX4FxlaSDSblbAj7WR7bM+rvN+ot98qgEN796jTiQf
ZfG1KaT0PtFDJ/XFSqtiAAAAEHVzZXJAZXhhbXBsZS5jb20BAgMEBQ==
-----END OPENSSH PRIVATE KEY-----
";
    const ED25519_PUBLIC: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti";

    #[test]
    fn a_known_file_is_read_and_written_back_byte_for_byte() {
        let pair = SshKeyPair::from_openssh(ED25519).unwrap();
        assert_eq!(pair.public_line(), ED25519_PUBLIC);
        assert_eq!(*pair.private_openssh().unwrap(), ED25519);
    }

    #[test]
    fn a_known_document_has_a_known_signature() {
        let pair = SshKeyPair::from_openssh(ED25519).unwrap();
        let pinned = "-----BEGIN SSH SIGNATURE-----
U1NIU0lHAAAAAQAAADMAAAALc3NoLWVkMjU1MTkAAAAgsz6u836i33yqAQ3v3qNOJB9l8b
UppPQ+0UMn9cVKq2IAAAAHZXhhbXBsZQAAAAAAAAAGc2hhNTEyAAAAUwAAAAtzc2gtZWQy
NTUxOQAAAEBPEav+tMGNnox4MuzM7rlHyVBajCn8B0kAyiOWwPKprNsG3i6X+voz/WCSik
/FowYwqhgCABUJSvRX3AERVBUP
-----END SSH SIGNATURE-----
";
        assert_eq!(pair.sign_sshsig("example", b"testing").unwrap(), pinned);
    }

    #[test]
    fn generated_pairs_differ_and_come_back_from_their_file() {
        let (one, other) =
            (SshKeyPair::generate_ed25519("a b").unwrap(), SshKeyPair::generate_ed25519("").unwrap());
        assert_ne!(one.public_line(), other.public_line());
        let again = SshKeyPair::from_openssh(&one.private_openssh().unwrap()).unwrap();
        assert_eq!(again.public_key(), one.public_key());
        assert_eq!(again.private.comment().as_str().unwrap(), "a b");
        assert!(!one.public_line().ends_with("a b"));
    }

    #[test]
    fn debug_shows_no_key() {
        let pair = SshKeyPair::from_openssh(ED25519).unwrap();
        assert_eq!(
            format!("{pair:?}"),
            "SshKeyPair(SHA256:UCUiLr7Pjs9wFFJMDByLgc3NrtdU344OgUM45wZPcIQ, private key hidden)"
        );
    }

    #[test]
    fn other_files_are_refused() {
        let malformed = PkiError::Malformed { expected: "a private key in OpenSSH's format" };
        let cut = ED25519.replace("ZfG1KaT0PtFDJ", "ZfG1KaT0PtFDK");
        for bad in ["", "x", ED25519_PUBLIC, &ED25519[..200], &cut, &ED25519.replace("OPENSSH", "RSA")] {
            assert_eq!(SshKeyPair::from_openssh(bad).unwrap_err(), malformed, "{bad}");
        }
        let long = format!("{ED25519}{}", "\n".repeat(16 * 1024));
        assert!(matches!(SshKeyPair::from_openssh(&long), Err(PkiError::TooLong { .. })));
    }

    #[test]
    fn comments_and_namespaces_are_checked() {
        for bad in ["a\nb", "\0", &"x".repeat(256)] {
            assert!(
                matches!(SshKeyPair::generate_ed25519(bad), Err(PkiError::InvalidName { .. })),
                "{bad:?}"
            );
        }
        let pair = SshKeyPair::generate_ed25519("").unwrap();
        for bad in ["", "a\nb", &"x".repeat(256)] {
            assert!(matches!(pair.sign_sshsig(bad, b"x"), Err(PkiError::InvalidName { .. })), "{bad:?}");
        }
    }
}
