//! What time it is for the cluster: what most of its voters say, whatever this node's own clock says.
//!
//! The time of the state never goes back, and what has ended by it has ended for good. So no single clock decides: a node
//! asks the voters for theirs once a second, and goes by the median. Between two rounds it counts on by a clock that
//! nobody sets. A leader that has not heard a majority yet stamps nothing.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures::future::join_all;
use mezite_proto::peer;
use store_txn::UnixMillis;

use crate::{
    config::Clock,
    metrics,
    net::client::PeerPool,
    raft::{Core, PeerNode},
};

/// Pause between two rounds.
const INTERVAL: Duration = Duration::from_secs(1);
/// A voter that takes longer to say its time is not counted.
const ANSWER: Duration = Duration::from_millis(500);
/// Clocks that are closer to each other than this, in milliseconds, count as equal. NTP keeps them within some tens;
/// half of a round trip is added.
const TOLERANCE_MS: i64 = 1_000;

/// The time at an instant.
#[derive(Clone, Copy)]
struct Base {
    at: Instant,
    ms: UnixMillis,
    corrected: bool,
}

struct Shared {
    core: Core,
    pool: PeerPool,
    clock: Clock,
    base: Mutex<Option<Base>>,
    /// Held by who measures.
    round: tokio::sync::Mutex<()>,
}

/// The cluster's time, as this node knows it.
#[derive(Clone)]
pub(crate) struct ClusterTime(Arc<Shared>);

impl ClusterTime {
    pub(crate) fn new(core: Core, pool: PeerPool, clock: Clock) -> Self {
        Self(Arc::new(Shared {
            core,
            pool,
            clock,
            base: Mutex::default(),
            round: tokio::sync::Mutex::default(),
        }))
    }

    /// The time for what is not replicated: this node's own while it has not heard a majority.
    pub(crate) fn now(&self) -> UnixMillis {
        self.measured().unwrap_or_else(|| self.own())
    }

    /// The time for what is replicated. `None`: a majority of the voters cannot be asked.
    pub(crate) async fn stamp(&self) -> Option<UnixMillis> {
        if let Some(now) = self.measured() {
            return Some(now);
        }
        self.measure().await;
        self.measured()
    }

    /// This node's own clock.
    pub(crate) fn own(&self) -> UnixMillis {
        (self.0.clock)()
    }

    #[cfg(test)]
    pub(crate) fn is_corrected(&self) -> bool {
        self.0.base.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|base| base.corrected)
    }

    fn measured(&self) -> Option<UnixMillis> {
        let base = *self.0.base.lock().unwrap_or_else(PoisonError::into_inner);
        base.map(|base| base.ms.saturating_add(millis(base.at.elapsed())))
    }

    /// Asks the voters. Nothing changes when a majority does not answer.
    async fn measure(&self) {
        let _one = self.0.round.lock().await;
        let own_id = self.0.core.node_id();
        let voters = self.0.core.voters();
        let others = voters.iter().filter(|(node_id, _)| **node_id != own_id);
        let asked = join_all(others.map(|(node_id, node)| self.ask(*node_id, node))).await;
        let total = asked.len() + 1;
        let offsets: Vec<i64> = asked.into_iter().flatten().chain([0]).collect();
        if voters.is_empty() || offsets.len() * 2 <= total {
            return;
        }
        let offset = median(offsets);
        metrics::clock_offset(offset);
        let (at, own) = (Instant::now(), self.own());
        let corrected = offset.abs() > TOLERANCE_MS;
        let ms = if corrected { own.saturating_add_signed(offset) } else { own };
        let mut base = self.0.base.lock().unwrap_or_else(PoisonError::into_inner);
        let before = base.replace(Base { at, ms, corrected }).is_some_and(|base| base.corrected);
        drop(base);
        match (before, corrected) {
            (false, true) => tracing::error!(
                offset_ms = offset,
                "this node's clock differs from what most members say; their time is used: set the clock"
            ),
            (true, false) => tracing::info!("this node's clock agrees with the members' again"),
            _ => {}
        }
    }

    /// How far a voter's clock is ahead of this node's, in milliseconds.
    async fn ask(&self, node_id: u64, node: &PeerNode) -> Option<i64> {
        let mut client = self.0.pool.get(node_id, &node.peer_address).ok()?;
        let (own, started) = (self.own(), Instant::now());
        let response = tokio::time::timeout(ANSWER, client.ping(peer::PingRequest {})).await.ok()?.ok()?;
        let there = response.into_inner().clock_ms;
        // A release that does not say it is taken to agree.
        let here = own.saturating_add(millis(started.elapsed() / 2));
        Some(if there == 0 { 0 } else { there.checked_signed_diff(here).unwrap_or(i64::MAX) })
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The middle one; of two in the middle the lower, since time that has passed does not come back.
fn median(mut offsets: Vec<i64>) -> i64 {
    offsets.sort_unstable();
    offsets.get(offsets.len().saturating_sub(1) / 2).copied().unwrap_or_default()
}

/// Keeps the time.
pub(crate) async fn keep(time: ClusterTime) {
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        time.measure().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_clock_of_three_does_not_decide() {
        let days = 86_400_000;
        for (offsets, expected) in [
            (vec![0], 0),
            (vec![0, 3, -4], 0),
            // This node is ahead, or behind.
            (vec![-days, -days + 5, 0], -days + 5),
            (vec![days, days + 5, 0], days),
            // Another is.
            (vec![0, 2, days], 2),
            (vec![-days, 0, 2], 0),
            // With two, the one that is behind.
            (vec![0, days], 0),
            (vec![0, -days], -days),
        ] {
            assert_eq!(median(offsets.clone()), expected, "{offsets:?}");
        }
    }
}
