//! Files that are there wholly or not at all, after any crash.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use crate::{
    error::StoreError,
    failure::{Point, pass},
};

/// Moves a file that is already synced to its name, durably.
pub(crate) fn publish(temporary: &Path, path: &Path) -> Result<(), StoreError> {
    pass(Point::PublishBeforeRename)?;
    fs::rename(temporary, path).map_err(StoreError::io(format!(
        "cannot move {} to {}",
        temporary.display(),
        path.display()
    )))?;
    pass(Point::PublishAfterRename)?;
    sync_parent(path)?;
    pass(Point::PublishAfterSync)
}

/// Makes the names in a path's folder durable.
pub(crate) fn sync_parent(path: &Path) -> Result<(), StoreError> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let synced = File::open(parent).and_then(|folder| folder.sync_all());
    synced.map_err(StoreError::io(format!("cannot sync {}", parent.display())))
}

/// Deletes a file when the last handle is gone, unless it has got another name by then.
#[derive(Debug)]
pub(crate) struct Temporary(pub(crate) PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // It may have been moved to its name, which is the usual end. What stays is deleted at the next start.
        let _ = fs::remove_file(&self.0);
    }
}

/// Deletes a folder when dropped.
#[derive(Debug)]
pub(crate) struct TemporaryFolder(PathBuf);

impl TemporaryFolder {
    /// Makes an empty folder in place of what an interrupted run has left under the same name.
    pub(crate) fn create(path: PathBuf) -> Result<Self, StoreError> {
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(StoreError::io(format!("cannot delete {}", path.display()))(error));
            }
            _ => {}
        }
        fs::create_dir(&path).map_err(StoreError::io(format!("cannot create {}", path.display())))?;
        Ok(Self(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        // The next run deletes what stays.
        let _ = fs::remove_dir_all(&self.0);
    }
}
