//! The handle of a store, and its promises.

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use bytes::Bytes;
use mezite_proto::peer::{self, outcome::Kind};
use prost::Message;
use store_txn::{KeyRange, TxError};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    config::{StoreConfig, Timing},
    db::Db,
    error::{StoreError, TransactError},
    fatal::Fatal,
    net::{client::PeerPool, identity::PeerIdentity, join::JoinHandler, server::PeerServer},
    owner::Owner,
    propose::Proposer,
    raft::{Core, PeerNode, Peers, StateMachine},
    read::{Reads, left},
    space::{self, SpaceAlarm},
    state::StateSnapshot,
    status::{Progress, Status},
    transact::{StoreTransaction, View},
    watch::{Hub, Watcher},
};

/// A transaction that keeps meeting others is given up after so many attempts.
const MAX_CONFLICTS: u32 = 64;
/// Pause before a transaction is proposed again when nobody leads.
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
    pub(crate) identity: PeerIdentity,
    pub(crate) core: Core,
    pub(crate) state: StateMachine,
    pub(crate) proposer: Proposer,
    pub(crate) reads: Reads,
    pub(crate) join_handler: OnceLock<Arc<dyn JoinHandler>>,
    pub(crate) db: Arc<Db>,
    pub(crate) space: SpaceAlarm,
    pub(crate) config: StoreConfig,
    hub: Arc<Hub>,
    progress: Progress,
    pool: PeerPool,
}

/// A node's handle of the replicated store.
#[derive(Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
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
        let pool = PeerPool::new(identity.clone())?;
        let peers = Peers { node_id: identity.node_id, pool: pool.clone() };
        let started = Core::start(
            identity.node_id,
            &config,
            Arc::clone(&db),
            Arc::clone(&hub),
            progress.clone(),
            peers,
            fatal,
        );
        let (core, state) = started.await?;
        let proposer = Proposer::start(core.clone(), pool.clone(), Arc::clone(&config.clock), config.limits);
        let reads = Reads::start(core.clone(), pool.clone(), progress.clone());
        let space = SpaceAlarm::new(config.limits.max_database_bytes, &db);
        let inner = Inner {
            identity,
            core,
            state,
            proposer,
            reads,
            join_handler: OnceLock::new(),
            db,
            space,
            config,
            hub,
            progress,
            pool,
        };
        let inner = Arc::new(inner);
        let server = Arc::new(std::sync::Mutex::new(PeerServer::start(listener, &inner)?));
        let tasks = CancellationToken::new();
        tokio::spawn(tasks.clone().run_until_cancelled_owned(sweep(Arc::clone(&inner))));
        tokio::spawn(tasks.clone().run_until_cancelled_owned(inner.core.clone().measure()));
        tokio::spawn(tasks.clone().run_until_cancelled_owned(space::measure(Arc::clone(&inner))));
        Ok(Self { inner, server, _tasks: Arc::new(tasks.drop_guard()) })
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

    /// Takes part in the cluster: asks `members` (node id and peer address) until the leader has made this node a
    /// voter. Returns at once where the node is a member already.
    ///
    /// # Errors
    /// When the Raft core has stopped.
    pub async fn activate(&self, members: &[(u64, String)]) -> Result<(), StoreError> {
        let own = self.own_node();
        let own_id = self.inner.core.node_id();
        let member =
            peer::Member { node_id: own_id, peer_address: own.peer_address, app_address: own.app_address };
        loop {
            let voters = self.status().members;
            if voters.iter().any(|known| known.node_id == own_id && known.voter) {
                return Ok(());
            }
            for (node_id, address) in members {
                let Ok(mut client) = self.inner.pool.get(*node_id, address) else { continue };
                let request = peer::ActivateRequest { member: Some(member.clone()) };
                match client.activate(request).await {
                    Ok(_) => break,
                    Err(status) => tracing::debug!(node_id, message = status.message(), "not activated yet"),
                }
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    fn own_node(&self) -> PeerNode {
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
        let deadline = Instant::now() + self.inner.config.timing.deadline;
        let mut current = false;
        for _ in 0..MAX_CONFLICTS {
            let run = Arc::clone(&work);
            let ran = self.blocking(move |state, clock_ms| {
                let mut transaction = StoreTransaction::new(View::new(state, clock_ms));
                let result = run(&mut transaction);
                Ok((result, transaction.into_proposal()))
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
        let time = self.inner.state.counters().stamp_ms.max((self.inner.config.clock)());
        let window = u64::try_from(left(deadline).as_millis()).unwrap_or_default();
        transaction.id = Bytes::copy_from_slice(&rand::random::<[u8; 16]>());
        transaction.not_after_ms = time.saturating_add(window);
        if transaction.encoded_len() > self.inner.config.limits.transaction_bytes {
            return Err(StoreError::TooLarge("split it, or write less at once"));
        }
        self.inner.space.admit(&transaction)?;
        // Whether some attempt may still be applied: then giving up must not claim that nothing was written.
        let mut pending = false;
        loop {
            let outcome =
                match tokio::time::timeout(left(deadline), self.inner.proposer.propose(transaction.clone()))
                    .await
                {
                    Ok(outcome) => outcome,
                    Err(_) => return Err(StoreError::OutcomeUnknown),
                };
            match outcome.kind() {
                Kind::Committed => return Ok(Some(outcome.revision)),
                Kind::Conflict => {
                    self.inner.progress.wait_for(outcome.log_index, left(deadline)).await?;
                    return Ok(None);
                }
                Kind::Expired => {
                    return Err(StoreError::Unavailable(
                        "the transaction came too late, or this node's clock is wrong",
                    ));
                }
                Kind::Overloaded if !pending => return Err(StoreError::Overloaded),
                Kind::Unknown | Kind::Unspecified => pending = true,
                Kind::NotLeader | Kind::Overloaded => {}
            }
            if Instant::now() + RETRY >= deadline {
                return Err(if pending {
                    StoreError::OutcomeUnknown
                } else {
                    StoreError::Unavailable("no leader with a quorum")
                });
            }
            tokio::time::sleep(RETRY).await;
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
        self.inner.reads.barrier(Instant::now() + self.inner.config.timing.deadline).await?;
        self.read_local(work).await
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
        let result = self.blocking(move |state, clock_ms| Ok(work(&mut View::new(state, clock_ms)))).await?;
        result.map_err(TransactError::Refused)
    }

    /// Runs work on a snapshot of the state, away from the async workers.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&StateSnapshot<'_>, u64) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let inner = Arc::clone(&self.inner);
        let done = tokio::task::spawn_blocking(move || {
            let state = StateSnapshot::take(&inner.db)?;
            work(&state, (inner.config.clock)())
        });
        done.await.map_err(|error| StoreError::Stopped(error.to_string()))?
    }

    /// Follows the changes of a range after a revision, in order and without gaps.
    pub fn watch(&self, range: KeyRange, after: u64) -> Watcher {
        self.inner.hub.watch(range, after, self.inner.state.counters().revision)
    }

    /// Confirms that this node is current: a leader with a quorum is known, and this node's state is up to it.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when it is not so within `timeout`.
    pub async fn confirm(&self, timeout: Duration) -> Result<(), StoreError> {
        self.inner.reads.barrier(Instant::now() + timeout).await
    }

    /// The state of this node.
    pub fn status(&self) -> Status {
        Status {
            applied_index: self.inner.progress.current().unwrap_or_default(),
            database_size: self.inner.db.size(),
            database_full: self.inner.space.is_full(),
            revision: self.inner.state.counters().revision,
            ..self.inner.core.status()
        }
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

    /// Stops: no more elections, then the core, then the listener. What was acknowledged is on disk.
    pub async fn shutdown(&self) {
        self.inner.core.shutdown().await;
        self.server.lock().unwrap_or_else(std::sync::PoisonError::into_inner).stop();
    }
}

/// As leader, removes rows whose time is over.
async fn sweep(inner: Arc<Inner>) {
    let mut ticks = tokio::time::interval(SWEEP_INTERVAL);
    loop {
        ticks.tick().await;
        let leads = inner.core.leader().is_some_and(|(leader, _)| leader == inner.core.node_id());
        if !leads {
            continue;
        }
        let stamp_ms = (inner.config.clock)();
        let looking = Arc::clone(&inner);
        let found = tokio::task::spawn_blocking(move || {
            crate::state::has_expired(&StateSnapshot::take(&looking.db)?, stamp_ms)
        });
        match found.await {
            Ok(Ok(true)) => {
                let batch = peer::Batch { stamp_ms, transactions: Vec::new(), sweep_limit: SWEEP_LIMIT };
                // A sweep that is lost is done again at the next tick.
                inner.core.propose(Bytes::from(batch.encode_to_vec())).await;
            }
            Ok(Ok(false)) => {}
            Ok(Err(error)) => tracing::error!(%error, "looking for expired rows failed"),
            Err(error) => tracing::error!(%error, "looking for expired rows failed"),
        }
    }
}
