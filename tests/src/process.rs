//! A program that runs: signals to it, its end, its log.

use std::{
    ffi::OsStr,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{self, Signal},
    unistd::Pid,
};

use crate::eventually;

/// Lines of a log that a failing test prints.
const TAIL: usize = 80;

/// A command that runs a program (Debian's setpriv executes it) which is killed when the thread that started it has ended, however
/// that ends.
#[must_use]
pub fn tied(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// Memory that a process holds now, in bytes (`VmRSS` of proc(5)).
///
/// # Panics
/// When there is no such process.
#[must_use]
pub fn resident_bytes(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// A program in the background. It is killed when this is dropped, and its log printed if the test failed.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a program; what it prints is added to the file `log`.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn spawn(name: &str, mut command: Command, log: &Path) -> Self {
        let file = File::options().create(true).append(true).open(log).unwrap();
        command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self { name: name.to_owned(), child, log: log.to_owned() }
    }

    /// Sends a signal.
    ///
    /// # Panics
    /// When the process is not there.
    pub fn signal(&self, signal: Signal) {
        signal::kill(self.pid(), signal).unwrap_or_else(|error| panic!("{}: {signal}: {error}", self.name));
    }

    /// Ends it at once, as `kill -9` does, and waits until it is gone.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it does not end in time.
    pub async fn exited(&mut self, within: Duration) -> ExitStatus {
        let what = format!("the end of {}", self.name);
        eventually(&what, within, async || self.child.try_wait().unwrap().ok_or("it runs")).await
    }

    /// Panics with its log when it has ended: for loops that wait for it.
    ///
    /// # Panics
    /// See above.
    pub fn assert_running(&mut self) {
        if let Some(status) = self.child.try_wait().unwrap() {
            panic!("{} has ended: {status}", self.name);
        }
    }

    /// How it has ended; `None`: it runs.
    ///
    /// # Panics
    /// When the system does not say.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// All that it printed.
    #[must_use]
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Memory that it holds now, in bytes.
    #[must_use]
    pub fn resident_bytes(&self) -> u64 {
        resident_bytes(self.id())
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            let tail = lines.iter().skip(lines.len().saturating_sub(TAIL));
            eprintln!("--- {} ({})", self.name, self.log.display());
            tail.for_each(|line| eprintln!("{line}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::process::ExitStatusExt as _, sync::mpsc};

    use super::*;
    use crate::Scratch;

    fn shell(script: &str, dir: &Scratch) -> Process {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Process::spawn("sh", command, &dir.path().join("log"))
    }

    #[tokio::test]
    async fn its_end_and_its_words_are_seen() {
        let dir = Scratch::new();
        let mut process = shell("echo out; echo err >&2; exit 3", &dir);
        assert_eq!(process.exited(Duration::from_secs(60)).await.code(), Some(3));
        assert_eq!(process.log(), "out\nerr\n");
    }

    #[tokio::test]
    async fn it_can_be_told_to_end() {
        let dir = Scratch::new();
        let mut process = shell("trap 'exit 4' TERM; echo ready; while :; do sleep 0.01; done", &dir);
        eventually("the trap", Duration::from_secs(60), async || {
            process.log().contains("ready").then_some(()).ok_or("no")
        })
        .await;
        process.assert_running();
        process.signal(Signal::SIGTERM);
        assert_eq!(process.exited(Duration::from_secs(60)).await.code(), Some(4));
    }

    #[tokio::test]
    async fn what_is_tied_ends_with_the_thread_that_started_it() {
        let dir = Scratch::new();
        let log = dir.path().join("log");
        let (started, process) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        thread::spawn(move || {
            let mut command = tied("sh");
            command.args(["-c", "echo ready; while :; do sleep 0.01; done"]);
            started.send(Process::spawn("sh", command, &log)).unwrap();
            let _ = ended.recv();
        });
        let mut process = process.recv().unwrap();
        eventually("the program", Duration::from_secs(60), async || {
            process.log().contains("ready").then_some(()).ok_or("no")
        })
        .await;
        process.assert_running();
        drop(end);
        assert_eq!(process.exited(Duration::from_secs(60)).await.signal(), Some(Signal::SIGKILL as i32));
    }
}
