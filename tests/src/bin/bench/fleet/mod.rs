//! A cluster of auth nodes with very many agents: what their heartbeats cost, how many it takes, and how long lists take.
//!
//! The agents are those of [`mezite_e2e::fleet`]. A process may have only so many connections, so they are spread over processes of
//! their own: [`worker`] is one of them, [`workers`] has all of them do the same at the same time. [`load`] has the agents report,
//! [`lists`] reads them back, beside etcd.

mod lists;
mod load;
mod usage;
pub(crate) mod worker;
mod workers;

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use mezite_e2e::{Cluster, Setup};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use self::{usage::Usage, workers::Workers};
use crate::report::Report;

/// What is to be measured.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Plan {
    /// Agents.
    #[arg(long, default_value_t = 100_000)]
    agents: usize,
    /// Auth nodes. More of them have room for more connections where files are few, and take more processors than three.
    #[arg(long, default_value_t = 3)]
    nodes: usize,
    /// Time from one heartbeat of an agent to the next, in seconds.
    #[arg(long, default_value_t = 60)]
    interval: u64,
    /// Length of the measurement of the steady state, in seconds.
    #[arg(long, default_value_t = 120)]
    seconds: u64,
    /// Only these parts.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Part::Steady, Part::Connecting, Part::Most, Part::Lists])]
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
}

/// Open files of a process beside the connections that its agents keep: half of them for other connections, half for
/// what is none.
const ROOM: usize = 1000;

/// What all parts work with.
struct Fleet {
    cluster: Cluster,
    workers: Workers,
    agents: usize,
    interval: Duration,
}

/// Goes through the parts and prints what they come to.
pub(crate) async fn run(plan: Plan, report: &mut Report) -> Result<()> {
    report.part("heartbeat")?;
    ensure!(
        plan.nodes > 0 && plan.agents >= plan.nodes && plan.interval > 0,
        "too few agents, or no interval"
    );
    let files = let_files()?;
    plan.check(files)?;
    let mut fleet = Fleet {
        cluster: plan.start(files).await,
        workers: Workers::start(plan.agents.div_ceil(files - ROOM))?,
        agents: plan.agents,
        interval: Duration::from_secs(plan.interval),
    };
    report.note(&format!(
        "{} agents in {} processes, a heartbeat each {} s, {} auth nodes",
        plan.agents,
        fleet.workers.count(),
        plan.interval,
        plan.nodes,
    ));
    join(&mut fleet, report).await?;
    for part in &plan.only {
        match part {
            Part::Steady => load::steady(&mut fleet, Duration::from_secs(plan.seconds), report).await?,
            Part::Connecting => load::connecting(&mut fleet, report).await?,
            Part::Most => load::most(&mut fleet, report).await?,
            Part::Lists => lists::run(&fleet, plan.alone, report).await?,
        }
    }
    Ok(())
}

impl Plan {
    /// Whether auth nodes with so many open files each can hold the agents' connections.
    fn check(&self, files: usize) -> Result<()> {
        let fit = files.saturating_sub(ROOM) * self.nodes;
        ensure!(
            self.agents <= fit,
            "{} auth nodes that may have {files} open files each hold the connections of {fit} agents, not of {}: raise \
             `ulimit -Hn`, or take more --nodes or fewer --agents",
            self.nodes,
            self.agents,
        );
        Ok(())
    }

    /// The cluster. When a node dies, its agents move to the others, as far as these may have files.
    async fn start(&self, files: usize) -> Cluster {
        let connections = (self.agents + ROOM).min(files - ROOM / 2);
        let set = vec![
            format!("presence.interval={}s", self.interval),
            format!("presence.ttl={}s", self.interval * 2),
            format!("limits.max_connections={connections}"),
        ];
        Cluster::start_with(&Setup { nodes: self.nodes, set, tied: true, ..Setup::default() }).await
    }
}

/// All agents join, by the API: GenerateHostCerts, RegisterAgent, and WatchAccess on the connection that stays.
async fn join(fleet: &mut Fleet, report: &mut Report) -> Result<()> {
    let (before, begun) = (Usage::of(fleet).await?, Instant::now());
    fleet.workers.join(&fleet.cluster, fleet.agents).await?;
    let used = Usage::of(fleet).await?.since(&before);
    let (count, taken) = (fleet.agents as f64, begun.elapsed().as_secs_f64());
    report.row(
        format!("{count} agents join"),
        &[
            ("joins/s", Some(count / taken)),
            ("nodes ms", Some(used.nodes_cpu * 1e3 / count)),
            ("agents ms", Some(used.agents_cpu * 1e3 / count)),
            ("time s", Some(taken)),
        ],
    );
    Usage::memory(fleet, report);
    Ok(())
}

/// Lets this process and those that it starts open as many files as they may: how many.
fn let_files() -> Result<usize> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(usize::try_from(hard)?)
}
