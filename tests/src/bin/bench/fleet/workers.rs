//! The processes that have the agents, as the one sees them that gives the orders.

use std::{
    env,
    process::{Child, Stdio},
};

use anyhow::{Context as _, Result, bail};
use mezite_e2e::{
    Cluster,
    fleet::{Beats, Share},
    resident_bytes, tied,
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    net::unix::pipe,
};

use super::worker::Order;
use crate::system::cpu_seconds;

/// All of them. They end with this.
pub(crate) struct Workers(Vec<Worker>);

struct Worker {
    child: Child,
    orders: pipe::Sender,
    answers: Lines<BufReader<pipe::Receiver>>,
}

impl Workers {
    /// Starts so many.
    pub(crate) fn start(count: usize) -> Result<Self> {
        Ok(Self((0..count).map(|_| Worker::start()).collect::<Result<_>>()?))
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// Has so many agents join, the same number from each worker.
    pub(crate) async fn join(&mut self, cluster: &Cluster, agents: usize) -> Result<()> {
        let shares = Share::split(cluster, agents, self.0.len()).await?;
        for (worker, share) in self.0.iter_mut().zip(shares) {
            worker.order(&Order::Join(share)).await?;
        }
        self.beats().await.map(drop)
    }

    /// Has all of them begin with this.
    pub(crate) async fn order(&mut self, order: &Order) -> Result<()> {
        for worker in &mut self.0 {
            worker.order(order).await?;
        }
        Ok(())
    }

    /// Waits until all have done what they were ordered: what became of the heartbeats of all.
    pub(crate) async fn beats(&mut self) -> Result<Beats> {
        let mut beats = Beats::default();
        for worker in &mut self.0 {
            beats.add(worker.answer().await?);
        }
        Ok(beats)
    }

    /// Processor time of all of them since they began, in seconds.
    pub(crate) fn cpu_seconds(&self) -> Result<f64> {
        self.0.iter().map(|worker| cpu_seconds(&worker.child.id().to_string())).sum()
    }

    /// Memory that each holds now, in bytes.
    pub(crate) fn resident_bytes(&self) -> impl Iterator<Item = u64> {
        self.0.iter().map(|worker| resident_bytes(worker.child.id()))
    }
}

impl Worker {
    fn start() -> Result<Self> {
        let mut command = tied(env::current_exe()?);
        let mut child = command.arg("worker").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (orders, answers) = (child.stdin.take(), child.stdout.take());
        let orders = pipe::Sender::from_owned_fd(orders.context("no standard input")?.into())?;
        let answers = pipe::Receiver::from_owned_fd(answers.context("no standard output")?.into())?;
        Ok(Self { child, orders, answers: BufReader::new(answers).lines() })
    }

    async fn order(&mut self, order: &Order) -> Result<()> {
        let line = serde_json::to_string(order)? + "\n";
        self.orders.write_all(line.as_bytes()).await.context("a worker has ended")
    }

    async fn answer(&mut self) -> Result<Beats> {
        match self.answers.next_line().await? {
            Some(line) => Ok(serde_json::from_str(&line)?),
            None => bail!("a worker has ended: {}", self.child.wait()?),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
