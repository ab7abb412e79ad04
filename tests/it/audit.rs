//! The audit log as an auditor reads it, exports it, and proves that it is whole.

use std::{fs, path::Path, process::Command};

use mezite_daemon::clock;
use mezite_e2e::{Agent, AgentSpec, Cluster, Ctl, PASSWORD, api, call, run_on};
use mezite_proto::v1;
use serde_json::Value;
use tonic::Code;

use crate::support::{add_user, texts};

/// A change of the lines of an export.
type Change = fn(&mut Vec<String>);

fn auditor(cluster: &Cluster) -> Ctl {
    add_user(cluster, "auditor", "auditor", "auditor");
    let ctl = cluster.ctl_named("auditor");
    let _ = ctl.login("auditor", PASSWORD).ok();
    ctl.by_profile()
}

fn lines(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_auditor_finds_what_was_done_and_a_user_does_not() {
    let cluster = Cluster::start(3).await;
    let auditor = auditor(&cluster);
    add_user(&cluster, "alice", "access", "alice");
    let found = auditor.json(&["audit", "ls", "--event", "user.create", "--text", "alice"]);
    assert_eq!(found.as_array().unwrap().len(), 1, "{found}");
    assert_eq!((&found[0]["target"], &found[0]["success"]), (&"user:alice".into(), &true.into()));
    // The same at every node, and the other way round.
    for node in cluster.nodes() {
        let here = auditor.at(&[node.address()]);
        let found = here.json(&["audit", "ls", "--event", "user.*", "--oldest-first", "--limit", "2"]);
        let indices: Vec<_> = found.as_array().unwrap().iter().map(|event| event["index"].as_u64()).collect();
        assert!(indices[0] < indices[1], "{found}");
    }
    let said = auditor.run(&["audit", "ls", "--event", "user.creat"]).failed(2);
    assert!(said.contains("no such event"), "{said}");
    let alice = cluster.ctl_named("alice");
    let _ = alice.login("alice", PASSWORD).ok();
    let said = alice.by_profile().run(&["audit", "ls"]).failed(3);
    assert!(said.contains("list audit"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_is_proved_whole_by_us_and_by_ssh_keygen_and_any_change_is_found() {
    let cluster = Cluster::start(3).await;
    let auditor = auditor(&cluster);
    let file = cluster.dir().join("audit.jsonl");
    let path = file.to_str().unwrap();
    let _ = auditor.ok(&["audit", "export", "--out", path]);
    let sound = lines(&file);
    let verified = auditor.json(&["audit", "verify", path]);
    assert_eq!((&verified["sound"], &verified["first_index"]), (&true.into(), &1.into()), "{verified}");
    assert_eq!(verified["events"].as_u64().unwrap() as usize, sound.len() - 2);

    // Without the cluster, with a key that was kept; and what the cluster signed is an SSHSIG like any other.
    let key = texts(&verified["keys"])[0].to_owned();
    let kept = cluster.dir().join("audit.pub");
    fs::write(&kept, format!("{key}\n")).unwrap();
    let offline = cluster.ctl_named("offline").by_profile();
    let _ = offline.ok(&["audit", "verify", path, "--key", kept.to_str().unwrap()]);
    check_with_ssh_keygen(cluster.dir(), &key, sound.last().unwrap());

    // The log goes on; the earlier export is its beginning.
    add_user(&cluster, "alice", "access", "alice");
    let later = cluster.dir().join("later.jsonl");
    let later = later.to_str().unwrap();
    let _ = auditor.ok(&["audit", "export", "--out", later]);
    let _ = auditor.ok(&["audit", "verify", later, "--since", path]);
    let _ = auditor.run(&["audit", "verify", path, "--since", later]).failed(1);

    let tampered = cluster.dir().join("tampered.jsonl");
    let changes: [(&str, Change); 4] = [
        ("another actor", |lines| lines[2] = lines[2].replace("\"actor\":\"init\"", "\"actor\":\"user:x\"")),
        ("a gap", |lines| drop(lines.remove(3))),
        ("the end is cut off", |lines| lines.truncate(lines.len() - 2)),
        ("the last event is gone", |lines| drop(lines.remove(lines.len() - 2))),
    ];
    for (what, change) in changes {
        let mut lines = sound.clone();
        change(&mut lines);
        assert_ne!(lines, sound, "{what}");
        fs::write(&tampered, lines.join("\n") + "\n").unwrap();
        let output = auditor.run(&["audit", "verify", tampered.to_str().unwrap()]);
        assert!(output.code == 1 && output.stdout.contains("NOT SOUND"), "{what}: {output:?}");
    }
}

fn check_with_ssh_keygen(dir: &Path, key: &str, checkpoint: &str) {
    let checkpoint: Value = serde_json::from_str(checkpoint).unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let allowed = file("allowed_signers", &format!("audit namespaces=\"audit@mezite\" {key}\n"));
    let signature = file("checkpoint.sig", checkpoint["signature"].as_str().unwrap());
    let statement = file("statement", checkpoint["statement"].as_str().unwrap());
    let mut command = Command::new("ssh-keygen");
    command
        .args(["-Y", "verify", "-n", "audit@mezite", "-I", "audit", "-f"])
        .arg(allowed)
        .arg("-s")
        .arg(signature);
    let said = run_on(&mut command, fs::File::open(statement).unwrap()).ok();
    assert!(said.contains("Good \"audit@mezite\" signature"), "{said}");
}

/// What an agent tells is told by the agent that its certificate names, through the node that it asked, at the time of the
/// commit, whatever it writes into the fields; and what only the control plane does, it does not tell.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_tells_its_own_events_as_itself_and_no_others() {
    let cluster = Cluster::start(1).await;
    let agent = Agent::join(&cluster, AgentSpec::default());
    let client = agent.client(&cluster);
    let lies = [
        ("actor", "user:root-admin"),
        ("node_id", "99"),
        ("time", "1970-01-01T00:00:00Z"),
        ("request_id", "r"),
        ("client_address", "192.0.2.1"),
        ("code", "MZ1000I"),
    ];
    let event = |event: &str| v1::EmitAuditEventRequest {
        event: event.into(),
        target: "session:told-by-an-agent".into(),
        fields: lies.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
    };
    let before = clock::unix_seconds();
    call!(client, emit_audit_event, event("session.start")).unwrap();
    let events = vec!["session.start".to_owned()];
    let query = v1::QueryAuditEventsRequest { events, ..Default::default() };
    let told = call!(cluster.admin(), query_audit_events, query).unwrap().events.remove(0);
    assert_eq!(
        (told.actor, told.target.as_str()),
        (format!("agent:{}", agent.id), "session:told-by-an-agent")
    );
    assert_eq!((told.node_id, told.client_address.as_str()), (1, "127.0.0.1"));
    assert!(told.request_id != "r" && told.code != "MZ1000I", "{}, {}", told.request_id, told.code);
    let time = told.time.unwrap().seconds;
    assert!(time + 60 > i64::try_from(before).unwrap(), "{time}");
    // As what it is, a lie in a field, it is kept.
    assert_eq!(told.fields["actor"], "user:root-admin");

    let names =
        ["user.create", "user.login", "role.update", "lock.delete", "cert.user.issue", "access.denied"];
    let all = v1::QueryAuditEventsRequest { text: "session:told-by-an-agent".into(), ..Default::default() };
    for name in names.into_iter().chain(["session.revoke", "agent.join.denied", "", "session.*", "no.such"]) {
        let refused = api::refused(call!(client, emit_audit_event, event(name)), Code::InvalidArgument);
        assert_eq!(refused.violations[0].field, "event", "{name}");
    }
    assert_eq!(call!(cluster.admin(), query_audit_events, all).unwrap().events.len(), 1);

    // A user's session tells nothing, unless it is an admin's; and then it is the admin who does.
    cluster.add_user("alice", &["access"], &[]).await;
    let alice = cluster.user_at(0, &cluster.session_of("alice").await);
    api::refused(call!(alice, emit_audit_event, event("session.start")), Code::PermissionDenied);
    api::refused(
        call!(cluster.anonymous_at(0), emit_audit_event, event("session.start")),
        Code::Unauthenticated,
    );
}
