//! Deadlines, bounded queues, shared rounds, readiness and measurements.

use std::sync::{Arc, atomic::Ordering};

use super::*;
use crate::NotReady;

/// A leader that has lost its quorum, with these limits.
async fn stranded(limits: Limits) -> (Cluster, Store) {
    let mut cluster = Cluster::start_patient(3, limits).await;
    let leader = cluster.leader().await;
    let store = cluster.store(leader);
    // It knows the time from here on.
    put(&store, "before", "v").await.unwrap();
    cluster.kill((leader + 1) % 3).await;
    cluster.kill((leader + 2) % 3).await;
    (cluster, store)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_not_proposed_in_time_was_surely_not_applied() {
    let (mut cluster, store) = stranded(Limits { batches_in_flight: 1, ..Limits::default() }).await;
    // The first takes the only place and stays in flight; so its outcome is not known.
    let slow = store.within(Duration::from_secs(2));
    let first = tokio::spawn(async move { put(&slow, "first", "v").await });
    let quick = store.within(Duration::from_millis(200));
    let mut refused = 0;
    while refused == 0 || !first.is_finished() {
        match put(&quick, "second", "v").await {
            Err(TransactError::Store(StoreError::Unavailable(_))) => refused += 1,
            Err(TransactError::Store(StoreError::OutcomeUnknown)) if refused == 0 => {
                // It came before the first.
            }
            other => panic!("{other:?}"),
        }
    }
    let first = first.await.unwrap();
    assert!(matches!(
        first,
        Err(TransactError::Store(StoreError::OutcomeUnknown | StoreError::Unavailable(_)))
    ));
    // With a quorum again the queue moves on, and what was dropped from it does not come back.
    let away = (0..3).find(|index| cluster.nodes[*index].store.is_none()).unwrap();
    cluster.open(away).await;
    put(&store, "third", "v").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_is_kept_wherever_the_call_waits() {
    let (cluster, store) = stranded(Limits::default()).await;
    let short = Duration::from_millis(250);
    let store = store.within(short);
    for _ in 0..3 {
        let started = Instant::now();
        let read = store.read(|view| view.get_raw(b"k")).await;
        assert!(matches!(read, Err(TransactError::Store(StoreError::Unavailable(_)))), "{read:?}");
        assert!(put(&store, "k", "v").await.is_err());
        // Far below the deadline of the store itself.
        assert!(started.elapsed() < PATIENCE / 3, "{:?}", started.elapsed());
    }
    drop(cluster);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_is_bounded_in_bytes() {
    let limits = Limits { queue_bytes: 1 << 20, transaction_bytes: 1 << 20, ..Limits::default() };
    let (_cluster, store) = stranded(limits).await;
    let large = "x".repeat(600 << 10);
    let first = tokio::spawn({
        let (store, large) = (store.within(Duration::from_secs(5)), large.clone());
        async move { put(&store, "first", &large).await }
    });
    let quick = store.within(Duration::from_millis(100));
    eventually("the second is refused", async || {
        matches!(put(&quick, "second", &large).await, Err(TransactError::Store(StoreError::Overloaded)))
    })
    .await;
    // A small one still has room: it is not refused, it waits.
    let small = put(&quick, "small", "v").await;
    assert!(!matches!(small, Err(TransactError::Store(StoreError::Overloaded))), "{small:?}");
    first.abort();
}

#[tokio::test]
async fn bounds_under_which_nothing_could_be_proposed_are_refused() {
    for limits in [
        Limits { queue_bytes: 1, ..Limits::default() },
        Limits { batches_in_flight: 0, ..Limits::default() },
        Limits { batch_transactions: 0, ..Limits::default() },
        Limits { batch_bytes: 0, ..Limits::default() },
    ] {
        let folder = tempfile::tempdir().unwrap();
        let config = StoreConfig { limits, ..config(folder.path(), 0) };
        let fatal = Fatal::new(|reason| panic!("{reason}"));
        let opened = Store::open(config, Authority::new().identity(1), fatal).await;
        assert!(matches!(opened.map(|_| ()), Err(StoreError::Config(_))), "{limits:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_reads_on_a_follower_shares_few_rounds() {
    let cluster = Cluster::start(3, Limits::default()).await;
    put(&cluster.store(0), "k", "v").await.unwrap();
    let leader = cluster.leader().await;
    let follower = cluster.store((leader + 1) % 3);
    let rounds = |store: &Store| store.inner.reads.rounds.load(Ordering::Relaxed);
    let leads = cluster.store(leader);
    let (before, led_before) = (rounds(&follower), rounds(&leads));
    let reads = (0..2_000).map(|_| {
        let follower = follower.clone();
        tokio::spawn(async move { follower.confirm(PATIENCE).await })
    });
    for read in join_all(reads).await {
        read.unwrap().unwrap();
    }
    let (shared, led) = (rounds(&follower) - before, rounds(&leads) - led_before);
    println!("2000 reads on a follower: {shared} rounds, {led} of the leader");
    // One call at a time: each of the follower's rounds is one of the leader's.
    assert!((1..=200).contains(&shared), "{shared} rounds");
    assert!(led <= shared, "{led} rounds of the leader for {shared}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_ready_while_it_is_in_touch() {
    let mut cluster = Cluster::start(3, Limits::default()).await;
    for store in cluster.running() {
        eventually("it is ready", async || store.ready(10).await.is_ok()).await;
    }
    let leader = cluster.leader().await;
    let (first, second) = ((leader + 1) % 3, (leader + 2) % 3);
    // A leader without a quorum is not ready, though nobody told it that it does not lead.
    cluster.kill(second).await;
    cluster.kill(first).await;
    let store = cluster.store(leader);
    eventually("it is not ready", async || store.ready(10).await == Err(NotReady::NoLeader)).await;
    cluster.open(first).await;
    eventually("it is ready again", async || store.ready(10).await.is_ok()).await;
    // Nor is a follower without a leader, nor a node whose core has stopped.
    cluster.kill(leader).await;
    let alone = cluster.store(first);
    eventually("it is not ready", async || alone.ready(10).await == Err(NotReady::NoLeader)).await;
    assert!(matches!(store.ready(10).await, Err(NotReady::Dead(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_end_together_go_together() {
    let cluster = Cluster::start(1, Limits::default()).await;
    let store = cluster.store(0);
    let end = wall_clock() + 1_000;
    // Twenty times what one entry removes, and one entry a second was all that there was once.
    for part in 0..20_u8 {
        let put = store.transact(move |tx| {
            for number in 0..1_000_u16 {
                tx.put_raw([&[b'e', part][..], &number.to_be_bytes()].concat(), Vec::new(), Some(end));
            }
            Ok::<_, TxError>(())
        });
        put.await.unwrap();
    }
    let started = Instant::now();
    let db = Arc::clone(&store.inner.db);
    eventually("none is left", async || {
        let state = crate::state::StateSnapshot::take(&db).unwrap();
        !crate::state::has_expired(&state, u64::MAX).unwrap()
    })
    .await;
    assert!(started.elapsed() < Duration::from_secs(12), "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_core_that_stalls_is_measured_again_when_it_goes_on() {
    let cluster = Cluster::start(1, Limits::default()).await;
    let core = cluster.store(0).inner.core.clone();
    let (sender, mut samples) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(core.clone().measure(move |committed| {
        sender.send(committed).unwrap();
        std::future::ready(())
    }));
    samples.recv().await.unwrap();
    // Longer than it is waited for.
    core.stall(Duration::from_millis(1500));
    put(&cluster.store(0), "k", "v").await.unwrap();
    let committed = cluster.store(0).status().applied_index;
    eventually("the commit is measured", async || {
        std::iter::from_fn(|| samples.try_recv().ok()).any(|sample| sample >= committed)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_lacks_what_its_leader_has_committed_is_not_ready() {
    let cluster = Cluster::start(1, Limits::default()).await;
    let store = cluster.store(0);
    eventually("it has applied all", async || store.ready(0).await.is_ok()).await;
    // As it is told with a heartbeat while its own log is far behind.
    store.inner.core.announce(store.status().applied_index + 10_000);
    let lagging = store.ready(5_000).await;
    assert!(matches!(lagging, Err(NotReady::Lagging { lag }) if lag > 9_000), "{lagging:?}");
    store.ready(20_000).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_operator_watches_is_measured() {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().install_recorder().unwrap();
    let cluster = Cluster::start(3, Limits::default()).await;
    let watcher = cluster.store(0).watch(KeyRange::prefix(b"k"), 0);
    for writer in 0..3 {
        put(&cluster.store(writer), "k", "v").await.unwrap();
        assert!(get(&cluster.store(writer), "k").await.is_some());
    }
    let leader = cluster.leader().await;
    cluster.store(leader).trigger_snapshot().await.unwrap();
    let names = [
        "raft_is_leader",
        "raft_has_leader 1",
        "raft_term",
        "raft_committed_index",
        "raft_applied_index",
        "raft_last_log_index",
        "raft_peer_lag_entries{peer=",
        "raft_proposals_pending 0",
        "raft_batch_transactions_count",
        "raft_log_fsync_seconds_count",
        "raft_commit_seconds_count",
        "raft_apply_seconds_count",
        "raft_elections_total",
        "raft_leader_changes_total",
        "raft_snapshot_index",
        "raft_snapshot_seconds_count",
        "raft_snapshot_bytes",
        "raft_database_bytes",
        "raft_watchers 1",
        "raft_forwarded_total",
        "raft_read_index_seconds_count",
        "# HELP raft_peer_lag_entries ",
        "# TYPE raft_forwarded_total counter",
    ];
    eventually("all are there", async || {
        let text = recorder.render();
        names.iter().all(|name| text.contains(name))
    })
    .await;
    drop(watcher);
    assert!(recorder.render().contains("raft_watchers 0"));
    // A refusal is counted with its reason.
    let (_stranded, store) = stranded(Limits { batches_in_flight: 1, ..Limits::default() }).await;
    let quick = store.within(Duration::from_millis(60));
    eventually("the refusal is counted", async || {
        assert!(put(&quick, "k", "v").await.is_err());
        recorder.render().contains("raft_proposals_failed_total{reason=\"expired\"}")
    })
    .await;
}
