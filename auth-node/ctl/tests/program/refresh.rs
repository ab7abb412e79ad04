//! `certs refresh`, as ssh runs it: many at a time, also while the cluster is away.

use std::{
    fs,
    process::Stdio,
    time::{Duration, Instant},
};

use mezite_daemon::clock;

use crate::cluster::Cluster;

const REFRESH: [&str; 4] = ["certs", "refresh", "--timeout", "2s"];

/// So many at a time; their exit codes, and how long all of them took.
fn together(cluster: &Cluster, count: usize) -> (Vec<Option<i32>>, Duration) {
    let begun = Instant::now();
    let start = || cluster.command(&REFRESH).stderr(Stdio::null()).spawn().unwrap();
    let children: Vec<_> = (0..count).map(|_| start()).collect();
    let codes = children.into_iter().map(|mut child| child.wait().unwrap().code()).collect();
    (codes, begun.elapsed())
}

fn issued(cluster: &Cluster) -> usize {
    cluster.calls().iter().filter(|method| *method == "IssueUserCerts").count()
}

#[test]
fn many_at_a_time_get_one_certificate() {
    let cluster = Cluster::start();
    cluster.log_in();
    assert_eq!(together(&cluster, 8).0, [Some(0); 8]);
    assert_eq!(issued(&cluster), 1);
    let folder = cluster.path(".config/mezite/ssh");
    assert!(fs::read_dir(folder).unwrap().all(|entry| !entry.unwrap().path().ends_with(".tmp")));
}

#[test]
fn none_of_many_waits_longer_than_one_for_a_cluster_that_is_away() {
    let mut cluster = Cluster::start();
    cluster.log_in();
    cluster.server.kill();
    let (codes, took) = together(&cluster, 6);
    assert!(codes.iter().all(|code| *code != Some(0)), "{codes:?}");
    assert!(took < Duration::from_secs(8), "{took:?}");
}

#[test]
fn who_has_a_certificate_that_is_good_waits_for_nobody() {
    let cluster = Cluster::start();
    cluster.log_in();
    cluster.run(&REFRESH).ok();
    let folder = cluster.path(".config/mezite/ssh");
    let key = fs::read_to_string(folder.join("key.pub")).unwrap();
    let now = clock::unix_seconds();
    let ends_soon =
        cluster.authorities.user_certificate(key.trim(), vec!["alice".into()], (now - 600, now + 60));
    fs::write(folder.join("key-cert.pub"), format!("{ends_soon}\n")).unwrap();
    let lock = fs::File::options().write(true).open(folder.join("lock")).unwrap();
    lock.lock().unwrap();
    assert_eq!(cluster.run(&REFRESH).ok(), "");
    // Who has none does, for a while.
    fs::remove_file(folder.join("key-cert.pub")).unwrap();
    assert!(cluster.run(&REFRESH).fails(5).contains("renewing the certificate for ssh"));
    drop(lock);
    cluster.run(&REFRESH).ok();
    assert_eq!(issued(&cluster), 2);
}
