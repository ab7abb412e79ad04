//! TLS of the port: the ingest's certificate, and callers' certificates, verified against the cluster's TLS CAs.

use std::sync::Arc;

use mezite_client::ClientError;
use mezite_proto::transport::ALPN_H2;
use rustls::{RootCertStore, ServerConfig, server::WebPkiClientVerifier};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};

use crate::identity::{Identity, IdentityError};

/// TLS of an ingest with this identity.
///
/// A caller may come without a certificate, to ask for its health; one that shows a certificate shows one of the
/// cluster. Which caller may do what is decided per call.
///
/// # Errors
/// When the certificate, its key or a CA cannot be used.
pub(crate) fn server_config(identity: &Identity) -> Result<ServerConfig, IdentityError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    for authority in CertificateDer::pem_slice_iter(identity.trust().ca_pem().as_bytes()) {
        roots.add(authority.map_err(unusable)?).map_err(unusable)?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .allow_unauthenticated()
        .build()
        .map_err(unusable)?;
    let chain = CertificateDer::pem_slice_iter(identity.certificate_pem().as_bytes());
    let chain = chain.collect::<Result<Vec<_>, _>>().map_err(unusable)?;
    let key = PrivateKeyDer::from_pem_slice(identity.key_pem().as_bytes()).map_err(unusable)?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(unusable)?;
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    Ok(config)
}

fn unusable(error: impl std::fmt::Display) -> IdentityError {
    ClientError::Config(format!("the TLS identity cannot be used: {error}")).into()
}
