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
use crate::{comparison::millis, system::cpu_seconds};

/// Bytes of a small batch: some seconds of a session.
const BATCH: u64 = 4 << 10;
/// Recordings that are written at a time, where batches and segments are counted.
pub(crate) const LANES: usize = 8;
/// How often it is looked how much memory is held.
const LOOK: Duration = Duration::from_millis(50);

/// A row for each number of streams, and those of the peers.
pub(crate) async fn table(plan: &Plan, ingest: &Ingest, sender: &Arc<Sender>, dir: &Path) -> Result<()> {
    let total = plan.mebibytes << 20;
    println!("{:<28} {:>9} {:>12} {:>9} {:>9}", "", "MB/s", "CPU s/GB", "RSS MiB", "time s");
    let file = dir.join("payload");
    peers::write(&file, sender, total)?;
    let (time, cpu) = peers::dd(&file, dir)?;
    print("dd conv=fsync", total, time, cpu, None);
    let (time, cpu) = peers::scp(&file, dir).await?;
    print("scp through sshd, and sync", total, time, cpu, None);
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
        print(&name, each * streams as u64, time, cpu, Some(most));
    }
    println!();
    Ok(())
}

/// Processor time is that of whoever writes, in seconds.
fn print(what: &str, bytes: u64, time: Duration, cpu: f64, memory: Option<u64>) {
    let gigabytes = bytes as f64 / 1e9;
    let cpu = format!("{:.2}", cpu / gigabytes);
    let memory = memory.map(|bytes| (bytes >> 20).to_string()).unwrap_or_default();
    let seconds = time.as_secs_f64();
    println!("{what:<28} {:>9.0} {cpu:>12} {memory:>9} {seconds:>9.2}", gigabytes * 1e3 / seconds);
}

/// How long one small batch takes until it is durable, and how many batches of 64 KiB become durable in a second.
pub(crate) async fn batches(count: usize, ingest: &Ingest, sender: &Arc<Sender>) -> Result<()> {
    let mut times = lane(Arc::clone(sender), 0, count, BATCH).await?;
    times.sort_unstable();
    let at = |share: usize| times.get((times.len() - 1) * share / 100).copied().unwrap_or_default();
    println!(
        "a batch of 4 KiB, one after the other: p50 {:.2} ms, p99 {:.2} ms",
        millis(at(50)),
        millis(at(99))
    );

    let process = ingest.process().id().to_string();
    let (cpu, begun) = (cpu_seconds(&process)?, Instant::now());
    let mut lanes = JoinSet::new();
    for number in 0..LANES {
        lanes.spawn(lane(Arc::clone(sender), number, count / LANES, CHUNK as u64));
    }
    let mut all = Vec::new();
    while let Some(times) = lanes.join_next().await {
        all.extend(times??);
    }
    let (time, cpu) = (begun.elapsed().as_secs_f64(), cpu_seconds(&process)? - cpu);
    all.sort_unstable();
    let at = |share: usize| all.get((all.len() - 1) * share / 100).copied().unwrap_or_default();
    println!(
        "batches of 64 KiB, {LANES} at a time: {:.0} a second, p50 {:.2} ms, p99 {:.2} ms, {:.2} ms of processor each",
        all.len() as f64 / time,
        millis(at(50)),
        millis(at(99)),
        cpu * 1e3 / all.len() as f64,
    );
    Ok(())
}

/// How many segments of 64 KiB become durable in a second in calls that go on, and how many files the disk takes that are made as
/// they are.
pub(crate) async fn segments(count: usize, cluster: &Cluster, dir: &Path) -> Result<()> {
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
    let (all, time) = ((each * LANES) as f64, begun.elapsed().as_secs_f64());
    println!(
        "segments of 64 KiB of {LANES} calls that go on: {:.0} a second, {:.2} ms of processor each",
        all / time,
        (cpu_seconds(&process)? - cpu) * 1e3 / all,
    );
    let (time, cpu) = peers::files(&dir.join("files"), LANES, each, CHUNK)?;
    println!(
        "files of 64 KiB by {LANES} threads, each synced, linked and its folder synced: {:.0} a second, {:.2} ms of processor each\n",
        all / time.as_secs_f64(),
        cpu * 1e3 / all,
    );
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
