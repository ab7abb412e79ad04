//! Which sessions are used, collected: those that come within a second are noted in one transaction, and no call waits for
//! it. What could not be written is tried again; what is lost with the node is noted by the session's next call. When a
//! use is due to be noted is `auth_core::session`'s.

use std::{collections::BTreeMap, time::Duration};

use auth_core::{secret::SecretDigest, session};
use raft_store::Store;
use store_txn::UnixMillis;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};

/// Least time between two transactions, unless more wait than fit into one.
const INTERVAL: Duration = Duration::from_secs(1);
/// Sessions in one transaction.
const BATCH: usize = 1024;
/// Sessions that wait to be noted; of more, the next call will tell.
const WAITING: usize = 4096;

/// Collects which sessions are used.
#[derive(Clone)]
pub(crate) struct Uses {
    queue: mpsc::Sender<(SecretDigest, UnixMillis)>,
}

impl Uses {
    /// Starts collecting. It ends when all of these are dropped.
    pub(crate) fn start(store: Store) -> Self {
        let (queue, uses) = mpsc::channel(WAITING);
        tokio::spawn(Writer { store, uses, waiting: BTreeMap::new() }.run());
        Self { queue }
    }

    /// A session is used, by the time of the state.
    pub(crate) fn note(&self, session: SecretDigest, at: UnixMillis) {
        // Full or not: the session's next call is as good.
        let _ = self.queue.try_send((session, at));
    }
}

struct Writer {
    store: Store,
    uses: mpsc::Receiver<(SecretDigest, UnixMillis)>,
    waiting: BTreeMap<SecretDigest, UnixMillis>,
}

impl Writer {
    async fn run(mut self) {
        let mut due = Instant::now();
        while self.collect(due).await {
            let began = Instant::now();
            let written = self.write().await;
            // Where more wait than fit into one, the next does not.
            due = if written && self.waiting.len() >= BATCH { began } else { began + INTERVAL };
        }
    }

    /// Takes what comes until `due`, and waits on while there is nothing. `false`: nothing will come any more.
    async fn collect(&mut self, due: Instant) -> bool {
        if self.waiting.is_empty() {
            let Some(first) = self.uses.recv().await else { return false };
            self.take(first);
        }
        // Past `due`, what is there already still comes along.
        while let Ok(next) = timeout_at(due, self.uses.recv()).await {
            let Some(next) = next else { return false };
            self.take(next);
            if Instant::now() > due + INTERVAL {
                break;
            }
        }
        true
    }

    fn take(&mut self, (session, at): (SecretDigest, UnixMillis)) {
        if self.waiting.len() < WAITING || self.waiting.contains_key(&session) {
            let latest = self.waiting.entry(session).or_default();
            *latest = at.max(*latest);
        }
    }

    /// Notes as many as fit into a transaction. `false`: they wait on.
    async fn write(&mut self) -> bool {
        let batch: BTreeMap<_, _> =
            self.waiting.iter().take(BATCH).map(|(session, at)| (*session, *at)).collect();
        let noted = batch.clone();
        match self.store.transact(move |tx| session::note_uses(tx, &noted)).await {
            Ok(_) => {
                self.waiting.retain(|session, at| batch.get(session) != Some(at));
                true
            }
            Err(error) => {
                tracing::debug!(%error, sessions = batch.len(), "uses of sessions were not noted");
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use auth_core::secret::SecretKind;

    use super::*;
    use crate::rpc::testing::Node;

    fn digest(number: u64) -> SecretDigest {
        SecretDigest::of(SecretKind::Session, &number.to_string())
    }

    #[tokio::test]
    async fn a_session_that_is_used_often_waits_once_and_as_it_was_used_last() {
        let node = Node::start().await;
        let (queue, uses) = mpsc::channel(WAITING);
        let mut writer = Writer { store: node.service.store.clone(), uses, waiting: BTreeMap::new() };
        for at in [5, 9, 7] {
            queue.try_send((digest(1), at)).unwrap();
            queue.try_send((digest(2), 1)).unwrap();
        }
        assert!(writer.collect(Instant::now()).await);
        assert_eq!(writer.waiting, [(digest(1), 9), (digest(2), 1)].into());
        assert!(writer.write().await);
        assert!(writer.waiting.is_empty());
        // What waits is bounded, and of those that wait the last use counts all the same.
        for number in 0..2 * WAITING as u64 {
            writer.take((digest(number), 1));
        }
        assert_eq!(writer.waiting.len(), WAITING);
        writer.take((digest(0), 3));
        assert_eq!(writer.waiting[&digest(0)], 3);
        assert!(writer.write().await);
        assert_eq!(writer.waiting.len(), WAITING - BATCH);
        drop(queue);
        assert!(!writer.collect(Instant::now()).await);
    }

    #[tokio::test]
    async fn what_could_not_be_written_waits_on() {
        let node = Node::start().await;
        let (_queue, uses) = mpsc::channel(WAITING);
        let mut writer = Writer { store: node.service.store.clone(), uses, waiting: BTreeMap::new() };
        writer.take((digest(1), 1));
        node.service.store.shutdown().await;
        assert!(!writer.write().await);
        assert_eq!(writer.waiting.len(), 1);
    }
}
