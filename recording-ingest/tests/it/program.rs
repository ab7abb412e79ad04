//! The program itself: its flags, a kill, and a stop.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{Arc, Mutex},
};

use mezite_daemon::config::Settings as _;
use mezite_proto::v1::RecordingState;
use recording_ingest::config::Config;

use crate::{
    cluster::{AGENT, Cluster, INGEST_ID, TOKEN},
    wire::{Wire, chunk, eventually, header, id, last, metadata, page, payload, wrapped},
};

pub(crate) struct Program {
    child: Child,
    pub(crate) address: SocketAddr,
    pub(crate) diagnostics: SocketAddr,
    log: Arc<Mutex<Vec<serde_json::Value>>>,
}

impl Program {
    /// What it has logged since it serves.
    pub(crate) fn log(&self) -> Vec<serde_json::Value> {
        self.log.lock().unwrap().clone()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(args: &[&str], config: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_recording-ingest"));
    command.args(args).arg("--config").arg(config).args(["--set", "log.format=json"]);
    command
}

fn run(args: &[&str], config: &Path) -> Output {
    command(args, config).output().unwrap()
}

/// Starts it, and reads its addresses from its log.
fn serve(config: &Path) -> Program {
    serve_with(config, "info")
}

/// As [`serve`], with this level of the log.
fn serve_with(config: &Path, level: &str) -> Program {
    let level = format!("log.level={level}");
    let mut child = command(&["run", "--set", &level], config).stderr(Stdio::piped()).spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
    let serving = log.by_ref().map(Result::unwrap).find(|line| line.contains("serving")).unwrap();
    let line: serde_json::Value = serde_json::from_str(&serving).unwrap();
    let address = |name: &str| line["fields"][name].as_str().unwrap().parse().unwrap();
    let (address, diagnostics) = (address("address"), address("diagnostics_address"));
    let said = Arc::<Mutex<Vec<_>>>::default();
    let kept = Arc::clone(&said);
    // What it says later must not fill the pipe.
    std::thread::spawn(move || {
        log.for_each(|line| kept.lock().unwrap().push(serde_json::from_str(&line.unwrap()).unwrap()));
    });
    Program { child, address, diagnostics, log: said }
}

/// Writes the configuration as a file.
fn written(cluster: &Cluster) -> (PathBuf, Config) {
    let (config, path) = (cluster.config("a", &[]), cluster.dir.path().join("ingest.toml"));
    fs::write(&path, config.print().unwrap()).unwrap();
    (path, config)
}

/// Joins, and starts.
pub(crate) fn joined(cluster: &Cluster, level: &str) -> Program {
    let (path, _) = written(cluster);
    let joined = run(&["join", "--token-file", &token(cluster)], &path);
    assert!(joined.status.success(), "{joined:?}");
    serve_with(&path, level)
}

fn token(cluster: &Cluster) -> String {
    let path = cluster.dir.path().join("token");
    fs::write(&path, format!("{TOKEN}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path.display().to_string()
}

#[test]
fn a_configuration_is_printed_and_checked() {
    let cluster = Cluster::new();
    let (path, config) = written(&cluster);
    let printed = run(&["run", "--print-config", "--set", "limits.max_streams=7"], &path);
    assert!(printed.status.success());
    let text = String::from_utf8(printed.stdout).unwrap();
    let again = Config::parse(&text, [], &[]).unwrap();
    assert_eq!((again.limits.max_streams, again.store), (7, config.store));

    assert!(run(&["join", "--check-config"], &path).status.success());
    for wrong in ["colour=green", "limits.max_streams=0", "log.level=a=b=c"] {
        let refused = run(&["run", "--check-config", "--set", wrong], &path);
        assert!(!refused.status.success(), "{wrong}");
        assert!(!refused.stderr.is_empty());
    }
    // Not joined yet.
    let refused = run(&["run"], &path);
    assert!(!refused.status.success());
    assert!(String::from_utf8(refused.stderr).unwrap().contains("recording-ingest join"));
}

// The connections must be served while this thread waits for a process to end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_outlives_a_kill_and_a_stop_answers_open_calls() {
    let cluster = Cluster::new();
    let (path, _) = written(&cluster);
    let joined = run(&["join", "--token-file", &token(&cluster)], &path);
    assert!(joined.status.success(), "{joined:?}");
    assert!(String::from_utf8(joined.stdout).unwrap().contains(INGEST_ID));
    assert!(run(&["join"], &path).status.success());

    let bytes = payload(500_000);
    let mut killed = serve(&path);
    let agent = agent(&cluster, killed.address);
    let reply = agent.stream(vec![header(id(1), 0, Some(metadata())), chunk(0, &bytes[..200_000])]).await;
    assert_eq!(reply.unwrap().committed_offset, 200_000);
    // A call is in hand when it dies.
    let (sender, broken) = agent.open();
    sender.send(wrapped(header(id(1), 200_000, None))).await.unwrap();
    sender.send(wrapped(chunk(200_000, &bytes[200_000..250_000]))).await.unwrap();
    killed.child.kill().unwrap();
    killed.child.wait().unwrap();
    assert!(broken.await.unwrap().is_err());

    let mut stopped = serve(&path);
    let agent = self::agent(&cluster, stopped.address);
    let committed = agent.probe(id(1)).await.unwrap().committed_offset;
    assert!((200_000..=250_000).contains(&committed), "{committed}");
    let (sender, answered) = agent.open();
    sender.send(wrapped(header(id(1), 200_000, None))).await.unwrap();
    sender.send(wrapped(chunk(200_000, &bytes[200_000..300_000]))).await.unwrap();
    let diagnostics = stopped.diagnostics;
    eventually(
        || async move { page(diagnostics, "/metrics").await.1.contains("received_bytes_total 100000") },
    )
    .await;
    let pid = stopped.child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    let reply = answered.await.unwrap().unwrap();
    assert!(reply.reconnect);
    assert_eq!(reply.committed_offset, 300_000);
    assert!(stopped.child.wait().unwrap().success());

    let last_run = serve(&path);
    let agent = self::agent(&cluster, last_run.address);
    let sealed = agent
        .stream(vec![header(id(1), 300_000, None), chunk(300_000, &bytes[300_000..]), last(&bytes)])
        .await;
    assert_eq!(sealed.unwrap().state(), RecordingState::Complete);
}

fn agent(cluster: &Cluster, address: SocketAddr) -> Wire {
    Wire::to(address, &cluster.script.ca, Some(&cluster.agent(AGENT)))
}

// As above.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_was_removed_ends_with_a_status_of_its_own() {
    let cluster = Cluster::new();
    let (path, _) = written(&cluster);
    assert!(run(&["join", "--token-file", &token(&cluster)], &path).status.success());
    cluster.script.remove_ingest();
    let ended = run(&["run"], &path);
    assert_eq!(ended.status.code(), Some(i32::from(mezite_daemon::REMOVED)));
    let said = String::from_utf8(ended.stderr).unwrap();
    assert!(said.contains(&format!("ingest {INGEST_ID} is not in the registry")), "{said}");
}
