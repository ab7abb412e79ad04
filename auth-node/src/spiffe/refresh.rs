//! Asks the endpoints of trust domains for their bundles, each when it is due. The leader does it, and at once when an admin has
//! changed one.

use std::time::Duration;

use auth_core::{
    Caller, Context, CoreError, Origin,
    spiffe::{self, Due, Refreshed},
    tables::SpiffeDomainKey,
};
use futures::{StreamExt as _, stream};
use raft_store::{Store, TransactError};
use store_txn::{Key as _, KeyRange};

use super::endpoint;
use crate::trust_refresh::{Rhythm, changes_of, paced};

/// Looks are cheap where nothing is due; a change of an admin's waits for the pause at most.
const RHYTHM: Rhythm = Rhythm { interval: Duration::from_secs(10), pause: Duration::from_secs(1) };
/// Endpoints that are asked at a time.
const AT_ONCE: usize = 8;

/// Asks from time to time.
pub(crate) async fn keep(store: Store, node_id: u64) {
    let changes = changes_of(&store, KeyRange::table(SpiffeDomainKey::TABLE));
    paced(changes, RHYTHM, || async {
        if let Err(error) = look(&store, node_id).await {
            tracing::warn!(%error, "SPIFFE trust domains could not be looked at");
        }
    })
    .await;
}

/// Asks those that are due, if this node leads.
pub(super) async fn look(store: &Store, node_id: u64) -> Result<(), TransactError<CoreError>> {
    if store.status().leader_id != Some(node_id) {
        return Ok(());
    }
    let due = store.read_local(|view| spiffe::due(view)).await?;
    stream::iter(due).for_each_concurrent(AT_ONCE, |due| refresh(store, node_id, due)).await;
    Ok(())
}

/// Asks one, and takes in what it says.
async fn refresh(store: &Store, node_id: u64, due: Due) {
    let name = due.name.clone();
    let told = endpoint::ask(&due).await;
    if let Err(reason) = &told {
        tracing::warn!(trust_domain = %name, reason, "the bundle of a SPIFFE trust domain was not told");
    }
    let origin = Origin { node_id, request_id: "bundle refresh".into(), ..Origin::default() };
    let context = Context { caller: Caller::Cluster, origin };
    let done = store.transact(move |tx| spiffe::refreshed(tx, &context, &due, &told));
    match done.await.map(|done| done.value) {
        Ok(Refreshed::Changed) => {
            tracing::info!(trust_domain = %name, "a SPIFFE trust domain has another bundle")
        }
        Ok(Refreshed::Same | Refreshed::Failed) => {}
        Err(error) => {
            tracing::warn!(trust_domain = %name, %error, "the bundle of a SPIFFE trust domain could not be kept");
        }
    }
}
