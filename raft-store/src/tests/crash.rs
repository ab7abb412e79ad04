//! The process dies at every place around a write, sync, rename and callback; then the power goes, which takes what
//! was not synced. What was acknowledged must be there, and the directory must be sound.
//!
//! `CRASH_SEED` and `CRASH_ROUNDS` repeat or lengthen the random part; the seed is printed.

use std::collections::BTreeMap;

use super::{
    process::{Child, Ended, Schedule, Seeded, cut_power, run, say, say_wal},
    *,
};
use crate::{check, export, failure::Point, raft::SnapshotFile};

/// Writers of the child.
const WRITERS: u64 = 4;
/// Writes of each.
const WRITES: u64 = 60;

/// Points that a running store of one node comes past.
const STORE_POINTS: &[Point] = &[
    Point::ClaimBeforeWrite,
    Point::ClaimAfterWrite,
    Point::LogStageAppend,
    Point::LogStageVote,
    Point::LogStagePurge,
    Point::LogBeforeWrite,
    Point::LogAfterWrite,
    Point::LogAfterCallbacks,
    Point::ApplyBeforeWrite,
    Point::ApplyAfterWrite,
    Point::SnapshotCreated,
    Point::SnapshotWritten,
    Point::SnapshotSynced,
    Point::SnapshotStateSynced,
    Point::SnapshotOlderDeleted,
    Point::PublishBeforeRename,
    Point::PublishAfterRename,
    Point::PublishAfterSync,
];

/// Settings under which elections, snapshots and purges come often.
pub(super) fn busy_config(folder: &Path) -> StoreConfig {
    StoreConfig {
        timing: Timing {
            heartbeat: Duration::from_millis(30),
            election_min: Duration::from_millis(60),
            election_max: Duration::from_millis(120),
            ..Timing::default()
        },
        limits: Limits { snapshot_every: 20, keep_entries: 8, batch_transactions: 2, ..Limits::default() },
        ..config(folder, 0)
    }
}

/// Ends the process as [`Fatal::abort`] does, and says why.
pub(super) fn fatal() -> Fatal {
    Fatal::new(|reason| {
        eprintln!("fatal: {reason}");
        std::process::abort();
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a part of other tests, in a process of its own"]
async fn child_store() {
    let Some(child) = Child::start() else { return };
    let folder = child.folder.clone();
    let identity = Authority::new().identity(1);
    let store = Store::open(busy_config(&folder), identity, fatal()).await.unwrap();
    store.initialize().await.unwrap();
    let term = store.status().term;
    say_wal(&folder);
    say(&format!("term {term}"));
    let mut tasks = Vec::new();
    for writer in 0..WRITERS {
        let (store, folder) = (store.clone(), folder.clone());
        let key = format!("w{writer}");
        tasks.push(tokio::spawn(async move {
            let first = get(&store, &key).await.map_or(0, |value| value.parse::<u64>().unwrap());
            say(&format!("have {writer} {first}"));
            for n in first + 1..=first + WRITES {
                put(&store, &key, &n.to_string()).await.unwrap();
                say_wal(&folder);
                say(&format!("ack {writer} {n}"));
            }
        }));
    }
    for task in join_all(tasks).await {
        task.unwrap();
    }
    store.shutdown().await;
    say("done 0");
}

/// The last value of each writer that was acknowledged.
fn acknowledged(ended: &Ended) -> BTreeMap<u64, u64> {
    let mut last = BTreeMap::new();
    for line in ended.all("have").into_iter().chain(ended.all("ack")) {
        let seen = last.entry(line[0]).or_insert(0);
        *seen = line[1].max(*seen);
    }
    last
}

/// The directory is sound, and has what was acknowledged and at most one write more of each writer.
pub(super) fn verify_store(folder: &Path, expected: &BTreeMap<u64, u64>, term: u64) {
    if !folder.join("db/CURRENT").exists() {
        assert!(expected.values().all(|value| *value == 0), "the database is gone");
        return;
    }
    let report = check(folder).unwrap();
    // It may have died before it was anybody's.
    let unclaimed =
        expected.values().all(|value| *value == 0) && report.problems == ["the directory belongs to no node"];
    assert!(report.is_sound() || unclaimed, "{report}");
    assert!(report.term >= term, "the vote of term {term} is lost: {report}");
    if unclaimed {
        return;
    }
    let out = folder.join("exported");
    export(folder, &out).unwrap();
    let mut rows = BTreeMap::new();
    let visit = |key: &[u8], value: &[u8]| {
        if let Some(writer) = key.strip_prefix(b"\x01w") {
            let number = |bytes: &[u8]| std::str::from_utf8(bytes).unwrap().parse::<u64>().unwrap();
            rows.insert(number(writer), number(&value[16..]));
        }
        Ok(())
    };
    SnapshotFile::at(out.clone()).read(visit).unwrap();
    std::fs::remove_file(out).unwrap();
    for (writer, value) in expected {
        let found = rows.get(writer).copied().unwrap_or_default();
        assert!(
            found == *value || found == value + 1,
            "writer {writer}: {found}, and {value} was acknowledged"
        );
    }
}

/// Lets a process die in a folder, cuts the power, and verifies. Answers whether it died.
fn crash_store(folder: &Path, seed: u64, schedule: &Schedule, expected: &mut BTreeMap<u64, u64>) -> bool {
    let ended = run("tests::crash::child_store", folder, seed, schedule);
    assert!(ended.aborted || ended.succeeded, "{schedule:?}: {}", ended.errors);
    for line in ended.all("have") {
        let before = expected.get(&line[0]).copied().unwrap_or_default();
        assert!(line[1] == before || line[1] == before + 1, "{schedule:?}: it began with {line:?}");
    }
    expected.extend(acknowledged(&ended));
    if ended.aborted {
        cut_power(&folder.join("db"), ended.last("wal").as_deref(), &mut Seeded(seed));
    }
    verify_store(folder, expected, ended.last("term").map_or(0, |term| term[0]));
    // What is there now is what the next one begins with.
    ended.aborted
}

#[test]
fn the_store_survives_a_crash_at_every_point() {
    for (n, point) in STORE_POINTS.iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        let mut expected = BTreeMap::new();
        let first_only = matches!(point, Point::ClaimBeforeWrite | Point::ClaimAfterWrite);
        let hit = if first_only { 0 } else { 1 };
        let died = crash_store(folder.path(), n as u64, &Schedule::Abort(*point, hit), &mut expected);
        assert!(died, "{point:?} was not reached");
        // It goes on, and to its end.
        let died = crash_store(folder.path(), n as u64, &Schedule::Undisturbed, &mut expected);
        assert!(!died && expected.values().all(|value| *value >= WRITES), "{point:?}: {expected:?}");
    }
}

/// Seed and number of rounds of a random part.
fn random_rounds(default: u64) -> (u64, u64) {
    let from = |name| std::env::var(name).ok().map(|value| value.parse::<u64>().unwrap());
    let seed = from("CRASH_SEED").unwrap_or_else(rand::random);
    let rounds = from("CRASH_ROUNDS").unwrap_or(default);
    println!("CRASH_SEED={seed} CRASH_ROUNDS={rounds}");
    (seed, rounds)
}

#[test]
fn the_store_survives_random_crashes() {
    let (seed, rounds) = random_rounds(24);
    let mut random = Seeded(seed);
    let folder = tempfile::tempdir().unwrap();
    let (mut expected, mut deaths) = (BTreeMap::new(), 0);
    for _ in 0..rounds {
        let point = STORE_POINTS[random.below(STORE_POINTS.len() as u64) as usize];
        // A few snapshots are taken for many writes.
        let often = point.name().starts_with("Log") || point.name().starts_with("Apply");
        let schedule = Schedule::Abort(point, random.below(if often { 40 } else { 4 }));
        deaths += u64::from(crash_store(folder.path(), random.next(), &schedule, &mut expected));
    }
    println!("{deaths} deaths in {rounds} rounds");
    assert!(deaths > 0 || rounds == 0);
}

/// A failed write, sync or rename ends the process with a reason; nothing that was acknowledged is lost.
#[test]
fn a_failing_disk_ends_the_process() {
    let points = [
        (Point::LogStageVote, "writing the log failed"),
        (Point::LogBeforeWrite, "writing the log failed"),
        (Point::LogAfterWrite, "writing the log failed"),
        (Point::ApplyBeforeWrite, "applying the log failed"),
        (Point::ApplyAfterWrite, "applying the log failed"),
        (Point::SnapshotCreated, "taking a snapshot failed"),
        (Point::SnapshotSynced, "taking a snapshot failed"),
        (Point::PublishAfterRename, "taking a snapshot failed"),
    ];
    for (n, (point, reason)) in points.into_iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        let mut expected = BTreeMap::new();
        let ended = run("tests::crash::child_store", folder.path(), 0, &Schedule::Fail(point, 1));
        assert!(ended.aborted, "{point:?}: {}", ended.errors);
        let message = format!("fatal: {reason}: at {}: injected failure", point.name());
        assert!(ended.errors.contains(&message), "{message}: {}", ended.errors);
        expected.extend(acknowledged(&ended));
        cut_power(&folder.path().join("db"), ended.last("wal").as_deref(), &mut Seeded(n as u64));
        verify_store(folder.path(), &expected, ended.last("term").map_or(0, |term| term[0]));
    }
}

#[test]
fn every_point_is_in_a_crash_test() {
    let tested: std::collections::BTreeSet<Point> =
        STORE_POINTS.iter().chain(super::crash_parts::POINTS).copied().collect();
    let all: std::collections::BTreeSet<Point> = Point::ALL.iter().copied().collect();
    assert_eq!(tested, all);
}
