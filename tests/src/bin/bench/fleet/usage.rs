//! What the cluster and the agents have used.

use std::time::Instant;

use anyhow::Result;
use mezite_e2e::http;

use super::Fleet;
use crate::system::cpu_seconds;

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

    /// Processors that the auth nodes took together, that the agents took, and the former in percent of two.
    pub(crate) fn processors(&self) -> String {
        let (nodes, agents) = (self.nodes_cpu / self.time, self.agents_cpu / self.time);
        format!("auth nodes {nodes:.2} processors ({:.0} % of two), agents {agents:.2}", nodes * 50.0)
    }

    /// What the log took.
    pub(crate) fn log(&self) -> String {
        format!(
            "log entries {:.1}/s, fsyncs {:.1}/s on all nodes, {:.0} heartbeats a transaction",
            self.entries / self.time,
            self.fsyncs / self.time,
            self.beats / self.batches.max(1.0),
        )
    }

    /// Memory that is held now.
    pub(crate) fn memory(fleet: &Fleet) -> String {
        let nodes = fleet.cluster.nodes().iter().map(|node| node.process().resident_bytes());
        let agents = fleet.workers.resident_bytes();
        format!("memory: auth nodes {} MiB, agents {} MiB", mebibytes(nodes), mebibytes(agents))
    }
}

fn mebibytes(each: impl Iterator<Item = u64>) -> String {
    let each: Vec<_> = each.map(|bytes| (bytes >> 20).to_string()).collect();
    each.join(" + ")
}
