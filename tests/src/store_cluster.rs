//! Nodes of the replicated store as processes, each behind its proxy.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use nix::sys::signal::Signal;
use raft_store::peer_dns_name;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::sync::watch;

use crate::{
    Port, Process, Scratch, binary,
    control::{Answer, Control, NodeConfig, NodeStatus, Request},
    eventually,
    eventually::Ticks,
    proxy::{Links, Proxy},
};

/// Name of every cluster here.
const CLUSTER: &str = "store-test";
/// A debug build on a loaded machine takes its time.
const READY: Duration = Duration::from_secs(60);
/// A node is given so long to hand over and stop.
const STOPPED: Duration = Duration::from_secs(30);
/// How long a node may take to say how it is.
const STATUS: Duration = Duration::from_secs(1);
/// The library that fakes a clock, where Debian has it.
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";
/// Size of the small disk: far more than the store needs, and soon full.
const SMALL_DISK: &str = "size=256m";

/// How a cluster is made.
#[derive(Debug, Clone)]
pub struct Options {
    /// Voters at first.
    pub nodes: u64,
    /// Log entries between two snapshots.
    pub snapshot_every: u64,
    /// Log entries that are kept although a snapshot has them.
    pub keep_entries: u64,
    /// Deadline of each call to a node.
    pub deadline: Duration,
    /// A mutation, to see that the checks find it.
    pub stale_reads: bool,
    /// Which node has a small disk of its own, where that can be had.
    pub small_disk: Option<u64>,
    /// Whether clocks can be faked, where that can be had.
    pub fake_clocks: bool,
}

/// A node: its ports and its folder for good, its process while it runs.
#[derive(Debug)]
pub struct StoreNode {
    process: Option<Process>,
    id: u64,
    dir: PathBuf,
    control: Port,
    peer: Port,
    front: Port,
    disk: Option<SmallDisk>,
    stopped: bool,
    clock: bool,
    _proxy: Proxy,
}

impl StoreNode {
    /// host:port of its control protocol.
    #[must_use]
    pub fn control(&self) -> String {
        self.control.address()
    }

    /// Whether its process should be there.
    #[must_use]
    pub fn runs(&self) -> bool {
        self.process.is_some()
    }

    /// Its process id, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// Its small disk, if it has one.
    #[must_use]
    pub fn small_disk(&self) -> Option<&SmallDisk> {
        self.disk.as_ref()
    }

    /// Where it logs.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.dir.join("log")
    }
}

/// A small file system in memory.
#[derive(Debug)]
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts one. `None`: this user may not.
    fn mount(at: &Path) -> Option<Self> {
        fs::create_dir_all(at).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", SMALL_DISK, "tmpfs"]).arg(at);
        let mounted =
            nix::unistd::geteuid().is_root() && mount.output().is_ok_and(|out| out.status.success());
        mounted.then(|| Self(at.to_owned()))
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }

    /// Takes all the space that is left.
    ///
    /// # Panics
    /// When it cannot be written to for another reason.
    pub fn fill(&self) {
        use std::io::Write;
        let mut file = fs::File::create(self.filler()).unwrap();
        let block = vec![0; 64 << 10];
        let error = loop {
            if let Err(error) = file.write_all(&block) {
                break error;
            }
        };
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull, "{error}");
    }

    /// Whether all of it is taken.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.filler().exists()
    }

    /// Gives it back.
    pub fn free(&self) {
        let _ = fs::remove_file(self.filler());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// Writes a node's certificate, key and CA to files.
    fn issue(&self, node_id: u64, dir: &Path) -> [PathBuf; 3] {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([peer_dns_name(CLUSTER, node_id)]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        let files = ["certificate.pem", "key.pem", "authority.pem"].map(|name| dir.join(name));
        for (file, pem) in files.iter().zip([&certificate, &key.serialize_pem(), &self.pem]) {
            fs::write(file, pem).unwrap();
        }
        files
    }
}

/// The nodes that clients may ask: ids and control addresses.
pub type Addresses = watch::Receiver<Vec<(u64, String)>>;

/// A cluster.
pub struct StoreCluster {
    // The nodes go before the folder that they are in.
    nodes: BTreeMap<u64, StoreNode>,
    addresses: watch::Sender<Vec<(u64, String)>>,
    links: Links,
    authority: Authority,
    options: Options,
    next_id: u64,
    dir: Scratch,
}

impl StoreCluster {
    /// Starts a cluster, and waits until all of its nodes vote.
    ///
    /// # Panics
    /// When they do not.
    pub async fn start(options: Options) -> Self {
        let mut cluster = Self {
            nodes: BTreeMap::new(),
            addresses: watch::channel(Vec::new()).0,
            links: Links::default(),
            authority: Authority::new(),
            next_id: 1,
            options,
            dir: Scratch::new(),
        };
        for _ in 0..cluster.options.nodes {
            let id = cluster.add().await;
            if id == 1 {
                eventually("the first node is made one", READY, async || {
                    match cluster.ask(1, &Request::Initialize, READY).await {
                        Answer::Done => Ok(()),
                        other => Err(format!("{other:?}")),
                    }
                })
                .await;
            }
            // On all of them, and for good: between the two steps of the change, the others need the leader.
            eventually(&format!("node {id} votes"), READY, async || {
                for known_by in cluster.ids() {
                    let status = cluster.status(known_by).await.ok_or("no answer")?;
                    let votes = status.leader_id.is_some() && status.members.get(&id) == Some(&true);
                    if !votes || status.joint {
                        return Err("not yet");
                    }
                }
                Ok(())
            })
            .await;
        }
        cluster
    }

    /// Starts a node that will ask to become a voter. Answers its id.
    pub async fn add(&mut self) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        let dir = self.dir.path().join(format!("node-{id}"));
        fs::create_dir(&dir).unwrap();
        let wanted = self.options.small_disk == Some(id);
        let disk = wanted.then(|| SmallDisk::mount(&dir.join("data"))).flatten();
        let (control, peer, front) = (Port::lease(), Port::lease(), Port::lease());
        let proxy = Proxy::start(&self.links, id, front.number(), peer.number()).await;
        let clock = self.options.fake_clocks && Path::new(FAKETIME).exists();
        let node = StoreNode {
            process: None,
            id,
            dir,
            control,
            peer,
            front,
            disk,
            stopped: false,
            clock,
            _proxy: proxy,
        };
        self.nodes.insert(id, node);
        self.set_clock(id, 0);
        self.run(id);
        id
    }

    /// Starts the process of a node that does not run.
    ///
    /// # Panics
    /// When there is no such node, or its program is missing.
    pub fn run(&mut self, id: u64) {
        let others = self.nodes.values().filter(|node| node.id != id);
        let members = others.map(|node| (node.id, node.front.address())).collect();
        let node = self.nodes.get_mut(&id).unwrap();
        let config = NodeConfig {
            node_id: id,
            cluster_id: CLUSTER.into(),
            data_dir: node.dir.join("data"),
            listen: node.peer.address(),
            advertise: node.front.address(),
            control: node.control.address(),
            identity: self.authority.issue(id, &node.dir),
            members,
            snapshot_every: self.options.snapshot_every,
            keep_entries: self.options.keep_entries,
            deadline_ms: u64::try_from(self.options.deadline.as_millis()).unwrap(),
            stale_reads: self.options.stale_reads,
        };
        let path = node.dir.join("config.json");
        fs::write(&path, serde_json::to_vec_pretty(&config).unwrap()).unwrap();
        let mut command = Command::new(binary("store-node"));
        command.arg(path);
        if node.clock {
            command.env("LD_PRELOAD", FAKETIME).env("FAKETIME_TIMESTAMP_FILE", node.dir.join("clock"));
            command.env("FAKETIME_CACHE_DURATION", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        }
        let process = Process::spawn(&format!("node-{id}"), command, &node.log());
        self.links.runs(id, process.id());
        node.process = Some(process);
        node.stopped = false;
        self.publish();
    }

    /// Tells clients whom to ask. Those that are down are among them: clients do not know.
    fn publish(&self) {
        let nodes = self.nodes.values().map(|node| (node.id, node.control.address()));
        self.addresses.send_replace(nodes.collect());
    }

    /// Whom clients may ask.
    #[must_use]
    pub fn addresses(&self) -> Addresses {
        self.addresses.subscribe()
    }

    /// The network between the nodes.
    #[must_use]
    pub fn links(&self) -> &Links {
        &self.links
    }

    /// The nodes.
    #[must_use]
    pub fn nodes(&self) -> &BTreeMap<u64, StoreNode> {
        &self.nodes
    }

    /// Their ids.
    #[must_use]
    pub fn ids(&self) -> Vec<u64> {
        self.nodes.keys().copied().collect()
    }

    /// Ends a node at once, as `kill -9` does.
    pub fn kill(&mut self, id: u64) {
        if let Some(mut process) = self.nodes.get_mut(&id).and_then(|node| node.process.take()) {
            process.kill();
        }
    }

    /// Has a node hand over and stop.
    ///
    /// # Errors
    /// When it does not stop in time, or not well. It is gone then too.
    pub async fn stop(&mut self, id: u64) -> Result<(), String> {
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        let Some(mut process) = node.process.take() else { return Ok(()) };
        // What a full disk does to it is another matter.
        let has_space = !node.disk.as_ref().is_some_and(SmallDisk::is_full);
        process.signal(Signal::SIGTERM);
        let mut ticks = Ticks::new(STOPPED);
        loop {
            match process.ended() {
                Some(status) if status.success() || !has_space => return Ok(()),
                Some(status) => return Err(format!("node {id} was told to stop and ended with {status}")),
                None if ticks.next().await => {}
                None => return Err(format!("node {id} was told to stop and has not within {STOPPED:?}")),
            }
        }
    }

    /// Lets a node not run, or run on.
    pub fn pause(&mut self, id: u64, pause: bool) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if let Some(process) = node.process.as_ref().filter(|_| node.stopped != pause) {
            process.signal(if pause { Signal::SIGSTOP } else { Signal::SIGCONT });
            node.stopped = pause;
        }
    }

    /// Sets a node's clock so many seconds off. Answers whether it can be.
    ///
    /// # Panics
    /// When the file that says so cannot be written.
    pub fn set_clock(&self, id: u64, seconds: i64) -> bool {
        let Some(node) = self.nodes.get(&id).filter(|node| node.clock) else { return false };
        // The library reads the file at any time, so it must be whole at any time.
        let new = node.dir.join("clock.new");
        fs::write(&new, format!("{seconds:+}\n")).unwrap();
        fs::rename(&new, node.dir.join("clock")).unwrap();
        true
    }

    /// Whether clocks can be set.
    #[must_use]
    pub fn has_clocks(&self) -> bool {
        self.nodes.values().any(|node| node.clock)
    }

    /// Forgets a node that was removed from the cluster.
    pub fn forget(&mut self, id: u64) {
        self.kill(id);
        if let Some(node) = self.nodes.remove(&id) {
            // Its log stays.
            drop(node.disk);
        }
        self.publish();
    }

    /// Nodes that have ended by themselves, and how. They count as stopped from then on.
    ///
    /// # Panics
    /// When the system does not say.
    pub fn ended(&mut self) -> Vec<(u64, String)> {
        let mut ended = Vec::new();
        for node in self.nodes.values_mut() {
            if let Some(status) = node.process.as_mut().and_then(Process::ended) {
                node.process = None;
                ended.push((node.id, status.to_string()));
            }
        }
        ended
    }

    /// Asks a node.
    ///
    /// # Panics
    /// When there is no such node.
    pub async fn ask(&self, id: u64, request: &Request, patience: Duration) -> Answer {
        Control::new(&self.nodes[&id].control()).ask(request, patience).await
    }

    /// How a node is, if it says so soon.
    pub async fn status(&self, id: u64) -> Option<NodeStatus> {
        match self.ask(id, &Request::Status, STATUS).await {
            Answer::Status(status) => Some(status),
            _ => None,
        }
    }

    /// The node that leads in the highest term, as far as the nodes know.
    pub async fn leader(&self) -> Option<u64> {
        let mut newest = None;
        for id in self.ids() {
            if let Some(status) = self.status(id).await
                && status.leader_id == Some(id)
            {
                newest = newest.max(Some((status.term, id)));
            }
        }
        newest.map(|(_, id)| id)
    }

    /// Waits until all nodes hold the same state, and answers its log index, or what each has instead.
    ///
    /// # Errors
    /// When the states differ at the same index, or do not meet in time.
    pub async fn converge(&self, within: Duration) -> Result<u64, String> {
        let mut ticks = Ticks::new(within);
        loop {
            let mut seen = BTreeMap::new();
            for id in self.ids() {
                seen.insert(id, self.ask(id, &Request::Hash, within).await);
            }
            let at = |answer: &Answer| match answer {
                Answer::Hash { applied_index, .. } => Some(*applied_index),
                _ => None,
            };
            let first = seen.values().next().and_then(at);
            if let Some(index) = first.filter(|_| seen.values().all(|answer| at(answer) == first)) {
                let equal = seen.values().zip(seen.values().skip(1)).all(|(one, other)| one == other);
                return if equal { Ok(index) } else { Err(format!("the states differ: {seen:?}")) };
            }
            if !ticks.next().await {
                return Err(format!("the nodes do not come to the same state: {seen:?}"));
            }
        }
    }

    /// Copies the nodes' logs, also those of nodes that are gone, to a folder.
    ///
    /// # Panics
    /// When that is not possible.
    pub fn save_logs(&self, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(self.dir.path()).unwrap().flatten() {
            let name = entry.file_name();
            fs::copy(entry.path().join("log"), to.join(name).with_extension("log")).unwrap();
        }
    }
}
