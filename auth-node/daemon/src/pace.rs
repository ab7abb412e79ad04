//! How often something is begun: so many at once, and after them a few a second, for each holder.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Bounds beginnings.
#[derive(Debug)]
pub struct Pace<K> {
    cost: Duration,
    burst: u32,
    most: usize,
    /// When nothing is missing from the burst of each any more; nobody of whom nothing is.
    full_at: Mutex<BTreeMap<K, Instant>>,
}

impl<K: Ord> Pace<K> {
    /// One in `cost` in the long run, and `burst` at once after a quiet time. At most so many holders are remembered:
    /// whoever comes while all of them are in debt waits as they do.
    pub const fn new(cost: Duration, burst: u32, most: usize) -> Self {
        Self { cost, burst, most, full_at: Mutex::new(BTreeMap::new()) }
    }

    /// Admits one beginning of a holder at this time.
    ///
    /// # Errors
    /// After how long it may ask again.
    pub fn admit(&self, holder: K, now: Instant) -> Result<(), Duration> {
        let mut all = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= self.most && !all.contains_key(&holder) {
            all.retain(|_, full_at| *full_at > now);
            if all.len() >= self.most {
                return Err(self.cost);
            }
        }
        let full_at = all.get(&holder).map_or(now, |full_at| (*full_at).max(now)) + self.cost;
        let (missing, burst) = (full_at.saturating_duration_since(now), self.cost * self.burst);
        if missing > burst {
            return Err(missing.saturating_sub(burst));
        }
        all.insert(holder, full_at);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COST: Duration = Duration::from_millis(500);
    const BURST: u32 = 100;
    const MOST: usize = 1000;

    #[test]
    fn a_holder_has_a_burst_and_then_a_few_a_second_and_leaves_the_others_theirs() {
        let (pace, start) = (Pace::new(COST, BURST, MOST), Instant::now());
        let admit = |holder: &'static str, at: Duration| pace.admit(holder, start + at);
        for _ in 0..BURST {
            admit("network:a", Duration::ZERO).unwrap();
        }
        for _ in 0..3 {
            assert_eq!(admit("network:a", Duration::ZERO), Err(COST));
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
        let (pace, start) = (Pace::new(COST, BURST, MOST), Instant::now());
        for number in 0..MOST {
            pace.admit(number, start).unwrap();
        }
        assert!(pace.admit(MOST, start).is_err());
        pace.admit(0, start).unwrap();
        pace.admit(MOST, start + COST).unwrap();
        // What was in no debt any more went; the one that had begun twice is still remembered.
        assert_eq!(pace.full_at.lock().unwrap().len(), 2);
    }
}
