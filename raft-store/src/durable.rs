//! Files that are there wholly or not at all, after any crash.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

/// Moves a file that is already synced to its name, durably.
pub(crate) fn publish(temporary: &Path, path: &Path) -> io::Result<()> {
    fs::rename(temporary, path)?;
    sync_parent(path)
}

/// Makes the names in a path's folder durable.
fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().ok_or_else(|| io::Error::other("a path without a folder"))?;
    File::open(parent)?.sync_all()
}
