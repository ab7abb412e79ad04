//! An ingest that dies while a recording is sent to it: how long it takes until another has acknowledged more.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use futures::stream;
use mezite_client::{AuthClient, Client, Retry};
use mezite_e2e::{Agent, AgentSpec, Cluster, Ingest, IngestSpec, http};
use recording_format::RecordingId;
use tokio::{sync::watch, time::sleep};

use super::sender::{self, Noise};
use crate::report::{Report, percentiles};

/// Ingests over one store.
const INGESTS: usize = 2;
/// Bytes of a batch.
const BATCH: u64 = 256 << 10;
/// How long a recording is sent before the ingest dies.
const BEFORE: Duration = Duration::from_secs(1);

/// Kills so many times the ingest that a recording is sent to.
pub(crate) async fn run(cluster: &Cluster, store: &Path, trials: usize, report: &mut Report) -> Result<()> {
    let spec = IngestSpec { name: "replica", ..IngestSpec::local(store) };
    let mut ingests = Ingest::start_all_with(cluster, INGESTS, &spec).await;
    let agent = Agent::join(cluster, AgentSpec { hostname: "lost.example.org", ..AgentSpec::default() });
    let addresses: Vec<String> = ingests.iter().map(Ingest::address).collect();
    let client = agent.client(cluster).for_recordings(&addresses)?;
    let mut gaps = Vec::new();
    for _ in 0..trials {
        let (told, mut acknowledged) = watch::channel(0);
        let sending = tokio::spawn(send(client.clone(), agent.hostname.clone(), told));
        sleep(BEFORE).await;
        let before = received(&ingests).await?;
        let busy = loop {
            acknowledged.changed().await?;
            let after = received(&ingests).await?;
            if let Some(busy) = before.iter().zip(&after).position(|(before, after)| after > before) {
                break busy;
            }
        };
        let victim = ingests.get_mut(busy).context("no ingest")?;
        victim.kill();
        let begun = Instant::now();
        // What was on its way when it died does not count.
        let last = *acknowledged.borrow_and_update();
        let _ = acknowledged.wait_for(|offset| *offset > last + BATCH).await?;
        gaps.push(begun.elapsed());
        sending.abort();
        victim.start();
        victim.ready().await;
    }
    let [p50, _, longest] = percentiles(&mut gaps);
    report.row(
        format!("killed while sent to, {trials} times, until more is safe"),
        &[("p50 ms", Some(p50)), ("longest ms", Some(longest))],
    );
    Ok(())
}

/// Sends one batch after the other, each from where the last one ended.
async fn send(client: Client, node: String, told: watch::Sender<u64>) -> Result<()> {
    let (id, noise) = (RecordingId::from_bytes(rand::random()), Noise::new());
    let mut committed = 0;
    loop {
        let messages = sender::messages(&noise, &node, id, committed..committed + BATCH, None);
        let send = |mut auth: AuthClient, messages: Vec<_>| async move {
            auth.stream_session_recording(stream::iter(messages)).await
        };
        let reply = client.call(Retry::Idempotent, messages.collect::<Vec<_>>(), send).await?;
        committed = reply.committed_offset;
        told.send_replace(committed);
    }
}

/// Bytes that each has received.
async fn received(ingests: &[Ingest]) -> Result<Vec<f64>> {
    let mut all = Vec::new();
    for ingest in ingests {
        let (_, page) = http::get(&ingest.diagnostics_address(), "/metrics").await?;
        let line = page
            .lines()
            .find_map(|line| line.strip_prefix("mezite_ingest_received_bytes_total ")?.parse().ok());
        all.push(line.unwrap_or_default());
    }
    Ok(all)
}
