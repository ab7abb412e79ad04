//! Whether what clients saw of one register could have happened one call after the other, each at some moment between
//! its beginning and its end: the search of Wing and Gong, with the memory of Lowe's.
//!
//! A call whose outcome is not known has no end: it may take effect at any later moment, or never.

use std::collections::HashSet;

/// A call to a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// It was read; `None`: it was not there.
    Read(Option<u64>),
    /// It was written.
    Write(u64),
    /// It was to be written if it had a value.
    Cas {
        /// What must have been there.
        expected: Option<u64>,
        /// What was to be there then.
        value: u64,
        /// Whether it was written; `None`: unknown.
        written: Option<bool>,
    },
}

impl Call {
    /// The state after the call, if it can be made in a state.
    fn apply(self, state: Option<u64>) -> Option<Option<u64>> {
        match self {
            Self::Read(seen) => (seen == state).then_some(state),
            Self::Write(value) => Some(Some(value)),
            Self::Cas { expected, value, written } => {
                let writes = state == expected;
                if written.is_some_and(|written| written != writes) {
                    return None;
                }
                Some(if writes { Some(value) } else { state })
            }
        }
    }
}

/// A call and its time. Times are in one unit, of one clock.
#[derive(Debug, Clone, Copy)]
pub struct Timed {
    /// What was called.
    pub call: Call,
    /// When it began.
    pub invoked: u64,
    /// When it ended; `None`: its outcome is unknown.
    pub returned: Option<u64>,
}

/// What came of the search.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// There is an order.
    Linearizable,
    /// There is none.
    Violation,
    /// The search was given up.
    Undecided,
}

/// States after which the search is given up.
const MAX_STATES: usize = 4_000_000;

/// A beginning or an end of a call, in a list from which it is taken out and put back.
struct Entry {
    call: usize,
    /// The entry of its end; `None` at an end, and for calls without one.
    end: Option<usize>,
    begins: bool,
    before: usize,
    after: usize,
}

struct Entries(Vec<Entry>);

impl Entries {
    /// All events in order. Entry 0 is before the first and after the last.
    fn new(calls: &[Timed]) -> Self {
        let mut events = Vec::with_capacity(calls.len() * 2);
        for (index, call) in calls.iter().enumerate() {
            events.push((call.invoked, false, index));
            if let Some(returned) = call.returned {
                events.push((returned, true, index));
            }
        }
        // At the same time, beginnings come first: then the calls overlap, and no order is presumed.
        events.sort_unstable();
        let count = events.len();
        let mut entries = vec![Entry { call: usize::MAX, end: None, begins: false, before: count, after: 1 }];
        let mut begun = vec![0; calls.len()];
        for (place, (_, is_end, call)) in events.into_iter().enumerate() {
            let own = place + 1;
            if is_end {
                entries[begun[call]].end = Some(own);
            } else {
                begun[call] = own;
            }
            let after = if own == count { 0 } else { own + 1 };
            entries.push(Entry { call, end: None, begins: !is_end, before: place, after });
        }
        if count == 0 {
            entries[0].after = 0;
        }
        Self(entries)
    }

    fn unlink(&mut self, entry: usize) {
        let (before, after) = (self.0[entry].before, self.0[entry].after);
        self.0[before].after = after;
        self.0[after].before = before;
    }

    fn link(&mut self, entry: usize) {
        let (before, after) = (self.0[entry].before, self.0[entry].after);
        self.0[before].after = entry;
        self.0[after].before = entry;
    }

    /// Takes a call out: it is next in the order.
    fn lift(&mut self, entry: usize) {
        self.unlink(entry);
        if let Some(end) = self.0[entry].end {
            self.unlink(end);
        }
    }

    /// Puts it back, as the last one that was taken out.
    fn unlift(&mut self, entry: usize) {
        if let Some(end) = self.0[entry].end {
            self.link(end);
        }
        self.link(entry);
    }
}

/// Looks for an order of the calls to a register that is not there at first.
#[must_use]
pub fn check(calls: &[Timed]) -> Verdict {
    let mut entries = Entries::new(calls);
    let mut open = calls.iter().filter(|call| call.returned.is_some()).count();
    let mut done = vec![0_u64; calls.len().div_ceil(64)];
    let mut seen: HashSet<(Vec<u64>, Option<u64>)> = HashSet::new();
    let mut chosen: Vec<(usize, Option<u64>)> = Vec::new();
    let mut state = None;
    let mut at = entries.0[0].after;
    // What has no end may never happen, so it need not be placed.
    while open > 0 {
        let (call, begins) = (entries.0[at].call, entries.0[at].begins);
        if begins {
            if let Some(next) = calls[call].call.apply(state) {
                done[call / 64] ^= 1 << (call % 64);
                if seen.insert((done.clone(), next)) {
                    chosen.push((at, state));
                    state = next;
                    open -= usize::from(calls[call].returned.is_some());
                    entries.lift(at);
                    at = entries.0[0].after;
                    continue;
                }
                done[call / 64] ^= 1 << (call % 64);
            }
            at = entries.0[at].after;
            continue;
        }
        // The end of a call that was not placed before it, or of the list: the last choice was wrong.
        if seen.len() > MAX_STATES {
            return Verdict::Undecided;
        }
        let Some((last, before)) = chosen.pop() else { return Verdict::Violation };
        let call = entries.0[last].call;
        entries.unlift(last);
        done[call / 64] ^= 1 << (call % 64);
        open += usize::from(calls[call].returned.is_some());
        state = before;
        at = entries.0[last].after;
    }
    Verdict::Linearizable
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::*;

    fn timed(call: Call, invoked: u64, returned: u64) -> Timed {
        Timed { call, invoked, returned: (returned != 0).then_some(returned) }
    }

    fn cas(expected: Option<u64>, value: u64, written: Option<bool>) -> Call {
        Call::Cas { expected, value, written }
    }

    #[test]
    fn what_can_have_happened_is_accepted() {
        for history in [
            vec![],
            vec![timed(Call::Read(None), 1, 2)],
            vec![timed(Call::Write(1), 1, 4), timed(Call::Read(None), 2, 3)],
            vec![timed(Call::Write(1), 1, 4), timed(Call::Read(Some(1)), 2, 3)],
            vec![timed(Call::Write(1), 1, 3), timed(Call::Write(2), 1, 3), timed(Call::Read(Some(1)), 4, 5)],
            // What is unknown happened late, or never.
            vec![
                timed(Call::Write(1), 1, 0),
                timed(Call::Read(None), 2, 3),
                timed(Call::Read(Some(1)), 4, 5),
            ],
            vec![timed(Call::Write(1), 1, 0), timed(Call::Read(None), 2, 3)],
            vec![
                timed(Call::Write(1), 1, 2),
                timed(cas(Some(1), 2, Some(true)), 3, 4),
                timed(cas(Some(1), 3, Some(false)), 5, 6),
                timed(cas(Some(9), 4, None), 5, 0),
                timed(Call::Read(Some(2)), 7, 8),
            ],
        ] {
            assert_eq!(check(&history), Verdict::Linearizable, "{history:?}");
        }
    }

    #[test]
    fn what_cannot_is_found() {
        for history in [
            // A lost write, and one that nobody made.
            vec![timed(Call::Write(1), 1, 2), timed(Call::Read(None), 3, 4)],
            vec![timed(Call::Read(Some(1)), 1, 2)],
            // A stale read.
            vec![timed(Call::Write(1), 1, 2), timed(Call::Write(2), 3, 4), timed(Call::Read(Some(1)), 5, 6)],
            // Two readers in turn that see two writes in opposite order.
            vec![
                timed(Call::Write(1), 1, 9),
                timed(Call::Write(2), 1, 9),
                timed(Call::Read(Some(1)), 2, 3),
                timed(Call::Read(Some(2)), 4, 5),
                timed(Call::Read(Some(1)), 6, 7),
            ],
            // What is unknown does not happen twice, nor before it was asked for.
            vec![
                timed(Call::Write(1), 1, 0),
                timed(Call::Read(Some(1)), 2, 3),
                timed(Call::Write(2), 4, 5),
                timed(Call::Read(Some(1)), 6, 7),
            ],
            vec![timed(Call::Read(Some(1)), 1, 2), timed(Call::Write(1), 3, 0)],
            // A lost update.
            vec![timed(cas(None, 1, Some(true)), 1, 3), timed(cas(None, 2, Some(true)), 2, 4)],
            vec![timed(Call::Write(1), 1, 2), timed(cas(Some(1), 2, Some(false)), 3, 4)],
        ] {
            assert_eq!(check(&history), Verdict::Violation, "{history:?}");
        }
    }

    /// Whether some order of the calls fits, by trying each.
    fn by_force(calls: &[Timed], left: &mut Vec<usize>, state: Option<u64>) -> bool {
        if left.iter().all(|index| calls[*index].returned.is_none()) {
            return true;
        }
        let earliest = left.iter().filter_map(|index| calls[*index].returned).min();
        (0..left.len()).any(|place| {
            let index = left[place];
            let may_be_next = earliest.is_none_or(|earliest| calls[index].invoked <= earliest);
            let Some(next) = calls[index].call.apply(state).filter(|_| may_be_next) else { return false };
            left.remove(place);
            let fits = by_force(calls, left, next);
            left.insert(place, index);
            fits
        })
    }

    #[test]
    fn it_agrees_with_trying_every_order() {
        let mut random = StdRng::seed_from_u64(7);
        let mut found = [0; 2];
        for _ in 0..4_000 {
            let count = random.random_range(1..8);
            let calls: Vec<_> = (0..count)
                .map(|_| {
                    let invoked = random.random_range(1..20);
                    let unknown = random.random_bool(0.2);
                    let (value, other) = (random.random_range(1..4), random.random_range(0..4));
                    let other = (other != 0).then_some(other);
                    let call = match random.random_range(0..3) {
                        0 if !unknown => Call::Read(other),
                        1 => cas(other, value, (!unknown).then(|| random.random_bool(0.5))),
                        _ => Call::Write(value),
                    };
                    timed(call, invoked, if unknown { 0 } else { invoked + random.random_range(0..8) })
                })
                .collect();
            let fits = by_force(&calls, &mut (0..calls.len()).collect(), None);
            found[usize::from(fits)] += 1;
            let expected = if fits { Verdict::Linearizable } else { Verdict::Violation };
            assert_eq!(check(&calls), expected, "{calls:?}");
        }
        assert!(found.iter().all(|count| *count > 500), "{found:?}");
    }
}
