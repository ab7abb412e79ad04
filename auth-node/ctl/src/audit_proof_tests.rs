use std::{
    collections::BTreeMap,
    io::{BufReader, Cursor, SeekFrom},
};

use mezite_pki::ssh::SshCa;

use super::*;

/// A log of so many events as the cluster answers it, from `first` on.
fn log(authority: &SshCa, first: u64, count: u64) -> v1::QueryAuditEventsResponse {
    let mut hash = if first == 1 { "00".repeat(32) } else { "ab".repeat(32) };
    let anchor = hash.clone();
    let mut events = Vec::new();
    for index in first..first + count {
        let record = v1::AuditRecord {
            event: "user.create".into(),
            code: "MZ1010I".into(),
            actor: "user:boss".into(),
            target: format!("user:u{index}"),
            success: true,
            fields: BTreeMap::from([("roles".to_owned(), "access".to_owned())]),
            node_id: 1,
            request_id: format!("r{index}"),
            client_address: "192.0.2.1".into(),
        }
        .encode_to_vec();
        hash = chain(&hash, index, 1_000 * index, &record);
        events.push(v1::AuditEvent {
            index,
            time: Some(prost_types::Timestamp { seconds: i64::try_from(index).unwrap(), nanos: 0 }),
            chain_hash: hex::decode(&hash).unwrap().into(),
            record: record.into(),
            ..v1::AuditEvent::default()
        });
    }
    let last = first + count - 1;
    let statement = format!(
        "{STATEMENT}\ncluster_id c\nfirst {first}\nanchor {anchor}\nlast {last}\nhash {hash}\ntime_ms 77000\n"
    );
    let checkpoint = v1::AuditCheckpoint {
        cluster_id: "c".into(),
        first_index: first,
        anchor_hash: hex::decode(&anchor).unwrap().into(),
        last_index: last,
        last_hash: hex::decode(&hash).unwrap().into(),
        signature: authority.sign_sshsig(NAMESPACE, statement.as_bytes()).unwrap(),
        statement,
        ..v1::AuditCheckpoint::default()
    };
    v1::QueryAuditEventsResponse { events, checkpoint: Some(checkpoint), ..Default::default() }
}

fn export(authority: &SshCa, first: u64, count: u64) -> Vec<String> {
    let text = Export::default().page(&log(authority, first, count)).unwrap();
    text.lines().map(str::to_owned).collect()
}

fn check(authority: &SshCa, lines: &[String], since: Option<&Earlier>) -> Verified {
    let keys = [SshPublicKey::parse(&authority.public_line()).unwrap()];
    verify(Cursor::new(lines.join("\n") + "\n"), &keys, since).unwrap()
}

fn json(line: &str) -> serde_json::Value {
    serde_json::from_str(line).unwrap()
}

/// The lines from the second on, chained anew, as somebody would do who changes one of them and hides it.
fn rechain(lines: &mut [String]) {
    let mut previous = json(&lines[0])["anchor_hash"].as_str().unwrap().to_owned();
    let last = lines.len() - 1;
    for line in &mut lines[1..last] {
        let mut event = json(line);
        let record = STANDARD.decode(event["record"].as_str().unwrap()).unwrap();
        let (index, time) = (event["index"].as_u64().unwrap(), event["time_ms"].as_u64().unwrap());
        previous = chain(&previous, index, time, &record);
        event["hash"] = previous.clone().into();
        *line = event.to_string();
    }
}

#[test]
fn a_sound_export_is_sound_also_one_whose_first_events_were_forgotten_and_one_of_several_pages() {
    let authority = SshCa::generate().unwrap();
    for first in [1, 501] {
        let found = check(&authority, &export(&authority, first, 5), None);
        assert_eq!(found.problems, Vec::<String>::new());
        assert_eq!((found.events, found.first_index, found.last_index), (5, first, first + 4));
        assert_eq!((found.cluster_id.as_str(), found.signed_at.as_str()), ("c", "1970-01-01T00:01:17Z"));
    }
    let whole = log(&authority, 1, 5);
    let mut pages = Export::default();
    let mut text = String::new();
    for (part, more) in [(0..2, "more"), (2..5, "")] {
        let events = whole.events[part].to_vec();
        let page = v1::QueryAuditEventsResponse { events, next_page_token: more.into(), ..whole.clone() };
        text += &pages.page(&page).unwrap();
    }
    let lines: Vec<_> = text.lines().map(str::to_owned).collect();
    assert_eq!(lines, export(&authority, 1, 5));
    assert_eq!(pages.events, 5);
}

#[test]
fn events_that_were_forgotten_between_two_pages_are_no_gap() {
    let authority = SshCa::generate().unwrap();
    let mut lines = export(&authority, 1, 6);
    // The checkpoint is of a log that begins at 3 by then.
    let hash = json(&lines[2])["hash"].as_str().unwrap().to_owned();
    let mut last = json(&lines[7]);
    let statement = last["statement"].as_str().unwrap().replace("first 1", "first 3");
    let statement = statement.replace(&"00".repeat(32), &hash);
    last["signature"] = authority.sign_sshsig(NAMESPACE, statement.as_bytes()).unwrap().into();
    last["statement"] = statement.into();
    lines[7] = last.to_string();
    assert_eq!(check(&authority, &lines, None).problems, Vec::<String>::new());
}

/// Every way to change an export that we could think of, each alone.
#[test]
fn any_change_gap_or_truncation_is_found() {
    let authority = SshCa::generate().unwrap();
    let other = SshCa::generate().unwrap();
    let sound = export(&authority, 1, 8);
    let edit = |line: usize, field: &str, value: serde_json::Value| {
        let mut lines = sound.clone();
        let mut object = json(&lines[line]);
        *object.pointer_mut(field).unwrap() = value;
        lines[line] = object.to_string();
        lines
    };
    let record = |target: &str| {
        let bytes = STANDARD.decode(json(&sound[3])["record"].as_str().unwrap()).unwrap();
        let mut record = v1::AuditRecord::decode(bytes.as_slice()).unwrap();
        record.target = target.into();
        STANDARD.encode(record.encode_to_vec())
    };
    let mut tampered: Vec<(&str, Vec<String>)> = vec![
        ("what an event says", edit(3, "/event/target", "user:nobody".into())),
        ("a record", edit(3, "/record", record("user:nobody").into())),
        ("a time", edit(3, "/time_ms", 5.into())),
        ("a hash", edit(3, "/hash", "00".repeat(32).into())),
        ("an index", edit(3, "/index", 99.into())),
        ("the cluster in the header", edit(0, "/cluster_id", "d".into())),
        ("the anchor", edit(0, "/anchor_hash", "11".repeat(32).into())),
        (
            "the statement",
            edit(
                9,
                "/statement",
                json(&sound[9])["statement"].as_str().unwrap().replace("last 8", "last 7").into(),
            ),
        ),
        (
            "the signature",
            edit(
                9,
                "/signature",
                other
                    .sign_sshsig(NAMESPACE, json(&sound[9])["statement"].as_str().unwrap().as_bytes())
                    .unwrap()
                    .into(),
            ),
        ),
        ("another cluster's log", export(&other, 1, 8)),
    ];
    let mut cut = |name, change: &dyn Fn(&mut Vec<String>)| {
        let mut lines = sound.clone();
        change(&mut lines);
        tampered.push((name, lines));
    };
    cut("an event in the middle is gone", &|lines| drop(lines.remove(4)));
    cut("the first event is gone", &|lines| drop(lines.remove(1)));
    cut("the last event is gone", &|lines| drop(lines.remove(8)));
    cut("the checkpoint is gone", &|lines| drop(lines.pop()));
    cut("the header is gone", &|lines| drop(lines.remove(0)));
    cut("the end is cut off", &|lines| lines.truncate(5));
    cut("two events changed places", &|lines| lines.swap(3, 4));
    cut("an event is there twice", &|lines| lines.insert(4, lines[3].clone()));
    cut("something comes after the checkpoint", &|lines| lines.push(lines[3].clone()));
    cut("a line is no JSON", &|lines| lines[3] = "{".into());
    cut("a field more", &|lines| lines[3] = lines[3].replacen('{', "{\"x\":1,", 1));
    cut("nothing at all", &|lines| lines.clear());
    // Changed, cut or shortened at the front, and chained anew.
    cut("a record was changed and all chained anew", &|lines| {
        let mut event = json(&lines[3]);
        event["record"] = record("user:nobody").into();
        event["event"]["target"] = "user:nobody".into();
        lines[3] = event.to_string();
        rechain(lines);
    });
    cut("an event was left out and all numbered and chained anew", &|lines| {
        lines.remove(3);
        for (index, line) in (1..).zip(&mut lines[1..8]) {
            let mut event = json(line);
            event["index"] = index.into();
            *line = event.to_string();
        }
        rechain(lines);
    });
    cut("the first events are gone, and the header says so", &|lines| {
        let anchor = json(&lines[2])["hash"].clone();
        lines.drain(1..3);
        let mut header = json(&lines[0]);
        header["first_index"] = 3.into();
        header["anchor_hash"] = anchor;
        lines[0] = header.to_string();
    });
    assert_eq!(check(&authority, &sound, None).problems, Vec::<String>::new());
    for (what, lines) in &tampered {
        let found = check(&authority, lines, None);
        assert!(!found.problems.is_empty(), "not found: {what}");
    }
    assert!(tampered.len() >= 24);
}

#[test]
fn a_log_that_was_made_anew_is_found_by_an_earlier_export() {
    let authority = SshCa::generate().unwrap();
    let earlier = check(&authority, &export(&authority, 1, 4), None).earlier();
    assert!(check(&authority, &export(&authority, 1, 9), Some(&earlier)).problems.is_empty());
    // As somebody can make it who has the authority's key: sound in itself, and shorter, or another.
    assert!(!check(&authority, &export(&authority, 1, 3), Some(&earlier)).problems.is_empty());
    let mut other = earlier.clone();
    other.hash = "00".repeat(32);
    assert!(!check(&authority, &export(&authority, 1, 9), Some(&other)).problems.is_empty());
    let foreign = Earlier { cluster_id: "d".into(), ..earlier };
    assert!(!check(&authority, &export(&authority, 1, 9), Some(&foreign)).problems.is_empty());
}

#[test]
fn findings_are_bounded_and_cannot_steer_a_terminal() {
    let authority = SshCa::generate().unwrap();
    let mut lines = export(&authority, 1, 3);
    lines.extend(std::iter::repeat_n("\u{1b}[2J".to_owned(), 100));
    let found = check(&authority, &lines, None);
    assert_eq!(found.problems.len(), MAX_FINDINGS + 1);
    assert!(!found.problems.join("").contains('\u{1b}'));
}

/// An export that is made while it is read: header, `count` events, checkpoint; none of it is kept.
struct Endless {
    authority: SshCa,
    count: u64,
    next: u64,
    hash: String,
    pending: Cursor<Vec<u8>>,
}

impl Endless {
    fn new(count: u64) -> Self {
        let (authority, pending) = (SshCa::generate().unwrap(), Cursor::default());
        Self { authority, count, next: 0, hash: "00".repeat(32), pending }
    }

    /// The next line, from the header, which is number 0, to the checkpoint.
    fn line(&mut self) -> Option<String> {
        let index = self.next;
        self.next += 1;
        let line = match index {
            0 => Line::Header(Header {
                kind: KIND.into(),
                version: VERSION,
                cluster_id: "c".into(),
                first_index: 1,
                anchor_hash: self.hash.clone(),
            }),
            _ if index <= self.count => {
                let record = v1::AuditRecord { request_id: "r".repeat(900), ..v1::AuditRecord::default() };
                let bytes = record.encode_to_vec();
                self.hash = chain(&self.hash, index, index, &bytes);
                let (hash, record) = (self.hash.clone(), STANDARD.encode(&bytes));
                let event = said(v1::AuditRecord::decode(bytes.as_slice()).unwrap(), index);
                Line::Event(Box::new(Event { index, time_ms: index, hash, record, event }))
            }
            _ if index == self.count + 1 => {
                let (anchor, hash) = ("00".repeat(32), &self.hash);
                let statement = format!(
                    "{STATEMENT}\ncluster_id c\nfirst 1\nanchor {anchor}\nlast {}\nhash {hash}\ntime_ms 1\n",
                    self.count
                );
                let signature = self.authority.sign_sshsig(NAMESPACE, statement.as_bytes()).unwrap();
                Line::Checkpoint(Checkpoint { statement, signature })
            }
            _ => return None,
        };
        Some(serde_json::to_string(&line).unwrap() + "\n")
    }
}

impl std::io::Read for Endless {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        if self.pending.position() == self.pending.get_ref().len() as u64 {
            let Some(line) = self.line() else { return Ok(0) };
            self.pending = Cursor::new(line.into_bytes());
        }
        self.pending.read(into)
    }
}

impl Seek for Endless {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        assert_eq!(to, SeekFrom::Start(0));
        (self.next, self.hash, self.pending) = (0, "00".repeat(32), Cursor::default());
        Ok(0)
    }
}

/// Memory that this process holds now, in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[test]
fn a_long_export_takes_the_memory_of_a_line() {
    let verified = |events| {
        let export = Endless::new(events);
        let keys = [SshPublicKey::parse(&export.authority.public_line()).unwrap()];
        let found = verify(BufReader::new(export), &keys, None).unwrap();
        assert_eq!((found.problems.as_slice(), found.events), (&[][..], events));
    };
    // What the program and its allocator need the first time is not what is measured.
    verified(1_000);
    let before = resident();
    verified(20_000);
    // Some 50 MB of text; the hashes alone would be 3 MB.
    let grown = resident().saturating_sub(before);
    assert!(grown < 2 << 20, "{grown} bytes");
}

#[test]
fn a_line_without_an_end_is_refused() {
    let authority = SshCa::generate().unwrap();
    let keys = [SshPublicKey::parse(&authority.public_line()).unwrap()];
    let fits = "x".repeat(usize::try_from(MAX_LINE).unwrap() - 1);
    assert!(!verify(Cursor::new(fits.clone()), &keys, None).unwrap().problems.is_empty());
    assert!(verify(Cursor::new(fits + "xx"), &keys, None).is_err());
}
