//! Sessions on a host, recorded: a real sshd runs the recorder, the agent keeps what it records, and the cluster gets it.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use mezite_client::Client;
use mezite_e2e::{
    Agent, AgentSpec, Cluster, Ingest, Output, Port, Process, Scratch, Shell, Ssh, Sshd, account, all_files,
    binary, call, eventually, run,
};
use mezite_proto::v1;
use nix::{
    sys::signal::{self, Signal},
    unistd::Pid,
};
use serde_json::Value;

use crate::support::{EVERYWHERE, add_role, add_user, certificates, fetch};

const SOON: Duration = Duration::from_secs(60);

/// A host whose sessions are recorded, and a user who may log in there.
struct Host {
    agent: Agent,
    _sshd: Sshd,
    spool: PathBuf,
    ssh: Ssh,
    login: String,
}

impl Host {
    async fn of(cluster: &Cluster) -> Self {
        let port = Port::lease();
        let agent = Agent::join(cluster, AgentSpec { address: &port.address(), ..AgentSpec::default() });
        let spool = cluster.dir().join("spool");
        agent.record_in(&spool);
        let sshd = Sshd::start(&agent, port).await;
        let login = account();
        add_role(cluster, "everywhere", EVERYWHERE);
        add_user(cluster, "alice", "everywhere", &login);
        let (folder, _) = certificates(cluster, "alice", &[]);
        let ssh = sshd.client(&folder);
        Self { agent, _sshd: sshd, spool, ssh, login }
    }

    /// The agent as a service; it takes recordings in when this returns.
    async fn run(&self, more: &[&str]) -> Process {
        let socket = self.spool.join("record.sock");
        let _ = fs::remove_file(&socket);
        let mut process = self.agent.run_with(more);
        eventually("the agent listens", SOON, async || {
            process.assert_running();
            socket.exists().then_some(()).ok_or("not yet")
        })
        .await;
        process
    }

    fn shell(&self) -> Shell {
        self.ssh.shell(&self.login)
    }

    fn sessions(&self) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(self.spool.join("sessions")) else { return Vec::new() };
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    async fn is_empty(&self) {
        eventually("all is sent", SOON, async || {
            let left = (self.sessions(), fs::read_dir(self.spool.join("events")).unwrap().count());
            if left.0.is_empty() && left.1 == 0 { Ok(()) } else { Err(format!("{left:?}")) }
        })
        .await;
    }

    /// What the agent said of the cluster's recording mode.
    async fn knows(&self, mode: &str) {
        let file = self.spool.join("mode");
        eventually("the agent knows the mode", SOON, async || {
            let known = fs::read_to_string(&file).unwrap_or_default();
            if known.trim() == mode { Ok(()) } else { Err(known) }
        })
        .await;
    }
}

async fn list(client: &Client) -> Vec<v1::Recording> {
    call!(client, list_session_recordings, v1::ListSessionRecordingsRequest::default()).unwrap().recordings
}

/// The one recording there is, once it is in this state.
async fn recording(client: &Client, state: v1::RecordingState) -> v1::Recording {
    eventually("the recording is so far", SOON, async || {
        let recordings = list(client).await;
        match recordings.as_slice() {
            [one] if one.state() == state => Ok(one.clone()),
            other => Err(format!("{other:?}")),
        }
    })
    .await
}

/// A recording as a player reads it: the header, and each event's code and data. Every line must be one.
fn parse(cast: &[u8]) -> (Value, Vec<(String, String)>) {
    let text = std::str::from_utf8(cast).unwrap();
    assert!(text.ends_with('\n'), "{text}");
    let mut lines = text.lines();
    let header: Value = serde_json::from_str(lines.next().unwrap()).unwrap();
    assert_eq!(header["version"], 3);
    let events = lines.map(|line| {
        let (interval, code, data): (f64, String, String) = serde_json::from_str(line).unwrap();
        assert!(interval >= 0.0);
        (code, data)
    });
    (header, events.collect())
}

fn output(events: &[(String, String)]) -> String {
    events.iter().filter(|(code, _)| code == "o").map(|(_, data)| data.as_str()).collect()
}

/// The whole recording, once it is complete.
async fn complete(cluster: &Cluster) -> (v1::Recording, Value, Vec<(String, String)>) {
    let found = recording(&cluster.admin(), v1::RecordingState::Complete).await;
    let (found, cast) = fetch(&cluster.admin(), found.recording_id.parse().unwrap()).await.unwrap();
    let (header, events) = parse(&cast);
    (found, header, events)
}

fn events(cluster: &Cluster, name: &str) -> Vec<Value> {
    let found = cluster.ctl().json(&["audit", "ls", "--event", name, "--oldest-first"]);
    found.as_array().unwrap().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_in_a_terminal_is_recorded_while_it_goes_on() {
    let cluster = Cluster::start(3).await;
    let (_ingests, _) = Ingest::start_all(&cluster, 1).await;
    let host = Host::of(&cluster).await;
    let _agent = host.run(&[]).await;
    let mut shell = host.shell();
    // What is typed is echoed, and not what is looked for.
    shell.types("echo hel''lo; tty; stty rows 33 cols 111; stty size\n");
    shell.sees("hello").await;
    shell.sees("33 111").await;
    for index in 0..3 {
        let going_on = recording(&cluster.admin_at(index), v1::RecordingState::InProgress).await;
        let metadata = going_on.metadata.unwrap();
        assert_eq!((metadata.user.as_str(), metadata.login), ("alice", host.login.clone()));
        assert_eq!((metadata.node.as_str(), metadata.format.as_str()), ("web1.example.org", "asciicast-v3"));
    }
    // Ctrl-C ends what runs there, and not the session.
    shell.types("echo be''gin; sleep 1000\n");
    shell.sees("begin").await;
    shell.types("\x03");
    shell.types("echo still $?\n");
    shell.sees("still 130").await;
    shell.types("exit 7\n");
    assert_eq!(shell.ended().await, 7);

    let (found, header, seen) = complete(&cluster).await;
    assert!(found.size > 0 && header["term"]["cols"].as_u64().unwrap() > 0);
    assert_eq!(header["term"]["type"], "xterm");
    let text = output(&seen);
    for part in ["hello", "33 111", "still 130"] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    assert_eq!(seen.last().unwrap(), &("x".to_owned(), "7".to_owned()));
    assert!(seen.iter().all(|(code, _)| code != "i"), "what was typed is recorded");
    for index in 1..3 {
        assert_eq!(recording(&cluster.admin_at(index), v1::RecordingState::Complete).await.size, found.size);
    }
    host.is_empty().await;
    let (begun, ended) = (events(&cluster, "session.start"), events(&cluster, "session.end"));
    for (event, target) in [(&begun, &found), (&ended, &found)] {
        assert_eq!(event.len(), 1, "{event:?}");
        assert_eq!(event[0]["target"], format!("session:{}", target.recording_id).as_str());
    }
    assert_eq!(ended[0]["fields"]["status"], "7");
}

/// Runs a program with this input, and answers its exit code and what it printed, as bytes.
fn bytes(command: &mut Command, input: Vec<u8>) -> (Option<i32>, Vec<u8>, Vec<u8>) {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writer = thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().unwrap();
    let _ = writer.join().unwrap();
    (output.status.code(), output.stdout, output.stderr)
}

/// Bytes that are no text.
fn noise(length: u32) -> Vec<u8> {
    (0..length).flat_map(|index| index.wrapping_mul(0x9e37_79b9).to_le_bytes()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_and_statuses_go_through_a_recorded_session_unharmed() {
    let cluster = Cluster::start(1).await;
    let (_ingests, _) = Ingest::start_all(&cluster, 1).await;
    let host = Host::of(&cluster).await;
    let _agent = host.run(&[]).await;
    let start = |command: &str| host.ssh.start(&host.login, command);

    let apart = bytes(&mut start("echo out; echo err >&2; exit 5"), Vec::new());
    assert_eq!(apart, (Some(5), b"out\n".to_vec(), b"err\n".to_vec()));
    let (found, header, seen) = complete(&cluster).await;
    assert_eq!(header["command"], "echo out; echo err >&2; exit 5");
    assert_eq!(found.metadata.unwrap().labels["tty"], "false");
    let text = output(&seen);
    assert!(text.contains("out\n") && text.contains("err\n"), "{text}");
    assert_eq!(seen.last().unwrap().1, "5");

    // Both ways at once, and more than any buffer on the way.
    let sent = noise(2 << 20);
    let (code, back, _) = bytes(&mut start("cat"), sent.clone());
    assert!(code == Some(0) && back == sent, "{code:?}, {} bytes", back.len());
    // One that a signal ends is told as such: ssh says 255.
    assert_eq!(bytes(&mut start("kill -TERM $$"), Vec::new()).0, Some(255));

    let scratch = Scratch::new();
    let (here, there, back) =
        (scratch.path().join("here"), scratch.path().join("there"), scratch.path().join("back"));
    fs::write(&here, &sent).unwrap();
    let remote = |path: &Path| format!("{}@127.0.0.1:{}", host.login, path.display());
    let _ = run(host.ssh.program("scp").arg(&here).arg(remote(&there))).ok();
    assert!(fs::read(&there).unwrap() == sent);
    let _ = run(host.ssh.program("scp").arg(remote(&there)).arg(&back)).ok();
    assert!(fs::read(&back).unwrap() == sent);
    // The old protocol is a command like any.
    let _ = run(host.ssh.program("scp").arg("-O").arg(&here).arg(remote(&scratch.path().join("old")))).ok();
    assert!(fs::read(scratch.path().join("old")).unwrap() == sent);
    let batch = scratch.path().join("batch");
    fs::write(&batch, format!("get {} {}\n", there.display(), scratch.path().join("got").display())).unwrap();
    let mut sftp = host.ssh.program("sftp");
    let _ = run(sftp.arg("-b").arg(&batch).arg(format!("{}@127.0.0.1", host.login))).ok();
    assert!(fs::read(scratch.path().join("got")).unwrap() == sent);

    host.is_empty().await;
    let all = list(&cluster.admin()).await;
    assert_eq!(all.len(), 7);
    for recording in all {
        // Files are not in it; that there were some is.
        assert!(recording.size < 64 << 10, "{recording:?}");
        let (_, cast) = fetch(&cluster.admin(), recording.recording_id.parse().unwrap()).await.unwrap();
        assert_eq!(parse(&cast).1.last().unwrap().0, "x");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_recorded_while_no_ingest_is_there_is_sent_later() {
    let cluster = Cluster::start(1).await;
    let (mut ingests, _) = Ingest::start_all(&cluster, 1).await;
    let host = Host::of(&cluster).await;
    let _agent = host.run(&[]).await;
    ingests[0].kill();
    assert_eq!(host.ssh.run(&host.login, "echo in").ok(), "in\n");
    assert_eq!(host.sessions().len(), 1);
    ingests[0].start();
    ingests[0].ready().await;
    let (_, _, seen) = complete(&cluster).await;
    assert_eq!(output(&seen), "in\n");
    host.is_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_killed_in_a_session_loses_no_byte_of_it() {
    let cluster = Cluster::start(1).await;
    let (_ingests, _) = Ingest::start_all(&cluster, 1).await;
    let host = Host::of(&cluster).await;
    let mut agent = host.run(&[]).await;
    let mut shell = host.shell();
    for round in 0..3 {
        shell.types(&format!("for i in 1 2 3 4 5 6 7 8 9; do echo with-{round}-$i; done\n"));
        shell.sees(&format!("with-{round}-9")).await;
        agent.kill();
        // The terminal does not wait for it.
        shell.types(&format!("for i in 1 2 3 4 5 6 7 8 9; do echo without-{round}-$i; done\n"));
        shell.sees(&format!("without-{round}-9")).await;
        agent = host.run(&[]).await;
    }
    shell.types("exit\n");
    assert_eq!(shell.ended().await, 0);
    let (_, _, seen) = complete(&cluster).await;
    let text = output(&seen);
    for line in (0..3).flat_map(|round| (1..10).map(move |i| (round, i))) {
        for word in ["with", "without"] {
            let line = format!("{word}-{}-{}\r\n", line.0, line.1);
            assert_eq!(text.matches(&line).count(), 1, "{line:?} in {text}");
        }
    }
    host.is_empty().await;
    drop(agent);
}

/// Recorders of a socket that run now.
fn recorders(socket: &Path) -> Vec<Pid> {
    let is_one = |id: &i32| {
        let command = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
        let words: Vec<_> = command.split(|byte| *byte == 0).collect();
        let is_mezctl = words.first().is_some_and(|word| word.ends_with(b"mezctl"));
        is_mezctl && words.contains(&&b"record"[..]) && words.contains(&socket.as_os_str().as_encoded_bytes())
    };
    let names = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter_map(|name| name.parse().ok()).filter(is_one).map(Pid::from_raw).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recorder_that_is_killed_ends_its_session_and_what_it_recorded_arrives() {
    let cluster = Cluster::start(1).await;
    let (_ingests, _) = Ingest::start_all(&cluster, 1).await;
    let host = Host::of(&cluster).await;
    let _agent = host.run(&["--resume-within", "1s"]).await;
    let mut shell = host.shell();
    shell.types("echo some''thing\n");
    shell.sees("something").await;
    // It is with the agent before the recorder is killed.
    eventually("the agent has it", SOON, async || {
        let payloads = host.sessions().into_iter().map(|entry| fs::read(entry.join("payload")).unwrap());
        let all = payloads.map(|bytes| String::from_utf8(bytes).unwrap()).collect::<String>();
        if all.contains("something") { Ok(()) } else { Err(all) }
    })
    .await;
    let found = recorders(&host.spool.join("record.sock"));
    assert_eq!(found.len(), 1);
    signal::kill(found[0], Signal::SIGKILL).unwrap();
    assert_ne!(shell.ended().await, 0);
    let (_, _, seen) = complete(&cluster).await;
    assert!(output(&seen).contains("something"));
    host.is_empty().await;
    assert_eq!(events(&cluster, "session.recording.failed").len(), 1);
    assert_eq!(events(&cluster, "session.end")[0]["fields"]["interrupted"], "true");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_strict_session_is_refused_when_it_cannot_be_recorded() {
    let cluster = Cluster::start(1).await;
    let (_ingests, _) = Ingest::start_all(&cluster, 1).await;
    let host = Host::of(&cluster).await;
    let mode = |mode: &str| cluster.ctl().ok(&["config", "set", "--recording-mode", mode]);
    let login = || -> Output { host.ssh.run(&host.login, "echo in") };

    // No agent was ever there: nothing is known of what the cluster wants.
    let said = login().failed(1);
    assert!(said.contains("must be recorded, and cannot be"), "{said}");

    let mut agent = host.run(&[]).await;
    let _ = mode("strict");
    host.knows("strict").await;
    assert_eq!(login().ok(), "in\n");
    agent.kill();
    let refused = login();
    assert!(refused.stdout.is_empty(), "{refused:?}");
    let said = refused.failed(1);
    assert!(said.contains("must be recorded, and cannot be: the agent does not answer"), "{said}");

    let agent = host.run(&["--spool-limit", "1K"]).await;
    let said = login().failed(1);
    assert!(said.contains("the spool is full"), "{said}");
    drop(agent);
    let mut agent = host.run(&[]).await;
    let _ = mode("best-effort");
    host.knows("best-effort").await;
    agent.kill();
    let unrecorded = login();
    assert!(unrecorded.stderr.contains("is not recorded: the agent does not answer"), "{unrecorded:?}");
    assert_eq!(unrecorded.ok(), "in\n");
    let agent = host.run(&["--spool-limit", "1K"]).await;
    let unrecorded = login();
    assert!(unrecorded.stderr.contains("is not recorded: the spool is full"), "{unrecorded:?}");
    assert_eq!(unrecorded.ok(), "in\n");
    drop(agent);

    let _agent = host.run(&[]).await;
    let _ = mode("off");
    host.knows("off").await;
    let off = login();
    assert!(!off.stderr.contains("record"), "{off:?}");
    assert_eq!(off.ok(), "in\n");
    host.is_empty().await;
    assert_eq!(list(&cluster.admin()).await.len(), 1);
    let failed = events(&cluster, "session.recording.failed");
    let refused: Vec<_> = failed.iter().map(|event| event["fields"]["refused"].as_str().unwrap()).collect();
    assert_eq!(refused, ["true", "false"], "{failed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_of_the_user_of_its_certificate_whatever_is_claimed() {
    let cluster = Cluster::start(1).await;
    let (_ingests, _) = Ingest::start_all(&cluster, 1).await;
    let host = Host::of(&cluster).await;
    let _agent = host.run(&[]).await;
    add_user(&cluster, "bob", "everywhere", "deploy");
    let (bobs, _) = certificates(&cluster, "bob", &[]);
    let bobs = fs::read_to_string(bobs.join("key-cert.pub")).unwrap();

    let recorded = |claim: &str| {
        let file = cluster.dir().join("claim");
        fs::write(&file, claim).unwrap();
        let mut record = Command::new(binary("mezctl"));
        record.args(["record", "--socket"]).arg(host.spool.join("record.sock"));
        run(record.args(["--", "echo", "in"]).env("SSH_USER_AUTH", &file))
    };
    // Good, and for another login; of no authority; no certificate at all.
    let forged = bobs.replacen("AAAAB", "AAAAC", 1);
    let claims =
        [format!("publickey {bobs}"), format!("publickey {forged}"), "user bob\n".into(), String::new()];
    for claim in &claims {
        assert_eq!(recorded(claim).ok(), "in\n");
    }
    host.is_empty().await;
    let all = list(&cluster.admin()).await;
    assert_eq!(all.len(), claims.len());
    for recording in all {
        assert_eq!(recording.metadata.unwrap().user, "", "somebody was believed");
    }
    let _ = cluster.ctl().ok(&["config", "set", "--recording-mode", "strict"]);
    host.knows("strict").await;
    for claim in &claims {
        let said = recorded(claim).failed(1);
        assert!(said.contains("must be recorded, and cannot be"), "{said}");
    }
}

/// A session whose agent goes and does not come back: what the user sees, and how it ends after an `exit 4`.
async fn left_alone(mode: &str, says: &str) -> i32 {
    let cluster = Cluster::start(1).await;
    let (_ingests, _) = Ingest::start_all(&cluster, 1).await;
    let host = Host::of(&cluster).await;
    let mut agent = host.run(&[]).await;
    let _ = cluster.ctl().ok(&["config", "set", "--recording-mode", mode]);
    host.knows(mode).await;
    let mut shell = host.shell();
    shell.types("echo be''gin\n");
    shell.sees("begin").await;
    // The terminal does not wait for the agent: what it had not taken yet would be lost with it.
    eventually("the agent has it", SOON, async || {
        let files = all_files(&host.spool);
        let has = |file: &PathBuf| fs::read_to_string(file).unwrap_or_default().contains("begin");
        let kept = files.iter().any(|file| file.ends_with("payload") && has(file));
        if kept { Ok(()) } else { Err(format!("{files:?}")) }
    })
    .await;
    agent.kill();
    shell.sees(says).await;
    if mode == "best-effort" {
        shell.types("echo go''ing on\n");
        shell.sees("going on").await;
        shell.types("exit 4\n");
    }
    let code = shell.ended().await;
    let _agent = host.run(&["--resume-within", "1s"]).await;
    let (_, _, seen) = complete(&cluster).await;
    assert!(output(&seen).contains("begin") && !output(&seen).contains("going on"));
    host.is_empty().await;
    code
}

#[tokio::test(flavor = "multi_thread")]
async fn a_strict_session_ends_when_its_agent_does_not_come_back() {
    let says = "mezctl record: this session must be recorded, and cannot be any longer: it ends";
    assert_eq!(left_alone("strict", says).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_session_goes_on_when_its_agent_does_not_come_back() {
    let says = "mezctl record: the rest of this session is not recorded";
    assert_eq!(left_alone("best-effort", says).await, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_cut_ends_its_session_and_the_recording() {
    let cluster = Cluster::start(1).await;
    let (_ingests, _) = Ingest::start_all(&cluster, 1).await;
    let host = Host::of(&cluster).await;
    let _agent = host.run(&[]).await;
    let mut shell = host.shell();
    shell.types("echo some''thing; sleep 1000\n");
    shell.sees("something").await;
    drop(shell);
    let (_, _, seen) = complete(&cluster).await;
    assert!(output(&seen).contains("something"));
    assert_eq!(seen.last().unwrap().0, "x");
    eventually("the recorder ends", SOON, async || {
        let left = recorders(&host.spool.join("record.sock"));
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
    host.is_empty().await;
}
