//! The commands of `deploy/runbook.md`, run as they stand there: each marked story in one shell, on a cluster of its own.

use std::{collections::BTreeMap, fs, os::unix::fs::symlink, process::Command};

use mezite_e2e::{Cluster, binary, run, secret_file, tools};

/// The stories, and a test for each.
macro_rules! stories {
    ($($test:ident: $name:literal,)*) => {
        const STORIES: &[&str] = &[$($name),*];
        $(#[tokio::test]
        async fn $test() {
            tell($name).await;
        })*
    };
}

stories! {
    look: "look",
    bootstrap: "bootstrap",
    add_a_node: "add-node",
    back_up_and_rehearse_a_restore: "backup",
    rotate_user: "rotate-user",
    rotate_host: "rotate-host",
    rotate_tls: "rotate-tls",
    rotate_peer: "rotate-peer",
    rotate_spiffe: "rotate-spiffe",
    rotate_audit: "rotate-audit",
    rotate_back: "rotate-back",
    scale_ingest: "ingest",
    theft_of_a_users_key: "theft-user",
    theft_of_a_hosts_key: "theft-host",
    theft_of_a_join_token: "theft-token",
    theft_of_an_auth_nodes_token: "theft-auth-token",
    theft_of_an_auth_node: "theft-auth-node",
    verify_the_audit_log: "audit",
}

#[test]
fn each_story_of_the_runbook_is_told() {
    let (blocks, mut told) = (blocks(), STORIES.to_vec());
    told.sort_unstable();
    assert_eq!(blocks.keys().map(String::as_str).collect::<Vec<_>>(), told);
}

/// The marked blocks of each story, in order.
fn blocks() -> BTreeMap<String, String> {
    let runbook = fs::read_to_string(tools::repository().join("deploy/runbook.md")).unwrap();
    let mut stories = BTreeMap::<_, String>::new();
    for block in runbook.split("\n```sh test=").skip(1) {
        let (name, rest) = block.split_once('\n').unwrap();
        let (commands, _) = rest.split_once("\n```").unwrap();
        let story = stories.entry(name.to_owned()).or_default();
        story.push_str(commands);
        story.push('\n');
    }
    stories
}

/// Runs a story to its end.
async fn tell(name: &str) {
    let commands = blocks().remove(name).unwrap();
    let cluster = Cluster::start(3).await;
    let (data, bin) = (cluster.dir().join("data"), cluster.dir().join("bin"));
    fs::create_dir(&data).unwrap();
    fs::create_dir(&bin).unwrap();
    for program in ["auth-node", "recording-ingest", "mezctl"] {
        symlink(binary(program), bin.join(program)).unwrap();
    }
    let kek = fs::read_to_string(cluster.nodes()[0].data_dir().join("kek")).unwrap();
    secret_file(&data.join("kek"), &kek);
    let said = run(Command::new("sh")
        .args(["-eu", "-c", &commands])
        .current_dir(&data)
        .env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", bin.display()))
        .env("MEZITE_HOME", cluster.ctl().home())
        .env("DATA", &data)
        .env("ADDR", cluster.addresses().join(","))
        .env("PIN", cluster.ca_pin()));
    eprintln!("{}", said.stdout);
    let _ = said.ok();
}
