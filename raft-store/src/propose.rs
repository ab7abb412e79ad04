//! Group commit: transactions that wait become one log entry.
//!
//! Every node runs one proposer. It takes what is waiting, up to a bound, whenever one of a few places in flight is
//! free: nothing waits when the store is idle, and under load each entry carries what came in meanwhile. On a
//! follower the same batches go to the leader, in one hop.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use mezite_proto::peer::{self, Outcome, outcome::Kind};
use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::{
    config::{Clock, Limits},
    metrics,
    net::client::PeerPool,
    raft::{Core, Proposed},
};

struct Pending {
    transaction: peer::Transaction,
    size: usize,
    reply: oneshot::Sender<Outcome>,
}

/// Where transactions wait.
#[derive(Clone)]
pub(crate) struct Proposer {
    queue: mpsc::Sender<Pending>,
    core: Core,
}

fn outcome(kind: Kind) -> Outcome {
    Outcome { kind: kind.into(), ..Outcome::default() }
}

impl Proposer {
    pub(crate) fn start(core: Core, pool: PeerPool, clock: Clock, limits: Limits) -> Self {
        let (queue, waiting) = mpsc::channel(limits.queue);
        let sender = Sender { core: core.clone(), pool, clock };
        tokio::spawn(run(waiting, sender, limits));
        Self { queue, core }
    }

    /// Proposes a transaction, through the leader, and answers what came of it.
    pub(crate) async fn propose(&self, transaction: peer::Transaction) -> Outcome {
        match self.enqueue(transaction) {
            Ok(reply) => reply.await.unwrap_or_else(|_| outcome(Kind::Unknown)),
            Err(outcome) => outcome,
        }
    }

    /// Proposes a follower's transactions; only as leader, so that there is at most one hop.
    pub(crate) async fn propose_for_peer(&self, transactions: Vec<peer::Transaction>) -> Vec<Outcome> {
        let leads = self.core.leader().is_some_and(|(leader, _)| leader == self.core.node_id());
        if !leads {
            return transactions.iter().map(|_| outcome(Kind::NotLeader)).collect();
        }
        let replies: Vec<_> = transactions.into_iter().map(|transaction| self.enqueue(transaction)).collect();
        let mut outcomes = Vec::with_capacity(replies.len());
        for reply in replies {
            outcomes.push(match reply {
                Ok(reply) => reply.await.unwrap_or_else(|_| outcome(Kind::Unknown)),
                Err(outcome) => outcome,
            });
        }
        outcomes
    }

    fn enqueue(&self, transaction: peer::Transaction) -> Result<oneshot::Receiver<Outcome>, Outcome> {
        let (reply, answer) = oneshot::channel();
        let size = transaction.encoded_len();
        match self.queue.try_send(Pending { transaction, size, reply }) {
            Ok(()) => Ok(answer),
            Err(_) => {
                metrics::proposal_failed("overloaded");
                Err(outcome(Kind::Overloaded))
            }
        }
    }
}

async fn run(mut waiting: mpsc::Receiver<Pending>, sender: Sender, limits: Limits) {
    let places = Arc::new(Semaphore::new(limits.batches_in_flight));
    let sender = Arc::new(sender);
    let mut held = None;
    loop {
        let first = match held.take() {
            Some(first) => first,
            None => match waiting.recv().await {
                Some(first) => first,
                None => return,
            },
        };
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let mut batch = vec![first];
        let mut bytes = batch.iter().map(|pending| pending.size).sum::<usize>();
        while batch.len() < limits.batch_transactions {
            let Ok(next) = waiting.try_recv() else { break };
            if bytes + next.size > limits.batch_bytes {
                held = Some(next);
                break;
            }
            bytes += next.size;
            batch.push(next);
        }
        let sender = Arc::clone(&sender);
        tokio::spawn(async move { sender.send(batch, place).await });
    }
}

struct Sender {
    core: Core,
    pool: PeerPool,
    clock: Clock,
}

impl Sender {
    async fn send(&self, batch: Vec<Pending>, _place: OwnedSemaphorePermit) {
        let started = Instant::now();
        let (transactions, replies): (Vec<_>, Vec<_>) =
            batch.into_iter().map(|pending| (pending.transaction, pending.reply)).unzip();
        let count = transactions.len();
        let outcomes = match self.core.leader() {
            Some((leader, _)) if leader == self.core.node_id() => self.commit(transactions).await,
            Some((leader, node)) => self.forward(leader, &node.peer_address, transactions).await,
            None => Err(Kind::NotLeader),
        };
        match outcomes {
            Ok(outcomes) if outcomes.len() == count => {
                metrics::proposed(started.elapsed(), count);
                for (reply, outcome) in replies.into_iter().zip(outcomes) {
                    // The caller may have given up.
                    let _ = reply.send(outcome);
                }
            }
            other => {
                let kind = other.err().unwrap_or(Kind::Unknown);
                metrics::proposal_failed(if kind == Kind::NotLeader { "not_leader" } else { "unknown" });
                for reply in replies {
                    let _ = reply.send(outcome(kind));
                }
            }
        }
    }

    async fn commit(&self, transactions: Vec<peer::Transaction>) -> Result<Vec<Outcome>, Kind> {
        let batch = peer::Batch { stamp_ms: (self.clock)(), transactions, sweep_limit: 0 };
        match self.core.propose(Bytes::from(batch.encode_to_vec())).await {
            Proposed::Applied(outcomes) => Ok(outcomes),
            Proposed::NotLeader => Err(Kind::NotLeader),
            Proposed::Unknown => Err(Kind::Unknown),
        }
    }

    async fn forward(
        &self,
        leader: u64,
        address: &str,
        transactions: Vec<peer::Transaction>,
    ) -> Result<Vec<Outcome>, Kind> {
        let mut client = self.pool.get(leader, address).map_err(|_| Kind::NotLeader)?;
        match client.propose(peer::ProposeRequest { transactions }).await {
            Ok(response) => Ok(response.into_inner().outcomes),
            // Even «unavailable» may come after the request was sent.
            Err(_) => Err(Kind::Unknown),
        }
    }
}
