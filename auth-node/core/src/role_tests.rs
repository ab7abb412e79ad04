use super::*;
use crate::testing::{Cluster, assert_invalid, grants, role_name, strings};

fn with(allow: ConditionsRow) -> RoleRow {
    RoleRow { allow: Some(allow), ..RoleRow::default() }
}

fn with_logins(logins: &[&str]) -> RoleRow {
    with(ConditionsRow { logins: strings(logins).values, ..ConditionsRow::default() })
}

fn with_labels(labels: &[(&str, &[&str])]) -> RoleRow {
    let labels = labels.iter().map(|(key, values)| ((*key).to_owned(), strings(values)));
    with(ConditionsRow { node_labels: labels.collect(), ..ConditionsRow::default() })
}

fn with_rule(resources: &[&str], verbs: &[&str]) -> RoleRow {
    let rule = RuleRow { resources: strings(resources).values, verbs: strings(verbs).values };
    with(ConditionsRow { rules: vec![rule], ..ConditionsRow::default() })
}

fn with_options(options: RoleOptionsRow) -> RoleRow {
    RoleRow { options: Some(options), ..RoleRow::default() }
}

fn numbered(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("x{n}")).collect()
}

#[test]
fn a_role_is_created_read_changed_and_deleted() {
    let mut cluster = Cluster::new();
    let dev = role_name("dev");
    cluster.add_role("dev", &with_logins(&["root"]));
    assert_eq!(
        (cluster.last_audit().event.as_str(), cluster.last_audit().actor.as_str()),
        ("role.create", "user:boss")
    );
    assert_eq!(cluster.last_audit().target, "role:dev");
    let again = cluster.admin(|tx, context| create(tx, context, &dev, &RoleRow::default()));
    assert!(matches!(again, Err(CoreError::AlreadyExists { .. })));

    let stored = cluster.run(|tx| get(tx, &dev)).unwrap();
    assert_eq!(stored.row, with_logins(&["root"]));
    let change = |revision| {
        move |tx: &mut store_txn::memory::MemoryTransaction<'_>, context: &Context| {
            update(tx, context, &role_name("dev"), revision, &with_logins(&["ann"]))
        }
    };
    assert_eq!(cluster.admin(change(stored.revision)), Ok(with_logins(&["ann"])));
    assert_eq!(cluster.last_audit().event, "role.update");
    assert!(matches!(cluster.admin(change(stored.revision)), Err(CoreError::StaleRevision { .. })));
    assert!(cluster.admin(change(0)).is_ok());
    assert!(cluster.run(|tx| get(tx, &dev)).unwrap().revision > stored.revision);

    cluster.admin(|tx, context| delete(tx, context, &dev)).unwrap();
    assert_eq!(cluster.last_audit().event, "role.delete");
    assert!(matches!(cluster.run(|tx| get(tx, &dev)), Err(CoreError::NotFound { .. })));
    assert!(matches!(cluster.admin(change(0)), Err(CoreError::NotFound { .. })));
    assert!(matches!(
        cluster.admin(|tx, context| delete(tx, context, &dev)),
        Err(CoreError::NotFound { .. })
    ));
}

#[test]
fn roles_are_listed_by_name_in_pages() {
    let mut cluster = Cluster::new();
    let mut page = |after: Option<&str>| {
        let request = PageRequest::new(2, after.map(str::to_owned));
        let page = cluster.run(|tx| list(tx, &request)).unwrap();
        (page.items.into_iter().map(|(name, _)| name.to_string()).collect::<Vec<_>>(), page.next)
    };
    assert_eq!(page(None), (vec!["access".into(), "admin".into()], Some("admin".into())));
    assert_eq!(page(Some("admin")), (vec!["auditor".into()], None));
    assert_invalid(cluster.run(|tx| list(tx, &PageRequest::new(2, Some("a b".into())))), "page_token");
}

#[test]
fn built_in_roles_can_neither_be_changed_nor_deleted_nor_made() {
    let mut cluster = Cluster::new();
    let records = cluster.audit().len();
    for name in ["admin", "auditor", "access"].map(role_name) {
        let changed = cluster.admin(|tx, context| update(tx, context, &name, 0, &RoleRow::default()));
        assert!(matches!(changed, Err(CoreError::Precondition(_))));
        let deleted = cluster.admin(|tx, context| delete(tx, context, &name));
        assert!(matches!(deleted, Err(CoreError::Precondition(_))));
    }
    assert_eq!(cluster.audit().len(), records);
    let fake = RoleRow { built_in: true, ..RoleRow::default() };
    cluster.add_role("fake", &fake);
    assert!(!cluster.run(|tx| get(tx, &role_name("fake"))).unwrap().row.built_in);
}

#[test]
fn built_in_roles_are_within_their_own_bounds() {
    for role in built_ins() {
        assert_eq!(checked(&role.row), Ok(RoleRow { built_in: false, ..role.row }));
    }
}

#[test]
fn a_role_that_somebody_holds_stays_and_the_refusal_says_who() {
    let mut cluster = Cluster::new();
    cluster.add_role("dev", &RoleRow::default());
    for user in ["ann", "bob"] {
        cluster.add_user(user, grants(&["dev"]));
    }
    let refused = cluster.admin(|tx, context| delete(tx, context, &role_name("dev")));
    let Err(CoreError::Precondition(reason)) = refused else { panic!("{refused:?}") };
    assert!(reason.contains("held by ann, bob:"), "{reason}");

    for user in ["c", "d", "e", "f"] {
        cluster.add_user(user, grants(&["dev"]));
    }
    let refused = cluster.admin(|tx, context| delete(tx, context, &role_name("dev")));
    let Err(CoreError::Precondition(reason)) = refused else { panic!("{refused:?}") };
    assert!(reason.contains("held by ann, bob, c, d, e and others:"), "{reason}");
}

#[test]
fn descriptions_are_bounded() {
    let with = |description: &str| RoleRow { description: description.into(), ..RoleRow::default() };
    assert!(checked(&with("Two lines\nof text, ä")).is_ok() && checked(&with(&"x".repeat(1024))).is_ok());
    for bad in ["\x1b[2J", "a\0", &"x".repeat(1025)] {
        assert_invalid(checked(&with(bad)), "role.description");
    }
}

#[test]
fn logins_are_checked_on_both_sides_and_bounded() {
    assert!(checked(&with_logins(&["root", "{{internal.logins}}"])).is_ok());
    let many = |count| with(ConditionsRow { logins: numbered(count), ..ConditionsRow::default() });
    assert!(checked(&many(256)).is_ok());
    assert_invalid(checked(&many(257)), "role.allow.logins");
    for bad in ["", "*", "a,b", "{{internal.logins}", "root@web"] {
        let row = with_logins(&["root", bad]);
        assert_invalid(checked(&row), "role.allow.logins");
        assert_invalid(
            checked(&RoleRow { allow: None, deny: row.allow, ..RoleRow::default() }),
            "role.deny.logins",
        );
    }
}

#[test]
fn node_labels_are_checked_and_bounded() {
    for good in
        [&[("env", &["dev", "test"][..]), ("team", &["red"])][..], &[("*", &["*"])], &[("env", &[""])]]
    {
        assert!(checked(&with_labels(good)).is_ok(), "{good:?}");
    }
    let long = "v".repeat(257);
    let long: &[&str] = &[&long];
    let bad: &[&[(&str, &[&str])]] = &[
        &[("env", &[])],
        &[("*", &["*"]), ("env", &["dev"])],
        &[("*", &["dev"])],
        &[("*", &["*", "*"])],
        &[("env", &["*"])],
        &[("", &["x"])],
        &[("e nv", &["x"])],
        &[("env", &["a\nb"])],
        &[("env", long)],
    ];
    for labels in bad {
        assert_invalid(checked(&with_labels(labels)), "role.allow.node_labels");
    }
    let many = |labels: usize, values: usize| {
        let labels = numbered(labels).into_iter().map(|key| (key, StringsRow { values: numbered(values) }));
        with(ConditionsRow { node_labels: labels.collect(), ..ConditionsRow::default() })
    };
    assert!(checked(&many(64, 1)).is_ok() && checked(&many(1, 64)).is_ok());
    assert_invalid(checked(&many(65, 1)), "role.allow.node_labels");
    assert_invalid(checked(&many(1, 65)), "role.allow.node_labels");
}

#[test]
fn rules_name_known_resources_and_verbs() {
    assert!(checked(&with_rule(&["users", "*"], &["list", "*"])).is_ok());
    for bad in [&[][..], &["user"], &["Users"], &["users", ""]] {
        assert_invalid(checked(&with_rule(bad, &["list"])), "role.allow.rules.resources");
        assert_invalid(checked(&with_rule(&["users"], bad)), "role.allow.rules.verbs");
    }
    assert!(checked(&with_rule(&["users"; 32], &["list"])).is_ok());
    assert_invalid(checked(&with_rule(&["users"; 33], &["list"])), "role.allow.rules.resources");
    let rule = RuleRow { resources: vec!["users".into()], verbs: vec!["list".into()] };
    let many = |count| with(ConditionsRow { rules: vec![rule.clone(); count], ..ConditionsRow::default() });
    assert!(checked(&many(64)).is_ok());
    assert_invalid(checked(&many(65)), "role.allow.rules");
}

#[test]
fn request_rules_are_canonical_and_bounded() {
    let with = |request: Vec<String>, review: Vec<String>, approvals| {
        let requests = RequestRulesRow { request_roles: request, review_roles: review, approvals };
        with(ConditionsRow { requests: Some(requests), ..ConditionsRow::default() })
    };
    let stored = checked(&with(vec!["Dev".into()], vec![], 16)).unwrap();
    assert_eq!(stored, with(vec!["dev".into()], vec![], 16));
    assert!(checked(&with(numbered(64), numbered(64), 0)).is_ok());
    assert_invalid(checked(&with(vec!["a b".into()], vec![], 0)), "role.allow.requests.request_roles");
    assert_invalid(checked(&with(numbered(65), vec![], 0)), "role.allow.requests.request_roles");
    assert_invalid(checked(&with(vec![], vec![String::new()], 0)), "role.allow.requests.review_roles");
    assert_invalid(checked(&with(vec![], numbered(65), 0)), "role.allow.requests.review_roles");
    assert_invalid(checked(&with(vec![], vec![], 17)), "role.allow.requests.approvals");
}

#[test]
fn a_ttl_of_zero_or_above_the_maximum_is_an_error() {
    let with =
        |ttl| with_options(RoleOptionsRow { max_session_ttl_ms: Some(ttl), ..RoleOptionsRow::default() });
    for good in [60_000, 604_800_000] {
        assert!(checked(&with(good)).is_ok());
    }
    for bad in [0, 59_999, 604_800_001, u64::MAX] {
        assert_invalid(checked(&with(bad)), "role.options.max_session_ttl");
    }
}

#[test]
fn source_addresses_are_canonical_and_bounded() {
    let with = |entries: Vec<String>| {
        with_options(RoleOptionsRow { source_addresses: entries, ..RoleOptionsRow::default() })
    };
    let stored = checked(&with(vec!["2001:DB8::/32".into(), "192.0.2.1/32".into()])).unwrap();
    assert_eq!(stored, with(vec!["2001:db8::/32".into(), "192.0.2.1".into()]));
    assert!(checked(&with(vec!["::1".into(); 32])).is_ok());
    assert_invalid(checked(&with(vec!["::1".into(); 33])), "role.options.source_addresses");
    for bad in ["", "any", "10.0.0.1/8", "host.example"] {
        assert_invalid(checked(&with(vec![bad.into()])), "role.options.source_addresses");
    }
}

#[test]
fn a_role_is_bounded_as_a_whole() {
    let values = StringsRow { values: (0..64).map(|n| format!("{n:0200}")).collect() };
    let labels = |count: usize| numbered(count).into_iter().map(|key| (key, values.clone())).collect();
    let with = |count| with(ConditionsRow { node_labels: labels(count), ..ConditionsRow::default() });
    assert!(checked(&with(4)).is_ok());
    assert_invalid(checked(&with(6)), "role");
}
