//! Sessions on a host, recorded: a real sshd runs the recorder, the agent keeps what it records, and the cluster gets it.

mod joining;
mod places;

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

use mezite_e2e::{Cluster, Ingest, Output, Scratch, all_files, binary, eventually, in_terminal, run};
use mezite_proto::v1;
use nix::{
    sys::signal::{self, Signal},
    unistd::Pid,
};

use crate::{
    host::{Host, SOON, complete, events, list, output, parse, recording},
    support::{add_user, certificates, fetch},
};

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

/// Codes and data of events but for output.
fn beside_output(events: &[(String, String)]) -> Vec<(&str, &str)> {
    let others = events.iter().filter(|(code, _)| code != "o");
    others.map(|(code, data)| (code.as_str(), data.as_str())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_window_that_is_resized_is_so_on_the_host_and_in_the_recording() {
    let cluster = Cluster::start(1).await;
    let (_ingests, _) = Ingest::start_all(&cluster, 1).await;
    let host = Host::of(&cluster).await;
    let _agent = host.run(&[]).await;
    let told = "trap 'stty size; exit 3' WINCH; stty size; while :; do sleep 0.1; done";
    let ssh = host.ssh.with(&["-tt"]).start(&host.login, told);
    let session = in_terminal(&ssh, &[("24 80", "SIZE 132x50"), ("50 132", "")]);
    assert_eq!((session.code, session.restored), (3, true), "{session:?}");
    let (_, header, seen) = complete(&cluster).await;
    assert_eq!((&header["term"]["cols"], &header["term"]["rows"]), (&80.into(), &24.into()));
    assert_eq!(beside_output(&seen), [("r", "132x50"), ("x", "3")]);
    assert_eq!(output(&seen), "24 80\r\n50 132\r\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_typed_is_recorded_where_that_is_asked_for() {
    let cluster = Cluster::start(1).await;
    let (_ingests, _) = Ingest::start_all(&cluster, 1).await;
    let host = Host::of(&cluster).await;
    let _agent = host.run(&[]).await;
    host.knows("best-effort").await;
    let mut record = Command::new(binary("mezctl"));
    record.args(["record", "--input", "--socket"]).arg(host.spool.join("record.sock"));
    record.args(["--", "sh", "-c", "stty -echo; echo name?; read -r name; echo $name | tr a-z A-Z"]);
    let session = in_terminal(&record, &[("name?", "ann\r"), ("ANN", "")]);
    assert_eq!(session.code, 0, "{session:?}");
    let (_, _, seen) = complete(&cluster).await;
    assert_eq!(beside_output(&seen), [("i", "ann\r"), ("x", "0")]);
    assert_eq!(output(&seen), "name?\r\nANN\r\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_that_speak_over_ssh_do_so_through_the_recorder() {
    let cluster = Cluster::start(1).await;
    let (_ingests, _) = Ingest::start_all(&cluster, 1).await;
    let host = Host::of(&cluster).await;
    let _agent = host.run(&[]).await;
    let (scratch, sent) = (Scratch::new(), noise(1 << 18));
    let path = |name: &str| scratch.path().join(name);
    let ssh = host.ssh.start(&host.login, "");
    // Without the destination and the command, which git and rsync name.
    let words = std::iter::once(ssh.get_program()).chain(ssh.get_args().take(ssh.get_args().len() - 2));
    let shell = words.map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" ");
    let there = |name: &str| format!("{}@127.0.0.1:{}", host.login, path(name).display());

    fs::create_dir(path("from")).unwrap();
    fs::write(path("from/file"), &sent).unwrap();
    let mut rsync = Command::new("rsync");
    let _ = run(rsync.args(["--archive", "--rsh", &shell]).arg(path("from")).arg(there("to"))).ok();
    assert!(fs::read(path("to/from/file")).unwrap() == sent);

    let git = |args: &[&str]| {
        let mut git = Command::new("git");
        git.args(["-c", "user.name=a", "-c", "user.email=a@example.org"]).args(args);
        let _ = run(git.env("GIT_SSH_COMMAND", &shell).current_dir(path("from"))).ok();
    };
    git(&["init", "--quiet"]);
    git(&["add", "file"]);
    git(&["commit", "--quiet", "--message", "a file"]);
    git(&["init", "--quiet", "--bare", path("bare").to_str().unwrap()]);
    git(&["push", "--quiet", &there("bare"), "HEAD:refs/heads/main"]);
    git(&["clone", "--quiet", "--branch", "main", &there("bare"), path("clone").to_str().unwrap()]);
    assert!(fs::read(path("clone/file")).unwrap() == sent);

    host.is_empty().await;
    let all = list(&cluster.admin()).await;
    let commands = all.iter().map(|one| one.metadata.as_ref().unwrap().labels["command"].as_str());
    let mut programs: Vec<_> = commands.map(|command| command.split(' ').next().unwrap()).collect();
    programs.sort_unstable();
    assert_eq!(programs, ["git-receive-pack", "git-upload-pack", "rsync"]);
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
    host.knows("best-effort").await;

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
