//! Three members of either system as processes on loopback, and what they cost.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};
use mezite_e2e::{Port, Process, eventually, http, tied};
use rustls::ClientConfig;

use crate::{
    api::{PutRequest, StatusRequest, kv_client::KvClient, maintenance_client::MaintenanceClient},
    certificates::Certificates,
    load,
};

/// A cluster is up, or a member back, within this.
const PATIENCE: Duration = Duration::from_secs(60);
/// Ticks of a process's clock in a second: Linux tells user space in hundredths whatever its own clock does.
const TICKS: f64 = 100.0;

/// Whose program it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Ours.
    Store,
    /// Debian's etcd.
    Etcd,
    /// Ours without a store: one member.
    Bare,
}

struct Ports {
    api: Port,
    peer: Port,
    metrics: Port,
}

/// A cluster that runs.
pub(crate) struct System {
    kind: Kind,
    folder: PathBuf,
    certificates: Certificates,
    ports: Vec<Ports>,
    processes: Vec<Process>,
    tls: Arc<ClientConfig>,
}

/// What the members have used since they began.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Used {
    /// Processor time of all of them, in seconds.
    pub(crate) cpu: f64,
    /// Syncs of the leader's log.
    pub(crate) fsyncs: f64,
}

impl System {
    /// Starts one whose data is below `folder`, and waits until it takes writes.
    pub(crate) async fn start(kind: Kind, folder: &Path) -> Result<Self> {
        let certificates = Certificates::make(&folder.join("certificates"))?;
        let size = if kind == Kind::Bare { 1 } else { 3 };
        let lease = |_| Ports { api: Port::lease(), peer: Port::lease(), metrics: Port::lease() };
        let tls = Arc::new(certificates.client_config()?);
        let ports: Vec<_> = (0..size).map(lease).collect();
        let folder = folder.to_owned();
        let mut system = Self { kind, folder, certificates, ports, processes: Vec::new(), tls };
        for index in 0..size {
            let process = system.spawn(index)?;
            system.processes.push(process);
        }
        for index in 0..size {
            system.wait_for(index).await;
        }
        Ok(system)
    }

    fn spawn(&self, index: usize) -> Result<Process> {
        let name = format!("{:?}-{}", self.kind, index + 1).to_lowercase();
        let command = match self.kind {
            Kind::Etcd => self.etcd(index),
            Kind::Store | Kind::Bare => self.store(index)?,
        };
        Ok(Process::spawn(&name, command, &self.folder.join(format!("{name}.log"))))
    }

    fn data(&self, index: usize) -> PathBuf {
        self.folder.join(format!("data-{}", index + 1))
    }

    fn store(&self, index: usize) -> io::Result<Command> {
        let mut command = tied(std::env::current_exe()?);
        let peers: Vec<_> = self.ports.iter().map(|ports| ports.peer.address()).collect();
        let id = (index + 1).to_string();
        command.args(["node", "--id", &id, "--peers", &peers.join(",")]);
        command.args(["--listen", &self.ports[index].api.address()]);
        command.args(["--metrics", &self.ports[index].metrics.address()]);
        command
            .arg("--data")
            .arg(self.data(index))
            .arg("--certificates")
            .arg(self.folder.join("certificates"));
        if self.kind == Kind::Bare {
            command.arg("--bare");
        }
        Ok(command)
    }

    /// With its defaults, but for names, addresses and TLS.
    fn etcd(&self, index: usize) -> Command {
        let Ports { api, peer, metrics } = &self.ports[index];
        let name = |index: usize| format!("m{}", index + 1);
        let members = self.ports.iter().enumerate();
        let members: Vec<_> = members
            .map(|(index, ports)| format!("{}=https://{}", name(index), ports.peer.address()))
            .collect();
        let (api, peer) = (format!("https://{}", api.address()), format!("https://{}", peer.address()));
        let mut command = tied("etcd");
        command.args(["--name", &name(index), "--initial-cluster", &members.join(",")]);
        command.args(["--listen-client-urls", &api, "--advertise-client-urls", &api]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--listen-metrics-urls", &format!("http://{}", metrics.address())]);
        command.arg("--data-dir").arg(self.data(index));
        let id = index as u64 + 1;
        for prefix in ["--", "--peer-"] {
            command.arg(format!("{prefix}cert-file")).arg(self.certificates.certificate(id));
            command.arg(format!("{prefix}key-file")).arg(self.certificates.key(id));
        }
        // For clients it would ask for certificates of them.
        command.arg("--peer-trusted-ca-file").arg(self.certificates.authority());
        command.arg("--peer-client-cert-auth");
        command
    }

    /// The TLS of its clients.
    pub(crate) fn tls(&self) -> &Arc<ClientConfig> {
        &self.tls
    }

    /// Where its members serve clients.
    pub(crate) fn addresses(&self) -> Vec<String> {
        self.ports.iter().map(|ports| ports.api.address()).collect()
    }

    /// Where one of them does.
    pub(crate) fn address(&self, index: usize) -> String {
        self.ports[index].api.address()
    }

    /// Its id, and that of the leader that it knows.
    async fn status(&self, index: usize) -> Result<(u64, u64)> {
        let channel = load::connect(&self.address(index), &self.tls).await?;
        let status = MaintenanceClient::new(channel).status(StatusRequest {}).await?.into_inner();
        Ok((status.header.unwrap_or_default().member_id, status.leader))
    }

    /// Which member leads, as it says itself.
    pub(crate) async fn leader(&self) -> Result<usize> {
        if self.kind == Kind::Bare {
            return Ok(0);
        }
        for index in 0..self.ports.len() {
            match self.status(index).await {
                Ok((own, leader)) if own == leader => return Ok(index),
                _ => {}
            }
        }
        Err(anyhow!("nobody leads; see the logs in {}", self.folder.display()))
    }

    /// Waits until a member takes a write.
    async fn wait_for(&self, index: usize) {
        let put = async || {
            let channel = load::connect(&self.address(index), &self.tls).await?;
            let put =
                KvClient::new(channel).put(PutRequest { key: load::key(0), value: load::value() }).await;
            put.map(drop).map_err(anyhow::Error::from)
        };
        eventually("a member that takes writes", PATIENCE, put).await;
    }

    /// Ends a member as `kill -9` does.
    pub(crate) fn kill(&mut self, index: usize) {
        self.processes[index].kill();
    }

    /// Starts one that was killed, and waits until it takes writes again.
    pub(crate) async fn restart(&mut self, index: usize) -> Result<()> {
        self.processes[index] = self.spawn(index)?;
        self.wait_for(index).await;
        Ok(())
    }

    /// Resident memory of the largest member, in bytes.
    pub(crate) fn resident(&self) -> u64 {
        self.processes.iter().map(Process::resident_bytes).max().unwrap_or_default()
    }

    /// What it has used so far.
    pub(crate) async fn used(&self, leader: usize) -> Result<Used> {
        let mut cpu = 0.0;
        for process in &self.processes {
            cpu += cpu_seconds(&process.id().to_string())?;
        }
        let (_, page) = http::get(&self.ports[leader].metrics.address(), "/metrics").await?;
        let name = match self.kind {
            Kind::Etcd => "etcd_disk_wal_fsync_duration_seconds_count",
            Kind::Store | Kind::Bare => "raft_log_fsync_seconds_count",
        };
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        Ok(Used { cpu, fsyncs: line.unwrap_or_default() })
    }
}

/// Processor time of a process (`self`: this one) since its start, in seconds.
pub(crate) fn cpu_seconds(process: &str) -> Result<f64> {
    cpu_fields(process, 2)
}

/// As [`cpu_seconds`], with that of its children that have ended, and theirs.
pub(crate) fn cpu_seconds_of_all(process: &str) -> Result<f64> {
    cpu_fields(process, 4)
}

fn cpu_fields(process: &str, count: usize) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    // After the name, which may hold anything: field 3 and on. User time is field 14, system time field 15; those of its
    // children follow.
    let (_, rest) = stat.rsplit_once(") ").context("no stat")?;
    let ticks: f64 = rest.split(' ').skip(11).take(count).filter_map(|field| field.parse::<f64>().ok()).sum();
    Ok(ticks / TICKS)
}
