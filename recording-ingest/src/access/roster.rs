//! What an ingest knows of the registered agents: a state machine without I/O. Auth nodes tell it events, in order, and
//! it says how an agent stands.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use recording_format::AgentId;
use tokio::time::Instant;

/// A node says at least so often that it is current. Longer after it did, what it has not told may have happened.
const CURRENT: Duration = Duration::from_secs(5);

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
    /// It was not registered when that was last told, and nobody tells now, or has said of late that it is current.
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
    /// When the node that tells last said that it is current.
    confirmed: Option<Instant>,
    /// Somebody who told, or was to tell, was lost.
    lost: bool,
}

impl Roster {
    /// Takes in what is told now. Answers whether anything that agents are judged by may have changed, but for who is
    /// not known, whom nobody judges at once.
    pub(super) fn take(&mut self, event: Event, now: Instant) -> bool {
        match event {
            Event::Listing => {
                self.arriving = Some(BTreeSet::new());
                self.following = false;
                self.confirmed = None;
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
            Event::Current => {
                self.confirmed = Some(now);
                return false;
            }
        }
        true
    }

    /// Nobody tells any more. What is known goes on to count; what had arrived of a listing does too.
    pub(super) fn lose(&mut self) {
        self.arriving = None;
        self.following = false;
        self.confirmed = None;
        self.lost = true;
    }

    /// How an agent stands now.
    pub(super) fn standing(&self, id: AgentId, now: Instant) -> Standing<'_> {
        match self.agents.get(&id) {
            Some(hostname) => Standing::Registered(hostname),
            None if !self.told => Standing::NotTold { tried: self.lost },
            None if self.following && self.is_current(now) => Standing::Absent,
            None => Standing::Unsure,
        }
    }

    fn is_current(&self, now: Instant) -> bool {
        self.confirmed.is_some_and(|at| now.saturating_duration_since(at) <= CURRENT)
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
            assert!(roster.take(event, Instant::now()));
        }
    }

    /// Ends a listing, and says that it is current.
    fn complete(roster: &mut Roster) {
        tell(roster, [Event::Listed]);
        assert!(!roster.take(Event::Current, Instant::now()));
    }

    /// How an agent stands, soon after what was told last.
    fn standing(roster: &Roster, id: AgentId) -> Standing<'_> {
        roster.standing(id, Instant::now())
    }

    fn told(ids: &[u8]) -> Roster {
        let mut roster = Roster::default();
        tell(&mut roster, [Event::Listing, agents(ids)]);
        complete(&mut roster);
        roster
    }

    const NOT_TOLD: Standing<'static> = Standing::NotTold { tried: false };

    #[test]
    fn nothing_is_known_until_a_listing_is_complete() {
        let mut roster = Roster::default();
        assert_eq!(standing(&roster, id(1)), NOT_TOLD);
        tell(&mut roster, [Event::Listing, agents(&[1])]);
        // Who was told of is known already; who was not may come.
        assert_eq!(
            [standing(&roster, id(1)), standing(&roster, id(2))],
            [Standing::Registered("web1"), NOT_TOLD]
        );
        assert!(!roster.excludes(id(2)) && !roster.was_told());
        tell(&mut roster, [agents(&[3])]);
        complete(&mut roster);
        assert_eq!(
            [standing(&roster, id(2)), standing(&roster, id(3))],
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
        assert_eq!(standing(&roster, id(3)), Standing::Registered("other"));
    }

    #[test]
    fn a_new_listing_removes_who_is_not_in_it_and_nobody_before_it_is_complete() {
        let mut roster = told(&[1, 2, 3]);
        tell(&mut roster, [Event::Listing, agents(&[2])]);
        assert_eq!([1, 2, 3].map(|n| roster.excludes(id(n))), [false; 3]);
        // Who is unknown may be in what was missed.
        assert_eq!(standing(&roster, id(4)), Standing::Unsure);
        tell(&mut roster, [agents(&[5]), Event::Removed(id(2))]);
        complete(&mut roster);
        assert_eq!([1, 2, 3, 5].map(|n| roster.excludes(id(n))), [true, true, true, false]);
        assert_eq!(standing(&roster, id(4)), Standing::Absent);
    }

    #[test]
    fn what_is_known_outlives_who_told_it() {
        let mut roster = told(&[1, 2]);
        roster.lose();
        assert_eq!(
            [standing(&roster, id(1)), standing(&roster, id(3))],
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

    /// One that registers elsewhere while the node that tells is cut off must not be sent away for good.
    #[test]
    fn who_is_unknown_is_absent_only_while_the_node_says_that_it_is_current() {
        let mut roster = Roster::default();
        let begun = Instant::now();
        let after = |seconds| begun + Duration::from_secs(seconds);
        for event in [Event::Listing, agents(&[1]), Event::Listed] {
            assert!(roster.take(event, begun));
        }
        assert_eq!(roster.standing(id(2), begun), Standing::Unsure);
        roster.take(Event::Current, after(1));
        let stands = |roster: &Roster, seconds| {
            // Who is known is not in doubt.
            assert_eq!(roster.standing(id(1), after(seconds)), Standing::Registered("web1"));
            assert!(roster.excludes(id(2)));
            roster.standing(id(2), after(seconds)) == Standing::Absent
        };
        assert_eq!([1, 6, 7].map(|seconds| stands(&roster, seconds)), [true, true, false]);
        roster.take(Event::Current, after(8));
        assert!(stands(&roster, 8));
        roster.lose();
        assert!(!stands(&roster, 8));
        // What the lost one said is not the word of the next one.
        tell(&mut roster, [Event::Listing, agents(&[1]), Event::Listed]);
        assert!(!stands(&roster, 8));
    }

    #[test]
    fn an_attempt_that_failed_is_remembered_until_one_succeeds() {
        let mut roster = Roster::default();
        roster.lose();
        assert_eq!(standing(&roster, id(1)), Standing::NotTold { tried: true });
        tell(&mut roster, [Event::Listing]);
        complete(&mut roster);
        assert_eq!(standing(&roster, id(1)), Standing::Absent);
    }

    #[test]
    fn the_end_of_no_listing_says_nothing() {
        let mut roster = Roster::default();
        assert!([Event::Listed, Event::Current].into_iter().all(|event| !roster.take(event, Instant::now())));
        assert_eq!(standing(&roster, id(1)), NOT_TOLD);
    }
}
