//! A stock OpenSSH server with the snippet that `mezctl agent join` writes, and a stock OpenSSH client.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use nix::unistd;

use crate::{Agent, Output, Port, Process, ctl::run, eventually};

const SSHD: &str = "/usr/sbin/sshd";
const LISTENING: Duration = Duration::from_secs(60);

/// The account that tests log in to: whoever runs them, for sshd of an ordinary user can be nobody else.
#[must_use]
pub fn account() -> String {
    unistd::User::from_uid(unistd::geteuid()).unwrap().expect("who runs the tests has a name").name
}

/// An OpenSSH server on a leased port.
#[derive(Debug)]
pub struct Sshd {
    process: Process,
    port: Port,
    hostname: String,
}

impl Sshd {
    /// Starts the server of a host, and waits until it listens. The port was leased before, for its address is in
    /// the registration of the host.
    pub async fn start(agent: &Agent, port: Port) -> Self {
        if unistd::geteuid().is_root() {
            // Where Debian's sshd confines itself before a login; its service makes it.
            fs::create_dir_all("/run/sshd").unwrap();
        }
        let config = agent.file("sshd_config.test");
        let text = format!(
            "Include \"{}\"\nListenAddress 127.0.0.1\nPort {}\nPidFile none\nUsePAM no\nLogLevel VERBOSE\n\
             PermitRootLogin yes\nAuthorizedKeysFile none\nPasswordAuthentication no\n\
             KbdInteractiveAuthentication no\n",
            agent.file("sshd_config").display(),
            port.number()
        );
        fs::write(&config, text).unwrap();
        let mut command = Command::new(SSHD);
        command.args(["-D", "-e", "-f"]).arg(&config);
        let name = format!("sshd of {}", agent.hostname);
        let mut process = Process::spawn(&name, command, &agent.file("sshd.log"));
        let listening = format!("Server listening on 127.0.0.1 port {}.", port.number());
        eventually("sshd listens", LISTENING, async || {
            process.assert_running();
            process.log().contains(&listening).then_some(()).ok_or("not yet")
        })
        .await;
        Self { process, port, hostname: agent.hostname.clone() }
    }

    /// Number of its port.
    #[must_use]
    pub fn number(&self) -> u16 {
        self.port.number()
    }

    /// Shell command that has it read its configuration, keys and certificates anew.
    #[must_use]
    pub fn reload(&self) -> String {
        format!("kill -HUP {}", self.process.id())
    }

    /// All that it said.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Waits until it has said this: some of it comes after the client has its answer.
    pub async fn says(&self, words: &str) {
        eventually("sshd says it", LISTENING, async || {
            let log = self.log();
            if log.contains(words) { Ok(()) } else { Err(format!("{words:?} is not in {log}")) }
        })
        .await;
    }

    /// A client for it with the key, certificate and known hosts of a folder that `mezctl certs issue` wrote.
    #[must_use]
    pub fn client(&self, folder: &Path) -> Ssh {
        Ssh {
            folder: folder.to_owned(),
            port: self.port.number(),
            hostname: self.hostname.clone(),
            options: Vec::new(),
        }
    }
}

/// `ssh`, strict about the host.
#[derive(Debug, Clone)]
pub struct Ssh {
    folder: PathBuf,
    port: u16,
    hostname: String,
    options: Vec<String>,
}

impl Ssh {
    /// With further options.
    #[must_use]
    pub fn with(&self, options: &[&str]) -> Self {
        let mut ssh = self.clone();
        ssh.options.extend(options.iter().map(|&option| option.to_owned()));
        ssh
    }

    /// Logs in and runs a command.
    #[must_use]
    pub fn run(&self, login: &str, command: &str) -> Output {
        run(self.command(login).arg(command))
    }

    /// Logs in and has the host connect it to a port of the host.
    #[must_use]
    pub fn forward(&self, login: &str, port: u16) -> Output {
        run(self.command(login).args(["-W", &format!("127.0.0.1:{port}")]))
    }

    fn command(&self, login: &str) -> Command {
        let known_hosts = format!("UserKnownHostsFile={}", self.folder.join("known_hosts").display());
        // The name that the user would type, where there is no DNS.
        let alias = format!("HostKeyAlias={}", self.hostname);
        let options = [
            "BatchMode=yes",
            "IdentityAgent=none",
            "IdentitiesOnly=yes",
            "StrictHostKeyChecking=yes",
            "GlobalKnownHostsFile=none",
            "ConnectTimeout=20",
            &known_hosts,
            &alias,
        ];
        let mut command = Command::new("ssh");
        command.args(["-F", "none", "-p", &self.port.to_string()]);
        command.args(options.iter().flat_map(|option| ["-o", option]));
        command.args(&self.options).arg("-i").arg(self.folder.join("key"));
        command.arg(format!("{login}@127.0.0.1"));
        command
    }
}
