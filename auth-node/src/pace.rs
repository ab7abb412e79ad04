//! How often logins of several steps are begun at this node: each is a write, and anybody can begin one. So many at once, and after them a few a
//! second, for each network and each user.

use std::time::{Duration, Instant};

use crate::error::ApiError;

/// For each beginning, in the long run: two a second.
const COST: Duration = Duration::from_millis(500);
/// Beginnings that may come at once after a quiet time.
const BURST: u32 = 100;
/// Networks and users that are remembered.
const MOST: usize = 65_536;

/// Bounds the beginnings.
#[derive(Debug)]
pub(crate) struct Pace(mezite_daemon::pace::Pace<String>);

impl Default for Pace {
    fn default() -> Self {
        Self(mezite_daemon::pace::Pace::new(COST, BURST, MOST))
    }
}

impl Pace {
    /// Admits one beginning of a network or user, by the name that it has here.
    ///
    /// # Errors
    /// [`ApiError::Busy`].
    pub(crate) fn admit(&self, holder: String) -> Result<(), ApiError> {
        self.0.admit(holder, Instant::now()).map_err(|retry_after| ApiError::Busy {
            what: "too many logins or registrations are begun here",
            retry_after,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_begins_too_many_is_told_when_to_come_again_and_others_are_let_in() {
        let pace = Pace::default();
        for _ in 0..BURST {
            pace.admit("network:a".into()).unwrap();
        }
        // The clock goes on meanwhile, by less than ten beginnings cost.
        let refused = (0..10).find_map(|_| pace.admit("network:a".into()).err()).unwrap();
        assert!(matches!(refused, ApiError::Busy { retry_after, .. } if retry_after <= COST), "{refused:?}");
        pace.admit("network:b".into()).unwrap();
    }
}
