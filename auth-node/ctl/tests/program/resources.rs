//! What `create` tells, and when; and how one of many is found.

use std::{
    fs,
    io::Read as _,
    process::Stdio,
    sync::{Mutex, mpsc},
    thread,
    time::Duration,
};

use mezite_client::testing::Call;
use mezite_proto::v1;
use prost::Message as _;
use serde_json::Value;
use tonic::Status;

use crate::cluster::Cluster;

const PATIENCE: Duration = Duration::from_secs(60);

const USERS: &str = "\
kind: user
metadata: {name: ann}
spec: {}
---
kind: user
metadata: {name: bob}
spec: {}
---
kind: user
metadata: {name: cleo}
spec: {}
";

/// Makes a user with an invite; the second only when it is told to, and then it is refused.
fn users(released: mpsc::Receiver<()>) -> Cluster {
    let released = Mutex::new(released);
    let cluster = Cluster::answering(move |call| {
        let user = call.request::<v1::CreateUserRequest>().user.unwrap();
        if user.name == "bob" {
            released.lock().unwrap().recv_timeout(PATIENCE).unwrap();
            return Err(Status::permission_denied("not bob"));
        }
        let invite_secret = format!("s3cret-of-{}", user.name);
        Ok(v1::CreateUserResponse { user: Some(user), invite_secret, ..Default::default() }.encode_to_vec())
    });
    cluster.log_in();
    fs::write(cluster.path("users.yaml"), USERS).unwrap();
    cluster
}

#[test]
fn a_secret_is_told_before_the_next_document_is_tried_and_no_failure_takes_it_back() {
    for format in ["text", "json", "yaml"] {
        let (release, released) = mpsc::channel();
        let cluster = users(released);
        let mut command = cluster.command(&["create", "users.yaml", "--format", format]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let (heard, hears) = mpsc::channel();
        let reader = thread::spawn(move || {
            let (mut all, mut buffer) = (Vec::new(), [0; 4096]);
            while let Ok(length @ 1..) = stdout.read(&mut buffer) {
                all.extend_from_slice(&buffer[..length]);
                if String::from_utf8_lossy(&all).contains("s3cret-of-ann") {
                    let _ = heard.send(());
                }
            }
            String::from_utf8(all).unwrap()
        });
        hears.recv_timeout(PATIENCE).unwrap();
        release.send(()).unwrap();
        let ended = child.wait_with_output().unwrap();
        let printed = reader.join().unwrap();
        let said = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(3), "{said}");
        assert!(
            said.contains("document 2 (user/bob)") && said.contains("1 were done and 1 were not"),
            "{said}"
        );
        let read: Value = match format {
            "text" => {
                assert_eq!(printed, "created user/ann\n  invite: s3cret-of-ann\n");
                continue;
            }
            "json" => serde_json::from_str(&printed).unwrap(),
            _ => serde_norway::from_str(&printed).unwrap(),
        };
        assert_eq!(read.as_array().unwrap().len(), 1);
        assert_eq!(read[0]["secret"], "s3cret-of-ann");
    }
}

#[test]
fn nothing_more_is_made_when_nobody_reads_what_is_told() {
    let (_release, released) = mpsc::channel();
    let cluster = users(released);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = cluster.command(&["create", "users.yaml"]);
    let output = command.stdout(writer).stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("user/ann was created, and nobody could be told"), "{said}");
    assert_eq!(cluster.calls(), ["CreateUser"]);
}

/// Nodes 0 to 9, two a page.
fn nodes(call: &Call) -> Result<Vec<u8>, Status> {
    let token = call.request::<v1::ListNodesRequest>().page_token;
    let from: usize = token.parse().unwrap_or_default();
    let node = |number: usize| v1::AccessibleNode {
        node: Some(v1::Node { agent_id: format!("node-{number}"), ..Default::default() }),
        logins: Vec::new(),
    };
    let next_page_token = if from < 8 { (from + 2).to_string() } else { String::new() };
    Ok(v1::ListNodesResponse { nodes: vec![node(from), node(from + 1)], next_page_token }.encode_to_vec())
}

#[test]
fn no_page_is_fetched_behind_the_one_that_is_asked_for() {
    for (name, code, pages) in [("node-3", 0, 2), ("node-0", 0, 1), ("node-3a", 4, 3), ("x", 4, 5)] {
        let cluster = Cluster::answering(nodes);
        cluster.log_in();
        let ran = cluster.run(&["get", &format!("node/{name}"), "-o", "json"]);
        assert_eq!(ran.code, Some(code), "{ran:?}");
        assert_eq!(ran.stdout.contains(name), code == 0, "{ran:?}");
        assert_eq!(cluster.calls().len(), pages, "{name}");
    }
}
