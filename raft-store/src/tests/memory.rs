//! A large state is built, sent, received and installed within bounded memory.
//!
//! `STATE_MIB` sets the size of the state; the figures are printed.

use super::{
    crash_parts::write_source,
    process::{Child, Schedule, run, say},
    *,
};
use crate::restore;

/// What a snapshot may take above what the store takes anyway, whatever the size of the state.
const BOUND_MIB: u64 = 128;
const VALUE_BYTES: usize = 1000;

/// A figure of this process, in KiB.
fn status_kib(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap()
}

/// Runs a phase; says its time and by how much the resident memory rose above what it was, at most.
async fn measured<T>(phase: &str, work: impl Future<Output = T>) -> T {
    // Makes the peak what is resident now.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let (before, started) = (status_kib("VmRSS"), Instant::now());
    let result = work.await;
    let millis = started.elapsed().as_millis();
    let rise = status_kib("VmHWM").saturating_sub(before);
    say(&format!("{phase} {millis} {rise} {before}"));
    result
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a part of other tests, in a process of its own"]
async fn child_snapshot() {
    let Some(child) = Child::start() else { return };
    let source = child.folder.join("source");
    let length = write_source(&source, 9, (child.seed << 20) / VALUE_BYTES as u64, VALUE_BYTES);
    say(&format!("length {length}"));
    let authority = Authority::new();
    let ports = [Port::lease(), Port::lease()];
    let settings = ["one", "two"].into_iter().zip(&ports);
    let settings: Vec<_> =
        settings.map(|(name, port)| config(&child.folder.join(name), port.number())).collect();
    measured("restore", async { restore(&settings[0], CLUSTER, 1, &source).unwrap() }).await;
    std::fs::remove_file(&source).unwrap();
    let open = |n: usize| {
        let fatal = Fatal::new(|reason| panic!("{reason}"));
        Store::open(settings[n].clone(), authority.identity(n as u64 + 1), fatal)
    };
    // The first start builds the snapshot that nodes that join need.
    let one = measured("build", open(0)).await.unwrap();
    put(&one, "after", "v").await.unwrap();
    let two = open(1).await.unwrap();
    let members = [(1, settings[0].advertise.clone())];
    let patience = Duration::from_secs(600);
    let joined = tokio::time::timeout(patience, two.activate(&members, Role::Voter));
    measured("transfer", joined).await.unwrap().unwrap();
    assert_eq!(get(&two, "after").await.as_deref(), Some("v"));
    measured("backup", async {
        let backup = one.backup().await.unwrap();
        assert!(backup.length() >= length);
    })
    .await;
    let hash = async |store: &Store| store.read(|view| view.state_hash()).await.unwrap();
    assert_eq!(measured("hash", hash(&one)).await, hash(&two).await);
    say("done 0");
}

#[test]
fn a_large_snapshot_needs_little_memory() {
    let mib: u64 = std::env::var("STATE_MIB").map_or(256, |mib| mib.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let ended = run("tests::memory::child_snapshot", folder.path(), mib, &Schedule::Undisturbed);
    assert!(ended.succeeded, "{}", ended.errors);
    let length = ended.last("length").unwrap()[0];
    for phase in ["restore", "build", "transfer", "backup", "hash"] {
        let [millis, rise, before] = ended.last(phase).unwrap()[..] else { panic!("{phase}") };
        let speed = length as f64 / 1048.576 / millis as f64;
        println!(
            "{phase:9} of {} MiB: {millis} ms, {speed:.0} MiB/s, resident {} MiB and {} MiB more",
            length >> 20,
            before >> 10,
            rise >> 10
        );
        assert!(rise >> 10 < BOUND_MIB, "{phase}: {rise} KiB");
    }
}
