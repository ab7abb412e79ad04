//! Committed changes, in order and without gaps, for those who follow the state.
//!
//! The newest changes stay in memory, so that a watcher can resume from a revision. One that is too far behind, or
//! whose place was passed over by a snapshot, is told to read the state anew: it is never silently skipped.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use store_txn::KeyRange;
use tokio::sync::broadcast::{self, error::RecvError};

use crate::{apply::Commit, metrics};

/// Commits that a watcher may lag behind before it is told to resync.
const BACKLOG: usize = 4096;

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
    /// Changes were missed: read the state anew. Changes after this revision follow.
    Resync {
        /// Revision from which on the watch goes on.
        revision: u64,
    },
}

#[derive(Debug, Clone)]
enum Signal {
    Commit(Arc<Commit>),
    Reset(u64),
}

#[derive(Default)]
struct History {
    commits: VecDeque<(Arc<Commit>, usize)>,
    bytes: usize,
    /// Every commit after this revision is in `commits`.
    complete_after: u64,
}

/// Where commits are announced.
pub(crate) struct Hub {
    history: Mutex<History>,
    signals: broadcast::Sender<Signal>,
    bound_bytes: usize,
}

impl Hub {
    pub(crate) fn new(bound_bytes: usize) -> Self {
        Self { history: Mutex::default(), signals: broadcast::channel(BACKLOG).0, bound_bytes }
    }

    fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Announces commits, in order of revision.
    pub(crate) fn publish(&self, commits: Vec<Commit>) {
        let mut history = self.history();
        for commit in commits {
            let size = commit
                .changes
                .iter()
                .map(|c| c.key.len() + c.value.as_ref().map_or(0, Bytes::len) + 64)
                .sum();
            let commit = Arc::new(commit);
            history.commits.push_back((Arc::clone(&commit), size));
            history.bytes += size;
            // Sent under the lock, so that a subscriber sees each commit either in the history or as a signal.
            // Nobody may be watching.
            let _ = self.signals.send(Signal::Commit(commit));
        }
        while history.bytes > self.bound_bytes {
            let Some((oldest, size)) = history.commits.pop_front() else { break };
            history.bytes -= size;
            history.complete_after = oldest.revision;
        }
    }

    /// The state jumped to a revision: nothing before it can be told.
    pub(crate) fn reset(&self, revision: u64) {
        let mut history = self.history();
        *history = History { complete_after: revision, ..History::default() };
        // Nobody may be watching.
        let _ = self.signals.send(Signal::Reset(revision));
    }

    /// Follows a range after a revision.
    pub(crate) fn watch(&self, range: KeyRange, after: u64, current: u64) -> Watcher {
        let history = self.history();
        let signals = self.signals.subscribe();
        let mut pending = VecDeque::new();
        let mut seen = after;
        if after < history.complete_after {
            seen = current.max(history.complete_after);
            pending.push_back(WatchEvent::Resync { revision: seen });
        }
        let mut watcher = Watcher { range, seen, pending, signals };
        for (commit, _) in &history.commits {
            watcher.take(commit);
        }
        metrics::watchers(self.signals.receiver_count());
        watcher
    }

    /// Sets the revision at which the process started: what was before is not in the history.
    pub(crate) fn begin(&self, revision: u64) {
        self.history().complete_after = revision;
    }
}

/// Follows a range of keys.
pub struct Watcher {
    range: KeyRange,
    seen: u64,
    pending: VecDeque<WatchEvent>,
    signals: broadcast::Receiver<Signal>,
}

impl Watcher {
    /// The next event; `None` when the store has stopped.
    pub async fn next(&mut self) -> Option<WatchEvent> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Some(event);
            }
            match self.signals.recv().await {
                Ok(Signal::Commit(commit)) => self.take(&commit),
                Ok(Signal::Reset(revision)) => self.resync(revision),
                Err(RecvError::Lagged(_)) => self.resync(self.seen),
                Err(RecvError::Closed) => return None,
            }
        }
    }

    fn take(&mut self, commit: &Commit) {
        if commit.revision <= self.seen {
            return;
        }
        self.seen = commit.revision;
        let changes = commit.changes.iter().filter(|change| self.range.contains(&change.key));
        self.pending.extend(changes.map(|change| WatchEvent::Change {
            revision: commit.revision,
            key: change.key.clone(),
            value: change.value.clone(),
        }));
    }

    /// What was missed ended at or after `revision`; the reader of the state learns the rest by reading.
    fn resync(&mut self, revision: u64) {
        self.seen = self.seen.max(revision);
        self.pending.push_back(WatchEvent::Resync { revision: self.seen });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::Change;

    fn commit(revision: u64, key: &str) -> Commit {
        let change =
            Change { key: Bytes::copy_from_slice(key.as_bytes()), value: Some(Bytes::from_static(b"v")) };
        Commit { revision, changes: vec![change] }
    }

    fn change(revision: u64, key: &str) -> WatchEvent {
        let (key, value) = (Bytes::copy_from_slice(key.as_bytes()), Some(Bytes::from_static(b"v")));
        WatchEvent::Change { revision, key, value }
    }

    #[tokio::test]
    async fn resumes_without_gap_or_duplicate() {
        let hub = Hub::new(1 << 20);
        hub.publish(vec![commit(1, "a1"), commit(2, "b1"), commit(3, "a2")]);
        let mut watcher = hub.watch(KeyRange::prefix(b"a"), 1, 3);
        hub.publish(vec![commit(4, "a3")]);
        assert_eq!(watcher.next().await, Some(change(3, "a2")));
        assert_eq!(watcher.next().await, Some(change(4, "a3")));
        drop(hub);
        assert_eq!(watcher.next().await, None);
    }

    #[tokio::test]
    async fn one_that_is_too_far_behind_is_told_so() {
        let hub = Hub::new(1);
        hub.publish(vec![commit(1, "a1"), commit(2, "a2")]);
        let mut late = hub.watch(KeyRange::prefix(b"a"), 0, 2);
        assert_eq!(late.next().await, Some(WatchEvent::Resync { revision: 2 }));
        let mut slow = hub.watch(KeyRange::prefix(b"a"), 2, 2);
        for revision in 3..=(3 + 2 * BACKLOG as u64) {
            hub.publish(vec![commit(revision, "a")]);
        }
        assert_eq!(slow.next().await, Some(WatchEvent::Resync { revision: 2 }));
        // What follows is in order, and goes on to the end.
        let mut last = 2;
        while last < 3 + 2 * BACKLOG as u64 {
            match slow.next().await {
                Some(WatchEvent::Change { revision, .. }) if revision > last => last = revision,
                other => panic!("{other:?}"),
            }
        }
    }

    #[tokio::test]
    async fn a_snapshot_that_was_installed_is_a_resync() {
        let hub = Hub::new(1 << 20);
        let mut watcher = hub.watch(KeyRange::prefix(b"a"), 0, 0);
        hub.reset(9);
        hub.publish(vec![commit(10, "a")]);
        assert_eq!(watcher.next().await, Some(WatchEvent::Resync { revision: 9 }));
        assert_eq!(watcher.next().await, Some(change(10, "a")));
    }
}
