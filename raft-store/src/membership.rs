//! Who belongs to the cluster: nodes join as learners, become voters once they have caught up, and are removed for
//! ever.
//!
//! Any member takes a change to the leader, in one hop. The leader makes one change at a time; each can be asked for
//! again without harm. A change of the voters has two steps in the log, and a new leader takes the second one when
//! the old one could not. The ids of removed nodes are part of the replicated state, and peers refuse their calls.

mod wire;

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::join_all;
use mezite_proto::peer;

use self::wire::activation;
use crate::{
    db::Db,
    error::StoreError,
    net::client::is_removal,
    raft::{ChangeError, PeerNode},
    read::left,
    status::MemberStatus,
    store::{Inner, Store},
};

/// What a removed node is told by its peers. They compare it, so it never changes.
pub(crate) const REMOVED: &str = "this node was removed from the cluster; its id never returns";

/// In `raft_meta`: there when this node was told that it was removed.
const REMOVED_KEY: &[u8] = b"removed";
/// Pause before a change is asked for again, unless another leader is known before.
const RETRY: Duration = Duration::from_millis(50);
/// One member is asked to bring a node in for this long, its catching up included; then the next one.
const ACTIVATE_TIMEOUT: Duration = Duration::from_secs(10);
/// A voter that does not answer a ping within this is not reachable.
const PING_TIMEOUT: Duration = Duration::from_secs(1);
/// How often a leader looks for a change whose second step is missing.
const TEND_INTERVAL: Duration = Duration::from_millis(500);
/// Time for that second step; then it is tried again.
const FINISH_TIMEOUT: Duration = Duration::from_secs(10);

/// What a node is in the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It follows the log, and has no vote.
    Learner,
    /// It votes, and counts for the quorum.
    Voter,
}

/// Why a change of the members was not made.
#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    /// The node is not a member.
    #[error("node {0} is not a member of the cluster")]
    NotAMember(u64),
    /// The learner lacks more of the log than a voter may.
    #[error(
        "node {node_id} lacks {lag} log entries; a voter may lack {max_lag}: try again when it has caught up"
    )]
    NotCaughtUp {
        /// The learner.
        node_id: u64,
        /// Entries that it lacks.
        lag: u64,
        /// Entries that it may lack, [`crate::Limits::voter_lag`].
        max_lag: u64,
    },
    /// The voters that remain could not reach a quorum.
    #[error(
        "without node {node_id}, {reachable} of the {voters} voters that remain can be reached, which is no quorum: \
         the cluster would stop. Bring them back, or remove those that are gone first"
    )]
    NoQuorum {
        /// The node that was to be removed.
        node_id: u64,
        /// Remaining voters that answer now.
        reachable: u64,
        /// Voters that remain.
        voters: u64,
    },
    /// The node was removed; its id never returns.
    #[error("node {0} was removed from the cluster; its id never returns")]
    Removed(u64),
    /// The node is the only voter.
    #[error("node {0} is the only voter and cannot be removed")]
    LastVoter(u64),
    /// The change was not asked for, or [`StoreError::OutcomeUnknown`]: it may be made. Asking again is safe.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A change of the members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    Add { node_id: u64, node: PeerNode, role: Role },
    Promote { node_id: u64 },
    Remove { node_id: u64, force: bool, bar: bool },
}

impl Change {
    fn node_id(&self) -> u64 {
        match self {
            Self::Add { node_id, .. } | Self::Promote { node_id } | Self::Remove { node_id, .. } => *node_id,
        }
    }
}

impl Store {
    /// Takes part in the cluster: asks `members` (node id and peer address), and those that this node knows itself,
    /// until the leader has given this node the role and knows its addresses. Returns at once where that is so. A
    /// voter stays one, whatever role is asked for.
    ///
    /// # Errors
    /// [`StoreError::Stopped`] when the node was removed from the cluster, or the Raft core has stopped.
    pub async fn activate(&self, members: &[(u64, String)], role: Role) -> Result<(), StoreError> {
        let inner = &self.inner;
        let (own_id, own) = (inner.core.node_id(), self.own_node());
        loop {
            inner.check_serving()?;
            let known = self.members();
            if known.iter().any(|member| {
                let in_role = member.voter || role == Role::Learner;
                let as_now = member.peer_address == own.peer_address && member.app_address == own.app_address;
                member.node_id == own_id && in_role && as_now
            }) {
                return Ok(());
            }
            let known = known.into_iter().map(|member| (member.node_id, member.peer_address));
            let others = members.iter().cloned().chain(known).filter(|(node_id, _)| *node_id != own_id);
            for (node_id, address) in others {
                let Ok(mut client) = inner.pool.get(node_id, &address) else { continue };
                let mut request = tonic::Request::new(activation(own_id, &own, role));
                request.set_timeout(ACTIVATE_TIMEOUT);
                match client.activate(request).await {
                    Ok(_) => break,
                    Err(status) if is_removal(&status) => {
                        inner.pool.heed(&status);
                        break;
                    }
                    Err(status) => tracing::debug!(node_id, message = status.message(), "not activated yet"),
                }
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// The members, as this node knows them, ascending by id.
    pub fn members(&self) -> Vec<MemberStatus> {
        self.inner.core.status().members
    }

    /// Resolves when this node was removed from the cluster: it serves nothing any more, and should end.
    pub async fn removed(&self) {
        self.inner.progress.wait_for_removal(self.inner.core.node_id()).await;
    }

    /// Makes a learner a voter: when this returns, the configuration in which it votes is committed, and no other counts beside it.
    /// Does nothing where that is so already.
    ///
    /// # Errors
    /// [`MembershipError::NotCaughtUp`] when it lacks too much of the log now; it can be asked for again.
    pub async fn promote(&self, node_id: u64) -> Result<(), MembershipError> {
        self.change(Change::Promote { node_id }).await
    }

    /// Removes a member for ever: its id never returns, and its peers refuse its calls. Does nothing where it was
    /// removed already. The leader can be removed too, through any node, itself included.
    ///
    /// `force` removes it even if the voters that remain cannot reach a quorum now; the change then waits for them,
    /// and so does every write.
    ///
    /// # Errors
    /// [`MembershipError::NoQuorum`], unless forced; [`StoreError::OutcomeUnknown`] when there was no answer in time.
    pub async fn remove(&self, node_id: u64, force: bool) -> Result<(), MembershipError> {
        self.change(Change::Remove { node_id, force, bar: false }).await
    }

    /// Removes a node for ever that has an identity of the cluster and is no member, so that it never becomes one. One that
    /// has become a member meanwhile is removed as by [`Store::remove`].
    ///
    /// # Errors
    /// As of [`Store::remove`], without force.
    pub async fn bar(&self, node_id: u64) -> Result<(), MembershipError> {
        self.change(Change::Remove { node_id, force: false, bar: true }).await
    }

    /// Whether a node was removed, as this node knows.
    pub fn was_removed(&self, node_id: u64) -> bool {
        self.inner.progress.is_removed(node_id)
    }

    /// Has the change made, asking again while nobody can make it.
    async fn change(&self, change: Change) -> Result<(), MembershipError> {
        let deadline = Instant::now() + self.deadline;
        // Whether some attempt may still take effect: then giving up must not claim that nothing was changed.
        let mut pending = false;
        loop {
            // What this node may have learned before the answer to it.
            if matches!(change, Change::Remove { node_id, .. } if self.inner.progress.is_removed(node_id)) {
                return Ok(());
            }
            self.inner.check_serving()?;
            let seen = self.inner.core.leader_id();
            let error = match self.inner.change_once(&change, deadline).await {
                Err(MembershipError::Store(
                    error @ (StoreError::Unavailable(_) | StoreError::OutcomeUnknown),
                )) => error,
                other => return other,
            };
            pending |= matches!(error, StoreError::OutcomeUnknown);
            if Instant::now() + RETRY >= deadline {
                return Err(if pending { StoreError::OutcomeUnknown } else { error }.into());
            }
            self.inner.core.leader_change(seen, RETRY).await;
        }
    }
}

impl Inner {
    /// Refuses when this node was removed.
    pub(crate) fn check_serving(&self) -> Result<(), StoreError> {
        match self.progress.is_removed(self.core.node_id()) {
            true => Err(StoreError::Stopped(REMOVED.into())),
            false => Ok(()),
        }
    }

    /// Makes a change as leader, or has the leader make it.
    pub(crate) async fn change_once(
        &self,
        change: &Change,
        deadline: Instant,
    ) -> Result<(), MembershipError> {
        let (leader, node) = match self.core.leader() {
            Some((leader, _)) if leader == self.core.node_id() => {
                return self.change_as_leader(change, deadline).await;
            }
            Some(known) => known,
            None => return Err(StoreError::Unavailable("no leader is known").into()),
        };
        let mut client = self.pool.get(leader, &node.peer_address)?;
        let mut request = tonic::Request::new(change.to_proto());
        request.set_timeout(left(deadline));
        match client.change_membership(request).await {
            Ok(response) => match response.into_inner().refusal {
                Some(refusal) => Err(MembershipError::from_refusal(&refusal)),
                None => Ok(()),
            },
            Err(status) => {
                self.pool.heed(&status);
                tracing::info!(leader, message = status.message(), "the leader did not change the members");
                // Even «unavailable» may come after the request was sent.
                Err(StoreError::OutcomeUnknown.into())
            }
        }
    }

    /// Makes a change; only as leader.
    pub(crate) async fn change_as_leader(
        &self,
        change: &Change,
        deadline: Instant,
    ) -> Result<(), MembershipError> {
        if !self.core.is_leader() {
            return Err(StoreError::Unavailable("this node does not lead").into());
        }
        // So that what this node knows of members and removed ids is current.
        self.reads.barrier(deadline).await?;
        let node_id = change.node_id();
        match change {
            Change::Remove { .. } if self.progress.is_removed(node_id) => Ok(()),
            _ if self.progress.is_removed(node_id) => Err(MembershipError::Removed(node_id)),
            Change::Add { node, role, .. } => self.add(node_id, node, *role, deadline).await,
            Change::Promote { .. } => self.make_voter(node_id, deadline).await,
            Change::Remove { force, bar, .. } => self.remove_member(node_id, *force, *bar, deadline).await,
        }
    }

    async fn add(
        &self,
        node_id: u64,
        node: &PeerNode,
        role: Role,
        deadline: Instant,
    ) -> Result<(), MembershipError> {
        {
            let _one = self.changes.lock().await;
            if self.core.member(node_id).as_ref() != Some(node) {
                let added = self.core.set_node(node_id, node.clone());
                self.within(deadline, node_id, added).await?;
            }
        }
        if role == Role::Learner {
            return Ok(());
        }
        if !self.core.voters().contains_key(&node_id) {
            // What it lacks is for the error to say.
            self.core.wait_for_lag(node_id, self.config.limits.voter_lag, deadline).await;
        }
        self.make_voter(node_id, deadline).await
    }

    async fn make_voter(&self, node_id: u64, deadline: Instant) -> Result<(), MembershipError> {
        let _one = self.changes.lock().await;
        if self.core.voters().contains_key(&node_id) {
            // The change that made it one may have been broken off, by its caller's deadline or an election: then this goes on with it.
            if self.core.is_settled() {
                return Ok(());
            }
            return self.within(deadline, node_id, self.core.finish_joint()).await;
        }
        if self.core.member(node_id).is_none() {
            return Err(MembershipError::NotAMember(node_id));
        }
        let max_lag = self.config.limits.voter_lag;
        let lag = self.core.lag(node_id).ok_or(StoreError::Unavailable("this node does not lead"))?;
        if lag > max_lag {
            return Err(MembershipError::NotCaughtUp { node_id, lag, max_lag });
        }
        self.within(deadline, node_id, self.core.add_voter(node_id)).await
    }

    async fn remove_member(
        &self,
        node_id: u64,
        force: bool,
        bar: bool,
        deadline: Instant,
    ) -> Result<(), MembershipError> {
        let one = self.changes.lock().await;
        if self.progress.is_removed(node_id) {
            return Ok(());
        }
        if self.core.member(node_id).is_none() {
            if !bar {
                return Err(MembershipError::NotAMember(node_id));
            }
            // Replicas remember as removed who was a member: so it becomes one, of no address and without a vote; if it is left at
            // that, it is removed by the next attempt.
            self.within(deadline, node_id, self.core.set_node(node_id, PeerNode::default())).await?;
        }
        let mut remaining = self.core.voters();
        if remaining.remove(&node_id).is_none() {
            return self.within(deadline, node_id, self.core.remove_learner(node_id)).await;
        }
        if remaining.is_empty() {
            return Err(MembershipError::LastVoter(node_id));
        }
        let voters = remaining.len() as u64;
        let reachable = self.count_reachable(remaining).await;
        if !force && reachable <= voters / 2 {
            return Err(MembershipError::NoQuorum { node_id, reachable, voters });
        }
        if node_id == self.core.node_id() {
            drop(one);
            // The next leader removes this node: no time without a leader.
            match self.step_down().await {
                Ok(()) => return Err(StoreError::Unavailable("the leader has handed over").into()),
                Err(error) => tracing::info!(%error, "the leader removes itself while it leads"),
            }
            let _one = self.changes.lock().await;
            return self.within(deadline, node_id, self.core.remove_voter(node_id)).await;
        }
        self.within(deadline, node_id, self.core.remove_voter(node_id)).await
    }

    /// Waits for one step of a change.
    async fn within(
        &self,
        deadline: Instant,
        node_id: u64,
        step: impl Future<Output = Result<(), ChangeError>>,
    ) -> Result<(), MembershipError> {
        match tokio::time::timeout(left(deadline), step).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(ChangeError::NotAMember(missing))) => Err(MembershipError::NotAMember(missing)),
            Ok(Err(ChangeError::LastVoter)) => Err(MembershipError::LastVoter(node_id)),
            Ok(Err(ChangeError::Store(error))) => Err(error.into()),
            Err(_) => Err(StoreError::OutcomeUnknown.into()),
        }
    }

    /// How many of these answer now; this node does.
    async fn count_reachable(&self, nodes: impl IntoIterator<Item = (u64, PeerNode)>) -> u64 {
        let pings = nodes.into_iter().map(|(node_id, node)| async move {
            if node_id == self.core.node_id() {
                return true;
            }
            let Ok(mut client) = self.pool.get(node_id, &node.peer_address) else { return false };
            let ping = tokio::time::timeout(PING_TIMEOUT, client.ping(peer::PingRequest {}));
            matches!(ping.await, Ok(Ok(_)))
        });
        join_all(pings).await.into_iter().map(u64::from).sum()
    }
}

/// As leader, takes the second step of a change that was interrupted after the first.
pub(crate) async fn tend(inner: Arc<Inner>) {
    let mut ticks = tokio::time::interval(TEND_INTERVAL);
    loop {
        ticks.tick().await;
        if !inner.core.is_leader() || !inner.core.is_joint() {
            continue;
        }
        // Whoever makes a change holds it for both steps.
        let _one = inner.changes.lock().await;
        if !inner.core.is_leader() || !inner.core.is_joint() {
            continue;
        }
        tracing::info!("finishing a change of the voters that was interrupted");
        let finished = tokio::time::timeout(FINISH_TIMEOUT, inner.core.finish_joint()).await;
        if !matches!(finished, Ok(Ok(()))) {
            tracing::info!(?finished, "the change of the voters is not finished; it is tried again");
        }
    }
}

/// When this node is removed: says so once, remembers it, and stops disturbing the cluster with elections.
pub(crate) async fn retire(inner: Arc<Inner>) {
    let node_id = inner.core.node_id();
    inner.progress.wait_for_removal(node_id).await;
    inner.core.stop_standing();
    tracing::error!(node_id, "{REMOVED}; it serves nothing, and its data directory can be deleted");
    let remembering = Arc::clone(&inner);
    let remembered = tokio::task::spawn_blocking(move || remember_removal(&remembering.db)).await;
    if !matches!(remembered, Ok(Ok(()))) {
        tracing::warn!(
            ?remembered,
            "after a restart this node will have to be told again that it was removed"
        );
    }
}

fn remember_removal(db: &Db) -> Result<(), StoreError> {
    let mut batch = rocksdb::WriteBatch::default();
    batch.put_cf(&db.raft_meta()?, REMOVED_KEY, [1]);
    Ok(db.write(batch, true)?)
}

/// Whether this node was told that it was removed. It may never have seen the log entry that says so.
pub(crate) fn remembers_removal(db: &Db) -> Result<bool, StoreError> {
    Ok(db.rocks().get_cf(&db.raft_meta()?, REMOVED_KEY)?.is_some())
}
