//! The index itself: a row for each recording, ordered by when its session began.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{PoisonError, RwLock},
};

use recording_format::{AgentId, Digest, IndexEntry, Metadata, RecordingId, RecordingState};

use super::page::{Cursor, Filter};

/// State of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RowState {
    /// Still open.
    InProgress,
    /// Sealed.
    Sealed(RecordingState),
}

impl RowState {
    fn is_final(self) -> bool {
        match self {
            Self::InProgress => false,
            Self::Sealed(state) => state.is_final(),
        }
    }
}

/// What a list shows of a recording.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The recording.
    pub id: RecordingId,
    /// Its owner.
    pub agent_id: AgentId,
    /// What is known of the session.
    pub metadata: Metadata,
    /// Its state.
    pub state: RowState,
    /// Durable bytes.
    pub size: u64,
    /// Revision of its newest manifest, if there is one.
    pub revision: Option<u16>,
    /// Digest of the payload; not known while it is open.
    pub payload_sha256: Option<Digest>,
    /// Digest of the manifest; not known while it is open.
    pub manifest_sha256: Option<Digest>,
    /// Until when it must be kept, Unix milliseconds; `None`: for ever, or not known yet.
    pub retain_until_ms: Option<u64>,
}

impl From<IndexEntry> for Row {
    fn from(entry: IndexEntry) -> Self {
        Self {
            id: entry.recording_id,
            agent_id: entry.agent_id,
            metadata: entry.metadata,
            state: RowState::Sealed(entry.state),
            size: entry.length,
            revision: Some(entry.revision),
            payload_sha256: Some(entry.payload_sha256),
            manifest_sha256: Some(entry.manifest_sha256),
            retain_until_ms: entry.retain_until_ms,
        }
    }
}

impl Row {
    /// Its place in the order.
    #[must_use]
    pub fn cursor(&self) -> Cursor {
        Cursor { start_ms: self.metadata.started_at_ms, id: self.id }
    }

    /// Whether this says something newer than `other` of the same recording.
    fn replaces(&self, other: &Self) -> bool {
        match self.revision.cmp(&other.revision) {
            std::cmp::Ordering::Greater => true,
            std::cmp::Ordering::Less => false,
            // The same revision: open again after an interruption, or grown. A sealed row never undoes that.
            std::cmp::Ordering::Equal => {
                self.state == RowState::InProgress
                    && !other.state.is_final()
                    && (other.state != RowState::InProgress || self.size >= other.size)
            }
        }
    }
}

#[derive(Debug, Default)]
struct Rows {
    by_start: BTreeMap<Cursor, Row>,
    starts: HashMap<RecordingId, u64>,
}

/// The index in memory.
#[derive(Debug, Default)]
pub struct Catalog {
    rows: RwLock<Rows>,
}

impl Catalog {
    /// Takes a row in, unless what it says is known already or out of date.
    pub fn put(&self, row: Row) {
        let mut rows = self.rows.write().unwrap_or_else(PoisonError::into_inner);
        let known = rows.starts.get(&row.id).map(|start_ms| Cursor { start_ms: *start_ms, id: row.id });
        if let Some(cursor) = known {
            if rows.by_start.get(&cursor).is_some_and(|known| !row.replaces(known)) {
                return;
            }
            rows.by_start.remove(&cursor);
        }
        rows.starts.insert(row.id, row.metadata.started_at_ms);
        rows.by_start.insert(row.cursor(), row);
    }

    /// The row of a recording.
    #[must_use]
    pub fn get(&self, id: RecordingId) -> Option<Row> {
        let rows = self.rows.read().unwrap_or_else(PoisonError::into_inner);
        let start_ms = *rows.starts.get(&id)?;
        rows.by_start.get(&Cursor { start_ms, id }).cloned()
    }

    /// Revision of the newest manifest of a recording, as far as is known.
    #[must_use]
    pub fn revision(&self, id: RecordingId) -> Option<u16> {
        let rows = self.rows.read().unwrap_or_else(PoisonError::into_inner);
        let start_ms = *rows.starts.get(&id)?;
        rows.by_start.get(&Cursor { start_ms, id })?.revision
    }

    /// Notes that more of an open recording is durable.
    pub fn grow(&self, id: RecordingId, size: u64) {
        let mut rows = self.rows.write().unwrap_or_else(PoisonError::into_inner);
        let Some(start_ms) = rows.starts.get(&id).copied() else { return };
        if let Some(row) = rows.by_start.get_mut(&Cursor { start_ms, id })
            && row.state == RowState::InProgress
        {
            row.size = row.size.max(size);
        }
    }

    /// Forgets a recording.
    pub fn remove(&self, id: RecordingId) {
        let mut rows = self.rows.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(start_ms) = rows.starts.remove(&id) {
            rows.by_start.remove(&Cursor { start_ms, id });
        }
    }

    /// Ids of the recordings that are sealed, as far as is known.
    #[must_use]
    pub fn sealed(&self) -> Vec<RecordingId> {
        let rows = self.rows.read().unwrap_or_else(PoisonError::into_inner);
        rows.by_start.values().filter(|row| row.state != RowState::InProgress).map(|row| row.id).collect()
    }

    /// Ids of the sealed recordings that had to be kept until `now` at most, and began before `before`; both in Unix
    /// milliseconds.
    #[must_use]
    pub fn expired(&self, now: u64, before: u64) -> Vec<RecordingId> {
        let rows = self.rows.read().unwrap_or_else(PoisonError::into_inner);
        let old = rows.by_start.range(..Cursor::first_of(before)).map(|(_, row)| row);
        let over = |row: &&Row| row.retain_until_ms.is_some_and(|until| until <= now);
        old.filter(|row| row.state != RowState::InProgress).filter(over).map(|row| row.id).collect()
    }

    /// Ids of the recordings that are open, as far as is known.
    #[must_use]
    pub fn open(&self) -> Vec<RecordingId> {
        let rows = self.rows.read().unwrap_or_else(PoisonError::into_inner);
        rows.by_start.values().filter(|row| row.state == RowState::InProgress).map(|row| row.id).collect()
    }

    /// The rows that match, newest first, at most `limit`, after a cursor; and whether there are more.
    #[must_use]
    pub fn page(&self, filter: &Filter, after: Option<Cursor>, limit: usize) -> (Vec<Row>, bool) {
        let rows = self.rows.read().unwrap_or_else(PoisonError::into_inner);
        let end = filter.to_ms.map(Cursor::first_of);
        let before = match (after, end) {
            (Some(after), Some(end)) => Some(after.min(end)),
            (after, end) => after.or(end),
        };
        let range = match before {
            Some(before) => rows.by_start.range(..before),
            None => rows.by_start.range(..),
        };
        let mut matching = range.rev().map(|(_, row)| row).filter(|row| filter.matches(row));
        let page: Vec<Row> = matching.by_ref().take(limit).cloned().collect();
        let more = matching.next().is_some();
        (page, more)
    }

    /// How many recordings there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.read().unwrap_or_else(PoisonError::into_inner).starts.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn row(n: u8, start_ms: u64, state: RowState) -> Row {
        let sealed = state != RowState::InProgress;
        Row {
            id: RecordingId::from_bytes([n; 16]),
            agent_id: AgentId::from_bytes([9; 16]),
            metadata: Metadata { started_at_ms: start_ms, ..Metadata::default() },
            state,
            size: 0,
            revision: sealed.then_some(0),
            payload_sha256: None,
            manifest_sha256: None,
            retain_until_ms: None,
        }
    }

    pub(crate) const COMPLETE: RowState = RowState::Sealed(RecordingState::Complete);
    const INTERRUPTED: RowState = RowState::Sealed(RecordingState::Interrupted);

    fn ids(page: &[Row]) -> Vec<u8> {
        page.iter().map(|row| row.id.as_bytes()[0]).collect()
    }

    #[test]
    fn pages_are_newest_first_and_lose_nothing() {
        let catalog = Catalog::default();
        for (n, start) in [(1, 10), (2, 30), (3, 20), (4, 20)] {
            catalog.put(row(n, start, COMPLETE));
        }
        let filter = Filter::default();
        let (first, more) = catalog.page(&filter, None, 3);
        assert_eq!((ids(&first), more), (vec![2, 4, 3], true));
        // A newer one that comes in between does not shift the next page.
        catalog.put(row(5, 40, COMPLETE));
        let (second, more) = catalog.page(&filter, first.last().map(Row::cursor), 3);
        assert_eq!((ids(&second), more), (vec![1], false));
        assert_eq!(catalog.page(&filter, None, 5).0.len(), 5);
        assert!(!catalog.page(&filter, None, 5).1);
    }

    #[test]
    fn what_is_sealed_stays_sealed() {
        let catalog = Catalog::default();
        catalog.put(row(1, 10, RowState::InProgress));
        catalog.grow(row(1, 10, COMPLETE).id, 7);
        catalog.grow(row(1, 10, COMPLETE).id, 5);
        assert_eq!(catalog.get(row(1, 10, COMPLETE).id).unwrap().size, 7);
        catalog.put(row(1, 10, COMPLETE));
        catalog.put(row(1, 10, RowState::InProgress));
        assert_eq!(catalog.get(row(1, 10, COMPLETE).id).unwrap().state, COMPLETE);
        assert!(catalog.open().is_empty());
        assert_eq!(catalog.len(), 1);
    }

    #[test]
    fn what_is_over_is_sealed_and_old_and_what_is_removed_is_gone() {
        let catalog = Catalog::default();
        let until = |row: Row, until: u64| Row { retain_until_ms: Some(until), ..row };
        catalog.put(until(row(1, 10, COMPLETE), 100));
        catalog.put(until(row(2, 20, INTERRUPTED), 101));
        catalog.put(until(row(3, 30, RowState::InProgress), 100));
        catalog.put(row(4, 40, COMPLETE));
        catalog.put(until(row(5, 50, COMPLETE), 100));
        let id = |n| row(n, 0, COMPLETE).id;
        assert_eq!(catalog.expired(100, 50), [id(1)]);
        assert_eq!(catalog.expired(101, 51), [id(1), id(2), id(5)]);
        assert_eq!(catalog.sealed(), [1, 2, 4, 5].map(id));
        catalog.remove(id(1));
        catalog.remove(id(1));
        assert_eq!((catalog.expired(100, 50), catalog.get(id(1)), catalog.len()), (vec![], None, 4));
    }

    #[test]
    fn an_interrupted_one_can_go_on() {
        let catalog = Catalog::default();
        let id = row(1, 10, COMPLETE).id;
        catalog.put(row(1, 10, INTERRUPTED));
        catalog.put(Row { revision: Some(0), ..row(1, 10, RowState::InProgress) });
        assert_eq!(catalog.get(id).unwrap().state, RowState::InProgress);
        // The old entry is found again by a scan: it undoes nothing.
        catalog.put(row(1, 10, INTERRUPTED));
        assert_eq!(catalog.get(id).unwrap().state, RowState::InProgress);
        catalog.put(Row { revision: Some(1), ..row(1, 10, COMPLETE) });
        assert_eq!(catalog.get(id).unwrap().state, COMPLETE);
    }
}
