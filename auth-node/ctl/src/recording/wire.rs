//! The frames between a recorder and the agent, over a Unix socket.
//!
//! A frame is its length (four bytes, big-endian, of what follows: 256 KiB at most), a byte that says which one it is, and
//! its content: a JSON document, or where it says so bytes.
//!
//! ```text
//! recorder                                        agent
//! 1 Hello {version, certificate, …}   ->
//!                                     <-   16 Verdict {verdict: "record" | "unrecorded" | "refused" | "busy", …}
//! 2 Data  offset (8 bytes), bytes     ->
//!                                     <-   17 Saved offset (8 bytes): all before it is on the agent's disk
//! 3 End   {status}                    ->
//!                                     <-   18 Sealed: the end is on disk as well
//!                                     <-   19 Failed {reason}, instead: nothing more is taken
//! ```
//!
//! Each Data is whole lines of the payload, and begins where the one before ended. Who lost the agent connects again, and
//! says `resume` in its Hello; the verdict then says where to go on. An agent that has no place for a recorder says so before
//! it has heard anything, and goes.

use std::io;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use recording_format::RecordingId;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;
use tokio_util::codec::{Framed, LengthDelimitedCodec};

use super::mode::Mode;

/// Version of the frames. An agent takes no other.
pub(crate) const VERSION: u32 = 1;
/// Longest frame, in bytes. A certificate takes 128 KiB at most.
const MAX_FRAME: usize = 256 << 10;
/// Most bytes of payload in a frame that is sent.
pub(crate) const MAX_DATA: usize = 64 << 10;

/// Frames over a socket.
pub(crate) type Frames = Framed<UnixStream, LengthDelimitedCodec>;

/// Frames over a socket.
pub(crate) fn frames(stream: UnixStream) -> Frames {
    LengthDelimitedCodec::builder().max_frame_length(MAX_FRAME).new_framed(stream)
}

/// Who begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Hello {
    pub(crate) version: u32,
    /// What sshd let the user in by, as it says it (`ExposeAuthInfo`): the agent looks for a certificate in it.
    pub(crate) auth_info: String,
    /// Whether there is a terminal.
    pub(crate) tty: bool,
    /// What is run, if it is no login shell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) command: Option<String>,
    /// A recording that is to go on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) resume: Option<Ticket>,
}

/// By which a recording is taken up again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Ticket {
    pub(crate) recording_id: RecordingId,
    /// 64 hexadecimal digits, which the agent drew.
    pub(crate) secret: String,
}

/// What becomes of a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, tag = "verdict", rename_all = "kebab-case")]
pub(crate) enum Verdict {
    /// It is recorded.
    Record {
        mode: Mode,
        ticket: Ticket,
        /// Bytes of it that the agent has on disk.
        offset: u64,
    },
    /// It may go on without being recorded.
    Unrecorded {
        /// Why, when it should have been.
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// It may not go on.
    Refused { reason: String },
    /// The agent takes nothing from this account now: who begins goes by the mode, and who goes on tries again.
    Busy { mode: Mode, reason: String },
}

/// How the command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Ended {
    /// Exit status, or 128 and the signal's number, as shells say it.
    pub(crate) status: i32,
}

/// Why nothing more is taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Failed {
    pub(crate) reason: String,
}

/// What a recorder says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ToAgent {
    Hello(Hello),
    Data { offset: u64, bytes: Bytes },
    End(Ended),
}

/// What an agent says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ToRecorder {
    Verdict(Verdict),
    Saved(u64),
    Sealed,
    Failed(Failed),
}

const HELLO: u8 = 1;
const DATA: u8 = 2;
const END: u8 = 3;
const VERDICT: u8 = 16;
const SAVED: u8 = 17;
const SEALED: u8 = 18;
const FAILED: u8 = 19;

impl ToAgent {
    pub(crate) fn encode(&self) -> io::Result<Bytes> {
        match self {
            Self::Hello(hello) => document(HELLO, hello),
            Self::Data { offset, bytes } => {
                let mut frame = BytesMut::with_capacity(9 + bytes.len());
                frame.put_u8(DATA);
                frame.put_u64(*offset);
                frame.put_slice(bytes);
                Ok(frame.freeze())
            }
            Self::End(ended) => document(END, ended),
        }
    }

    pub(crate) fn decode(frame: BytesMut) -> io::Result<Self> {
        let (kind, mut content) = parts(frame)?;
        match kind {
            HELLO => Ok(Self::Hello(read(&content)?)),
            DATA => {
                let offset = content.try_get_u64().map_err(|_| malformed("an offset"))?;
                Ok(Self::Data { offset, bytes: content.freeze() })
            }
            END => Ok(Self::End(read(&content)?)),
            _ => Err(malformed("a frame of a recorder")),
        }
    }
}

impl ToRecorder {
    pub(crate) fn encode(&self) -> io::Result<Bytes> {
        match self {
            Self::Verdict(verdict) => document(VERDICT, verdict),
            Self::Saved(offset) => {
                let mut frame = BytesMut::with_capacity(9);
                frame.put_u8(SAVED);
                frame.put_u64(*offset);
                Ok(frame.freeze())
            }
            Self::Sealed => Ok(Bytes::from_static(&[SEALED])),
            Self::Failed(failed) => document(FAILED, failed),
        }
    }

    pub(crate) fn decode(frame: BytesMut) -> io::Result<Self> {
        let (kind, mut content) = parts(frame)?;
        match kind {
            VERDICT => Ok(Self::Verdict(read(&content)?)),
            SAVED => Ok(Self::Saved(content.try_get_u64().map_err(|_| malformed("an offset"))?)),
            SEALED => Ok(Self::Sealed),
            FAILED => Ok(Self::Failed(read(&content)?)),
            _ => Err(malformed("a frame of an agent")),
        }
    }
}

fn document(kind: u8, content: &impl Serialize) -> io::Result<Bytes> {
    let mut frame = vec![kind];
    serde_json::to_writer(&mut frame, content)?;
    Ok(frame.into())
}

fn parts(mut frame: BytesMut) -> io::Result<(u8, BytesMut)> {
    let kind = frame.try_get_u8().map_err(|_| malformed("a frame"))?;
    Ok((kind, frame))
}

fn read<D: DeserializeOwned>(content: &[u8]) -> io::Result<D> {
    Ok(serde_json::from_slice(content)?)
}

fn malformed(expected: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("that is not {expected}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticket() -> Ticket {
        Ticket { recording_id: RecordingId::from_bytes([7; 16]), secret: "ab".into() }
    }

    fn of_recorder() -> Vec<(ToAgent, &'static [u8])> {
        let hello = |resume| Hello {
            version: VERSION,
            auth_info: "publickey x".into(),
            tty: true,
            command: None,
            resume,
        };
        vec![
            (ToAgent::Hello(hello(None)), b"\x01{\"version\":1,\"auth_info\":\"publickey x\",\"tty\":true}"),
            (
                ToAgent::Hello(hello(Some(ticket()))),
                b"\x01{\"version\":1,\"auth_info\":\"publickey x\",\"tty\":true,\"resume\":{\"recording_id\":\"07070707-0707-0707-0707-070707070707\",\"secret\":\"ab\"}}",
            ),
            (ToAgent::Data { offset: 258, bytes: Bytes::from_static(b"x\n") }, b"\x02\0\0\0\0\0\0\x01\x02x\n"),
            (ToAgent::End(Ended { status: 130 }), b"\x03{\"status\":130}"),
        ]
    }

    fn of_agent() -> Vec<(ToRecorder, &'static [u8])> {
        let record = Verdict::Record { mode: Mode::BestEffort, ticket: ticket(), offset: 5 };
        vec![
            (
                ToRecorder::Verdict(record),
                b"\x10{\"verdict\":\"record\",\"mode\":\"best-effort\",\"ticket\":{\"recording_id\":\"07070707-0707-0707-0707-070707070707\",\"secret\":\"ab\"},\"offset\":5}",
            ),
            (
                ToRecorder::Verdict(Verdict::Unrecorded { reason: None }),
                b"\x10{\"verdict\":\"unrecorded\"}",
            ),
            (
                ToRecorder::Verdict(Verdict::Refused { reason: "no".into() }),
                b"\x10{\"verdict\":\"refused\",\"reason\":\"no\"}",
            ),
            (
                ToRecorder::Verdict(Verdict::Busy { mode: Mode::Strict, reason: "no".into() }),
                b"\x10{\"verdict\":\"busy\",\"mode\":\"strict\",\"reason\":\"no\"}",
            ),
            (ToRecorder::Saved(1), b"\x11\0\0\0\0\0\0\0\x01"),
            (ToRecorder::Sealed, b"\x12"),
            (ToRecorder::Failed(Failed { reason: "full".into() }), b"\x13{\"reason\":\"full\"}"),
        ]
    }

    #[test]
    fn frames_are_pinned() {
        for (frame, bytes) in of_recorder() {
            assert_eq!(frame.encode().unwrap(), bytes);
            assert_eq!(ToAgent::decode(bytes.into()).unwrap(), frame);
        }
        for (frame, bytes) in of_agent() {
            assert_eq!(frame.encode().unwrap(), bytes);
            assert_eq!(ToRecorder::decode(bytes.into()).unwrap(), frame);
        }
    }

    #[test]
    fn what_is_no_frame_is_an_error() {
        for bytes in
            [&b""[..], b"\0", b"\x01", b"\x01{}", b"\x02short", b"\x03{\"status\":\"x\"}", b"\x10{}", b"\x63"]
        {
            assert!(ToAgent::decode(bytes.into()).is_err(), "{bytes:?}");
            if bytes != b"\x01" {
                assert!(ToRecorder::decode(bytes.into()).is_err(), "{bytes:?}");
            }
        }
        assert!(ToRecorder::decode((&b"\x11\0"[..]).into()).is_err());
    }
}
