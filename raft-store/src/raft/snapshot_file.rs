//! Snapshots as files: a stream of checksummed frames, written with bounded memory and published by rename.
//!
//! `magic (8) | version (u32)`, then frames `length (u32) | CRC32C (u32) | payload`. The first frame is the
//! [`Applied`] record, the following ones hold `key length (u32) | value length (u32) | key | value` of `sm_data`
//! in order, both without the generation, which is a node's own. The length [`END`] ends them, followed by SHA-256
//! over all before. So the files of one log index are equal on every node.
//!
//! In the folder of snapshots `<id>.snap` is complete, `<id>.part` is being received, and `*.tmp` is left over.

use std::{
    fs::{self, File},
    io::{self, BufReader, BufWriter, Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use prost::Message;
use sha2::{Digest, Sha256};

use crate::{
    durable::{self, Temporary},
    error::StoreError,
    failure::{Point, pass},
    state::{Applied, StateSnapshot},
};

const MAGIC: &[u8; 8] = b"MZSTSNAP";
const VERSION: u32 = 1;
/// Stands where the next frame's length would.
const END: u32 = u32::MAX;
/// Rows are packed into frames of about this size, in bytes.
const FRAME_BYTES: usize = 1 << 20;
/// No frame is larger: a row is at most a transaction, and a transaction is bounded.
const MAX_FRAME_BYTES: u32 = 64 << 20;

/// A complete snapshot file.
#[derive(Debug, Clone)]
pub(crate) struct SnapshotFile {
    pub(crate) path: PathBuf,
    /// Deletes the file with the last handle, unless it got another name: one that was received is not kept
    /// when the core does not want it.
    _temporary: Option<Arc<Temporary>>,
}

/// Size and digest of a file that was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Written {
    /// Bytes.
    pub(crate) length: u64,
    /// SHA-256 of the whole file.
    pub(crate) sha256: [u8; 32],
}

fn damaged(path: &Path, what: &str) -> StoreError {
    StoreError::DataDirectory(format!("snapshot {}: {what}", path.display()))
}

fn unreadable(path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    StoreError::io(format!("snapshot {}", path.display()))
}

/// Name of the file of a snapshot, so that a later one sorts after it.
pub(crate) fn snapshot_id(applied: &Applied) -> String {
    let id = applied.last_log_id.unwrap_or_default();
    format!("{:020}-{}-{}", id.index, id.term, id.leader_id)
}

/// Writes a snapshot file, row by row in ascending order.
pub(crate) struct SnapshotWriter {
    path: PathBuf,
    out: BufWriter<File>,
    hasher: Sha256,
    length: u64,
    frame: Vec<u8>,
}

impl SnapshotWriter {
    /// Begins a file. The generation of `applied` is left out.
    pub(crate) fn create(path: &Path, applied: &Applied) -> Result<Self, StoreError> {
        let file = File::create(path).map_err(unreadable(path))?;
        pass(Point::SnapshotCreated)?;
        let out = BufWriter::new(file);
        let frame = Applied { generation: 0, ..applied.clone() }.encode_to_vec();
        let mut writer = Self { path: path.to_owned(), out, hasher: Sha256::new(), length: 0, frame };
        writer.write(MAGIC)?;
        writer.write(&VERSION.to_be_bytes())?;
        writer.end_frame()?;
        Ok(writer)
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes();
        self.frame.extend(length(key));
        self.frame.extend(length(value));
        self.frame.extend(key);
        self.frame.extend(value);
        if self.frame.len() >= FRAME_BYTES { self.end_frame() } else { Ok(()) }
    }

    /// Ends the file, and syncs it.
    pub(crate) fn finish(mut self) -> Result<Written, StoreError> {
        if !self.frame.is_empty() {
            self.end_frame()?;
        }
        self.write(&END.to_be_bytes())?;
        let digest = self.hasher.clone().finalize();
        self.write(&digest)?;
        pass(Point::SnapshotWritten)?;
        let file = self.out.into_inner().map_err(|error| unreadable(&self.path)(error.into_error()))?;
        file.sync_all().map_err(unreadable(&self.path))?;
        pass(Point::SnapshotSynced)?;
        Ok(Written { length: self.length, sha256: self.hasher.finalize().into() })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.hasher.update(bytes);
        self.length += bytes.len() as u64;
        self.out.write_all(bytes).map_err(unreadable(&self.path))
    }

    fn end_frame(&mut self) -> Result<(), StoreError> {
        let frame = std::mem::take(&mut self.frame);
        let length = u32::try_from(frame.len()).map_err(|_| damaged(&self.path, "a row is too large"))?;
        self.write(&length.to_be_bytes())?;
        self.write(&crc32c::crc32c(&frame).to_be_bytes())?;
        self.write(&frame)?;
        self.frame = frame;
        self.frame.clear();
        Ok(())
    }
}

impl SnapshotFile {
    /// A file that stays.
    pub(crate) fn at(path: PathBuf) -> Self {
        Self { path, _temporary: None }
    }

    /// A file that is deleted when it is not kept.
    pub(crate) fn temporary(path: PathBuf) -> Self {
        Self { path: path.clone(), _temporary: Some(Arc::new(Temporary(path))) }
    }

    /// Writes the state at one instant to a file, and syncs it.
    pub(crate) fn write(path: &Path, state: &StateSnapshot<'_>) -> Result<Written, StoreError> {
        let mut writer = SnapshotWriter::create(path, state.applied())?;
        state.scan_all(&mut |key, value| writer.row(key, value).map(|()| true))?;
        writer.finish()
    }

    /// Writes the state at one instant to `folder`, durably. The state itself is synced before the file has its
    /// name: no snapshot is ahead of the state.
    pub(crate) fn build(folder: &Path, state: &StateSnapshot<'_>) -> Result<Self, StoreError> {
        let path = folder.join(format!("{}.snap", snapshot_id(state.applied())));
        let temporary = path.with_extension("build.tmp");
        Self::write(&temporary, state)?;
        state.db().sync()?;
        pass(Point::SnapshotStateSynced)?;
        durable::publish(&temporary, &path)?;
        Ok(Self::at(path))
    }

    /// The applied record of the snapshot, from the front of its file.
    pub(crate) fn applied(&self) -> Result<Applied, StoreError> {
        Reader::open(&self.path)?.applied()
    }

    /// Reads the whole file, checks it, and hands out its rows.
    pub(crate) fn read(
        &self,
        mut visit: impl FnMut(&[u8], &[u8]) -> Result<(), StoreError>,
    ) -> Result<Applied, StoreError> {
        let mut reader = Reader::open(&self.path)?;
        let applied = reader.applied()?;
        while let Some(frame) = reader.frame()? {
            let mut rest = frame.as_slice();
            while !rest.is_empty() {
                let (key, value, after) =
                    split_row(rest).ok_or_else(|| damaged(&self.path, "a row does not decode"))?;
                visit(key, value)?;
                rest = after;
            }
        }
        reader.finish()?;
        Ok(applied)
    }

    /// Whether the whole file is sound.
    pub(crate) fn verify(&self) -> Result<Applied, StoreError> {
        self.read(|_, _| Ok(()))
    }

    /// Deletes the snapshots of `folder`, complete or not, that are older than this one, and what is left of
    /// receiving this one.
    pub(crate) fn delete_older(&self, folder: &Path) -> Result<(), StoreError> {
        delete_where(folder, |path| match path.extension().and_then(|extension| extension.to_str()) {
            Some("snap") => path.file_stem() < self.path.file_stem(),
            Some("part") => path.file_stem() <= self.path.file_stem(),
            _ => false,
        })?;
        pass(Point::SnapshotOlderDeleted)
    }
}

/// Deletes what an interrupted build or installation left. What was received in part stays.
pub(crate) fn delete_unfinished(folder: &Path) -> Result<(), StoreError> {
    delete_where(folder, |path| path.extension().is_some_and(|extension| extension == "tmp"))
}

/// Deletes the complete snapshots of a folder.
pub(crate) fn delete_all(folder: &Path) -> Result<(), StoreError> {
    delete_where(folder, |path| path.extension().is_some_and(|extension| extension == "snap"))
}

/// Deletes the files of a folder that meet a condition.
pub(crate) fn delete_where(folder: &Path, condition: impl Fn(&Path) -> bool) -> Result<(), StoreError> {
    for path in files(folder)? {
        if condition(&path) {
            fs::remove_file(&path).map_err(StoreError::io(format!("cannot delete {}", path.display())))?;
        }
    }
    Ok(())
}

/// The files of a folder, in no order.
pub(crate) fn files(folder: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let entries = fs::read_dir(folder).map_err(unreadable(folder))?;
    entries.map(|entry| entry.map(|entry| entry.path()).map_err(unreadable(folder))).collect()
}

/// The complete snapshots in a folder, oldest first.
pub(crate) fn complete(folder: &Path) -> Result<Vec<SnapshotFile>, StoreError> {
    let mut found = files(folder)?;
    found.retain(|path| path.extension().is_some_and(|extension| extension == "snap"));
    found.sort();
    Ok(found.into_iter().map(SnapshotFile::at).collect())
}

/// The newest complete snapshot in a folder.
pub(crate) fn newest(folder: &Path) -> Result<Option<SnapshotFile>, StoreError> {
    Ok(complete(folder)?.pop())
}

fn split_row(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (key_length, rest) = bytes.split_first_chunk::<4>()?;
    let (value_length, rest) = rest.split_first_chunk::<4>()?;
    let (key, rest) = rest.split_at_checked(u32::from_be_bytes(*key_length) as usize)?;
    let (value, rest) = rest.split_at_checked(u32::from_be_bytes(*value_length) as usize)?;
    Some((key, value, rest))
}

struct Reader<'a> {
    path: &'a Path,
    file: BufReader<File>,
    hasher: Sha256,
}

impl<'a> Reader<'a> {
    fn open(path: &'a Path) -> Result<Self, StoreError> {
        let file = File::open(path).map_err(unreadable(path))?;
        let mut reader = Self { path, file: BufReader::new(file), hasher: Sha256::new() };
        if &reader.take::<8>()? != MAGIC {
            return Err(damaged(path, "it is not a snapshot"));
        }
        match u32::from_be_bytes(reader.take()?) {
            VERSION => Ok(reader),
            version => Err(damaged(path, &format!("version {version} is newer than this release"))),
        }
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), StoreError> {
        self.file.read_exact(bytes).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => {
                damaged(self.path, "it ends too early: it was cut off, so take it, or copy it, again")
            }
            _ => unreadable(self.path)(error),
        })
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], StoreError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        self.hasher.update(bytes);
        Ok(bytes)
    }

    fn frame(&mut self) -> Result<Option<Vec<u8>>, StoreError> {
        let length = u32::from_be_bytes(self.take()?);
        if length == END {
            return Ok(None);
        }
        if length > MAX_FRAME_BYTES {
            return Err(damaged(self.path, "a frame is too long"));
        }
        let checksum = u32::from_be_bytes(self.take()?);
        let mut payload = vec![0; length as usize];
        self.fill(&mut payload)?;
        self.hasher.update(&payload);
        if crc32c::crc32c(&payload) != checksum {
            return Err(damaged(self.path, "a checksum does not match"));
        }
        Ok(Some(payload))
    }

    fn applied(&mut self) -> Result<Applied, StoreError> {
        let frame = self.frame()?.ok_or_else(|| damaged(self.path, "it has no applied record"))?;
        crate::state::decode_applied(&frame)
    }

    fn finish(mut self) -> Result<(), StoreError> {
        let expected: [u8; 32] = self.hasher.finalize_reset().into();
        let mut digest = [0; 32];
        self.fill(&mut digest)?;
        let mut more = [0; 1];
        let ended = self.file.read(&mut more).map_err(unreadable(self.path))? == 0;
        if digest == expected && ended {
            Ok(())
        } else {
            Err(damaged(self.path, "the digest does not match"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::Db;

    fn empty_snapshot(folder: &Path) -> SnapshotFile {
        let db = Db::open(&folder.join("db")).unwrap();
        std::fs::create_dir(folder.join("snapshots")).unwrap();
        SnapshotFile::build(&folder.join("snapshots"), &StateSnapshot::take(&db).unwrap()).unwrap()
    }

    #[test]
    fn golden_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let bytes = std::fs::read(empty_snapshot(folder.path()).path).unwrap();
        let mut golden = b"MZSTSNAP\0\0\0\x01".to_vec();
        golden.extend([0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
        assert_eq!(bytes[..24], golden);
        assert_eq!(bytes[24..], Sha256::digest(&golden)[..]);
    }

    #[test]
    fn golden_bytes_with_rows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.snap");
        let applied = Applied { generation: 9, stamp_ms: 3, revision: 4, ..Applied::default() };
        let mut writer = SnapshotWriter::create(&path, &applied).unwrap();
        writer.row(b"\x01a", b"xyz").unwrap();
        writer.row(b"\x01b", b"").unwrap();
        let written = writer.finish().unwrap();
        let frame = |payload: &[u8]| {
            let length = (payload.len() as u32).to_be_bytes();
            [&length[..], &crc32c::crc32c(payload).to_be_bytes(), payload].concat()
        };
        let rows = b"\0\0\0\x02\0\0\0\x03\x01axyz\0\0\0\x02\0\0\0\0\x01b";
        let mut golden = b"MZSTSNAP\0\0\0\x01".to_vec();
        golden.extend(frame(&[0x28, 3, 0x30, 4]));
        golden.extend(frame(rows));
        golden.extend([0xff; 4]);
        let digest = Sha256::digest(&golden);
        golden.extend(digest);
        assert_eq!(std::fs::read(&path).unwrap(), golden);
        assert_eq!(written, Written { length: golden.len() as u64, sha256: Sha256::digest(&golden).into() });
        // The version is checked first of all.
        golden[11] = 2;
        std::fs::write(&path, &golden).unwrap();
        let error = SnapshotFile::at(path).verify().unwrap_err().to_string();
        assert!(error.contains("newer than this release"), "{error}");
    }

    #[test]
    fn a_file_that_was_not_kept_is_gone_and_one_that_was_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.tmp");
        std::fs::write(&path, b"").unwrap();
        let file = SnapshotFile::temporary(path.clone());
        let other = file.clone();
        drop(file);
        assert!(path.exists());
        durable::publish(&path, &folder.path().join("b.snap")).unwrap();
        drop(other);
        assert!(folder.path().join("b.snap").exists());
        std::fs::write(&path, b"").unwrap();
        drop(SnapshotFile::temporary(path.clone()));
        assert!(!path.exists());
    }

    #[test]
    fn every_changed_byte_and_every_cut_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let file = empty_snapshot(folder.path());
        assert!(file.verify().is_ok());
        let sound = std::fs::read(&file.path).unwrap();
        for position in 0..sound.len() {
            let mut changed = sound.clone();
            changed[position] ^= 1;
            std::fs::write(&file.path, changed).unwrap();
            assert!(file.verify().is_err(), "byte {position}");
            std::fs::write(&file.path, &sound[..position]).unwrap();
            assert!(file.verify().is_err(), "cut at {position}");
        }
        std::fs::write(&file.path, [sound.as_slice(), b"x"].concat()).unwrap();
        assert!(file.verify().is_err());
    }
}
