//! The ingests that live, as anybody is told: looked up once a second at most, since that reads the registration of each
//! ingest that there ever was until its certificate ends, and nobody who pings is asked for a credential.

use std::{sync::Arc, time::Duration};

use auth_core::{CoreError, node, presence::PresenceTtl};
use raft_store::{Store, TransactError};

use crate::recent::Recent;

/// How long what was looked up is told: a small part of the time after which a silent ingest counts as dead.
const FRESH: Duration = Duration::from_secs(1);

/// The ingests that live.
pub(crate) struct LiveIngests {
    store: Store,
    ttl: PresenceTtl,
    seen: Recent<Arc<[String]>>,
}

impl LiveIngests {
    /// Of this node's own state, which may be behind.
    pub(crate) fn new(store: Store, ttl: PresenceTtl) -> Self {
        Self { store, ttl, seen: Recent::new(FRESH) }
    }

    /// host:port of each, as of the last second: those with the least work in hand first.
    ///
    /// # Errors
    /// As of [`node::live_ingests`].
    pub(crate) async fn addresses(&self) -> Result<Arc<[String]>, TransactError<CoreError>> {
        let ttl = self.ttl;
        let look = self.store.read_local(move |view| node::live_ingests(view, ttl).map(Arc::from));
        self.seen.get(look).await
    }
}

#[cfg(test)]
mod tests {
    use auth_core::{
        names::AgentId,
        tables::{IngestKey, IngestRow, PresenceKey, PresenceRow},
    };
    use store_txn::{Read as _, TransactionExt as _};

    use super::*;
    use crate::rpc::testing::Node;

    async fn report(store: &Store, number: u32) {
        let put = store.transact(move |tx| {
            let id = AgentId::parse("", &format!("{number:08}-0000-4000-8000-000000000000"))?;
            let (last_seen_ms, address) = (tx.now(), format!("i{number}:3027"));
            tx.put(&IngestKey(id.clone()), &IngestRow { expires_at_ms: u64::MAX });
            tx.put(&PresenceKey(id), &PresenceRow { last_seen_ms, address, ..PresenceRow::default() });
            Ok::<_, CoreError>(())
        });
        put.await.unwrap();
    }

    #[tokio::test]
    async fn they_are_told_as_they_were_looked_up() {
        let node = Node::start().await;
        let (store, ttl) = (node.service.store.clone(), node.service.settings.presence_ttl);
        let ingests =
            LiveIngests { seen: Recent::new(Duration::MAX), ..LiveIngests::new(store.clone(), ttl) };
        report(&store, 1).await;
        assert_eq!(*ingests.addresses().await.unwrap(), ["i1:3027"]);
        report(&store, 2).await;
        assert_eq!(*ingests.addresses().await.unwrap(), ["i1:3027"]);
        let ingests = LiveIngests::new(store.clone(), ttl);
        assert_eq!(*ingests.addresses().await.unwrap(), ["i1:3027", "i2:3027"]);
    }
}
