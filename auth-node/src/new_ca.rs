//! New keys of the certificate authorities, sealed as they are made.

use std::time::Duration;

use auth_core::{
    CoreError,
    ca::{self, Kek, NewCa},
    tables::CaKind,
};
use mezite_pki::{PkiError, ssh::SshCa, x509::X509Ca};
use zeroize::Zeroizing;

/// Life of an X.509 authority. It is rotated long before.
const CA_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// It begins so much in the past, for clocks that are behind.
const BACKDATE: Duration = Duration::from_secs(60);
/// Longest common name of a certificate, in bytes (RFC 5280, ub-common-name).
const MAX_COMMON_NAME: usize = 64;

/// A new key for an authority of a cluster. `now` is in Unix seconds.
///
/// # Errors
/// [`CoreError::Internal`]: there is no randomness.
pub(crate) fn generate(kek: &Kek, kind: CaKind, cluster: &str, now: u64) -> Result<NewCa, CoreError> {
    let unmade = |error: PkiError| CoreError::Internal(format!("a key of the {} CA: {error}", kind.name()));
    match kind {
        CaKind::User | CaKind::Host | CaKind::Audit => {
            let ca = SshCa::generate().map_err(unmade)?;
            sealed(kek, kind, ca.public_line(), &ca.private_openssh().map_err(unmade)?)
        }
        CaKind::Tls => x509_sealed(kek, kind, &x509_ca_of("TLS", cluster, now).map_err(unmade)?),
        CaKind::Spiffe => x509_sealed(kek, kind, &x509_ca_of("SPIFFE", cluster, now).map_err(unmade)?),
        CaKind::Peer => x509_sealed(kek, kind, &peer_ca(now).map_err(unmade)?),
    }
}

/// An X.509 authority that was made already, sealed.
///
/// # Errors
/// [`CoreError::Internal`] for a key of an absurd length.
pub(crate) fn x509_sealed(kek: &Kek, kind: CaKind, ca: &X509Ca) -> Result<NewCa, CoreError> {
    sealed(kek, kind, ca.certificate_pem().to_owned(), &ca.private_pem())
}

fn sealed(kek: &Kek, kind: CaKind, public: String, private: &Zeroizing<String>) -> Result<NewCa, CoreError> {
    let sealed_private = ca::seal(kek, kind, &public, private.as_bytes(), rand::random())?;
    Ok(NewCa { kind, public, sealed_private })
}

fn x509_ca_of(what: &str, cluster: &str, now: u64) -> Result<X509Ca, PkiError> {
    // A cluster's name has up to 63 bytes of ASCII.
    let name = format!("mezite {what} CA {cluster}");
    x509_ca(name.get(..MAX_COMMON_NAME).unwrap_or(&name), now)
}

/// A new peer CA. `now` is in Unix seconds.
///
/// # Errors
/// [`PkiError::Randomness`].
pub(crate) fn peer_ca(now: u64) -> Result<X509Ca, PkiError> {
    x509_ca("mezite peer CA", now)
}

fn x509_ca(name: &str, now: u64) -> Result<X509Ca, PkiError> {
    X509Ca::generate(name, now.saturating_sub(BACKDATE.as_secs()), now + CA_LIFE.as_secs())
}
