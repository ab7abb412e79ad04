//! Between messages and what they mean. Every bound on what a caller may send is checked here.

use std::collections::BTreeMap;

use bytes::Bytes;
use mezite_proto::v1::{self, Recording, RecordingMetadata, RecordingReceipt};
use prost::Message as _;
use prost_types::Timestamp;
use recording_format::{Digest, MAX_TIME_MS, Metadata, RecordingId, RecordingState, SignedManifest};

use crate::{
    error::IngestError,
    index::{Filter, Row, RowState},
};

/// Longest user, login and filter text, in bytes.
const MAX_NAME: usize = 255;
/// Longest format, in bytes.
const MAX_FORMAT: usize = 63;
/// Most labels.
const MAX_LABELS: usize = 64;
/// Longest key of a label, in bytes.
const MAX_LABEL_KEY: usize = 63;
/// Longest value of a label, in bytes.
const MAX_LABEL_VALUE: usize = 256;
/// Entries of a page that names no size.
const DEFAULT_PAGE: usize = 100;
/// Most entries of a page.
const MAX_PAGE: usize = 1_000;
/// Most bytes of a page of more than one entry: half of what a client takes in a message.
const MAX_PAGE_BYTES: usize = 2 << 20;

/// A recording's id.
///
/// # Errors
/// [`IngestError::Invalid`] for anything but a UUID in lower case with hyphens.
pub fn recording_id(field: &'static str, text: &str) -> Result<RecordingId, IngestError> {
    text.parse().map_err(|error| IngestError::invalid(field, format!("{error}")))
}

/// A payload's digest.
///
/// # Errors
/// [`IngestError::Invalid`] for anything but 32 bytes.
pub fn digest(field: &'static str, bytes: &[u8]) -> Result<Digest, IngestError> {
    Digest::try_from(bytes).map_err(|_| IngestError::invalid(field, "must be the 32 bytes of a SHA-256"))
}

/// Metadata of a session. A start that is not set is 0.
///
/// # Errors
/// [`IngestError::Invalid`] for a field out of its bounds.
pub fn metadata(message: RecordingMetadata) -> Result<Metadata, IngestError> {
    text("metadata.user", &message.user, MAX_NAME)?;
    text("metadata.login", &message.login, MAX_NAME)?;
    text("metadata.node", &message.node, MAX_NAME)?;
    text("metadata.format", &message.format, MAX_FORMAT)?;
    labels("metadata.labels", &message.labels)?;
    Ok(Metadata {
        user: message.user,
        login: message.login,
        node: message.node,
        started_at_ms: time("metadata.started_at", message.started_at)?.unwrap_or_default(),
        ended_at_ms: time("metadata.ended_at", message.ended_at)?,
        format: message.format,
        labels: message.labels,
    })
}

/// A time in Unix milliseconds, between 1970 and [`MAX_TIME_MS`].
///
/// # Errors
/// [`IngestError::Invalid`] for another.
pub fn time(field: &'static str, timestamp: Option<Timestamp>) -> Result<Option<u64>, IngestError> {
    let Some(Timestamp { seconds, nanos }) = timestamp else { return Ok(None) };
    let whole = u64::try_from(seconds).ok().and_then(|seconds| seconds.checked_mul(1_000));
    let part =
        u64::try_from(nanos).ok().filter(|nanos| *nanos < 1_000_000_000).map(|nanos| nanos / 1_000_000);
    let ms =
        whole.zip(part).and_then(|(whole, part)| whole.checked_add(part)).filter(|ms| *ms <= MAX_TIME_MS);
    ms.map(Some).ok_or_else(|| IngestError::invalid(field, "must be a time from 1970 to 2286"))
}

fn text(field: &'static str, text: &str, max: usize) -> Result<(), IngestError> {
    if text.len() > max {
        return Err(IngestError::invalid(field, format!("at most {max} bytes")));
    }
    if text.chars().any(char::is_control) {
        return Err(IngestError::invalid(field, "must not contain control characters"));
    }
    Ok(())
}

fn labels(field: &'static str, labels: &BTreeMap<String, String>) -> Result<(), IngestError> {
    if labels.len() > MAX_LABELS {
        return Err(IngestError::invalid(field, format!("at most {MAX_LABELS}")));
    }
    for (key, value) in labels {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._/-".contains(&byte);
        if key.is_empty() || key.len() > MAX_LABEL_KEY || !key.bytes().all(allowed) {
            return Err(IngestError::invalid(field, "keys are 1 to 63 bytes of [a-zA-Z0-9._/-]"));
        }
        text(field, value, MAX_LABEL_VALUE)?;
    }
    Ok(())
}

/// What a list is asked for.
///
/// # Errors
/// [`IngestError::Invalid`] for a field out of its bounds.
pub fn filter(request: &v1::ListSessionRecordingsRequest) -> Result<Filter, IngestError> {
    text("user", &request.user, MAX_NAME)?;
    text("login", &request.login, MAX_NAME)?;
    text("node", &request.node, MAX_NAME)?;
    labels("labels", &request.labels)?;
    let state = match v1::RecordingState::try_from(request.state) {
        Ok(v1::RecordingState::Unspecified) => None,
        Ok(v1::RecordingState::InProgress) => Some(RowState::InProgress),
        Ok(v1::RecordingState::Complete) => Some(RowState::Sealed(RecordingState::Complete)),
        Ok(v1::RecordingState::Interrupted) => Some(RowState::Sealed(RecordingState::Interrupted)),
        Ok(v1::RecordingState::Truncated) => Some(RowState::Sealed(RecordingState::Truncated)),
        Err(_) => return Err(IngestError::invalid("state", "is not a state of a recording")),
    };
    Ok(Filter {
        user: request.user.clone(),
        login: request.login.clone(),
        node: request.node.clone(),
        state,
        labels: request.labels.clone(),
        from_ms: time("from", request.from)?,
        to_ms: time("to", request.to)?,
    })
}

/// How many entries a page has.
#[must_use]
pub fn page_size(asked: u32) -> usize {
    match usize::try_from(asked) {
        Ok(0) => DEFAULT_PAGE,
        asked => asked.unwrap_or(MAX_PAGE).min(MAX_PAGE),
    }
}

/// A recording as a list shows it.
#[must_use]
pub fn recording(row: &Row) -> Recording {
    let bytes = |digest: Option<Digest>| digest.map(|digest| Bytes::copy_from_slice(digest.as_bytes()));
    Recording {
        recording_id: row.id.to_string(),
        state: state(row.state).into(),
        metadata: Some(metadata_message(&row.metadata)),
        size: row.size,
        payload_sha256: bytes(row.payload_sha256).unwrap_or_default(),
        agent_id: row.agent_id.to_string(),
        manifest_sha256: bytes(row.manifest_sha256).unwrap_or_default(),
    }
}

/// A page of a list, as far as it fits into one message. `more` says whether rows follow those given.
#[must_use]
pub fn page(filter: &Filter, rows: &[Row], more: bool) -> v1::ListSessionRecordingsResponse {
    let (mut recordings, mut bytes) = (Vec::new(), 0);
    for row in rows {
        let entry = recording(row);
        bytes += entry.encoded_len();
        if bytes > MAX_PAGE_BYTES && !recordings.is_empty() {
            break;
        }
        recordings.push(entry);
    }
    let more = more || recordings.len() < rows.len();
    let last = rows.get(..recordings.len()).and_then(<[Row]>::last).filter(|_| more);
    let next_page_token = last.map(|row| filter.token(row.cursor())).unwrap_or_default();
    v1::ListSessionRecordingsResponse { recordings, next_page_token }
}

/// The state as a message has it.
#[must_use]
pub fn state(state: RowState) -> v1::RecordingState {
    match state {
        RowState::InProgress => v1::RecordingState::InProgress,
        RowState::Sealed(RecordingState::Complete) => v1::RecordingState::Complete,
        RowState::Sealed(RecordingState::Interrupted) => v1::RecordingState::Interrupted,
        RowState::Sealed(RecordingState::Truncated) => v1::RecordingState::Truncated,
    }
}

/// The receipt of a sealed recording.
#[must_use]
pub fn receipt(signed: &SignedManifest) -> RecordingReceipt {
    RecordingReceipt { manifest: signed.document.clone().into(), signature: signed.signature.clone() }
}

fn metadata_message(metadata: &Metadata) -> RecordingMetadata {
    RecordingMetadata {
        user: metadata.user.clone(),
        login: metadata.login.clone(),
        node: metadata.node.clone(),
        started_at: Some(timestamp(metadata.started_at_ms)),
        ended_at: metadata.ended_at_ms.map(timestamp),
        format: metadata.format.clone(),
        labels: metadata.labels.clone(),
    }
}

fn timestamp(ms: u64) -> Timestamp {
    let ms = ms.min(MAX_TIME_MS);
    // Both fit: the bound is far below, and the remainder is under a thousand.
    let seconds = i64::try_from(ms / 1_000).unwrap_or_default();
    let nanos = i32::try_from(ms % 1_000 * 1_000_000).unwrap_or_default();
    Timestamp { seconds, nanos }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(error: IngestError) -> &'static str {
        match error {
            IngestError::Invalid { field, .. } => field,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn metadata_within_bounds_survives() {
        let message = RecordingMetadata {
            user: "alice".into(),
            started_at: Some(Timestamp { seconds: 1_700_000_000, nanos: 123_000_000 }),
            labels: [("env".to_owned(), "prod".to_owned())].into(),
            ..Default::default()
        };
        assert_eq!(metadata_message(&metadata(message.clone()).unwrap()), message);
    }

    #[test]
    fn each_bound_names_its_field() {
        let with = |change: fn(&mut RecordingMetadata)| {
            let mut message = RecordingMetadata::default();
            change(&mut message);
            field(metadata(message).unwrap_err())
        };
        assert_eq!(with(|m| m.user = "x".repeat(256)), "metadata.user");
        assert_eq!(with(|m| m.login = "a\nb".into()), "metadata.login");
        assert_eq!(with(|m| m.node = "\u{7f}".into()), "metadata.node");
        assert_eq!(with(|m| m.format = "x".repeat(64)), "metadata.format");
        assert_eq!(with(|m| m.labels = [("a b".to_owned(), String::new())].into()), "metadata.labels");
        assert_eq!(with(|m| m.labels = [(String::new(), String::new())].into()), "metadata.labels");
        assert_eq!(with(|m| m.labels = [("a".to_owned(), "x".repeat(257))].into()), "metadata.labels");
        assert_eq!(
            with(|m| m.labels = (0..65).map(|n| (n.to_string(), String::new())).collect()),
            "metadata.labels"
        );
        for (seconds, nanos) in [(-1, 0), (0, -1), (0, 1_000_000_000), (10_000_000_000, 0), (i64::MAX, 0)] {
            let refused = time("t", Some(Timestamp { seconds, nanos }));
            assert_eq!(field(refused.unwrap_err()), "t");
        }
    }

    #[test]
    fn ids_and_digests_are_parsed() {
        assert_eq!(field(recording_id("id", "../../etc/passwd").unwrap_err()), "id");
        assert_eq!(field(digest("sha", b"short").unwrap_err()), "sha");
    }

    #[test]
    fn pages_are_bounded() {
        assert_eq!([0, 1, 1_000, 1_001, u32::MAX].map(page_size), [100, 1, 1_000, 1_000, 1_000]);
    }

    #[test]
    fn a_page_fits_into_a_message_and_loses_nothing() {
        let mut wide = crate::index::row(0, 0, RowState::InProgress);
        wide.metadata.labels = (0..64).map(|n| (format!("{n:063}"), "x".repeat(256))).collect();
        let rows: Vec<Row> =
            (0..200_u8).map(|n| Row { id: RecordingId::from_bytes([n; 16]), ..wide.clone() }).collect();
        let filter = Filter::default();
        let reply = page(&filter, &rows, false);
        let taken = reply.recordings.len();
        assert!((1..200).contains(&taken) && reply.encoded_len() < 4 << 20, "{taken}");
        let cursor = filter.cursor(&reply.next_page_token).unwrap();
        assert_eq!(cursor, Some(rows[taken - 1].cursor()));
        assert_eq!(page(&filter, &rows[..taken], false).next_page_token, "");
        assert_ne!(page(&filter, &rows[..taken], true).next_page_token, "");
        assert_eq!(page(&filter, &[], false).next_page_token, "");
    }

    #[test]
    fn an_unknown_state_is_refused() {
        let request = v1::ListSessionRecordingsRequest { state: 99, ..Default::default() };
        assert_eq!(field(filter(&request).unwrap_err()), "state");
    }
}
