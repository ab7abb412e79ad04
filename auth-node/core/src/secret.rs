//! Secrets that only need checking. Session ids, join tokens, invites and bootstrap secrets are stored as digests, of no use to a thief, since what
//! they are of has 256 random bits; passwords, which have fewer, as slow salted hashes that are made elsewhere.

use std::fmt;

use sha2::{Digest, Sha256};

/// What a secret is for. It goes into the digest, so that one kind of secret is never taken for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecretKind {
    /// A session id.
    Session,
    /// A join token's secret.
    JoinToken,
    /// An auth node's join token.
    AuthJoinToken,
    /// The secret of a user's invite.
    Invite,
    /// What names a WebAuthn ceremony.
    WebauthnChallenge,
    /// The secret that an agent identity begins with.
    Bootstrap,
    /// What is signed in a JWT-SVID.
    JwtSvid,
    /// What a single sign-on provider hands back.
    SsoState,
    /// What a browser keeps while it is at a single sign-on provider.
    SsoBrowser,
    /// What a program fetches its session with.
    SsoCode,
}

impl SecretKind {
    const fn domain(self) -> &'static [u8] {
        match self {
            Self::Session => b"mezite session\0",
            Self::JoinToken => b"mezite join token\0",
            Self::AuthJoinToken => b"mezite auth join token\0",
            Self::Invite => b"mezite invite\0",
            Self::WebauthnChallenge => b"mezite webauthn challenge\0",
            Self::Bootstrap => b"mezite bootstrap\0",
            Self::JwtSvid => b"mezite jwt-svid\0",
            Self::SsoState => b"mezite sso state\0",
            Self::SsoBrowser => b"mezite sso browser\0",
            Self::SsoCode => b"mezite sso code\0",
        }
    }
}

/// SHA-256 over a secret and its kind.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SecretDigest(pub [u8; 32]);

impl SecretDigest {
    /// Of a secret's text.
    pub fn of(kind: SecretKind, secret: &str) -> Self {
        let mut hasher = Sha256::new();
        hasher.update(kind.domain());
        hasher.update(secret.as_bytes());
        Self(hasher.finalize().into())
    }
}

impl fmt::Debug for SecretDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretDigest")
    }
}

/// PHC string of a password's hash. It is not shown: who has it can guess at leisure.
#[derive(Clone, PartialEq, Eq)]
pub struct PasswordHash(String);

impl PasswordHash {
    /// Takes a PHC string.
    pub fn new(phc: String) -> Self {
        Self(phc)
    }

    /// The PHC string.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PasswordHash")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_do_not_mix_and_nothing_is_shown() {
        let session = SecretDigest::of(SecretKind::Session, "x");
        assert_ne!(session, SecretDigest::of(SecretKind::JoinToken, "x"));
        assert_ne!(session, SecretDigest::of(SecretKind::Session, "y"));
        assert_eq!(format!("{session:?}"), "SecretDigest");
        assert_eq!(format!("{:?}", PasswordHash::new("$argon2id$x".into())), "PasswordHash");
    }
}
