//! `mezctl ssh-config`: plain `ssh HOST`, by a stock OpenSSH, which gets its certificates by itself.

use std::{
    fs,
    path::PathBuf,
    process::Command,
    time::{Duration, UNIX_EPOCH},
};

use mezite_daemon::clock;
use mezite_e2e::{Agent, AgentSpec, Cluster, Ctl, Output, PASSWORD, Port, Sshd, account, run};
use mezite_pki::ssh::{CertificateInfo, parse_certificate};
use tokio::time::sleep;

use crate::support::{EVERYWHERE, add_role, add_user};

/// A user's home and its ssh, and a host with an sshd.
struct World {
    ctl: Ctl,
    config: PathBuf,
    _sshd: Sshd,
    // The last: the others write to its folder until they end.
    cluster: Cluster,
}

impl World {
    async fn start() -> Self {
        let cluster = Cluster::start(1).await;
        let port = Port::lease();
        let agent = Agent::join(&cluster, AgentSpec { address: &port.address(), ..AgentSpec::default() });
        let sshd = Sshd::start(&agent, port).await;
        add_role(&cluster, "everywhere", EVERYWHERE);
        add_user(&cluster, "alice", "everywhere", &account());
        // What ssh would replace, and what a shell would split.
        let ctl = cluster.ctl_named("100% of alice");
        let _ = ctl.login("alice", PASSWORD).ok();
        let config = cluster.dir().join("ssh").join("config");
        fs::create_dir(config.parent().unwrap()).unwrap();
        Self { ctl: ctl.by_profile(), cluster, config, _sshd: sshd }
    }

    fn config(&self, args: &[&str]) -> Output {
        self.ctl.run(&[&["ssh-config", "--file", self.config.to_str().unwrap()], args].concat())
    }

    /// `ssh web1.example.org COMMAND`.
    fn ssh(&self, command: &str) -> Output {
        let mut ssh = Command::new("ssh");
        ssh.arg("-F").arg(&self.config);
        for option in
            ["BatchMode=yes", "IdentityAgent=none", "GlobalKnownHostsFile=none", "ConnectTimeout=20"]
        {
            ssh.args(["-o", option]);
        }
        run(ssh.args(["web1.example.org", command]))
    }

    fn certificate(&self) -> PathBuf {
        self.ctl.home().join("ssh/key-cert.pub")
    }

    fn parsed(&self) -> CertificateInfo {
        let line = fs::read_to_string(self.certificate()).unwrap();
        parse_certificate(line.trim()).unwrap()
    }

    fn serial(&self) -> u64 {
        self.parsed().serial
    }

    /// Has a certificate of this lifetime in the place of ssh's, for the same key.
    fn issue(&self, ttl: &str) {
        let folder = self.ctl.home().join("ssh");
        let [public, out] = [folder.join("key.pub"), folder].map(|path| path.to_str().unwrap().to_owned());
        let _ = self.ctl.ok(&["certs", "issue", "--ttl", ttl, "--public-key", &public, "--out", &out]);
    }

    /// Waits until the last third of the certificate's life has begun.
    async fn renewal_due(&self) {
        let CertificateInfo { valid_after, valid_before, .. } = self.parsed();
        let due = UNIX_EPOCH + Duration::from_secs(valid_before - (valid_before - valid_after) / 3 + 1);
        sleep(due.duration_since(clock::now()).unwrap_or_default()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_ssh_works_and_the_configuration_is_as_before_when_it_is_removed() {
    let mut world = World::start().await;
    let own = "Host *\n    ServerAliveInterval 30\n";
    fs::write(&world.config, own).unwrap();
    let said = world.config(&["--write"]).ok();
    assert!(said.contains("web1.example.org"), "{said}");
    let written = fs::read_to_string(&world.config).unwrap();
    let _ = world.config(&["--write"]).ok();
    assert_eq!(fs::read_to_string(&world.config).unwrap(), written);

    // It was never logged in by ssh: the certificate comes with the first connection.
    assert!(!world.certificate().exists());
    assert_eq!(world.ssh("echo in").ok(), "in\n");
    let serial = world.serial();

    // While it is good, nobody is asked for it.
    world.cluster.node(0).kill();
    assert_eq!(world.ssh("echo in").ok(), "in\n");
    assert_eq!(
        world.ctl.run(&["certs", "refresh"]),
        Output { code: 0, stdout: String::new(), stderr: String::new() }
    );
    assert_eq!(world.serial(), serial);

    let _ = world.config(&["--remove"]).ok();
    assert_eq!(fs::read_to_string(&world.config).unwrap(), own);
    let _ = world.config(&["--remove"]).failed(4);
    assert_ne!(world.ssh("echo in").code, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_ends_soon_is_renewed_before_a_connection() {
    let mut world = World::start().await;
    let _ = world.config(&["--write"]).ok();
    assert_eq!(world.ssh("echo in").ok(), "in\n");
    // It begins a minute back: a third of its life is more than what is left of it.
    world.issue("20s");
    let ends_soon = world.serial();
    assert_eq!(world.ssh("echo in").ok(), "in\n");
    assert_ne!(world.serial(), ends_soon);

    // Where it cannot be, it is good all the same for as long as it lasts: 40 s from then on, for a connection of a few.
    world.issue("60s");
    world.cluster.node(0).kill();
    world.renewal_due().await;
    let ran = world.ssh("echo in");
    assert!(ran.stderr.contains("could not be renewed"), "{ran:?}");
    assert_eq!(ran.ok(), "in\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn ssh_says_when_the_session_has_ended() {
    let world = World::start().await;
    let _ = world.config(&["--write"]).ok();
    assert_eq!(world.ssh("echo in").ok(), "in\n");
    // With the session goes the certificate.
    let _ = world.ctl.ok(&["logout"]);
    let said = world.ssh("echo in").failed(255);
    assert!(said.contains("not logged in") && said.contains("login`"), "{said}");
    assert!(said.contains("Permission denied") && !said.contains("authenticity"), "{said}");

    let _ = world.cluster.ctl_named("100% of alice").login("alice", PASSWORD).ok();
    assert_eq!(world.ssh("echo in").ok(), "in\n");
    let handle = world.ctl.json(&["sessions", "ls"])[0]["handle"].as_str().unwrap().to_owned();
    let _ = world.cluster.ctl().by_profile().ok(&["sessions", "revoke", &handle]);
    fs::remove_file(world.certificate()).unwrap();
    let said = world.ssh("echo in").failed(255);
    assert!(said.contains("hint:") && said.contains("login`"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_profile_has_its_own_hosts() {
    let world = World::start().await;
    let _ = world.config(&["--write"]).ok();
    let other = ["--profile", "other"];
    let login = ["login", "--user", "alice", "--password-file"];
    let password = world.ctl.home().join("password");
    let at = world.cluster.ctl_named("100% of alice");
    let _ = at.ok(&[&other[..], &login, &[password.to_str().unwrap()]].concat());
    let printed =
        world.config(&[&other[..], &["--hosts", "*.other.example,db?", "--login", "deploy"]].concat()).ok();
    for part in ["Match originalhost \"*.other.example,db?\"", "--profile other certs refresh", "User deploy"]
    {
        assert!(printed.contains(part), "{part} in {printed}");
    }
    let _ = world.config(&[&other[..], &["--write", "--hosts", "*.other.example"]].concat()).ok();
    let effective = |host: &str| {
        let config = world.config.to_str().unwrap();
        run(Command::new("ssh").args(["-G", "-F", config, host])).ok()
    };
    let of_other = world.ctl.home().join("profiles/other/ssh/key");
    assert!(
        effective("a.other.example")
            .contains(&format!("identityfile {}\n", of_other.display()).replace('%', "%%"))
    );
    assert!(!effective("web1.example.org").contains("profiles/other"));
    assert!(!effective("elsewhere.example").contains("identitiesonly yes"));
    // One is removed, and the other stays.
    let _ = world.config(&["--remove"]).ok();
    assert!(effective("a.other.example").contains("identitiesonly yes"));
    assert!(!effective("web1.example.org").contains("identitiesonly yes"));
}
