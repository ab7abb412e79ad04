//! One CA, and a certificate for each member: on both sides of the comparison TLS 1.3 with ECDSA P-256 protects clients
//! (the server shows a certificate) and peers (both do).

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Result;
use mezite_proto::transport::ALPN_H2;
use raft_store::{PeerIdentity, peer_dns_name};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};

/// Name of the cluster in peer certificates.
pub(crate) const CLUSTER: &str = "bench";

/// The files of a CA and three members.
#[derive(Debug, Clone)]
pub(crate) struct Certificates(PathBuf);

impl Certificates {
    /// Those in a folder, made before.
    pub(crate) fn at(folder: &Path) -> Self {
        Self(folder.to_owned())
    }

    /// Makes them.
    pub(crate) fn make(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let made = Self::at(folder);
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        fs::write(made.authority(), params.self_signed(&key)?.pem())?;
        let issuer = Issuer::new(params, key);
        for id in 1..=3 {
            let key = KeyPair::generate()?;
            let names = ["127.0.0.1".to_owned(), peer_dns_name(CLUSTER, id)];
            let mut params = CertificateParams::new(names)?;
            params.extended_key_usages =
                vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
            fs::write(made.certificate(id), params.signed_by(&key, &issuer)?.pem())?;
            fs::write(made.key(id), key.serialize_pem())?;
        }
        Ok(made)
    }

    /// The CA's certificate.
    pub(crate) fn authority(&self) -> PathBuf {
        self.0.join("ca.pem")
    }

    /// A member's certificate.
    pub(crate) fn certificate(&self, id: u64) -> PathBuf {
        self.0.join(format!("{id}.pem"))
    }

    /// Its private key.
    pub(crate) fn key(&self, id: u64) -> PathBuf {
        self.0.join(format!("{id}.key"))
    }

    /// A member among its peers.
    pub(crate) fn identity(&self, id: u64) -> Result<PeerIdentity> {
        let read = fs::read_to_string::<PathBuf>;
        let (certificate, key) = (read(self.certificate(id))?, read(self.key(id))?);
        Ok(PeerIdentity::from_pem(CLUSTER, id, &certificate, &key, &read(self.authority())?)?)
    }

    /// A member before its clients.
    pub(crate) fn server_config(&self, id: u64) -> Result<ServerConfig> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_single_cert(
                vec![CertificateDer::from_pem_file(self.certificate(id))?],
                PrivateKeyDer::from_pem_file(self.key(id))?,
            )?;
        config.alpn_protocols = vec![ALPN_H2.to_vec()];
        Ok(config)
    }

    /// A client.
    pub(crate) fn client_config(&self) -> Result<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.authority())?)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![ALPN_H2.to_vec()];
        Ok(config)
    }
}
