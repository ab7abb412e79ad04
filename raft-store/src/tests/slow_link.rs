//! Links that are slower than a heartbeat is long, for what is large.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::*;

/// A proxy to a port of this machine that lets so many bytes a second pass in each connection and direction. Answers
/// its address.
pub(super) async fn proxy(port: u16, bytes_per_second: usize) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((inbound, _)) = listener.accept().await {
            tokio::spawn(async move {
                let Ok(outbound) = TcpStream::connect(("127.0.0.1", port)).await else { return };
                let (from_client, to_client) = inbound.into_split();
                let (from_node, to_node) = outbound.into_split();
                tokio::join!(
                    pass(from_client, to_node, bytes_per_second),
                    pass(from_node, to_client, bytes_per_second)
                );
            });
        }
    });
    address
}

async fn pass(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    bytes_per_second: usize,
) {
    let tick = Duration::from_millis(5);
    let mut buffer = vec![0; bytes_per_second / 200];
    let mut ticks = tokio::time::interval(tick);
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        ticks.tick().await;
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_takes_longer_than_a_heartbeat_to_send_is_committed_under_the_same_leader() {
    // 3 MiB at 320 KiB a second take 32 heartbeats, and longer than it takes to replace a leader.
    let cluster = Cluster::start_as(3, Limits::default(), PATIENT, Some(320 << 10)).await;
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
