//! What a stock OpenSSH makes of the cluster's certificates, above all what it refuses.

use std::{fs, path::Path, process::Command, time::Duration};

use mezite_e2e::{Agent, AgentSpec, Cluster, Port, Sshd, account, eventually, run};

use crate::support::{EVERYWHERE, add_role, add_user, certificates, texts};

/// A host with an sshd.
async fn host(cluster: &Cluster, hostname: &str, labels: &str) -> (Agent, Sshd) {
    let port = Port::lease();
    let spec = AgentSpec { hostname, address: &port.address(), labels, ..AgentSpec::default() };
    let agent = Agent::join(cluster, spec);
    let sshd = Sshd::start(&agent, port).await;
    (agent, sshd)
}

fn denied(output: mezite_e2e::Output) {
    let said = output.failed(255);
    assert!(said.contains("Permission denied (publickey)"), "{said}");
}

/// `ssh-keygen -L` of a certificate.
fn show(certificate: &Path) -> String {
    run(Command::new("ssh-keygen").arg("-L").arg("-f").arg(certificate)).ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_ends_when_it_says() {
    let cluster = Cluster::start(1).await;
    let (_, sshd) = host(&cluster, "web1.example.org", "").await;
    let login = account();
    add_role(&cluster, "everywhere", EVERYWHERE);
    add_user(&cluster, "alice", "everywhere", &login);

    let (folder, _) = certificates(&cluster, "alice", &[]);
    assert_eq!(sshd.client(&folder).run(&login, "echo in").ok(), "in\n");
    let (folder, _) = certificates(&cluster, "alice", &["--ttl", "1s"]);
    let ssh = sshd.client(&folder);
    let refused = eventually("the certificate ends", Duration::from_secs(60), async || {
        let output = ssh.run(&login, "echo in");
        if output.code == 0 { Err("it is still good") } else { Ok(output) }
    });
    denied(refused.await);
    sshd.says("Certificate invalid: expired").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_good_for_its_logins_alone() {
    let cluster = Cluster::start(1).await;
    let (_, sshd) = host(&cluster, "web1.example.org", "").await;
    let login = account();
    add_role(&cluster, "everywhere", EVERYWHERE);
    add_user(&cluster, "alice", "everywhere", &format!("{login},deploy"));
    add_user(&cluster, "bob", "everywhere", "deploy");

    let (folder, issued) = certificates(&cluster, "alice", &[]);
    let mut logins = texts(&issued["principals"]);
    logins.sort_unstable();
    let mut expected = vec!["deploy", &login];
    expected.sort_unstable();
    assert_eq!(logins, expected, "a role for every node needs no list of nodes");
    assert_eq!(sshd.client(&folder).run(&login, "echo in").ok(), "in\n");

    let (folder, _) = certificates(&cluster, "bob", &[]);
    denied(sshd.client(&folder).run(&login, "echo in"));
    let (folder, _) = certificates(&cluster, "alice", &["--logins", "deploy"]);
    denied(sshd.client(&folder).run(&login, "echo in"));

    // What a role does not allow cannot be asked for.
    let ctl = cluster.ctl_named("bob").by_profile();
    let folder = folder.to_str().unwrap();
    let said = ctl.run(&["certs", "issue", "--out", folder, "--logins", &login]).failed(3);
    assert!(said.contains(&login), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_good_for_its_nodes_alone() {
    let cluster = Cluster::start(1).await;
    let (red, red_sshd) = host(&cluster, "red.example.org", "team=red").await;
    let (blue, blue_sshd) = host(&cluster, "blue.example.org", "team=blue").await;
    let login = account();
    add_role(
        &cluster,
        "red",
        "  allow:\n    logins: [\"{{internal.logins}}\"]\n    node_labels: {team: red}\n",
    );
    add_role(&cluster, "everywhere", EVERYWHERE);
    add_user(&cluster, "alice", "red", &login);
    add_user(&cluster, "bob", "everywhere", &login);

    let (folder, issued) = certificates(&cluster, "alice", &[]);
    assert_eq!(texts(&issued["principals"]), [format!("{login}@{}", red.id)]);
    assert_eq!(red_sshd.client(&folder).run(&login, "echo in").ok(), "in\n");
    denied(blue_sshd.client(&folder).run(&login, "echo in"));

    // Who may go everywhere can ask for less.
    let (folder, issued) = certificates(&cluster, "bob", &["--node", "blue.example.org"]);
    assert_eq!(texts(&issued["principals"]), [format!("{login}@{}", blue.id)]);
    assert_eq!(blue_sshd.client(&folder).run(&login, "echo in").ok(), "in\n");
    denied(red_sshd.client(&folder).run(&login, "echo in"));

    // A host cannot widen who may go there by what it says of itself, where an admin said otherwise.
    let _ = cluster.ctl().ok(&["nodes", "update", &red.id, "--labels", "team=green"]);
    let ctl = cluster.ctl_named("alice").by_profile();
    assert_eq!(ctl.json(&["nodes", "ls"]).as_array().unwrap().len(), 0);
    let _ = ctl.run(&["certs", "issue", "--out", folder.to_str().unwrap()]).failed(3);
}

#[tokio::test(flavor = "multi_thread")]
async fn deny_wins() {
    let cluster = Cluster::start(1).await;
    let (_, prod) = host(&cluster, "prod.example.org", "env=prod").await;
    let (test, test_sshd) = host(&cluster, "test.example.org", "env=test").await;
    let login = account();
    add_role(&cluster, "everywhere", EVERYWHERE);
    add_role(
        &cluster,
        "not-in-prod",
        &format!("  deny:\n    logins: [{login}]\n    node_labels: {{env: prod}}\n"),
    );
    add_role(&cluster, "never", &format!("  deny:\n    logins: [{login}]\n"));
    add_user(&cluster, "alice", "everywhere,not-in-prod", &login);
    add_user(&cluster, "bob", "never,everywhere", &login);

    let (folder, issued) = certificates(&cluster, "alice", &[]);
    assert_eq!(texts(&issued["principals"]), [format!("{login}@{}", test.id)]);
    assert_eq!(test_sshd.client(&folder).run(&login, "echo in").ok(), "in\n");
    denied(prod.client(&folder).run(&login, "echo in"));

    let ctl = cluster.ctl_named("bob");
    let _ = ctl.login("bob", mezite_e2e::PASSWORD).ok();
    let _ = ctl.by_profile().run(&["certs", "issue", "--out", folder.to_str().unwrap()]).failed(3);
}

#[tokio::test(flavor = "multi_thread")]
async fn forwarding_and_a_terminal_are_for_roles_to_allow() {
    let cluster = Cluster::start(1).await;
    let (_, sshd) = host(&cluster, "web1.example.org", "").await;
    let login = account();
    add_role(&cluster, "everywhere", EVERYWHERE);
    add_role(&cluster, "forwards", &format!("{EVERYWHERE}  options:\n    permit_port_forwarding: true\n"));
    add_role(&cluster, "no-terminal", "  options:\n    permit_pty: false\n");
    add_user(&cluster, "alice", "everywhere", &login);
    add_user(&cluster, "bob", "forwards", &login);
    add_user(&cluster, "carol", "everywhere,no-terminal", &login);

    let (folder, _) = certificates(&cluster, "alice", &[]);
    let ssh = sshd.client(&folder);
    let said = ssh.forward(&login, sshd.number());
    assert_ne!(said.code, 0);
    assert!(said.stderr.contains("administratively prohibited"), "{said:?}");
    // A server of an ordinary user is allowed to, and cannot everywhere, give the terminal away.
    let output = ssh.with(&["-tt"]).run(&login, "tty");
    assert!(!output.stderr.contains("PTY allocation request failed"), "{output:?}");
    if login == "root" {
        assert!(output.ok().contains("/dev/pts/"));
    }

    let (folder, _) = certificates(&cluster, "bob", &[]);
    let forwarded = sshd.client(&folder).forward(&login, sshd.number());
    assert!(forwarded.stdout.starts_with("SSH-2.0-OpenSSH"), "{forwarded:?}");

    let (folder, _) = certificates(&cluster, "carol", &[]);
    let output = sshd.client(&folder).with(&["-tt"]).run(&login, "tty");
    assert!(output.stderr.contains("PTY allocation request failed"), "{output:?}");
    assert!(!output.stdout.contains("/dev/pts/"), "{output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_the_cluster_did_not_certify_is_not_trusted() {
    let cluster = Cluster::start(1).await;
    let (agent, sshd) = host(&cluster, "web1.example.org", "").await;
    let login = account();
    add_role(&cluster, "everywhere", EVERYWHERE);
    add_user(&cluster, "alice", "everywhere", &login);
    let (folder, _) = certificates(&cluster, "alice", &[]);
    assert_eq!(sshd.client(&folder).run(&login, "echo in").ok(), "in\n");
    drop(sshd);

    // The same host without its certificate: a key that nobody vouches for.
    let snippet = fs::read_to_string(agent.file("sshd_config")).unwrap();
    let without: String = snippet
        .lines()
        .filter(|line| !line.starts_with("HostCertificate"))
        .fold(String::new(), |all, line| all + line + "\n");
    assert_ne!(snippet.trim(), without.trim());
    fs::write(agent.file("sshd_config"), without).unwrap();
    let sshd = Sshd::start(&agent, Port::lease()).await;
    let said = sshd.client(&folder).run(&login, "echo in").failed(255);
    assert!(said.contains("Host key verification failed"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ssh_keygen_reads_the_certificates() {
    let cluster = Cluster::start(1).await;
    let agent = Agent::join(&cluster, AgentSpec::default());
    add_role(
        &cluster,
        "careful",
        &format!("{EVERYWHERE}  options:\n    max_session_ttl: 30m\n    source_addresses: [127.0.0.0/8]\n"),
    );
    add_user(&cluster, "alice", "careful", "deploy");
    let (folder, _) = certificates(&cluster, "alice", &[]);
    let text = show(&folder.join("key-cert.pub"));
    for part in [
        "ssh-ed25519-cert-v01@openssh.com user certificate",
        "Key ID: \"alice\"",
        "Principals: \n                deploy\n",
        "Critical Options: \n                source-address 127.0.0.0/8\n",
        "Extensions: \n                permit-pty",
    ] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    for part in ["permit-port-forwarding", "permit-agent-forwarding", "permit-X11-forwarding", "forever"] {
        assert!(!text.contains(part), "{part:?} is in {text}");
    }

    let text = show(&agent.file("ssh_host_ed25519_key-cert.pub"));
    for part in ["host certificate", "Principals: \n                web1.example.org\n", &agent.id] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    assert!(!text.contains("forever"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_good_from_its_networks_alone() {
    let cluster = Cluster::start(1).await;
    let (_, sshd) = host(&cluster, "web1.example.org", "").await;
    let login = account();
    for (name, network) in [("here", "127.0.0.0/8"), ("elsewhere", "192.0.2.0/24")] {
        add_role(&cluster, name, &format!("{EVERYWHERE}  options:\n    source_addresses: [{network}]\n"));
        add_user(&cluster, &format!("user-{name}"), name, &login);
    }
    let (folder, _) = certificates(&cluster, "user-here", &[]);
    assert_eq!(sshd.client(&folder).run(&login, "echo in").ok(), "in\n");
    let (folder, _) = certificates(&cluster, "user-elsewhere", &[]);
    denied(sshd.client(&folder).run(&login, "echo in"));
}
