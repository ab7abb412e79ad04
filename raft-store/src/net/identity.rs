//! Who a node is to its peers: a certificate of the peer CA whose DNS name holds the node's id and the cluster's.

use std::sync::Arc;

use mezite_proto::transport::ALPN_H2;
use rustls::{ClientConfig, RootCertStore, ServerConfig, server::WebPkiClientVerifier};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};

use crate::error::StoreError;

/// The DNS name that a node's peer certificate must carry.
pub fn peer_dns_name(cluster_id: &str, node_id: u64) -> String {
    format!("node-{node_id}.{cluster_id}")
}

/// The node id in a peer certificate of this cluster.
pub(crate) fn node_id_of(certificate: &CertificateDer<'_>, cluster_id: &str) -> Option<u64> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let names = parsed.subject_alternative_name().ok()??;
    names.value.general_names.iter().find_map(|name| match name {
        x509_parser::extensions::GeneralName::DNSName(name) => {
            name.strip_prefix("node-")?.strip_suffix(cluster_id)?.strip_suffix('.')?.parse().ok()
        }
        _ => None,
    })
}

/// A node's peer certificate, its key, and the CA that all peers share.
#[derive(Clone)]
pub struct PeerIdentity {
    /// Id of the cluster.
    pub cluster_id: String,
    /// Id of the node.
    pub node_id: u64,
    certificates: Vec<CertificateDer<'static>>,
    key: Arc<PrivateKeyDer<'static>>,
    authorities: Vec<CertificateDer<'static>>,
}

impl std::fmt::Debug for PeerIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PeerIdentity").field("node_id", &self.node_id).finish_non_exhaustive()
    }
}

fn identity_error(error: impl std::fmt::Display) -> StoreError {
    StoreError::Identity(error.to_string())
}

fn parse_certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, StoreError> {
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let parsed = parsed.map_err(identity_error)?;
    if parsed.is_empty() { Err(identity_error("no certificate in the PEM text")) } else { Ok(parsed) }
}

impl PeerIdentity {
    /// Takes a certificate, its private key (PKCS #8) and the peer CA's certificates, all PEM.
    ///
    /// # Errors
    /// When one does not parse, or the certificate is not of this node.
    pub fn from_pem(
        cluster_id: &str,
        node_id: u64,
        certificate: &str,
        key: &str,
        authorities: &str,
    ) -> Result<Self, StoreError> {
        let certificates = parse_certificates(certificate)?;
        if certificates.first().and_then(|leaf| node_id_of(leaf, cluster_id)) != Some(node_id) {
            let name = peer_dns_name(cluster_id, node_id);
            return Err(identity_error(format!("the peer certificate is not for {name}")));
        }
        Ok(Self {
            cluster_id: cluster_id.to_owned(),
            node_id,
            certificates,
            key: Arc::new(PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(identity_error)?),
            authorities: parse_certificates(authorities)?,
        })
    }

    fn roots(&self) -> Result<RootCertStore, StoreError> {
        let mut roots = RootCertStore::empty();
        for authority in &self.authorities {
            roots.add(authority.clone()).map_err(identity_error)?;
        }
        Ok(roots)
    }

    /// The chain that is shown: the peer CA's certificates too, so that a node that joins can check its pin.
    fn chain(&self) -> Vec<CertificateDer<'static>> {
        self.certificates.iter().chain(&self.authorities).cloned().collect()
    }

    /// For the peer listener. A client certificate is verified when shown; what needs one is refused without.
    pub(crate) fn server_config(&self) -> Result<ServerConfig, StoreError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(self.roots()?), Arc::clone(&provider))
                .allow_unauthenticated()
                .build()
                .map_err(identity_error)?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(identity_error)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain(), self.key.clone_key())
            .map_err(identity_error)?;
        config.alpn_protocols = vec![ALPN_H2.to_vec()];
        Ok(config)
    }

    /// For connections to peers.
    pub(crate) fn client_config(&self) -> Result<ClientConfig, StoreError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(identity_error)?
            .with_root_certificates(self.roots()?)
            .with_client_auth_cert(self.certificates.clone(), self.key.clone_key())
            .map_err(identity_error)?;
        config.alpn_protocols = vec![ALPN_H2.to_vec()];
        Ok(config)
    }

    /// The first of the peer CA's certificates.
    #[cfg(test)]
    pub(crate) fn authority(&self) -> &CertificateDer<'static> {
        &self.authorities[0]
    }

    pub(crate) fn server_name(&self, node_id: u64) -> Result<ServerName<'static>, StoreError> {
        ServerName::try_from(peer_dns_name(&self.cluster_id, node_id)).map_err(identity_error)
    }
}
