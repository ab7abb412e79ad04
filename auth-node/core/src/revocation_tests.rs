use mezite_pki::ssh::SshKeyPair;

use super::*;
use crate::{
    evaluate::Traits,
    issue::{self, UserCertRequest},
    lock::{self, NewLock, Target},
    names::LockId,
    node,
    secret::SecretDigest,
    session::{self, SessionRef},
    tables::{ConditionsRow, NodeKind, RoleOptionsRow, RoleRow},
    testing::{grants, hash, name, role_name, strings, traits},
    user::{self, Grants},
    world::{Host, World},
};

/// A user certificate with a serial number of the test's choice.
fn issue(world: &mut World, session: SecretDigest, serial: u64) {
    let key = SshKeyPair::generate_ed25519("").unwrap().public_line();
    let request = UserCertRequest::new(&[key], Vec::new(), None, Vec::new(), "", || serial).unwrap();
    let found = world.call(session, |view, context| issue::candidates(view, context, &request)).unwrap();
    world.call(session, |tx, context| issue::user_certs(tx, context, &request, &found)).unwrap();
}

fn revoked(world: &mut World) -> Vec<u64> {
    world.run(|tx, _| serials(tx)).unwrap()
}

fn lock(world: &mut World, target: Target) {
    let new = NewLock { id: LockId::from_random([1; 16]), target, message: String::new(), ttl: None };
    world.admin(|tx, context| lock::create(tx, context, new)).unwrap();
}

fn unlock(world: &mut World) {
    world.admin(|tx, context| lock::delete(tx, context, &LockId::from_random([1; 16]))).unwrap();
}

fn own_logins(logins: &[&str]) -> Traits {
    traits(&[("logins", logins)])
}

/// A role for these logins on nodes with a label.
fn labelled(logins: &[&str]) -> RoleRow {
    let node_labels = [("env".to_owned(), strings(&["prod"]))].into();
    let allow = ConditionsRow { logins: strings(logins).values, node_labels, ..ConditionsRow::default() };
    RoleRow { allow: Some(allow), ..RoleRow::default() }
}

#[test]
fn a_lock_revokes_what_was_issued_before_and_nothing_that_comes_after() {
    let mut world = World::new();
    let ann = world.user_with("ann", "access", own_logins(&["ann"]));
    let bob = world.user_with("bob", "access", own_logins(&["bob"]));
    issue(&mut world, ann, 1);
    issue(&mut world, bob, 2);
    assert!(revoked(&mut world).is_empty());
    for (target, expected) in
        [(Target::User(name("ann")), vec![1]), (Target::login("", "bob").unwrap(), vec![1, 2])]
    {
        lock(&mut world, target);
        assert_eq!(revoked(&mut world), expected);
        unlock(&mut world);
        // It was revoked for good.
        assert_eq!(revoked(&mut world), expected);
    }
    issue(&mut world, ann, 3);
    assert_eq!(revoked(&mut world), [1, 2]);
    lock(&mut world, Target::Role(role_name("access")));
    assert_eq!(revoked(&mut world), [1, 2, 3]);
}

#[test]
fn a_deletion_a_reset_and_a_role_that_was_taken_revoke_and_what_only_gives_does_not() {
    let mut world = World::new();
    let grants_of = |roles: &[&str], logins: &[&str]| Grants { traits: own_logins(logins), ..grants(roles) };
    let ann = world.user_with("ann", "access", own_logins(&["ann"]));
    issue(&mut world, ann, 1);
    let update = |world: &mut World, grants: Grants| {
        world.admin(|tx, context| user::update(tx, context, &name("ann"), 0, &grants)).unwrap();
    };
    update(&mut world, grants_of(&["access", "auditor"], &["ann", "root"]));
    assert!(revoked(&mut world).is_empty());
    update(&mut world, grants_of(&["access", "auditor"], &["ann"]));
    assert_eq!(revoked(&mut world), [1]);
    issue(&mut world, ann, 2);
    update(&mut world, grants_of(&["access"], &["ann"]));
    assert_eq!(revoked(&mut world), [1, 2]);
    issue(&mut world, ann, 3);
    world.admin(|tx, context| user::reset_password(tx, context, &name("ann"), &hash("ann").into())).unwrap();
    assert_eq!(revoked(&mut world), [1, 2, 3]);
    let ann = world.log_in("ann");
    issue(&mut world, ann, 4);
    world.admin(|tx, context| user::delete(tx, context, &name("ann"))).unwrap();
    assert_eq!(revoked(&mut world), [1, 2, 3, 4]);
}

#[test]
fn a_role_that_allows_less_revokes_what_was_issued_by_it() {
    let mut world = World::new();
    let everywhere = |row: RoleRow| {
        let mut row = row;
        row.allow.as_mut().unwrap().node_labels = [("*".to_owned(), strings(&["*"]))].into();
        row
    };
    world.add_role("dev", &everywhere(labelled(&["dev"])));
    let ann = world.user_with("ann", "dev", Traits::new());
    let bob = world.user_with("bob", "access", own_logins(&["bob"]));
    issue(&mut world, ann, 1);
    issue(&mut world, bob, 2);
    let update = |world: &mut World, row: RoleRow| {
        world.admin(|tx, context| crate::role::update(tx, context, &role_name("dev"), 0, &row)).unwrap();
    };
    let more = everywhere(labelled(&["dev", "ops"]));
    update(&mut world, RoleRow { description: "developers".into(), ..more.clone() });
    assert!(revoked(&mut world).is_empty());
    let options = Some(RoleOptionsRow { permit_pty: Some(false), ..RoleOptionsRow::default() });
    update(&mut world, RoleRow { options, ..more.clone() });
    assert_eq!(revoked(&mut world), [1]);
    issue(&mut world, ann, 3);
    let deny = Some(ConditionsRow { logins: vec!["root".into()], ..ConditionsRow::default() });
    update(&mut world, RoleRow { deny, ..more.clone() });
    assert_eq!(revoked(&mut world), [1, 3]);
    issue(&mut world, ann, 4);
    update(&mut world, everywhere(labelled(&["ops"])));
    assert_eq!(revoked(&mut world), [1, 3, 4]);
}

#[test]
fn a_session_that_an_admin_revokes_takes_its_certificates_along_and_logging_out_does_not() {
    let mut world = World::new();
    world.add_user("ann", Grants { traits: own_logins(&["ann"]), ..grants(&["access"]) });
    let (first, row) = world.log_in_row("ann");
    let (second, _) = world.log_in_row("ann");
    issue(&mut world, first, 1);
    issue(&mut world, second, 2);
    world.call(second, |tx, context| session::logout(tx, context)).unwrap();
    assert!(revoked(&mut world).is_empty());
    let which = SessionRef::parse("session", &row.handle).unwrap();
    world.admin(|tx, context| session::revoke(tx, context, &which)).unwrap();
    assert_eq!(revoked(&mut world), [1]);
}

#[test]
fn a_node_that_is_locked_or_removed_takes_its_host_certificates_along_and_those_for_it() {
    let mut world = World::new();
    world.add_role("prod", &labelled(&["root"]));
    let ann = world.user_with("ann", "prod", Traits::new());
    let host = world.joined(NodeKind::Ssh, "web1.example.org", &[("env", "prod")]);
    issue(&mut world, ann, 1);
    // Hosts of these tests have certificates with the serial number 77.
    lock(&mut world, Target::Node(host.id()));
    assert_eq!(revoked(&mut world), [1, 77]);
    let leave = |world: &mut World, host: &Host| {
        world.with(&host.credential(), |tx, context| crate::node::remove(tx, context, None)).unwrap();
    };
    // The same serial number again: now it is another host's, and good until that one leaves.
    let other = world.joined(NodeKind::Ssh, "web2.example.org", &[("env", "test")]);
    assert_eq!(revoked(&mut world), [1]);
    leave(&mut world, &other);
    assert_eq!(revoked(&mut world), [1, 77]);
}

#[test]
fn what_has_ended_is_not_on_the_list_and_the_head_only_rises() {
    let mut world = World::new();
    let ann = world.user_with("ann", "access", own_logins(&["ann"]));
    issue(&mut world, ann, 1);
    let head_of = |world: &mut World| world.run(|tx, _| head(tx)).unwrap();
    assert_eq!(head_of(&mut world), 0);
    lock(&mut world, Target::User(name("ann")));
    let first = head_of(&mut world);
    assert!(first > 0 && revoked(&mut world) == [1]);
    world.now += crate::testing::SESSION_TTL_MS;
    assert!(revoked(&mut world).is_empty());
    world.now += 2 * KEPT_MS;
    assert_eq!(head_of(&mut world), first);
    let front = store_txn::KeyWriter::table(<RevocationKey as store_txn::Key>::TABLE);
    assert_eq!(world.rows(front), 0);
}

#[test]
fn other_labels_of_a_node_revoke_what_names_it_and_not_what_is_good_everywhere_or_elsewhere() {
    let mut world = World::new();
    world.add_role("prod", &labelled(&["root"]));
    let (one, two) = (world.joined(NodeKind::Ssh, "web1", &[]), world.joined(NodeKind::Ssh, "web2", &[]));
    let label = |world: &mut World, host: &Host, pairs: &[(&str, &str)]| {
        let labels = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        world.admin(|tx, context| node::update_labels(tx, context, &host.id(), labels, 0)).unwrap();
    };
    label(&mut world, &one, &[("env", "prod")]);
    let ann = world.user_with("ann", "prod", own_logins(&[]));
    issue(&mut world, ann, 1);
    let bob = world.user_with("bob", "access", own_logins(&["bob"]));
    issue(&mut world, bob, 2);
    // The same labels, and those of another node.
    label(&mut world, &one, &[("env", "prod")]);
    label(&mut world, &two, &[("env", "prod")]);
    assert!(revoked(&mut world).is_empty());
    issue(&mut world, ann, 3);
    label(&mut world, &two, &[("env", "dev")]);
    assert_eq!(revoked(&mut world), [3]);
    label(&mut world, &one, &[]);
    assert_eq!(revoked(&mut world), [1, 3]);
    // It is no lock: the host itself goes on, and what is issued by its new labels counts.
    label(&mut world, &one, &[("env", "prod")]);
    issue(&mut world, ann, 4);
    assert_eq!(revoked(&mut world), [1, 3]);
}
