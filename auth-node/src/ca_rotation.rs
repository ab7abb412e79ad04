//! What a node does for the rotation of the authorities' keys beside answering calls: it tells what it has taken up of
//! them, and, while it leads, takes the steps of an automatic rotation when they are due.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use auth_core::{
    Caller, Context, CoreError, Origin,
    presence::PresenceTtl,
    rotation::{self, Obstacles, Rotation, Step},
    tables::{CaKind, FollowedKey, FollowedRow},
};
use raft_store::{Store, TransactError};
use store_txn::{ReadExt as _, TransactionExt as _};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, sleep},
};

use crate::{attendance::Attendance, metrics};

/// From one look for a step that is due to the next.
const INTERVAL: Duration = Duration::from_secs(1);
/// Pause after a look that found something to be held up: each reads every node.
const HELD_PAUSE: Duration = Duration::from_secs(5);
/// Pause after a report that was not written.
const RETRY: Duration = Duration::from_secs(2);

/// What this node has taken up of the authorities' rows.
#[derive(Default)]
pub(crate) struct Followed(watch::Sender<FollowedRow>);

impl Followed {
    /// The certificate for clients, and whom they are to show one of, are of this revision of the TLS CA.
    pub(crate) fn tls(&self, revision: u64) {
        self.0.send_if_modified(|row| std::mem::replace(&mut row.tls, revision) != revision);
    }

    /// The certificate for peers, and whom they are to show one of, are of this revision of the peer CA.
    pub(crate) fn peer(&self, revision: u64) {
        self.0.send_if_modified(|row| std::mem::replace(&mut row.peer, revision) != revision);
    }

    /// Tells the cluster.
    pub(crate) async fn report(self: Arc<Self>, store: Store, node_id: u64) {
        let mut followed = self.0.subscribe();
        followed.mark_changed();
        while followed.changed().await.is_ok() {
            let row = *followed.borrow_and_update();
            while let Err(error) = write(&store, node_id, row).await {
                tracing::warn!(%error, "which keys of the authorities this node has taken up could not be told");
                sleep(RETRY).await;
            }
        }
    }
}

async fn write(store: &Store, node_id: u64, row: FollowedRow) -> Result<(), TransactError<CoreError>> {
    let written = store.transact(move |tx| {
        let key = FollowedKey(node_id);
        if tx.get(&key)?.is_none_or(|stored| stored.row != row) {
            tx.put(&key, &row);
        }
        Ok::<_, CoreError>(())
    });
    written.await.map(drop)
}

/// The ids of the auth nodes, as this one knows them.
pub(crate) fn members(store: &Store) -> Vec<u64> {
    store.status().members.into_iter().map(|member| member.node_id).collect()
}

/// Takes the steps of automatic rotations, while this node leads.
pub(crate) struct Automatic {
    pub(crate) store: Store,
    pub(crate) node_id: u64,
    pub(crate) ttl: PresenceTtl,
    /// Whoever could not report while there was no leader is not absent for it.
    pub(crate) attendance: Arc<Attendance>,
}

impl Automatic {
    /// Takes them.
    pub(crate) async fn drive(self) {
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut held, mut held_until) = (BTreeMap::new(), Instant::now());
        loop {
            ticks.tick().await;
            if self.store.status().leader_id != Some(self.node_id) {
                hold(&mut held, BTreeMap::new());
                continue;
            }
            if Instant::now() < held_until {
                continue;
            }
            match self.move_on().await {
                Ok(now_held) => {
                    if !now_held.is_empty() {
                        held_until = Instant::now() + HELD_PAUSE;
                    }
                    hold(&mut held, now_held);
                }
                Err(error) => tracing::warn!(%error, "an automatic rotation could not move on"),
            }
        }
    }

    /// Takes what is due; answers what is held up, and why.
    async fn move_on(&self) -> Result<BTreeMap<CaKind, String>, TransactError<CoreError>> {
        let due = self.store.read_local(|view| {
            let now = store_txn::Read::now(view);
            let due = |rotation: Rotation| rotation.due(now).map(|step| (rotation, step));
            Ok::<_, CoreError>(rotation::all(view)?.into_iter().filter_map(due).collect::<Vec<_>>())
        });
        let mut held = BTreeMap::new();
        for (seen, step) in due.await? {
            let kind = step.kind;
            match self.take(seen, step).await {
                // Somebody else has moved it.
                Ok(()) | Err(TransactError::Refused(CoreError::StaleRevision { .. })) => {}
                Err(TransactError::Refused(CoreError::Precondition(reason))) => {
                    held.insert(kind, reason);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(held)
    }

    async fn take(&self, seen: Rotation, step: Step) -> Result<(), TransactError<CoreError>> {
        let (here, looked_at, ttl, node_id) = (self.store.clone(), seen.clone(), self.ttl, self.node_id);
        let look = self.store.read(move |view| Obstacles::of(view, &looked_at, &members(&here), ttl));
        // An outage that ended while the view was waited for has been seen by now.
        let obstacles = look.await?.settling(self.attendance.settling());
        let (kind, target) = (step.kind.name(), step.target.name());
        let taken = self.store.transact(move |tx| {
            let origin = Origin { node_id, request_id: "rotation".into(), ..Origin::default() };
            let context = Context { caller: Caller::Cluster, origin };
            rotation::step(tx, &context, &step, (&seen, &obstacles), None).map(drop)
        });
        taken.await?;
        tracing::info!(kind, target, "an automatic rotation has moved on");
        Ok(())
    }
}

/// Tells of what is held up now.
fn hold(before: &mut BTreeMap<CaKind, String>, now: BTreeMap<CaKind, String>) {
    for (kind, reason) in now.iter().filter(|(kind, _)| !before.contains_key(kind)) {
        tracing::warn!(kind = kind.name(), reason, "an automatic rotation is due, and held up");
    }
    for kind in CaKind::ALL {
        metrics::rotation_held(kind.name(), now.contains_key(&kind));
    }
    *before = now;
}

#[cfg(test)]
mod tests {
    use auth_core::{
        names::AgentId,
        tables::{CaKey, CaKeyRow, CaRow, NodeKey, NodeKind, NodeRow, RotationPhase, RotationRow},
    };

    use super::*;
    use crate::rpc::testing::Node;

    #[tokio::test]
    async fn an_automatic_step_after_an_election_waits_for_those_that_could_not_report() {
        let node = Node::start().await;
        let (store, ttl) = (node.service.store.clone(), node.service.settings.presence_ttl);
        let phase = || store.read(|view| Ok::<_, CoreError>(rotation::get(view, CaKind::Host)?.phase));
        let put = store.transact(|tx| {
            let key = |public: &str| CaKeyRow { public: public.into(), ..CaKeyRow::default() };
            let rotation =
                RotationRow { phase: RotationPhase::Init.into(), phase_ms: 1, ..RotationRow::default() };
            let trusted = vec![key("new")];
            let row = CaRow { rotation: Some(rotation), trusted, ..CaRow::new(key("old")) };
            tx.put(&CaKey(CaKind::Host), &row);
            let agent = NodeRow { kind: NodeKind::Ssh.into(), expires_at_ms: u64::MAX, ..NodeRow::default() };
            tx.put(&NodeKey(AgentId::parse("", "6f9619ff-8b86-4011-b42d-00c04fc964ff")?), &agent);
            Ok::<_, CoreError>(())
        });
        put.await.unwrap();
        let attendance = Arc::clone(&node.service.attendance);
        let automatic = Automatic { store: store.clone(), node_id: 1, ttl, attendance };
        for _ in 0..2 {
            let held = automatic.move_on().await.unwrap();
            assert!(held[&CaKind::Host].contains("left to report"), "{held:?}");
            assert_eq!(phase().await.unwrap(), RotationPhase::Init);
        }
        node.service.attendance.settle();
        assert_eq!(automatic.move_on().await.unwrap(), BTreeMap::new());
        assert_eq!(phase().await.unwrap(), RotationPhase::UpdateClients);
    }
}
