use super::*;
use crate::{
    Caller, Credential,
    login::WRONG,
    secret::SecretDigest,
    tables::NodeKind,
    testing::{
        anonymous, assert_invalid, grants, hash, name, new_session, role_name, role_with_rule, traits,
    },
    world::{World, assert_denied, report},
};

fn user(text: &str) -> Target {
    Target::User(name(text))
}

fn role(text: &str) -> Target {
    Target::Role(role_name(text))
}

fn id(number: u8) -> LockId {
    LockId::from_random([number; 16])
}

fn new(number: u8, target: Target) -> NewLock {
    NewLock { id: id(number), target, message: "stolen laptop: call 1234".into(), ttl: None }
}

fn lock(world: &mut World, new: NewLock) -> Result<LockRow, CoreError> {
    world.admin(|tx, context| create(tx, context, new))
}

fn unlock(world: &mut World, number: u8) -> Result<(), CoreError> {
    world.admin(|tx, context| delete(tx, context, &id(number)))
}

fn call(world: &mut World, session: SecretDigest) -> Result<(), CoreError> {
    world.call(session, |_, _| Ok(()))
}

#[track_caller]
fn assert_locked<T: std::fmt::Debug>(result: Result<T, CoreError>, what: &str) {
    match result {
        Err(CoreError::Locked(reason)) if reason.starts_with(what) && reason.contains("call 1234") => {}
        other => panic!("expected a lock on {what}, got {other:?}"),
    }
}

#[test]
fn a_lock_on_a_user_or_its_role_holds_for_every_call_and_ends_with_the_lock() {
    let mut world = World::new();
    let ann = world.user_with("ann", "access", traits(&[]));
    for target in [user("ann"), role("access")] {
        let what = format!("{} {}", target.kind().word(), target.name());
        lock(&mut world, new(1, target)).unwrap();
        assert_locked(call(&mut world, ann), &what);
        unlock(&mut world, 1).unwrap();
        call(&mut world, ann).unwrap();
    }
}

#[test]
fn two_locks_on_one_user_are_two() {
    let mut world = World::new();
    let ann = world.user_with("ann", "access", traits(&[]));
    for number in [1, 2] {
        lock(&mut world, new(number, user("ann"))).unwrap();
    }
    unlock(&mut world, 1).unwrap();
    assert_locked(call(&mut world, ann), "user ann");
    unlock(&mut world, 2).unwrap();
    call(&mut world, ann).unwrap();
    assert!(matches!(unlock(&mut world, 2), Err(CoreError::NotFound { .. })));
}

#[test]
fn a_lock_with_a_ttl_ends_by_itself() {
    let mut world = World::new();
    let ann = world.user_with("ann", "access", traits(&[]));
    let ttl = Some(Duration::from_secs(10));
    let made = lock(&mut world, NewLock { ttl, ..new(1, user("ann")) }).unwrap();
    assert_eq!(made.expires_at_ms, world.now + 10_000);
    world.now += 9_999;
    assert_locked(call(&mut world, ann), "user ann");
    world.now += 1;
    call(&mut world, ann).unwrap();
    let listed = world.admin(|tx, _| list(tx, &PageRequest::new(0, None))).unwrap();
    assert!(listed.items.is_empty());
}

#[test]
fn whoever_is_locked_out_logs_in_no_more_and_only_the_log_knows_why() {
    let mut world = World::new();
    world.add_user("ann", grants(&["access"]));
    lock(&mut world, new(1, user("ann"))).unwrap();
    let mut reason = |verified| {
        let refused = world.try_log_in(&anonymous(), "ann", verified, new_session(77));
        assert_eq!(refused, Err(WRONG));
        let record = world.last_audit();
        assert_eq!((record.event.as_str(), record.target.as_str()), ("user.login.failed", "user:ann"));
        record.fields.get("reason").cloned()
    };
    assert!(reason(Some(hash("ann"))).unwrap().starts_with("user ann is locked"));
    // What is wrong with the password comes first: then the lock is not even looked at.
    for wrong in [Some(hash("x")), None] {
        assert_eq!(reason(wrong), None);
    }
}

#[test]
fn a_lock_on_a_node_holds_for_its_calls_its_heartbeats_and_its_renewal() {
    let mut world = World::new();
    let host = world.joined(NodeKind::Ssh, "web1.example.org", &[]);
    let what = format!("node {}", host.id());
    lock(&mut world, new(1, Target::Node(host.id()))).unwrap();
    assert_locked(world.with(&host.credential(), |_, _| Ok(())), &what);
    assert_locked(world.beat(&host, &report("", &[])), &what);
    let request = host.request("web1.example.org", &[]);
    assert_locked(world.renew(&host, &request), &what);
    unlock(&mut world, 1).unwrap();
    world.renew(&host, &request).unwrap();
}

#[test]
fn a_locked_agent_does_not_come_back_with_its_token() {
    let mut world = World::new();
    let mut host = world.joined(NodeKind::Ssh, "web1.example.org", &[]);
    lock(&mut world, new(1, Target::Node(host.id()))).unwrap();
    let before = world.audit().len();
    assert_locked(world.ask(&mut host, "for-web1-example-org", "web1.example.org", &[]), "node");
    assert_eq!(world.events(before), ["agent.join.denied"]);
}

#[test]
fn an_unregistered_agent_can_be_locked_too() {
    let mut world = World::new();
    world.add_token(crate::world::new_token("t", NodeKind::Ssh));
    let mut host = crate::world::Host::new(NodeKind::Ssh);
    world.ask(&mut host, "t", "web1.example.org", &[]).unwrap();
    lock(&mut world, new(1, Target::Node(host.id()))).unwrap();
    assert_locked(world.register(&host, "t", &report("web1:22", &[])), "node");
}

#[test]
fn nobody_locks_itself_out_and_only_an_admin_an_admin() {
    let mut world = World::new();
    for target in [user("boss"), role("admin")] {
        let refused = lock(&mut world, new(1, target));
        assert!(matches!(refused, Err(CoreError::Precondition(_))), "{refused:?}");
    }
    world.add_role("oncall", &role_with_rule("locks", "*"));
    let ann = world.user_with("ann", "oncall", traits(&[]));
    for target in [user("boss"), role("admin")] {
        assert_denied(world.call(ann, |tx, context| create(tx, context, new(1, target))), "admin");
    }
    world.add_user("bob", grants(&["access"]));
    world.call(ann, |tx, context| create(tx, context, new(1, user("bob")))).unwrap();
    // Another admin can be locked, by an admin.
    world.add_user("chief", grants(&["admin"]));
    lock(&mut world, new(2, user("chief"))).unwrap();
    // And such a lock is lifted by one alone.
    assert_denied(world.call(ann, |tx, context| delete(tx, context, &id(2))), "admin");
    world.call(ann, |tx, context| delete(tx, context, &id(1))).unwrap();
    unlock(&mut world, 2).unwrap();
}

#[test]
fn what_is_not_there_cannot_be_locked() {
    let mut world = World::new();
    let nobody = AgentId::from_random([9; 16]);
    for target in [user("nobody"), role("nothing"), Target::Node(nobody)] {
        let refused = lock(&mut world, new(1, target));
        assert!(matches!(refused, Err(CoreError::NotFound { .. })), "{refused:?}");
    }
    assert_invalid(Target::login("target.login", "a b"), "target.login");
}

#[test]
fn messages_and_lives_are_bounded() {
    let mut world = World::new();
    let login = || Target::login("", "root").unwrap();
    for message in ["a\u{1b}[2J".to_owned(), "x".repeat(1025)] {
        assert_invalid(lock(&mut world, NewLock { message, ..new(1, login()) }), "message");
    }
    for ttl in [Duration::ZERO, Duration::from_millis(999), Duration::MAX] {
        assert_invalid(lock(&mut world, NewLock { ttl: Some(ttl), ..new(1, login()) }), "ttl");
    }
    lock(&mut world, new(1, login())).unwrap();
}

#[test]
fn locks_are_listed_page_by_page_and_audited() {
    let mut world = World::new();
    let before = world.audit().len();
    for number in 1..=3 {
        lock(&mut world, new(number, Target::login("", "root").unwrap())).unwrap();
    }
    let page = world.admin(|tx, _| list(tx, &PageRequest::new(2, None))).unwrap();
    assert_eq!(page.items.iter().map(|(id, _)| id.clone()).collect::<Vec<_>>(), [id(1), id(2)]);
    let rest = world.admin(|tx, _| list(tx, &PageRequest::new(2, page.next))).unwrap();
    assert_eq!((rest.items.len(), rest.next), (1, None));
    assert_invalid(world.admin(|tx, _| list(tx, &PageRequest::new(2, Some("x".into())))), "page_token");
    unlock(&mut world, 1).unwrap();
    assert_eq!(world.events(before), ["lock.create", "lock.create", "lock.create", "lock.delete"]);
    assert_eq!(world.last_audit().target, "login:root");
}

#[test]
fn who_is_refused_is_known_all_the_same() {
    let mut world = World::new();
    let ann = world.user_with("ann", "access", traits(&[]));
    lock(&mut world, new(1, user("ann"))).unwrap();
    let known = world.run(|tx, _| crate::context::identify(tx, &Credential::Session(ann))).unwrap();
    assert!(matches!(known, Caller::User(user) if user.name == name("ann")));
}
