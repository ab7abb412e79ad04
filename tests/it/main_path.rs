//! What the product is for: a user who logs in at any node, gets a certificate, and reaches a host with a stock ssh.

use mezite_e2e::{Agent, AgentSpec, Cluster, Ctl, Ingest, PASSWORD, Port, Sshd, account};
use mezite_pki::ssh::parse_certificate;
use serde_json::Value;

use crate::support::{add_role, add_user, texts};

const OPERATOR: &str = r#"
  allow:
    logins: ["{{internal.logins}}"]
    node_labels: {env: [prod]}
  options:
    max_session_ttl: 1h
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_user_reaches_a_host_through_every_node() {
    let cluster = Cluster::start(3).await;
    let login = account();
    add_role(&cluster, "operator", OPERATOR);
    add_user(&cluster, "alice", "operator", &login);
    let port = Port::lease();
    let spec = AgentSpec { address: &port.address(), labels: "env=prod", ..AgentSpec::default() };
    let agent = Agent::join(&cluster, spec);
    assert!(agent.heartbeat()["next_interval_seconds"].as_f64().unwrap() > 0.0);
    let sshd = Sshd::start(&agent, port).await;

    for (index, node) in cluster.nodes().iter().enumerate() {
        let home = cluster.dir().join(format!("home-alice-{index}"));
        let ctl = Ctl::new(&home, &[node.address()], cluster.ca_pin());
        let _ = ctl.login("alice", PASSWORD).ok();
        let ctl = ctl.by_profile();

        // It may have been a while, on a busy machine.
        let _ = agent.heartbeat();
        let nodes = ctl.json(&["nodes", "ls"]);
        let [node] = nodes.as_array().unwrap().as_slice() else { panic!("{nodes}") };
        assert_eq!(node["agent_id"], agent.id.as_str());
        assert_eq!(node["hostname"], "web1.example.org");
        assert_eq!(node["online"], true);
        assert_eq!(texts(&node["logins"]), [login.as_str()]);

        let folder = cluster.dir().join(format!("certificates-{index}"));
        let issued = ctl.json(&["certs", "issue", "--out", folder.to_str().unwrap()]);
        assert_eq!(issued["key_id"], "alice");
        assert_eq!(texts(&issued["principals"]), [format!("{login}@{}", agent.id)]);

        let ssh = sshd.client(&folder);
        assert_eq!(ssh.run(&login, "id -un; echo $((6 * 7))").ok(), format!("{login}\n42\n"));
    }
    // The host's log says who it was, by the name that the cluster knows.
    sshd.says("ID alice").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_lasts_no_longer_than_its_roles_allow() {
    let cluster = Cluster::start(1).await;
    add_role(&cluster, "operator", OPERATOR);
    add_user(&cluster, "alice", "operator", "deploy");
    let _agent = Agent::join(&cluster, AgentSpec { labels: "env=prod", ..AgentSpec::default() });
    let lifetime = |args: &[&str]| {
        let (folder, _) = crate::support::certificates(&cluster, "alice", args);
        let line = std::fs::read_to_string(folder.join("key-cert.pub")).unwrap();
        let certificate = parse_certificate(line.trim()).unwrap();
        certificate.valid_before - certificate.valid_after
    };
    // It begins a minute back, for clocks that are not quite the same.
    assert_eq!(lifetime(&[]), 3600 + 60);
    assert_eq!(lifetime(&["--ttl", "10h"]), 3600 + 60);
    assert_eq!(lifetime(&["--ttl", "5m"]), 300 + 60);
}

#[tokio::test(flavor = "multi_thread")]
async fn status_shows_members_leader_agents_and_ingests() {
    let cluster = Cluster::start(3).await;
    let (ingests, _) = Ingest::start_all(&cluster, 2).await;
    let agent = Agent::join(&cluster, AgentSpec::default());
    let _ = agent.heartbeat();
    let status = cluster.ctl().json(&["status"]);
    assert_eq!(texts(&status["ca_pins"]), [cluster.ca_pin()]);
    assert_eq!(status["login"]["active"], true);

    let addresses = status["addresses"].as_array().unwrap();
    assert!(addresses.iter().all(|address| address["error"].is_null()), "{addresses:?}");
    assert_eq!(addresses.len(), 3);

    let members = status["cluster"]["members"].as_array().unwrap();
    let count = |role: &str| members.iter().filter(|member| member["role"] == role).count();
    assert_eq!((count("leader"), count("voter"), members.len()), (1, 2, 3), "{members:?}");
    let mut listed: Vec<_> =
        members.iter().map(|member| member["api_address"].as_str().unwrap().to_owned()).collect();
    let mut expected = cluster.addresses();
    listed.sort();
    expected.sort();
    assert_eq!(listed, expected);

    let known: Vec<_> = status["cluster"]["ingests"].as_array().unwrap().iter().collect();
    assert_eq!(known.len(), 2);
    for ingest in &ingests {
        let found = known.iter().find(|known| known["agent_id"] == ingest.id().as_str()).unwrap();
        assert_eq!((&found["online"], &found["address"]), (&Value::from(true), &ingest.address().into()));
    }
    assert_eq!(status["cluster"]["nodes_online"], 1);
    assert_eq!(status["cluster"]["nodes_total"], 1);
}
