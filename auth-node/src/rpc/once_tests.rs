//! Each method that takes effect once, called as a client calls it that has lost the answer.

#[path = "once_tests/cases.rs"]
mod cases;

use std::collections::BTreeSet;

use auth_core::{
    ca,
    ca::Kek,
    names::{AgentId, ClusterName, RequestId, RoleName, UserName},
    repeat,
    tables::{
        AnswerKey, AuthJoinTokenKey, CaKey, CaKeyRow, CaKind, CaRow, ConditionsRow, NodeKey, NodeKind,
        NodeRow, RequestKey, RequestRow, RequestRulesRow, RequestState, RoleKey, RoleRow, TrustedClusterKey,
        TrustedClusterRow, UserKey,
    },
};
use mezite_pki::x509::X509Ca;
use store_txn::{ReadExt as _, TransactionExt as _};
use tonic::Code;
use tonic_types::StatusExt as _;
use zeroize::Zeroizing;

use self::cases::{
    AGENT, Answer, Asked, Case, Credentials, OURS, OURS_TOO, REPEATABLE, Revisions, THEIRS, cases, github,
    spiffe_domain,
};
use super::{Api, UNARY, testing::Node, *};

const KEY: &str = "5eed00112233445566778899aabbccddeeff00112233445566778899aabbccdd";
const PASSWORD: &str = "a password of ann";

/// The boss may ask for the role `dev`; there are requests of its own, and of somebody else.
fn with_requests(tx: &mut raft_store::StoreTransaction<'_>) -> Result<(), CoreError> {
    let requests = RequestRulesRow { request_roles: vec!["dev".into()], ..RequestRulesRow::default() };
    let allow = ConditionsRow { requests: Some(requests), ..ConditionsRow::default() };
    let asker = RoleRow { allow: Some(allow), ..RoleRow::default() };
    tx.put(&RoleKey(RoleName::parse("", "asker")?), &asker);
    let boss = UserKey(UserName::parse("", "boss")?);
    let mut row = tx.get(&boss)?.unwrap().row;
    row.roles.push("asker".into());
    tx.put(&boss, &row);
    for (id, user) in [(THEIRS, "ann"), (OURS, "boss"), (OURS_TOO, "boss")] {
        let row = RequestRow {
            user: user.into(),
            roles: vec!["dev".into()],
            state: RequestState::Pending.into(),
            approvals: 1,
            ends_at_ms: u64::MAX,
            expires_at_ms: u64::MAX,
            ..RequestRow::default()
        };
        tx.put(&RequestKey(RequestId::parse(id).unwrap()), &row);
    }
    Ok(())
}

/// A node whose cluster has what the methods change.
struct World {
    node: Node,
    boss: String,
    at: Revisions,
}

impl World {
    async fn start() -> Self {
        let node = Node::start().await;
        let peer_ca = X509Ca::generate("peer CA", 1_700_000_000, 4_000_000_000).unwrap();
        let tls_ca = X509Ca::generate("TLS CA", 1_700_000_000, 4_000_000_000).unwrap();
        let committed = node.service.store.transact(move |tx| {
            let public = peer_ca.certificate_pem().to_owned();
            let kek = Kek::new(Zeroizing::new([7; 32]));
            let sealed_private = ca::seal(&kek, CaKind::Peer, &public, b"not used here", [0; 12])?;
            let key = CaKeyRow { public, sealed_private, created_at_ms: 0 };
            tx.put(&CaKey(CaKind::Peer), &CaRow::new(key));
            let public = tls_ca.certificate_pem().to_owned();
            let key = CaKeyRow { public, ..CaKeyRow::default() };
            tx.put(&CaKey(CaKind::Tls), &CaRow::new(key));
            let known = TrustedClusterKey(ClusterName::parse("", "known")?);
            tx.put(
                &known,
                &TrustedClusterRow { addresses: vec!["c.example:1".into()], ..Default::default() },
            );
            let agent = NodeRow { kind: NodeKind::Ssh.into(), expires_at_ms: u64::MAX, ..NodeRow::default() };
            tx.put(&NodeKey(AgentId::parse("", AGENT)?), &agent);
            with_requests(tx)?;
            Ok::<_, CoreError>(())
        });
        let node_revision = committed.await.map_err(ApiError::from).unwrap().revision;
        let boss = node.boss().await;
        let api = Api::new(Arc::clone(&node.service));
        let plain = Credentials { session: boss.clone(), key: None };
        let role = v1::Role { name: "dev".into(), ..Default::default() };
        let dev = api.create_role(plain.request(v1::CreateRoleRequest { role: Some(role) }));
        let dev = dev.await.unwrap().into_inner().role.unwrap();
        let connector = v1::CreateConnectorRequest { connector: Some(github("known", "secret")) };
        let connector = api.create_connector(plain.request(connector)).await.unwrap().into_inner();
        let connector = connector.connector.unwrap().revision;
        let identity = v1::AgentIdentity { name: "known".into(), ..Default::default() };
        let identity = v1::CreateAgentIdentityRequest { identity: Some(identity), bootstrap_ttl: None };
        api.create_agent_identity(plain.request(identity)).await.unwrap();
        let domain = v1::CreateSpiffeDomainRequest { domain: Some(spiffe_domain("known", Asked::This)) };
        api.create_spiffe_domain(plain.request(domain)).await.unwrap();
        let user = v1::User { name: "ann".into(), roles: vec!["admin".into()], ..Default::default() };
        let request =
            v1::CreateUserRequest { user: Some(user), password: PASSWORD.into(), ..Default::default() };
        let ann = api.create_user(plain.request(request)).await.unwrap().into_inner().user.unwrap();
        let at = Revisions { ann: ann.revision, dev: dev.revision, node: node_revision, connector };
        Self { node, boss, at }
    }

    async fn call(&self, case: &Case, session: &str, key: Option<&'static str>, asked: Asked) -> Answer {
        let credentials = Credentials { session: session.to_owned(), key };
        (case.call)(Api::new(Arc::clone(&self.node.service)), credentials, asked, self.at).await
    }

    async fn state(&self) -> [u8; 32] {
        let read = self.node.service.store.read(|view| Ok::<_, CoreError>(view.state_hash()?));
        read.await.map_err(ApiError::from).unwrap()
    }

    /// Every row and every log record, as bytes.
    async fn stored(&self) -> Vec<u8> {
        let everything = store_txn::KeyRange { start: Vec::new(), end: vec![0xff; 8] };
        let read = self.node.service.store.read(move |view| {
            use store_txn::Read as _;
            let rows = view.scan_raw(&everything, usize::MAX)?;
            let records = view.log_records(auth_core::audit::LOG, 1, usize::MAX)?;
            let rows = rows.into_iter().flat_map(|(key, row)| [key, row.value]);
            Ok::<_, CoreError>(
                rows.chain(records.into_iter().map(|record| record.record)).flatten().collect(),
            )
        });
        read.await.map_err(ApiError::from).unwrap()
    }

    async fn answers(&self) -> usize {
        let read =
            self.node.service.store.read(|view| Ok::<_, CoreError>(view.scan::<AnswerKey>(None, 100)?.len()));
        read.await.map_err(ApiError::from).unwrap()
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[tokio::test]
async fn a_repeated_call_is_answered_again_and_has_one_effect() {
    for case in cases() {
        let (world, method) = (World::start().await, case.method);
        let first = world.call(&case, &world.boss, Some(KEY), Asked::This).await.unwrap();
        let (state, events) = (world.state().await, world.node.audit().await.len());
        assert_eq!(world.node.audited(case.event).await.last().unwrap().actor, "user:boss", "{method}");

        // Repeated where nothing could be hashed, for that need not be done again.
        let turns = world.node.service.passwords.take_places();
        for _ in 0..2 {
            assert_eq!(
                world.call(&case, &world.boss, Some(KEY), Asked::This).await.unwrap(),
                first,
                "{method}"
            );
        }
        drop(turns);
        assert_eq!((world.state().await, world.node.audit().await.len()), (state, events), "{method}");

        // Neither the key nor the secret of the reply can be read where the state is.
        let stored = world.stored().await;
        let mut secrets = vec![KEY.to_owned()];
        secrets.extend((case.secret)(&first));
        for secret in secrets {
            assert!(!contains(&stored, secret.as_bytes()), "{method}");
        }
        assert!(!contains(&stored, &hex::decode(KEY).unwrap()), "{method}");
        assert!(contains(&stored, case.event.as_bytes()), "{method}: this is where it would be found");
    }
}

#[tokio::test]
async fn a_key_is_for_one_request_of_one_user() {
    for case in cases() {
        let (world, method) = (World::start().await, case.method);
        let other = world.node.log_in("ann", PASSWORD).await.unwrap();
        let first = world.call(&case, &world.boss, Some(KEY), Asked::This).await.unwrap();
        let state = world.state().await;
        let refused = world.call(&case, &world.boss, Some(KEY), Asked::Other).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{method}: {refused:?}");
        assert!(refused.message().contains(repeat::FIELD), "{refused:?}");
        // It is not to be taken for a refusal that tells what took effect.
        assert_eq!(refused.get_details_error_info().unwrap().reason, mezite_client::KEY_REUSED);
        assert_eq!(world.state().await, state, "{method}");

        // To another admin it is a call like any other: whatever comes of it, it is not that answer.
        match world.call(&case, &other, Some(KEY), Asked::This).await {
            Ok(answer) => assert_ne!(answer, first, "{method}"),
            Err(refused) => assert_ne!(refused.code(), Code::Internal, "{method}: {refused:?}"),
        }
    }
}

#[tokio::test]
async fn without_a_key_a_call_is_one_of_its_own() {
    for case in cases() {
        let (world, method) = (World::start().await, case.method);
        let before = world.node.audited(case.event).await.len();
        world.call(&case, &world.boss, None, Asked::This).await.unwrap();
        assert_eq!(world.answers().await, 0, "{method}");
        let again = world.call(&case, &world.boss, None, Asked::This).await;
        let effects = world.node.audited(case.event).await.len() - before;
        assert_eq!(effects, 1 + usize::from(again.is_ok()), "{method}");
    }
}

#[tokio::test]
async fn what_is_refused_is_not_kept_and_may_succeed_later() {
    let world = World::start().await;
    let case = cases().into_iter().find(|case| case.method == "CreateUser").unwrap();
    let api = Api::new(Arc::clone(&world.node.service));
    let plain = Credentials { session: world.boss.clone(), key: None };
    let delete = |name: &str| plain.request(v1::DeleteUserRequest { name: name.into() });
    world.call(&case, &world.boss, None, Asked::This).await.unwrap();
    let refused = world.call(&case, &world.boss, Some(KEY), Asked::This).await.unwrap_err();
    assert_eq!((refused.code(), world.answers().await), (Code::AlreadyExists, 0));
    api.delete_user(delete("bob")).await.unwrap();
    let made = world.call(&case, &world.boss, Some(KEY), Asked::This).await.unwrap();
    // What became of it since does not change what the call is answered, and is not undone.
    api.delete_user(delete("bob")).await.unwrap();
    assert_eq!(world.call(&case, &world.boss, Some(KEY), Asked::This).await.unwrap(), made);
    let get = api.get_user(plain.request(v1::GetUserRequest { name: "bob".into() })).await;
    assert_eq!(get.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn who_may_not_call_any_more_is_not_answered_again() {
    let world = World::start().await;
    let ann = world.node.log_in("ann", PASSWORD).await.unwrap();
    let case = cases().into_iter().find(|case| case.method == "CreateToken").unwrap();
    world.call(&case, &ann, Some(KEY), Asked::This).await.unwrap();
    let api = Api::new(Arc::clone(&world.node.service));
    let plain = Credentials { session: world.boss.clone(), key: None };
    let user = v1::User { name: "ann".into(), roles: vec!["access".into()], ..Default::default() };
    api.update_user(plain.request(v1::UpdateUserRequest { user: Some(user) })).await.unwrap();
    let denied = world.call(&case, &ann, Some(KEY), Asked::This).await.unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied);
    api.delete_user(plain.request(v1::DeleteUserRequest { name: "ann".into() })).await.unwrap();
    let nobody = world.call(&case, &ann, Some(KEY), Asked::This).await.unwrap_err();
    assert_eq!(nobody.code(), Code::Unauthenticated);
    let nobody = world.call(&case, "guessed", Some(KEY), Asked::This).await.unwrap_err();
    assert_eq!(nobody.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn attempts_that_run_at_the_same_time_have_one_effect() {
    let world = World::start().await;
    let case = cases().into_iter().find(|case| case.method == "CreateAuthJoinToken").unwrap();
    let attempts = (0..8).map(|_| world.call(&case, &world.boss, Some(KEY), Asked::This));
    let answers: BTreeSet<_> =
        futures::future::join_all(attempts).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(answers.len(), 1);
    assert_eq!(world.node.audited(case.event).await.len(), 1);
    let read = world
        .node
        .service
        .store
        .read(|view| Ok::<_, CoreError>(view.scan::<AuthJoinTokenKey>(None, 9)?.len()));
    assert_eq!(read.await.map_err(ApiError::from).unwrap(), 1);
}

#[tokio::test]
async fn a_key_that_is_none_is_refused() {
    let world = World::start().await;
    for case in cases() {
        let refused = world.call(&case, &world.boss, Some("5eed"), Asked::This).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{}", case.method);
    }
}

/// A method that is built and changes something is in one of the lists: whoever adds one decides which.
#[test]
fn every_method_that_writes_takes_effect_once_or_can_be_repeated() {
    let once: BTreeSet<_> = cases().iter().map(|case| case.method).collect();
    let repeatable: BTreeSet<_> = REPEATABLE.iter().copied().collect();
    assert!(once.is_disjoint(&repeatable));
    let built = UNARY.iter().filter(|(_, handler)| !["later", "reserved"].contains(handler));
    let reads = |method: &str| {
        ["Get", "List", "Query", "Validate"].iter().any(|verb| method.starts_with(verb)) || method == "Ping"
    };
    let writing: BTreeSet<_> = built.map(|(method, _)| *method).filter(|method| !reads(method)).collect();
    assert_eq!(writing, once.union(&repeatable).copied().collect());
    // And the one list that clients have.
    let documented =
        include_str!("../../../proto/v1/auth.proto").split("service AuthService").next().unwrap();
    let documented: BTreeSet<_> = documented
        .split(|letter: char| !letter.is_ascii_alphanumeric())
        .filter(|word| rules::rule(word).is_some())
        .collect();
    assert_eq!(documented, once);
}
