//! A recording ingest, as fast as it makes recordings durable: beside `scp` of the same bytes through sshd and `dd` of them onto the
//! same disk, in the same run.
//!
//! [`sender`] is the agents, [`streams`] has them send all at a time, [`peers`] is what others do with the same bytes, [`failover`] kills
//! an ingest, [`lists`] is about very many recordings.

mod failover;
mod lists;
mod peers;
mod sender;
mod streams;

use std::{fs, path::PathBuf, sync::Arc};

use anyhow::{Result, ensure};
use mezite_e2e::{Cluster, Ingest, IngestSpec, Setup};

use self::sender::Sender;
use crate::report::Report;

/// What is to be measured.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Plan {
    /// Streams at a time: a row of the table for each number.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 64, 1000])]
    streams: Vec<usize>,
    /// Bytes of all streams of a row together, in MiB.
    #[arg(long, default_value_t = 1024)]
    mebibytes: u64,
    /// Batches and segments whose times are taken.
    #[arg(long, default_value_t = 2000)]
    batches: usize,
    /// Times that an ingest is killed while a recording is sent to it.
    #[arg(long, default_value_t = 10)]
    trials: usize,
    /// Recordings in the index, for the lists; 0 leaves them out. Each takes some 4 KiB of the disk.
    #[arg(long, default_value_t = 1_000_000)]
    recordings: usize,
    /// Folder for the data: on the disk that is to be measured. Default: the temporary folder.
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// Streams that one agent has at a time, below what an ingest lets one have.
const STREAMS_PER_AGENT: usize = 100;

/// Goes through the parts and prints what they come to.
pub(crate) async fn run(plan: Plan, report: &mut Report) -> Result<()> {
    report.part("ingest")?;
    let most = plan.streams.iter().copied().max().unwrap_or_default();
    ensure!(most > 0 && plan.mebibytes > 0 && plan.batches >= streams::LANES, "there is nothing to measure");
    let parent = plan.dir.clone().unwrap_or_else(std::env::temp_dir);
    let dir = tempfile::tempdir_in(&parent)?;
    let store = dir.path().join("store");
    fs::create_dir(&store)?;
    let cluster = Cluster::start_with(&Setup { tied: true, ..Setup::default() }).await;
    let ingests = Ingest::start_all_with(&cluster, 1, &IngestSpec::local(&store)).await;
    let ingest = ingests.first().ok_or_else(|| anyhow::anyhow!("no ingest"))?;
    report.note(&format!("data in {}", parent.display()));
    let sender = Arc::new(Sender::join(&cluster, ingest, most.div_ceil(STREAMS_PER_AGENT).max(2)));
    streams::table(&plan, ingest, &sender, (dir.path(), report)).await?;
    streams::batches(plan.batches, ingest, &sender, report).await?;
    drop(ingests);
    streams::segments(plan.batches, &cluster, dir.path(), report).await?;
    if plan.trials > 0 {
        failover::run(&cluster, &dir.path().join("replicas"), plan.trials, report).await?;
    }
    if plan.recordings > 0 {
        lists::run(&cluster, &dir.path().join("many"), plan.recordings, report).await?;
    }
    Ok(())
}
