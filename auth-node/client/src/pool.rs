//! The addresses of a client: their connections, how they have fared, and which to ask next.
//!
//! Health is learned by use: an address that fails is avoided for a while, as long as another one works.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use mezite_proto::transport;
use tokio::time::Instant;
use tonic::transport::Channel;

use crate::{Target, failure::Failure};

/// How long an address is avoided after its first failure; doubled with each further one.
const AVOID_BASE: Duration = Duration::from_secs(1);
/// Longest avoidance: an address that is back is found again within this time.
const AVOID_MAX: Duration = Duration::from_secs(30);

/// The addresses of a client, with their connections.
pub(crate) struct Pool {
    endpoints: Vec<Endpoint>,
    tls: Arc<rustls::ClientConfig>,
    last_good: AtomicUsize,
}

struct Endpoint {
    target: Target,
    channel: tokio::sync::Mutex<Option<Connection>>,
    health: Mutex<Health>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Health {
    failures: u32,
    avoid_until: Option<Instant>,
}

/// An open channel, and which one of its address it is.
#[derive(Clone)]
pub(crate) struct Connection {
    pub(crate) channel: Channel,
    generation: Arc<()>,
}

impl Pool {
    pub(crate) fn new(targets: Vec<Target>, tls: Arc<rustls::ClientConfig>) -> Self {
        let endpoint = |target| Endpoint { target, channel: Default::default(), health: Default::default() };
        Self {
            endpoints: targets.into_iter().map(endpoint).collect(),
            tls,
            last_good: AtomicUsize::new(usize::MAX),
        }
    }

    pub(crate) fn tls(&self) -> &Arc<rustls::ClientConfig> {
        &self.tls
    }

    pub(crate) fn targets(&self) -> impl Iterator<Item = &Target> {
        self.endpoints.iter().map(|endpoint| &endpoint.target)
    }

    pub(crate) fn address(&self, index: usize) -> &str {
        self.endpoints.get(index).map_or("", |endpoint| &endpoint.target.address)
    }

    /// The connection to an address, made now if there is none. Callers that come meanwhile wait for the same one,
    /// none of them longer than its `timeout`.
    pub(crate) async fn connection(&self, index: usize, timeout: Duration) -> Result<Connection, Failure> {
        let Some(endpoint) = self.endpoints.get(index) else {
            return Err(Failure::NotSent("no such address".into()));
        };
        match tokio::time::timeout(timeout, endpoint.connection(&self.tls, timeout)).await {
            Ok(connected) => connected,
            Err(_) => Err(Failure::NotSent(format!("no connection within {timeout:?}"))),
        }
    }

    /// Forgets a connection that broke, unless it was replaced meanwhile.
    pub(crate) async fn disconnect(&self, index: usize, broken: &Connection) {
        let Some(endpoint) = self.endpoints.get(index) else { return };
        let mut slot = endpoint.channel.lock().await;
        if slot.as_ref().is_some_and(|open| Arc::ptr_eq(&open.generation, &broken.generation)) {
            *slot = None;
        }
    }

    pub(crate) fn succeeded(&self, index: usize) {
        self.last_good.store(index, Ordering::Relaxed);
        if let Some(endpoint) = self.endpoints.get(index) {
            *endpoint.health() = Health::default();
        }
    }

    pub(crate) fn failed(&self, index: usize, now: Instant) {
        if let Some(endpoint) = self.endpoints.get(index) {
            let mut health = endpoint.health();
            let wait = AVOID_BASE.saturating_mul(1 << health.failures.min(8)).min(AVOID_MAX);
            *health = Health { failures: health.failures.saturating_add(1), avoid_until: Some(now + wait) };
        }
    }

    /// Avoids the address that served last: it said that it is leaving.
    pub(crate) fn leave_last_good(&self, now: Instant) {
        self.failed(self.last_good.load(Ordering::Relaxed), now);
    }

    /// Whether an address failed a short while ago.
    #[cfg(test)]
    pub(crate) fn is_avoided(&self, index: usize, now: Instant) -> bool {
        self.endpoints.get(index).is_some_and(|endpoint| endpoint.is_avoided(now))
    }

    /// Which address to ask next in a call that has fared so far as `tried` says.
    pub(crate) fn choose(&self, tried: &[Tried], now: Instant) -> Choice {
        let last_good = self.last_good.load(Ordering::Relaxed);
        let candidates =
            self.endpoints.iter().zip(tried).enumerate().map(|(index, (endpoint, tried))| Candidate {
                index,
                tier: endpoint.target.tier,
                avoided: endpoint.is_avoided(now),
                last_good: index == last_good,
                tried: *tried,
            });
        choose(candidates, now)
    }
}

impl Endpoint {
    async fn connection(
        &self,
        tls: &Arc<rustls::ClientConfig>,
        timeout: Duration,
    ) -> Result<Connection, Failure> {
        let mut slot = self.channel.lock().await;
        if let Some(connection) = &*slot {
            return Ok(connection.clone());
        }
        let Target { address, server_name, .. } = &self.target;
        let connected = transport::connect(address, Arc::clone(tls), server_name.clone(), timeout).await;
        let channel = connected.map_err(|error| Failure::connecting(&error))?;
        let connection = Connection { channel, generation: Arc::new(()) };
        *slot = Some(connection.clone());
        Ok(connection)
    }

    fn is_avoided(&self, now: Instant) -> bool {
        self.health().avoid_until.is_some_and(|until| until > now)
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How an address has fared within one call.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Tried {
    pub(crate) attempts: u32,
    pub(crate) exhausted: bool,
    pub(crate) not_before: Option<Instant>,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Choice {
    /// Ask this address.
    Ask(usize),
    /// Wait until then; no address may be asked before.
    Wait(Instant),
    /// No address is left to ask in this call.
    Exhausted,
}

struct Candidate {
    index: usize,
    tier: u8,
    avoided: bool,
    last_good: bool,
    tried: Tried,
}

/// Healthy before avoided, lower tier before higher, the one that served last before others, then in order.
fn choose(candidates: impl Iterator<Item = Candidate>, now: Instant) -> Choice {
    let left: Vec<_> = candidates.filter(|candidate| !candidate.tried.exhausted).collect();
    let ready = left.iter().filter(|candidate| candidate.tried.not_before.is_none_or(|time| time <= now));
    let best = ready.min_by_key(|c| (c.avoided, c.tier, !c.last_good, c.index));
    match (best, left.iter().filter_map(|candidate| candidate.tried.not_before).min()) {
        (Some(best), _) => Choice::Ask(best.index),
        (None, Some(time)) => Choice::Wait(time),
        (None, None) => Choice::Exhausted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates<const N: usize>() -> [Candidate; N] {
        std::array::from_fn(|index| Candidate {
            index,
            tier: 0,
            avoided: false,
            last_good: false,
            tried: Tried::default(),
        })
    }

    #[test]
    fn the_first_address_is_asked_first_and_a_good_one_is_kept() {
        let now = Instant::now();
        assert_eq!(choose(candidates::<3>().into_iter(), now), Choice::Ask(0));
        let mut kept = candidates::<3>();
        kept[2].last_good = true;
        assert_eq!(choose(kept.into_iter(), now), Choice::Ask(2));
    }

    #[test]
    fn a_failed_address_is_avoided_while_another_works() {
        let now = Instant::now();
        let mut some = candidates::<2>();
        some[0].avoided = true;
        some[0].last_good = true;
        assert_eq!(choose(some.into_iter(), now), Choice::Ask(1));
        let mut only = candidates::<1>();
        only[0].avoided = true;
        assert_eq!(choose(only.into_iter(), now), Choice::Ask(0));
    }

    #[test]
    fn a_higher_tier_is_asked_only_when_the_lower_fails() {
        let now = Instant::now();
        let mut some = candidates::<2>();
        some[1].tier = 1;
        some[1].last_good = true;
        assert_eq!(choose(some.into_iter(), now), Choice::Ask(0));
        let mut some = candidates::<2>();
        some[1].tier = 1;
        some[0].tried.not_before = Some(now + Duration::from_secs(1));
        assert_eq!(choose(some.into_iter(), now), Choice::Ask(1));
    }

    #[test]
    fn when_all_have_failed_the_earliest_is_waited_for() {
        let now = Instant::now();
        let mut some = candidates::<2>();
        some[0].tried.not_before = Some(now + Duration::from_secs(2));
        some[1].tried.not_before = Some(now + Duration::from_secs(1));
        assert_eq!(choose(some.into_iter(), now), Choice::Wait(now + Duration::from_secs(1)));
        let mut none = candidates::<2>();
        none.iter_mut().for_each(|candidate| candidate.tried.exhausted = true);
        assert_eq!(choose(none.into_iter(), now), Choice::Exhausted);
    }
}
