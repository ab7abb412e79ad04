use std::collections::BTreeMap;

use mezite_pki::{ssh::SshKeyPair, x509::KeyPair};
use store_txn::{Key as _, KeyWriter};

use super::{
    testing::{
        add, ask, bootstrap, digest, fresh, identity, is_locked, renew, renewed, secret, serials, wanted,
        with_ci,
    },
    *,
};
use crate::{
    access_request,
    lock::{self, NewLock, Target},
    names::{LockId, RequestId},
    role,
    session::SessionRef,
    tables::{ConditionsRow, IdentitySessionKey, MappedRoleKey, RoleRow, RuleRow, SessionHandleKey},
    testing::{assert_invalid, grants, hash, name, role_name, strings, traits},
    user::NewUser,
    world::{World, assert_denied},
};

#[test]
fn a_reset_takes_all_that_it_had_and_begins_anew() {
    let (mut world, old) = with_ci();
    let revision = world.run(|tx, _| get(tx, &identity("ci"))).unwrap().revision;
    let reset = world
        .admin(|tx, context| update(tx, context, &wanted("ci", &["access"]), revision, Some(&secret("t"))));
    let reset = reset.unwrap();
    assert_eq!((reset.generation, reset.ends_at_ms), (0, 0));
    assert!(reset.secret_ends_at_ms > world.now && !world.is_honoured(old.session));
    assert_eq!(serials(&mut world).len(), 1);
    assert_denied(renew(&mut world, &old, &ask(2), 2), "not of this");
    assert_denied(bootstrap(&mut world, "ci", "s", &ask(3), 3), "not accepted");
    let new = bootstrap(&mut world, "ci", "t", &ask(4), 4).unwrap();
    assert_eq!(new.generation, 1);
    assert_eq!(world.audit().iter().filter(|row| row.event == "agent_identity.reset").count(), 1);
    // A secret that was not used yet is replaced too.
    for text in ["u", "v"] {
        world
            .admin(|tx, context| update(tx, context, &wanted("ci", &["access"]), 0, Some(&secret(text))))
            .unwrap();
    }
    assert_denied(bootstrap(&mut world, "ci", "u", &ask(5), 5), "not accepted");
    bootstrap(&mut world, "ci", "v", &ask(6), 6).unwrap();
}

#[test]
fn a_deletion_ends_sessions_revokes_certificates_and_leaves_nothing() {
    let (mut world, bot) = with_ci();
    let second = renew(&mut world, &bot, &ask(2), 2).unwrap();
    let ended = world.admin(|tx, context| delete(tx, context, &identity("ci"))).unwrap();
    assert_eq!((ended, world.is_honoured(second.session)), (1, false));
    assert_eq!(serials(&mut world).len(), 2);
    for table in [
        AgentIdentityKey::TABLE,
        AgentIdentityStateKey::TABLE,
        BootstrapSecretKey::TABLE,
        IdentityTlsKeyKey::TABLE,
        IdentitySessionKey::TABLE,
        SpiffeIdKey::TABLE,
        MappedRoleKey::TABLE,
    ] {
        assert_eq!(world.rows(KeyWriter::table(table)), 0, "{}", table.name);
    }
    assert_eq!(world.rows(KeyWriter::table(SessionHandleKey::TABLE)), 1, "that of the admin");
    let again = world.admin(|tx, context| delete(tx, context, &identity("ci")));
    assert!(matches!(again, Err(CoreError::NotFound { .. })), "{again:?}");
}

#[test]
fn nobody_gives_an_identity_what_it_does_not_hold() {
    let mut world = World::new();
    let rule = |verbs: &[&str]| RuleRow {
        resources: vec!["agent_identities".into()],
        verbs: verbs.iter().map(|&verb| verb.to_owned()).collect(),
    };
    let allow = ConditionsRow { rules: vec![rule(&["*"])], ..ConditionsRow::default() };
    world.add_role("maker", &RoleRow { allow: Some(allow), ..RoleRow::default() });
    world.add_role("mine", &RoleRow::default());
    let own =
        crate::user::Grants { traits: traits(&[("logins", &["deploy"])]), ..grants(&["maker", "mine"]) };
    world.add_user("ann", own);
    let ann = world.log_in("ann");
    add(&mut world, &wanted("boss-bot", &["admin"]), "b");
    let by_ann = |world: &mut World, wanted: &Wanted| {
        world.call(ann, |tx, context| create(tx, context, wanted, &secret("x")))
    };
    assert_denied(by_ann(&mut world, &wanted("ci", &["access"])), "you do not hold role access");
    assert_denied(by_ann(&mut world, &wanted("ci", &["admin"])), "you do not hold role admin");
    let root =
        Wanted::new(identity("ci"), BTreeSet::new(), traits(&[("logins", &["root"])]), None, vec![]).unwrap();
    assert_denied(by_ann(&mut world, &root), "trait logins");
    by_ann(&mut world, &wanted("ci", &["mine"])).unwrap();
    // Nor changes, resets or deletes one that has it.
    for secret in [None, Some(secret("y"))] {
        let taken = world
            .call(ann, |tx, context| update(tx, context, &wanted("boss-bot", &["mine"]), 0, secret.as_ref()));
        assert_denied(taken, "you do not hold role admin");
    }
    let more =
        world.call(ann, |tx, context| update(tx, context, &wanted("ci", &["mine", "access"]), 0, None));
    assert_denied(more, "you do not hold role access");
    assert_denied(world.call(ann, |tx, context| delete(tx, context, &identity("boss-bot"))), "role admin");
    // So it is with a bot that makes bots.
    let bot = bootstrap(&mut world, "ci", "x", &ask(1), 1).unwrap();
    let copy =
        world.call(bot.session, |tx, context| create(tx, context, &wanted("ci2", &["mine"]), &secret("z")));
    assert_eq!(copy.unwrap().row.created_by, "bot:ci");
    let more =
        world.call(bot.session, |tx, context| create(tx, context, &wanted("ci3", &["maker"]), &secret("z")));
    assert_denied(more, "you do not hold role maker");
    let missing = world.admin(|tx, context| create(tx, context, &wanted("ci4", &["none"]), &secret("z")));
    assert!(matches!(missing, Err(CoreError::NotFound { kind: "role", .. })), "{missing:?}");
}

#[test]
fn what_is_for_people_alone_no_bot_does_whatever_its_roles() {
    let mut world = World::new();
    let requests = crate::tables::RequestRulesRow {
        request_roles: vec!["access".into()],
        review_roles: vec!["access".into()],
        approvals: 0,
    };
    let allow = ConditionsRow { requests: Some(requests), ..ConditionsRow::default() };
    world.add_role("asks", &RoleRow { allow: Some(allow), ..RoleRow::default() });
    add(&mut world, &wanted("ci", &["admin", "asks"]), "s");
    let bot = bootstrap(&mut world, "ci", "s", &ask(1), 1).unwrap().session;
    let new = NewUser { name: name("eve"), grants: grants(&[]), proof: hash("eve").into() };
    assert_denied(world.call(bot, |tx, context| user::create(tx, context, &new)), "for users");
    let reset =
        world.call(bot, |tx, context| user::reset_password(tx, context, &name("boss"), &hash("x").into()));
    assert_denied(reset, "for users");
    let changed =
        world.call(bot, |tx, context| user::change_password(tx, context, &hash("boss"), &hash("x")));
    assert_denied(changed, "for users");
    let id = RequestId::from_random([1; 16]);
    let cancelled = world.call(bot, |tx, context| access_request::cancel(tx, context, &id));
    assert_denied(cancelled, "for users");
    // What an admin does that makes nobody a person, it may.
    world.add_user("ann", grants(&["access"]));
    world.call(bot, |tx, context| user::update(tx, context, &name("ann"), 0, &grants(&["auditor"]))).unwrap();
    assert_eq!(world.last_audit().actor, "bot:ci");
}

#[test]
fn a_role_that_an_identity_has_cannot_be_deleted() {
    let mut world = World::new();
    world.add_role("deployer", &RoleRow::default());
    add(&mut world, &wanted("ci", &["deployer"]), "s");
    let remove =
        |world: &mut World| world.admin(|tx, context| role::delete(tx, context, &role_name("deployer")));
    match remove(&mut world) {
        Err(CoreError::Precondition(why)) => assert!(why.contains("agent identity ci"), "{why}"),
        other => panic!("{other:?}"),
    }
    world.admin(|tx, context| update(tx, context, &wanted("ci", &[]), 0, None)).unwrap();
    remove(&mut world).unwrap();
}

#[test]
fn a_lock_holds_everywhere_on_the_identity_and_on_its_roles() {
    for target in [Target::AgentIdentity(identity("ci")), Target::Role(role_name("access"))] {
        let (mut world, bot) = with_ci();
        let id = LockId::from_random([9; 16]);
        let new = NewLock { id: id.clone(), target, message: "stop".into(), ttl: None };
        world.admin(|tx, context| lock::create(tx, context, new)).unwrap();
        is_locked(world.call(bot.session, |_, _| Ok(())));
        is_locked(renew(&mut world, &bot, &ask(2), 2));
        assert_eq!(serials(&mut world).len(), 1);
        world.admin(|tx, context| lock::delete(tx, context, &id)).unwrap();
        // A lock that ended has not used up a generation.
        assert_eq!(renew(&mut world, &bot, &ask(2), 2).unwrap().generation, 2);
        assert_eq!(serials(&mut world).len(), 1, "what was revoked stays so");
    }
    // A lock on the user of the same name is not the bot's.
    let (mut world, bot) = with_ci();
    world.add_user("ci", grants(&["auditor"]));
    let target = Target::User(name("ci"));
    let new = NewLock { id: LockId::from_random([9; 16]), target, message: String::new(), ttl: None };
    world.admin(|tx, context| lock::create(tx, context, new)).unwrap();
    assert!(world.is_honoured(bot.session));
}

#[test]
fn nobody_locks_itself_out_and_only_an_admin_an_admin() {
    let mut world = World::new();
    let rule = RuleRow { resources: vec!["locks".into()], verbs: vec!["create".into()] };
    let allow = ConditionsRow { rules: vec![rule], ..ConditionsRow::default() };
    world.add_role("locker", &RoleRow { allow: Some(allow), ..RoleRow::default() });
    add(&mut world, &wanted("ci", &["locker"]), "s");
    add(&mut world, &wanted("chief", &["admin"]), "t");
    let bot = bootstrap(&mut world, "ci", "s", &ask(1), 1).unwrap().session;
    let lock = |world: &mut World, session, target: Target| {
        let new = NewLock { id: LockId::from_random([3; 16]), target, message: String::new(), ttl: None };
        world.call(session, |tx, context| lock::create(tx, context, new))
    };
    let bots = |text| Target::AgentIdentity(identity(text));
    assert!(matches!(lock(&mut world, bot, bots("ci")), Err(CoreError::Precondition(_))));
    assert_denied(lock(&mut world, bot, bots("chief")), "role admin");
    assert_denied(lock(&mut world, bot, Target::User(name("boss"))), "role admin");
    assert!(matches!(lock(&mut world, bot, bots("none")), Err(CoreError::NotFound { .. })));
    world.add_user("ci", grants(&["access"]));
    lock(&mut world, bot, Target::User(name("ci"))).unwrap();
    let boss = world.boss;
    lock(&mut world, boss, bots("chief")).unwrap();
    // And such a lock is lifted by an admin alone.
    let lift = |world: &mut World, session| {
        world.call(session, |tx, context| lock::delete(tx, context, &LockId::from_random([3; 16])))
    };
    assert_denied(lift(&mut world, bot), "role admin");
    lift(&mut world, boss).unwrap();
}

#[test]
fn what_was_taken_from_an_identity_is_taken_from_its_certificates() {
    let (mut world, bot) = with_ci();
    world.admin(|tx, context| update(tx, context, &wanted("ci", &["access", "auditor"]), 0, None)).unwrap();
    assert!(serials(&mut world).is_empty(), "it was given something");
    world.admin(|tx, context| update(tx, context, &wanted("ci", &["auditor"]), 0, None)).unwrap();
    assert_eq!(serials(&mut world).len(), 1);
    let roles = world.call(bot.session, |_, context| Ok(context.caller.holder()?.roles.len())).unwrap();
    assert_eq!(roles, 1, "its session has what it has now");
    assert!(renewed(&mut world, &bot, &ask(2), 2).unwrap().ssh.is_none());
    // A renewal is no change of what an admin wrote.
    let revision = world.run(|tx, _| get(tx, &identity("ci"))).unwrap().revision;
    let stale = world.admin(|tx, context| update(tx, context, &wanted("ci", &[]), revision - 1, None));
    assert!(matches!(stale, Err(CoreError::StaleRevision { .. })), "{stale:?}");
    world.admin(|tx, context| update(tx, context, &wanted("ci", &[]), revision, None)).unwrap();
}

#[test]
fn sessions_of_bots_are_listed_and_ended_apart_from_users() {
    let (mut world, bot) = with_ci();
    world.add_user("ci", grants(&["access"]));
    let person = world.log_in("ci");
    let list = |world: &mut World, session, owner: Option<&str>| {
        let owner = owner.map(|text| Owner::parse("user", text).unwrap());
        let page = PageRequest::new(0, None);
        let listed =
            world.call(session, |tx, context| session::list(tx, &context.caller, owner.as_ref(), &page));
        listed.unwrap().items.iter().map(|listed| listed.session.owner_text()).collect::<Vec<_>>()
    };
    let boss = world.boss;
    assert_eq!(list(&mut world, boss, None).len(), 3);
    assert_eq!(list(&mut world, boss, Some("bot:ci")), ["bot:ci"]);
    assert_eq!(list(&mut world, boss, Some("ci")), ["ci"]);
    assert_eq!(list(&mut world, bot.session, None), ["bot:ci"]);
    assert!(list(&mut world, bot.session, Some("ci")).is_empty());
    assert!(list(&mut world, person, Some("bot:ci")).is_empty());
    // It is not ended because nobody used it for a while; an admin ends it, and it renews all the same.
    let handle = fresh(0, 1).handle;
    world.admin(|tx, context| session::revoke(tx, context, &SessionRef::Handle(handle))).unwrap();
    assert_eq!(world.last_audit().fields["user"], "bot:ci");
    assert!(!world.is_honoured(bot.session) && world.is_honoured(person));
    let next = renew(&mut world, &bot, &ask(2), 2).unwrap();
    world.call(next.session, |tx, context| session::logout(tx, context)).unwrap();
    assert!(!world.is_honoured(next.session) && world.is_honoured(person));
}

#[test]
fn spiffe_ids_are_of_one_identity_each_and_lead_to_it() {
    let mut world = World::new();
    let with = |text: &str, ids: &[&str]| {
        let ids = ids.iter().map(|&id| id.to_owned()).collect();
        Wanted::new(identity(text), BTreeSet::new(), BTreeMap::new(), None, ids)
    };
    let (a, b, c) = ("spiffe://x.org/a", "spiffe://x.org/b", "spiffe://x.org/c");
    add(&mut world, &with("one", &[b, a]).unwrap(), "s");
    let whose = |world: &mut World, id: &str| world.run(|tx, _| by_spiffe_id(tx, id)).unwrap();
    assert_eq!((whose(&mut world, a), whose(&mut world, c)), (Some(identity("one")), None));
    let taken = world.admin(|tx, context| create(tx, context, &with("two", &[c, a])?, &secret("t")));
    assert!(matches!(taken, Err(CoreError::AlreadyExists { .. })), "{taken:?}");
    assert_eq!(whose(&mut world, c), None);
    world.admin(|tx, context| update(tx, context, &with("one", &[c, b])?, 0, None)).unwrap();
    assert_eq!((whose(&mut world, a), whose(&mut world, c)), (None, Some(identity("one"))));
    add(&mut world, &with("two", &[a]).unwrap(), "t");
    world.admin(|tx, context| delete(tx, context, &identity("one"))).unwrap();
    assert_eq!((whose(&mut world, a), whose(&mut world, b)), (Some(identity("two")), None));

    assert_invalid(with("x", &["spiffe://x.org"]), "identity.spiffe_ids[0]");
    assert_invalid(with("x", &[a, a]), "identity.spiffe_ids");
    let many: Vec<_> = (0..17).map(|number| format!("spiffe://x.org/{number}")).collect();
    assert_invalid(with("x", &many.iter().map(String::as_str).collect::<Vec<_>>()), "identity.spiffe_ids");
}

#[test]
fn bounds_are_told_by_field() {
    let new = |max_ttl, values: BTreeMap<_, _>| {
        Wanted::new(identity("x"), BTreeSet::new(), values, max_ttl, Vec::new())
    };
    for seconds in [0, 299, 7 * 24 * 3600 + 1] {
        assert_invalid(new(Some(Duration::from_secs(seconds)), BTreeMap::new()), "identity.max_ttl");
    }
    assert_invalid(new(None, [("a b".to_owned(), strings(&["x"]))].into()), "identity.traits");
    let many = (0..65).map(|number| role_name(&format!("r{number}"))).collect();
    assert_invalid(Wanted::new(identity("x"), many, BTreeMap::new(), None, vec![]), "identity.roles");
    for seconds in [59, 7 * 24 * 3600 + 1] {
        assert_invalid(NewSecret::new(digest("s"), Some(Duration::from_secs(seconds))), "bootstrap_ttl");
    }
    let line = SshKeyPair::generate_ed25519("").unwrap().public_line();
    let tls = KeyPair::generate_p256().unwrap().spki_der();
    assert_invalid(CredentialRequest::new("", tls.clone(), None, 1), "ssh_public_key");
    assert_invalid(CredentialRequest::new("x", tls, None, 1), "ssh_public_key");
    assert_invalid(CredentialRequest::new(&line, Vec::new(), None, 1), "tls_public_key");
}
