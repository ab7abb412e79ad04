//! The disk under a store that is a folder: how much of it must stay free, and a reserve.
//!
//! Below one mark no recording is begun, below a lower one none grows. What ends a recording is small and always
//! tried; where even that finds no space, the reserve is given up for it, and taken again when there is room. The
//! reserve is a file without a name, so a process that dies gives it back, and nothing is left behind.

use std::{
    fs::File,
    io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
};

use nix::{fcntl::posix_fallocate, sys::statvfs::statvfs};

use crate::{config::DiskConfig, metrics};

/// Hundredths of a disk that stay free for recordings that are there already, and the most that this is, in bytes.
const NEW: (u64, u64) = (5, 10 << 30);
/// And those that stay free for all else.
const APPENDS: (u64, u64) = (2, 4 << 30);
/// And those that the reserve takes.
const RESERVE: (u64, u64) = (1, 64 << 20);

/// What a disk has room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Room {
    /// The ends of recordings.
    Ends,
    /// What is to be added to recordings, too.
    Appends,
    /// New recordings, too.
    New,
}

/// Bytes of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Space {
    size: u64,
    free: u64,
}

/// How many bytes must be free for what, and how many are reserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Marks {
    new: u64,
    appends: u64,
    reserve: u64,
}

/// The disk of a folder.
#[derive(Debug)]
pub(crate) struct Disk {
    folder: PathBuf,
    marks: Marks,
    reserve: Mutex<Option<File>>,
    /// The last [`Room`] that the log told of.
    told: AtomicU8,
}

impl Marks {
    fn new(config: &DiskConfig, size: u64) -> Self {
        let part = |(hundredths, most): (u64, u64)| (size / 100 * hundredths).min(most);
        let appends = config.refuse_appends.unwrap_or_else(|| part(APPENDS));
        Self {
            new: config.refuse_new.unwrap_or_else(|| part(NEW)).max(appends),
            appends,
            reserve: config.reserve.unwrap_or_else(|| part(RESERVE)),
        }
    }

    fn room(&self, free: u64) -> Room {
        match free {
            free if free < self.appends => Room::Ends,
            free if free < self.new => Room::Appends,
            _ => Room::New,
        }
    }
}

impl Disk {
    /// The disk of a folder that is there; takes the reserve if there is room.
    ///
    /// # Errors
    /// When the file system does not tell its size.
    pub(crate) fn new(folder: &Path, config: &DiskConfig) -> io::Result<Self> {
        let space = space(folder)?;
        let marks = Marks::new(config, space.size);
        metrics::disk_marks(marks.new, marks.appends);
        let disk = Self {
            folder: folder.to_owned(),
            marks,
            reserve: Mutex::default(),
            told: AtomicU8::new(Room::New as u8),
        };
        disk.room();
        Ok(disk)
    }

    /// What there is room for now. Asks the file system: not for the event loop. One that does not answer is taken for
    /// one with room, since a write shows whether that is so.
    pub(crate) fn room(&self) -> Room {
        let Ok(space) = space(&self.folder) else { return Room::New };
        metrics::disk(space.free, space.size);
        let room = self.marks.room(space.free);
        self.tell(room, space);
        self.take_reserve(space.free);
        room
    }

    fn tell(&self, room: Room, Space { free, size }: Space) {
        if self.told.swap(room as u8, Ordering::AcqRel) == room as u8 {
            return;
        }
        match room {
            Room::New => tracing::info!(free, size, "there is room in the store again"),
            Room::Appends => tracing::warn!(free, size, "the store is nearly full: no recording is begun"),
            Room::Ends => tracing::error!(free, size, "the store is full: recordings end and do not grow"),
        }
    }

    /// Takes the reserve where there is none and the rest stays above the lower mark.
    fn take_reserve(&self, free: u64) {
        let mut reserve = self.reserve.lock().unwrap_or_else(PoisonError::into_inner);
        let length = self.marks.reserve;
        if reserve.is_some() || length == 0 || free < self.marks.appends.saturating_add(length) {
            return;
        }
        match reserved(&self.folder, length) {
            Ok(file) => *reserve = Some(file),
            Err(error) => tracing::warn!(%error, bytes = length, "no space could be reserved in the store"),
        }
    }

    /// Gives the reserve up for a write that found no space; answers whether there was one.
    pub(crate) fn give_up_reserve(&self) -> bool {
        let given_up = self.reserve.lock().unwrap_or_else(PoisonError::into_inner).take().is_some();
        if given_up {
            tracing::warn!("the store is full: the reserve is given up for the ends of recordings");
        }
        given_up
    }
}

fn reserved(folder: &Path, length: u64) -> io::Result<File> {
    let file = tempfile::tempfile_in(folder)?;
    let length = i64::try_from(length).map_err(io::Error::other)?;
    posix_fallocate(file.as_fd(), 0, length)?;
    Ok(file)
}

fn space(folder: &Path) -> io::Result<Space> {
    let stat = statvfs(folder)?;
    let unit = stat.fragment_size();
    Ok(Space { size: unit.saturating_mul(stat.blocks()), free: unit.saturating_mul(stat.blocks_available()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: DiskConfig = DiskConfig { refuse_new: None, refuse_appends: None, reserve: None };

    #[test]
    fn marks_are_parts_of_the_disk_up_to_a_bound() {
        let small = Marks::new(&NONE, 100 << 20);
        assert_eq!((small.new, small.appends, small.reserve), (5 << 20, 2 << 20, 1 << 20));
        let large = Marks::new(&NONE, 100 << 40);
        assert_eq!((large.new, large.appends, large.reserve), (10 << 30, 4 << 30, 64 << 20));
        let told = DiskConfig { refuse_new: Some(1), refuse_appends: Some(7), reserve: Some(0) };
        // Nothing is begun that could not grow.
        assert_eq!(Marks::new(&told, 100), Marks { new: 7, appends: 7, reserve: 0 });
    }

    #[test]
    fn each_mark_belongs_to_what_is_above_it() {
        let marks = Marks { new: 20, appends: 10, reserve: 0 };
        let rooms = [0, 9, 10, 19, 20, u64::MAX].map(|free| marks.room(free));
        assert_eq!(rooms, [Room::Ends, Room::Ends, Room::Appends, Room::Appends, Room::New, Room::New]);
    }

    #[test]
    fn the_reserve_is_space_without_a_name_and_is_taken_again() {
        let dir = tempfile::tempdir().unwrap();
        let config = DiskConfig { refuse_new: Some(0), refuse_appends: Some(0), reserve: Some(1 << 20) };
        let disk = Disk::new(dir.path(), &config).unwrap();
        let length = || disk.reserve.lock().unwrap().as_ref().map(|file| file.metadata().unwrap().len());
        assert_eq!((length(), std::fs::read_dir(dir.path()).unwrap().count()), (Some(1 << 20), 0));
        assert!(disk.give_up_reserve() && !disk.give_up_reserve());
        assert_eq!((length(), disk.room(), length()), (None, Room::New, Some(1 << 20)));
    }
}
