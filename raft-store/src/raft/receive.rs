//! Snapshots that are being received. The bytes so far stay in a file named after the snapshot, so that a transfer
//! that breaks off goes on where it was, also after a restart of either side. What it ends in is verified as a whole
//! before anything is done with it.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use mezite_proto::peer;
use tokio::{
    io::{AsyncSeekExt, AsyncWriteExt},
    sync::OwnedMutexGuard,
};
use tokio_util::sync::CancellationToken;

use super::snapshot_file::{self, SnapshotFile};
use crate::{
    error::StoreError,
    failure::{Point, pass},
    state::Applied,
};

/// The longest id of a snapshot: three numbers.
const MAX_ID_LEN: usize = 64;

/// Where snapshots from peers come in, one at a time.
pub(crate) struct Inbox {
    folder: PathBuf,
    /// Held by the transfer that writes.
    turn: Arc<tokio::sync::Mutex<()>>,
    /// Ends the transfer that has the turn, or waits for it.
    newest: Mutex<CancellationToken>,
}

/// A transfer.
pub(crate) struct Incoming {
    path: PathBuf,
    file: tokio::fs::File,
    received: u64,
    length: u64,
    meta: peer::SnapshotMeta,
    superseded: CancellationToken,
    _turn: OwnedMutexGuard<()>,
}

impl Inbox {
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self { folder, turn: Arc::default(), newest: Mutex::default() }
    }

    /// Bytes of a snapshot that are here already.
    ///
    /// # Errors
    /// When the id is not one.
    pub(crate) async fn progress(&self, snapshot_id: &str, length: u64) -> Result<u64, StoreError> {
        let path = self.partial(snapshot_id)?;
        let have = tokio::fs::metadata(&path).await.map_or(0, |metadata| metadata.len());
        Ok(if have <= length { have } else { 0 })
    }

    /// Begins a transfer, or goes on with one. It takes the place of any other: whose sender is gone may never end.
    ///
    /// # Errors
    /// When there are fewer bytes here than the sender leaves out, or the file cannot be written.
    pub(crate) async fn begin(&self, header: &peer::SnapshotHeader) -> Result<Incoming, StoreError> {
        let meta = header.meta.clone().unwrap_or_default();
        let path = self.partial(&meta.snapshot_id)?;
        let superseded = CancellationToken::new();
        self.supersede(superseded.clone()).cancel();
        let turn = tokio::select! {
            turn = Arc::clone(&self.turn).lock_owned() => turn,
            () = superseded.cancelled() => return Err(StoreError::Unavailable(SUPERSEDED)),
        };
        // There is room for one transfer, not for one of each past leader.
        snapshot_file::delete_where(&self.folder, |other| {
            other.extension().is_some_and(|extension| extension == "part") && other != path
        })?;
        let file = open_at(&path, header.offset).await?;
        pass(Point::ReceiveOpened)?;
        let (received, length) = (header.offset, header.length);
        Ok(Incoming { path, file, received, length, meta, superseded, _turn: turn })
    }

    fn supersede(&self, token: CancellationToken) -> CancellationToken {
        std::mem::replace(&mut self.newest.lock().unwrap_or_else(PoisonError::into_inner), token)
    }

    /// The file of a snapshot in transfer. The id comes from a peer: it must not lead out of the folder.
    fn partial(&self, snapshot_id: &str) -> Result<PathBuf, StoreError> {
        let sound = !snapshot_id.is_empty()
            && snapshot_id.len() <= MAX_ID_LEN
            && snapshot_id.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-');
        if !sound {
            return Err(StoreError::DataDirectory("the id of a snapshot is not one".into()));
        }
        Ok(self.folder.join(format!("{snapshot_id}.part")))
    }
}

const SUPERSEDED: &str = "a newer transfer of a snapshot took over";

fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> StoreError {
    StoreError::io(format!("cannot receive {}", path.display()))
}

/// Opens a file for writing from an offset on; what is behind it is cut off.
async fn open_at(path: &Path, offset: u64) -> Result<tokio::fs::File, StoreError> {
    let mut options = tokio::fs::OpenOptions::new();
    let file = options.create(true).truncate(false).write(true).open(path).await;
    let mut file = file.map_err(failed(path))?;
    let have = file.metadata().await.map_err(failed(path))?.len();
    if have < offset {
        return Err(StoreError::Unavailable("less of the snapshot is here than the sender leaves out"));
    }
    file.set_len(offset).await.map_err(failed(path))?;
    file.seek(std::io::SeekFrom::Start(offset)).await.map_err(failed(path))?;
    Ok(file)
}

impl Incoming {
    /// Is cancelled when another transfer takes over.
    pub(crate) fn superseded(&self) -> CancellationToken {
        self.superseded.clone()
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// When there are more than were announced, or another transfer took over.
    pub(crate) async fn write(&mut self, data: &[u8]) -> Result<(), StoreError> {
        if self.superseded.is_cancelled() {
            return Err(StoreError::Unavailable(SUPERSEDED));
        }
        self.received += data.len() as u64;
        if self.received > self.length {
            return Err(StoreError::DataDirectory("a snapshot is longer than its header says".into()));
        }
        self.file.write_all(data).await.map_err(failed(&self.path))?;
        self.file.flush().await.map_err(failed(&self.path))?;
        pass(Point::ReceiveWritten)
    }

    /// Ends a transfer: syncs and verifies the file. One that is damaged is deleted; one that is only short stays,
    /// to go on with.
    ///
    /// # Errors
    /// When the snapshot is not whole or not sound, or is not the one that its header says.
    pub(crate) async fn finish(self) -> Result<SnapshotFile, StoreError> {
        if self.received != self.length {
            return Err(StoreError::Unavailable("a snapshot is shorter than its header says"));
        }
        self.file.sync_all().await.map_err(failed(&self.path))?;
        pass(Point::ReceiveSynced)?;
        let (path, meta) = (self.path.clone(), self.meta.clone());
        let verified = tokio::task::spawn_blocking(move || verify(&path, &meta)).await;
        verified.map_err(|error| StoreError::Stopped(error.to_string()))?
    }
}

/// Verifies a received file and takes it out of the way of the next transfer.
fn verify(path: &Path, meta: &peer::SnapshotMeta) -> Result<SnapshotFile, StoreError> {
    let checked =
        SnapshotFile::at(path.to_owned()).verify().and_then(|applied| match describes(meta, &applied) {
            true => Ok(()),
            false => Err(StoreError::DataDirectory("a snapshot is not what its header says".into())),
        });
    if let Err(error) = checked {
        std::fs::remove_file(path).map_err(failed(path))?;
        return Err(error);
    }
    pass(Point::ReceiveVerified)?;
    let kept = path.with_file_name(format!("received-{:016x}.tmp", rand::random::<u64>()));
    std::fs::rename(path, &kept).map_err(failed(path))?;
    Ok(SnapshotFile::temporary(kept))
}

fn describes(meta: &peer::SnapshotMeta, applied: &Applied) -> bool {
    // An empty membership and none are the same.
    let membership = |stored: &Option<peer::Membership>| stored.clone().unwrap_or_default();
    meta.last_log_id == applied.last_log_id
        && meta.membership_log_id == applied.membership_log_id
        && membership(&meta.membership) == membership(&applied.membership)
        && meta.snapshot_id == snapshot_file::snapshot_id(applied)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::snapshot_file::SnapshotWriter;

    struct Source {
        bytes: Vec<u8>,
        header: peer::SnapshotHeader,
    }

    fn source(folder: &Path) -> Source {
        let id = peer::LogId { term: 1, leader_id: 2, index: 3 };
        let applied = Applied { last_log_id: Some(id), ..Applied::default() };
        let path = folder.join("source");
        let mut writer = SnapshotWriter::create(&path, &applied).unwrap();
        writer.row(b"\x01k", &[7; 1000]).unwrap();
        let length = writer.finish().unwrap().length;
        let meta = peer::SnapshotMeta {
            last_log_id: Some(id),
            snapshot_id: snapshot_file::snapshot_id(&applied),
            ..peer::SnapshotMeta::default()
        };
        let header = peer::SnapshotHeader { meta: Some(meta), length, ..peer::SnapshotHeader::default() };
        Source { bytes: std::fs::read(path).unwrap(), header }
    }

    impl Source {
        fn id(&self) -> &str {
            &self.header.meta.as_ref().unwrap().snapshot_id
        }

        fn from(&self, offset: u64) -> peer::SnapshotHeader {
            peer::SnapshotHeader { offset, ..self.header.clone() }
        }
    }

    #[tokio::test]
    async fn a_transfer_that_broke_off_goes_on_where_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let source = source(folder.path());
        let length = source.header.length;
        let inbox = Inbox::new(folder.path().to_owned());
        assert_eq!(inbox.progress(source.id(), length).await.unwrap(), 0);
        let mut first = inbox.begin(&source.from(0)).await.unwrap();
        first.write(&source.bytes[..400]).await.unwrap();
        assert!(matches!(first.finish().await, Err(StoreError::Unavailable(_))));
        // Another process: nothing is in memory.
        let inbox = Inbox::new(folder.path().to_owned());
        assert_eq!(inbox.progress(source.id(), length).await.unwrap(), 400);
        assert!(inbox.begin(&source.from(401)).await.is_err());
        let mut second = inbox.begin(&source.from(400)).await.unwrap();
        second.write(&source.bytes[400..]).await.unwrap();
        let file = second.finish().await.unwrap();
        assert_eq!(std::fs::read(&file.path).unwrap(), source.bytes);
        assert_eq!(inbox.progress(source.id(), length).await.unwrap(), 0);
        let path = file.path.clone();
        drop(file);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn damage_is_found_and_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let source = source(folder.path());
        let inbox = Inbox::new(folder.path().to_owned());
        let mut damaged = source.bytes.clone();
        damaged[500] ^= 1;
        let mut incoming = inbox.begin(&source.from(0)).await.unwrap();
        incoming.write(&damaged).await.unwrap();
        assert!(incoming.finish().await.unwrap_err().to_string().contains("checksum"));
        assert_eq!(inbox.progress(source.id(), source.header.length).await.unwrap(), 0);
        // A header that speaks of something else.
        let mut other = source.from(0);
        other.meta.as_mut().unwrap().last_log_id = None;
        let mut incoming = inbox.begin(&other).await.unwrap();
        incoming.write(&source.bytes).await.unwrap();
        assert!(incoming.finish().await.unwrap_err().to_string().contains("header"));
        let mut incoming = inbox.begin(&source.from(0)).await.unwrap();
        assert!(incoming.write(&[&source.bytes[..], b"x"].concat()).await.is_err());
    }

    #[tokio::test]
    async fn a_newer_transfer_takes_over_and_ids_stay_in_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let source = source(folder.path());
        let inbox = Inbox::new(folder.path().to_owned());
        let mut old = inbox.begin(&source.from(0)).await.unwrap();
        let token = old.superseded();
        let newer = async {
            let mut newer = inbox.begin(&source.from(0)).await.unwrap();
            newer.write(&source.bytes).await.unwrap();
            newer.finish().await.unwrap()
        };
        let given_up = async {
            token.cancelled().await;
            assert!(old.write(&source.bytes).await.is_err());
            drop(old);
        };
        let (file, ()) = tokio::join!(newer, given_up);
        assert_eq!(std::fs::read(&file.path).unwrap(), source.bytes);
        for id in ["", "../x", "1/2", "a", &"1".repeat(MAX_ID_LEN + 1)] {
            assert!(inbox.progress(id, 1).await.is_err(), "{id}");
        }
    }
}
