//! A client in another language that has nothing but the server's reflection.

use std::{fs, process::Command};

use mezite_e2e::{Agent, AgentSpec, Cluster, PASSWORD, Port, Sshd, account, run, secret_file, tools};
use serde_json::Value;

use crate::support::{add_role, add_user, texts};

#[tokio::test(flavor = "multi_thread")]
async fn a_python_client_that_knows_the_address_alone_logs_in_and_gets_a_certificate() {
    let cluster = Cluster::start(1).await;
    let login = account();
    add_role(
        &cluster,
        "everywhere",
        "  allow:\n    logins: [\"{{internal.logins}}\"]\n    node_labels: {\"*\": \"*\"}\n",
    );
    add_user(&cluster, "alice", "everywhere", &login);
    let port = Port::lease();
    let agent = Agent::join(&cluster, AgentSpec { address: &port.address(), ..AgentSpec::default() });
    let sshd = Sshd::start(&agent, port).await;

    let dir = cluster.dir().join("python");
    fs::create_dir(&dir).unwrap();
    let file = |name: &str| dir.join(name);
    fs::write(file("ca.pem"), cluster.trust().ca_pem()).unwrap();
    secret_file(&file("password"), PASSWORD);
    let keygen = ["-q", "-t", "ed25519", "-N", "", "-f"];
    let _ = run(Command::new("ssh-keygen").args(keygen).arg(file("key"))).ok();

    let client = tools::repository().join("tests/python/client.py");
    let node = cluster.nodes()[0].address();
    let server_name = format!("{}.mezite.internal", cluster.trust().cluster_name());
    let mut command = Command::new(tools::python());
    command.arg(&client).args(["--address", &node, "--server-name", &server_name, "--user", "alice"]);
    command.arg("--ca").arg(file("ca.pem")).arg("--password-file").arg(file("password"));
    let printed = run(command.arg("--key").arg(file("key.pub")).arg("--out").arg(&dir)).ok();
    let printed: Value = serde_json::from_str(&printed).unwrap();
    let mut users = texts(&printed["users"]);
    users.sort_unstable();
    assert_eq!(users, ["alice", mezite_e2e::ADMIN]);
    assert_eq!(printed["health"], "SERVING");
    assert_eq!(printed["wrong_password"], "UNAUTHENTICATED");
    assert!(texts(&printed["services"]).contains(&mezite_proto::SERVICE_NAME));

    let shown = run(Command::new("ssh-keygen").arg("-L").arg("-f").arg(file("key-cert.pub"))).ok();
    assert!(shown.contains("user certificate") && shown.contains("Key ID: \"alice\""), "{shown}");
    assert_eq!(sshd.client(&dir).run(&login, "echo in").ok(), "in\n");
}
