//! asciicast, versions 2 and 3: the format that payloads of terminal sessions have, read as it arrives.
//!
//! A header line, then one line an event: `[time, "code", "data"]`, where the time is in seconds, since the event before
//! (version 3) or since the beginning (version 2). What is read here was recorded by an agent and may be anything:
//! every line and number has a bound, and what an output may do to the terminal of whoever watches is decided by
//! [`Sanitizer`].

mod sanitizer;

use std::time::Duration;

use serde::Deserialize;

pub use sanitizer::{RESET, RESTORE, Sanitizer};

/// Longest line, in bytes. A recorder writes what it read at once, some tens of KiB, which JSON makes six times as long at
/// most.
pub const MAX_LINE: usize = 1 << 20;

/// Latest time of an event, in seconds: some thirty years. Later ones are at this time.
const MAX_SECONDS: f64 = 1e9;

/// Why bytes are no asciicast.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AsciicastError {
    /// The first line is not the header of a version that is known.
    #[error("this is no asciicast recording of version 2 or 3: {0}")]
    Header(&'static str),
    /// A line is longer than [`MAX_LINE`].
    #[error("line {line} is longer than {MAX_LINE} bytes, which no event of an asciicast is")]
    LongLine {
        /// From 1.
        line: u64,
    },
    /// A line is no event.
    #[error("line {line} is no event of an asciicast: {reason}")]
    Event {
        /// From 1.
        line: u64,
        /// What is wrong with it.
        reason: &'static str,
    },
}

/// What a recording says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// 2 or 3.
    pub version: u8,
    /// Width of the terminal at the beginning, in columns.
    pub cols: u16,
    /// Its height, in rows.
    pub rows: u16,
    /// Longer pauses are to be played as this one.
    pub idle_limit: Option<Duration>,
    /// What the session was called.
    pub title: Option<String>,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Since the beginning. Never before that of the event before.
    pub at: Duration,
    /// What it was.
    pub kind: EventKind,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventKind {
    /// The session wrote to the terminal, as it is: see [`Sanitizer`].
    Output(String),
    /// The terminal has another size: columns and rows.
    Resize(u16, u16),
    /// Something else: input, markers, the end, and what later versions add.
    Other,
}

/// A line that says something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// The first.
    Header(Header),
    /// Any other.
    Event(Event),
}

/// Reads a recording from bytes as they arrive.
#[derive(Debug, Clone, Default)]
pub struct Reader {
    /// What is not read yet, from `begin` on.
    buffer: Vec<u8>,
    begin: usize,
    /// In `buffer` before this is no end of the line that is next.
    searched: usize,
    /// Lines that were read.
    lines: u64,
    /// Of the header; `None` before it.
    version: Option<u8>,
    /// Time of the last event.
    at: Duration,
}

impl Reader {
    /// Takes the next bytes. They are kept until [`Self::next_item`] has read them.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.begin);
        self.searched = self.searched.saturating_sub(self.begin);
        self.begin = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next item; `None` until more bytes come.
    ///
    /// # Errors
    /// See [`AsciicastError`]. After one, what else there is should not be read.
    pub fn next_item(&mut self) -> Result<Option<Item>, AsciicastError> {
        while let Some(end) = self.end_of_line()? {
            let line = self.buffer.get(self.begin..end).unwrap_or_default().to_vec();
            self.begin = end.saturating_add(1);
            self.searched = self.begin;
            self.lines = self.lines.saturating_add(1);
            if let Some(item) = self.line(&line)? {
                return Ok(Some(item));
            }
        }
        Ok(None)
    }

    /// What the last line says, when nothing more comes. One that broke off says nothing: the recording was interrupted there.
    ///
    /// # Errors
    /// See [`AsciicastError`]; [`AsciicastError::Header`] when there was no whole line at all.
    pub fn finish(&mut self) -> Result<Option<Item>, AsciicastError> {
        let line = self.buffer.split_off(self.begin.min(self.buffer.len()));
        (self.buffer, self.begin, self.searched) = (Vec::new(), 0, 0);
        if line.trim_ascii().is_empty() && self.version.is_some() {
            return Ok(None);
        }
        self.lines = self.lines.saturating_add(1);
        let whole = serde_json::from_slice::<serde::de::IgnoredAny>(&line).is_ok() || line.starts_with(b"#");
        match (whole, self.version) {
            (false, Some(_)) => Ok(None),
            (false, None) => Err(AsciicastError::Header("there is no header")),
            (true, _) => self.line(&line),
        }
    }

    /// Where the next line ends, if all of it is there.
    fn end_of_line(&mut self) -> Result<Option<usize>, AsciicastError> {
        let rest = self.buffer.get(self.searched..).unwrap_or_default();
        let end = rest.iter().position(|byte| *byte == b'\n').map(|at| self.searched.saturating_add(at));
        self.searched = end.unwrap_or(self.buffer.len());
        if self.searched.saturating_sub(self.begin) > MAX_LINE {
            return Err(AsciicastError::LongLine { line: self.lines.saturating_add(1) });
        }
        Ok(end)
    }

    fn line(&mut self, line: &[u8]) -> Result<Option<Item>, AsciicastError> {
        let line = line.trim_ascii();
        match self.version {
            None => {
                let header = header(line)?;
                self.version = Some(header.version);
                Ok(Some(Item::Header(header)))
            }
            Some(_) if line.is_empty() || line.starts_with(b"#") => Ok(None),
            Some(version) => {
                let event = event(line, version, self.at)
                    .map_err(|reason| AsciicastError::Event { line: self.lines, reason })?;
                self.at = event.at;
                Ok(Some(Item::Event(event)))
            }
        }
    }
}

/// The header, as both versions have it.
#[derive(Deserialize)]
struct RawHeader {
    version: u64,
    width: Option<u16>,
    height: Option<u16>,
    term: Option<RawTerm>,
    idle_time_limit: Option<f64>,
    title: Option<String>,
}

#[derive(Deserialize)]
struct RawTerm {
    cols: u16,
    rows: u16,
}

fn header(line: &[u8]) -> Result<Header, AsciicastError> {
    let raw: RawHeader = serde_json::from_slice(line)
        .map_err(|_| AsciicastError::Header("the first line is not its header, a JSON object"))?;
    let (version, size) = match (raw.version, raw.width.zip(raw.height), raw.term) {
        (2, size, _) => (2, size),
        (3, _, term) => (3, term.map(|term| (term.cols, term.rows))),
        _ => return Err(AsciicastError::Header("it is of another version")),
    };
    let (cols, rows) = size
        .filter(|(cols, rows)| *cols > 0 && *rows > 0)
        .ok_or(AsciicastError::Header("the header does not say how large the terminal was"))?;
    let idle_limit = raw.idle_time_limit.and_then(seconds);
    Ok(Header { version, cols, rows, idle_limit, title: raw.title })
}

fn event(line: &[u8], version: u8, before: Duration) -> Result<Event, &'static str> {
    let (time, code, data): (f64, String, String) =
        serde_json::from_slice(line).map_err(|_| "it is not `[seconds, \"code\", \"data\"]`")?;
    let time = seconds(time).ok_or("its time is none")?;
    let last = Duration::from_secs_f64(MAX_SECONDS);
    // Recorders of version 2 took their times from clocks that may be set back.
    let at = if version == 3 { before.saturating_add(time).min(last) } else { time.max(before) };
    let kind = match code.as_str() {
        "o" => EventKind::Output(data),
        "r" => {
            let (cols, rows) = size(&data).ok_or("it is no size: `COLUMNSxROWS`")?;
            EventKind::Resize(cols, rows)
        }
        _ => EventKind::Other,
    };
    Ok(Event { at, kind })
}

fn seconds(seconds: f64) -> Option<Duration> {
    (seconds >= 0.0).then(|| Duration::from_secs_f64(seconds.min(MAX_SECONDS)))
}

fn size(text: &str) -> Option<(u16, u16)> {
    let (cols, rows) = text.split_once('x')?;
    let number = |text: &str| text.parse().ok().filter(|number| *number > 0);
    Some((number(cols)?, number(rows)?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEADER: &str =
        r#"{"version":3,"term":{"cols":80,"rows":24,"type":"xterm"},"idle_time_limit":1.5,"title":"t"}"#;

    /// All items, of bytes that come in pieces of this size.
    fn read(bytes: &[u8], piece: usize) -> Result<Vec<Item>, AsciicastError> {
        let (mut reader, mut items) = (Reader::default(), Vec::new());
        for piece in bytes.chunks(piece) {
            reader.push(piece);
            while let Some(item) = reader.next_item()? {
                items.push(item);
            }
        }
        items.extend(reader.finish()?);
        Ok(items)
    }

    fn output(millis: u64, text: &str) -> Item {
        Item::Event(Event { at: Duration::from_millis(millis), kind: EventKind::Output(text.into()) })
    }

    #[test]
    fn times_of_version_3_are_since_the_event_before_and_those_of_version_2_since_the_beginning() {
        let events = "[0.5,\"o\",\"a\"]\n# a comment\n\n[1,\"r\",\"100x50\"]\r\n[1.25,\"i\",\"q\"]\n[2,\"o\",\"\\u001b[1mb\"]\n";
        let v3 = read(format!("{HEADER}\n{events}").as_bytes(), 7).unwrap();
        let said = Header {
            version: 3,
            cols: 80,
            rows: 24,
            idle_limit: Some(Duration::from_millis(1500)),
            title: Some("t".into()),
        };
        let event = |millis, kind| Item::Event(Event { at: Duration::from_millis(millis), kind });
        assert_eq!(
            v3,
            [
                Item::Header(said),
                output(500, "a"),
                event(1500, EventKind::Resize(100, 50)),
                event(2750, EventKind::Other),
                output(4750, "\u{1b}[1mb"),
            ]
        );
        let v2 = format!("{{\"version\":2,\"width\":80,\"height\":24}}\n{events}[1.0,\"o\",\"c\"]");
        let v2 = read(v2.as_bytes(), 3).unwrap();
        assert_eq!(v2[1..3], [output(500, "a"), event(1000, EventKind::Resize(100, 50))]);
        // A clock that was set back; and a last line without an end is one.
        assert_eq!(v2[4..], [output(2000, "\u{1b}[1mb"), output(2000, "c")]);
    }

    #[test]
    fn what_broke_off_in_a_line_ends_there() {
        let whole = format!("{HEADER}\n[1,\"o\",\"a\"]\n[1,\"o\",\"b\"]\n");
        for cut in HEADER.len() + 1..whole.len() {
            let items = read(&whole.as_bytes()[..cut], 5).unwrap();
            assert!((1..=3).contains(&items.len()), "{cut}: {items:?}");
        }
        assert_eq!(read(&whole.as_bytes()[..HEADER.len()], 5).unwrap().len(), 1);
        for none in ["", "\n", "{\"version\":3"] {
            assert!(matches!(read(none.as_bytes(), 5), Err(AsciicastError::Header(_))), "{none:?}");
        }
    }

    #[test]
    fn what_is_no_asciicast_is_told() {
        for header in [
            "PK\u{3}\u{4}",
            "{}",
            r#"{"version":1,"width":80,"height":24,"stdout":[]}"#,
            r#"{"version":4,"term":{"cols":80,"rows":24}}"#,
            r#"{"version":3}"#,
            r#"{"version":3,"term":{"cols":0,"rows":24}}"#,
            r#"{"version":2,"width":80}"#,
            r#"{"version":2,"width":70000,"height":24}"#,
        ] {
            let found = read(format!("{header}\n").as_bytes(), 100);
            assert!(matches!(found, Err(AsciicastError::Header(_))), "{header}: {found:?}");
        }
        for event in [
            "{}",
            "[]",
            "[1,\"o\"]",
            "[1,\"o\",\"a\",1]",
            "[-1,\"o\",\"a\"]",
            "[\"1\",\"o\",\"a\"]",
            "[1,\"r\",\"80\"]",
            "[1,\"r\",\"0x5\"]",
            "[1,\"o\",\"\\ud800\"]",
        ] {
            let found = read(format!("{HEADER}\n[0,\"o\",\"a\"]\n{event}\n").as_bytes(), 100);
            assert!(matches!(found, Err(AsciicastError::Event { line: 3, .. })), "{event}: {found:?}");
        }
    }

    #[test]
    fn lines_and_times_are_bounded() {
        let long = format!("{HEADER}\n[0,\"o\",\"{}", "a".repeat(MAX_LINE));
        assert_eq!(read(long.as_bytes(), 1000), Err(AsciicastError::LongLine { line: 2 }));
        let fits = format!("{HEADER}\n[0,\"o\",\"{}\"]\n", "a".repeat(MAX_LINE - 10));
        assert_eq!(read(fits.as_bytes(), 1000).unwrap().len(), 2);
        let late = format!("{HEADER}\n{}", "[1e300,\"o\",\"a\"]\n".repeat(3));
        let items = read(late.as_bytes(), 1000).unwrap();
        assert_eq!(items[1..], vec![output(1_000_000_000_000, "a"); 3]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>, piece in 1_usize..50) {
            let all = [HEADER.as_bytes(), b"\n[1,\"o\",\"a\"]\n", &bytes].concat();
            prop_assert_eq!(read(&all, piece), read(&all, all.len()));
            prop_assert_eq!(read(&bytes, piece).is_ok(), read(&bytes, 1000).is_ok());
        }
    }
}
