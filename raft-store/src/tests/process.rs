//! Runs a part of a test in a process of its own, which may die.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU64, Ordering},
};

use crate::failure::Point;

/// Lines of ours begin so; the test harness prints others.
const MARK: char = '@';

/// Says something to the parent.
pub(super) fn say(line: &str) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    writeln!(out, "\n{MARK}{line}").unwrap();
    out.flush().unwrap();
}

/// Tells the parent what of the write-ahead log must survive: all that was acknowledged, or is shown by a snapshot, is
/// in what there is now.
pub(super) fn say_wal(folder: &Path) {
    if let Some((_, number, size)) = newest_wal(&folder.join("db")) {
        say(&format!("wal {number} {size}"));
    }
}

/// What becomes of a process.
#[derive(Debug, Clone)]
pub(super) enum Schedule {
    /// It runs to its end.
    Undisturbed,
    /// It is aborted when it comes past a point for the so many-th time, from 0.
    Abort(Point, u64),
    /// The point fails from then on.
    Fail(Point, u64),
}

/// What a process said, and how it ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) lines: Vec<String>,
    pub(super) errors: String,
    pub(super) aborted: bool,
    pub(super) succeeded: bool,
}

impl Ended {
    /// The numbers behind the last line that begins with a word.
    pub(super) fn last(&self, word: &str) -> Option<Vec<u64>> {
        self.all(word).pop()
    }

    /// The numbers of all such lines.
    pub(super) fn all(&self, word: &str) -> Vec<Vec<u64>> {
        let lines = self.lines.iter().filter_map(|line| line.strip_prefix(word)?.strip_prefix(' '));
        lines.map(|rest| rest.split(' ').map(|number| number.parse().unwrap()).collect()).collect()
    }
}

/// Runs the ignored test `name` of this binary for a folder.
pub(super) fn run(name: &str, folder: &Path, seed: u64, schedule: &Schedule) -> Ended {
    run_under(Command::new(std::env::current_exe().unwrap()), name, folder, seed, schedule)
}

/// The same through another program, which ends by executing its arguments.
pub(super) fn run_under(
    mut command: Command,
    name: &str,
    folder: &Path,
    seed: u64,
    schedule: &Schedule,
) -> Ended {
    command.args([name, "--exact", "--ignored", "--nocapture", "--test-threads=1"]);
    command.env("CHILD_FOLDER", folder).env("CHILD_SEED", seed.to_string());
    match schedule {
        Schedule::Undisturbed => {}
        Schedule::Abort(point, hit) => {
            command.env("CHILD_ABORT", format!("{} {hit}", point.name()));
        }
        Schedule::Fail(point, hit) => {
            command.env("CHILD_FAIL", format!("{} {hit}", point.name()));
        }
    }
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let aborted = std::os::unix::process::ExitStatusExt::signal(&output.status) == Some(6);
    Ended {
        lines: text.lines().filter_map(|line| line.strip_prefix(MARK)).map(str::to_owned).collect(),
        errors: String::from_utf8_lossy(&output.stderr).into_owned(),
        aborted,
        succeeded: output.status.success(),
    }
}

/// What a child was given. `None`: it was not started by a parent.
pub(super) struct Child {
    pub(super) folder: PathBuf,
    pub(super) seed: u64,
}

impl Child {
    /// Takes the arguments and arms the failure point.
    pub(super) fn start() -> Option<Self> {
        let folder = PathBuf::from(std::env::var_os("CHILD_FOLDER")?);
        let seed = std::env::var("CHILD_SEED").unwrap().parse().unwrap();
        let scheduled = |name| {
            let value = std::env::var(name).ok()?;
            let (point, hit) = value.split_once(' ').unwrap();
            Some((point.to_owned(), hit.parse::<u64>().unwrap()))
        };
        let (abort, failure) = (scheduled("CHILD_ABORT"), scheduled("CHILD_FAIL"));
        let synced = Point::SnapshotStateSynced.name();
        // However it ends: what a snapshot shows was synced before the snapshot has its name.
        if abort.iter().chain(&failure).all(|(point, _)| point != synced) {
            let folder = folder.clone();
            fail::cfg_callback(synced, move || say_wal(&folder)).unwrap();
        }
        if let Some((point, hit)) = abort {
            let passed = AtomicU64::new(0);
            let (folder, tells) = (folder.clone(), point == synced);
            let abort = move || {
                if tells {
                    say_wal(&folder);
                }
                if passed.fetch_add(1, Ordering::SeqCst) == hit {
                    std::process::abort();
                }
            };
            fail::cfg_callback(point, abort).unwrap();
        }
        if let Some((point, hit)) = failure {
            // A count of zero would stand for «always».
            let action = if hit == 0 { "return".to_owned() } else { format!("{hit}*off->return") };
            fail::cfg(point, &action).unwrap();
        }
        Some(Self { folder, seed })
    }
}

/// Numbers from a seed, the same on every machine (splitmix64).
pub(super) struct Seeded(pub(super) u64);

impl Seeded {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }
}

/// The newest write-ahead log of a database, its number and its size.
pub(super) fn newest_wal(database: &Path) -> Option<(PathBuf, u64, u64)> {
    let files = std::fs::read_dir(database).ok()?.map(|entry| entry.unwrap().path());
    let numbered = files.filter(|path| path.extension().is_some_and(|extension| extension == "log"));
    let numbered = numbered.filter_map(|path| {
        let number = path.file_stem()?.to_str()?.parse::<u64>().ok()?;
        let size = std::fs::metadata(&path).ok()?.len();
        Some((path, number, size))
    });
    numbered.max_by_key(|(_, number, _)| *number)
}

/// Cuts the newest write-ahead log as a power failure does: anywhere, but nothing that was there at `kept` (number
/// and size).
pub(super) fn cut_power(database: &Path, kept: Option<&[u64]>, random: &mut Seeded) {
    let Some((path, number, size)) = newest_wal(database) else { return };
    let least = match kept {
        Some([kept, length]) if *kept == number => *length,
        _ => 0,
    };
    assert!(least <= size, "the log is shorter than it was");
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(least + random.below(size - least + 1)).unwrap();
}
