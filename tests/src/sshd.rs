//! A stock OpenSSH server with the snippet that `mezctl agent join` writes, and a stock OpenSSH client.

use std::{
    fs,
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use nix::unistd;

use crate::{Agent, Output, Port, Process, ctl::run, eventually};

const SSHD: &str = "/usr/sbin/sshd";
/// Where Debian has the program of the sftp subsystem.
const SFTP: &str = "/usr/lib/openssh/sftp-server";
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
             KbdInteractiveAuthentication no\nSubsystem sftp {SFTP}\n",
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

    /// Logs in and runs a command, not started yet.
    #[must_use]
    pub fn start(&self, login: &str, command: &str) -> Command {
        let mut start = self.command(login);
        start.arg(command);
        start
    }

    /// Logs in for a shell in a terminal, whatever this program's input is.
    #[must_use]
    pub fn shell(&self, login: &str) -> Shell {
        Shell::start(self.with(&["-tt"]).command(login))
    }

    /// Another program of OpenSSH's that takes the same options, such as `scp`: not started yet, and without a host.
    #[must_use]
    pub fn program(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.args(["-F", "none", "-P", &self.port.to_string()]);
        command.args(self.arguments());
        command
    }

    fn command(&self, login: &str) -> Command {
        let mut command = Command::new("ssh");
        command.args(["-F", "none", "-p", &self.port.to_string()]);
        command.args(self.arguments());
        command.arg(format!("{login}@127.0.0.1"));
        command
    }

    fn arguments(&self) -> Vec<String> {
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
        let mut arguments: Vec<String> =
            options.iter().flat_map(|option| ["-o".into(), (*option).to_owned()]).collect();
        arguments.extend(self.options.iter().cloned());
        arguments.extend(["-i".into(), self.folder.join("key").display().to_string()]);
        arguments
    }
}

/// A shell on a host, in a terminal. The connection is cut when this is dropped.
#[derive(Debug)]
pub struct Shell {
    ssh: Child,
    keys: Option<ChildStdin>,
    screen: Arc<Mutex<Vec<u8>>>,
}

impl Shell {
    fn start(mut command: Command) -> Self {
        command.env("TERM", "xterm").env("LC_ALL", "C");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut ssh = command.spawn().unwrap();
        let (keys, mut stdout) = (ssh.stdin.take(), ssh.stdout.take().unwrap());
        let screen = Arc::<Mutex<Vec<u8>>>::default();
        let seen = Arc::clone(&screen);
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = stdout.read(&mut buffer) {
                seen.lock().unwrap().extend_from_slice(&buffer[..read]);
            }
        });
        Self { ssh, keys, screen }
    }

    /// Types.
    pub fn types(&mut self, text: &str) {
        self.keys.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    /// All that was seen on the screen.
    #[must_use]
    pub fn screen(&self) -> String {
        String::from_utf8_lossy(&self.screen.lock().unwrap()).into_owned()
    }

    /// Waits until this is on the screen.
    pub async fn sees(&self, text: &str) {
        eventually("it is on the screen", LISTENING, async || {
            let screen = self.screen();
            if screen.contains(text) { Ok(()) } else { Err(format!("{text:?} is not in {screen:?}")) }
        })
        .await;
    }

    /// Waits for the end, and answers the exit code.
    pub async fn ended(&mut self) -> i32 {
        eventually("the shell ends", LISTENING, async || {
            let status = self.ssh.try_wait().unwrap();
            status.map(|status| status.code().unwrap_or(-1)).ok_or_else(|| self.screen())
        })
        .await
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.ssh.kill();
        let _ = self.ssh.wait();
    }
}
