//! Asks other clusters: for their authorities against a token, and what those are now. Each question is bounded in time, and
//! its answer in size; no transaction waits for one.

use std::{future::Future, time::Duration};

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
use tokio::time::{Instant, sleep_until, timeout_at};
use tonic::Code;
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

/// Why another cluster told nothing.
#[derive(Debug)]
pub(crate) enum Unanswered {
    /// It was not reached, or nobody there has proved to be that cluster. What was found instead is for the log alone: who
    /// chooses the addresses is not to learn what is at them.
    Unproved(String),
    /// It has proved itself, and what it says does not do. For people.
    Refused(CoreError),
}

impl From<ClientError> for Unanswered {
    fn from(error: ClientError) -> Self {
        match error.status().filter(|status| status.code == Code::PermissionDenied) {
            // The one answer that ends a call at once. What it says is of whoever has the key that was asked for.
            Some(status) => refused(format!("the other cluster refused: {}", status.message)),
            None => Self::Unproved(error.to_string()),
        }
    }
}

fn refused(reason: String) -> Unanswered {
    Unanswered::Refused(CoreError::Precondition(reason))
}

/// Gets the authorities of a cluster against its token, within `limit`. Who is at the addresses is known by the token's pin
/// before it sees the token.
///
/// # Errors
/// [`Unanswered::Unproved`], after `limit` and not before; [`Unanswered::Refused`] with [`CoreError::Invalid`] when the cluster
/// there has another name: then the token is not used; with [`CoreError::Precondition`] when it refuses.
pub(crate) async fn exchange(
    addresses: &[String],
    name: &ClusterName,
    token: &Token,
    asker: Asker<'_>,
    limit: Duration,
) -> Result<Authorities, Unanswered> {
    evenly(limit, async {
        let policy = policy(limit);
        let found = FirstContact::Pin(token.pin.into()).establish(addresses, policy).await?;
        if found.trust.cluster_name() != name.as_str() {
            let reason =
                format!("the cluster at these addresses calls itself {}", found.trust.cluster_name());
            return Err(Unanswered::Refused(CoreError::invalid("trusted_cluster.name", reason)));
        }
        let client = client(addresses, found.trust, policy)?;
        let request = v1::ExchangeTrustRequest {
            token: token.secret.as_str().to_owned(),
            cluster_name: asker.cluster.to_owned(),
            exchange_id: asker.exchange_id.to_vec().into(),
        };
        let exchange = |mut auth: AuthClient, request| async move { auth.exchange_trust(request).await };
        let reply = client.call(Retry::Idempotent, request, exchange).await?;
        authorities(name, reply.trust_bundle.unwrap_or_default()).map_err(refused)
    })
    .await
}

/// Asks a trusted cluster what its authorities are now. It is recognised by those that are known.
///
/// # Errors
/// As of [`exchange`], after [`LONGEST`].
pub(crate) async fn refresh(name: &ClusterName, row: &TrustedClusterRow) -> Result<Authorities, Unanswered> {
    evenly(LONGEST, async {
        let known = trusted_cluster::keys(row, CaKind::Tls).concat();
        let trust = ClusterTrust::new(name.as_str(), &known)?;
        let bundle = client(&row.addresses, trust, policy(LONGEST))?.trust_bundle().await?;
        authorities(name, bundle).map_err(refused)
    })
    .await
}

/// Asks within `limit`. An answer that nobody vouches for comes when that is over, not earlier: the time would tell a closed port
/// from one where something listens.
async fn evenly<T>(
    limit: Duration,
    ask: impl Future<Output = Result<T, Unanswered>>,
) -> Result<T, Unanswered> {
    let over = Instant::now() + limit;
    match timeout_at(over, ask).await {
        Ok(Err(Unanswered::Unproved(found))) => {
            sleep_until(over).await;
            Err(Unanswered::Unproved(found))
        }
        Ok(answer) => answer,
        Err(_) => Err(Unanswered::Unproved("no answer in time".into())),
    }
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
