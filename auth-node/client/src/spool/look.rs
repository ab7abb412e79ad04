//! Looking at a spool which another process may have: what was not sent, and what was set aside.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use mezite_daemon::files::{self, FileError};

use super::{
    ASIDE, EVENTS, End, SESSIONS, Session, SpoolError, entry::PAYLOAD, ids, names, outbox::is_event,
};

/// How much is in a spool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Holdings {
    /// Recordings that were not sent, or not all of them.
    pub sessions: usize,
    /// Events that were not told.
    pub events: usize,
    /// Recordings that were set aside: nothing sends them.
    pub aside: usize,
}

impl Holdings {
    /// Counts what is in the spool of a folder. Where there is none, it holds nothing.
    ///
    /// # Errors
    /// [`SpoolError::File`].
    pub fn of(root: &Path) -> Result<Self, SpoolError> {
        let count = |part: &str, count: fn(&Path) -> Result<usize, SpoolError>| match count(&root.join(part))
        {
            Err(SpoolError::File(FileError::Io { cause, .. })) if cause.kind() == io::ErrorKind::NotFound => {
                Ok(0)
            }
            counted => counted,
        };
        let entries: fn(&Path) -> _ = |dir| Ok(ids(dir)?.len());
        Ok(Self {
            sessions: count(SESSIONS, entries)?,
            events: count(EVENTS, |dir| Ok(names(dir)?.iter().filter(|name| is_event(name)).count()))?,
            aside: count(ASIDE, entries)?,
        })
    }

    /// Whether all that can be sent is.
    pub fn are_sent(&self) -> bool {
        self.sessions == 0 && self.events == 0
    }
}

impl fmt::Display for Holdings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = |count: usize| if count == 1 { "" } else { "s" };
        let Self { sessions, events, .. } = self;
        write!(f, "{sessions} session{} and {events} event{}", plural(*sessions), plural(*events))
    }
}

/// A recording that was set aside, for whoever sends it by hand.
#[derive(Debug)]
pub struct SetAside {
    /// What is known of its session.
    pub session: Session,
    /// How it ended; `None`: nobody ended it.
    pub end: Option<End>,
    /// The file with its payload.
    pub payload: PathBuf,
}

impl SetAside {
    /// Reads what is in a folder that is named after the recording.
    ///
    /// # Errors
    /// [`SpoolError::NoEntry`], [`SpoolError::Damaged`], [`SpoolError::File`].
    pub fn read(dir: &Path) -> Result<Self, SpoolError> {
        let dir = fs::canonicalize(dir).map_err(files::failed(dir))?;
        let name = dir.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let id = name.parse().map_err(|_| SpoolError::NoEntry {
            path: dir.clone(),
            what: "the name is not a recording's id".into(),
        })?;
        Ok(Self { session: Session::read(&dir, id)?, end: End::read(&dir, id)?, payload: dir.join(PAYLOAD) })
    }
}
