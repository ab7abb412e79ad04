//! `tests/security.md`, the table of security rules: every rule is in it, and has tests that are there, or says what it
//! waits for.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
};

use cargo_metadata::{Metadata, MetadataCommand, TargetKind};
use mezite_e2e::tools;

/// How a cell begins whose rule has nothing to hold for yet.
const NOT_YET: &str = "not built yet: ";

/// Every rule, by its id. One that goes from the table goes from here too, so that none is lost unseen.
const RULES: &[&str] = &[
    "login-unknown-user-same-cost",
    "login-dummy-match-fails",
    "login-same-answer",
    "login-locked-user-alike",
    "login-sso-user-alike",
    "login-begin-webauthn-alike",
    "lockout-cluster-wide",
    "lockout-apart-from-locks",
    "lockout-of-nobody-unproved",
    "login-rate-limits",
    "usernames-canonical",
    "usernames-compared-canonical",
    "change-password-verifies-the-old",
    "change-password-ends-sessions",
    "invite-once",
    "invite-stored-as-hash",
    "invite-shown-once",
    "invite-expires",
    "invite-same-answer",
    "webauthn-challenge-once",
    "webauthn-any-node",
    "webauthn-last-factor-stays",
    "argon2id-parameters",
    "argon2id-pool-bounded",
    "session-id-256-bits",
    "session-id-stored-as-hash",
    "session-id-never-logged",
    "session-id-never-listed",
    "session-revoked-by-either",
    "web-session-cookie",
    "web-cross-site",
    "web-policy",
    "web-same-answer",
    "web-second-factor",
    "web-bounds",
    "sso-state-once",
    "sso-bound-to-browser",
    "sso-id-token",
    "sso-no-takeover",
    "sso-default-deny",
    "sso-removed-connector",
    "sso-transport-bounds",
    "sso-program-code",
    "web-invite-link",
    "authz-one-table-default-deny",
    "authz-every-method-every-caller",
    "authz-again-at-commit",
    "grant-roles-on-users",
    "grant-tokens",
    "grant-node-labels",
    "grant-agent-identities",
    "grant-requests",
    "lists-filtered",
    "counts-and-watches-filtered",
    "not-found-like-denied",
    "roles-independent-of-order",
    "roles-deny-wins",
    "roles-strictest-option-wins",
    "locks-at-login",
    "locks-every-call",
    "locks-at-issue",
    "locks-at-renewal",
    "locks-at-join",
    "locks-at-heartbeat",
    "locks-on-streams-of-agents",
    "locks-on-streams-of-users",
    "locks-on-devices",
    "locks-on-agent-identities",
    "requests-terminal-states",
    "requests-one-review-an-author",
    "requests-no-self-approval",
    "requests-bounded",
    "requests-requested-roles-alone",
    "requests-access-ends",
    "cert-ttl-bounded",
    "cert-not-before",
    "cert-narrows-source-address",
    "cert-narrows-mfa",
    "cert-narrows-expiry",
    "cert-extensions-by-role",
    "cert-source-address-critical",
    "key-algorithms",
    "key-sizes",
    "key-not-a-certificate",
    "host-allowed-principals",
    "host-names-of-others",
    "host-no-wildcard",
    "host-no-loopback",
    "ca-active-signs-trusted-verify",
    "ca-rotation-table",
    "ca-rotation-keeps-everybody-working",
    "ca-rotation-waits-for-agents",
    "token-checked-at-every-use",
    "token-name-is-no-secret",
    "token-join-is-one-use",
    "join-denials-audited",
    "iam-rebuilt-request",
    "iam-signed-challenge",
    "iam-transport-bounds",
    "iam-account-required",
    "agent-identity-generation",
    "spiffe-jwt",
    "spiffe-x509",
    "tls-versions",
    "tls-no-plaintext",
    "tls-reload",
    "bounds-messages",
    "bounds-fields",
    "bounds-page-sizes",
    "streams-idle-timeout",
    "streams-capped",
    "connections-capped",
    "handshakes-capped",
    "slow-readers-cut",
    "slow-writers-cut",
    "audit-identity-not-chosen",
    "audit-node-and-time-not-chosen",
    "audit-types-of-data-planes-alone",
    "audit-of-recordings-by-ingests-alone",
    "recordings-memory-bounded",
    "recordings-disk-bounded",
    "recordings-size-bounded",
    "recordings-kept",
    "recordings-of-others",
    "recorded-user-is-the-certificates",
    "recording-strict-fails-closed",
    "recording-kept-until-receipt",
    "recording-not-changed-by-recorder",
    "recordings-by-the-web",
    "recordings-never-markup",
    "recordings-on-a-terminal",
    "recordings-proven",
    "ids-never-paths",
    "secrets-zeroized",
    "secrets-absent-from-debug",
    "secrets-absent-from-logs-and-metrics",
    "secret-files-private",
    "errors-say-what-to-do",
    "errors-hide-internals",
];

/// Where the targets of the workspace begin, by nextest's name of their test binary.
type Roots = BTreeMap<String, PathBuf>;

/// A row: id, rule, and what proves it.
struct Row {
    id: String,
    rule: String,
    proof: String,
}

fn rows(table: &str) -> Vec<Row> {
    let row = |line: &str| {
        let cells: Vec<_> = line.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect();
        match <[String; 3]>::try_from(cells) {
            Ok([id, rule, proof]) => Row { id: id.trim_matches('`').to_owned(), rule, proof },
            Err(cells) => panic!("a row has an id, a rule and its proof: {cells:?}"),
        }
    };
    table.lines().filter(|line| line.starts_with("| `")).map(row).collect()
}

/// The names of tests in a cell, as nextest prints them: `` `auth-core login::tests::name` ``.
fn named(proof: &str) -> Vec<&str> {
    proof.split('`').skip(1).step_by(2).collect()
}

/// Where they begin.
fn roots() -> Roots {
    let manifest = tools::repository().join("Cargo.toml");
    let metadata: Metadata = MetadataCommand::new().manifest_path(manifest).no_deps().exec().unwrap();
    let mut roots = BTreeMap::new();
    for package in metadata.workspace_packages() {
        for target in &package.targets {
            let binary = match &target.kind[..] {
                [TargetKind::Lib] => package.name.to_string(),
                [TargetKind::Bin] => format!("{}::bin/{}", package.name, target.name),
                [TargetKind::Test] => format!("{}::{}", package.name, target.name),
                _ => continue,
            };
            roots.insert(binary, target.src_path.clone().into());
        }
    }
    roots
}

/// The file, and in it the text, of a module that `text`, in `file`, declares.
fn module(roots: &Roots, (file, text): &(PathBuf, String), name: &str) -> Option<(PathBuf, String)> {
    if let Some((_, inline)) = text.split_once(&format!("mod {name} {{\n")) {
        return Some((file.clone(), inline.to_owned()));
    }
    let (before, _) = text.split_once(&format!("mod {name};"))?;
    let attribute = before.trim_end_matches("pub(crate) ").trim_end_matches("pub ").trim_end().lines().last();
    let path = attribute.and_then(|line| line.trim().strip_prefix("#[path = \"")?.strip_suffix("\"]"));
    let folder = file.parent()?;
    let stands_for_its_folder = file.ends_with("mod.rs") || roots.values().any(|root| root == file);
    let inside = if stands_for_its_folder { folder.to_owned() } else { file.with_extension("") };
    let candidates = match path {
        Some(path) => vec![folder.join(path)],
        None => vec![inside.join(format!("{name}.rs")), inside.join(name).join("mod.rs")],
    };
    let found = candidates.into_iter().find(|path| path.exists())?;
    let text = fs::read_to_string(&found).unwrap();
    Some((found, text))
}

/// Whether nextest would find a test of this name.
fn exists(roots: &Roots, test: &str) -> bool {
    let Some((binary, path)) = test.split_once(' ') else { return false };
    let Some(root) = roots.get(binary) else { return false };
    let (modules, function) = path.rsplit_once("::").unwrap_or(("", path));
    let mut place = (root.clone(), fs::read_to_string(root).unwrap());
    for name in modules.split("::").filter(|name| !name.is_empty()) {
        match module(roots, &place, name) {
            Some(inner) => place = inner,
            None => return false,
        }
    }
    is_test(&place.1, function)
}

/// Whether a file has a test of this name that is run: one that is ignored proves nothing.
fn is_test(text: &str, function: &str) -> bool {
    let Some((before, _)) = text.split_once(&format!("fn {function}(")) else { return false };
    let above = before.trim_end_matches("async ").trim_end().lines().rev().map(str::trim);
    let attributes: Vec<_> =
        above.take_while(|line| line.starts_with("#[") || line.starts_with("//")).collect();
    let is = |what: fn(&str) -> bool| attributes.iter().any(|line| line.starts_with("#[") && what(line));
    is(|line| line == "#[test]" || line.starts_with("#[tokio::test")) && !is(|line| line.contains("ignore"))
}

#[test]
fn every_security_rule_has_its_tests_or_says_what_it_waits_for() {
    let table = fs::read_to_string(tools::repository().join("tests/security.md")).unwrap();
    let (rows, roots) = (rows(&table), roots());
    let ids: Vec<_> = rows.iter().map(|row| row.id.as_str()).collect();
    assert_eq!(ids, RULES, "the rules of the table, in its order");
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "an id names one rule");
    let mut wrong = Vec::new();
    for Row { id, rule, proof } in &rows {
        let waits = proof.strip_prefix(NOT_YET).is_some_and(|what| !what.is_empty());
        let tests = named(proof);
        if rule.is_empty() || waits != tests.is_empty() {
            wrong.push(format!("{id}: neither a test nor `{NOT_YET}…`, or both"));
        }
        let missing = tests.iter().filter(|test| !exists(&roots, test));
        wrong.extend(missing.map(|test| format!("{id}: there is no test `{test}`")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_name_that_is_no_test_is_found_out() {
    let roots = roots();
    let own = "mezite-e2e::it security::a_name_that_is_no_test_is_found_out";
    assert!(exists(&roots, own));
    for other in [
        "mezite-e2e::it security::rows",
        "mezite-e2e::it security::no_such_test",
        // It is there, and a part of another one.
        "raft-store tests::crash::child_store",
        "mezite-e2e::it nowhere::a_name_that_is_no_test_is_found_out",
        "mezite-e2e security::a_name_that_is_no_test_is_found_out",
        "a_name_that_is_no_test_is_found_out",
    ] {
        assert!(!exists(&roots, other), "{other}");
    }
}

#[test]
fn a_test_that_is_ignored_is_none() {
    let test = |above: &str| is_test(&format!("fn other() {{}}\n\n{above}\nasync fn name() {{}}\n"), "name");
    for good in ["#[test]", "#[tokio::test]", "/// It is not to ignore this.\n#[tokio::test(flavor = \"x\")]"]
    {
        assert!(test(good), "{good}");
    }
    for bad in [
        "",
        "#[inline]",
        "#[test]\n#[ignore]",
        "#[ignore = \"it takes long\"]\n#[tokio::test]",
        "#[cfg_attr(not(target_os = \"linux\"), ignore)]\n#[test]",
    ] {
        assert!(!test(bad), "{bad}");
    }
}
