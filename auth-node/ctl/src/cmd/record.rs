//! `record`: a session on a host, recorded; as sshd's `ForceCommand`.

use std::{
    convert::Infallible,
    env,
    ffi::OsString,
    fs::File,
    io::{self, Read as _},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Command, ExitCode, ExitStatus},
    sync::Arc,
};

use anyhow::{Context as _, Result};
use clap::Args;
use mezite_daemon::clock;
use nix::unistd::{Uid, User};
use rustix::{process, stdio, termios::isatty};
use tokio::sync::watch;

use crate::{
    output,
    recording::{
        cast::Header,
        courier::{Admission, Courier},
        mode::Mode,
        run::{Failure, Running, Scribe, code, size},
        tape::Tape,
        wire::{Hello, VERSION},
    },
};

/// Exit status of a session that may not go on.
const REFUSED: u8 = 1;
/// Status of a command that cannot be started, as shells say it.
const NOT_STARTED: i32 = 127;
/// Most of what sshd tells by a file, in bytes: a certificate takes 128 KiB at most.
const MAX_AUTH_INFO: u64 = 192 << 10;
/// What sshd runs itself, and nobody else can.
const INTERNAL_SFTP: &str = "internal-sftp";

const EXAMPLES: &str = "\
It is what sshd runs instead of a user's shell or command, and runs that: `mezctl agent join --spool DIR` writes the lines
for sshd_config. What is seen on the terminal goes to the agent of the host while the session runs, as asciicast v3;
without a terminal, what the command prints does, but for what has NUL bytes: files that are copied are not
recorded, the command is. What is typed is recorded with --input alone: it can be a password.

Where no agent answers, or the recording fails later, the cluster's configuration says what happens (`mezctl config set
--recording-mode`): best-effort sessions go on with a notice, strict ones are refused or ended.

sftp and scp need `Subsystem sftp /usr/lib/openssh/sftp-server` (or where that program is): only sshd itself can run
internal-sftp.

Examples:
  ForceCommand /usr/bin/mezctl record --socket /var/spool/mezite/record.sock        in sshd_config
  mezctl record --socket /var/spool/mezite/record.sock -- make test                 by hand";

/// Arguments of `record`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Record {
    /// Socket of the agent
    #[arg(long, value_name = "PATH", default_value = "/var/spool/mezite/record.sock")]
    socket: PathBuf,
    /// Record what is typed, too
    #[arg(long)]
    input: bool,
    /// What is run [default: what the user asked sshd for (SSH_ORIGINAL_COMMAND), or a login shell]
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// What is run.
struct Plan {
    command: Command,
    /// As people write it; `None`: a login shell.
    shown: Option<String>,
}

/// Records, and ends as what it ran did.
pub(crate) fn main(args: Record) -> ExitCode {
    match record(args) {
        Ok(status) => end_like(status),
        Err(error) => {
            say(&format!("{error:#}"));
            ExitCode::from(REFUSED)
        }
    }
}

fn record(args: Record) -> Result<ExitStatus> {
    let plan = Plan::of(&args.command)?;
    let tty = isatty(stdio::stdin()) && isatty(stdio::stdout());
    let hello =
        Hello { version: VERSION, auth_info: auth_info(), tty, command: plan.shown.clone(), resume: None };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match runtime.block_on(Courier::ask(&args.socket, hello)) {
        Admission::Recorded(courier) => runtime.block_on(recorded(*courier, plan, tty, args.input)),
        Admission::Unrecorded(reason) => {
            if let Some(reason) = reason {
                say(&format!("this session is not recorded: {reason}"));
            }
            drop(runtime);
            match plan.exec()? {}
        }
        Admission::Refused(reason) => {
            anyhow::bail!("this session must be recorded, and cannot be: {reason}")
        }
    }
}

async fn recorded(courier: Courier, plan: Plan, tty: bool, input: bool) -> Result<ExitStatus> {
    let (tape, mode) = (Arc::new(Tape::default()), courier.mode);
    let term = env::var("TERM").ok().filter(|_| tty);
    let header = Header::new(size(), term, clock::unix_seconds(), plan.shown);
    let scribe = Scribe::new(Arc::clone(&tape), &header)?;
    let (status, told) = watch::channel(None);
    let carried = Arc::clone(&tape);
    let mut carrying = tokio::spawn(async move { courier.carry(&carried, &told).await });
    let started = match tty {
        true => Running::in_terminal(plan.command, input, scribe),
        false => Running::in_pipes(plan.command, input, scribe),
    };
    let mut running = match started {
        Ok(running) => running,
        Err(error) => {
            status.send_replace(Some(NOT_STARTED));
            tape.close();
            let _ = carrying.await;
            return Err(error);
        }
    };
    let mut has_failed = false;
    let failed = async {
        // The tape has no end before the session has: so it can only have failed.
        let reason = match (&mut carrying).await {
            Ok(Ok(())) => "the agent sealed it early".into(),
            Ok(Err(reason)) => reason,
            Err(error) => error.to_string(),
        };
        has_failed = true;
        Failure { reason, is_the_end: mode == Mode::Strict }
    };
    let ended = running.ended(failed).await?;
    status.send_replace(Some(code(ended)));
    running.finish(code(ended));
    if has_failed {
        return Ok(if mode == Mode::Strict { ExitStatus::from_raw(i32::from(REFUSED) << 8) } else { ended });
    }
    if let Err(reason) = carrying.await? {
        say(&format!("the end of this session may not be recorded: {reason}"));
    }
    Ok(ended)
}

impl Plan {
    /// What was given, what the user asked sshd for, or a login shell.
    fn of(given: &[OsString]) -> Result<Self> {
        if let [program, args @ ..] = given {
            let mut command = Command::new(program);
            command.args(args);
            let words: Vec<_> = given.iter().map(|word| word.to_string_lossy()).collect();
            return Ok(Self { command, shown: Some(words.join(" ")) });
        }
        let shell = shell()?;
        match env::var_os("SSH_ORIGINAL_COMMAND").filter(|asked| !asked.is_empty()) {
            Some(asked) if is_internal_sftp(&asked) => anyhow::bail!(
                "sshd_config says `Subsystem sftp internal-sftp`, which only sshd itself can run: it takes the program, \
                 such as `Subsystem sftp /usr/lib/openssh/sftp-server`"
            ),
            Some(asked) => {
                let mut command = Command::new(&shell);
                // sshd_config says it, for the shell that runs this program; the user's is the first again.
                command.arg("-c").arg(&asked).env_remove("SHLVL");
                Ok(Self { command, shown: Some(asked.to_string_lossy().into_owned()) })
            }
            None => {
                // As login does: by its name a shell knows that it is one.
                let mut name = OsString::from("-");
                name.push(shell.file_name().unwrap_or(shell.as_os_str()));
                let mut command = Command::new(&shell);
                command.arg0(name).env_remove("SHLVL");
                Ok(Self { command, shown: None })
            }
        }
    }

    /// Becomes what is run.
    fn exec(mut self) -> Result<Infallible> {
        let error = self.command.exec();
        Err(error).context("the command cannot be started")
    }
}

fn is_internal_sftp(asked: &std::ffi::OsStr) -> bool {
    asked.to_string_lossy().split(' ').next() == Some(INTERNAL_SFTP)
}

/// The user's shell, as sshd says it, or the system.
fn shell() -> Result<PathBuf> {
    if let Some(shell) = env::var_os("SHELL").filter(|shell| Path::new(shell).is_absolute()) {
        return Ok(shell.into());
    }
    let user = User::from_uid(Uid::current())?.context("this account has no shell")?;
    Ok(user.shell)
}

/// What sshd tells of how the user was let in; nothing, where it does not.
fn auth_info() -> String {
    let read = || -> io::Result<String> {
        let path = env::var_os("SSH_USER_AUTH").ok_or(io::ErrorKind::NotFound)?;
        let mut text = String::new();
        File::open(path)?.take(MAX_AUTH_INFO).read_to_string(&mut text)?;
        Ok(text)
    };
    // The agent says what it takes.
    read().unwrap_or_default()
}

fn say(text: &str) {
    output::say(&format!("mezctl record: {text}"));
}

/// Ends as another program did: also by the same signal, which sshd tells its client.
fn end_like(status: ExitStatus) -> ExitCode {
    if let Some(signal) = status.signal() {
        // There is nothing in this program's memory that is worth a file.
        let none = process::Rlimit { current: Some(0), maximum: Some(0) };
        let _ = process::setrlimit(process::Resource::Core, none);
        let _ = signal_hook::low_level::emulate_default_handler(signal);
    }
    ExitCode::from(u8::try_from(code(status)).unwrap_or(u8::MAX))
}
