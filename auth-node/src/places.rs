//! So many at a time, and of each caller fewer: no single one takes the places of all.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::error::ApiError;

/// When who was turned away may try again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What there are places for, and how many.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    /// For all together.
    pub(crate) most: usize,
    /// For each caller.
    pub(crate) each: usize,
    /// What whoever comes when all are taken is told.
    pub(crate) full: &'static str,
    /// What a caller that has all of its own is told.
    pub(crate) own_full: &'static str,
    /// Is told how many are taken, whenever that changes.
    pub(crate) measure: fn(usize),
}

/// Places that are taken and given back.
#[derive(Debug)]
pub(crate) struct Places {
    room: Room,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    /// By caller; nobody who has none.
    each: BTreeMap<String, usize>,
}

/// A place, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    holder: String,
}

impl Places {
    pub(crate) fn new(room: Room) -> Arc<Self> {
        Arc::new(Self { room, taken: Mutex::default() })
    }

    /// A place for a caller, by the name that it has in the audit log.
    ///
    /// # Errors
    /// [`ApiError::Busy`] when all are taken, or all that the caller may have.
    pub(crate) fn take(self: &Arc<Self>, holder: String) -> Result<Place, ApiError> {
        let mut taken = self.taken();
        let busy = |what| Err(ApiError::Busy { what, retry_after: RETRY_AFTER });
        if taken.each.get(&holder).is_some_and(|own| *own >= self.room.each) {
            return busy(self.room.own_full);
        }
        if taken.all >= self.room.most {
            return busy(self.room.full);
        }
        taken.all += 1;
        *taken.each.entry(holder.clone()).or_default() += 1;
        (self.room.measure)(taken.all);
        Ok(Place { places: Arc::clone(self), holder })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        taken.all = taken.all.saturating_sub(1);
        if let Some(own) = taken.each.get_mut(&self.holder) {
            *own = own.saturating_sub(1);
            if *own == 0 {
                taken.each.remove(&self.holder);
            }
        }
        (self.places.room.measure)(taken.all);
    }
}

#[cfg(test)]
impl Places {
    /// How many are taken.
    pub(crate) fn count(&self) -> usize {
        self.taken().all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_caller_leaves_places_to_the_others_and_what_is_given_back_is_free() {
        let places = Places::new(Room { most: 5, each: 3, full: "all", own_full: "own", measure: |_| () });
        let take = |holder: &str| places.take(holder.to_owned());
        let mut held: Vec<_> = (0..3).map(|_| take("agent:a").unwrap()).collect();
        for _ in 0..9 {
            assert!(matches!(take("agent:a"), Err(ApiError::Busy { what: "own", .. })));
        }
        let others = (take("agent:b").unwrap(), take("user:a").unwrap());
        assert!(matches!(take("user:b"), Err(ApiError::Busy { what: "all", .. })));
        held.pop();
        assert_eq!(places.count(), 4);
        held.push(take("agent:a").unwrap());
        assert!(matches!(take("agent:a"), Err(ApiError::Busy { what: "own", .. })));
        drop((held, others));
        assert_eq!((places.count(), places.taken().each.len()), (0, 0));
    }
}
