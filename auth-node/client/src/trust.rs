//! Which cluster a client talks to, and how it comes to know that.

use std::{fmt, str::FromStr, sync::Arc};

use mezite_proto::v1::{CaKind, GetTrustBundleResponse};
use rustls_pki_types::{CertificateDer, ServerName};

use crate::{
    Client, ClientError, RetryPolicy, Target, parse_addresses, tls,
    verifier::{Anchor, FirstContactVerifier},
};

/// What a known cluster is recognised by: its name and its TLS CAs.
#[derive(Clone, PartialEq, Eq)]
pub struct ClusterTrust {
    cluster_name: String,
    pem: String,
    authorities: Vec<CertificateDer<'static>>,
}

impl ClusterTrust {
    /// Of a cluster's name and the PEM of its TLS CA certificates.
    ///
    /// # Errors
    /// [`ClientError::Config`] when the name is no DNS name, or there is no usable certificate.
    pub fn new(cluster_name: &str, ca_pem: &str) -> Result<Self, ClientError> {
        let authorities = tls::certificates("the CA of the cluster", ca_pem)?;
        tls::roots(&authorities)?;
        auth_server_name(cluster_name)?;
        Ok(Self { cluster_name: cluster_name.to_owned(), pem: ca_pem.to_owned(), authorities })
    }

    /// From the cluster's own trust bundle.
    ///
    /// # Errors
    /// [`ClientError::Protocol`] when the bundle has no usable TLS CA or cluster name.
    pub fn from_bundle(bundle: &GetTrustBundleResponse) -> Result<Self, ClientError> {
        let tls = bundle.authorities.iter().filter(|ca| ca.kind() == CaKind::Tls);
        let pems: Vec<_> = tls.flat_map(|ca| ca.certificates.iter().map(|pem| pem.trim())).collect();
        let unusable = |error| ClientError::Protocol(format!("its trust bundle: {error}"));
        Self::new(&bundle.cluster_name, &(pems.join("\n") + "\n")).map_err(unusable)
    }

    /// Name of the cluster.
    #[must_use]
    pub fn cluster_name(&self) -> &str {
        &self.cluster_name
    }

    /// PEM of the TLS CA certificates.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.pem
    }

    /// Pins of the TLS CAs, as another first contact may use them.
    #[must_use]
    pub fn pins(&self) -> Vec<CaPin> {
        self.authorities.iter().filter_map(|der| CaPin::of(der)).collect()
    }

    pub(crate) fn authorities(&self) -> &[CertificateDer<'static>] {
        &self.authorities
    }

    pub(crate) fn auth_targets(&self, addresses: &[String]) -> Result<Vec<Target>, ClientError> {
        Ok(targets(addresses, &auth_server_name(&self.cluster_name)?))
    }

    pub(crate) fn ingest_targets(&self, addresses: &[String]) -> Result<Vec<Target>, ClientError> {
        Ok(targets(addresses, &server_name(format!("ingest.{}.mezite.internal", self.cluster_name))?))
    }
}

impl fmt::Debug for ClusterTrust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterTrust")
            .field("cluster_name", &self.cluster_name)
            .field("pins", &self.pins())
            .finish()
    }
}

fn targets(addresses: &[String], server_name: &ServerName<'static>) -> Vec<Target> {
    let target =
        |address: &String| Target { address: address.clone(), server_name: server_name.clone(), tier: 0 };
    addresses.iter().map(target).collect()
}

/// The name that every auth node of a cluster has in its certificate, whatever its address is.
pub(crate) fn auth_server_name(cluster_name: &str) -> Result<ServerName<'static>, ClientError> {
    server_name(format!("{cluster_name}.mezite.internal"))
}

fn server_name(name: String) -> Result<ServerName<'static>, ClientError> {
    ServerName::try_from(name).map_err(|_| ClientError::Config("the cluster's name is not a DNS name".into()))
}

/// SHA-256 over a CA's SubjectPublicKeyInfo: `sha256:` and 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct CaPin([u8; 32]);

impl CaPin {
    /// Of a certificate, DER; `None` when it is not one.
    pub(crate) fn of(der: &[u8]) -> Option<Self> {
        mezite_pki::x509::spki_pin(der).ok()?.parse().ok()
    }
}

impl FromStr for CaPin {
    type Err = ClientError;

    fn from_str(text: &str) -> Result<Self, ClientError> {
        let mut digest = [0; 32];
        text.trim()
            .strip_prefix("sha256:")
            .and_then(|digits| hex::decode_to_slice(digits, &mut digest).ok())
            .map(|()| Self(digest))
            .ok_or_else(|| {
                let what =
                    "a CA pin is `sha256:` and 64 hexadecimal digits; several have commas between them";
                ClientError::Config(what.into())
            })
    }
}

impl fmt::Display for CaPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", hex::encode(self.0))
    }
}

impl fmt::Debug for CaPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Pins of which each is as good as the others: while a CA is rotated that of its old key and that of its new one. As text, with
/// commas between them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaPins(Vec<CaPin>);

impl CaPins {
    /// Whether it is one of these.
    #[must_use]
    pub fn contains(&self, pin: &CaPin) -> bool {
        self.0.contains(pin)
    }

    /// Whether one of a cluster's CAs has one of these.
    #[must_use]
    pub fn are_of(&self, trust: &ClusterTrust) -> bool {
        trust.pins().iter().any(|pin| self.contains(pin))
    }
}

impl From<CaPin> for CaPins {
    fn from(pin: CaPin) -> Self {
        Self(vec![pin])
    }
}

impl FromStr for CaPins {
    type Err = ClientError;

    fn from_str(text: &str) -> Result<Self, ClientError> {
        text.split(',').map(str::parse).collect::<Result<_, _>>().map(Self)
    }
}

/// How a cluster is recognised that was never talked to before.
#[derive(Debug, Clone)]
pub enum FirstContact {
    /// By the pin of its TLS CA.
    Pin(CaPins),
    /// By its TLS CA certificates, PEM.
    CaPem(String),
}

/// What the first contact found out.
#[derive(Debug, Clone)]
pub struct Established {
    /// For every later [`Client`].
    pub trust: ClusterTrust,
    /// The cluster's CAs of all kinds.
    pub bundle: GetTrustBundleResponse,
}

impl FirstContact {
    /// Asks the cluster at `addresses` for its name and CAs. Only an auth node of the pinned CA is believed: not
    /// another holder of a certificate of that CA.
    ///
    /// # Errors
    /// [`ClientError::Untrusted`] when no address is such a node or its bundle lacks the CA that it was recognised
    /// by; [`ClientError::Unavailable`] when none can be reached.
    pub async fn establish(
        &self,
        addresses: &[String],
        policy: RetryPolicy,
    ) -> Result<Established, ClientError> {
        let anchor = match self {
            Self::Pin(pins) => Anchor::Pin(pins.clone()),
            Self::CaPem(pem) => Anchor::Roots(tls::roots(&tls::certificates("the CA file", pem)?)?),
        };
        let tls = tls::config_with_verifier(Arc::new(FirstContactVerifier::new(anchor)))?;
        let targets =
            targets(&parse_addresses(addresses)?, &server_name("first-contact.mezite.internal".into())?);
        let client = Client::for_first_contact(targets, tls, policy);
        let bundle = client.trust_bundle().await?;
        let trust = ClusterTrust::from_bundle(&bundle)?;
        if !self.is_of(&trust)? {
            return Err(ClientError::Untrusted {
                address: client.addresses().join(", "),
                reason: "its trust bundle lacks the CA that it was recognised by".into(),
            });
        }
        Ok(Established { trust, bundle })
    }

    fn is_of(&self, trust: &ClusterTrust) -> Result<bool, ClientError> {
        Ok(match self {
            Self::Pin(pins) => pins.are_of(trust),
            Self::CaPem(pem) => {
                let known: Vec<_> =
                    tls::certificates("the CA file", pem)?.iter().filter_map(|der| CaPin::of(der)).collect();
                trust.pins().iter().any(|pin| known.contains(pin))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_strict() {
        let pin = format!("sha256:{}", "0a".repeat(32));
        assert_eq!(pin.parse::<CaPin>().unwrap().to_string(), pin);
        for wrong in ["", "sha256:", "sha256:0a", &pin.replace("sha256", "sha1"), &format!("{pin}00")] {
            assert!(wrong.parse::<CaPin>().is_err(), "{wrong}");
            assert!(format!("{pin},{wrong}").parse::<CaPins>().is_err(), "{wrong}");
        }
        let other = format!("sha256:{}", "0b".repeat(32));
        let both: CaPins = format!("{pin}, {other}").parse().unwrap();
        assert!([pin, other].iter().all(|pin| both.contains(&pin.parse().unwrap())));
    }

    #[test]
    fn a_bundle_without_a_tls_ca_is_the_clusters_fault() {
        let bundle = GetTrustBundleResponse { cluster_name: "c".into(), ..Default::default() };
        assert!(matches!(ClusterTrust::from_bundle(&bundle), Err(ClientError::Protocol(_))));
    }

    #[test]
    fn a_cluster_needs_a_name_and_a_certificate() {
        assert!(ClusterTrust::new("c", "").is_err());
        assert!(
            ClusterTrust::new("c", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").is_err()
        );
    }
}
