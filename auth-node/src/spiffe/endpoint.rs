//! Asks the endpoint of a trust domain for its bundle (SPIFFE Federation, section 5). It is recognised by its name on the web, or by an SVID of its trust domain.

use std::{sync::Arc, time::Duration};

use auth_core::{
    spiffe::Due,
    tables::{SpiffeBundleRow, SpiffeEndpointRow},
};
use mezite_pki::x509::Svid;
use reqwest::Client;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature},
    server::ParsedCertificate,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::{
    bundle::{self, MAX_DOCUMENT},
    x509,
};
use crate::{error::described, outbound};

/// For a question and its answer, connection included.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Asks for the bundle of a trust domain.
///
/// # Errors
/// Why there is none, for admins.
pub(super) async fn ask(due: &Due) -> Result<SpiffeBundleRow, String> {
    let client = client(&due.endpoint, &due.bundle)?;
    let mut response = client.get(&due.endpoint.url).send().await.map_err(|error| described(&error))?;
    let status = response.status();
    if status != reqwest::StatusCode::OK {
        return Err(format!("it answered with status {}", status.as_u16()));
    }
    let body = outbound::body(&mut response, MAX_DOCUMENT).await?;
    let told = bundle::read(&body)?;
    if told.x509_authorities.is_empty() && told.jwt_authorities.is_empty() {
        return Err("it told a bundle without any key: if that is right, set the bundle by hand".into());
    }
    Ok(told)
}

fn client(endpoint: &SpiffeEndpointRow, known: &SpiffeBundleRow) -> Result<Client, String> {
    let builder = outbound::client(TIMEOUT);
    let builder = match endpoint.spiffe_id.as_str() {
        // Profile `https_web`.
        "" => outbound::believing(builder, &endpoint.web_authorities)?,
        id => builder.tls_backend_preconfigured(by_svid(id, known)?),
    };
    builder.build().map_err(|error| described(&error))
}

/// Profile `https_spiffe`.
fn by_svid(id: &str, known: &SpiffeBundleRow) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = EndpointVerifier {
        id: id.to_owned(),
        roots: x509::roots(&known.x509_authorities)?,
        algorithms: provider.signature_verification_algorithms,
    };
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth())
}

/// Accepts one SPIFFE ID, whatever the name of the server is.
#[derive(Debug)]
struct EndpointVerifier {
    id: String,
    roots: RootCertStore,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for EndpointVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let leaf = ParsedCertificate::try_from(end_entity)?;
        let (roots, algorithms) = (&self.roots, self.algorithms.all);
        verify_server_cert_signed_by_trust_anchor(&leaf, roots, intermediates, now, algorithms)?;
        match Svid::from_der(end_entity) {
            Ok(svid) if svid.spiffe_id == self.id => Ok(ServerCertVerified::assertion()),
            _ => Err(Error::InvalidCertificate(CertificateError::NotValidForName)),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
#[path = "endpoint_tests.rs"]
mod tests;
