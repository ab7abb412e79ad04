//! The bytes that all calls together hold in memory before they are durable.
//!
//! A call takes room for the message that it has in hand before it reads the next one. Where there is none, whoever
//! holds its part or more writes that, as a shorter segment than otherwise, and the room is given to those who wait, in
//! their order. Nobody waits while holding, and when nobody holds its part there is room for one message: so slow calls
//! cannot keep the others waiting, however many they are.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use recording_format::{FRAME_HEADER_LEN, MAX_CHUNK_LEN};

use crate::metrics;

/// The most that is taken at once, in bytes.
pub(crate) const MOST_AT_ONCE: usize = MAX_CHUNK_LEN + FRAME_HEADER_LEN;
/// The least budget, in bytes: about twice that.
pub(crate) const LEAST: usize = 2 << 20;
/// The greatest budget, in bytes: 1 TiB.
pub(crate) const MOST: usize = 1 << 40;

/// Room for so many bytes.
#[derive(Debug)]
pub(crate) struct Budget {
    bytes: usize,
    free: Arc<Semaphore>,
    load: watch::Sender<Load>,
}

/// Who shares the budget.
#[derive(Debug, Default)]
struct Load {
    /// Calls that there are.
    calls: usize,
    /// Of those, calls that wait for room.
    waiting: usize,
}

/// What one call holds of it; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    budget: Arc<Budget>,
    held: Option<OwnedSemaphorePermit>,
    load: watch::Receiver<Load>,
}

/// Counts a call that waits, for as long as it does.
struct Waiting<'a>(&'a watch::Sender<Load>);

impl<'a> Waiting<'a> {
    fn begin(load: &'a watch::Sender<Load>) -> Self {
        load.send_modify(|load| load.waiting += 1);
        Self(load)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.send_if_modified(|load| {
            load.waiting = load.waiting.saturating_sub(1);
            // Nobody waits for that.
            false
        });
    }
}

impl Budget {
    /// Room for `bytes`, as far as that is between [`LEAST`] and [`MOST`].
    pub(crate) fn new(bytes: usize) -> Arc<Self> {
        let bytes = bytes.clamp(LEAST, MOST);
        Arc::new(Self { bytes, free: Arc::new(Semaphore::new(bytes)), load: watch::Sender::default() })
    }

    /// A share that holds nothing yet.
    pub(crate) fn share(self: &Arc<Self>) -> Share {
        self.change_calls(|calls| calls + 1);
        Share { budget: Arc::clone(self), held: None, load: self.load.subscribe() }
    }

    /// With more calls each one's part is smaller, which matters while somebody waits.
    fn change_calls(&self, change: impl FnOnce(usize) -> usize) {
        self.load.send_if_modified(|load| {
            load.calls = change(load.calls);
            load.waiting > 0
        });
    }

    /// Whether so many bytes are a call's part of the budget, or more, while others wait.
    fn presses(&self, load: &Load, held: usize) -> bool {
        load.waiting > 0 && held.saturating_mul(load.calls) >= self.bytes - MOST_AT_ONCE
    }

    fn note(&self) {
        metrics::memory(self.bytes.saturating_sub(self.free.available_permits()));
    }
}

impl Share {
    /// Takes room where it is free now; answers whether it did.
    pub(crate) fn try_take(&mut self, bytes: usize) -> bool {
        let Ok(permit) = Arc::clone(&self.budget.free).try_acquire_many_owned(permits(bytes)) else {
            return false;
        };
        self.hold(permit);
        true
    }

    /// Waits for room. Whoever waits must hold nothing: what it held is given back.
    pub(crate) async fn take(&mut self, bytes: usize) {
        self.give_back();
        let waits = Waiting::begin(&self.budget.load);
        let permit = Arc::clone(&self.budget.free).acquire_many_owned(permits(bytes)).await;
        drop(waits);
        // The semaphore is never closed.
        if let Ok(permit) = permit {
            self.hold(permit);
        }
    }

    /// Gives back what is held above so many bytes.
    pub(crate) fn keep(&mut self, bytes: usize) {
        let excess = self.held().saturating_sub(bytes);
        drop(self.held.as_mut().and_then(|held| held.split(excess)));
        self.budget.note();
    }

    /// Gives back all.
    pub(crate) fn give_back(&mut self) {
        self.held = None;
        self.budget.note();
    }

    /// Resolves when others wait for room and this call holds its part of it.
    pub(crate) async fn pressed(&self) {
        let held = self.held();
        if held > 0 && self.load.clone().wait_for(|load| self.budget.presses(load, held)).await.is_ok() {
            return;
        }
        std::future::pending().await
    }

    fn held(&self) -> usize {
        self.held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits)
    }

    fn hold(&mut self, permit: OwnedSemaphorePermit) {
        match &mut self.held {
            Some(held) => held.merge(permit),
            None => self.held = Some(permit),
        }
        self.budget.note();
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.give_back();
        self.budget.change_calls(|calls| calls.saturating_sub(1));
    }
}

/// In tests more is taken at once than a message has.
fn permits(bytes: usize) -> u32 {
    u32::try_from(bytes.min(LEAST)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn who_waits_presses_those_who_hold_and_is_next() {
        let budget = Budget::new(LEAST);
        let (mut holder, mut idle, mut waiter) = (budget.share(), budget.share(), budget.share());
        assert!(holder.try_take(LEAST - 10) && !waiter.try_take(11));
        assert!(holder.pressed().now_or_never().is_none());
        let held = async {
            holder.pressed().await;
            // Nobody else comes in between, however little it wants.
            holder.keep(LEAST - 11);
            assert!(!idle.try_take(1) && idle.pressed().now_or_never().is_none());
            holder.give_back();
        };
        tokio::join!(waiter.take(20), held);
        assert_eq!((waiter.held(), budget.free.available_permits()), (20, LEAST - 20));
        assert!(waiter.pressed().now_or_never().is_none());
        drop(waiter);
        assert_eq!(budget.free.available_permits(), LEAST);
    }

    #[tokio::test]
    async fn who_holds_less_than_its_part_goes_on_until_there_are_more() {
        let budget = Budget::new(LEAST);
        let part = (LEAST - MOST_AT_ONCE).div_ceil(3);
        let (mut large, mut small, mut waiter) = (budget.share(), budget.share(), budget.share());
        assert!(large.try_take(LEAST - part + 1) && small.try_take(part - 1));
        let mut waits = std::pin::pin!(waiter.take(MOST_AT_ONCE));
        assert!(waits.as_mut().now_or_never().is_none());
        assert!(large.pressed().now_or_never().is_some() && small.pressed().now_or_never().is_none());
        let more = budget.share();
        assert!(small.pressed().now_or_never().is_some());
        drop(more);
        // Those who hold less than their parts leave room for the greatest message.
        large.give_back();
        waits.await;
    }

    #[tokio::test]
    async fn who_gives_up_waiting_presses_nobody() {
        let budget = Budget::new(LEAST);
        let (mut holder, mut waiter) = (budget.share(), budget.share());
        assert!(holder.try_take(LEAST));
        assert!(waiter.take(1).now_or_never().is_none());
        assert!(holder.pressed().now_or_never().is_none());
        holder.keep(LEAST - 1);
        assert!(waiter.try_take(1));
    }
}
