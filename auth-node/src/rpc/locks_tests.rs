use tonic::Code;

use super::*;
use crate::rpc::{
    revocations,
    testing::{Node, anonymous, with},
    users,
};

const PASSWORD: &str = "a password of ann";

fn lock(target: Told) -> v1::CreateLockRequest {
    let target = Some(v1::LockTarget { target: Some(target) });
    v1::CreateLockRequest { target, message: "call 1234".into(), ttl: None }
}

async fn with_ann() -> (Node, String, String) {
    let node = Node::start().await;
    let boss = node.boss().await;
    let user = v1::User { name: "ann".into(), roles: vec!["access".into()], ..Default::default() };
    let request = v1::CreateUserRequest { user: Some(user), password: PASSWORD.into(), ..Default::default() };
    users::create(&node.service, &with(&boss, "CreateUser"), request).await.unwrap();
    let ann = node.log_in("ann", PASSWORD).await.unwrap();
    (node, boss, ann)
}

#[tokio::test]
async fn whoever_is_locked_is_refused_with_the_message_and_logs_in_no_more_without_it() {
    let (node, boss, ann) = with_ann().await;
    let made =
        create(&node.service, &with(&boss, "CreateLock"), lock(Told::User("Ann".into()))).await.unwrap();
    let made = made.lock.unwrap();
    assert_eq!(made.target, Some(v1::LockTarget { target: Some(Told::User("ann".into())) }));

    let request = v1::GetUserRequest { name: "ann".into() };
    let refused = users::get(&node.service, &with(&ann, "GetUser"), request.clone()).await.unwrap_err();
    assert_eq!((refused.code(), refused.reason()), (Code::PermissionDenied, "LOCKED"));
    assert!(refused.to_string().contains("call 1234"));
    let denied = node.audited("access.denied").await;
    assert_eq!(denied[0].actor, "user:ann");

    let unknown = node.log_in("nobody", PASSWORD).await.unwrap_err();
    let refused = node.log_in("ann", PASSWORD).await.unwrap_err();
    assert_eq!((refused.code(), refused.to_string()), (unknown.code(), unknown.to_string()));
    let failed = node.audited("user.login.failed").await;
    assert!(failed.last().unwrap().fields["reason"].contains("locked"), "{failed:?}");

    let request = v1::DeleteLockRequest { lock_id: made.lock_id };
    super::delete(&node.service, &with(&boss, "DeleteLock"), request).await.unwrap();
    users::get(&node.service, &with(&ann, "GetUser"), v1::GetUserRequest { name: "ann".into() })
        .await
        .unwrap();
}

#[tokio::test]
async fn a_lock_is_shown_as_it_was_made() {
    let (node, boss, _) = with_ann().await;
    let ttl = Some(prost_types::Duration { seconds: 60, nanos: 0 });
    let request = v1::CreateLockRequest { ttl, ..lock(Told::Login("root".into())) };
    let made = create(&node.service, &with(&boss, "CreateLock"), request).await.unwrap().lock.unwrap();
    assert_eq!((made.message.as_str(), made.created_by.as_str()), ("call 1234", "user:boss"));
    assert!(made.expires_at.is_some() && made.created_at.is_some());
    let request = v1::GetLockRequest { lock_id: made.lock_id.clone() };
    let found = get(&node.service, &with(&boss, "GetLock"), request).await.unwrap().lock.unwrap();
    assert_eq!(found, made);
    let listed =
        list(&node.service, &with(&boss, "ListLocks"), v1::ListLocksRequest::default()).await.unwrap();
    assert_eq!((listed.locks, listed.next_page_token.as_str()), (vec![made], ""));
}

#[tokio::test]
async fn bad_input_names_its_field() {
    let (node, boss, _) = with_ann().await;
    let none = v1::CreateLockRequest::default();
    let negative = Some(prost_types::Duration { seconds: -1, nanos: 0 });
    let login = || Told::Login("root".into());
    for (request, field) in [
        (none, "target"),
        (lock(Told::User("a b".into())), "target.user"),
        (lock(Told::Node("web1".into())), "target.node"),
        (lock(Told::Login("a b".into())), "target.login"),
        (lock(Told::Device("x".into())), "target.device"),
        (v1::CreateLockRequest { ttl: negative, ..lock(login()) }, "ttl"),
    ] {
        let refused = create(&node.service, &with(&boss, "CreateLock"), request).await.unwrap_err();
        let named =
            matches!(&refused, ApiError::Core(CoreError::Invalid { field: found, .. }) if found == field);
        assert!(named, "{field}: {refused:?}");
    }
}

#[tokio::test]
async fn the_revocation_list_is_sent_to_whoever_does_not_have_it() {
    let (node, boss, _) = with_ann().await;
    let list = async |known_revision| {
        let request = v1::GetRevocationListRequest { known_revision };
        revocations::get(&node.service, &anonymous("GetRevocationList"), request).await.unwrap()
    };
    let empty = list(0).await;
    assert!(empty.krl.starts_with(b"SSHKRL\n\0") && empty.revision == 0);
    create(&node.service, &with(&boss, "CreateLock"), lock(Told::User("ann".into()))).await.unwrap();
    let next = list(0).await;
    assert!(next.revision > 0 && !next.krl.is_empty());
    assert!(list(next.revision).await.krl.is_empty());
    // A revision of another cluster is no reason to send nothing.
    assert_eq!(list(next.revision + 1000).await, next);
}
