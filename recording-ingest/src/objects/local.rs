//! A store on the local file system: its folders, their fsyncs, and what its refusals say.

use std::{fs::File, io, path::Path};

use recording_format::ObjectKey;

/// Makes the folders that all recordings share, so that no two writers ever race to make them.
pub(super) fn prepare(root: &Path) -> io::Result<()> {
    let shards = (0..=u8::MAX).map(|shard| format!("{}/{shard:02x}", ObjectKey::RECORDINGS));
    let others = [ObjectKey::OPEN, ObjectKey::INDEX, ObjectKey::AUDIT, ObjectKey::GONE].map(str::to_owned);
    let missing = root.ancestors().take_while(|folder| !folder.exists()).count();
    for folder in shards.chain(others) {
        std::fs::create_dir_all(root.join(folder))?;
    }
    let tops = ["rec", "open", "idx", "audit", "gone"];
    for folder in tops.map(|top| format!("{top}/v1")).iter().map(String::as_str).chain(tops).chain([""]) {
        sync_folder(&root.join(folder))?;
    }
    // The folder of each that was made, and of the root always: a crash may have come before it was synced.
    root.ancestors().skip(1).take(missing.max(1)).try_for_each(sync_folder)
}

/// Fsyncs a folder. One that is not there has nothing to lose.
pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    match File::open(folder) {
        Ok(folder) => folder.sync_all(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// A write that the file system refused before anything could be lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    Full,
    Other,
}

/// ENFILE and EMFILE, which have no kind of their own.
const TOO_MANY_OPEN_FILES: [i32; 2] = [23, 24];

/// Looks for a refusal at any depth of the error.
pub(super) fn refusal(error: &(dyn std::error::Error + 'static)) -> Option<Refusal> {
    let here = error.downcast_ref::<io::Error>().and_then(|error| match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Some(Refusal::Full),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Some(Refusal::Other),
        _ => error.raw_os_error().filter(|code| TOO_MANY_OPEN_FILES.contains(code)).map(|_| Refusal::Other),
    });
    here.or_else(|| error.source().and_then(refusal))
}

#[cfg(test)]
mod tests {
    use object_store::Error as ObjectError;

    use super::*;

    #[test]
    fn a_clean_refusal_is_seen_at_any_depth() {
        let nested = |io: io::Error| refusal(&ObjectError::Generic { store: "x", source: Box::new(io) });
        assert_eq!(nested(io::ErrorKind::StorageFull.into()), Some(Refusal::Full));
        assert_eq!(nested(io::Error::from_raw_os_error(24)), Some(Refusal::Other));
        assert_eq!(nested(io::Error::from_raw_os_error(5)), None);
    }
}
