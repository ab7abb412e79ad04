//! Who counts as online: some agents fall silent, the leader is killed, and lists are compared with what the agents know of
//! themselves. An agent that is told to be offline before its time is told of by name.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use mezite_e2e::fleet::{Agent, Beats, Pace, Verdicts, online};
use tokio::sync::oneshot;

use super::Fleet;

/// One agent in so many falls silent.
const SILENT: usize = 100;
/// Between two lists.
const LOOK: Duration = Duration::from_secs(5);
/// When the leader is killed, and when it is started again, after the agents fell silent.
const KILL: Duration = Duration::from_secs(20);
const RESTART: Duration = Duration::from_secs(40);

/// Sees who counts as online, from the moment at which some fall silent until all of these are offline.
pub(crate) async fn run(fleet: &mut Fleet) -> Result<()> {
    let agents = fleet.agents.clone();
    // Everybody has reported lately, whatever was measured before.
    let mut pace = Pace::new(fleet.interval.div_f64(agents.len() as f64));
    let beat = |agent: Arc<Agent>| async move { agent.beat().await };
    let _ = pace.until(Instant::now() + fleet.interval, &agents, beat).await;
    for agent in agents.iter().step_by(SILENT) {
        agent.fall_silent();
    }
    let begun = Instant::now();
    let ends = begun + fleet.ttl + fleet.interval;
    let (stop, stopped) = oneshot::channel();
    let beating = tokio::spawn({
        let agents = agents.clone();
        async move {
            let beats = pace.until(ends, &agents, beat).await;
            let _ = stop.send(());
            (beats, pace.rest().await)
        }
    });
    let wrong = watch(fleet, &agents, begun, stopped).await?;
    let (mut beats, rest): (Beats, Beats) = beating.await?;
    println!(
        "presence, {:.0} s, one in {SILENT} silent, the leader killed after {} s: {}",
        begun.elapsed().as_secs_f64(),
        KILL.as_secs(),
        beats.summary((ends - begun).as_secs_f64()),
    );
    let silent: Vec<_> = agents.iter().step_by(SILENT).collect();
    println!(
        "  {} lists of {} nodes: {} offline too early, {} online too late, {} missing; {} silent, all offline in the end\n",
        wrong.lists,
        agents.len(),
        wrong.early,
        wrong.late,
        wrong.missing,
        silent.len(),
    );
    ensure!(wrong.are_right(), "{wrong:?}");
    ensure!(rest.failed == 0, "{:?}", rest.why);
    let last = online(&fleet.cluster).await?;
    ensure!(silent.iter().all(|agent| last.get(&agent.id) == Some(&false)), "a silent agent is online");
    Ok(())
}

/// Compares lists until there are no more heartbeats, and kills and starts the leader meanwhile.
async fn watch(
    fleet: &mut Fleet,
    agents: &[Arc<Agent>],
    begun: Instant,
    mut stopped: oneshot::Receiver<()>,
) -> Result<Verdicts> {
    let leader = fleet.cluster.leader().await;
    let (mut wrong, mut alive) = (Verdicts::new(fleet.ttl), true);
    while stopped.try_recv().is_err() {
        if begun.elapsed() >= RESTART && !fleet.cluster.nodes()[leader].is_running() {
            fleet.cluster.node(leader).start();
        } else if begun.elapsed() >= KILL && alive {
            fleet.cluster.node(leader).kill();
            alive = false;
        }
        wrong.look(&fleet.cluster, agents).await?;
        tokio::time::sleep(LOOK).await;
    }
    let killed = fleet.cluster.node(leader);
    if !killed.is_running() {
        killed.start();
    }
    killed.ready().await;
    Ok(wrong)
}
