//! TLS of the client's side: which server to accept, which certificate to show.

use std::{fmt, sync::Arc};

use mezite_proto::transport::ALPN_H2;
use rustls::{
    ClientConfig, ConfigBuilder, RootCertStore,
    client::{WantsClientCert, danger::ServerCertVerifier},
    crypto::CryptoProvider,
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};

use crate::{ClientError, ClusterTrust};

/// A client certificate with its key. The key is never shown.
#[derive(Clone)]
pub struct ClientIdentity(Arc<CertifiedKey>);

impl ClientIdentity {
    /// From a certificate chain, leaf first, and its private key (PKCS #8, SEC 1 or PKCS #1), both PEM.
    ///
    /// # Errors
    /// [`ClientError::Config`] when either cannot be read or the key is not that of the certificate.
    pub fn from_pem(chain: &str, key: &str) -> Result<Self, ClientError> {
        let chain = certificates("the client certificate", chain)?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
            .map_err(|error| ClientError::Config(format!("the client key cannot be read: {error}")))?;
        let unusable = |error| ClientError::Config(format!("the client certificate cannot be used: {error}"));
        let certified = CertifiedKey::from_der(chain, key, &provider()).map_err(unusable)?;
        Ok(Self(Arc::new(certified)))
    }
}

impl fmt::Debug for ClientIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientIdentity(redacted)")
    }
}

/// The one TLS provider of the product.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// PEM certificates; at least one.
pub(crate) fn certificates(what: &str, pem: &str) -> Result<Vec<CertificateDer<'static>>, ClientError> {
    let unreadable = |error| ClientError::Config(format!("{what} cannot be read: {error}"));
    let list: Vec<_> =
        CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().map_err(unreadable)?;
    if list.is_empty() {
        return Err(ClientError::Config(format!("{what}: there is no PEM certificate in it")));
    }
    Ok(list)
}

/// The roots of a store made of CA certificates.
pub(crate) fn roots(authorities: &[CertificateDer<'static>]) -> Result<RootCertStore, ClientError> {
    let mut roots = RootCertStore::empty();
    for certificate in authorities {
        roots
            .add(certificate.clone())
            .map_err(|error| ClientError::Config(format!("a CA certificate cannot be used: {error}")))?;
    }
    Ok(roots)
}

/// For a cluster that is known.
pub(crate) fn config(
    trust: &ClusterTrust,
    identity: Option<&ClientIdentity>,
) -> Result<Arc<ClientConfig>, ClientError> {
    let builder = builder()?.with_root_certificates(roots(trust.authorities())?);
    Ok(finish(builder, identity))
}

/// For a server that `verifier` judges.
pub(crate) fn config_with_verifier(
    verifier: Arc<dyn ServerCertVerifier>,
) -> Result<Arc<ClientConfig>, ClientError> {
    let builder = builder()?.dangerous().with_custom_certificate_verifier(verifier);
    Ok(finish(builder, None))
}

fn builder() -> Result<ConfigBuilder<ClientConfig, rustls::WantsVerifier>, ClientError> {
    ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| ClientError::Config(format!("TLS cannot be set up: {error}")))
}

fn finish(
    builder: ConfigBuilder<ClientConfig, WantsClientCert>,
    identity: Option<&ClientIdentity>,
) -> Arc<ClientConfig> {
    let mut config = match identity {
        Some(ClientIdentity(key)) => {
            let resolver = rustls::sign::SingleCertAndKey::from(Arc::clone(key));
            builder.with_client_cert_resolver(Arc::new(resolver))
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    Arc::new(config)
}
