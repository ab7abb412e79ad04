//! The Raft core and its storage: the only folder that names openraft's types, so that another version of it is a
//! change here alone.

mod control;
pub(crate) mod convert;
pub(crate) mod install;
pub(crate) mod log_store;
mod network;
pub(crate) mod receive;
pub(crate) mod snapshot_file;
pub(crate) mod state_machine;
#[cfg(test)]
mod suite;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
pub(crate) use control::ChangeError;
pub(crate) use log_store::LogStore;
use mezite_proto::peer;
pub(crate) use network::Peers;
use openraft::{
    Config, SnapshotPolicy,
    error::{CheckIsLeaderError, RaftError},
};
pub(crate) use snapshot_file::SnapshotFile;
pub(crate) use state_machine::StateMachine;
use tokio::sync::RwLock;

use crate::{
    config::StoreConfig,
    db::Db,
    error::StoreError,
    fatal::Fatal,
    status::{MemberStatus, Progress, Status},
    watch::Hub,
};

/// What a log entry of ours carries: an encoded [`peer::Batch`]. Its content never appears in `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Command(pub(crate) Bytes);

impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Command({} bytes)", self.0.len())
    }
}

/// What applying an entry answers: one outcome per transaction.
pub(crate) type Outcomes = Vec<peer::Outcome>;

/// A member, as openraft carries it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct PeerNode {
    /// host:port of the peer listener.
    pub(crate) peer_address: String,
    /// Data of the application.
    pub(crate) app_address: String,
}

openraft::declare_raft_types!(
    /// The types of our Raft.
    pub(crate) TypeConfig:
        D = Command,
        R = Outcomes,
        NodeId = u64,
        Node = PeerNode,
        SnapshotData = SnapshotFile,
);

type OpenRaft = openraft::Raft<TypeConfig>;

/// What came of proposing a batch.
#[derive(Debug)]
pub(crate) enum Proposed {
    /// It was applied.
    Applied(Outcomes),
    /// This node does not take proposals; the batch was surely not appended.
    NotLeader,
    /// It may or may not be applied some day.
    Unknown,
}

/// A running Raft core.
#[derive(Clone)]
pub(crate) struct Core {
    raft: OpenRaft,
    node_id: u64,
    /// Each proposal in flight holds it for reading; a leader that hands over holds it for writing.
    gate: Arc<RwLock<()>>,
    /// The term in which this node stands because the leader asked it to; see [`Peers::handover_term`].
    handover_term: Arc<AtomicU64>,
    /// A peer is silent when it was not heard for longer.
    silence: Duration,
    /// The last index that a leader said was committed. The core goes no further than its own log.
    announced: Arc<AtomicU64>,
}

impl Core {
    /// Opens the storage and starts the core.
    pub(crate) async fn start(
        node_id: u64,
        config: &StoreConfig,
        db: Arc<Db>,
        hub: Arc<Hub>,
        progress: Progress,
        peers: Peers,
        fatal: Fatal,
    ) -> Result<(Self, StateMachine), StoreError> {
        let timing = config.timing;
        let raft_config = Config {
            cluster_name: "raft-store".into(),
            heartbeat_interval: millis(timing.heartbeat),
            election_timeout_min: millis(timing.election_min),
            election_timeout_max: millis(timing.election_max),
            install_snapshot_timeout: millis(SNAPSHOT_TIMEOUT),
            snapshot_policy: SnapshotPolicy::LogsSinceLast(config.limits.snapshot_every),
            max_in_snapshot_log_to_keep: config.limits.keep_entries,
            purge_batch_size: (config.limits.keep_entries / 4).max(1),
            replication_lag_threshold: config.limits.snapshot_every.saturating_mul(2),
            ..Config::default()
        };
        let raft_config = raft_config.validate().map_err(|error| StoreError::Config(error.to_string()))?;
        let log = LogStore::open(Arc::clone(&db), fatal.clone())?;
        let state = StateMachine::open(db, config, hub, progress, fatal)?;
        // An installation ended after the state had switched and before its file was kept. The core purges the log up
        // to the state; an older snapshot would leave a gap between itself and the log.
        if log.next_index() < state.next_index() {
            state.forget_snapshots()?;
        }
        state.refuse_gaps();
        let handover_term = Arc::clone(&peers.handover_term);
        let raft = OpenRaft::new(node_id, Arc::new(raft_config), peers, log, state.clone())
            .await
            .map_err(|error| StoreError::Stopped(error.to_string()))?;
        let silence = timing.election_max * 2;
        let announced = Arc::default();
        Ok((Self { raft, node_id, gate: Arc::default(), handover_term, silence, announced }, state))
    }

    pub(crate) fn node_id(&self) -> u64 {
        self.node_id
    }

    /// What the core knows of the cluster. The state adds what it knows itself.
    pub(crate) fn status(&self) -> Status {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let membership = metrics.membership_config.membership();
        let voters: Vec<u64> = membership.voter_ids().collect();
        // Of one that it has not heard yet a leader knows nothing: it may lack everything.
        let matched = |node_id: &u64| {
            let replication = metrics.replication.as_ref()?;
            replication.get(node_id).map(|matched| matched.map_or(0, |id| id.index))
        };
        let members = membership.nodes().map(|(node_id, node)| MemberStatus {
            node_id: *node_id,
            peer_address: node.peer_address.clone(),
            app_address: node.app_address.clone(),
            voter: voters.contains(node_id),
            matched_index: matched(node_id),
        });
        Status {
            node_id: metrics.id,
            leader_id: metrics.current_leader,
            term: metrics.current_term,
            last_log_index: metrics.last_log_index.unwrap_or_default(),
            // The core publishes what it handed to the state: that was committed.
            committed_index: metrics.last_applied.map_or(0, |id| id.index),
            snapshot_index: metrics.snapshot.map_or(0, |id| id.index),
            members: members.collect(),
            joint: membership.get_joint_config().len() > 1,
            ..Status::default()
        }
    }

    /// Resolves, with the reason, when the core has died.
    pub(crate) async fn dead(&self) -> String {
        let mut metrics = self.raft.metrics();
        match metrics.wait_for(|metrics| metrics.running_state.is_err()).await {
            Ok(metrics) => metrics.running_state.as_ref().err().map(ToString::to_string).unwrap_or_default(),
            Err(_) => "the Raft core is gone".into(),
        }
    }

    /// The leader that this node knows of.
    pub(crate) fn leader(&self) -> Option<(u64, PeerNode)> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let leader = metrics.current_leader?;
        let node = metrics.membership_config.membership().get_node(&leader)?.clone();
        Some((leader, node))
    }

    pub(crate) async fn is_initialized(&self) -> Result<bool, StoreError> {
        self.raft.is_initialized().await.map_err(stopped)
    }

    /// Makes this node the first and only member.
    pub(crate) async fn initialize(&self, node: PeerNode) -> Result<(), StoreError> {
        let members = std::collections::BTreeMap::from([(self.node_id, node)]);
        self.raft.initialize(members).await.map_err(|error| StoreError::Stopped(error.to_string()))
    }

    /// Proposes a batch and waits until it is applied here.
    pub(crate) async fn propose(&self, batch: Bytes) -> Proposed {
        let Ok(_open) = self.gate.try_read() else { return Proposed::NotLeader };
        match self.raft.client_write(Command(batch)).await {
            Ok(response) => Proposed::Applied(response.data),
            // The core answers «forward to the leader» for an entry that it never appended, and also for one that it
            // appended and lost with its leadership, which a voter may still hold and commit.
            Err(RaftError::APIError(_) | RaftError::Fatal(_)) => Proposed::Unknown,
        }
    }

    /// A log index that covers every write acknowledged before this call, confirmed by a quorum. `None`: this node
    /// does not lead, or cannot reach a quorum.
    pub(crate) async fn read_index(&self) -> Result<Option<u64>, StoreError> {
        match self.raft.get_read_log_id().await {
            Ok((read, _)) => Ok(Some(read.map_or(0, |id| id.index))),
            Err(RaftError::APIError(
                CheckIsLeaderError::ForwardToLeader(_) | CheckIsLeaderError::QuorumNotEnough(_),
            )) => Ok(None),
            Err(RaftError::Fatal(fatal)) => Err(stopped(fatal)),
        }
    }

    /// Takes note of what a leader says is committed.
    pub(crate) fn announce(&self, committed: u64) {
        self.announced.fetch_max(committed, Ordering::Relaxed);
    }

    /// Raft AppendEntries from a peer.
    pub(crate) async fn append(
        &self,
        request: peer::AppendRequest,
    ) -> Result<peer::AppendResponse, StoreError> {
        let request = convert::append_request(request)?;
        if let Some(commit) = request.leader_commit {
            self.announce(commit.index);
        }
        match self.raft.append_entries(request).await {
            Ok(response) => Ok(convert::append_response_to_proto(response)),
            Err(error) => Err(StoreError::Stopped(error.to_string())),
        }
    }

    /// Raft RequestVote from a peer.
    pub(crate) async fn vote(&self, request: peer::VoteRequest) -> Result<peer::VoteResponse, StoreError> {
        let handover = request.handover;
        let request = convert::vote_request(&request)?;
        if handover {
            self.leave_leader(&request).await?;
        }
        match self.raft.vote(request).await {
            Ok(response) => Ok(convert::vote_response_to_proto(&response)),
            Err(error) => Err(StoreError::Stopped(error.to_string())),
        }
    }

    /// A whole snapshot from a peer; its file is complete and synced.
    pub(crate) async fn install_snapshot(
        &self,
        header: &peer::SnapshotHeader,
        file: SnapshotFile,
    ) -> Result<peer::InstallSnapshotResponse, StoreError> {
        let (vote, meta) = convert::snapshot_header(header)?;
        let snapshot = openraft::Snapshot { meta, snapshot: Box::new(file) };
        match self.raft.install_full_snapshot(vote, snapshot).await {
            Ok(response) => {
                Ok(peer::InstallSnapshotResponse { vote: Some(convert::vote_to_proto(&response.vote)) })
            }
            Err(fatal) => Err(stopped(fatal)),
        }
    }

    /// Takes a snapshot now.
    pub(crate) async fn trigger_snapshot(&self) -> Result<(), StoreError> {
        self.raft.trigger().snapshot().await.map_err(stopped)
    }

    /// Stops standing for election, then stops.
    pub(crate) async fn shutdown(&self) {
        self.stop_standing();
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(%error, "the Raft core did not stop cleanly");
        }
    }
}

/// How long the transfer and installation of one snapshot may take.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(600);

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn stopped(fatal: openraft::error::Fatal<u64>) -> StoreError {
    StoreError::Stopped(fatal.to_string())
}
