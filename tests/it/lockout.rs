//! Lockouts: counted over all nodes, by the cluster's time, and told to nobody but who manages users.

use std::{fs, net::Ipv4Addr, time::Duration};

use mezite_client::{ClientError, RetryPolicy, StatusError};
use mezite_e2e::{ADMIN, Cluster, PASSWORD, Scratch, Setup, api, call, eventually, tools};
use mezite_proto::v1;
use tonic::Code;

use crate::support::seen_at;

/// An address of another network than this machine's usual.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(127, 0, 7, 1);
const WRONG: &str = "wrong horse battery staple";

/// Tries to log in at one node: what it answers.
async fn refused(cluster: &Cluster, index: usize, user: &str, password: &str) -> (String, String) {
    let client = cluster.anonymous_at(index);
    let refused = api::refused(api::log_in(&client, user, password).await, Code::Unauthenticated);
    (refused.message, refused.reason.unwrap_or_default())
}

/// Asks once, and takes what is answered.
fn once() -> RetryPolicy {
    RetryPolicy { attempts_per_address: 1, ..RetryPolicy::default() }
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

#[tokio::test(flavor = "multi_thread")]
async fn whoever_tries_many_names_shuts_out_its_own_network_on_all_nodes_and_nobody_who_is_known_there() {
    let cluster = Cluster::start(3).await;
    configure(&cluster, v1::ClusterConfig { lockout_threshold: 3, ..Default::default() }).await;
    cluster.add_user("alice", &["access"], &[]).await;
    cluster.add_user("bob", &["access"], &[]).await;
    // The admin is known here; alice is so at another network.
    let elsewhere =
        api::client(&[seen_at(ELSEWHERE, &cluster.nodes()[0].address()).await], cluster.trust(), None, None);
    api::log_in(&elsewhere, "alice", PASSWORD).await.unwrap();

    let mut answers = Vec::new();
    for number in 0..30 {
        answers.push(refused(&cluster, number % 3, &format!("name{number}"), WRONG).await);
    }
    for index in 0..3 {
        answers.push(refused(&cluster, index, "alice", PASSWORD).await);
        answers.push(refused(&cluster, index, "bob", PASSWORD).await);
        api::log_in(&cluster.anonymous_at(index), ADMIN, PASSWORD).await.unwrap();
    }
    answers.dedup();
    assert_eq!(answers.len(), 1, "{answers:?}");
    for user in ["alice", "bob"] {
        api::log_in(&elsewhere, user, PASSWORD).await.unwrap();
    }

    let shown = cluster.ctl().json(&["users", "get", "alice"]);
    assert_eq!(shown["lockouts"][0]["network"], "127.0.0.0/24");
    assert_eq!(
        (&shown["lockouts"][0]["of_all_users"], &shown["lockouts"][0]["failures"]),
        (&true.into(), &30.into())
    );
    let _ = cluster.ctl().ok(&["users", "clear-lockout", "alice"]);
    for index in 0..3 {
        api::log_in(&cluster.anonymous_at(index), "alice", PASSWORD).await.unwrap();
        api::log_in(&cluster.anonymous_at(index), "bob", PASSWORD).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_has_all_that_it_can_hashed_leaves_places_for_the_others() {
    const STRANGERS: usize = 16;
    let set = vec!["limits.password_threads=1".to_owned(), "limits.password_queue=7".to_owned()];
    let cluster = Cluster::start_with(&Setup { set, ..Setup::default() }).await;
    configure(&cluster, v1::ClusterConfig { lockout_threshold: 1000, ..Default::default() }).await;
    let elsewhere = seen_at(ELSEWHERE, &cluster.nodes()[0].address()).await;
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let flood = (0..STRANGERS).map(|number| {
        let (client, stopped) = (cluster.anonymous_at(0).with_policy(once()), stopped.clone());
        tokio::spawn(async move {
            let mut busy = 0;
            while !*stopped.borrow() {
                let answer = api::log_in(&client, &format!("name{number}"), WRONG).await.unwrap_err();
                let full = |status: &StatusError| status.code == Code::ResourceExhausted;
                busy += usize::from(matches!(answer, ClientError::Status(status) if full(&status)));
            }
            busy
        })
    });
    let flood: Vec<_> = flood.collect();
    let admin = api::client(&[elsewhere], cluster.trust(), None, None).with_policy(once());
    for _ in 0..20 {
        api::log_in(&admin, ADMIN, PASSWORD).await.unwrap();
    }
    stop.send_replace(true);
    let mut busy = 0;
    for stranger in flood {
        busy += stranger.await.unwrap();
    }
    assert!(busy > 0, "the strangers asked for no more than their share");
}
