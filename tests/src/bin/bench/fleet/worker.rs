//! A process with a share of the agents: it does what it is ordered, a line of JSON each on its standard input, and answers with a
//! line on its standard output.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use mezite_e2e::fleet::{Agent, Beats, Pace, Share};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

/// What all workers do at the same time, each with its own agents. The answer is what became of the heartbeats that count.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// These agents join, and stay connected. No heartbeat counts.
    Join(Share),
    /// Each agent reports once an interval, evenly spread. What counts are those that are answered in `time` after the warm-up.
    Steady { interval: Duration, warm_up: Duration, time: Duration },
    /// One agent after the other, one each `step`, reports over a connection that is made for it.
    Connecting { step: Duration, time: Duration },
    /// So many report as fast as they are answered, each for some of the agents.
    Most { clients: usize, time: Duration },
}

/// Does what it is told until nobody is there to tell.
pub(crate) async fn run() -> Result<()> {
    let mut agents = Vec::new();
    // Blocks this thread alone: the agents' connections are served by those of the runtime.
    for line in io::stdin().lines() {
        let beats = match serde_json::from_str(&line?)? {
            Order::Join(share) => {
                agents = share.join().await?;
                Beats::default()
            }
            Order::Steady { interval, warm_up, time } => steady(&agents, interval, warm_up, time).await?,
            Order::Connecting { step, time } => connecting(&agents, step, time).await,
            Order::Most { clients, time } => most(&agents, clients, time).await?,
        };
        println!("{}", serde_json::to_string(&beats)?);
    }
    Ok(())
}

async fn steady(
    agents: &[Arc<Agent>],
    interval: Duration,
    warm_up: Duration,
    time: Duration,
) -> Result<Beats> {
    let mut pace = Pace::new(interval.div_f64(agents.len() as f64));
    let beat = |agent: Arc<Agent>| async move { agent.beat().await };
    let begins = Instant::now() + warm_up;
    let _ = pace.until(begins, agents, beat).await;
    let beats = pace.until(begins + time, agents, beat).await;
    let rest = pace.rest().await;
    ensure!(rest.failed == 0, "{:?}", rest.why);
    Ok(beats)
}

async fn connecting(agents: &[Arc<Agent>], step: Duration, time: Duration) -> Beats {
    let mut pace = Pace::new(step);
    let beat = |agent: Arc<Agent>| async move { agent.beat_anew().await.map(|()| 0) };
    let mut beats = pace.until(Instant::now() + time, agents, beat).await;
    beats.add(pace.rest().await);
    beats
}

async fn most(agents: &[Arc<Agent>], clients: usize, time: Duration) -> Result<Beats> {
    let (mut running, ends) = (JoinSet::new(), Instant::now() + time);
    for client in 0..clients {
        let own: Vec<_> = agents.iter().skip(client).step_by(clients).cloned().collect();
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
    Ok(beats)
}
