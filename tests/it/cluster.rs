//! The auth cluster as its operator changes it: nodes come and go while clients work, and certificates are renewed.

use std::{fs, time::Duration};

use mezite_daemon::REMOVED;
use mezite_e2e::{Cluster, Setup, call, eventually};
use mezite_proto::v1;
use serde_json::Value;

use crate::failover::{Workers, assert_kept};

const PATIENCE: Duration = Duration::from_secs(40);

/// What `mezctl cluster ls` says, asked at one node.
fn members(cluster: &Cluster, index: usize) -> Vec<Value> {
    let ctl = cluster.ctl().at(&[cluster.nodes()[index].address()]);
    ctl.json(&["cluster", "ls"]).as_array().unwrap().clone()
}

fn roles(members: &[Value]) -> Vec<&str> {
    members.iter().map(|member| member["role"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_grows_and_shrinks_while_clients_work() {
    let mut cluster = Cluster::start(3).await;
    let workers = Workers::start(&cluster);
    workers.go_on().await;

    for name in ["auth-4", "auth-5"] {
        let id = cluster.add_learner(name).await;
        let listed = members(&cluster, 0);
        let learner = listed.iter().find(|member| member["node_id"] == id).unwrap();
        assert_eq!(
            (&learner["role"], &learner["health"]),
            (&"learner".into(), &"ready".into()),
            "{listed:?}"
        );
        workers.go_on().await;
        // Refused for as long as it lacks too much, and said so.
        let id = id.to_string();
        eventually("it is a voter", PATIENCE, async || {
            let added = cluster.ctl().run(&["cluster", "add", &id]);
            if added.code != 0 {
                assert!(added.stderr.contains("lacks"), "{added:?}");
                return Err(added.stderr);
            }
            Ok(())
        })
        .await;
        // Again, it changes nothing; and whoever answers knows of it.
        for index in 0..3 {
            let ctl = cluster.ctl().at(&[cluster.nodes()[index].address()]);
            assert_eq!(ctl.json(&["cluster", "add", &id])["role"], "voter");
        }
        workers.go_on().await;
    }
    assert_eq!(roles(&members(&cluster, 0)).iter().filter(|role| **role == "voter").count(), 4);

    // The leader goes, and whoever leads then.
    for _ in 0..2 {
        let leader = cluster.leader().await;
        let id = cluster.id(leader).to_string();
        let _ = cluster.ctl().ok(&["cluster", "rm", &id]);
        let mut gone = cluster.forget(leader);
        assert_eq!(gone.ended().await.code(), Some(REMOVED.into()));
        assert!(gone.log().contains(&format!("node {id} was removed from cluster")), "{}", gone.log());
        let again = gone.run("run", &[]);
        assert!(again.code == i32::from(REMOVED) && again.stderr.contains("was removed"), "{again:?}");
        let again = gone.run("join", &[]).failed(1);
        for words in [format!("node {id} was removed from cluster"), "empty it".into()] {
            assert!(again.contains(&words), "{again}");
        }
        workers.go_on().await;
        let _ = cluster.ctl().ok(&["cluster", "rm", &id]);
    }
    let ledger = workers.finish().await;
    eprintln!("kept: {}", ledger.kept.len());
    assert_eq!(cluster.nodes().len(), 3);
    assert_kept(&cluster, &ledger).await;
    for index in 0..3 {
        let listed = members(&cluster, index);
        assert_eq!(listed.len(), 3, "{listed:?}");
        assert_eq!(roles(&listed).iter().filter(|role| **role == "leader").count(), 1, "{listed:?}");
        for member in listed {
            assert_eq!(member["health"], "ready", "{member}");
            assert!(member["lag"].is_u64(), "a follower knows it from the leader: {member}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_that_would_stop_the_cluster_is_refused_unless_forced() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let (dead, victim) = ((leader + 1) % 3, (leader + 2) % 3);
    let _ = cluster.ctl().run(&["cluster", "rm", "99"]).failed(4);
    let _ = cluster.ctl().run(&["cluster", "add", "99"]).failed(4);
    cluster.node(dead).kill();
    let listed = members(&cluster, leader);
    let gone = listed.iter().find(|member| member["node_id"] == cluster.id(dead)).unwrap();
    assert_eq!(gone["health"], "unreachable", "{gone}");

    let id = cluster.id(victim).to_string();
    let said = cluster.ctl().run(&["cluster", "rm", &id]).failed(1);
    assert!(said.contains("no quorum"), "{said}");
    cluster.add_user("while-it-is-refused", &["access"], &[]).await;

    // Forced, it waits for the one that is dead, and so does everything else.
    let forced = cluster.ctl().run(&["--timeout", "4s", "cluster", "rm", &id, "--force"]);
    assert_eq!(forced.code, 5, "{forced:?}");
    cluster.node(dead).start();
    cluster.node(dead).ready().await;
    let mut gone = cluster.forget(victim);
    assert_eq!(gone.ended().await.code(), Some(REMOVED.into()));
    eventually("two are left", PATIENCE, async || {
        let listed = cluster.status_of(0).await?.members;
        if listed.len() == 2 { Ok(()) } else { Err(format!("{listed:?}")) }
    })
    .await;
    cluster.add_user("afterwards", &["access"], &[]).await;
    for name in ["while-it-is-refused", "afterwards"] {
        call!(cluster.admin_at(1), get_user, v1::GetUserRequest { name: name.into() }).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn peer_certificates_are_renewed_without_a_restart() {
    let set = vec!["raft.peer_certificate_life='12s'".to_owned()];
    let mut cluster = Cluster::start_with(&Setup { nodes: 3, set, ..Setup::default() }).await;
    let leader = cluster.leader().await;
    let (follower, away) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.node(away).stop().await;
    let files: Vec<_> = [leader, follower]
        .map(|index| cluster.nodes()[index].data_dir().join("peer.crt"))
        .into_iter()
        .collect();
    let read = || files.iter().map(|file| fs::read_to_string(file).unwrap()).collect::<Vec<_>>();
    // Two renewals, each after two thirds of the life: the first certificates have ended.
    for _ in 0..2 {
        let before = read();
        eventually("both certificates are renewed", PATIENCE, async || {
            let renewed = read().iter().zip(&before).all(|(now, before)| now != before);
            if renewed { Ok(()) } else { Err("not yet") }
        })
        .await;
    }
    // One that was away for longer than its certificate lived comes back, and connects anew to both.
    cluster.node(away).start();
    cluster.node(away).ready().await;
    cluster.node(leader).kill();
    let next = cluster.leader().await;
    assert_ne!(next, leader);
    cluster.add_user("alice", &["access"], &[]).await;
    cluster.node(leader).start();
    cluster.node(leader).ready().await;
    call!(cluster.admin_at(leader), get_user, v1::GetUserRequest { name: "alice".into() }).unwrap();
}
