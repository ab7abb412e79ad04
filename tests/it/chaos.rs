//! The replicated store under faults, and the checks under a store that is wrong.

use std::time::Duration;

use mezite_e2e::chaos::{Plan, run};

#[tokio::test(flavor = "multi_thread")]
async fn what_clients_see_under_faults_can_have_happened() {
    let seed = rand::random_range(0..1_000_000);
    eprintln!("seed {seed}");
    let plan = Plan { time: Duration::from_secs(50), seed, nodes: 3, clients: 8, stale_reads: false };
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
