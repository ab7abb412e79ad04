use std::{collections::BTreeSet, time::Duration};

use tonic::Code;

use super::{
    testing::{Node, anonymous, with},
    *,
};

/// Methods with a stream, which are not in the table of the others.
const STREAMING: &[&str] = &[
    "RegisterUsingIAMMethod",
    "WatchAccess",
    "StreamSessionRecording",
    "DownloadSessionRecording",
    "SaveBackup",
];

fn handled_by(handler: &str) -> BTreeSet<&'static str> {
    UNARY.iter().filter(|(_, found)| *found == handler).map(|(method, _)| *method).collect()
}

#[test]
fn every_method_of_the_api_has_one_handler() {
    let ours: Vec<_> = UNARY.iter().map(|(method, _)| *method).chain(STREAMING.iter().copied()).collect();
    let unique: BTreeSet<_> = ours.iter().copied().collect();
    assert_eq!(unique.len(), ours.len());
    assert_eq!(unique, rules::METHODS.iter().map(|rule| rule.method).collect());
}

#[test]
fn what_is_not_implemented_is_listed() {
    assert_eq!(handled_by("reserved"), RESERVED.iter().copied().collect());
    assert_eq!(RESERVED.len(), 9);
}

#[tokio::test]
async fn a_read_that_is_denied_is_audited_with_its_caller() {
    let node = Node::start().await;
    let boss = node.boss().await;
    let user = v1::User { name: "ann".into(), roles: vec!["access".into()], ..Default::default() };
    let request = v1::CreateUserRequest {
        user: Some(user),
        password: "a password of ann".into(),
        ..Default::default()
    };
    users::create(&node.service, &with(&boss, "CreateUser"), request).await.unwrap();
    let ann = node.log_in("ann", "a password of ann").await.unwrap();
    let get = |call| {
        let service = &node.service;
        async move { tokens::get(service, &call, v1::GetTokenRequest { name: "web".into() }).await }
    };
    assert_eq!(get(with(&ann, "GetToken")).await.unwrap_err().code(), Code::PermissionDenied);
    // Who has proved nothing is nobody that an auditor could be told of.
    assert_eq!(get(anonymous("GetToken")).await.unwrap_err().code(), Code::Unauthenticated);
    assert_eq!(get(with("guessed", "GetToken")).await.unwrap_err().code(), Code::Unauthenticated);
    let denied = node.audited("access.denied").await;
    let told: Vec<_> = denied.iter().map(|row| (row.actor.as_str(), row.target.as_str())).collect();
    assert_eq!(told, [("user:ann", "method:GetToken")]);
    assert!(!denied[0].success && denied[0].fields["reason"].contains("admin"));
}

#[tokio::test]
async fn what_may_be_stale_is_for_public_methods_alone() {
    let node = Node::start().await;
    let boss = node.boss().await;
    for call in [anonymous("GetUser"), with(&boss, "GetUser"), with(&boss, "ListTokens")] {
        let read = node.service.read_local(&call, |_| Ok(())).await;
        assert!(read.is_err(), "{}", call.method.method);
    }
    assert!(node.service.read_local(&anonymous("Ping"), |_| Ok(())).await.is_ok());
}

#[tokio::test]
async fn a_call_ends_at_its_deadline() {
    let never = std::future::pending::<Result<(), ApiError>>();
    let ended = within(Some(Instant::now() + Duration::from_millis(1)), never).await;
    assert!(matches!(ended, Err(ApiError::DeadlineExceeded)));
    assert!(within(None, async { Ok(()) }).await.is_ok());
}
