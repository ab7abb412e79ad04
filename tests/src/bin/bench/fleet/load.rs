//! Heartbeats: one an interval of each agent, and as many as the cluster takes.

use std::time::Duration;

use anyhow::Result;
use mezite_e2e::fleet::Beats;

use super::{Fleet, usage::Usage, worker::Order};
use crate::report::Report;

/// Before anything is counted.
const WARM_UP: Duration = Duration::from_secs(10);
/// Length of what is measured at a rate, and of the silence before it.
const SHORT: Duration = Duration::from_secs(20);
/// Connections that are made anew, a second: so few that the agents' processes keep up.
const CONNECTS: u32 = 200;
/// Agents that report as fast as they are answered.
const CLIENTS: usize = 3000;

/// Each agent reports once an interval, evenly spread.
pub(crate) async fn steady(fleet: &mut Fleet, time: Duration, report: &mut Report) -> Result<()> {
    let order = Order::Steady { interval: fleet.interval, warm_up: WARM_UP, time };
    fleet.workers.order(&order).await?;
    tokio::time::sleep(WARM_UP).await;
    let before = Usage::of(fleet).await?;
    tokio::time::sleep(time).await;
    let used = Usage::of(fleet).await?.since(&before);
    let mut beats = fleet.workers.beats().await?;
    used.row(format!("steady state, {:.0} s", used.time), &mut beats, report);
    Usage::memory(fleet, report);
    Ok(())
}

/// What it costs when agents connect anew for each report, beside what the connections cost that are there.
pub(crate) async fn connecting(fleet: &mut Fleet, report: &mut Report) -> Result<()> {
    let before = Usage::of(fleet).await?;
    tokio::time::sleep(SHORT).await;
    let idle = Usage::of(fleet).await?.since(&before);
    idle.row(format!("connected and silent, {:.0} s", idle.time), &mut Beats::default(), report);
    let before = Usage::of(fleet).await?;
    let step = Duration::from_secs(1).mul_f64(fleet.workers.count() as f64) / CONNECTS;
    fleet.workers.order(&Order::Connecting { step, time: SHORT }).await?;
    let mut beats = fleet.workers.beats().await?;
    let used = Usage::of(fleet).await?.since(&before);
    used.row(format!("connecting anew for each, {:.0} s", used.time), &mut beats, report);
    let count = (beats.answered() as f64).max(1.0);
    let each = |all: f64, idle_all: f64| (all - idle_all / idle.time * used.time) * 1e3 / count;
    report.row(
        "a connection with its heartbeat",
        &[
            ("nodes ms", Some(each(used.nodes_cpu, idle.nodes_cpu))),
            ("agents ms", Some(each(used.agents_cpu, idle.agents_cpu))),
        ],
    );
    Ok(())
}

/// As many heartbeats as the cluster takes.
pub(crate) async fn most(fleet: &mut Fleet, report: &mut Report) -> Result<()> {
    let workers = fleet.workers.count();
    let clients = CLIENTS.min(fleet.agents) / workers;
    let before = Usage::of(fleet).await?;
    fleet.workers.order(&Order::Most { clients, time: SHORT }).await?;
    let mut beats = fleet.workers.beats().await?;
    let used = Usage::of(fleet).await?.since(&before);
    let name = format!("{} as fast as they are answered, {:.0} s", clients * workers, used.time);
    used.row(name, &mut beats, report);
    Ok(())
}
