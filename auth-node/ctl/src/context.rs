//! What a command works with: the options that all share, the profile, and clients made of both.

use std::{ops::ControlFlow, time::Duration};

use anyhow::Result;
use mezite_client::{Client, ClientConfig, ClusterTrust, FirstContact, RetryPolicy, parse_addresses};
use mezite_proto::v1::GetTrustBundleResponse;
use serde::Serialize;

use crate::{
    cli::{Format, Global},
    exit::{NotLoggedIn, Usage},
    files::read_text,
    output::{self, Journal, Listing, Report, Row},
    profile::{Home, LoginState, Profile},
};

/// The options that all commands share.
pub(crate) struct Context {
    pub(crate) home: Home,
    pub(crate) format: Format,
    pub(crate) policy: RetryPolicy,
    addresses: Option<Vec<String>>,
    first_contact: Option<FirstContact>,
}

/// A cluster to talk to.
pub(crate) struct Cluster {
    pub(crate) addresses: Vec<String>,
    pub(crate) trust: ClusterTrust,
}

impl Context {
    pub(crate) fn new(global: Global) -> Result<Self> {
        // An environment variable that is set to nothing says nothing.
        let addresses = match global.addr.iter().all(|entry| entry.trim().is_empty()) {
            true => None,
            false => Some(parse_addresses(&global.addr)?),
        };
        let ca_pin = global.ca_pin.filter(|pin| !pin.is_empty());
        let ca_file = global.ca_file.filter(|file| !file.as_os_str().is_empty());
        let first_contact = match (ca_pin, ca_file) {
            (Some(pin), _) => Some(FirstContact::Pin(pin.parse()?)),
            (None, Some(file)) => Some(FirstContact::CaPem(read_text(&file)?)),
            (None, None) => None,
        };
        Ok(Self {
            home: Home::new(global.home)?,
            format: global.format,
            policy: policy(global.timeout),
            addresses,
            first_contact,
        })
    }

    pub(crate) fn print(&self, report: &impl Report) -> Result<()> {
        output::print(self.format, report)
    }

    pub(crate) fn print_list<const N: usize, T: Row<N> + Serialize>(&self, entries: Vec<T>) -> Result<()> {
        let mut listing = self.listing();
        match listing.print(&entries)? {
            ControlFlow::Continue(()) => listing.end(),
            ControlFlow::Break(()) => Ok(()),
        }
    }

    /// A list that is printed as it comes.
    pub(crate) fn listing<const N: usize, T: Row<N>>(&self) -> Listing<N, T> {
        Listing::new(self.format)
    }

    /// Reports that are printed as they come.
    pub(crate) fn journal(&self) -> Journal {
        Journal::new(self.format)
    }

    /// The cluster that the options name, or else the profile, or else what `known` knows.
    pub(crate) async fn cluster(&self, known: Option<Cluster>) -> Result<Cluster> {
        let known = match known {
            Some(known) => Some(known),
            None => self.home.load()?.map(|Profile { addresses, trust, .. }| Cluster { addresses, trust }),
        };
        let addresses =
            self.addresses.clone().or_else(|| known.as_ref().map(|known| known.addresses.clone()));
        let Some(addresses) = addresses else {
            return Err(Usage(
                "no cluster is known: give --addr host:port, and --ca-pin or --ca-file".into(),
            )
            .into());
        };
        let trust = match (&self.first_contact, known) {
            (Some(first), _) => first.establish(&addresses, self.policy).await?.trust,
            (None, Some(known)) => known.trust,
            (None, None) => {
                let what = "this cluster was never talked to: give --ca-pin (as `auth-node init` printed it) or \
                            --ca-file";
                return Err(Usage(what.into()).into());
            }
        };
        Ok(Cluster { addresses, trust })
    }

    /// A client of a cluster, without a credential.
    pub(crate) fn client(&self, cluster: &Cluster) -> Result<Client> {
        let config = ClientConfig::new(cluster.addresses.clone(), cluster.trust.clone());
        Ok(Client::new(ClientConfig { policy: self.policy, ..config })?)
    }

    /// A client with the session of the profile.
    pub(crate) async fn user(&self) -> Result<Client> {
        if self.login()?.is_none() {
            return Err(NotLoggedIn.into());
        }
        let cluster = self.cluster(None).await?;
        let LoginState { session, .. } = self.login_at(&cluster)?.ok_or(NotLoggedIn)?;
        Ok(self.client(&cluster)?.with_session(Some(session)))
    }

    /// Keeps the TLS CAs of the profile's own cluster, as they are now: so a rotation leaves behind only those who neither log
    /// in nor get certificates for as long as it lasts. What the command was for is done: a failure is but told.
    pub(crate) async fn follow_trust(&self, client: &Client) {
        let bundle = client.trust_bundle().await;
        if let Err(error) = bundle.map_err(Into::into).and_then(|bundle| self.keep_trust(&bundle)) {
            let error = output::printable(&format!("{error:#}"));
            eprintln!("warning: the profile has the cluster's CAs as they were before: {error}");
        }
    }

    fn keep_trust(&self, bundle: &GetTrustBundleResponse) -> Result<()> {
        let trust = ClusterTrust::from_bundle(bundle)?;
        match self.home.load()? {
            Some(profile)
                if profile.trust.cluster_name() == trust.cluster_name() && profile.trust != trust =>
            {
                self.home.save(&Profile { trust, ..profile })
            }
            _ => Ok(()),
        }
    }

    /// The login of the profile.
    pub(crate) fn login(&self) -> Result<Option<LoginState>> {
        Ok(self.home.load()?.and_then(|profile| profile.login))
    }

    /// The login of the profile, if it is one at this cluster: no other may see the session.
    pub(crate) fn login_at(&self, cluster: &Cluster) -> Result<Option<LoginState>> {
        let Some(profile) = self.home.load()? else { return Ok(None) };
        let (ours, theirs) = (profile.trust.pins(), cluster.trust.pins());
        let same_name = profile.trust.cluster_name() == cluster.trust.cluster_name();
        Ok(profile.login.filter(|_| same_name && ours.iter().any(|pin| theirs.contains(pin))))
    }
}

fn policy(timeout: Duration) -> RetryPolicy {
    let usual = RetryPolicy::default();
    RetryPolicy {
        overall_timeout: timeout,
        call_timeout: usual.call_timeout.min(timeout),
        connect_timeout: usual.connect_timeout.min(timeout),
        ..usual
    }
}
