//! A recording that is played: its payload as it arrives, and the events in it, from the beginning as often as one likes.

use std::{fs::File, os::unix::fs::FileExt as _, path::Path};

use anyhow::{Context as _, Result};
use mezite_client::Client;
use mezite_proto::v1;
use recording_format::{
    RecordingId,
    asciicast::{AsciicastError, Event, Header, Item, Reader},
};

use super::super::range;

/// Bytes that are read at once. Of a recording that is fetched, so many are waited for before it begins.
const PIECE: u32 = 256 << 10;

/// Where a payload comes from.
pub(super) enum Payload {
    /// A file that is whole.
    File(File),
    /// A recording of the cluster.
    Fetched(Box<Fetched>),
}

/// A recording of the cluster, and what was fetched of it, in a file without a name.
pub(super) struct Fetched {
    client: Client,
    id: RecordingId,
    kept: File,
    length: u64,
    ended: bool,
}

/// What there is at some offset.
enum Part {
    Bytes(Vec<u8>),
    /// Nothing, until the session goes on.
    NotYet,
    End,
}

impl Payload {
    /// Of a file.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) fn file(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self::File(file))
    }

    /// Of a recording of the cluster.
    ///
    /// # Errors
    /// When there is no room for what is fetched.
    pub(super) fn of_cluster(client: Client, id: RecordingId) -> Result<Self> {
        let kept = tempfile::tempfile().context("cannot make a temporary file")?;
        Ok(Self::Fetched(Box::new(Fetched { client, id, kept, length: 0, ended: false })))
    }

    async fn part(&mut self, offset: u64) -> Result<Part> {
        match self {
            Self::File(file) => {
                let bytes = piece(file, offset)?;
                Ok(if bytes.is_empty() { Part::End } else { Part::Bytes(bytes) })
            }
            Self::Fetched(fetched) => fetched.part(offset).await,
        }
    }
}

impl Fetched {
    async fn part(&mut self, offset: u64) -> Result<Part> {
        if offset >= self.length && !self.ended {
            self.fetch().await?;
        }
        match (offset < self.length, self.ended) {
            (true, _) => Ok(Part::Bytes(piece(&self.kept, offset)?)),
            (false, false) => Ok(Part::NotYet),
            (false, true) => Ok(Part::End),
        }
    }

    /// Asks for what follows what is there.
    async fn fetch(&mut self) -> Result<()> {
        let (recording, data) = range(&self.client, self.id, self.length, PIECE).await?;
        self.kept.write_all_at(&data, self.length).context("cannot write to a temporary file")?;
        self.length = self.length.saturating_add(data.len() as u64);
        // Where there is nothing more although there should be, another piece will not come either.
        let all = self.length >= recording.size || data.is_empty();
        self.ended = all && recording.state() != v1::RecordingState::InProgress;
        Ok(())
    }
}

fn piece(file: &File, offset: u64) -> Result<Vec<u8>> {
    let mut bytes = vec![0; PIECE as usize];
    let read = file.read_at(&mut bytes, offset).context("cannot read the recording")?;
    bytes.truncate(read);
    Ok(bytes)
}

/// What is next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    Event(Event),
    /// Nothing, until the session goes on.
    NotYet,
    End,
}

/// A place in a recording.
#[derive(Clone, Default)]
pub(super) struct Place {
    reader: Reader,
    offset: u64,
}

/// A recording, at some place.
pub(super) struct Tape {
    payload: Payload,
    place: Place,
}

impl Tape {
    /// At the beginning, before the header.
    pub(super) fn new(payload: Payload) -> Self {
        Self { payload, place: Place::default() }
    }

    /// The header; `None` until the session has begun.
    ///
    /// # Errors
    /// When there is none, or it cannot be fetched.
    pub(super) async fn header(&mut self) -> Result<Option<Header>> {
        match self.item().await? {
            Ok(Item::Header(header)) => Ok(Some(header)),
            Err(Next::NotYet) => Ok(None),
            _ => Err(AsciicastError::Header("there is no header").into()),
        }
    }

    /// What is next.
    ///
    /// # Errors
    /// When it is no event of an asciicast, or cannot be fetched.
    pub(super) async fn next(&mut self) -> Result<Next> {
        loop {
            match self.item().await? {
                Ok(Item::Event(event)) => return Ok(Next::Event(event)),
                // After it was gone back to the beginning.
                Ok(Item::Header(_)) => {}
                Err(other) => return Ok(other),
            }
        }
    }

    /// The next line that says something, or why there is none.
    async fn item(&mut self) -> Result<Result<Item, Next>> {
        loop {
            if let Some(item) = self.place.reader.next_item()? {
                return Ok(Ok(item));
            }
            match self.payload.part(self.place.offset).await? {
                Part::Bytes(bytes) => {
                    self.place.offset = self.place.offset.saturating_add(bytes.len() as u64);
                    self.place.reader.push(&bytes);
                }
                Part::NotYet => return Ok(Err(Next::NotYet)),
                Part::End => {
                    let last = self.place.reader.finish()?;
                    return Ok(last.ok_or(Next::End));
                }
            }
        }
    }

    /// Where it is.
    pub(super) fn place(&self) -> Place {
        self.place.clone()
    }

    /// Goes to where it was, or to the beginning.
    pub(super) fn go_to(&mut self, place: Place) {
        self.place = place;
    }
}
