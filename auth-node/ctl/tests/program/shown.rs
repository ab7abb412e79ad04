//! How what is shown comes to a terminal, a pipe and a page: again and again, in its width, with its colours.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::Stdio,
};

use mezite_client::testing::Call;
use mezite_proto::v1;
use prost::Message as _;
use tonic::Status;

use crate::cluster::Cluster;

fn users(call: &Call) -> Result<Vec<u8>, Status> {
    match call.method.as_str() {
        "ListUsers" => {
            let user = v1::User { name: "alice".into(), ..Default::default() };
            Ok(v1::ListUsersResponse { users: vec![user], ..Default::default() }.encode_to_vec())
        }
        _ => Err(Status::permission_denied("not for you")),
    }
}

/// So many lines of what is printed, after which it is ended.
fn lines(cluster: &Cluster, arguments: &[&str], count: usize) -> Vec<String> {
    let mut command = cluster.command(arguments);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let read = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok).take(count);
    let lines = read.collect();
    let _ = child.kill();
    let _ = child.wait();
    lines
}

#[test]
fn what_is_watched_is_one_document_after_the_other() {
    let cluster = Cluster::answering(users);
    cluster.log_in();
    let json = lines(&cluster, &["users", "ls", "--watch", "1", "-o", "json"], 60).join("\n");
    let documents: Vec<serde_json::Value> =
        serde_json::Deserializer::from_str(&json).into_iter().map_while(Result::ok).collect();
    assert!(documents.len() >= 2 && documents.iter().all(|list| list[0]["name"] == "alice"), "{json}");
    let yaml = lines(&cluster, &["users", "ls", "--watch", "1", "-o", "yaml"], 40);
    let begun = yaml.iter().filter(|line| *line == "---").count();
    assert!(yaml[0] == "---" && begun >= 2, "{yaml:?}");
    let text = lines(&cluster, &["users", "ls", "--watch", "1"], 5);
    assert!(text[0].starts_with("NAME") && text[2].is_empty() && text[3].starts_with("NAME"), "{text:?}");
}

#[test]
fn what_is_watched_ends_by_what_will_not_pass() {
    let cluster = Cluster::start();
    cluster.log_in();
    assert!(cluster.run(&["users", "ls", "--watch"]).fails(3).contains("not for you"));
    assert!(cluster.run(&["login", "--watch"]).fails(2).contains("--watch"));
}

#[test]
fn a_cluster_that_is_away_is_told_and_watched_on() {
    let mut cluster = Cluster::answering(users);
    cluster.log_in();
    cluster.server.kill();
    let arguments = ["users", "ls", "--watch", "1", "--timeout", "1s"];
    let mut child = cluster.command(&arguments).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let told: Vec<_> =
        BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok).take(2).collect();
    let _ = child.kill();
    let _ = child.wait();
    assert!(told.iter().all(|line| line.starts_with("error: ")) && told.len() == 2, "{told:?}");
}

#[test]
fn nobody_need_read_what_is_printed_or_said() {
    let cluster = Cluster::answering(users);
    let closed = || std::io::pipe().unwrap().1;
    let code = |arguments: &[&str]| {
        cluster.command(arguments).stdout(closed()).stderr(closed()).status().unwrap().code()
    };
    assert_eq!(code(&["users", "ls"]), Some(3));
    cluster.log_in();
    for arguments in
        [&["users", "ls"][..], &["users", "ls", "--watch", "1"], &["completion", "bash"], &["--help"]]
    {
        assert_eq!(code(arguments), Some(0), "{arguments:?}");
    }
}

#[test]
fn manual_pages_are_written() {
    let cluster = Cluster::start();
    cluster.run(&["man", "--out", "share/man1"]).ok();
    let page = fs::read_to_string(cluster.path("share/man1/mezctl-nodes-ls.1")).unwrap();
    assert!(page.contains("watch") && cluster.path("share/man1/mezctl.1").exists(), "{page}");
}
