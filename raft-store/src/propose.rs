//! Group commit: transactions that wait become one log entry.
//!
//! Every node runs one proposer. What comes when nothing is in flight goes at once. While a batch is in flight, the next
//! one goes when it is as large as what is in flight, or has waited for long: so under load each entry carries what came
//! in meanwhile, since an entry costs far more than a transaction. On a follower the same batches go to the leader, in
//! one hop.
//!
//! What waits is bounded in number and in bytes. A transaction whose caller has given up before it was taken is
//! dropped, and the caller knows that it was.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use mezite_proto::peer::{self, Outcome, outcome::Kind};
use prost::Message;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    task::JoinSet,
};

use crate::{
    config::{Limits, Timing},
    metrics,
    net::client::PeerPool,
    raft::{Core, Proposed},
    read::left,
    space::{Full, SpaceAlarm},
    time::ClusterTime,
};

/// A forwarded batch waits at least this long for its answer: its transactions have a time of their own too.
const MIN_FORWARD: Duration = Duration::from_millis(10);
/// A batch that is smaller than what is in flight waits so long for more at most: a leader that does not answer must not
/// hold up what comes after.
const MAX_HOLD: Duration = Duration::from_millis(10);

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
    /// How many of the next batch have left the queue.
    held: Arc<AtomicUsize>,
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
        time: ClusterTime,
        limits: Limits,
        space: Arc<SpaceAlarm>,
    ) -> Self {
        let (queue, waiting) = mpsc::channel(limits.queue);
        let sender = Sender { core: core.clone(), pool, time };
        let held = Arc::<AtomicUsize>::default();
        tokio::spawn(run(waiting, sender, limits, Arc::clone(&held)));
        let room = Arc::new(Semaphore::new(limits.queue_bytes.min(Semaphore::MAX_PERMITS)));
        Self { queue, held, room, core, space }
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
        let admitted = |transaction| match self.admit(&transaction) {
            Ok(()) => self.enqueue(transaction, deadline),
            Err(Full { size, limit }) => {
                Err(Outcome { database_size: size, database_limit: limit, ..outcome(Kind::DatabaseFull) })
            }
        };
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
        self.queue.max_capacity() - self.queue.capacity() + self.held.load(Ordering::Relaxed)
    }

    /// Refuses a transaction for which this node's database has no room, and counts it.
    pub(crate) fn admit(&self, transaction: &peer::Transaction) -> Result<(), Full> {
        self.space.admit(transaction).inspect_err(|_| metrics::proposal_failed("database_full"))
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
fn forward_time(latest: Instant) -> Duration {
    left(latest).clamp(MIN_FORWARD, Timing::MAX_DEADLINE)
}

async fn run(waiting: mpsc::Receiver<Pending>, sender: Sender, limits: Limits, held: Arc<AtomicUsize>) {
    let mut queue =
        Waiting { coming: waiting, held: VecDeque::new(), bytes: 0, since: Instant::now(), limits };
    let sender = Arc::new(sender);
    // Batches in flight answer how many transactions they carried.
    let (mut sending, mut in_flight) = (JoinSet::new(), 0);
    loop {
        queue.fill();
        held.store(queue.held.len(), Ordering::Relaxed);
        if sending.len() < limits.batches_in_flight && queue.is_due(in_flight, Instant::now()) {
            let batch: Vec<_> = queue.next_batch().into_iter().filter_map(|next| sender.take(next)).collect();
            if !batch.is_empty() {
                in_flight += batch.len();
                let sender = Arc::clone(&sender);
                sending.spawn(async move { sender.send(batch).await });
            }
            continue;
        }
        let due = queue.since + MAX_HOLD;
        let has_place = sending.len() < limits.batches_in_flight;
        tokio::select! {
            Some(sent) = sending.join_next() => {
                in_flight -= sent.unwrap_or_default();
                // Whoever panicked did not say how many.
                in_flight = if sending.is_empty() { 0 } else { in_flight };
            }
            more = queue.coming.recv(), if !queue.is_full() => match more {
                Some(next) => queue.hold(next),
                None => break,
            },
            () = tokio::time::sleep_until(due.into()), if has_place && !queue.held.is_empty() => {}
        }
    }
    // Nobody can come any more; what is on its way is waited for.
    while sending.join_next().await.is_some() {}
}

/// What waits to be proposed.
struct Waiting {
    coming: mpsc::Receiver<Pending>,
    /// The next batch, and at most one transaction that is too large for it.
    held: VecDeque<Pending>,
    bytes: usize,
    /// When the oldest of the next batch came.
    since: Instant,
    limits: Limits,
}

impl Waiting {
    fn hold(&mut self, next: Pending) {
        if self.held.is_empty() {
            self.since = Instant::now();
        }
        self.bytes += next.size;
        self.held.push_back(next);
    }

    fn is_full(&self) -> bool {
        self.held.len() >= self.limits.batch_transactions || self.bytes >= self.limits.batch_bytes
    }

    fn fill(&mut self) {
        while !self.is_full()
            && let Ok(next) = self.coming.try_recv()
        {
            self.hold(next);
        }
    }

    /// Whether the next batch should go while so many transactions are in flight.
    fn is_due(&self, in_flight: usize, now: Instant) -> bool {
        !self.held.is_empty()
            && (self.held.len() >= in_flight || self.is_full() || now >= self.since + MAX_HOLD)
    }

    /// Takes the next batch, up to the bounds but at least one.
    fn next_batch(&mut self) -> Vec<Pending> {
        let mut batch = Vec::with_capacity(self.held.len());
        let mut bytes = 0;
        while let Some(next) = self.held.front()
            && (batch.is_empty() || bytes + next.size <= self.limits.batch_bytes)
        {
            bytes += next.size;
            batch.extend(self.held.pop_front());
        }
        self.bytes -= bytes;
        self.since = Instant::now();
        batch
    }
}

struct Sender {
    core: Core,
    pool: PeerPool,
    time: ClusterTime,
}

impl Sender {
    /// Takes a transaction that is still wanted and not too late.
    fn take(&self, pending: Pending) -> Option<Pending> {
        let now = self.time.measured();
        let late = now.is_some_and(|now| pending.transaction.not_after_ms < now);
        if pending.claimed.swap(true, Ordering::AcqRel) {
            // Its caller has given up, and counted it.
            return None;
        }
        if late || pending.reply.is_closed() {
            metrics::proposal_failed("expired");
            // Nobody may be there.
            let _ = pending.reply.send(outcome(Kind::Expired));
            return None;
        }
        Some(pending)
    }

    /// Proposes a batch and answers its callers. Answers how many there were.
    async fn send(&self, batch: Vec<Pending>) -> usize {
        let started = Instant::now();
        let count = batch.len();
        let latest = batch.iter().map(|pending| pending.deadline).max().unwrap_or(started);
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
        count
    }

    async fn commit(&self, transactions: Vec<peer::Transaction>) -> Result<Vec<Outcome>, Kind> {
        let stamp_ms = self.time.stamp().await.ok_or(Kind::NotLeader)?;
        let batch = peer::Batch { stamp_ms, transactions, sweep_limit: 0 };
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
        let answer = tokio::select! {
            answer = client.propose(request) => answer,
            // Whether it took them, the next leader knows.
            () = self.core.leader_change(Some(leader), within) => return Err(Kind::Unknown),
        };
        match answer {
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

    fn pending(size: usize) -> Pending {
        let room = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        Pending {
            transaction: peer::Transaction::default(),
            size,
            deadline: Instant::now(),
            reply: oneshot::channel().0,
            claimed: Arc::default(),
            room,
        }
    }

    fn waiting(limits: Limits) -> (mpsc::Sender<Pending>, Waiting) {
        let (sender, coming) = mpsc::channel(limits.queue);
        (sender, Waiting { coming, held: VecDeque::new(), bytes: 0, since: Instant::now(), limits })
    }

    #[test]
    fn a_batch_goes_at_once_when_nothing_does_and_else_when_it_is_as_large_as_what_does() {
        let (sender, mut waiting) = waiting(Limits::default());
        assert!(!waiting.is_due(0, waiting.since));
        for count in 1..=5 {
            sender.try_send(pending(1)).unwrap();
            waiting.fill();
            assert!(waiting.is_due(0, waiting.since));
            assert_eq!(waiting.is_due(3, waiting.since), count >= 3, "{count}");
        }
        assert_eq!(waiting.next_batch().len(), 5);
        assert!(!waiting.is_due(0, waiting.since));
    }

    #[test]
    fn a_small_batch_does_not_wait_for_ever() {
        let (sender, mut waiting) = waiting(Limits::default());
        sender.try_send(pending(1)).unwrap();
        waiting.fill();
        assert!(!waiting.is_due(3, waiting.since));
        assert!(waiting.is_due(3, waiting.since + MAX_HOLD));
    }

    #[test]
    fn a_batch_is_bounded_in_number_and_in_bytes() {
        let limits = Limits { batch_transactions: 3, batch_bytes: 10, ..Limits::default() };
        let (sender, mut waiting) = waiting(limits);
        for size in [1, 1, 1, 1, 9, 30, 2] {
            sender.try_send(pending(size)).unwrap();
        }
        let mut batches = Vec::new();
        loop {
            waiting.fill();
            let batch: Vec<_> = waiting.next_batch().iter().map(|next| next.size).collect();
            if batch.is_empty() {
                break;
            }
            batches.push(batch);
        }
        assert_eq!(batches, [&[1, 1, 1][..], &[1, 9], &[30], &[2]]);
        assert_eq!(waiting.bytes, 0);
    }

    #[test]
    fn a_batch_waits_for_the_leader_as_long_as_its_callers_do() {
        let now = Instant::now();
        let second = Duration::from_secs(1);
        let time = forward_time(now + second);
        assert!(time <= second && time > MIN_FORWARD, "{time:?}");
        assert_eq!(forward_time(now), MIN_FORWARD);
        assert_eq!(forward_time(now + 3600 * second), Timing::MAX_DEADLINE);
    }
}
