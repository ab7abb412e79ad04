//! A log driven by a script, and a model of it: for tests that crash in the middle.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use openraft::{
    Entry, EntryPayload, LeaderId, LogId, RaftLogReader, Vote,
    storage::{RaftLogStorage, RaftLogStorageExt},
};

use super::LogStore;
use crate::{
    db::Db,
    failure::Point,
    fatal::Fatal,
    owner::Owner,
    raft::{Command, PeerNode, TypeConfig},
};

/// An operation on the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LogOp {
    /// Entries from an index on, of a term.
    Append { first: u64, count: u64, term: u64 },
    /// A vote for a term.
    Vote { term: u64 },
    /// Removes entries from an index on.
    Truncate { since: u64 },
    /// Removes entries up to an index.
    Purge { upto: u64 },
}

impl LogOp {
    /// Whether it is on disk when it has returned.
    pub(crate) fn is_acknowledged(&self) -> bool {
        matches!(self, Self::Append { .. } | Self::Vote { .. })
    }

    pub(crate) fn to_line(&self) -> String {
        match self {
            Self::Append { first, count, term } => format!("append {first} {count} {term}"),
            Self::Vote { term } => format!("vote {term}"),
            Self::Truncate { since } => format!("truncate {since}"),
            Self::Purge { upto } => format!("purge {upto}"),
        }
    }

    pub(crate) fn from_line(line: &str) -> Self {
        let (word, numbers) = line.split_once(' ').unwrap();
        let numbers: Vec<u64> = numbers.split(' ').map(|number| number.parse().unwrap()).collect();
        match word {
            "append" => Self::Append { first: numbers[0], count: numbers[1], term: numbers[2] },
            "vote" => Self::Vote { term: numbers[0] },
            "truncate" => Self::Truncate { since: numbers[0] },
            "purge" => Self::Purge { upto: numbers[0] },
            other => panic!("{other}"),
        }
    }
}

/// What the log should hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct LogModel {
    term: u64,
    purged: Option<u64>,
    /// Terms of entries, by index.
    entries: BTreeMap<u64, u64>,
}

impl LogModel {
    pub(crate) fn run(&mut self, op: &LogOp) {
        match op {
            LogOp::Append { first, count, term } => {
                self.entries.extend((*first..first + count).map(|index| (index, *term)));
            }
            LogOp::Vote { term } => self.term = *term,
            LogOp::Truncate { since } => drop(self.entries.split_off(since)),
            LogOp::Purge { upto } => {
                self.entries = self.entries.split_off(&(upto + 1));
                self.purged = Some(*upto);
            }
        }
    }

    fn next(&self) -> u64 {
        let last = self.entries.last_key_value().map(|(index, _)| *index).max(self.purged);
        last.map_or(0, |last| last + 1)
    }

    /// Reads what a closed log holds.
    pub(crate) async fn read(database: &Path) -> Self {
        let db = Arc::new(Db::open(database).unwrap());
        Self::of(&mut LogStore::open(db, Fatal::new(|reason| panic!("{reason}"))).unwrap()).await
    }

    async fn of(log: &mut LogStore) -> Self {
        let state = log.get_log_state().await.unwrap();
        let entries = log.try_get_log_entries(..).await.unwrap();
        for entry in &entries {
            assert!(matches!(&entry.payload, EntryPayload::Normal(Command(bytes)) if bytes.len() == SIZE));
        }
        let model = Self {
            term: log.read_vote().await.unwrap().map_or(0, |vote| vote.leader_id.term),
            purged: state.last_purged_log_id.map(|id| id.index),
            entries: entries.iter().map(|e| (e.log_id.index, e.log_id.leader_id.term)).collect(),
        };
        let last = model.next().checked_sub(1);
        assert_eq!(state.last_log_id.map(|id| id.index), last);
        model
    }
}

/// Bytes of an entry.
const SIZE: usize = 300;

/// A log, and the model of what was asked of it.
pub(crate) struct LogScript {
    db: Arc<Db>,
    log: LogStore,
    model: LogModel,
}

impl LogScript {
    pub(crate) async fn open(database: &Path, fatal: Fatal) -> Self {
        let db = Arc::new(Db::open(database).unwrap());
        let mut log = LogStore::open(Arc::clone(&db), fatal).unwrap();
        let model = LogModel::of(&mut log).await;
        Self { db, log, model }
    }

    /// The next operation; `below` answers a number below its argument.
    pub(crate) fn choose(&self, mut below: impl FnMut(u64) -> u64) -> LogOp {
        let model = &self.model;
        let first = model.purged.map_or(0, |purged| purged + 1);
        let next = model.next();
        match below(8) {
            0 => LogOp::Vote { term: model.term + 1 },
            1 if next > first => LogOp::Truncate { since: next - 1 - below((next - first).min(6)) },
            2 if next > first + 4 => LogOp::Purge { upto: first + below((next - first) / 2) },
            _ => LogOp::Append { first: next, count: 1 + below(4), term: model.term },
        }
    }

    pub(crate) async fn run(&mut self, op: &LogOp) {
        let id = |index, term| LogId { leader_id: LeaderId::new(term, 1), index };
        match op {
            LogOp::Append { first, count, term } => {
                let entry = |index| -> Entry<TypeConfig> {
                    let payload = EntryPayload::Normal(Command(vec![index as u8; SIZE].into()));
                    Entry { log_id: id(index, *term), payload }
                };
                self.log.blocking_append((*first..first + count).map(entry)).await.unwrap();
                self.log.flushed().reached(first + count - 1).await.unwrap();
            }
            LogOp::Vote { term } => self.log.save_vote(&Vote::new(*term, 1)).await.unwrap(),
            LogOp::Truncate { since } => {
                self.log.truncate(id(*since, self.model.entries[since])).await.unwrap();
            }
            LogOp::Purge { upto } => self.log.purge(id(*upto, self.model.entries[upto])).await.unwrap(),
        }
        self.model.run(op);
    }
}

#[tokio::test]
async fn nothing_is_acknowledged_before_its_sync() {
    let folder = tempfile::tempdir().unwrap();
    let mut script = LogScript::open(folder.path(), Fatal::new(|reason| panic!("{reason}"))).await;
    let ops = [
        LogOp::Vote { term: 1 },
        LogOp::Append { first: 0, count: 3, term: 1 },
        LogOp::Append { first: 3, count: 1, term: 1 },
        LogOp::Vote { term: 2 },
    ];
    for op in ops {
        let before = script.db.syncs();
        script.run(&op).await;
        assert!(script.db.syncs() > before, "{op:?}");
    }
}

fn normal(index: u64) -> Entry<TypeConfig> {
    let log_id = LogId { leader_id: LeaderId::new(1, 1), index };
    Entry { log_id, payload: EntryPayload::Normal(Command(vec![7; SIZE].into())) }
}

/// The disk stands still: entries are taken and can be read, and nobody is told that they are on disk.
#[tokio::test]
async fn entries_are_taken_before_they_are_on_disk() {
    let folder = tempfile::tempdir().unwrap();
    let mut script = LogScript::open(folder.path(), Fatal::new(|reason| panic!("{reason}"))).await;
    let scenario = fail::FailScenario::setup();
    fail::cfg(Point::LogBeforeWrite.name(), "pause").unwrap();
    script.log.blocking_append([normal(0), normal(1)]).await.unwrap();
    assert_eq!(script.log.try_get_log_entries(..).await.unwrap().len(), 2);
    let flushed = script.log.flushed();
    assert_eq!(flushed.last(), None);
    // Nor is a membership taken before.
    let membership = openraft::Membership::new(
        vec![[1].into()],
        std::collections::BTreeMap::from([(1, PeerNode::default())]),
    );
    let log_id = LogId { leader_id: LeaderId::new(1, 1), index: 2 };
    let entry = Entry { log_id, payload: EntryPayload::Membership(membership) };
    let mut log = script.log.clone();
    let appended = tokio::spawn(async move { log.blocking_append([entry]).await });
    // It was truncated before it came to the disk: what is left counts, and the rest never does.
    while script.log.try_get_log_entries(..).await.unwrap().len() < 3 {
        tokio::task::yield_now().await;
    }
    assert!(!appended.is_finished() && flushed.last().is_none());
    script.log.truncate(normal(1).log_id).await.unwrap();
    fail::cfg(Point::LogBeforeWrite.name(), "off").unwrap();
    flushed.reached(0).await.unwrap();
    appended.await.unwrap().unwrap();
    assert_eq!(flushed.last(), Some(normal(0).log_id));
    scenario.teardown();
}

/// A leader that starts again has not won its term any more; the vote of another node stays as it is.
#[tokio::test]
async fn a_leader_does_not_go_on_in_its_term() {
    let folder = tempfile::tempdir().unwrap();
    let fatal = || Fatal::new(|reason| panic!("{reason}"));
    let db = Arc::new(Db::open(folder.path()).unwrap());
    Owner { cluster_id: "c".into(), node_id: 1 }.claim(&db).unwrap();
    let mut log = LogStore::open(Arc::clone(&db), fatal()).unwrap();
    for (leader, restored) in [(1, Vote::new(3, 1)), (2, Vote::new_committed(3, 2))] {
        log.save_vote(&Vote::new_committed(3, leader)).await.unwrap();
        let mut again = LogStore::open(Arc::clone(&db), fatal()).unwrap();
        assert_eq!(again.read_vote().await.unwrap(), Some(restored));
    }
}
