//! A clock that is wrong, among others that are right.

use super::*;
use crate::{Role, time::ClusterTime};

const HOUR: u64 = 3_600_000;
const DAY: i64 = 24 * 3_600_000;

fn is_near(time: u64) -> bool {
    time.abs_diff(wall_clock()) < HOUR
}

async fn put_until(store: &Store, key: &'static [u8], end: u64) {
    let put = store.transact(move |tx| {
        tx.put_raw(key.to_vec(), b"v".to_vec(), Some(end));
        Ok::<_, TxError>(())
    });
    put.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_clock_is_days_off_ends_nothing_and_keeps_nothing() {
    for error in [10 * DAY, -10 * DAY] {
        let cluster = Cluster::start_patient(3, Limits::default()).await;
        let leader = cluster.leader().await;
        let store = cluster.store(leader);
        put_until(&store, b"long", wall_clock() + HOUR).await;
        cluster.nodes[leader].clock_error.store(error, Ordering::Relaxed);
        // What it stamps before it has looked is sound as well.
        put(&store, "k", "before").await.unwrap();
        assert!(is_near(store.inner.state.counters().stamp_ms));
        eventually("it notices", async || store.inner.time.is_corrected()).await;
        put_until(&store, b"short", wall_clock() + 2_000).await;
        for writer in cluster.running() {
            put(&writer, "k", "after").await.unwrap();
        }
        eventually("what ends is gone", async || get(&store, "short").await.is_none()).await;
        for reader in cluster.running() {
            assert!(get(&reader, "long").await.is_some());
            assert!(is_near(reader.inner.state.counters().stamp_ms));
        }
        // Who looks for the first time, as after a restart, finds the same.
        let (core, pool) = (store.inner.core.clone(), store.inner.pool.clone());
        let fresh = ClusterTime::new(core, pool, &store.inner.config);
        assert!(is_near(fresh.stamp().await.unwrap()) && !is_near(fresh.own()));
        cluster.nodes[leader].clock_error.store(0, Ordering::Relaxed);
        eventually("it notices", async || !store.inner.time.is_corrected()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learners_clock_has_no_vote() {
    let mut cluster = Cluster::start(1, Limits::default()).await;
    let learner = cluster.add().await;
    cluster.activate(learner, Role::Learner).await;
    cluster.nodes[learner].clock_error.store(-10 * DAY, Ordering::Relaxed);
    let store = cluster.store(learner);
    eventually("it goes by the voter", async || store.inner.time.measured().is_some_and(is_near)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_nothing_is_stamped() {
    let mut cluster = Cluster::start(3, Limits::default()).await;
    let store = cluster.store(0);
    let (core, pool) = (store.inner.core.clone(), store.inner.pool.clone());
    cluster.kill(1).await;
    cluster.kill(2).await;
    let fresh = ClusterTime::new(core, pool, &store.inner.config);
    assert_eq!(fresh.stamp().await, None);
    assert!(is_near(fresh.now()));
    cluster.open(1).await;
    eventually("it is stamped again", async || fresh.stamp().await.is_some()).await;
}
