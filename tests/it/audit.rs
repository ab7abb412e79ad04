//! The audit log as an auditor reads it, exports it, and proves that it is whole.

use std::{fs, path::Path, process::Command};

use mezite_e2e::{Cluster, Ctl, PASSWORD, run_on};
use serde_json::Value;

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
