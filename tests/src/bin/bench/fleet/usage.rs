//! What the cluster and the agents have used.

use std::time::Instant;

use anyhow::Result;
use mezite_e2e::{fleet::Beats, http};

use super::Fleet;
use crate::{
    report::{Report, mebibytes},
    system::cpu_seconds,
};

/// Since the processes began; or, after [`Usage::since`], in between.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    at: Instant,
    /// Seconds.
    pub(crate) time: f64,
    /// Processor time of all auth nodes, in seconds.
    pub(crate) nodes_cpu: f64,
    /// That of the workers, which have the agents.
    pub(crate) agents_cpu: f64,
    /// Log entries, as the node has applied them that has applied most.
    pub(crate) entries: f64,
    /// Synced writes of all nodes' logs.
    pub(crate) fsyncs: f64,
    /// Transactions with heartbeats, and heartbeats in them.
    pub(crate) batches: f64,
    pub(crate) beats: f64,
}

impl Usage {
    /// Of a cluster whose nodes run, and of the agents.
    pub(crate) async fn of(fleet: &Fleet) -> Result<Self> {
        let mut usage = Self {
            at: Instant::now(),
            time: 0.0,
            nodes_cpu: 0.0,
            agents_cpu: fleet.workers.cpu_seconds()?,
            entries: 0.0,
            fsyncs: 0.0,
            batches: 0.0,
            beats: 0.0,
        };
        for node in fleet.cluster.nodes() {
            usage.nodes_cpu += cpu_seconds(&node.process().id().to_string())?;
            let (_, page) = http::get(&node.diagnostics_address(), "/metrics").await?;
            let value = |name: &str| -> f64 {
                let found =
                    page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
                found.unwrap_or_default()
            };
            usage.entries = usage.entries.max(value("raft_applied_index"));
            usage.fsyncs += value("raft_log_fsync_seconds_count");
            usage.batches += value("mezite_auth_heartbeat_batch_count");
            usage.beats += value("mezite_auth_heartbeat_batch_sum");
        }
        Ok(usage)
    }

    /// What was used since.
    pub(crate) fn since(&self, before: &Self) -> Self {
        Self {
            at: self.at,
            time: (self.at - before.at).as_secs_f64(),
            nodes_cpu: self.nodes_cpu - before.nodes_cpu,
            agents_cpu: self.agents_cpu - before.agents_cpu,
            entries: self.entries - before.entries,
            fsyncs: self.fsyncs - before.fsyncs,
            batches: self.batches - before.batches,
            beats: self.beats - before.beats,
        }
    }

    /// A row of heartbeats that came in this time, and what they took.
    pub(crate) fn row(&self, name: String, beats: &mut Beats, report: &mut Report) {
        let [p50, p99] = beats.percentiles();
        let a_second = |count: f64| Some(count / self.time);
        report.row(
            name,
            &[
                ("beats/s", a_second(beats.answered() as f64)),
                ("p50 ms", Some(p50)),
                ("p99 ms", Some(p99)),
                ("moved", Some(beats.moved as f64)),
                ("failed", Some(beats.failed as f64)),
                ("nodes CPU", a_second(self.nodes_cpu)),
                ("agents CPU", a_second(self.agents_cpu)),
                ("entries/s", a_second(self.entries)),
                ("fsyncs/s", a_second(self.fsyncs)),
                ("beats/entry", Some(self.beats / self.batches.max(1.0))),
            ],
        );
        if let Some(why) = &beats.why {
            report.note(&format!("  the first that failed: {why}"));
        }
    }

    /// A row of the memory that is held now.
    pub(crate) fn memory(fleet: &Fleet, report: &mut Report) {
        let nodes: Vec<_> =
            fleet.cluster.nodes().iter().map(|node| node.process().resident_bytes()).collect();
        let most = nodes.iter().copied().max().unwrap_or_default();
        report.row(
            "memory",
            &[
                ("nodes MiB", Some(mebibytes(nodes.iter().sum()))),
                ("most MiB", Some(mebibytes(most))),
                ("agents MiB", Some(mebibytes(fleet.workers.resident_bytes().sum()))),
            ],
        );
    }
}
