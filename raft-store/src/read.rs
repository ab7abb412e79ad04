//! The read index: how a node knows that it is current.
//!
//! One quorum round at a time serves every reader that was waiting when it began. A follower asks the leader, which
//! does the same. A reader then waits until the index is applied here.

use std::time::{Duration, Instant};

use mezite_proto::peer;
use tokio::sync::{mpsc, oneshot};

use crate::{error::StoreError, net::client::PeerPool, raft::Core, status::Progress};

/// Readers that may wait for the next round.
const QUEUE: usize = 65_536;
/// One round takes no longer; then the leader is asked again.
const ROUND_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause before the next round after one that failed: an election takes longer than this.
const RETRY: Duration = Duration::from_millis(50);

type Waiting = oneshot::Sender<Result<u64, Unconfirmed>>;

/// The node could not confirm that it is current.
#[derive(Debug, Clone, Copy)]
struct Unconfirmed;

/// Where readers wait.
#[derive(Clone)]
pub(crate) struct Reads {
    queue: mpsc::Sender<Waiting>,
    core: Core,
    progress: Progress,
}

impl Reads {
    pub(crate) fn start(core: Core, pool: PeerPool, progress: Progress) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE);
        tokio::spawn(run(waiting, core.clone(), pool));
        Self { queue, core, progress }
    }

    /// Waits until this node's state holds every write that was acknowledged anywhere before the call.
    pub(crate) async fn barrier(&self, deadline: Instant) -> Result<(), StoreError> {
        loop {
            match self.round().await? {
                Ok(index) => return self.progress.wait_for(index, left(deadline)).await,
                Err(Unconfirmed) if Instant::now() + RETRY < deadline => tokio::time::sleep(RETRY).await,
                Err(Unconfirmed) => return Err(StoreError::Unavailable("no leader with a quorum")),
            }
        }
    }

    /// A read index for a follower; only as leader.
    pub(crate) async fn index_for_peer(&self) -> Result<u64, StoreError> {
        let leads = self.core.leader().is_some_and(|(leader, _)| leader == self.core.node_id());
        if !leads {
            return Err(StoreError::Unavailable("this node does not lead"));
        }
        self.round().await?.map_err(|Unconfirmed| StoreError::Unavailable("no quorum"))
    }

    async fn round(&self) -> Result<Result<u64, Unconfirmed>, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.queue.try_send(reply).map_err(|_| StoreError::Overloaded)?;
        answer.await.map_err(|_| StoreError::Stopped("the reader task is gone".into()))
    }
}

pub(crate) fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

async fn run(mut waiting: mpsc::Receiver<Waiting>, core: Core, pool: PeerPool) {
    let mut readers = Vec::new();
    while waiting.recv_many(&mut readers, QUEUE).await > 0 {
        let round = tokio::time::timeout(ROUND_TIMEOUT, confirm(&core, &pool)).await;
        let answer = round.unwrap_or(Err(Unconfirmed));
        for reader in readers.drain(..) {
            // The reader may have given up.
            let _ = reader.send(answer);
        }
    }
}

async fn confirm(core: &Core, pool: &PeerPool) -> Result<u64, Unconfirmed> {
    match core.leader() {
        Some((leader, _)) if leader == core.node_id() => {
            core.read_index().await.ok().flatten().ok_or(Unconfirmed)
        }
        Some((leader, node)) => {
            let mut client = pool.get(leader, &node.peer_address).map_err(|_| Unconfirmed)?;
            let response = client.read_index(peer::ReadIndexRequest {}).await.map_err(|_| Unconfirmed)?;
            Ok(response.into_inner().log_index)
        }
        None => Err(Unconfirmed),
    }
}
