//! What clients asked and were answered, and whether a store that does one transaction after the other could have
//! answered so.
//!
//! Keys say what a row belongs to: `r/` registers, `s/GROUP/` sets, `l/GROUP/` lists, `b/` accounts. Registers are
//! searched for an order of their calls; sets, lists and accounts have rules that every scan must keep; and the
//! revisions of all answers together must agree with the order in time.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use crate::{
    control::{Answer, Request},
    linear::{self, Call, Timed, Verdict},
};

/// Key prefix of registers.
pub const REGISTERS: &str = "r/";
/// Key prefix of sets.
pub const SETS: &str = "s/";
/// Key prefix of lists.
pub const LISTS: &str = "l/";
/// Key prefix of accounts.
pub const ACCOUNTS: &str = "b/";

/// A question, its answer, and when. Times are nanoseconds of one clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Who asked.
    pub client: usize,
    /// The node that was asked.
    pub node: u64,
    /// What was asked.
    pub request: Request,
    /// What came of it.
    pub answer: Answer,
    /// When it was asked.
    pub invoked: u64,
    /// When the client went on.
    pub returned: u64,
}

impl Event {
    fn revision(&self) -> Option<u64> {
        match self.answer {
            Answer::Rows { revision, .. } | Answer::Written { revision, .. } => Some(revision),
            _ => None,
        }
    }

    /// The rows under a prefix, if the event saw all of them.
    fn seen(&self, prefix: &str) -> Option<&[(String, u64)]> {
        let Answer::Rows { rows, .. } = &self.answer else { return None };
        let covers = match &self.request {
            Request::Get { key } => key == prefix,
            Request::Scan { prefix: wide } => prefix.starts_with(wide.as_str()),
            _ => false,
        };
        let start = rows.partition_point(|(key, _)| key.as_str() < prefix);
        let length = rows[start..].partition_point(|(key, _)| key.starts_with(prefix));
        covers.then(|| &rows[start..start + length])
    }

    /// Whether a write is not known to have failed.
    fn may_have_written(&self) -> bool {
        matches!(self.answer, Answer::Written { .. } | Answer::Unknown { .. })
    }

    fn is_acknowledged(&self) -> bool {
        matches!(self.answer, Answer::Written { .. })
    }

    fn before(&self, other: &Self) -> bool {
        self.returned < other.invoked
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |nanos: u64| nanos as f64 / 1e6;
        write!(f, "[{:.3} ms .. {:.3} ms] client {}", ms(self.invoked), ms(self.returned), self.client)?;
        write!(f, " at node {}: {:?} -> {:?}", self.node, self.request, self.answer)
    }
}

/// Something that cannot have happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// What is wrong.
    pub what: String,
    /// The events that show it.
    pub events: Vec<Event>,
}

impl Violation {
    fn new(what: String, events: &[&Event]) -> Self {
        Self { what, events: events.iter().map(|event| (*event).clone()).collect() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.what)?;
        self.events.iter().try_for_each(|event| writeln!(f, "  {event}"))
    }
}

/// What was looked at, and what is wrong with it.
#[derive(Debug, Clone, Default)]
pub struct Checked {
    /// Registers for which an order of calls was looked for.
    pub registers: usize,
    /// Those for which the search was given up.
    pub undecided: usize,
    /// Sets.
    pub sets: usize,
    /// Lists.
    pub lists: usize,
    /// Scans of all accounts.
    pub sums: usize,
    /// What cannot have happened.
    pub violations: Vec<Violation>,
}

/// Checks a history. The accounts hold `total` together.
#[must_use]
pub fn check(history: &[Event], total: u64) -> Checked {
    let mut checked = Checked::default();
    let objects = Objects::sort(history);
    for (key, events) in &objects.registers {
        checked.registers += 1;
        match linear::check(&events.iter().filter_map(|event| timed(event, key)).collect::<Vec<_>>()) {
            Verdict::Linearizable => {}
            Verdict::Undecided => checked.undecided += 1,
            Verdict::Violation => {
                let what = format!("the calls to register {key} have no order");
                checked.violations.push(Violation::new(what, events));
            }
        }
    }
    for (prefix, events) in &objects.sets {
        checked.sets += 1;
        checked.violations.extend(check_set(prefix, events));
    }
    for (prefix, events) in &objects.lists {
        checked.lists += 1;
        checked.violations.extend(check_list(prefix, events));
    }
    for event in history {
        if let Some(rows) = event.seen(ACCOUNTS) {
            checked.sums += 1;
            let sum: u64 = rows.iter().map(|(_, amount)| amount).sum();
            if sum != total {
                let what = format!("the accounts hold {sum} and not {total}");
                checked.violations.push(Violation::new(what, &[event]));
            }
        }
    }
    checked.violations.extend(check_revisions(history));
    checked
}

/// The events that each object has a part in, in the order in which they began.
#[derive(Default)]
struct Objects<'a> {
    registers: BTreeMap<String, Vec<&'a Event>>,
    sets: BTreeMap<String, Vec<&'a Event>>,
    lists: BTreeMap<String, Vec<&'a Event>>,
}

impl<'a> Objects<'a> {
    fn sort(history: &'a [Event]) -> Self {
        let mut objects = Self::default();
        let mut wide = Vec::new();
        for event in history {
            let key = match &event.request {
                Request::Get { key } | Request::Put { key, .. } | Request::Cas { key, .. } => key,
                Request::Scan { prefix } if [REGISTERS, SETS, LISTS].contains(&prefix.as_str()) => {
                    wide.push(event);
                    continue;
                }
                Request::Scan { prefix } | Request::Append { list: prefix, .. } => prefix,
                _ => continue,
            };
            if let Some((object, events)) = objects.kind(key) {
                events.entry(object).or_default().push(event);
            }
        }
        // What was only ever seen belongs to an object too: somebody must have written it.
        for event in &wide {
            let Answer::Rows { rows, .. } = &event.answer else { continue };
            for (key, _) in rows {
                if let Some((object, events)) = objects.kind(key) {
                    events.entry(object).or_default();
                }
            }
        }
        for event in wide {
            let Request::Scan { prefix } = &event.request else { continue };
            let kind = match prefix.as_str() {
                REGISTERS => &mut objects.registers,
                SETS => &mut objects.sets,
                _ => &mut objects.lists,
            };
            kind.values_mut().for_each(|events| events.push(event));
        }
        for kind in [&mut objects.registers, &mut objects.sets, &mut objects.lists] {
            kind.values_mut().for_each(|events| events.sort_by_key(|event| event.invoked));
        }
        objects
    }

    /// The object that a key belongs to.
    fn kind(&mut self, key: &str) -> Option<(String, &mut BTreeMap<String, Vec<&'a Event>>)> {
        if key.starts_with(REGISTERS) {
            return Some((key.to_owned(), &mut self.registers));
        }
        let group = || key.get(..2 + key.get(2..)?.find('/')? + 1).map(str::to_owned);
        match key.get(..2)? {
            SETS => Some((group()?, &mut self.sets)),
            LISTS => Some((group()?, &mut self.lists)),
            _ => None,
        }
    }
}

/// A register's call, if the event is one that may have had an effect or saw something.
fn timed(event: &Event, key: &str) -> Option<Timed> {
    let unknown = matches!(event.answer, Answer::Unknown { .. });
    let call = match (&event.request, &event.answer) {
        (Request::Get { .. } | Request::Scan { .. }, Answer::Rows { .. }) => {
            Call::Read(event.seen(key)?.iter().find(|(seen, _)| seen == key).map(|(_, value)| *value))
        }
        (Request::Put { value, .. }, _) if event.may_have_written() => Call::Write(*value),
        (Request::Cas { expected, value, .. }, answer) => {
            let written = match answer {
                Answer::Written { .. } => Some(true),
                Answer::Refused => Some(false),
                Answer::Unknown { .. } => None,
                _ => return None,
            };
            Call::Cas { expected: *expected, value: *value, written }
        }
        _ => return None,
    };
    Some(Timed { call, invoked: event.invoked, returned: (!unknown).then_some(event.returned) })
}

/// Scans of a set that only grows: each holds what was acknowledged before it, nothing that nobody may have written,
/// and of two scans one holds the other, the later one the earlier.
fn check_set(prefix: &str, events: &[&Event]) -> Vec<Violation> {
    let mut violations = Vec::new();
    let adds: BTreeMap<u64, &Event> = events
        .iter()
        .filter_map(|event| match event.request {
            Request::Put { value, .. } => Some((value, *event)),
            _ => None,
        })
        .collect();
    let mut scans: Vec<(BTreeSet<u64>, &Event)> = Vec::new();
    for event in events {
        if let Some(rows) = event.seen(prefix) {
            scans.push((rows.iter().map(|(_, value)| *value).collect(), event));
        }
    }
    for (seen, scan) in &scans {
        let lost = adds
            .iter()
            .find(|(value, add)| add.is_acknowledged() && add.before(scan) && !seen.contains(value));
        if let Some((value, add)) = lost {
            violations.push(Violation::new(format!("set {prefix} has lost {value}"), &[add, scan]));
        }
        let phantom = seen
            .iter()
            .find(|value| adds.get(value).is_none_or(|add| !add.may_have_written() || scan.before(add)));
        if let Some(value) = phantom {
            let mut events: Vec<_> = adds.get(value).copied().into_iter().collect();
            events.push(scan);
            violations.push(Violation::new(format!("set {prefix} holds {value} that nobody added"), &events));
        }
    }
    scans.sort_by_key(|(seen, _)| seen.len());
    for pair in scans.windows(2) {
        let [(smaller, one), (larger, other)] = pair else { continue };
        if !smaller.is_subset(larger) {
            violations.push(Violation::new(format!("two scans of set {prefix} do not agree"), &[one, other]));
        }
    }
    let sizes: Vec<_> = scans.iter().map(|(seen, scan)| (seen.len(), *scan)).collect();
    violations.extend(shrinks(prefix, &sizes));
    violations
}

/// A scan that saw less than one that had ended before it began. The scans are in the order of what they saw.
fn shrinks(prefix: &str, scans: &[(usize, &Event)]) -> Option<Violation> {
    let mut first: Option<&Event> = None;
    for sizes in scans.chunk_by(|one, other| one.0 == other.0).rev() {
        if let Some(larger) = first
            && let Some((_, smaller)) = sizes.iter().find(|(_, scan)| larger.before(scan))
        {
            return Some(Violation::new(format!("{prefix} has shrunk"), &[larger, smaller]));
        }
        let ended_first = sizes.iter().map(|(_, scan)| *scan).chain(first);
        first = ended_first.min_by_key(|scan| scan.returned);
    }
    None
}

/// Scans of a list that only grows at its end: each is the front of the longest one, without gaps or repetitions, and
/// holds what was acknowledged before it in the place that was told.
fn check_list(prefix: &str, events: &[&Event]) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut scans: Vec<(Vec<u64>, &Event)> = Vec::new();
    for event in events {
        let Some(rows) = event.seen(prefix) else { continue };
        if !rows.iter().enumerate().all(|(index, (key, _))| *key == format!("{prefix}{index:06}")) {
            violations.push(Violation::new(format!("list {prefix} has a gap"), &[event]));
        }
        scans.push((rows.iter().map(|(_, value)| *value).collect(), event));
    }
    scans.sort_by_key(|(seen, _)| seen.len());
    for pair in scans.windows(2) {
        let [(shorter, one), (longer, other)] = pair else { continue };
        if !longer.starts_with(shorter) {
            violations
                .push(Violation::new(format!("two scans of list {prefix} do not agree"), &[one, other]));
        }
    }
    let sizes: Vec<_> = scans.iter().map(|(seen, scan)| (seen.len(), *scan)).collect();
    violations.extend(shrinks(prefix, &sizes));
    let Some((longest, last)) = scans.last() else { return violations };
    if longest.iter().collect::<BTreeSet<_>>().len() != longest.len() {
        violations.push(Violation::new(format!("list {prefix} holds an element twice"), &[last]));
    }
    let mut known = BTreeSet::new();
    for event in events {
        let Request::Append { element, .. } = &event.request else { continue };
        if event.may_have_written() {
            known.insert(*element);
        }
        if let Answer::Written { index: Some(index), .. } = event.answer {
            let place = usize::try_from(index).unwrap_or(usize::MAX);
            let wrong = scans.iter().find(|(seen, scan)| match seen.get(place) {
                Some(found) => found != element || scan.before(event),
                None => event.before(scan),
            });
            if let Some((_, scan)) = wrong {
                let what = format!("list {prefix} does not hold {element} as its element {index}");
                violations.push(Violation::new(what, &[event, scan]));
            }
        }
    }
    if let Some(phantom) = longest.iter().find(|element| !known.contains(element)) {
        violations.push(Violation::new(format!("list {prefix} holds {phantom} that nobody added"), &[last]));
    }
    violations
}

/// Revisions grow with time: what began after another had ended has at least its revision, and a write has one that
/// nobody has had before.
fn check_revisions(history: &[Event]) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut events: Vec<_> = history.iter().filter(|event| event.revision().is_some()).collect();
    let mut ended = events.clone();
    ended.sort_by_key(|event| event.returned);
    events.sort_by_key(|event| event.invoked);
    let mut ended = ended.into_iter().peekable();
    let mut newest: Option<&Event> = None;
    let mut writers: BTreeMap<u64, &Event> = BTreeMap::new();
    for event in events {
        while let Some(earlier) = ended.next_if(|earlier| earlier.before(event)) {
            if newest.is_none_or(|newest| newest.revision() < earlier.revision()) {
                newest = Some(earlier);
            }
        }
        if let Some(newest) = newest {
            let (least, own) = (newest.revision(), event.revision());
            if own < least || (event.is_acknowledged() && own == least) {
                let what = "an answer is of a state before one that was shown earlier".to_owned();
                violations.push(Violation::new(what, &[newest, event]));
            }
        }
        if let (true, Some(revision)) = (event.is_acknowledged(), event.revision())
            && let Some(other) = writers.insert(revision, event)
        {
            let what = format!("two commits have revision {revision}");
            violations.push(Violation::new(what, &[other, event]));
        }
    }
    violations
}

#[cfg(test)]
mod tests;
