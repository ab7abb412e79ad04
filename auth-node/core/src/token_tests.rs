use super::*;
use crate::{
    testing::{assert_invalid, role_with_rule, traits},
    world::{Host, World, assert_denied, new_token, report, secret, token_name},
};

fn create(world: &mut World, new: NewToken) -> Result<TokenRow, CoreError> {
    world.admin(|tx, context| super::create(tx, context, new))
}

fn is_accepted(world: &mut World, text: &str) -> Result<TokenRow, CoreError> {
    world.run(|tx, context| validate(tx, context, secret(text))).and_then(Verdict::into_result)
}

#[test]
fn a_token_is_what_was_asked_for_and_its_secret_is_nowhere() {
    let mut world = World::new();
    let new = NewToken {
        ttl: Some(Duration::from_secs(90)),
        max_uses: 7,
        labels: [("env".to_owned(), "prod".to_owned())].into(),
        allowed_principals: vec!["*.Example.com".into(), "192.0.2.7".into()],
        ..new_token("web", NodeKind::Ssh)
    };
    let row = create(&mut world, new).unwrap();
    assert_eq!(row.allowed_principals, ["*.example.com", "192.0.2.7"]);
    assert_eq!((row.max_uses, row.uses, row.created_by.as_str()), (7, 0, "user:boss"));
    assert_eq!(row.expires_at_ms, world.now + 90_000);
    let record = world.last_audit();
    assert_eq!((record.event.as_str(), record.target.as_str()), ("token.create", "token:web"));
    assert_eq!(world.run(|tx, _| get(tx, &token_name("web"))).unwrap().row, row);
    assert_eq!(is_accepted(&mut world, "web").unwrap(), row);
}

#[test]
fn unset_fields_have_defaults() {
    let mut world = World::new();
    let row = create(&mut world, new_token("web", NodeKind::Ingest)).unwrap();
    assert_eq!((row.max_uses, row.expires_at_ms, row.kind()), (1, world.now + 3_600_000, NodeKind::Ingest));
}

#[test]
fn every_bound_of_a_token_is_kept() {
    let mut world = World::new();
    let base = || new_token("web", NodeKind::Ssh);
    let ttl = |milliseconds| NewToken { ttl: Some(Duration::from_millis(milliseconds)), ..base() };
    for bad in [0, 59_999, 30 * 24 * 3_600_000 + 1] {
        assert_invalid(create(&mut world, ttl(bad)), "ttl");
    }
    assert_invalid(create(&mut world, NewToken { kind: NodeKind::Unspecified, ..base() }), "kind");
    assert_invalid(create(&mut world, NewToken { method: JoinMethod::Unspecified, ..base() }), "method");
    assert_invalid(create(&mut world, NewToken { method: JoinMethod::Iam, ..base() }), "iam_rules");
    assert_invalid(create(&mut world, NewToken { max_uses: 10_001, ..base() }), "max_uses");
    let labels = [("a b".to_owned(), String::new())].into();
    assert_invalid(create(&mut world, NewToken { labels, ..base() }), "labels");
    let patterns = |patterns| NewToken { allowed_principals: patterns, ..base() };
    assert_invalid(create(&mut world, patterns(vec!["a".into(); 65])), "allowed_principals");
    assert_invalid(create(&mut world, patterns(vec!["a".into(), "*".into()])), "allowed_principals[1]");
    assert!(world.run(|tx, _| get(tx, &token_name("web"))).is_err());

    for good in
        [ttl(60_000), NewToken { name: token_name("b"), secret: secret("b"), ..ttl(30 * 24 * 3_600_000) }]
    {
        create(&mut world, good).unwrap();
    }
    let full = NewToken {
        name: token_name("c"),
        secret: secret("c"),
        max_uses: 10_000,
        allowed_principals: vec!["a".into(); 64],
        ..base()
    };
    create(&mut world, full).unwrap();
}

#[test]
fn only_an_admin_lets_an_ingest_in() {
    let mut world = World::new();
    world.add_role("gate", &role_with_rule("tokens", "*"));
    let ann = world.user_with("ann", "gate", traits(&[]));
    let mut by_ann = |new| world.call(ann, |tx, context| super::create(tx, context, new));
    assert_denied(by_ann(new_token("i", NodeKind::Ingest)), "needs the role admin");
    by_ann(new_token("web", NodeKind::Ssh)).unwrap();
    assert!(is_accepted(&mut world, "i").is_err());
    create(&mut world, new_token("i", NodeKind::Ingest)).unwrap();
    assert!(is_accepted(&mut world, "i").is_ok());
}

/// A row that a later release wrote, whose hosts attest themselves by something else: its secret, if it has one, and its
/// name are nothing to any consumer.
#[test]
fn a_token_of_another_method_is_accepted_by_no_consumer() {
    let mut world = World::new();
    for name in ["begun", "fresh"] {
        world.add_token(NewToken {
            max_uses: 9,
            secret: secret("its-secret"),
            ..new_token(name, NodeKind::Ssh)
        });
        let mut host = Host::new(NodeKind::Ssh);
        if name == "begun" {
            world.ask(&mut host, "its-secret", "web1", &[]).unwrap();
        }
        let become_iam = |tx: &mut store_txn::memory::MemoryTransaction<'_>, _: &Context| {
            let key = TokenKey(token_name(name));
            let row = TokenRow { method: JoinMethod::Iam.into(), ..get(tx, &key.0)?.row };
            tx.put(&key, &row);
            Ok(())
        };
        world.run(become_iam).unwrap();
        for text in ["its-secret", name] {
            let mut other = Host::new(NodeKind::Ssh);
            assert_denied(is_accepted(&mut world, text), "not accepted");
            assert_denied(world.ask(&mut other, text, "web2", &[]), "not accepted");
            if host.id.is_some() {
                assert_denied(world.ask(&mut host, text, "web1", &[]), "not accepted");
                assert_denied(world.register(&host, text, &report("web1:22", &[])), "not accepted");
                assert!(world.node(&host).is_none());
            }
        }
        world.admin(|tx, context| delete(tx, context, &token_name(name))).unwrap();
    }
}

#[test]
fn a_name_is_taken_once() {
    let mut world = World::new();
    world.add_token(new_token("web", NodeKind::Ssh));
    let again = create(&mut world, NewToken { secret: secret("other"), ..new_token("web", NodeKind::Ssh) });
    assert_eq!(again, Err(CoreError::AlreadyExists { kind: "token", name: "web".into() }));
    assert!(is_accepted(&mut world, "other").is_err());
}

#[test]
fn lists_go_on_where_the_page_before_ended() {
    let mut world = World::new();
    for name in ["c", "a", "b"] {
        world.add_token(new_token(name, NodeKind::Ssh));
    }
    let mut page = |after: Option<&str>| {
        let request = PageRequest { size: 2, after: after.map(str::to_owned) };
        let page = world.run(|tx, _| list(tx, &request)).unwrap();
        (page.items.into_iter().map(|(name, _)| name.to_string()).collect::<Vec<_>>(), page.next)
    };
    assert_eq!(page(None), (vec!["a".into(), "b".into()], Some("b".into())));
    assert_eq!(page(Some("b")), (vec!["c".into()], None));
    let foreign = PageRequest { size: 2, after: Some("A/B".into()) };
    assert_invalid(world.run(|tx, _| list(tx, &foreign)), "page_token");
}

#[test]
fn tokens_of_auth_nodes_are_listed_and_deleted_beside_the_others() {
    let mut world = World::new();
    let digest = |byte: u8| SecretDigest([byte; 32]);
    for byte in [1, 0xfe] {
        world.admin(|tx, context| cluster::create_auth_join_token(tx, context, digest(byte), None)).unwrap();
        let name = cluster::auth_join_token_name(digest(byte)).unwrap();
        assert_eq!(world.last_audit().fields["token"], name.as_str());
    }
    for name in ["a", "auth", "web"] {
        create(&mut world, new_token(name, NodeKind::Ssh)).unwrap();
    }
    let (first, second) =
        (format!("auth-node-{}", "01".repeat(16)), format!("auth-node-{}", "fe".repeat(16)));
    let (mut names, mut after) = (Vec::new(), None);
    loop {
        let page = world.run(|tx, _| list(tx, &PageRequest::new(1, after.clone()))).unwrap();
        names.extend(page.items.into_iter().map(|(name, _)| name.as_str().to_owned()));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(names, ["a", "auth", &first, &second, "web"]);
    let found = world.run(|tx, _| find_any(tx, &token_name(&first))).unwrap();
    assert!(matches!(found, Found::AuthNode(token) if token.row.created_by == "user:boss"));
    assert!(matches!(world.run(|tx, _| find_any(tx, &token_name("web"))), Ok(Found::Join(_))));

    world.admin(|tx, context| delete(tx, context, &token_name(&first))).unwrap();
    assert_eq!(world.last_audit().target, format!("token:{first}"));
    assert!(world.admin(|tx, context| delete(tx, context, &token_name(&first))).is_err());
    let mut used = |byte| {
        let used = world.run(|tx, context| cluster::use_auth_join_token(tx, context, digest(byte), [9; 32]));
        used.and_then(Verdict::into_result)
    };
    assert_denied(used(1), "not accepted");
    assert_eq!(used(0xfe), Ok(2));
    // No other token takes such a name.
    assert_invalid(create(&mut world, new_token("auth-node-1", NodeKind::Ssh)), "name");
}

/// Unknown, expired, used-up and deleted tokens, and a name taken for a secret, cannot be told apart.
#[test]
fn token_method_ttl_and_uses_are_checked_at_every_use_in_every_consumer() {
    let mut world = World::new();
    for name in ["expired", "used", "deleted", "good"] {
        let ttl = (name == "expired").then_some(Duration::from_secs(60));
        world.add_token(NewToken {
            ttl,
            secret: secret(&format!("{name}-secret")),
            ..new_token(name, NodeKind::Ssh)
        });
    }
    let mut first = Host::new(NodeKind::Ssh);
    world.ask(&mut first, "used-secret", "first", &[]).unwrap();
    world.admin(|tx, context| delete(tx, context, &token_name("deleted"))).unwrap();
    world.now += 60_000;
    for secret in ["unknown", "expired-secret", "used-secret", "deleted-secret", "good", ""] {
        let before = world.audit().len();
        let validated = is_accepted(&mut world, secret).unwrap_err();
        let mut host = Host::new(NodeKind::Ssh);
        let certified = world.ask(&mut host, secret, "second", &[]).unwrap_err();
        assert_eq!(
            (&validated, &certified),
            (&CoreError::Denied(NOT_ACCEPTED.into()), &validated),
            "{secret}"
        );
        assert_eq!(world.events(before), ["agent.join.denied", "agent.join.denied"], "{secret}");
        assert!(
            world.last_audit().fields.values().all(|value| secret.is_empty() || !value.contains("-secret"))
        );
    }
    assert!(is_accepted(&mut world, "good-secret").is_ok());
    // The join of the used token can still be finished, that of an expired one not.
    assert!(world.register(&first, "used-secret", &report("first:22", &[])).is_ok());
}

#[test]
fn a_join_with_an_expired_or_deleted_token_cannot_be_finished() {
    let mut world = World::new();
    for name in ["expired", "deleted"] {
        world.add_token(NewToken { ttl: Some(Duration::from_secs(60)), ..new_token(name, NodeKind::Ssh) });
        let mut host = Host::new(NodeKind::Ssh);
        world.ask(&mut host, name, name, &[]).unwrap();
        match name {
            "expired" => world.now += 60_000,
            _ => world.admin(|tx, context| delete(tx, context, &token_name(name))).unwrap(),
        }
        assert_denied(world.register(&host, name, &report("h:22", &[])), "not accepted");
        assert_eq!(world.last_audit().event, "agent.join.denied");
        assert!(world.node(&host).is_none());
    }
}

#[test]
fn validation_uses_nothing_and_writes_nothing() {
    let mut world = World::new();
    world.add_token(new_token("web", NodeKind::Ssh));
    let before = world.store.revision();
    for _ in 0..3 {
        assert_eq!(is_accepted(&mut world, "web").unwrap().uses, 0);
    }
    assert_eq!(world.store.revision(), before);
}

#[test]
fn a_deleted_token_is_gone_and_its_agents_stay() {
    let mut world = World::new();
    let host = world.joined(NodeKind::Ssh, "web1", &[]);
    world.admin(|tx, context| delete(tx, context, &token_name("for-web1"))).unwrap();
    assert_eq!(world.last_audit().event, "token.delete");
    assert!(world.node(&host).is_some());
    assert!(world.beat(&host, &report("", &[])).is_ok());
    let again = world.admin(|tx, context| delete(tx, context, &token_name("for-web1")));
    assert_eq!(again, Err(CoreError::NotFound { kind: "token", name: "for-web1".into() }));
}
