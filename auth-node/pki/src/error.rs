//! The one error of this crate. Its text is fit for a client: it says what was wrong and never holds key material.

/// Why a key, name or certificate was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PkiError {
    /// The input cannot be read as what it should be.
    #[error("this is not {expected}")]
    Malformed {
        /// What was expected, with its article.
        expected: &'static str,
    },
    /// The input is longer than its bound.
    #[error("{what} is longer than {limit} bytes")]
    TooLong {
        /// What is too long.
        what: &'static str,
        /// The bound, in bytes.
        limit: usize,
    },
    /// A certificate was offered where a bare public key belongs.
    #[error("a certificate was given where a public key belongs")]
    CertificateAsKey,
    /// The key's algorithm is not on the allow-list.
    #[error("this key's algorithm is not allowed; use {allowed}")]
    KeyAlgorithm {
        /// What is allowed.
        allowed: &'static str,
    },
    /// The key is of an allowed algorithm, but weak or not a valid key of it.
    #[error("this key is not safe to use: {0}")]
    WeakKey(&'static str),
    /// The private key is encrypted with a passphrase.
    #[error("the private key is encrypted")]
    EncryptedKey,
    /// A certificate and a key do not belong together.
    #[error("the certificate is not of this key")]
    KeyMismatch,
    /// An SSH certificate without principals would be good for every name.
    #[error("a certificate needs at least one principal")]
    NoPrincipals,
    /// More principals than OpenSSH reads.
    #[error("a certificate holds at most {limit} principals")]
    TooManyPrincipals {
        /// The bound.
        limit: usize,
    },
    /// A name holds characters that it must not hold, or is empty or too long.
    #[error("{what} is not allowed: {value}")]
    InvalidName {
        /// What kind of name.
        what: &'static str,
        /// The name, escaped and cut.
        value: String,
    },
    /// The lifetime is empty, reversed, or reaches past the year 9999.
    #[error("the lifetime is empty, reversed or out of range")]
    InvalidLifetime,
    /// The certificate would outlive the authority that signs it.
    #[error("the certificate would outlive its authority")]
    OutlivesAuthority,
    /// A source address is neither an IP address nor a network with zero host bits.
    #[error("not an IP address or network (CIDR, host bits zero): {0}")]
    InvalidSourceAddress(String),
    /// More entries than the bound.
    #[error("at most {limit} {what}")]
    TooMany {
        /// What there are too many of.
        what: &'static str,
        /// The bound.
        limit: usize,
    },
    /// A leaf certificate without a use or without a name.
    #[error("a certificate needs {0}")]
    Incomplete(&'static str),
    /// The certificate is not an authority of the kind that this crate makes.
    #[error("this is not the certificate of an authority: {0}")]
    NotAnAuthority(&'static str),
    /// The identity in a certificate, or the URI given for one, is not exactly one well-formed identity.
    #[error("the identity is not valid: {0}")]
    InvalidIdentity(&'static str),
    /// A signature does not verify.
    #[error("the signature does not verify")]
    BadSignature,
    /// The operating system gave no randomness.
    #[error("the operating system gave no randomness")]
    Randomness,
    /// A cryptographic library failed in a way that no input explains.
    #[error("internal error: {0}")]
    Internal(&'static str),
}
