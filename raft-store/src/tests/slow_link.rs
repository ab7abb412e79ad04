//! Links that are slower than a heartbeat is long: for what is large, or for everything.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
};

use super::*;

/// Chunks that are on their way in one direction of a connection.
const ON_THE_WAY: usize = 1_000;

/// What lies between nodes.
#[derive(Clone)]
pub(super) struct Link {
    /// So many pass in each connection and direction.
    bytes_per_second: usize,
    /// How long they take, one way; it may change at any time.
    latency_ms: Arc<AtomicU64>,
}

impl Link {
    fn new(bytes_per_second: usize) -> Self {
        Self { bytes_per_second, latency_ms: Arc::default() }
    }

    fn set_latency(&self, latency: Duration) {
        self.latency_ms.store(latency.as_millis() as u64, Ordering::Relaxed);
    }

    /// A proxy to a port of this machine. Answers its address.
    pub(super) async fn proxy(&self, port: u16) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let link = self.clone();
        tokio::spawn(async move {
            while let Ok((inbound, _)) = listener.accept().await {
                let link = link.clone();
                tokio::spawn(async move {
                    let Ok(outbound) = TcpStream::connect(("127.0.0.1", port)).await else { return };
                    let (from_client, to_client) = inbound.into_split();
                    let (from_node, to_node) = outbound.into_split();
                    tokio::join!(link.pass(from_client, to_node), link.pass(from_node, to_client));
                });
            }
        });
        address
    }

    async fn pass(&self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
        let (sender, mut arriving) = mpsc::channel::<(tokio::time::Instant, Vec<u8>)>(ON_THE_WAY);
        let depart = async move {
            let mut buffer = vec![0; self.bytes_per_second / 200];
            let mut ticks = tokio::time::interval(Duration::from_millis(5));
            while let Ok(read @ 1..) = from.read(&mut buffer).await {
                ticks.tick().await;
                let latency = Duration::from_millis(self.latency_ms.load(Ordering::Relaxed));
                let due = tokio::time::Instant::now() + latency;
                if sender.send((due, buffer[..read].to_vec())).await.is_err() {
                    return;
                }
            }
        };
        let arrive = async move {
            while let Some((due, bytes)) = arriving.recv().await {
                tokio::time::sleep_until(due).await;
                if to.write_all(&bytes).await.is_err() {
                    return;
                }
            }
        };
        tokio::join!(depart, arrive);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_takes_longer_than_a_heartbeat_to_send_is_committed_under_the_same_leader() {
    // 3 MiB at 320 KiB a second take 32 heartbeats, and longer than it takes to replace a leader.
    let cluster = Cluster::start_as(3, Limits::default(), PATIENT, Some(Link::new(320 << 10))).await;
    let leader = cluster.leader().await;
    let patience = PATIENCE * 2;
    let store = cluster.store(leader).within(patience);
    let term = store.status().term;
    let large = "x".repeat(3 << 20);
    let started = Instant::now();
    put(&store, "large", &large).await.unwrap();
    assert!(started.elapsed() > PATIENT.election_max * 2, "the link is not slow");
    println!("3 MiB over 320 KiB/s: committed after {:?}", started.elapsed());
    put(&store, "small", "v").await.unwrap();
    assert_eq!(store.status().term, term, "the leader was lost meanwhile");
    for reader in cluster.running() {
        let read = reader.within(patience).read(|view| view.get_raw(b"large")).await.unwrap();
        assert_eq!(read.map(|row| row.value.len()), Some(large.len()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn round_trips_longer_than_a_heartbeat_stop_reads_and_not_writes() {
    let link = Link::new(100 << 20);
    let cluster = Cluster::start_as(3, Limits::default(), PATIENT, Some(link.clone())).await;
    let leader = cluster.leader().await;
    let term = cluster.store(leader).status().term;
    link.set_latency(PATIENT.heartbeat * 3 / 4);
    for index in 0..3 {
        let store = cluster.store(index).within(Duration::from_secs(20));
        put(&store, &format!("k{index}"), "v").await.unwrap();
    }
    // No quorum answers within a heartbeat, so nobody can say that what it has is current; and nobody claims to.
    for index in 0..3 {
        let store = cluster.store(index).within(Duration::from_secs(1));
        let read = store.read(|view| view.get_raw(b"k0")).await;
        assert!(
            matches!(read, Err(TransactError::Store(StoreError::Unavailable(_)))),
            "a read on node {index}: {:?}",
            read.map(|row| row.is_some())
        );
    }
    assert_eq!(cluster.store(leader).status().term, term, "the leader was lost meanwhile");
    link.set_latency(Duration::ZERO);
    for index in 0..3 {
        for key in ["k0", "k1", "k2"] {
            assert_eq!(get(&cluster.store(index), key).await.as_deref(), Some("v"));
        }
    }
}
