//! Exit codes, and what is said beside them.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt as _,
    sync::atomic::{AtomicBool, Ordering},
};

use mezite_client::testing::dead_address as dead;
use mezite_proto::{IDEMPOTENCY_KEY, v1};
use prost::Message as _;
use tonic::{Code, Status};

use crate::cluster::Cluster;

const FAILED: i32 = 1;
const USAGE: i32 = 2;
const DENIED: i32 = 3;
const NOT_FOUND: i32 = 4;
const UNAVAILABLE: i32 = 5;
const UNKNOWN: i32 = 6;
const CONFLICT: i32 = 7;

#[test]
fn every_command_explains_itself() {
    let cluster = Cluster::start();
    let help = cluster.run(&["--help"]).ok();
    for code in [FAILED, USAGE, DENIED, NOT_FOUND, UNAVAILABLE, UNKNOWN, CONFLICT] {
        assert!(help.contains(&format!("\n  {code}  ")), "{code} in {help}");
    }
    for command in [
        "login",
        "logout",
        "passwd",
        "status",
        "accept-invite",
        "users add",
        "users reset",
        "users clear-lockout",
        "users ls",
        "users get",
        "users update",
        "users rm",
        "roles create",
        "roles update",
        "roles ls",
        "roles get",
        "roles rm",
        "tokens add",
        "tokens ls",
        "tokens get",
        "tokens rm",
        "nodes ls",
        "nodes update",
        "certs issue",
        "agent join",
        "agent heartbeat",
        "agent renew",
        "agent leave",
        "recordings upload",
        "recordings ls",
        "recordings get",
        "sessions ls",
        "sessions revoke",
        "cluster ls",
        "cluster status",
        "cluster add",
        "cluster rm",
        "cluster backup",
        "cluster token",
    ] {
        let words: Vec<_> = command.split(' ').chain(["--help"]).collect();
        let help = cluster.run(&words).ok();
        assert!(help.contains(&format!("Usage: mezctl {command}")), "{help}");
    }
    assert!(cluster.calls().is_empty());
}

#[test]
fn wrong_usage_is_told_before_anything_is_asked() {
    let cluster = Cluster::start();
    cluster.log_in();
    fs::set_permissions(cluster.path("password"), fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(cluster.path("role.yaml"), "kind: role\nmetadata: {name: r}\nspec: {alow: {}}\n").unwrap();
    for (line, said) in [
        ("", "Usage"),
        ("user ls", "users"),
        ("users add", "<NAME>"),
        ("status --addr nowhere", "host:port"),
        ("status --ca-pin sha256:0", "64 hexadecimal digits"),
        ("status --timeout 0s", "more than zero"),
        ("status --ca-pin sha256:0 --ca-file x", "cannot be used with"),
        ("login --user alice --password-file password", "chmod 600 password"),
        ("roles create role.yaml", "unknown field `alow`"),
        ("roles create missing.yaml", "cannot read missing.yaml"),
        ("login --user alice --password-file missing", "cannot read missing"),
        ("tokens add --max-uses 0", "--max-uses"),
        ("tokens add --labels env=a,env=b", "twice"),
        ("tokens add --allow-account 123456789012", "--method iam"),
        ("tokens add --method iam --allow-account 123456789012 --out t", "no secret"),
        ("tokens add --method iam --allow-arn web", "no ARN"),
        (
            "tokens add --method iam --allow-account 1 --allow-arn arn:aws:sts::2:assumed-role/web/*",
            "none of the accounts",
        ),
        (
            "tokens add --method iam --allow-account 1,2 --allow-arn arn:aws:sts::2:assumed-role/web/*",
            "no --allow-arn is of account 1",
        ),
        ("agent join --out agent", "--token-file"),
        ("agent join --out agent --method iam", "--token-name"),
        ("agent join --out agent --method iam --token-name web --token-file t", "no --token-file"),
        ("agent join --out agent --token-file t --region eu-west-1", "--method iam"),
        ("agent heartbeat --dir missing", "no agent's folder"),
        ("agent leave --dir .", "has no agent"),
        ("cluster rm first", "<NODE>"),
        ("cluster backup", "--out"),
        ("recordings get ../../etc/passwd", "not a recording's id"),
    ] {
        let words: Vec<_> = line.split_whitespace().collect();
        let error = cluster.run(&words).fails(USAGE);
        assert!(error.contains(said), "{line}: {error}");
    }
    assert!(cluster.calls().is_empty());
}

#[test]
fn a_first_contact_without_a_pin_is_refused() {
    let cluster = Cluster::start();
    let address = cluster.server.address();
    let login = ["login", "--user", "alice", "--password-file", "password"];
    assert!(cluster.run(&login).fails(USAGE).contains("--addr"));
    assert!(cluster.run(&[&login[..], &["--addr", &address]].concat()).fails(USAGE).contains("--ca-pin"));
    let other = Cluster::start().first_contact();
    let wrong = cluster.run(&[&login[..], &["--addr", &address, "--ca-pin", &other[3]]].concat());
    assert!(wrong.fails(FAILED).contains("hint: check --addr"));
    assert!(cluster.server.calls().is_empty(), "no password was sent");
}

#[test]
fn the_environment_says_what_the_options_do_not() {
    let cluster = Cluster::start();
    let [_, address, _, pin] = cluster.first_contact();
    let environment = BTreeMap::from([
        ("MEZITE_ADDR", format!("{},{address}", dead())),
        ("MEZITE_CA_PIN", pin),
        ("MEZITE_USER", "alice".into()),
        ("MEZITE_PASSWORD_FILE", "password".into()),
        ("MEZITE_HOME", cluster.path("elsewhere").display().to_string()),
    ]);
    cluster.run_with(&["login"], &environment).ok();
    assert!(cluster.path("elsewhere/profile.json").exists() && !cluster.path(".config").exists());
    // None of them is something to do.
    assert!(cluster.run_with(&[], &environment).fails(USAGE).contains("Commands:"));
    // A variable that is set to nothing says nothing.
    cluster.log_in();
    let empty =
        environment.keys().map(|&name| (name, String::new())).filter(|(name, _)| *name != "MEZITE_HOME");
    cluster.run_with(&["status"], &empty.collect()).ok();
}

#[test]
fn who_is_not_logged_in_or_not_allowed_is_told() {
    let cluster = Cluster::start();
    for (arguments, code) in [(["login"], USAGE), (["status"], USAGE), (["logout"], DENIED)] {
        let said = cluster.run(&arguments).fails(code);
        assert!(said.contains("login --addr HOST:3025 --ca-pin sha256:… --user NAME"), "{said}");
    }
    // It is told whole: a bare `mezctl login` would not do.
    assert!(!cluster.run(&["users", "ls"]).fails(DENIED).contains("hint:"));
    cluster.secret("wrong", "wrong");
    let wrong = cluster.first(&["login", "--user", "alice", "--password-file", "wrong"]);
    assert!(wrong.fails(DENIED).contains("wrong password"));
    cluster.log_in();
    assert!(cluster.run(&["users", "ls"]).fails(DENIED).contains("not for you"));
    assert!(cluster.run(&["login", "--password-file", "wrong"]).fails(DENIED).contains("wrong password"));
}

#[test]
fn patterns_that_name_no_host_are_refused() {
    let cluster = Cluster::start();
    cluster.log_in();
    let said = cluster.run(&["ssh-config", "--hosts", "!x.example.org"]).fails(2);
    assert!(said.contains("add what it is for"), "{said}");
    let config = cluster.run(&["ssh-config", "--hosts", "*.example.org,!x.example.org"]).ok();
    assert!(config.contains("!x.example.org"), "{config}");
}

#[test]
fn answers_have_codes_of_their_own() {
    for (code, exit) in [
        (Code::NotFound, NOT_FOUND),
        (Code::AlreadyExists, CONFLICT),
        (Code::Aborted, CONFLICT),
        (Code::InvalidArgument, USAGE),
        (Code::Unimplemented, FAILED),
    ] {
        let cluster = Cluster::answering(move |_| Err(Status::new(code, "so it is")));
        cluster.log_in();
        let token = ["cluster", "token"];
        assert!(cluster.run(&token).fails(exit).contains("so it is"), "{code:?}");
        assert_eq!(cluster.calls(), ["CreateAuthJoinToken"], "{code:?}");
    }
}

#[test]
fn a_cluster_that_is_away_is_waited_for_and_then_reported() {
    let mut cluster = Cluster::start();
    cluster.log_in();
    cluster.server.kill();
    let error = cluster.run(&["users", "ls", "--timeout", "2s"]).fails(UNAVAILABLE);
    assert!(error.contains(&cluster.server.address()) && error.contains("hint: try again"), "{error}");
    // What is known is printed all the same.
    let status = cluster.run(&["status", "--timeout", "2s"]);
    assert_eq!(status.code, Some(UNAVAILABLE));
    assert!(status.stdout.contains("cluster:") && status.stdout.contains("no connection"), "{status:?}");
}

#[test]
fn a_node_without_a_quorum_does_not_serve_and_that_is_told_rather_than_who_is_away() {
    let cluster = Cluster::answering(|_| Err(Status::unavailable("no leader with a quorum")));
    cluster.log_in();
    cluster.fail("no leader with a quorum");
    let addresses = format!("{},{}", cluster.server.address(), dead());
    let status = cluster.run(&["status", "--addr", &addresses]);
    assert_eq!(status.code, Some(UNAVAILABLE), "{status:?}");
    assert!(status.stdout.contains("1     no leader with a quorum"), "{}", status.stdout);
    assert!(!status.stdout.contains("serves"), "{}", status.stdout);
    let users = cluster.run(&["users", "ls", "--timeout", "2s", "--addr", &addresses]).fails(UNAVAILABLE);
    for said in [status.stderr, users] {
        assert!(said.contains(&format!("{addresses}; attempts").replace(',', ", ")), "{said}");
        assert!(said.contains("): no leader with a quorum"), "{said}");
    }
}

#[test]
fn a_call_goes_to_the_address_that_serves() {
    let cluster = Cluster::answering(|call| match call.method.as_str() {
        "CreateUser" => {
            let user = call.request::<v1::CreateUserRequest>().user;
            Ok(v1::CreateUserResponse { user, ..Default::default() }.encode_to_vec())
        }
        _ => Err(Status::permission_denied("not for you")),
    });
    cluster.log_in();
    let addresses = format!("{},{},{}", dead(), dead(), cluster.server.address());
    let add = ["users", "add", "bob", "--password-file", "password", "--addr", &addresses];
    assert!(cluster.run(&add).ok().contains("bob"));
    assert_eq!(cluster.calls(), ["CreateUser"]);
}

/// A cluster that loses the answer to the first call of `method`, and then answers `reply`.
fn loses_an_answer(method: &'static str, reply: Vec<u8>) -> Cluster {
    let first = AtomicBool::new(true);
    Cluster::answering(move |call| match call.method == method {
        true if first.swap(false, Ordering::SeqCst) => Err(Status::unavailable("the node is going away")),
        true => Ok(reply.clone()),
        false => Err(Status::internal("not expected")),
    })
}

#[test]
fn a_creation_whose_answer_was_lost_is_asked_for_again() {
    let user = v1::User { name: "bob".into(), ..Default::default() };
    let role = v1::Role { name: "dev".into(), ..Default::default() };
    let token = v1::Token { name: "web".into(), ..Default::default() };
    let secret = "s3cret".to_owned();
    for (command, method, reply, printed) in [
        (
            "users add bob --password-file password",
            "CreateUser",
            v1::CreateUserResponse { user: Some(user), ..Default::default() }.encode_to_vec(),
            "bob",
        ),
        (
            "roles create role.yaml",
            "CreateRole",
            v1::CreateRoleResponse { role: Some(role) }.encode_to_vec(),
            "dev",
        ),
        (
            "tokens add",
            "CreateToken",
            v1::CreateTokenResponse { token: Some(token), secret }.encode_to_vec(),
            "s3cret",
        ),
    ] {
        let cluster = loses_an_answer(method, reply);
        cluster.log_in();
        fs::write(cluster.path("role.yaml"), "kind: role\nmetadata: {name: dev}\nspec: {}\n").unwrap();
        let words: Vec<_> = command.split(' ').collect();
        assert!(cluster.run(&words).ok().contains(printed), "{command}");
        assert_eq!(cluster.calls(), [method, method]);
        // As the same call.
        let keys: Vec<_> = cluster
            .server
            .calls()
            .iter()
            .filter(|call| call.method == method)
            .map(|call| call.metadata.get(IDEMPOTENCY_KEY).unwrap().clone())
            .collect();
        assert_eq!(keys[0], keys[1]);
    }
}

#[test]
fn what_may_have_taken_effect_is_said_when_nobody_tells() {
    for code in [Code::Unavailable, Code::Internal] {
        let cluster = Cluster::answering(move |_| Err(Status::new(code, "the node is going away")));
        cluster.log_in();
        let said = cluster.run(&["cluster", "token", "--timeout", "2s"]).fails(UNKNOWN);
        assert!(said.contains("going away") && said.contains("run it again"), "{said}");
        let calls = cluster.calls();
        assert!(calls.len() > 1 && calls.iter().all(|call| call == "CreateAuthJoinToken"), "{calls:?}");
    }
}
