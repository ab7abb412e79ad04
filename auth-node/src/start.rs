//! Starting and stopping: from a data directory to a serving node, and from there to a quiet one.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use auth_core::{
    CoreError,
    ca::Kek,
    presence::PresenceTtl,
    tables::{CaKey, CaKind, ClusterKey, ClusterRow},
};
use mezite_daemon::{clock, diagnostics, metrics, program::listen, supervisor};
use raft_store::{Clock, Fatal, Role, Store};
use store_txn::{Key as _, KeyRange, ReadExt as _};
use tokio::{
    sync::Semaphore,
    task::JoinHandle,
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

use crate::{
    access::Listeners,
    attendance::Attendance,
    audit_retention,
    beside::Beside,
    bootstrap::{self, Joiner, store_config},
    ca_keys::CaKeys,
    ca_rotation::{Automatic, Followed},
    census,
    config::Config,
    fault::NodeError,
    iam::Sts,
    ingests::LiveIngests,
    missing_cas::MissingCas,
    news::Board,
    node::{Folder, NodeState, load_kek},
    pace::Pace,
    passwords::PasswordPool,
    peer_certificate,
    places::Places,
    presence::Presence,
    readiness::Readiness,
    recent::Recent,
    refusals::Refusals,
    relay::Relay,
    rpc::{AGENT_IDENTITIES, RevocationList},
    server::{
        self,
        guests::Guests,
        tls::{self, Names, Tls},
    },
    service::{PROBLEM_LIFE, Service, Settings},
    spiffe,
    sso::Outbound,
    trust_refresh,
    uses::Uses,
    web,
};

/// A running node. [`Handle::stop`] lets calls in progress end; dropping it does not.
pub struct Handle {
    address: SocketAddr,
    web_address: Option<SocketAddr>,
    diagnostics_address: SocketAddr,
    identity: Identity,
    readiness: Arc<Readiness>,
    store: Store,
    server: JoinHandle<Result<(), NodeError>>,
    /// Ends the server's accepting.
    drain: CancellationToken,
    beside: Beside,
    drain_timeout: Duration,
    _folder: Arc<Folder>,
}

/// What a node is, for those who ask why it ended.
#[derive(Debug, Clone)]
struct Identity {
    node_id: u64,
    cluster_id: String,
    data_dir: PathBuf,
}

impl Identity {
    fn removed(&self) -> NodeError {
        let Self { node_id, cluster_id, data_dir } = self.clone();
        NodeError::Removed { node_id, cluster_id, data_dir }
    }
}

/// Starts a node that was made by `init` or `join`. When this returns, it serves; it waits for the cluster as
/// long as that takes.
///
/// # Errors
/// [`NodeError::Removed`] when the node was removed from its cluster; see [`NodeError`].
pub async fn start(config: Config) -> Result<Handle, NodeError> {
    metrics::install();
    let folder = Arc::new(Folder::open(&config.data_dir)?);
    let mut state = folder.member()?;
    folder.check_store(&state)?;
    bootstrap::forget_init(&folder)?;
    let identity = Identity {
        node_id: state.node_id,
        cluster_id: state.cluster_id.clone(),
        data_dir: config.data_dir.clone(),
    };
    let kek = Arc::new(load_kek(&config.kek_path())?);
    let store = store_config(&config, &folder, &(Arc::new(clock::unix_ms) as Clock));
    let store = Store::open(store, folder.peer_identity(&state)?, Fatal::abort()).await?;
    let clock = store.clock();
    folder.store_was_made(&mut state)?;

    let beside = Beside::default();
    let readiness = Arc::new(Readiness::new(store.clone()));
    let (diagnostics, diagnostics_address) = listen(config.diagnostics_listen).await?;
    tracing::info!(node_id = state.node_id, %diagnostics_address, "waiting for the cluster");
    supervisor::status("waiting for the cluster");
    beside.spawn(watch_life(Arc::clone(&readiness), store.clone()));
    beside.spawn(diagnostics::serve(Arc::clone(&readiness), diagnostics, beside.stopping()));
    let cas = Arc::new(CaKeys::new(Arc::clone(&kek)));
    // At once: a node that was away for long can speak to nobody before.
    let (life, followed) = (config.raft.peer_certificate_life, Arc::new(Followed::default()));
    let mine = (state.clone(), life);
    let renewal = peer_certificate::Renewal::new(&store, &cas, &clock, &folder, mine, &followed);
    beside.spawn(renewal.run());

    let cluster = tokio::select! {
        biased;
        () = store.removed() => return Err(identity.removed()),
        cluster = take_part(&store, &state) => match cluster {
            Err(_) if store.status().removed => return Err(identity.removed()),
            cluster => cluster?,
        },
    };
    let node = Node { cluster, clock, store, cas, kek, followed, node_id: state.node_id };
    let (service, tls) = node.assemble(&config, &readiness, &beside).await?;

    let web = web::Server::open(&config, &service, &tls, &beside).await?;
    let web_address = web.as_ref().map(|web| web.address);
    let (api, address) = listen(config.listen).await?;
    let drain = CancellationToken::new();
    let drain_timeout = config.limits.drain_timeout;
    let (ready, draining) = (Arc::clone(&readiness), drain.clone());
    let serving = async move { server::serve(service, ready, api, tls, &config, draining).await };
    let pages = drain.clone();
    let server = tokio::spawn(async move {
        let web = async {
            if let Some(web) = web {
                web.serve(pages).await;
            }
            Ok(())
        };
        tokio::try_join!(serving, web).map(drop)
    });
    readiness.serve();
    let pages = web_address.map(tracing::field::display);
    tracing::info!(node_id = node.node_id, %address, web_address = pages, "serving");
    Ok(Handle {
        address,
        web_address,
        diagnostics_address,
        identity,
        readiness,
        store: node.store,
        server,
        drain,
        beside,
        drain_timeout,
        _folder: folder,
    })
}

/// What a node is put together from.
struct Node {
    cluster: ClusterRow,
    clock: Clock,
    store: Store,
    cas: Arc<CaKeys>,
    kek: Arc<Kek>,
    followed: Arc<Followed>,
    node_id: u64,
}

impl Node {
    /// Puts what handlers work with together, and starts what runs beside the calls.
    async fn assemble(
        &self,
        config: &Config,
        readiness: &Readiness,
        beside: &Beside,
    ) -> Result<(Arc<Service>, Tls), NodeError> {
        let (store, clock) = (self.store.clone(), Arc::clone(&self.clock));
        let cas = Arc::clone(&self.cas);
        let names = Names::new(config, &self.cluster.name, self.node_id);
        let guests = Arc::new(Guests::new(&self.cluster.name));
        let (tls, renewal) = tls::begin(&store, &cas, &clock, names, &self.followed, &guests).await?;
        beside.spawn(renewal.run());
        beside.spawn(Arc::clone(&self.followed).report(store.clone(), self.node_id));
        let ttl = PresenceTtl(config.presence.ttl);
        let attendance = Arc::new(Attendance::new(ttl));
        beside.spawn(Arc::clone(&attendance).keep(store.clone()));
        let automatic = Automatic {
            store: store.clone(),
            node_id: self.node_id,
            ttl,
            attendance: Arc::clone(&attendance),
        };
        beside.spawn(automatic.drive());
        beside.spawn(census::keep(store.clone(), self.node_id, ttl));
        beside.spawn(audit_retention::keep(store.clone(), self.node_id));
        beside.spawn(guests.follow(store.clone()));
        beside.spawn(trust_refresh::keep(store.clone(), self.node_id));
        beside.spawn(spiffe::refresh::keep(store.clone(), self.node_id));
        let missing = MissingCas {
            store: store.clone(),
            cas: Arc::clone(&cas),
            clock: Arc::clone(&clock),
            cluster: self.cluster.name.clone(),
            node_id: self.node_id,
        };
        beside.spawn(missing.make());
        let refusals = Arc::new(Refusals::default());
        store.set_join_handler(Arc::new(Joiner {
            store: store.clone(),
            cas: Arc::clone(&cas),
            kek: Arc::clone(&self.kek),
            clock: Arc::clone(&clock),
            refusals: Arc::clone(&refusals),
            cluster_id: self.cluster.cluster_id.clone(),
            node_id: self.node_id,
            life: config.raft.peer_certificate_life,
        }));
        let settings = Settings {
            node_id: self.node_id,
            cluster_id: self.cluster.cluster_id.clone(),
            cluster: self.cluster.name.clone(),
            heartbeat_interval: config.presence.interval,
            presence_ttl: ttl,
            call_timeout: config.limits.call_timeout,
            store_deadline: config.raft.deadline,
            message_timeout: config.limits.message_timeout,
            web_origin: config.web.enabled.then(|| config.web.origin()).flatten(),
        };
        let ingests = Arc::new(LiveIngests::new(store.clone(), ttl));
        let service = Service {
            passwords: PasswordPool::new(config.limits.password_threads, config.limits.password_queue)?,
            cas,
            presence: Presence::start(store.clone(), Arc::clone(&ingests)),
            ingests,
            problem: Recent::new(PROBLEM_LIFE),
            attendance,
            // Who is here stays, also while the database is over its bound.
            uses: Uses::start(store.clone().from_reserve()),
            pace: Pace::default(),
            relay: Relay::new(&self.cluster.name, Arc::clone(&tls.client), &config.limits)?,
            sts: Sts::new(&config.iam)?,
            outbound: Outbound::new(),
            identities: Places::new(AGENT_IDENTITIES),
            backups: Arc::new(Semaphore::new(1)),
            refusals,
            revocation_list: RevocationList::default(),
            news: Board::start(store.clone(), config.limits.max_agent_listeners, readiness.stopping()),
            access: Listeners::new(config.limits.max_access_listeners, readiness.stopping()),
            settings,
            clock,
            store,
        };
        Ok((Arc::new(service), tls))
    }
}

/// Notes the end of the Raft core.
async fn watch_life(readiness: Arc<Readiness>, store: Store) {
    readiness.die(store.dead().await);
}

/// Becomes the member that the node is to be, and waits for what it serves with.
async fn take_part(store: &Store, state: &NodeState) -> Result<ClusterRow, NodeError> {
    let members: Vec<_> = state.members.clone().into_iter().collect();
    if !members.is_empty() {
        let role = if state.learner { Role::Learner } else { Role::Voter };
        store.activate(&members, role).await?;
    }
    wait_for_cluster(store).await
}

/// Waits until the rows that a node serves with are here: those of the cluster and of its TLS CA.
async fn wait_for_cluster(store: &Store) -> Result<ClusterRow, NodeError> {
    // Before the rows are read, so that no change is missed. They are written together.
    let range = KeyRange::table(ClusterKey::TABLE);
    let mut changes = store.watch(range, store.status().revision);
    loop {
        let read = store.read_local(|view| {
            let there = view.get(&CaKey(CaKind::Tls))?.is_some();
            Ok::<_, CoreError>(view.get(&ClusterKey)?.filter(|_| there).map(|cluster| cluster.row))
        });
        if let Some(cluster) = read.await? {
            return Ok(cluster);
        }
        tokio::select! {
            changed = changes.next() => if changed.is_none() {
                return Err(NodeError::Failed("the store has stopped".into()));
            },
            reason = store.dead() => return Err(NodeError::Failed(reason)),
        }
    }
}

impl Handle {
    /// Address of the API.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Address of the web API, where it is served.
    pub fn web_address(&self) -> Option<SocketAddr> {
        self.web_address
    }

    /// Address of the diagnostics.
    pub fn diagnostics_address(&self) -> SocketAddr {
        self.diagnostics_address
    }

    /// Id of the node.
    pub fn node_id(&self) -> u64 {
        self.identity.node_id
    }

    /// Resolves when the node cannot go on: its Raft core has died, its port broke down, or it was removed from the
    /// cluster, which is [`NodeError::Removed`]: then it can still be stopped as any other.
    pub async fn broken(&mut self) -> NodeError {
        tokio::select! {
            reason = self.store.dead() => NodeError::Failed(reason),
            () = self.store.removed() => self.identity.removed(),
            ended = &mut self.server => match ended {
                Ok(Ok(())) => NodeError::Failed("the port was closed".into()),
                Ok(Err(error)) => error,
                Err(error) => NodeError::Failed(error.to_string()),
            },
        }
    }

    /// Stops: it is not ready any more, takes no more connections, lets calls in progress end for
    /// `limits.drain_timeout` at most, and then stops the store. Answers whether every call was answered by
    /// then.
    pub async fn stop(mut self) -> bool {
        let deadline = Instant::now() + self.drain_timeout;
        self.readiness.leave();
        self.drain.cancel();
        let answered = timeout_at(deadline, &mut self.server).await;
        self.server.abort();
        self.beside.stop().await;
        self.store.shutdown().await;
        answered.is_ok()
    }
}
