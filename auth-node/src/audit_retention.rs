//! Forgets audit events that are older, or more, than the cluster's configuration says. The leader does it.

use std::time::Duration;

use auth_core::{Caller, Context, CoreError, Origin, audit_log, cluster_config};
use raft_store::{Store, TransactError};
use tokio::time::{MissedTickBehavior, interval};

/// From one look to the next.
const INTERVAL: Duration = Duration::from_secs(60);

/// Looks from time to time.
pub(crate) async fn keep(store: Store, node_id: u64) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if store.status().leader_id == Some(node_id)
            && let Err(error) = forget(&store, node_id).await
        {
            tracing::warn!(%error, "old audit events could not be forgotten");
        }
    }
}

/// Forgets what is due.
async fn forget(store: &Store, node_id: u64) -> Result<(), TransactError<CoreError>> {
    let due = || {
        store.read_local(|view| {
            let settings = cluster_config::settings(view)?;
            audit_log::due(view, &settings)
        })
    };
    while let Some(before) = due().await? {
        let origin = Origin { node_id, request_id: "retention".into(), ..Origin::default() };
        let context = Context { caller: Caller::Cluster, origin };
        store.transact(move |tx| audit_log::trim(tx, &context, before)).await?;
    }
    Ok(())
}
