//! Passwords, sessions, and what users may do.

use std::time::{Duration, Instant};

use mezite_client::SessionSecret;
use mezite_e2e::{ADMIN, Cluster, PASSWORD, api, call};
use mezite_proto::v1;
use tonic::Code;

const WRONG: &str = "wrong horse battery staple";

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_and_an_unknown_user_are_answered_alike() {
    let cluster = Cluster::start(1).await;
    // What is measured here is not to be shut out meanwhile.
    let config = v1::ClusterConfig { lockout_threshold: 1000, ..Default::default() };
    call!(cluster.admin(), update_cluster_config, v1::UpdateClusterConfigRequest { config: Some(config) })
        .unwrap();
    let client = cluster.anonymous_at(0);
    let attempt = async |user: &str, password: &str| {
        let began = Instant::now();
        let refused = api::refused(api::log_in(&client, user, password).await, Code::Unauthenticated);
        (refused.message, refused.reason, began.elapsed())
    };
    let (message, reason, _) = attempt(ADMIN, WRONG).await;
    assert!(!message.contains(ADMIN), "{message}");
    let (mut known, mut unknown) = (Duration::MAX, Duration::MAX);
    for _ in 0..10 {
        let (wrong, wrong_reason, took) = attempt(ADMIN, WRONG).await;
        known = known.min(took);
        assert_eq!((wrong, wrong_reason), (message.clone(), reason.clone()));
        let (nobody, nobody_reason, took) = attempt("nobody", WRONG).await;
        unknown = unknown.min(took);
        assert_eq!((nobody, nobody_reason), (message.clone(), reason.clone()));
    }
    // The fastest of ten, and a wide margin: a lookup that skips the hash takes a hundredth of one that does not.
    assert!(unknown > known / 8 && known > unknown / 8, "known: {known:?}, unknown: {unknown:?}");

    let (empty, ..) = attempt(ADMIN, "").await;
    assert_eq!(empty, message);
    let long = "x".repeat(1025);
    api::refused(api::log_in(&client, ADMIN, &long).await, Code::InvalidArgument);
    let said = cluster.ctl_named("nobody").login("nobody", WRONG).failed(3);
    assert!(!said.contains(WRONG), "{said}");
    api::log_in(&client, &ADMIN.to_uppercase(), PASSWORD).await.expect("names are canonical");
}

/// What an end of a session must mean on every node, whichever was asked to end it.
async fn assert_refused_everywhere(cluster: &Cluster, session: &SessionSecret) {
    let nodes = 0..cluster.nodes().len();
    let calls = nodes.map(|index| {
        let client = cluster.user_at(index, session);
        async move { call!(client, list_users, v1::ListUsersRequest::default()) }
    });
    for result in futures::future::join_all(calls).await {
        api::refused(result, Code::Unauthenticated);
    }
}

/// A session that every node has just honoured.
async fn session(cluster: &Cluster, user: &str) -> SessionSecret {
    let session = cluster.session_of(user).await;
    for index in 0..cluster.nodes().len() {
        let client = cluster.user_at(index, &session);
        call!(client, list_users, v1::ListUsersRequest::default()).unwrap();
    }
    session
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_session_is_refused_by_every_node_at_once() {
    let cluster = Cluster::start(3).await;
    cluster.add_user("alice", &["access"], &[]).await;
    for round in 0..15 {
        let session = session(&cluster, "alice").await;
        let by = cluster.admin_at(round % 3);
        let named = match round % 2 {
            0 => session.expose().to_owned(),
            _ => handle(&cluster, "alice").await,
        };
        call!(by, revoke_session, v1::RevokeSessionRequest { session: named }).unwrap();
        assert_refused_everywhere(&cluster, &session).await;
    }
}

async fn handle(cluster: &Cluster, user: &str) -> String {
    let request = v1::ListActiveSessionsRequest { user: user.into(), ..Default::default() };
    let mut sessions = call!(cluster.admin(), list_active_sessions, request).unwrap().sessions;
    assert_eq!(sessions.len(), 1, "{sessions:?}");
    sessions.remove(0).handle
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_ends_a_session_ends_it_on_every_node() {
    let cluster = Cluster::start(3).await;
    let admin = cluster.admin();
    for index in 0..3 {
        let name = format!("alice-{index}");
        cluster.add_user(&name, &["access"], &[]).await;

        let ended = session(&cluster, &name).await;
        call!(cluster.user_at(index, &ended), logout, v1::LogoutRequest {}).unwrap();
        assert_refused_everywhere(&cluster, &ended).await;

        // A new password ends the other sessions and leaves the one that set it.
        let (other, own) = (session(&cluster, &name).await, session(&cluster, &name).await);
        let changed = "a password that is new";
        let request =
            v1::ChangePasswordRequest { old_password: PASSWORD.into(), new_password: changed.into() };
        let client = cluster.user_at(index, &own);
        let reply =
            client.call(mezite_client::Retry::once("look"), request, |mut auth, request| async move {
                auth.change_password(request).await
            });
        assert_eq!(reply.await.unwrap().sessions_ended, 1);
        assert_refused_everywhere(&cluster, &other).await;
        call!(client, list_users, v1::ListUsersRequest::default()).unwrap();
        api::refused(api::log_in(&cluster.anonymous_at(index), &name, PASSWORD).await, Code::Unauthenticated);

        let request = v1::ResetUserPasswordRequest {
            name: name.clone(),
            new_password: PASSWORD.into(),
            ..Default::default()
        };
        call!(admin, reset_user_password, request).unwrap();
        assert_refused_everywhere(&cluster, &own).await;

        let last = session(&cluster, &name).await;
        call!(cluster.admin_at(index), delete_user, v1::DeleteUserRequest { name: name.clone() }).unwrap();
        assert_refused_everywhere(&cluster, &last).await;
        api::refused(api::log_in(&cluster.anonymous_at(index), &name, PASSWORD).await, Code::Unauthenticated);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_was_taken_away_counts_at_once() {
    let cluster = Cluster::start(3).await;
    cluster.add_user("alice", &["admin"], &[]).await;
    let session = session(&cluster, "alice").await;
    for round in 0..6 {
        let roles = if round % 2 == 0 { vec!["access".to_owned()] } else { vec!["admin".to_owned()] };
        let user = v1::User { name: "alice".into(), roles, ..Default::default() };
        let by = cluster.admin_at(round % 3);
        call!(by, update_user, v1::UpdateUserRequest { user: Some(user) }).unwrap();
        for index in 0..3 {
            let client = cluster.user_at(index, &session);
            let result = call!(client, list_tokens, v1::ListTokensRequest::default());
            match round % 2 {
                0 => drop(api::refused(result, Code::PermissionDenied)),
                _ => drop(result.unwrap()),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_gets_more_than_they_hold() {
    let cluster = Cluster::start(1).await;
    let admin = cluster.admin();
    cluster.add_user("alice", &["access"], &[]).await;
    let alice = cluster.user_at(0, &cluster.session_of("alice").await);

    let user = v1::User { name: "alice".into(), roles: vec!["admin".into()], ..Default::default() };
    let request = v1::UpdateUserRequest { user: Some(user.clone()) };
    api::refused(call!(alice, update_user, request.clone()), Code::PermissionDenied);
    let request = v1::CreateUserRequest {
        user: Some(v1::User { name: "eve".into(), ..user.clone() }),
        password: PASSWORD.into(),
        ..Default::default()
    };
    api::refused(call!(alice, create_user, request), Code::PermissionDenied);

    // The last admin stays one.
    let demoted = v1::User { name: ADMIN.into(), roles: vec!["access".into()], ..Default::default() };
    let request = v1::UpdateUserRequest { user: Some(demoted) };
    api::refused(call!(admin, update_user, request), Code::FailedPrecondition);
    let request = v1::DeleteUserRequest { name: ADMIN.into() };
    api::refused(call!(admin, delete_user, request), Code::FailedPrecondition);
    for role in ["admin", "access", "auditor"] {
        let request = v1::DeleteRoleRequest { name: role.into() };
        api::refused(call!(admin, delete_role, request), Code::FailedPrecondition);
    }

    // Sessions of others are neither shown nor ended.
    let request = v1::ListActiveSessionsRequest::default();
    let sessions = call!(alice, list_active_sessions, request).unwrap().sessions;
    assert!(sessions.iter().all(|session| session.user == "alice") && sessions.len() == 1, "{sessions:?}");
    let request = v1::RevokeSessionRequest { session: cluster.session().expose().to_owned() };
    api::refused(call!(alice, revoke_session, request), Code::PermissionDenied);
}
