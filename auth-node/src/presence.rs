//! Heartbeats, collected: those that come within a while, or so many, are written in one transaction, and each is
//! answered once it is committed. The while is the longer the more come: few are answered at once, and many cost the cluster
//! few log entries.

use std::{sync::Arc, time::Duration};

use auth_core::{
    CoreError, Credential, cluster_config,
    presence::{self, Report},
    revocation,
    tables::{CaKind, RecordingMode, RotationPhase},
    trust,
};
use raft_store::{Store, StoreError, TransactError};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout_at},
};

use crate::{error::ApiError, ingests::LiveIngests, metrics};

/// From a transaction of one report to the next, unless reports pile up.
const PAUSE: Duration = Duration::from_millis(25);
/// Reports in one transaction.
const BATCH: usize = 256;
/// Bytes of reports in one transaction: well below what the store takes.
const BATCH_BYTES: usize = 1 << 20;
/// Reports that may wait; more are refused at once.
const QUEUE: usize = 4096;
/// When an agent that was turned away may try again.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// What every agent is told.
#[derive(Debug)]
pub(crate) struct News {
    /// host:port of each live ingest.
    pub(crate) ingest_addresses: Arc<[String]>,
    /// Where the rotation of each authority stands.
    pub(crate) phases: Vec<(CaKind, RotationPhase)>,
    /// Revision of the trust bundle.
    pub(crate) trust_bundle_revision: u64,
    /// Revision of the last revocation.
    pub(crate) revocation_revision: u64,
    /// What happens to a session that cannot be recorded.
    pub(crate) recording_mode: RecordingMode,
}

/// A report that waits for its transaction.
struct Beat {
    credential: Credential,
    report: Report,
    bytes: usize,
    answer: oneshot::Sender<Result<Arc<News>, ApiError>>,
}

/// Collects heartbeats.
pub(crate) struct Presence {
    queue: mpsc::Sender<Beat>,
}

impl Presence {
    /// Starts collecting. It ends when this is dropped.
    pub(crate) fn start(store: Store, ingests: Arc<LiveIngests>) -> Self {
        let (queue, beats) = mpsc::channel(QUEUE);
        tokio::spawn(Writer { store, ingests }.run(Collector { beats, held: None }));
        Self { queue }
    }

    /// One that takes nothing from its queue, which has one place.
    #[cfg(test)]
    pub(crate) fn stuck() -> Self {
        let (queue, beats) = mpsc::channel(1);
        tokio::spawn(async move {
            let _held = beats;
            std::future::pending::<()>().await;
        });
        Self { queue }
    }

    /// Takes down what the holder of a credential reports; answers when it is committed. `bytes` is the encoded size of
    /// the report.
    ///
    /// # Errors
    /// What [`presence::record`] refuses; [`ApiError::Busy`] when too many wait already; [`ApiError::Store`].
    pub(crate) async fn beat(
        &self,
        credential: Credential,
        report: Report,
        bytes: usize,
    ) -> Result<Arc<News>, ApiError> {
        let (answer, answered) = oneshot::channel();
        self.queue.try_send(Beat { credential, report, bytes, answer }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => {
                ApiError::Busy { what: "too many heartbeats are waiting", retry_after: RETRY_AFTER }
            }
            mpsc::error::TrySendError::Closed(_) => ApiError::Unavailable("the node is stopping"),
        })?;
        answered.await.unwrap_or(Err(ApiError::Unavailable("the node is stopping")))
    }
}

/// Puts reports together.
struct Collector {
    beats: mpsc::Receiver<Beat>,
    /// One that did not fit into the batch before.
    held: Option<Beat>,
}

impl Collector {
    /// The next batch: what comes until `due`, or as much as a transaction takes. `None`: nothing will come any more.
    async fn next(&mut self, due: Instant) -> Option<Vec<Beat>> {
        let first = match self.held.take() {
            Some(held) => held,
            None => self.beats.recv().await?,
        };
        let mut bytes = first.bytes;
        let mut batch = vec![first];
        while batch.len() < BATCH {
            // Past `due`, what is there already still comes along.
            let Ok(Some(next)) = timeout_at(due, self.beats.recv()).await else { break };
            if bytes.saturating_add(next.bytes) > BATCH_BYTES {
                self.held = Some(next);
                break;
            }
            bytes += next.bytes;
            batch.push(next);
        }
        Some(batch)
    }
}

/// Writes what was collected.
struct Writer {
    store: Store,
    ingests: Arc<LiveIngests>,
}

/// From a transaction of so many reports to the next. With the square root of their number, the pauses come to a rest for each rate of
/// reports, and grow in proportion to it: 25 ms at up to 40 a second, 62 ms at 100, and 400 ms where transactions begin to be full.
fn pause(reports: f64) -> Duration {
    PAUSE.mul_f64(reports.max(1.0).sqrt())
}

impl Writer {
    async fn run(self, mut collector: Collector) {
        let mut due = Instant::now();
        while let Some(batch) = collector.next(due).await {
            due = Instant::now() + pause(batch.len() as f64);
            self.write(batch).await;
        }
    }

    async fn write(&self, mut batch: Vec<Beat>) {
        // Who has gone does not count: it will say so again.
        batch.retain(|beat| !beat.answer.is_closed());
        if batch.is_empty() {
            return;
        }
        let (reports, waiting): (Vec<_>, Vec<_>) =
            batch.into_iter().map(|beat| ((beat.credential, beat.report), beat.answer)).unzip();
        match self.commit(reports).await {
            Ok((results, news)) => {
                for (answer, result) in waiting.into_iter().zip(results) {
                    let _ = answer.send(result.map(|()| Arc::clone(&news)).map_err(ApiError::from));
                }
            }
            Err(error) => {
                tracing::debug!(%error, reports = waiting.len(), "heartbeats were not written");
                for answer in waiting {
                    let _ = answer.send(Err(same(&error)));
                }
            }
        }
    }

    /// Each report stands or falls by itself; the transaction does for all.
    async fn commit(
        &self,
        reports: Vec<(Credential, Report)>,
    ) -> Result<(Vec<Result<(), CoreError>>, Arc<News>), TransactError<CoreError>> {
        let count = reports.len();
        let written = self.store.transact(move |tx| presence::record(tx, &reports)).await?;
        metrics::heartbeats(count);
        let results = written.value.into_iter().map(|result| result.map(drop)).collect();
        // What is told need not be newer than this, and reading it in the transaction would make all of them conflict.
        let ingest_addresses = self.ingests.addresses().await?;
        let news = self.store.read_local(move |view| {
            Ok::<_, CoreError>(News {
                ingest_addresses,
                phases: trust::phases(view)?,
                trust_bundle_revision: trust::revision(view)?,
                revocation_revision: revocation::head(view)?,
                recording_mode: cluster_config::settings(view)?.recording_mode,
            })
        });
        Ok((results, Arc::new(news.await?)))
    }
}

/// The same failure again, for everybody who waited.
fn same(error: &TransactError<CoreError>) -> ApiError {
    match error {
        TransactError::Refused(error) => ApiError::Core(error.clone()),
        TransactError::Store(StoreError::Unavailable(why)) => StoreError::Unavailable(why).into(),
        TransactError::Store(StoreError::Overloaded) => StoreError::Overloaded.into(),
        TransactError::Store(StoreError::OutcomeUnknown) => StoreError::OutcomeUnknown.into(),
        TransactError::Store(StoreError::Contended(attempts)) => StoreError::Contended(*attempts).into(),
        TransactError::Store(StoreError::Stopped(why)) => StoreError::Stopped(why.clone()).into(),
        TransactError::Store(StoreError::TooLarge(why)) => StoreError::TooLarge(why).into(),
        TransactError::Store(StoreError::DatabaseFull { size, limit }) => {
            StoreError::DatabaseFull { size: *size, limit: *limit }.into()
        }
        TransactError::Store(
            ours @ (StoreError::Read(_)
            | StoreError::DataDirectory(_)
            | StoreError::Config(_)
            | StoreError::Identity(_)
            | StoreError::Io { .. }),
        ) => ApiError::Internal(ours.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collector() -> (mpsc::Sender<Beat>, Collector) {
        let (queue, beats) = mpsc::channel(QUEUE);
        (queue, Collector { beats, held: None })
    }

    fn beat(load: u32, bytes: usize) -> Beat {
        let report = Report::new("1".into(), [].into(), String::new(), load).unwrap();
        Beat { credential: Credential::None, report, bytes, answer: oneshot::channel().0 }
    }

    async fn next(collector: &mut Collector, due: Instant) -> Option<usize> {
        collector.next(due).await.map(|batch| batch.len())
    }

    #[tokio::test]
    async fn the_first_report_after_a_pause_does_not_wait() {
        let (queue, mut collector) = collector();
        for load in 0..3 {
            assert!(queue.try_send(beat(load, 1)).is_ok());
        }
        assert_eq!(next(&mut collector, Instant::now()).await, Some(3));
        drop(queue);
        assert_eq!(next(&mut collector, Instant::now()).await, None);
    }

    /// As at a steady rate: what comes within a pause is the next batch.
    #[test]
    fn pauses_grow_with_the_rate_of_reports_and_come_to_a_rest() {
        for (reports_a_second, at_rest) in [(0.0, 10), (40.0, 10), (100.0, 25), (320.0, 80), (640.0, 160)] {
            for start in [PAUSE, 16 * PAUSE] {
                let next = |before: Duration, _| pause(before.as_secs_f64() * reports_a_second);
                let rest = (0..30).fold(start, next);
                assert!(
                    rest.abs_diff(at_rest * PAUSE / 10) < PAUSE / 10,
                    "{reports_a_second} a second: {rest:?}"
                );
            }
        }
    }

    #[tokio::test]
    async fn reports_wait_for_each_other_until_the_transaction_is_due() {
        let (queue, mut collector) = collector();
        let due = Instant::now() + Duration::from_secs(3600);
        assert!(queue.try_send(beat(0, 1)).is_ok());
        // It gets its turn when the collector waits.
        let later = tokio::spawn(async move { queue.try_send(beat(1, 1)).is_ok() });
        let collected = next(&mut collector, due).await;
        // Closing the queue ends the batch before it is due, and loses nothing.
        assert_eq!((collected, later.await.unwrap()), (Some(2), true));
    }

    #[tokio::test]
    async fn a_batch_is_bounded_in_reports_and_bytes() {
        let (queue, mut collector) = collector();
        let far = Instant::now() + Duration::from_secs(3600);
        for load in 0..300 {
            assert!(queue.try_send(beat(load, 1)).is_ok());
        }
        assert_eq!(next(&mut collector, far).await, Some(BATCH));
        assert!(queue.try_send(beat(300, BATCH_BYTES)).is_ok());
        // The large one begins the next batch.
        assert_eq!(next(&mut collector, far).await, Some(300 - BATCH));
        assert!(queue.try_send(beat(301, 1)).is_ok());
        assert_eq!(next(&mut collector, far).await, Some(1));
        assert_eq!(next(&mut collector, Instant::now()).await, Some(1));
    }

    #[tokio::test]
    async fn more_than_the_queue_holds_is_refused_at_once() {
        let (queue, _beats) = mpsc::channel(1);
        let presence = Presence { queue };
        assert!(presence.queue.try_send(beat(0, 1)).is_ok());
        let Beat { credential, report, .. } = beat(1, 1);
        let refused = presence.beat(credential, report, 1).await;
        assert!(matches!(refused, Err(ApiError::Busy { .. })));
    }
}
