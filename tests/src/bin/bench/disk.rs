//! What a sync costs on the disk that both systems write to.

use std::{
    fs::File,
    io::Write as _,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Result;
use mezite_e2e::percentile;

/// Bytes that are written before each sync.
const BLOCK: usize = 4096;
/// For how long it is measured.
const TIME: Duration = Duration::from_secs(2);

/// Median and 99th percentile of one write of 4 KiB and its `fdatasync`.
pub(crate) fn sync_latency(folder: &Path) -> Result<(Duration, Duration)> {
    let path = folder.join("sync-latency");
    let mut file = File::create(&path)?;
    let started = Instant::now();
    let mut times = Vec::new();
    while started.elapsed() < TIME {
        let before = Instant::now();
        file.write_all(&[7; BLOCK])?;
        file.sync_data()?;
        times.push(before.elapsed());
    }
    std::fs::remove_file(path)?;
    times.sort_unstable();
    let at = |percent| percentile(&times, percent).unwrap_or_default();
    Ok((at(50), at(99)))
}
