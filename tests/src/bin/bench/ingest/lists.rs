//! Very many recordings: how long an ingest takes to know them when it starts, and a page of them takes.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use mezite_client::Client;
use mezite_e2e::{Cluster, Ingest, IngestSpec, call};
use mezite_proto::v1;
use recording_format::{AgentId, Digest, FORMAT_VERSION, IndexEntry, Metadata, RecordingId, RecordingState};

use crate::report::{Report, mebibytes, percentiles};

/// Recordings in the smaller index.
const FEWER: usize = 100_000;
/// An ingest has read its index after this.
const PATIENCE: Duration = Duration::from_secs(900);
/// Rows of a page.
const PAGE: u32 = 100;
/// Pages whose times are taken.
const PAGES: usize = 300;
/// When the first session began, Unix milliseconds; the others came one a minute.
const FIRST_MS: u64 = 1_700_000_000_000;
/// Users, one of whom each session is of.
const USERS: usize = 1000;

/// Writes indexes of some and of so many recordings, has an ingest read each, and takes pages of the larger.
pub(crate) async fn run(cluster: &Cluster, dir: &Path, count: usize, report: &mut Report) -> Result<()> {
    if count > FEWER {
        drop(indexed(cluster, "fewer", &dir.join("fewer"), FEWER, report).await?);
    }
    let _ingests = indexed(cluster, "many", &dir.join("many"), count, report).await?;
    let admin = cluster.admin();
    let all = v1::ListSessionRecordingsRequest { page_size: PAGE, ..Default::default() };
    let one = v1::ListSessionRecordingsRequest { user: "user-17".into(), ..all.clone() };
    pages("a page of 100, all", &admin, all, report).await?;
    pages("a page of 100, of one user", &admin, one, report).await
}

/// An ingest that knows so many recordings.
async fn indexed(
    cluster: &Cluster,
    name: &'static str,
    store: &Path,
    count: usize,
    report: &mut Report,
) -> Result<Vec<Ingest>> {
    write(store, count)?;
    let spec = IngestSpec { name, patience: PATIENCE, ..IngestSpec::local(store) };
    let mut ingests = Ingest::start_all_with(cluster, 1, &spec).await;
    let ingest = ingests.first_mut().context("no ingest")?;
    // Without the join: as after any restart.
    ingest.kill();
    let begun = Instant::now();
    ingest.start();
    ingest.ready_within(PATIENCE).await;
    report.row(
        format!("from start to ready, {count} recordings"),
        &[
            ("time s", Some(begun.elapsed().as_secs_f64())),
            ("MiB", Some(mebibytes(ingest.process().resident_bytes()))),
        ],
    );
    Ok(ingests)
}

/// One page after the other, as they come.
async fn pages(
    what: &str,
    client: &Client,
    mut request: v1::ListSessionRecordingsRequest,
    report: &mut Report,
) -> Result<()> {
    let (mut times, mut rows) = (Vec::with_capacity(PAGES), 0);
    while times.len() < PAGES && (rows == 0 || !request.page_token.is_empty()) {
        let begun = Instant::now();
        let reply = call!(client, list_session_recordings, request.clone())?;
        times.push(begun.elapsed());
        rows += reply.recordings.len();
        ensure!(!reply.recordings.is_empty(), "{what}: a page is empty");
        request.page_token = reply.next_page_token;
    }
    let [p50, p99, _] = percentiles(&mut times);
    report.row(what, &[("p50 ms", Some(p50)), ("p99 ms", Some(p99)), ("rows", Some(rows as f64))]);
    Ok(())
}

fn write(store: &Path, count: usize) -> Result<()> {
    for number in 0..count {
        let mut id = [0; 16];
        id[8..].copy_from_slice(&(number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
        id[..8].copy_from_slice(&(number as u64).to_le_bytes());
        let entry = IndexEntry {
            kind: IndexEntry::KIND.to_owned(),
            version: FORMAT_VERSION,
            recording_id: RecordingId::from_bytes(id),
            revision: 0,
            state: RecordingState::Complete,
            agent_id: AgentId::from_bytes([7; 16]),
            metadata: Metadata {
                user: format!("user-{}", number % USERS),
                login: "root".into(),
                node: format!("host{}.example.org", number % 100),
                started_at_ms: FIRST_MS + number as u64 * 60_000,
                ended_at_ms: Some(FIRST_MS + number as u64 * 60_000 + 30_000),
                format: "asciicast-v3".into(),
                labels: BTreeMap::new(),
            },
            length: 100_000,
            payload_sha256: Digest::of(b"payload"),
            manifest_sha256: Digest::of(b"manifest"),
            retain_until_ms: None,
        };
        let path = store.join(entry.key().to_string());
        let folder = path.parent().ok_or_else(|| anyhow::anyhow!("no folder"))?;
        fs::create_dir_all(folder)?;
        fs::write(path, entry.encode()?)?;
    }
    Ok(())
}
