//! The commands of `deploy/runbook.md`, run as they stand there: each marked story in one shell, on a cluster of its own, which some
//! begin without all of its nodes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::Write as _,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::PathBuf,
    process::Command,
    time::Duration,
};

use mezite_e2e::{ADMIN, Cluster, Output, PASSWORD, Setup, binary, run, secret_file, tools};
use tokio::{task::spawn_blocking, time::sleep};

/// Those that begin with all nodes and leave them as they are, and a test for each.
macro_rules! stories {
    ($($test:ident: $name:literal,)*) => {
        const STORIES: &[&str] = &[$($name),*];
        $(#[tokio::test]
        async fn $test() {
            Stage::set().await.tell($name);
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

/// Those with a test of their own below, which makes what they begin with and looks at what they leave.
const WITH_A_TEST_OF_THEIR_OWN: &[&str] =
    &["remove-node", "lose-node", "lose-majority", "upgrade", "database-full"];

#[test]
fn each_story_of_the_runbook_is_told() {
    let (stories, mut told) = (stories(), [STORIES, WITH_A_TEST_OF_THEIR_OWN].concat());
    told.sort_unstable();
    assert_eq!(stories.keys().map(String::as_str).collect::<Vec<_>>(), told);
}

#[tokio::test]
async fn remove_a_node() {
    let mut stage = Stage::set().await;
    assert_eq!(stage.cluster.id(2), 3);
    stage.tell("remove-node");
    let removed = stage.cluster.node(2);
    assert_eq!(removed.ended().await.code(), Some(78));
    said(&removed.log(), "node 3 was removed from cluster");
}

#[tokio::test]
async fn lose_one_node() {
    let mut stage = Stage::set().await;
    assert_eq!(stage.cluster.id(2), 3);
    let lost = stage.cluster.node(2);
    lost.kill();
    fs::remove_dir_all(lost.data_dir().join("store")).unwrap();
    lost.start();
    assert!(!lost.ended().await.success());
    said(&lost.log(), "is gone. A node must not come back without what it has promised: remove node 3");
    stage.tell("lose-node");
}

#[tokio::test]
async fn lose_a_majority() {
    let mut stage = Stage::set().await;
    for index in [1, 2] {
        stage.cluster.node(index).kill();
    }
    assert_eq!(stage.cluster.node(0).stop().await.code(), Some(0));
    stage.tell("lose-majority");
    let left = stage.cluster.node(0);
    left.start();
    left.ready().await;
    let ctl = stage.cluster.ctl();
    let _ = ctl.login(ADMIN, PASSWORD).ok();
    let members = ctl.json(&["cluster", "ls"]);
    assert_eq!(members.as_array().map(Vec::len), Some(1), "{members}");
    said(&ctl.ok(&["audit", "ls", "--event", "cluster.recover"]), "cluster.recover");
}

/// Stands for systemd's: the test restarts the node, and it ends when that is ready, as its unit has it.
const SYSTEMCTL: &str = "#!/bin/sh\n[ \"$*\" = 'restart auth-node' ] || exit 1\n\
                         touch \"$DATA/restart\"; while [ -e \"$DATA/restart\" ]; do sleep 0.1; done\n";

/// Node by node, the leader last. The new program is the same as the one before, at the place of the one that is installed.
#[tokio::test(flavor = "multi_thread")]
async fn upgrade() {
    let mut stage = Stage::set().await;
    let bin = stage.cluster.dir().join("bin");
    symlink(binary("auth-node"), stage.data.join("auth-node")).unwrap();
    fs::write(bin.join("systemctl"), SYSTEMCTL).unwrap();
    fs::set_permissions(bin.join("systemctl"), fs::Permissions::from_mode(0o755)).unwrap();
    let leader = stage.cluster.leader().await;
    let asked = stage.data.join("restart");
    for index in [0, 1, 2].into_iter().filter(|index| *index != leader).chain([leader]) {
        let (blocks, mut command) = stage.command("upgrade", index);
        let telling = spawn_blocking(move || run(&mut command));
        let mut restarts = 0;
        while !telling.is_finished() {
            if asked.exists() {
                let node = stage.cluster.node(index);
                assert_eq!(node.stop().await.code(), Some(0), "{}", node.log());
                node.exchange(Some(&bin));
                node.start();
                node.ready().await;
                restarts += 1;
                fs::remove_file(&asked).unwrap();
            }
            sleep(Duration::from_millis(50)).await;
        }
        as_shown(&blocks, telling.await.unwrap());
        assert_eq!(restarts, 1);
    }
    assert!(!bin.join("auth-node").is_symlink());
}

#[tokio::test]
async fn the_database_is_over_its_bound() {
    let mut stage = Stage::set().await;
    for index in 0..3 {
        let node = stage.cluster.node(index);
        let mut config = File::options().append(true).open(node.config()).unwrap();
        config.write_all(b"raft.max_database_bytes = 10000\n").unwrap();
        assert_eq!(node.stop().await.code(), Some(0));
        node.start();
        node.ready().await;
    }
    stage.tell("database-full");
}

#[track_caller]
fn said(log: &str, what: &str) {
    assert!(log.contains(what), "{log}");
}

/// A marked block of the runbook.
#[derive(Debug)]
struct Block {
    commands: String,
    /// What of the text that follows it at once is printed by it each time.
    printed: BTreeSet<String>,
}

/// The blocks of each story, in order.
fn stories() -> BTreeMap<String, Vec<Block>> {
    let runbook = fs::read_to_string(tools::repository().join("deploy/runbook.md")).unwrap();
    let mut stories = BTreeMap::<_, Vec<Block>>::new();
    for block in runbook.split("\n```sh test=").skip(1) {
        let (name, rest) = block.split_once('\n').unwrap();
        let (commands, after) = rest.split_once("\n```").unwrap();
        let text = after.strip_prefix("\n```text\n").and_then(|text| text.split_once("\n```"));
        let printed = text.map(|(text, _)| constants(text)).unwrap_or_default();
        stories.entry(name.to_owned()).or_default().push(Block { commands: commands.to_owned(), printed });
    }
    stories
}

/// What of a text is the same each time.
fn constants(text: &str) -> BTreeSet<String> {
    text.lines().flat_map(constants_of_line).collect()
}

/// The columns of a table's heading, the name that a line begins with, or the words of a sentence. Values differ.
fn constants_of_line(line: &str) -> Vec<String> {
    let parts: Vec<_> = line.split("  ").map(str::trim).filter(|part| !part.is_empty()).collect();
    let is_heading = |part: &str| part.chars().all(|c| c.is_ascii_uppercase() || c == ' ');
    let is_name = |part: &str| part.chars().all(|c| c.is_ascii_lowercase() || " :".contains(c));
    match parts.as_slice() {
        parts if parts.iter().all(|part| is_heading(part)) => {
            parts.iter().map(|&part| part.to_owned()).collect()
        }
        [sentence] => vec![words(sentence)],
        [name, ..] if is_name(name) => vec![(*name).to_owned()],
        _ => Vec::new(),
    }
}

/// The words of a sentence that are no ids, numbers or paths.
fn words(sentence: &str) -> String {
    let is_word = |word: &&str| !word.contains(|c: char| c.is_ascii_digit() || "/…".contains(c));
    sentence.split_whitespace().filter(is_word).collect::<Vec<_>>().join(" ")
}

#[test]
fn what_is_the_same_each_time_is_told_from_values() {
    let same = constants_of_line;
    assert_eq!(same("NODE  ROLE    MOVES ON"), ["NODE", "ROLE", "MOVES ON"]);
    assert_eq!(same("cluster id: 376c5652-9f17  (new)"), [""; 0]);
    assert_eq!(same("ca pin:      sha256:27fd"), ["ca pin:"]);
    assert_eq!(same("1     leader  0    ready"), [""; 0]);
    assert_eq!(same("error: user alice is locked"), ["error: user alice is locked"]);
    assert_eq!(
        same("node 3 joined cluster 376c-…; set aside in /srv/a"),
        ["node joined cluster set aside in"]
    );
}

/// A cluster of three nodes, and the folder of what a story writes.
struct Stage {
    cluster: Cluster,
    data: PathBuf,
}

impl Stage {
    async fn set() -> Self {
        // The cluster's name is that of the examples.
        let setup = Setup { name: "example".into(), nodes: 3, ..Setup::default() };
        let cluster = Cluster::start_with(&setup).await;
        let (data, bin) = (cluster.dir().join("data"), cluster.dir().join("bin"));
        fs::create_dir(&data).unwrap();
        fs::create_dir(&bin).unwrap();
        for program in ["auth-node", "recording-ingest", "mezctl"] {
            symlink(binary(program), bin.join(program)).unwrap();
        }
        let kek = fs::read_to_string(cluster.nodes()[0].data_dir().join("kek")).unwrap();
        secret_file(&data.join("kek"), &kek);
        Self { cluster, data }
    }

    /// Runs a story to its end, on the machine of the first node.
    fn tell(&self, name: &str) {
        let (blocks, mut command) = self.command(name, 0);
        as_shown(&blocks, run(&mut command));
    }

    /// A story, and what runs it on the machine of a node.
    fn command(&self, name: &str, node: usize) -> (Vec<Block>, Command) {
        let blocks = stories().remove(name).unwrap();
        let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", self.cluster.dir().join("bin").display());
        let mut command = Command::new("sh");
        command
            .args(["-eu", "-c", &self.script(&blocks, node)])
            .current_dir(&self.data)
            .env("PATH", path)
            .env("MEZITE_HOME", self.cluster.ctl().home())
            .env("DATA", &self.data)
            .env("ADDR", self.cluster.addresses().join(","))
            .env("PIN", self.cluster.ca_pin());
        (blocks, command)
    }

    /// The blocks one after the other, with a line between what they print.
    fn script(&self, blocks: &[Block], node: usize) -> String {
        let node = &self.cluster.nodes()[node];
        let blocks = blocks.iter().map(|block| format!("{}\nprintf '{END}'\n", block.commands));
        let script = "exec 2>&1\n".to_owned() + &blocks.collect::<String>();
        script
            .replace("runuser -u mezite -- ", "")
            .replace("/etc/mezite/auth.toml", node.config().to_str().unwrap())
            .replace("/usr/local/bin", self.cluster.dir().join("bin").to_str().unwrap())
            .replace("127.0.0.1:3081", &node.diagnostics_address())
            .replace("c.example:3025", &node.address())
    }
}

/// A story has come to its end, and each block has printed what the runbook shows.
fn as_shown(blocks: &[Block], said: Output) {
    eprintln!("{}", said.stdout);
    let shown = said.ok();
    for (block, shown) in blocks.iter().zip(shown.split(END)) {
        let own = constants(shown);
        let is_missing = |name: &&String| !own.iter().any(|own| own.starts_with(name.as_str()));
        let missing: Vec<_> = block.printed.iter().filter(is_missing).collect();
        assert!(missing.is_empty(), "the runbook shows {missing:?} for a block that printed {shown}");
    }
}

/// Between what two blocks print.
const END: &str = "=== END ===\n";
