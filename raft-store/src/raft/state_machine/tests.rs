use std::{collections::BTreeMap, path::Path};

use openraft::LeaderId;
use proptest::prelude::*;
use rocksdb::IteratorMode;
use store_txn::{KeyRange, Read, Transaction, TxError};

use super::*;
use crate::{
    state::state_hash,
    tests::config,
    transact::{StoreTransaction, View},
};

/// One state machine on a disk of its own.
struct Machine {
    state: StateMachine,
    db: Arc<Db>,
    _folder: tempfile::TempDir,
}

fn open(folder: &Path) -> (StateMachine, Arc<Db>) {
    let db = Arc::new(Db::open(&folder.join("db")).unwrap());
    let fatal = Fatal::new(|reason| panic!("{reason}"));
    let hub = Arc::new(Hub::new(1 << 20));
    let state = StateMachine::open(Arc::clone(&db), &config(folder, 0), hub, Progress::new(), fatal).unwrap();
    (state, db)
}

impl Machine {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (state, db) = open(folder.path());
        Self { state, db, _folder: folder }
    }

    fn apply(&self, entries: &[Entry<TypeConfig>]) -> Vec<Outcomes> {
        self.state.shared.apply(entries.to_vec()).unwrap()
    }

    /// Everything that must be equal: the state, its counters, what is remembered, and what was applied.
    fn seen(&self) -> ([u8; 32], Counters, usize, Applied) {
        let snapshot = StateSnapshot::take(&self.db).unwrap();
        let current = self.state.shared.current();
        let applied = Applied { generation: 0, ..current.applied.clone() };
        assert_eq!(current.applied, *snapshot.applied());
        (state_hash(&snapshot).unwrap(), self.state.counters(), current.window.len(), applied)
    }
}

fn entry(index: u64, payload: EntryPayload<TypeConfig>) -> Entry<TypeConfig> {
    Entry { log_id: LogId { leader_id: LeaderId::new(1, 1), index }, payload }
}

fn batch(index: u64, batch: &peer::Batch) -> Entry<TypeConfig> {
    entry(index, EntryPayload::Normal(Command(batch.encode_to_vec().into())))
}

#[derive(Debug, Clone)]
struct Step {
    stamp_ms: u64,
    sweep_limit: u32,
    writes: Vec<(u8, Option<u8>, u64)>,
    append: bool,
    retry: bool,
}

fn step() -> impl Strategy<Value = Step> {
    let write = (0..8u8, proptest::option::of(any::<u8>()), prop_oneof![Just(0), 1..400u64]);
    (0..300u64, 0..3u32, proptest::collection::vec(write, 0..4), any::<bool>(), any::<bool>()).prop_map(
        |(stamp_ms, sweep_limit, writes, append, retry)| Step {
            stamp_ms,
            sweep_limit,
            writes,
            append,
            retry,
        },
    )
}

/// A log of batches with ends, sweeps, appends, retries and ids that are forgotten.
fn log_of(steps: &[Step]) -> Vec<Entry<TypeConfig>> {
    let mut log = Vec::new();
    let mut last = peer::Transaction::default();
    for (index, step) in steps.iter().enumerate() {
        let mut writes: BTreeMap<u8, peer::Write> = BTreeMap::new();
        for (key, value, expires_at_ms) in &step.writes {
            let value = value.map(|byte| vec![byte; 3].into());
            let write = peer::Write { key: vec![*key].into(), value, expires_at_ms: *expires_at_ms };
            writes.insert(*key, write);
        }
        let append = peer::Append { log: "audit".into(), record: vec![index as u8].into() };
        let fresh = peer::Transaction {
            id: vec![index as u8; 16].into(),
            not_after_ms: step.stamp_ms + 100,
            writes: writes.into_values().collect(),
            appends: if step.append { vec![append] } else { Vec::new() },
            ..peer::Transaction::default()
        };
        let mut transactions = vec![fresh.clone()];
        if step.retry {
            transactions.push(last);
        }
        last = fresh;
        let (stamp_ms, sweep_limit) = (step.stamp_ms, step.sweep_limit);
        log.push(batch(index as u64, &peer::Batch { stamp_ms, transactions, sweep_limit }));
    }
    log
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// A node that got a snapshot and the rest of the log is the same as one that applied all of it, and one that
    /// applied it in other portions, and one that was restarted in between.
    #[test]
    fn a_snapshot_and_the_tail_equal_the_log(
        steps in proptest::collection::vec(step(), 1..14),
        cut in any::<prop::sample::Index>(),
    ) {
        let log = log_of(&steps);
        let (head, tail) = log.split_at(cut.index(log.len()));
        let whole = Machine::new();
        whole.apply(&log);

        let source = Machine::new();
        for one in head {
            source.apply(std::slice::from_ref(one));
        }
        let snapshot = source.state.shared.build_snapshot().unwrap();
        let receiver = Machine::new();
        receiver.apply(&log[..head.len().min(1)]);
        receiver.state.shared.install(&snapshot.snapshot).unwrap();
        prop_assert_eq!(receiver.seen(), source.seen());
        let outcomes = receiver.apply(tail);
        prop_assert_eq!(outcomes, source.apply(tail));
        prop_assert_eq!(receiver.seen(), whole.seen());
        prop_assert_eq!(source.seen(), whole.seen());

        let Machine { state, db, _folder } = receiver;
        drop((state, db));
        let (state, db) = open(_folder.path());
        let again = Machine { state, db, _folder };
        prop_assert_eq!(again.seen(), whole.seen());
    }
}

#[test]
fn a_snapshot_is_not_published_before_the_state_is_synced() {
    let machine = Machine::new();
    let before = machine.db.syncs();
    machine.apply(&[batch(0, &peer::Batch { stamp_ms: 7, ..peer::Batch::default() })]);
    assert_eq!(machine.db.syncs(), before);
    machine.state.shared.build_snapshot().unwrap();
    assert_eq!(machine.db.syncs(), before + 1);
}

#[test]
fn snapshots_of_one_index_are_equal_byte_by_byte_and_nothing_is_left_over() {
    let log: Vec<_> = (0..20u8)
        .map(|n| {
            let write =
                peer::Write { key: vec![n].into(), value: Some(vec![n; 100].into()), expires_at_ms: 0 };
            let transaction =
                peer::Transaction { writes: vec![write], not_after_ms: 1, ..Default::default() };
            batch(n.into(), &peer::Batch { stamp_ms: 1, transactions: vec![transaction], sweep_limit: 0 })
        })
        .collect();
    let (one, other) = (Machine::new(), Machine::new());
    one.apply(&log[..10]);
    other.apply(&log[..3]);
    let first = one.state.shared.build_snapshot().unwrap();
    std::fs::copy(&first.snapshot.path, other.state.shared.snapshots.join("copy.tmp")).unwrap();
    let copy = SnapshotFile::at(other.state.shared.snapshots.join("copy.tmp"));
    other.state.shared.install(&copy).unwrap();
    // The other is in another generation now, and its rows of before are gone.
    assert_eq!(other.state.shared.current().applied.generation, 1);
    let data = other.db.sm_data().unwrap();
    for item in other.db.rocks().iterator_cf(&data, IteratorMode::Start) {
        assert_eq!(item.unwrap().0[..4], [0, 0, 0, 1]);
    }
    for machine in [&one, &other] {
        machine.apply(&log[10..]);
    }
    let files = [&one, &other].map(|machine| {
        let file = machine.state.shared.build_snapshot().unwrap().snapshot;
        let left = snapshot_file::files(&machine.state.shared.snapshots).unwrap();
        assert_eq!(left, std::slice::from_ref(&file.path));
        std::fs::read(&file.path).unwrap()
    });
    assert!(files[0] == files[1]);
}

/// What one program reads, in order, and where it writes a digest of it.
#[derive(Debug, Clone)]
struct Program {
    reads: Vec<ReadStep>,
    writes: Vec<(u8, bool)>,
}

#[derive(Debug, Clone)]
enum ReadStep {
    Row(u8),
    Range(u8, u8, usize),
}

fn program() -> impl Strategy<Value = Program> {
    let read = prop_oneof![
        (0..10u8).prop_map(ReadStep::Row),
        (0..10u8, 0..11u8, 1..5usize).prop_map(|(start, end, limit)| ReadStep::Range(start, end, limit)),
    ];
    let writes = proptest::collection::vec((0..10u8, any::<bool>()), 1..3);
    (proptest::collection::vec(read, 0..3), writes).prop_map(|(reads, writes)| Program { reads, writes })
}

/// Rows alone, for a run of programs one after the other.
type Serial = BTreeMap<u8, Vec<u8>>;

impl Program {
    fn digest(&self, number: usize, seen: &[(u8, Vec<u8>)]) -> Vec<u8> {
        use sha2::{Digest, Sha256};
        Sha256::digest(format!("{number} {seen:?}")).to_vec()
    }

    fn run_serially(&self, number: usize, rows: &mut Serial) {
        let mut seen = Vec::new();
        for read in &self.reads {
            match read {
                ReadStep::Row(key) => seen.extend(rows.get(key).map(|value| (*key, value.clone()))),
                ReadStep::Range(start, end, limit) if start < end => {
                    let found = rows.range(start..end).take(*limit);
                    seen.extend(found.map(|(key, value)| (*key, value.clone())));
                }
                ReadStep::Range(..) => {}
            }
        }
        for (key, puts) in &self.writes {
            match puts {
                true => rows.insert(*key, self.digest(number, &seen)),
                false => rows.remove(key),
            };
        }
    }

    fn run(&self, number: usize, tx: &mut StoreTransaction<'_>) -> Result<(), TxError> {
        let mut seen = Vec::new();
        for read in &self.reads {
            match read {
                ReadStep::Row(key) => seen.extend(tx.get_raw(&[*key])?.map(|row| (*key, row.value))),
                ReadStep::Range(start, end, limit) => {
                    let range = KeyRange { start: vec![*start], end: vec![*end] };
                    let found = tx.scan_raw(&range, *limit)?;
                    seen.extend(found.into_iter().map(|(key, row)| (key[0], row.value)));
                }
            }
        }
        for (key, puts) in &self.writes {
            match puts {
                true => tx.put_raw(vec![*key], self.digest(number, &seen), None),
                false => tx.delete_raw(vec![*key]),
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Programs that read rows, ranges and pages of ranges on stale views: those that commit have the effect of
    /// running one after the other, in the order of their commits; the others have none.
    #[test]
    fn programs_on_stale_views_are_serialisable(
        rounds in proptest::collection::vec(proptest::collection::vec(program(), 1..6), 1..4),
    ) {
        let machine = Machine::new();
        let mut serial = Serial::new();
        let (mut index, mut number) = (0, 0);
        for programs in rounds {
            // All of a round see the state before it.
            let mut proposals = Vec::new();
            {
                let old = StateSnapshot::take(&machine.db).unwrap();
                for program in &programs {
                    let mut tx = StoreTransaction::new(View::new(&old, 1));
                    program.run(number, &mut tx).unwrap();
                    let id = vec![number as u8; 16].into();
                    proposals.push(peer::Transaction { id, not_after_ms: 10, ..tx.into_proposal().unwrap() });
                    number += 1;
                }
            }
            let first = number - programs.len();
            let transactions = proposals;
            let entries = [batch(index, &peer::Batch { stamp_ms: 1, transactions, sweep_limit: 0 })];
            index += 1;
            let outcomes = machine.apply(&entries).remove(0);
            prop_assert_eq!(outcomes[0].kind(), peer::outcome::Kind::Committed);
            for (n, (program, outcome)) in programs.iter().zip(outcomes).enumerate() {
                if outcome.kind() == peer::outcome::Kind::Committed {
                    program.run_serially(first + n, &mut serial);
                }
            }
        }
        let state = StateSnapshot::take(&machine.db).unwrap();
        let range = KeyRange { start: vec![0], end: vec![u8::MAX] };
        let rows = View::new(&state, 1).scan_raw(&range, usize::MAX).unwrap();
        let rows: Serial = rows.into_iter().map(|(key, row)| (key[0], row.value)).collect();
        prop_assert_eq!(rows, serial);
    }
}
