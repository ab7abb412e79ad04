//! X.509-SVIDs of workloads of other trust domains. Each is shown as the client certificate of a connection, since a certificate
//! is public, and TLS has its holder prove that it has the key. Here its chain is verified, by its own trust domain's bundle.

use std::{sync::Arc, time::Duration};

use auth_core::{
    spiffe::{Attested, TrustDomain},
    tables::SpiffeBundleRow,
};
use mezite_pki::x509::Svid;
use rustls::{
    RootCertStore,
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};
use rustls_pki_types::{CertificateDer, UnixTime};
use store_txn::UnixMillis;

/// Most certificates that are looked at beside the first: a chain has one or two.
const MAX_INTERMEDIATES: usize = 8;

/// The trust domain that a certificate says it is of. Nothing is verified.
///
/// # Errors
/// Why it is no SVID.
pub(crate) fn trust_domain(chain: &[Vec<u8>]) -> Result<TrustDomain, String> {
    let svid = svid(chain)?;
    TrustDomain::parse("client certificate", svid.trust_domain()).map_err(|error| error.to_string())
}

fn svid(chain: &[Vec<u8>]) -> Result<Svid, String> {
    Svid::from_der(chain.first().map(Vec::as_slice).unwrap_or_default()).map_err(|error| error.to_string())
}

/// Verifies a chain by the bundle of its trust domain, and of no other, at a time.
///
/// # Errors
/// Why it is no good, for the audit log.
pub(crate) fn verify(
    chain: &[Vec<u8>],
    bundle: &SpiffeBundleRow,
    now: UnixMillis,
) -> Result<Attested, String> {
    let svid = svid(chain)?;
    let mut certificates = chain.iter().map(|der| CertificateDer::from(der.as_slice()));
    let leaf = certificates.next().ok_or("no certificate was shown")?;
    let intermediates: Vec<_> = certificates.take(MAX_INTERMEDIATES + 1).collect();
    if intermediates.len() > MAX_INTERMEDIATES {
        return Err(format!("a chain has at most {MAX_INTERMEDIATES} certificates beside the first"));
    }
    let now = UnixTime::since_unix_epoch(Duration::from_millis(now));
    let verifier = verifier(&bundle.x509_authorities)?;
    verifier.verify_client_cert(&leaf, &intermediates, now).map_err(|error| error.to_string())?;
    Ok(Attested {
        spiffe_id: svid.spiffe_id,
        issued_at_ms: None,
        ends_at_ms: svid.not_after.saturating_add(1).saturating_mul(1000),
        bearer: None,
    })
}

/// Verifies client certificates by the authorities of one trust domain, DER.
///
/// # Errors
/// There are none, or one cannot be used.
pub(crate) fn verifier(authorities: &[Vec<u8>]) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let roots = Arc::new(roots(authorities)?);
    WebPkiClientVerifier::builder_with_provider(roots, provider).build().map_err(|error| error.to_string())
}

/// The authorities of one trust domain.
///
/// # Errors
/// One cannot be used.
pub(super) fn roots(authorities: &[Vec<u8>]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for der in authorities {
        roots.add(CertificateDer::from(der.as_slice()).into_owned()).map_err(|error| error.to_string())?;
    }
    Ok(roots)
}

#[cfg(test)]
#[path = "x509_tests.rs"]
mod tests;
