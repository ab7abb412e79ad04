//! What an agent asks for, checked by itself: whether it may have it is decided by a join or a renewal.

use mezite_pki::{ssh::SshPublicKey, x509::check_public_key};
use sha2::{Digest, Sha256};

use crate::{CoreError, principal::Principal};

/// Most principals beside the hostname.
const MAX_ADDITIONAL: usize = 32;

/// Certificates that an agent asks for, checked.
#[derive(Debug, Clone)]
pub struct HostCertRequest {
    pub(super) ssh_public_key: Option<SshPublicKey>,
    pub(super) tls_public_key: Vec<u8>,
    pub(super) key_digest: [u8; 32],
    /// The hostname first; no name twice.
    pub(super) principals: Vec<Principal>,
    pub(super) serial: u64,
}

impl HostCertRequest {
    /// Reads a request: an OpenSSH public key line (empty: none), a DER SubjectPublicKeyInfo, a DNS name, and at most
    /// 32 further names and addresses. `serial` is random.
    ///
    /// # Errors
    /// [`CoreError::Invalid`].
    pub fn new(
        ssh_public_key: &str,
        tls_public_key: Vec<u8>,
        hostname: &str,
        additional: &[String],
        serial: u64,
    ) -> Result<Self, CoreError> {
        let ssh_public_key = match ssh_public_key {
            "" => None,
            line => Some(SshPublicKey::parse(line).map_err(CoreError::pki("ssh_public_key"))?),
        };
        check_public_key(&tls_public_key).map_err(CoreError::pki("tls_public_key"))?;
        if additional.len() > MAX_ADDITIONAL {
            return Err(CoreError::invalid("additional_principals", format!("at most {MAX_ADDITIONAL}")));
        }
        let mut principals = vec![Principal::parse_dns("hostname", hostname)?];
        for (index, text) in additional.iter().enumerate() {
            let principal = Principal::parse(&format!("additional_principals[{index}]"), text)?;
            if !principals.contains(&principal) {
                principals.push(principal);
            }
        }
        let key_digest = Sha256::digest(&tls_public_key).into();
        Ok(Self { ssh_public_key, tls_public_key, key_digest, principals, serial })
    }

    /// The first of its names.
    pub(super) fn hostname(&self) -> String {
        self.principals.first().map(Principal::to_string).unwrap_or_default()
    }

    /// All of its names, that one first.
    pub(super) fn names(&self) -> Vec<String> {
        self.principals.iter().map(Principal::to_string).collect()
    }

    /// Empty: it has no SSH key.
    pub(super) fn ssh_key_digest(&self) -> Vec<u8> {
        let digest = |key: &SshPublicKey| Sha256::digest(key.line().as_bytes()).to_vec();
        self.ssh_public_key.as_ref().map(digest).unwrap_or_default()
    }
}
