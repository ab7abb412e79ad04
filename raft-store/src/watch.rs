//! Committed changes, in order and without gaps, for those who follow the state.
//!
//! The newest changes stay in memory, up to a bound in bytes, once for all watchers: a watcher is a place in them. One
//! whose place was left behind, because it is slow, resumed too late, or a snapshot passed it over, is told to read
//! the state anew: it is never silently skipped, and holds no memory of its own.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use store_txn::KeyRange;
use tokio::sync::watch;

use crate::{apply::Commit, metrics};

/// Commits that a watcher looks through at once, so that one whose range is quiet does not hold up the rest.
const LOOK_AHEAD: usize = 256;
/// What a change costs in memory beside its key and value, in bytes.
const CHANGE_OVERHEAD: usize = 64;
/// What a commit costs beside its changes, of which it may have none, in bytes.
const COMMIT_OVERHEAD: usize = 96;

/// What a watcher is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchEvent {
    /// A row was written or deleted.
    Change {
        /// Revision of the commit.
        revision: u64,
        /// Encoded key.
        key: Bytes,
        /// Encoded row; `None`: the row is gone.
        value: Option<Bytes>,
    },
    /// Changes were missed: read the state anew. Changes after this revision follow; the state that is read may
    /// hold some of them already, and says so by its own revision.
    Resync {
        /// Revision from which on the watch goes on.
        revision: u64,
    },
}

#[derive(Default)]
struct History {
    commits: VecDeque<(Arc<Commit>, usize)>,
    bytes: usize,
    /// Every commit after this revision is in `commits`.
    complete_after: u64,
    /// The newest revision there is.
    newest: u64,
}

impl History {
    /// The next commits after a revision, a few at most.
    fn after(&self, revision: u64) -> Vec<Arc<Commit>> {
        let start = self.commits.partition_point(|(commit, _)| commit.revision <= revision);
        let next = self.commits.range(start..).take(LOOK_AHEAD);
        next.map(|(commit, _)| Arc::clone(commit)).collect()
    }
}

#[derive(Default)]
struct Shared {
    history: Mutex<History>,
    watchers: AtomicUsize,
}

impl Shared {
    fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where commits are announced.
pub(crate) struct Hub {
    shared: Arc<Shared>,
    /// The newest revision; watchers end when it is gone.
    newest: watch::Sender<u64>,
    bound_bytes: usize,
}

impl Hub {
    pub(crate) fn new(bound_bytes: usize) -> Self {
        Self { shared: Arc::default(), newest: watch::channel(0).0, bound_bytes }
    }

    /// Announces commits, in order of revision.
    pub(crate) fn publish(&self, commits: Vec<Commit>) {
        let Some(newest) = commits.last().map(|commit| commit.revision) else { return };
        let mut history = self.shared.history();
        for commit in commits {
            let change_size = |key: &Bytes, value: &Option<Bytes>| {
                key.len() + value.as_ref().map_or(0, Bytes::len) + CHANGE_OVERHEAD
            };
            let changes = commit.changes.iter().map(|change| change_size(&change.key, &change.value));
            let size = COMMIT_OVERHEAD + changes.sum::<usize>();
            history.commits.push_back((Arc::new(commit), size));
            history.bytes += size;
        }
        history.newest = newest;
        while history.bytes > self.bound_bytes {
            let Some((oldest, size)) = history.commits.pop_front() else { break };
            history.bytes -= size;
            history.complete_after = oldest.revision;
        }
        drop(history);
        self.newest.send_replace(newest);
    }

    /// The state jumped to a revision: nothing before it can be told.
    pub(crate) fn reset(&self, revision: u64) {
        self.begin(revision);
        self.newest.send_replace(revision);
    }

    /// Sets the revision at which the process started: what was before is not in the history.
    pub(crate) fn begin(&self, revision: u64) {
        *self.shared.history() = History { complete_after: revision, newest: revision, ..History::default() };
    }

    /// Follows a range after a revision.
    pub(crate) fn watch(&self, range: KeyRange, after: u64) -> Watcher {
        let mut newest = self.newest.subscribe();
        // What is in the history already has not been seen.
        newest.mark_changed();
        metrics::watchers(self.shared.watchers.fetch_add(1, Ordering::Relaxed) + 1);
        Watcher { range, seen: after, pending: VecDeque::new(), shared: Arc::clone(&self.shared), newest }
    }
}

/// Follows a range of keys.
pub struct Watcher {
    range: KeyRange,
    /// Every change up to this revision was told, or is pending.
    seen: u64,
    /// Changes of one commit.
    pending: VecDeque<WatchEvent>,
    shared: Arc<Shared>,
    newest: watch::Receiver<u64>,
}

impl Watcher {
    /// The next event; `None` when the store has stopped.
    pub async fn next(&mut self) -> Option<WatchEvent> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Some(event);
            }
            // Marked as seen before the history is read: what comes after that wakes again.
            self.newest.mark_unchanged();
            if !self.advance() && self.newest.changed().await.is_err() && !self.advance() {
                return None;
            }
        }
    }

    /// Takes what comes next from the history. `false`: there is nothing yet.
    fn advance(&mut self) -> bool {
        let commits = {
            let history = self.shared.history();
            if self.seen < history.complete_after {
                self.seen = history.newest;
                metrics::watch_resync();
                self.pending.push_back(WatchEvent::Resync { revision: self.seen });
                return true;
            }
            history.after(self.seen)
        };
        for commit in &commits {
            self.seen = commit.revision;
            let changes = commit.changes.iter().filter(|change| self.range.contains(&change.key));
            self.pending.extend(changes.map(|change| WatchEvent::Change {
                revision: commit.revision,
                key: change.key.clone(),
                value: change.value.clone(),
            }));
            if !self.pending.is_empty() {
                break;
            }
        }
        !commits.is_empty()
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        metrics::watchers(self.shared.watchers.fetch_sub(1, Ordering::Relaxed) - 1);
    }
}

#[cfg(test)]
mod tests;
