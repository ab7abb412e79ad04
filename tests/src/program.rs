//! A program that serves, as an operator has it: a folder with its configuration, its data and its log, and its process
//! while it runs.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    time::Duration,
};

use nix::sys::signal::Signal;

use crate::{Output, Port, Process, binary, ctl::run, eventually, http, tied};

/// A program that does not become ready in this time never will. A debug build on a loaded machine takes its time.
pub(crate) const READY: Duration = Duration::from_secs(60);
/// It is given so long to drain.
const STOPPED: Duration = Duration::from_secs(60);

/// A program that serves: its folder and the port of its diagnostics for good, its process while it runs.
#[derive(Debug)]
pub struct Program {
    process: Option<Process>,
    binary: &'static str,
    name: String,
    diagnostics: Port,
    dir: PathBuf,
    set: Vec<String>,
    env: Vec<(String, String)>,
    /// Whether it is killed when the thread that starts it has ended.
    pub(crate) tied: bool,
    /// Folder of its binary, where that is not this build's.
    pub(crate) programs: Option<PathBuf>,
}

impl Program {
    /// One of this binary, in a new folder `name` of `dir`, with these `--set` options and this environment.
    pub(crate) fn new(
        binary: &'static str,
        name: &str,
        dir: &Path,
        set: &[String],
        env: &[(String, String)],
    ) -> Self {
        let dir = dir.join(name);
        fs::create_dir(&dir).unwrap();
        let (set, env) = (set.to_vec(), env.to_vec());
        let (name, diagnostics) = (name.to_owned(), Port::lease());
        Self { process: None, binary, name, diagnostics, dir, set, env, tied: false, programs: None }
    }

    /// Writes its configuration file: `fields`, and those that every program has.
    pub(crate) fn write_config(&self, fields: &str) {
        let common = format!(
            "data_dir = {:?}\ndiagnostics_listen = {:?}\n",
            self.data_dir(),
            self.diagnostics_address()
        );
        fs::write(self.config(), common + fields).unwrap();
    }

    /// Its name, which is that of its folder.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its configuration file.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.dir.join("config.toml")
    }

    /// Where its identity and its state are.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// host:port of its diagnostics.
    #[must_use]
    pub fn diagnostics_address(&self) -> String {
        self.diagnostics.address()
    }

    /// `BINARY COMMAND --config … ARGS…`, with nothing of this environment that configures it.
    #[must_use]
    pub fn command(&self, subcommand: &str, args: &[&str]) -> Command {
        let binary = self.programs.as_ref().map_or_else(|| binary(self.binary), |dir| dir.join(self.binary));
        let mut command = if self.tied { tied(binary) } else { Command::new(binary) };
        for (name, _) in env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("MEZITE_")) {
            command.env_remove(name);
        }
        command.arg(subcommand).arg("--config").arg(self.config()).args(args);
        command.args(self.set.iter().flat_map(|set| ["--set", set]));
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs a command of it that ends by itself.
    #[must_use]
    pub fn run(&self, subcommand: &str, args: &[&str]) -> Output {
        run(&mut self.command(subcommand, args))
    }

    /// From its next start on it is the binary of another build, in this folder; `None`: of this one.
    pub fn exchange(&mut self, programs: Option<&Path>) {
        self.programs = programs.map(Path::to_owned);
    }

    /// Starts it; it need not be ready.
    ///
    /// # Panics
    /// When it runs.
    pub fn start(&mut self) {
        assert!(self.process.is_none(), "{} runs", self.name);
        self.process = Some(Process::spawn(&self.name, self.command("run", &[]), &self.dir.join("log")));
    }

    /// Waits until it says that it is ready.
    pub async fn ready(&mut self) {
        self.ready_within(READY).await;
    }

    /// As [`Program::ready`], for one that takes longer.
    pub async fn ready_within(&mut self, patience: Duration) {
        let (what, address) = (format!("{} is ready", self.name), self.diagnostics.address());
        let process = self.process.as_mut().unwrap();
        eventually(&what, patience, async || {
            process.assert_running();
            match http::get(&address, "/readyz").await {
                Ok((200, _)) => Ok(()),
                Ok((status, body)) => Err(format!("{status} {body}")),
                Err(error) => Err(error.to_string()),
            }
        })
        .await;
    }

    /// Whether it was started and not ended by the test.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// Its process.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn process(&self) -> &Process {
        self.process.as_ref().unwrap()
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.process.take().unwrap().kill();
    }

    /// SIGTERM; how it ended.
    pub async fn stop(&mut self) -> ExitStatus {
        self.process().signal(Signal::SIGTERM);
        self.ended().await
    }

    /// Waits until it has ended by itself, or as it was told to; how it did.
    pub async fn ended(&mut self) -> ExitStatus {
        let status = self.process.as_mut().unwrap().exited(STOPPED).await;
        self.process = None;
        status
    }

    /// All that it printed.
    #[must_use]
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.dir.join("log")).unwrap_or_default()).into_owned()
    }
}
