//! What is done to a cluster while clients work, all of it chosen by a seed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    path::Path,
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::{
    control::{Answer, Request},
    proxy::Rule,
    store_cluster::StoreCluster,
};

/// Voters that a change of the members leaves, at least and at most.
const MEMBERS: std::ops::RangeInclusive<usize> = 3..=5;
/// A change of the members is waited for so long. It may go on longer.
const CHANGE: Duration = Duration::from_secs(6);
/// Milliseconds for which a fault lasts.
const LASTS: std::ops::Range<u64> = 200..3_000;
/// Milliseconds between two faults.
const BETWEEN: std::ops::Range<u64> = 100..1_500;
/// Offsets of clocks, in seconds.
const OFFSETS: [i64; 8] = [-3_600, -120, -30, -2, 2, 30, 120, 3_600];

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A node is killed.
    Kill,
    /// All nodes are killed.
    KillAll,
    /// A node is told to stop.
    Restart,
    /// A node does not run for a while.
    Pause,
    /// The leader does not run for a while.
    PauseLeader,
    /// A node cannot be reached nor reach anyone.
    Isolate,
    /// A node's words do not arrive.
    Mute,
    /// A node does not hear.
    Deaf,
    /// Two nodes do not reach each other, or one does not the other.
    CutLink,
    /// The nodes are in two parts.
    Partition,
    /// Connections of a node break, and new ones do too.
    Refuse,
    /// All that a node sends and gets is late.
    Delay,
    /// A clock jumps.
    Clock,
    /// A node's disk is full.
    DiskFull,
    /// A node is added.
    Add,
    /// A node is removed.
    Remove,
    /// The leader hands over.
    StepDown,
}

/// All of them.
const ALL: [Kind; 17] = [
    Kind::Kill,
    Kind::KillAll,
    Kind::Restart,
    Kind::Pause,
    Kind::PauseLeader,
    Kind::Isolate,
    Kind::Mute,
    Kind::Deaf,
    Kind::CutLink,
    Kind::Partition,
    Kind::Refuse,
    Kind::Delay,
    Kind::Clock,
    Kind::DiskFull,
    Kind::Add,
    Kind::Remove,
    Kind::StepDown,
];

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Hurts a cluster and heals it.
pub(crate) struct Faults {
    random: StdRng,
    started: Instant,
    /// Kinds in the order in which they come next; each comes once in a round.
    round: Vec<Kind>,
    /// Nodes whose removal was asked for, and not confirmed.
    leaving: BTreeSet<u64>,
    /// Nodes whose full disks were freed the last time.
    freed: Vec<u64>,
    /// How many there were.
    pub(crate) counts: BTreeMap<Kind, u64>,
    /// What went wrong that must not.
    pub(crate) complaints: Vec<String>,
    /// Nodes that ended because their disk was full.
    pub(crate) full_disk_ends: u64,
}

/// Whether the end of a log is that of a node that ended itself for want of space.
fn says_no_space(log: &Path) -> bool {
    let log = fs::read_to_string(log).unwrap();
    log.lines().rev().take(20).any(|line| line.contains("No space left on device"))
}

impl Faults {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            random: StdRng::seed_from_u64(seed),
            started: Instant::now(),
            round: Vec::new(),
            leaving: BTreeSet::new(),
            freed: Vec::new(),
            counts: BTreeMap::new(),
            complaints: Vec::new(),
            full_disk_ends: 0,
        }
    }

    /// One fault after the other, sometimes two at once, until it is time.
    pub(crate) async fn run(&mut self, cluster: &mut StoreCluster, until: Instant) {
        while Instant::now() < until && self.complaints.is_empty() {
            self.wait(BETWEEN, until).await;
            self.begin(cluster).await;
            if self.random.random_range(0..3) == 0 {
                self.wait(0..500, until).await;
                self.begin(cluster).await;
            }
            self.wait(LASTS, until).await;
            self.heal(cluster).await;
        }
    }

    async fn wait(&mut self, milliseconds: std::ops::Range<u64>, until: Instant) {
        let time = Duration::from_millis(self.random.random_range(milliseconds));
        tokio::time::sleep(time.min(until.saturating_duration_since(Instant::now()))).await;
    }

    fn next(&mut self) -> Kind {
        if self.round.is_empty() {
            self.round = ALL.to_vec();
            for place in (1..self.round.len()).rev() {
                self.round.swap(place, self.random.random_range(0..=place));
            }
        }
        self.round.pop().unwrap()
    }

    fn say(&self, what: &str) {
        eprintln!("{:8.3} s  {what}", self.started.elapsed().as_secs_f64());
    }

    /// Begins the next fault.
    async fn begin(&mut self, cluster: &mut StoreCluster) {
        let kind = self.next();
        // The draws of a fault do not depend on what the cluster does, so that a seed gives the same plan again.
        let (draw, other) = (self.random.random::<u32>() as usize, self.random.random::<u32>() as usize);
        let ids = cluster.ids();
        let victim = ids[draw % ids.len()];
        let Some(detail) = self.apply(cluster, kind, victim, draw, other).await else { return };
        self.say(&format!("{kind} {detail}"));
        *self.counts.entry(kind).or_default() += 1;
    }

    /// Does it, and says to whom. `None`: it cannot be done here and now.
    async fn apply(
        &mut self,
        cluster: &mut StoreCluster,
        kind: Kind,
        victim: u64,
        draw: usize,
        other: usize,
    ) -> Option<String> {
        let others: Vec<_> = cluster.ids().into_iter().filter(|id| *id != victim).collect();
        let named = Some(format!("node {victim}"));
        match kind {
            Kind::Kill => {
                cluster.kill(victim);
                named
            }
            Kind::KillAll => {
                cluster.ids().into_iter().for_each(|id| cluster.kill(id));
                Some(String::new())
            }
            Kind::Restart => {
                cluster.pause(victim, false);
                self.complaints.extend(cluster.stop(victim).await.err());
                named
            }
            Kind::Pause => {
                cluster.pause(victim, true);
                named
            }
            Kind::PauseLeader => {
                let leader = cluster.leader().await?;
                cluster.pause(leader, true);
                Some(format!("node {leader}"))
            }
            Kind::Isolate => {
                set_all(cluster, victim, &others, (Rule::Hold, Rule::Hold));
                named
            }
            Kind::Mute => {
                set_all(cluster, victim, &others, (Rule::Hold, Rule::Pass));
                named
            }
            Kind::Deaf => {
                set_all(cluster, victim, &others, (Rule::Pass, Rule::Hold));
                named
            }
            Kind::CutLink => {
                let peer = others[other % others.len()];
                cluster.links().set(victim, peer, Rule::Hold);
                let both = draw & (1 << 20) != 0;
                if both {
                    cluster.links().set(peer, victim, Rule::Hold);
                }
                Some(format!("from node {victim} to {peer}{}", if both { " and back" } else { "" }))
            }
            Kind::Partition => Some(partition(cluster, draw, other)),
            Kind::Refuse => {
                set_all(cluster, victim, &others, (Rule::Refuse, Rule::Refuse));
                named
            }
            Kind::Delay => {
                let time = Duration::from_millis(5 + other as u64 % 200);
                set_all(cluster, victim, &others, (Rule::Delay(time), Rule::Delay(time)));
                Some(format!("node {victim} by {time:?}"))
            }
            Kind::Clock => {
                let seconds = OFFSETS[other % OFFSETS.len()];
                cluster.set_clock(victim, seconds).then(|| format!("node {victim} by {seconds} s"))
            }
            Kind::DiskFull => {
                let full = cluster.nodes().iter().find(|(_, node)| node.small_disk().is_some());
                let (id, node) = full.filter(|(_, node)| node.runs())?;
                node.small_disk()?.fill();
                Some(format!("node {id}"))
            }
            Kind::Add => self.add(cluster).await,
            Kind::Remove => self.remove(cluster, victim, &others, other).await,
            Kind::StepDown => {
                let leader = cluster.leader().await?;
                let answer = cluster.ask(leader, &Request::StepDown, CHANGE).await;
                Some(format!("node {leader}: {answer:?}"))
            }
        }
    }

    async fn add(&mut self, cluster: &mut StoreCluster) -> Option<String> {
        if cluster.nodes().len() >= *MEMBERS.end() {
            return None;
        }
        Some(format!("node {}", cluster.add().await))
    }

    async fn remove(
        &mut self,
        cluster: &mut StoreCluster,
        victim: u64,
        others: &[u64],
        other: usize,
    ) -> Option<String> {
        // One that asks to join is no member yet: without it there must be enough.
        let asked = others[other % others.len()];
        let members = cluster.status(asked).await?.members;
        let voters = members.iter().filter(|(id, votes)| **votes && !self.leaving.contains(id)).count();
        if voters <= *MEMBERS.start() || members.get(&victim) != Some(&true) {
            return None;
        }
        self.leaving.insert(victim);
        let answer = cluster.ask(asked, &Request::Remove { node_id: victim }, CHANGE).await;
        if answer == Answer::Done {
            self.leaving.remove(&victim);
            cluster.forget(victim);
        }
        Some(format!("node {victim} through {asked}: {answer:?}"))
    }

    /// Ends all faults but clocks that are off.
    pub(crate) async fn heal(&mut self, cluster: &mut StoreCluster) {
        cluster.links().heal();
        let disk_was_full = self.free_disks(cluster);
        // One that met the full disk just before it was freed the last time may have been about to end.
        let freed_before = std::mem::replace(&mut self.freed, disk_was_full.clone());
        for (id, how) in cluster.ended() {
            let disk_was_full = disk_was_full.contains(&id) || freed_before.contains(&id);
            if disk_was_full && says_no_space(&cluster.nodes()[&id].log()) {
                self.full_disk_ends += 1;
                self.say(&format!("node {id} had ended for want of space: {how}"));
            } else {
                self.complaints.push(format!("node {id} ended by itself: {how}"));
            }
        }
        for id in cluster.ids() {
            cluster.pause(id, false);
            if !cluster.nodes()[&id].runs() {
                cluster.run(id);
            }
        }
        self.settle_removals(cluster).await;
    }

    /// Frees full disks. Answers whose they are.
    fn free_disks(&self, cluster: &StoreCluster) -> Vec<u64> {
        let disks = cluster.nodes().iter().filter_map(|(id, node)| Some((*id, node.small_disk()?)));
        let freed = disks.filter(|(_, disk)| disk.is_full()).map(|(id, disk)| {
            disk.free();
            id
        });
        freed.collect()
    }

    /// A removal whose answer was lost may have been made: such a node is of no use any more.
    async fn settle_removals(&mut self, cluster: &mut StoreCluster) {
        for id in std::mem::take(&mut self.leaving) {
            let Some(asked) = cluster.ids().into_iter().find(|other| *other != id) else { return };
            match cluster.ask(asked, &Request::Remove { node_id: id }, CHANGE).await {
                Answer::Done => {
                    self.say(&format!("node {id} is removed after all"));
                    cluster.forget(id);
                }
                _ => drop(self.leaving.insert(id)),
            }
        }
    }

    /// Removals that are not confirmed yet.
    pub(crate) fn unsettled(&self) -> usize {
        self.leaving.len()
    }
}

/// Sets the rules for what a node sends and for what it gets.
fn set_all(cluster: &StoreCluster, node: u64, others: &[u64], (sent, got): (Rule, Rule)) {
    for other in others {
        cluster.links().set(node, *other, sent);
        cluster.links().set(*other, node, got);
    }
}

/// Divides the nodes in two, by the bits of a draw.
fn partition(cluster: &StoreCluster, draw: usize, other: usize) -> String {
    let ids = cluster.ids();
    // Neither part is empty.
    let bits = 1 + draw % ((1 << ids.len()) - 2);
    let (one, two): (Vec<_>, Vec<_>) =
        ids.iter().enumerate().partition(|(place, _)| bits & (1 << place) != 0);
    let [one, two] = [one, two].map(|part| part.into_iter().map(|(_, id)| *id).collect::<Vec<_>>());
    let rule = if other.is_multiple_of(2) { Rule::Hold } else { Rule::Refuse };
    for node in &one {
        set_all(cluster, *node, &two, (rule, rule));
    }
    format!("{one:?} from {two:?}: {rule:?}")
}
