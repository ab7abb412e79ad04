//! Files that people name: what is wrong with them is said in the program's words. One is written whole, however many
//! write it at a time, or not at all.

use std::{
    fs::{self, File, Permissions, TryLockError},
    io::{self, ErrorKind, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
};

use anyhow::{Context as _, Error, Result};
use mezite_daemon::files::{self, FileError, STDIN};
use tempfile::NamedTempFile;
use zeroize::Zeroizing;

use crate::exit::Usage;

pub(crate) use mezite_daemon::files::{PRIVATE, PUBLIC};

/// What some editors put in front of a text to say that it is Unicode.
const MARK: char = '\u{feff}';

/// Makes a folder that only its owner can enter; one that is there stays as it is.
pub(crate) fn create_dir(path: &Path) -> Result<()> {
    let made = files::create_dir(path).map_err(|error| match error {
        FileError::Io { cause, .. } => Error::from(cause),
        other => other.into(),
    });
    made.with_context(|| format!("cannot make the folder {}", path.display()))
}

/// Writes a file so that it is there whole or not at all, also after a power cut.
pub(crate) fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    write_with(path, mode, |file| file.write_all(bytes))
}

/// As [`write_atomic`], with what `write` writes.
pub(crate) fn write_with(
    path: &Path,
    mode: u32,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> Result<()> {
    Pending::create(path)?.write(mode, write)
}

/// A file that can be written for sure, as far as that can be known: what comes only once must not come in vain.
#[derive(Debug)]
pub(crate) struct Pending<'a> {
    path: &'a Path,
    dir: &'a Path,
    file: NamedTempFile,
}

impl<'a> Pending<'a> {
    /// Makes room for it; what is at `path` stays until [`Pending::write`].
    pub(crate) fn create(path: &'a Path) -> Result<Self> {
        let dir = match path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        let cannot = || format!("cannot write {}", path.display());
        if path.is_dir() {
            return Err(io::Error::from(io::ErrorKind::IsADirectory)).with_context(cannot);
        }
        // Made with mode 0600, so nobody else can open it before it has its own.
        let file = tempfile::Builder::new().prefix(".mezctl-").tempfile_in(dir).with_context(cannot)?;
        Ok(Self { path, dir, file })
    }

    /// What is written so far, to write more.
    pub(crate) fn file(&mut self) -> &mut File {
        self.file.as_file_mut()
    }

    /// Puts it in its place, whole and on disk, or leaves the place as it was.
    pub(crate) fn write(self, mode: u32, write: impl FnOnce(&mut File) -> io::Result<()>) -> Result<()> {
        let Self { path, dir, mut file } = self;
        let steps = || -> io::Result<()> {
            write(file.as_file_mut())?;
            file.as_file().set_permissions(Permissions::from_mode(mode))?;
            file.as_file().sync_all()?;
            file.persist(path).map_err(|error| error.error)?;
            File::open(dir)?.sync_all()
        };
        steps().with_context(|| format!("cannot write {}", path.display()))
    }

    /// As [`Pending::write`], one secret line.
    pub(crate) fn write_secret(self, secret: &str) -> Result<()> {
        self.write(PRIVATE, |file| writeln!(file, "{secret}"))
    }
}

/// Locks a file, which is made if it is not there, until what this returns is dropped or the process ends; waits for whoever has
/// it. Where the file system has no locks, nobody has it.
pub(crate) fn lock(path: &Path) -> Result<File> {
    let open = || {
        let file = open_lock(path)?;
        match file.lock() {
            Err(error) if error.kind() == ErrorKind::Unsupported => Ok(file),
            locked => locked.map(|()| file),
        }
    };
    open().with_context(|| format!("cannot lock {}", path.display()))
}

/// As [`lock`], and waits for nobody. `None`: somebody has it.
pub(crate) fn try_lock(path: &Path) -> Result<Option<File>> {
    let open = || {
        let file = open_lock(path)?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) if error.kind() != ErrorKind::Unsupported => Err(error),
            Ok(()) | Err(TryLockError::Error(_)) => Ok(Some(file)),
        }
    };
    open().with_context(|| format!("cannot lock {}", path.display()))
}

fn open_lock(path: &Path) -> io::Result<File> {
    File::options().create(true).truncate(false).write(true).mode(PRIVATE).open(path)
}

/// Reads a file that holds a secret; `-` is standard input. A regular file that others can read is refused.
pub(crate) fn read_secret(path: &Path) -> Result<Zeroizing<String>> {
    files::read_secret_or_stdin(path).map_err(|error| unusable(path, error))
}

/// Refuses a regular file that others can read, for a secret was found in it. `-` is standard input.
pub(crate) fn refuse_open(path: &Path) -> Result<()> {
    if path == Path::new(STDIN) {
        return Ok(());
    }
    files::refuse_open(path).map_err(|error| unusable(path, error))
}

fn unusable(path: &Path, error: FileError) -> Error {
    match error {
        FileError::Io { cause, .. } if path == Path::new(STDIN) => {
            Error::from(cause).context("cannot read standard input")
        }
        FileError::Io { cause, .. } => unreadable(path, &cause).into(),
        FileError::TooOpen { mode, .. } => {
            let name = path.display();
            Usage(format!("{name} can be read by others (mode {mode:04o}): run `chmod 600 {name}`")).into()
        }
        FileError::TooLarge(_) => error.into(),
    }
}

/// Reads a text file, or standard input for `-`, without [`MARK`].
pub(crate) fn read_text(path: &Path) -> Result<String> {
    let mut text = match path == Path::new(STDIN) {
        true => io::read_to_string(io::stdin()).context("cannot read standard input")?,
        false => fs::read_to_string(path).map_err(|error| unreadable(path, &error))?,
    };
    if text.starts_with(MARK) {
        text.replace_range(..MARK.len_utf8(), "");
    }
    Ok(text)
}

fn unreadable(path: &Path, error: &io::Error) -> Usage {
    Usage(format!("cannot read {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

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
        write_atomic(&path, b"new", PRIVATE).unwrap();
        assert_eq!((fs::read_to_string(&path).unwrap().as_str(), mode(&path)), ("new", 0o600));

        let failed = write_with(&path, PRIVATE, |file| {
            file.write_all(b"half")?;
            Err(io::Error::other("disk full"))
        });
        assert!(failed.is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn where_nothing_can_be_written_is_known_before() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Pending::create(dir.path()).is_err());
        assert!(Pending::create(&dir.path().join("missing/secret")).is_err());
        let path = dir.path().join("secret");
        drop(Pending::create(&path).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        Pending::create(&path).unwrap().write_secret("s3cret").unwrap();
        assert_eq!((fs::read_to_string(&path).unwrap().as_str(), mode(&path)), ("s3cret\n", 0o600));
    }

    #[test]
    fn a_lock_is_held_until_it_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = lock(&path).unwrap();
        assert_eq!(mode(&path), PRIVATE);
        assert!(try_lock(&path).unwrap().is_none());
        drop(held);
        assert!(try_lock(&path).unwrap().is_some());
        assert!(try_lock(&dir.path().join("missing/lock")).is_err());
    }

    #[test]
    fn a_mark_in_front_of_a_text_is_not_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("text");
        for (written, read) in
            [("\u{feff}kind", "kind"), ("kind", "kind"), ("k\u{feff}", "k\u{feff}"), ("", "")]
        {
            fs::write(&path, written).unwrap();
            assert_eq!(read_text(&path).unwrap(), read);
        }
    }

    #[test]
    fn a_secret_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        write_atomic(&path, b"s3cret\n", PRIVATE).unwrap();
        assert_eq!(read_secret(&path).unwrap().as_str(), "s3cret\n");
        for wide in [0o640, 0o604, 0o644] {
            fs::set_permissions(&path, Permissions::from_mode(wide)).unwrap();
            let error = read_secret(&path).unwrap_err();
            assert!(error.is::<Usage>(), "{wide:o}");
            assert!(error.to_string().contains("can be read by others"), "{error}");
            assert_eq!(refuse_open(&path).unwrap_err().to_string(), error.to_string());
        }
        fs::set_permissions(&path, Permissions::from_mode(PRIVATE)).unwrap();
        refuse_open(&path).unwrap();
        refuse_open(Path::new(STDIN)).unwrap();
        fs::remove_file(&path).unwrap();
        assert!(read_secret(&path).unwrap_err().is::<Usage>());
    }
}
