//! What was read of a snapshot, kept for whoever reads it next: transactions that are applied together, and closures that see one
//! snapshot, read the same few rows (authorities, settings, roles, locks), each of which costs a search in every level of
//! the database.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc};

use crate::{error::StoreError, state::Visit};

/// What is kept of one snapshot, in bytes of keys and values and what it takes to keep them.
const ROOM: usize = 1 << 20;
/// Of a range that holds more, in bytes, nothing is kept.
const RANGE_ROOM: usize = 16 << 10;
/// What it takes to keep a row or a range, in bytes: its share of a map's node, and two allocations.
const EACH: usize = 96;

/// What was read of a snapshot.
pub(crate) struct Memo(RefCell<Kept>);

struct Kept {
    /// `None`: there is no such row.
    rows: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    /// Those that begin there.
    ranges: BTreeMap<Vec<u8>, Vec<Rc<Range>>>,
    room: usize,
}

/// A range that was read to its end.
struct Range {
    end: Vec<u8>,
    rows: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Kept {
    /// Whether so many bytes more may be kept, which are then taken.
    fn take(&mut self, bytes: usize) -> bool {
        let left = self.room.checked_sub(bytes);
        self.room = left.unwrap_or(self.room);
        left.is_some()
    }
}

impl Memo {
    /// Of a snapshot that nobody has read.
    pub(crate) fn new() -> Self {
        Self(RefCell::new(Kept { rows: BTreeMap::new(), ranges: BTreeMap::new(), room: ROOM }))
    }

    /// The row of a key, which `read` reads if it is not known.
    pub(crate) fn row(
        &self,
        key: &[u8],
        read: impl FnOnce() -> Result<Option<Vec<u8>>, StoreError>,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        if let Some(known) = self.0.borrow().rows.get(key) {
            return Ok(known.clone());
        }
        let row = read()?;
        let mut kept = self.0.borrow_mut();
        if kept.take(EACH + key.len() + row.as_ref().map_or(0, Vec::len)) {
            kept.rows.insert(key.to_vec(), row.clone());
        }
        Ok(row)
    }

    /// Visits `start..end`, which `read` visits if it is not known.
    pub(crate) fn range(
        &self,
        start: &[u8],
        end: &[u8],
        visit: &mut Visit<'_>,
        read: impl FnOnce(&mut Visit<'_>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        if let Some(range) = self.known(start, end) {
            for (key, value) in &range.rows {
                if !visit(key, value)? {
                    break;
                }
            }
            return Ok(());
        }
        let mut rows = Some(Vec::new());
        let mut bytes = EACH + start.len() + end.len();
        read(&mut |key, value| {
            let more = visit(key, value)?;
            bytes += EACH + key.len() + value.len();
            // What a visitor leaves out is not known.
            rows = rows.take().filter(|_| more && bytes <= RANGE_ROOM);
            if let Some(rows) = &mut rows {
                rows.push((key.to_vec(), value.to_vec()));
            }
            Ok(more)
        })?;
        if let Some(rows) = rows {
            let mut kept = self.0.borrow_mut();
            if kept.take(bytes) {
                let range = Rc::new(Range { end: end.to_vec(), rows });
                kept.ranges.entry(start.to_vec()).or_default().push(range);
            }
        }
        Ok(())
    }

    fn known(&self, start: &[u8], end: &[u8]) -> Option<Rc<Range>> {
        let kept = self.0.borrow();
        kept.ranges.get(start)?.iter().find(|range| range.end == end).map(Rc::clone)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// A database of keys of one byte each, that counts how often it is read.
    struct Base {
        values: BTreeMap<u8, Vec<u8>>,
        reads: Cell<u32>,
    }

    impl Base {
        fn of(values: impl IntoIterator<Item = (u8, Vec<u8>)>) -> Self {
            Self { values: values.into_iter().collect(), reads: Cell::new(0) }
        }

        fn get(&self, memo: &Memo, key: u8) -> Option<Vec<u8>> {
            let read = || {
                self.reads.set(self.reads.get() + 1);
                Ok(self.values.get(&key).cloned())
            };
            memo.row(&[key], read).unwrap()
        }

        /// The keys of a range, at most so many.
        fn scan(&self, memo: &Memo, range: std::ops::Range<u8>, limit: usize) -> Vec<u8> {
            let mut keys = Vec::new();
            let visit = &mut |key: &[u8], _: &[u8]| {
                keys.extend(key);
                Ok(keys.len() < limit)
            };
            let read = |visit: &mut Visit<'_>| {
                self.reads.set(self.reads.get() + 1);
                for (key, value) in self.values.range(range.clone()) {
                    if !visit(&[*key], value)? {
                        break;
                    }
                }
                Ok(())
            };
            memo.range(&[range.start], &[range.end], visit, read).unwrap();
            keys
        }
    }

    #[test]
    fn what_was_read_is_not_read_again() {
        let base = Base::of([(1, vec![1]), (2, vec![])]);
        let memo = Memo::new();
        for _ in 0..3 {
            assert_eq!(base.get(&memo, 1), Some(vec![1]));
            assert_eq!(base.get(&memo, 2), Some(vec![]));
            assert_eq!(base.get(&memo, 3), None);
            assert_eq!(base.scan(&memo, 1..9, 9), [1, 2]);
            assert!(base.scan(&memo, 5..9, 9).is_empty());
        }
        assert_eq!(base.reads.get(), 5);
    }

    #[test]
    fn a_range_is_known_as_far_as_it_was_read() {
        let base = Base::of((1..5).map(|key| (key, vec![key])));
        let memo = Memo::new();
        assert_eq!(base.scan(&memo, 1..9, 2), [1, 2]);
        assert_eq!(base.scan(&memo, 1..9, 9), [1, 2, 3, 4]);
        // Known now, and left early all the same.
        assert_eq!(base.scan(&memo, 1..9, 2), [1, 2]);
        assert_eq!(base.reads.get(), 2);
        for _ in 0..2 {
            assert_eq!(base.scan(&memo, 1..3, 9), [1, 2]);
            assert_eq!(base.scan(&memo, 1..9, 9), [1, 2, 3, 4]);
        }
        assert_eq!(base.reads.get(), 3);
    }

    #[test]
    fn no_more_is_kept_than_there_is_room_for() {
        let base = Base::of((0..100).map(|key| (key, vec![key; RANGE_ROOM])));
        let memo = Memo::new();
        for _ in 0..2 {
            for key in 0..100 {
                assert_eq!(base.get(&memo, key), Some(vec![key; RANGE_ROOM]));
            }
            assert_eq!(base.scan(&memo, 0..1, 9), [0]);
        }
        let kept: usize = memo.0.borrow().rows.values().flatten().map(Vec::len).sum();
        assert!(kept <= ROOM && kept > ROOM - 2 * RANGE_ROOM, "{kept}");
        assert_eq!(base.reads.get() as usize, 200 - kept / RANGE_ROOM + 2);
    }
}
