use proptest::prelude::*;

use super::*;
use crate::{names::RoleName, role, tables::RoleRow, tables::RuleRow};

fn strings(values: &[&str]) -> StringsRow {
    StringsRow { values: values.iter().map(|&value| value.to_owned()).collect() }
}

fn side(logins: &[&str], labels: &[(&str, &[&str])]) -> ConditionsRow {
    ConditionsRow {
        logins: strings(logins).values,
        node_labels: labels.iter().map(|(key, values)| ((*key).to_owned(), strings(values))).collect(),
        ..ConditionsRow::default()
    }
}

fn role_of(row: RoleRow) -> Role {
    Role { name: RoleName::parse("name", "r").unwrap(), row }
}

fn allow(allow: ConditionsRow) -> Role {
    role_of(RoleRow { allow: Some(allow), ..RoleRow::default() })
}

fn deny(deny: ConditionsRow) -> Role {
    role_of(RoleRow { deny: Some(deny), ..RoleRow::default() })
}

fn options(options: RoleOptionsRow) -> Role {
    role_of(RoleRow { options: Some(options), ..RoleRow::default() })
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn set(logins: &[&str]) -> BTreeSet<String> {
    logins.iter().map(|&login| login.to_owned()).collect()
}

fn traits(logins: &[&str]) -> Traits {
    [("logins".to_owned(), strings(logins))].into()
}

fn access(roles: &[Role]) -> Access {
    Access::of(roles, &traits(&["ann"]))
}

const ANYWHERE: &[(&str, &[&str])] = &[("*", &["*"])];

#[test]
fn a_node_matches_when_it_has_every_label_with_one_of_the_values() {
    let access = access(&[allow(side(&["root"], &[("env", &["dev", "test"]), ("team", &["red"])]))]);
    assert_eq!(
        access.logins_on("", &labels(&[("env", "test"), ("team", "red"), ("os", "linux")])),
        set(&["root"])
    );
    for other in [&[("env", "test")][..], &[("env", "prod"), ("team", "red")], &[("team", "red")], &[]] {
        assert!(access.logins_on("", &labels(other)).is_empty(), "{other:?}");
    }
    assert!(access.logins_everywhere().is_empty());
    assert_eq!(access.all_logins(), set(&["root"]));
}

#[test]
fn the_star_matches_every_node_and_no_labels_match_none() {
    assert_eq!(access(&[allow(side(&["root"], ANYWHERE))]).logins_on("", &Labels::new()), set(&["root"]));
    let nowhere = access(&[allow(side(&["root"], &[]))]);
    assert!(nowhere.logins_on("", &labels(&[("env", "dev")])).is_empty());
    assert!(nowhere.all_logins().is_empty() && nowhere.logins_everywhere().is_empty());
}

#[test]
fn templates_stand_for_the_users_traits() {
    let roles = [allow(side(&["{{internal.logins}}", "{{external.none}}", "deploy"], ANYWHERE))];
    let of = |logins: &[&str]| Access::of(&roles, &traits(logins)).logins_everywhere();
    assert_eq!(of(&["ann", "a-b"]), set(&["ann", "a-b", "deploy"]));
    assert_eq!(of(&["ann,root", "*", "{{internal.logins}}", "", "x@y"]), set(&["deploy"]));
    assert_eq!(Access::of(&roles, &Traits::new()).logins_everywhere(), set(&["deploy"]));
}

#[test]
fn logins_denied_without_labels_are_denied_on_all_nodes() {
    let access =
        access(&[allow(side(&["root", "{{internal.logins}}"], ANYWHERE)), deny(side(&["root"], &[]))]);
    assert_eq!(access.logins_on("", &labels(&[("env", "dev")])), set(&["ann"]));
    assert_eq!(access.logins_everywhere(), set(&["ann"]));
    assert_eq!(access.all_logins(), set(&["ann"]));
}

#[test]
fn labels_denied_without_logins_are_denied_to_every_login() {
    let access = access(&[allow(side(&["root", "ann"], ANYWHERE)), deny(side(&[], &[("env", &["prod"])]))]);
    assert!(access.logins_on("", &labels(&[("env", "prod")])).is_empty());
    assert_eq!(access.logins_on("", &labels(&[("env", "dev")])), set(&["ann", "root"]));
    assert!(access.logins_everywhere().is_empty());
    assert_eq!(access.all_logins(), set(&["ann", "root"]));
}

#[test]
fn logins_and_labels_denied_together_must_both_match() {
    let access =
        access(&[allow(side(&["root", "ann"], ANYWHERE)), deny(side(&["root"], &[("env", &["prod"])]))]);
    assert_eq!(access.logins_on("", &labels(&[("env", "prod")])), set(&["ann"]));
    assert_eq!(access.logins_on("", &labels(&[])), set(&["ann", "root"]));
    assert_eq!(access.logins_everywhere(), set(&["ann"]));
}

#[test]
fn a_denied_template_that_nothing_fills_denies_nothing() {
    let access = access(&[allow(side(&["root"], ANYWHERE)), deny(side(&["{{internal.none}}"], &[]))]);
    assert_eq!(access.logins_everywhere(), set(&["root"]));
    let on_some = side(&["{{internal.none}}"], &[("env", &["prod"])]);
    let roles = [allow(side(&["root"], ANYWHERE)), deny(on_some)];
    assert_eq!(Access::of(&roles, &traits(&[])).logins_on("", &labels(&[("env", "prod")])), set(&["root"]));
    let everything = [allow(side(&["root"], ANYWHERE)), deny(side(&[], ANYWHERE))];
    assert!(Access::of(&everything, &Traits::new()).all_logins().is_empty());
}

#[test]
fn rules_are_allowed_by_one_role_and_denied_by_any() {
    let rule = |resources: &[&str], verbs: &[&str]| ConditionsRow {
        rules: vec![RuleRow { resources: strings(resources).values, verbs: strings(verbs).values }],
        ..ConditionsRow::default()
    };
    let access = access(&[allow(rule(&["*"], &["list", "read"])), deny(rule(&["audit"], &["*"]))]);
    assert!(access.may(Resource::Users, Verb::Read) && access.may(Resource::Recordings, Verb::List));
    assert!(!access.may(Resource::Users, Verb::Create) && !access.may(Resource::Audit, Verb::List));
    assert!(!Access::of(&[], &Traits::new()).may(Resource::Users, Verb::Read));
}

#[test]
fn the_strictest_option_wins() {
    let loose = options(RoleOptionsRow {
        max_session_ttl_ms: Some(24 * 3_600_000),
        permit_port_forwarding: Some(true),
        permit_agent_forwarding: Some(true),
        permit_x11_forwarding: Some(true),
        source_addresses: vec!["10.0.0.0/8".into()],
        ..RoleOptionsRow::default()
    });
    let all =
        UserExtensions { pty: true, port_forwarding: true, agent_forwarding: true, x11_forwarding: true };
    let of = |roles: &[Role]| access(roles).options().clone();
    assert_eq!(of(std::slice::from_ref(&loose)).extensions, all);
    assert_eq!(of(std::slice::from_ref(&loose)).max_ttl, Duration::from_secs(24 * 3600));

    let silent = role_of(RoleRow::default());
    let both = of(&[loose.clone(), silent]);
    assert_eq!(both.max_ttl, DEFAULT_MAX_TTL);
    assert_eq!(both.extensions, UserExtensions { pty: true, ..UserExtensions::default() });
    assert_eq!(both.source_addresses.entries(), Ok(vec!["10.0.0.0/8".into()]));
    assert!(!both.require_mfa);

    let strict = options(RoleOptionsRow {
        max_session_ttl_ms: Some(60_000),
        permit_pty: Some(false),
        source_addresses: vec!["10.1.0.0/16".into(), "192.0.2.0/24".into()],
        require_mfa: true,
        ..RoleOptionsRow::default()
    });
    let both = of(&[loose, strict]);
    assert_eq!((both.max_ttl, both.require_mfa), (Duration::from_secs(60), true));
    assert_eq!(both.extensions, UserExtensions::default());
    assert_eq!(both.source_addresses.entries(), Ok(vec!["10.1.0.0/16".into()]));
}

#[test]
fn without_a_role_nothing_is_allowed() {
    let nothing = access(&[]);
    assert!(nothing.all_logins().is_empty());
    assert_eq!(nothing.options().extensions, UserExtensions::default());
}

#[test]
fn built_in_roles_reach_what_they_say() {
    let [admin, auditor, access_role] = role::built_ins();
    for role in [admin.clone(), access_role.clone()] {
        assert_eq!(access(&[role]).logins_everywhere(), set(&["ann"]));
    }
    assert!(access(&[admin]).may(Resource::Users, Verb::Delete));
    assert!(!access(std::slice::from_ref(&access_role)).may(Resource::Users, Verb::List));
    let audits = access(std::slice::from_ref(&auditor));
    assert!(audits.all_logins().is_empty());
    assert!(audits.may(Resource::Recordings, Verb::Read) && !audits.may(Resource::Sessions, Verb::Delete));
    let own = access(std::slice::from_ref(&access_role));
    assert_eq!(access(&[auditor, access_role]).options(), own.options());
}

// --- Against an obvious reference --------------------------------------------------------------------------------

const LOGINS: &[&str] = &["root", "ann", "dev", "{{internal.logins}}", "{{internal.none}}"];
const TRAITS: &[&str] = &["ann", "bob", "not a login"];
const CANDIDATES: &[&str] = &["root", "ann", "bob", "dev", "not a login", "{{internal.logins}}"];

fn some(of: &'static [&'static str]) -> impl Strategy<Value = Vec<&'static str>> {
    proptest::sample::subsequence(of, 0..=of.len())
}

fn any_side() -> impl Strategy<Value = ConditionsRow> {
    let labels = prop_oneof![
        Just(None),
        Just(Some(vec![("*", vec!["*"])])),
        (some(&["dev", "prod"]), some(&["red", "blue"])).prop_map(|(env, team)| {
            let both = [("env", env), ("team", team)];
            Some(both.into_iter().filter(|(_, values)| !values.is_empty()).collect())
        }),
    ];
    let rules =
        proptest::collection::vec((some(&["users", "audit", "*"]), some(&["list", "read", "*"])), 0..3);
    (some(LOGINS), labels, rules).prop_map(|(logins, labels, rules)| ConditionsRow {
        node_labels: labels
            .unwrap_or_default()
            .into_iter()
            .map(|(key, values): (&str, Vec<&str>)| (key.to_owned(), strings(&values)))
            .collect(),
        rules: rules
            .into_iter()
            .map(|(resources, verbs)| RuleRow {
                resources: strings(&resources).values,
                verbs: strings(&verbs).values,
            })
            .collect(),
        ..side(&logins, &[])
    })
}

fn any_options() -> impl Strategy<Value = RoleOptionsRow> {
    let addresses = some(&["10.0.0.0/8", "10.1.0.0/16", "10.1.2.3", "192.0.2.0/24", "::/0"]);
    let ttl = proptest::option::of(60_000_u64..604_800_000);
    (ttl, any::<[Option<bool>; 4]>(), addresses, any::<bool>()).prop_map(
        |(ttl, [pty, port, agent, x11], from, mfa)| RoleOptionsRow {
            max_session_ttl_ms: ttl,
            permit_pty: pty,
            permit_port_forwarding: port,
            permit_agent_forwarding: agent,
            permit_x11_forwarding: x11,
            source_addresses: strings(&from).values,
            require_mfa: mfa,
        },
    )
}

fn any_role() -> impl Strategy<Value = Role> {
    use proptest::option::of;
    (of(any_side()), of(any_side()), of(any_options()))
        .prop_map(|(allow, deny, options)| role_of(RoleRow { allow, deny, options, ..RoleRow::default() }))
}

/// Every combination of labels that a generated role can tell apart.
fn label_sets() -> Vec<Labels> {
    let mut sets = Vec::new();
    for env in [None, Some("dev"), Some("prod"), Some("other")] {
        for team in [None, Some("red"), Some("blue"), Some("other")] {
            let pairs = [("env", env), ("team", team)];
            sets.push(
                pairs
                    .iter()
                    .filter_map(|(key, value)| Some(((*key).to_owned(), (*value)?.to_owned())))
                    .collect(),
            );
        }
    }
    sets
}

fn naive_names(entries: &[String], login: &str) -> bool {
    let is_template = |entry: &String| entry == "{{internal.logins}}";
    let literal = !login.contains('{') && entries.iter().any(|entry| entry == login);
    literal || (login != "not a login" && TRAITS.contains(&login) && entries.iter().any(is_template))
}

fn naive_matches(wanted: &BTreeMap<String, StringsRow>, labels: &Labels) -> bool {
    if wanted.is_empty() {
        return false;
    }
    wanted
        .iter()
        .all(|(key, values)| key == "*" || labels.get(key).is_some_and(|value| values.values.contains(value)))
}

fn naive_allowed(roles: &[Role], login: &str, labels: &Labels) -> bool {
    let allowed = roles
        .iter()
        .filter_map(|role| role.row.allow.as_ref())
        .any(|allow| naive_names(&allow.logins, login) && naive_matches(&allow.node_labels, labels));
    let denied = roles.iter().filter_map(|role| role.row.deny.as_ref()).any(|deny| {
        match (deny.logins.is_empty(), deny.node_labels.is_empty()) {
            (true, true) => false,
            (false, true) => naive_names(&deny.logins, login),
            (true, false) => naive_matches(&deny.node_labels, labels),
            (false, false) => naive_names(&deny.logins, login) && naive_matches(&deny.node_labels, labels),
        }
    });
    allowed && !denied
}

fn naive_may(roles: &[Role], resource: &str, verb: &str) -> bool {
    let word = |words: &[String], word: &str| words.iter().any(|w| w == word || w == "*");
    let names = |side: &Option<ConditionsRow>| {
        let rules = side.iter().flat_map(|side| &side.rules);
        rules.into_iter().any(|rule| word(&rule.resources, resource) && word(&rule.verbs, verb))
    };
    roles.iter().any(|role| names(&role.row.allow)) && !roles.iter().any(|role| names(&role.row.deny))
}

proptest! {
    #[test]
    fn role_evaluation_is_a_pure_set_function_independent_of_order(
        (roles, shuffled) in proptest::collection::vec(any_role(), 0..6)
            .prop_flat_map(|roles| (Just(roles.clone()), Just(roles).prop_shuffle())),
    ) {
        let traits = traits(TRAITS);
        let access = Access::of(&roles, &traits);
        prop_assert_eq!(&access, &Access::of(&shuffled, &traits));
        let mut twice = roles.clone();
        twice.extend(shuffled);
        prop_assert_eq!(&access, &Access::of(&twice, &traits));
    }

    #[test]
    fn deny_wins_as_in_the_obvious_reference(roles in proptest::collection::vec(any_role(), 0..5)) {
        let access = Access::of(&roles, &traits(TRAITS));
        let (everywhere, all) = (access.logins_everywhere(), access.all_logins());
        for labels in label_sets() {
            let expected: BTreeSet<String> =
                set(CANDIDATES).into_iter().filter(|login| naive_allowed(&roles, login, &labels)).collect();
            prop_assert_eq!(access.logins_on("", &labels), expected.clone());
            prop_assert!(everywhere.is_subset(&expected) && expected.is_subset(&all));
        }
        for (resource, verb) in [(Resource::Users, Verb::List), (Resource::Audit, Verb::Read), (Resource::Cas, Verb::Update)] {
            prop_assert_eq!(access.may(resource, verb), naive_may(&roles, resource.word(), verb.word()));
        }
    }

    #[test]
    fn another_role_never_loosens_an_option(
        roles in proptest::collection::vec(any_role(), 1..5),
        more in any_role(),
    ) {
        let before = Access::of(&roles, &Traits::new()).options().clone();
        let mut roles = roles;
        roles.push(more);
        let after = Access::of(&roles, &Traits::new()).options().clone();
        prop_assert!(after.max_ttl <= before.max_ttl && after.require_mfa >= before.require_mfa);
        let extensions = |of: UserExtensions| [of.pty, of.port_forwarding, of.agent_forwarding, of.x11_forwarding];
        for (after, before) in extensions(after.extensions).into_iter().zip(extensions(before.extensions)) {
            prop_assert!(after <= before);
        }
        let both = after.source_addresses.clone().and(before.source_addresses.clone());
        prop_assert_eq!(both, after.source_addresses);
    }
}
