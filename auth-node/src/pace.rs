//! How often logins of several steps are begun at this node: each is a write, and anybody can begin one. So many at once, and after them a few a
//! second, for each network and each user.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::error::ApiError;

/// For each beginning, in the long run: two a second.
const COST: Duration = Duration::from_millis(500);
/// Beginnings that may come at once after a quiet time.
const BURST: u32 = 100;
/// Networks and users that are remembered. Whoever comes while all of them are in debt waits as they do.
const MOST: usize = 65_536;

/// Bounds the beginnings.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// When nothing is missing from the burst of each any more; nobody of whom nothing is.
    full_at: Mutex<BTreeMap<String, Instant>>,
}

impl Pace {
    /// Admits one beginning of a network or user, by the name that it has here.
    ///
    /// # Errors
    /// [`ApiError::Busy`].
    pub(crate) fn admit(&self, holder: String) -> Result<(), ApiError> {
        self.admit_at(holder, Instant::now())
    }

    fn admit_at(&self, holder: String, now: Instant) -> Result<(), ApiError> {
        let busy = |retry_after| {
            Err(ApiError::Busy { what: "too many logins or registrations are begun here", retry_after })
        };
        let mut all = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MOST && !all.contains_key(&holder) {
            all.retain(|_, full_at| *full_at > now);
            if all.len() >= MOST {
                return busy(COST);
            }
        }
        let full_at = all.get(&holder).map_or(now, |full_at| (*full_at).max(now)) + COST;
        let missing = full_at.saturating_duration_since(now);
        if missing > COST * BURST {
            return busy(missing.saturating_sub(COST * BURST));
        }
        all.insert(holder, full_at);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_has_a_burst_and_then_a_few_a_second_and_leaves_the_others_theirs() {
        let (pace, start) = (Pace::default(), Instant::now());
        let admit = |holder: &str, at: Duration| pace.admit_at(holder.to_owned(), start + at);
        for _ in 0..BURST {
            admit("network:a", Duration::ZERO).unwrap();
        }
        for _ in 0..3 {
            let refused = admit("network:a", Duration::ZERO).unwrap_err();
            assert!(
                matches!(refused, ApiError::Busy { retry_after, .. } if retry_after > Duration::ZERO),
                "{refused:?}"
            );
        }
        admit("network:b", Duration::ZERO).unwrap();
        admit("network:a", COST).unwrap();
        assert!(admit("network:a", COST).is_err());
        for _ in 0..BURST {
            admit("network:a", COST * (BURST + 1)).unwrap();
        }
    }

    #[test]
    fn no_more_are_remembered_than_there_is_room_for() {
        let (pace, start) = (Pace::default(), Instant::now());
        for number in 0..MOST {
            pace.admit_at(format!("network:{number}"), start).unwrap();
        }
        assert!(pace.admit_at("network:new".into(), start).is_err());
        pace.admit_at("network:0".into(), start).unwrap();
        pace.admit_at("network:new".into(), start + COST).unwrap();
        // What was in no debt any more went; the one that had begun twice is still remembered.
        assert_eq!(pace.full_at.lock().unwrap().len(), 2);
    }
}
