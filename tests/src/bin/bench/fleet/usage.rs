//! What the cluster and the agents have used.

use std::time::Instant;

use anyhow::Result;
use mezite_e2e::{Cluster, http};

use crate::system::cpu_seconds;

/// Since the processes began; or, after [`Usage::since`], in between.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    at: Instant,
    /// Seconds.
    pub(crate) time: f64,
    /// Processor time of all auth nodes, in seconds.
    pub(crate) nodes_cpu: f64,
    /// That of this process, which is all agents.
    pub(crate) own_cpu: f64,
    /// Log entries, as the node has applied them that has applied most.
    pub(crate) entries: f64,
    /// Synced writes of all nodes' logs.
    pub(crate) fsyncs: f64,
    /// Transactions with heartbeats, and heartbeats in them.
    pub(crate) batches: f64,
    pub(crate) beats: f64,
}

impl Usage {
    /// Of a cluster whose nodes run.
    pub(crate) async fn of(cluster: &Cluster) -> Result<Self> {
        let mut usage = Self {
            at: Instant::now(),
            time: 0.0,
            nodes_cpu: 0.0,
            own_cpu: cpu_seconds("self")?,
            entries: 0.0,
            fsyncs: 0.0,
            batches: 0.0,
            beats: 0.0,
        };
        for node in cluster.nodes() {
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
            own_cpu: self.own_cpu - before.own_cpu,
            entries: self.entries - before.entries,
            fsyncs: self.fsyncs - before.fsyncs,
            batches: self.batches - before.batches,
            beats: self.beats - before.beats,
        }
    }

    /// Processors that the auth nodes took together, that the agents took, and the former in percent of two.
    pub(crate) fn processors(&self) -> String {
        let (nodes, own) = (self.nodes_cpu / self.time, self.own_cpu / self.time);
        format!("auth nodes {nodes:.2} processors ({:.0} % of two), agents {own:.2}", nodes * 50.0)
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
    pub(crate) fn memory(cluster: &Cluster) -> String {
        let nodes = cluster.nodes().iter().map(|node| node.process().resident_bytes() >> 20);
        let nodes: Vec<_> = nodes.map(|mebibytes| mebibytes.to_string()).collect();
        format!("memory: auth nodes {} MiB", nodes.join(" + "))
    }
}
