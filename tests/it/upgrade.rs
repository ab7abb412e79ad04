//! Programs of an earlier commit and these, in one cluster: nodes and ingests are exchanged one after the other while clients work. It
//! needs those programs, in the folder that `MEZITE_PREVIOUS` names: `tests/upgrade` builds them and runs this.

use std::{env, path::PathBuf, time::Duration};

use mezite_e2e::{Agent, AgentSpec, Cluster, Ingest, IngestSpec, Program, Setup, eventually};
use serde_json::Value;

use crate::{
    failover::{Workers, assert_kept},
    support::{asciicast, fetch, metadata, recording_id, upload},
};

const PATIENCE: Duration = Duration::from_secs(60);

fn previous() -> PathBuf {
    env::var_os("MEZITE_PREVIOUS").map(PathBuf::from).expect("MEZITE_PREVIOUS is not set: run tests/upgrade")
}

/// Each member is ready, by its own word.
async fn all_ready(cluster: &Cluster) {
    eventually("all are ready", PATIENCE, async || {
        let listed = cluster.ctl().run(&["--format", "json", "cluster", "ls"]);
        let members: Vec<Value> = serde_json::from_str(&listed.stdout).map_err(|_| listed.stderr)?;
        let ready = members.iter().filter(|member| member["health"] == "ready").count();
        if ready == cluster.nodes().len() { Ok(()) } else { Err(format!("{members:?}")) }
    })
    .await;
}

/// Stops a program and starts that of another build in its place; what is on disk is sound for both.
async fn exchange(program: &mut Program, check: bool, programs: Option<&PathBuf>) {
    assert_eq!(program.stop().await.code(), Some(0), "{}", program.log());
    program.exchange(programs.map(PathBuf::as_path));
    if check {
        let said = program.run("check", &[]).ok();
        assert!(said.ends_with("sound\n"), "{said}");
    }
    program.start();
    program.ready().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the programs of an earlier commit: tests/upgrade builds them"]
async fn one_after_the_other_nodes_and_ingests_are_exchanged_under_load_and_back() {
    let programs = Some(previous());
    let mut cluster =
        Cluster::start_with(&Setup { nodes: 3, programs: programs.clone(), ..Setup::default() }).await;
    let store = cluster.dir().join("recordings");
    let spec = IngestSpec { programs: programs.clone(), ..IngestSpec::local(&store) };
    let mut ingests = Ingest::start_all_with(&cluster, 2, &spec).await;
    let agent = Agent::join(&cluster, AgentSpec::default());
    let addresses: Vec<_> = ingests.iter().map(Ingest::address).collect();
    let host = agent.client(&cluster).for_recordings(&addresses).unwrap();
    let workers = Workers::start(&cluster);
    workers.go_on().await;

    let (mut recordings, mut turn) = (Vec::new(), 0_usize);
    let mut record = async || {
        turn += 1;
        let (id, cast) = (recording_id(), asciicast(50_000 + turn));
        let _ = upload(&host, id, &metadata("alice"), &cast).await.unwrap();
        recordings.push((id, cast));
    };
    record().await;
    // Up, the leader last; and one back, as when something is wrong with the new one.
    let leader = cluster.leader().await;
    let followers: Vec<_> = (0..3).filter(|index| *index != leader).collect();
    let back = [(followers[0], programs.as_ref()), (followers[0], None)];
    let up = [followers[0], followers[1], leader].map(|index| (index, None));
    for (index, programs) in [up[0]].into_iter().chain(back).chain([up[1], up[2]]) {
        exchange(cluster.node(index), true, programs).await;
        all_ready(&cluster).await;
        workers.go_on().await;
        record().await;
    }
    for index in [0, 1] {
        exchange(&mut ingests[index], false, None).await;
        record().await;
    }
    let ledger = workers.finish().await;
    eprintln!("kept: {}, recordings: {}", ledger.kept.len(), recordings.len());
    assert_kept(&cluster, &ledger).await;
    for (id, cast) in recordings {
        assert_eq!(fetch(&cluster.admin(), id).await.unwrap().1, cast);
    }
}
