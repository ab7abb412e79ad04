//! Programs of an earlier commit and these, in one cluster: nodes and ingests are exchanged one after the other while clients work,
//! hosts and people last, as the runbook has it. It needs those programs, in the folder that `MEZITE_PREVIOUS` names: `tests/upgrade` builds them and runs this.

use std::{
    env,
    path::{Path, PathBuf},
    time::Duration,
};

use mezite_e2e::{
    ADMIN, Cluster, Ctl, Ingest, IngestSpec, PASSWORD, Process, Program, Setup, Shell, eventually,
};
use serde_json::Value;

use crate::{
    failover::{Workers, assert_kept},
    host::{self, Host},
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

/// A host and people who keep their `mezctl` meanwhile: an agent, a session on its host that it records, and the sessions of an
/// admin and a user.
struct Old {
    host: Host,
    agent: Process,
    admin: Ctl,
    alice: Ctl,
    shell: Shell,
    turns: usize,
}

impl Old {
    async fn begin(cluster: &Cluster, programs: &Path) -> Self {
        let host = Host::with(cluster, Some(programs)).await;
        let agent = host.run(&[]).await;
        let [admin, alice] = [(ADMIN, "old-admin"), ("alice", "old-alice")].map(|(user, home)| {
            let ctl = cluster.ctl_named(home).of(Some(programs));
            let _ = ctl.login(user, PASSWORD).ok();
            ctl
        });
        let shell = host.shell();
        let mut old = Self { host, agent, admin, alice, shell, turns: 0 };
        old.goes_on().await;
        old
    }

    /// The agent reports, the session on its host answers, and both users are still logged in.
    async fn goes_on(&mut self) {
        self.turns += 1;
        self.agent.assert_running();
        let _ = self.host.agent.heartbeat();
        self.shell.types(&format!("echo turn-$(({} + 1000))\n", self.turns));
        self.shell.sees(&format!("turn-{}", self.turns + 1000)).await;
        let _ = self.admin.ok(&["users", "get", "alice"]);
        let nodes = self.admin.json(&["nodes", "ls"]);
        let of_host = |node: &&Value| node["agent_id"] == self.host.agent.id.as_str();
        let node = nodes.as_array().unwrap().iter().find(of_host).unwrap();
        assert_eq!(node["online"], true, "{node}");
        let folder = self.alice.home().join(format!("ssh-{}", self.turns));
        let _ = self.alice.ok(&["certs", "issue", "--out", folder.to_str().unwrap()]);
    }

    /// The session on the host ends: the whole of it is kept.
    async fn end(mut self, cluster: &Cluster) {
        self.shell.types("exit\n");
        assert_eq!(self.shell.ended().await, 0);
        self.host.is_empty().await;
        let client = cluster.admin();
        let mut kept = String::new();
        for recording in host::list(&client).await {
            let id = recording.recording_id.parse().unwrap();
            kept.push_str(&String::from_utf8_lossy(&fetch(&client, id).await.unwrap().1));
        }
        for turn in 1..=self.turns {
            assert!(kept.contains(&format!("turn-{}", turn + 1000)), "turn {turn}");
        }
    }
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
    let mut old = Old::begin(&cluster, &programs.clone().unwrap()).await;
    let addresses: Vec<_> = ingests.iter().map(Ingest::address).collect();
    let host = old.host.agent.client(&cluster).for_recordings(&addresses).unwrap();
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
        old.goes_on().await;
    }
    for index in [0, 1] {
        exchange(&mut ingests[index], false, None).await;
        record().await;
        old.goes_on().await;
    }
    old.end(&cluster).await;
    let ledger = workers.finish().await;
    eprintln!("kept: {}, recordings: {}", ledger.kept.len(), recordings.len());
    assert_kept(&cluster, &ledger).await;
    for (id, cast) in recordings {
        assert_eq!(fetch(&cluster.admin(), id).await.unwrap().1, cast);
    }
}
