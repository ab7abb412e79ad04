//! Snapshots as files: a stream of checksummed frames, written with bounded memory and published by rename.
//!
//! `magic (8) | version (u32)`, then frames `length (u32) | CRC32C (u32) | payload`. The first frame is the
//! [`Applied`] record, the following ones hold `key length (u32) | value length (u32) | key | value` of `sm_data`
//! without the generation. The length [`END`] ends them, followed by SHA-256 over all before.

use std::{
    fs::{self, File},
    io::{self, BufReader, BufWriter, Read, Write},
    path::{Path, PathBuf},
};

use prost::Message;
use sha2::{Digest, Sha256};

use crate::{
    durable,
    error::StoreError,
    state::{Applied, StateSnapshot, StateView},
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SnapshotFile {
    pub(crate) path: PathBuf,
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

/// Writes everything through `out`, hashing it.
struct Hashing<W> {
    out: W,
    hasher: Sha256,
}

impl<W: Write> Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.out.write_all(bytes)
    }

    fn frame(&mut self, payload: &[u8]) -> io::Result<()> {
        let length = u32::try_from(payload.len()).map_err(io::Error::other)?;
        self.write(&length.to_be_bytes())?;
        self.write(&crc32c::crc32c(payload).to_be_bytes())?;
        self.write(payload)
    }
}

impl SnapshotFile {
    /// Writes the state at one instant to `folder`, durably.
    pub(crate) fn build(folder: &Path, state: &StateSnapshot<'_>) -> Result<Self, StoreError> {
        let path = folder.join(format!("{}.snap", snapshot_id(state.applied())));
        let temporary = path.with_extension("build.tmp");
        let file = File::create(&temporary).map_err(unreadable(&temporary))?;
        let mut out = Hashing { out: BufWriter::new(file), hasher: Sha256::new() };
        Self::write(&mut out, state, &path)?;
        let digest = out.hasher.finalize();
        out.out.write_all(&digest).map_err(unreadable(&path))?;
        let file = out.out.into_inner().map_err(|error| unreadable(&path)(error.into_error()))?;
        file.sync_all().map_err(unreadable(&path))?;
        durable::publish(&temporary, &path).map_err(unreadable(&path))?;
        Ok(Self { path })
    }

    fn write<W: Write>(
        out: &mut Hashing<W>,
        state: &StateSnapshot<'_>,
        path: &Path,
    ) -> Result<(), StoreError> {
        out.write(MAGIC).map_err(unreadable(path))?;
        out.write(&VERSION.to_be_bytes()).map_err(unreadable(path))?;
        out.frame(&state.applied().encode_to_vec()).map_err(unreadable(path))?;
        let mut frame = Vec::with_capacity(FRAME_BYTES * 2);
        state.scan(&[0], &[u8::MAX], &mut |key, value| {
            let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes();
            frame.extend(length(key));
            frame.extend(length(value));
            frame.extend(key);
            frame.extend(value);
            if frame.len() >= FRAME_BYTES {
                out.frame(&frame).map_err(unreadable(path))?;
                frame.clear();
            }
            Ok(true)
        })?;
        if !frame.is_empty() {
            out.frame(&frame).map_err(unreadable(path))?;
        }
        out.write(&END.to_be_bytes()).map_err(unreadable(path))
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

    /// Deletes the complete snapshots of `folder` that are older than this one.
    pub(crate) fn delete_older(&self, folder: &Path) -> io::Result<()> {
        let older =
            |path: &Path| path.extension().is_some_and(|extension| extension == "snap") && path < self.path;
        delete_where(folder, older)
    }
}

/// Deletes what an interrupted transfer or build left.
pub(crate) fn delete_unfinished(folder: &Path) -> io::Result<()> {
    delete_where(folder, |path| path.extension().is_some_and(|extension| extension == "tmp"))
}

fn delete_where(folder: &Path, condition: impl Fn(&Path) -> bool) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if condition(&path) {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// The newest complete snapshot in a folder.
pub(crate) fn newest(folder: &Path) -> Result<Option<SnapshotFile>, StoreError> {
    let mut found: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(folder).map_err(unreadable(folder))? {
        let path = entry.map_err(unreadable(folder))?.path();
        if path.extension().is_some_and(|extension| extension == "snap") {
            found.push(path);
        }
    }
    Ok(found.into_iter().max().map(|path| SnapshotFile { path }))
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

    fn take<const N: usize>(&mut self) -> Result<[u8; N], StoreError> {
        let mut bytes = [0; N];
        self.file.read_exact(&mut bytes).map_err(unreadable(self.path))?;
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
        self.file.read_exact(&mut payload).map_err(unreadable(self.path))?;
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
        self.file.read_exact(&mut digest).map_err(unreadable(self.path))?;
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
