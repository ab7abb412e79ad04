//! The promise of a watch, against a model.

use std::future::Future;

use futures::FutureExt;
use proptest::prelude::*;

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

/// What is there without waiting.
fn ready<T>(future: impl Future<Output = T>) -> Option<T> {
    future.now_or_never()
}

#[tokio::test]
async fn resumes_without_gap_or_duplicate() {
    let hub = Hub::new(1 << 20);
    hub.publish(vec![commit(1, "a1"), commit(2, "b1"), commit(3, "a2")]);
    let mut watcher = hub.watch(KeyRange::prefix(b"a"), 1);
    hub.publish(vec![commit(4, "a3")]);
    assert_eq!(watcher.next().await, Some(change(3, "a2")));
    assert_eq!(watcher.next().await, Some(change(4, "a3")));
    assert_eq!(ready(watcher.next()), None);
    hub.publish(vec![commit(5, "a4")]);
    drop(hub);
    // What was committed before the end is still told.
    assert_eq!(watcher.next().await, Some(change(5, "a4")));
    assert_eq!(watcher.next().await, None);
}

#[tokio::test]
async fn one_that_waits_is_woken() {
    let hub = Hub::new(1 << 20);
    let mut watcher = hub.watch(KeyRange::prefix(b"a"), 0);
    let waiting = tokio::spawn(async move { watcher.next().await });
    hub.publish(vec![commit(1, "b")]);
    hub.publish(vec![commit(2, "a")]);
    assert_eq!(waiting.await.unwrap(), Some(change(2, "a")));
}

#[tokio::test]
async fn one_that_is_too_far_behind_is_told_so_and_holds_no_memory() {
    // Room for ten small commits.
    let hub = Hub::new(10 * (COMMIT_OVERHEAD + CHANGE_OVERHEAD + 2));
    let mut slow = hub.watch(KeyRange::prefix(b"a"), 0);
    for revision in 1..=10_000 {
        hub.publish(vec![commit(revision, "a")]);
    }
    let kept = hub.shared.history().commits.len();
    assert_eq!(kept, 10);
    assert!(slow.pending.is_empty());
    assert_eq!(slow.next().await, Some(WatchEvent::Resync { revision: 10_000 }));
    hub.publish(vec![commit(10_001, "a")]);
    assert_eq!(slow.next().await, Some(change(10_001, "a")));
    // One that resumes within what is kept misses nothing; one before it is told.
    assert_eq!(hub.watch(KeyRange::prefix(b"a"), 9_999).next().await, Some(change(10_000, "a")));
    let mut late = hub.watch(KeyRange::prefix(b"a"), 9_000);
    assert_eq!(late.next().await, Some(WatchEvent::Resync { revision: 10_001 }));
}

#[tokio::test]
async fn commits_that_change_no_row_take_no_more_memory_than_others() {
    let hub = Hub::new(10 * COMMIT_OVERHEAD);
    for revision in 1..=10_000 {
        hub.publish(vec![Commit { revision, changes: Vec::new() }]);
    }
    assert_eq!(hub.shared.history().commits.len(), 10);
}

#[tokio::test]
async fn a_snapshot_that_was_installed_is_a_resync() {
    let hub = Hub::new(1 << 20);
    let mut watcher = hub.watch(KeyRange::prefix(b"a"), 0);
    hub.reset(9);
    assert_eq!(watcher.next().await, Some(WatchEvent::Resync { revision: 9 }));
    hub.publish(vec![commit(10, "a")]);
    assert_eq!(watcher.next().await, Some(change(10, "a")));
}

#[derive(Debug, Clone)]
enum Step {
    /// Commits; each has a few changes of keys `a…` and `b…`.
    Publish(Vec<Vec<(bool, u8)>>),
    /// A snapshot passes over so many revisions.
    Reset(u64),
    /// A watcher takes up to so many events.
    Drain(usize, usize),
    /// A watcher is dropped and resumes where it was.
    Resume(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let changes = prop::collection::vec(any::<(bool, u8)>(), 0..4);
    prop_oneof![
        6 => prop::collection::vec(changes, 0..6).prop_map(Step::Publish),
        1 => (1..20_u64).prop_map(Step::Reset),
        6 => (0..3_usize, 0..12_usize).prop_map(|(who, many)| Step::Drain(who, many)),
        1 => (0..3_usize).prop_map(Step::Resume),
    ]
}

/// What a watcher must have been told: every change of its range after `at`, in order.
struct Follower {
    watcher: Watcher,
    at: u64,
    /// Changes of revision `at` that were told already.
    of_revision: usize,
}

impl Follower {
    /// What must come next.
    fn due(&self, log: &[(u64, Bytes)]) -> Option<(u64, Bytes)> {
        let mut due = log.iter().filter(|(revision, key)| {
            let of_this = *revision == self.at && self.of_revision > 0;
            key.starts_with(b"a") && (*revision > self.at || of_this)
        });
        due.nth(self.of_revision).cloned()
    }

    fn take(&mut self, log: &[(u64, Bytes)], hub: &Hub) -> Result<bool, TestCaseError> {
        let due = self.due(log);
        match ready(self.watcher.next()) {
            None => {
                prop_assert_eq!(due, None, "changes were not told");
                Ok(false)
            }
            Some(Some(WatchEvent::Change { revision, key, .. })) => {
                prop_assert_eq!(due, Some((revision, key)));
                self.of_revision = if revision == self.at { self.of_revision + 1 } else { 1 };
                self.at = revision;
                Ok(true)
            }
            Some(Some(WatchEvent::Resync { revision })) => {
                prop_assert!(self.at < hub.shared.history().complete_after, "a resync without need");
                prop_assert_eq!(revision, hub.shared.history().newest);
                (self.at, self.of_revision) = (revision, 0);
                Ok(true)
            }
            Some(None) => Err(TestCaseError::fail("the watch ended")),
        }
    }
}

proptest! {
    #[test]
    fn in_order_without_gap_or_duplicate_or_told_to_resync(
        steps in prop::collection::vec(step(), 1..60),
        bound in 100..2_000_usize,
    ) {
        let hub = Hub::new(bound);
        let mut log: Vec<(u64, Bytes)> = Vec::new();
        let mut revision = 0;
        let follow = |at| Follower { watcher: hub.watch(KeyRange::prefix(b"a"), at), at, of_revision: 0 };
        let mut followers: Vec<Follower> = (0..3).map(|_| follow(0)).collect();
        for step in steps {
            match step {
                Step::Publish(commits) => {
                    let commits = commits.into_iter().map(|changes| {
                        revision += 1;
                        let key = |(a, n): (bool, u8)| Bytes::from(format!("{}{n}", if a { "a" } else { "b" }));
                        let changes: Vec<_> =
                            changes.into_iter().map(|c| Change { key: key(c), value: None }).collect();
                        log.extend(changes.iter().map(|change| (revision, change.key.clone())));
                        Commit { revision, changes }
                    });
                    let commits = commits.collect();
                    hub.publish(commits);
                    prop_assert!(hub.shared.history().bytes <= bound);
                }
                Step::Reset(by) => {
                    revision += by;
                    hub.reset(revision);
                }
                Step::Drain(who, many) => {
                    for _ in 0..many {
                        if !followers[who].take(&log, &hub)? {
                            break;
                        }
                    }
                }
                // Between two commits: a client resumes after the last revision that it has wholly.
                Step::Resume(who) => {
                    while followers[who].of_revision > 0 && !followers[who].watcher.pending.is_empty() {
                        followers[who].take(&log, &hub)?;
                    }
                    followers[who] = follow(followers[who].at);
                }
            }
        }
        for follower in &mut followers {
            while follower.take(&log, &hub)? {}
        }
    }
}
