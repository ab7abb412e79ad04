//! asciicast v3: what was seen on a terminal, in lines of JSON (docs.asciinema.org/manual/asciicast/v3).
//!
//! Pure: bytes and times go in, lines come out. Bytes are text from here on: a character that is split between two reads
//! is put together, and what is no UTF-8 becomes U+FFFD.

use std::{io, time::Duration};

use bytes::Bytes;
use serde::Serialize;

/// Name of the format in a recording's metadata.
pub(crate) const FORMAT: &str = "asciicast-v3";
/// Most bytes that become one line: it is six times as long at most (`\u0000`), and fits into a frame.
pub(crate) const MAX_PIECE: usize = 8 << 10;

/// What the first line says.
#[derive(Debug, Serialize)]
pub(crate) struct Header {
    version: u8,
    term: Term,
    /// Unix seconds.
    timestamp: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    command: Option<String>,
}

#[derive(Debug, Serialize)]
struct Term {
    cols: u16,
    rows: u16,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<String>,
}

impl Header {
    pub(crate) fn new(
        (cols, rows): (u16, u16),
        kind: Option<String>,
        timestamp: u64,
        command: Option<String>,
    ) -> Self {
        Self { version: 3, term: Term { cols, rows, kind }, timestamp, command }
    }
}

/// From where bytes came: what is split is put together by stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Input,
    Output,
    Errors,
}

/// Writes the lines of one session.
#[derive(Debug, Default)]
pub(crate) struct Cast {
    /// Time of the last line since the begin: lines have the time since the one before, and what is rounded away must
    /// not add up.
    last: u64,
    input: Vec<u8>,
    output: Vec<u8>,
    errors: Vec<u8>,
}

impl Cast {
    /// The first line.
    pub(crate) fn header(header: &Header) -> io::Result<Bytes> {
        line(header)
    }

    /// Bytes that were seen at a time since the begin. `None`: not even a character yet.
    pub(crate) fn bytes(&mut self, at: Duration, stream: Stream, bytes: &[u8]) -> io::Result<Option<Bytes>> {
        let (code, carry) = match stream {
            Stream::Input => ("i", &mut self.input),
            Stream::Output => ("o", &mut self.output),
            Stream::Errors => ("o", &mut self.errors),
        };
        carry.extend_from_slice(bytes);
        let whole = carry.len() - unfinished(carry);
        let text = String::from_utf8_lossy(carry.get(..whole).unwrap_or_default()).into_owned();
        carry.drain(..whole);
        if text.is_empty() { Ok(None) } else { self.event(at, code, &text).map(Some) }
    }

    /// The terminal has another size.
    pub(crate) fn resize(&mut self, at: Duration, (cols, rows): (u16, u16)) -> io::Result<Bytes> {
        self.event(at, "r", &format!("{cols}x{rows}"))
    }

    /// A note.
    pub(crate) fn marker(&mut self, at: Duration, text: &str) -> io::Result<Bytes> {
        self.event(at, "m", text)
    }

    /// The command has ended.
    pub(crate) fn exit(&mut self, at: Duration, status: i32) -> io::Result<Bytes> {
        self.event(at, "x", &status.to_string())
    }

    fn event(&mut self, at: Duration, code: &str, data: &str) -> io::Result<Bytes> {
        let now = u64::try_from(at.as_micros()).unwrap_or(u64::MAX).max(self.last);
        let since = now - self.last;
        self.last = now;
        let interval = format!("{}.{:06}", since / 1_000_000, since % 1_000_000);
        let mut text = format!("[{interval},\"{code}\",").into_bytes();
        serde_json::to_writer(&mut text, data)?;
        text.extend_from_slice(b"]\n");
        Ok(text.into())
    }
}

fn line(document: &impl Serialize) -> io::Result<Bytes> {
    let mut text = serde_json::to_vec(document)?;
    text.push(b'\n');
    Ok(text.into())
}

/// How many bytes at the end may be the beginning of a character: three at most.
fn unfinished(bytes: &[u8]) -> usize {
    for back in 1..=bytes.len().min(3) {
        let Some(tail) = bytes.get(bytes.len() - back..) else { return 0 };
        let is_first = tail.first().is_some_and(|byte| byte & 0b1100_0000 == 0b1100_0000);
        if is_first {
            // No error length: more bytes could make it a character.
            let incomplete = std::str::from_utf8(tail).is_err_and(|error| error.error_len().is_none());
            return if incomplete { back } else { 0 };
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(line: Option<Bytes>) -> String {
        line.map_or_else(String::new, |line| String::from_utf8(line.to_vec()).unwrap())
    }

    #[test]
    fn lines_are_pinned() {
        let header = Header::new((80, 24), Some("xterm".into()), 1_795_512_000, Some("ls".into()));
        assert_eq!(
            text(Cast::header(&header).ok()),
            "{\"version\":3,\"term\":{\"cols\":80,\"rows\":24,\"type\":\"xterm\"},\"timestamp\":1795512000,\"command\":\"ls\"}\n"
        );
        let mut cast = Cast::default();
        let ms = Duration::from_millis;
        assert_eq!(
            text(cast.bytes(ms(1_500), Stream::Output, b"a\x1b[0m\"\r\n").unwrap()),
            "[1.500000,\"o\",\"a\\u001b[0m\\\"\\r\\n\"]\n"
        );
        assert_eq!(text(cast.resize(ms(1_501), (100, 50)).ok()), "[0.001000,\"r\",\"100x50\"]\n");
        assert_eq!(text(cast.bytes(ms(1_501), Stream::Input, b"x").unwrap()), "[0.000000,\"i\",\"x\"]\n");
        assert_eq!(text(cast.marker(ms(1_502), "m").ok()), "[0.001000,\"m\",\"m\"]\n");
        // A clock that goes back does not.
        assert_eq!(text(cast.exit(ms(3), 130).ok()), "[0.000000,\"x\",\"130\"]\n");
    }

    #[test]
    fn characters_are_whole_however_they_are_read() {
        let whole = "aé€🦀z".as_bytes();
        for step in 1..=whole.len() {
            let mut cast = Cast::default();
            let mut seen = String::new();
            for piece in whole.chunks(step) {
                let line = text(cast.bytes(Duration::ZERO, Stream::Output, piece).unwrap());
                // Another stream's bytes come in between.
                let _ = cast.bytes(Duration::ZERO, Stream::Errors, b"\xe2").unwrap();
                if !line.is_empty() {
                    let event: (f64, String, String) = serde_json::from_str(&line).unwrap();
                    seen += &event.2;
                }
            }
            assert_eq!(seen, "aé€🦀z", "{step}");
        }
    }

    #[test]
    fn what_is_no_text_is_shown_as_such_and_holds_nothing_up() {
        let mut cast = Cast::default();
        let line = cast.bytes(Duration::ZERO, Stream::Output, b"a\xff\xc3(\x80\x80\x80\x80").unwrap();
        let line = text(line);
        assert!(line.contains('\u{fffd}') && line.contains('('), "{line}");
        assert!(cast.output.is_empty());
        // The longest that a piece can become.
        let line = cast.bytes(Duration::ZERO, Stream::Output, &vec![0; MAX_PIECE]).unwrap().unwrap();
        assert!(line.len() <= super::super::wire::MAX_DATA, "{}", line.len());
    }
}
