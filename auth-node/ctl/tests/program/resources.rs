//! What `create` tells, and when; and how one of many is found.

use std::{
    fs,
    io::Read as _,
    os::unix::fs::PermissionsExt as _,
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

/// Agent id of a node.
fn id(number: usize) -> String {
    format!("{number:08}-0000-4000-8000-000000000000")
}

/// Nodes 0 to 9, two a page; the last two have the same hostname.
fn nodes(call: &Call) -> Result<Vec<u8>, Status> {
    let token = call.request::<v1::ListNodesRequest>().page_token;
    let from: usize = token.parse().unwrap_or_default();
    let node = |number: usize| v1::AccessibleNode {
        node: Some(v1::Node {
            agent_id: id(number),
            hostname: format!("web{}", number.min(8)),
            ..Default::default()
        }),
        logins: Vec::new(),
    };
    let next_page_token = if from < 8 { (from + 2).to_string() } else { String::new() };
    Ok(v1::ListNodesResponse { nodes: vec![node(from), node(from + 1)], next_page_token }.encode_to_vec())
}

#[test]
fn no_page_is_fetched_behind_the_one_that_is_asked_for() {
    let between = id(3).replace("-8000-", "-8001-");
    for (name, code, pages) in [(id(3), 0, 2), (id(0), 0, 1), (between, 4, 3), ("x".into(), 4, 5)] {
        let cluster = Cluster::answering(nodes);
        cluster.log_in();
        let ran = cluster.run(&["get", &format!("node/{name}"), "-o", "json"]);
        assert_eq!(ran.code, Some(code), "{ran:?}");
        assert_eq!(ran.stdout.contains(&name), code == 0, "{ran:?}");
        assert_eq!(cluster.calls().len(), pages, "{name}");
    }
}

#[test]
fn a_node_can_be_named_by_a_hostname_that_no_other_has() {
    let cluster = Cluster::answering(|call| match call.method.as_str() {
        "DeregisterAgent" => {
            let asked: v1::DeregisterAgentRequest = call.request();
            assert_eq!(asked.agent_id, id(3));
            Ok(v1::DeregisterAgentResponse {}.encode_to_vec())
        }
        _ => nodes(call),
    });
    cluster.log_in();
    for command in [&["nodes", "rm", "web3"][..], &["rm", "node/web3"]] {
        assert!(cluster.run(command).ok().contains("web3"), "{command:?}");
    }
    assert!(cluster.run(&["get", "node/web3", "-o", "json"]).ok().contains(&id(3)));
    let said = cluster.run(&["nodes", "rm", "web8"]).fails(2);
    assert!(said.contains(&id(8)) && said.contains(&id(9)), "{said}");
    let said = cluster.run(&["nodes", "rm", "web"]).fails(4);
    assert!(said.contains("`mezctl nodes ls` lists them"), "{said}");
}

const CONNECTOR: &str = "\
kind: connector
metadata: {name: corporate}
spec:
  mappings: [{claim: groups, value: admins, roles: [admin]}]
  oidc: {issuer_url: 'https://login.example.com', client_id: mezite, client_secret: s3cret}
";

#[test]
fn a_client_secret_that_others_can_read_is_refused_wherever_it_is_read() {
    let cluster = Cluster::answering(|call| {
        let connector = call.request::<v1::CreateConnectorRequest>().connector;
        Ok(v1::CreateConnectorResponse { connector }.encode_to_vec())
    });
    cluster.log_in();
    let write = |text: &str, mode| {
        fs::write(cluster.path("c.yaml"), text).unwrap();
        fs::set_permissions(cluster.path("c.yaml"), fs::Permissions::from_mode(mode)).unwrap();
    };
    write(CONNECTOR, 0o644);
    for command in [&["create", "c.yaml"][..], &["create", "-f", "c.yaml"], &["connectors", "add", "c.yaml"]]
    {
        let said = cluster.run(command).fails(2);
        assert!(said.contains("chmod 600 c.yaml") && !said.contains("s3cret"), "{said}");
    }
    assert!(cluster.calls().is_empty());
    write(CONNECTOR, 0o600);
    cluster.run(&["create", "c.yaml"]).ok();
    // As it is printed, it holds nothing that is secret.
    write(&CONNECTOR.replace("s3cret", "'[redacted]'"), 0o644);
    let said = cluster.run(&["create", "c.yaml"]);
    assert!(!said.stderr.contains("chmod"), "{said:?}");
}

/// Locks and access requests, which have no other id but the one that the cluster gives them; those of bob are not alice's.
fn kept() -> Cluster {
    let kept = Mutex::new((Vec::<v1::Lock>::new(), Vec::<v1::AccessRequest>::new()));
    let state = v1::AccessRequestState::Pending;
    let of_bob = v1::AccessRequest {
        request_id: "of-bob".into(),
        user: "bob".into(),
        roles: vec!["dba".into()],
        state: state.into(),
        ..Default::default()
    };
    kept.lock().unwrap().1.push(of_bob);
    let cluster = Cluster::answering(move |call| {
        let (locks, requests) = &mut *kept.lock().unwrap();
        Ok(match call.method.as_str() {
            "ListLocks" => {
                v1::ListLocksResponse { locks: locks.clone(), ..Default::default() }.encode_to_vec()
            }
            "CreateLock" => {
                let v1::CreateLockRequest { target, message, .. } = call.request();
                let lock_id = format!("lock-{}", locks.len());
                let lock = v1::Lock { lock_id, target, message, ..Default::default() };
                locks.push(lock.clone());
                v1::CreateLockResponse { lock: Some(lock) }.encode_to_vec()
            }
            "ListAccessRequests" => {
                let asked: v1::ListAccessRequestsRequest = call.request();
                let found =
                    requests.iter().filter(|request| request.state == asked.state || asked.state == 0);
                let requests = found.cloned().collect();
                v1::ListAccessRequestsResponse { requests, ..Default::default() }.encode_to_vec()
            }
            "CreateAccessRequest" => {
                let v1::CreateAccessRequestRequest { roles, nodes, reason, duration } = call.request();
                let (request_id, user) = (format!("request-{}", requests.len()), "alice".into());
                let (request, state) = (v1::AccessRequest::default(), state.into());
                let request =
                    v1::AccessRequest { request_id, user, roles, nodes, reason, duration, state, ..request };
                requests.push(request.clone());
                v1::CreateAccessRequestResponse { request: Some(request) }.encode_to_vec()
            }
            _ => return Err(Status::not_found("there is none of this id")),
        })
    });
    cluster.log_in();
    cluster
}

#[test]
fn what_is_gone_is_made_once_under_another_id() {
    let cluster = kept();
    let documents = "\
kind: lock
metadata: {name: gone}
spec: {target: 'user:Carol', message: call 1234}
---
kind: access_request
metadata: {name: gone-too}
spec: {roles: [dba]}
";
    fs::write(cluster.path("kept.yaml"), documents).unwrap();
    let create = || cluster.run(&["create", "-f", "kept.yaml"]).ok();
    let told = |action: &str| {
        format!(
            "{action} lock/lock-0\n  in place of gone, which is gone\n{action} access_request/request-1\n  in place of \
             gone-too, which is gone\n"
        )
    };
    assert_eq!(create(), told("created"));
    assert_eq!(create(), told("unchanged"));
    let json: Value =
        serde_json::from_str(&cluster.run(&["create", "-f", "kept.yaml", "-o", "json"]).ok()).unwrap();
    assert_eq!((&json[0]["name"], &json[0]["instead_of"]), (&"lock-0".into(), &"gone".into()));
    // Something else is something else, and without an id there is nothing to be in place of.
    fs::write(
        cluster.path("kept.yaml"),
        documents.replace("1234", "5").replace("metadata: {name: gone}\n", ""),
    )
    .unwrap();
    let told = create();
    assert!(told.starts_with("created lock/lock-1\nunchanged access_request/request-1\n"), "{told}");
    let calls = cluster.calls();
    let made = |method: &str| calls.iter().filter(|call| *call == method).count();
    assert_eq!((made("CreateLock"), made("CreateAccessRequest")), (2, 1));
}

#[test]
fn a_list_of_none_is_printed_and_read() {
    let cluster = kept();
    for format in ["yaml", "json"] {
        let printed = cluster.run(&["get", "locks", "-o", format]).ok();
        let read: Value = serde_norway::from_str(&printed).unwrap();
        assert_eq!(read, Value::Array(Vec::new()), "{format}");
        fs::write(cluster.path("none.yaml"), format!("\u{feff}{printed}")).unwrap();
        assert_eq!(cluster.run(&["create", "-f", "none.yaml"]).ok(), "");
        assert_eq!(cluster.run(&["create", "-f", "none.yaml", "-o", "json"]).ok(), "[]\n");
    }
}

#[test]
fn nothing_is_made_of_a_file_with_a_document_that_lacks_its_name() {
    let (_release, released) = mpsc::channel();
    let cluster = users(released);
    let nameless = "---\nkind: user\nspec: {}\n";
    fs::write(cluster.path("users.yaml"), format!("{USERS}{nameless}")).unwrap();
    let said = cluster.run(&["create", "users.yaml"]).fails(2);
    assert!(said.contains("document 4 (user)") && said.contains("metadata.name"), "{said}");
    fs::write(cluster.path("users.yaml"), format!("{USERS}---\nkind: token\nspec: {{}}\n")).unwrap();
    let said = cluster.run(&["create", "-f", "users.yaml"]).fails(2);
    assert!(said.contains("document 4 (token)") && said.contains("with --force a token needs"), "{said}");
    assert!(cluster.calls().is_empty());
}
