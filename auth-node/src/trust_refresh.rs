//! Asks trusted clusters for their authorities now and then: those change, and users with certificates of new ones are to be
//! let in. The leader does it, and at once when one is trusted or changed.

use std::time::Duration;

use auth_core::{
    Caller, Context, CoreError, Origin,
    names::ClusterName,
    tables::{TrustedClusterKey, TrustedClusterRow},
    trusted_cluster::{self, Refreshed},
};
use futures::{StreamExt as _, stream};
use raft_store::{Store, TransactError};
use store_txn::{Key as _, KeyRange};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::{foreign, metrics};

/// From one look to the next.
const INTERVAL: Duration = Duration::from_secs(5 * 60);
/// From one look to the next at least, when something was changed.
const PAUSE: Duration = Duration::from_secs(10);
/// Clusters that are asked at a time.
const AT_ONCE: usize = 8;

/// Asks from time to time, until `stop`.
pub(crate) async fn keep(store: Store, node_id: u64, stop: CancellationToken) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut looked = Instant::now() - PAUSE;
    let mut changes = store.watch(KeyRange::table(TrustedClusterKey::TABLE), store.status().revision);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
            changed = changes.next() => if changed.is_none() { return },
        }
        // Whatever the others answer, they are not asked more often than this.
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep_until(looked + PAUSE) => {}
        }
        looked = Instant::now();
        let failed = tokio::select! {
            () = stop.cancelled() => return,
            failed = look(&store, node_id) => failed,
        };
        match failed {
            Ok(failed) => metrics::trusted_clusters_unrefreshed(failed),
            Err(error) => tracing::warn!(%error, "trusted clusters could not be looked at"),
        }
    }
}

/// Asks all of them, if this node leads; answers how many could not be asked.
async fn look(store: &Store, node_id: u64) -> Result<usize, TransactError<CoreError>> {
    if store.status().leader_id != Some(node_id) {
        return Ok(0);
    }
    let clusters = store.read_local(|view| trusted_cluster::enabled(view)).await?;
    let asked = clusters.into_iter().map(|(name, row)| refresh(store, node_id, name, row));
    Ok(stream::iter(asked).buffer_unordered(AT_ONCE).filter(|good| std::future::ready(!good)).count().await)
}

/// Asks one, and takes in what it says. Answers whether that went well.
async fn refresh(store: &Store, node_id: u64, name: ClusterName, row: TrustedClusterRow) -> bool {
    let asked = foreign::refresh(&name, &row).await;
    if let Err(error) = &asked {
        tracing::warn!(cluster = %name, %error, "a trusted cluster could not be asked for its authorities");
    }
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
