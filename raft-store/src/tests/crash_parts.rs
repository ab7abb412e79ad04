//! Crashes inside the log, the installation of a snapshot, its transfer, and a restore: what a store of one node does
//! not come past by itself.

use mezite_proto::peer;

use super::{
    process::{Child, Schedule, Seeded, cut_power, run, say, say_wal},
    *,
};
use crate::{
    check,
    db::{Db, Space, state_key},
    failure::Point,
    raft::{
        SnapshotFile, StateMachine,
        log_store::scripted::{LogModel, LogOp, LogScript},
        receive::Inbox,
        snapshot_file::{self, SnapshotWriter},
    },
    restore,
    state::{Applied, StateSnapshot, StoredRow, state_hash},
    status::Progress,
    watch::Hub,
};

/// Points that the tests here come past.
pub(super) const POINTS: &[Point] = &[
    Point::LogStageTruncate,
    Point::ReceiveOpened,
    Point::ReceiveWritten,
    Point::ReceiveSynced,
    Point::ReceiveVerified,
    Point::InstallTableWritten,
    Point::InstallBeforeIngest,
    Point::InstallAfterIngest,
    Point::InstallAfterSwitch,
    Point::InstallAfterKeep,
    Point::RestoreRowsWritten,
    Point::RestoreBeforeRename,
    Point::RestoreAfterRename,
];

#[tokio::test]
#[ignore = "a part of other tests, in a process of its own"]
async fn child_log() {
    let Some(child) = Child::start() else { return };
    let mut random = Seeded(child.seed);
    let mut script = LogScript::open(&child.folder.join("db"), crash::fatal()).await;
    for _ in 0..1_000 {
        let op = script.choose(|bound| random.below(bound));
        say(&format!("begin {}", op.to_line()));
        script.run(&op).await;
        if op.is_acknowledged() {
            say_wal(&child.folder);
            say("ack 0");
        }
    }
}

/// After a crash the log is what it was after some operation that was begun, and none before the last that was
/// acknowledged.
#[test]
fn the_log_is_a_prefix_of_what_was_asked_of_it() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let seed = std::env::var("CRASH_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("CRASH_SEED={seed}");
    let mut random = Seeded(seed);
    let mut begun = LogModel::default();
    let points = [
        Point::LogStageAppend,
        Point::LogStageVote,
        Point::LogStageTruncate,
        Point::LogStagePurge,
        Point::LogBeforeWrite,
        Point::LogAfterWrite,
        Point::LogAfterCallbacks,
    ];
    for (round, point) in points.iter().cycle().take(3 * points.len()).enumerate() {
        let schedule = Schedule::Abort(*point, random.below(8));
        let ended = run("tests::crash_parts::child_log", folder.path(), random.next(), &schedule);
        assert!(ended.aborted, "{round}: {schedule:?} was not reached: {}", ended.errors);
        let mut possible = vec![begun.clone()];
        for line in &ended.lines {
            if let Some(op) = line.strip_prefix("begin ") {
                let mut next = possible.last().unwrap().clone();
                next.run(&LogOp::from_line(op));
                possible.push(next);
            } else if line.starts_with("ack ") {
                possible = possible.split_off(possible.len() - 1);
            }
        }
        let database = folder.path().join("db");
        cut_power(&database, ended.last("wal").as_deref(), &mut random);
        let found = runtime.block_on(LogModel::read(&database));
        assert!(possible.contains(&found), "{round}: {schedule:?}: {found:?} is none of {possible:?}");
        begun = found;
    }
}

/// Writes a snapshot of `rows` rows at a log index, with random values.
pub(super) fn write_source(path: &Path, index: u64, rows: u64, value_bytes: usize) -> u64 {
    let id = peer::LogId { term: 1, leader_id: 1, index };
    let members = vec![peer::Member { node_id: 1, ..Default::default() }];
    let membership = peer::Membership { configs: vec![peer::VoterSet { node_ids: vec![1] }], members };
    let applied = Applied {
        last_log_id: Some(id),
        membership_log_id: Some(id),
        membership: Some(membership),
        revision: index,
        stamp_ms: 1,
        generation: 0,
        removed_ids: Vec::new(),
    };
    let mut writer = SnapshotWriter::create(path, &applied).unwrap();
    let mut random = Seeded(index);
    let mut value = vec![0; value_bytes];
    for row in 0..rows {
        for chunk in value.chunks_mut(8) {
            let length = chunk.len();
            chunk.copy_from_slice(&random.next().to_be_bytes()[..length]);
        }
        let stored = StoredRow { revision: 1, expires_at_ms: 0, value: &value }.encode();
        writer.row(&state_key(Space::Rows, format!("k{row:012}").as_bytes()), &stored).unwrap();
    }
    writer.finish().unwrap().length
}

fn open_state(folder: &Path) -> (Arc<Db>, StateMachine) {
    let db = Arc::new(Db::open(&folder.join("db")).unwrap());
    let hub = Arc::new(Hub::new(1 << 20));
    let settings = config(folder, 0);
    let state = StateMachine::open(Arc::clone(&db), &settings, hub, Progress::new(), crash::fatal()).unwrap();
    (db, state)
}

/// Installs a copy of the file, which is used up.
fn install(state: &StateMachine, source: &Path) {
    let path = state.temporary_path("received");
    std::fs::copy(source, &path).unwrap();
    state.install_file(&SnapshotFile::temporary(path)).unwrap();
}

fn hash_of(db: &Db) -> [u8; 32] {
    state_hash(&StateSnapshot::take(db).unwrap()).unwrap()
}

#[test]
#[ignore = "a part of other tests, in a process of its own"]
fn child_install() {
    let Some(child) = Child::start() else { return };
    let (_db, state) = open_state(&child.folder);
    install(&state, &child.folder.join("source"));
    say("ack 0");
}

#[test]
fn a_snapshot_is_installed_wholly_or_not_at_all() {
    let points = [
        Point::InstallTableWritten,
        Point::InstallBeforeIngest,
        Point::InstallAfterIngest,
        Point::InstallAfterSwitch,
        Point::PublishBeforeRename,
        Point::PublishAfterRename,
        Point::PublishAfterSync,
        Point::InstallAfterKeep,
        Point::SnapshotOlderDeleted,
    ];
    for point in points {
        let folder = tempfile::tempdir().unwrap();
        let (old, source) = (folder.path().join("old"), folder.path().join("source"));
        write_source(&old, 5, 50, 100);
        write_source(&source, 9, 300, 1000);
        let (before, after) = {
            let (db, state) = open_state(folder.path());
            crate::owner::Owner { cluster_id: CLUSTER.into(), node_id: 1 }.claim(&db).unwrap();
            install(&state, &source);
            let after = hash_of(&db);
            // The crash is to find this one.
            let snapshots = std::fs::read_dir(folder.path().join("snapshots")).unwrap();
            snapshots.for_each(|entry| std::fs::remove_file(entry.unwrap().path()).unwrap());
            install(&state, &old);
            (hash_of(&db), after)
        };
        let ended = run("tests::crash_parts::child_install", folder.path(), 0, &Schedule::Abort(point, 0));
        assert!(ended.aborted && ended.all("ack").is_empty(), "{point:?}: {}", ended.errors);
        let report = check(folder.path()).unwrap();
        assert!(report.is_sound(), "{point:?}: {report}");
        let switched = !matches!(
            point,
            Point::InstallTableWritten | Point::InstallBeforeIngest | Point::InstallAfterIngest
        );
        assert_eq!(report.state_hash, if switched { after } else { before }, "{point:?}");
        let (db, state) = open_state(folder.path());
        assert_eq!(hash_of(&db), report.state_hash);
        let left = snapshot_file::files(&folder.path().join("snapshots")).unwrap();
        assert!(left.iter().all(|path| path.extension().unwrap() == "snap"), "{point:?}: {left:?}");
        install(&state, &source);
        assert_eq!(hash_of(&db), after);
        assert_eq!(snapshot_file::complete(&folder.path().join("snapshots")).unwrap().len(), 1);
    }
}

fn header_of(source: &Path) -> peer::SnapshotHeader {
    let applied = SnapshotFile::at(source.to_owned()).applied().unwrap();
    let meta = peer::SnapshotMeta {
        last_log_id: applied.last_log_id,
        membership_log_id: applied.membership_log_id,
        membership: applied.membership.clone(),
        snapshot_id: snapshot_file::snapshot_id(&applied),
    };
    let length = std::fs::metadata(source).unwrap().len();
    peer::SnapshotHeader { meta: Some(meta), length, ..peer::SnapshotHeader::default() }
}

#[tokio::test]
#[ignore = "a part of other tests, in a process of its own"]
async fn child_receive() {
    let Some(child) = Child::start() else { return };
    let source = child.folder.join("source");
    let bytes = std::fs::read(&source).unwrap();
    let inbox = Inbox::new(child.folder.join("inbox"));
    let mut header = header_of(&source);
    let id = header.meta.clone().unwrap().snapshot_id;
    header.offset = inbox.progress(&id, header.length).await.unwrap();
    say(&format!("offset {}", header.offset));
    let mut incoming = inbox.begin(&header).await.unwrap();
    for chunk in bytes[header.offset as usize..].chunks(40_000) {
        incoming.write(chunk).await.unwrap();
    }
    let file = incoming.finish().await.unwrap();
    std::fs::rename(&file.path, child.folder.join("whole")).unwrap();
    say("done 0");
}

#[test]
fn a_transfer_goes_on_after_a_crash() {
    let points = [Point::ReceiveOpened, Point::ReceiveWritten, Point::ReceiveSynced, Point::ReceiveVerified];
    for point in points {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("inbox")).unwrap();
        let source = folder.path().join("source");
        let length = write_source(&source, 9, 300, 1000);
        let hit = if point == Point::ReceiveWritten { 3 } else { 0 };
        let name = "tests::crash_parts::child_receive";
        let ended = run(name, folder.path(), 0, &Schedule::Abort(point, hit));
        assert!(ended.aborted, "{point:?}: {}", ended.errors);
        let ended = run(name, folder.path(), 0, &Schedule::Undisturbed);
        let offset = ended.last("offset").unwrap()[0];
        let expected = match point {
            Point::ReceiveOpened => 0,
            Point::ReceiveWritten => 4 * 40_000,
            _ => length,
        };
        assert_eq!(offset, expected, "{point:?}");
        assert!(ended.succeeded, "{point:?}: {}", ended.errors);
        assert!(std::fs::read(folder.path().join("whole")).unwrap() == std::fs::read(&source).unwrap());
    }
}

#[test]
#[ignore = "a part of other tests, in a process of its own"]
fn child_restore() {
    let Some(child) = Child::start() else { return };
    let settings = config(&child.folder.join("data"), 1);
    restore(&settings, CLUSTER, 1, &child.folder.join("source")).unwrap();
    say("ack 0");
}

#[test]
fn a_restore_is_done_wholly_or_not_at_all() {
    let points = [
        Point::InstallTableWritten,
        Point::InstallBeforeIngest,
        Point::InstallAfterIngest,
        Point::RestoreRowsWritten,
        Point::RestoreBeforeRename,
        Point::RestoreAfterRename,
    ];
    for point in points {
        let folder = tempfile::tempdir().unwrap();
        let (source, data) = (folder.path().join("source"), folder.path().join("data"));
        write_source(&source, 9, 300, 1000);
        let ended = run("tests::crash_parts::child_restore", folder.path(), 0, &Schedule::Abort(point, 0));
        assert!(ended.aborted, "{point:?}: {}", ended.errors);
        if point == Point::RestoreAfterRename {
            assert!(restore(&config(&data, 1), CLUSTER, 1, &source).is_err());
        } else {
            assert!(check(&data).is_err(), "{point:?}: a part of a database is there");
            restore(&config(&data, 1), CLUSTER, 1, &source).unwrap();
            assert!(!data.join("restore.tmp").exists());
        }
        let report = check(&data).unwrap();
        assert!(report.is_sound() && report.rows == 300, "{point:?}: {report}");
    }
}
