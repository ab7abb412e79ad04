//! Streams that are sent at a time, and batches one after the other.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use mezite_e2e::{Cluster, Ingest, IngestSpec};
use recording_format::RecordingId;
use tokio::task::JoinSet;

use super::{
    Plan, peers,
    sender::{CHUNK, Sender},
};
use crate::{
    report::{Report, mebibytes, percentiles},
    system::cpu_seconds,
};

/// Bytes of a small batch: some seconds of a session.
const BATCH: u64 = 4 << 10;
/// Recordings that are written at a time, where batches and segments are counted.
pub(crate) const LANES: usize = 8;
/// How often it is looked how much memory is held.
const LOOK: Duration = Duration::from_millis(50);

/// A row for each number of streams, and those of the peers.
pub(crate) async fn table(
    plan: &Plan,
    ingest: &Ingest,
    sender: &Arc<Sender>,
    (dir, report): (&Path, &mut Report),
) -> Result<()> {
    let total = plan.mebibytes << 20;
    let file = dir.join("payload");
    peers::write(&file, sender, total)?;
    let (time, cpu) = peers::dd(&file, dir)?;
    print(report, "dd conv=fsync".into(), total, (time, cpu), None, None);
    let (scp, cpu) = peers::scp(&file, dir).await?;
    print(report, "scp through sshd, and sync".into(), total, (scp, cpu), None, None);
    for &streams in &plan.streams {
        let each = (total / streams as u64).max(1);
        let payload = sender.payload(each);
        let process = ingest.process().id().to_string();
        let (cpu, begun) = (cpu_seconds(&process)?, Instant::now());
        let mut sending = JoinSet::new();
        for number in 0..streams {
            sending.spawn(Arc::clone(sender).send(number, payload.clone()));
        }
        let mut most = 0;
        let mut looks = tokio::time::interval(LOOK);
        while !sending.is_empty() {
            tokio::select! {
                Some(sent) = sending.join_next() => drop(sent??),
                _ = looks.tick() => most = most.max(ingest.process().resident_bytes()),
            }
        }
        let (time, cpu) = (begun.elapsed(), cpu_seconds(&process)? - cpu);
        let name = format!("{streams} streams of {} KiB", each >> 10);
        print(report, name, each * streams as u64, (time, cpu), Some(most), Some(scp));
    }
    Ok(())
}

/// Processor time is that of whoever writes, in seconds; `scp` is how long scp took for as many bytes.
fn print(
    report: &mut Report,
    what: String,
    bytes: u64,
    (time, cpu): peers::Cost,
    memory: Option<u64>,
    scp: Option<Duration>,
) {
    let (gigabytes, seconds) = (bytes as f64 / 1e9, time.as_secs_f64());
    report.row(
        what,
        &[
            ("MB/s", Some(gigabytes * 1e3 / seconds)),
            ("CPU s/GB", Some(cpu / gigabytes)),
            ("MiB", memory.map(mebibytes)),
            ("time s", Some(seconds)),
            ("of scp", scp.map(|scp| scp.as_secs_f64() / seconds)),
        ],
    );
}

/// A row of what was made durable piece by piece, in so many seconds altogether.
fn pieces(report: &mut Report, what: String, times: &mut [Duration], count: usize, (time, cpu): (f64, f64)) {
    let percentiles = (!times.is_empty()).then(|| percentiles(times));
    report.row(
        what,
        &[
            ("a second", Some(count as f64 / time)),
            ("p50 ms", percentiles.map(|[p50, ..]| p50)),
            ("p99 ms", percentiles.map(|[_, p99, _]| p99)),
            ("CPU ms", Some(cpu * 1e3 / count as f64)),
        ],
    );
}

/// How long one small batch takes until it is durable, and how many batches of 64 KiB become durable in a second.
pub(crate) async fn batches(
    count: usize,
    ingest: &Ingest,
    sender: &Arc<Sender>,
    report: &mut Report,
) -> Result<()> {
    let process = ingest.process().id().to_string();
    let (cpu, begun) = (cpu_seconds(&process)?, Instant::now());
    let mut times = lane(Arc::clone(sender), 0, count, BATCH).await?;
    let used = (begun.elapsed().as_secs_f64(), cpu_seconds(&process)? - cpu);
    pieces(report, "batches of 4 KiB, one after the other".into(), &mut times, count, used);
    let (cpu, begun) = (cpu_seconds(&process)?, Instant::now());
    let mut lanes = JoinSet::new();
    for number in 0..LANES {
        lanes.spawn(lane(Arc::clone(sender), number, count / LANES, CHUNK as u64));
    }
    let mut all = Vec::new();
    while let Some(times) = lanes.join_next().await {
        all.extend(times??);
    }
    let used = (begun.elapsed().as_secs_f64(), cpu_seconds(&process)? - cpu);
    let count = all.len();
    pieces(report, format!("batches of 64 KiB, {LANES} at a time"), &mut all, count, used);
    Ok(())
}

/// How many segments of 64 KiB become durable in a second in calls that go on, and how many files the disk takes that are made as
/// they are.
pub(crate) async fn segments(count: usize, cluster: &Cluster, dir: &Path, report: &mut Report) -> Result<()> {
    let store = dir.join("small");
    let set = vec![format!("limits.segment_bytes={CHUNK}")];
    let spec = IngestSpec { name: "small", set, ..IngestSpec::local(&store) };
    let ingests = Ingest::start_all_with(cluster, 1, &spec).await;
    let ingest = ingests.first().context("no ingest")?;
    let sender = Arc::new(Sender::join(cluster, ingest, 2));
    let each = count / LANES;
    let payload = sender.payload((each * CHUNK) as u64);
    let process = ingest.process().id().to_string();
    let (cpu, begun) = (cpu_seconds(&process)?, Instant::now());
    let mut sending = JoinSet::new();
    for number in 0..LANES {
        sending.spawn(Arc::clone(&sender).send(number, payload.clone()));
    }
    while let Some(sent) = sending.join_next().await {
        sent??;
    }
    let used = (begun.elapsed().as_secs_f64(), cpu_seconds(&process)? - cpu);
    pieces(report, format!("segments of 64 KiB of {LANES} calls that go on"), &mut [], each * LANES, used);
    let (time, cpu) = peers::files(&dir.join("files"), LANES, each, CHUNK)?;
    let used = (time.as_secs_f64(), cpu);
    pieces(report, format!("files of 64 KiB by {LANES} threads, synced"), &mut [], each * LANES, used);
    Ok(())
}

/// So many calls of so many bytes for one recording, each acknowledged before the next: how long each took.
async fn lane(sender: Arc<Sender>, number: usize, count: usize, bytes: u64) -> Result<Vec<Duration>> {
    let id = RecordingId::from_bytes(rand::random());
    let mut times = Vec::with_capacity(count);
    for batch in 0..count as u64 {
        let begun = Instant::now();
        let reply = sender.call(number, id, batch * bytes..(batch + 1) * bytes, None).await?;
        times.push(begun.elapsed());
        anyhow::ensure!(
            reply.committed_offset == (batch + 1) * bytes,
            "{} is durable",
            reply.committed_offset
        );
    }
    Ok(times)
}
