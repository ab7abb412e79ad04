//! Logins by password, as many as the nodes hash, while agents report.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;
use argon2::{Algorithm, Argon2, Params, Version};
use mezite_e2e::{Cluster, PASSWORD, Setup, fleet};
use mezite_proto::v1::AuthenticateLocalRequest;
use tokio::task::JoinSet;

use super::{Stub, clients, rate, row};
use crate::{
    load::{self, Figures},
    report::Report,
};

/// What is to be measured.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Plan {
    /// How long it takes, in seconds.
    #[arg(long, default_value_t = 15)]
    seconds: u64,
    /// Clients that log in, each again as soon as it is in.
    #[arg(long, default_value_t = 12)]
    clients: usize,
    /// Agents that report, each once in ten seconds.
    #[arg(long, default_value_t = 300)]
    agents: usize,
}

/// From one report of an agent to its next.
const EVERY: Duration = Duration::from_secs(10);
/// What a login hashes by: as `auth-node/src/passwords.rs`.
const HASH: (u32, u32, u32) = (19_456, 2, 1);

/// Goes through the rows and prints them.
pub(crate) async fn run(plan: &Plan, report: &mut Report) -> Result<()> {
    report.part("login")?;
    let cluster = Cluster::start_with(&Setup { nodes: 3, tied: true, ..Setup::default() }).await;
    // One for each client: a user has a quarter of the places.
    for number in 0..plan.clients {
        cluster.add_user(&format!("user{number}"), &["access"], &["root"]).await;
    }
    let agents = fleet::join_all(&cluster, plan.agents).await?;
    let time = Duration::from_secs(plan.seconds);
    let hashes = hashes(Duration::from_secs(3))?;
    rate(report, "Argon2id hashes, one thread", hashes, None);
    const OF_HASHES: &str = "of hashes";
    let quiet = beats(&agents, time).await?;
    row(report, "heartbeats, nothing else".into(), &quiet, (OF_HASHES, None));
    let numbered: Vec<_> = clients(&cluster, plan.clients).into_iter().enumerate().collect();
    let log_in = |(number, mut stub): (usize, Stub)| async move {
        let (username, password) = (format!("user{number}"), PASSWORD.into());
        stub.authenticate_local(AuthenticateLocalRequest { username, password }).await?;
        Ok(())
    };
    let (logins, beats) =
        tokio::join!(load::closed_loop(numbered, time, log_in, async || Ok(())), beats(&agents, time));
    row(report, format!("logins, {} clients", plan.clients), &logins?, (OF_HASHES, Some(hashes)));
    row(report, "heartbeats meanwhile".into(), &beats?, (OF_HASHES, None));
    Ok(())
}

/// Reports of all agents, evenly spread over the time between two of one.
async fn beats(agents: &[Arc<fleet::Agent>], time: Duration) -> Result<Figures> {
    let begun = tokio::time::Instant::now();
    let mut running = JoinSet::new();
    for (number, agent) in agents.iter().enumerate() {
        let agent = Arc::clone(agent);
        let offset = EVERY.mul_f64(number as f64 / agents.len() as f64);
        running.spawn(async move {
            let (mut times, mut failed) = (Vec::new(), 0);
            let mut due = begun + offset;
            while due < begun + time {
                tokio::time::sleep_until(due).await;
                let started = Instant::now();
                match agent.beat_once().await {
                    Ok(()) => times.push(u32::try_from(started.elapsed().as_micros()).unwrap_or(u32::MAX)),
                    Err(_) => failed += 1,
                }
                due += EVERY;
            }
            (times, failed)
        });
    }
    let (mut times, mut failed) = (Vec::new(), 0);
    while let Some(done) = running.join_next().await {
        let (own, failures): (Vec<u32>, usize) = done?;
        times.extend(own);
        failed += failures;
    }
    Ok(Figures::of(times, failed, time))
}

/// Hashes a second, on one thread.
fn hashes(time: Duration) -> Result<f64> {
    let (memory, passes, lanes) = HASH;
    let params = Params::new(memory, passes, lanes, None).map_err(|error| anyhow::anyhow!("{error}"))?;
    let hasher = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    let (begun, mut count, mut out) = (Instant::now(), 0_u32, [0; 32]);
    while begun.elapsed() < time {
        let hashed = hasher.hash_password_into(PASSWORD.as_bytes(), b"sixteen bytes !!", &mut out);
        hashed.map_err(|error| anyhow::anyhow!("{error}"))?;
        count += 1;
    }
    Ok(f64::from(count) / begun.elapsed().as_secs_f64())
}
