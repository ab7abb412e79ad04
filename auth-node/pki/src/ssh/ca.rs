//! The authority that signs OpenSSH certificates. A certificate holds what its spec says and nothing else: no
//! extension is given by default, and a spec that OpenSSH would read as "any" or "forever" is refused.

use std::fmt;

use ssh_key::certificate::{Builder, CertType};
use zeroize::Zeroizing;

use super::{SshKeyPair, SshPublicKey, principal, source_address};
use crate::{PkiError, random, text, validity};

/// Longest key id, in bytes.
const MAX_KEY_ID: usize = 255;

/// Length of the nonce that makes a certificate's bytes unforeseeable, as in `ssh-keygen`.
const NONCE_LENGTH: usize = 32;

/// What the holder of a user certificate may do with a session, beyond running a command. Nothing by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UserExtensions {
    /// Open a terminal.
    pub pty: bool,
    /// Forward ports.
    pub port_forwarding: bool,
    /// Forward the authentication agent.
    pub agent_forwarding: bool,
    /// Forward X11.
    pub x11_forwarding: bool,
}

impl UserExtensions {
    /// OpenSSH's names of those that are set.
    fn names(self) -> impl Iterator<Item = &'static str> {
        [
            (self.x11_forwarding, "permit-X11-forwarding"),
            (self.agent_forwarding, "permit-agent-forwarding"),
            (self.port_forwarding, "permit-port-forwarding"),
            (self.pty, "permit-pty"),
        ]
        .into_iter()
        .filter_map(|(set, name)| set.then_some(name))
    }
}

/// A user certificate to sign.
#[derive(Debug, Clone)]
pub struct UserCertSpec {
    /// The user's key.
    pub public_key: SshPublicKey,
    /// Who the user is, in the logs of sshd: 1 to 255 bytes.
    pub key_id: String,
    /// Logins: 1 to 256, each of 1 to 255 visible ASCII characters, none of `,*?!"'\`.
    pub principals: Vec<String>,
    /// Serial number, by which the certificate can be revoked.
    pub serial: u64,
    /// First second of the lifetime, Unix time.
    pub valid_after: u64,
    /// End of the lifetime, exclusive; Unix time, at most the end of the year 9999.
    pub valid_before: u64,
    /// What the holder may do.
    pub extensions: UserExtensions,
    /// IP addresses and networks (CIDR) from which it is good, at most 32; none: from anywhere.
    pub source_addresses: Vec<String>,
}

/// A host certificate to sign.
#[derive(Debug, Clone)]
pub struct HostCertSpec {
    /// The host's key.
    pub public_key: SshPublicKey,
    /// Which host it is: 1 to 255 bytes.
    pub key_id: String,
    /// Host names, in lower case and without wildcards, and IP addresses: 1 to 256.
    pub principals: Vec<String>,
    /// Serial number, by which the certificate can be revoked.
    pub serial: u64,
    /// First second of the lifetime, Unix time.
    pub valid_after: u64,
    /// End of the lifetime, exclusive; Unix time, at most the end of the year 9999.
    pub valid_before: u64,
}

/// An SSH certificate authority: for users or for hosts, as its owner keeps it.
pub struct SshCa(SshKeyPair);

impl SshCa {
    /// Makes an authority with a new Ed25519 key.
    ///
    /// # Errors
    /// [`PkiError::Randomness`].
    pub fn generate() -> Result<Self, PkiError> {
        SshKeyPair::generate_ed25519("").map(Self)
    }

    /// Reads the authority's private key file.
    ///
    /// # Errors
    /// As [`SshKeyPair::from_openssh`].
    pub fn from_openssh(file: &str) -> Result<Self, PkiError> {
        SshKeyPair::from_openssh(file).map(Self)
    }

    /// The private key file in OpenSSH's format.
    ///
    /// # Errors
    /// [`PkiError::Internal`].
    pub fn private_openssh(&self) -> Result<Zeroizing<String>, PkiError> {
        self.0.private_openssh()
    }

    /// The public key in OpenSSH's one-line form, without a comment and without a line end.
    pub fn public_line(&self) -> String {
        self.0.public_line()
    }

    /// The public key.
    pub fn public_key(&self) -> &SshPublicKey {
        self.0.public_key()
    }

    /// Signs a document, as [`SshKeyPair::sign_sshsig`].
    ///
    /// # Errors
    /// As there.
    pub fn sign_sshsig(&self, namespace: &str, message: &[u8]) -> Result<String, PkiError> {
        self.0.sign_sshsig(namespace, message)
    }

    /// Signs a user certificate: one line, without a line end.
    ///
    /// # Errors
    /// [`PkiError::NoPrincipals`], [`PkiError::TooManyPrincipals`], [`PkiError::InvalidName`],
    /// [`PkiError::InvalidLifetime`], [`PkiError::InvalidSourceAddress`], [`PkiError::TooMany`] and
    /// [`PkiError::Randomness`].
    pub fn sign_user(&self, spec: &UserCertSpec) -> Result<String, PkiError> {
        principal::check_logins(&spec.principals)?;
        let mut options = Vec::new();
        if let Some(networks) = source_address::option_value(&spec.source_addresses)? {
            options.push(("source-address", networks));
        }
        self.sign(&Body {
            kind: CertType::User,
            public_key: &spec.public_key,
            key_id: &spec.key_id,
            principals: &spec.principals,
            serial: spec.serial,
            lifetime: (spec.valid_after, spec.valid_before),
            critical_options: options,
            extensions: spec.extensions.names().collect(),
        })
    }

    /// Signs a host certificate: one line, without a line end.
    ///
    /// # Errors
    /// [`PkiError::NoPrincipals`], [`PkiError::TooManyPrincipals`], [`PkiError::InvalidName`],
    /// [`PkiError::InvalidLifetime`] and [`PkiError::Randomness`].
    pub fn sign_host(&self, spec: &HostCertSpec) -> Result<String, PkiError> {
        principal::check_hosts(&spec.principals)?;
        self.sign(&Body {
            kind: CertType::Host,
            public_key: &spec.public_key,
            key_id: &spec.key_id,
            principals: &spec.principals,
            serial: spec.serial,
            lifetime: (spec.valid_after, spec.valid_before),
            critical_options: Vec::new(),
            extensions: Vec::new(),
        })
    }

    fn sign(&self, body: &Body<'_>) -> Result<String, PkiError> {
        text::check("this key id", body.key_id, MAX_KEY_ID)?;
        validity::check(body.lifetime.0, body.lifetime.1)?;
        let mut nonce = [0; NONCE_LENGTH];
        random::fill(&mut nonce)?;
        self.build(body, nonce).map_err(|_| PkiError::Internal("a certificate cannot be signed"))
    }

    fn build(&self, body: &Body<'_>, nonce: [u8; NONCE_LENGTH]) -> Result<String, ssh_key::Error> {
        let (valid_after, valid_before) = body.lifetime;
        let mut builder = Builder::new(nonce, body.public_key.key_data().clone(), valid_after, valid_before)?;
        builder.cert_type(body.kind)?.serial(body.serial)?.key_id(body.key_id)?;
        for principal in body.principals {
            builder.valid_principal(principal)?;
        }
        for (name, value) in &body.critical_options {
            builder.critical_option(*name, value)?;
        }
        for name in &body.extensions {
            builder.extension(*name, "")?;
        }
        builder.sign(&self.0)?.to_openssh()
    }
}

impl fmt::Debug for SshCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SshCa({}, private key hidden)", self.public_key().fingerprint())
    }
}

/// What users' and hosts' certificates have in common.
struct Body<'a> {
    kind: CertType,
    public_key: &'a SshPublicKey,
    key_id: &'a str,
    principals: &'a [String],
    serial: u64,
    lifetime: (u64, u64),
    critical_options: Vec<(&'static str, String)>,
    extensions: Vec<&'static str>,
}

#[cfg(test)]
#[path = "ca_tests.rs"]
mod tests;
