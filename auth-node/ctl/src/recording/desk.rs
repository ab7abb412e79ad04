//! Where the agent takes recordings in: a socket that everybody on the host may speak to.
//!
//! Who speaks is said by the kernel, and whose session it is by its certificate. Whoever speaks can add to a recording of
//! its own, and neither read nor change what is there.

use std::{
    collections::BTreeMap,
    fs::{self, Permissions},
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result};
use bytes::BytesMut;
use futures::{FutureExt as _, SinkExt as _, StreamExt as _};
use mezite_client::{Event, Session, Spool, SpoolError, Writer};
use mezite_daemon::{
    clock, files,
    pace::Pace,
    places::{Full, Places},
};
use nix::unistd::{Uid, User};
use recording_format::Digest;
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::spawn_blocking,
    time::{Instant, sleep, timeout},
};

use super::{
    cast::FORMAT,
    courier::VERDICT,
    guard,
    mode::Mode,
    new_id,
    wire::{self, Ended, Failed, Frames, Hello, Ticket, ToAgent, ToRecorder, Verdict},
};
use crate::{agent_dir::AgentDir, output::warn};

/// Name of the socket in the spool's folder.
pub(crate) const SOCKET: &str = "record.sock";
/// Sessions that are recorded at a time, and of these of one account. More go by what the cluster wants of those that cannot
/// be recorded.
const PLACES: (usize, usize) = (4096, 1024);
/// From one session of an account to its next in the long run, and so many may come at once. Each is two events of the audit
/// log, and the agent tells more of them in the same time. Whoever begins more waits.
const PACE: (Duration, u32) = (Duration::from_millis(100), 300);
/// So long at most, and less than a recorder waits for its verdict.
const PATIENCE: Duration = VERDICT.saturating_sub(Duration::from_secs(2));
/// As often the audit log is told of an account's sessions that get no place or no turn: each event says of how many.
const NOTES: (Duration, u32) = (Duration::from_secs(1), 10);
/// Why a session that waited gets no turn.
const NO_TURN: &str = "that account begins sessions faster than they are taken in";
/// Visitors whose names are looked up at a time: where a name is not known on the host, that can take long.
const DOORS: usize = 64;
/// Accounts whose pace is remembered: more than have ever been on a host.
const ACCOUNTS: usize = 65_536;
/// Time to say who one is.
const GREETING: Duration = Duration::from_secs(10);
/// Bytes that are made durable at once.
const BATCH: usize = 1 << 20;
/// Longest command in a label, in bytes: what the ingest takes.
const MAX_LABEL: usize = 256;

/// The agent's side of recordings.
pub(crate) struct Desk {
    pub(crate) spool: Arc<Spool>,
    pub(crate) dir: AgentDir,
    pub(crate) agent_id: String,
    pub(crate) hostname: String,
    pub(crate) mode: watch::Receiver<Mode>,
    pub(crate) visitors: Visitors,
}

/// By whom places and pace are counted: a user id that is an account's; `None`: all others, for one user can have many.
type Holder = Option<u32>;

/// Bounds on what each account of the host may have of the desk: none keeps the others from being recorded.
pub(crate) struct Visitors {
    places: Arc<Places<Holder>>,
    pace: Pace<Holder>,
    patience: Duration,
    notes: Pace<Holder>,
    /// Sessions that got no place or no turn, by account and reason, which the audit log is still to be told of.
    missed: Mutex<BTreeMap<(Holder, &'static str), u64>>,
}

impl Default for Visitors {
    fn default() -> Self {
        Self {
            places: Places::new(PLACES.0, PLACES.1, |_| ()),
            pace: Pace::new(PACE.0, PACE.1, ACCOUNTS),
            patience: PATIENCE,
            notes: Pace::new(NOTES.0, NOTES.1, ACCOUNTS),
            missed: Mutex::default(),
        }
    }
}

/// Waits until a holder may begin one more.
async fn turn(pace: &Pace<Holder>, holder: Holder) {
    while let Err(wait) = pace.admit(holder, Instant::now().into_std()) {
        sleep(wait).await;
    }
}

impl Visitors {
    fn missed(&self) -> MutexGuard<'_, BTreeMap<(Holder, &'static str), u64>> {
        self.missed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one more. Answers whether it is the first: then somebody has to tell.
    fn miss(&self, holder: Holder, reason: &'static str) -> bool {
        let mut missed = self.missed();
        let count = missed.entry((holder, reason)).or_default();
        *count += 1;
        *count == 1
    }

    /// How many there are by the time that they may be told.
    async fn told(&self, holder: Holder, reason: &'static str) -> u64 {
        turn(&self.notes, holder).await;
        self.missed().remove(&(holder, reason)).unwrap_or_default()
    }
}

/// What is done with a session.
enum Decision {
    Record(Box<Writer>, Verdict),
    Say(Verdict),
}

impl Desk {
    /// Listens in the spool's folder. The caller has the spool, so a socket that is there is nobody's.
    pub(crate) fn listen(spool: &Path) -> Result<UnixListener> {
        // Everybody may enter and speak; the folders in it are the agent's alone.
        fs::set_permissions(spool, Permissions::from_mode(0o711))
            .with_context(|| format!("cannot open {} to the host's users", spool.display()))?;
        let path: PathBuf = spool.join(SOCKET);
        files::remove(&path)?;
        let listener =
            UnixListener::bind(&path).with_context(|| format!("cannot listen at {}", path.display()))?;
        fs::set_permissions(&path, Permissions::from_mode(0o666))?;
        Ok(listener)
    }

    /// Takes in what comes, for as long as it is polled.
    pub(crate) async fn serve(self, listener: UnixListener) {
        let (desk, doors) = (Arc::new(self), Arc::new(Semaphore::new(DOORS)));
        loop {
            let Ok(door) = Arc::clone(&doors).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(Arc::clone(&desk).visited(stream, door))),
                // Out of files, for one: others give theirs back.
                Err(error) => {
                    warn(&format!("no session can be recorded: {error}"));
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// Tells a session that it gets no place, or no turn, and has the audit log told. A recorder that has gone hears nothing.
    async fn turn_away(self: &Arc<Self>, frames: &mut Frames, visitor: Visitor, reason: &'static str) {
        let (mode, Visitor { holder, login }) = (*self.mode.borrow(), visitor);
        if mode != Mode::Off && self.visitors.miss(holder, reason) {
            let desk = Arc::clone(self);
            drop(tokio::spawn(async move {
                let sessions = desk.visitors.told(holder, reason).await;
                drop(spawn_blocking(move || desk.note(mode, &login, "", reason, sessions)).await);
            }));
        }
        let busy = Verdict::Busy { mode, reason: reason.to_owned() };
        let _ = say(frames, &ToRecorder::Verdict(busy)).await;
    }

    async fn visited(self: Arc<Self>, stream: UnixStream, door: OwnedSemaphorePermit) {
        let visitor = match Visitor::of(&stream).await {
            Ok(visitor) => visitor,
            Err(error) => return warn(&format!("it is not known who asks for a recording: {error}")),
        };
        drop(door);
        let mut frames = wire::frames(stream);
        let _place = match self.visitors.places.take(visitor.holder) {
            Ok(place) => place,
            Err(whose) => return self.turn_away(&mut frames, visitor, no_place(whose)).await,
        };
        if let Err(error) = self.visit(frames, visitor).await {
            warn(&format!("a recorder was cut off: {error:#}"));
        }
    }

    async fn visit(self: &Arc<Self>, mut frames: Frames, visitor: Visitor) -> Result<()> {
        let Ok(first) = timeout(GREETING, frames.next()).await else { return Ok(()) };
        let Some(frame) = first.transpose()? else { return Ok(()) };
        let ToAgent::Hello(hello) = ToAgent::decode(frame)? else {
            anyhow::bail!("it does not say who it is");
        };
        if hello.resume.is_none() && *self.mode.borrow() != Mode::Off {
            let Visitors { pace, patience, .. } = &self.visitors;
            tokio::select! {
                biased;
                () = turn(pace, visitor.holder) => {}
                // Or it has given up, or does not wait for its verdict.
                _ = timeout(*patience, frames.next()) => {
                    self.turn_away(&mut frames, visitor, NO_TURN).await;
                    return Ok(());
                }
            }
        }
        let desk = Arc::clone(self);
        // It reads and writes files: all of a recording that is taken up again.
        match spawn_blocking(move || desk.decide(hello, &visitor.login)).await? {
            Decision::Say(verdict) => say(&mut frames, &ToRecorder::Verdict(verdict)).await?,
            Decision::Record(writer, verdict) => {
                say(&mut frames, &ToRecorder::Verdict(verdict)).await?;
                self.take(&mut frames, *writer).await?;
            }
        }
        Ok(())
    }

    fn decide(&self, hello: Hello, login: &str) -> Decision {
        let mode = *self.mode.borrow();
        if hello.version != wire::VERSION {
            let reason = "the agent and `mezctl record` are of different releases: restart the agent";
            return Decision::Say(Verdict::Refused { reason: reason.into() });
        }
        if let Some(ticket) = hello.resume {
            return match self.spool.resume(ticket.recording_id, ticket.secret.as_bytes()) {
                Ok(writer) => record(writer, mode, ticket.secret),
                Err(error) => Decision::Say(Verdict::Refused { reason: error.to_string() }),
            };
        }
        if mode == Mode::Off {
            return Decision::Say(Verdict::Unrecorded { reason: None });
        }
        let trusted = self.dir.user_cas().unwrap_or_else(|error| {
            warn(&format!("it is not known whose certificates to trust: {error:#}"));
            String::new()
        });
        let now = clock::unix_seconds();
        let user = guard::user(&hello.auth_info, &trusted, login, &self.agent_id, now);
        let user = match (user, mode) {
            (Ok(user), _) => Some(user),
            (Err(stranger), Mode::Strict) => return self.fails(mode, login, "", &stranger.to_string()),
            // It is recorded as nobody's.
            (Err(_), _) => None,
        };
        let secret = hex::encode(rand::random::<[u8; 32]>());
        let mut session = Session::new(new_id(), clock::unix_ms(), Digest::of(secret.as_bytes()));
        session.user = user.unwrap_or_default();
        session.login = login.to_owned();
        session.node.clone_from(&self.hostname);
        session.format = FORMAT.into();
        session.labels.insert("tty".into(), hello.tty.to_string());
        if let Some(command) = &hello.command {
            session.labels.insert("command".into(), label(command));
        }
        let user = session.user.clone();
        match self.spool.create(session) {
            Ok(writer) => record(writer, mode, secret),
            Err(error) => self.fails(mode, login, &user, &error.to_string()),
        }
    }

    /// A session that cannot be recorded: it is audited, and goes on or not as the cluster wants.
    fn fails(&self, mode: Mode, login: &str, user: &str, reason: &str) -> Decision {
        self.note(mode, login, user, reason, 1);
        let reason = reason.to_owned();
        Decision::Say(match mode {
            Mode::Strict => Verdict::Refused { reason },
            Mode::BestEffort | Mode::Off => Verdict::Unrecorded { reason: Some(reason) },
        })
    }

    /// Has the audit log told of so many sessions that are not recorded.
    fn note(&self, mode: Mode, login: &str, user: &str, reason: &str, sessions: u64) {
        warn(&match sessions {
            1 => format!("a session of {login} is not recorded: {reason}"),
            _ => format!("{sessions} sessions of {login} are not recorded: {reason}"),
        });
        let fields = [
            ("login", login.to_owned()),
            ("user", user.to_owned()),
            ("node", self.hostname.clone()),
            ("reason", reason.to_owned()),
            ("refused", (mode == Mode::Strict).to_string()),
            ("sessions", sessions.to_string()),
        ];
        let target = format!("session:{}", new_id());
        let event = Event::new("session.recording.failed", &target, clock::unix_ms(), &fields);
        if let Err(error) = self.spool.outbox().put(&event) {
            warn(&format!("that cannot be kept for the audit log: {error}"));
        }
    }

    /// Takes a recording in until its end. A recorder that goes without one leaves it to be taken up again.
    async fn take(&self, frames: &mut Frames, mut writer: Writer) -> Result<()> {
        while let Some(frame) = frames.next().await {
            let (batch, end) = gather(frames, frame?, writer.length())?;
            if !batch.is_empty() {
                let appended = spawn_blocking(move || {
                    let appended = writer.append(&batch);
                    (writer, appended)
                });
                let appended = appended.await?;
                writer = appended.0;
                match appended.1 {
                    Ok(length) => say(frames, &ToRecorder::Saved(length)).await?,
                    Err(error) => return give_up(frames, writer, &error).await,
                }
            }
            if let Some(Ended { status }) = end {
                let status = ("status", status.to_string());
                spawn_blocking(move || writer.end(clock::unix_ms(), &[status])).await??;
                return Ok(say(frames, &ToRecorder::Sealed).await?);
            }
        }
        Ok(())
    }
}

/// Ends a recording that cannot go on, and tells.
async fn give_up(frames: &mut Frames, writer: Writer, error: &SpoolError) -> Result<()> {
    let reason = error.to_string();
    warn(&format!("recording {} ends early: {reason}", writer.id()));
    let failed = Failed { reason: reason.clone() };
    let ended = spawn_blocking(move || {
        writer.failed(&reason, clock::unix_ms())?;
        writer.end(clock::unix_ms(), &[("interrupted", "true".to_owned())])
    });
    let ended = ended.await?;
    say(frames, &ToRecorder::Failed(failed)).await?;
    Ok(ended?)
}

/// The payload in a frame and in those that have come behind it, and the end if it is there too.
fn gather(frames: &mut Frames, first: BytesMut, length: u64) -> io::Result<(BytesMut, Option<Ended>)> {
    let misplaced = |what| io::Error::new(io::ErrorKind::InvalidData, what);
    let (mut batch, mut frame) = (BytesMut::new(), first);
    loop {
        match ToAgent::decode(frame)? {
            ToAgent::Data { offset, .. } if offset != length + batch.len() as u64 => {
                return Err(misplaced("its bytes have a gap"));
            }
            // A recording is taken up again behind its last whole line.
            ToAgent::Data { bytes, .. } if !bytes.ends_with(b"\n") => {
                return Err(misplaced("its bytes end in the middle of a line"));
            }
            ToAgent::Data { bytes, .. } => batch.extend_from_slice(&bytes),
            ToAgent::End(ended) => return Ok((batch, Some(ended))),
            ToAgent::Hello(_) => return Err(misplaced("it says twice who it is")),
        }
        if batch.len() >= BATCH {
            return Ok((batch, None));
        }
        match frames.next().now_or_never() {
            Some(Some(next)) => frame = next?,
            Some(None) | None => return Ok((batch, None)),
        }
    }
}

fn record(writer: Writer, mode: Mode, secret: String) -> Decision {
    let ticket = Ticket { recording_id: writer.id(), secret };
    let verdict = Verdict::Record { mode, ticket, offset: writer.length() };
    Decision::Record(Box::new(writer), verdict)
}

async fn say(frames: &mut Frames, message: &ToRecorder) -> io::Result<()> {
    frames.send(message.encode()?).await
}

fn no_place(full: Full) -> &'static str {
    match full {
        Full::All => "as many are recorded as can be",
        Full::Own => "that account has as many that are recorded as it may have",
    }
}

/// Who speaks, as the kernel says it.
struct Visitor {
    holder: Holder,
    /// Name of the account; the number where there is none.
    login: String,
}

impl Visitor {
    async fn of(stream: &UnixStream) -> io::Result<Self> {
        let uid = stream.peer_cred()?.uid();
        let named = spawn_blocking(move || User::from_uid(Uid::from_raw(uid)).ok().flatten()).await?;
        Ok(match named {
            Some(user) => Self { holder: Some(uid), login: user.name },
            None => Self { holder: None, login: uid.to_string() },
        })
    }
}

/// A text as a label takes it.
fn label(text: &str) -> String {
    let mut label = String::new();
    for c in text.chars().map(|c| if c.is_control() { ' ' } else { c }) {
        if label.len() + c.len_utf8() > MAX_LABEL {
            break;
        }
        label.push(c);
    }
    label
}

#[cfg(test)]
#[path = "desk_tests.rs"]
mod tests;
