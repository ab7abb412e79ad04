//! Where closures see the state: on threads that may block, each of which takes one closure after the other.
//!
//! One snapshot of the state serves all closures that waited when it was taken. So under load a closure costs neither
//! the waking of a thread nor a snapshot of its own, and when the store is idle it starts at once. A thread is added when
//! more wait than those that run can take soon, and when a closure has waited for long behind others.

use std::{
    collections::VecDeque,
    num::NonZero,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::oneshot;

use crate::{db::Db, error::StoreError, state::StateSnapshot};

/// So many closures wait for each thread before another processor is put to it: below this, waking it costs more than
/// waiting. A closure takes some ten microseconds.
const SHARE: usize = 32;
/// A closure that has waited for so long gets another thread: those that run are busy with long ones, or wait for a disk.
const PATIENCE: Duration = Duration::from_millis(2);
/// Threads at most.
const THREADS: usize = 64;

type Job = Box<dyn FnOnce(&StateSnapshot<'_>) + Send>;

#[derive(Default)]
struct Queue {
    /// Counts closures in the order in which they came.
    newest: u64,
    /// The newest are at the back.
    waiting: VecDeque<Job>,
    threads: usize,
}

struct Shared {
    db: Arc<Db>,
    queue: Mutex<Queue>,
    processors: usize,
}

/// Runs closures on the state.
#[derive(Clone)]
pub(crate) struct Views(Arc<Shared>);

impl Views {
    pub(crate) fn new(db: Arc<Db>) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
        Self(Arc::new(Shared { db, queue: Mutex::default(), processors }))
    }

    /// Runs a closure on the state as it is at some time after this call began.
    ///
    /// # Errors
    /// When the state cannot be read, and when the closure panics.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&StateSnapshot<'_>) -> T + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, mut answer) = oneshot::channel();
        let number = self.push(Box::new(move |state| {
            // The caller may have given up.
            if !reply.is_closed() {
                let _ = reply.send(work(state));
            }
        }));
        let answered = match tokio::time::timeout(PATIENCE, &mut answer).await {
            Ok(answered) => answered,
            Err(_) => {
                self.help(number);
                answer.await
            }
        };
        answered
            .map_err(|_| StoreError::Stopped("the state cannot be read, or what reads it panicked".into()))
    }

    #[cfg(test)]
    pub(crate) fn db(&self) -> &Db {
        &self.0.db
    }

    /// Answers the closure's number.
    fn push(&self, job: Job) -> u64 {
        let mut queue = self.0.queue();
        queue.newest += 1;
        let number = queue.newest;
        queue.waiting.push_back(job);
        let few = queue.threads < self.0.processors && queue.waiting.len() > queue.threads * SHARE;
        self.start(queue, few);
        number
    }

    /// Puts another thread to what waits, if this closure still does.
    fn help(&self, number: u64) {
        let queue = self.0.queue();
        let waits = number > queue.newest - queue.waiting.len() as u64;
        self.start(queue, waits);
    }

    fn start(&self, mut queue: MutexGuard<'_, Queue>, wanted: bool) {
        if !wanted || queue.threads >= THREADS {
            return;
        }
        queue.threads += 1;
        drop(queue);
        let shared = Arc::clone(&self.0);
        tokio::task::spawn_blocking(move || shared.work());
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next closure, its number, and that of the newest that waits. `None` ends the thread.
    fn take(&self) -> Option<(Job, u64, u64)> {
        let mut queue = self.queue();
        let next = queue.waiting.pop_front();
        if next.is_none() {
            queue.threads -= 1;
        }
        let number = queue.newest - queue.waiting.len() as u64;
        next.map(|job| (job, number, queue.newest))
    }

    fn work(&self) {
        // A snapshot, and the newest closure that waited before it was taken.
        let mut seen: Option<(StateSnapshot<'_>, u64)> = None;
        while let Some((job, number, newest)) = self.take() {
            seen = seen.filter(|(_, covers)| number <= *covers);
            if seen.is_none() {
                match StateSnapshot::take(&self.db) {
                    Ok(state) => seen = Some((state, newest)),
                    // The job is dropped, and its caller told.
                    Err(error) => tracing::error!(%error, "the state cannot be read"),
                }
            }
            if let Some((state, _)) = &seen {
                // The caller of one that panics learns of it, and the thread goes on with the rest.
                let _ = catch_unwind(AssertUnwindSafe(|| job(state)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use futures::future::join_all;

    use super::*;
    use crate::{db::stored_key, state::StateView as _};

    fn views() -> (tempfile::TempDir, Views) {
        let folder = tempfile::tempdir().unwrap();
        let db = Arc::new(Db::open(&folder.path().join("db")).unwrap());
        (folder, Views::new(db))
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn every_closure_sees_what_was_written_before_it_came() {
        let (_folder, views) = views();
        let lanes = (0..64u8).map(|lane| {
            let views = views.clone();
            async move {
                for round in 0..100u64 {
                    let key = [lane];
                    let mut batch = rocksdb::WriteBatch::default();
                    batch.put_cf(&views.0.db.sm_data().unwrap(), stored_key(0, &key), round.to_be_bytes());
                    views.0.db.write(batch, false).unwrap();
                    let seen = views.run(move |state| state.get(&key)).await.unwrap().unwrap();
                    assert_eq!(seen.unwrap(), round.to_be_bytes());
                }
            }
        });
        join_all(lanes.map(tokio::spawn)).await.into_iter().for_each(Result::unwrap);
        assert!(views.0.queue().waiting.is_empty());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_takes_long_holds_up_nothing_else() {
        let (_folder, views) = views();
        let mut held = Vec::new();
        // More than there are processors; each holds its thread until it is let go.
        for _ in 0..(views.0.processors + 2).min(THREADS - 1) {
            let ((begun, begins), (release, released)) = (oneshot::channel(), mpsc::channel::<()>());
            let views = views.clone();
            let running = tokio::spawn(async move {
                let long = move |_: &StateSnapshot<'_>| {
                    begun.send(()).unwrap();
                    released.recv().unwrap_err();
                };
                views.run(long).await
            });
            begins.await.unwrap();
            held.push((release, running));
        }
        for number in 0..10 {
            assert_eq!(views.run(move |_| number).await.unwrap(), number);
        }
        for (release, running) in held {
            drop(release);
            running.await.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn a_panic_reaches_its_caller_alone() {
        let (_folder, views) = views();
        let panics = views.run(|_| -> () { panic!("on purpose") });
        let (panicked, others) = tokio::join!(panics, join_all((0..10).map(|_| views.run(|_| ()))));
        assert!(matches!(panicked, Err(StoreError::Stopped(_))));
        assert!(others.iter().all(Result::is_ok));
    }
}
