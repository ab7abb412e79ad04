//! A host of the cluster, made with `mezctl agent join`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use mezite_client::{Client, ClientIdentity};
use serde_json::Value;

use crate::{Cluster, Ctl, Process, api, secret_file};

/// What a host says of itself when it joins.
#[derive(Debug, Clone, Copy)]
pub struct AgentSpec<'a> {
    /// DNS name: the name that a user gives ssh.
    pub hostname: &'a str,
    /// host:port of its sshd.
    pub address: &'a str,
    /// `key=value,…`; may be empty.
    pub labels: &'a str,
    /// Labels that the join token gives it; may be empty.
    pub admin_labels: &'a str,
    /// Addresses of the auth nodes by which it joins: all of them, where there are none.
    pub addresses: &'a [String],
    /// Folder of the programs of another build, whose `mezctl` it joins and runs with.
    pub programs: Option<&'a Path>,
}

impl Default for AgentSpec<'_> {
    fn default() -> Self {
        Self {
            hostname: "web1.example.org",
            address: "127.0.0.1:22",
            labels: "",
            admin_labels: "",
            addresses: &[],
            programs: None,
        }
    }
}

/// A host that has joined.
#[derive(Debug)]
pub struct Agent {
    /// Its id.
    pub id: String,
    /// First principal of its certificate.
    pub hostname: String,
    /// Its folder.
    pub dir: PathBuf,
    ctl: Ctl,
}

impl Agent {
    /// Makes a token and joins with it, both through `mezctl`; the folder is named after the host.
    #[must_use]
    pub fn join(cluster: &Cluster, spec: AgentSpec<'_>) -> Self {
        let token = cluster.dir().join(format!("{}.token", spec.hostname));
        let mut add = vec!["tokens", "add", "--out", token.to_str().unwrap()];
        if !spec.admin_labels.is_empty() {
            add.extend(["--labels", spec.admin_labels]);
        }
        let _ = cluster.ctl().json(&add);
        Self::join_with(cluster, spec, &token)
    }

    /// Joins with the token in a file.
    #[must_use]
    pub fn join_with(cluster: &Cluster, spec: AgentSpec<'_>, token: &Path) -> Self {
        let dir = cluster.dir().join(spec.hostname);
        let home = cluster.dir().join(format!("home-host-{}", spec.hostname));
        let all = cluster.addresses();
        let addresses = if spec.addresses.is_empty() { &all } else { spec.addresses };
        let ctl = Ctl::new(&home, addresses, cluster.ca_pin()).of(spec.programs);
        let joined = ctl.json(&Self::join_args(&dir, &spec, token));
        let text = |name: &str| joined[name].as_str().unwrap().to_owned();
        Self { id: text("agent_id"), hostname: text("hostname"), dir, ctl: ctl.by_profile() }
    }

    /// The arguments of the join.
    #[must_use]
    pub fn join_args<'a>(dir: &'a Path, spec: &AgentSpec<'a>, token: &'a Path) -> Vec<&'a str> {
        let (dir, token) = (dir.to_str().unwrap(), token.to_str().unwrap());
        let mut join = vec!["agent", "join", "--out", dir, "--token-file", token];
        join.extend(["--hostname", spec.hostname, "--address", spec.address]);
        if !spec.labels.is_empty() {
            join.extend(["--labels", spec.labels]);
        }
        join
    }

    /// A file of its folder.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Its certificate and key, PEM.
    #[must_use]
    pub fn pems(&self) -> (String, String) {
        let read = |name| fs::read_to_string(self.file(name)).unwrap();
        (read("tls.crt"), read("tls.key"))
    }

    /// What it shows to the cluster.
    #[must_use]
    pub fn identity(&self) -> ClientIdentity {
        let (certificate, key) = self.pems();
        ClientIdentity::from_pem(&certificate, &key).unwrap()
    }

    /// A client with its certificate.
    #[must_use]
    pub fn client(&self, cluster: &Cluster) -> Client {
        api::client(&cluster.addresses(), cluster.trust(), None, Some(&self.identity()))
    }

    /// Reports once that it lives.
    #[must_use]
    pub fn heartbeat(&self) -> Value {
        self.ctl.json(&["agent", "heartbeat", "--dir", self.dir.to_str().unwrap()])
    }

    /// `mezctl agent run`, until it is dropped.
    #[must_use]
    pub fn run(&self) -> Process {
        self.run_with(&[])
    }

    /// `mezctl agent run` with further arguments, until it is dropped.
    #[must_use]
    pub fn run_with(&self, more: &[&str]) -> Process {
        let args = [&["agent", "run", "--dir", self.dir.to_str().unwrap()], more].concat();
        Process::spawn(&format!("agent {}", self.hostname), self.ctl.command(&args), &self.file("run.log"))
    }

    /// Has sshd run its sessions through the recorder from now on, with this spool.
    pub fn record_in(&self, spool: &Path) {
        let (dir, spool) = (self.dir.to_str().unwrap(), spool.to_str().unwrap());
        let _ = self.ctl.ok(&["agent", "join", "--out", dir, "--spool", spool]);
    }

    /// `mezctl recordings upload FILE`, with further arguments.
    #[must_use]
    pub fn upload(&self, file: &Path, args: &[&str]) -> Value {
        let dir = self.dir.to_str().unwrap();
        let upload = ["recordings", "upload", file.to_str().unwrap(), "--agent", dir];
        self.ctl.json(&[&upload, args].concat())
    }

    /// `mezctl` of the host, without a login.
    #[must_use]
    pub fn ctl(&self) -> &Ctl {
        &self.ctl
    }
}

impl Cluster {
    /// Puts the secret of a token into a file, as `mezctl` takes it.
    #[must_use]
    pub fn token_file(&self, name: &str, secret: &str) -> PathBuf {
        let path = self.dir().join(name);
        secret_file(&path, secret);
        path
    }
}
