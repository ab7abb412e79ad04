//! Who belongs to the cluster.

use super::*;
use crate::{MembershipError, NotReady, membership::REMOVED};

fn is_removal(error: &StoreError) -> bool {
    matches!(error, StoreError::Stopped(message) if message == REMOVED)
}

/// A node that is not the leader, and is not `not`.
async fn follower(cluster: &Cluster, not: Option<usize>) -> usize {
    let leader = cluster.leader().await;
    (0..cluster.nodes.len())
        .find(|index| *index != leader && Some(*index) != not && cluster.nodes[*index].store.is_some())
        .unwrap()
}

fn voters(store: &Store) -> Vec<u64> {
    let members = store.members().into_iter();
    members.filter(|member| member.voter).map(|member| member.node_id).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learner_follows_and_becomes_a_voter_when_it_has_caught_up() {
    let mut cluster = Cluster::start(3, Limits { voter_lag: 5, ..Limits::default() }).await;
    let learner = cluster.add().await;
    cluster.activate(learner, Role::Learner).await;
    put(&cluster.store(0), "k", "v").await.unwrap();
    assert_eq!(get(&cluster.store(learner), "k").await.as_deref(), Some("v"));
    assert_eq!(voters(&cluster.store(learner)), [1, 2, 3]);
    put(&cluster.store(learner), "k", "w").await.unwrap();

    // While it is away it falls behind, and is not made a voter: not through the leader, not through a follower.
    cluster.kill(learner).await;
    for n in 0..20 {
        put(&cluster.store(0), "k", &n.to_string()).await.unwrap();
    }
    for index in 0..3 {
        match cluster.store(index).promote(4).await {
            Err(MembershipError::NotCaughtUp { node_id: 4, lag: 20.., max_lag: 5 }) => {}
            other => panic!("{other:?}"),
        }
    }
    cluster.open(learner).await;
    assert_eq!(get(&cluster.store(learner), "k").await.as_deref(), Some("19"));
    let through = cluster.store(follower(&cluster, Some(learner)).await);
    eventually("the learner is a voter", async || through.promote(4).await.is_ok()).await;
    // Again, and as a learner: it stays a voter.
    through.promote(4).await.unwrap();
    cluster.activate(learner, Role::Learner).await;
    eventually("all know", async || cluster.running().all(|store| voters(&store) == [1, 2, 3, 4])).await;
    assert!(matches!(through.promote(9).await, Err(MembershipError::NotAMember(9))));
    cluster.assert_replicas_equal().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_node_is_told_so_and_never_returns() {
    let mut cluster = Cluster::start(4, Limits::default()).await;
    put(&cluster.store(0), "k", "v").await.unwrap();
    let leaving = follower(&cluster, None).await;
    let through = follower(&cluster, Some(leaving)).await;
    let leaving_id = leaving as u64 + 1;
    cluster.store(through).remove(leaving_id, false).await.unwrap();
    // Again: nothing to do, through any node.
    for index in (0..4).filter(|index| *index != leaving) {
        cluster.store(index).remove(leaving_id, false).await.unwrap();
    }
    let gone = cluster.store(leaving);
    eventually("it knows", async || gone.status().removed).await;
    assert!(is_removal(&gone.confirm(PATIENCE).await.unwrap_err()));
    let refused = put(&gone, "k", "w").await;
    assert!(matches!(&refused, Err(TransactError::Store(error)) if is_removal(error)), "{refused:?}");
    assert_eq!(gone.ready(0).await, Err(NotReady::Removed));
    assert!(matches!(gone.promote(1).await, Err(MembershipError::Store(error)) if is_removal(&error)));
    assert!(is_removal(&gone.activate(&cluster.addresses(), Role::Voter).await.unwrap_err()));
    drop(gone);
    // Nor as a learner, after a restart, nor by its peers' will; and they remember after a restart and a snapshot.
    cluster.kill(leaving).await;
    cluster.store(through).trigger_snapshot().await.unwrap();
    eventually("the snapshot is taken", async || cluster.store(through).status().snapshot_index > 0).await;
    cluster.stop(through).await;
    cluster.open(through).await;
    cluster.open(leaving).await;
    let again = cluster.store(leaving).activate(&cluster.addresses(), Role::Learner).await;
    assert!(is_removal(&again.unwrap_err()));
    assert!(matches!(
        cluster.store(through).promote(leaving_id).await,
        Err(MembershipError::Removed(id)) if id == leaving_id
    ));
    assert!(!voters(&cluster.store(through)).contains(&leaving_id));
    assert_eq!(get(&cluster.store(through), "k").await.as_deref(), Some("v"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_never_took_part_is_barred_and_never_does() {
    let mut cluster = Cluster::start(3, Limits::default()).await;
    let joined = cluster.add().await;
    let joined_id = joined as u64 + 1;
    let through = cluster.store(follower(&cluster, Some(joined)).await);
    assert!(matches!(through.remove(joined_id, true).await, Err(MembershipError::NotAMember(4))));
    through.bar(joined_id).await.unwrap();
    through.bar(joined_id).await.unwrap();
    eventually("it knows", async || through.was_removed(joined_id)).await;
    assert_eq!(through.members().len(), 3);
    let late = cluster.store(joined);
    assert!(is_removal(&late.activate(&cluster.addresses(), Role::Voter).await.unwrap_err()));
    // One that has become a member meanwhile is removed as any.
    let leaving = follower(&cluster, Some(joined)).await as u64 + 1;
    through.bar(leaving).await.unwrap();
    let store = cluster.store(cluster.leader().await);
    eventually("all know", async || store.was_removed(leaving) && voters(&store).len() == 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_can_be_removed_through_itself_and_through_another() {
    let cluster = Cluster::start(4, Limits::default()).await;
    let first = cluster.leader().await;
    cluster.store(first).remove(first as u64 + 1, false).await.unwrap();
    eventually("it knows", async || cluster.store(first).status().removed).await;
    let rest: Vec<usize> = (0..4).filter(|index| *index != first).collect();
    let mut second = first;
    eventually("another leads", async || {
        let known = cluster.store(rest[0]).confirm(PATIENCE).await.is_ok();
        second = cluster.store(rest[0]).status().leader_id.map_or(first, |leader| leader as usize - 1);
        known && second != first
    })
    .await;
    let through = rest.iter().copied().find(|index| *index != second).unwrap();
    cluster.store(through).remove(second as u64 + 1, false).await.unwrap();
    put(&cluster.store(through), "k", "v").await.unwrap();
    eventually("it knows", async || cluster.store(second).status().removed).await;
    let left = voters(&cluster.store(through));
    assert_eq!(left.len(), 2);
    assert!(!left.contains(&(first as u64 + 1)) && !left.contains(&(second as u64 + 1)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removal_that_would_stop_the_cluster_is_refused() {
    let mut cluster = Cluster::start(3, Limits::default()).await;
    let away = follower(&cluster, None).await;
    cluster.kill(away).await;
    let other = follower(&cluster, Some(away)).await;
    let store = cluster.store(other);
    match store.remove(other as u64 + 1, false).await {
        Err(MembershipError::NoQuorum { reachable: 1, voters: 2, .. }) => {}
        answer => panic!("{answer:?}"),
    }
    put(&store, "k", "v").await.unwrap();
    // The one that is away can be removed, and then there are two that work.
    store.remove(away as u64 + 1, false).await.unwrap();
    put(&store, "k", "w").await.unwrap();
    assert_eq!(voters(&store).len(), 2);

    let alone = Cluster::start(1, Limits::default()).await;
    for force in [false, true] {
        assert!(matches!(alone.store(0).remove(1, force).await, Err(MembershipError::LastVoter(1))));
    }
    assert!(matches!(alone.store(0).remove(2, false).await, Err(MembershipError::NotAMember(2))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_was_interrupted_between_its_steps_is_finished() {
    let mut cluster = Cluster::start_patient(3, Limits::default()).await;
    let leader = cluster.leader().await;
    let (away, leaving) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.kill(away).await;
    // The first step needs a majority of the two that remain, so it is in the log, and does not commit.
    let changing = cluster.store(leader);
    let forced = changing.within(Duration::from_secs(3)).remove(leaving as u64 + 1, true).await;
    assert!(matches!(forced, Err(MembershipError::Store(StoreError::OutcomeUnknown))), "{forced:?}");
    assert!(changing.inner.core.is_joint());
    let status = changing.status();
    let written = |store: &Store| store.status().last_log_index >= status.last_log_index;
    eventually("the other has it too", async || written(&cluster.store(leaving))).await;
    drop(changing);
    cluster.kill(leader).await;
    cluster.kill(leaving).await;
    for index in 0..3 {
        cluster.open(index).await;
    }
    let remaining = [leader, away].map(|index| cluster.store(index));
    eventually("the change is finished", async || {
        remaining.iter().all(|store| !store.inner.core.is_joint() && voters(store).len() == 2)
    })
    .await;
    eventually("it knows", async || cluster.store(leaving).status().removed).await;
    put(&remaining[0], "k", "v").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_is_one_when_the_change_that_made_it_one_has_both_its_steps() {
    let mut cluster = Cluster::start_patient(3, Limits::default()).await;
    let learner = cluster.add().await;
    cluster.activate(learner, Role::Learner).await;
    let leader = cluster.leader().await;
    let away = [(leader + 1) % 3, learner];
    let changing = cluster.store(leader);
    let caught_up = async || get(&cluster.store(learner), "k").await.as_deref() == Some("v");
    put(&changing, "k", "v").await.unwrap();
    eventually("the learner has caught up", caught_up).await;
    // The first step needs three of the four that are to vote, so it is in the log, and does not commit.
    for index in away {
        cluster.kill(index).await;
    }
    let broken_off = changing.within(Duration::from_secs(3)).promote(4).await;
    assert!(matches!(broken_off, Err(MembershipError::Store(_))), "{broken_off:?}");
    assert!(changing.inner.core.is_joint() && voters(&changing).contains(&4));

    // The leader counts it among the voters already. It is asked all the while that the first step becomes possible.
    let asking = tokio::spawn({
        let changing = changing.within(PATIENCE);
        async move {
            let answer = changing.promote(4).await;
            (answer, changing.inner.core.is_joint(), changing.inner.core.is_settled())
        }
    });
    for index in away {
        cluster.open(index).await;
    }
    let (answer, joint, settled) = asking.await.unwrap();
    answer.unwrap();
    assert!(!joint && settled, "it is answered when the members are as they were asked for");
    eventually("all know", async || cluster.running().all(|store| voters(&store) == [1, 2, 3, 4])).await;
    put(&changing, "k", "w").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_moved_tells_its_address() {
    let mut cluster = Cluster::start(3, Limits::default()).await;
    let moving = follower(&cluster, None).await;
    cluster.stop(moving).await;
    cluster.nodes[moving].port = Port::lease();
    cluster.open(moving).await;
    cluster.activate(moving, Role::Voter).await;
    let address = cluster.nodes[moving].port.address();
    put(&cluster.store(moving), "k", "v").await.unwrap();
    eventually("all know", async || {
        let knows = |store: Store| store.members()[moving].peer_address == address;
        cluster.running().all(knows)
    })
    .await;
    assert_eq!(get(&cluster.store(moving), "k").await.as_deref(), Some("v"));
}
