//! How the profile follows its cluster's CAs.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    time::{Duration, SystemTime},
};

use mezite_client::testing::{TestCa, dead_address as dead};
use mezite_daemon::clock;
use mezite_proto::v1;
use prost::Message as _;
use serde_json::Value;
use tonic::Status;

use crate::cluster::Cluster;

/// A cluster without nodes, with alice logged in.
fn logged_in() -> Cluster {
    let cluster = Cluster::answering(|call| match call.method.as_str() {
        "ListNodes" => Ok(v1::ListNodesResponse::default().encode_to_vec()),
        _ => Err(Status::permission_denied("not for you")),
    });
    cluster.log_in();
    cluster
}

/// Makes the profile so old.
fn age(cluster: &Cluster, hours: u64) {
    let profile = File::options().write(true).open(cluster.path(".config/mezite/profile.json")).unwrap();
    let then = clock::unix_seconds() - hours * 3600;
    profile.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(then)).unwrap();
}

/// How often the CAs were asked for.
fn asked(cluster: &Cluster) -> usize {
    cluster.server.calls().iter().filter(|call| call.method == "GetTrustBundle").count()
}

#[test]
fn any_command_looks_at_the_cas_now_and_then() {
    let cluster = logged_in();
    let at_login = asked(&cluster);
    let nodes = ["nodes", "ls"];
    cluster.run(&nodes).ok();
    assert_eq!(asked(&cluster), at_login, "they were looked at just now");
    age(&cluster, 2);
    cluster.run(&nodes).ok();
    assert_eq!(asked(&cluster), at_login + 1);
    cluster.run(&nodes).ok();
    assert_eq!(asked(&cluster), at_login + 1, "and are not for an hour");
    age(&cluster, 2);
    cluster.run(&["status"]).ok();
    assert_eq!(asked(&cluster), at_login + 2);
    // Also with one that it refuses: it has answered.
    age(&cluster, 2);
    cluster.run(&["tokens", "ls"]).fails(3);
    assert_eq!(asked(&cluster), at_login + 3);
    // What fails before it is asked anything has not shown that it is there.
    age(&cluster, 2);
    fs::write(cluster.path("role.yaml"), "kind: rule\n").unwrap();
    cluster.run(&["roles", "create", "role.yaml"]).fails(2);
    assert_eq!(asked(&cluster), at_login + 3);
}

/// How many TLS CAs the profile has.
fn known(cluster: &Cluster) -> usize {
    let profile = fs::read_to_string(cluster.path(".config/mezite/profile.json")).unwrap();
    profile.matches("BEGIN CERTIFICATE").count()
}

#[test]
fn the_profiles_cluster_is_followed_by_whatever_address_and_pin_it_is_named() {
    for name in ["--addr", "MEZITE_ADDR", "--ca-pin", "MEZITE_CA_PIN"] {
        let cluster = logged_in();
        let value = match name {
            "--addr" | "MEZITE_ADDR" => format!("{},{}", dead(), cluster.server.address()),
            _ => cluster.first_contact()[3].clone(),
        };
        let nodes = || match name.starts_with('-') {
            true => cluster.run(&["nodes", "ls", name, &value]).ok(),
            false => cluster.run_with(&["nodes", "ls"], &BTreeMap::from([(name, value.clone())])).ok(),
        };
        cluster.rotate(&TestCa::new(), false, v1::RotationPhase::Init);
        nodes();
        assert_eq!(known(&cluster), 1, "{name}: they were looked at just now");
        age(&cluster, 2);
        nodes();
        assert_eq!(known(&cluster), 2, "{name}");
        let at_first = asked(&cluster);
        nodes();
        assert_eq!(asked(&cluster), at_first, "{name}: and are not for an hour");
    }
}

/// A copy of a cluster that was restored elsewhere has its name and its CAs, and none of its sessions.
#[test]
fn what_does_not_know_the_session_is_another_cluster() {
    let cluster = Cluster::answering(|call| match call.method.as_str() {
        "ListNodes" => Ok(v1::ListNodesResponse::default().encode_to_vec()),
        _ => Err(Status::unauthenticated("no such session")),
    });
    cluster.log_in();
    cluster.rotate(&TestCa::new(), false, v1::RotationPhase::Init);
    let elsewhere = format!("{},{}", dead(), cluster.server.address());
    age(&cluster, 2);
    for command in [&["nodes", "ls"][..], &["status"]] {
        cluster.run(&[command, &["--addr", &elsewhere]].concat()).ok();
    }
    cluster.run(&["tokens", "ls", "--addr", &elsewhere]).fails(3);
    assert_eq!(known(&cluster), 1);
    // At its own addresses it is the cluster that it was.
    cluster.run(&["tokens", "ls"]).fails(3);
    assert_eq!(known(&cluster), 2);
}

/// One that is named by a pin has another CA, and the profile is not touched.
#[test]
fn a_pin_that_the_profile_does_not_know_is_said_to_override_it() {
    let (cluster, other) = (logged_in(), Cluster::start());
    let before = fs::read(cluster.path(".config/mezite/profile.json")).unwrap();
    let [_, there, _, pin] = other.first_contact();
    let said = cluster.run(&["nodes", "ls", "--ca-pin", &pin]).fails(1);
    assert!(said.contains("hint: --ca-pin overrides the profile: leave it out"), "{said}");
    let variable = BTreeMap::from([("MEZITE_CA_PIN", pin.clone())]);
    let said = cluster.run_with(&["nodes", "ls"], &variable).fails(1);
    assert!(said.contains("hint: MEZITE_CA_PIN overrides the profile: unset it"), "{said}");
    age(&cluster, 2);
    let said = cluster.run_with(&["nodes", "ls", "--addr", &there], &variable).fails(3);
    assert!(said.contains("not logged in") && said.contains("MEZITE_CA_PIN overrides"), "{said}");
    cluster.run_with(&["status", "--addr", &there], &variable).ok();
    assert_eq!(fs::read(cluster.path(".config/mezite/profile.json")).unwrap(), before);
}

#[test]
fn others_are_told_the_pin_of_the_ca_that_servers_are_known_by_now() {
    let cluster = Cluster::answering(|call| match call.method.as_str() {
        "CreateUser" => {
            let user = call.request::<v1::CreateUserRequest>().user;
            let invite_secret = "s3cret".into();
            Ok(v1::CreateUserResponse { user, invite_secret, ..Default::default() }.encode_to_vec())
        }
        "ResetUserPassword" => {
            let invite_secret = "s3cret".into();
            Ok(v1::ResetUserPasswordResponse { invite_secret, ..Default::default() }.encode_to_vec())
        }
        _ => Err(Status::permission_denied("not for you")),
    });
    // The profile is of a time when the other one was it.
    let other = TestCa::new();
    cluster.rotate(&other, true, v1::RotationPhase::UpdateClients);
    cluster.log_in();
    let json = |line: &[&str]| -> Value {
        serde_json::from_str(&cluster.run(&[line, &["-o", "json"]].concat()).ok()).unwrap()
    };
    cluster.rotate(&other, false, v1::RotationPhase::UpdateServers);
    let (own, other_pin) = (cluster.first_contact()[3].clone(), other.pin().to_string());
    for line in [["users", "add", "bob"], ["users", "reset", "bob"]] {
        let invite = json(&line)["invite"].clone();
        let command = invite["command"].as_str().unwrap();
        assert!(
            command.ends_with(&format!("--addr {} --ca-pin {own}", cluster.server.address())),
            "{command}"
        );
    }
    let status = json(&["status"]);
    assert_eq!(status["ca_pin"], own);
    assert_eq!(status["ca_pins"], serde_json::json!([own, other_pin]));
    for (phase, role) in [
        (v1::RotationPhase::UpdateServers, "on its way out"),
        (v1::RotationPhase::Rollback, "on its way out"),
        (v1::RotationPhase::Init, "next in the rotation"),
        (v1::RotationPhase::UpdateClients, "next in the rotation"),
    ] {
        cluster.rotate(&other, false, phase);
        let text = cluster.run(&["status"]).ok();
        let line =
            |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
        assert_eq!(line("ca pin:"), own);
        assert_eq!(line("also trusted:"), format!("{other_pin} ({role})"));
    }
}

#[test]
fn a_profile_that_cannot_be_written_fails_no_command() {
    let cluster = logged_in();
    let lock = cluster.path(".config/mezite/profile.lock");
    fs::remove_file(&lock).unwrap();
    fs::create_dir(&lock).unwrap();
    age(&cluster, 2);
    let at_first = asked(&cluster);
    cluster.run(&["nodes", "ls"]).ok();
    assert_eq!(asked(&cluster), at_first + 1);
}
