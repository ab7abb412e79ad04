//! What an agent identity asks for, checked by itself, and what is random of the answer.

use mezite_pki::x509::check_public_key;
use sha2::{Digest, Sha256};

use crate::{
    CoreError,
    issue::UserCertRequest,
    names::{LockId, SessionHandle},
    repeat::IdempotencyKey,
    secret::SecretDigest,
    session::NewSession,
    tables::AuthMethod,
};

/// First part of the digest by which a call and its repetitions are known.
const CALL_DOMAIN: &[u8] = b"mezite agent identity call\0";

/// Credentials that an agent identity asks for.
#[derive(Debug, Clone)]
pub struct CredentialRequest {
    pub(super) certs: UserCertRequest,
    pub(super) tls_public_key: Vec<u8>,
    pub(super) key_digest: [u8; 32],
    /// By what repetitions of the call are known; empty: by nothing.
    pub(super) call: Vec<u8>,
}

/// What is random of an answer.
#[derive(Debug, Clone)]
pub struct Fresh {
    /// Digest of the session's id. Where the call has an idempotency key, the id is derived from that, so that its
    /// repetitions make the same session.
    pub session: SecretDigest,
    /// Handle of the session.
    pub handle: SessionHandle,
    /// A serial number, beside those of certificates for ssh.
    pub serial: u64,
    /// Id of the lock that there is on the identity when it turns out that its credentials were copied.
    pub lock: LockId,
}

impl Fresh {
    pub(super) fn session(&self) -> NewSession {
        NewSession { digest: self.session, handle: self.handle.clone(), method: AuthMethod::AgentIdentity }
    }
}

impl CredentialRequest {
    /// Reads a request: an OpenSSH public key line, a DER SubjectPublicKeyInfo, and by what repetitions of the call are
    /// known. `serial` is random.
    ///
    /// # Errors
    /// [`CoreError::Invalid`].
    pub fn new(
        ssh_public_key: &str,
        tls_public_key: Vec<u8>,
        key: Option<&IdempotencyKey>,
        serial: u64,
    ) -> Result<Self, CoreError> {
        check_public_key(&tls_public_key).map_err(CoreError::pki("tls_public_key"))?;
        let lines = [ssh_public_key.to_owned()];
        let certs = UserCertRequest::new(&lines, Vec::new(), None, Vec::new(), "", || serial);
        let certs = certs.map_err(|error| match error {
            CoreError::Invalid { reason, .. } => CoreError::invalid("ssh_public_key", reason),
            other => other,
        })?;
        let key_digest = Sha256::digest(&tls_public_key).into();
        let call = key.map(|key| {
            let mut hasher = Sha256::new();
            hasher.update(CALL_DOMAIN);
            hasher.update(key.derived(CALL_DOMAIN));
            hasher.update(key_digest);
            hasher.update(ssh_public_key);
            hasher.finalize().to_vec()
        });
        Ok(Self { certs, tls_public_key, key_digest, call: call.unwrap_or_default() })
    }

    /// Whether it repeats the call with this digest.
    pub(super) fn repeats(&self, call: &[u8]) -> bool {
        !call.is_empty() && self.call == call
    }
}
