//! Where a host records, through the program: what turns it on and off, what holds it, and what is said where there is none.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::Stdio,
};

use mezite_client::testing::TestCa;
use mezite_proto::v1;
use prost::Message as _;
use tonic::Status;

use crate::cluster::Cluster;

const JOIN: [&str; 7] =
    ["agent", "join", "--out", "agent", "--token-file", "token", "--hostname=web1.example.org"];
const ENTRY: &str = "0190a1b2-0000-4000-8000-000000000001";

/// A cluster that is strict, in which a host has joined.
fn joined(more: &[&str]) -> Cluster {
    let cluster = Cluster::answering(|call| match call.method.as_str() {
        "AgentHeartbeat" => Ok(v1::AgentHeartbeatResponse {
            next_interval: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
            trust_bundle_revision: 1,
            recording_mode: v1::RecordingMode::Strict.into(),
            ..Default::default()
        }
        .encode_to_vec()),
        "DeregisterAgent" => Ok(Vec::new()),
        _ => Err(Status::permission_denied("not for you")),
    });
    cluster.first(&[&JOIN, more].concat()).ok();
    cluster
}

fn snippet(cluster: &Cluster) -> String {
    fs::read_to_string(cluster.path("agent/sshd_config")).unwrap()
}

/// A session that was not sent.
fn leave_one(cluster: &Cluster) -> PathBuf {
    let entry = cluster.path("spool/sessions").join(ENTRY);
    fs::create_dir_all(&entry).unwrap();
    entry
}

#[test]
fn recording_is_turned_on_moved_and_turned_off_and_what_is_left_behind_is_told() {
    let cluster = joined(&[]);
    assert!(!snippet(&cluster).contains("ForceCommand"));
    let again = |more: &[&str]| cluster.run(&[&["agent", "join", "--out", "agent"], more].concat());
    again(&["--spool", "spool"]).ok();
    let socket = format!("--socket {}\n", cluster.path("spool/record.sock").display());
    assert!(snippet(&cluster).contains(&socket));
    leave_one(&cluster);
    // It stays as it is when nothing is said of it.
    again(&[]).ok();
    assert!(snippet(&cluster).contains(&socket));

    let moved = again(&["--spool", "other"]);
    let left = format!("{} holds 1 session and 0 events", cluster.path("spool").display());
    assert!(moved.code == Some(0) && moved.stderr.contains(&left), "{moved:?}");
    assert!(snippet(&cluster).contains("other/record.sock"));
    // The other one is empty.
    again(&["--spool", "spool"]).ok();
    let off = again(&["--no-spool"]);
    assert!(off.code == Some(0) && off.stderr.contains(&left), "{off:?}");
    assert!(!snippet(&cluster).contains("ForceCommand"));
    assert!(again(&["--no-spool", "--spool", "spool"]).fails(2).contains("cannot be used with"));
}

#[test]
fn a_service_is_not_given_another_spool_than_sshd_was() {
    let cluster = joined(&["--spool", "spool"]);
    let said = cluster.run(&["agent", "run", "--dir", "agent", "--spool", "other"]).fails(2);
    assert!(said.contains("agent join --out") && said.contains("--spool other"), "{said}");
    let cluster = joined(&[]);
    let said = cluster.run(&["agent", "run", "--dir", "agent", "--spool", "spool"]).fails(2);
    assert!(said.contains("sshd was not told"), "{said}");
    assert!(!cluster.path("spool").exists());
}

#[test]
fn a_host_with_something_left_to_send_leaves_when_it_is_forced_to_and_keeps_it() {
    for local in [&[][..], &["--local"]] {
        let cluster = joined(&["--spool", "spool"]);
        let entry = leave_one(&cluster);
        let leave =
            |more: &[&str]| cluster.run(&[&["agent", "leave", "--dir", "agent"], local, more].concat());
        let before = cluster.calls();
        let said = leave(&[]).fails(1);
        assert!(said.contains("1 session and 0 events") && said.contains("--force"), "{said}");
        assert_eq!(cluster.calls(), before, "nobody was told");
        assert!(cluster.path("agent/tls.key").exists());
        let spool = cluster.path("spool");
        assert!(leave(&["--force"]).ok().contains(&format!("--spool {}", spool.display())));
        assert!(entry.exists() && !cluster.path("agent/tls.key").exists());
    }
}

#[test]
fn a_certificate_that_has_ended_is_replaced_with_the_same_spool() {
    let cluster = joined(&["--spool", "spool"]);
    let ended = TestCa::new().issue(None, &["web1.example.org"], (1_600_000_000, 1_600_000_001));
    fs::write(cluster.path("agent/tls.crt"), ended.certificate).unwrap();
    let said = cluster.run(&["agent", "heartbeat", "--dir", "agent"]).fails(3);
    let spool = cluster.path("spool");
    assert!(said.contains(&format!("--spool {}", spool.display())), "{said}");
}

#[test]
fn a_service_says_that_a_strict_cluster_gets_nothing_from_its_host() {
    let cluster = joined(&[]);
    let log = |format: &str| {
        let mut run = cluster.command(&["agent", "run", "--dir", "agent", "--format", format]);
        let mut service = run.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(service.stderr.take().unwrap()).lines();
        let said = lines.map(Result::unwrap).find(|line| line.contains("recording mode strict"));
        service.kill().unwrap();
        service.wait().unwrap();
        said.unwrap()
    };
    let said = log("text");
    assert!(said.contains(" WARN ") && said.contains("agent join --out"), "{said}");
    let said: serde_json::Value = serde_json::from_str(&log("json")).unwrap();
    assert!(said["level"] == "WARN" && said["timestamp"].is_string(), "{said}");
    assert!(said["fields"]["message"].as_str().unwrap().contains("agent join --out"), "{said}");
}
