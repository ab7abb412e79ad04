//! Peer certificates and their CA change while the cluster works.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_peer_ca_is_replaced_without_a_restart() {
    let cluster = Cluster::start(3, Limits::default()).await;
    let (old, new) = (&cluster.authority, Authority::new());
    let both = format!("{}{}", old.pem, new.pem);
    let work = async |what: &str| {
        for writer in 0..3 {
            put(&cluster.store(writer), what, &writer.to_string()).await.unwrap();
            for reader in 0..3 {
                let read = get(&cluster.store(reader), what).await;
                assert_eq!(read.as_deref(), Some(writer.to_string().as_str()));
            }
        }
    };
    // Trust both, then show the new one, then trust the new one alone; in each step, node by node.
    for index in 0..3 {
        let identity = old.identity_that_trusts(index as u64 + 1, &both);
        cluster.store(index).set_identity(identity).unwrap();
        work("both").await;
    }
    for index in 0..3 {
        let identity = new.identity_that_trusts(index as u64 + 1, &both);
        cluster.store(index).set_identity(identity).unwrap();
        work("new").await;
    }
    for index in 0..3 {
        cluster.store(index).set_identity(new.identity(index as u64 + 1)).unwrap();
        work("alone").await;
    }
    // The old one does not open a connection any more.
    let address = &cluster.addresses()[0].1;
    let ping = async |identity: PeerIdentity| {
        let pool = crate::net::client::PeerPool::new(identity, crate::status::Progress::new()).unwrap();
        pool.get(1, address).unwrap().ping(mezite_proto::peer::PingRequest {}).await
    };
    ping(old.identity_that_trusts(2, &both)).await.unwrap_err();
    ping(new.identity(2)).await.unwrap();
    cluster.assert_replicas_equal().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_identity_of_another_node_is_refused() {
    let cluster = Cluster::start(1, Limits::default()).await;
    let refused = cluster.store(0).set_identity(cluster.authority.identity(2));
    assert!(matches!(refused, Err(StoreError::Identity(_))));
    put(&cluster.store(0), "k", "v").await.unwrap();
}
