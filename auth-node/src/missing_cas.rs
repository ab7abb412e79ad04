//! Gives a cluster the authorities that it has not: those of kinds that there were not yet when it was made. The leader does
//! it, and then there is nothing left to do.

use std::{sync::Arc, time::Duration};

use auth_core::{Caller, Context, CoreError, Origin, ca};
use raft_store::{Clock, Store, TransactError};
use tokio::time::{MissedTickBehavior, interval};

use crate::ca_keys::CaKeys;

/// From one look to the next.
const INTERVAL: Duration = Duration::from_secs(5);

/// What makes them.
pub(crate) struct MissingCas {
    pub(crate) store: Store,
    pub(crate) cas: Arc<CaKeys>,
    pub(crate) clock: Clock,
    /// Name of the cluster.
    pub(crate) cluster: String,
    pub(crate) node_id: u64,
}

impl MissingCas {
    /// Looks until there are all.
    pub(crate) async fn make(self) {
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            match self.look().await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(%error, "an authority that the cluster has not could not be made")
                }
            }
        }
    }

    /// Makes those that are missing, if this node leads. Answers whether there are all.
    async fn look(&self) -> Result<bool, TransactError<CoreError>> {
        let kinds = self.store.read_local(|view| ca::kinds_missing(view)).await?;
        if kinds.is_empty() {
            return Ok(true);
        }
        if self.store.status().leader_id != Some(self.node_id) {
            return Ok(false);
        }
        for kind in kinds {
            let new = self.cas.generate(kind, &self.cluster, (self.clock)() / 1000);
            let new = new.map_err(TransactError::Refused)?;
            let origin =
                Origin { node_id: self.node_id, request_id: "new authority".into(), ..Origin::default() };
            let context = Context { caller: Caller::Cluster, origin };
            if self.store.transact(move |tx| ca::add(tx, &context, &new)).await?.value {
                tracing::info!(kind = kind.name(), "the cluster has got an authority that it had not");
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use auth_core::tables::CaKind;
    use mezite_pki::x509::CertificateInfo;

    use super::*;
    use crate::rpc::testing::Node;

    #[tokio::test]
    async fn a_cluster_that_has_no_authorities_gets_them_once_and_their_keys_open() {
        let node = Node::start().await;
        let service = &node.service;
        let missing = |node_id| MissingCas {
            store: service.store.clone(),
            cas: Arc::clone(&service.cas),
            clock: Arc::clone(&service.clock),
            cluster: "test.example".into(),
            node_id,
        };
        // Whoever does not lead waits for the one who does.
        assert!(!missing(2).look().await.unwrap());
        assert!(missing(1).look().await.unwrap());
        let active = || service.store.read(|view| ca::active(view, CaKind::Spiffe));
        let made = active().await.unwrap();
        let opened = service.cas.x509(&made).unwrap();
        assert!(opened.info().is_ca && CertificateInfo::from_pem(&made.key.public).unwrap().is_ca);
        missing(1).make().await;
        assert_eq!(active().await.unwrap().key, made.key);
        let kinds: Vec<_> = node.audited("ca.create").await.into_iter().map(|row| row.target).collect();
        assert_eq!(kinds, CaKind::ALL.map(|kind| format!("ca:{}", kind.name())));
    }
}
