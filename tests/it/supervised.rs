//! What systemd is told: that a program serves, that it lives, that it stops.

use std::time::Duration;

use mezite_e2e::{ADMIN, AuthNode, CLUSTER, Scratch, Setup};
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
