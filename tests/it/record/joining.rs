//! What a host recorded before it joined anew.

use std::{
    fs,
    io::Write as _,
    process::{Command, Stdio},
};

use mezite_e2e::{Agent, AgentSpec, Cluster, Ingest, binary, eventually};
use mezite_proto::v1;

use crate::{
    host::{SOON, output, parse, recording},
    support::fetch,
};

#[tokio::test(flavor = "multi_thread")]
async fn what_a_host_had_begun_to_send_before_it_joined_anew_is_sent_by_the_command_that_its_log_names() {
    let cluster = Cluster::start(1).await;
    let (_ingests, _) = Ingest::start_all(&cluster, 1).await;
    let (agent, spool) = (Agent::join(&cluster, AgentSpec::default()), cluster.dir().join("spool"));
    agent.record_in(&spool);
    let mut service = agent.run();
    eventually("the agent knows the mode", SOON, async || {
        let known = fs::read_to_string(spool.join("mode")).unwrap_or_default();
        if known == "best-effort\n" { Ok(()) } else { Err(known) }
    })
    .await;
    let mut record = Command::new(binary("mezctl"));
    record.args(["record", "--socket"]).arg(spool.join("record.sock"));
    record.args(["--", "sh", "-c", "echo before; read -r line; echo $line"]);
    let mut session = record.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let begun = recording(&cluster.admin(), v1::RecordingState::InProgress).await;
    service.kill();

    // Its certificate is no credential any more. What only it could send keeps it.
    let _ = cluster.ctl().ok(&["nodes", "rm", &agent.id]);
    let folder = agent.dir.to_str().unwrap().to_owned();
    let leave =
        |more: &[&str]| agent.ctl().run(&[&["agent", "leave", "--local", "--dir", &folder], more].concat());
    let said = leave(&[]).failed(1);
    assert!(
        said.contains("1 session and ") && said.contains(&format!("--spool {}", spool.display())),
        "{said}"
    );
    let _ = leave(&["--force"]).ok();
    let again = Agent::join(&cluster, AgentSpec::default());
    again.record_in(&spool);
    assert_ne!(again.id, agent.id);
    let _service = again.run();
    session.stdin.take().unwrap().write_all(b"after\n").unwrap();
    assert!(session.wait().unwrap().success());

    let aside = spool.join("aside").join(&begun.recording_id);
    eventually("it is set aside", SOON, async || aside.exists().then_some(()).ok_or("not yet")).await;
    let command = format!("recordings upload {} --agent {folder}", aside.display());
    eventually("the log says how it is sent", SOON, async || {
        let log = fs::read_to_string(again.file("run.log")).unwrap();
        if log.contains(&format!("`mezctl {command}`")) { Ok(()) } else { Err(log) }
    })
    .await;
    let sent = again.ctl().json(&command.split(' ').collect::<Vec<_>>());
    let id = sent["recording_id"].as_str().unwrap().parse().unwrap();
    let (found, cast) = fetch(&cluster.admin(), id).await.unwrap();
    assert_eq!(found.state(), v1::RecordingState::Complete);
    assert_eq!(output(&parse(&cast).1), "before\nafter\n");
    let metadata = found.metadata.unwrap();
    assert_eq!(metadata.labels["recorded_as"], begun.recording_id);
    assert_eq!((metadata.login, metadata.started_at), {
        let begun = begun.metadata.unwrap();
        (begun.login, begun.started_at)
    });
}
