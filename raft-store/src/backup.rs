//! Backups: the state at one instant as a file that can be streamed while the store serves, and that
//! [`crate::restore`] makes a new cluster from.

use std::{sync::Arc, time::Instant};

use tokio::io::AsyncRead;

use crate::{Store, durable::Temporary, error::StoreError, raft::SnapshotFile, state::StateSnapshot};

/// A backup: every write that was acknowledged before it was asked for is in it. It is in the format of a snapshot,
/// which carries its own digest.
#[derive(Debug)]
pub struct Backup {
    length: u64,
    sha256: [u8; 32],
    applied_index: u64,
    revision: u64,
    file: tokio::fs::File,
}

impl Backup {
    /// Bytes that the reader gives.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// SHA-256 of all that the reader gives.
    pub fn sha256(&self) -> [u8; 32] {
        self.sha256
    }

    /// Last log index in it.
    pub fn applied_index(&self) -> u64 {
        self.applied_index
    }

    /// Revision of the state in it.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The bytes, from the first on. They take space on this node's disk until it is dropped.
    pub fn into_reader(self) -> impl AsyncRead + Send + Unpin + 'static {
        self.file
    }
}

impl Store {
    /// Takes a backup through this node.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when the node cannot confirm that it is current; otherwise when the state cannot
    /// be read or the file cannot be written: the data directory needs room for it.
    pub async fn backup(&self) -> Result<Backup, StoreError> {
        let deadline = Instant::now() + self.deadline;
        self.inner.reads.barrier(deadline).await?;
        let inner = Arc::clone(&self.inner);
        let written = tokio::task::spawn_blocking(move || {
            let path = inner.state.temporary_path("backup");
            // The name goes at once: the bytes live as long as the handle, and no longer than the process.
            let name = Temporary(path);
            let state = StateSnapshot::take(&inner.db)?;
            let written = SnapshotFile::write(&name.0, &state)?;
            let file = std::fs::File::open(&name.0).map_err(StoreError::io("cannot read the backup"))?;
            Ok(Backup {
                length: written.length,
                sha256: written.sha256,
                applied_index: state.applied().last_log_id.map_or(0, |id| id.index),
                revision: state.applied().revision,
                file: tokio::fs::File::from_std(file),
            })
        });
        written.await.map_err(|error| StoreError::Stopped(error.to_string()))?
    }
}
