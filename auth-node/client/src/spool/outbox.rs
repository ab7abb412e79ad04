//! Events for the audit log that the cluster has not got yet, one file each. They are told at least once, and with the
//! idempotency key that is kept with each, twice only when an answer was lost for longer than the cluster remembers it.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use mezite_daemon::files::{self, PRIVATE};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::{
    End, Session, SpoolError,
    entry::{decode, encode, version},
    names,
};
use crate::IdempotencyKey;

/// Most events that wait. They are some hundred bytes each, and not counted for the limit of the spool: that it is full
/// is told by one.
const MOST: usize = 20_000;
/// Longest value of a field, in bytes: what the cluster takes.
const MAX_VALUE: usize = 1024;
const SUFFIX: &str = ".json";

/// Whether a file is an event that waits.
pub(super) fn is_event(name: &str) -> bool {
    name.ends_with(SUFFIX) && !name.starts_with('.')
}

/// What the cluster is to be told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Event {
    version: u32,
    /// By which the cluster knows it again.
    pub(crate) key: String,
    /// Its name in the audit log.
    pub event: String,
    /// What it is about.
    pub target: String,
    /// Further fields.
    pub fields: BTreeMap<String, String>,
    /// When, in Unix milliseconds: the order in which they are told.
    at_ms: u64,
}

impl Event {
    /// One that says anything, of what has no session yet.
    pub fn new(event: &str, target: &str, at_ms: u64, fields: &[(&str, String)]) -> Self {
        let fields = fields.iter().map(|(name, value)| ((*name).to_owned(), bounded(value))).collect();
        let key = IdempotencyKey::random().expose().to_owned();
        Self { version: version(), key, event: event.into(), target: target.into(), fields, at_ms }
    }

    pub(super) fn start(session: &Session) -> Self {
        Self::of(session, "session.start", session.started_at_ms, &[])
    }

    pub(super) fn end(session: &Session, end: &End, more: &[(&str, String)]) -> Self {
        let fields = [("bytes", end.length.to_string()), ("sha256", end.sha256.to_string())];
        Self::of(session, "session.end", end.ended_at_ms, &[fields.as_slice(), more].concat())
    }

    pub(super) fn failed(session: &Session, reason: &str, at_ms: u64) -> Self {
        Self::of(session, "session.recording.failed", at_ms, &[("reason", reason.to_owned())])
    }

    fn of(session: &Session, event: &str, at_ms: u64, more: &[(&str, String)]) -> Self {
        let Session { recording_id, user, login, node, .. } = session;
        let fields = [
            ("user", user.clone()),
            ("login", login.clone()),
            ("node", node.clone()),
            ("recording_id", recording_id.to_string()),
            ("at_ms", at_ms.to_string()),
        ];
        Self::new(event, &format!("session:{recording_id}"), at_ms, &[fields.as_slice(), more].concat())
    }

    /// By which it is the same event again.
    fn tail(&self) -> String {
        let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
        let target: String = self.target.chars().take(100).map(plain).collect();
        format!("-{}-{target}{SUFFIX}", self.event)
    }
}

/// A value as long as one may be.
fn bounded(value: &str) -> String {
    let mut end = value.len().min(MAX_VALUE);
    while !value.is_char_boundary(end) {
        end -= 1;
    }
    value.get(..end).unwrap_or_default().to_owned()
}

/// Events that wait, in a folder.
#[derive(Debug)]
pub struct Outbox {
    dir: PathBuf,
    changed: Notify,
}

impl Outbox {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir, changed: Notify::new() }
    }

    /// Keeps an event until it is told. One of the same name about the same thing that waits already is the same.
    ///
    /// # Errors
    /// [`SpoolError::File`]; [`SpoolError::Full`] when 20,000 wait.
    pub fn put(&self, event: &Event) -> Result<(), SpoolError> {
        let (tail, waiting) = (event.tail(), names(&self.dir)?);
        if waiting.iter().any(|name| name.ends_with(&tail)) {
            return Ok(());
        }
        if waiting.len() >= MOST {
            return Err(SpoolError::Full { limit: MOST as u64 });
        }
        let path = self.dir.join(format!("{:013}{tail}", event.at_ms));
        let document = encode(event).map_err(files::failed(&path))?;
        files::write_atomic(&path, &document, PRIVATE)?;
        self.changed.notify_one();
        Ok(())
    }

    /// What waits, oldest first, with the file of each; those that cannot be read are answered by their files alone.
    pub(super) fn waiting(&self) -> Result<Vec<(PathBuf, Option<Event>)>, SpoolError> {
        let mut names = names(&self.dir)?;
        names.retain(|name| is_event(name));
        names.sort_unstable();
        let read = |name: String| -> Result<_, SpoolError> {
            let path = self.dir.join(name);
            let text = files::read_text(&path)?.unwrap_or_default();
            Ok((path, decode(&text, |event: &Event| event.version).ok()))
        };
        names.into_iter().map(read).collect()
    }

    /// Forgets an event that was told.
    pub(super) fn forget(&self, path: &Path) -> Result<(), SpoolError> {
        Ok(files::remove(path)?)
    }

    /// Resolves when an event was kept since it was asked the last time.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }
}
