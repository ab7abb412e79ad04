//! How many refusals this node writes into the audit log. The log is replicated and kept for long, and anybody who
//! reaches a port can be refused as often as it likes; so what is above the bound, or cannot be written, is counted, and
//! the next refusal that is recorded tells how many were not. What is answered does not depend on it.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use auth_core::{CoreError, Credential, Verdict};

use crate::metrics;
pub(crate) use auth_core::Refusals as Mode;

/// For each record, in the long run: ten a second.
const COST: Duration = Duration::from_millis(100);
/// Records that may come at once after a quiet time.
pub(crate) const BURST: u32 = 100;

/// Bounds the refusals that are recorded: of callers with a session, and of all others together, so that strangers do not
/// hide what users try.
#[derive(Debug)]
pub(crate) struct Refusals {
    strangers: Bucket,
    users: Bucket,
}

#[derive(Debug)]
struct Bucket(Mutex<State>);

#[derive(Debug)]
struct State {
    /// When nothing is missing from the burst any more.
    full_at: Instant,
    unrecorded: u64,
}

impl Default for Refusals {
    fn default() -> Self {
        let bucket = || Bucket(Mutex::new(State { full_at: Instant::now(), unrecorded: 0 }));
        Self { strangers: bucket(), users: bucket() }
    }
}

impl Refusals {
    /// For a call with this credential, before it is known whether it will be refused.
    pub(crate) fn reserve(&self, credential: &Credential) -> Ticket<'_> {
        let bucket = match credential {
            Credential::Session(_) => &self.users,
            // A certificate counts as long as it lives, also when its holder was removed.
            Credential::None
            | Credential::Agent { .. }
            | Credential::Ingest { .. }
            | Credential::AgentIdentity { .. }
            | Credential::Svid(_)
            | Credential::Remote(_) => &self.strangers,
        };
        bucket.reserve(Instant::now())
    }
}

impl Bucket {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more refusal is not recorded; the next record tells of so many, those among it that this one's was to tell of.
    fn count(&self, told: u64) {
        let mut state = self.state();
        state.unrecorded = state.unrecorded.saturating_add(told);
        metrics::refusal_unrecorded();
    }

    fn reserve(&self, now: Instant) -> Ticket<'_> {
        let mut state = self.state();
        let full_at = state.full_at.max(now) + COST;
        let mode = if full_at.saturating_duration_since(now) > COST * BURST {
            Mode::Counted
        } else {
            state.full_at = full_at;
            Mode::Recorded { unrecorded: std::mem::take(&mut state.unrecorded) }
        };
        Ticket { bucket: self, mode: Some(mode) }
    }
}

/// What was reserved for one refusal. One that is dropped may have been recorded: its place is used up, and what its
/// record would have told will be told once more.
#[must_use]
#[derive(Debug)]
pub(crate) struct Ticket<'a> {
    bucket: &'a Bucket,
    /// Taken once it is known what became of it.
    mode: Option<Mode>,
}

impl Ticket<'_> {
    /// Whether the refusal is to be recorded.
    pub(crate) fn mode(&self) -> Mode {
        self.mode.unwrap_or(Mode::Counted)
    }

    /// The call was refused; if that was to be recorded, it is.
    pub(crate) fn refused(mut self) {
        if self.mode.take() == Some(Mode::Counted) {
            self.bucket.count(1);
        }
    }

    /// The call was refused, and it is not known that its record was written. What that would have told is told by the next.
    pub(crate) fn lost(mut self) {
        let beside = match self.mode.take() {
            Some(Mode::Recorded { unrecorded }) => unrecorded,
            Some(Mode::Counted) | None => 0,
        };
        self.bucket.count(beside.saturating_add(1));
    }

    /// Nothing was refused that would be recorded: the place is for another.
    pub(crate) fn unused(mut self) {
        if let Some(Mode::Recorded { unrecorded }) = self.mode.take() {
            let mut state = self.bucket.state();
            state.full_at = state.full_at.checked_sub(COST).unwrap_or(state.full_at);
            state.unrecorded = state.unrecorded.saturating_add(unrecorded);
        }
    }

    /// After the commit: what was granted, or the refusal.
    ///
    /// # Errors
    /// The refusal.
    pub(crate) fn settle<T>(self, verdict: Verdict<T>) -> Result<T, CoreError> {
        let decided = verdict.into_result();
        if decided.is_ok() {
            self.unused();
        } else {
            self.refused();
        }
        decided
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        if let Some(Mode::Recorded { unrecorded }) = self.mode {
            let mut state = self.bucket.state();
            state.unrecorded = state.unrecorded.saturating_add(unrecorded);
        }
    }
}

#[cfg(test)]
mod tests {
    use auth_core::secret::{SecretDigest, SecretKind};

    use super::*;

    fn recorded(unrecorded: u64) -> Mode {
        Mode::Recorded { unrecorded }
    }

    #[test]
    fn a_burst_is_recorded_then_ten_a_second_and_the_next_record_tells_of_the_rest() {
        let now = Instant::now();
        let bucket = Bucket(Mutex::new(State { full_at: now, unrecorded: 0 }));
        let refuse = |at: Instant| {
            let ticket = bucket.reserve(at);
            let mode = ticket.mode();
            ticket.refused();
            mode
        };
        assert!((0..BURST).all(|_| refuse(now) == recorded(0)));
        assert!((0..7).all(|_| refuse(now) == Mode::Counted));
        let later = now + Duration::from_secs(1);
        assert_eq!(refuse(later), recorded(7));
        assert!((0..9).all(|_| refuse(later) == recorded(0)));
        assert_eq!(refuse(later), Mode::Counted);
        // A quiet hour saves up no more than a burst.
        let quiet = now + Duration::from_secs(3600);
        assert_eq!((0..2 * BURST).filter(|_| refuse(quiet) != Mode::Counted).count(), BURST as usize);
    }

    #[test]
    fn what_is_granted_takes_no_place_and_nothing_is_forgotten_with_a_call_that_is_cancelled() {
        let now = Instant::now();
        let bucket = Bucket(Mutex::new(State { full_at: now, unrecorded: 3 }));
        for _ in 0..3 * BURST {
            assert_eq!(bucket.reserve(now).settle(Verdict::Granted(7)), Ok(7));
        }
        for _ in 0..BURST {
            let ticket = bucket.reserve(now);
            assert_eq!(ticket.mode(), recorded(3));
            drop(ticket);
        }
        let ticket = bucket.reserve(now);
        assert_eq!(ticket.mode(), Mode::Counted);
        let refusal = CoreError::Denied("no".into());
        assert_eq!(ticket.settle(Verdict::<u8>::Refused(refusal.clone())), Err(refusal));
        let later = bucket.reserve(now + COST);
        assert_eq!(later.mode(), recorded(4));
        later.refused();
    }

    #[test]
    fn a_record_that_cannot_be_written_counts_and_the_next_one_tells_of_it() {
        let now = Instant::now();
        let bucket = Bucket(Mutex::new(State { full_at: now, unrecorded: 3 }));
        for before in 3..7 {
            let ticket = bucket.reserve(now);
            assert_eq!(ticket.mode(), recorded(before));
            ticket.lost();
        }
        assert_eq!(bucket.reserve(now).mode(), recorded(7));
    }

    #[test]
    fn strangers_do_not_hide_what_users_try() {
        let refusals = Refusals::default();
        let user = Credential::Session(SecretDigest::of(SecretKind::Session, "x"));
        for _ in 0..2 * BURST {
            refusals.reserve(&Credential::None).refused();
        }
        assert_eq!(refusals.reserve(&Credential::None).mode(), Mode::Counted);
        assert_eq!(refusals.reserve(&user).mode(), recorded(0));
    }
}
