use prost::Message;
use rocksdb::WriteBatch;

use super::*;
use crate::{
    db::{Family, Space, state_key, stored_key},
    state::{StoredRow, chain_hash, encode_log_record, expiry_key, log_record_key},
};

/// A sound directory of a few rows and records, without a running store.
fn sound(folder: &Path) -> Db {
    let db = Db::open(&folder.join("db")).unwrap();
    fill(&db);
    db
}

fn fill(db: &Db) {
    Owner { cluster_id: "c".into(), node_id: 3 }.claim(db).unwrap();
    let id = |index| peer::LogId { term: 2, leader_id: 3, index };
    let applied = Applied { last_log_id: Some(id(12)), revision: 9, ..Applied::default() };
    let mut batch = WriteBatch::default();
    let meta = db.raft_meta().unwrap();
    let vote = peer::Ballot { term: 2, node_id: 3, committed: true };
    batch.put_cf(&meta, meta_key::VOTE, vote.encode_to_vec());
    batch.put_cf(&meta, meta_key::PURGED, id(10).encode_to_vec());
    batch.put_cf(&meta, meta_key::COMMITTED, id(11).encode_to_vec());
    batch.put_cf(&db.sm_meta().unwrap(), meta_key::APPLIED, applied.encode_to_vec());
    for index in 11..=14 {
        batch.put_cf(&db.raft_log().unwrap(), u64::to_be_bytes(index), log_entry(id(index)));
    }
    let data = db.sm_data().unwrap();
    let mut put = |key: Vec<u8>, value: Vec<u8>| batch.put_cf(&data, stored_key(0, &key), value);
    let row = |expires_at_ms| StoredRow { revision: 4, expires_at_ms, value: b"v" }.encode();
    put(state_key(Space::Rows, b"a"), row(0));
    put(state_key(Space::Rows, b"b"), row(77));
    put(expiry_key(77, b"b"), Vec::new());
    let first = chain_hash(&[0; 32], 1, 5, b"x");
    let second = chain_hash(&first, 2, 6, b"y");
    put(state_key(Space::Logs, &log_record_key("l", 1)), encode_log_record(5, &first, b"x"));
    put(state_key(Space::Logs, &log_record_key("l", 2)), encode_log_record(6, &second, b"y"));
    put(state_key(Space::LogHeads, b"l"), [&2u64.to_be_bytes()[..], &second].concat());
    // One whose first two records were forgotten, and one of which all were.
    let third = chain_hash(&[9; 32], 3, 6, b"z");
    put(state_key(Space::Logs, &log_record_key("m", 3)), encode_log_record(6, &third, b"z"));
    let head = |last: u64, hash: &[u8; 32], first: u64, anchor: &[u8; 32]| {
        [&last.to_be_bytes()[..], hash, &first.to_be_bytes(), anchor].concat()
    };
    put(state_key(Space::LogHeads, b"m"), head(3, &third, 3, &[9; 32]));
    put(state_key(Space::LogHeads, b"n"), head(7, &[8; 32], 8, &[8; 32]));
    put(state_key(Space::DecidedIds, &8u64.to_be_bytes()), crate::ids::encode(1, &[([1; 16], 4)]));
    db.write(batch, true).unwrap();
}

fn log_entry(id: peer::LogId) -> Vec<u8> {
    let payload = Some(peer::entry::Payload::Blank(peer::Blank {}));
    [&[1][..], &peer::Entry { log_id: Some(id), payload }.encode_to_vec()].concat()
}

#[test]
fn a_sound_directory_is_described_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    drop(sound(folder.path()));
    let files = || {
        let mut files: Vec<_> = std::fs::read_dir(folder.path().join("db"))
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| (entry.file_name(), entry.metadata().unwrap().len()))
            .collect();
        files.sort();
        files
    };
    let before = files();
    let report = check(folder.path()).unwrap();
    assert!(report.is_sound(), "{report}");
    assert_eq!(before, files());
    assert_eq!((report.cluster_id.as_str(), report.node_id, report.term), ("c", 3, 2));
    assert_eq!((report.purged_index, report.log_entries, report.last_log_index), (Some(10), 4, Some(14)));
    assert_eq!((report.committed_index, report.applied_index, report.revision), (Some(11), Some(12), 9));
    assert_eq!((report.rows, report.expiring_rows, report.logs, report.log_records), (2, 1, 2, 3));
    assert_eq!((report.applied_ids, report.snapshots), (1, 0));
    assert!(report.to_string().contains("log        4 entries after 10, last 14, committed 11"), "{report}");
}

/// A change to one family, and the line that tells of it.
type Damage = (fn(&Db) -> Family<'_>, Vec<u8>, Option<Vec<u8>>, &'static str);

#[test]
fn each_kind_of_damage_has_its_line() {
    let data: fn(&Db) -> Family<'_> = |db| db.sm_data().unwrap();
    let log: fn(&Db) -> Family<'_> = |db| db.raft_log().unwrap();
    let meta: fn(&Db) -> Family<'_> = |db| db.raft_meta().unwrap();
    let applied: fn(&Db) -> Family<'_> = |db| db.sm_meta().unwrap();
    let state = |space, key: &[u8]| stored_key(0, &state_key(space, key));
    let id = |index, term| peer::LogId { term, leader_id: 3, index };
    let row = |revision, expires_at_ms| Some(StoredRow { revision, expires_at_ms, value: b"" }.encode());
    let index = |index: u64| index.to_be_bytes().to_vec();
    let record = |index| state(Space::Logs, &log_record_key("l", index));
    let damages: Vec<Damage> = vec![
        (meta, b"format".to_vec(), Some(vec![0, 0, 0, 2]), "newer release"),
        (meta, b"owner".to_vec(), Some(vec![0xff]), "the owner does not decode"),
        (meta, b"format".to_vec(), None, "belongs to no node"),
        (meta, b"vote".to_vec(), Some(vec![0xff]), "vote does not decode"),
        (meta, b"vote".to_vec(), None, "the log has an entry of term 2, past the vote's 0"),
        (meta, b"purged".to_vec(), Some(id(13, 2).encode_to_vec()), "purged past the state"),
        (meta, b"purged".to_vec(), None, "log entries 0 to 10 are missing"),
        (
            meta,
            b"committed".to_vec(),
            Some(id(11, 1).encode_to_vec()),
            "the committed entry 11 is not the one",
        ),
        (log, index(12), None, "log entries 12 to 12 are missing"),
        (log, index(12), Some(vec![9, 1]), "has version 9"),
        (log, index(12), Some(log_entry(id(13, 2))), "log entry 12 says that it is 13"),
        (log, index(12), Some(log_entry(id(12, 1))), "the applied entry 12 is not the one in the log"),
        (log, index(13), Some(log_entry(id(13, 1))), "of an earlier leader"),
        (applied, b"applied".to_vec(), Some(vec![0xff]), "the applied record does not decode"),
        (applied, b"applied".to_vec(), None, "purged past the state"),
        (data, state(Space::Rows, b"a"), Some(vec![0; 15]), "shorter than its header"),
        (data, state(Space::Rows, b"a"), row(10, 0), "row a has revision 10, which never was"),
        (data, state(Space::Rows, b"a"), row(4, 5), "row a ends and is not in the expiry index"),
        (data, state(Space::Rows, b"b"), None, "the expiry index has row b, which does not end then"),
        (data, record(1), None, "log l has no record 1 before 2"),
        (data, record(2), None, "the head of log l is not its last record"),
        (
            data,
            record(1),
            Some(encode_log_record(5, &[0; 32], b"x")),
            "record 1 of log l breaks the hash chain",
        ),
        (
            data,
            record(2),
            Some(encode_log_record(9, &[0; 32], b"y")),
            "record 2 of log l breaks the hash chain",
        ),
        (data, state(Space::LogHeads, b"l"), None, "log l has records and no head"),
        (data, state(Space::DecidedIds, &index(8)), Some(vec![1; 9]), "applied ids of entry 8 do not decode"),
        (data, state(Space::DecidedIds, &index(13)), Some(vec![0; 8]), "of an entry that was never applied"),
        (data, stored_key(0, &[9, 9]), Some(Vec::new()), "an unknown kind, 9"),
    ];
    for (family, key, value, line) in damages {
        let folder = tempfile::tempdir().unwrap();
        let db = sound(folder.path());
        match value {
            Some(value) => db.rocks().put_cf(&family(&db), key, value).unwrap(),
            None => db.rocks().delete_cf(&family(&db), key).unwrap(),
        }
        drop(db);
        let report = check(folder.path()).unwrap();
        assert!(report.problems.iter().any(|problem| problem.contains(line)), "{line}: {report}");
    }
}

#[test]
fn a_snapshot_that_is_damaged_or_ahead_is_found() {
    let folder = tempfile::tempdir().unwrap();
    drop(sound(folder.path()));
    let snapshots = folder.path().join("snapshots");
    std::fs::create_dir(&snapshots).unwrap();
    let ahead =
        Applied { last_log_id: Some(peer::LogId { term: 2, leader_id: 3, index: 13 }), ..Applied::default() };
    let path = snapshots.join(format!("{}.snap", snapshot_file::snapshot_id(&ahead)));
    snapshot_file::SnapshotWriter::create(&path, &ahead).unwrap().finish().unwrap();
    let report = check(folder.path()).unwrap();
    assert!(report.problems.iter().any(|problem| problem.contains("is ahead of the state")), "{report}");
    let other = snapshots.join("00000000000000000001-1-1.snap");
    std::fs::rename(&path, &other).unwrap();
    let report = check(folder.path()).unwrap();
    assert!(
        report.problems.iter().any(|problem| problem.contains("another state than its name")),
        "{report}"
    );
    std::fs::write(&other, b"MZSTSNAP").unwrap();
    let report = check(folder.path()).unwrap();
    assert!(report.problems.iter().any(|problem| problem.contains("00001-1-1.snap")), "{report}");
    assert_eq!(report.snapshots, 1);
}

#[test]
fn the_list_of_problems_is_bounded_and_a_missing_directory_is_an_error() {
    let mut report = CheckReport::default();
    for n in 0..MAX_PROBLEMS + 7 {
        report.problem(n);
    }
    assert_eq!((report.problems.len(), report.more_problems), (MAX_PROBLEMS, 7));
    assert!(report.to_string().ends_with("and 7 more\n"));
    let folder = tempfile::tempdir().unwrap();
    assert!(check(folder.path()).unwrap_err().to_string().contains("there is no database"));
    assert!(!folder.path().join("db.lock").exists());
}
