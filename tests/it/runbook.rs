//! The commands of `deploy/runbook.md`, run as they stand there: each marked story in one shell, on a cluster of its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::symlink,
    process::Command,
};

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
    let (stories, mut told) = (stories(), STORIES.to_vec());
    told.sort_unstable();
    assert_eq!(stories.keys().map(String::as_str).collect::<Vec<_>>(), told);
}

/// What the runbook has of a story.
#[derive(Debug, Default)]
struct Story {
    /// Its marked blocks, in order.
    commands: String,
    /// What is printed, as the blocks that follow them at once have it: names of what there is, and of columns. Values differ.
    printed: BTreeSet<String>,
}

fn stories() -> BTreeMap<String, Story> {
    let runbook = fs::read_to_string(tools::repository().join("deploy/runbook.md")).unwrap();
    let mut stories = BTreeMap::<_, Story>::new();
    for block in runbook.split("\n```sh test=").skip(1) {
        let (name, rest) = block.split_once('\n').unwrap();
        let (commands, after) = rest.split_once("\n```").unwrap();
        let story = stories.entry(name.to_owned()).or_default();
        story.commands.push_str(commands);
        story.commands.push('\n');
        if let Some(text) = after.strip_prefix("\n```text\n") {
            let (text, _) = text.split_once("\n```").unwrap();
            story.printed.extend(text.lines().flat_map(names));
        }
    }
    stories
}

/// The columns of a table's heading, or the name that a line begins with.
fn names(line: &str) -> Vec<String> {
    let parts: Vec<_> = line.split("  ").map(str::trim).filter(|part| !part.is_empty()).collect();
    let is_heading = |part: &&str| part.chars().all(|c| c.is_ascii_uppercase() || c == ' ');
    let is_name = |part: &&str| part.chars().all(|c| c.is_ascii_lowercase() || " :".contains(c));
    match parts.iter().all(is_heading) {
        true => parts.into_iter().map(str::to_owned).collect(),
        false if parts.len() > 1 => parts.into_iter().take(1).filter(is_name).map(str::to_owned).collect(),
        false => Vec::new(),
    }
}

#[test]
fn names_are_told_from_values() {
    assert_eq!(names("NODE  ROLE    MOVES ON"), ["NODE", "ROLE", "MOVES ON"]);
    assert_eq!(names("cluster id: 376c5652-9f17  (new)"), [""; 0]);
    assert_eq!(names("ca pin:      sha256:27fd"), ["ca pin:"]);
    assert_eq!(names("1     leader  0    ready"), [""; 0]);
    assert_eq!(names("error: user alice is locked"), [""; 0]);
}

/// Runs a story to its end.
async fn tell(name: &str) {
    let Story { commands, printed } = stories().remove(name).unwrap();
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
    let shown = said.ok();
    let missing: Vec<_> = printed.iter().filter(|name| !shown.contains(*name)).collect();
    assert!(missing.is_empty(), "the runbook shows what is not printed: {missing:?}");
}
