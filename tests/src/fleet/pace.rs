//! Agents that report one after the other, at a rate that does not depend on how fast they are answered.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use super::Agent;
use crate::percentile;

/// What became of heartbeats.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Beats {
    /// From the first attempt to the answer, in microseconds.
    times: Vec<u32>,
    /// Those that were answered by another node than the one that was asked first.
    pub moved: usize,
    /// Those that were given up.
    pub failed: usize,
    /// Why the first one failed that did.
    pub why: Option<String>,
}

impl Beats {
    /// Takes note of one that began then, and of how often it failed before.
    pub fn note(&mut self, begun: Instant, done: Result<u32>) {
        match done {
            Ok(moves) => {
                self.moved += usize::from(moves > 0);
                self.times.push(u32::try_from(begun.elapsed().as_micros()).unwrap_or(u32::MAX));
            }
            Err(error) => {
                self.failed += 1;
                self.why.get_or_insert_with(|| format!("{error:#}"));
            }
        }
    }

    /// Adds others.
    pub fn add(&mut self, other: Self) {
        self.times.extend(other.times);
        self.moved += other.moved;
        self.failed += other.failed;
        self.why = self.why.take().or(other.why);
    }

    /// How many were answered.
    #[must_use]
    pub fn answered(&self) -> usize {
        self.times.len()
    }

    /// How long half of them, and 99 of a hundred, took at most, in milliseconds.
    pub fn percentiles(&mut self) -> [f64; 2] {
        self.times.sort_unstable();
        [50, 99].map(|share| f64::from(percentile(&self.times, share).unwrap_or_default()) / 1000.0)
    }

    /// For people; they came in so many seconds.
    pub fn summary(&mut self, time: f64) -> String {
        let [p50, p99] = self.percentiles();
        let why = self.why.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
        format!(
            "{:.0} heartbeats/s, p50 {p50:.0} ms, p99 {p99:.0} ms, {} moved, {} failed{why}",
            self.times.len() as f64 / time,
            self.moved,
            self.failed,
        )
    }
}

/// Reports that are made at a steady rate.
#[derive(Debug)]
pub struct Pace {
    running: JoinSet<(Instant, Result<u32>)>,
    begun: Instant,
    /// From one to the next.
    step: Duration,
    next: usize,
}

impl Pace {
    /// One each `step`, from now on.
    #[must_use]
    pub fn new(step: Duration) -> Self {
        Self { running: JoinSet::new(), begun: Instant::now(), step, next: 0 }
    }

    /// Has the agents report in turn until then, but those that are silent.
    pub async fn until<F>(
        &mut self,
        ends: Instant,
        agents: &[Arc<Agent>],
        beat: impl Fn(Arc<Agent>) -> F,
    ) -> Beats
    where
        F: Future<Output = Result<u32>> + Send + 'static,
    {
        let mut beats = Beats::default();
        loop {
            let due = self.begun + self.step.mul_f64(self.next as f64);
            if due >= ends {
                tokio::time::sleep_until(ends.into()).await;
                return beats;
            }
            tokio::time::sleep_until(due.into()).await;
            let agent = &agents[self.next % agents.len()];
            self.next += 1;
            if !agent.is_silent() {
                let (begun, beat) = (Instant::now(), beat(Arc::clone(agent)));
                self.running.spawn(async move { (begun, beat.await) });
            }
            while let Some(Ok((begun, done))) = self.running.try_join_next() {
                beats.note(begun, done);
            }
        }
    }

    /// Waits for those that are not answered yet.
    pub async fn rest(mut self) -> Beats {
        let mut beats = Beats::default();
        while let Some(Ok((begun, done))) = self.running.join_next().await {
            beats.note(begun, done);
        }
        beats
    }
}
