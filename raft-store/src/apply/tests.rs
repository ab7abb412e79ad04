use proptest::prelude::*;

use super::*;

/// A state in memory.
#[derive(Default, Clone, Debug, PartialEq)]
struct Memory {
    rows: BTreeMap<Vec<u8>, Vec<u8>>,
    counters: Counters,
    window: IdWindow,
    log_index: u64,
}

impl PartialEq for IdWindow {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len()
    }
}

impl StateView for BTreeMap<Vec<u8>, Vec<u8>> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(BTreeMap::get(self, key).cloned())
    }

    fn scan(&self, start: &[u8], end: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        for (key, value) in self.range(start.to_vec()..end.to_vec()) {
            if !visit(key, value)? {
                break;
            }
        }
        Ok(())
    }
}

impl Memory {
    fn apply(&mut self, batch: &peer::Batch) -> Effects {
        self.apply_and_tell(batch).0
    }

    /// Keys that a batch writes or deletes.
    fn written(&mut self, batch: &peer::Batch) -> Vec<Vec<u8>> {
        self.apply_and_tell(batch).1
    }

    fn apply_and_tell(&mut self, batch: &peer::Batch) -> (Effects, Vec<Vec<u8>>) {
        self.log_index += 1;
        let base = self.rows.clone();
        let mut overlay = Overlay::new(&base);
        let effects =
            apply_batch(&mut overlay, &mut self.counters, &mut self.window, self.log_index, batch).unwrap();
        let writes = overlay.into_writes();
        let written = writes.keys().cloned().collect();
        for (key, write) in writes {
            match write {
                Some(value) => self.rows.insert(key, value),
                None => self.rows.remove(&key),
            };
        }
        (effects, written)
    }

    fn one(&mut self, stamp_ms: u64, transaction: peer::Transaction) -> (Kind, u64) {
        let effects = self.apply(&peer::Batch { stamp_ms, transactions: vec![transaction], sweep_limit: 0 });
        let outcome = &effects.outcomes[0];
        (outcome.kind(), outcome.revision)
    }

    fn row(&self, key: &[u8]) -> Option<(u64, Vec<u8>)> {
        let bytes = self.rows.get(&state_key(Space::Rows, key))?;
        let row = StoredRow::decode(bytes).unwrap();
        Some((row.revision, row.value.to_vec()))
    }

    fn spaces(&self, space: Space) -> usize {
        self.rows.keys().filter(|key| key[0] == space as u8).count()
    }
}

fn txn(id: u8) -> peer::Transaction {
    peer::Transaction { id: vec![id; 16].into(), not_after_ms: 1_000, ..Default::default() }
}

fn put(mut txn: peer::Transaction, key: &[u8], value: &[u8]) -> peer::Transaction {
    txn.writes.push(peer::Write {
        key: Bytes::copy_from_slice(key),
        value: Some(Bytes::copy_from_slice(value)),
        expires_at_ms: 0,
    });
    txn
}

fn read(mut txn: peer::Transaction, key: &[u8], revision: u64) -> peer::Transaction {
    txn.reads.push(peer::ReadCheck { key: Bytes::copy_from_slice(key), revision });
    txn
}

fn read_range(mut txn: peer::Transaction, state: &Memory, start: &[u8], end: &[u8]) -> peer::Transaction {
    let (count, newest) = range_digest(&state.rows, start, end).unwrap();
    let (start, end) = (Bytes::copy_from_slice(start), Bytes::copy_from_slice(end));
    txn.ranges.push(peer::RangeCheck { start, end, count, newest });
    txn
}

#[test]
fn a_transaction_is_applied_wholly_or_not_at_all() {
    let mut state = Memory::default();
    assert_eq!(state.one(1, put(read(txn(1), b"a", 0), b"a", b"1")), (Kind::Committed, 1));
    let stale = put(put(read(txn(2), b"a", 0), b"a", b"2"), b"b", b"2");
    assert_eq!(state.one(1, stale), (Kind::Conflict, 0));
    assert_eq!((state.row(b"a"), state.row(b"b")), (Some((1, b"1".to_vec())), None));
    assert_eq!(state.one(1, put(read(txn(3), b"a", 1), b"b", b"3")), (Kind::Committed, 2));
}

#[test]
fn a_retry_is_applied_once_and_answered_alike() {
    let mut state = Memory::default();
    let first = put(read(txn(1), b"a", 0), b"a", b"1");
    assert_eq!(state.one(1, first.clone()), (Kind::Committed, 1));
    assert_eq!(state.one(1, put(txn(2), b"a", b"2")), (Kind::Committed, 2));
    assert_eq!(state.one(1, first.clone()), (Kind::Committed, 1));
    assert_eq!(state.row(b"a"), Some((2, b"2".to_vec())));
    // Twice in one batch as well.
    let batch = peer::Batch {
        stamp_ms: 1,
        transactions: vec![put(txn(9), b"z", b""), put(txn(9), b"z", b"")],
        sweep_limit: 0,
    };
    let revisions: Vec<_> = state.apply(&batch).outcomes.iter().map(|o| o.revision).collect();
    assert_eq!(revisions, [3, 3]);
    // Once it is too late to be remembered, it is refused.
    assert_eq!(state.one(1_001, first), (Kind::Expired, 0));
    assert_eq!(state.spaces(Space::DecidedIds), 0);
}

#[test]
fn a_copy_of_what_was_refused_is_refused_whatever_the_rows_are_by_then() {
    let mut state = Memory::default();
    let refused = put(put(read(txn(1), b"lock", 0), b"lock", b"1"), b"n", b"1");
    assert_eq!(state.one(1, put(txn(2), b"lock", b"2")), (Kind::Committed, 1));
    assert_eq!(state.one(1, refused.clone()), (Kind::Conflict, 0));
    // The row is gone again: as it was when the transaction read it.
    let mut delete = txn(3);
    delete.writes.push(peer::Write { key: Bytes::from_static(b"lock"), value: None, expires_at_ms: 0 });
    assert_eq!(state.one(1, delete), (Kind::Committed, 2));
    assert_eq!(state.one(2, refused), (Kind::Conflict, 0));
    assert_eq!(state.row(b"n"), None);
    // What read the row anew is another transaction.
    assert_eq!(state.one(2, put(read(txn(4), b"lock", 0), b"n", b"1")), (Kind::Committed, 3));
}

#[test]
fn a_sender_whose_clock_is_far_ahead_is_refused() {
    let mut state = Memory::default();
    let mut far = put(txn(1), b"a", b"");
    far.not_after_ms = 5 + MAX_WINDOW_MS + 1;
    assert_eq!(state.one(5, far), (Kind::Expired, 0));
}

#[test]
fn a_range_that_was_read_admits_no_phantom() {
    let mut state = Memory::default();
    for (id, key) in [(1, b"p1"), (2, b"p3")] {
        state.one(1, put(txn(id), key, b""));
    }
    let reader = |id, state: &Memory| put(read_range(txn(id), state, b"p", b"q"), b"out", b"");
    let before_insert = reader(10, &state);
    state.one(1, put(txn(3), b"p2", b""));
    assert_eq!(state.one(1, before_insert).0, Kind::Conflict);

    let before_delete = reader(11, &state);
    let mut delete = txn(4);
    delete.writes.push(peer::Write { key: Bytes::from_static(b"p2"), value: None, expires_at_ms: 0 });
    state.one(1, delete.clone());
    assert_eq!(state.one(1, before_delete).0, Kind::Conflict);

    // One row out, another in: the number is the same.
    let before_swap = reader(12, &state);
    let mut swap = put(txn(5), b"p9", b"");
    swap.writes.push(peer::Write { key: Bytes::from_static(b"p1"), value: None, expires_at_ms: 0 });
    state.one(1, swap);
    assert_eq!(state.one(1, before_swap).0, Kind::Conflict);

    let beside = reader(13, &state);
    state.one(1, put(txn(6), b"q", b""));
    assert_eq!(state.one(1, beside).0, Kind::Committed);
}

#[test]
fn appended_records_are_numbered_and_chained() {
    let mut state = Memory::default();
    for id in 1..=3 {
        let mut append = txn(id);
        append.appends.push(peer::Append { log: "audit".into(), record: vec![id].into() });
        assert_eq!(state.one(7, append).0, Kind::Committed);
    }
    let mut previous = [0; 32];
    for index in 1..=3 {
        let bytes = &state.rows[&state_key(Space::Logs, &log_record_key("audit", index))];
        let record = crate::state::decode_log_record(index, bytes).unwrap();
        assert_eq!((record.time, record.record.as_slice()), (7, &[index as u8][..]));
        assert_eq!(record.hash, chain_hash(&previous, index, 7, &record.record));
        previous = record.hash;
    }
    let head = &state.rows[&state_key(Space::LogHeads, b"audit")];
    assert_eq!(*head, [&[0, 0, 0, 0, 0, 0, 0, 3][..], &previous].concat());
    assert_eq!(decode_head(head).unwrap(), LogBounds { last: 3, head: previous, ..LogBounds::default() });
    assert!(decode_head(&head[..39]).is_err());
}

#[test]
fn the_oldest_records_are_forgotten_and_the_rest_stays_chained_to_them() {
    let mut state = Memory::default();
    let mut fill = txn(1);
    let append = |n: u8| peer::Append { log: "audit".into(), record: vec![n].into() };
    fill.appends = (1..=3).map(append).collect();
    state.one(7, fill);
    let hash = |state: &Memory, index| {
        let bytes = &state.rows[&state_key(Space::Logs, &log_record_key("audit", index))];
        decode_log_record(index, bytes).unwrap().hash
    };
    let (second, third) = (hash(&state, 2), hash(&state, 3));
    let trim = |id, before| {
        let mut trim = txn(id);
        trim.trims.push(peer::Trim { log: "audit".into(), before });
        trim
    };
    let bounds = |state: &Memory| decode_head(&state.rows[&state_key(Space::LogHeads, b"audit")]).unwrap();
    for before in [0, 1] {
        state.one(7, trim(10 + before as u8, before));
        assert_eq!(bounds(&state).first, 1);
    }
    state.one(7, trim(2, 3));
    assert_eq!(bounds(&state), LogBounds { first: 3, last: 3, anchor: second, head: third });
    let is_kept =
        |index: &u64| state.rows.contains_key(&state_key(Space::Logs, &log_record_key("audit", *index)));
    assert_eq!((1..=3).filter(is_kept).collect::<Vec<_>>(), [3]);
    let golden = [&[0, 0, 0, 0, 0, 0, 0, 3][..], &third, &[0, 0, 0, 0, 0, 0, 0, 3], &second].concat();
    assert_eq!(state.rows[&state_key(Space::LogHeads, b"audit")], golden);

    // All of it; what comes after goes on with the chain.
    state.one(7, trim(3, u64::MAX));
    assert_eq!(bounds(&state), LogBounds { first: 4, last: 3, anchor: third, head: third });
    let mut next = txn(4);
    next.appends.push(append(9));
    state.one(8, next);
    assert_eq!(hash(&state, 4), chain_hash(&third, 4, 8, &[9]));
    // A log that there is not.
    let mut none = txn(5);
    none.trims.push(peer::Trim { log: "none".into(), before: 9 });
    assert_eq!(state.one(8, none).0, Kind::Committed);
}

#[test]
fn the_sweep_takes_what_is_over_and_nothing_else() {
    let mut state = Memory::default();
    for (id, key, expires_at_ms) in [(1, b"a", 10), (2, b"b", 20), (3, b"c", 30), (4, b"d", 0)] {
        let mut write = put(txn(id), key, b"");
        write.writes[0].expires_at_ms = expires_at_ms;
        state.one(1, write);
    }
    // A later write without an end takes the row out of the index.
    state.one(1, put(txn(5), b"b", b"stays"));
    let effects = state.apply(&peer::Batch { stamp_ms: 30, transactions: vec![], sweep_limit: 1 });
    assert_eq!(
        (effects.commits[0].changes.len(), state.row(b"a"), state.row(b"c").is_some()),
        (1, None, true)
    );
    state.apply(&peer::Batch { stamp_ms: 30, transactions: vec![], sweep_limit: 10 });
    assert_eq!((state.row(b"c"), state.row(b"b").is_some(), state.row(b"d").is_some()), (None, true, true));
    assert_eq!(state.spaces(Space::Expiry), 0);
    assert!(
        state.apply(&peer::Batch { stamp_ms: 40, transactions: vec![], sweep_limit: 10 }).commits.is_empty()
    );
}

#[test]
fn a_row_that_goes_on_to_end_when_it_did_is_one_write() {
    let mut state = Memory::default();
    let ending = |id, expires_at_ms| {
        let mut write = put(txn(id), b"a", &[id]);
        write.writes[0].expires_at_ms = expires_at_ms;
        peer::Batch { stamp_ms: 1, transactions: vec![write], sweep_limit: 0 }
    };
    let written = |state: &mut Memory, batch: &peer::Batch| {
        let spaces = [Space::Rows as u8, Space::Expiry as u8];
        let written = state.written(batch);
        spaces.map(|space| written.iter().filter(|key| key[0] == space).count())
    };
    assert_eq!(written(&mut state, &ending(1, 10)), [1, 1]);
    assert_eq!(written(&mut state, &ending(2, 10)), [1, 0]);
    assert_eq!(written(&mut state, &ending(3, 20)), [1, 2]);
    assert_eq!(state.row(b"a"), Some((3, vec![3])));
}

#[test]
fn time_never_goes_back() {
    let mut state = Memory::default();
    state.apply(&peer::Batch { stamp_ms: 50, ..Default::default() });
    state.apply(&peer::Batch { stamp_ms: 40, ..Default::default() });
    assert_eq!(state.counters.stamp_ms, 50);
}

/// A transaction of the generator: reads some keys as of the start, writes others.
#[derive(Debug, Clone)]
struct Plan {
    reads: Vec<u8>,
    range: Option<(u8, u8)>,
    writes: Vec<(u8, Option<u8>)>,
}

fn plan() -> impl Strategy<Value = Plan> {
    (
        proptest::collection::vec(0..6u8, 0..3),
        proptest::option::of((0..6u8, 0..6u8)),
        proptest::collection::btree_map(0..6u8, proptest::option::of(any::<u8>()), 0..3),
    )
        .prop_map(|(reads, range, writes)| Plan { reads, range, writes: writes.into_iter().collect() })
}

impl Plan {
    fn build(&self, id: u8, seen: &Memory) -> peer::Transaction {
        let mut out = txn(id);
        for key in &self.reads {
            out = read(out, &[*key], seen.row(&[*key]).map_or(0, |row| row.0));
        }
        if let Some((start, end)) = self.range {
            out = read_range(out, seen, &[start], &[end]);
        }
        for (key, value) in &self.writes {
            let value = value.map(|byte| Bytes::from(vec![byte]));
            out.writes.push(peer::Write { key: vec![*key].into(), value, expires_at_ms: 0 });
        }
        out
    }

    /// What it read, as bytes, so that two reads can be compared.
    fn observes(&self, state: &Memory) -> Vec<Option<(u64, Vec<u8>)>> {
        let ranged = self.range.map_or(0..0, |(start, end)| start..end);
        self.reads.iter().copied().chain(ranged).map(|key| state.row(&[key])).collect()
    }
}

proptest! {
    /// Transactions that all read the same old state: each that commits would have read the same at its turn, so
    /// the history equals one in which they ran one after the other.
    #[test]
    fn what_commits_is_serialisable(setup in proptest::collection::vec(plan(), 0..4), plans in proptest::collection::vec(plan(), 1..8)) {
        let mut state = Memory::default();
        for (i, plan) in setup.iter().enumerate() {
            let txn = plan.build(i as u8, &state);
            state.one(1, txn);
        }
        let old = state.clone();
        for (i, plan) in plans.iter().enumerate() {
            let unchanged = plan.observes(&old) == plan.observes(&state);
            let (kind, _) = state.one(1, plan.build(100 + i as u8, &old));
            prop_assert_eq!(kind == Kind::Committed, unchanged);
        }
    }

    /// Every row that ends has its place in the index, and nothing else has.
    #[test]
    fn the_index_of_ends_is_that_of_the_rows(
        writes in proptest::collection::vec((0..3u8, any::<bool>(), 0..4u64), 1..12),
        together in any::<bool>(),
    ) {
        let write = |(id, (key, stays, expires_at_ms)): (usize, &(u8, bool, u64))| {
            let mut out = put(txn(id as u8), &[*key], b"x");
            out.writes[0].value = out.writes[0].value.take().filter(|_| *stays);
            out.writes[0].expires_at_ms = expires_at_ms * 100;
            out
        };
        let transactions: Vec<_> = writes.iter().enumerate().map(write).collect();
        let mut state = Memory::default();
        for transactions in transactions.chunks(if together { transactions.len() } else { 1 }) {
            state.apply(&peer::Batch { stamp_ms: 1, transactions: transactions.to_vec(), sweep_limit: 0 });
            let in_space = |space: Space| state.rows.iter().filter(move |(key, _)| key[0] == space as u8);
            let ends = in_space(Space::Rows).map(|(key, row)| (key, StoredRow::decode(row).unwrap().expires_at_ms));
            let mut wanted: Vec<_> =
                ends.filter(|(_, end)| *end != 0).map(|(key, end)| expiry_key(end, &key[1..])).collect();
            wanted.sort();
            let found: Vec<_> = in_space(Space::Expiry).map(|(key, _)| key.clone()).collect();
            prop_assert_eq!(found, wanted);
        }
    }

    /// One batch of many equals many batches of one.
    #[test]
    fn batching_changes_nothing(plans in proptest::collection::vec(plan(), 1..8)) {
        let empty = Memory::default();
        let transactions: Vec<_> = plans.iter().enumerate().map(|(i, plan)| plan.build(i as u8, &empty)).collect();
        let mut together = Memory::default();
        let outcomes = together.apply(&peer::Batch { stamp_ms: 1, transactions: transactions.clone(), sweep_limit: 0 }).outcomes;
        let mut apart = Memory::default();
        for (transaction, outcome) in transactions.into_iter().zip(&outcomes) {
            prop_assert_eq!(apart.one(1, transaction), (outcome.kind(), outcome.revision));
        }
        let rows = |state: &Memory| {
            let mut rows = state.rows.clone();
            rows.retain(|key, _| key[0] == Space::Rows as u8);
            rows
        };
        prop_assert_eq!(rows(&together), rows(&apart));
    }
}
