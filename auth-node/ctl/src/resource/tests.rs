use mezite_proto::v1;

use super::*;

fn refused(text: &str) -> String {
    let read = || -> Result<()> {
        for source in read(text)? {
            let _ = kind(&source.kind)?.plan(source, &Options::default())?;
        }
        Ok(())
    };
    let error = read().unwrap_err();
    assert!(error.is::<Usage>(), "{error:?}");
    format!("{error:#}")
}

/// Kind and name of each document.
fn titles(text: &str) -> Vec<String> {
    read(text).unwrap().iter().map(Source::title).collect()
}

const TWO: &str = "\
# A comment before the first.
---
kind: user
metadata:
  name: alice
spec:
  roles: [access]
---
# Nothing here.
---
kind: lock
spec:
  target: role:contractor
";

#[test]
fn a_file_has_one_document_or_several() {
    assert_eq!(titles(TWO), ["document 1 (user/alice)", "document 2 (lock)"]);
    assert_eq!(titles("kind: user\n"), ["document 1 (user)"]);
    let one = r#"{"kind": "user", "metadata": {"name": "alice"}, "spec": {}}"#;
    assert_eq!(titles(one), ["document 1 (user/alice)"]);
    let several = ["document 1 (user/alice)", "document 2 (user/alice)"];
    assert_eq!(titles(&format!("{one}\n{one}\n")), several);
    assert_eq!(titles(&format!("[{one},\n{one}]")), several);
    for source in read(TWO).unwrap() {
        kind(&source.kind).unwrap().plan(source, &Options::default()).unwrap();
    }
    // As `get` prints none.
    assert!(titles("[]\n").is_empty());
    for nothing in ["", "---\n", "# nothing\n"] {
        assert!(refused(nothing).contains("no document"), "{nothing:?}");
    }
}

#[test]
fn what_is_wrong_is_told_with_its_document_its_field_and_its_line() {
    let misspelt = TWO.replace("target:", "targt:");
    let said = refused(&misspelt);
    assert!(said.contains("document 2 (lock)") && said.contains("unknown field `targt`"), "{said}");
    assert!(said.contains("line 13"), "as an editor counts: {said}");

    let said = refused(&TWO.replace("kind: lock", "kind: locks_"));
    assert!(said.contains("`locks_`") && said.contains("user, role, token, lock, node"), "{said}");
    let said = refused(&TWO.replace("kind: lock", "knd: lock"));
    assert!(said.contains("document 2 has no `kind`") && said.contains("cluster_config"), "{said}");

    let said = refused("{\"kind\": \"user\",\n\"metadata\": {\"name\": \"a\"},\n\"spec\": {\"rols\": []}}");
    assert!(
        said.contains("document 1 (user/a)") && said.contains("rols") && said.contains("line 3"),
        "{said}"
    );
    let said = refused("kind: user\nmetadata: {name: a}\nspec: {roles: access}\n");
    assert!(said.contains("roles") && said.contains("line 3"), "{said}");
    let said = refused("kind: user\nmetadata: {name: a}\nspec: {traits: {team: [red], team: [blue]}}\n");
    assert!(said.contains("twice") || said.contains("duplicate"), "{said}");
    for wrong in
        ["kind: user\nversion: v2\nspec: {}\n", "kind: user\nmetadata: {}\n", "kind: [user]\n", "- a\n", "{"]
    {
        refused(wrong);
    }
}

/// In every kind, and in every part of its document.
#[test]
fn no_kind_takes_a_field_that_it_does_not_know() {
    for kind in KINDS {
        for text in [
            "stats: {}\nmetadata: {name: x}\nspec: {}\n",
            "metadata: {name: x, nam: y}\nspec: {}\n",
            "metadata: {name: x}\nspec: {no_such_field: 1}\n",
        ] {
            let said = refused(&format!("kind: {}\n{text}", kind.name()));
            assert!(said.contains("unknown field"), "{}: {said}", kind.name());
        }
    }
}

/// What is missing is known before anything is made.
#[test]
fn a_document_has_the_name_that_it_needs() {
    for (kind, said) in [
        ("user", "`metadata.name` is missing"),
        ("role", "missing field `name`"),
        ("connector", "missing field `name`"),
        ("trusted_cluster", "`metadata.name` is missing"),
        ("node", "mezctl agent join"),
        ("session", "mezctl login"),
    ] {
        let spec = match kind {
            "trusted_cluster" => "{addresses: []}",
            "session" => "{user: a}",
            _ => "{}",
        };
        let whole = refused(&format!(
            "kind: user\nmetadata: {{name: a}}\nspec: {{}}\n---\nkind: {kind}\nmetadata: {{}}\nspec: {spec}\n"
        ));
        assert!(whole.contains(&format!("document 2 ({kind})")) && whole.contains(said), "{whole}");
    }
    // And so is what can be told without asking.
    for (document, said) in [
        ("kind: lock\nspec: {target: foo}\n", "`foo` cannot be locked"),
        (
            "kind: connector\nmetadata: {name: x}\nspec: {oidc: {issuer_url: 'https://a', client_id: a}, github: {client_id: a, organizations: [a]}}\n",
            "one of oidc, github and saml",
        ),
        ("kind: cluster_config\nmetadata: {name: other}\nspec: {}\n", "is called cluster_config"),
    ] {
        let whole = refused(&format!("kind: user\nmetadata: {{name: a}}\nspec: {{}}\n---\n{document}"));
        assert!(whole.contains("document 2 (") && whole.contains(said), "{whole}");
    }
    // Each run of `create --force` would make another token.
    let token = "kind: token\nspec: {}\n";
    let plan = |text: &str, force: bool| {
        let source = read(text).unwrap().remove(0);
        kind(&source.kind).unwrap().plan(source, &Options { force, ..Options::default() }).map(drop)
    };
    plan(token, false).unwrap();
    let error = plan(token, true).unwrap_err();
    assert!(
        error.is::<Usage>() && format!("{error:#}").contains("document 1 (token): with --force"),
        "{error:#}"
    );
    plan("kind: token\nmetadata: {name: web}\nspec: {}\n", true).unwrap();
    for named_by_the_cluster in ["kind: lock\nspec: {target: 'user:a'}\n", "kind: access_request\nspec: {}\n"]
    {
        plan(named_by_the_cluster, true).unwrap();
    }
}

#[test]
fn references_are_kinds_with_or_without_a_name() {
    let texts = |texts: &[&str]| {
        let texts: Vec<_> = texts.iter().map(|&text| text.to_owned()).collect();
        let shown = |reference: Reference| (reference.kind.name(), reference.name);
        references(&texts).map(|found| found.into_iter().map(shown).collect::<Vec<_>>())
    };
    let found = texts(&["users", "role/dev,lock/1f", "token"]).unwrap();
    let (dev, lock) = (Some("dev".to_owned()), Some("1f".to_owned()));
    assert_eq!(found, [("user", None), ("role", dev), ("lock", lock), ("token", None)]);
    for wrong in ["", "user/", "user/a/b", "/a", "usr", "user,,role"] {
        assert!(texts(&[wrong]).unwrap_err().is::<Usage>(), "{wrong}");
    }
    for (words, meant) in [(&["user", "alice"][..], "user/alice"), (&["roles,dev"][..], "role/dev")] {
        assert!(texts(words).unwrap_err().to_string().contains(&format!("write {meant}")), "{words:?}");
    }
    for words in [&["user/alice", "bob"][..], &["user", ""], &["usr", "alice"]] {
        assert!(!texts(words).unwrap_err().to_string().contains("write "), "{words:?}");
    }
}

/// What the cluster answers, and a file that wants the same.
struct Pair<K: Kind>(K::Item, &'static str);

trait SaysTheSame {
    /// Name of the kind, whether the file says the same, and whether it does when in it one text is another.
    fn compare(&self, change: (&str, &str)) -> (&'static str, bool, bool);
}

impl<K: Kind<Item: Clone>> SaysTheSame for Pair<K> {
    fn compare(&self, (from, to): (&str, &str)) -> (&'static str, bool, bool) {
        let current = K::Document::from(self.0.clone());
        let same = |text: &str| {
            let file = read(text).unwrap().remove(0).parse().unwrap();
            document::says_the_same::<K>(&current, &file).unwrap()
        };
        assert!(self.1.contains(from), "{}", K::NAME);
        (K::NAME, same(self.1), same(&self.1.replace(from, to)))
    }
}

fn pair<K: Kind<Item: Clone>>(item: K::Item, file: &'static str) -> Box<dyn SaysTheSame> {
    Box::new(Pair::<K>(item, file))
}

fn list(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|&text| text.to_owned()).collect()
}

fn strings(values: &[&str]) -> v1::Strings {
    v1::Strings { values: list(values) }
}

fn a_role() -> v1::Role {
    let rule =
        |resources: &[&str], verbs: &[&str]| v1::RoleRule { resources: list(resources), verbs: list(verbs) };
    let allow = v1::RoleConditions {
        logins: list(&["dev", "ops"]),
        node_labels: [("env".into(), strings(&["dev", "test"])), ("tier".into(), strings(&["web"]))].into(),
        rules: vec![rule(&["locks"], &["list"]), rule(&["users", "roles"], &["list", "read"])],
        requests: Some(v1::RequestRules { request_roles: list(&["access", "dev"]), ..Default::default() }),
    };
    let options =
        v1::RoleOptions { source_addresses: list(&["10.0.0.0/8", "2001:db8::7"]), ..Default::default() };
    v1::Role {
        name: "developer".into(),
        allow: Some(allow),
        options: Some(options),
        revision: 7,
        ..Default::default()
    }
}

fn a_connector() -> v1::Connector {
    let mapping = |value: &str, roles: &[&str]| v1::ClaimMapping {
        claim: "groups".into(),
        value: value.into(),
        roles: list(roles),
    };
    let oidc = v1::OidcConnector {
        issuer_url: "https://login.example.com".into(),
        client_id: "mezite".into(),
        client_secret: crate::connector_file::REDACTED.into(),
        scopes: list(&["groups", "profile"]),
        ..Default::default()
    };
    v1::Connector {
        name: "corporate".into(),
        mappings: vec![mapping("admins", &["access", "admin"]), mapping("devs", &["developer"])],
        provider: Some(v1::connector::Provider::Oidc(oidc)),
        ..Default::default()
    }
}

fn a_trusted_cluster() -> v1::TrustedCluster {
    let mapping =
        |remote: &str, local: &[&str]| v1::RoleMapping { remote: remote.into(), local: list(local) };
    v1::TrustedCluster {
        name: "home".into(),
        addresses: list(&["b:1", "a:1"]),
        role_mappings: vec![mapping("*", &["access"]), mapping("dev", &["access", "developer"])],
        ..Default::default()
    }
}

fn seconds(seconds: i64) -> Option<prost_types::Timestamp> {
    Some(prost_types::Timestamp { seconds, nanos: 0 })
}

fn an_iam_rule(account: &str, arn: &str, partition: &str) -> v1::IamRule {
    v1::IamRule { account: account.into(), arn: arn.into(), partition: partition.into() }
}

fn a_token() -> v1::Token {
    v1::Token {
        name: "web".into(),
        kind: v1::TokenKind::Node.into(),
        max_uses: 1,
        allowed_principals: list(&["*.example.org", "192.0.2.7"]),
        method: v1::JoinMethod::Iam.into(),
        iam_rules: vec![
            an_iam_rule("210987654321", "", "aws"),
            an_iam_rule("123456789012", "arn:aws-cn:iam::123456789012:user/a", "aws-cn"),
        ],
        created_at: seconds(10),
        expires_at: seconds(3610),
        ..Default::default()
    }
}

/// In every kind: lists are compared as the sets that they are, names as the cluster spells them, and what is left to the
/// cluster is as it is; something else is something else.
#[test]
fn a_file_in_another_order_and_spelling_wants_the_same() {
    let user = v1::User {
        name: "alice".into(),
        roles: list(&["access", "developer"]),
        traits: [("logins".into(), strings(&["alice", "deploy"]))].into(),
        ..Default::default()
    };
    let lock = v1::Lock {
        lock_id: "1f".into(),
        target: Some(v1::LockTarget { target: Some(v1::lock_target::Target::User("alice".into())) }),
        ..Default::default()
    };
    let node = v1::Node {
        agent_id: "6f".into(),
        admin_labels: [("env".into(), "dev".into()), ("rack".into(), "7".into())].into(),
        ..Default::default()
    };
    let node = v1::AccessibleNode { node: Some(node), logins: Vec::new() };
    let session = v1::Session { handle: "5e".into(), user: "alice".into(), ..Default::default() };
    let request = v1::AccessRequest {
        request_id: "ac".into(),
        roles: list(&["access", "dev"]),
        nodes: list(&["n1", "n2"]),
        duration: Some(prost_types::Duration { seconds: 3600, nanos: 0 }),
        ..Default::default()
    };
    let config = v1::ClusterConfig {
        session_ttl: Some(prost_types::Duration { seconds: 28800, nanos: 0 }),
        ..Default::default()
    };
    let table = [
        (
            pair::<user::User>(
                user,
                "kind: users\nmetadata: {name: Alice}\nspec: {roles: [Developer, access, developer], traits: \
                 {logins: [deploy, alice]}}",
            ),
            ("[deploy, alice]", "[deploy, Alice]"),
        ),
        (
            pair::<role::Role>(
                a_role(),
                "{\"kind\": \"role\", \"metadata\": {\"name\": \"DEVELOPER\"}, \"spec\": {\"allow\": {\"logins\": \
                 [\"ops\", \"dev\"], \"node_labels\": {\"tier\": \"web\", \"env\": [\"test\", \"dev\"]}, \"rules\": \
                 [{\"resources\": [\"roles\", \"users\"], \"verbs\": [\"read\", \"list\"]}, {\"resources\": \
                 [\"locks\"], \"verbs\": [\"list\"]}], \"requests\": {\"request_roles\": [\"Dev\", \"access\"], \
                 \"approvals\": 0}}, \"options\": {\"source_addresses\": [\"2001:DB8:0::7/128\", \"10.0.0.0/8\"]}}}",
            ),
            ("\"ops\", ", ""),
        ),
        (
            pair::<token::Token>(
                a_token(),
                "kind: token\nmetadata: {name: web}\nspec: {max_uses: 0, allowed_principals: [192.0.2.7, \
                 '*.Example.org'], method: iam, iam_rules: [{account: '123456789012', arn: \
                 'arn:aws-cn:iam::123456789012:user/a'}, {account: '210987654321'}]}",
            ),
            ("max_uses: 0", "ttl: 2h"),
        ),
        (
            pair::<lock::Lock>(lock, "kind: lock\nspec: {target: 'user:Alice'}"),
            ("{target", "{message: x, target"),
        ),
        (
            pair::<node::Node>(
                node,
                "kind: node\nmetadata: {name: 6f}\nspec: {admin_labels: {rack: '7', env: dev}}",
            ),
            ("env: dev", "env: ''"),
        ),
        (
            pair::<session::Session>(session, "kind: session\nmetadata: {name: 5e}\nspec: {user: ALICE}"),
            ("ALICE", "bob"),
        ),
        (
            pair::<access_request::AccessRequest>(
                request,
                "kind: access_request\nmetadata: {name: ac}\nspec: {roles: [Dev, access], nodes: [n2, n1]}",
            ),
            ("n2, n1", "n2"),
        ),
        (
            pair::<cluster_config::ClusterConfig>(
                config,
                "kind: cluster_config\nspec: {session_ttl: 480m, audit_max_events: 0, lockout_threshold: 0}",
            ),
            ("480m", "481m"),
        ),
        (
            pair::<connector::Connector>(
                a_connector(),
                "kind: connector\nmetadata: {name: Corporate}\nspec:\n  mappings:\n  - {claim: groups, value: devs, \
                 roles: [Developer]}\n  - {claim: groups, value: admins, roles: [admin, access]}\n  oidc: {issuer_url: \
                 'https://login.example.com', client_id: mezite, scopes: [profile, groups]}",
            ),
            ("client_id: mezite", "client_id: mezite, client_secret: another"),
        ),
        (
            pair::<trusted_cluster::TrustedCluster>(
                a_trusted_cluster(),
                "kind: trusted_cluster\nmetadata: {name: home}\nspec: {addresses: ['b:1', 'a:1'], role_mappings: [{remote: \
                 Dev, local: [Developer, access]}, {remote: '*', local: [access]}]}",
            ),
            // The order in which they are asked.
            ("'b:1', 'a:1'", "'a:1', 'b:1'"),
        ),
        (
            pair::<agent_identity::AgentIdentity>(
                v1::AgentIdentity {
                    name: "ci".into(),
                    roles: list(&["access", "developer"]),
                    max_ttl: Some(prost_types::Duration { seconds: 3600, nanos: 0 }),
                    spiffe_ids: list(&["spiffe://x/a", "spiffe://x/b"]),
                    ..Default::default()
                },
                "kind: agent_identities\nmetadata: {name: CI}\nspec: {roles: [Developer, access], spiffe_ids: \
                 ['spiffe://x/b', 'spiffe://x/a']}",
            ),
            ("spec: {", "spec: {max_ttl: 2h, "),
        ),
    ];
    let compared = table.map(|(pair, change)| pair.compare(change));
    let names = KINDS.iter().map(|kind| (kind.name(), true, false));
    assert_eq!(compared.to_vec(), names.collect::<Vec<_>>());
}

#[test]
fn every_kind_is_told_once() {
    let mut names: Vec<_> = KINDS.iter().flat_map(|kind| [kind.name(), kind.plural()]).collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
    assert!(KINDS.iter().all(|kind| super::kind(kind.plural()).unwrap().name() == kind.name()));
}
