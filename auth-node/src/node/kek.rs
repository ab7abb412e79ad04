//! The file of the key-encryption key. It is never in the log, a snapshot or a backup: who has a backup and
//! not this file has no CA key.

use std::{io::ErrorKind, path::Path};

use auth_core::ca::{KEK_LENGTH, Kek};
use mezite_daemon::files::{FileError, PRIVATE, read_secret, write_atomic};
use zeroize::Zeroizing;

use crate::fault::NodeError;

/// Begins the file; the number is the format's.
const MAGIC: &str = "mezite-kek-v1:";

/// Reads the key.
///
/// # Errors
/// When the file is not there, others can read it, or it is not such a file.
pub(crate) fn load_kek(path: &Path) -> Result<Kek, NodeError> {
    let reason =
        format!("is not a key-encryption key: {MAGIC} and 64 hexadecimal digits, on one line of text");
    let malformed = || NodeError::Malformed { file: path.to_owned(), reason };
    let text = match read_secret(path) {
        Err(FileError::TooLarge(_)) => return Err(malformed()),
        // Bytes that are no text, such as the key itself.
        Err(FileError::Io { cause, .. }) if cause.kind() == ErrorKind::InvalidData => return Err(malformed()),
        read => read?,
    };
    let mut bytes = Zeroizing::new([0; KEK_LENGTH]);
    let digits = text.trim_end().strip_prefix(MAGIC);
    let good = digits.is_some_and(|digits| hex::decode_to_slice(digits, bytes.as_mut_slice()).is_ok());
    if good { Ok(Kek::new(bytes)) } else { Err(malformed()) }
}

/// Keeps the key. One that is there already must be the same.
///
/// # Errors
/// When another key is there, or the file cannot be written.
pub(crate) fn store_kek(path: &Path, kek: &Kek) -> Result<(), NodeError> {
    if path.exists() {
        let known = load_kek(path)?;
        return if known.bytes() == kek.bytes() {
            Ok(())
        } else {
            Err(NodeError::Refused(format!(
                "{} holds the key-encryption key of another cluster: move it away, or name another kek_file",
                path.display()
            )))
        };
    }
    // Room for everything at once: a string that grows would leave copies.
    let mut text = Zeroizing::new(String::with_capacity(MAGIC.len() + 2 * KEK_LENGTH + 1));
    text.push_str(MAGIC);
    let digits = Zeroizing::new(hex::encode(kek.bytes()));
    text.push_str(&digits);
    text.push('\n');
    Ok(write_atomic(path, text.as_bytes(), PRIVATE)?)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    fn kek(byte: u8) -> Kek {
        Kek::new(Zeroizing::new([byte; KEK_LENGTH]))
    }

    #[test]
    fn the_file_is_pinned_private_and_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kek");
        store_kek(&path, &kek(0xab)).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("mezite-kek-v1:{}\n", "ab".repeat(32)));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(load_kek(&path).unwrap().bytes(), &[0xab; 32]);
    }

    #[test]
    fn another_clusters_key_is_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kek");
        store_kek(&path, &kek(1)).unwrap();
        store_kek(&path, &kek(1)).unwrap();
        assert!(matches!(store_kek(&path, &kek(2)), Err(NodeError::Refused(_))));
        assert_eq!(load_kek(&path).unwrap().bytes(), &[1; 32]);
    }

    #[test]
    fn what_is_not_a_key_is_refused_and_not_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kek");
        for bad in ["", "mezite-kek-v1:", "mezite-kek-v2:00", &format!("mezite-kek-v1:{}", "zz".repeat(32))] {
            write_atomic(&path, bad.as_bytes(), PRIVATE).unwrap();
            let error = load_kek(&path).unwrap_err();
            assert!(
                matches!(error, NodeError::Malformed { .. }) && !error.to_string().contains("zz"),
                "{bad}"
            );
        }
        // The bare key, as from a generator of random bytes, and a file that is something else.
        for bad in [[0xfe; KEK_LENGTH].to_vec(), vec![b'x'; 1 << 20]] {
            write_atomic(&path, &bad, PRIVATE).unwrap();
            let error = load_kek(&path).unwrap_err();
            assert!(matches!(error, NodeError::Malformed { .. }), "{error}");
            assert!(error.to_string().contains("mezite-kek-v1: and 64 hexadecimal digits"), "{error}");
        }
        write_atomic(&path, format!("{MAGIC}{}", "ab".repeat(32)).as_bytes(), 0o640).unwrap();
        assert!(load_kek(&path).is_err(), "others can read it");
    }
}
