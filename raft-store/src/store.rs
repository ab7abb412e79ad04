//! The handle of a store, and its promises.

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use mezite_proto::peer::{self, outcome::Kind};
use prost::Message;
use store_txn::{KeyRange, TxError, UnixMillis};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    config::{Clock, Limits, StoreConfig, Timing},
    db::Db,
    error::{StoreError, TransactError},
    fatal::Fatal,
    membership, metrics,
    net::{client::PeerPool, identity::PeerIdentity, join::JoinHandler, server::PeerServer},
    owner::Owner,
    propose::Proposer,
    raft::{Core, PeerNode, Peers, Proposed, StateMachine},
    read::{Reads, left},
    space::{self, SpaceAlarm},
    state::StateSnapshot,
    status::{NotReady, Progress, Status},
    time::{self, ClusterTime},
    transact::{StoreTransaction, View},
    views::Views,
    watch::{Hub, Watcher},
};

/// A transaction that keeps meeting others is given up after so many attempts.
const MAX_CONFLICTS: u32 = 64;
/// Pause before a transaction is proposed again when nobody leads, unless another leader is known before; and before
/// the members are asked again what time it is.
const RETRY: Duration = Duration::from_millis(50);
/// How often the leader looks for rows whose time is over.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// Rows that one log entry sweeps.
const SWEEP_LIMIT: u32 = 1_000;

/// A value, and the revision of the commit that it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed<T> {
    /// What the closure answered.
    pub value: T,
    /// Revision of the rows that it wrote; 0 when it wrote nothing.
    pub revision: u64,
}

pub(crate) struct Inner {
    pub(crate) identity: ArcSwap<PeerIdentity>,
    pub(crate) core: Core,
    pub(crate) state: StateMachine,
    pub(crate) proposer: Proposer,
    pub(crate) reads: Reads,
    pub(crate) join_handler: OnceLock<Arc<dyn JoinHandler>>,
    pub(crate) progress: Progress,
    pub(crate) pool: PeerPool,
    pub(crate) config: StoreConfig,
    /// Whoever changes the members as leader holds it, for all steps of the change.
    pub(crate) changes: tokio::sync::Mutex<()>,
    pub(crate) db: Arc<Db>,
    pub(crate) time: ClusterTime,
    views: Views,
    pub(crate) space: Arc<SpaceAlarm>,
    hub: Arc<Hub>,
}

/// A node's handle of the replicated store.
#[derive(Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
    /// Deadline of each transaction, read or change of members through this handle.
    pub(crate) deadline: Duration,
    /// Whether its transactions may take from the reserve.
    from_reserve: bool,
    server: Arc<std::sync::Mutex<PeerServer>>,
    _tasks: Arc<DropGuard>,
}

impl Store {
    /// Opens the data directory, joins the peers that it knows of, and listens for them.
    ///
    /// # Errors
    /// When the data is damaged or belongs to another node, the port is taken, or the configuration is unsound.
    pub async fn open(config: StoreConfig, identity: PeerIdentity, fatal: Fatal) -> Result<Self, StoreError> {
        if config.timing.deadline > Timing::MAX_DEADLINE {
            return Err(StoreError::Config(format!("the deadline is above {:?}", Timing::MAX_DEADLINE)));
        }
        if config.limits.queue_bytes < config.limits.transaction_bytes {
            return Err(StoreError::Config("queue_bytes is below transaction_bytes".into()));
        }
        let Limits { batches_in_flight, batch_transactions, batch_bytes, .. } = config.limits;
        if batches_in_flight.min(batch_transactions).min(batch_bytes) == 0 {
            return Err(StoreError::Config("no batch could ever be proposed: a bound of them is 0".into()));
        }
        metrics::describe();
        let listener = TcpListener::bind(config.listen)
            .await
            .map_err(StoreError::io(format!("cannot listen for peers on {}", config.listen)))?;
        let folder = config.data_dir.clone();
        std::fs::create_dir_all(&folder)
            .map_err(StoreError::io(format!("cannot create {}", folder.display())))?;
        let opened = tokio::task::spawn_blocking(move || Db::open(&folder.join("db"))).await;
        let db = Arc::new(opened.map_err(|error| StoreError::Stopped(error.to_string()))??);
        Owner { cluster_id: identity.cluster_id.clone(), node_id: identity.node_id }.claim(&db)?;

        let hub = Arc::new(Hub::new(config.limits.watch_history_bytes));
        let progress = Progress::new();
        if membership::remembers_removal(&db)? {
            progress.removed(&[identity.node_id]);
        }
        let pool = PeerPool::new(identity.clone(), progress.clone())?;
        let peers = Peers { node_id: identity.node_id, pool: pool.clone(), handover_term: Arc::default() };
        let started = Core::start(
            identity.node_id,
            &config,
            Arc::clone(&db),
            Arc::clone(&hub),
            progress.clone(),
            peers,
            fatal.clone(),
        );
        let (core, state) = started.await?;
        let space = Arc::new(SpaceAlarm::new(config.limits.max_database_bytes, &db));
        let time = ClusterTime::new(core.clone(), pool.clone(), &config);
        let alarm = Arc::clone(&space);
        let proposer = Proposer::start(core.clone(), pool.clone(), time.clone(), config.limits, alarm);
        let reads = Reads::start(core.clone(), pool.clone(), progress.clone());
        let inner = Inner {
            identity: ArcSwap::from_pointee(identity),
            core,
            state,
            proposer,
            reads,
            join_handler: OnceLock::new(),
            progress,
            pool,
            config,
            changes: tokio::sync::Mutex::default(),
            time,
            views: Views::new(Arc::clone(&db)),
            db,
            space,
            hub,
        };
        let inner = Arc::new(inner);
        let server = Arc::new(std::sync::Mutex::new(PeerServer::start(listener, &inner)?));
        let tasks = CancellationToken::new();
        tokio::spawn(tasks.clone().run_until_cancelled_owned(time::keep(inner.time.clone())));
        tokio::spawn(tasks.clone().run_until_cancelled_owned(sweep(Arc::clone(&inner))));
        tokio::spawn(tasks.clone().run_until_cancelled_owned(membership::tend(Arc::clone(&inner))));
        tokio::spawn(tasks.clone().run_until_cancelled_owned(membership::retire(Arc::clone(&inner))));
        tokio::spawn(tasks.clone().run_until_cancelled_owned(measure(Arc::clone(&inner))));
        tokio::spawn(tasks.clone().run_until_cancelled_owned(space::measure(Arc::clone(&inner))));
        tokio::spawn(tasks.clone().run_until_cancelled_owned(guard(Arc::clone(&inner), fatal)));
        let deadline = inner.config.timing.deadline;
        Ok(Self { inner, deadline, from_reserve: false, server, _tasks: Arc::new(tasks.drop_guard()) })
    }

    /// Makes this node the first member of a new cluster. Does nothing where there is a membership already.
    ///
    /// # Errors
    /// When the Raft core has stopped.
    pub async fn initialize(&self) -> Result<(), StoreError> {
        if self.inner.core.is_initialized().await? {
            return Ok(());
        }
        self.inner.core.initialize(self.own_node()).await
    }

    /// A handle whose transactions, reads and changes of members have another deadline, at most
    /// [`Timing::MAX_DEADLINE`]. It goes with what is forwarded; what waits longer is dropped.
    pub fn within(&self, deadline: Duration) -> Self {
        Self { deadline: deadline.min(Timing::MAX_DEADLINE), ..self.clone() }
    }

    /// A handle whose transactions are taken also while the database is over its bound, as long as it is so by a
    /// twentieth of it, or 64 MiB, at most: for what takes access away or makes room, which must not wait for room.
    #[must_use]
    pub fn from_reserve(self) -> Self {
        Self { from_reserve: true, ..self }
    }

    /// Shows peers another certificate from now on, and trusts the CAs that come with it, without a restart. While
    /// the peer CA changes, every node first trusts both.
    ///
    /// # Errors
    /// When it is of another node or cluster, or cannot be used; then nothing has changed.
    pub fn set_identity(&self, identity: PeerIdentity) -> Result<(), StoreError> {
        let now = self.inner.identity.load();
        if (identity.node_id, &identity.cluster_id) != (now.node_id, &now.cluster_id) {
            return Err(StoreError::Identity("it is of another node or cluster".into()));
        }
        let server = identity.server_config()?;
        self.inner.pool.set_identity(identity.clone())?;
        self.server.lock().unwrap_or_else(std::sync::PoisonError::into_inner).set_tls(server);
        self.inner.identity.store(Arc::new(identity));
        Ok(())
    }

    pub(crate) fn own_node(&self) -> PeerNode {
        let config = &self.inner.config;
        PeerNode { peer_address: config.advertise.clone(), app_address: config.app_address.clone() }
    }

    /// Who decides on nodes that want to join. Until it is set, they are asked to try again.
    pub fn set_join_handler(&self, handler: Arc<dyn JoinHandler>) {
        if self.inner.join_handler.set(handler).is_err() {
            tracing::warn!("the join handler was set twice; the first one stays");
        }
    }

    /// Runs `work` as a transaction and commits it: when this answers `Ok`, the writes are on the disks of a
    /// majority. `work` runs again when something that it read has changed meanwhile, so it must have no effect but
    /// its writes. Its refusal is made on a current view and writes nothing.
    ///
    /// # Errors
    /// [`TransactError::Refused`] with what `work` answered; [`StoreError::OutcomeUnknown`] when the answer was
    /// lost; other [`StoreError`]s mean that nothing was written.
    pub async fn transact<T, E, F>(&self, work: F) -> Result<Committed<T>, TransactError<E>>
    where
        F: Fn(&mut StoreTransaction<'_>) -> Result<T, E> + Send + Sync + 'static,
        T: Send + 'static,
        E: From<TxError> + Send + 'static,
    {
        let work = Arc::new(work);
        let deadline = Instant::now() + self.deadline;
        self.inner.check_serving()?;
        let mut current = false;
        for _ in 0..MAX_CONFLICTS {
            let run = Arc::clone(&work);
            let now = self.inner.now(deadline).await?;
            let ran = self.on_state(move |state| {
                let mut transaction = StoreTransaction::new(View::new(state, now));
                let result = run(&mut transaction);
                (result, transaction.into_proposal())
            });
            let proposal = match ran.await? {
                (Ok(value), Some(proposal)) => (value, proposal),
                // Nothing will check what was read, so it must have been current.
                (result, _) if current => {
                    let value = result.map_err(TransactError::Refused)?;
                    return Ok(Committed { value, revision: 0 });
                }
                _ => {
                    self.inner.reads.barrier(deadline).await?;
                    current = true;
                    continue;
                }
            };
            let (value, transaction) = proposal;
            match self.propose(transaction, deadline).await? {
                Some(revision) => return Ok(Committed { value, revision }),
                None => current = false,
            }
        }
        Err(StoreError::Contended(MAX_CONFLICTS).into())
    }

    /// Proposes until the outcome is known. `None`: a conflict, and this node's state is past it.
    async fn propose(
        &self,
        mut transaction: peer::Transaction,
        deadline: Instant,
    ) -> Result<Option<u64>, StoreError> {
        let time = self.inner.state.counters().stamp_ms.max(self.inner.time.now());
        let window = u64::try_from(left(deadline).as_millis()).unwrap_or_default();
        transaction.from_reserve = self.from_reserve;
        transaction.id = Bytes::copy_from_slice(&rand::random::<[u8; 16]>());
        transaction.not_after_ms = time.saturating_add(window);
        if transaction.encoded_len() > self.inner.config.limits.transaction_bytes {
            return Err(StoreError::TooLarge("split it, or write less at once"));
        }
        self.inner.proposer.admit(&transaction)?;
        // Whether some attempt may still be applied: then giving up must not claim that nothing was written.
        let mut pending = false;
        loop {
            let seen = self.inner.core.leader_id();
            let outcome = self.inner.proposer.propose(transaction.clone(), deadline).await;
            match outcome.kind() {
                Kind::Committed => return Ok(Some(outcome.revision)),
                Kind::Conflict => {
                    self.inner.progress.wait_for(outcome.log_index, left(deadline)).await?;
                    return Ok(None);
                }
                // An earlier attempt may have been applied and forgotten since.
                Kind::Expired if pending => return Err(StoreError::OutcomeUnknown),
                Kind::Expired => {
                    return Err(StoreError::Unavailable(
                        "the transaction came too late, or this node's clock is wrong",
                    ));
                }
                Kind::Overloaded if !pending => return Err(StoreError::Overloaded),
                Kind::DatabaseFull if !pending => {
                    let (size, limit) = (outcome.database_size, outcome.database_limit);
                    return Err(StoreError::DatabaseFull { size, limit });
                }
                Kind::Unknown | Kind::Unspecified => pending = true,
                Kind::NotLeader | Kind::Overloaded | Kind::DatabaseFull => {}
            }
            if Instant::now() + RETRY >= deadline {
                return Err(if pending {
                    StoreError::OutcomeUnknown
                } else {
                    StoreError::Unavailable("no leader with a quorum")
                });
            }
            if !pending {
                self.inner.check_serving()?;
            }
            self.inner.core.leader_change(seen, RETRY).await;
        }
    }

    /// Reads the state as of a moment after the call began: every write that was acknowledged before, by any node,
    /// is in it.
    ///
    /// # Errors
    /// What `work` answered, or [`StoreError::Unavailable`] when the node cannot confirm that it is current.
    pub async fn read<T, E, F>(&self, work: F) -> Result<T, TransactError<E>>
    where
        F: FnOnce(&mut View<'_>) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<TxError> + Send + 'static,
    {
        let deadline = Instant::now() + self.deadline;
        self.inner.reads.barrier(deadline).await?;
        let now = self.inner.now(deadline).await?;
        let result = self.on_state(move |state| work(&mut View::new(state, now))).await?;
        result.map_err(TransactError::Refused)
    }

    /// Reads this node's state as it is, which may be behind: for what may be stale.
    ///
    /// # Errors
    /// What `work` answered.
    pub async fn read_local<T, E, F>(&self, work: F) -> Result<T, TransactError<E>>
    where
        F: FnOnce(&mut View<'_>) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<TxError> + Send + 'static,
    {
        let time = self.inner.time.clone();
        let result = self.on_state(move |state| work(&mut View::new(state, time.now()))).await?;
        result.map_err(TransactError::Refused)
    }

    /// Runs work on a snapshot of the state, away from the async workers.
    async fn on_state<T: Send + 'static>(
        &self,
        work: impl FnOnce(&StateSnapshot<'_>) -> T + Send + 'static,
    ) -> Result<T, StoreError> {
        self.inner.views.run(work).await
    }

    /// Follows the changes of a range after a revision, in order and without gaps.
    pub fn watch(&self, range: KeyRange, after: u64) -> Watcher {
        self.inner.hub.watch(range, after)
    }

    /// A clock that shows the cluster's time as this node knows it; this node's own until it has heard a majority.
    #[must_use]
    pub fn clock(&self) -> Clock {
        let time = self.inner.time.clone();
        Arc::new(move || time.now())
    }

    /// Confirms that this node is current: a leader with a quorum is known, and this node's state is up to it.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when it is not so within `timeout`.
    pub async fn confirm(&self, timeout: Duration) -> Result<(), StoreError> {
        self.inner.reads.barrier(Instant::now() + timeout.min(Timing::MAX_DEADLINE)).await
    }

    /// Whether the node should be sent work: it is alive, a member, in touch with a leader that has a quorum, and its
    /// state lacks at most `max_lag` log entries of what its leader says is committed.
    ///
    /// # Errors
    /// What is wrong.
    pub async fn ready(&self, max_lag: u64) -> Result<(), NotReady> {
        if self.inner.progress.is_removed(self.inner.core.node_id()) {
            return Err(NotReady::Removed);
        }
        let committed = self.inner.core.health().await?;
        let lag = committed.saturating_sub(self.inner.progress.current().unwrap_or_default());
        if lag > max_lag { Err(NotReady::Lagging { lag }) } else { Ok(()) }
    }

    /// The state of this node.
    pub fn status(&self) -> Status {
        self.inner.status()
    }

    /// Takes a snapshot now, instead of after the configured number of log entries.
    ///
    /// # Errors
    /// When the Raft core has stopped.
    pub async fn trigger_snapshot(&self) -> Result<(), StoreError> {
        self.inner.core.trigger_snapshot().await
    }

    /// Resolves, with the reason, when the Raft core has died: a process without it must not go on.
    pub async fn dead(&self) -> String {
        self.inner.core.dead().await
    }

    /// Stops: a leader hands over first, if another voter can take over soon; then the core, then the listener. What
    /// was acknowledged is on disk.
    pub async fn shutdown(&self) {
        if let Err(error) = self.step_down().await {
            tracing::info!(%error, "leaving without a handover");
        }
        self.stop().await;
    }

    /// Stops without a handover.
    pub(crate) async fn stop(&self) {
        self.inner.core.shutdown().await;
        let stopped = self.server.lock().unwrap_or_else(std::sync::PoisonError::into_inner).stop();
        stopped.await;
    }
}

impl Inner {
    /// The cluster's time, for what is replicated or must be current.
    async fn now(&self, deadline: Instant) -> Result<UnixMillis, StoreError> {
        let known = async {
            loop {
                match self.time.stamp().await {
                    Some(now) => return now,
                    None => tokio::time::sleep(RETRY).await,
                }
            }
        };
        let known = tokio::time::timeout(left(deadline), known).await;
        known.map_err(|_| StoreError::Unavailable("most members do not say what time it is"))
    }

    pub(crate) fn status(&self) -> Status {
        let node_id = self.core.node_id();
        Status {
            applied_index: self.progress.current().unwrap_or_default(),
            database_size: self.db.size(),
            database_full: self.space.is_full(),
            revision: self.state.counters().revision,
            removed: self.progress.is_removed(node_id),
            ..self.core.status()
        }
    }
}

/// As leader, removes rows whose time is over.
async fn sweep(inner: Arc<Inner>) {
    let mut ticks = tokio::time::interval(SWEEP_INTERVAL);
    loop {
        ticks.tick().await;
        if !inner.core.takes_proposals() {
            continue;
        }
        let Some(stamp_ms) = inner.time.stamp().await else { continue };
        let looking = Arc::clone(&inner);
        let found = tokio::task::spawn_blocking(move || {
            crate::state::has_expired(&StateSnapshot::take(&looking.db)?, stamp_ms)
        });
        match found.await {
            Ok(Ok(true)) => {
                let batch = peer::Batch { stamp_ms, transactions: Vec::new(), sweep_limit: SWEEP_LIMIT };
                let swept = inner.core.propose(Bytes::from(batch.encode_to_vec())).await;
                if matches!(swept, Proposed::Applied(_)) {
                    // There may be more than one entry takes.
                    ticks.reset_immediately();
                }
                // One that is lost is done again at the next tick.
            }
            Ok(Ok(false)) => {}
            Ok(Err(error)) => tracing::error!(%error, "looking for expired rows failed"),
            Err(error) => tracing::error!(%error, "looking for expired rows failed"),
        }
    }
}

/// Ends the process when its state turns out to be unreadable: another node can serve and lead, and this one cannot.
async fn guard(inner: Arc<Inner>, fatal: Fatal) {
    let reason = inner.db.damage().await;
    fatal.call(&reason);
}

/// Keeps the gauges.
async fn measure(inner: Arc<Inner>) {
    let core = inner.core.clone();
    let peers = Arc::new(std::sync::Mutex::default());
    let sample = move |committed_index| {
        let (inner, peers) = (Arc::clone(&inner), Arc::clone(&peers));
        async move {
            let has_quorum = inner.core.health().await.is_ok();
            let sampled = tokio::task::spawn_blocking(move || {
                let status = Status { committed_index, ..inner.status() };
                let sizes = metrics::Sizes {
                    pending: inner.proposer.waiting(),
                    snapshot_bytes: inner.state.snapshot_bytes(),
                    max_database_bytes: inner.config.limits.max_database_bytes,
                };
                let mut peers = peers.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                metrics::status(&status, has_quorum, sizes, &mut peers);
            });
            if let Err(error) = sampled.await {
                tracing::error!(%error, "measuring failed");
            }
        }
    };
    core.measure(sample).await;
}
