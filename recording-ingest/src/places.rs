//! So many at a time, and of each agent fewer: no single one takes the places of all.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use recording_format::AgentId;

use crate::{error::IngestError, metrics};

/// Places for calls that write.
#[derive(Debug)]
pub(crate) struct Places {
    most: usize,
    each: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    /// By agent; none that has none.
    each: BTreeMap<AgentId, usize>,
}

/// A place, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    agent: AgentId,
}

impl Places {
    /// At most so many for all together, and for each agent.
    pub(crate) fn new(most: usize, each: usize) -> Arc<Self> {
        Arc::new(Self { most, each, taken: Mutex::default() })
    }

    /// A place for an agent's call.
    ///
    /// # Errors
    /// [`IngestError::Busy`] when all are taken, [`IngestError::AgentBusy`] when all are that the agent may have.
    pub(crate) fn take(self: &Arc<Self>, agent: AgentId) -> Result<Place, IngestError> {
        let mut taken = self.taken();
        if taken.each.get(&agent).is_some_and(|own| *own >= self.each) {
            return Err(IngestError::AgentBusy);
        }
        if taken.all >= self.most {
            return Err(IngestError::Busy);
        }
        taken.all += 1;
        *taken.each.entry(agent).or_default() += 1;
        metrics::open_streams(taken.all);
        Ok(Place { places: Arc::clone(self), agent })
    }

    /// How many are taken.
    pub(crate) fn count(&self) -> usize {
        self.taken().all
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        taken.all = taken.all.saturating_sub(1);
        if let Some(own) = taken.each.get_mut(&self.agent) {
            *own = own.saturating_sub(1);
            if *own == 0 {
                taken.each.remove(&self.agent);
            }
        }
        metrics::open_streams(taken.all);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_agent_leaves_places_to_the_others_and_what_is_given_back_is_free() {
        let places = Places::new(4, 3);
        let take = |agent: u8| places.take(AgentId::from_bytes([agent; 16]));
        let mut held: Vec<_> = (0..3).map(|_| take(1).unwrap()).collect();
        for _ in 0..9 {
            assert!(matches!(take(1), Err(IngestError::AgentBusy)));
        }
        let other = take(2).unwrap();
        assert!(matches!(take(2), Err(IngestError::Busy)));
        held.pop();
        held.push(take(1).unwrap());
        assert!(matches!(take(1), Err(IngestError::AgentBusy)));
        drop((held, other));
        assert_eq!((places.count(), places.taken().each.len()), (0, 0));
    }
}
