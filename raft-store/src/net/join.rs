//! How a node without a certificate joins: it knows a token and the pin of the peer CA.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use mezite_proto::{
    peer::{JoinRequest, JoinResponse, join_service_client::JoinServiceClient},
    transport::{ALPN_H2, connect},
};
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use sha2::{Digest, Sha256};

use super::{MAX_MESSAGE_BYTES, PROTOCOL_VERSION, VERSION_HEADER};

const TIMEOUT: Duration = Duration::from_secs(10);

/// Decides who may join. The embedding program implements it: it knows tokens and holds the peer CA.
#[async_trait]
pub trait JoinHandler: Send + Sync + 'static {
    /// Checks the token, uses it up, allocates the node's id, and issues its identity. The same token with the
    /// same key must answer the same node id again.
    ///
    /// # Errors
    /// The status that the joiner gets.
    async fn join(&self, request: JoinRequest) -> Result<JoinResponse, tonic::Status>;
}

/// Why a member gave no identity: it cannot be reached, is not of the pinned CA, or refuses, in its own words.
#[derive(Debug, thiserror::Error)]
#[error("joining through {address}: {reason}")]
pub struct JoinError {
    /// The member's address.
    pub address: String,
    /// Why.
    pub reason: String,
}

/// Asks the member at `address` for an identity. The server is accepted when a certificate in its chain has the pin
/// (`sha256:` and the hexadecimal SHA-256 of the SubjectPublicKeyInfo) and issued the server's certificate.
///
/// # Errors
/// See [`JoinError`].
pub async fn request_join(address: &str, pin: &str, request: JoinRequest) -> Result<JoinResponse, JoinError> {
    let failed = |reason: String| JoinError { address: address.to_owned(), reason };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let algorithms = provider.signature_verification_algorithms;
    let verifier = PinVerifier { pin: pin.to_owned(), algorithms, provider: Arc::clone(&provider) };
    let mut tls = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| failed(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    tls.alpn_protocols = vec![ALPN_H2.to_vec()];
    // The name is not checked: the pin says which cluster it is, and any member will do.
    let name = ServerName::try_from("member").map_err(|error| failed(error.to_string()))?;
    let channel =
        connect(address, Arc::new(tls), name, TIMEOUT).await.map_err(|error| failed(source_chain(&error)))?;
    let mut request = tonic::Request::new(request);
    request.set_timeout(TIMEOUT);
    request.metadata_mut().insert(VERSION_HEADER, PROTOCOL_VERSION.into());
    let mut client = JoinServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let response = client.join(request).await.map_err(|status| failed(status.message().to_owned()))?;
    Ok(response.into_inner())
}

/// An error with its causes: tonic's own text is only «transport error». What a cause says again is said once.
fn source_chain(error: &dyn std::error::Error) -> String {
    let mut out = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !out.ends_with(&cause_text) {
            out = format!("{out}: {cause_text}");
        }
        source = cause.source();
    }
    out
}

/// The pin of a certificate's key.
fn pin_of(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let digest = Sha256::digest(parsed.public_key().raw);
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    Some(format!("sha256:{hex}"))
}

#[derive(Debug)]
struct PinVerifier {
    pin: String,
    algorithms: WebPkiSupportedAlgorithms,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let pinned =
            intermediates.iter().find(|certificate| pin_of(certificate).as_deref() == Some(&self.pin));
        let Some(pinned) = pinned else {
            return Err(rustls::Error::General(format!(
                "no CA of the server has the pin {}: it must be that of the peer CA, and the port that of peers",
                self.pin
            )));
        };
        let mut roots = RootCertStore::empty();
        roots.add(pinned.clone().into_owned())?;
        // Only the pinned CA counts: the server must hold a certificate that it issued.
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &rustls::server::ParsedCertificate::try_from(end_entity)?,
            &roots,
            &[],
            now,
            self.algorithms.all,
        )?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
