//! Writes as fast as they are taken, for long, while nodes come and go: what it costs in memory, and whether anything
//! that was acknowledged is lost.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{sync::watch, task::JoinHandle};

use crate::{
    control::{Answer, Control, Request},
    store_cluster::{self, Addresses, StoreCluster},
};

/// Nodes. The first one is never restarted, so that its memory shows what it gathers.
const NODES: u64 = 3;
/// A node is restarted so often.
const RESTART_EVERY: Duration = Duration::from_secs(10);
/// Memory is looked at so often.
const SAMPLE_EVERY: Duration = Duration::from_secs(1);
/// A line is printed so often.
const LINE_EVERY: u32 = 30;
/// Rows of each writer.
const SLOTS: u64 = 500;
/// Bytes behind each value: 256 with it.
const PADDING: usize = 248;
/// A client waits so long; a node a second less.
const PATIENCE: Duration = Duration::from_secs(6);
/// At the end, nodes are the same again in this time.
const CONVERGED: Duration = Duration::from_secs(90);
/// In the last quarter, memory may be so many times that of the second one, and so much more.
const MAX_GROWTH: (f64, f64) = (1.5, 50.0 * MIB);
const MIB: f64 = 1_048_576.0;

/// What is run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// For how long.
    pub time: Duration,
    /// Writers at once.
    pub writers: u64,
    /// Log entries between two snapshots.
    pub snapshot_every: u64,
}

/// What came of it.
#[derive(Debug)]
pub struct Report {
    /// Acknowledged writes.
    pub written: u64,
    /// Writes that failed.
    pub failed: u64,
    /// Writes whose outcome is unknown.
    pub unknown: u64,
    /// Restarts.
    pub restarts: u64,
    /// Snapshots seen, on all nodes together. Between two looks there may have been more.
    pub snapshots: u64,
    /// Mean memory of each node in each quarter of the run, in bytes.
    pub memory: BTreeMap<u64, [f64; 4]>,
    /// Rows that do not hold what was acknowledged.
    pub lost: Vec<String>,
    /// What else went wrong.
    pub complaints: Vec<String>,
}

impl Report {
    /// Whether anything went wrong.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.lost.is_empty() && self.complaints.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { written, failed, unknown, restarts, snapshots, .. } = self;
        writeln!(f, "writes: {written} acknowledged, {failed} failed, {unknown} unknown")?;
        writeln!(f, "restarts: {restarts}; snapshots: at least {snapshots}")?;
        for (node, quarters) in &self.memory {
            let quarters: Vec<_> = quarters.iter().map(|bytes| format!("{:.0}", bytes / MIB)).collect();
            writeln!(f, "node {node}: mean memory by quarter, MiB: {}", quarters.join(", "))?;
        }
        writeln!(f, "lost writes: {}", self.lost.len())?;
        self.lost.iter().take(20).try_for_each(|lost| writeln!(f, "LOST: {lost}"))?;
        self.complaints.iter().try_for_each(|complaint| writeln!(f, "FAILED: {complaint}"))
    }
}

/// What may be in a row.
#[derive(Debug, Default, Clone)]
struct Slot {
    acknowledged: Option<u64>,
    /// These may be written at any later time.
    unknown: Vec<u64>,
}

#[derive(Default)]
struct Counts {
    written: AtomicU64,
    failed: AtomicU64,
    unknown: AtomicU64,
}

/// Runs a plan.
///
/// # Panics
/// When the cluster cannot be set up.
pub async fn run(plan: Plan) -> Report {
    let options = store_cluster::Options {
        nodes: NODES,
        snapshot_every: plan.snapshot_every,
        keep_entries: plan.snapshot_every / 4,
        deadline: PATIENCE - Duration::from_secs(1),
        stale_reads: false,
        small_disk: None,
        fake_clocks: false,
    };
    let mut cluster = StoreCluster::start(options).await;
    let (counts, (stop, stopped)) = (Arc::<Counts>::default(), watch::channel(false));
    let writers: Vec<JoinHandle<Vec<Slot>>> = (0..plan.writers)
        .map(|number| tokio::spawn(write(number, cluster.addresses(), Arc::clone(&counts), stopped.clone())))
        .collect();

    let mut watching = Watching::default();
    let (restarts, mut complaints) = disturb(&mut cluster, &plan, &counts, &mut watching).await;
    stop.send_replace(true);
    let mut slots = Vec::new();
    for writer in writers {
        slots.push(writer.await.unwrap());
    }
    for id in cluster.ids() {
        if !cluster.nodes()[&id].runs() {
            cluster.run(id);
        }
    }
    complaints.extend(cluster.converge(CONVERGED).await.err());
    let lost = compare(&cluster, &slots).await;
    let memory = watching.quarters();
    complaints.extend(memory.iter().filter_map(|(node, quarters)| leak(*node, quarters)));
    if watching.snapshots == 0 {
        complaints.push("no snapshot was taken: the run was too short to show anything".into());
    }
    complaints.extend(cluster.ended().into_iter().map(|(id, how)| format!("node {id} ended: {how}")));
    if !complaints.is_empty() || !lost.is_empty() {
        let folder = std::env::temp_dir().join("mezite-soak");
        cluster.save_logs(&folder);
        eprintln!("logs: {}", folder.display());
    }
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    Report {
        written: count(&counts.written),
        failed: count(&counts.failed),
        unknown: count(&counts.unknown),
        restarts,
        snapshots: watching.snapshots,
        memory,
        lost,
        complaints,
    }
}

/// Restarts nodes and looks at all of them until it is time.
async fn disturb(
    cluster: &mut StoreCluster,
    plan: &Plan,
    counts: &Counts,
    watching: &mut Watching,
) -> (u64, Vec<String>) {
    let (started, mut restarts, mut complaints) = (Instant::now(), 0, Vec::new());
    let mut ticks = tokio::time::interval(SAMPLE_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut next_restart = started + RESTART_EVERY;
    while started.elapsed() < plan.time && complaints.is_empty() {
        ticks.tick().await;
        watching.look(cluster, started.elapsed(), counts).await;
        complaints.extend(cluster.ended().into_iter().map(|(id, how)| format!("node {id} ended: {how}")));
        if Instant::now() < next_restart {
            continue;
        }
        next_restart += RESTART_EVERY;
        restarts += 1;
        // In turn, killed and told to stop in turn; and now and then the first one has to stop leading.
        if restarts % 3 == 0 && cluster.leader().await == Some(1) {
            cluster.ask(1, &Request::StepDown, PATIENCE).await;
        }
        let victim = 2 + restarts % (NODES - 1);
        if (restarts / 2) % 2 == 0 {
            cluster.kill(victim);
        } else {
            complaints.extend(cluster.stop(victim).await.err());
        }
        cluster.run(victim);
    }
    (restarts, complaints)
}

/// What was seen of the nodes over time.
#[derive(Default)]
struct Watching {
    samples: BTreeMap<u64, Vec<f64>>,
    snapshot_indexes: BTreeMap<u64, u64>,
    snapshots: u64,
    looks: u32,
    /// When a line was printed last, and what had been written by then.
    printed: (Duration, u64),
}

impl Watching {
    async fn look(&mut self, cluster: &StoreCluster, elapsed: Duration, counts: &Counts) {
        let mut line = String::new();
        for (id, node) in cluster.nodes() {
            let Some(memory) = node.pid().and_then(resident) else { continue };
            self.samples.entry(*id).or_default().push(memory);
            let Some(status) = cluster.status(*id).await else { continue };
            let last = self.snapshot_indexes.entry(*id).or_default();
            if status.snapshot_index > *last {
                *last = status.snapshot_index;
                self.snapshots += 1;
            }
            line += &format!(
                "  node {id}: {:4.0} MiB, disk {:4.0} MiB, applied {}, snapshot {}",
                memory / MIB,
                status.database_size as f64 / MIB,
                status.applied_index,
                status.snapshot_index
            );
        }
        if self.looks.is_multiple_of(LINE_EVERY) {
            let written = counts.written.load(Ordering::Relaxed);
            // A look takes longer while a node is away.
            let (since, before) = std::mem::replace(&mut self.printed, (elapsed, written));
            let rate = (written - before) as f64 / (elapsed - since).as_secs_f64().max(f64::EPSILON);
            println!("{:5.0} s  {rate:6.0} writes/s{line}", elapsed.as_secs_f64());
        }
        self.looks += 1;
    }

    fn quarters(&self) -> BTreeMap<u64, [f64; 4]> {
        let mean = |samples: &[f64]| samples.iter().sum::<f64>() / samples.len().max(1) as f64;
        let quarters = |samples: &Vec<f64>| {
            let at = |quarter: usize| samples.len() * quarter / 4;
            [0, 1, 2, 3].map(|quarter| mean(&samples[at(quarter)..at(quarter + 1)]))
        };
        self.samples.iter().map(|(id, samples)| (*id, quarters(samples))).collect()
    }
}

/// Says so when memory grows.
fn leak(node: u64, [_, second, _, last]: &[f64; 4]) -> Option<String> {
    let bound = second * MAX_GROWTH.0 + MAX_GROWTH.1;
    let grew = || format!("node {node} needs {:.0} MiB after {:.0} MiB", last / MIB, second / MIB);
    (*last > bound).then(grew)
}

/// Bytes of memory that a process has.
fn resident(pid: u32) -> Option<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024.0)
}

fn key(writer: u64, slot: u64) -> String {
    format!("k/{writer:04}/{slot:06}")
}

/// Writes its rows in turn, through one node until that one fails.
async fn write(
    number: u64,
    addresses: Addresses,
    counts: Arc<Counts>,
    stopped: watch::Receiver<bool>,
) -> Vec<Slot> {
    let mut slots = vec![Slot::default(); usize::try_from(SLOTS).unwrap()];
    let (mut turn, mut node) = (number as usize, None);
    for value in 1.. {
        if *stopped.borrow() {
            break;
        }
        let at = value % SLOTS;
        let control = node.get_or_insert_with(|| {
            let addresses = addresses.borrow();
            Control::new(&addresses[turn % addresses.len()].1)
        });
        let request = Request::Put { key: key(number, at), value, padding: PADDING };
        let slot = &mut slots[usize::try_from(at).unwrap()];
        let counter = match control.ask(&request, PATIENCE).await {
            Answer::Written { .. } => {
                slot.acknowledged = Some(value);
                &counts.written
            }
            answer => {
                (node, turn) = (None, turn + 1);
                tokio::time::sleep(Duration::from_millis(20)).await;
                if matches!(answer, Answer::Unknown { .. }) {
                    slot.unknown.push(value);
                    &counts.unknown
                } else {
                    &counts.failed
                }
            }
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
    slots
}

/// Rows that do not hold what they must, at any node.
async fn compare(cluster: &StoreCluster, slots: &[Vec<Slot>]) -> Vec<String> {
    let mut lost = Vec::new();
    for id in cluster.ids() {
        let request = Request::Scan { prefix: "k/".into() };
        let rows: BTreeMap<_, _> = match cluster.ask(id, &request, CONVERGED).await {
            Answer::Rows { rows, .. } => rows.into_iter().collect(),
            other => {
                lost.push(format!("node {id} does not say what it has: {other:?}"));
                continue;
            }
        };
        let mut known = BTreeSet::new();
        for (writer, slots) in (0..).zip(slots) {
            for (place, slot) in (0..).zip(slots) {
                let key = key(writer, place);
                let found = rows.get(&key).copied();
                if !is_sound(slot, found) {
                    lost.push(format!("node {id}: {key} holds {found:?} after {slot:?}"));
                }
                known.insert(key);
            }
        }
        lost.extend(rows.keys().filter(|key| !known.contains(*key)).map(|key| format!("node {id}: {key}")));
    }
    lost
}

/// Whether a row may hold this.
fn is_sound(slot: &Slot, found: Option<u64>) -> bool {
    found == slot.acknowledged || found.is_some_and(|found| slot.unknown.contains(&found))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_holds_what_was_acknowledged_or_what_may_have_been_written() {
        let slot = Slot { acknowledged: Some(5), unknown: vec![4, 6] };
        for (found, sound) in
            [(Some(5), true), (Some(4), true), (Some(6), true), (Some(3), false), (None, false)]
        {
            assert_eq!(is_sound(&slot, found), sound, "{found:?}");
        }
        assert!(is_sound(&Slot::default(), None) && !is_sound(&Slot::default(), Some(1)));
    }

    #[test]
    fn memory_that_grows_is_reported() {
        let mut watching = Watching::default();
        let grows = (0..400).map(|second| f64::from(second) * MIB).collect();
        let rises_and_stays = (0..400).map(|second| f64::from(second.min(100)) * MIB).collect();
        watching.samples = BTreeMap::from([(1, grows), (2, rises_and_stays)]);
        let quarters = watching.quarters();
        assert!(leak(1, &quarters[&1]).is_some(), "{quarters:?}");
        assert_eq!(leak(2, &quarters[&2]), None);
        assert!(resident(std::process::id()).unwrap() > MIB);
    }
}
