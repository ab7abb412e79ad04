//! Recordings on their way: a folder where each is from its first byte until there is a receipt for it.
//!
//! A [`Writer`] has an entry as long as its session goes on, and what it has taken is on disk. A [`Forwarder`] sends
//! entries while they grow and removes each against its receipt alone. Either may be killed at any moment: an entry
//! whose writer is gone can be taken up again for a while, and is ended as it is after that. Events of the audit log
//! are kept beside the recordings in an [`Outbox`] until the cluster has them. One process has a spool at a time.
//!
//! ```text
//! DIR/lock                    held by the process that has the spool
//! DIR/sessions/<id>/meta.json what is known of the session ([`Session`])
//! DIR/sessions/<id>/payload   what was recorded; locked by its writer
//! DIR/sessions/<id>/end.json  length and digest, once the session has ended ([`End`])
//! DIR/events/                 events that the cluster has not got yet
//! DIR/aside/<id>              what is damaged, or cannot be sent for good: for a person to look at
//! ```

mod entry;
mod forward;
mod look;
mod outbox;
mod writer;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use mezite_daemon::files::{self, FileError};
use recording_format::RecordingId;
use tokio::sync::watch;

use crate::Extent;

pub use entry::{End, Session};
pub use forward::{ForwardSettings, Forwarder, Notice, Route};
pub use look::{Holdings, SetAside};
pub use outbox::{Event, Outbox};
pub use writer::Writer;

/// Bytes that an entry is counted as beside its payload: its folder and documents.
const OVERHEAD: u64 = 16 << 10;
/// In front of the name of an entry that is being made or removed.
const PASSING: char = '.';
/// Where entries are.
const SESSIONS: &str = "sessions";
/// Where events are.
const EVENTS: &str = "events";
/// Where entries are that nothing sends any more.
const ASIDE: &str = "aside";

/// Why the spool does not do what it should.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpoolError {
    /// There is no room for more under the limit. Nothing is removed to make some.
    #[error("the spool is full: {limit} bytes wait to be sent")]
    Full {
        /// Most bytes, as configured.
        limit: u64,
    },
    /// Another process has it.
    #[error("another process has the spool {0}")]
    Busy(PathBuf),
    /// The disk does not do it.
    #[error(transparent)]
    File(#[from] FileError),
    /// An entry is not what it should be.
    #[error("recording {id} in the spool is damaged: {what}")]
    Damaged {
        /// Which one.
        id: RecordingId,
        /// What is wrong.
        what: String,
    },
    /// It is not where an entry is.
    #[error("{path} is no recording of a spool: {what}")]
    NoEntry {
        /// What was looked at.
        path: PathBuf,
        /// Why it is none.
        what: String,
    },
    /// An entry cannot be taken up again.
    #[error("the recording cannot be taken up again: {0}")]
    Over(&'static str),
}

/// A folder of recordings on their way.
#[derive(Debug)]
pub struct Spool {
    root: PathBuf,
    limit: u64,
    used: AtomicU64,
    /// Entries that have a writer in this process, and how far each has come.
    live: Mutex<BTreeMap<RecordingId, watch::Receiver<Extent>>>,
    changes: watch::Sender<u64>,
    outbox: Outbox,
    _lock: File,
}

/// How an entry stands.
#[derive(Debug)]
pub(crate) enum Standing {
    /// It has a writer.
    Live(watch::Receiver<Extent>),
    /// It has ended.
    Ended(Extent),
    /// Its writer is gone, and it has no end.
    Orphan,
}

impl Spool {
    /// Opens the spool in a folder, which is made if it is not there, and finishes what a crash left. `limit` bounds its
    /// payloads, in bytes. Also answers what was set aside because it is damaged, as warnings.
    ///
    /// # Errors
    /// [`SpoolError::Busy`], [`SpoolError::File`].
    pub fn open(root: &Path, limit: u64) -> Result<(Arc<Self>, Vec<String>), SpoolError> {
        files::create_dir(root)?;
        let lock = files::try_lock(&root.join("lock"))?.ok_or_else(|| SpoolError::Busy(root.to_owned()))?;
        for part in [SESSIONS, EVENTS, ASIDE] {
            files::create_private_dir(&root.join(part))?;
        }
        let spool = Self {
            root: root.to_owned(),
            limit,
            used: AtomicU64::new(0),
            live: Mutex::default(),
            changes: watch::channel(0).0,
            outbox: Outbox::new(root.join(EVENTS)),
            _lock: lock,
        };
        for name in names(&spool.sessions())? {
            if name.starts_with(PASSING) {
                let path = spool.sessions().join(&name);
                fs::remove_dir_all(&path).map_err(files::failed(&path))?;
            }
        }
        let mut warnings = Vec::new();
        for id in spool.entries()? {
            match spool.session(id).and_then(|_| spool.end(id)) {
                Ok(_) => spool.take(spool.size(id)?),
                Err(error @ SpoolError::Damaged { .. }) => {
                    spool.take(spool.size(id)?);
                    spool.set_aside(id)?;
                    warnings.push(format!("{error}; it is in {} now", spool.aside(id).display()));
                }
                Err(error) => return Err(error),
            }
        }
        Ok((Arc::new(spool), warnings))
    }

    /// Events that the cluster has not got yet.
    pub fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    /// Most bytes, as configured.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Ids of all entries, in order.
    ///
    /// # Errors
    /// [`SpoolError::File`].
    pub fn entries(&self) -> Result<Vec<RecordingId>, SpoolError> {
        ids(&self.sessions())
    }

    /// What is known of a session.
    ///
    /// # Errors
    /// [`SpoolError::Damaged`], [`SpoolError::File`].
    pub fn session(&self, id: RecordingId) -> Result<Session, SpoolError> {
        Session::read(&self.entry(id), id)
    }

    /// How the entry ended; `None`: it has not.
    pub(crate) fn end(&self, id: RecordingId) -> Result<Option<End>, SpoolError> {
        End::read(&self.entry(id), id)
    }

    pub(crate) fn standing(&self, id: RecordingId) -> Result<Standing, SpoolError> {
        if let Some(live) = self.live().get(&id) {
            return Ok(Standing::Live(live.clone()));
        }
        Ok(self.end(id)?.map_or(Standing::Orphan, |end| Standing::Ended(end.extent())))
    }

    /// Removes an entry. It is gone whole or not at all.
    pub(crate) fn remove(&self, id: RecordingId) -> Result<(), SpoolError> {
        let (size, passing) = (self.size(id)?, self.passing(id, "gone"));
        self.rename(&self.entry(id), &passing)?;
        fs::remove_dir_all(&passing).map_err(files::failed(&passing))?;
        self.give_back(size);
        Ok(())
    }

    /// Puts an entry where nothing sends it, and a person finds it. It does not count for the limit there: what cannot be
    /// sent must not keep others from being recorded.
    pub(crate) fn set_aside(&self, id: RecordingId) -> Result<(), SpoolError> {
        let size = self.size(id).unwrap_or(0);
        self.rename(&self.entry(id), &self.aside(id))?;
        self.give_back(size);
        Ok(())
    }

    /// Changes whenever an entry was made, taken up or left.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn has_changed(&self) {
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Where an entry is that was set aside.
    pub(crate) fn aside(&self, id: RecordingId) -> PathBuf {
        self.root.join(ASIDE).join(id.to_string())
    }

    pub(crate) fn payload(&self, id: RecordingId) -> PathBuf {
        self.entry(id).join(entry::PAYLOAD)
    }

    fn entry(&self, id: RecordingId) -> PathBuf {
        self.sessions().join(id.to_string())
    }

    fn passing(&self, id: RecordingId, how: &str) -> PathBuf {
        self.sessions().join(format!("{PASSING}{how}-{id}"))
    }

    fn sessions(&self) -> PathBuf {
        self.root.join(SESSIONS)
    }

    fn live(&self) -> MutexGuard<'_, BTreeMap<RecordingId, watch::Receiver<Extent>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn size(&self, id: RecordingId) -> Result<u64, SpoolError> {
        Ok(entry::length(&self.payload(id))?.saturating_add(OVERHEAD))
    }

    /// A rename that is on disk when this returns.
    fn rename(&self, from: &Path, to: &Path) -> Result<(), SpoolError> {
        fs::rename(from, to).map_err(files::failed(from))?;
        for dir in [from.parent(), to.parent()].into_iter().flatten() {
            File::open(dir).and_then(|dir| dir.sync_all()).map_err(files::failed(dir))?;
        }
        Ok(())
    }

    /// Counts bytes that are there already.
    fn take(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts bytes that are to come, if there is room for them.
    fn reserve(&self, bytes: u64) -> Result<(), SpoolError> {
        let room = |used: u64| used.checked_add(bytes).filter(|used| *used <= self.limit);
        let reserved = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room);
        reserved.map(drop).map_err(|_| SpoolError::Full { limit: self.limit })
    }

    fn give_back(&self, bytes: u64) {
        let less = |used: u64| Some(used.saturating_sub(bytes));
        let _ = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }
}

/// Names of what is in a folder; those that are no text are nobody's of ours.
fn names(dir: &Path) -> Result<Vec<String>, SpoolError> {
    let read = || -> io::Result<Vec<String>> {
        let entries = fs::read_dir(dir)?.collect::<io::Result<Vec<_>>>()?;
        Ok(entries.into_iter().filter_map(|entry| entry.file_name().into_string().ok()).collect())
    };
    Ok(read().map_err(files::failed(dir))?)
}

/// Ids of what is in a folder, in order. What is not named as an entry is nobody's of ours, and stays.
fn ids(dir: &Path) -> Result<Vec<RecordingId>, SpoolError> {
    let mut ids: Vec<RecordingId> = names(dir)?.iter().filter_map(|name| name.parse().ok()).collect();
    ids.sort_unstable();
    Ok(ids)
}

#[cfg(test)]
#[path = "spool/tests.rs"]
mod tests;
