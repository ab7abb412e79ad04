//! An export of the audit log, and the proof that nothing in it was changed, left out or cut off.
//!
//! One JSON object a line: a header, which says where the export begins and what the first event is chained to; the
//! events, each with its record as it is chained (base64) and what that says; and a checkpoint that the cluster signed.
//! The chain ties every event to the one before, and the checkpoint the last one to the cluster's audit authority.

use std::io::{BufRead, ErrorKind, Read as _, Seek};

use anyhow::{Result, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use mezite_pki::ssh::{SshPublicKey, verify_sshsig};
use mezite_proto::v1;
use prost::Message as _;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::output;

/// Marks an export.
const KIND: &str = "mezite.audit.export";
/// Version of the format that this program writes and reads.
const VERSION: u32 = 1;
/// What checkpoints are signed for.
const NAMESPACE: &str = "audit@mezite";
/// First line of what is signed.
const STATEMENT: &str = "mezite audit checkpoint v1";
/// Findings that are told one by one.
const MAX_FINDINGS: usize = 20;
/// Longest line, in bytes: well above an event's, whose record the store bounds.
const MAX_LINE: u64 = 16 << 20;

/// One line of an export.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum Line {
    Header(Header),
    Event(Box<Event>),
    Checkpoint(Checkpoint),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    kind: String,
    version: u32,
    cluster_id: String,
    /// Index of the first event.
    first_index: u64,
    /// Hash of the event before it, hexadecimal.
    anchor_hash: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Event {
    index: u64,
    time_ms: u64,
    hash: String,
    record: String,
    /// What the record says.
    event: Said,
}

/// What a record says, for whoever reads an export.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Said {
    time: String,
    event: String,
    code: String,
    actor: String,
    target: String,
    success: bool,
    fields: std::collections::BTreeMap<String, String>,
    node_id: u64,
    request_id: String,
    client_address: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Checkpoint {
    statement: String,
    signature: String,
}

fn said(record: v1::AuditRecord, time_ms: u64) -> Said {
    let v1::AuditRecord { event, code, actor, target, success, fields, node_id, request_id, client_address } =
        record;
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_millis(time_ms);
    let time = humantime::format_rfc3339_millis(time).to_string();
    Said { time, event, code, actor, target, success, fields, node_id, request_id, client_address }
}

/// Writes the lines of an export.
#[derive(Debug, Default)]
pub(crate) struct Export {
    begun: bool,
    /// Events that were written.
    pub(crate) events: u64,
}

impl Export {
    /// The lines of the next page.
    ///
    /// # Errors
    /// When the cluster's answer is not what it must be.
    pub(crate) fn page(&mut self, page: &v1::QueryAuditEventsResponse) -> Result<String> {
        let Some(checkpoint) = &page.checkpoint else { bail!("the cluster's reply lacks the checkpoint") };
        let mut lines = String::new();
        let mut add = |line: &Line| -> Result<()> {
            lines += &serde_json::to_string(line)?;
            lines.push('\n');
            Ok(())
        };
        if !self.begun {
            self.begun = true;
            add(&Line::Header(Header {
                kind: KIND.into(),
                version: VERSION,
                cluster_id: checkpoint.cluster_id.clone(),
                first_index: checkpoint.first_index,
                anchor_hash: hex::encode(&checkpoint.anchor_hash),
            }))?;
        }
        for event in &page.events {
            let time_ms = milliseconds(event.time)?;
            let record = v1::AuditRecord::decode(event.record.clone())?;
            add(&Line::Event(Box::new(Event {
                index: event.index,
                time_ms,
                hash: hex::encode(&event.chain_hash),
                record: STANDARD.encode(&event.record),
                event: said(record, time_ms),
            })))?;
            self.events += 1;
        }
        if page.next_page_token.is_empty() {
            let v1::AuditCheckpoint { statement, signature, .. } = checkpoint.clone();
            add(&Line::Checkpoint(Checkpoint { statement, signature }))?;
        }
        Ok(lines)
    }
}

fn milliseconds(time: Option<prost_types::Timestamp>) -> Result<u64> {
    let time = time.unwrap_or_default();
    let whole = u64::try_from(time.seconds).ok().and_then(|seconds| seconds.checked_mul(1000));
    match (whole, u64::try_from(time.nanos)) {
        (Some(whole), Ok(nanos)) => Ok(whole + nanos / 1_000_000),
        _ => bail!("the cluster answered a time that is none"),
    }
}

/// What a signed statement says.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Statement {
    cluster_id: String,
    first: u64,
    anchor: String,
    last: u64,
    hash: String,
    time_ms: u64,
}

impl Statement {
    /// Reads exactly what the cluster writes.
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.strip_suffix('\n')?.split('\n');
        if lines.next()? != STATEMENT {
            return None;
        }
        let mut value = |name: &str| lines.next()?.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned);
        let statement = Self {
            cluster_id: value("cluster_id")?,
            first: value("first")?.parse().ok()?,
            anchor: value("anchor")?,
            last: value("last")?.parse().ok()?,
            hash: value("hash")?,
            time_ms: value("time_ms")?.parse().ok()?,
        };
        lines.next().is_none().then_some(statement)
    }
}

/// What an earlier export proved: the log went on from there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Earlier {
    cluster_id: String,
    last: u64,
    hash: String,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Verified {
    pub(crate) cluster_id: String,
    pub(crate) first_index: u64,
    pub(crate) last_index: u64,
    pub(crate) events: u64,
    /// When the cluster signed it.
    pub(crate) signed_at: String,
    /// What is wrong; nothing, for one that is sound. Of very many, the first ones and a line that says how many more.
    pub(crate) problems: Vec<String>,
    /// How many things are wrong.
    pub(crate) problem_count: usize,
    #[serde(skip)]
    hash: String,
}

impl Verified {
    /// For the verification of a later export.
    pub(crate) fn earlier(&self) -> Earlier {
        Earlier { cluster_id: self.cluster_id.clone(), last: self.last_index, hash: self.hash.clone() }
    }
}

/// Looks at an export line by line. It takes the memory of a line, however long the export is.
struct Verifier<'a> {
    keys: &'a [SshPublicKey],
    since: Option<&'a Earlier>,
    header: Option<Header>,
    next: u64,
    previous: String,
    /// Indexes whose hashes count in the end, and these hashes, once they are met.
    marks: Vec<(u64, Option<String>)>,
    checkpoint: Option<Checkpoint>,
    events: u64,
    problems: Vec<String>,
    more_problems: usize,
}

/// Verifies an export against the public keys of the audit authority, and, if given, what an earlier export proved. The
/// export is read twice: where what was signed begins is said at its end.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn verify(
    mut export: impl BufRead + Seek,
    keys: &[SshPublicKey],
    since: Option<&Earlier>,
) -> Result<Verified> {
    let begins = signed_from(&mut export)?;
    export.rewind()?;
    let marks = begins.map(|first| first.saturating_sub(1)).into_iter().chain(since.map(|since| since.last));
    let mut verifier = Verifier {
        keys,
        since,
        header: None,
        next: 0,
        previous: String::new(),
        marks: marks.map(|index| (index, None)).collect(),
        checkpoint: None,
        events: 0,
        problems: Vec::new(),
        more_problems: 0,
    };
    let (mut number, mut line) = (0, String::new());
    while next_line(&mut export, &mut line)? {
        number += 1;
        verifier.line(number, &line);
    }
    Ok(verifier.end())
}

/// The first index that an export's last line says is signed; whether it is, is not looked at.
fn signed_from(export: &mut impl BufRead) -> Result<Option<u64>> {
    let (mut last, mut line) = (String::new(), String::new());
    while next_line(export, &mut line)? {
        std::mem::swap(&mut last, &mut line);
    }
    let checkpoint = serde_json::from_str::<Checkpoint>(&last).ok();
    Ok(checkpoint.and_then(|checkpoint| Statement::parse(&checkpoint.statement)).map(|said| said.first))
}

/// Reads the next line, without its end. `false`: there is none.
fn next_line(export: &mut impl BufRead, line: &mut String) -> Result<bool> {
    line.clear();
    let read = export.by_ref().take(MAX_LINE).read_line(line)?;
    let ended = line.ends_with('\n');
    if !ended && u64::try_from(read).is_ok_and(|read| read >= MAX_LINE) {
        return Err(
            std::io::Error::new(ErrorKind::InvalidData, "a line is too long to be of an export").into()
        );
    }
    if ended {
        line.truncate(line.len() - 1);
        line.truncate(line.strip_suffix('\r').map_or(line.len(), str::len));
    }
    Ok(read > 0)
}

impl Verifier<'_> {
    fn problem(&mut self, problem: impl Into<String>) {
        if self.problems.len() < MAX_FINDINGS {
            self.problems.push(output::printable(&problem.into()));
        } else {
            self.more_problems += 1;
        }
    }

    fn line(&mut self, number: usize, text: &str) {
        let parsed = match serde_json::from_str::<Line>(text) {
            Ok(parsed) => parsed,
            Err(_) => return self.problem(format!("line {number} is none of an export")),
        };
        if self.checkpoint.is_some() {
            return self.problem(format!("line {number} comes after the checkpoint"));
        }
        match parsed {
            Line::Header(header) if number == 1 && header.kind == KIND && header.version == VERSION => {
                self.next = header.first_index;
                self.previous.clone_from(&header.anchor_hash);
                self.mark(header.first_index.saturating_sub(1), &header.anchor_hash);
                self.header = Some(header);
            }
            Line::Header(_) => {
                self.problem(format!("line {number}: a header that is out of place, or of another version"))
            }
            Line::Checkpoint(checkpoint) => self.checkpoint = Some(checkpoint),
            Line::Event(event) => self.event(number, &event),
        }
    }

    fn event(&mut self, number: usize, event: &Event) {
        self.events += 1;
        let index = event.index;
        if index != self.next {
            let wanted = self.next;
            self.problem(format!("line {number} has event {index}, where event {wanted} belongs"));
        }
        match STANDARD.decode(&event.record) {
            Ok(record) => {
                let hash = chain(&self.previous, index, event.time_ms, &record);
                if hash != event.hash {
                    self.problem(format!(
                        "event {index} is not the one that was chained: its record, time or place was changed"
                    ));
                }
                let decoded =
                    v1::AuditRecord::decode(record.as_slice()).map(|record| said(record, event.time_ms));
                if decoded.as_ref() != Ok(&event.event) {
                    self.problem(format!("event {index} does not say what its record says"));
                }
            }
            Err(_) => self.problem(format!("event {index} has a record that is no base64")),
        }
        self.next = index.saturating_add(1);
        self.previous.clone_from(&event.hash);
        self.mark(index, &event.hash);
    }

    /// Takes note of a hash, if it counts in the end.
    fn mark(&mut self, index: u64, hash: &str) {
        for (_, mark) in self.marks.iter_mut().filter(|(wanted, mark)| *wanted == index && mark.is_none()) {
            *mark = Some(hash.to_owned());
        }
    }

    /// The hash of an event that was met; of one that does not count, none.
    fn hash_of(&self, index: u64) -> Option<&String> {
        self.marks.iter().find(|(wanted, _)| *wanted == index).and_then(|(_, mark)| mark.as_ref())
    }

    fn end(mut self) -> Verified {
        let statement = self.checkpoint.clone().and_then(|checkpoint| self.signed(&checkpoint));
        let header = self.header.clone();
        match (&header, &statement) {
            (None, _) => self.problem("there is no header: this is no export, or its beginning is missing"),
            (_, None) if self.checkpoint.is_none() => {
                self.problem("there is no checkpoint: the end is missing");
            }
            (Some(header), Some(statement)) => self.compare(header, statement),
            _ => {}
        }
        if let (Some(since), Some(header)) = (self.since, &header) {
            let known = self.hash_of(since.last);
            let problem = if since.cluster_id != header.cluster_id {
                Some("the earlier export is of another cluster".to_owned())
            } else if known.is_some_and(|hash| *hash == since.hash) {
                None
            } else if known.is_some() {
                Some(format!(
                    "event {} is another one than in the earlier export: the log was made anew",
                    since.last
                ))
            } else {
                Some(format!("event {}, the last of the earlier export, is not in this one", since.last))
            };
            problem.into_iter().for_each(|problem| self.problem(problem));
        }
        let problem_count = self.problems.len() + self.more_problems;
        if self.more_problems > 0 {
            let more = format!("and {} more", self.more_problems);
            self.problems.push(more);
        }
        let signed_at = statement.as_ref().map(|statement| {
            let time = std::time::UNIX_EPOCH + std::time::Duration::from_millis(statement.time_ms);
            humantime::format_rfc3339_seconds(time).to_string()
        });
        Verified {
            cluster_id: header.as_ref().map(|header| header.cluster_id.clone()).unwrap_or_default(),
            first_index: header.as_ref().map_or(0, |header| header.first_index),
            last_index: self.next.saturating_sub(1),
            events: self.events,
            signed_at: signed_at.unwrap_or_default(),
            problems: self.problems,
            problem_count,
            hash: self.previous,
        }
    }

    /// The statement, if one of the keys has signed it.
    fn signed(&mut self, checkpoint: &Checkpoint) -> Option<Statement> {
        let is_good = |key: &SshPublicKey| {
            verify_sshsig(&checkpoint.signature, NAMESPACE, checkpoint.statement.as_bytes(), key).is_ok()
        };
        if !self.keys.iter().any(is_good) {
            self.problem(
                "the checkpoint is not signed by the cluster's audit authority: if that was rotated since, --key takes a file \
                 with its earlier keys, too",
            );
            return None;
        }
        let statement = Statement::parse(&checkpoint.statement);
        if statement.is_none() {
            self.problem("the checkpoint says what this program does not understand: use a newer one");
        }
        statement
    }

    fn compare(&mut self, header: &Header, statement: &Statement) {
        if header.cluster_id != statement.cluster_id {
            self.problem("the header and the checkpoint are of different clusters");
        }
        if header.first_index > statement.first {
            let (first, begins) = (statement.first, header.first_index);
            self.problem(format!("events {first} to {} are missing at the beginning", begins - 1));
        } else if self.hash_of(statement.first.saturating_sub(1)) != Some(&statement.anchor) {
            self.problem("the beginning is not what the checkpoint says");
        }
        let last = self.next.saturating_sub(1);
        if last != statement.last {
            self.problem(format!("the last event is {last}, and by the checkpoint it is {}", statement.last));
        } else if self.previous != statement.hash {
            self.problem("the last event is not the one that was signed");
        }
    }
}

/// The hash of an event, hexadecimal.
fn chain(previous: &str, index: u64, time_ms: u64, record: &[u8]) -> String {
    let mut hasher = Sha256::new();
    hasher.update(hex::decode(previous).unwrap_or_default());
    hasher.update(index.to_be_bytes());
    hasher.update(time_ms.to_be_bytes());
    hasher.update(record);
    hex::encode(hasher.finalize())
}

#[cfg(test)]
#[path = "audit_proof_tests.rs"]
mod tests;
