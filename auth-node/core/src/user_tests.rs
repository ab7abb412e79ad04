use std::collections::BTreeSet;

use super::*;
use crate::{
    tables::{RoleRow, SessionKey, StringsRow},
    testing::{Cluster, anonymous, assert_invalid, grants, hash, name, role_name, strings, traits},
};

fn with_traits(with: Traits) -> Grants {
    Grants { roles: BTreeSet::new(), traits: with }
}

fn new_user(user: &str, grants: Grants) -> NewUser {
    NewUser { name: name(user), grants, proof: hash(user).into() }
}

/// A cluster with role `dev`, and `lead`, who holds `dev` and `access` and is no admin.
fn with_lead() -> (Cluster, crate::secret::SecretDigest) {
    let mut cluster = Cluster::new();
    cluster.add_role("dev", &RoleRow::default());
    cluster.add_user(
        "lead",
        Grants { traits: traits(&[("logins", &["ann", "bob"])]), ..grants(&["dev", "access"]) },
    );
    let lead = cluster.log_in("lead");
    (cluster, lead)
}

#[test]
fn a_user_is_created_read_changed_and_deleted() {
    let mut cluster = Cluster::new();
    let given = Grants { traits: traits(&[("logins", &["ann", "root"])]), ..grants(&["auditor", "access"]) };
    cluster.add_user("ann", given);
    let record = cluster.last_audit();
    assert_eq!(
        (record.event.as_str(), record.target.as_str(), record.actor.as_str()),
        ("user.create", "user:ann", "user:boss")
    );
    assert_eq!(
        (record.fields["roles"].as_str(), record.fields["traits"].as_str()),
        ("access,auditor", "logins=ann root")
    );

    let ann = cluster.run(|tx| get(tx, &name("ann"))).unwrap();
    assert_eq!(ann.roles, ["access", "auditor"]);
    assert_eq!((ann.created_at_ms, ann.created_by.as_str()), (1000, "user:boss"));
    let again = cluster.admin(|tx, context| create(tx, context, &new_user("ann", Grants::default())));
    assert!(matches!(again, Err(CoreError::AlreadyExists { .. })));

    let to_access = |revision| {
        move |tx: &mut store_txn::memory::MemoryTransaction<'_>, context: &Context| {
            update(tx, context, &name("ann"), revision, &grants(&["access"]))
        }
    };
    let changed = cluster.admin(to_access(ann.revision)).unwrap();
    assert_eq!((changed.roles, changed.traits), (vec!["access".to_owned()], Traits::new()));
    assert_eq!(cluster.last_audit().event, "user.update");
    assert!(matches!(cluster.admin(to_access(ann.revision)), Err(CoreError::StaleRevision { .. })));
    assert!(cluster.admin(to_access(0)).is_ok());

    assert_eq!(cluster.admin(|tx, context| delete(tx, context, &name("ann"))), Ok(0));
    assert_eq!(cluster.last_audit().event, "user.delete");
    assert!(matches!(cluster.run(|tx| get(tx, &name("ann"))), Err(CoreError::NotFound { .. })));
    assert!(matches!(cluster.admin(to_access(0)), Err(CoreError::NotFound { .. })));
    let deleted = cluster.admin(|tx, context| delete(tx, context, &name("ann")));
    assert!(matches!(deleted, Err(CoreError::NotFound { .. })));
}

#[test]
fn users_are_listed_by_name_in_pages() {
    let mut cluster = Cluster::new();
    for user in ["ann", "cleo"] {
        cluster.add_user(user, Grants::default());
    }
    let mut page = |after: Option<&str>| {
        let page = cluster.run(|tx| list(tx, &PageRequest::new(2, after.map(str::to_owned)))).unwrap();
        (page.items.into_iter().map(|user| user.name.to_string()).collect::<Vec<_>>(), page.next)
    };
    assert_eq!(page(None), (vec!["ann".into(), "boss".into()], Some("boss".into())));
    assert_eq!(page(Some("boss")), (vec!["cleo".into()], None));
    assert_invalid(cluster.run(|tx| list(tx, &PageRequest::new(2, Some("a b".into())))), "page_token");
}

#[test]
fn roles_must_exist() {
    let mut cluster = Cluster::new();
    let made = cluster.admin(|tx, context| create(tx, context, &new_user("ann", grants(&["nobody"]))));
    assert!(matches!(made, Err(CoreError::NotFound { kind: "role", .. })));
    cluster.add_user("ann", Grants::default());
    let changed = cluster.admin(|tx, context| update(tx, context, &name("ann"), 0, &grants(&["nobody"])));
    assert!(matches!(changed, Err(CoreError::NotFound { kind: "role", .. })));
}

#[test]
fn roles_and_traits_are_bounded() {
    let numbered = |count: usize| (0..count).map(|n| format!("x{n}")).collect::<Vec<_>>();
    let many_roles =
        |count| Grants { roles: numbered(count).iter().map(|n| role_name(n)).collect(), ..Grants::default() };
    assert!(check_grants("user", &many_roles(64)).is_ok());
    assert_invalid(check_grants("user", &many_roles(65)), "user.roles");

    let of = |name: &str, values: &[&str]| with_traits(traits(&[(name, values)]));
    assert!(check_grants("user", &of("logins", &["any text, even ä", &"v".repeat(256)])).is_ok());
    assert!(check_grants("user", &of(&"n".repeat(63), &[])).is_ok());
    for bad in ["", "a b", "ä", "a/b", &"n".repeat(64)] {
        assert_invalid(check_grants("user", &of(bad, &["x"])), "user.traits");
    }
    for bad in ["", "a\nb", &"v".repeat(257)] {
        assert_invalid(check_grants("user", &of("logins", &["ok", bad])), "user.traits");
    }
    let values = |count| with_traits([("logins".to_owned(), StringsRow { values: numbered(count) })].into());
    assert!(check_grants("user", &values(64)).is_ok());
    assert_invalid(check_grants("user", &values(65)), "user.traits");
    let many = |count| with_traits(numbered(count).into_iter().map(|name| (name, strings(&["v"]))).collect());
    assert!(check_grants("user", &many(64)).is_ok());
    assert_invalid(check_grants("user", &many(65)), "user.traits");
    let long = "v".repeat(256);
    let large = |count: usize| {
        with_traits(numbered(count).into_iter().map(|name| (name, strings(&[&long]))).collect())
    };
    assert!(check_grants("user", &large(63)).is_ok());
    let both = |count: usize| {
        let values = StringsRow { values: vec![long.clone(); 32] };
        with_traits(numbered(count).into_iter().map(|name| (name, values.clone())).collect())
    };
    assert!(check_grants("user", &both(1)).is_ok());
    assert_invalid(check_grants("user", &both(2)), "user.traits");

    let mut cluster = Cluster::new();
    let refused = cluster.admin(|tx, context| create(tx, context, &new_user("ann", of("a b", &["x"]))));
    assert_invalid(refused, "user.traits");
    let refused = cluster.admin(|tx, context| update(tx, context, &name("boss"), 0, &of("a b", &["x"])));
    assert_invalid(refused, "user.traits");
}

#[test]
fn nobody_grants_a_role_that_it_does_not_hold() {
    let (mut cluster, lead) = with_lead();
    let made = cluster.call(lead, |tx, context| create(tx, context, &new_user("eve", grants(&["admin"]))));
    assert!(matches!(made, Err(CoreError::Denied(_))));
    cluster.call(lead, |tx, context| create(tx, context, &new_user("ann", grants(&["dev"])))).unwrap();

    let raised =
        cluster.call(lead, |tx, context| update(tx, context, &name("ann"), 0, &grants(&["dev", "admin"])));
    assert!(matches!(raised, Err(CoreError::Denied(_))));
    let own = cluster.call(lead, |tx, context| update(tx, context, &name("lead"), 0, &grants(&["auditor"])));
    assert!(matches!(own, Err(CoreError::Denied(_))));
    assert!(
        cluster.call(lead, |tx, context| update(tx, context, &name("ann"), 0, &grants(&["access"]))).is_ok()
    );
}

#[test]
fn nobody_grants_a_trait_that_it_does_not_have() {
    let (mut cluster, lead) = with_lead();
    let of = |values: &[&str]| new_user("ann", with_traits(traits(&[("logins", values)])));
    for values in [&["root"][..], &["ann", "root"]] {
        let made = cluster.call(lead, |tx, context| create(tx, context, &of(values)));
        assert!(matches!(made, Err(CoreError::Denied(_))), "{values:?}");
    }
    assert!(cluster.call(lead, |tx, context| create(tx, context, &of(&["ann"]))).is_ok());
}

#[test]
fn nobody_takes_over_a_user_that_has_more() {
    let (mut cluster, lead) = with_lead();
    let reset =
        cluster.call(lead, |tx, context| reset_password(tx, context, &name("boss"), &hash("mine").into()));
    assert!(matches!(reset, Err(CoreError::Denied(_))));
    let lowered = cluster.call(lead, |tx, context| update(tx, context, &name("boss"), 0, &Grants::default()));
    assert!(matches!(lowered, Err(CoreError::Denied(_))));
    let boss = cluster.boss;
    assert!(cluster.is_honoured(boss));
}

#[test]
fn a_role_removed_in_between_counts() {
    let mut cluster = Cluster::new();
    cluster.add_user("second", grants(&["admin"]));
    let second = cluster.log_in("second");
    let make = |tx: &mut store_txn::memory::MemoryTransaction<'_>, context: &Context| {
        create(tx, context, &new_user("eve", grants(&["admin"])))
    };
    cluster.admin(|tx, context| update(tx, context, &name("second"), 0, &grants(&["access"]))).unwrap();
    assert!(matches!(cluster.call(second, make), Err(CoreError::Denied(_))));
}

#[test]
fn the_last_admin_cannot_be_removed() {
    let mut cluster = Cluster::new();
    let lower = |user: &'static str| {
        move |tx: &mut store_txn::memory::MemoryTransaction<'_>, context: &Context| {
            update(tx, context, &name(user), 0, &grants(&["access"]))
        }
    };
    let remove = |user: &'static str| {
        move |tx: &mut store_txn::memory::MemoryTransaction<'_>, context: &Context| {
            delete(tx, context, &name(user))
        }
    };
    assert!(matches!(cluster.admin(lower("boss")), Err(CoreError::Precondition(_))));
    assert!(matches!(cluster.admin(remove("boss")), Err(CoreError::Precondition(_))));

    // Admins come and go; whoever is left last stays.
    cluster.add_user("second", grants(&["admin"]));
    cluster.admin(lower("second")).unwrap();
    assert!(matches!(cluster.admin(remove("boss")), Err(CoreError::Precondition(_))));
    cluster.admin(|tx, context| update(tx, context, &name("second"), 0, &grants(&["admin"]))).unwrap();
    cluster.admin(remove("second")).unwrap();
    assert!(matches!(cluster.admin(remove("boss")), Err(CoreError::Precondition(_))));
    cluster.add_user("third", grants(&["admin"]));
    cluster.admin(remove("boss")).unwrap();
    let third = cluster.log_in("third");
    assert!(matches!(cluster.call(third, lower("third")), Err(CoreError::Precondition(_))));
}

#[test]
fn the_first_admin_is_made_once_and_needs_the_built_in_roles() {
    let mut cluster = Cluster::new();
    let second = cluster.run(|tx| create_first_admin(tx, &anonymous(), &name("second"), &hash("x")));
    assert!(matches!(second, Err(CoreError::Precondition(_))));
    let mut empty = store_txn::memory::MemoryStore::default();
    let made = empty.transact(1, |tx| create_first_admin(tx, &anonymous(), &name("boss"), &hash("x")));
    assert!(matches!(made, Err(CoreError::NotFound { kind: "role", .. })));
}

#[test]
fn a_deleted_users_sessions_are_not_honoured() {
    let (mut cluster, lead) = with_lead();
    let other = cluster.log_in("lead");
    assert!(cluster.is_honoured(lead) && cluster.is_honoured(other));
    assert_eq!(cluster.admin(|tx, context| delete(tx, context, &name("lead"))), Ok(2));
    assert_eq!(cluster.last_audit().fields["sessions_ended"], "2");
    assert!(!cluster.is_honoured(lead) && !cluster.is_honoured(other));

    // Nor when somebody gets the name again.
    cluster.add_user("lead", Grants::default());
    assert!(!cluster.is_honoured(lead));
    assert_eq!(cluster.rows(RoleMemberKey::front(&role_name("dev"))), 0);
}

#[test]
fn change_password_ends_the_users_other_sessions() {
    let (mut cluster, lead) = with_lead();
    let (other, boss) = (cluster.log_in("lead"), cluster.boss);
    let changed = cluster.call(lead, |tx, context| change_password(tx, context, &hash("lead"), &hash("new")));
    assert_eq!(changed, Ok(1));
    let record = cluster.last_audit();
    assert_eq!((record.event.as_str(), record.target.as_str()), ("user.password.change", "user:lead"));
    assert!(cluster.is_honoured(lead) && !cluster.is_honoured(other) && cluster.is_honoured(boss));
    let row = cluster.run(|tx| Ok(tx.get(&UserKey(name("lead")))?.unwrap().row)).unwrap();
    assert_eq!((row.password_hash.as_str(), row.roles.len()), (hash("new").as_str(), 2));
}

#[test]
fn change_password_counts_only_against_the_hash_that_was_verified() {
    let (mut cluster, lead) = with_lead();
    let other = cluster.log_in("lead");
    let records = cluster.audit().len();
    let changed = cluster.call(lead, |tx, context| change_password(tx, context, &hash("old"), &hash("new")));
    assert!(matches!(changed, Err(CoreError::Precondition(_))));
    assert!(cluster.is_honoured(other));
    assert_eq!(cluster.audit().len(), records);
    let nobody = cluster.run(|tx| change_password(tx, &anonymous(), &hash("old"), &hash("new")));
    assert!(matches!(nobody, Err(CoreError::Unauthenticated(_))));
}

#[test]
fn a_reset_password_ends_all_sessions_of_the_user() {
    let (mut cluster, lead) = with_lead();
    let ended = cluster.admin(|tx, context| reset_password(tx, context, &name("lead"), &hash("new").into()));
    assert_eq!(ended, Ok(1));
    let record = cluster.last_audit();
    assert_eq!((record.event.as_str(), record.target.as_str()), ("user.password.reset", "user:lead"));
    assert!(!cluster.is_honoured(lead));
    assert_eq!(cluster.run(|tx| tx.get(&SessionKey(lead)).map_err(CoreError::from)), Ok(None));
    let missing =
        cluster.admin(|tx, context| reset_password(tx, context, &name("nobody"), &hash("new").into()));
    assert!(matches!(missing, Err(CoreError::NotFound { .. })));
}

#[test]
fn no_view_of_a_user_shows_its_passwords_hash() {
    let (mut cluster, _) = with_lead();
    let lead = cluster.run(|tx| get(tx, &name("lead"))).unwrap();
    let shown = format!("{lead:?} {:?}", new_user("x", Grants::default()));
    assert!(shown.contains("access") && !shown.contains("$hash"), "{shown}");
    assert!(cluster.audit().iter().all(|record| !format!("{record:?}").contains("$hash")));
}
