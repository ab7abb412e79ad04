//! So many at a time, and of each caller fewer: [`mezite_daemon::places`], and what whoever gets none is told.

use std::{sync::Arc, time::Duration};

use mezite_daemon::places::{self, Full};

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
#[derive(Debug, Clone)]
pub(crate) struct Places {
    room: Room,
    places: Arc<places::Places<String>>,
}

/// A place, until it is dropped.
pub(crate) type Place = places::Place<String>;

impl Places {
    pub(crate) fn new(room: Room) -> Self {
        Self { room, places: places::Places::new(room.most, room.each, room.measure) }
    }

    /// A place for a caller, by the name that it has in the audit log.
    ///
    /// # Errors
    /// [`ApiError::Busy`] when all are taken, or all that the caller may have.
    pub(crate) fn take(&self, holder: String) -> Result<Place, ApiError> {
        self.places.take(holder).map_err(|full| {
            let what = match full {
                Full::All => self.room.full,
                Full::Own => self.room.own_full,
            };
            ApiError::Busy { what, retry_after: RETRY_AFTER }
        })
    }
}

#[cfg(test)]
impl Places {
    /// How many are taken.
    pub(crate) fn count(&self) -> usize {
        self.places.count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_is_told_whose_places_are_taken() {
        let places = Places::new(Room { most: 3, each: 2, full: "all", own_full: "own", measure: |_| () });
        let take = |holder: &str| places.take(holder.to_owned());
        let _held = (take("agent:a").unwrap(), take("agent:a").unwrap());
        assert!(matches!(take("agent:a"), Err(ApiError::Busy { what: "own", .. })));
        let _other = take("agent:b").unwrap();
        assert!(matches!(take("user:b"), Err(ApiError::Busy { what: "all", .. })));
        assert_eq!(places.count(), 3);
    }
}
