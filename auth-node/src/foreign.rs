//! Asks other clusters: for their authorities against a token, and what those are now. Each question is bounded in time, and
//! its answer in size; no transaction waits for one.

use std::time::Duration;

use auth_core::{
    CoreError,
    names::ClusterName,
    tables::{CaKind, TrustedClusterRow},
    trusted_cluster::{self, Authorities},
};
use mezite_client::{
    AuthClient, CaPin, Client, ClientConfig, ClientError, ClusterTrust, FirstContact, Retry, RetryPolicy,
};
use mezite_proto::v1;
use zeroize::Zeroizing;

/// Longest token that is looked at, in bytes.
const MAX_TOKEN: usize = 512;
/// The longest that a cluster is asked, all addresses and attempts together.
pub(crate) const LONGEST: Duration = Duration::from_secs(10);

/// A one-time token of another cluster, with the pin by which that is recognised: as its CreateToken answered it.
pub(crate) struct Token {
    secret: Zeroizing<String>,
    pin: CaPin,
}

impl Token {
    /// Reads one.
    ///
    /// # Errors
    /// [`CoreError::Invalid`].
    pub(crate) fn parse(text: &str) -> Result<Self, CoreError> {
        let parts = text.trim().split_once('.').filter(|_| text.len() <= MAX_TOKEN);
        let read = parts.filter(|(secret, _)| !secret.is_empty()).and_then(|(secret, pin)| {
            Some(Self { secret: Zeroizing::new(secret.to_owned()), pin: pin.parse().ok()? })
        });
        read.ok_or_else(|| {
            let reason =
                "this is no token of another cluster: make one there with `mezctl trusted-clusters token`";
            CoreError::invalid("token", reason)
        })
    }
}

/// What the other cluster is told of the one that asks.
#[derive(Clone, Copy)]
pub(crate) struct Asker<'a> {
    /// Name of this cluster.
    pub(crate) cluster: &'a str,
    /// By what the repetitions of the exchange are known.
    pub(crate) exchange_id: [u8; 32],
}

/// Gets the authorities of a cluster against its token, within `limit`. Who is at the addresses is known by the token's pin
/// before it sees the token.
///
/// # Errors
/// [`CoreError::Invalid`] when the cluster there has another name: then the token is not used;
/// [`CoreError::Precondition`] when it cannot be asked, or refuses.
pub(crate) async fn exchange(
    addresses: &[String],
    name: &ClusterName,
    token: &Token,
    asker: Asker<'_>,
    limit: Duration,
) -> Result<Authorities, CoreError> {
    let failed = |error: ClientError| CoreError::Precondition(why(&error));
    let policy = policy(limit);
    let found = FirstContact::Pin(token.pin).establish(addresses, policy).await.map_err(failed)?;
    if found.trust.cluster_name() != name.as_str() {
        let reason = format!("the cluster at these addresses calls itself {}", found.trust.cluster_name());
        return Err(CoreError::invalid("trusted_cluster.name", reason));
    }
    let client = client(addresses, found.trust, policy).map_err(failed)?;
    let request = v1::ExchangeTrustRequest {
        token: token.secret.as_str().to_owned(),
        cluster_name: asker.cluster.to_owned(),
        exchange_id: asker.exchange_id.to_vec().into(),
    };
    let exchange = |mut auth: AuthClient, request| async move { auth.exchange_trust(request).await };
    let reply = client.call(Retry::Idempotent, request, exchange).await.map_err(failed)?;
    authorities(name, reply.trust_bundle.unwrap_or_default()).map_err(CoreError::Precondition)
}

/// Asks a trusted cluster what its authorities are now. It is recognised by those that are known.
///
/// # Errors
/// Why it cannot be asked, for people.
pub(crate) async fn refresh(name: &ClusterName, row: &TrustedClusterRow) -> Result<Authorities, String> {
    let known = trusted_cluster::keys(row, CaKind::Tls).concat();
    let ask = async {
        let trust = ClusterTrust::new(name.as_str(), &known)?;
        client(&row.addresses, trust, policy(LONGEST))?.trust_bundle().await
    };
    authorities(name, ask.await.map_err(|error| why(&error))?)
}

fn client(addresses: &[String], trust: ClusterTrust, policy: RetryPolicy) -> Result<Client, ClientError> {
    Client::new(ClientConfig { policy, ..ClientConfig::new(addresses.to_vec(), trust) })
}

fn policy(limit: Duration) -> RetryPolicy {
    let usual = RetryPolicy::default();
    RetryPolicy {
        overall_timeout: limit,
        call_timeout: usual.call_timeout.min(limit),
        connect_timeout: usual.connect_timeout.min(limit),
        attempts_per_address: 3,
        ..usual
    }
}

fn why(error: &ClientError) -> String {
    match error.status() {
        Some(status) => format!("the other cluster refused: {}", status.message),
        None => format!("the other cluster cannot be asked: {error}"),
    }
}

/// What a bundle says of the authorities of the cluster of this name.
fn authorities(name: &ClusterName, bundle: v1::GetTrustBundleResponse) -> Result<Authorities, String> {
    if bundle.cluster_name != name.as_str() {
        return Err(format!("the other cluster calls itself {}", bundle.cluster_name));
    }
    let told = |ca: v1::TrustedCa| {
        let (kind, keys) = match ca.kind() {
            v1::CaKind::User => (CaKind::User, ca.ssh_public_keys),
            v1::CaKind::Host => (CaKind::Host, ca.ssh_public_keys),
            v1::CaKind::Tls => (CaKind::Tls, ca.certificates),
            v1::CaKind::Unspecified | v1::CaKind::Peer | v1::CaKind::Spiffe | v1::CaKind::Audit => {
                return None;
            }
        };
        Some((kind, keys))
    };
    Authorities::new(bundle.authorities.into_iter().filter_map(told).collect(), bundle.revision)
}
