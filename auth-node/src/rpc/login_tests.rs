use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use mezite_proto::v1::lock_target::Target;
use tonic::Code;

use super::*;
use crate::rpc::{
    locks,
    testing::{BOSS, Node, anonymous, assert_invalid, with},
    users,
};

async fn change(node: &Node, session: &str, old: &str, new: &str) -> Result<u32, ApiError> {
    let request = v1::ChangePasswordRequest { old_password: old.into(), new_password: new.into() };
    Ok(change_password(&node.service, &with(session, "ChangePassword"), request).await?.sessions_ended)
}

async fn is_honoured(node: &Node, session: &str) -> bool {
    let request = v1::GetUserRequest { name: "boss".into() };
    match users::get(&node.service, &with(session, "GetUser"), request).await {
        Ok(_) => true,
        Err(error) if error.code() == Code::Unauthenticated => false,
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test]
async fn a_password_is_exchanged_for_a_session_that_is_shown_once() {
    let node = Node::start().await;
    let request = v1::AuthenticateLocalRequest { username: "BOSS".into(), password: BOSS.into() };
    let reply = authenticate_local(&node.service, &anonymous("AuthenticateLocal"), request).await.unwrap();
    let (id, session) = (reply.session_id, reply.session.unwrap());
    assert_eq!(URL_SAFE_NO_PAD.decode(&id).unwrap().len(), 32);
    assert_eq!((session.user.as_str(), session.client_address.as_str()), ("boss", "192.0.2.9"));
    assert_eq!(session.method(), v1::AuthMethod::Password);
    let (created, expires) = (session.created_at.unwrap(), session.expires_at.unwrap());
    assert_eq!(expires.seconds - created.seconds, 12 * 3600);
    assert!(is_honoured(&node, &id).await);
    assert!(!is_honoured(&node, &session.handle).await);

    let record = node.audited("user.login").await.pop().unwrap();
    assert_eq!((record.actor.as_str(), record.client_address.as_str()), ("user:boss", "192.0.2.9"));
    assert_eq!(record.target, format!("session:{}", session.handle));
    assert!(node.audit().await.iter().all(|record| !format!("{record:?}").contains(&id)));
    assert_ne!(node.boss().await, id);
}

#[tokio::test]
async fn unknown_user_and_wrong_password_give_the_same_answer() {
    let node = Node::start().await;
    let mut answers = Vec::new();
    for (username, password) in
        [("boss", "not the password"), ("hunter2", BOSS), ("not a name", BOSS), ("", ""), ("boss", "")]
    {
        let status = node.log_in(username, password).await.unwrap_err().into_status("r");
        assert_eq!(status.code(), Code::Unauthenticated);
        answers.push((status.message().to_owned(), status.details().to_vec()));
    }
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    assert!(answers[0].0.starts_with("wrong username or password"), "{answers:?}");

    let records = node.audited("user.login.failed").await;
    let targets: Vec<_> = records.iter().map(|record| record.target.as_str()).collect();
    assert_eq!(targets, ["user:boss", "user:?", "user:?", "user:?", "user:boss"]);
    assert!(records.iter().all(|record| !record.success && record.actor == "anonymous"));
    assert!(node.audit().await.iter().all(|record| !format!("{record:?}").contains("hunter2")));
}

/// Whoever is asked for: while no password can be hashed, no answer comes.
#[tokio::test]
async fn an_unknown_user_waits_for_a_hash_like_a_known_one() {
    let node = Node::start().await;
    let boss = node.boss().await;
    let user = v1::User { name: "ann".into(), roles: vec!["access".into()], ..Default::default() };
    let request =
        v1::CreateUserRequest { user: Some(user), password: "a password of ann".into(), invite_ttl: None };
    users::create(&node.service, &with(&boss, "CreateUser"), request).await.unwrap();
    let target = Some(v1::LockTarget { target: Some(Target::User("ann".into())) });
    let request = v1::CreateLockRequest { target, ..Default::default() };
    locks::create(&node.service, &with(&boss, "CreateLock"), request).await.unwrap();

    for (name, password) in [
        ("boss", "not the password"),
        ("nobody", "not the password"),
        ("not a name", "not the password"),
        ("ann", "a password of ann"),
    ] {
        let thread = node.service.passwords.take_thread().await;
        let mut login = Box::pin(node.log_in(name, password));
        // A login that asks for no hash takes one read and one write.
        let many_writes = async {
            for _ in 0..20 {
                let written = node.service.store.transact(|_| Ok::<_, CoreError>(()));
                written.await.map_err(ApiError::from).unwrap();
                node.audit().await;
            }
        };
        tokio::select! {
            biased;
            answer = &mut login => panic!("{name} was answered without a hash: {answer:?}"),
            () = many_writes => (),
        }
        drop(thread);
        assert_eq!(login.await.unwrap_err().code(), Code::Unauthenticated, "{name}");
    }
}

#[tokio::test]
async fn a_session_that_has_ended_does_not_stand_in_the_way_of_a_login() {
    let node = Node::start().await;
    let request = v1::AuthenticateLocalRequest { username: "boss".into(), password: BOSS.into() };
    let call = with("a session that is over", "AuthenticateLocal");
    assert!(authenticate_local(&node.service, &call, request).await.is_ok());
}

#[tokio::test]
async fn past_the_bound_of_the_pool_a_login_is_refused_at_once() {
    let node = Node::start().await;
    let turns = node.service.passwords.take_places();
    let records = node.audit().await.len();
    for password in [BOSS, "not the password"] {
        let refused = node.log_in("boss", password).await.unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted);
    }
    assert_eq!(node.audit().await.len(), records);
    drop(turns);
    assert!(node.log_in("boss", BOSS).await.is_ok());
}

#[tokio::test]
async fn passwords_are_bounded_before_anything_is_done() {
    let node = Node::start().await;
    let records = node.audit().await.len();
    assert_invalid(node.log_in("boss", &"p".repeat(1025)).await, "password");
    assert_eq!(node.audit().await.len(), records);
    let session = node.boss().await;
    assert_invalid(change(&node, &session, &"p".repeat(1025), "another password").await, "old_password");
    for bad in ["eleven byte", &"p".repeat(1025)] {
        assert_invalid(change(&node, &session, BOSS, bad).await, "new_password");
    }
}

#[tokio::test]
async fn change_password_verifies_the_old_password_always_and_ends_the_users_other_sessions() {
    let node = Node::start().await;
    let (session, other) = (node.boss().await, node.boss().await);
    assert_invalid(change(&node, &session, "not the password", "another password").await, "old_password");
    let failed = node.audited("user.password.change.failed").await;
    assert_eq!(
        (failed.len(), failed[0].actor.as_str(), failed[0].target.as_str()),
        (1, "user:boss", "user:boss")
    );
    assert_invalid(change(&node, &session, BOSS, BOSS).await, "new_password");
    assert!(is_honoured(&node, &other).await && node.log_in("boss", BOSS).await.is_ok());

    // The one of the check just made, and `other`.
    assert_eq!(change(&node, &session, BOSS, "another password").await.unwrap(), 2);
    assert!(is_honoured(&node, &session).await && !is_honoured(&node, &other).await);
    assert_eq!(node.log_in("boss", BOSS).await.unwrap_err().code(), Code::Unauthenticated);
    assert!(node.log_in("boss", "another password").await.is_ok());
    let refused = change(&node, &other, "another password", "a third password").await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn a_lockout_answers_like_a_wrong_password_and_is_seen_and_cleared_by_who_manages_users() {
    let node = Node::start().await;
    let session = node.boss().await;
    let config = v1::ClusterConfig { lockout_threshold: 3, ..Default::default() };
    let request = v1::UpdateClusterConfigRequest { config: Some(config) };
    let call = with(&session, "UpdateClusterConfig");
    crate::rpc::cluster_config::update(&node.service, &call, request).await.unwrap();
    let lockouts = async || {
        let request = v1::GetUserRequest { name: "boss".into() };
        let got = users::get(&node.service, &with(&session, "GetUser"), request).await.unwrap();
        let request = v1::ListUsersRequest::default();
        let listed = users::list(&node.service, &with(&session, "ListUsers"), request).await.unwrap();
        assert_eq!(listed.users, [got.user.clone().unwrap()]);
        got.user.unwrap().lockouts
    };
    let mut answers = Vec::new();
    for password in ["wrong 1", "wrong 2", "wrong 3", BOSS, "wrong 4"] {
        let status = node.log_in("boss", password).await.unwrap_err().into_status("r");
        answers.push((status.code(), status.message().to_owned(), status.details().to_vec()));
    }
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    let seen = lockouts().await;
    assert_eq!((seen.len(), seen[0].network.as_str(), seen[0].failures), (1, "192.0.2.0/24", 3));
    // The session is good, and its user is told what is wrong, with a password that is right as with one that is not.
    for old in [BOSS, "not the password"] {
        let refused = change(&node, &session, old, "another password").await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
    }
    let request = v1::ClearUserLockoutRequest { name: "BOSS".into() };
    users::clear_lockout(&node.service, &with(&session, "ClearUserLockout"), request).await.unwrap();
    assert!(lockouts().await.is_empty());
    node.log_in("boss", BOSS).await.unwrap();
    assert_eq!(node.audited("user.lockout").await.len(), 1);
}

#[tokio::test]
async fn guesses_at_the_same_time_are_all_counted() {
    let node = Node::start().await;
    let session = node.boss().await;
    let admit = || node.log_in("boss", "not the password");
    // The pool of the tests takes two of a network at a time.
    for _ in 0..5 {
        let (one, two) = tokio::join!(admit(), admit());
        assert!(one.is_err() && two.is_err());
    }
    let request = v1::GetUserRequest { name: "boss".into() };
    let got = users::get(&node.service, &with(&session, "GetUser"), request).await.unwrap().user.unwrap();
    assert_eq!(got.lockouts[0].failures, 10);
    assert_eq!(node.log_in("boss", BOSS).await.unwrap_err().code(), Code::Unauthenticated);
}

#[tokio::test]
async fn a_session_that_logged_out_is_not_honoured() {
    let node = Node::start().await;
    let (session, other) = (node.boss().await, node.boss().await);
    logout(&node.service, &with(&session, "Logout"), v1::LogoutRequest {}).await.unwrap();
    assert!(!is_honoured(&node, &session).await && is_honoured(&node, &other).await);
    let again = logout(&node.service, &with(&session, "Logout"), v1::LogoutRequest {}).await.unwrap_err();
    assert_eq!(again.code(), Code::Unauthenticated);
}
