//! Runs `mezctl`, and other programs that end by themselves.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::{binary, secret_file};

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Its exit code; -1 when a signal ended it.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it printed on standard error.
    pub stderr: String,
}

impl Output {
    /// What it printed, given that it succeeded.
    ///
    /// # Panics
    /// When it did not.
    #[must_use]
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.stdout
    }

    /// What it said, given that it failed with `code`.
    ///
    /// # Panics
    /// When it did not.
    #[must_use]
    #[track_caller]
    pub fn failed(self, code: i32) -> String {
        assert_eq!(self.code, code, "{self:?}");
        self.stderr
    }
}

/// Runs a program to its end, without input and in the plain locale. What it was and how it ended is printed, for the
/// case that the test fails.
///
/// # Panics
/// When it cannot be started.
pub fn run(command: &mut Command) -> Output {
    run_on(command, Stdio::null())
}

/// As [`run`], with an input.
///
/// # Panics
/// When it cannot be started.
pub fn run_on(command: &mut Command, input: impl Into<Stdio>) -> Output {
    command.stdin(input).env("LC_ALL", "C").env("TZ", "UTC");
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    let code = output.status.code().unwrap_or(-1);
    let args: Vec<_> = command.get_args().map(|arg| arg.to_string_lossy()).collect();
    eprintln!("{} {}: {code}", command.get_program().display(), args.join(" "));
    stderr.lines().for_each(|line| eprintln!("    {line}"));
    Output { code, stdout, stderr }
}

/// `mezctl` with a home of its own.
#[derive(Debug, Clone)]
pub struct Ctl {
    home: PathBuf,
    global: Vec<String>,
    /// Folder of its binary, where that is not this build's.
    programs: Option<PathBuf>,
}

impl Ctl {
    /// With this home, which need not be there yet, for the cluster with this pin at these addresses.
    #[must_use]
    pub fn new(home: &Path, addresses: &[String], ca_pin: &str) -> Self {
        let global = ["--addr", &addresses.join(","), "--ca-pin", ca_pin].map(str::to_owned).to_vec();
        Self { home: home.to_owned(), global, programs: None }
    }

    /// The same home, as the last login left it, and no option of where the cluster is.
    #[must_use]
    pub fn by_profile(&self) -> Self {
        Self { global: Vec::new(), ..self.clone() }
    }

    /// The same home, and other addresses.
    #[must_use]
    pub fn at(&self, addresses: &[String]) -> Self {
        Self { global: vec!["--addr".into(), addresses.join(",")], ..self.clone() }
    }

    /// The same home, and the binary of another build, in this folder; `None`: of this one.
    #[must_use]
    pub fn of(&self, programs: Option<&Path>) -> Self {
        Self { programs: programs.map(Path::to_owned), ..self.clone() }
    }

    /// Its home.
    #[must_use]
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// Runs a command.
    #[track_caller]
    pub fn run(&self, args: &[&str]) -> Output {
        run(&mut self.command(args))
    }

    /// A command, not started yet.
    #[must_use]
    pub fn command(&self, args: &[&str]) -> Command {
        let binary = self.programs.as_ref().map_or_else(|| binary("mezctl"), |dir| dir.join("mezctl"));
        let mut command = Command::new(binary);
        for (name, _) in env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("MEZITE_")) {
            command.env_remove(name);
        }
        command.arg("--home").arg(&self.home).args(&self.global).args(args);
        command
    }

    /// Runs a command that must succeed: what it printed.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        self.run(args).ok()
    }

    /// As [`Ctl::ok`], in its machine-readable form.
    ///
    /// # Panics
    /// When it fails, or prints no JSON.
    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        let text = self.ok(&[&["--format", "json"], args].concat());
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// Logs in.
    #[track_caller]
    pub fn login(&self, user: &str, password: &str) -> Output {
        fs::create_dir_all(&self.home).unwrap();
        let file = self.home.join("password");
        secret_file(&file, password);
        self.run(&["login", "--user", user, "--password-file", file.to_str().unwrap()])
    }
}
