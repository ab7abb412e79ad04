//! What runs beside the calls: from the node's start until it stops.

use std::future::Future;

use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Runs jobs, and ends them when the node stops.
#[derive(Debug, Default)]
pub(crate) struct Beside {
    jobs: TaskTracker,
    stop: CancellationToken,
}

impl Beside {
    /// Runs a job until it is done or the node stops, wherever it waits then: a job may wait for a quorum that is gone,
    /// and what it breaks off is as if the node had been killed.
    pub(crate) fn spawn(&self, job: impl Future<Output: Send> + Send + 'static) {
        self.jobs.spawn(self.stop.clone().run_until_cancelled_owned(job));
    }

    /// Cancelled when the node stops: for what ends by itself then.
    pub(crate) fn stopping(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Ends all jobs.
    pub(crate) async fn stop(&self) {
        self.stop.cancel();
        self.jobs.close();
        self.jobs.wait().await;
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_job_that_waits_ends_when_the_node_stops_and_when_it_is_given_up() {
        let (alive, mut ended) = tokio::sync::mpsc::channel::<()>(1);
        let waits = |alive| async move {
            let _alive = alive;
            std::future::pending::<()>().await
        };
        let beside = Beside::default();
        beside.spawn(waits(alive.clone()));
        beside.spawn(async {});
        tokio::time::timeout(Duration::from_secs(1), beside.stop()).await.unwrap();
        let given_up = Beside::default();
        given_up.spawn(waits(alive));
        drop(given_up);
        assert_eq!(ended.recv().await, None);
    }
}
