//! The API, called without the comfort that the product's own client gives where a test wants to see the server as it
//! is.

use std::{fmt::Debug, sync::Arc, time::Duration};

use mezite_client::{
    Client, ClientConfig, ClientError, ClientIdentity, ClusterTrust, SessionSecret, StatusError,
};
use mezite_pki::{ssh::SshKeyPair, x509::KeyPair};
use mezite_proto::{
    transport::{ALPN_H2, channel},
    v1::{self, auth_service_client::AuthServiceClient},
};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use tonic::{Code, transport::Channel};

/// Calls a method of a [`Client`], repeated where an address fails: `call!(client, get_user, request)`.
#[macro_export]
macro_rules! call {
    ($client:expr, $method:ident, $request:expr) => {
        $client
            .call(
                ::mezite_client::Retry::Idempotent,
                $request,
                |mut auth: ::mezite_client::AuthClient, request| async move { auth.$method(request).await },
            )
            .await
    };
}

/// A client of the cluster at these addresses.
#[must_use]
pub fn client(
    addresses: &[String],
    trust: &ClusterTrust,
    session: Option<&SessionSecret>,
    identity: Option<&ClientIdentity>,
) -> Client {
    let mut config = ClientConfig::new(addresses.to_vec(), trust.clone());
    config.session = session.cloned();
    config.identity = identity.cloned();
    Client::new(config).unwrap()
}

/// Logs in.
///
/// # Errors
/// What the cluster answers.
pub async fn log_in(client: &Client, user: &str, password: &str) -> Result<SessionSecret, ClientError> {
    let request = v1::AuthenticateLocalRequest { username: user.into(), password: password.into() };
    let reply = call!(client, authenticate_local, request)?;
    SessionSecret::new(reply.session_id)
}

/// What the cluster said to a call that it refused with `code`.
///
/// # Panics
/// When it did not refuse, or with another code.
#[track_caller]
pub fn refused<T: Debug>(result: Result<T, ClientError>, code: Code) -> StatusError {
    match result {
        Err(ClientError::Status(status)) if status.code == code => *status,
        other => panic!("{code:?} was expected, not {other:?}"),
    }
}

/// Keys of a host.
#[derive(Debug)]
pub struct HostKeys {
    /// Of its sshd.
    pub ssh: SshKeyPair,
    /// Of its identity.
    pub tls: KeyPair,
}

impl HostKeys {
    /// New ones.
    #[must_use]
    pub fn new() -> Self {
        Self { ssh: SshKeyPair::generate_ed25519("").unwrap(), tls: KeyPair::generate_p256().unwrap() }
    }

    /// The request for their certificates.
    #[must_use]
    pub fn request(&self, token: &str, hostname: &str) -> v1::GenerateHostCertsRequest {
        v1::GenerateHostCertsRequest {
            token: token.into(),
            ssh_public_key: self.ssh.public_line(),
            tls_public_key: self.tls.spki_der().into(),
            hostname: hostname.into(),
            additional_principals: Vec::new(),
        }
    }

    /// What the host shows with the certificate that it got.
    #[must_use]
    pub fn identity(&self, issued: &v1::GenerateHostCertsResponse) -> ClientIdentity {
        ClientIdentity::from_pem(&issued.tls_certificate, &self.tls.private_pem()).unwrap()
    }
}

impl Default for HostKeys {
    fn default() -> Self {
        Self::new()
    }
}

/// TLS of a client of the cluster; without `alpn` it does not say that it wants HTTP/2. The certificate and the key
/// are PEM.
#[must_use]
pub fn tls(trust: &ClusterTrust, alpn: bool, identity: Option<(&str, &str)>) -> Arc<rustls::ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(trust.ca_pem().as_bytes()) {
        roots.add(certificate.unwrap()).unwrap();
    }
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match identity {
        Some((chain, key)) => {
            let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).map(Result::unwrap).collect();
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
            builder.with_client_auth_cert(chain, key).unwrap()
        }
        None => builder.with_no_client_auth(),
    };
    if alpn {
        config.alpn_protocols = vec![ALPN_H2.to_vec()];
    }
    Arc::new(config)
}

/// The name that auth nodes of a cluster prove.
#[must_use]
pub fn auth_server_name(trust: &ClusterTrust) -> ServerName<'static> {
    ServerName::try_from(format!("{}.mezite.internal", trust.cluster_name())).unwrap()
}

/// A bare stub of an auth node: no bounds on messages of its own, one attempt, no deadline.
#[must_use]
pub fn stub(
    address: &str,
    trust: &ClusterTrust,
    tls: Arc<rustls::ClientConfig>,
) -> AuthServiceClient<Channel> {
    bare(address, auth_server_name(trust), tls)
}

/// A bare stub of a recording ingest.
#[must_use]
pub fn recording_stub(
    address: &str,
    trust: &ClusterTrust,
    tls: Arc<rustls::ClientConfig>,
) -> AuthServiceClient<Channel> {
    let name = ServerName::try_from(format!("ingest.{}.mezite.internal", trust.cluster_name())).unwrap();
    bare(address, name, tls)
}

fn bare(
    address: &str,
    name: ServerName<'static>,
    tls: Arc<rustls::ClientConfig>,
) -> AuthServiceClient<Channel> {
    let channel = channel(address, tls, name, Duration::from_secs(60)).unwrap();
    AuthServiceClient::new(channel)
        .max_encoding_message_size(usize::MAX)
        .max_decoding_message_size(usize::MAX)
}
