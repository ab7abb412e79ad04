//! What a command works with: the options that all share, the profile, and clients made of both.

use std::{cell::RefCell, env, ops::ControlFlow, time::Duration};

use anyhow::{Error, Result};
use mezite_client::{
    Client, ClientConfig, ClientError, ClusterTrust, FirstContact, Retry, RetryPolicy, parse_addresses,
};
use mezite_daemon::clock;
use mezite_proto::v1;
use serde::Serialize;
use tonic::Code;

use crate::{
    cli::{CA_PIN_VARIABLE, Format, Global},
    cmd::call,
    exit::{NoProfile, NotLoggedIn, StrangePin, Usage, is_answer},
    files::read_text,
    homes::{DEFAULT, Homes},
    output::{self, Journal, Listing, Report, Row},
    profile::{Home, LoginState, Profile},
};

/// How long the profile's CAs are not looked at again: the most that a rotation by hand has to wait for users who are at work.
const TRUST_AGE: Duration = Duration::from_secs(60 * 60);
/// How long looking at them may hold up the end of a command.
const FOLLOW_TIMEOUT: Duration = Duration::from_secs(5);

/// The options that all commands share.
pub(crate) struct Context {
    /// All profiles of the user.
    pub(crate) homes: Homes,
    /// The one that is worked with.
    pub(crate) home: Home,
    pub(crate) format: Format,
    pub(crate) policy: RetryPolicy,
    addresses: Option<Vec<String>>,
    first_contact: Option<FirstContact>,
    /// What says the pin, if one is given: an option or a variable.
    pin_from: &'static str,
    /// What was made to talk to the profile's cluster, for [`Self::done`].
    used: RefCell<Option<Client>>,
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
        let of_variable = ca_pin.is_some() && env::var(CA_PIN_VARIABLE).ok() == ca_pin;
        let first_contact = match (ca_pin, ca_file) {
            (Some(pin), _) => Some(FirstContact::Pin(pin.parse()?)),
            (None, Some(file)) => Some(FirstContact::CaPem(read_text(&file)?)),
            (None, None) => None,
        };
        let homes = Homes::new(global.home)?;
        Ok(Self {
            home: homes.open(global.profile.as_deref())?,
            homes,
            format: global.format,
            policy: policy(global.timeout),
            addresses,
            first_contact,
            pin_from: if of_variable { CA_PIN_VARIABLE } else { "--ca-pin" },
            used: RefCell::default(),
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
        let of_profile = known.is_none();
        let known = match known {
            Some(known) => Some(known),
            None => self.home.load()?.map(|Profile { addresses, trust, .. }| Cluster { addresses, trust }),
        };
        let addresses =
            self.addresses.clone().or_else(|| known.as_ref().map(|known| known.addresses.clone()));
        let Some(addresses) = addresses else {
            return Err(Usage(format!("no cluster is known: {}", first_login(self.home.name()))).into());
        };
        let trust = match (&self.first_contact, known) {
            // The CAs beside it were told by who is recognised by it.
            (Some(FirstContact::Pin(pins)), Some(known)) if of_profile && pins.are_of(&known.trust) => {
                known.trust
            }
            (Some(first), _) => match first.establish(&addresses, self.policy).await {
                Ok(established) => established.trust,
                Err(error) if of_profile => return Err(self.pinned(error.into())),
                Err(error) => return Err(error.into()),
            },
            (None, Some(known)) => known.trust,
            (None, None) => {
                let what = "this cluster was never talked to: give --ca-pin (as `auth-node init` printed it, and \
                            `mezctl status` prints it to who is logged in) or --ca-file";
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
            return Err(self.nobody());
        }
        let cluster = self.cluster(None).await?;
        let not_here = || self.pinned(NotLoggedIn.into());
        let LoginState { session, .. } = self.login_at(&cluster)?.ok_or_else(not_here)?;
        let client = self.client(&cluster)?.with_session(Some(session));
        self.used.replace(Some(client.clone()));
        Ok(client)
    }

    /// Nobody is logged in; says so if there is not even a profile.
    pub(crate) fn nobody(&self) -> Error {
        let name = self.home.name();
        let what = match (self.home.exists(), self.addresses.is_some()) {
            (true, _) | (false, true) => return NotLoggedIn.into(),
            (false, false) if name == DEFAULT => format!("no cluster is known: {}", first_login(name)),
            (false, false) => format!("there is no profile `{name}`: {}", first_login(name)),
        };
        NoProfile(what).into()
    }

    /// Forgets that the cluster was talked to: [`Self::done`] does not try it again.
    pub(crate) fn forget_cluster(&self) {
        self.used.take();
    }

    /// Says of a failure that a pin overrides the profile, if one does.
    fn pinned(&self, error: Error) -> Error {
        let Some(FirstContact::Pin(pins)) = &self.first_contact else { return error };
        match self.home.load() {
            Ok(Some(profile)) if !pins.are_of(&profile.trust) => error.context(StrangePin(self.pin_from)),
            _ => error,
        }
    }

    /// After a command that the cluster answered, though it may have refused it: keeps the TLS CAs as [`Self::follow_trust`]
    /// does, if they have not been looked at for an hour.
    pub(crate) async fn done(&self, outcome: &Result<()>) {
        if outcome.as_ref().is_err_and(|error| !is_answer(error)) {
            return;
        }
        let age = self.home.written().and_then(|written| clock::now().duration_since(written).ok());
        let used = self.used.take().filter(|_| age.is_none_or(|age| age >= TRUST_AGE));
        if let Some(client) = used {
            let timeout = self.policy.overall_timeout.min(FOLLOW_TIMEOUT);
            self.follow_trust(&client.with_policy(policy(timeout))).await;
        }
    }

    /// Keeps the TLS CAs of the profile's own cluster, as they are now: so a rotation leaves behind only those who run no
    /// command for as long as it lasts. What the command was for is done: a failure is but told.
    pub(crate) async fn follow_trust(&self, client: &Client) {
        if let Err(error) = self.trust_bundle(client).await {
            not_followed(&error);
        }
    }

    /// The trust bundle as it is now. Its TLS CAs are kept where the cluster is the profile's own; if that fails, it is but
    /// told.
    pub(crate) async fn trust_bundle(&self, client: &Client) -> Result<v1::GetTrustBundleResponse> {
        let bundle = client.trust_bundle().await?;
        let trust = ClusterTrust::from_bundle(&bundle)?;
        if let Err(error) = self.keep_trust(client, &trust).await {
            not_followed(&error);
        }
        Ok(bundle)
    }

    async fn keep_trust(&self, client: &Client, trust: &ClusterTrust) -> Result<()> {
        // Another process may have logged in elsewhere since the client was made.
        let is_ours = |profile: &Profile| {
            let asked = client.trust().is_some_and(|asked| is_same(asked, &profile.trust));
            asked && profile.trust.cluster_name() == trust.cluster_name()
        };
        let Some(profile) = self.home.load()?.filter(is_ours) else { return Ok(()) };
        // A copy that was restored elsewhere has the name and the CAs, and is not to be followed: it has no sessions.
        let at_home =
            client.addresses().iter().all(|&asked| profile.addresses.iter().any(|known| known == asked));
        if !at_home && !knows_session(client).await? {
            return Ok(());
        }
        let kept = |profile: Profile| Profile { trust: trust.clone(), ..profile };
        // Written also when nothing is new: when that was, says when they were looked at.
        let written = self.home.update(|profile| profile.filter(is_ours).map(kept));
        if profile.trust == *trust { Ok(()) } else { written.map(drop) }
    }

    /// The login of the profile.
    pub(crate) fn login(&self) -> Result<Option<LoginState>> {
        Ok(self.home.load()?.and_then(|profile| profile.login))
    }

    /// The login of the profile, if it is one at this cluster: no other may see the session.
    pub(crate) fn login_at(&self, cluster: &Cluster) -> Result<Option<LoginState>> {
        let Some(profile) = self.home.load()? else { return Ok(None) };
        Ok(profile.login.filter(|_| is_same(&profile.trust, &cluster.trust)))
    }
}

/// What to do who has never talked to a cluster.
fn first_login(profile: &str) -> String {
    let option = if profile == DEFAULT { String::new() } else { format!("--profile {profile} ") };
    format!(
        "the first time it is `mezctl {option}login --addr HOST:3025 --ca-pin sha256:… --user NAME`, and an admin tells you \
         the address and the pin"
    )
}

fn not_followed(error: &Error) {
    output::warn(&format!("the profile has the cluster's CAs as they were before: {error:#}"));
}

/// Whether a cluster knows the client's session.
async fn knows_session(client: &Client) -> Result<bool, ClientError> {
    let request = v1::ListActiveSessionsRequest { page_size: 1, ..Default::default() };
    match call!(client, Retry::Idempotent, list_active_sessions, request) {
        Ok(_) => Ok(true),
        // Whom it does not let do this, it knows.
        Err(error) if error.code() == Some(Code::PermissionDenied) => Ok(true),
        Err(error) if error.code() == Some(Code::Unauthenticated) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether two are of one cluster, at whatever step of a rotation: its name, and a CA that both know.
fn is_same(one: &ClusterTrust, other: &ClusterTrust) -> bool {
    let others = other.pins();
    one.cluster_name() == other.cluster_name() && one.pins().iter().any(|pin| others.contains(pin))
}

/// Of calls that may take so long.
pub(crate) fn policy(timeout: Duration) -> RetryPolicy {
    let usual = RetryPolicy::default();
    RetryPolicy {
        overall_timeout: timeout,
        call_timeout: usual.call_timeout.min(timeout),
        connect_timeout: usual.connect_timeout.min(timeout),
        ..usual
    }
}
