//! The rows of a snapshot as table files that the database takes over: neither write-ahead log nor memtables see
//! them, so that memory stays small whatever the size. They lie under a generation of their own: nothing of them is
//! part of the state until the applied record names that generation.

use std::path::{Path, PathBuf};

use rocksdb::{Options, SstFileWriter};

use super::snapshot_file::SnapshotFile;
use crate::{
    db::{Db, state_table_options, stored_key},
    durable::Temporary,
    error::StoreError,
    failure::{Point, pass},
    state::Applied,
};

/// A table file ends at about this size, in bytes.
const TABLE_BYTES: u64 = 64 << 20;

/// Writes those rows of a snapshot that `keep` wants, by state key, under a generation. The whole file is checked
/// before the database sees any of it. Answers the snapshot's applied record.
pub(crate) fn load_rows(
    db: &Db,
    folder: &Path,
    file: &SnapshotFile,
    generation: u32,
    keep: impl Fn(&[u8]) -> bool,
) -> Result<Applied, StoreError> {
    let options = state_table_options();
    let mut tables = Tables { options: &options, folder, open: None, done: Vec::new() };
    let applied = file.read(|key, value| match keep(key) {
        true => tables.put(&stored_key(generation, key), value),
        false => Ok(()),
    })?;
    tables.finish()?;
    pass(Point::InstallBeforeIngest)?;
    db.ingest_state(tables.done.iter().map(|table| table.0.clone()).collect())?;
    pass(Point::InstallAfterIngest)?;
    Ok(applied)
}

struct Tables<'a> {
    options: &'a Options,
    folder: &'a Path,
    open: Option<SstFileWriter<'a>>,
    done: Vec<Temporary>,
}

impl Tables<'_> {
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        let mut writer = match self.open.take() {
            Some(writer) => writer,
            None => self.create()?,
        };
        writer.put(key, value)?;
        let full = writer.file_size() >= TABLE_BYTES;
        self.open = Some(writer);
        if full { self.finish() } else { Ok(()) }
    }

    fn finish(&mut self) -> Result<(), StoreError> {
        if let Some(mut writer) = self.open.take() {
            writer.finish()?;
            pass(Point::InstallTableWritten)?;
        }
        Ok(())
    }
}

impl<'a> Tables<'a> {
    fn create(&mut self) -> Result<SstFileWriter<'a>, StoreError> {
        let path: PathBuf = self.folder.join(format!("table-{:016x}.tmp", rand::random::<u64>()));
        let writer = SstFileWriter::create(self.options);
        writer.open(&path)?;
        self.done.push(Temporary(path));
        Ok(writer)
    }
}
