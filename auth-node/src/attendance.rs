//! Since when agents have been able to report without a break. Whoever has not reported may have been kept from it by an
//! outage of the auth cluster, and counts as absent only when it has had its time after that.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use auth_core::presence::PresenceTtl;
use raft_store::Store;
use tokio::time::{Instant, MissedTickBehavior, interval};

/// The longest from one look to the next.
const INTERVAL: Duration = Duration::from_secs(1);
/// A look is done, and comes after the one before, within this part of the time after which an agent counts as absent: a break
/// that no look sees makes nobody absent, since agents report at least twice in that time.
const PART: u32 = 4;

/// What this node has seen of the cluster without a break.
#[derive(Debug, Clone, Copy)]
struct Seen {
    leader: u64,
    since: Instant,
    last: Instant,
}

/// Whether agents have had the time to report.
#[derive(Debug)]
pub(crate) struct Attendance {
    ttl: PresenceTtl,
    /// `None`: the cluster takes no reports, as far as this node knows.
    seen: Mutex<Option<Seen>>,
}

impl Attendance {
    /// Of a node that has begun.
    pub(crate) fn new(ttl: PresenceTtl) -> Self {
        Self { ttl, seen: Mutex::new(None) }
    }

    /// How long an agent that has not reported has left to do so; zero when all have had their time.
    pub(crate) fn settling(&self) -> Duration {
        let seen = *self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        self.ttl.0.saturating_sub(seen.map_or(Duration::ZERO, |seen| seen.since.elapsed()))
    }

    /// Looks from time to time.
    pub(crate) async fn keep(self: Arc<Self>, store: Store) {
        let part = self.ttl.0 / PART;
        let mut ticks = interval(part.clamp(Duration::from_millis(1), INTERVAL));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let leader = store.status().leader_id;
            let current = store.confirm(part).await.is_ok();
            self.note(leader.filter(|_| current));
        }
    }

    /// Takes down who leads the cluster, which is in touch with a quorum; or that it is not.
    fn note(&self, leader: Option<u64>) {
        let now = Instant::now();
        let longest = self.ttl.0 / PART * 2;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        // A node that stood still has seen nothing of what was meanwhile.
        let before = seen.filter(|before| Some(before.leader) == leader && now - before.last <= longest);
        *seen =
            leader.map(|leader| Seen { leader, since: before.map_or(now, |before| before.since), last: now });
    }
}

#[cfg(test)]
impl Attendance {
    /// As if the cluster had been led without a break for long enough.
    pub(crate) fn settle(&self) {
        let now = Instant::now();
        let seen = Seen { leader: 1, since: now - self.ttl.0, last: now };
        *self.seen.lock().unwrap() = Some(seen);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;
    use crate::rpc::testing::Node;

    const TTL: Duration = Duration::from_secs(8);

    /// Sees these leaders, one a second.
    async fn after(seen: impl IntoIterator<Item = Option<u64>>) -> Duration {
        let attendance = Attendance::new(PresenceTtl(TTL));
        for leader in seen {
            advance(Duration::from_secs(1)).await;
            attendance.note(leader);
        }
        attendance.settling()
    }

    #[tokio::test(start_paused = true)]
    async fn agents_have_their_time_after_a_start_an_election_and_an_outage() {
        let seconds = Duration::from_secs;
        assert_eq!(after([]).await, TTL, "a node that has begun");
        assert_eq!(after([Some(1)]).await, TTL);
        assert_eq!(after([Some(1); 4]).await, seconds(5));
        assert_eq!(after([Some(1); 9]).await, seconds(0));
        assert_eq!(after([Some(1); 20]).await, seconds(0));
        let then = |last: &[Option<u64>]| after([[Some(1); 20].as_slice(), last].concat());
        assert_eq!(then(&[Some(2)]).await, TTL, "another leads");
        assert_eq!(then(&[Some(2), Some(2)]).await, seconds(7));
        assert_eq!(then(&[None]).await, TTL, "nobody confirms");
        assert_eq!(then(&[None, Some(1)]).await, TTL, "the same leader, after an outage");
        assert_eq!(then(&[None, Some(1), Some(1), Some(1)]).await, seconds(6));
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_stood_still_begins_anew() {
        let attendance = Attendance::new(PresenceTtl(TTL));
        for _ in 0..9 {
            attendance.note(Some(1));
            advance(Duration::from_secs(1)).await;
        }
        assert_eq!(attendance.settling(), Duration::ZERO);
        advance(TTL).await;
        attendance.note(Some(1));
        assert_eq!(attendance.settling(), TTL);
    }

    #[tokio::test]
    async fn a_node_that_is_current_finds_all_to_have_had_their_time() {
        let node = Node::start().await;
        let attendance = Arc::new(Attendance::new(PresenceTtl(Duration::from_secs(4))));
        let kept = tokio::spawn(Arc::clone(&attendance).keep(node.service.store.clone()));
        let settled = async {
            while attendance.settling() > Duration::ZERO {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), settled).await.unwrap();
        kept.abort();
    }
}
