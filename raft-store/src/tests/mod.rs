//! The store as a cluster: three nodes in one process, over real sockets, TLS and disks.

mod handover;
mod identity;
mod load;
mod membership;
mod slow_link;
mod strangers;
mod survey;
mod time;
mod wire;

use std::{
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use futures::future::join_all;
use mezite_test_ports::Port;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use store_txn::{KeyRange, Read, Transaction, TxError};
use tempfile::TempDir;

use crate::{
    Fatal, Limits, PeerIdentity, Role, Store, StoreConfig, StoreError, Timing, TransactError, WatchEvent,
    peer_dns_name,
};

mod crash;
mod crash_parts;
mod disk;
mod memory;
mod process;
mod recovery;

const CLUSTER: &str = "test-cluster";
const PATIENCE: Duration = Duration::from_secs(30);

/// Timing of most clusters here: leaders are soon replaced, and nobody who waits for the next one gives up first.
const PROMPT: Timing = Timing {
    heartbeat: Duration::from_millis(100),
    election_min: Duration::from_millis(300),
    election_max: Duration::from_millis(600),
    deadline: PATIENCE,
};

/// Timing of clusters whose leader must stay the same: it takes seconds without a turn on the processor to lose it.
const PATIENT: Timing = Timing {
    heartbeat: Duration::from_millis(300),
    election_min: Duration::from_secs(2),
    election_max: Duration::from_secs(4),
    deadline: PATIENCE,
};

#[allow(clippy::disallowed_methods, reason = "this is the tests' clock")]
fn wall_clock() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

/// Waits until a condition holds.
async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !condition().await {
        assert!(started.elapsed() < PATIENCE, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Settings for a node that listens on `port` (0: any).
pub(crate) fn config(folder: &Path, port: u16) -> StoreConfig {
    let listen = SocketAddr::from(([127, 0, 0, 1], port));
    StoreConfig {
        data_dir: folder.to_owned(),
        listen,
        advertise: listen.to_string(),
        app_address: format!("app-{port}"),
        clock: Arc::new(wall_clock),
        timing: PROMPT,
        limits: Limits::default(),
    }
}

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    fn identity(&self, node_id: u64) -> PeerIdentity {
        self.identity_that_trusts(node_id, &self.pem)
    }

    /// An identity of this CA whose node trusts the CAs in `pem`.
    fn identity_that_trusts(&self, node_id: u64, pem: &str) -> PeerIdentity {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([peer_dns_name(CLUSTER, node_id)]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        PeerIdentity::from_pem(CLUSTER, node_id, &certificate, &key.serialize_pem(), pem).unwrap()
    }
}

struct Node {
    folder: TempDir,
    identity: PeerIdentity,
    port: Port,
    store: Option<Store>,
    /// How far its clock is ahead, in milliseconds.
    clock_error: Arc<AtomicI64>,
}

struct Cluster {
    authority: Authority,
    nodes: Vec<Node>,
    limits: Limits,
    timing: Timing,
    /// Peers reach each other through proxies.
    link: Option<slow_link::Link>,
}

impl Cluster {
    async fn start(size: u64, limits: Limits) -> Self {
        Self::start_as(size, limits, PROMPT, None).await
    }

    /// A cluster whose leader stays the same until a test ends it.
    async fn start_patient(size: u64, limits: Limits) -> Self {
        Self::start_as(size, limits, PATIENT, None).await
    }

    async fn start_as(size: u64, limits: Limits, timing: Timing, link: Option<slow_link::Link>) -> Self {
        let (authority, nodes) = (Authority::new(), Vec::new());
        let mut cluster = Self { authority, nodes, limits, timing, link };
        for _ in 0..size {
            let index = cluster.add().await;
            if index == 0 {
                cluster.store(0).initialize().await.unwrap();
            } else {
                cluster.activate(index, Role::Voter).await;
            }
        }
        cluster
    }

    /// Opens another node, which is not a member yet.
    async fn add(&mut self) -> usize {
        let identity = self.authority.identity(self.nodes.len() as u64 + 1);
        let folder = tempfile::tempdir().unwrap();
        self.nodes.push(Node {
            folder,
            identity,
            port: Port::lease(),
            store: None,
            clock_error: Arc::default(),
        });
        self.open(self.nodes.len() - 1).await;
        self.nodes.len() - 1
    }

    async fn open(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        let (limits, timing) = (self.limits, self.timing);
        let mut config = StoreConfig { limits, timing, ..config(node.folder.path(), node.port.number()) };
        let clock_error = Arc::clone(&node.clock_error);
        config.clock =
            Arc::new(move || wall_clock().saturating_add_signed(clock_error.load(Ordering::Relaxed)));
        if let Some(link) = &self.link {
            config.advertise = link.proxy(node.port.number()).await;
        }
        let fatal = Fatal::new(|reason| panic!("{reason}"));
        // The database's lock is free a moment after the last handle is gone.
        let started = Instant::now();
        let store = loop {
            match Store::open(config.clone(), node.identity.clone(), fatal.clone()).await {
                Ok(store) => break store,
                Err(error) if started.elapsed() > PATIENCE => panic!("{error}"),
                Err(_) => tokio::task::yield_now().await,
            }
        };
        node.store = Some(store);
    }

    fn addresses(&self) -> Vec<(u64, String)> {
        let nodes = self.nodes.iter().enumerate();
        nodes.map(|(i, node)| (i as u64 + 1, node.port.address())).collect()
    }

    async fn activate(&self, index: usize, role: Role) {
        let activated = self.store(index).activate(&self.addresses(), role).await;
        activated.unwrap();
    }

    async fn stop(&mut self, index: usize) {
        self.nodes[index].store.take().unwrap().shutdown().await;
    }

    /// Stops a node without a handover, as if its process had been killed.
    async fn kill(&mut self, index: usize) {
        self.nodes[index].store.take().unwrap().stop().await;
    }

    fn store(&self, index: usize) -> Store {
        self.nodes[index].store.clone().unwrap()
    }

    fn running(&self) -> impl Iterator<Item = Store> + '_ {
        self.nodes.iter().filter_map(|node| node.store.clone())
    }

    async fn leader(&self) -> usize {
        let started = Instant::now();
        loop {
            for store in self.running() {
                if store.status().leader_id == Some(store.status().node_id)
                    && store.confirm(PATIENCE).await.is_ok()
                {
                    return store.status().node_id as usize - 1;
                }
            }
            assert!(started.elapsed() < PATIENCE, "nobody leads");
            tokio::task::yield_now().await;
        }
    }

    /// Every running node, once it has applied what the first has, holds the same state.
    async fn assert_replicas_equal(&self) {
        let mut seen = Vec::new();
        for store in self.running() {
            store.confirm(PATIENCE).await.unwrap();
            let state = store.read_local(|view| Ok::<_, TxError>((view.applied_index(), view.state_hash()?)));
            seen.push(state.await.unwrap());
        }
        assert!(seen.windows(2).all(|pair| pair[0] == pair[1]), "{seen:?}");
    }
}

async fn put(store: &Store, key: &str, value: &str) -> Result<u64, TransactError<TxError>> {
    let (key, value) = (key.to_owned(), value.to_owned());
    let put = store.transact(move |tx| {
        tx.put_raw(key.clone().into_bytes(), value.clone().into_bytes(), None);
        Ok::<_, TxError>(())
    });
    put.await.map(|committed| committed.revision)
}

async fn get(store: &Store, key: &str) -> Option<String> {
    let key = key.to_owned();
    let row = store.read(move |view| view.get_raw(key.as_bytes())).await.unwrap();
    row.map(|row| String::from_utf8(row.value).unwrap())
}

async fn increment(store: &Store, key: &'static str) -> Result<u64, TransactError<TxError>> {
    let increment = store.transact(move |tx| {
        let number = match tx.get_raw(key.as_bytes())? {
            Some(row) => u64::from_be_bytes(row.value.try_into().unwrap()),
            None => 0,
        };
        tx.put_raw(key.into(), (number + 1).to_be_bytes().to_vec(), None);
        Ok(number + 1)
    });
    increment.await.map(|committed| committed.value)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_through_one_node_is_read_through_every_other() {
    let cluster = Cluster::start(3, Limits::default()).await;
    for writer in 0..3 {
        let key = format!("k{writer}");
        put(&cluster.store(writer), &key, "v").await.unwrap();
        for reader in 0..3 {
            assert_eq!(get(&cluster.store(reader), &key).await.as_deref(), Some("v"));
        }
    }
    cluster.assert_replicas_equal().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_increments_through_all_nodes_are_all_counted_once() {
    let cluster = Cluster::start(3, Limits::default()).await;
    let work = (0..60).map(|n| {
        let store = cluster.store(n % 3);
        async move { increment(&store, "counter").await.unwrap() }
    });
    let mut seen = join_all(work).await;
    seen.sort_unstable();
    assert_eq!(seen, (1..=60).collect::<Vec<u64>>());
    cluster.assert_replicas_equal().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cluster_goes_on_without_its_leader_and_the_leader_comes_back() {
    let mut cluster = Cluster::start(3, Limits::default()).await;
    put(&cluster.store(0), "before", "1").await.unwrap();
    let leader = cluster.leader().await;
    cluster.stop(leader).await;
    let survivor = (leader + 1) % 3;
    put(&cluster.store(survivor), "during", "2").await.unwrap();
    assert_eq!(get(&cluster.store(survivor), "before").await.as_deref(), Some("1"));
    cluster.open(leader).await;
    assert_eq!(get(&cluster.store(leader), "during").await.as_deref(), Some("2"));
    cluster.assert_replicas_equal().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_quorum_a_node_refuses_rather_than_guess() {
    let mut cluster = Cluster::start(3, Limits::default()).await;
    put(&cluster.store(0), "k", "v").await.unwrap();
    cluster.stop(1).await;
    cluster.stop(2).await;
    let store = cluster.store(0);
    let short = Duration::from_secs(2);
    assert!(matches!(store.confirm(short).await, Err(StoreError::Unavailable(_))));
    let store = store.within(short);
    let read = store.read(|view| view.get_raw(b"k")).await;
    assert!(matches!(read, Err(TransactError::Store(StoreError::Unavailable(_)))), "{read:?}");
    let refused = put(&store, "k", "w").await;
    assert!(matches!(
        refused,
        Err(TransactError::Store(StoreError::Unavailable(_) | StoreError::OutcomeUnknown))
    ));
    // What may be stale is still there.
    assert!(store.read_local(|view| view.get_raw(b"k")).await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_away_for_long_catches_up_by_snapshot() {
    let limits = Limits { snapshot_every: 50, keep_entries: 10, ..Limits::default() };
    let mut cluster = Cluster::start(3, limits).await;
    let away = (cluster.leader().await + 1) % 3;
    let writer = cluster.store((away + 1) % 3);
    let mut watcher = None;
    for n in 0..300 {
        if n == 20 {
            cluster.stop(away).await;
        }
        put(&writer, &format!("k{}", n % 40), &n.to_string()).await.unwrap();
    }
    cluster.open(away).await;
    let back = cluster.store(away);
    watcher.replace(back.watch(KeyRange::prefix(b"k"), 0));
    assert_eq!(get(&back, "k19").await.as_deref(), Some("299"));
    assert!(matches!(watcher.unwrap().next().await, Some(WatchEvent::Resync { .. })));
    // The log was purged on the others. What the core tells of itself comes a little later.
    eventually("it tells of the snapshot and of the log after it", async || {
        let status = back.status();
        status.snapshot_index > 20 && status.last_log_index > 300
    })
    .await;
    cluster.assert_replicas_equal().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_keeps_everything_and_watchers_resume() {
    let mut cluster =
        Cluster::start(1, Limits { snapshot_every: 30, keep_entries: 5, ..Limits::default() }).await;
    let mut watcher = cluster.store(0).watch(KeyRange::prefix(b"k"), 0);
    for n in 0..100 {
        put(&cluster.store(0), &format!("k{n:03}"), "v").await.unwrap();
    }
    for n in 0..100 {
        match watcher.next().await {
            Some(WatchEvent::Change { key, .. }) => assert_eq!(key, format!("k{n:03}").as_bytes()),
            other => panic!("{other:?}"),
        }
    }
    drop(watcher);
    let before = cluster.store(0).read(|view| view.state_hash()).await.unwrap();
    cluster.stop(0).await;
    cluster.open(0).await;
    let after = cluster.store(0).read(|view| view.state_hash()).await.unwrap();
    assert_eq!(before, after);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_is_made_on_a_current_view() {
    let cluster = Cluster::start(3, Limits::default()).await;
    for round in 0..30 {
        let key = format!("k{round}");
        put(&cluster.store(round % 3), &key, "v").await.unwrap();
        let seen = key.clone();
        let other = cluster.store((round + 1) % 3);
        let missing = other.transact(move |tx| match tx.get_raw(seen.as_bytes())? {
            Some(_) => Ok(()),
            None => Err(TxError::Storage("a write that was acknowledged is not there".into())),
        });
        missing.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_end_at_their_time_and_are_swept() {
    let cluster = Cluster::start(1, Limits::default()).await;
    let store = cluster.store(0);
    let write = store.transact(|tx| {
        // Long enough to be read before.
        let end = tx.now() + 5_000;
        tx.put_raw(b"short".to_vec(), b"v".to_vec(), Some(end));
        Ok::<_, TxError>(())
    });
    write.await.unwrap();
    assert!(get(&store, "short").await.is_some());
    let mut watcher = store.watch(KeyRange::prefix(b"short"), 1);
    let swept = tokio::time::timeout(PATIENCE, watcher.next()).await.unwrap();
    assert!(matches!(swept, Some(WatchEvent::Change { value: None, .. })), "{swept:?}");
    assert_eq!(get(&store, "short").await, None);
}

#[tokio::test]
async fn a_data_directory_of_another_node_is_refused() {
    let authority = Authority::new();
    let folder = tempfile::tempdir().unwrap();
    let open = |id| {
        let fatal = Fatal::new(|reason| panic!("{reason}"));
        Store::open(config(folder.path(), 0), authority.identity(id), fatal)
    };
    open(1).await.unwrap().shutdown().await;
    let started = Instant::now();
    loop {
        let error = open(2).await.map(|_| ()).unwrap_err().to_string();
        if error.contains("belongs to node 1") {
            break;
        }
        assert!(started.elapsed() < PATIENCE, "{error}");
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_is_not_served_by_the_peer_listener() {
    use mezite_proto::{peer::peer_service_client::PeerServiceClient, transport::channel};
    let cluster = Cluster::start(1, Limits::default()).await;
    let address = cluster.nodes[0].port.address();
    let name = cluster.nodes[0].identity.server_name(1).unwrap();
    let call = async |tls: rustls::ClientConfig| {
        let channel = channel(&address, Arc::new(tls), name.clone(), PATIENCE).unwrap();
        let mut request = tonic::Request::new(mezite_proto::peer::ReadIndexRequest {});
        request.metadata_mut().insert("mezite-peer-version", 1.into());
        PeerServiceClient::new(channel).read_index(request).await.map(|_| ()).unwrap_err()
    };
    // A certificate of another CA does not pass the handshake.
    let stranger = Authority::new().identity(1).client_config().unwrap();
    let refused = call(stranger).await.code();
    // The client may learn of it in the handshake, or when it first writes.
    assert!(matches!(refused, tonic::Code::Unavailable | tonic::Code::Cancelled), "{refused:?}");
    // No certificate: refused by the service.
    let mut roots = rustls::RootCertStore::empty();
    let own = cluster.nodes[0].identity.client_config().unwrap();
    assert!(own.alpn_protocols.contains(&b"h2".to_vec()));
    roots.add(authority_of(&cluster.nodes[0].identity)).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut bare = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    bare.alpn_protocols = vec![b"h2".to_vec()];
    assert_eq!(call(bare).await.code(), tonic::Code::Unauthenticated);
}

fn authority_of(identity: &PeerIdentity) -> rustls_pki_types::CertificateDer<'static> {
    identity.authority().clone()
}
