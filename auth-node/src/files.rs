//! Files that are whole or not there, also after a power cut, and secrets that nobody else can read.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

/// For secrets.
pub(crate) const PRIVATE: u32 = 0o600;
/// For what anybody may know.
pub(crate) const PUBLIC: u32 = 0o644;

/// Largest secret that is read, in bytes.
const MAX_SECRET: usize = 64 << 10;

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The operating system refused.
    #[error("{path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others than its owner can read a secret.
    #[error("{path} holds a secret and others can read it (mode {mode:04o}): run `chmod 600 {path}`")]
    TooOpen {
        /// Which file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// More than a secret can be.
    #[error("{0} is too large to be a secret")]
    TooLarge(PathBuf),
}

/// For `map_err`: a failure at a path.
pub(crate) fn failed(path: &Path) -> impl FnOnce(io::Error) -> FileError {
    let path = path.to_owned();
    move |source| FileError::Io { path, source }
}

/// Makes a folder that only its owner can enter; one that is there stays as it is.
pub(crate) fn create_dir(path: &Path) -> Result<(), FileError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed(path))
}

/// Makes a folder that only its owner can enter; one that is there becomes so.
pub(crate) fn create_private_dir(path: &Path) -> Result<(), FileError> {
    create_dir(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o700)).map_err(failed(path))
}

/// Writes a file so that it is there whole or not at all. Only one process may write it at a time.
pub(crate) fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let steps = || -> io::Result<()> {
        let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::Error::other("not a path of a file"));
        };
        // The parent of a bare name is said as nothing.
        let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
        let staged = dir.join(format!(".{}.new", name.to_string_lossy()));
        // Left over by a crash, perhaps with other permissions.
        match fs::remove_file(&staged) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(PRIVATE).open(&staged)?;
        file.write_all(bytes)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        file.sync_all()?;
        fs::rename(&staged, path)?;
        File::open(dir)?.sync_all()
    };
    steps().map_err(failed(path))
}

/// Reads a file that holds a secret. A regular file that others can read is refused.
pub(crate) fn read_secret(path: &Path) -> Result<Zeroizing<String>, FileError> {
    let file = File::open(path).map_err(failed(path))?;
    let metadata = file.metadata().map_err(failed(path))?;
    if metadata.is_file() && metadata.mode() & 0o077 != 0 {
        return Err(FileError::TooOpen { path: path.to_owned(), mode: metadata.mode() & 0o7777 });
    }
    // Room for everything at once: a string that grows would leave copies.
    let mut text = Zeroizing::new(String::with_capacity(MAX_SECRET + 1));
    let bound = u64::try_from(MAX_SECRET + 1).unwrap_or(u64::MAX);
    file.take(bound).read_to_string(&mut text).map_err(failed(path))?;
    if text.len() > MAX_SECRET { Err(FileError::TooLarge(path.to_owned())) } else { Ok(text) }
}

/// Reads a text file; `None` when there is none.
pub(crate) fn read_text(path: &Path) -> Result<Option<String>, FileError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(path)(error)),
    }
}

/// Removes a file; one that is not there is removed already.
pub(crate) fn remove(path: &Path) -> Result<(), FileError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn a_file_is_replaced_whole_and_has_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
        // What a crash left behind, readable by all.
        fs::write(dir.path().join(".key.new"), "half").unwrap();
        write_atomic(&path, b"new", PRIVATE).unwrap();
        assert_eq!((fs::read_to_string(&path).unwrap().as_str(), mode(&path)), ("new", 0o600));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn files_with_secrets_are_refused_if_wider_than_0600() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        write_atomic(&path, b"s3cret\n", PRIVATE).unwrap();
        assert_eq!(read_secret(&path).unwrap().as_str(), "s3cret\n");
        for wide in [0o640, 0o604, 0o644] {
            fs::set_permissions(&path, Permissions::from_mode(wide)).unwrap();
            assert!(matches!(read_secret(&path), Err(FileError::TooOpen { .. })), "{wide:o}");
        }
    }

    #[test]
    fn a_secret_is_bounded_and_a_missing_text_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        write_atomic(&path, &vec![b'x'; MAX_SECRET + 1], PRIVATE).unwrap();
        assert!(matches!(read_secret(&path), Err(FileError::TooLarge(_))));
        assert!(read_text(&dir.path().join("none")).unwrap().is_none());
        remove(&path).unwrap();
        remove(&path).unwrap();
    }
}
