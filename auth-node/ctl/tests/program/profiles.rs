//! Profiles: where they are, which one a command works with, and what became of the one of an older release.

use std::{collections::BTreeMap, fs};

use serde_json::Value;

use crate::cluster::{Cluster, Ran};

/// Logs a user in, in this profile.
fn log_in(cluster: &Cluster, profile: &str) -> Ran {
    cluster.first(&["login", "--user", "alice", "--password-file", "password", "--profile", profile])
}

fn listed(cluster: &Cluster) -> Vec<(String, bool)> {
    let listed: Value = serde_json::from_str(&cluster.run(&["profiles", "ls", "-o", "json"]).ok()).unwrap();
    let of = |view: &Value| (view["name"].as_str().unwrap().to_owned(), view["current"] == true);
    listed.as_array().unwrap().iter().map(of).collect()
}

#[test]
fn a_command_works_with_the_profile_that_is_named_or_in_use() {
    let cluster = Cluster::start();
    log_in(&cluster, "work").ok();
    assert_eq!(listed(&cluster), [("work".to_owned(), false)]);
    let who = |arguments: &[&str]| {
        let status = cluster.run(&[&["status", "-o", "json"], arguments].concat());
        status
            .code
            .filter(|code| *code == 0)
            .map(|_| serde_json::from_str::<Value>(&status.stdout).unwrap()["login"]["user"].clone())
    };
    assert_eq!(who(&[]), None, "nothing is known of a cluster");
    assert_eq!(who(&["--profile", "work"]), Some("alice".into()));
    let variable = BTreeMap::from([("MEZITE_PROFILE", "work".to_owned())]);
    cluster.run_with(&["status"], &variable).ok();
    assert!(cluster.run(&["profiles", "use", "work"]).ok().contains("work"));
    assert_eq!(who(&[]), Some("alice".into()));
    assert_eq!(listed(&cluster), [("work".to_owned(), true)]);
    let nothing = BTreeMap::from([("MEZITE_PROFILE", String::new())]);
    cluster.run_with(&["status"], &nothing).ok();
}

#[test]
fn a_profile_that_is_not_there_is_told_with_what_makes_it() {
    let cluster = Cluster::start();
    cluster.log_in();
    let said = cluster.run(&["nodes", "ls", "--profile", "wrok"]).fails(3);
    assert!(
        said.contains("no profile `wrok`") && said.contains("`mezctl --profile wrok login --addr"),
        "{said}"
    );
    assert!(cluster.run(&["profiles", "use", "wrok"]).fails(4).contains("mezctl profiles ls"));
    assert!(cluster.run(&["profiles", "use", "../wrok"]).fails(2).contains("cannot be the name"));
}

#[test]
fn a_profile_is_removed_when_nobody_is_logged_in() {
    let cluster = Cluster::start();
    log_in(&cluster, "work").ok();
    cluster.log_in();
    cluster.run(&["profiles", "use", "work"]).ok();
    assert!(cluster.run(&["profiles", "rm", "work"]).fails(7).contains("logout"));
    cluster.run(&["profiles", "rm", "work", "--force"]).ok();
    assert_eq!(listed(&cluster), [("default".to_owned(), true)]);
    assert!(!cluster.path(".config/mezite/profiles/work").exists());
    cluster.run(&["profiles", "rm", "work"]).fails(4);
}

#[test]
fn the_profile_of_an_older_release_is_found() {
    let cluster = Cluster::start();
    cluster.log_in();
    fs::rename(cluster.path(".config/mezite"), cluster.path(".mezite")).unwrap();
    cluster.run(&["status"]).ok();
    assert!(cluster.path(".config/mezite/profile.json").exists() && !cluster.path(".mezite").exists());
    let elsewhere = BTreeMap::from([("XDG_CONFIG_HOME", cluster.path("xdg").display().to_string())]);
    let contact = cluster.first_contact();
    let login = ["login", "--user", "alice", "--password-file", "password"];
    let login: Vec<&str> = login.into_iter().chain(contact.iter().map(String::as_str)).collect();
    cluster.run_with(&login, &elsewhere).ok();
    assert!(cluster.path("xdg/mezite/profile.json").exists());
}
