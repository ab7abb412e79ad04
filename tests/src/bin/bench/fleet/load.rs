//! Heartbeats: one an interval of each agent, and as many as the cluster takes.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use mezite_e2e::fleet::{Agent, Beats, Pace};
use tokio::task::JoinSet;

use super::{Fleet, usage::Usage};
use crate::comparison::load_average;

/// Before anything is counted.
const WARM_UP: Duration = Duration::from_secs(10);
/// Length of what is measured at a rate, and of the silence before it.
const SHORT: Duration = Duration::from_secs(20);
/// Connections that are made anew, a second: so few that this process keeps up.
const CONNECTS: u32 = 200;
/// Agents that report as fast as they are answered.
const CLIENTS: usize = 3000;

/// Each agent reports once an interval, evenly spread.
pub(crate) async fn steady(fleet: &Fleet, time: Duration) -> Result<()> {
    let mut pace = Pace::new(fleet.interval.div_f64(fleet.agents.len() as f64));
    let beat = |agent: Arc<Agent>| async move { agent.beat().await };
    let _ = pace.until(Instant::now() + WARM_UP, &fleet.agents, beat).await;
    let (before, load) = (Usage::of(&fleet.cluster).await?, load_average());
    let mut beats = pace.until(Instant::now() + time, &fleet.agents, beat).await;
    let used = Usage::of(&fleet.cluster).await?.since(&before);
    println!("steady state, {:.0} s: {}", used.time, beats.summary(used.time));
    println!("  {}", used.processors());
    println!("  {}", used.log());
    println!("  {}; load {load} to {}\n", Usage::memory(&fleet.cluster), load_average());
    let rest = pace.rest().await;
    ensure!(rest.failed == 0, "{:?}", rest.why);
    Ok(())
}

/// What it costs when agents connect anew for each report, beside what the connections cost that are there.
pub(crate) async fn connecting(fleet: &Fleet) -> Result<()> {
    let before = Usage::of(&fleet.cluster).await?;
    tokio::time::sleep(SHORT).await;
    let idle = Usage::of(&fleet.cluster).await?.since(&before);
    println!("connected and silent, {:.0} s: {}", idle.time, idle.processors());

    let before = Usage::of(&fleet.cluster).await?;
    let mut pace = Pace::new(Duration::from_secs(1) / CONNECTS);
    let beat = |agent: Arc<Agent>| async move { agent.beat_anew().await.map(|()| 0) };
    let mut beats = pace.until(Instant::now() + SHORT, &fleet.agents, beat).await;
    beats.add(pace.rest().await);
    let used = Usage::of(&fleet.cluster).await?.since(&before);
    println!("connecting anew for each, {:.0} s: {}", used.time, beats.summary(used.time));
    let count = (beats.answered() as f64).max(1.0);
    let each = |all: f64, idle_all: f64| (all - idle_all / idle.time * used.time) * 1e3 / count;
    println!(
        "  processor time of a connection with its heartbeat: auth nodes {:.2} ms, agents {:.2} ms\n",
        each(used.nodes_cpu, idle.nodes_cpu),
        each(used.own_cpu, idle.own_cpu),
    );
    Ok(())
}

/// As many heartbeats as the cluster takes.
pub(crate) async fn most(fleet: &Fleet) -> Result<()> {
    let before = Usage::of(&fleet.cluster).await?;
    let ends = Instant::now() + SHORT;
    let clients = CLIENTS.min(fleet.agents.len());
    let mut running = JoinSet::new();
    for client in 0..clients {
        let own: Vec<_> = fleet.agents.iter().skip(client).step_by(clients).cloned().collect();
        running.spawn(async move {
            let mut beats = Beats::default();
            for agent in own.iter().cycle() {
                let begun = Instant::now();
                if begun >= ends {
                    break;
                }
                beats.note(begun, agent.beat_once().await.map(|()| 0));
            }
            beats
        });
    }
    let mut beats = Beats::default();
    while let Some(done) = running.join_next().await {
        beats.add(done?);
    }
    let used = Usage::of(&fleet.cluster).await?.since(&before);
    println!(
        "{clients} agents as fast as they are answered, {:.0} s: {}",
        used.time,
        beats.summary(used.time)
    );
    println!("  {}; of all processors {:.0} %", used.processors(), busy(&used)?);
    println!("  {}\n", used.log());
    Ok(())
}

fn busy(used: &Usage) -> Result<f64> {
    let processors = std::thread::available_parallelism()?.get() as f64;
    Ok((used.nodes_cpu + used.own_cpu) / used.time / processors * 100.0)
}
