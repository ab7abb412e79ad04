//! What browsers are shown: the node's own certificate, or one from files, which are looked at now and then.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use mezite_daemon::files;
use mezite_pki::x509::CertificateInfo;
use mezite_proto::transport::{ALPN_H2, ALPN_HTTP1};
use rustls::ServerConfig;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use sha2::{Digest as _, Sha256};

use crate::{fault::NodeError, metrics};

/// How often files are looked at.
const EVERY: Duration = Duration::from_secs(10);

/// TLS for browsers, which are asked for no certificate: they would ask the person in front of them.
///
/// # Errors
/// When the key is not the certificate's.
pub(crate) fn config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig, NodeError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(unusable)?;
    config.alpn_protocols = vec![ALPN_H2.to_vec(), ALPN_HTTP1.to_vec()];
    Ok(config)
}

fn unusable(error: impl std::fmt::Display) -> NodeError {
    NodeError::Tls(error.to_string())
}

/// A certificate and its key in files.
pub(super) struct Files {
    certificate: PathBuf,
    key: PathBuf,
    /// Of what was read last, good or not.
    seen: [u8; 32],
    shown: Arc<ArcSwap<ServerConfig>>,
}

impl Files {
    /// Reads them for the first time.
    ///
    /// # Errors
    /// When they cannot be read, or do not belong together; when others can read the key.
    pub(super) fn load(certificate: &Path, key: &Path) -> Result<Self, NodeError> {
        let (seen, read) = read(certificate, key)?;
        let shown = Arc::new(ArcSwap::from_pointee(read?.taken()));
        Ok(Self { certificate: certificate.to_owned(), key: key.to_owned(), seen, shown })
    }

    /// What connections are shown that are made from now on.
    pub(super) fn shown(&self) -> Arc<ArcSwap<ServerConfig>> {
        Arc::clone(&self.shown)
    }

    /// Takes over what changes. What is no good is said once, and what was shown stays.
    pub(super) async fn follow(mut self) {
        let mut said = String::new();
        loop {
            tokio::time::sleep(EVERY).await;
            match self.look() {
                Ok(false) => (),
                Ok(true) => tracing::info!("the certificate of the web was taken from its files again"),
                Err(error) => {
                    let error = error.to_string();
                    if error != said {
                        tracing::error!(error, "the certificate of the web stays: its files cannot be used");
                        said = error;
                    }
                    continue;
                }
            }
            said.clear();
        }
    }

    /// Takes over what the files hold, if that is new. Answers whether it is.
    fn look(&mut self) -> Result<bool, NodeError> {
        let (digest, read) = read(&self.certificate, &self.key)?;
        if digest == self.seen {
            return Ok(false);
        }
        // The key may be written a moment after the certificate: then both are another thing again.
        let found = read?;
        self.seen = digest;
        self.shown.store(Arc::new(found.taken()));
        Ok(true)
    }
}

/// What two files give.
struct Found {
    config: ServerConfig,
    /// When the certificate ends, in Unix seconds; `None` where it does not say so as ours do.
    ends: Option<u64>,
}

impl Found {
    /// It is shown from now on.
    fn taken(self) -> ServerConfig {
        if let Some(ends) = self.ends {
            metrics::certificate_expires("web", ends);
        }
        self.config
    }
}

/// The digest of both files, and what they give.
fn read(certificate: &Path, key: &Path) -> Result<([u8; 32], Result<Found, NodeError>), NodeError> {
    let missing = || NodeError::Tls(format!("{} does not exist", certificate.display()));
    let chain = files::read_text(certificate)?.ok_or_else(missing)?;
    let secret = files::read_secret(key)?;
    let digest =
        Sha256::new().chain_update(&chain).chain_update([0_u8]).chain_update(secret.as_bytes()).finalize();
    Ok((digest.into(), parse(certificate, &chain, key, &secret)))
}

fn parse(certificate: &Path, chain: &str, key: &Path, secret: &str) -> Result<Found, NodeError> {
    let malformed = |file: &Path, reason: String| NodeError::Malformed { file: file.to_owned(), reason };
    let chain: Vec<_> = CertificateDer::pem_slice_iter(chain.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| malformed(certificate, format!("holds no PEM certificates: {error}")))?;
    let Some(leaf) = chain.first() else {
        return Err(malformed(certificate, "holds no PEM certificate".into()));
    };
    let ends = CertificateInfo::from_der(leaf).ok().map(|info| info.not_after);
    let secret = PrivateKeyDer::from_pem_slice(secret.as_bytes())
        .map_err(|error| malformed(key, format!("holds no PEM private key: {error}")))?;
    let config = config(chain, secret);
    let config = config.map_err(|error| malformed(certificate, format!("cannot be used: {error}")))?;
    Ok(Found { config, ends })
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::OpenOptionsExt as _};

    use mezite_pki::x509::{KeyPair, LeafSpec, X509Ca};

    use super::*;

    /// A certificate for a name, and its key.
    fn made(name: &str) -> (String, String) {
        let ca = X509Ca::generate("web", 1_000, 4_000_000_000).unwrap();
        let key = KeyPair::generate_p256().unwrap();
        let leaf = ca.issue(&LeafSpec {
            public_key: key.spki_der(),
            common_name: name.into(),
            identity: None,
            dns_names: vec![name.into()],
            ip_addresses: vec![],
            not_before: 1_000,
            not_after: 4_000_000_000,
            client_auth: false,
            server_auth: true,
        });
        (leaf.unwrap(), key.private_pem().as_str().to_owned())
    }

    fn write(path: &Path, text: &str, mode: u32) {
        use std::io::Write as _;
        let _ = fs::remove_file(path);
        let file = fs::OpenOptions::new().create_new(true).write(true).mode(mode).open(path);
        file.unwrap().write_all(text.as_bytes()).unwrap();
    }

    #[test]
    fn a_certificate_is_taken_over_when_its_key_is_there_and_what_is_no_good_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (certificate, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
        let ((old, old_key), (new, new_key)) = (made("old.example"), made("new.example"));
        assert!(Files::load(&certificate, &key).is_err(), "there is none");
        write(&certificate, &old, 0o644);
        write(&key, &old_key, 0o644);
        let wide = Files::load(&certificate, &key).err().unwrap();
        assert!(wide.to_string().contains("key.pem"), "{wide}");
        write(&key, &old_key, 0o600);
        let mut files = Files::load(&certificate, &key).unwrap();
        let shown = files.shown();
        let first = shown.load_full();
        assert!(!files.look().unwrap());

        // Half of a renewal, twice; then no file at all, and what is none.
        write(&certificate, &new, 0o644);
        assert!(files.look().is_err() && files.look().is_err());
        fs::remove_file(&key).unwrap();
        assert!(files.look().is_err());
        write(&key, "nothing", 0o600);
        let error = files.look().unwrap_err();
        assert!(error.to_string().contains("key.pem"), "{error}");
        assert!(Arc::ptr_eq(&first, &shown.load_full()), "what was shown stays");
        write(&key, &new_key, 0o600);
        assert!(files.look().unwrap() && !files.look().unwrap());
        assert!(!Arc::ptr_eq(&first, &shown.load_full()));
    }
}
