//! Who this ingest is: its keys, its certificate, and the CAs that it verifies callers by.
//!
//! `folder` keeps them on disk, `join` gets them from the cluster the first time, and `succession` in place of others; `control`
//! renews them later. What
//! a caller's certificate means is decided in `authn`.

mod folder;
mod join;
mod succession;

use std::fmt;

use mezite_client::{ClientConfig, ClientError, ClientIdentity, ClusterTrust, NOT_REGISTERED, RetryPolicy};
use mezite_daemon::files::FileError;
use mezite_pki::{
    PkiError,
    identity::Identity as Holder,
    ssh::SshKeyPair,
    x509::{CertificateInfo, KeyPair},
};
use recording_format::{AgentId, Digest, IngestCertificates};
use zeroize::Zeroizing;

pub(crate) use folder::{Folder, Progress, State};
pub use join::{Joined, join, token_from};
pub(crate) use join::{generate, report};

use crate::config::Config;

/// How many times the bound of one attempt a call may take with all its repetitions.
const ATTEMPTS: u32 = 3;

/// Why there is no identity, or none that can be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// A file of the data folder, or the token's.
    #[error(transparent)]
    File(#[from] FileError),
    /// Another process uses the data folder.
    #[error("{0} is in use by another process")]
    InUse(String),
    /// The data folder is of no ingest that has joined.
    #[error("{0} has no ingest that joined: run `recording-ingest join`")]
    NotJoined(String),
    /// A field of the configuration is needed, or contradicts what was joined with.
    #[error("{field}: {reason}")]
    Config {
        /// Which field.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A file of the data folder is not what it should be.
    #[error("{file}: {reason}")]
    Malformed {
        /// Which file.
        file: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A key or certificate cannot be used.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The certificate is past its time, or before it, by this machine's clock.
    #[error(
        "the certificate is not good now: look at this machine's clock first; if that is right, stop the ingest and run \
         `recording-ingest join` with a new token"
    )]
    NotGoodNow,
    /// The cluster's answer is not one for this ingest.
    #[error("the cluster's answer cannot be used: {0}")]
    Answer(String),
    /// The cluster did not do it.
    #[error(transparent)]
    Cluster(#[from] ClientError),
}

impl IdentityError {
    /// Whether the cluster says that the ingest is not in its registry: it has looked, and that does not pass by itself.
    pub(crate) fn is_removal(&self) -> bool {
        matches!(self, Self::Cluster(error) if error.has_reason(NOT_REGISTERED))
    }
}

/// Who this ingest is. The private keys are never shown.
pub(crate) struct Identity {
    agent_id: AgentId,
    trust: ClusterTrust,
    ssh_key: SshKeyPair,
    certificate_pem: String,
    key_pem: Zeroizing<String>,
    certificate_sha256: Digest,
    ssh_certificate: String,
    /// First and last second in which the certificate is good, Unix time.
    lifetime: (u64, u64),
}

impl Identity {
    /// Puts an identity together.
    ///
    /// # Errors
    /// When the certificate is not an ingest's of this cluster, or is not of the key.
    pub(crate) fn new(
        trust: ClusterTrust,
        certificate_pem: String,
        tls_key: &KeyPair,
        ssh_key: SshKeyPair,
        ssh_certificate: &str,
    ) -> Result<Self, IdentityError> {
        let info = CertificateInfo::from_pem(&certificate_pem)?;
        let agent_id = match &info.identity {
            Some(Holder::Ingest { cluster, id }) if cluster == trust.cluster_name() => id.parse().ok(),
            _ => None,
        };
        let Some(agent_id) = agent_id else {
            let whose = info.identity.map_or_else(|| "nobody".to_owned(), |holder| holder.to_string());
            let reason =
                format!("the certificate is of {whose}, not of an ingest of {}", trust.cluster_name());
            return Err(IdentityError::Answer(format!("{reason}; join with a token of kind ingest")));
        };
        let key_pem = tls_key.private_pem();
        // Also tells whether the two belong together.
        ClientIdentity::from_pem(&certificate_pem, &key_pem)?;
        Ok(Self {
            agent_id,
            trust,
            ssh_key,
            certificate_pem,
            key_pem,
            certificate_sha256: Digest::from_bytes(info.fingerprint_sha256),
            ssh_certificate: ssh_certificate.trim_ascii().to_owned(),
            lifetime: (info.not_before, info.not_after),
        })
    }

    /// The id that the cluster gave it.
    pub(crate) fn agent_id(&self) -> AgentId {
        self.agent_id
    }

    /// Name of its cluster.
    pub(crate) fn cluster_name(&self) -> &str {
        self.trust.cluster_name()
    }

    /// Whom it trusts.
    pub(crate) fn trust(&self) -> &ClusterTrust {
        &self.trust
    }

    /// The key that signs manifests: its SSH host key, which the cluster's host CA certified.
    pub(crate) fn ssh_key(&self) -> &SshKeyPair {
        &self.ssh_key
    }

    /// What whoever verifies a manifest needs to know the signing key by.
    pub(crate) fn certificates(&self) -> IngestCertificates {
        IngestCertificates { ssh: self.ssh_certificate.clone(), tls: self.certificate_pem.clone() }
    }

    /// Its TLS certificate, PEM.
    pub(crate) fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The key of its TLS certificate, PEM.
    pub(crate) fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// Digest of its TLS certificate, DER.
    pub(crate) fn certificate_sha256(&self) -> Digest {
        self.certificate_sha256
    }

    /// Last second in which the certificate is good, Unix time.
    pub(crate) fn expires_at(&self) -> u64 {
        self.lifetime.1
    }

    /// Whether the certificate has ended at `now` (Unix seconds): it is no credential any more, and cannot be renewed.
    pub(crate) fn is_over_at(&self, now: u64) -> bool {
        now > self.lifetime.1
    }

    /// Whether the certificate is good at `now` (Unix seconds).
    pub(crate) fn is_valid_at(&self, now: u64) -> bool {
        (self.lifetime.0..=self.lifetime.1).contains(&now)
    }

    /// Whether the certificate is to be renewed at `now`: in the last third of its life. After it, it is no
    /// credential any more.
    pub(crate) fn is_due_at(&self, now: u64) -> bool {
        let (not_before, not_after) = self.lifetime;
        let due = not_after.saturating_sub(not_after.saturating_sub(not_before) / 3);
        (due..=not_after).contains(&now)
    }

    /// A client of the cluster that shows this identity.
    pub(crate) fn client(&self, config: &Config) -> Result<mezite_client::Client, IdentityError> {
        let identity = ClientIdentity::from_pem(&self.certificate_pem, &self.key_pem)?;
        Ok(mezite_client::Client::new(ClientConfig {
            identity: Some(identity),
            policy: policy(config),
            ..ClientConfig::new(config.auth_servers.clone(), self.trust.clone())
        })?)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("agent_id", &self.agent_id)
            .field("trust", &self.trust)
            .field("lifetime", &self.lifetime)
            .finish_non_exhaustive()
    }
}

/// Bounds of a call to the cluster.
fn policy(config: &Config) -> RetryPolicy {
    let call_timeout = config.control.call_timeout;
    RetryPolicy {
        call_timeout,
        overall_timeout: call_timeout.saturating_mul(ATTEMPTS),
        connect_timeout: RetryPolicy::default().connect_timeout.min(call_timeout),
        ..RetryPolicy::default()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use mezite_client::testing::{CLUSTER, TestCa};

    use super::*;

    const ID: &str = "0b5c2f6e-6a1d-4c0e-9c55-1f2e3d4c5b6a";

    /// An ingest's, good from `lifetime.0` to `lifetime.1`.
    pub(crate) fn identity(lifetime: (u64, u64)) -> Result<Identity, IdentityError> {
        of(Some(Holder::Ingest { cluster: CLUSTER.into(), id: ID.into() }), lifetime)
    }

    fn of(holder: Option<Holder>, lifetime: (u64, u64)) -> Result<Identity, IdentityError> {
        let (ca, key) = (TestCa::new(), KeyPair::generate_p256().unwrap());
        let leaf = ca.issue_for(&key.spki_der(), holder, &["a"], lifetime, "");
        let ssh_key = SshKeyPair::generate_ed25519("").unwrap();
        Identity::new(ca.trust(), leaf.certificate, &key, ssh_key, "ssh-ed25519-cert-v01@openssh.com AAAA\n")
    }

    const LIFE: (u64, u64) = (1_600_000_000, 1_600_000_300);

    #[test]
    fn only_an_ingest_of_the_cluster_has_one() {
        let one = identity(LIFE).unwrap();
        assert_eq!(one.agent_id().to_string(), ID);
        let said = one.certificates();
        assert_eq!(
            (said.ssh.as_str(), &said.tls),
            ("ssh-ed25519-cert-v01@openssh.com AAAA", &one.certificate_pem)
        );
        let other = Holder::Ingest { cluster: "other".into(), id: ID.into() };
        let agent = Holder::Agent { cluster: CLUSTER.into(), id: ID.into() };
        for holder in [Some(other), Some(agent), None] {
            assert!(matches!(of(holder, LIFE), Err(IdentityError::Answer(_))));
        }
    }

    #[test]
    fn a_certificate_of_another_key_is_refused() {
        let one = identity(LIFE).unwrap();
        let ssh_key = SshKeyPair::generate_ed25519("").unwrap();
        let other = KeyPair::generate_p256().unwrap();
        let mixed = Identity::new(one.trust.clone(), one.certificate_pem.clone(), &other, ssh_key, "");
        assert!(matches!(mixed, Err(IdentityError::Cluster(_))));
    }

    #[test]
    fn renewal_is_due_in_the_last_third() {
        let identity = identity(LIFE).unwrap();
        let at = |second| (identity.is_valid_at(LIFE.0 + second), identity.is_due_at(LIFE.0 + second));
        assert_eq!([199, 200, 300, 301].map(at), [(true, false), (true, true), (true, true), (false, false)]);
        assert!(!identity.is_valid_at(LIFE.0 - 1));
    }

    #[test]
    fn keys_are_not_shown() {
        let identity = identity(LIFE).unwrap();
        let shown = format!("{identity:?}");
        assert!(!shown.contains("PRIVATE") && !shown.contains(identity.key_pem()), "{shown}");
    }
}
