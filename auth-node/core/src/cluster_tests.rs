use store_txn::memory::MemoryStore;

use super::*;
use crate::{
    Caller,
    ca::Kek,
    names::RoleName,
    testing::{anonymous, assert_invalid, hash, name},
    user,
    world::{World, assert_denied, kek},
};

fn new_cluster() -> NewCluster {
    let cas = CaKind::ALL.map(|kind| NewCa { kind, public: format!("{kind:?}"), sealed_private: vec![1] });
    NewCluster {
        cluster_id: "0f1e-2d3c".into(),
        name: ClusterName::parse("name", "prod").unwrap(),
        cas: cas.to_vec(),
        admin: name("boss"),
        admin_password_hash: hash("boss"),
    }
}

fn make(store: &mut MemoryStore, new: NewCluster) -> Result<(), CoreError> {
    let context = Context { caller: Caller::Init, ..anonymous() };
    store.transact(1000, |tx| create(tx, &context, new))
}

#[test]
fn a_cluster_begins_with_its_authorities_roles_and_one_admin() {
    let mut store = MemoryStore::default();
    assert!(matches!(store.transact(1, |tx| get(tx)), Err(CoreError::Precondition(_))));
    make(&mut store, new_cluster()).unwrap();
    store
        .transact(2000, |tx| {
            let row = get(tx)?.row;
            assert_eq!(
                (row.name.as_str(), row.cluster_id.as_str(), row.next_node_id),
                ("prod", "0f1e-2d3c", 2)
            );
            for kind in CaKind::ALL {
                assert_eq!(tx.get(&CaKey(kind))?.unwrap().row.active.unwrap().public, format!("{kind:?}"));
            }
            for role in [RoleName::ADMIN, RoleName::AUDITOR, RoleName::ACCESS] {
                assert!(role::get(tx, &RoleName::parse("", role)?)?.row.built_in);
            }
            let boss = user::get(tx, &name("boss"))?;
            assert_eq!((boss.roles, boss.created_by.as_str()), (vec!["admin".to_owned()], "init"));
            let records = audit::records(tx, 1, 10)?.into_iter();
            let records: Vec<_> = records.map(|(_, row)| (row.event, row.actor)).collect();
            let by_init = |event: &str| (event.to_owned(), "init".to_owned());
            assert_eq!(records, [by_init("user.create"), by_init("cluster.create")]);
            Ok::<_, CoreError>(())
        })
        .unwrap();
}

#[test]
fn a_cluster_is_made_once() {
    let mut store = MemoryStore::default();
    make(&mut store, new_cluster()).unwrap();
    let revision = store.revision();
    let again = make(&mut store, NewCluster { admin: name("mallory"), ..new_cluster() });
    assert_eq!(again, Err(CoreError::AlreadyExists { kind: "cluster", name: "prod".into() }));
    assert_eq!(store.revision(), revision);
}

#[test]
fn a_cluster_needs_an_id_and_every_authority_once() {
    let mut store = MemoryStore::default();
    let long = "a".repeat(65);
    for id in ["", "a b", "a/b", long.as_str()] {
        assert_invalid(make(&mut store, NewCluster { cluster_id: id.into(), ..new_cluster() }), "cluster_id");
    }
    let mut missing = new_cluster();
    missing.cas.pop();
    let mut twice = new_cluster();
    twice.cas[1] = twice.cas[0].clone();
    for new in [missing, twice, NewCluster { cas: Vec::new(), ..new_cluster() }] {
        assert_invalid(make(&mut store, new), "cas");
    }
    assert_eq!(store.revision(), 0);
}

fn digest(text: &str) -> SecretDigest {
    SecretDigest::of(crate::secret::SecretKind::AuthJoinToken, text)
}

fn add_token(world: &mut World, secret: &str, ttl: Option<Duration>) -> Result<UnixMillis, CoreError> {
    world.admin(|tx, context| create_auth_join_token(tx, context, digest(secret), ttl))
}

fn use_token(world: &mut World, secret: &str, key: u8) -> Result<u64, CoreError> {
    let used = world.run(|tx, context| use_auth_join_token(tx, context, digest(secret), [key; 32]));
    used.and_then(Verdict::into_result)
}

#[test]
fn lifetimes_of_auth_join_tokens_are_bounded() {
    let mut world = World::new();
    for bad in [Duration::ZERO, Duration::from_millis(999), Duration::from_secs(24 * 3600 + 1)] {
        assert_invalid(add_token(&mut world, "a", Some(bad)), "ttl");
    }
    let now = world.now;
    assert_eq!(add_token(&mut world, "a", None), Ok(now + 3_600_000));
    assert_eq!(add_token(&mut world, "b", Some(Duration::from_secs(24 * 3600))), Ok(now + 24 * 3_600_000));
    assert_eq!(world.last_audit().event, "auth_node.token.create");
}

#[test]
fn an_auth_join_token_is_good_for_one_key_and_a_lost_reply_does_no_harm() {
    let mut world = World::new();
    add_token(&mut world, "a", None).unwrap();
    assert_eq!(use_token(&mut world, "a", 1), Ok(2));
    let record = world.last_audit();
    assert_eq!((record.event.as_str(), record.target.as_str()), ("auth_node.join", "auth_node:2"));
    assert_eq!(record.fields["again"], "false");
    assert_eq!(use_token(&mut world, "a", 1), Ok(2));
    assert_eq!(world.last_audit().fields["again"], "true");
    assert_denied(use_token(&mut world, "a", 2), "not accepted");
    assert_eq!(
        (world.last_audit().event.as_str(), world.last_audit().success),
        ("auth_node.join.denied", false)
    );
}

#[test]
fn ids_of_auth_nodes_are_never_used_again() {
    let mut world = World::new();
    for (secret, id) in [("a", 2), ("b", 3), ("c", 4)] {
        add_token(&mut world, secret, None).unwrap();
        assert_eq!(use_token(&mut world, secret, 9), Ok(id));
    }
}

#[test]
fn who_has_joined_is_known_and_those_of_the_cluster_before_are_no_part_of_it() {
    let mut world = World::new();
    let joined = |world: &mut World| world.run(|tx, _| joined_ids(tx)).unwrap();
    assert_eq!(joined(&mut world), 2..2);
    for secret in ["a", "b"] {
        add_token(&mut world, secret, None).unwrap();
        use_token(&mut world, secret, 9).unwrap();
    }
    assert_eq!(joined(&mut world), 2..4);
    world.run(|tx, context| succeed(tx, context, succession("new"))).unwrap();
    assert!(joined(&mut world).is_empty());
    world.run(|tx, context| create_auth_join_token(tx, context, digest("c"), None)).unwrap();
    assert_eq!(use_token(&mut world, "c", 9), Ok(4));
    assert_eq!(joined(&mut world), 4..5);
}

#[test]
fn unknown_and_ended_auth_join_tokens_are_refused_alike_and_audited() {
    let mut world = World::new();
    add_token(&mut world, "a", Some(Duration::from_secs(1))).unwrap();
    world.now += 1000;
    let ended = use_token(&mut world, "a", 1);
    assert_eq!(world.last_audit().event, "auth_node.join.denied");
    let unknown = use_token(&mut world, "b", 1);
    assert_eq!((ended.is_err(), &ended), (true, &unknown));
    // The secret of another kind of token is none of this kind.
    world.add_token(crate::world::new_token("c", crate::tables::NodeKind::Ssh));
    assert_denied(use_token(&mut world, "c", 1), "not accepted");
}

#[test]
fn stored_ca_keys_open_under_the_clusters_key_alone() {
    let mut world = World::new();
    for kind in CaKind::ALL {
        let active = world.run(|tx, _| crate::ca::active(tx, kind)).unwrap();
        let (public, sealed) = (&active.key.public, &active.key.sealed_private);
        assert!(active.revision > 0);
        assert!(crate::ca::unseal(&kek(), kind, public, sealed).unwrap().starts_with(b"-----BEGIN"));
        let other = Kek::new(zeroize::Zeroizing::new([8; 32]));
        assert!(crate::ca::unseal(&other, kind, public, sealed).is_err());
    }
}

fn succession(id: &str) -> Succession {
    Succession {
        cluster_id: id.into(),
        peer_ca: NewCa { kind: CaKind::Peer, public: "new".into(), sealed_private: vec![1] },
        event: EventType::ClusterRestore,
        backup_sha256: "ab".into(),
    }
}

#[test]
fn a_state_becomes_a_new_clusters_once() {
    let mut world = World::new();
    let before = world.run(|tx, _| get(tx)).unwrap().row;
    assert_invalid(world.run(|tx, context| succeed(tx, context, succession("a b"))), "cluster_id");
    let user_ca = NewCa { kind: CaKind::User, ..succession("new").peer_ca };
    let wrong = Succession { peer_ca: user_ca, ..succession("new") };
    assert_invalid(world.run(|tx, context| succeed(tx, context, wrong.clone())), "peer_ca");

    world.run(|tx, context| succeed(tx, context, succession("new"))).unwrap();
    let after = world.run(|tx, _| get(tx)).unwrap().row;
    let wanted = (before.name, before.next_node_id, before.session_epoch + 1);
    assert_eq!((after.name, after.next_node_id, after.session_epoch), wanted);
    assert_eq!(after.cluster_id, "new");
    let peer_ca = world.run(|tx, _| Ok::<_, CoreError>(tx.get(&CaKey(CaKind::Peer))?)).unwrap().unwrap().row;
    assert_eq!((peer_ca.active.unwrap().public.as_str(), peer_ca.trusted.len()), ("new", 0));
    let record = world.last_audit();
    assert_eq!(
        (record.event.as_str(), &record.fields["old_cluster_id"]),
        ("cluster.restore", &before.cluster_id)
    );

    // Again, as after a crash: the epoch does not rise once more.
    world.run(|tx, context| succeed(tx, context, succession("new"))).unwrap();
    assert_eq!(world.run(|tx, _| get(tx)).unwrap().row.session_epoch, after.session_epoch);
}

#[test]
fn no_join_token_outlives_the_cluster_that_it_is_of() {
    let mut world = World::new();
    add_token(&mut world, "a", None).unwrap();
    world.add_token(crate::world::new_token("c", crate::tables::NodeKind::Ssh));
    assert_eq!(world.run(|tx, _| end_join_tokens(tx)), Ok(2));
    assert_eq!(world.run(|tx, _| end_join_tokens(tx)), Ok(0));
    assert_denied(use_token(&mut world, "a", 1), "not accepted");
}
