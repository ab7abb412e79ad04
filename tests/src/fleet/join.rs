//! How agents join, by the API: GenerateHostCerts over a connection without a certificate, RegisterAgent and WatchAccess over
//! the one that stays.

use std::{ops::Range, sync::Arc};

use anyhow::Result;
use mezite_client::ClusterTrust;
use mezite_proto::v1;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use super::{Agent, agent::Site};
use crate::{Cluster, call};

/// Agents that join at a time, in all shares. Each lane has a token of its own: a use is a write of the token's row.
const LANES: usize = 64;
/// Joins with one token: the most that there may be.
const TOKEN_USES: u32 = 10_000;

/// Some of the agents, and all that they need to join, from whichever process.
#[derive(Debug, Serialize, Deserialize)]
pub struct Share {
    addresses: Vec<String>,
    cluster_name: String,
    ca_pem: String,
    /// One for each lane.
    tokens: Vec<String>,
    numbers: Range<usize>,
}

impl Share {
    /// Divides so many agents, numbered from 0, into `parts` shares that are as large as each other.
    ///
    /// # Errors
    /// What the cluster answers when it is asked for tokens.
    pub async fn split(cluster: &Cluster, agents: usize, parts: usize) -> Result<Vec<Self>> {
        let mut shares = Vec::with_capacity(parts);
        for part in 0..parts {
            let numbers = agents * part / parts..agents * (part + 1) / parts;
            let lanes = LANES.div_ceil(parts).max(numbers.len().div_ceil(TOKEN_USES as usize));
            let mut tokens = Vec::new();
            for _ in 0..lanes.min(numbers.len()) {
                let request = v1::CreateTokenRequest {
                    kind: v1::TokenKind::Node.into(),
                    max_uses: TOKEN_USES,
                    ..Default::default()
                };
                tokens.push(call!(cluster.admin(), create_token, request)?.secret);
            }
            shares.push(Self {
                addresses: cluster.addresses(),
                cluster_name: cluster.trust().cluster_name().to_owned(),
                ca_pem: cluster.trust().ca_pem().to_owned(),
                tokens,
                numbers,
            });
        }
        Ok(shares)
    }

    /// Has its agents join, spread evenly over the nodes. They are in the order of their numbers.
    ///
    /// # Errors
    /// What the cluster answers.
    pub async fn join(self) -> Result<Vec<Arc<Agent>>> {
        let trust = ClusterTrust::new(&self.cluster_name, &self.ca_pem)?;
        let site = Arc::new(Site::new(self.addresses, trust));
        let (mut lanes, lane_count) = (JoinSet::new(), self.tokens.len());
        for (lane, token) in self.tokens.into_iter().enumerate() {
            let (site, own) = (Arc::clone(&site), self.numbers.clone().skip(lane).step_by(lane_count));
            lanes.spawn(async move {
                let stranger = site.connect_as_stranger(lane % site.addresses.len()).await?;
                let mut agents = Vec::new();
                for number in own {
                    agents.push(Arc::new(Agent::join(&site, &stranger, &token, number).await?));
                }
                Ok::<_, anyhow::Error>(agents)
            });
        }
        let mut agents = Vec::with_capacity(self.numbers.len());
        while let Some(joined) = lanes.join_next().await {
            agents.extend(joined??);
        }
        agents.sort_by_key(|agent| agent.number);
        Ok(agents)
    }
}

/// Has so many agents join from this process. They are in the order of their numbers, from 0.
///
/// # Errors
/// What the cluster answers.
pub async fn join_all(cluster: &Cluster, count: usize) -> Result<Vec<Arc<Agent>>> {
    let mut agents = Vec::with_capacity(count);
    for share in Share::split(cluster, count, 1).await? {
        agents.extend(share.join().await?);
    }
    Ok(agents)
}
