//! Lockouts: counted over all nodes, by the cluster's time, and told to nobody but who manages users.

use std::{fs, time::Duration};

use mezite_e2e::{ADMIN, Cluster, PASSWORD, Scratch, Setup, api, call, eventually, tools};
use mezite_proto::v1;
use tonic::Code;

const WRONG: &str = "wrong horse battery staple";

/// Tries to log in at one node: what it answers.
async fn refused(cluster: &Cluster, index: usize, user: &str, password: &str) -> (String, String) {
    let client = cluster.anonymous_at(index);
    let refused = api::refused(api::log_in(&client, user, password).await, Code::Unauthenticated);
    (refused.message, refused.reason.unwrap_or_default())
}

async fn configure(cluster: &Cluster, config: v1::ClusterConfig) {
    let request = v1::UpdateClusterConfigRequest { config: Some(config) };
    call!(cluster.admin(), update_cluster_config, request).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn tries_that_are_spread_over_the_nodes_count_together_and_an_unknown_name_is_answered_alike() {
    let cluster = Cluster::start(3).await;
    configure(&cluster, v1::ClusterConfig { lockout_threshold: 3, ..Default::default() }).await;
    cluster.add_user("alice", &["access"], &[]).await;
    let session = cluster.session_of("alice").await;

    let mut answers = Vec::new();
    for name in ["alice", "nobody"] {
        for index in 0..3 {
            answers.push(refused(&cluster, index, name, WRONG).await);
        }
        // It was counted wherever it was tried: now the right one is no better, whoever is asked.
        for index in 0..3 {
            answers.push(refused(&cluster, index, name, PASSWORD).await);
        }
    }
    answers.dedup();
    assert_eq!(answers.len(), 1, "{answers:?}");

    // Nobody else is kept out, nor the session that there is.
    for index in 0..3 {
        api::log_in(&cluster.anonymous_at(index), ADMIN, PASSWORD).await.unwrap();
        let client = cluster.user_at(index, &session);
        let users = call!(client, list_users, v1::ListUsersRequest::default()).unwrap().users;
        assert!(users.iter().all(|user| user.lockouts.is_empty()), "it is not for everybody to see");
    }
    let shown = cluster.ctl().json(&["users", "get", "alice"]);
    assert_eq!(shown["lockouts"][0]["network"], "127.0.0.0/24");
    assert_eq!(shown["lockouts"][0]["failures"], 3);
    assert!(cluster.ctl().ok(&["users", "ls"]).contains("127.0.0.0/24"));
    let said = cluster.ctl_named("alice").login("alice", PASSWORD).failed(3);
    assert!(!said.contains("locked"), "{said}");

    let _ = cluster.ctl().ok(&["users", "clear-lockout", "alice"]);
    for index in 0..3 {
        api::log_in(&cluster.anonymous_at(index), "alice", PASSWORD).await.unwrap();
    }
    let request = v1::ClearUserLockoutRequest { name: "alice".into() };
    let denied = call!(cluster.user_at(0, &session), clear_user_lockout, request);
    api::refused(denied, Code::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lockout_ends_by_itself() {
    let scratch = Scratch::new();
    let offset = scratch.path().join("offset");
    fs::write(&offset, "+0").unwrap();
    let setup = Setup { env: tools::shifted_clock(&offset), ..Setup::default() };
    let cluster = Cluster::start_with(&setup).await;
    let hour = Some(prost_types::Duration { seconds: 3600, nanos: 0 });
    let config = v1::ClusterConfig { lockout_threshold: 2, lockout_duration: hour, ..Default::default() };
    configure(&cluster, config).await;
    cluster.add_user("alice", &["access"], &[]).await;
    for _ in 0..2 {
        refused(&cluster, 0, "alice", WRONG).await;
    }
    fs::write(&offset, "+3500s").unwrap();
    refused(&cluster, 0, "alice", PASSWORD).await;
    fs::write(&offset, "+3700s").unwrap();
    let client = cluster.anonymous_at(0);
    eventually("the lockout has ended", Duration::from_secs(20), async || {
        api::log_in(&client, "alice", PASSWORD).await.map(drop)
    })
    .await;
}
