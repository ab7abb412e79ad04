//! How much of the agent an account has.

use std::{os::unix::net::UnixStream, process::Command};

use mezite_e2e::{Cluster, Ingest, binary, eventually, run};
use nix::sys::resource::{self, Resource};

use crate::host::{Host, SOON, events, list};

#[tokio::test(flavor = "multi_thread")]
async fn an_account_has_so_many_places_with_the_agent_and_no_more() {
    // A quarter of what there are for all.
    const PLACES: usize = 1024;
    let cluster = Cluster::start(1).await;
    let (_ingests, _) = Ingest::start_all(&cluster, 1).await;
    let host = Host::of(&cluster).await;
    let _agent = host.run(&[]).await;
    host.knows("best-effort").await;
    let socket = host.spool.join("record.sock");
    let record = || {
        let mut record = Command::new(binary("mezctl"));
        run(record.arg("record").arg("--socket").arg(&socket).args(["--", "echo", "in"]))
    };
    let (soft, hard) = resource::getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    resource::setrlimit(Resource::RLIMIT_NOFILE, soft.max(2 * PLACES as u64).min(hard), hard).unwrap();
    // With some more, whom others may overtake while it is looked up who they are.
    let held: Vec<_> = (0..PLACES + 128).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    let unrecorded = record();
    let reason = "that account has as many that are recorded as it may have";
    assert!(unrecorded.stderr.contains(&format!("is not recorded: {reason}")), "{unrecorded:?}");
    assert_eq!(unrecorded.ok(), "in\n");
    drop(held);
    eventually("the places are given back", SOON, async || {
        let recorded = record();
        if recorded.stderr.is_empty() { Ok(()) } else { Err(recorded.stderr) }
    })
    .await;
    host.is_empty().await;
    let all = list(&cluster.admin()).await;
    assert_eq!(all.len(), 1, "{all:?}");
    let failed = events(&cluster, "session.recording.failed");
    assert_eq!(failed[0]["fields"]["reason"], reason, "{failed:?}");
}
