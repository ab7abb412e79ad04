use tonic::Code;

use super::*;
use crate::rpc::{
    login, roles, sessions,
    testing::{Node, anonymous, assert_invalid, with},
};

const PASSWORD: &str = "a password of ann";

fn ann(roles: &[&str]) -> v1::User {
    let roles = roles.iter().map(|&role| role.to_owned()).collect();
    v1::User { name: "Ann".into(), roles, ..v1::User::default() }
}

async fn create_ann(node: &Node, session: &str, password: &str) -> Result<v1::User, ApiError> {
    let request = v1::CreateUserRequest {
        user: Some(ann(&["access"])),
        password: password.into(),
        ..Default::default()
    };
    Ok(create(&node.service, &with(session, "CreateUser"), request).await?.user.unwrap())
}

async fn get_ann(node: &Node, session: &str) -> Result<v1::User, ApiError> {
    let request = v1::GetUserRequest { name: "ANN".into() };
    Ok(get(&node.service, &with(session, "GetUser"), request).await?.user.unwrap())
}

#[tokio::test]
async fn what_a_change_answers_is_what_is_read() {
    let node = Node::start().await;
    let boss = node.boss().await;
    let made = create_ann(&node, &boss, PASSWORD).await.unwrap();
    assert_eq!((made.name.as_str(), made.created_by.as_str()), ("ann", "user:boss"));
    assert_eq!(get_ann(&node, &boss).await.unwrap(), made);

    let change = async |revision| {
        let request = v1::UpdateUserRequest { user: Some(v1::User { revision, ..ann(&["auditor"]) }) };
        let reply = update(&node.service, &with(&boss, "UpdateUser"), request).await?;
        Ok::<_, ApiError>(reply.user.unwrap())
    };
    let changed = change(made.revision).await.unwrap();
    assert!(changed.revision > made.revision);
    assert_eq!(get_ann(&node, &boss).await.unwrap(), changed);
    assert_eq!(change(made.revision).await.unwrap_err().code(), Code::Aborted);
    assert!(change(changed.revision).await.is_ok());

    let request = v1::ListUsersRequest { page_size: 1, ..Default::default() };
    let first = list(&node.service, &with(&boss, "ListUsers"), request.clone()).await.unwrap();
    let request = v1::ListUsersRequest { page_token: first.next_page_token, ..request };
    let second = list(&node.service, &with(&boss, "ListUsers"), request).await.unwrap();
    assert_eq!((first.users[0].name.as_str(), second.users[0].name.as_str()), ("ann", "boss"));
    assert_eq!(second.next_page_token, "");
}

/// What was allowed before the password was hashed is asked again where the user is made.
#[tokio::test]
async fn a_role_taken_while_a_password_is_hashed_counts() {
    let node = Node::start().await;
    let boss = node.boss().await;
    let second = v1::User { name: "second".into(), roles: vec!["admin".into()], ..Default::default() };
    let request =
        v1::CreateUserRequest { user: Some(second.clone()), password: PASSWORD.into(), invite_ttl: None };
    create(&node.service, &with(&boss, "CreateUser"), request).await.unwrap();
    let session = node.log_in("second", PASSWORD).await.unwrap();

    let thread = node.service.passwords.take_thread().await;
    let (service, by_second) = (std::sync::Arc::clone(&node.service), with(&session, "CreateUser"));
    let making = tokio::spawn(async move {
        let request = v1::CreateUserRequest {
            user: Some(ann(&["admin"])),
            password: PASSWORD.into(),
            invite_ttl: None,
        };
        create(&service, &by_second, request).await
    });
    while node.service.passwords.taken_places() == 0 {
        tokio::task::yield_now().await;
    }
    let lowered = v1::User { roles: vec!["access".into()], ..second };
    let request = v1::UpdateUserRequest { user: Some(lowered) };
    update(&node.service, &with(&boss, "UpdateUser"), request).await.unwrap();
    drop(thread);
    assert_eq!(making.await.unwrap().unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(get_ann(&node, &boss).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn every_method_takes_any_spelling_of_a_users_name() {
    const SPELLINGS: [&str; 3] = ["Ann", "ANN", "\u{ff21}nn"];
    let node = Node::start().await;
    let boss = node.boss().await;
    for (made, other) in SPELLINGS.into_iter().zip(SPELLINGS.into_iter().cycle().skip(1)) {
        let user = |name: &str| {
            Some(v1::User { name: name.into(), roles: vec!["ACCESS".into()], ..Default::default() })
        };
        let request = v1::CreateUserRequest { user: user(made), password: PASSWORD.into(), invite_ttl: None };
        create(&node.service, &with(&boss, "CreateUser"), request).await.unwrap();
        let twice = v1::CreateUserRequest { user: user(other), password: PASSWORD.into(), invite_ttl: None };
        let twice = create(&node.service, &with(&boss, "CreateUser"), twice).await.unwrap_err();
        assert_eq!(twice.code(), Code::AlreadyExists);
        node.log_in(other, PASSWORD).await.unwrap();
        let request = v1::ListActiveSessionsRequest { user: other.into(), ..Default::default() };
        let listed =
            sessions::list(&node.service, &with(&boss, "ListActiveSessions"), request).await.unwrap();
        assert_eq!(listed.sessions.len(), 1);
        let request = v1::UpdateUserRequest { user: user(other) };
        let updated = update(&node.service, &with(&boss, "UpdateUser"), request).await.unwrap();
        assert_eq!(updated.user.unwrap().name, "ann");
        let request = v1::ResetUserPasswordRequest {
            name: other.into(),
            new_password: PASSWORD.into(),
            ..Default::default()
        };
        reset_password(&node.service, &with(&boss, "ResetUserPassword"), request).await.unwrap();
        let request = v1::DeleteUserRequest { name: other.into() };
        delete(&node.service, &with(&boss, "DeleteUser"), request).await.unwrap();
    }
}

#[tokio::test]
async fn nobody_but_an_admin_has_passwords_hashed() {
    let node = Node::start().await;
    let boss = node.boss().await;
    create_ann(&node, &boss, PASSWORD).await.unwrap();
    let session = node.log_in("ann", PASSWORD).await.unwrap();
    // With the pool full, whoever got as far as it would be told that it is busy.
    let _turns = node.service.passwords.take_places();
    let reset = async |session: &str| {
        let request = v1::ResetUserPasswordRequest {
            name: "boss".into(),
            new_password: "another password".into(),
            ..Default::default()
        };
        reset_password(&node.service, &with(session, "ResetUserPassword"), request).await
    };
    assert_eq!(create_ann(&node, &session, PASSWORD).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(reset(&session).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(create_ann(&node, "nobody's", PASSWORD).await.unwrap_err().code(), Code::Unauthenticated);
    assert_eq!(reset("nobody's").await.unwrap_err().code(), Code::Unauthenticated);
    assert_eq!(create_ann(&node, &boss, PASSWORD).await.unwrap_err().code(), Code::ResourceExhausted);
    let denied = node.audited("access.denied").await;
    let targets: Vec<_> =
        denied.iter().map(|record| (record.actor.as_str(), record.target.as_str())).collect();
    assert_eq!(targets, [("user:ann", "method:CreateUser"), ("user:ann", "method:ResetUserPassword")]);
}

#[tokio::test]
async fn who_is_invited_sets_a_password_that_nobody_else_knows() {
    let node = Node::start().await;
    let boss = node.boss().await;
    let request = v1::CreateUserRequest { user: Some(ann(&["access"])), ..Default::default() };
    let made = create(&node.service, &with(&boss, "CreateUser"), request).await.unwrap();
    let (user, secret) = (made.user.unwrap(), made.invite_secret);
    assert!(user.without_password && user.invite_expires_at == made.invite_expires_at);
    assert_eq!(get_ann(&node, &boss).await.unwrap(), user);
    let unknown = node.log_in("nobody", "").await.unwrap_err().into_status("r");
    for password in ["", &secret, PASSWORD] {
        let refused = node.log_in("ann", password).await.unwrap_err().into_status("r");
        assert_eq!((refused.message(), refused.details()), (unknown.message(), unknown.details()));
    }
    let accept = async |secret: &str, password: &str| {
        let request = v1::AcceptInviteRequest { secret: secret.into(), new_password: password.into() };
        login::accept_invite(&node.service, &anonymous("AcceptInvite"), request).await
    };
    // What is refused for the password leaves the invite as it is.
    assert_invalid(accept(&secret, "eleven byte").await, "new_password");
    // Whoever has no invite has nothing hashed: else it would be told that the pool is full.
    let turns = node.service.passwords.take_places();
    let mut answers = vec![accept("guessed", PASSWORD).await.unwrap_err().into_status("r")];
    assert_eq!(accept(&secret, PASSWORD).await.unwrap_err().code(), Code::ResourceExhausted);
    drop(turns);

    assert_eq!(accept(&secret, PASSWORD).await.unwrap().user, "ann");
    answers.push(accept(&secret, "another password").await.unwrap_err().into_status("r"));
    assert!(answers.iter().all(|answer| answer.code() == Code::PermissionDenied));
    assert_eq!((answers[0].message(), answers[0].details()), (answers[1].message(), answers[1].details()));
    let session = node.log_in("ann", PASSWORD).await.unwrap();
    assert!(!get_ann(&node, &boss).await.unwrap().without_password);
    assert_eq!(node.audited("user.invite.denied").await.len(), 2);

    let request = v1::ResetUserPasswordRequest { name: "ann".into(), ..Default::default() };
    let reset = reset_password(&node.service, &with(&boss, "ResetUserPassword"), request).await.unwrap();
    assert_eq!(reset.sessions_ended, 1);
    assert_eq!(get_ann(&node, &session).await.unwrap_err().code(), Code::Unauthenticated);
    assert_eq!(node.log_in("ann", PASSWORD).await.unwrap_err().code(), Code::Unauthenticated);
    accept(&reset.invite_secret, "another password").await.unwrap();
    let session = node.log_in("ann", "another password").await.unwrap();
    // What others see of a user tells nothing of its password.
    let request = v1::ResetUserPasswordRequest { name: "boss".into(), ..Default::default() };
    let own = reset_password(&node.service, &with(&boss, "ResetUserPassword"), request).await.unwrap_err();
    assert_eq!(own.code(), Code::FailedPrecondition);
    let request = v1::CreateUserRequest {
        user: Some(v1::User { name: "bob".into(), ..Default::default() }),
        ..Default::default()
    };
    create(&node.service, &with(&boss, "CreateUser"), request).await.unwrap();
    let request = v1::GetUserRequest { name: "bob".into() };
    let seen = get(&node.service, &with(&session, "GetUser"), request).await.unwrap().user.unwrap();
    assert!(!seen.without_password && seen.invite_expires_at.is_none());
}

#[tokio::test]
async fn the_secret_of_an_invite_is_shown_once() {
    let node = Node::start().await;
    let boss = node.boss().await;
    let request = v1::CreateUserRequest { user: Some(ann(&["access"])), ..Default::default() };
    let made = create(&node.service, &with(&boss, "CreateUser"), request).await.unwrap();
    let request = v1::ResetUserPasswordRequest { name: "ann".into(), ..Default::default() };
    let reset = reset_password(&node.service, &with(&boss, "ResetUserPassword"), request).await.unwrap();
    // 256 bits in base64 without padding.
    assert!(made.invite_secret.len() == 43 && reset.invite_secret.len() == 43);
    assert_ne!(made.invite_secret, reset.invite_secret);
    // Whoever may see all users and the whole log is told that there is an invite, and no more.
    let listed =
        list(&node.service, &with(&boss, "ListUsers"), v1::ListUsersRequest::default()).await.unwrap();
    let told = format!("{listed:?} {:?} {:?}", get_ann(&node, &boss).await.unwrap(), node.audit().await);
    assert!(told.contains("invite_expires_at: Some") && told.contains("user.invite"));
    for secret in [&made.invite_secret, &reset.invite_secret] {
        assert!(!told.contains(secret.as_str()));
    }
}

#[tokio::test]
async fn one_of_two_who_use_an_invite_at_the_same_time_is_refused() {
    let node = Node::start().await;
    let boss = node.boss().await;
    let request = v1::CreateUserRequest { user: Some(ann(&["access"])), ..Default::default() };
    let secret = create(&node.service, &with(&boss, "CreateUser"), request).await.unwrap().invite_secret;
    let accept = async |password: &str| {
        let request = v1::AcceptInviteRequest { secret: secret.clone(), new_password: password.into() };
        login::accept_invite(&node.service, &anonymous("AcceptInvite"), request).await
    };
    let passwords = ["the one password", "the other password"];
    let (one, other) = tokio::join!(accept(passwords[0]), accept(passwords[1]));
    assert!(one.is_ok() != other.is_ok(), "{one:?} {other:?}");
    let (good, bad) = if one.is_ok() { (0, 1) } else { (1, 0) };
    assert!(node.log_in("ann", passwords[good]).await.is_ok());
    assert!(node.log_in("ann", passwords[bad]).await.is_err());
}

#[tokio::test]
async fn new_passwords_are_bounded() {
    let node = Node::start().await;
    let boss = node.boss().await;
    for bad in ["eleven byte", "password 2026", "test-example", &"p".repeat(1025)] {
        assert_invalid(create_ann(&node, &boss, bad).await, "password");
        let request = v1::ResetUserPasswordRequest {
            name: "boss".into(),
            new_password: bad.into(),
            ..Default::default()
        };
        assert_invalid(
            reset_password(&node.service, &with(&boss, "ResetUserPassword"), request).await,
            "new_password",
        );
    }
}

#[tokio::test]
async fn after_a_reset_or_a_deletion_no_session_of_the_user_is_honoured() {
    let node = Node::start().await;
    let boss = node.boss().await;
    create_ann(&node, &boss, PASSWORD).await.unwrap();
    let session = node.log_in("ann", PASSWORD).await.unwrap();
    let request = v1::ResetUserPasswordRequest {
        name: "ann".into(),
        new_password: "another password".into(),
        ..Default::default()
    };
    let reset = reset_password(&node.service, &with(&boss, "ResetUserPassword"), request).await.unwrap();
    assert_eq!(reset.sessions_ended, 1);
    assert_eq!(get_ann(&node, &session).await.unwrap_err().code(), Code::Unauthenticated);
    assert_eq!(node.log_in("ann", PASSWORD).await.unwrap_err().code(), Code::Unauthenticated);

    let session = node.log_in("ann", "another password").await.unwrap();
    let request = v1::DeleteUserRequest { name: "ann".into() };
    let deleted = delete(&node.service, &with(&boss, "DeleteUser"), request).await.unwrap();
    assert_eq!(deleted.sessions_ended, 1);
    assert_eq!(get_ann(&node, &session).await.unwrap_err().code(), Code::Unauthenticated);
    assert_eq!(node.log_in("ann", "another password").await.unwrap_err().code(), Code::Unauthenticated);
}

#[tokio::test]
async fn a_revoked_session_is_not_honoured() {
    let node = Node::start().await;
    let boss = node.boss().await;
    create_ann(&node, &boss, PASSWORD).await.unwrap();
    let (first, second) =
        (node.log_in("ann", PASSWORD).await.unwrap(), node.log_in("ann", PASSWORD).await.unwrap());
    let own = async |session: &str| {
        let call = with(session, "ListActiveSessions");
        sessions::list(&node.service, &call, v1::ListActiveSessionsRequest::default()).await
    };
    let revoke = async |caller: &str, session: &str| {
        let request = v1::RevokeSessionRequest { session: session.to_owned() };
        sessions::revoke(&node.service, &with(caller, "RevokeSession"), request).await
    };
    let listed = own(&first).await.unwrap().sessions;
    assert_eq!(listed.iter().map(|session| session.user.as_str()).collect::<Vec<_>>(), ["ann", "ann"]);
    assert_eq!(revoke(&first, &second).await.unwrap_err().code(), Code::PermissionDenied);

    revoke(&boss, &first).await.unwrap();
    assert_eq!(own(&first).await.unwrap_err().code(), Code::Unauthenticated);
    let left = own(&second).await.unwrap().sessions;
    assert_eq!(left.len(), 1);
    revoke(&boss, &left[0].handle).await.unwrap();
    assert_eq!(own(&second).await.unwrap_err().code(), Code::Unauthenticated);
    assert_eq!(revoke(&boss, &left[0].handle).await.unwrap_err().code(), Code::NotFound);
    let missing = revoke(&boss, &first).await.unwrap_err();
    assert!(missing.code() == Code::NotFound && !missing.to_string().contains(&first));
    assert_invalid(revoke(&boss, "").await, "session");
}

#[tokio::test]
async fn a_role_is_made_changed_and_taken_away() {
    let node = Node::start().await;
    let boss = node.boss().await;
    let call = |method: &str| with(&boss, method);
    let role = v1::Role { name: "Dev".into(), description: "one".into(), ..Default::default() };
    let request = v1::CreateRoleRequest { role: Some(role.clone()) };
    let made = roles::create(&node.service, &call("CreateRole"), request).await.unwrap().role.unwrap();
    let read = async || {
        let request = v1::GetRoleRequest { name: "dev".into() };
        Ok::<_, ApiError>(roles::get(&node.service, &call("GetRole"), request).await?.role.unwrap())
    };
    assert_eq!(read().await.unwrap(), made);

    let change = async |revision| {
        let role = v1::Role { revision, description: "two".into(), ..role.clone() };
        roles::update(&node.service, &call("UpdateRole"), v1::UpdateRoleRequest { role: Some(role) }).await
    };
    let changed = change(made.revision).await.unwrap().role.unwrap();
    assert_eq!((read().await.unwrap(), changed.description.as_str()), (changed.clone(), "two"));
    assert_eq!(change(made.revision).await.unwrap_err().code(), Code::Aborted);

    let listed =
        roles::list(&node.service, &call("ListRoles"), v1::ListRolesRequest::default()).await.unwrap();
    let names: Vec<_> = listed.roles.iter().map(|role| (role.name.as_str(), role.built_in)).collect();
    assert_eq!(names, [("access", true), ("admin", true), ("auditor", true), ("dev", false)]);

    let delete = async |name: &str| {
        let request = v1::DeleteRoleRequest { name: name.into() };
        roles::delete(&node.service, &call("DeleteRole"), request).await
    };
    assert_eq!(delete("access").await.unwrap_err().code(), Code::FailedPrecondition);
    delete("dev").await.unwrap();
    assert_eq!(read().await.unwrap_err().code(), Code::NotFound);
}

#[test]
fn a_user_comes_back_as_it_was_sent() {
    let sent = v1::User {
        name: "Ann".into(),
        roles: vec!["Dev".into(), "access".into(), "dev".into()],
        traits: [("logins".to_owned(), v1::Strings { values: vec!["root".into()] })].into(),
        created_by: "user:forged".into(),
        revision: 7,
        ..v1::User::default()
    };
    let (name, grants, revision) = parse(Some(sent.clone())).unwrap();
    let roles: Vec<String> = grants.roles.iter().map(RoleName::to_string).collect();
    let stored = User {
        name,
        roles,
        traits: grants.traits,
        has_password: true,
        connector: "corp".into(),
        expires_at_ms: Some(2500),
        created_at_ms: 1500,
        created_by: "user:boss".into(),
        revision,
    };
    let back = reply(stored);
    assert_eq!((back.name.as_str(), back.roles), ("ann", vec!["access".to_owned(), "dev".to_owned()]));
    assert_eq!((back.traits, back.revision), (sent.traits, 7));
    assert_eq!(back.created_at, Some(prost_types::Timestamp { seconds: 1, nanos: 500_000_000 }));
    assert_eq!(back.created_by, "user:boss");
    assert_eq!(back.connector, "corp");
    assert_eq!(back.expires_at, Some(prost_types::Timestamp { seconds: 2, nanos: 500_000_000 }));
}

#[test]
fn what_is_wrong_with_a_user_is_named() {
    let field = |user| match parse(user) {
        Err(CoreError::Invalid { field, .. }) => field,
        other => panic!("{other:?}"),
    };
    assert_eq!(field(None), "user");
    assert_eq!(field(Some(v1::User::default())), "user.name");
    let user = v1::User { name: "ann".into(), roles: vec!["a b".into()], ..v1::User::default() };
    assert_eq!(field(Some(user)), "user.roles");
}
