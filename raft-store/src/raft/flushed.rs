//! How far the log is on disk, and what waits for it.
//!
//! The log takes entries before they are on disk, so that they are on their way to the peers meanwhile, and so that a
//! slow disk holds up no heartbeat. What must not happen before they are on disk waits here: a follower's
//! acknowledgement, the application of an entry, and telling others that it is committed. Nobody learns of an entry that
//! a crash of this node could still undo.

use openraft::LogId;
use tokio::sync::watch;

use crate::error::StoreError;

#[derive(Debug, Clone, Copy, Default)]
struct Mark {
    /// The last entry on disk.
    last: Option<LogId<u64>>,
    /// A truncation begins a new one.
    epoch: u64,
    /// Nothing is written any more.
    stopped: bool,
}

/// How far the log is on disk.
#[derive(Clone)]
pub(super) struct Flushed(watch::Sender<Mark>);

impl Flushed {
    pub(super) fn new(last: Option<LogId<u64>>) -> Self {
        Self(watch::channel(Mark { last, ..Mark::default() }).0)
    }

    /// The last entry on disk.
    pub(super) fn last(&self) -> Option<LogId<u64>> {
        self.0.borrow().last
    }

    /// How often the log was truncated since the start.
    pub(super) fn epoch(&self) -> u64 {
        self.0.borrow().epoch
    }

    /// Entries up to this one are on disk.
    pub(super) fn rise(&self, last: Option<LogId<u64>>) {
        self.0.send_if_modified(|mark| {
            let rises = last > mark.last;
            mark.last = mark.last.max(last);
            rises
        });
    }

    /// Entries after this one are gone, whether they were on disk or not.
    pub(super) fn truncate(&self, last: Option<LogId<u64>>) {
        self.0.send_modify(|mark| {
            mark.last = mark.last.min(last);
            mark.epoch += 1;
        });
    }

    /// Nothing will be written any more.
    pub(super) fn stop(&self) {
        self.0.send_modify(|mark| mark.stopped = true);
    }

    /// Waits until an index is on disk.
    ///
    /// # Errors
    /// When the log is not written any more.
    pub(super) async fn reached(&self, index: u64) -> Result<(), StoreError> {
        self.wait(index, None).await.map(|_| ())
    }

    /// Waits until an index is on disk. `false`: the log was truncated after that epoch, so it may be another entry.
    ///
    /// # Errors
    /// When the log is not written any more.
    pub(super) async fn reached_in(&self, epoch: u64, index: u64) -> Result<bool, StoreError> {
        self.wait(index, Some(epoch)).await
    }

    async fn wait(&self, index: u64, epoch: Option<u64>) -> Result<bool, StoreError> {
        let is_there = |mark: &Mark| mark.last.is_some_and(|last| last.index >= index);
        let is_other = |mark: &Mark| epoch.is_some_and(|epoch| epoch != mark.epoch);
        let mut marks = self.0.subscribe();
        let decided = marks.wait_for(|mark| is_other(mark) || is_there(mark) || mark.stopped).await;
        match decided {
            Ok(mark) if is_other(&mark) => Ok(false),
            Ok(mark) if is_there(&mark) => Ok(true),
            _ => Err(StoreError::Stopped("the log is not written any more".into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use openraft::LeaderId;

    use super::*;

    fn id(index: u64) -> Option<LogId<u64>> {
        Some(LogId { leader_id: LeaderId::new(1, 1), index })
    }

    #[tokio::test]
    async fn an_index_is_waited_for() {
        let flushed = Flushed::new(id(3));
        flushed.reached(3).await.unwrap();
        let waiting = tokio::spawn({
            let flushed = flushed.clone();
            async move { flushed.reached(5).await }
        });
        flushed.rise(id(4));
        flushed.rise(id(5));
        flushed.rise(id(2));
        waiting.await.unwrap().unwrap();
        assert_eq!(flushed.last(), id(5));
    }

    #[tokio::test]
    async fn entries_that_came_in_place_of_others_are_not_taken_for_them() {
        let flushed = Flushed::new(id(3));
        let before = flushed.epoch();
        flushed.truncate(id(2));
        flushed.rise(id(9));
        assert!(!flushed.reached_in(before, 5).await.unwrap());
        assert!(flushed.reached_in(flushed.epoch(), 5).await.unwrap());
    }

    #[tokio::test]
    async fn nobody_waits_for_a_log_that_has_stopped() {
        let flushed = Flushed::new(id(3));
        flushed.stop();
        flushed.reached(3).await.unwrap();
        assert!(flushed.reached(4).await.is_err());
    }
}
