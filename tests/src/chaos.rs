//! A cluster under faults with clients that write down what they see, and what the checks say of it.

use std::{
    collections::BTreeMap,
    fmt,
    path::PathBuf,
    time::{Duration, Instant},
};

use tokio::{
    sync::oneshot::{self, error::TryRecvError},
    task::JoinHandle,
};

use crate::{
    control::{Answer, Request},
    eventually::Ticks,
    faults::{Faults, Kind},
    history::{self, Checked, Event, Violation},
    store_cluster::{self, StoreCluster},
    workload::{Clients, Shared, TOTAL},
};

/// Deadline of a call on a node.
const DEADLINE: Duration = Duration::from_secs(2);
/// A client waits so long.
const PATIENCE: Duration = Duration::from_secs(3);
/// After the last fault, a cluster is itself again in this time.
const CONVERGED: Duration = Duration::from_secs(60);
/// Writes that show that it goes on.
const GOES_ON: u64 = 100;
/// At most one register in so many may be left undecided.
const UNDECIDED_SHARE: usize = 10;
/// How often a node is asked for all that it has, before it is said not to answer.
const ATTEMPTS: usize = 10;

/// What is run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// For how long faults come.
    pub time: Duration,
    /// Which ones.
    pub seed: u64,
    /// Voters at first.
    pub nodes: u64,
    /// Clients.
    pub clients: usize,
    /// A mutation, to see that the checks find it: nodes read what they have.
    pub stale_reads: bool,
}

/// What came of it.
#[derive(Debug)]
pub struct Report {
    /// The plan.
    pub plan: Plan,
    /// Calls by kind: those with an effect or an answer, refused on a current view, failed, unknown.
    pub calls: BTreeMap<&'static str, [u64; 4]>,
    /// Faults by kind.
    pub faults: BTreeMap<Kind, u64>,
    /// Longest time without an acknowledged write.
    pub unavailable: Duration,
    /// The longest that a timer of the driver was late: how busy the machine was otherwise.
    pub starved: Duration,
    /// Nodes that ended because their disk was full.
    pub full_disk_ends: u64,
    /// Highest term and lowest last snapshot among the nodes at the end.
    pub term: u64,
    /// See above.
    pub snapshot_index: u64,
    /// Log index at which all nodes held the same state.
    pub converged_at: Option<u64>,
    /// What was checked.
    pub checked: Checked,
    /// Where logs and violations are, if there is something to look at.
    pub saved: Option<PathBuf>,
    /// What there was no means for.
    pub missing: Vec<&'static str>,
}

impl Report {
    /// Calls of all kinds that had an outcome, and all whose outcome is unknown.
    #[must_use]
    pub fn totals(&self) -> [u64; 4] {
        let sum = |place| self.calls.values().map(|counts: &[u64; 4]| counts[place]).sum();
        [sum(0), sum(1), sum(2), sum(3)]
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "seed {}, {:?} of faults, {} clients",
            self.plan.seed, self.plan.time, self.plan.clients
        )?;
        writeln!(f, "{:<10} {:>9} {:>9} {:>9} {:>9}", "calls", "ok", "refused", "failed", "unknown")?;
        for (kind, counts) in
            self.calls.iter().map(|(kind, counts)| (*kind, *counts)).chain([("all", self.totals())])
        {
            let [ok, refused, failed, unknown] = counts;
            writeln!(f, "{kind:<10} {ok:>9} {refused:>9} {failed:>9} {unknown:>9}")?;
        }
        let faults: Vec<_> = self.faults.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
        writeln!(f, "faults: {}: {}", self.faults.values().sum::<u64>(), faults.join(", "))?;
        for missing in &self.missing {
            writeln!(f, "not tried: {missing}")?;
        }
        writeln!(f, "nodes that ended because their disk was full: {}", self.full_disk_ends)?;
        writeln!(f, "longest time without an acknowledged write: {:.1?}", self.unavailable)?;
        writeln!(f, "longest time for which the machine did not let the driver run: {:.1?}", self.starved)?;
        writeln!(f, "terms: {}; every node has a snapshot at {} or later", self.term, self.snapshot_index)?;
        if let Some(index) = self.converged_at {
            writeln!(f, "all nodes hold the same state at log index {index}")?;
        }
        let Checked { registers, undecided, sets, lists, sums, violations } = &self.checked;
        writeln!(
            f,
            "checked: {registers} registers ({undecided} undecided), {sets} sets, {lists} lists, {sums} sums"
        )?;
        if violations.is_empty() {
            return writeln!(f, "no violation");
        }
        violations.iter().try_for_each(|violation| writeln!(f, "VIOLATION: {violation}"))?;
        writeln!(f, "seed {}: {} violations", self.plan.seed, violations.len())?;
        self.saved.iter().try_for_each(|path| writeln!(f, "logs: {}", path.display()))
    }
}

/// Runs a plan.
///
/// # Panics
/// When the cluster cannot be set up.
pub async fn run(plan: Plan) -> Report {
    let options = store_cluster::Options {
        nodes: plan.nodes,
        snapshot_every: 400,
        keep_entries: 100,
        deadline: DEADLINE,
        stale_reads: plan.stale_reads,
        small_disk: Some(1 + plan.seed % plan.nodes),
        fake_clocks: true,
    };
    let mut cluster = StoreCluster::start(options).await;
    let mut missing = Vec::new();
    if !cluster.nodes().values().any(|node| node.small_disk().is_some()) {
        missing.push("a full disk: only root can mount a small one");
    }
    if !cluster.has_clocks() {
        missing.push("clocks that are off: the package faketime is not installed");
    }
    let shared = Shared::new(cluster.addresses(), PATIENCE);
    shared.open_accounts().await;
    let clients = Clients::start(&shared, plan.clients, plan.seed);
    let mut faults = Faults::new(plan.seed);
    let (starved, stop) = watch_timers();
    faults.run(&mut cluster, Instant::now() + plan.time).await;
    let end = finish(&mut cluster, &mut faults, &shared, clients).await;
    drop(stop);
    let starved = starved.await.unwrap();

    let history = shared.take();
    eprintln!("checking {} calls", history.len());
    let mut checked = history::check(&history, TOTAL);
    let gave_up = checked.undecided * UNDECIDED_SHARE > checked.registers;
    let gave_up =
        gave_up.then(|| format!("the search gave up on {} registers: that shows nothing", checked.undecided));
    let complaints = faults.complaints.into_iter().chain(end.complaints).chain(gave_up);
    checked.violations.extend(complaints.map(|what| Violation { what, events: Vec::new() }));
    let saved = (!checked.violations.is_empty()).then(|| {
        let folder = std::env::temp_dir().join(format!("mezite-chaos-{}", plan.seed));
        cluster.save_logs(&folder);
        let lines: Vec<_> = history.iter().map(ToString::to_string).collect();
        std::fs::write(folder.join("history"), lines.join("\n")).unwrap();
        folder
    });
    Report {
        plan,
        calls: count(&history),
        faults: faults.counts,
        unavailable: unavailable(&history),
        starved,
        full_disk_ends: faults.full_disk_ends,
        term: end.term,
        snapshot_index: end.snapshot_index,
        converged_at: end.converged_at,
        checked,
        saved,
        missing,
    }
}

/// Sees how late timers are, until the sender is dropped.
fn watch_timers() -> (JoinHandle<Duration>, oneshot::Sender<()>) {
    let (stop, mut stopped) = oneshot::channel();
    let watching = tokio::spawn(async move {
        let mut ticks = Ticks::new(Duration::MAX);
        while stopped.try_recv() == Err(TryRecvError::Empty) {
            ticks.next().await;
        }
        ticks.latest
    });
    (watching, stop)
}

#[derive(Default)]
struct End {
    term: u64,
    snapshot_index: u64,
    converged_at: Option<u64>,
    complaints: Vec<String>,
}

/// Ends the faults and the work, waits until the nodes hold the same state, and reads all of it through each.
async fn finish(cluster: &mut StoreCluster, faults: &mut Faults, shared: &Shared, clients: Clients) -> End {
    let mut end = End::default();
    faults.heal(cluster).await;
    let written = shared.acknowledged();
    // Under load still: it must go on by itself.
    let mut ticks = Ticks::new(CONVERGED);
    while faults.unsettled() > 0 && ticks.next().await {
        faults.heal(cluster).await;
    }
    if faults.unsettled() > 0 {
        end.complaints.push("a member cannot be removed after the last fault".into());
    }
    while shared.acknowledged() < written + GOES_ON {
        if !ticks.next().await {
            end.complaints.push(format!("clients do not go on within {CONVERGED:?} after the last fault"));
            break;
        }
    }
    clients.stop().await;
    match cluster.converge(CONVERGED).await {
        Ok(index) => end.converged_at = Some(index),
        Err(complaint) => end.complaints.push(complaint),
    }
    if let Err(complaint) = shared.read_all(ATTEMPTS).await {
        end.complaints.push(complaint);
    }
    let mut snapshots = Vec::new();
    for id in cluster.ids() {
        if let Some(status) = cluster.status(id).await {
            end.term = end.term.max(status.term);
            snapshots.push(status.snapshot_index);
        }
    }
    end.snapshot_index = snapshots.into_iter().min().unwrap_or_default();
    end.complaints.extend(cluster.ended().into_iter().map(|(id, how)| format!("node {id} ended: {how}")));
    end
}

fn kind(request: &Request) -> &'static str {
    match request {
        Request::Get { .. } => "get",
        Request::Scan { .. } => "scan",
        Request::Put { .. } => "put",
        Request::Cas { .. } => "cas",
        Request::Transfer { .. } => "transfer",
        Request::Append { .. } => "append",
        _ => "other",
    }
}

fn count(history: &[Event]) -> BTreeMap<&'static str, [u64; 4]> {
    let mut calls: BTreeMap<_, [u64; 4]> = BTreeMap::new();
    for event in history {
        let place = match event.answer {
            Answer::Refused => 1,
            Answer::Failed { .. } => 2,
            Answer::Unknown { .. } => 3,
            _ => 0,
        };
        calls.entry(kind(&event.request)).or_default()[place] += 1;
    }
    calls
}

/// The longest time between two acknowledged writes.
fn unavailable(history: &[Event]) -> Duration {
    let written = history.iter().filter(|event| matches!(event.answer, Answer::Written { .. }));
    let mut times: Vec<_> = written.map(|event| event.returned).collect();
    times.sort_unstable();
    let gaps = times.windows(2).map(|pair| pair[1] - pair[0]);
    Duration::from_nanos(gaps.max().unwrap_or_default())
}
