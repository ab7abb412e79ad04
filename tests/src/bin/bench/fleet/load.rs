//! Heartbeats: one an interval of each agent, and as many as the cluster takes.

use std::time::Duration;

use anyhow::Result;

use super::{Fleet, usage::Usage, worker::Order};
use crate::comparison::load_average;

/// Before anything is counted.
const WARM_UP: Duration = Duration::from_secs(10);
/// Length of what is measured at a rate, and of the silence before it.
const SHORT: Duration = Duration::from_secs(20);
/// Connections that are made anew, a second: so few that the agents' processes keep up.
const CONNECTS: u32 = 200;
/// Agents that report as fast as they are answered.
const CLIENTS: usize = 3000;

/// Each agent reports once an interval, evenly spread.
pub(crate) async fn steady(fleet: &mut Fleet, time: Duration) -> Result<()> {
    let order = Order::Steady { interval: fleet.interval, warm_up: WARM_UP, time };
    fleet.workers.order(&order).await?;
    tokio::time::sleep(WARM_UP).await;
    let (before, load) = (Usage::of(fleet).await?, load_average());
    tokio::time::sleep(time).await;
    let used = Usage::of(fleet).await?.since(&before);
    let mut beats = fleet.workers.beats().await?;
    println!("steady state, {:.0} s: {}", used.time, beats.summary(used.time));
    println!("  {}", used.processors());
    println!("  {}", used.log());
    println!("  {}; load {load} to {}\n", Usage::memory(fleet), load_average());
    Ok(())
}

/// What it costs when agents connect anew for each report, beside what the connections cost that are there.
pub(crate) async fn connecting(fleet: &mut Fleet) -> Result<()> {
    let before = Usage::of(fleet).await?;
    tokio::time::sleep(SHORT).await;
    let idle = Usage::of(fleet).await?.since(&before);
    println!("connected and silent, {:.0} s: {}", idle.time, idle.processors());

    let before = Usage::of(fleet).await?;
    let step = Duration::from_secs(1).mul_f64(fleet.workers.count() as f64) / CONNECTS;
    fleet.workers.order(&Order::Connecting { step, time: SHORT }).await?;
    let mut beats = fleet.workers.beats().await?;
    let used = Usage::of(fleet).await?.since(&before);
    println!("connecting anew for each, {:.0} s: {}", used.time, beats.summary(used.time));
    let count = (beats.answered() as f64).max(1.0);
    let each = |all: f64, idle_all: f64| (all - idle_all / idle.time * used.time) * 1e3 / count;
    println!(
        "  processor time of a connection with its heartbeat: auth nodes {:.2} ms, agents {:.2} ms\n",
        each(used.nodes_cpu, idle.nodes_cpu),
        each(used.agents_cpu, idle.agents_cpu),
    );
    Ok(())
}

/// As many heartbeats as the cluster takes.
pub(crate) async fn most(fleet: &mut Fleet) -> Result<()> {
    let workers = fleet.workers.count();
    let clients = CLIENTS.min(fleet.agents) / workers;
    let before = Usage::of(fleet).await?;
    fleet.workers.order(&Order::Most { clients, time: SHORT }).await?;
    let mut beats = fleet.workers.beats().await?;
    let used = Usage::of(fleet).await?.since(&before);
    println!(
        "{} agents as fast as they are answered, {:.0} s: {}",
        clients * workers,
        used.time,
        beats.summary(used.time)
    );
    println!("  {}; of all processors {:.0} %", used.processors(), busy(&used)?);
    println!("  {}\n", used.log());
    Ok(())
}

fn busy(used: &Usage) -> Result<f64> {
    let processors = std::thread::available_parallelism()?.get() as f64;
    Ok((used.nodes_cpu + used.agents_cpu) / used.time / processors * 100.0)
}
