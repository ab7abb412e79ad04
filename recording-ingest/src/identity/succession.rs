//! A new identity in place of one that is good for nothing any more. It joins in a folder within the folder of the old one, which
//! stays as it is; once it has joined, its files take the place of the old ones, the state last. Whoever opens the folder first
//! finishes what was interrupted in the middle of that: nobody sees a folder with files of both.

use std::fs;

use mezite_daemon::files::{self, move_file};

use super::{
    Folder, IdentityError, Progress,
    folder::{IDENTITY, STATE},
};

/// The folder in which the new identity joins.
const NEXT: &str = "next";

impl Folder {
    /// The folder of the identity that is to take the place of this one. It is made if it is not there.
    ///
    /// # Errors
    /// As of [`Folder::open`].
    pub(super) fn next(&self) -> Result<Self, IdentityError> {
        Self::open(&self.file(NEXT))
    }

    /// Gives the new identity up that has not joined: its keys were of no use yet, or nobody goes on with it.
    pub(super) fn drop_next(&self) -> Result<(), IdentityError> {
        let path = self.file(NEXT);
        Ok(fs::remove_dir_all(&path).map_err(files::failed(&path))?)
    }

    /// Puts the new identity in place of this one, if it has joined. Called again, it goes on where it was interrupted.
    pub(super) fn take_up_next(&self) -> Result<(), IdentityError> {
        if !self.file(NEXT).exists() {
            return Ok(());
        }
        let next = self.next()?;
        match next.load()? {
            Some(state) if state.progress != Progress::Joined => return Ok(()),
            // As long as its state is there, this is done again.
            Some(_) => {
                for name in IDENTITY.into_iter().chain([STATE]) {
                    move_file(&next.file(name), &self.file(name))?;
                }
            }
            // It was taken up; or it has keys at most, which nobody was shown.
            None => {}
        }
        self.drop_next()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::identity::State;

    /// An identity of which each file says whose it is.
    fn keep(folder: &Folder, whose: &str, progress: Progress) {
        for name in IDENTITY {
            fs::write(folder.file(name), whose).unwrap();
        }
        let mut state = State::new(whose, "ingest1", &[]);
        state.progress = progress;
        folder.save(&state).unwrap();
    }

    /// Whose the identity in a folder is, as each of its files says.
    fn whose(dir: &Path) -> String {
        let folder = Folder::open(dir).unwrap();
        let name = folder.load().unwrap().unwrap().cluster_name;
        for file in IDENTITY {
            assert_eq!(fs::read_to_string(dir.join(file)).unwrap(), name, "{file}");
        }
        name
    }

    #[test]
    fn a_crash_leaves_the_old_identity_or_the_new_one_whole() {
        // After how many of the new one's files were moved it crashes: after the last one, but for the removal of the folder.
        for moved in 0..=IDENTITY.len() + 1 {
            let dir = tempfile::tempdir().unwrap();
            let folder = Folder::open(dir.path()).unwrap();
            keep(&folder, "old", Progress::Joined);
            let next = folder.next().unwrap();
            keep(&next, "new", Progress::Joined);
            for name in IDENTITY.into_iter().chain([STATE]).take(moved) {
                fs::rename(next.file(name), folder.file(name)).unwrap();
            }
            drop((next, folder));
            assert_eq!(whose(dir.path()), "new", "after {moved}");
            assert!(!dir.path().join(NEXT).exists());
        }
    }

    #[test]
    fn one_that_has_not_joined_takes_nothing_away() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        keep(&folder, "old", Progress::Joined);
        for progress in [Progress::Keys, Progress::Certified] {
            keep(&folder.next().unwrap(), "new", progress);
            folder.take_up_next().unwrap();
            assert_eq!(folder.next().unwrap().load().unwrap().unwrap().progress, progress);
        }
        drop(folder);
        assert_eq!(whose(dir.path()), "old");
        // What was begun before its state was there, or its removal was.
        fs::remove_file(dir.path().join(NEXT).join(STATE)).unwrap();
        assert_eq!(whose(dir.path()), "old");
        assert!(!dir.path().join(NEXT).exists());
    }
}
