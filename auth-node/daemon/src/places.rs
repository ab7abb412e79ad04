//! So many at a time, and of each holder fewer: no single one takes the places of all.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Places that are taken and given back.
#[derive(Debug)]
pub struct Places<K: Ord> {
    most: usize,
    each: usize,
    measure: fn(usize),
    taken: Mutex<Taken<K>>,
}

#[derive(Debug)]
struct Taken<K> {
    all: usize,
    /// By holder; nobody who has none.
    each: BTreeMap<K, usize>,
}

/// A place, until it is dropped.
#[derive(Debug)]
#[must_use]
pub struct Place<K: Ord> {
    places: Arc<Places<K>>,
    holder: K,
}

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// All are taken.
    All,
    /// The holder has as many as it may.
    Own,
}

impl<K: Ord + Clone> Places<K> {
    /// At most so many for all together, and for each holder. `measure` is told how many are taken, whenever that
    /// changes.
    pub fn new(most: usize, each: usize, measure: fn(usize)) -> Arc<Self> {
        Arc::new(Self { most, each, measure, taken: Mutex::new(Taken { all: 0, each: BTreeMap::new() }) })
    }

    /// A place for a holder.
    ///
    /// # Errors
    /// [`Full`].
    pub fn take(self: &Arc<Self>, holder: K) -> Result<Place<K>, Full> {
        let mut taken = self.taken();
        if taken.each.get(&holder).is_some_and(|own| *own >= self.each) {
            return Err(Full::Own);
        }
        if taken.all >= self.most {
            return Err(Full::All);
        }
        taken.all += 1;
        *taken.each.entry(holder.clone()).or_default() += 1;
        (self.measure)(taken.all);
        Ok(Place { places: Arc::clone(self), holder })
    }
}

impl<K: Ord> Places<K> {
    /// How many are taken.
    pub fn count(&self) -> usize {
        self.taken().all
    }

    fn taken(&self) -> MutexGuard<'_, Taken<K>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Ord> Drop for Place<K> {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        taken.all = taken.all.saturating_sub(1);
        if let Some(own) = taken.each.get_mut(&self.holder) {
            *own = own.saturating_sub(1);
            if *own == 0 {
                taken.each.remove(&self.holder);
            }
        }
        (self.places.measure)(taken.all);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holder_leaves_places_to_the_others_and_what_is_given_back_is_free() {
        let places = Places::new(5, 3, |_| ());
        let take = |holder: &'static str| places.take(holder);
        let mut held: Vec<_> = (0..3).map(|_| take("agent:a").unwrap()).collect();
        for _ in 0..9 {
            assert_eq!(take("agent:a").unwrap_err(), Full::Own);
        }
        let others = (take("agent:b").unwrap(), take("user:a").unwrap());
        assert_eq!(take("user:b").unwrap_err(), Full::All);
        held.pop();
        assert_eq!(places.count(), 4);
        held.push(take("agent:a").unwrap());
        assert_eq!(take("agent:a").unwrap_err(), Full::Own);
        drop((held, others));
        assert_eq!((places.count(), places.taken().each.len()), (0, 0));
    }
}
