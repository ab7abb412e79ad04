//! Backups, and what is made of them: a new cluster in which nothing that was ended is back.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use mezite_client::SessionSecret;
use mezite_e2e::{
    ADMIN, Agent, AgentSpec, AuthNode, Cluster, Ctl, PASSWORD, Setup, all_files, api, call, secret_file,
};
use mezite_proto::v1;
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use serde_json::Value;
use tokio::{io::AsyncReadExt as _, net::TcpStream};
use tokio_rustls::TlsConnector;
use tonic::Code;

use crate::{failover::Workers, support::add_role};

const ROLE: &str = "  allow:\n    logins: [dev]\n    node_labels: {env: [dev, test]}\n";
const CONFIRMED: [&str; 2] =
    ["--force-new-cluster", "--yes-i-understand-that-the-other-nodes-must-never-run-again"];

/// What a node says of its state, when it is stopped.
fn checked(node: &AuthNode) -> Value {
    serde_json::from_str(&node.run("check", &["--json"]).ok()).unwrap()
}

/// An admin's `mezctl` at a node of a cluster that goes on from the state of another.
fn log_in(cluster: &Cluster, node: &AuthNode) -> Ctl {
    let home = cluster.dir().join("home-successor");
    let ctl = Ctl::new(&home, &[node.address()], cluster.ca_pin());
    let _ = ctl.login(ADMIN, PASSWORD).ok();
    ctl
}

async fn assert_void(cluster: &Cluster, node: &AuthNode, sessions: &[&SessionSecret]) {
    for session in sessions {
        let client = api::client(&[node.address()], cluster.trust(), Some(session), None);
        api::refused(call!(client, list_users, v1::ListUsersRequest::default()), Code::Unauthenticated);
    }
}

/// Lets another node join the one.
async fn join(cluster: &Cluster, ctl: &Ctl, name: &str) -> AuthNode {
    let mut node = AuthNode::configure(name, cluster.dir(), &Setup::default());
    let file = cluster.dir().join(format!("{name}.token"));
    let token = ctl.json(&["cluster", "token", "--out", file.to_str().unwrap()]);
    let peer = token["peer_addresses"][0].as_str().unwrap();
    let pin = token["ca_pin"].as_str().unwrap();
    let args = ["--token-file", file.to_str().unwrap(), "--ca-pin", pin, "--peer", peer];
    let _ = node.run("join", &args).ok();
    node.start();
    node.ready().await;
    node
}

/// Shows a peer certificate to the peer listener of a node: what is said to it.
async fn show_peer(certificate: &Path, to: &AuthNode, cluster_id: &str) -> String {
    let certificates = |path: PathBuf| -> Vec<_> {
        CertificateDer::pem_file_iter(path).unwrap().collect::<Result<Vec<_>, _>>().unwrap()
    };
    let mut roots = RootCertStore::empty();
    for authority in certificates(to.data_dir().join("peer-ca.crt")) {
        roots.add(authority).unwrap();
    }
    let key = PrivateKeyDer::from_pem_file(certificate.with_extension("key")).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(certificates(certificate.to_owned()), key)
        .unwrap();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect(to.peer_address()).await.unwrap();
    let name = ServerName::try_from(format!("node-1.{cluster_id}")).unwrap();
    let mut stream = TlsConnector::from(Arc::new(tls)).connect(name, stream).await.unwrap();
    match tokio::time::timeout(Duration::from_secs(20), stream.read_u8()).await.unwrap() {
        Ok(_) => "welcome".into(),
        Err(error) => error.to_string(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_of_a_cluster_in_use_becomes_a_new_cluster() {
    let cluster = Cluster::start(3).await;
    add_role(&cluster, "developer", ROLE);
    cluster.add_user("alice", &["developer"], &["deploy"]).await;
    let agent = Agent::join(&cluster, AgentSpec::default());
    let token = cluster.token(v1::TokenKind::Node).await;
    let (live, revoked) = (cluster.session_of("alice").await, cluster.session_of("alice").await);
    let revoke = v1::RevokeSessionRequest { session: revoked.expose().to_owned() };

    let workers = Workers::start(&cluster);
    workers.go_on().await;
    let backup = cluster.dir().join("backup");
    let backup = backup.to_str().unwrap();
    // The session is revoked after the backup: in its state it is alive.
    let saved = cluster.ctl().json(&["cluster", "backup", "--out", backup]);
    call!(cluster.admin(), revoke_session, revoke).unwrap();
    workers.go_on().await;
    workers.finish().await;
    assert_eq!(saved["size"], fs::metadata(backup).unwrap().len());
    assert_eq!(
        saved["sha256"],
        hex::encode(<sha2::Sha256 as sha2::Digest>::digest(fs::read(backup).unwrap()))
    );
    assert_eq!(
        std::os::unix::fs::PermissionsExt::mode(&fs::metadata(backup).unwrap().permissions()) & 0o777,
        0o600
    );
    // Nobody but an admin gets one.
    let alice = cluster.ctl_named("alice");
    let _ = alice.login("alice", PASSWORD).ok();
    let elsewhere = cluster.dir().join("stolen");
    let _ = alice.run(&["cluster", "backup", "--out", elsewhere.to_str().unwrap()]).failed(3);
    assert!(!elsewhere.exists());

    let mut node = AuthNode::configure("restored", cluster.dir(), &Setup::default());
    let kek = cluster.nodes()[0].data_dir().join("kek");
    let with = |kek: &Path| ["--from", backup, "--kek-file", kek.to_str().unwrap()].map(str::to_owned);
    let restore = |args: &[String]| node.run("restore", &args.iter().map(String::as_str).collect::<Vec<_>>());
    let said = restore(&["--from".into(), backup.into()]);
    assert!(said.code == 1 && said.stderr.contains("--kek-file"), "{said:?}");
    let wrong = cluster.dir().join("wrong.kek");
    secret_file(&wrong, &format!("mezite-kek-v1:{}\n", "ab".repeat(32)));
    let said = restore(&with(&wrong));
    assert!(said.code == 1 && said.stderr.contains("does not open"), "{said:?}");
    let said = node.run("run", &[]);
    assert!(said.code == 1 && said.stderr.contains("`auth-node restore` was interrupted"), "{said:?}");
    // What was interrupted goes on; here because its port was taken.
    let taken = TcpListener::bind(node.peer_address()).unwrap();
    let said = restore(&with(&kek));
    assert!(said.code == 1 && said.stderr.contains("cannot listen"), "{said:?}");
    drop(taken);
    let damaged = cluster.dir().join("damaged");
    let mut bytes = fs::read(backup).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&damaged, bytes).unwrap();
    let other = [&["--from".to_owned(), damaged.to_str().unwrap().to_owned()], &with(&kek)[2..]].concat();
    let said = restore(&other);
    assert!(said.code == 1 && said.stderr.contains("another backup"), "{said:?}");
    let printed = restore(&with(&kek)).ok();
    assert!(
        printed.contains(cluster.ca_pin()) && printed.contains(saved["sha256"].as_str().unwrap()),
        "{printed}"
    );
    let said = restore(&with(&kek));
    assert!(said.code == 1 && said.stderr.contains("nothing was changed"), "{said:?}");
    let elsewhere = AuthNode::configure("damaged-one", cluster.dir(), &Setup::default());
    let said = elsewhere.run("restore", &other.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(said.code == 1 && !elsewhere.data_dir().join("store/db").exists(), "{said:?}");
    let found = checked(&node);
    assert!(found["sound"] == true && found["log_records"].as_u64().unwrap() > 10, "{found}");

    node.start();
    node.ready().await;
    assert_void(&cluster, &node, &[&live, &revoked, cluster.session()]).await;
    let ctl = log_in(&cluster, &node);
    let _ = ctl.ok(&["roles", "get", "developer"]);
    assert_eq!(ctl.json(&["users", "get", "alice"])["roles"][0], "developer");
    let nodes = ctl.json(&["nodes", "ls"]);
    assert_eq!(nodes[0]["agent_id"], agent.id, "{nodes}");
    assert_eq!(
        ctl.json(&["tokens", "ls"]).as_array().unwrap().len(),
        0,
        "tokens that were used would be good again"
    );
    let anonymous = api::client(&[node.address()], cluster.trust(), None, None);
    let validate = v1::ValidateJoinTokenRequest { token };
    api::refused(call!(anonymous, validate_join_token, validate), Code::PermissionDenied);
    api::log_in(&anonymous, "alice", PASSWORD).await.unwrap();
    // The host is the new cluster's as it was the old one's.
    let host = api::client(&[node.address()], cluster.trust(), None, Some(&agent.identity()));
    call!(host, agent_heartbeat, v1::AgentHeartbeatRequest { version: "1".into(), ..Default::default() })
        .unwrap();

    // Nodes of the old cluster are none of the new one.
    let status = ctl.json(&["cluster", "status"]);
    let id = status["cluster_id"].as_str().unwrap();
    assert_ne!(saved["cluster_id"], id);
    assert_eq!((&status["node_id"], status["members"].as_array().unwrap().len()), (&1.into(), 1));
    for old in cluster.nodes() {
        let said = show_peer(&old.data_dir().join("peer.crt"), &node, id).await;
        assert!(said.contains("fatal alert"), "{said}");
    }
    let mut second = join(&cluster, &ctl, "second").await;
    assert_eq!(ctl.json(&["cluster", "ls"]).as_array().unwrap().len(), 2);
    second.stop().await;
    node.stop().await;
    let after = checked(&node);
    assert!(after["log_records"].as_u64() > found["log_records"].as_u64(), "it goes on: {after}");
    drop(second);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_node_that_is_left_becomes_a_new_cluster() {
    let mut cluster = Cluster::start(3).await;
    let workers = Workers::start(&cluster);
    cluster.add_user("alice", &["access"], &[]).await;
    let live = cluster.session_of("alice").await;
    workers.go_on().await;
    let ledger = workers.finish().await;
    // Whoever leads has all that was acknowledged.
    let left = cluster.leader().await;
    (0..3).for_each(|index| cluster.node(index).kill());
    let admin = cluster.session().clone();
    let mut node = cluster.forget(left);

    let before = checked(&node);
    assert_eq!(node.run("recover", &CONFIRMED[..1]).code, 2, "both must be said");
    assert_eq!(checked(&node), before, "nothing was changed");
    let taken = TcpListener::bind(node.peer_address()).unwrap();
    let said = node.run("recover", &CONFIRMED);
    assert!(said.code == 1 && said.stderr.contains("cannot listen"), "{said:?}");
    let said = node.run("run", &[]);
    assert!(said.code == 1 && said.stderr.contains("`auth-node recover` was interrupted"), "{said:?}");
    drop(taken);
    let printed = node.run("recover", &CONFIRMED).ok();
    let old = before["cluster_id"].as_str().unwrap();
    let aside = node.data_dir().join(format!("before-recovery-{old}"));
    assert!(printed.contains(aside.to_str().unwrap()), "{printed}");
    for kept in ["store/db", "state.backup", "node.json", "peer.key", "peer.crt", "peer-ca.crt"] {
        assert!(aside.join(kept).exists(), "{kept}");
    }
    let after = checked(&node);
    assert_ne!(after["cluster_id"], before["cluster_id"]);
    assert!(after["log_records"].as_u64() > before["log_records"].as_u64(), "{after}");

    node.start();
    node.ready().await;
    assert_void(&cluster, &node, &[&live, &admin]).await;
    let ctl = log_in(&cluster, &node);
    let users = ctl.json(&["users", "ls"]);
    let users: Vec<_> = users.as_array().unwrap().iter().map(|user| user["name"].as_str().unwrap()).collect();
    assert!(users.contains(&"alice"));
    let is_user = |name: &&String| name.rsplit('-').next().unwrap().parse::<u64>().unwrap() % 8 == 0;
    for name in ledger.kept.iter().filter(is_user) {
        assert!(users.contains(&name.as_str()), "{name} is lost: {users:?}");
    }
    let second = join(&cluster, &ctl, "second").await;
    assert_eq!(ctl.json(&["cluster", "ls"]).as_array().unwrap().len(), 2);
    drop(second);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_tells_a_sound_directory_from_a_damaged_one() {
    let mut cluster = Cluster::start(1).await;
    cluster.add_user("alice", &["access"], &[]).await;
    let pin = cluster.ca_pin().to_owned();
    let node = cluster.node(0);
    let said = node.run("check", &[]);
    assert!(said.code == 1 && said.stderr.contains("used by another auth-node process"), "{said:?}");
    assert_eq!(node.stop().await.code(), Some(0));
    let printed = node.run("check", &[]).ok();
    assert!(printed.ends_with("sound\n") && !printed.contains("problem"), "{printed}");
    // By which people, hosts and further nodes know the cluster.
    let found = checked(node);
    let peer_pin = found["peer_ca_pin"].as_str().unwrap();
    assert_eq!((&found["sound"], &found["ca_pin"]), (&true.into(), &pin.as_str().into()));
    for line in [format!("ca pin     {pin}\n"), format!("peer pin   {peer_pin}\n")] {
        assert!(peer_pin != pin && printed.contains(&line), "{printed}");
    }

    let not_sound = |node: &AuthNode, about: &str| {
        let found = node.run("check", &[]);
        assert!(found.code == 2 && found.stdout.contains("problem"), "{found:?}");
        assert!(found.stdout.contains(about) && found.stdout.ends_with("NOT SOUND\n"), "{found:?}");
        let found: Value = serde_json::from_str(&node.run("check", &["--json"]).stdout).unwrap();
        assert_eq!(found["sound"], false, "{found}");
    };
    let (kek, away) = (node.data_dir().join("kek"), node.data_dir().join("kek.away"));
    fs::rename(&kek, &away).unwrap();
    not_sound(node, "kek");
    fs::rename(&away, &kek).unwrap();
    assert_eq!(checked(node)["sound"], true);

    // A byte in the middle of what holds the data.
    let files = all_files(&node.data_dir().join("store/db"));
    let data = files.into_iter().filter(|file| {
        matches!(file.extension().and_then(|extension| extension.to_str()), Some("log" | "sst"))
    });
    let largest = data.max_by_key(|file| fs::metadata(file).unwrap().len()).unwrap();
    let mut bytes = fs::read(&largest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x40;
    fs::write(&largest, bytes).unwrap();
    not_sound(node, "");
    let said = node.run("run", &[]);
    assert!(said.code == 1, "it does not serve what is damaged: {said:?}");
}
