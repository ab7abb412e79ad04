//! What is printed, for people and for programs, and secrets that are not.

use std::{fs, os::unix::fs::MetadataExt as _};

use mezite_client::testing::Call;
use mezite_proto::v1;
use prost::Message as _;
use serde_json::Value;
use tonic::Status;

use crate::cluster::Cluster;

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn tokens(call: &Call) -> Result<Vec<u8>, Status> {
    match call.method.as_str() {
        "CreateToken" => {
            let request: v1::CreateTokenRequest = call.request();
            let token = v1::Token {
                name: "t1".into(),
                kind: request.kind,
                method: request.method,
                max_uses: request.max_uses,
                labels: request.labels,
                ..Default::default()
            };
            let reply = v1::CreateTokenResponse { token: Some(token), secret: "s3cret".into() };
            Ok(reply.encode_to_vec())
        }
        "ListUsers" => {
            let user = |name: &str| v1::User { name: name.into(), ..Default::default() };
            let reply = match call.request::<v1::ListUsersRequest>().page_token.as_str() {
                "" => v1::ListUsersResponse { users: vec![user("alice")], next_page_token: "2".into() },
                _ => v1::ListUsersResponse { users: vec![user("bob\x1b[2J")], ..Default::default() },
            };
            Ok(reply.encode_to_vec())
        }
        _ => Err(Status::permission_denied("not for you")),
    }
}

#[test]
fn a_script_gets_the_secret_of_a_token_and_nothing_else() {
    let cluster = Cluster::answering(tokens);
    cluster.log_in();
    let add = ["tokens", "add", "--kind", "ingest", "--labels", "env=prod"];
    let printed = json(&cluster.run(&[&add[..], &["--format", "json"]].concat()).ok());
    assert_eq!((&printed["secret"], &printed["kind"]), (&"s3cret".into(), &"ingest".into()));
    assert_eq!((&printed["max_uses"], &printed["labels"]["env"]), (&1.into(), &"prod".into()));
}

#[test]
fn a_secret_that_goes_to_a_file_is_not_printed() {
    let cluster = Cluster::answering(tokens);
    cluster.log_in();
    for format in ["text", "json", "yaml"] {
        let printed = cluster.run(&["tokens", "add", "--out", "secret", "--format", format]).ok();
        assert!(printed.contains("t1") && !printed.contains("s3cret"), "{printed}");
        let file = cluster.path("secret");
        assert_eq!(fs::read_to_string(&file).unwrap(), "s3cret\n");
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, 0o600);
    }
    assert_eq!(cluster.calls().len(), 3);
    // A secret that could not be kept is not asked for.
    cluster.run(&["tokens", "add", "--out", "missing/secret"]).fails(1);
    assert_eq!(cluster.calls().len(), 3);
}

#[test]
fn a_list_has_three_forms() {
    let cluster = Cluster::answering(tokens);
    cluster.log_in();
    let ls = |format| cluster.run(&["users", "ls", "--format", format]).ok();
    let names = |list: &Value| -> Vec<String> {
        list.as_array().unwrap().iter().map(|user| user["name"].as_str().unwrap().to_owned()).collect()
    };
    // Both pages, and for programs the name as it is.
    assert_eq!(names(&json(&ls("json"))), ["alice", "bob\x1b[2J"]);
    assert_eq!(names(&serde_norway::from_str(&ls("yaml")).unwrap()), ["alice", "bob\x1b[2J"]);
    let text = ls("text");
    assert!(text.starts_with("NAME") && text.contains("alice"), "{text}");
    assert!(!text.contains('\x1b'), "{text:?}");
    assert_eq!(text.lines().count(), 3);
}

#[test]
fn a_status_says_who_and_where() {
    let cluster = Cluster::start();
    let nobody = json(&cluster.first(&["status", "--format", "json"]).ok());
    assert_eq!((&nobody["login"], &nobody["cluster_id"]), (&Value::Null, &"an id".into()));
    cluster.log_in();
    let alice = json(&cluster.run(&["status", "--format", "json"]).ok());
    assert_eq!((&alice["login"]["user"], &alice["login"]["active"]), (&"alice".into(), &true.into()));
    assert_eq!(alice["addresses"][0]["address"], cluster.server.address());
    assert_eq!(alice["ca_pins"][0], cluster.first_contact()[3]);
    let text = cluster.run(&["status"]).ok();
    assert!(text.contains("alice") && text.contains("serves"), "{text}");
}

#[test]
fn no_secret_is_ever_printed() {
    let cluster = Cluster::start();
    let login = cluster.first(&["login", "--user", "alice", "--password-file", "password"]);
    let join = cluster.first(&["agent", "join", "--out", "a", "--token-file", "token", "--hostname", "web1"]);
    let issue = cluster.run(&["certs", "issue", "--out", "keys", "--logins", "alice"]);
    for ran in [login, join, issue] {
        for secret in ["correct horse", "c0ffee", "t0ken", "PRIVATE KEY"] {
            assert!(!ran.stdout.contains(secret) && !ran.stderr.contains(secret), "{ran:?}");
        }
        ran.ok();
    }
}
