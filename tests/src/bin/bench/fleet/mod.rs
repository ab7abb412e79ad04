//! A cluster of auth nodes with very many agents: what their heartbeats cost, how many it takes, how long lists take, and
//! whether those who live count as alive.
//!
//! The agents are those of [`mezite_e2e::fleet`]. [`load`] has them report, [`lists`] reads them back, beside etcd, and [`presence`]
//! sees who counts as online while some fall silent and the leader dies.

mod lists;
mod load;
mod presence;
mod usage;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use mezite_e2e::{
    Cluster, Setup,
    fleet::{self, Agent},
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use self::usage::Usage;

/// What is to be measured.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Plan {
    /// Agents.
    #[arg(long, default_value_t = 100_000)]
    agents: usize,
    /// Time from one heartbeat of an agent to the next, in seconds.
    #[arg(long, default_value_t = 60)]
    interval: u64,
    /// Length of the measurement of the steady state, in seconds.
    #[arg(long, default_value_t = 120)]
    seconds: u64,
    /// Only these parts. `presence` takes three intervals.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Part::Steady, Part::Connecting, Part::Most, Part::Lists, Part::Presence])]
    only: Vec<Part>,
    /// Leaves etcd out of the lists.
    #[arg(long)]
    alone: bool,
}

/// A part of the measurement. The agents join before, whichever it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Each agent reports once an interval.
    Steady,
    /// Agents that connect anew for each report.
    Connecting,
    /// As many heartbeats as the cluster takes.
    Most,
    /// All nodes, page by page.
    Lists,
    /// Who counts as online.
    Presence,
}

/// Auth nodes.
const NODES: usize = 3;
/// Open files that a process of the cluster needs beside the agents' connections.
const FILES: u64 = 4096;

/// What all parts work with.
struct Fleet {
    cluster: Cluster,
    agents: Vec<Arc<Agent>>,
    interval: Duration,
    ttl: Duration,
}

/// Goes through the parts and prints what they come to.
pub(crate) async fn run(plan: Plan) -> Result<()> {
    ensure!(plan.agents >= NODES && plan.interval > 0, "too few agents, or no interval");
    let_files(plan.agents)?;
    let interval = Duration::from_secs(plan.interval);
    let ttl = interval * 2;
    let set = vec![
        format!("presence.interval={}s", interval.as_secs()),
        format!("presence.ttl={}s", ttl.as_secs()),
        // All of them move to the others when one node dies.
        format!("limits.max_connections={}", plan.agents + 1000),
    ];
    let cluster = Cluster::start_with(&Setup { nodes: NODES, set, ..Setup::default() }).await;
    println!(
        "{} agents, a heartbeat each {} s, {NODES} auth nodes, {} processors, load {}\n",
        plan.agents,
        plan.interval,
        std::thread::available_parallelism()?,
        crate::comparison::load_average(),
    );
    let mut fleet = Fleet { cluster, agents: Vec::new(), interval, ttl };
    join(&mut fleet, plan.agents).await?;
    for part in &plan.only {
        match part {
            Part::Steady => load::steady(&fleet, Duration::from_secs(plan.seconds)).await?,
            Part::Connecting => load::connecting(&fleet).await?,
            Part::Most => load::most(&fleet).await?,
            Part::Lists => lists::run(&fleet, plan.alone).await?,
            Part::Presence => presence::run(&mut fleet).await?,
        }
    }
    Ok(())
}

/// All agents join, by the API: GenerateHostCerts, RegisterAgent, and WatchAccess on the connection that stays.
async fn join(fleet: &mut Fleet, count: usize) -> Result<()> {
    let (before, begun) = (Usage::of(&fleet.cluster).await?, Instant::now());
    fleet.agents = fleet::join_all(&fleet.cluster, count).await?;
    let used = Usage::of(&fleet.cluster).await?.since(&before);
    let taken = begun.elapsed().as_secs_f64();
    println!(
        "joined: {count} agents in {taken:.0} s, {:.0} a second; processor time an agent: auth nodes {:.2} ms, agents {:.2} ms",
        count as f64 / taken,
        used.nodes_cpu * 1e3 / count as f64,
        used.own_cpu * 1e3 / count as f64,
    );
    println!("{}\n", Usage::memory(&fleet.cluster));
    Ok(())
}

/// Lets this process and those that it starts open as many files as there are agents.
fn let_files(agents: usize) -> Result<()> {
    let wanted = agents as u64 + FILES;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft >= wanted {
        return Ok(());
    }
    setrlimit(Resource::RLIMIT_NOFILE, wanted, hard.max(wanted)).with_context(|| {
        format!("{agents} connections need {wanted} open files: raise `ulimit -n`, run as root, or take fewer --agents")
    })
}
