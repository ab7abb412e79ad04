//! Brings what is on the tape to the agent, who may be away for a while.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use futures::{SinkExt as _, StreamExt as _};
use tokio::{
    net::UnixStream,
    sync::watch,
    time::{Instant, sleep, timeout, timeout_at},
};

use super::{
    mode::Mode,
    tape::{Next, Tape},
    wire::{self, Ended, Frames, Hello, ToAgent, ToRecorder, Verdict},
};

/// Longest that an agent takes for a verdict.
pub(super) const VERDICT: Duration = Duration::from_secs(10);
/// So long an agent may be away, as when it is started anew, and take for the end. It is less than what an agent waits
/// for a recorder before it ends the recording.
const GRACE: Duration = Duration::from_secs(30);
/// From one attempt to reach an agent to the next.
const RETRY: Duration = Duration::from_millis(200);

/// Who brings a recording to the agent.
pub(crate) struct Courier {
    socket: PathBuf,
    hello: Hello,
    frames: Frames,
    /// What the cluster wants when this fails.
    pub(crate) mode: Mode,
}

/// What becomes of a session.
pub(crate) enum Admission {
    Recorded(Box<Courier>),
    /// It goes on without, for this reason if it should have been recorded.
    Unrecorded(Option<String>),
    /// It may not go on.
    Refused(String),
}

impl Admission {
    /// Of a session that is not recorded for this reason, as the cluster wants it.
    fn without(mode: Mode, reason: String) -> Self {
        match mode {
            Mode::Off => Self::Unrecorded(None),
            Mode::BestEffort => Self::Unrecorded(Some(reason)),
            Mode::Strict => Self::Refused(reason),
        }
    }
}

/// How a connection ended.
enum Lost {
    /// The connection is gone, and the agent may come back.
    Connection(io::Error),
    /// The agent takes nothing more.
    Failed(String),
}

impl Courier {
    /// Asks the agent what becomes of a session. Where there is no agent, what it left written beside its socket counts.
    pub(crate) async fn ask(socket: &Path, mut hello: Hello) -> Admission {
        match greet(socket, &hello).await {
            Ok((frames, Verdict::Record { mode, ticket, .. })) => {
                hello.resume = Some(ticket);
                Admission::Recorded(Box::new(Self { socket: socket.to_owned(), hello, frames, mode }))
            }
            Ok((_, Verdict::Unrecorded { reason })) => Admission::Unrecorded(reason),
            Ok((_, Verdict::Refused { reason })) => Admission::Refused(reason),
            Ok((_, Verdict::Busy { mode, reason })) => Admission::without(mode, reason),
            Err(error) => {
                let reason = format!("the agent does not answer at {}: {error}", socket.display());
                Admission::without(Mode::beside(socket), reason)
            }
        }
    }

    /// Brings the tape until it ends and the agent has sealed it; `status` is set before the tape is closed. Answers why
    /// not, otherwise.
    pub(crate) async fn carry(
        mut self,
        tape: &Tape,
        status: &watch::Receiver<Option<i32>>,
    ) -> Result<(), String> {
        let work = async {
            let mut sent = 0;
            loop {
                let lost = match bring(&mut self.frames, tape, &mut sent, status).await {
                    Ok(()) => return Ok(()),
                    Err(Lost::Failed(reason)) => return Err(reason),
                    Err(Lost::Connection(error)) => error,
                };
                (self.frames, sent) = self.again(tape, &lost).await?;
            }
        };
        tokio::select! {
            done = work => done,
            () = tape.torn() => Err("the agent does not take it as fast as it comes".into()),
        }
    }

    /// Finds the agent again, and where to go on.
    async fn again(&self, tape: &Tape, lost: &io::Error) -> Result<(Frames, u64), String> {
        let until = Instant::now() + GRACE;
        loop {
            match greet(&self.socket, &self.hello).await {
                Ok((frames, Verdict::Record { offset, .. })) if tape.has(offset) => {
                    tape.saved(offset);
                    return Ok((frames, offset));
                }
                Ok((_, Verdict::Record { offset, .. })) => {
                    return Err(format!("the agent has {offset} bytes, which is not what it said to have"));
                }
                Ok((_, Verdict::Refused { reason })) => return Err(reason),
                Ok((_, Verdict::Unrecorded { .. })) => {
                    return Err("the agent does not know it any more".into());
                }
                Ok((_, Verdict::Busy { .. })) | Err(_) if Instant::now() < until => sleep(RETRY).await,
                Ok((_, Verdict::Busy { reason, .. })) => return Err(reason),
                Err(error) => {
                    return Err(format!("the agent is gone ({lost}), and does not come back: {error}"));
                }
            }
        }
    }
}

/// Connects, and says who one is.
async fn greet(socket: &Path, hello: &Hello) -> io::Result<(Frames, Verdict)> {
    let work = async {
        let mut frames = wire::frames(UnixStream::connect(socket).await?);
        let sent = frames.send(ToAgent::Hello(hello.clone()).encode()?).await;
        let gone = || io::Error::new(io::ErrorKind::UnexpectedEof, "it says nothing");
        let said = frames.next().await.ok_or_else(gone).flatten();
        // One that was busy has said so and gone.
        let frame = said.or_else(|error| sent.and(Err(error)))?;
        match ToRecorder::decode(frame)? {
            ToRecorder::Verdict(verdict) => Ok::<_, io::Error>((frames, verdict)),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "that is no verdict")),
        }
    };
    timeout(VERDICT, work).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Brings the tape over one connection, from `sent` on.
async fn bring(
    frames: &mut Frames,
    tape: &Tape,
    sent: &mut u64,
    status: &watch::Receiver<Option<i32>>,
) -> Result<(), Lost> {
    let mut ended: Option<Instant> = None;
    loop {
        tokio::select! {
            frame = next(frames, ended) => match frame.map_err(Lost::Connection)? {
                ToRecorder::Saved(offset) => tape.saved(offset),
                ToRecorder::Sealed => return Ok(()),
                ToRecorder::Failed(failed) => return Err(Lost::Failed(failed.reason)),
                ToRecorder::Verdict(_) => return Err(Lost::Failed("the agent judges twice".into())),
            },
            next = tape.next(*sent), if ended.is_none() => {
                let message = match next {
                    Next::Lines(offset, bytes) => {
                        *sent += bytes.len() as u64;
                        ToAgent::Data { offset, bytes }
                    }
                    Next::End => {
                        ended = Some(Instant::now() + GRACE);
                        ToAgent::End(Ended { status: (*status.borrow()).unwrap_or(-1) })
                    }
                };
                let frame = message.encode().map_err(Lost::Connection)?;
                frames.send(frame).await.map_err(Lost::Connection)?;
            }
        }
    }
}

/// The next frame; once the end is said, not later than `until`.
async fn next(frames: &mut Frames, until: Option<Instant>) -> io::Result<ToRecorder> {
    let frame = match until {
        None => frames.next().await,
        Some(until) => timeout_at(until, frames.next()).await.map_err(|_| io::ErrorKind::TimedOut)?,
    };
    let gone = || io::Error::new(io::ErrorKind::UnexpectedEof, "it went away");
    ToRecorder::decode(frame.ok_or_else(gone)??)
}
