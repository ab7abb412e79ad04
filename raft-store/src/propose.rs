//! Group commit: transactions that wait become one log entry.
//!
//! Every node runs one proposer. It takes what is waiting, up to a bound, whenever one of a few places in flight is
//! free: nothing waits when the store is idle, and under load each entry carries what came in meanwhile. On a
//! follower the same batches go to the leader, in one hop.
//!
//! What waits is bounded in number and in bytes. A transaction whose caller has given up before it was taken is
//! dropped, and the caller knows that it was.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use mezite_proto::peer::{self, Outcome, outcome::Kind};
use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::{
    config::{Clock, Limits, Timing},
    metrics,
    net::client::PeerPool,
    raft::{Core, Proposed},
    read::left,
    space::{Full, SpaceAlarm},
};

/// A forwarded batch waits at least this long for its answer: its transactions have a time of their own too.
const MIN_FORWARD: Duration = Duration::from_millis(10);

struct Pending {
    transaction: peer::Transaction,
    size: usize,
    /// When its caller gives up.
    deadline: Instant,
    reply: oneshot::Sender<Outcome>,
    /// Set once, by who takes it to propose it or by who gives it up.
    claimed: Arc<AtomicBool>,
    /// Its share of the bytes that may wait, until it is answered.
    room: OwnedSemaphorePermit,
}

/// A transaction that waits for its outcome.
struct Ticket {
    answer: oneshot::Receiver<Outcome>,
    claimed: Arc<AtomicBool>,
}

/// Where transactions wait.
#[derive(Clone)]
pub(crate) struct Proposer {
    queue: mpsc::Sender<Pending>,
    room: Arc<Semaphore>,
    core: Core,
    space: Arc<SpaceAlarm>,
}

fn outcome(kind: Kind) -> Outcome {
    Outcome { kind: kind.into(), ..Outcome::default() }
}

impl Proposer {
    pub(crate) fn start(
        core: Core,
        pool: PeerPool,
        clock: Clock,
        limits: Limits,
        space: Arc<SpaceAlarm>,
    ) -> Self {
        let (queue, waiting) = mpsc::channel(limits.queue);
        let sender = Sender { core: core.clone(), pool, clock };
        tokio::spawn(run(waiting, sender, limits));
        let room = Arc::new(Semaphore::new(limits.queue_bytes.min(Semaphore::MAX_PERMITS)));
        Self { queue, room, core, space }
    }

    /// Proposes a transaction, through the leader, and answers what came of it: [`Kind::Expired`] if it was not
    /// proposed before the deadline, [`Kind::Unknown`] if it was and there is no answer.
    pub(crate) async fn propose(&self, transaction: peer::Transaction, deadline: Instant) -> Outcome {
        let ticket = match self.enqueue(transaction, deadline) {
            Ok(ticket) => ticket,
            Err(outcome) => return outcome,
        };
        match tokio::time::timeout(left(deadline), ticket.answer).await {
            Ok(answer) => answer.unwrap_or_else(|_| outcome(Kind::Unknown)),
            Err(_) if ticket.claimed.swap(true, Ordering::AcqRel) => outcome(Kind::Unknown),
            Err(_) => {
                metrics::proposal_failed("expired");
                outcome(Kind::Expired)
            }
        }
    }

    /// Proposes a follower's transactions; only as leader, so that there is at most one hop. The follower's deadline
    /// ends the call; what is still waiting then is dropped. A leader that is full refuses what a follower that is not
    /// has let through.
    pub(crate) async fn propose_for_peer(&self, transactions: Vec<peer::Transaction>) -> Vec<Outcome> {
        if !self.core.takes_proposals() {
            return transactions.iter().map(|_| outcome(Kind::NotLeader)).collect();
        }
        let deadline = Instant::now() + Timing::MAX_DEADLINE;
        let admitted =
            |transaction| self.admit(&transaction).and_then(|()| self.enqueue(transaction, deadline));
        let tickets: Vec<_> = transactions.into_iter().map(admitted).collect();
        let mut outcomes = Vec::with_capacity(tickets.len());
        for ticket in tickets {
            outcomes.push(match ticket {
                Ok(ticket) => ticket.answer.await.unwrap_or_else(|_| outcome(Kind::Unknown)),
                Err(outcome) => outcome,
            });
        }
        outcomes
    }

    /// Transactions that wait to be taken.
    pub(crate) fn waiting(&self) -> usize {
        self.queue.max_capacity() - self.queue.capacity()
    }

    fn admit(&self, transaction: &peer::Transaction) -> Result<(), Outcome> {
        self.space.admit(transaction).map_err(|full| {
            metrics::proposal_failed("database_full");
            let Full { size, limit } = full;
            Outcome { database_size: size, database_limit: limit, ..outcome(Kind::DatabaseFull) }
        })
    }

    fn enqueue(&self, transaction: peer::Transaction, deadline: Instant) -> Result<Ticket, Outcome> {
        let overloaded = || {
            metrics::proposal_failed("overloaded");
            outcome(Kind::Overloaded)
        };
        let size = transaction.encoded_len();
        let permits = u32::try_from(size).map_err(|_| overloaded())?;
        let room = Arc::clone(&self.room).try_acquire_many_owned(permits).map_err(|_| overloaded())?;
        let (reply, answer) = oneshot::channel();
        let claimed = Arc::<AtomicBool>::default();
        let pending = Pending { transaction, size, deadline, reply, claimed: Arc::clone(&claimed), room };
        self.queue.try_send(pending).map_err(|_| overloaded())?;
        Ok(Ticket { answer, claimed })
    }
}

/// How long a batch may be on its way to the leader, when the last of its callers gives up then. It is no matter of the
/// transactions' own time, which is the cluster's: this node's clock may be hours behind it, and a leader that does not
/// answer would hold up all that comes after.
fn forward_time(latest: Option<Instant>) -> Duration {
    latest.map_or(MIN_FORWARD, |latest| left(latest).clamp(MIN_FORWARD, Timing::MAX_DEADLINE))
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
        let mut bytes = first.size;
        let mut batch: Vec<Pending> = sender.take(first).into_iter().collect();
        while batch.len() < limits.batch_transactions {
            let Ok(next) = waiting.try_recv() else { break };
            if bytes + next.size > limits.batch_bytes {
                held = Some(next);
                break;
            }
            bytes += next.size;
            batch.extend(sender.take(next));
        }
        if !batch.is_empty() {
            let sender = Arc::clone(&sender);
            tokio::spawn(async move { sender.send(batch, place).await });
        }
    }
}

struct Sender {
    core: Core,
    pool: PeerPool,
    clock: Clock,
}

impl Sender {
    /// Takes a transaction that is still wanted and not too late.
    fn take(&self, pending: Pending) -> Option<Pending> {
        let late = pending.transaction.not_after_ms < (self.clock)();
        if late || pending.reply.is_closed() {
            metrics::proposal_failed("expired");
            // Its caller may have given up.
            let _ = pending.reply.send(outcome(Kind::Expired));
            return None;
        }
        let given_up = pending.claimed.swap(true, Ordering::AcqRel);
        (!given_up).then_some(pending)
    }

    async fn send(&self, batch: Vec<Pending>, _place: OwnedSemaphorePermit) {
        let started = Instant::now();
        let (count, latest) = (batch.len(), batch.iter().map(|pending| pending.deadline).max());
        let mut transactions = Vec::with_capacity(count);
        let mut replies = Vec::with_capacity(count);
        for pending in batch {
            transactions.push(pending.transaction);
            replies.push((pending.reply, pending.room));
        }
        let outcomes = match self.core.leader() {
            Some((leader, _)) if leader == self.core.node_id() => self.commit(transactions).await,
            Some((leader, node)) => {
                let within = forward_time(latest);
                self.forward(leader, &node.peer_address, transactions, within).await
            }
            None => Err(Kind::NotLeader),
        };
        match outcomes {
            Ok(outcomes) if outcomes.len() == count => {
                metrics::proposed(started.elapsed(), count);
                for ((reply, _), outcome) in replies.into_iter().zip(outcomes) {
                    // The caller may have given up.
                    let _ = reply.send(outcome);
                }
            }
            other => {
                let kind = other.err().unwrap_or(Kind::Unknown);
                metrics::proposal_failed(if kind == Kind::NotLeader { "not_leader" } else { "unknown" });
                for (reply, _) in replies {
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
        within: Duration,
    ) -> Result<Vec<Outcome>, Kind> {
        let mut client = self.pool.get(leader, address).map_err(|_| Kind::NotLeader)?;
        metrics::forwarded(transactions.len());
        let mut request = tonic::Request::new(peer::ProposeRequest { transactions });
        request.set_timeout(within);
        match client.propose(request).await {
            Ok(response) => Ok(response.into_inner().outcomes),
            Err(status) => {
                self.pool.heed(&status);
                // Even «unavailable» may come after the request was sent.
                Err(Kind::Unknown)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_waits_for_the_leader_as_long_as_its_callers_do() {
        let now = Instant::now();
        let second = Duration::from_secs(1);
        let time = forward_time(Some(now + second));
        assert!(time <= second && time > MIN_FORWARD, "{time:?}");
        assert_eq!(forward_time(Some(now)), MIN_FORWARD);
        assert_eq!(forward_time(None), MIN_FORWARD);
        assert_eq!(forward_time(Some(now + 3600 * second)), Timing::MAX_DEADLINE);
    }
}
