//! The replicated store under faults, and the checks under a store that is wrong.

use std::time::{Duration, Instant};

use futures::future::join_all;
use mezite_e2e::{
    chaos::{Plan, run},
    control::{Answer, Request},
    store_cluster::{Options, StoreCluster},
};

#[tokio::test(flavor = "multi_thread")]
async fn what_clients_see_under_faults_can_have_happened() {
    let seed = rand::random_range(0..1_000_000);
    eprintln!("seed {seed}");
    let plan = Plan { time: Duration::from_secs(150), seed, nodes: 3, clients: 8, stale_reads: false };
    let report = run(plan).await;
    eprintln!("{report}");
    assert!(report.checked.violations.is_empty());
    // A run in which nothing happens shows nothing.
    let [answered, ..] = report.totals();
    assert!(answered > 500 && report.faults.len() >= 5 && report.converged_at.is_some());
    let checked = &report.checked;
    assert!(
        checked.registers > 0 && checked.sets > 0 && checked.lists > 0 && checked.sums > 0,
        "{checked:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_that_ask_no_quorum_are_found() {
    let plan = Plan { time: Duration::from_secs(8), seed: 3, nodes: 3, clients: 8, stale_reads: true };
    let report = run(plan).await;
    // By what clients saw, and not by a complaint about the cluster.
    assert!(report.checked.violations.iter().any(|violation| !violation.events.is_empty()), "{report}");
}

/// What a follower has sent to a leader that hangs, and what waits behind it, goes to the next leader when there is one,
/// and not only when its time is over.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_hangs_delays_writes_of_followers_only_until_another_leads() {
    let options = Options {
        nodes: 3,
        snapshot_every: 10_000,
        keep_entries: 10_000,
        deadline: Duration::from_secs(60),
        stale_reads: false,
        small_disk: None,
        fake_clocks: false,
    };
    let (mut cluster, deadline) = (StoreCluster::start(options.clone()).await, options.deadline);
    let leader = cluster.leader().await.expect("a leader");
    let follower = cluster.ids().into_iter().find(|id| *id != leader).expect("a follower");
    cluster.pause(leader, true);
    let began = Instant::now();
    let puts: Vec<_> =
        (0..64).map(|number| Request::Put { key: format!("k{number}"), value: number, padding: 0 }).collect();
    let answers = join_all(puts.iter().map(|put| cluster.ask(follower, put, deadline))).await;
    assert!(answers.iter().all(|answer| matches!(answer, Answer::Written { .. })), "{answers:?}");
    assert!(began.elapsed() < deadline / 2, "{:?}", began.elapsed());
    cluster.pause(leader, false);
    cluster.converge(deadline).await.expect("the same state");
}
