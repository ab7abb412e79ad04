//! The read index: how a node knows that it is current.
//!
//! One quorum round at a time serves every reader that was waiting when it began. A follower asks the leader, which
//! does the same. A reader then waits until the index is applied here.

use std::time::{Duration, Instant};

use mezite_proto::peer;
use tokio::sync::{mpsc, oneshot};

use crate::{
    error::StoreError, membership::REMOVED, metrics, net::client::PeerPool, raft::Core, status::Progress,
};

/// Readers that may wait for the next round.
const QUEUE: usize = 65_536;
/// One round takes no longer; then the leader is asked again.
const ROUND_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause before the next round after one that failed, unless another leader is known before.
const RETRY: Duration = Duration::from_millis(50);

/// A reader that waits for a round.
struct Waiting {
    deadline: Instant,
    reply: oneshot::Sender<Result<u64, Unconfirmed>>,
}

/// The node could not confirm that it is current.
#[derive(Debug, Clone, Copy)]
struct Unconfirmed;

/// Where readers wait.
#[derive(Clone)]
pub(crate) struct Reads {
    queue: mpsc::Sender<Waiting>,
    core: Core,
    progress: Progress,
    /// Rounds begun, for tests.
    #[cfg(test)]
    pub(crate) rounds: std::sync::Arc<std::sync::atomic::AtomicU64>,
}

impl Reads {
    pub(crate) fn start(core: Core, pool: PeerPool, progress: Progress) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let reads = Self {
            queue,
            core: core.clone(),
            progress,
            #[cfg(test)]
            rounds: std::sync::Arc::default(),
        };
        #[cfg(test)]
        let rounds = std::sync::Arc::clone(&reads.rounds);
        let begin = move || {
            #[cfg(test)]
            rounds.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        };
        tokio::spawn(run(waiting, core, pool, begin));
        reads
    }

    /// Waits until this node's state holds every write that was acknowledged anywhere before the call.
    pub(crate) async fn barrier(&self, deadline: Instant) -> Result<(), StoreError> {
        loop {
            if self.progress.is_removed(self.core.node_id()) {
                return Err(StoreError::Stopped(REMOVED.into()));
            }
            let seen = self.core.leader_id();
            match self.round(deadline).await? {
                Ok(index) => return self.progress.wait_for(index, left(deadline)).await,
                Err(Unconfirmed) if Instant::now() + RETRY < deadline => {
                    self.core.leader_change(seen, RETRY).await;
                }
                Err(Unconfirmed) => return Err(StoreError::Unavailable("no leader with a quorum")),
            }
        }
    }

    /// A read index for a follower; only as leader. The follower's deadline ends the call.
    pub(crate) async fn index_for_peer(&self) -> Result<u64, StoreError> {
        if !self.core.is_leader() {
            return Err(StoreError::Unavailable("this node does not lead"));
        }
        let round = self.round(Instant::now() + ROUND_TIMEOUT).await?;
        round.map_err(|Unconfirmed| StoreError::Unavailable("no quorum"))
    }

    async fn round(&self, deadline: Instant) -> Result<Result<u64, Unconfirmed>, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.queue.try_send(Waiting { deadline, reply }).map_err(|_| StoreError::Overloaded)?;
        match tokio::time::timeout(left(deadline), answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(StoreError::Stopped("the reader task is gone".into())),
            Err(_) => Ok(Err(Unconfirmed)),
        }
    }
}

pub(crate) fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

async fn run(mut waiting: mpsc::Receiver<Waiting>, core: Core, pool: PeerPool, begin: impl Fn()) {
    let mut readers: Vec<Waiting> = Vec::new();
    while waiting.recv_many(&mut readers, QUEUE).await > 0 {
        // Who has given up needs no round.
        let now = Instant::now();
        for late in readers.extract_if(.., |reader| reader.reply.is_closed() || reader.deadline <= now) {
            let _ = late.reply.send(Err(Unconfirmed));
        }
        let Some(latest) = readers.iter().map(|reader| reader.deadline).max() else { continue };
        begin();
        let started = Instant::now();
        let within = left(latest).min(ROUND_TIMEOUT);
        let round = tokio::time::timeout(within, confirm(&core, &pool, within)).await;
        let answer = round.unwrap_or(Err(Unconfirmed));
        metrics::read_index(started.elapsed());
        for reader in readers.drain(..) {
            // The reader may have given up.
            let _ = reader.reply.send(answer);
        }
    }
}

async fn confirm(core: &Core, pool: &PeerPool, within: Duration) -> Result<u64, Unconfirmed> {
    match core.leader() {
        Some((leader, _)) if leader == core.node_id() => {
            core.read_index().await.ok().flatten().ok_or(Unconfirmed)
        }
        Some((leader, node)) => {
            let mut client = pool.get(leader, &node.peer_address).map_err(|_| Unconfirmed)?;
            let mut request = tonic::Request::new(peer::ReadIndexRequest {});
            request.set_timeout(within);
            let response = client.read_index(request).await.map_err(|status| {
                pool.heed(&status);
                Unconfirmed
            })?;
            Ok(response.into_inner().log_index)
        }
        None => Err(Unconfirmed),
    }
}
