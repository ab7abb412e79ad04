//! The space that the database takes: compaction, and the alarm that stops writes before the disk is full but still
//! lets deletes through, and from a reserve what must not wait for them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use mezite_proto::peer;

use crate::{Store, db::Db, error::StoreError, store::Inner};

/// How often the database is measured.
const INTERVAL: Duration = Duration::from_secs(1);
/// Bytes above the bound that are kept for transactions of the reserve, where a twentieth of the bound is less: the
/// memory tables alone move the size by as much.
const MIN_RESERVE: u64 = 64 << 20;
/// A full database is compacted, so that what was deleted makes room; but not more often than this.
const COMPACT_EVERY: Duration = Duration::from_secs(300);

/// The database is over its bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Full {
    /// Bytes on disk.
    pub(crate) size: u64,
    /// The bound; with its reserve, for what may take from that.
    pub(crate) limit: u64,
}

impl From<Full> for StoreError {
    fn from(Full { size, limit }: Full) -> Self {
        Self::DatabaseFull { size, limit }
    }
}

/// Knows whether the database is over its bound.
#[derive(Debug)]
pub(crate) struct SpaceAlarm {
    /// Bytes; 0: no bound.
    limit: u64,
    size: AtomicU64,
}

impl SpaceAlarm {
    pub(crate) fn new(limit: u64, db: &Db) -> Self {
        Self { limit, size: AtomicU64::new(db.size()) }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.limit != 0 && self.size.load(Ordering::Relaxed) > self.limit
    }

    /// Refuses a transaction that makes a full database larger, unless it may take from the reserve and that has room.
    /// One that deletes rows and writes none is taken; it may append to logs, so that what is deleted leaves its trace.
    pub(crate) fn admit(&self, transaction: &peer::Transaction) -> Result<(), Full> {
        let deletes = |writes: &[peer::Write]| writes.iter().all(|write| write.value.is_none());
        let shrinks = !transaction.writes.is_empty() || !transaction.trims.is_empty();
        if !self.is_full() || (shrinks && deletes(&transaction.writes)) {
            return Ok(());
        }
        let reserve = if transaction.from_reserve { MIN_RESERVE.max(self.limit / 20) } else { 0 };
        let (size, limit) = (self.size.load(Ordering::Relaxed), self.limit.saturating_add(reserve));
        if size <= limit { Ok(()) } else { Err(Full { size, limit }) }
    }

    fn measure(&self, db: &Db) -> u64 {
        let size = db.size();
        let was_full = self.is_full();
        self.size.store(size, Ordering::Relaxed);
        if self.is_full() != was_full {
            let (limit, full) = (self.limit, self.is_full());
            tracing::warn!(size, limit, full, "the database passed its bound");
        }
        size
    }
}

/// Measures the database, for the alarm, and compacts it where it is full.
pub(crate) async fn measure(inner: Arc<Inner>) {
    let mut ticks = tokio::time::interval(INTERVAL);
    let mut last = None;
    loop {
        ticks.tick().await;
        let measured = Arc::clone(&inner);
        if let Err(error) = tokio::task::spawn_blocking(move || measured.space.measure(&measured.db)).await {
            tracing::error!(%error, "measuring the database failed");
        }
        let revision = inner.state.counters().revision;
        if !inner.space.is_full() || !is_due(last, revision) {
            continue;
        }
        last = Some((Instant::now(), revision));
        let store = Arc::clone(&inner);
        match tokio::task::spawn_blocking(move || compact(&store)).await {
            Ok(Ok(Compaction { before, after })) => {
                tracing::info!(before, after, "the full database was compacted");
            }
            failed => tracing::error!(?failed, "compacting the full database failed"),
        }
    }
}

/// Whether a full database is to be compacted, after the last time and the revision that the state had then. What has
/// not changed gains nothing.
fn is_due(last: Option<(Instant, u64)>, revision: u64) -> bool {
    last.is_none_or(|(then, seen)| seen != revision && then.elapsed() >= COMPACT_EVERY)
}

fn compact(inner: &Inner) -> Result<Compaction, StoreError> {
    let before = inner.space.measure(&inner.db);
    inner.db.compact()?;
    Ok(Compaction { before, after: inner.space.measure(&inner.db) })
}

/// What a compaction gained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compaction {
    /// Bytes on disk and in memory tables before it.
    pub before: u64,
    /// And after it.
    pub after: u64,
}

impl Store {
    /// Rewrites this node's database without what was deleted or overwritten, and without the purged part of the
    /// log. It serves meanwhile, slower; it may take as much space again until it is done. One that is full does so by
    /// itself.
    ///
    /// # Errors
    /// When the database cannot be read or written.
    pub async fn compact(&self) -> Result<Compaction, StoreError> {
        let inner = Arc::clone(&self.inner);
        let done = tokio::task::spawn_blocking(move || compact(&inner));
        done.await.map_err(|error| StoreError::Stopped(error.to_string()))?
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn a_full_database_is_compacted_at_once_and_again_when_something_was_deleted() {
        let long_ago = Instant::now().checked_sub(COMPACT_EVERY).unwrap();
        assert!(is_due(None, 7));
        assert!(!is_due(Some((long_ago, 7)), 7));
        assert!(!is_due(Some((Instant::now(), 7)), 8));
        assert!(is_due(Some((long_ago, 7)), 8));
    }

    #[test]
    fn a_full_database_takes_deletes_only() {
        let write = |value: Option<&'static [u8]>| peer::Write {
            key: Bytes::from_static(b"k"),
            value: value.map(Bytes::from_static),
            expires_at_ms: 0,
        };
        let with = |writes| peer::Transaction { writes, ..Default::default() };
        let append = peer::Append { log: "l".into(), record: Bytes::new() };
        let full = SpaceAlarm { limit: 10, size: AtomicU64::new(11) };
        assert!(full.admit(&with(vec![write(None)])).is_ok());
        let traced = peer::Transaction { appends: vec![append.clone()], ..with(vec![write(None)]) };
        assert!(full.admit(&traced).is_ok());
        for refused in [
            with(vec![write(Some(b""))]),
            with(vec![write(None), write(Some(b""))]),
            peer::Transaction { appends: vec![append], ..Default::default() },
        ] {
            assert_eq!(full.admit(&refused), Err(Full { size: 11, limit: 10 }));
        }
        let room = SpaceAlarm { limit: 10, size: AtomicU64::new(10) };
        assert!(room.admit(&with(vec![write(Some(b""))])).is_ok());
        let unbounded = SpaceAlarm { limit: 0, size: AtomicU64::new(u64::MAX) };
        assert!(unbounded.admit(&with(vec![write(Some(b""))])).is_ok());
    }

    #[test]
    fn what_may_take_from_the_reserve_is_taken_until_that_is_full_too() {
        let write =
            peer::Write { key: Bytes::from_static(b"k"), value: Some(Bytes::new()), expires_at_ms: 0 };
        let urgent = peer::Transaction { writes: vec![write], from_reserve: true, ..Default::default() };
        let other = peer::Transaction { from_reserve: false, ..urgent.clone() };
        for (limit, most) in [(10, 10 + MIN_RESERVE), (100 << 30, 105 << 30)] {
            let holds = |size| SpaceAlarm { limit, size: AtomicU64::new(size) };
            assert_eq!(holds(most).admit(&urgent), Ok(()));
            assert_eq!(holds(most).admit(&other), Err(Full { size: most, limit }));
            assert_eq!(holds(most + 1).admit(&urgent), Err(Full { size: most + 1, limit: most }));
        }
    }
}
