//! A database that is over its bound: who must be kept out is kept out, and nobody is let in.

use std::time::Duration;

use auth_core::{
    CoreError, Credential,
    names::AgentId,
    tables::{NodeKey, NodeKind, NodeRow},
};
use mezite_proto::{access::METHODS, v1};
use raft_store::Limits;
use store_txn::{Transaction as _, TransactionExt as _};
use tonic::Code;

use super::{
    backup, cluster_config, joining, locks, members, presence, sessions,
    testing::{BOSS, Node, anonymous, with},
    tokens, users,
};
use crate::{
    authn::Call,
    authz,
    error::{ApiError, Problem},
    refusals::Mode,
};

const KEY: [u8; 32] = [7; 32];
const AGENT: &str = "00000001-0000-4000-8000-000000000000";

fn agent() -> Call {
    let id = AgentId::parse("id", AGENT).unwrap();
    Call { credential: Credential::Agent { id, key_digest: KEY }, ..anonymous("AgentHeartbeat") }
}

/// A node of which a user, a token and an agent are known, and a session of the admin's; then its database is filled.
async fn full() -> (Node, String, String) {
    let limits = Limits { max_database_bytes: 4 << 20, ..Limits::default() };
    let node = Node::start_within(limits).await;
    let (boss, other) = (node.boss().await, node.boss().await);
    let user = v1::User { name: "ann".into(), roles: vec!["access".into()], ..Default::default() };
    let request = v1::CreateUserRequest { user: Some(user), password: BOSS.into(), ..Default::default() };
    users::create(&node.service, &with(&boss, "CreateUser"), request).await.unwrap();
    tokens::create(&node.service, &with(&boss, "CreateToken"), token("web")).await.unwrap();
    let put = node.service.store.transact(|tx| {
        let row = NodeRow {
            kind: NodeKind::Ssh.into(),
            hostname: "web1".into(),
            key_digest: KEY.to_vec(),
            expires_at_ms: u64::MAX,
            ..NodeRow::default()
        };
        tx.put(&NodeKey(AgentId::parse("id", AGENT)?), &row);
        Ok::<_, CoreError>(())
    });
    put.await.map_err(ApiError::from).unwrap();
    presence::heartbeat(&node.service, &agent(), v1::AgentHeartbeatRequest::default()).await.unwrap();
    for number in 0_u8..8 {
        let value: Vec<u8> = (0..1 << 17).flat_map(|_| rand::random::<u64>().to_be_bytes()).collect();
        let put = node.service.store.transact(move |tx| {
            tx.put_raw(vec![255, number], value.clone(), None);
            Ok::<_, CoreError>(())
        });
        // It may be over its bound before all of it is there.
        drop(put.await);
    }
    let full = async {
        while !node.service.store.status().database_full {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), full).await.unwrap();
    // What lets transactions in measures each second.
    while tokens::create(&node.service, &with(&boss, "CreateToken"), token("")).await.is_ok() {}
    (node, boss, other)
}

fn token(name: &str) -> v1::CreateTokenRequest {
    v1::CreateTokenRequest { name: name.into(), kind: v1::TokenKind::Node.into(), ..Default::default() }
}

#[tokio::test]
async fn over_the_bound_nobody_is_let_in_and_all_are_told_why() {
    let (node, boss, _) = full().await;
    let login = node.log_in("ann", BOSS).await.map(drop);
    let beat = presence::heartbeat(&node.service, &agent(), v1::AgentHeartbeatRequest::default()).await;
    let token = tokens::create(&node.service, &with(&boss, "CreateToken"), token("")).await;
    for refused in [login, beat.map(drop), token.map(drop)] {
        let refused = refused.unwrap_err();
        assert_eq!((refused.code(), refused.reason()), (Code::ResourceExhausted, "DATABASE_FULL"));
        let Problem { message, .. } = refused.into_problem("r");
        assert!(message.contains("raise the bound"), "{message}");
    }
}

#[tokio::test]
async fn over_the_bound_who_must_be_kept_out_is_kept_out_and_room_is_made() {
    let (node, boss, other) = full().await;
    let service = &node.service;
    let target = Some(v1::LockTarget { target: Some(v1::lock_target::Target::User("ann".into())) });
    let lock = v1::CreateLockRequest { target, ..Default::default() };
    locks::create(service, &with(&boss, "CreateLock"), lock).await.unwrap();
    let mine = with(&other, "ListActiveSessions");
    let request = v1::RevokeSessionRequest { session: sessions::own(service, &mine).await.unwrap().0.handle };
    sessions::revoke(service, &with(&boss, "RevokeSession"), request).await.unwrap();
    assert!(sessions::own(service, &mine).await.is_err());
    let agent = v1::DeregisterAgentRequest { agent_id: AGENT.into() };
    joining::deregister(service, &with(&boss, "DeregisterAgent"), agent).await.unwrap();
    let token = v1::DeleteTokenRequest { name: "web".into() };
    tokens::delete(service, &with(&boss, "DeleteToken"), token).await.unwrap();
    let user = v1::DeleteUserRequest { name: "ann".into() };
    users::delete(service, &with(&boss, "DeleteUser"), user).await.unwrap();
    let member = v1::RemoveMemberRequest { node_id: 1, force: true };
    let refused = members::remove(service, &with(&boss, "RemoveMember"), member).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "it is the only one: {refused}");
    let config = v1::GetClusterConfigRequest::default();
    let config = cluster_config::get(service, &with(&boss, "GetClusterConfig"), config).await.unwrap().config;
    let request = v1::UpdateClusterConfigRequest {
        config: config.map(|config| v1::ClusterConfig { audit_max_events: 1_000, ..config }),
    };
    cluster_config::update(service, &with(&boss, "UpdateClusterConfig"), request).await.unwrap();
    drop(backup::save(service, &with(&boss, "SaveBackup")).await.unwrap());
}

#[tokio::test]
async fn a_denial_that_cannot_be_audited_is_answered_the_same_and_counted() {
    let (node, ..) = full().await;
    for unrecorded in 1..3 {
        let call = Call { credential: agent().credential, ..anonymous("CreateToken") };
        let refused = tokens::create(&node.service, &call, token("")).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
        let next = node.service.refusals.reserve(&call.credential);
        assert_eq!(next.mode(), Mode::Recorded { unrecorded });
        next.unused();
    }
}

#[test]
fn whatever_deletes_is_written_from_the_reserve() {
    let unimplemented = super::RESERVED;
    for rule in METHODS.iter().filter(|rule| !unimplemented.contains(&rule.method)) {
        let deletes =
            rule.method.starts_with("Delete") || rule.rule.is_some_and(|(_, verb)| verb == "delete");
        assert!(!deletes || authz::writes_from_reserve(rule), "{}", rule.method);
        let creates = rule.method != "CreateLock" && rule.method.starts_with("Create");
        assert!(!creates || !authz::writes_from_reserve(rule), "{}", rule.method);
    }
}
