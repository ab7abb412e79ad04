//! What clients see when leaders leave.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

/// Writes one after the other through each of the given nodes until told to stop: the slowest write of all, in
/// milliseconds, and how many there were. Every write must succeed.
struct Writers {
    stop: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<(u128, usize)>>,
}

impl Writers {
    fn start(stores: impl IntoIterator<Item = Store>) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let write = |store: Store| {
            let stop = Arc::clone(&stop);
            async move {
                let (mut slowest, mut count) = (0, 0);
                while !stop.load(Ordering::Relaxed) {
                    let started = Instant::now();
                    put(&store, "k", "v").await.unwrap();
                    slowest = started.elapsed().as_millis().max(slowest);
                    count += 1;
                }
                (slowest, count)
            }
        };
        let tasks = stores.into_iter().map(|store| tokio::spawn(write(store))).collect();
        Self { stop, tasks }
    }

    async fn finish(self) -> (u128, usize) {
        self.stop.store(true, Ordering::Relaxed);
        let done: Vec<_> = join_all(self.tasks).await.into_iter().map(Result::unwrap).collect();
        (done.iter().map(|(slowest, _)| *slowest).max().unwrap(), done.iter().map(|(_, count)| count).sum())
    }
}

fn median(mut figures: Vec<u128>) -> u128 {
    figures.sort_unstable();
    figures[figures.len() / 2]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_hands_over_without_a_failed_write() {
    for size in [3, 5] {
        let cluster = Cluster::start_patient(size, Limits::default()).await;
        let mut gaps = Vec::new();
        for _ in 0..8 {
            let leader = cluster.leader().await;
            let term = cluster.store(leader).status().term;
            let writers = Writers::start(cluster.running());
            let started = Instant::now();
            cluster.store(leader).step_down().await.unwrap();
            let took = started.elapsed();
            eventually("another leads", async || cluster.leader().await != leader).await;
            let (slowest, _) = writers.finish().await;
            assert!(cluster.store(leader).status().term > term);
            // Well below the time after which a silent leader is replaced: nobody waited for that.
            assert!(took < PATIENT.election_max, "{took:?}");
            gaps.push(slowest);
        }
        println!("handover among {size}: slowest write in ms {gaps:?}, median {}", median(gaps.clone()));
        cluster.assert_replicas_equal().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_fails_no_write() {
    let mut cluster = Cluster::start(3, Limits::default()).await;
    let mut slowest_writes = Vec::new();
    for restarted in 0..3 {
        let others = (0..3).filter(|index| *index != restarted).map(|index| cluster.store(index));
        let writers = Writers::start(others.collect::<Vec<_>>());
        cluster.stop(restarted).await;
        cluster.open(restarted).await;
        cluster.store(restarted).confirm(PATIENCE).await.unwrap();
        let (slowest, count) = writers.finish().await;
        slowest_writes.push((slowest, count));
    }
    println!("rolling restart: (slowest write in ms, writes) per node {slowest_writes:?}");
    cluster.assert_replicas_equal().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_dies_is_replaced_soon() {
    let mut cluster = Cluster::start(3, Limits::default()).await;
    let mut times = Vec::new();
    for _ in 0..7 {
        let leader = cluster.leader().await;
        let survivor = cluster.store((leader + 1) % 3);
        let started = Instant::now();
        cluster.kill(leader).await;
        put(&survivor, "k", "v").await.unwrap();
        times.push(started.elapsed().as_millis());
        cluster.open(leader).await;
        cluster.store(leader).confirm(PATIENCE).await.unwrap();
    }
    println!("failover in ms {times:?}, median {}", median(times.clone()));
    // A call that is made as the leader dies waits no longer than calls do by default.
    assert!(median(times) < Timing::default().deadline.as_millis());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_successor_a_leader_goes_on() {
    let alone = Cluster::start(1, Limits::default()).await;
    alone.leader().await;
    assert!(matches!(alone.store(0).step_down().await, Err(StoreError::Unavailable(_))));
    put(&alone.store(0), "k", "v").await.unwrap();

    let mut cluster = Cluster::start_patient(3, Limits::default()).await;
    let leader = cluster.leader().await;
    let (first, second) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.kill(first).await;
    cluster.kill(second).await;
    let started = Instant::now();
    assert!(matches!(cluster.store(leader).step_down().await, Err(StoreError::Unavailable(_))));
    assert!(started.elapsed() < PATIENCE / 2);
    cluster.open(first).await;
    put(&cluster.store(leader), "k", "v").await.unwrap();
    // With one of them back there is a successor.
    let leader = cluster.leader().await;
    cluster.store(leader).step_down().await.unwrap();
    assert_ne!(cluster.leader().await, leader);
}

/// An entry that a lost leader had appended may be on another voter, and be committed by it: a proposer who took the
/// loss for a refusal would write twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_lost_leader_had_appended_may_still_be_applied() {
    use mezite_proto::peer::{self, append_response::Result as Appended, entry::Payload};
    let mut cluster = Cluster::start_patient(3, Limits::default()).await;
    let leader = cluster.leader().await;
    let other = (leader + 1) % 3;
    cluster.kill(other).await;
    cluster.kill((leader + 2) % 3).await;
    let store = cluster.store(leader);
    let before = store.status();
    let batch = peer::Batch { stamp_ms: wall_clock(), ..peer::Batch::default() };
    let core = store.inner.core.clone();
    let proposed =
        tokio::spawn(async move { core.propose(prost::Message::encode_to_vec(&batch).into()).await });
    eventually("it is in the log", async || store.status().last_log_index > before.last_log_index).await;

    // A leader of a later term has something else in its place.
    let (term, other_id) = (before.term + 1, other as u64 + 1);
    let last = peer::LogId { term: before.term, leader_id: before.node_id, index: before.last_log_index };
    let entry = peer::Entry {
        log_id: Some(peer::LogId { term, leader_id: other_id, index: last.index + 1 }),
        payload: Some(Payload::Blank(peer::Blank {})),
    };
    let append = peer::AppendRequest {
        vote: Some(peer::Ballot { term, node_id: other_id, committed: true }),
        prev_log_id: Some(last),
        entries: vec![entry],
        leader_commit: None,
    };
    let answer = store.inner.core.append(append).await.unwrap();
    assert!(matches!(answer.result, Some(Appended::Success(_))), "{answer:?}");
    let outcome = tokio::time::timeout(PATIENCE, proposed).await.unwrap().unwrap();
    assert!(matches!(outcome, crate::raft::Proposed::Unknown), "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stale_request_to_stand_disturbs_nobody() {
    let cluster = Cluster::start_patient(3, Limits::default()).await;
    let leader = cluster.leader().await;
    let follower = cluster.store((leader + 1) % 3);
    let now = follower.inner.core.ballot().await.unwrap();
    let earlier = mezite_proto::peer::Ballot { term: now.term - 1, ..now };
    assert!(!follower.inner.core.stand(&earlier).await.unwrap());
    put(&follower, "k", "v").await.unwrap();
    assert_eq!(follower.inner.core.ballot().await.unwrap(), now);
    // Nor does a candidate that lacks entries: the voters keep their leader.
    let request = mezite_proto::peer::VoteRequest {
        vote: Some(mezite_proto::peer::Ballot { term: now.term + 5, node_id: 2, committed: false }),
        last_log_id: None,
        handover: true,
    };
    let answer = follower.inner.core.vote(request).await.unwrap();
    assert!(!answer.granted);
    assert_eq!(follower.inner.core.ballot().await.unwrap(), now);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_stalled_disk_does_not_cost_the_leadership() {
    let cluster = Cluster::start_patient(3, Limits::default()).await;
    let leader = cluster.leader().await;
    let term = cluster.store(leader).status().term;
    // The core waits for each fsync of its log, so a stall of it is one of the core.
    for stalled in [leader, (leader + 1) % 3, (leader + 2) % 3, leader] {
        let committed = cluster.store(leader).status().last_log_index;
        cluster.store(stalled).inner.core.stall(PATIENT.heartbeat * 5 / 2);
        for store in cluster.running() {
            put(&store, "k", "v").await.unwrap();
        }
        let status = cluster.store(leader).status();
        assert!(status.last_log_index >= committed + 3);
        assert_eq!((status.term, status.leader_id), (term, Some(leader as u64 + 1)));
    }
}
