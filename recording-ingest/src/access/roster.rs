//! What an ingest knows of the registered agents: a state machine without I/O. Auth nodes tell it events, in order, and
//! it says how an agent stands.

use std::collections::{BTreeMap, BTreeSet};

use recording_format::AgentId;

/// What an auth node tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    /// A listing begins.
    Listing,
    /// Agents that are registered, with their hostnames.
    Registered(Vec<(AgentId, String)>),
    /// It is not registered, or not any more.
    Removed(AgentId),
    /// The listing is complete.
    Listed,
    /// The node is current.
    Current,
}

/// How an agent stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing<'a> {
    /// It is registered, under this hostname.
    Registered(&'a str),
    /// It is not registered, as far as was told. The word of a registration may be on its way.
    Absent,
    /// It was not registered when that was last told, and nobody tells now.
    Unsure,
    /// There was no complete listing yet.
    NotTold {
        /// Whether there was an attempt to get one, which failed.
        tried: bool,
    },
}

impl Standing<'_> {
    /// Whether waiting a moment cannot make it better.
    pub(super) fn is_settled(self) -> bool {
        match self {
            Self::Registered(_) | Self::NotTold { tried: true } => true,
            Self::Absent | Self::Unsure | Self::NotTold { tried: false } => false,
        }
    }
}

/// The registered agents, as far as they are known.
#[derive(Debug, Default)]
pub(super) struct Roster {
    agents: BTreeMap<AgentId, String>,
    /// Those that were told of since a listing began that is not complete.
    arriving: Option<BTreeSet<AgentId>>,
    /// There was a complete listing.
    told: bool,
    /// What is known is complete but for what is on its way.
    following: bool,
    /// Somebody who told, or was to tell, was lost.
    lost: bool,
}

impl Roster {
    /// Takes in what is told. Answers whether anything that agents are judged by may have changed.
    pub(super) fn take(&mut self, event: Event) -> bool {
        match event {
            Event::Listing => {
                self.arriving = Some(BTreeSet::new());
                self.following = false;
            }
            Event::Registered(agents) => {
                if let Some(arriving) = &mut self.arriving {
                    arriving.extend(agents.iter().map(|(id, _)| *id));
                }
                self.agents.extend(agents);
            }
            Event::Removed(id) => {
                if let Some(arriving) = &mut self.arriving {
                    arriving.remove(&id);
                }
                self.agents.remove(&id);
            }
            Event::Listed => {
                let Some(listed) = self.arriving.take() else { return false };
                self.agents.retain(|id, _| listed.contains(id));
                (self.told, self.following) = (true, true);
            }
            Event::Current => return false,
        }
        true
    }

    /// Nobody tells any more. What is known goes on to count; what had arrived of a listing does too.
    pub(super) fn lose(&mut self) {
        self.arriving = None;
        self.following = false;
        self.lost = true;
    }

    /// How an agent stands.
    pub(super) fn standing(&self, id: AgentId) -> Standing<'_> {
        match self.agents.get(&id) {
            Some(hostname) => Standing::Registered(hostname),
            None if !self.told => Standing::NotTold { tried: self.lost },
            None if self.following => Standing::Absent,
            None => Standing::Unsure,
        }
    }

    /// Whether an agent is known not to be registered: it was not when that was last told.
    pub(super) fn excludes(&self, id: AgentId) -> bool {
        self.told && !self.agents.contains_key(&id)
    }

    /// Whether there was a complete listing.
    pub(super) fn was_told(&self) -> bool {
        self.told
    }

    /// How many agents are known.
    pub(super) fn len(&self) -> usize {
        self.agents.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> AgentId {
        AgentId::from_bytes([n; 16])
    }

    fn agents(ids: &[u8]) -> Event {
        Event::Registered(ids.iter().map(|n| (id(*n), format!("web{n}"))).collect())
    }

    fn tell(roster: &mut Roster, events: impl IntoIterator<Item = Event>) {
        for event in events {
            assert!(roster.take(event));
        }
    }

    fn told(ids: &[u8]) -> Roster {
        let mut roster = Roster::default();
        tell(&mut roster, [Event::Listing, agents(ids), Event::Listed]);
        roster
    }

    const NOT_TOLD: Standing<'static> = Standing::NotTold { tried: false };

    #[test]
    fn nothing_is_known_until_a_listing_is_complete() {
        let mut roster = Roster::default();
        assert_eq!(roster.standing(id(1)), NOT_TOLD);
        tell(&mut roster, [Event::Listing, agents(&[1])]);
        // Who was told of is known already; who was not may come.
        assert_eq!(
            [roster.standing(id(1)), roster.standing(id(2))],
            [Standing::Registered("web1"), NOT_TOLD]
        );
        assert!(!roster.excludes(id(2)) && !roster.was_told());
        tell(&mut roster, [agents(&[3]), Event::Listed]);
        assert_eq!(
            [roster.standing(id(2)), roster.standing(id(3))],
            [Standing::Absent, Standing::Registered("web3")]
        );
        assert!(roster.excludes(id(2)) && !roster.excludes(id(1)) && roster.was_told());
        assert_eq!(roster.len(), 2);
    }

    #[test]
    fn changes_count_in_order() {
        let mut roster = told(&[1]);
        tell(&mut roster, [agents(&[2]), Event::Removed(id(2)), Event::Removed(id(1)), agents(&[3])]);
        assert_eq!([1, 2, 3].map(|n| roster.excludes(id(n))), [true, true, false]);
        tell(&mut roster, [Event::Registered(vec![(id(3), "other".into())]), Event::Removed(id(9))]);
        assert_eq!(roster.standing(id(3)), Standing::Registered("other"));
    }

    #[test]
    fn a_new_listing_removes_who_is_not_in_it_and_nobody_before_it_is_complete() {
        let mut roster = told(&[1, 2, 3]);
        tell(&mut roster, [Event::Listing, agents(&[2])]);
        assert_eq!([1, 2, 3].map(|n| roster.excludes(id(n))), [false; 3]);
        // Who is unknown may be in what was missed.
        assert_eq!(roster.standing(id(4)), Standing::Unsure);
        tell(&mut roster, [agents(&[5]), Event::Removed(id(2)), Event::Listed]);
        assert_eq!([1, 2, 3, 5].map(|n| roster.excludes(id(n))), [true, true, true, false]);
        assert_eq!(roster.standing(id(4)), Standing::Absent);
    }

    #[test]
    fn what_is_known_outlives_who_told_it() {
        let mut roster = told(&[1, 2]);
        roster.lose();
        assert_eq!(
            [roster.standing(id(1)), roster.standing(id(3))],
            [Standing::Registered("web1"), Standing::Unsure]
        );
        // A listing that breaks off removes nobody.
        tell(&mut roster, [Event::Listing, agents(&[4])]);
        roster.lose();
        assert_eq!([1, 2, 4].map(|n| roster.excludes(id(n))), [false; 3]);
        // What is left of it is no part of the next one.
        tell(&mut roster, [Event::Listing, agents(&[2]), Event::Listed]);
        assert_eq!([1, 2, 4].map(|n| roster.excludes(id(n))), [true, false, true]);
    }

    #[test]
    fn an_attempt_that_failed_is_remembered_until_one_succeeds() {
        let mut roster = Roster::default();
        roster.lose();
        assert_eq!(roster.standing(id(1)), Standing::NotTold { tried: true });
        tell(&mut roster, [Event::Listing, Event::Listed]);
        assert_eq!(roster.standing(id(1)), Standing::Absent);
    }

    #[test]
    fn the_end_of_no_listing_says_nothing() {
        let mut roster = Roster::default();
        assert!(!roster.take(Event::Listed) && !roster.take(Event::Current));
        assert_eq!(roster.standing(id(1)), NOT_TOLD);
    }
}
