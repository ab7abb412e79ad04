//! Reads while the log is written, and the tail in memory moves on.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use openraft::{
    Entry, EntryPayload, LeaderId, LogId, RaftLogReader,
    storage::{RaftLogStorage, RaftLogStorageExt},
};

use super::{LogStore, TAIL_BYTES, is_contiguous};
use crate::{
    db::Db,
    fatal::Fatal,
    raft::{Command, TypeConfig},
};

const ENTRY_BYTES: usize = 64 << 10;

fn entry(index: u64) -> Entry<TypeConfig> {
    let payload = Command(Bytes::from(vec![0; ENTRY_BYTES]));
    Entry { log_id: LogId { leader_id: LeaderId::new(1, 1), index }, payload: EntryPayload::Normal(payload) }
}

/// One reader follows a little further behind than the tail reaches, so that each read is of both the disk and the
/// tail; the log is purged far behind it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_has_no_gap_while_the_tail_moves_on() {
    const ENTRIES: u64 = 2_000;
    let folder = tempfile::tempdir().unwrap();
    let db = Arc::new(Db::open(&folder.path().join("db")).unwrap());
    let log = LogStore::open(db, Fatal::new(|reason| panic!("{reason}"))).unwrap();
    let behind = (TAIL_BYTES / ENTRY_BYTES) as u64 + 34;
    let last = Arc::new(AtomicU64::new(0));
    let (mut writer, written) = (log.clone(), Arc::clone(&last));
    let writing = tokio::spawn(async move {
        for index in 0..ENTRIES {
            writer.blocking_append([entry(index)]).await.unwrap();
            written.store(index, Ordering::SeqCst);
            if index % 100 == 99 && index > 2 * behind {
                writer.purge(entry(index - 2 * behind).log_id).await.unwrap();
            }
        }
    });
    let mut reader = log.clone();
    let mut reads = 0;
    while !writing.is_finished() {
        let end = last.load(Ordering::SeqCst);
        let Some(start) = end.checked_sub(behind) else {
            tokio::task::yield_now().await;
            continue;
        };
        let entries = reader.limited_get_log_entries(start, end).await.unwrap();
        let first = entries.first().unwrap().log_id.index;
        assert!(first == start && is_contiguous(&entries), "{start}..{end} from {first}");
        reads += 1;
    }
    writing.await.unwrap();
    assert!(reads > 100, "{reads} reads");
}
