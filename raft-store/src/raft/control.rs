//! What the program above may ask of a running core: changes of the membership, and who leads.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    path::PathBuf,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use mezite_proto::peer;
use openraft::{
    ChangeMembers, Snapshot, SnapshotMeta,
    error::{ChangeMembershipError, ClientWriteError, RaftError},
    raft::VoteRequest,
};
use tokio::sync::RwLockWriteGuard;

use super::{Core, PeerNode, SnapshotFile, TypeConfig, convert, stopped};
use crate::{error::StoreError, metrics, read::left, status::NotReady};

/// The core answers within this, or it is not alive.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// Why the core did not change the membership.
#[derive(Debug)]
pub(crate) enum ChangeError {
    /// A node is not a member.
    NotAMember(u64),
    /// No voter would be left.
    LastVoter,
    /// This node does not lead, another change is in progress; or it is not known whether the change will be made.
    Store(StoreError),
}

type Changed<T> = Result<T, RaftError<u64, ClientWriteError<u64, PeerNode>>>;
type Change = ChangeMembers<u64, PeerNode>;

impl Core {
    /// The id of the leader that this node knows of, a member or not.
    pub(crate) fn leader_id(&self) -> Option<u64> {
        self.raft.metrics().borrow().current_leader
    }

    /// Whether this node leads, as far as it knows.
    pub(crate) fn is_leader(&self) -> bool {
        self.leader().is_some_and(|(leader, _)| leader == self.node_id)
    }

    /// Whether this node leads and takes proposals: not while it hands over.
    pub(crate) fn takes_proposals(&self) -> bool {
        self.is_leader() && self.gate.try_read().is_ok()
    }

    /// Waits until another leader than `seen` is known, but not longer than `at_most`.
    pub(crate) async fn leader_change(&self, seen: Option<u64>, at_most: Duration) {
        let mut updates = self.raft.server_metrics();
        let changed = updates.wait_for(|now| now.current_leader.is_some() && now.current_leader != seen);
        // Either way the caller looks at what there is now; but a core that has stopped changes nothing any more.
        let stopped = matches!(tokio::time::timeout(at_most, changed).await, Ok(Err(_)));
        if stopped {
            tokio::time::sleep(at_most).await;
        }
    }

    /// A member's addresses.
    pub(crate) fn member(&self, node_id: u64) -> Option<PeerNode> {
        self.raft.metrics().borrow().membership_config.membership().get_node(&node_id).cloned()
    }

    /// Voters, and where they are.
    pub(crate) fn voters(&self) -> BTreeMap<u64, PeerNode> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let membership = metrics.membership_config.membership();
        let voters = membership.voter_ids();
        voters.filter_map(|id| Some((id, membership.get_node(&id)?.clone()))).collect()
    }

    /// Makes a node a learner, or corrects a member's addresses: TLS checks that it is that node at the new ones.
    pub(crate) async fn set_node(&self, node_id: u64, node: PeerNode) -> Result<(), ChangeError> {
        let nodes = BTreeMap::from([(node_id, node)]);
        self.change(Change::SetNodes(nodes)).await
    }

    /// Makes a learner a voter.
    pub(crate) async fn add_voter(&self, node_id: u64) -> Result<(), ChangeError> {
        self.change(Change::AddVoterIds(BTreeSet::from([node_id]))).await
    }

    /// Removes a voter from the members.
    pub(crate) async fn remove_voter(&self, node_id: u64) -> Result<(), ChangeError> {
        self.change(Change::RemoveVoters(BTreeSet::from([node_id]))).await
    }

    /// Removes a learner from the members.
    pub(crate) async fn remove_learner(&self, node_id: u64) -> Result<(), ChangeError> {
        self.change(Change::RemoveNodes(BTreeSet::from([node_id]))).await
    }

    /// Whether a change of the voters is between its two steps.
    pub(crate) fn is_joint(&self) -> bool {
        self.status().joint
    }

    /// Whether the members are as the last change of them left them, and that is committed, as far as this node knows.
    pub(crate) fn is_settled(&self) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let changed = metrics.membership_config.log_id().map_or(0, |id| id.index);
        let applied = metrics.last_applied.map_or(0, |id| id.index);
        metrics.membership_config.membership().get_joint_config().len() == 1 && changed <= applied
    }

    /// Takes the second step of a change of the voters.
    pub(crate) async fn finish_joint(&self) -> Result<(), ChangeError> {
        self.change(Change::AddVoterIds(BTreeSet::new())).await
    }

    async fn change(&self, change: Change) -> Result<(), ChangeError> {
        let changed: Changed<_> = self.raft.change_membership(change, false).await;
        let error = match changed {
            Ok(_) => return Ok(()),
            // The entry may be in the log already.
            Err(RaftError::Fatal(fatal)) => {
                tracing::info!(%fatal, "the core has stopped while it changed the membership");
                return Err(ChangeError::Store(StoreError::OutcomeUnknown));
            }
            Err(RaftError::APIError(error)) => error,
        };
        tracing::info!(%error, "the membership was not changed");
        Err(match error {
            // Also said of an entry that was appended and lost with the leadership, which a voter may still commit.
            ClientWriteError::ForwardToLeader(_) => ChangeError::Store(StoreError::OutcomeUnknown),
            ClientWriteError::ChangeMembershipError(ChangeMembershipError::InProgress(_)) => {
                ChangeError::Store(StoreError::Unavailable("another change of the members is in progress"))
            }
            ClientWriteError::ChangeMembershipError(ChangeMembershipError::EmptyMembership(_)) => {
                ChangeError::LastVoter
            }
            ClientWriteError::ChangeMembershipError(ChangeMembershipError::LearnerNotFound(missing)) => {
                ChangeError::NotAMember(missing.node_id)
            }
        })
    }

    /// Log entries that a member lacks, as its leader knows; `None`: this node does not lead, or knows nothing of it.
    pub(crate) fn lag(&self, node_id: u64) -> Option<u64> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let matched = metrics.replication.as_ref()?.get(&node_id)?.map_or(0, |id| id.index);
        Some(metrics.last_log_index.unwrap_or_default().saturating_sub(matched))
    }

    /// Waits until a member lacks at most so much. `false`: not before the deadline, or this node does not lead.
    pub(crate) async fn wait_for_lag(&self, node_id: u64, at_most: u64, deadline: Instant) -> bool {
        let mut updates = self.raft.data_metrics();
        let caught_up = updates.wait_for(|now| {
            let matched = now.replication.as_ref().and_then(|replication| *replication.get(&node_id)?);
            let last = now.last_log.map_or(0, |id| id.index);
            matched.is_some_and(|matched| last.saturating_sub(matched.index) <= at_most)
        });
        matches!(tokio::time::timeout(left(deadline), caught_up).await, Ok(Ok(_)))
    }

    /// Takes no more proposals, and waits for those in flight. Proposals are taken again when the guard is dropped.
    pub(crate) async fn close_gate(&self, deadline: Instant) -> Option<RwLockWriteGuard<'_, ()>> {
        tokio::time::timeout(left(deadline), self.gate.write()).await.ok()
    }

    /// The vote under which this node leads or follows.
    pub(crate) async fn ballot(&self) -> Result<peer::Ballot, StoreError> {
        let vote = self.raft.with_raft_state(|state| *state.vote_ref()).await.map_err(stopped)?;
        Ok(convert::vote_to_proto(&vote))
    }

    /// Stands for election at once, because the leader under `ballot` hands over. `false`: that is not the leader
    /// that this node follows.
    pub(crate) async fn stand(&self, ballot: &peer::Ballot) -> Result<bool, StoreError> {
        if self.ballot().await? != *ballot {
            return Ok(false);
        }
        self.handover_term.store(ballot.term + 1, Ordering::Release);
        self.raft.trigger().elect().await.map_err(stopped)?;
        Ok(true)
    }

    /// Stops standing for election when the leader is silent.
    pub(crate) fn stop_standing(&self) {
        self.raft.runtime_config().elect(false);
    }

    /// Lets go of the leader in favour of a candidate that it chose itself: the candidate's vote becomes this
    /// node's, and the time for which a leader is kept to does not matter any more. The log is compared afterwards,
    /// as in any election; a promise not to follow lower votes is always safe.
    ///
    /// The core has no call for it, but takes the vote of whoever brings a snapshot; one of nothing is never
    /// installed.
    pub(super) async fn leave_leader(&self, request: &VoteRequest<u64>) -> Result<(), StoreError> {
        if request.last_log_id < self.raft.data_metrics().borrow().last_log {
            return Ok(());
        }
        let nothing = Snapshot::<TypeConfig> {
            meta: SnapshotMeta::default(),
            snapshot: Box::new(SnapshotFile::at(PathBuf::new())),
        };
        self.raft.install_full_snapshot(request.vote, nothing).await.map(|_| ()).map_err(stopped)
    }

    /// Keeps the core from doing anything for a while, as an fsync that stalls does.
    #[cfg(test)]
    #[allow(clippy::disallowed_methods, reason = "the stall is what is tested")]
    pub(crate) fn stall(&self, time: Duration) {
        self.raft.external_request(move |_| std::thread::sleep(time));
    }

    /// Whether the core is alive and in touch with the cluster, and the last index that it knows to be committed, also
    /// where its own log has not come so far.
    pub(crate) async fn health(&self) -> Result<u64, NotReady> {
        let heard = self.raft.with_raft_state(|state| (state.vote_last_modified(), state.committed));
        let (heard, committed) = match tokio::time::timeout(ANSWER_TIMEOUT, heard).await {
            Ok(Ok(heard)) => heard,
            Ok(Err(fatal)) => return Err(NotReady::Dead(fatal.to_string())),
            Err(_) => return Err(NotReady::Dead("it does not answer".into())),
        };
        let leader = self.leader().ok_or(NotReady::NoLeader)?;
        let silent = if leader.0 == self.node_id {
            let acknowledged = self.raft.metrics().borrow().millis_since_quorum_ack;
            // The only voter is its own quorum.
            let alone = self.voters().len() == 1;
            !alone && acknowledged.is_none_or(|millis| Duration::from_millis(millis) > self.silence)
        } else {
            heard.is_none_or(|heard| heard.elapsed() > self.silence)
        };
        if silent {
            return Err(NotReady::NoLeader);
        }
        let announced = self.announced.load(Ordering::Relaxed);
        Ok(committed.map_or(0, |id| id.index).max(announced))
    }

    /// Keeps the gauges and counters of the core, until it is gone: of who leads at once, of the rest every second.
    pub(crate) async fn measure<F>(self, mut sample: impl FnMut(u64) -> F)
    where
        F: Future<Output = ()>,
    {
        let mut updates = self.raft.server_metrics();
        let mut ticks = tokio::time::interval(Duration::from_secs(1));
        let (mut leader, mut term, mut committed) = (None, 0, 0);
        loop {
            {
                let now = updates.borrow_and_update();
                if now.current_leader.is_some() && now.current_leader != leader {
                    metrics::leader_changed();
                    let (leader_id, term) = (now.current_leader, now.vote.leader_id.term);
                    match leader_id == Some(self.node_id) {
                        true => tracing::info!(term, "this node leads"),
                        false => tracing::info!(leader_id, term, "another node leads"),
                    }
                    leader = now.current_leader;
                }
                let vote = now.vote.leader_id;
                if vote.term > term && vote.node_id == self.node_id {
                    metrics::election();
                }
                term = vote.term;
            }
            let asked = self.raft.with_raft_state(|state| state.committed);
            match tokio::time::timeout(ANSWER_TIMEOUT, asked).await {
                Ok(Ok(answer)) => committed = answer.map_or(0, |id| id.index),
                Ok(Err(_)) => return,
                // It stalls, as behind a slow disk; what is known of it is still to be seen.
                Err(_) => {}
            }
            sample(committed).await;
            tokio::select! {
                changed = updates.changed() => if changed.is_err() { return },
                _ = ticks.tick() => {}
            }
        }
    }
}
