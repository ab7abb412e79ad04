//! Histories that are sound, and each way in which one is not.

use super::*;

fn event(request: Request, answer: Answer, invoked: u64, returned: u64) -> Event {
    Event { client: 0, node: 1, request, answer, invoked, returned }
}

fn written(revision: u64) -> Answer {
    Answer::Written { revision, index: None }
}

fn unknown() -> Answer {
    Answer::Unknown { reason: String::new() }
}

fn failed() -> Answer {
    Answer::Failed { reason: String::new() }
}

fn rows(revision: u64, rows: &[(&str, u64)]) -> Answer {
    let rows = rows.iter().map(|(key, value)| ((*key).to_owned(), *value)).collect();
    Answer::Rows { rows, revision }
}

fn put(key: &str, value: u64) -> Request {
    Request::Put { key: key.into(), value, padding: 0 }
}

fn get(key: &str) -> Request {
    Request::Get { key: key.into() }
}

fn scan(prefix: &str) -> Request {
    Request::Scan { prefix: prefix.into() }
}

fn append(element: u64) -> Request {
    Request::Append { list: "l/0/".into(), element }
}

fn appended(revision: u64, index: u64) -> Answer {
    Answer::Written { revision, index: Some(index) }
}

/// The one thing that is wrong.
#[track_caller]
fn wrong(history: &[Event], what: &str) {
    let violations = check(history, 10).violations;
    assert!(violations.iter().any(|violation| violation.what.contains(what)), "{what}: {violations:?}");
}

#[track_caller]
fn sound(history: &[Event]) -> Checked {
    let checked = check(history, 10);
    assert_eq!(checked.violations, [], "{history:?}");
    checked
}

#[test]
fn a_sound_history_is_let_be() {
    let checked = sound(&[
        event(put("r/0", 1), written(1), 1, 2),
        event(get("r/0"), rows(1, &[("r/0", 1)]), 3, 4),
        event(put("r/0", 2), failed(), 5, 6),
        event(get("r/0"), rows(1, &[("r/0", 1)]), 7, 8),
        event(put("r/0", 3), unknown(), 9, 10),
        event(put("s/0/5", 5), written(2), 1, 20),
        event(put("s/0/6", 6), unknown(), 11, 12),
        event(scan("s/0/"), rows(3, &[("s/0/5", 5), ("s/0/6", 6)]), 13, 14),
        event(append(7), appended(4, 0), 15, 16),
        event(append(8), unknown(), 17, 18),
        event(scan("l/0/"), rows(4, &[("l/0/000000", 7)]), 19, 20),
        event(scan("b/"), rows(4, &[("b/0", 3), ("b/1", 7)]), 21, 22),
        event(scan("r/"), rows(5, &[("r/0", 3)]), 23, 24),
        event(scan("l/"), rows(5, &[("l/0/000000", 7), ("l/0/000001", 8)]), 25, 26),
        event(scan("s/"), rows(5, &[("s/0/5", 5), ("s/0/6", 6)]), 27, 28),
    ]);
    assert_eq!((checked.registers, checked.sets, checked.lists, checked.sums), (1, 1, 1, 1));
    assert_eq!(checked.undecided, 0);
}

#[test]
fn registers() {
    let stale = [
        event(put("r/0", 1), written(1), 1, 2),
        event(put("r/0", 2), written(2), 3, 4),
        event(get("r/0"), rows(2, &[("r/0", 1)]), 5, 6),
    ];
    wrong(&stale, "register r/0");
    let failed_after_all =
        [event(put("r/0", 1), failed(), 1, 2), event(get("r/0"), rows(1, &[("r/0", 1)]), 5, 6)];
    wrong(&failed_after_all, "register r/0");
    // A scan of all registers is a look at each: one that is not there is seen not to be.
    let lost = [event(put("r/0", 1), written(1), 1, 2), event(scan("r/"), rows(1, &[]), 3, 4)];
    wrong(&lost, "register r/0");
    wrong(&[event(scan("r/"), rows(1, &[("r/7", 1)]), 3, 4)], "register r/7");
}

#[test]
fn sets() {
    let add = event(put("s/0/5", 5), written(1), 1, 2);
    wrong(&[add.clone(), event(scan("s/0/"), rows(1, &[]), 3, 4)], "has lost 5");
    wrong(&[add.clone(), event(scan("s/"), rows(1, &[]), 3, 4)], "has lost 5");
    let failed_add = event(put("s/0/5", 5), failed(), 1, 2);
    wrong(&[failed_add, event(scan("s/0/"), rows(1, &[("s/0/5", 5)]), 3, 4)], "nobody added");
    wrong(&[event(scan("s/0/"), rows(1, &[("s/0/5", 5)]), 3, 4)], "nobody added");
    let early = event(put("s/0/5", 5), written(1), 5, 6);
    wrong(&[early, event(scan("s/0/"), rows(1, &[("s/0/5", 5)]), 3, 4)], "nobody added");
    let concurrent = |value| event(put(&format!("s/0/{value}"), value), unknown(), 1, 2);
    let scans = |first, second| {
        [
            concurrent(5),
            concurrent(6),
            event(scan("s/0/"), rows(1, first), 3, 4),
            event(scan("s/0/"), rows(1, second), 5, 6),
        ]
    };
    wrong(&scans(&[("s/0/5", 5)], &[("s/0/6", 6)]), "do not agree");
    wrong(&scans(&[("s/0/5", 5)], &[]), "has shrunk");
    sound(&scans(&[("s/0/5", 5)], &[("s/0/5", 5), ("s/0/6", 6)]));
}

#[test]
fn lists() {
    let seen = |revision, elements: &[(u64, u64)], invoked| {
        let keys: Vec<_> = elements.iter().map(|(index, _)| format!("l/0/{index:06}")).collect();
        let elements: Vec<_> =
            keys.iter().map(String::as_str).zip(elements.iter().map(|element| element.1)).collect();
        event(scan("l/0/"), rows(revision, &elements), invoked, invoked + 1)
    };
    let first = event(append(7), appended(1, 0), 1, 2);
    let second = event(append(8), appended(2, 1), 3, 4);
    sound(&[first.clone(), second.clone(), seen(2, &[(0, 7), (1, 8)], 5)]);
    wrong(&[first.clone(), second.clone(), seen(2, &[(0, 7)], 5)], "as its element 1");
    wrong(&[first.clone(), seen(2, &[(0, 8)], 5)], "as its element 0");
    // An update that was lost: two were told the same place.
    let both = event(append(8), appended(2, 0), 1, 4);
    wrong(&[first.clone(), both, seen(2, &[(0, 8)], 5)], "7 as its element 0");
    wrong(&[first.clone(), second.clone(), seen(2, &[(1, 8)], 5)], "a gap");
    let twice = event(append(7), unknown(), 1, 2);
    wrong(&[twice, seen(2, &[(0, 7), (1, 7)], 5)], "twice");
    wrong(&[seen(2, &[(0, 7)], 5)], "nobody added");
    let maybe = |element| event(append(element), unknown(), 1, 2);
    wrong(&[maybe(7), maybe(8), seen(1, &[(0, 7)], 5), seen(2, &[(0, 8), (1, 7)], 7)], "do not agree");
    wrong(&[maybe(7), seen(1, &[(0, 7)], 5), seen(1, &[], 7)], "has shrunk");
    wrong(&[event(append(7), appended(1, 0), 9, 10), seen(1, &[(0, 7)], 5)], "as its element 0");
}

#[test]
fn accounts() {
    wrong(&[event(scan("b/"), rows(1, &[("b/0", 3), ("b/1", 6)]), 1, 2)], "hold 9 and not 10");
}

#[test]
fn revisions() {
    let write = |revision, invoked| event(put("x", 1), written(revision), invoked, invoked + 1);
    let read = |revision, invoked| event(get("x"), rows(revision, &[]), invoked, invoked + 1);
    sound(&[write(1, 1), read(1, 3), write(2, 5), read(2, 7)]);
    sound(&[write(2, 1), write(1, 2)]);
    wrong(&[write(2, 1), write(1, 3)], "before one that was shown");
    wrong(&[write(2, 1), read(1, 3)], "before one that was shown");
    wrong(&[read(2, 1), read(1, 3)], "before one that was shown");
    wrong(&[read(2, 1), write(2, 3)], "before one that was shown");
    wrong(&[write(1, 1), write(1, 2)], "two commits");
}
