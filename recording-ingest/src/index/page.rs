//! What a list is asked for, and the tokens that say where a page ended.

use std::collections::BTreeMap;

use recording_format::{Digest, RecordingId};

use super::catalog::{Row, RowState};
use crate::error::IngestError;

/// Version of the tokens.
const TOKEN_VERSION: u8 = 1;
/// Bytes of the filter's digest in a token.
const FILTER_TAG: usize = 8;
const TOKEN_LEN: usize = 1 + 8 + 16 + FILTER_TAG;

/// A place in the order of recordings: by start, then by id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cursor {
    /// When the session began, Unix milliseconds.
    pub start_ms: u64,
    /// The recording.
    pub id: RecordingId,
}

impl Cursor {
    /// The least place of a moment.
    #[must_use]
    pub fn first_of(start_ms: u64) -> Self {
        Self { start_ms, id: RecordingId::from_bytes([0; 16]) }
    }
}

/// Which recordings are wanted. Empty and unset fields let all through.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only this user's.
    pub user: String,
    /// Only this login's.
    pub login: String,
    /// Only of this node.
    pub node: String,
    /// Only in this state.
    pub state: Option<RowState>,
    /// Only with all of these labels.
    pub labels: BTreeMap<String, String>,
    /// Only sessions that went on at or after this time, Unix milliseconds.
    pub from_ms: Option<u64>,
    /// Only sessions that began before this time, Unix milliseconds.
    pub to_ms: Option<u64>,
}

impl Filter {
    /// Whether a row is wanted.
    #[must_use]
    pub fn matches(&self, row: &Row) -> bool {
        let metadata = &row.metadata;
        let is = |wanted: &str, found: &str| wanted.is_empty() || wanted == found;
        let went_on = |from: u64| {
            row.state == RowState::InProgress
                || metadata.ended_at_ms.unwrap_or(metadata.started_at_ms).max(metadata.started_at_ms) >= from
        };
        is(&self.user, &metadata.user)
            && is(&self.login, &metadata.login)
            && is(&self.node, &metadata.node)
            && self.state.is_none_or(|state| state == row.state)
            && self.labels.iter().all(|(key, value)| metadata.labels.get(key) == Some(value))
            && self.from_ms.is_none_or(went_on)
            && self.to_ms.is_none_or(|to| metadata.started_at_ms < to)
    }

    /// The token of a page of this filter that ended at `cursor`.
    #[must_use]
    pub fn token(&self, cursor: Cursor) -> String {
        let mut token = [0; TOKEN_LEN];
        token[0] = TOKEN_VERSION;
        token[1..9].copy_from_slice(&cursor.start_ms.to_be_bytes());
        token[9..25].copy_from_slice(cursor.id.as_bytes());
        token[25..].copy_from_slice(&self.tag());
        hex::encode(token)
    }

    /// Where the page of a token ended; `None` for the empty token.
    ///
    /// # Errors
    /// [`IngestError::Invalid`] for a token that was not made here, or for another filter.
    pub fn cursor(&self, token: &str) -> Result<Option<Cursor>, IngestError> {
        if token.is_empty() {
            return Ok(None);
        }
        let refused = |reason: &str| IngestError::invalid("page_token", reason);
        let mut bytes = [0; TOKEN_LEN];
        hex::decode_to_slice(token, &mut bytes).map_err(|_| refused("is not a token of this list"))?;
        let [version, rest @ ..] = bytes;
        if version != TOKEN_VERSION {
            return Err(refused("is not a token of this list"));
        }
        let (mut start, mut id) = ([0; 8], [0; 16]);
        start.copy_from_slice(&rest[..8]);
        id.copy_from_slice(&rest[8..24]);
        if rest[24..] != self.tag() {
            return Err(refused("belongs to a list with other filters"));
        }
        Ok(Some(Cursor { start_ms: u64::from_be_bytes(start), id: RecordingId::from_bytes(id) }))
    }

    fn tag(&self) -> [u8; FILTER_TAG] {
        // The debug form names every field; a token lives no longer than a release.
        let digest = Digest::of(format!("{self:?}").as_bytes());
        let mut tag = [0; FILTER_TAG];
        tag.copy_from_slice(&digest.as_bytes()[..FILTER_TAG]);
        tag
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::catalog::tests::{COMPLETE, row};

    fn sample() -> Row {
        let mut row = row(1, 1_000, COMPLETE);
        row.metadata.user = "alice".into();
        row.metadata.login = "root".into();
        row.metadata.node = "web".into();
        row.metadata.ended_at_ms = Some(2_000);
        row.metadata.labels = [("a".to_owned(), "1".to_owned()), ("b".to_owned(), "2".to_owned())].into();
        row
    }

    #[test]
    fn each_filter_lets_its_own_through_alone() {
        type Change = fn(&mut Filter);
        let through: [Change; 9] = [
            |_| (),
            |f| f.user = "alice".into(),
            |f| f.login = "root".into(),
            |f| f.node = "web".into(),
            |f| f.state = Some(COMPLETE),
            |f| f.labels = [("a".to_owned(), "1".to_owned())].into(),
            |f| f.from_ms = Some(2_000),
            |f| f.to_ms = Some(1_001),
            |f| (f.from_ms, f.to_ms) = (Some(1_500), Some(1_600)),
        ];
        let stopped: [Change; 8] = [
            |f| f.user = "Alice".into(),
            |f| f.login = "r".into(),
            |f| f.node = "web2".into(),
            |f| f.state = Some(RowState::InProgress),
            |f| f.labels = [("a".to_owned(), "2".to_owned())].into(),
            |f| f.labels = [("a".to_owned(), "1".to_owned()), ("c".to_owned(), "3".to_owned())].into(),
            |f| f.from_ms = Some(2_001),
            |f| f.to_ms = Some(1_000),
        ];
        let matches = |change: Change| {
            let mut filter = Filter::default();
            change(&mut filter);
            filter.matches(&sample())
        };
        assert!(through.into_iter().all(matches));
        assert!(!stopped.into_iter().any(matches));
    }

    #[test]
    fn an_open_session_goes_on() {
        let open = Row { state: RowState::InProgress, ..sample() };
        assert!(Filter { from_ms: Some(u64::MAX), ..Filter::default() }.matches(&open));
    }

    #[test]
    fn tokens_are_good_for_their_filter_alone() {
        let filter = Filter { user: "alice".into(), ..Filter::default() };
        let cursor = sample().cursor();
        let token = filter.token(cursor);
        assert_eq!(filter.cursor(&token).unwrap(), Some(cursor));
        assert_eq!(filter.cursor("").unwrap(), None);
        assert!(Filter::default().cursor(&token).is_err());
        for bad in ["x", "00", &token[2..], &token.replacen("01", "02", 1), &format!("{token}00")] {
            assert!(filter.cursor(bad).is_err(), "{bad}");
        }
    }
}
