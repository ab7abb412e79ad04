//! How a leader leaves: it chooses who follows, and lets it stand for election at once.
//!
//! The leader takes no more proposals, lets those in flight end, waits until the voter that lacks least lacks nothing,
//! and asks it to stand. Voters grant such an election without waiting until they have missed the leader for long
//! enough, so that the cluster is without a leader for a few round trips and fsyncs only. Clients that come meanwhile
//! are told that this node does not lead, and try again.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use mezite_proto::peer;

use crate::{
    error::StoreError,
    read::left,
    store::{Inner, Store},
};

/// A handover takes no longer: then the leader goes on leading, or leaves without one.
const HANDOVER: Duration = Duration::from_secs(2);
/// Time for one voter to catch up, and for its election; then another one is asked.
const ATTEMPT: Duration = Duration::from_millis(500);

impl Store {
    /// As leader, stops leading in favour of another voter. Does nothing elsewhere. The node goes on as a follower.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when no other voter could take over within two seconds: then it still leads.
    pub async fn step_down(&self) -> Result<(), StoreError> {
        self.inner.step_down().await
    }
}

impl Inner {
    pub(crate) async fn step_down(&self) -> Result<(), StoreError> {
        let own_id = self.core.node_id();
        if !self.core.is_leader() {
            return Ok(());
        }
        let alone = StoreError::Unavailable("no other voter can take over");
        if self.core.voters().keys().all(|node_id| *node_id == own_id) {
            return Err(alone);
        }
        let started = Instant::now();
        let deadline = started + HANDOVER;
        let closed = self.core.close_gate(deadline).await;
        let Some(_closed) = closed else {
            return Err(StoreError::Unavailable("proposals in flight do not end"));
        };
        let mut failed = BTreeSet::new();
        while self.core.is_leader() && Instant::now() < deadline {
            let successor = self.successor(&failed);
            let Some((node_id, address)) = successor else {
                if failed.is_empty() {
                    break;
                }
                // Everyone was asked once: begin again, in the time that is left.
                failed.clear();
                continue;
            };
            match self.hand_over(node_id, &address, deadline).await {
                true => tracing::info!(node_id, elapsed = ?started.elapsed(), "handed over"),
                false => {
                    failed.insert(node_id);
                }
            }
        }
        if self.core.is_leader() { Err(alone) } else { Ok(()) }
    }

    /// The other voter that lacks least, and its address.
    fn successor(&self, failed: &BTreeSet<u64>) -> Option<(u64, String)> {
        let voters = self.core.voters().into_iter();
        let others = voters.filter(|(id, _)| *id != self.core.node_id() && !failed.contains(id));
        let lag = |node_id: u64| self.core.lag(node_id).unwrap_or(u64::MAX);
        others.min_by_key(|(id, _)| lag(*id)).map(|(id, node)| (id, node.peer_address))
    }

    /// Lets a voter catch up and stand. `true`: this node does not lead any more.
    async fn hand_over(&self, node_id: u64, address: &str, deadline: Instant) -> bool {
        let attempt = deadline.min(Instant::now() + ATTEMPT);
        if !self.core.wait_for_lag(node_id, 0, attempt).await {
            return false;
        }
        let (Ok(ballot), Ok(mut client)) = (self.core.ballot().await, self.pool.get(node_id, address)) else {
            return false;
        };
        let mut request = tonic::Request::new(peer::TimeoutNowRequest { vote: Some(ballot) });
        request.set_timeout(left(attempt));
        match client.timeout_now(request).await {
            Ok(response) if response.get_ref().standing => {}
            Ok(_) => return false,
            Err(status) => {
                tracing::info!(node_id, message = status.message(), "a voter did not take over");
                return false;
            }
        }
        self.core.leader_change(Some(self.core.node_id()), left(attempt)).await;
        !self.core.is_leader()
    }
}
