//! How long a cluster takes no writes when its leader is killed.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tokio::task::JoinSet;

use crate::{
    api::{PutRequest, kv_client::KvClient},
    load,
    system::System,
};

/// Between two writes that are tried.
const PACE: Duration = Duration::from_millis(10);
/// A write that is tried is given up after this.
const GIVE_UP: Duration = Duration::from_secs(2);
/// A cluster that is not back by then has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// Kills the leader, and measures until the first write that the others accept. Writes are tried every 10 ms through
/// each of them in turn, without waiting for those before.
pub(crate) async fn trial(system: &mut System) -> Result<Duration> {
    let leader = system.leader().await?;
    let others = (0..3).filter(|index| *index != leader);
    let mut clients = Vec::new();
    for index in others {
        clients.push(KvClient::new(load::connect(&system.address(index), system.tls()).await?));
    }
    system.kill(leader);
    let killed = Instant::now();
    let first = tokio::time::timeout(PATIENCE, first_write(clients, killed)).await;
    let first = first.context("no write was accepted")?;
    system.restart(leader).await?;
    Ok(first)
}

async fn first_write(clients: Vec<KvClient<tonic::transport::Channel>>, killed: Instant) -> Duration {
    let mut tried = JoinSet::new();
    let mut ticks = tokio::time::interval(PACE);
    let value = load::value();
    let mut next = clients.iter().cycle();
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                let Some(client) = next.next() else { continue };
                let (mut client, value) = (client.clone(), value.clone());
                tried.spawn(async move {
                    let put = client.put(PutRequest { key: load::key(1), value });
                    matches!(tokio::time::timeout(GIVE_UP, put).await, Ok(Ok(_)))
                });
            }
            Some(done) = tried.join_next() => {
                if matches!(done, Ok(true)) {
                    return killed.elapsed();
                }
            }
        }
    }
}
