//! Which call of this process writes a recording, and what it leaves for the next one.
//!
//! An optimisation only: two calls of one recording would be told apart by the store as two processes are. With a
//! claim the newer call takes over at once, instead of failing after it sent a segment, and goes on with the running
//! digest of the older, so that the recording need not be read at its end.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use recording_format::RecordingId;
use tokio_util::sync::CancellationToken;

use crate::{recover::Stored, session::Progress};

/// A manifest of more bytes is not kept in memory between calls.
const LONG: usize = 64 << 10;

/// All claims of this process.
#[derive(Debug)]
pub struct Claims {
    slots: Mutex<HashMap<RecordingId, Arc<Slot>>>,
    /// Slots without a holder above this number are forgotten, oldest first.
    kept: usize,
    uses: AtomicU64,
}

#[derive(Debug, Default)]
struct Slot {
    /// Locked by the call that writes.
    progress: Arc<tokio::sync::Mutex<Option<Progress>>>,
    /// Cancelled when a newer call wants to write.
    holder: Mutex<CancellationToken>,
    /// How the recording stood when the last call ended.
    stored: Mutex<Option<Stored>>,
    used: AtomicU64,
}

/// The right of one call to write a recording, as far as this process is concerned.
#[derive(Debug)]
pub struct Claim {
    slot: Arc<Slot>,
    progress: tokio::sync::OwnedMutexGuard<Option<Progress>>,
    superseded: CancellationToken,
}

impl Claims {
    /// Keeps the progress of at most `kept` recordings that nobody writes just now.
    #[must_use]
    pub fn new(kept: usize) -> Self {
        Self { slots: Mutex::default(), kept, uses: AtomicU64::new(0) }
    }

    /// Takes over from whoever writes this recording, when it has let go.
    pub async fn claim(&self, id: RecordingId) -> Claim {
        let slot = self.slot(id);
        let superseded = CancellationToken::new();
        let before = {
            let mut holder = slot.holder.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *holder, superseded.clone())
        };
        before.cancel();
        Claim { progress: Arc::clone(&slot.progress).lock_owned().await, slot, superseded }
    }

    /// The right to write a recording that no call of this process writes now. A call that comes waits.
    #[must_use]
    pub fn try_claim(&self, id: RecordingId) -> Option<Claim> {
        let slot = self.slot(id);
        let progress = Arc::clone(&slot.progress).try_lock_owned().ok()?;
        Some(Claim { slot, progress, superseded: CancellationToken::new() })
    }

    fn slot(&self, id: RecordingId) -> Arc<Slot> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.uses.fetch_add(1, Ordering::Relaxed);
        if !slots.contains_key(&id) && slots.len() >= self.kept {
            let idle = slots.iter().filter(|(_, slot)| Arc::strong_count(slot) == 1 && !slot.is_held());
            let oldest = idle.min_by_key(|(_, slot)| slot.used.load(Ordering::Relaxed)).map(|(id, _)| *id);
            if let Some(oldest) = oldest {
                slots.remove(&oldest);
            }
        }
        let slot = slots.entry(id).or_default();
        slot.used.store(now, Ordering::Relaxed);
        Arc::clone(slot)
    }

    /// How a recording stood when the last call of this process ended, if that is remembered.
    pub(crate) fn stored(&self, id: RecordingId) -> Option<Stored> {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.get(&id)?.stored.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Forgets a recording that needs no more writing.
    pub fn forget(&self, id: RecordingId) {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }
}

impl Slot {
    fn is_held(&self) -> bool {
        self.progress.try_lock().is_err()
    }
}

impl Claim {
    /// Resolves when a newer call wants to write.
    pub async fn superseded(&self) {
        self.superseded.cancelled().await;
    }

    /// Takes out what the call before left.
    pub fn take(&mut self) -> Option<Progress> {
        self.progress.take()
    }

    /// Leaves something for the next call: how far it is, and how the recording stands, unless that has a long manifest.
    pub(crate) fn leave(&mut self, progress: Progress, stored: Stored) {
        *self.progress = Some(progress);
        let is_short = stored.manifest.as_ref().is_none_or(|signed| signed.document.len() <= LONG);
        *self.slot.stored.lock().unwrap_or_else(PoisonError::into_inner) = is_short.then_some(stored);
    }
}

#[cfg(test)]
mod tests {
    use recording_format::{AgentId, Begin, ChainHead, Digest, Metadata};

    use super::*;

    fn id(n: u8) -> RecordingId {
        RecordingId::from_bytes([n; 16])
    }

    fn stored() -> Stored {
        let (id, agent) = (id(9), AgentId::from_bytes([8; 16]));
        Stored::begun(Begin::new(id, agent, Metadata::default(), 0, agent), b"{}")
    }

    fn progress() -> Progress {
        Progress::empty(ChainHead::begin(id(1), Digest::of(b"")))
    }

    #[tokio::test]
    async fn the_newer_call_takes_over() {
        let claims = Claims::new(8);
        let mut old = claims.claim(id(1)).await;
        assert!(old.take().is_none());
        let newer = async {
            let mut claim = claims.claim(id(1)).await;
            claim.take().is_some()
        };
        let older = async {
            old.superseded().await;
            old.leave(progress(), stored());
            drop(old);
        };
        let (inherited, ()) = tokio::join!(newer, older);
        assert!(inherited);
    }

    #[tokio::test]
    async fn what_is_written_is_not_taken_from_its_call() {
        let claims = Claims::new(8);
        let mut written = claims.claim(id(1)).await;
        assert!(claims.try_claim(id(1)).is_none() && !written.superseded.is_cancelled());
        written.leave(progress(), stored());
        drop(written);
        let held = claims.try_claim(id(1)).unwrap();
        assert!(claims.try_claim(id(1)).is_none());
        // A call that comes waits, and finds what the one before it left.
        let (taken, ()) = tokio::join!(async { claims.claim(id(1)).await.take() }, async { drop(held) });
        assert!(taken.is_some());
    }

    #[tokio::test]
    async fn other_recordings_are_not_disturbed() {
        let claims = Claims::new(8);
        let one = claims.claim(id(1)).await;
        let two = claims.claim(id(2)).await;
        assert!(!one.superseded.is_cancelled() && !two.superseded.is_cancelled());
    }

    #[tokio::test]
    async fn only_so_many_are_kept_and_none_that_is_held() {
        let claims = Claims::new(2);
        let held = claims.claim(id(1)).await;
        for n in 2..=5 {
            claims.claim(id(n)).await.leave(progress(), stored());
        }
        assert_eq!(claims.slots.lock().unwrap().len(), 2);
        assert!(claims.slots.lock().unwrap().contains_key(&id(1)));
        drop(held);
        assert!(claims.claim(id(5)).await.take().is_some());
        claims.forget(id(5));
        assert!(claims.claim(id(5)).await.take().is_none());
    }
}
