//! Where closures see the state: away from the async workers, on a few threads that one queue feeds.
//!
//! A thread takes whatever waits, one after the other, and one snapshot of the state serves all that waited when it was
//! taken. So under load a closure costs neither a thread's waking nor a snapshot of its own, and when the store is idle
//! it starts at once. One that takes long does not hold up the rest: others get a thread of their own.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use store_txn::TxError;
use tokio::sync::oneshot;

use crate::{db::Db, error::StoreError, state::StateSnapshot};

/// Threads at most. Closures mostly find what they read in memory; past this the processors are busy.
const THREADS: usize = 8;
/// So many closures wait for each thread before there is another one.
const SHARE: usize = 64;
/// Or one waits for so long.
const PATIENCE: Duration = Duration::from_millis(1);

type Job = Box<dyn FnOnce(Result<&StateSnapshot<'_>, StoreError>) + Send>;

struct Waiting {
    job: Job,
    since: Instant,
    /// Counts closures in the order in which they came.
    number: u64,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    /// The number of the last one that came.
    newest: u64,
    threads: usize,
}

impl Queue {
    /// Whether another thread should help.
    fn is_behind(&self, now: Instant) -> bool {
        let waited = |first: &Waiting| now.duration_since(first.since) > PATIENCE;
        self.threads == 0
            || self.threads < THREADS
                && (self.waiting.len() > self.threads * SHARE || self.waiting.front().is_some_and(waited))
    }
}

struct Shared {
    db: Arc<Db>,
    queue: Mutex<Queue>,
}

/// Runs closures on the state.
#[derive(Clone)]
pub(crate) struct Views(Arc<Shared>);

impl Views {
    pub(crate) fn new(db: Arc<Db>) -> Self {
        Self(Arc::new(Shared { db, queue: Mutex::default() }))
    }

    /// Runs a closure on the state as it is at some time after this call began.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&StateSnapshot<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.push(Box::new(move |state| {
            // The caller may have given up.
            let _ = reply.send(state.and_then(work));
        }));
        answer.await.unwrap_or_else(|_| Err(StoreError::Stopped("a closure on the state panicked".into())))
    }

    fn push(&self, job: Job) {
        let now = Instant::now();
        let mut queue = self.0.queue();
        queue.newest += 1;
        let number = queue.newest;
        queue.waiting.push_back(Waiting { job, since: now, number });
        if queue.is_behind(now) {
            queue.threads += 1;
            drop(queue);
            let shared = Arc::clone(&self.0);
            tokio::task::spawn_blocking(move || shared.work());
        }
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next closure, and the newest that waits. `None` ends the thread.
    fn take(&self) -> Option<(Waiting, u64)> {
        let mut queue = self.queue();
        let newest = queue.newest;
        let next = queue.waiting.pop_front();
        if next.is_none() {
            queue.threads -= 1;
        }
        next.map(|next| (next, newest))
    }

    fn work(&self) {
        // The snapshot, and the newest closure that waited when it was taken.
        let mut state: Option<(StateSnapshot<'_>, u64)> = None;
        while let Some((next, newest)) = self.take() {
            state = state.filter(|(_, covers)| next.number <= *covers);
            let taken = match &state {
                Some((state, _)) => Ok(state),
                None => StateSnapshot::take(&self.db).map(|taken| &state.insert((taken, newest)).0),
            };
            if let Err(error) = &taken {
                tracing::error!(%error, "the state cannot be read");
            }
            let taken = taken.map_err(|error| match error {
                StoreError::Read(error) => StoreError::Read(error),
                other => StoreError::Read(TxError::Storage(other.to_string())),
            });
            // Who waits for it learns of the panic, and the thread goes on with the rest.
            let _ = catch_unwind(AssertUnwindSafe(|| (next.job)(taken)));
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::future::join_all;

    use super::*;

    fn views() -> (tempfile::TempDir, Views) {
        let folder = tempfile::tempdir().unwrap();
        let db = Arc::new(Db::open(&folder.path().join("db")).unwrap());
        (folder, Views::new(db))
    }

    fn put(db: &Db, value: &[u8]) {
        let mut batch = rocksdb::WriteBatch::default();
        batch.put_cf(&db.sm_data().unwrap(), crate::db::stored_key(0, b"k"), value);
        db.write(batch, false).unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn every_closure_sees_what_was_written_before_it_came() {
        use crate::state::StateView as _;
        let (_folder, views) = views();
        let rounds = (0..8).map(|lane| {
            let views = views.clone();
            async move {
                for round in 0..200u64 {
                    let key = [b'a' + lane];
                    let mut batch = rocksdb::WriteBatch::default();
                    let stored = crate::db::stored_key(0, &key);
                    batch.put_cf(&views.0.db.sm_data().unwrap(), stored, round.to_be_bytes());
                    views.0.db.write(batch, false).unwrap();
                    let seen = views.run(move |state| state.get(&key)).await.unwrap().unwrap();
                    assert_eq!(seen, round.to_be_bytes());
                }
            }
        });
        join_all(rounds.map(tokio::spawn)).await.into_iter().for_each(Result::unwrap);
        assert_eq!(views.0.queue().threads, 0);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn one_that_takes_long_or_panics_does_not_hold_up_the_rest() {
        let (_folder, views) = views();
        put(&views.0.db, b"v");
        let (release, held) = std::sync::mpsc::channel::<()>();
        let slow = tokio::spawn({
            let views = views.clone();
            async move { views.run(move |_| Ok(held.recv())).await }
        });
        while views.0.queue().threads == 0 {
            tokio::task::yield_now().await;
        }
        let panics = views.run(|_| -> Result<(), StoreError> { panic!("on purpose") });
        // The one before is in nobody's way for longer than the patience: whoever comes after that finds a thread.
        let others = async {
            loop {
                let first = tokio::time::timeout(PATIENCE * 5, views.run(|_| Ok(()))).await;
                if first.is_ok() {
                    return;
                }
            }
        };
        let (panicked, ()) = tokio::join!(panics, others);
        assert!(matches!(panicked, Err(StoreError::Stopped(_))));
        release.send(()).unwrap();
        slow.await.unwrap().unwrap().unwrap();
    }
}
