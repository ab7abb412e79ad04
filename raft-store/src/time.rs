//! What time it is for the cluster: the latest that most of its voters have reached, whatever this node's clock says.
//!
//! The time of the state never goes back, and what has ended by it has ended for good. So no single clock decides: a node
//! asks the voters for theirs once a second. Between two rounds it counts on by a clock that nobody sets (and that stands
//! still while the machine is suspended). A leader that has not heard a majority yet stamps nothing.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures::future::join_all;
use mezite_proto::peer;
use store_txn::UnixMillis;

use crate::{
    config::{Clock, StoreConfig},
    metrics,
    net::client::PeerPool,
    raft::{Core, PeerNode},
};

/// Pause between two rounds.
const INTERVAL: Duration = Duration::from_secs(1);
/// A voter that takes longer to say its time is not counted, nor one that takes longer than two heartbeats.
const MIN_ANSWER: Duration = Duration::from_millis(500);
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
    /// How long a voter may take.
    answer: Duration,
    base: Mutex<Option<Base>>,
    /// Held by who measures.
    round: tokio::sync::Mutex<()>,
}

/// The cluster's time, as this node knows it.
#[derive(Clone)]
pub(crate) struct ClusterTime(Arc<Shared>);

impl ClusterTime {
    pub(crate) fn new(core: Core, pool: PeerPool, config: &StoreConfig) -> Self {
        Self(Arc::new(Shared {
            core,
            pool,
            clock: Arc::clone(&config.clock),
            answer: MIN_ANSWER.max(2 * config.timing.heartbeat),
            base: Mutex::default(),
            round: tokio::sync::Mutex::default(),
        }))
    }

    /// The time for what may be stale: this node's own while it has not heard a majority.
    pub(crate) fn now(&self) -> UnixMillis {
        self.measured().unwrap_or_else(|| self.own())
    }

    /// The time for what is replicated. `None`: a majority of the voters cannot be asked.
    pub(crate) async fn stamp(&self) -> Option<UnixMillis> {
        if let Some(now) = self.measured() {
            return Some(now);
        }
        let round = self.0.round.lock().await;
        // Somebody may have asked meanwhile.
        if self.measured().is_none() {
            self.measure().await;
        }
        drop(round);
        self.measured()
    }

    /// This node's own clock.
    pub(crate) fn own(&self) -> UnixMillis {
        (self.0.clock)()
    }

    #[cfg(test)]
    pub(crate) fn is_corrected(&self) -> bool {
        self.base().is_some_and(|base| base.corrected)
    }

    /// The cluster's time; `None` before a majority was heard.
    pub(crate) fn measured(&self) -> Option<UnixMillis> {
        self.base().map(|base| base.ms.saturating_add(millis(base.at.elapsed())))
    }

    fn base(&self) -> MutexGuard<'_, Option<Base>> {
        self.0.base.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the voters, under the lock of the round. Nothing changes when a majority does not answer.
    async fn measure(&self) {
        // The own clock is read this once, so that it may be set at any time.
        let here = (Instant::now(), self.own());
        let own_id = self.0.core.node_id();
        let voters = self.0.core.voters();
        if voters.is_empty() {
            return;
        }
        let others = voters.iter().filter(|(node_id, _)| **node_id != own_id);
        let asked = join_all(others.map(|(node_id, node)| self.ask(*node_id, node, here))).await;
        // A learner's own clock has no vote either.
        let own = voters.contains_key(&own_id).then_some(0);
        let total = voters.len();
        let offsets: Vec<i64> = asked.into_iter().flatten().chain(own).collect();
        let all_answered = offsets.len() == total;
        if let Some(offset) = reached_by_most(offsets, total) {
            metrics::clock_offset(offset);
            self.set(here, offset, all_answered);
        }
    }

    fn set(&self, (at, own): (Instant, UnixMillis), offset: i64, all_answered: bool) {
        let corrected = offset.abs() > TOLERANCE_MS;
        let ms = if corrected { own.saturating_add_signed(offset) } else { own };
        let mut base = self.base();
        let known = base.map(|base| base.ms.saturating_add(millis(at.saturating_duration_since(base.at))));
        // Who did not answer counts as behind, and the round before may have heard more.
        if !all_answered && known.is_some_and(|known| ms < known) {
            return;
        }
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

    /// How far a voter's clock is ahead of this node's, as that stood at the beginning of the round, in milliseconds.
    async fn ask(&self, node_id: u64, node: &PeerNode, (at, own): (Instant, UnixMillis)) -> Option<i64> {
        let mut client = self.0.pool.get(node_id, &node.peer_address).ok()?;
        let sent = Instant::now();
        let response =
            tokio::time::timeout(self.0.answer, client.ping(peer::PingRequest {})).await.ok()?.ok()?;
        let there = response.into_inner().clock_ms;
        let took = sent.elapsed();
        // After a pause of this process an old answer is there before the timer is looked at.
        if took > self.0.answer {
            return None;
        }
        let here = own.saturating_add(millis(sent.saturating_duration_since(at) + took / 2));
        // A release that does not say it is taken to agree.
        Some(if there == 0 { 0 } else { there.checked_signed_diff(here).unwrap_or(i64::MAX) })
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The latest time that most of `total` voters have reached, when these have answered; `None` when they are no majority.
/// Who has not answered counts as behind, since time that has passed does not come back.
fn reached_by_most(mut offsets: Vec<i64>, total: usize) -> Option<i64> {
    offsets.sort_unstable();
    offsets.len().checked_sub(total / 2 + 1).and_then(|index| offsets.get(index).copied())
}

/// Keeps the time.
pub(crate) async fn keep(time: ClusterTime) {
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let _one = time.0.round.lock().await;
        time.measure().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minority_of_clocks_does_not_decide() {
        let days = 86_400_000;
        for (offsets, total, expected) in [
            (vec![0], 1, Some(0)),
            (vec![0, 3, -4], 3, Some(0)),
            // This node is ahead, or behind.
            (vec![-days, -days + 5, 0], 3, Some(-days + 5)),
            (vec![days, days + 5, 0], 3, Some(days)),
            // Another is.
            (vec![0, 2, days], 3, Some(2)),
            (vec![-days, 0, 2], 3, Some(0)),
            // Of two that answer, the one that is behind.
            (vec![0, days], 3, Some(0)),
            (vec![0, -days], 3, Some(-days)),
            // Two wrong ones of five, while two are silent.
            (vec![0, days, days], 5, Some(0)),
            (vec![0, 1, 2, days, days], 5, Some(2)),
            (vec![0], 2, None),
            (vec![0, 0], 4, None),
        ] {
            assert_eq!(reached_by_most(offsets.clone(), total), expected, "{offsets:?} of {total}");
        }
    }
}
