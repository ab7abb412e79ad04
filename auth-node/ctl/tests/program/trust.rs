//! How the profile follows its cluster's CAs.

use std::{
    fs::{self, File},
    time::{Duration, SystemTime},
};

use mezite_client::testing::dead_address as dead;
use mezite_daemon::clock;
use mezite_proto::v1;
use prost::Message as _;
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
    let profile = File::options().write(true).open(cluster.path(".mezite/profile.json")).unwrap();
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
    // A command that failed has not shown that the cluster is there.
    age(&cluster, 2);
    cluster.run(&["tokens", "ls"]).fails(3);
    assert_eq!(asked(&cluster), at_login + 2);
}

#[test]
fn another_address_or_a_pin_is_another_cluster() {
    let cluster = logged_in();
    let address = cluster.server.address();
    let elsewhere = format!("{},{address}", dead());
    let before = fs::read(cluster.path(".mezite/profile.json")).unwrap();
    for (options, looks) in [(["--addr", &elsewhere], false), (["--addr", &address], true)] {
        age(&cluster, 2);
        let at_first = asked(&cluster);
        cluster.run(&[&["nodes", "ls"][..], &options].concat()).ok();
        assert_eq!(asked(&cluster) > at_first, looks, "{options:?}");
    }
    // The pin is asked for once, to know the cluster; the profile is not looked after.
    age(&cluster, 2);
    let at_first = asked(&cluster);
    cluster.first(&["nodes", "ls"]).ok();
    assert_eq!(asked(&cluster), at_first + 1);
    assert_eq!(fs::read(cluster.path(".mezite/profile.json")).unwrap(), before);
}

#[test]
fn a_profile_that_cannot_be_written_fails_no_command() {
    let cluster = logged_in();
    let lock = cluster.path(".mezite/profile.lock");
    fs::remove_file(&lock).unwrap();
    fs::create_dir(&lock).unwrap();
    age(&cluster, 2);
    let at_first = asked(&cluster);
    cluster.run(&["nodes", "ls"]).ok();
    assert_eq!(asked(&cluster), at_first + 1);
}
