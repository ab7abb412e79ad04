//! Whether the cluster says of agents what they know of themselves: that they live.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use mezite_client::ClientError;
use mezite_proto::v1;

use super::Agent;
use crate::{Cluster, call};

/// An agent may count as alive for so long past its TTL: the cluster's time may be behind, and a list takes a while.
const LATE: Duration = Duration::from_secs(3);
/// What a rounded time may differ by.
const NEAR: Duration = Duration::from_millis(500);

/// What was wrong in lists of the nodes.
#[derive(Debug)]
pub struct Verdicts {
    ttl: Duration,
    /// Lists that were looked at.
    pub lists: usize,
    /// Agents that were offline within the TTL of a heartbeat that was answered.
    pub early: usize,
    /// Agents that were online long after the TTL of their last heartbeat.
    pub late: usize,
    /// Agents that were not in a list.
    pub missing: usize,
}

impl Verdicts {
    /// None yet, of a cluster with this TTL.
    #[must_use]
    pub fn new(ttl: Duration) -> Self {
        Self { ttl, lists: 0, early: 0, late: 0, missing: 0 }
    }

    /// Whether nothing was wrong.
    #[must_use]
    pub fn are_right(&self) -> bool {
        self.early + self.late + self.missing == 0
    }

    /// Lists the nodes, and compares. What is wrong is told on standard error.
    ///
    /// # Errors
    /// When there is no list.
    pub async fn look(&mut self, cluster: &Cluster, agents: &[Arc<Agent>]) -> Result<(), ClientError> {
        // Taken before: what comes in meanwhile need not be in the list.
        let known: Vec<_> = agents.iter().map(|agent| agent.last().0).collect();
        let asked = Instant::now();
        let online = online(cluster).await?;
        let answered = Instant::now();
        self.lists += 1;
        for (agent, sent) in agents.iter().zip(known) {
            match online.get(&agent.id) {
                None => self.missing += 1,
                Some(false) if answered < sent + self.ttl - NEAR => {
                    self.early += 1;
                    eprintln!("{} is offline {:?} after its heartbeat", agent.id, sent.elapsed());
                }
                Some(true) if asked > agent.last().1 + self.ttl + LATE => {
                    self.late += 1;
                    eprintln!("{} is online {:?} after its heartbeat", agent.id, sent.elapsed());
                }
                Some(_) => {}
            }
        }
        Ok(())
    }
}

/// Ids of all nodes, and whether each is online.
///
/// # Errors
/// What the cluster answers.
pub async fn online(cluster: &Cluster) -> Result<BTreeMap<String, bool>, ClientError> {
    let (client, mut online) = (cluster.admin(), BTreeMap::new());
    let mut request = v1::ListNodesRequest { page_size: 1000, ..Default::default() };
    loop {
        let reply = call!(client, list_nodes, request.clone())?;
        let nodes = reply.nodes.into_iter().filter_map(|entry| entry.node);
        online.extend(nodes.map(|node| (node.agent_id, node.online)));
        request.page_token = reply.next_page_token;
        if request.page_token.is_empty() {
            return Ok(online);
        }
    }
}
