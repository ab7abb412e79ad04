//! Asks trusted clusters for their authorities now and then: those change, and users with certificates of new ones are to be
//! let in. The leader does it, and at once when one is trusted or changed.

use std::{future::Future, pin::pin, time::Duration};

use auth_core::{
    Caller, Context, CoreError, Origin,
    names::ClusterName,
    tables::{TrustedClusterKey, TrustedClusterRow},
    trusted_cluster::{self, Refreshed},
};
use futures::{Stream, StreamExt as _, stream};
use raft_store::{Store, TransactError, WatchEvent};
use store_txn::{Key as _, KeyRange};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use crate::{
    foreign::{self, Unanswered},
    metrics,
};

const RHYTHM: Rhythm = Rhythm { interval: Duration::from_secs(5 * 60), pause: Duration::from_secs(10) };
/// Clusters that are asked at a time.
const AT_ONCE: usize = 8;

/// What is kept of a cluster that has not proved itself.
const UNPROVED: &str = "it could not be reached at its addresses, or did not prove that it is this cluster: the log of the auth node that leads has more";

/// Asks from time to time.
pub(crate) async fn keep(store: Store, node_id: u64) {
    let changes = changes_of(&store, KeyRange::table(TrustedClusterKey::TABLE));
    paced(changes, RHYTHM, || async {
        match look(&store, node_id).await {
            Ok(failed) => metrics::trusted_clusters_unrefreshed(failed),
            Err(error) => tracing::warn!(%error, "trusted clusters could not be looked at"),
        }
    })
    .await;
}

/// How often others are asked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rhythm {
    /// From one look to the next.
    pub(crate) interval: Duration,
    /// From one look to the next at least, when something was changed.
    pub(crate) pause: Duration,
}

/// The changes of some rows, from now on.
pub(crate) fn changes_of(store: &Store, range: KeyRange) -> impl Stream<Item = WatchEvent> + use<> {
    let changes = store.watch(range, store.status().revision);
    stream::unfold(changes, |mut changes| async move { Some((changes.next().await?, changes)) })
}

/// Looks from time to time and when something changes, with a pause in between, until the end of `changes`.
pub(crate) async fn paced<T, F: Future<Output = ()>>(
    changes: impl Stream<Item = T>,
    rhythm: Rhythm,
    mut look: impl FnMut() -> F,
) {
    let mut ticks = interval(rhythm.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first look waits for nothing.
    let mut next_look = Instant::now();
    let mut changes = pin!(changes);
    loop {
        tokio::select! {
            biased;
            _ = ticks.tick() => {}
            changed = changes.next() => if changed.is_none() { return },
        }
        // Whatever the others answer, they are not asked more often than this.
        while Instant::now() < next_look {
            tokio::select! {
                biased;
                () = sleep_until(next_look) => {}
                // The look after the pause is for all that comes in it.
                changed = changes.next() => if changed.is_none() { return },
            }
        }
        next_look = Instant::now() + rhythm.pause;
        look().await;
    }
}

/// Asks all of them, if this node leads; answers how many could not be asked, of those that are not disabled. The disabled ones are
/// asked too: nobody of them is let in, and when one is enabled again, that it has rotated its authorities meanwhile has not ended
/// the trust.
async fn look(store: &Store, node_id: u64) -> Result<usize, TransactError<CoreError>> {
    if store.status().leader_id != Some(node_id) {
        return Ok(0);
    }
    let clusters = store.read_local(|view| trusted_cluster::all(view)).await?;
    let asked = clusters.into_iter().map(|(name, row)| async move {
        let counts = !row.disabled;
        !refresh(store, node_id, name, row).await && counts
    });
    Ok(stream::iter(asked)
        .buffer_unordered(AT_ONCE)
        .filter(|failed| std::future::ready(*failed))
        .count()
        .await)
}

/// What is kept of why a cluster told nothing, for whoever may read it; the log has more.
fn told(cluster: &ClusterName, unanswered: Unanswered) -> String {
    let (found, kept) = match unanswered {
        Unanswered::Refused(error) => (error.to_string(), error.to_string()),
        Unanswered::Unproved(found) => (found, UNPROVED.to_owned()),
    };
    tracing::warn!(%cluster, found, "a trusted cluster did not tell its authorities");
    kept
}

/// Asks one, and takes in what it says. Answers whether that went well.
async fn refresh(store: &Store, node_id: u64, name: ClusterName, row: TrustedClusterRow) -> bool {
    let asked = foreign::refresh(&name, &row).await.map_err(|unanswered| told(&name, unanswered));
    let origin = Origin { node_id, request_id: "trust refresh".into(), ..Origin::default() };
    let context = Context { caller: Caller::Cluster, origin };
    let of = name.clone();
    let done = store.transact(move |tx| trusted_cluster::refreshed(tx, &context, &of, &row, &asked));
    match done.await {
        Ok(done) => {
            if done.value == Refreshed::Changed {
                tracing::info!(cluster = %name, "a trusted cluster has other authorities");
            }
            done.value != Refreshed::Failed
        }
        Err(error) => {
            tracing::warn!(cluster = %name, %error, "the authorities of a trusted cluster could not be kept");
            false
        }
    }
}

#[cfg(test)]
#[path = "trust_refresh_tests.rs"]
mod tests;
