//! The documents of an entry. Versioned JSON; another version's is refused, and not guessed at.

use std::{
    collections::BTreeMap,
    fs, io,
    path::Path,
    time::{Duration, UNIX_EPOCH},
};

use mezite_daemon::files::{self, FileError};
use mezite_proto::v1::RecordingMetadata;
use recording_format::{Digest, RecordingId};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::SpoolError;
use crate::{Extent, PayloadEnd};

pub(super) const META: &str = "meta.json";
pub(super) const PAYLOAD: &str = "payload";
pub(super) const END: &str = "end.json";

/// Version of the documents that this release writes and reads.
const VERSION: u32 = 1;

/// What is known of a session while it is recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Session {
    version: u32,
    /// Its id in the cluster.
    pub recording_id: RecordingId,
    /// Mezite user; empty: it came by no certificate of the cluster.
    pub user: String,
    /// Login on the host.
    pub login: String,
    /// Hostname of the agent.
    pub node: String,
    /// Format of the payload.
    pub format: String,
    /// Labels of the recording.
    pub labels: BTreeMap<String, String>,
    /// When it began, in Unix milliseconds.
    pub started_at_ms: u64,
    /// Digest of what whoever takes it up again must know.
    pub resume_sha256: Digest,
}

/// How an entry ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct End {
    version: u32,
    /// Bytes of the payload; what is beyond them on disk does not belong to it.
    pub length: u64,
    /// Digest of the payload.
    pub sha256: Digest,
    /// When, in Unix milliseconds.
    pub ended_at_ms: u64,
}

impl Session {
    /// Of a new session; what is not given is empty.
    pub fn new(recording_id: RecordingId, started_at_ms: u64, resume_sha256: Digest) -> Self {
        Self {
            version: VERSION,
            recording_id,
            user: String::new(),
            login: String::new(),
            node: String::new(),
            format: String::new(),
            labels: BTreeMap::new(),
            started_at_ms,
            resume_sha256,
        }
    }

    /// Of an entry in this folder.
    pub(super) fn read(dir: &Path, id: RecordingId) -> Result<Self, SpoolError> {
        let damaged = |what: String| SpoolError::Damaged { id, what };
        let text = text(id, &dir.join(META))?.ok_or_else(|| damaged(format!("it has no {META}")))?;
        let session = Self::decode(&text).map_err(|error| damaged(format!("{META}: {error}")))?;
        match session.recording_id == id {
            true => Ok(session),
            false => Err(damaged(format!("{META} is of {}", session.recording_id))),
        }
    }

    /// As the cluster is told.
    pub fn metadata(&self) -> RecordingMetadata {
        RecordingMetadata {
            user: self.user.clone(),
            login: self.login.clone(),
            node: self.node.clone(),
            started_at: Some((UNIX_EPOCH + Duration::from_millis(self.started_at_ms)).into()),
            ended_at: None,
            format: self.format.clone(),
            labels: self.labels.clone(),
        }
    }

    pub(super) fn decode(text: &str) -> Result<Self, String> {
        decode(text, |session: &Self| session.version)
    }
}

impl End {
    pub(super) fn new(length: u64, sha256: Digest, ended_at_ms: u64) -> Self {
        Self { version: VERSION, length, sha256, ended_at_ms }
    }

    /// Of an entry in this folder; `None`: it has not ended.
    pub(super) fn read(dir: &Path, id: RecordingId) -> Result<Option<Self>, SpoolError> {
        let damaged = |what: String| SpoolError::Damaged { id, what };
        let Some(text) = text(id, &dir.join(END))? else { return Ok(None) };
        let end = Self::decode(&text).map_err(|error| damaged(format!("{END}: {error}")))?;
        let length = length(&dir.join(PAYLOAD))?;
        match length >= end.length {
            true => Ok(Some(end)),
            false => Err(damaged(format!("{length} of {} bytes are there", end.length))),
        }
    }

    pub(super) fn decode(text: &str) -> Result<Self, String> {
        decode(text, |end: &Self| end.version)
    }

    pub(super) fn extent(&self) -> Extent {
        let end = PayloadEnd { sha256: self.sha256, ended_at_ms: Some(self.ended_at_ms) };
        Extent { length: self.length, end: Some(end) }
    }
}

/// A document as it is written.
pub(super) fn encode(document: &impl Serialize) -> std::io::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec_pretty(document)?;
    bytes.push(b'\n');
    Ok(bytes)
}

pub(super) fn decode<D: DeserializeOwned>(text: &str, version: impl Fn(&D) -> u32) -> Result<D, String> {
    let document: D = serde_json::from_str(text).map_err(|error| error.to_string())?;
    match version(&document) {
        VERSION => Ok(document),
        other => Err(format!("it is of version {other}, and this release reads {VERSION}")),
    }
}

/// Version of documents, for those that are elsewhere.
pub(super) const fn version() -> u32 {
    VERSION
}

/// Bytes of a file; none where it is not there.
pub(super) fn length(path: &Path) -> Result<u64, FileError> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(metadata.len()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(files::failed(path)(error)),
    }
}

/// A document of an entry; `None`: it is not there.
///
/// # Errors
/// [`SpoolError::Damaged`] when it is no text, [`SpoolError::File`].
fn text(id: RecordingId, path: &Path) -> Result<Option<String>, SpoolError> {
    files::read_text(path).map_err(|error| match error {
        FileError::Io { path, cause } if cause.kind() == io::ErrorKind::InvalidData => {
            SpoolError::Damaged { id, what: format!("{}: {cause}", path.display()) }
        }
        error => error.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_pinned() {
        let mut session = Session::new(RecordingId::from_bytes([7; 16]), 1_000, Digest::of(b"token"));
        (session.user, session.login, session.node) = ("ann".into(), "root".into(), "web1".into());
        session.format = "asciicast-v3".into();
        session.labels.insert("tty".into(), "true".into());
        let text = String::from_utf8(encode(&session).unwrap()).unwrap();
        assert_eq!(
            text,
            "{\n  \"version\": 1,\n  \"recording_id\": \"07070707-0707-0707-0707-070707070707\",\n  \"user\": \"ann\",\n  \
             \"login\": \"root\",\n  \"node\": \"web1\",\n  \"format\": \"asciicast-v3\",\n  \"labels\": {\n    \
             \"tty\": \"true\"\n  },\n  \"started_at_ms\": 1000,\n  \"resume_sha256\": \
             \"3c469e9d6c5875d37a43f353d4f88e61fcf812c66eee3457465a40b0da4153e0\"\n}\n"
        );
        assert_eq!(Session::decode(&text), Ok(session));
        assert!(Session::decode(&text.replace("\"version\": 1", "\"version\": 2")).is_err());
        assert!(Session::decode(&text.replace("\"user\"", "\"usr\"")).is_err());
        let end = End::new(5, Digest::of(b"bytes"), 9);
        let text = String::from_utf8(encode(&end).unwrap()).unwrap();
        assert_eq!(End::decode(&text), Ok(end));
        assert!(End::decode(&text[..20]).is_err());
    }
}
