//! Writing an entry: what was taken is on disk, and told to whoever sends it.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    sync::Arc,
};

use mezite_daemon::files::{self, PRIVATE};
use recording_format::{Digest, PayloadHasher, RecordingId};
use tokio::sync::watch;

use super::{
    End, Event, OVERHEAD, Session, Spool, SpoolError,
    entry::{END, META, PAYLOAD, encode},
};
use crate::{Extent, PayloadEnd};

/// Formats of text in lines begin so: of one whose writer died, what follows the last line goes.
const LINES: &str = "asciicast";

/// An entry that is being written. Its file is locked, so that nobody else ends it; dropped without
/// [`Writer::end`], the entry can be taken up again.
#[derive(Debug)]
pub struct Writer {
    spool: Arc<Spool>,
    session: Session,
    file: File,
    hasher: PayloadHasher,
    length: u64,
    extent: watch::Sender<Extent>,
    /// The file did not take something: what is behind `length` there is nobody's.
    broken: bool,
}

impl Spool {
    /// Makes an entry, and keeps the event of the session's start.
    ///
    /// # Errors
    /// [`SpoolError::Full`], [`SpoolError::File`].
    pub fn create(self: &Arc<Self>, session: Session) -> Result<Writer, SpoolError> {
        self.reserve(OVERHEAD)?;
        let id = session.recording_id;
        let file = match self.make(&session) {
            Ok(file) => file,
            Err(error) => {
                self.give_back(OVERHEAD);
                let _ = fs::remove_dir_all(self.passing(id, "new"));
                return Err(error);
            }
        };
        if let Err(error) = self.outbox.put(&Event::start(&session)) {
            self.remove(id)?;
            return Err(error);
        }
        Ok(self.writer(session, file, PayloadHasher::default(), 0))
    }

    fn make(&self, session: &Session) -> Result<File, SpoolError> {
        let id = session.recording_id;
        let dir = self.passing(id, "new");
        files::create_private_dir(&dir)?;
        let document = encode(session).map_err(files::failed(&dir))?;
        files::write_atomic(&dir.join(META), &document, PRIVATE)?;
        let path = dir.join(PAYLOAD);
        let open = OpenOptions::new().read(true).write(true).create_new(true).mode(PRIVATE).open(&path);
        let file = open.map_err(files::failed(&path))?;
        lock(&file, &path)?;
        let synced = file.sync_all().and_then(|()| File::open(&dir)?.sync_all());
        synced.map_err(files::failed(&dir))?;
        self.rename(&dir, &self.entry(id))?;
        Ok(file)
    }

    /// Takes an entry up again whose writer is gone, for whoever knows its secret. The writer answered goes on after
    /// [`Writer::length`].
    ///
    /// # Errors
    /// [`SpoolError::Over`] when it has ended, has a writer, or the secret is wrong; [`SpoolError::Damaged`],
    /// [`SpoolError::File`].
    pub fn resume(self: &Arc<Self>, id: RecordingId, secret: &[u8]) -> Result<Writer, SpoolError> {
        if !self.entry(id).exists() {
            return Err(SpoolError::Over("there is no such recording here any more"));
        }
        let session = self.session(id)?;
        if session.resume_sha256 != Digest::of(secret) {
            return Err(SpoolError::Over("it is somebody else's"));
        }
        self.reopen(session)
    }

    /// Ends an entry, as it is, whose writer is gone.
    ///
    /// # Errors
    /// As [`Spool::resume`].
    pub(crate) fn end_orphan(self: &Arc<Self>, id: RecordingId, now_ms: u64) -> Result<(), SpoolError> {
        let writer = self.reopen(self.session(id)?)?;
        self.outbox.put(&Event::failed(&writer.session, "the recorder went away", now_ms))?;
        writer.end(now_ms, &[("interrupted", "true".into())])
    }

    fn reopen(self: &Arc<Self>, session: Session) -> Result<Writer, SpoolError> {
        let id = session.recording_id;
        if self.end(id)?.is_some() {
            return Err(SpoolError::Over("it has ended"));
        }
        let path = self.payload(id);
        let open = OpenOptions::new().read(true).write(true).open(&path);
        let mut file = open.map_err(files::failed(&path))?;
        lock(&file, &path)?;
        let recovered = recover(&mut file, session.format.starts_with(LINES));
        let (hasher, length, cut) = recovered.map_err(files::failed(&path))?;
        self.give_back(cut);
        Ok(self.writer(session, file, hasher, length))
    }

    fn writer(self: &Arc<Self>, session: Session, file: File, hasher: PayloadHasher, length: u64) -> Writer {
        let (extent, follow) = watch::channel(Extent { length, end: None });
        self.live().insert(session.recording_id, follow);
        self.has_changed();
        Writer { spool: Arc::clone(self), session, file, hasher, length, extent, broken: false }
    }
}

impl Writer {
    /// Id of the recording.
    pub fn id(&self) -> RecordingId {
        self.session.recording_id
    }

    /// What is known of it.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Bytes that it has, all of them on disk.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Adds bytes; they are on disk when this returns, and all of them or none belong to the recording. It waits for
    /// the disk.
    ///
    /// # Errors
    /// [`SpoolError::Full`], [`SpoolError::File`]. After the latter it takes no more.
    pub fn append(&mut self, bytes: &[u8]) -> Result<u64, SpoolError> {
        let path = self.spool.payload(self.id());
        if self.broken {
            let cause = io::Error::other("an earlier write failed");
            return Err(files::failed(&path)(cause).into());
        }
        let more = bytes.len() as u64;
        self.spool.reserve(more)?;
        // What a failed fsync left is not known: the file gets no second one.
        if let Err(error) = self.file.write_all(bytes).and_then(|()| self.file.sync_data()) {
            self.broken = true;
            self.spool.give_back(more);
            return Err(files::failed(&path)(error).into());
        }
        self.hasher.update(bytes);
        self.length += more;
        self.extent.send_modify(|extent| extent.length = self.length);
        Ok(self.length)
    }

    /// Keeps the event that the session, or the rest of it, is not recorded.
    ///
    /// # Errors
    /// [`SpoolError::File`].
    pub fn failed(&self, reason: &str, now_ms: u64) -> Result<(), SpoolError> {
        self.spool.outbox.put(&Event::failed(&self.session, reason, now_ms))
    }

    /// Ends the recording, and keeps the event of the session's end with further fields.
    ///
    /// # Errors
    /// [`SpoolError::File`]: the entry can then be ended later, as one whose writer is gone.
    pub fn end(self, ended_at_ms: u64, fields: &[(&str, String)]) -> Result<(), SpoolError> {
        let id = self.id();
        let path = self.spool.payload(id);
        if self.broken {
            self.file.set_len(self.length).map_err(files::failed(&path))?;
        }
        let end = End::new(self.length, self.hasher.digest(), ended_at_ms);
        // Before the end: after it the entry can be gone at any moment. Twice is told once (see `Outbox::put`).
        self.spool.outbox.put(&Event::end(&self.session, &end, fields))?;
        let document = encode(&end).map_err(files::failed(&path))?;
        files::write_atomic(&self.spool.entry(id).join(END), &document, PRIVATE)?;
        let told = PayloadEnd { sha256: end.sha256, ended_at_ms: Some(ended_at_ms) };
        self.extent.send_modify(|extent| extent.end = Some(told));
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.spool.live().remove(&self.session.recording_id);
        self.spool.has_changed();
    }
}

fn lock(file: &File, path: &Path) -> Result<(), SpoolError> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(SpoolError::Over("it is being recorded elsewhere")),
        Err(TryLockError::Error(error)) => Err(files::failed(path)(error).into()),
    }
}

/// What of a payload counts: its digest, its length, and how many bytes were cut off. With `lines` those after the last line are cut: a
/// write that was interrupted, and never acknowledged.
fn recover(file: &mut File, lines: bool) -> io::Result<(PayloadHasher, u64, u64)> {
    let (mut hasher, mut length, mut there) = (PayloadHasher::default(), 0_u64, 0_u64);
    // What may belong to no line.
    let mut tail = Vec::new();
    let mut buffer = vec![0; 256 << 10];
    file.rewind()?;
    loop {
        let read = file.read(&mut buffer)?;
        let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else { break };
        there += bytes.len() as u64;
        tail.extend_from_slice(bytes);
        let whole = match lines {
            true => tail.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1),
            false => tail.len(),
        };
        hasher.update(tail.get(..whole).unwrap_or_default());
        length += whole as u64;
        tail.drain(..whole);
    }
    if there > length {
        file.set_len(length)?;
    }
    // What a killed writer wrote may not be on disk yet, and is told as if it were.
    file.sync_all()?;
    file.seek(SeekFrom::Start(length))?;
    Ok((hasher, length, there - length))
}
