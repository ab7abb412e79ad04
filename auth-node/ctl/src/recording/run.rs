//! The session itself: a command between the user and the tape.
//!
//! With a terminal the command has one of its own, of which this program has the other end; without, it has pipes for what it
//! prints, and the input itself. Each direction has a thread that reads and writes, so that nothing waits but for the
//! two ends.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            ffi::OsStringExt as _,
            process::{CommandExt as _, ExitStatusExt as _},
        },
    },
    pin::Pin,
    process::{Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use futures::future::{BoxFuture, Fuse, FutureExt as _};
use pty_process::{
    Size,
    blocking::{self as pty, Pty},
};
use rustix::{
    process::{Pid, Signal, kill_process_group},
    pty::ptsname,
    stdio,
    termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot},
    time::{Instant, sleep, sleep_until},
};

use crate::output;

use super::{
    cast::{Cast, Header, MAX_PIECE, Stream},
    tape::Tape,
};

/// After a hangup, or the end of a session that must be recorded, a command has so long to end before it is killed.
const LAST_WORDS: Duration = Duration::from_secs(3);
/// When a command has ended and something that it started holds the terminal, output is awaited for so long since the last.
const QUIET: Duration = Duration::from_millis(200);
/// Signals that a session gets from outside, and passes on.
const PASSED_ON: [(SignalKind, Signal); 6] = [
    (SignalKind::hangup(), Signal::HUP),
    (SignalKind::interrupt(), Signal::INT),
    (SignalKind::quit(), Signal::QUIT),
    (SignalKind::terminate(), Signal::TERM),
    (SignalKind::user_defined1(), Signal::USR1),
    (SignalKind::user_defined2(), Signal::USR2),
];

/// Puts what is seen on the tape.
pub(crate) struct Scribe {
    tape: Arc<Tape>,
    begin: Instant,
    cast: Mutex<Cast>,
    /// Bytes of streams that are no terminal's which are not kept, for they are no text.
    binary: AtomicU64,
    /// How often something was seen.
    seen: AtomicU64,
}

impl Scribe {
    /// With the first line on the tape.
    pub(crate) fn new(tape: Arc<Tape>, header: &Header) -> io::Result<Self> {
        tape.push(Cast::header(header)?);
        Ok(Self {
            tape,
            begin: Instant::now(),
            cast: Mutex::default(),
            binary: AtomicU64::new(0),
            seen: AtomicU64::new(0),
        })
    }

    fn bytes(&self, stream: Stream, bytes: &[u8]) {
        self.seen.fetch_add(1, Ordering::Relaxed);
        for piece in bytes.chunks(MAX_PIECE) {
            self.write(|cast, at| cast.bytes(at, stream, piece));
        }
    }

    /// Bytes of a stream that may be a file's, as they were read at once: with a NUL among them they are counted, and not kept.
    fn bytes_of_pipe(&self, stream: Stream, is_text: &mut bool, bytes: &[u8]) {
        if !bytes.contains(&0) {
            *is_text = true;
            return self.bytes(stream, bytes);
        }
        if *is_text {
            *is_text = false;
            self.write(|cast, at| cast.marker(at, "binary data, which is not recorded").map(Some));
        }
        self.binary.fetch_add(bytes.len() as u64, Ordering::Relaxed);
    }

    fn resize(&self, size: (u16, u16)) {
        self.write(|cast, at| cast.resize(at, size).map(Some));
    }

    fn exit(&self, status: i32) {
        let binary = self.binary.load(Ordering::Relaxed);
        if binary > 0 {
            let text = format!("{binary} bytes were not recorded");
            self.write(|cast, at| cast.marker(at, &text).map(Some));
        }
        self.write(|cast, at| cast.exit(at, status).map(Some));
    }

    /// Lines are on the tape in the order of their times.
    fn write(&self, line: impl FnOnce(&mut Cast, Duration) -> io::Result<Option<bytes::Bytes>>) {
        let mut cast = self.cast.lock().unwrap_or_else(PoisonError::into_inner);
        // Text can always be written as JSON.
        if let Ok(Some(line)) = line(&mut cast, self.begin.elapsed()) {
            self.tape.push(line);
        }
    }
}

/// A recording that has failed while its session goes on.
pub(crate) struct Failure {
    /// Why.
    pub(crate) reason: String,
    /// Whether the session must end, too.
    pub(crate) is_the_end: bool,
}

/// A session on its way.
pub(crate) struct Running {
    group: Pid,
    ended: oneshot::Receiver<io::Result<ExitStatus>>,
    /// Resolves when there is no more output.
    drained: BoxFuture<'static, ()>,
    terminal: Option<Terminal>,
    scribe: Arc<Scribe>,
    /// The input of a terminal is gone: whoever sat there is. Without a terminal that says nothing.
    hung_up: Fuse<BoxFuture<'static, ()>>,
    /// How long the command may go on.
    left: Left,
}

/// How long a command may go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    /// As long as it likes.
    All,
    /// Nobody is there any more, or the session must not go on: it is killed at this time.
    Until(Instant),
    /// It was killed.
    Nothing,
}

/// What happens to a session from outside.
enum Incident {
    Resized,
    Signalled(Signal),
    HungUp,
    Failed(Failure),
    TimeIsUp,
}

/// The two terminals: the user's, and the one that the command has.
struct Terminal {
    inner: Arc<Pty>,
    _raw: Raw,
}

/// The user's terminal passes everything on as it is, until this is dropped.
struct Raw(Termios);

impl Raw {
    fn enter(modes: Termios) -> Result<Self> {
        let mut raw = modes.clone();
        raw.make_raw();
        tcsetattr(stdio::stdin(), OptionalActions::Now, &raw)?;
        Ok(Self(modes))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(stdio::stdin(), OptionalActions::Now, &self.0);
    }
}

/// Columns and rows of the user's terminal.
pub(crate) fn size() -> (u16, u16) {
    tcgetwinsize(stdio::stdin()).map_or((80, 24), |size| (size.ws_col.max(1), size.ws_row.max(1)))
}

impl Running {
    /// Starts a command in a terminal of its own, which is like the user's.
    pub(crate) fn in_terminal(mut command: Command, input: bool, scribe: Scribe) -> Result<Self> {
        let modes = tcgetattr(stdio::stdin()).context("the terminal cannot be read")?;
        let (cols, rows) = size();
        let (inner, outer) = pty::open().context("there is no terminal to be had")?;
        inner.resize(Size::new(rows, cols))?;
        tcsetattr(&outer, OptionalActions::Now, &modes)?;
        let name = ptsname(&inner, Vec::new())?;
        command.env("SSH_TTY", std::ffi::OsString::from_vec(name.into_bytes()));
        let raw = Raw::enter(modes)?;
        let child = pty::Command::from(command).spawn(outer)?;
        let (inner, scribe) = (Arc::new(inner), Arc::new(scribe));

        let (hang_up, hung_up) = oneshot::channel();
        let (keys, typed) = (Arc::clone(&inner), Arc::clone(&scribe));
        let stdin = raw_file(stdio::stdin())?;
        thread::spawn(move || {
            carry(stdin, &*keys, |bytes| {
                if input {
                    typed.bytes(Stream::Input, bytes);
                }
            });
            let _ = hang_up.send(());
        });
        let (screen, seen) = (Arc::clone(&inner), Arc::clone(&scribe));
        let stdout = raw_file(stdio::stdout())?;
        let (done, drained) = oneshot::channel::<()>();
        thread::spawn(move || {
            carry(&*screen, stdout, |bytes| seen.bytes(Stream::Output, bytes));
            let _ = done.send(());
        });
        Ok(Self {
            group: Pid::from_child(&child),
            ended: waited(child),
            drained: drained.map(drop).boxed(),
            terminal: Some(Terminal { inner, _raw: raw }),
            scribe,
            hung_up: hung_up.map(drop).boxed().fuse(),
            left: Left::All,
        })
    }

    /// Starts a command between pipes.
    pub(crate) fn in_pipes(mut command: Command, input: bool, scribe: Scribe) -> Result<Self> {
        let scribe = Arc::new(scribe);
        command.stdin(if input { Stdio::piped() } else { Stdio::inherit() });
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        if !rustix::termios::isatty(stdio::stdin()) {
            // It and what it starts can be told to end. One that reads a terminal would be stopped in a group of its own.
            command.process_group(0);
        }
        let mut child = command.spawn().context("the command cannot be started")?;
        if let Some(to) = child.stdin.take() {
            let (from, seen) = (raw_file(stdio::stdin())?, Arc::clone(&scribe));
            thread::spawn(move || {
                let mut is_text = true;
                carry(from, File::from(OwnedFd::from(to)), |bytes| {
                    seen.bytes_of_pipe(Stream::Input, &mut is_text, bytes);
                });
            });
        }
        let (done, mut drained) = mpsc::channel::<()>(1);
        let outputs = [
            (child.stdout.take().map(OwnedFd::from), raw_file(stdio::stdout())?, Stream::Output),
            (child.stderr.take().map(OwnedFd::from), raw_file(stdio::stderr())?, Stream::Errors),
        ];
        for (from, to, stream) in outputs {
            let Some(from) = from else { continue };
            let (seen, done) = (Arc::clone(&scribe), done.clone());
            thread::spawn(move || {
                let mut is_text = true;
                carry(File::from(from), to, |bytes| seen.bytes_of_pipe(stream, &mut is_text, bytes));
                drop(done);
            });
        }
        drop(done);
        Ok(Self {
            group: Pid::from_child(&child),
            ended: waited(child),
            drained: async move { while drained.recv().await.is_some() {} }.boxed(),
            terminal: None,
            scribe,
            hung_up: Fuse::terminated(),
            left: Left::All,
        })
    }

    /// Waits for the end, passing on signals and sizes. `failed` resolves when the recording has failed: the user is told.
    pub(crate) async fn ended(&mut self, failed: impl Future<Output = Failure>) -> Result<ExitStatus> {
        let mut outside = Outside::new(failed)?;
        let status = loop {
            tokio::select! {
                status = &mut self.ended => break status.context("nobody waits for the command")??,
                incident = outside.next(&mut self.hung_up, self.left) => self.meet(&incident),
            }
        };
        if self.terminal.is_none() && self.left == Left::All {
            // As sshd: whoever holds the pipes holds the session.
            (&mut self.drained).await;
            return Ok(status);
        }
        let mut seen = 0;
        loop {
            tokio::select! {
                () = &mut self.drained => return Ok(status),
                () = sleep(QUIET) => {
                    let now = self.scribe.seen.load(Ordering::Relaxed);
                    if now == seen || self.left != Left::All {
                        return Ok(status);
                    }
                    seen = now;
                }
                incident = outside.next(&mut self.hung_up, Left::All) => self.meet(&incident),
            }
        }
    }

    /// Does what an incident calls for.
    fn meet(&mut self, incident: &Incident) {
        match incident {
            Incident::Resized => self.resized(),
            Incident::Signalled(Signal::HUP) | Incident::HungUp => self.hang_up(),
            Incident::Signalled(signal) => self.tell(*signal),
            Incident::Failed(failure) => {
                self.say(failure);
                if failure.is_the_end {
                    self.hang_up();
                }
            }
            Incident::TimeIsUp => {
                self.tell(Signal::KILL);
                self.left = Left::Nothing;
            }
        }
    }

    fn hang_up(&mut self) {
        self.tell(Signal::HUP);
        if self.left == Left::All {
            self.left = Left::Until(Instant::now() + LAST_WORDS);
        }
    }

    fn say(&self, failure: &Failure) {
        let Failure { reason, is_the_end } = failure;
        let text = match is_the_end {
            true => "this session must be recorded, and cannot be any longer: it ends",
            false => "the rest of this session is not recorded",
        };
        // A terminal that passes everything on begins a line only when it is told so.
        let (begin, end) = if self.terminal.is_some() { ("\r\n", "\r\n") } else { ("", "\n") };
        let _ = write!(io::stderr(), "{begin}mezctl record: {text}: {}{end}", output::printable(reason));
    }

    /// Writes the last lines of the recording, and gives the terminal back.
    pub(crate) fn finish(self, status: i32) {
        self.scribe.exit(status);
        self.scribe.tape.close();
    }

    fn resized(&self) {
        let Some(terminal) = &self.terminal else { return };
        let (cols, rows) = size();
        if terminal.inner.resize(Size::new(rows, cols)).is_ok() {
            self.scribe.resize((cols, rows));
        }
    }

    fn tell(&self, signal: Signal) {
        // Its group may be gone.
        let _ = kill_process_group(self.group, signal);
    }
}

/// What may happen to a session from outside.
struct Outside<F: Future<Output = Failure>> {
    resized: tokio::signal::unix::Signal,
    signals: Vec<(tokio::signal::unix::Signal, Signal)>,
    failed: Pin<Box<Fuse<F>>>,
}

impl<F: Future<Output = Failure>> Outside<F> {
    fn new(failed: F) -> io::Result<Self> {
        let heard = PASSED_ON.into_iter().map(|(kind, passed)| Ok((signal(kind)?, passed)));
        Ok(Self {
            resized: signal(SignalKind::window_change())?,
            signals: heard.collect::<io::Result<_>>()?,
            failed: Box::pin(failed.fuse()),
        })
    }

    /// What happens next. Nothing is lost when this is dropped before it is done.
    async fn next(&mut self, hung_up: &mut Fuse<BoxFuture<'static, ()>>, left: Left) -> Incident {
        tokio::select! {
            _ = self.resized.recv() => Incident::Resized,
            signal = any(&mut self.signals) => Incident::Signalled(signal),
            () = hung_up => Incident::HungUp,
            failure = &mut self.failed => Incident::Failed(failure),
            () = until(left) => Incident::TimeIsUp,
        }
    }
}

async fn until(left: Left) {
    match left {
        Left::Until(end) => sleep_until(end).await,
        Left::All | Left::Nothing => std::future::pending().await,
    }
}

async fn any(signals: &mut [(tokio::signal::unix::Signal, Signal)]) -> Signal {
    let all = signals.iter_mut().map(|(from, signal)| {
        let signal = *signal;
        async move {
            from.recv().await;
            signal
        }
        .boxed()
    });
    futures::future::select_all(all).await.0
}

/// How a command ends, from a thread that waits for it.
fn waited(mut child: std::process::Child) -> oneshot::Receiver<io::Result<ExitStatus>> {
    let (tell, told) = oneshot::channel();
    thread::spawn(move || {
        let _ = tell.send(child.wait());
    });
    told
}

/// A descriptor without anything that holds bytes back.
fn raw_file(fd: impl AsFd) -> io::Result<File> {
    Ok(File::from(fd.as_fd().try_clone_to_owned()?))
}

/// Copies until either end is gone. What is copied is seen after it is on its way: the user does not wait for the tape.
fn carry(mut from: impl Read, mut to: impl Write, mut seen: impl FnMut(&[u8])) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = match from.read(&mut buffer) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // The end of a terminal whose other side is closed is said as EIO.
            Err(_) => return,
        };
        let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else { return };
        let written = to.write_all(bytes);
        seen(bytes);
        if written.is_err() {
            return;
        }
    }
}

/// As shells say how a command ended: its exit status, or 128 and the number of the signal.
pub(crate) fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}
