//! What systemd is told: that a program serves, that it lives, that it stops, and that it is not to be started again.

use std::time::Duration;

use mezite_daemon::REMOVED;
use mezite_e2e::{
    ADMIN, Agent, AgentSpec, AuthNode, CLUSTER, Cluster, Ingest, Scratch, Setup, eventually, tools,
};
use tokio::{net::UnixDatagram, time::timeout};

/// A debug build on a loaded machine takes its time.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until the program has said this.
async fn hear(socket: &UnixDatagram, wanted: &str) {
    let heard = async {
        loop {
            let mut said = [0; 4096];
            let length = socket.recv(&mut said).await.unwrap();
            let said = str::from_utf8(&said[..length]).unwrap();
            if said.lines().any(|line| line == wanted) {
                return;
            }
        }
    };
    timeout(PATIENCE, heard).await.unwrap_or_else(|_| panic!("systemd did not hear {wanted}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn systemd_hears_that_a_node_serves_lives_and_stops() {
    let scratch = Scratch::new();
    let path = scratch.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    let env = [("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", "200000")];
    let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let mut node = AuthNode::configure("alone", scratch.path(), &Setup { env, ..Setup::default() });
    let _ = node.run("init", &["--cluster-name", CLUSTER, "--admin-user", ADMIN]).ok();
    node.start();
    for wanted in ["STATUS=waiting for the cluster", "READY=1", "WATCHDOG=1", "WATCHDOG=1"] {
        hear(&socket, wanted).await;
    }
    let (ended, ()) = tokio::join!(node.stop(), hear(&socket, "STOPPING=1"));
    assert!(ended.success(), "{ended}");
}

/// A removed auth node is in `cluster.rs`.
#[tokio::test(flavor = "multi_thread")]
async fn a_removed_host_or_ingest_ends_with_a_status_with_which_its_unit_is_not_started_again() {
    for unit in ["auth-node", "recording-ingest", "mezctl-agent"] {
        let path = tools::repository().join(format!("deploy/systemd/{unit}.service"));
        let text = std::fs::read_to_string(path).unwrap();
        let says = format!("RestartPreventExitStatus={REMOVED}");
        assert!(text.lines().any(|line| line == says), "{unit}");
    }
    let cluster = Cluster::start(1).await;
    let (mut ingests, _) = Ingest::start_all(&cluster, 1).await;
    let agent = Agent::join(&cluster, AgentSpec::default());
    let mut service = agent.run();
    eventually("the host reports", PATIENCE, async || {
        let known = agent.file("revoked_keys").exists() && service.log().contains("next in");
        if known { Ok(()) } else { Err(service.log()) }
    })
    .await;
    let revoked = std::fs::read(agent.file("revoked_keys")).unwrap();
    let mut ingest = ingests.remove(0);
    for id in [agent.id.clone(), ingest.id()] {
        let _ = cluster.ctl().ok(&["nodes", "rm", &id]);
    }
    assert_eq!(service.exited(PATIENCE).await.code(), Some(REMOVED.into()), "{}", service.log());
    assert!(service.log().contains("no agent of the cluster any more"), "{}", service.log());
    // Its own removal is the last that it took up.
    assert_ne!(std::fs::read(agent.file("revoked_keys")).unwrap(), revoked);
    assert_eq!(ingest.ended().await.code(), Some(REMOVED.into()), "{}", ingest.log());
    assert!(ingest.log().contains("is not in the registry of cluster"), "{}", ingest.log());
    assert_eq!(ingest.run("run", &[]).code, i32::from(REMOVED));

    // With a new token the ingest is one again, in its folder.
    let old = ingest.id();
    let token = cluster.dir().join("anew.token");
    let token = token.to_str().unwrap();
    let _ = cluster.ctl().ok(&["tokens", "add", "--kind", "ingest", "--out", token]);
    let _ = ingest.run("join", &["--token-file", token]).ok();
    assert_ne!(ingest.id(), old);
    ingest.start();
    ingest.ready().await;
}
