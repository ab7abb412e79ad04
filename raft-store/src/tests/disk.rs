//! Disks that are full, read-only, torn or damaged: each has one outcome, and a message that says what to do.

use std::{collections::BTreeMap, os::unix::fs::MetadataExt as _, path::PathBuf, process::Command};

use super::{
    crash::{busy_config, fatal, verify_store},
    process::{Child, Ended, Schedule, newest_wal, run_under, say},
    *,
};
use crate::check;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a part of other tests, in a process of its own"]
async fn child_fill() {
    let Some(child) = Child::start() else { return };
    let settings = StoreConfig { limits: Limits::default(), ..busy_config(&child.folder) };
    let store = Store::open(settings, Authority::new().identity(1), fatal()).await.unwrap();
    store.initialize().await.unwrap();
    for n in 1u64.. {
        let value: Vec<u8> = (0..8192).flat_map(|_| rand::random::<u64>().to_be_bytes()).collect();
        let fill = store.transact(move |tx| {
            tx.put_raw(b"w0".to_vec(), n.to_string().into_bytes(), None);
            tx.put_raw(format!("fill{n}").into_bytes(), value.clone(), None);
            Ok::<_, TxError>(())
        });
        fill.await.unwrap();
        say(&format!("ack 0 {n}"));
    }
}

/// A small disk of its own, where the tests may mount one.
struct SmallDisk {
    folder: TempDir,
}

impl SmallDisk {
    fn mount(options: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(folder.path());
        let mounted = mount.output().is_ok_and(|output| output.status.success());
        mounted.then_some(Self { folder })
    }

    fn remount(&self, options: &str) {
        let options = format!("remount,{options}");
        assert!(
            Command::new("mount").args(["-o", &options]).arg(self.folder.path()).status().unwrap().success()
        );
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.folder.path()).status();
    }
}

fn assert_stopped_by(ended: &Ended, cause: &str) -> BTreeMap<u64, u64> {
    assert!(ended.aborted, "{}", ended.errors);
    let fatal = ended.errors.lines().find(|line| line.starts_with("fatal: ")).unwrap_or_default();
    assert!(fatal.contains("failed") && fatal.contains(cause), "{}", ended.errors);
    println!("{fatal}");
    let acknowledged = ended.last("ack").expect("nothing was written before the disk was full");
    BTreeMap::from([(0, acknowledged[1])])
}

const CHILD: &str = "tests::disk::child_fill";

#[test]
fn a_full_disk_ends_the_process_and_loses_nothing() {
    let Some(disk) = SmallDisk::mount("size=48m") else {
        assert_ne!(std::fs::metadata("/proc/self").unwrap().uid(), 0, "root can mount a file system");
        println!("no right to mount: see the test of the bound on file sizes");
        return;
    };
    let folder = disk.folder.path();
    let executable = Command::new(std::env::current_exe().unwrap());
    let ended = run_under(executable, CHILD, folder, 0, &Schedule::Undisturbed);
    let expected = assert_stopped_by(&ended, "No space left on device");
    // Room was made.
    disk.remount("size=512m");
    verify_store(folder, &expected, 1);
}

#[test]
fn a_file_that_may_not_grow_ends_the_process_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut shell = Command::new("sh");
    // In blocks of 512 bytes; the signal is ignored, so that writing fails as on a full disk.
    shell.args(["-c", "trap '' XFSZ; ulimit -f 16384; exec \"$0\" \"$@\""]);
    shell.arg(std::env::current_exe().unwrap());
    let ended = run_under(shell, CHILD, folder.path(), 0, &Schedule::Undisturbed);
    let expected = assert_stopped_by(&ended, "File too large");
    verify_store(folder.path(), &expected, 1);
}

/// A node that was stopped after some writes.
async fn written() -> (Cluster, PathBuf) {
    let mut cluster = Cluster::start(1, Limits::default()).await;
    for n in 0..60 {
        put(&cluster.store(0), &format!("k{n:02}"), &"v".repeat(500)).await.unwrap();
    }
    cluster.stop(0).await;
    let folder = cluster.nodes[0].folder.path().to_owned();
    let started = Instant::now();
    while let Err(error) = check(&folder) {
        assert!(started.elapsed() < PATIENCE, "{error}");
    }
    (cluster, folder)
}

/// The error that opening a node's store ends in.
async fn refusal(cluster: &Cluster, folder: &Path) -> String {
    let opened = Store::open(config(folder, 0), cluster.nodes[0].identity.clone(), Fatal::abort()).await;
    opened.map(|_| ()).unwrap_err().to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_torn_tail_is_dropped() {
    for torn in [1, 7, 100, 3000] {
        let (mut cluster, folder) = written().await;
        let (path, _, size) = newest_wal(&folder.join("db")).unwrap();
        std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(size - torn).unwrap();
        let report = check(&folder).unwrap();
        assert!(report.is_sound(), "{report}");
        cluster.open(0).await;
        let mut kept = Vec::new();
        for n in 0..60 {
            kept.push(get(&cluster.store(0), &format!("k{n:02}")).await.is_some());
        }
        // What is left is what was written first, and nearly all of it.
        let present = kept.iter().filter(|kept| **kept).count();
        assert!(kept[..present].iter().all(|kept| *kept), "{kept:?}");
        assert!(present >= 50 && (present < 60 || torn < 1000), "{torn}: {present}");
        put(&cluster.store(0), "k99", "w").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn zeros_after_the_tail_are_dropped() {
    let (mut cluster, folder) = written().await;
    let (path, _, size) = newest_wal(&folder.join("db")).unwrap();
    std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(size + 10_000).unwrap();
    cluster.open(0).await;
    for n in 0..60 {
        assert!(get(&cluster.store(0), &format!("k{n:02}")).await.is_some());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_before_the_tail_is_refused() {
    let (cluster, folder) = written().await;
    let (path, _, size) = newest_wal(&folder.join("db")).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[size as usize / 3] ^= 0xff;
    std::fs::write(&path, bytes).unwrap();
    let report = check(&folder).unwrap();
    assert!(report.problems[0].contains("cannot open the database"), "{report}");
    let error = refusal(&cluster, &folder).await;
    for words in ["cannot open the database", "Corruption", "join the node again as a new member"] {
        assert!(error.contains(words), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_only_write_ahead_log_that_is_gone_is_refused_and_found_by_a_check() {
    let (cluster, folder) = written().await;
    let entries = std::fs::read_dir(folder.join("db")).unwrap().map(|entry| entry.unwrap().path());
    let logs = entries.filter(|path| path.extension().is_some_and(|e| e == "log"));
    logs.for_each(|log| std::fs::remove_file(log).unwrap());
    for error in [refusal(&cluster, &folder).await, check(&folder).unwrap().problems.remove(0)] {
        assert!(error.contains("write-ahead log") && error.contains("join the node again"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_that_cannot_be_read_ends_the_process() {
    let (_cluster, folder) = written().await;
    // All of it in tables, and nothing in memory.
    {
        let db = crate::db::Db::open(&folder.join("db")).unwrap();
        db.rocks().flush_cf(&db.sm_data().unwrap()).unwrap();
        db.compact().unwrap();
    }
    let db = crate::db::Db::open(&folder.join("db")).unwrap();
    let tables = db.rocks().live_files().unwrap();
    let table = tables.iter().find(|table| table.column_family_name == "sm_data").unwrap();
    let path = folder.join("db").join(table.name.trim_start_matches('/'));
    let mut bytes = std::fs::read(&path).unwrap();
    // The first block, which holds rows.
    bytes[..64].iter_mut().for_each(|byte| *byte ^= 0xff);
    std::fs::write(&path, bytes).unwrap();
    let views = crate::views::Views::new(std::sync::Arc::new(db));
    let read = views.run(|state| {
        use crate::state::StateView as _;
        state.scan(&[0], &[u8::MAX], &mut |_, _| Ok(true))
    });
    let error = read.await.unwrap().unwrap_err().to_string();
    assert!(error.contains("damaged") && error.contains("join the node again"), "{error}");
    let reason = tokio::time::timeout(PATIENCE, views.db().damage()).await.unwrap();
    assert!(reason.contains("the state cannot be read"), "{reason}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_ahead_log_that_is_gone_is_refused() {
    let (cluster, folder) = written().await;
    // A second log: the first was closed whole.
    {
        let db = crate::db::Db::open(&folder.join("db")).unwrap();
        let meta = db.raft_meta().unwrap();
        db.rocks().put_cf(&meta, b"x", b"y").unwrap();
        db.sync().unwrap();
        db.rocks().flush_cf(&db.sm_meta().unwrap()).unwrap();
        db.rocks().put_cf(&db.sm_meta().unwrap(), b"x", b"y").unwrap();
        db.rocks().flush_cf(&db.sm_meta().unwrap()).unwrap();
    }
    let logs = std::fs::read_dir(folder.join("db")).unwrap().map(|entry| entry.unwrap().path());
    let mut logs: Vec<_> = logs.filter(|path| path.extension().is_some_and(|e| e == "log")).collect();
    logs.sort();
    assert!(logs.len() > 1, "{logs:?}");
    std::fs::remove_file(&logs[0]).unwrap();
    let error = refusal(&cluster, &folder).await;
    assert!(error.contains("cannot open the database"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_only_disk_is_refused_and_can_be_checked() {
    let Some(disk) = SmallDisk::mount("size=256m") else {
        println!("no right to mount");
        return;
    };
    let folder = disk.folder.path();
    let authority = Authority::new();
    let open = || Store::open(config(folder, 0), authority.identity(1), fatal());
    let store = open().await.unwrap();
    store.initialize().await.unwrap();
    put(&store, "k", "v").await.unwrap();
    store.shutdown().await;
    drop(store);
    let started = Instant::now();
    while let Err(error) = check(folder) {
        assert!(started.elapsed() < PATIENCE, "{error}");
    }
    disk.remount("ro");
    let error = open().await.map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("Read-only file system"), "{error}");
    let report = check(folder).unwrap();
    assert!(report.is_sound() && report.rows == 1, "{report}");
    disk.remount("rw");
    let store = open().await.unwrap();
    assert_eq!(get(&store, "k").await.as_deref(), Some("v"));
}
