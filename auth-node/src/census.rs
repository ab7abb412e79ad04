//! Counts the agents, and who does not follow the rotations that go on, for the metrics. The leader does it.

use std::time::Duration;

use auth_core::{
    CoreError,
    node::{self, Counts},
    presence::PresenceTtl,
    rotation::{self, Obstacles},
    tables::CaKind,
};
use raft_store::{Store, TransactError};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::{ca_rotation::members, metrics};

/// From one count to the next: each reads every node.
const INTERVAL: Duration = Duration::from_secs(60);
/// How often it is looked whether this node leads: a new leader counts at once, and a former one ceases to tell.
const LOOK: Duration = Duration::from_secs(1);

/// What was counted.
#[derive(Debug, Default, PartialEq, Eq)]
struct Census {
    agents: Counts,
    lagging: Vec<(CaKind, u32)>,
}

/// Counts from time to time.
pub(crate) async fn keep(store: Store, node_id: u64, ttl: PresenceTtl) {
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut counted = None::<Instant>;
    tell(None);
    loop {
        let now = ticks.tick().await;
        if store.status().leader_id != Some(node_id) {
            if counted.take().is_some() {
                tell(None);
            }
        } else if counted.is_none_or(|before| now - before >= INTERVAL) {
            counted = Some(now);
            match count(&store, ttl).await {
                Ok(census) => tell(Some(&census)),
                Err(error) => tracing::warn!(%error, "the agents could not be counted"),
            }
        }
    }
}

async fn count(store: &Store, ttl: PresenceTtl) -> Result<Census, TransactError<CoreError>> {
    let here = store.clone();
    let look = store.read_local(move |view| {
        let mut lagging = Vec::new();
        for rotation in rotation::all(view)? {
            lagging.push((rotation.kind, Obstacles::of(view, &rotation, &members(&here), ttl)?.lagging));
        }
        Ok::<_, CoreError>(Census { agents: node::count(view, ttl)?, lagging })
    });
    look.await
}

/// Tells what was counted; `None`: another node counts.
fn tell(census: Option<&Census>) {
    metrics::agents(census.map(|census| census.agents));
    for kind in CaKind::ALL {
        let lagging = census.and_then(|census| census.lagging.iter().find(|(of, _)| *of == kind));
        metrics::rotation_laggards(kind.name(), lagging.map_or(0, |(_, count)| *count));
    }
}

#[cfg(test)]
mod tests {
    use auth_core::{
        names::AgentId,
        tables::{
            CaKey, CaKeyRow, CaRow, NodeKey, NodeKind, NodeRow, PresenceKey, PresenceRow, RotationPhase,
            RotationRow,
        },
    };
    use store_txn::{Read as _, TransactionExt as _};

    use super::*;
    use crate::rpc::testing::Node;

    #[tokio::test]
    async fn agents_are_counted_and_so_are_those_alive_that_do_not_follow_a_rotation() {
        let node = Node::start().await;
        let (store, ttl) = (node.service.store.clone(), node.service.settings.presence_ttl);
        let put = store.transact(|tx| {
            let key = |public: &str| CaKeyRow { public: public.into(), ..CaKeyRow::default() };
            let rotation = RotationRow { phase: RotationPhase::Init.into(), ..RotationRow::default() };
            let row = CaRow { rotation: Some(rotation), trusted: vec![key("new")], ..CaRow::new(key("old")) };
            tx.put(&CaKey(CaKind::Host), &row);
            let now = tx.now();
            for (id, last_seen_ms) in [
                ("6f9619ff-8b86-4011-b42d-00c04fc964ff", now),
                ("6f9619ff-8b86-4011-b42d-00c04fc964fe", now),
                ("6f9619ff-8b86-4011-b42d-00c04fc964fd", 0),
            ] {
                let id = AgentId::parse("", id)?;
                let agent =
                    NodeRow { kind: NodeKind::Ssh.into(), expires_at_ms: u64::MAX, ..NodeRow::default() };
                tx.put(&NodeKey(id.clone()), &agent);
                tx.put(&PresenceKey(id), &PresenceRow { last_seen_ms, ..PresenceRow::default() });
            }
            Ok::<_, CoreError>(())
        });
        put.await.unwrap();
        let census = count(&store, ttl).await.unwrap();
        assert_eq!(census.agents, Counts { total: 3, online: 2 });
        let lagging: Vec<_> = census.lagging.iter().filter(|(_, count)| *count > 0).collect();
        assert_eq!(lagging, [&(CaKind::Host, 2)]);
    }
}
