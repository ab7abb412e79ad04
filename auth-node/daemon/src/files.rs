//! Files that are whole or not there, also after a power cut, and secrets that nobody else can read.

use std::{
    fs::{self, File, OpenOptions, Permissions, TryLockError},
    io::{self, Read, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

/// Mode of files with secrets.
pub const PRIVATE: u32 = 0o600;
/// Mode of files with what anybody may know.
pub const PUBLIC: u32 = 0o644;
/// As a path, standard input, for [`read_secret_or_stdin`].
pub const STDIN: &str = "-";

/// Largest secret that is read, in bytes.
const MAX_SECRET: usize = 64 << 10;

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The operating system refused.
    #[error("{path}: {cause}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
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
pub fn failed(path: &Path) -> impl FnOnce(io::Error) -> FileError {
    let path = path.to_owned();
    move |cause| FileError::Io { path, cause }
}

/// Makes a folder that only its owner can enter; one that is there stays as it is.
///
/// # Errors
/// [`FileError::Io`].
pub fn create_dir(path: &Path) -> Result<(), FileError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed(path))
}

/// Makes a folder that only its owner can enter; one that is there becomes so.
///
/// # Errors
/// [`FileError::Io`].
pub fn create_private_dir(path: &Path) -> Result<(), FileError> {
    create_dir(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o700)).map_err(failed(path))
}

/// Locks a file, which is made if it is not there, until what this returns is dropped or the process ends. `None`:
/// somebody else has it.
///
/// # Errors
/// [`FileError::Io`].
pub fn try_lock(path: &Path) -> Result<Option<File>, FileError> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(PRIVATE).open(path);
    let file = file.map_err(failed(path))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(failed(path)(error)),
    }
}

/// Writes a file so that it is there whole or not at all. Only one process may write it at a time.
///
/// # Errors
/// [`FileError::Io`].
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
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

/// Moves a file within a file system, over one that is there, so that a crash leaves it at the one place or the other. One that is
/// not there was moved already.
///
/// # Errors
/// [`FileError::Io`].
pub fn move_file(from: &Path, to: &Path) -> Result<(), FileError> {
    match fs::rename(from, to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(from)(error)),
        _ => {}
    }
    for path in [from, to] {
        if let Some(dir) = path.parent() {
            File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed(dir))?;
        }
    }
    Ok(())
}

/// Reads a file that holds a secret, of 64 KiB at most. A regular file that others can read is refused.
///
/// # Errors
/// See [`FileError`].
pub fn read_secret(path: &Path) -> Result<Zeroizing<String>, FileError> {
    let file = File::open(path).map_err(failed(path))?;
    refuse_open_to_others(path, &file.metadata().map_err(failed(path))?)?;
    bounded(path, file)
}

/// Refuses a regular file that others can read, as [`read_secret`] does.
///
/// # Errors
/// [`FileError::Io`], [`FileError::TooOpen`].
pub fn refuse_open(path: &Path) -> Result<(), FileError> {
    refuse_open_to_others(path, &fs::metadata(path).map_err(failed(path))?)
}

fn refuse_open_to_others(path: &Path, metadata: &fs::Metadata) -> Result<(), FileError> {
    match metadata.is_file() && metadata.mode() & 0o077 != 0 {
        true => Err(FileError::TooOpen { path: path.to_owned(), mode: metadata.mode() & 0o7777 }),
        false => Ok(()),
    }
}

/// As [`read_secret`]; [`STDIN`] is standard input.
///
/// # Errors
/// See [`FileError`].
pub fn read_secret_or_stdin(path: &Path) -> Result<Zeroizing<String>, FileError> {
    if path == Path::new(STDIN) { bounded(path, io::stdin()) } else { read_secret(path) }
}

fn bounded(path: &Path, from: impl Read) -> Result<Zeroizing<String>, FileError> {
    // Room for everything at once: a string that grows would leave copies.
    let mut text = Zeroizing::new(String::with_capacity(MAX_SECRET + 1));
    let bound = u64::try_from(MAX_SECRET + 1).unwrap_or(u64::MAX);
    from.take(bound).read_to_string(&mut text).map_err(failed(path))?;
    if text.len() > MAX_SECRET { Err(FileError::TooLarge(path.to_owned())) } else { Ok(text) }
}

/// Reads a text file; `None` when there is none.
///
/// # Errors
/// [`FileError::Io`].
pub fn read_text(path: &Path) -> Result<Option<String>, FileError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(path)(error)),
    }
}

/// Removes a file; one that is not there is removed already.
///
/// # Errors
/// [`FileError::Io`].
pub fn remove(path: &Path) -> Result<(), FileError> {
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
        write_atomic(&path, b"public", PUBLIC).unwrap();
        assert_eq!((fs::read_to_string(&path).unwrap().as_str(), mode(&path)), ("public", 0o644));
    }

    #[test]
    fn files_with_secrets_are_refused_if_wider_than_0600() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        write_atomic(&path, b"s3cret\n", PRIVATE).unwrap();
        for read in [read_secret, read_secret_or_stdin] {
            fs::set_permissions(&path, Permissions::from_mode(PRIVATE)).unwrap();
            assert_eq!(read(&path).unwrap().as_str(), "s3cret\n");
            for wide in [0o640, 0o604, 0o644] {
                fs::set_permissions(&path, Permissions::from_mode(wide)).unwrap();
                assert!(
                    matches!(read(&path), Err(FileError::TooOpen { mode, .. }) if mode == wide),
                    "{wide:o}"
                );
            }
        }
    }

    #[test]
    fn a_secret_is_bounded_and_a_missing_text_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        write_atomic(&path, &vec![b'x'; MAX_SECRET], PRIVATE).unwrap();
        assert_eq!(read_secret(&path).unwrap().len(), MAX_SECRET);
        write_atomic(&path, &vec![b'x'; MAX_SECRET + 1], PRIVATE).unwrap();
        assert!(matches!(read_secret(&path), Err(FileError::TooLarge(_))));
        assert!(read_text(&dir.path().join("none")).unwrap().is_none());
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert!(read_text(&path).unwrap().is_none());
    }

    #[test]
    fn folders_are_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        create_dir(&path).unwrap();
        assert_eq!(mode(&path), 0o700);
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        create_dir(&path).unwrap();
        assert_eq!(mode(&path), 0o755);
        create_private_dir(&path).unwrap();
        assert_eq!(mode(&path), 0o700);
    }

    #[test]
    fn a_lock_is_had_once_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = try_lock(&path).unwrap().unwrap();
        assert!(try_lock(&path).unwrap().is_none());
        drop(held);
        assert!(try_lock(&path).unwrap().is_some());
        assert_eq!(mode(&path), 0o600);
        assert!(matches!(try_lock(&dir.path().join("missing/lock")), Err(FileError::Io { .. })));
    }
}
