//! Runs a stock OpenSSH server on what `agent join` wrote, and logs in to it with certificates of all sorts.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::TcpListener,
    path::Path,
    process::{Child, Command, Output, Stdio},
};

use mezite_daemon::clock;
use mezite_pki::ssh::{SshCa, SshKeyPair};

use crate::cluster::{AGENT, Cluster, known_hosts, lifetime, private, user_certificate};

const OTHER: &str = "00000000-1111-4222-8333-444444444444";

/// A host that joined a cluster, and a user's key.
struct Host {
    cluster: Cluster,
    user_key: SshKeyPair,
    login: String,
    port: u16,
    sshd: Child,
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.sshd.kill();
        let _ = self.sshd.wait();
    }
}

/// How a login ended. Anything else, such as a timeout, is a broken test.
#[derive(Debug, PartialEq, Eq)]
enum Login {
    In,
    Denied,
    HostNotTrusted,
}

fn run(command: &mut Command) -> Output {
    let output = command.stdin(Stdio::null()).output().unwrap();
    eprintln!("{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    output
}

impl Host {
    fn start() -> Self {
        Self::join(Cluster::start(), "127.0.0.1")
    }

    /// With a host certificate for `web1.example.org` and another name.
    fn join(cluster: Cluster, name: &str) -> Self {
        // A blank in the path: the snippet must quote.
        let join = ["agent", "join", "--out", "an agent", "--token-file", "token"];
        let names = ["--hostname", "web1.example.org", "--principals", name];
        cluster.first(&[&join[..], &names].concat()).ok();

        let user_key = SshKeyPair::generate_ed25519("").unwrap();
        private(&cluster.path("key"), &user_key.private_openssh().unwrap());
        fs::write(cluster.path("known_hosts"), known_hosts(&cluster.authorities.host)).unwrap();
        let uid = nix::unistd::geteuid();
        if uid.is_root() {
            // Where sshd of Debian confines itself before a login; its service makes it.
            fs::create_dir_all("/run/sshd").unwrap();
        }
        let login = nix::unistd::User::from_uid(uid).unwrap().unwrap().name;
        let (sshd, port) = sshd(&cluster.path("sshd_config"), &cluster.path("an agent/sshd_config"));
        Self { cluster, user_key, login, port, sshd }
    }

    /// Logs in with a certificate of the cluster for these principals.
    fn login(&self, principals: &[&str]) -> Login {
        self.login_with(&self.cluster.authorities.user, principals, lifetime())
    }

    fn login_with(&self, ca: &SshCa, principals: &[&str], lifetime: (u64, u64)) -> Login {
        let principals = principals.iter().map(|&name| name.to_owned()).collect();
        self.login_by(&user_certificate(ca, &self.user_key.public_line(), principals, lifetime))
    }

    fn login_by(&self, certificate: &str) -> Login {
        fs::write(self.cluster.path("key-cert.pub"), format!("{certificate}\n")).unwrap();
        self.ssh("key", "known_hosts")
    }

    fn ssh(&self, key: &str, known_hosts: &str) -> Login {
        let known_hosts = format!("UserKnownHostsFile={}", self.cluster.path(known_hosts).display());
        let options = [
            "BatchMode=yes",
            "IdentityAgent=none",
            "IdentitiesOnly=yes",
            "StrictHostKeyChecking=yes",
            "GlobalKnownHostsFile=none",
            "ConnectTimeout=20",
            &known_hosts,
        ];
        let output = run(Command::new("ssh")
            .args(["-F", "none"])
            .args(options.iter().flat_map(|option| ["-o", option]))
            .arg("-i")
            .arg(self.cluster.path(key))
            .args(["-p", &self.port.to_string()])
            .arg(format!("{}@127.0.0.1", self.login))
            .arg("echo welcome"));
        let said = String::from_utf8_lossy(&output.stderr);
        match (output.status.success(), output.stdout.as_slice()) {
            (true, b"welcome\n") => Login::In,
            (false, b"") if said.contains("Permission denied (publickey)") => Login::Denied,
            (false, b"") if said.contains("Host key verification failed") => Login::HostNotTrusted,
            _ => panic!("ssh: {output:?}"),
        }
    }
}

/// Starts sshd on a free port and waits until it says that it listens.
fn sshd(config: &Path, snippet: &Path) -> (Child, u16) {
    for _ in 0..5 {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let text = format!(
            "Include \"{}\"\nListenAddress 127.0.0.1\nPort {port}\nPidFile none\nUsePAM no\nLogLevel VERBOSE\n\
             AuthorizedKeysFile none\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n",
            snippet.display()
        );
        fs::write(config, text).unwrap();
        let mut sshd = Command::new("/usr/sbin/sshd")
            .args(["-D", "-e", "-f"])
            .arg(config)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(sshd.stderr.take().unwrap()).lines().map_while(Result::ok);
        let listens = |line: String| {
            eprintln!("sshd: {line}");
            line.contains("Server listening on")
        };
        if log.by_ref().any(listens) {
            std::thread::spawn(move || log.for_each(|line| eprintln!("sshd: {line}")));
            return (sshd, port);
        }
        // Somebody else took the port in between.
        let _ = sshd.wait();
    }
    panic!("sshd does not start");
}

#[test]
fn certificates_of_this_node_are_accepted_and_no_others() {
    let host = Host::start();
    let login = host.login.clone();
    let (here, there) = (format!("{login}@{AGENT}"), format!("{login}@{OTHER}"));

    assert_eq!(host.login(&[&login]), Login::In, "good on every node");
    assert_eq!(host.login(&[&here]), Login::In, "good on this node");
    assert_eq!(host.login(&[&there, "somebody", &here]), Login::In, "this node among others");

    assert_eq!(host.login(&[&there]), Login::Denied, "another node's");
    assert_eq!(host.login(&["somebody"]), Login::Denied, "another login");
    assert_eq!(host.login(&[&format!("somebody@{AGENT}")]), Login::Denied, "another login of this node");
    assert_eq!(host.login(&[&format!("{login}@")]), Login::Denied, "no node");
    assert_eq!(host.login(&["%u"]), Login::Denied, "what sshd replaces, unreplaced");
}

#[test]
fn certificates_outside_their_lifetime_are_refused() {
    let host = Host::start();
    let (login, now) = (host.login.clone(), clock::unix_seconds());
    let with = |lifetime| host.login_with(&host.cluster.authorities.user, &[&login], lifetime);
    assert_eq!(with((now - 60, now + 600)), Login::In);
    assert_eq!(with((now - 600, now - 1)), Login::Denied, "it has ended");
    assert_eq!(with((now + 300, now + 600)), Login::Denied, "it has not begun");
}

#[test]
fn what_the_cluster_did_not_sign_is_refused() {
    let host = Host::start();
    let login = host.login.clone();
    let stranger = SshCa::generate().unwrap();
    assert_eq!(host.login_with(&stranger, &[&login], lifetime()), Login::Denied, "another CA");
    // What this product never signs, and sshd by itself would take for any login.
    let dir = host.cluster.path("");
    private(&dir.join("user_ca"), &host.cluster.authorities.user.private_openssh().unwrap());
    fs::write(dir.join("any.pub"), format!("{}\n", host.user_key.public_line())).unwrap();
    let sign = ["-q", "-s", "user_ca", "-I", "alice", "-V", "-1m:+10m", "any.pub"];
    assert!(run(Command::new("ssh-keygen").current_dir(&dir).args(sign)).status.success());
    let any = fs::read_to_string(dir.join("any-cert.pub")).unwrap();
    assert_eq!(host.login_by(any.trim()), Login::Denied, "no principal at all");
    fs::remove_file(dir.join("key-cert.pub")).unwrap();
    assert_eq!(host.ssh("key", "known_hosts"), Login::Denied, "the key without a certificate");
}

#[test]
fn a_host_of_another_authority_is_not_trusted() {
    let host = Host::start();
    assert_eq!(host.login(&[&host.login]), Login::In);
    fs::write(host.cluster.path("known_hosts"), known_hosts(&SshCa::generate().unwrap())).unwrap();
    assert_eq!(host.login(&[&host.login]), Login::HostNotTrusted);
}

#[test]
fn a_host_with_a_certificate_for_another_name_or_time_is_not_trusted() {
    let elsewhere = Host::join(Cluster::start(), "192.0.2.7");
    assert_eq!(elsewhere.login(&[&elsewhere.login]), Login::HostNotTrusted);
    let now = clock::unix_seconds();
    let ended = Host::join(Cluster::with_host_lifetime((now - 600, now - 1)), "127.0.0.1");
    assert_eq!(ended.login(&[&ended.login]), Login::HostNotTrusted);
}

#[test]
fn what_certs_issue_writes_is_all_that_ssh_needs() {
    let host = Host::start();
    host.cluster.log_in();
    let issue = |arguments: &[&str]| {
        host.cluster.run(&[&["certs", "issue", "--ttl", "5m", "--logins"], arguments].concat()).ok()
    };
    issue(&[&host.login, "--out", "everywhere"]);
    assert_eq!(host.ssh("everywhere/key", "everywhere/known_hosts"), Login::In);
    issue(&[&host.login, "--node", AGENT, "--out", "here"]);
    assert_eq!(host.ssh("here/key", "here/known_hosts"), Login::In);
    issue(&[&host.login, "--node", OTHER, "--out", "there"]);
    assert_eq!(host.ssh("there/key", "there/known_hosts"), Login::Denied);
    issue(&["somebody", "--out", "other"]);
    assert_eq!(host.ssh("other/key", "other/known_hosts"), Login::Denied);

    // With a key that the user has: the certificate is named after it, and belongs beside it.
    fs::write(host.cluster.path("key.pub"), format!("{}\n", host.user_key.public_line())).unwrap();
    issue(&[&host.login, "--public-key", "key.pub", "--out", "."]);
    assert_eq!(host.ssh("key", "known_hosts"), Login::In);
}
