use std::sync::{Arc, Mutex};

use auth_core::tables::{CaKind, ForeignCaRow, RefreshKey};
use store_txn::{ReadExt as _, TransactionExt as _};
use tokio::time::{advance, sleep};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::rpc::testing::{Node, Other};

/// When it was looked, in seconds from the beginning: `count` times, with these changes.
async fn looks(changes: impl Stream<Item = ()>, count: usize) -> Vec<u64> {
    let (begun, stop) = (Instant::now(), CancellationToken::new());
    let looked = Arc::new(Mutex::new(Vec::new()));
    let looking = paced(changes, RHYTHM, || {
        let (looked, stop) = (Arc::clone(&looked), stop.clone());
        async move {
            let mut looked = looked.lock().unwrap();
            looked.push(begun.elapsed().as_secs());
            if looked.len() == count {
                stop.cancel();
            }
        }
    });
    stop.run_until_cancelled(looking).await;
    let looked = looked.lock().unwrap();
    looked.clone()
}

#[tokio::test(start_paused = true)]
async fn however_much_changes_there_is_a_pause_between_two_looks() {
    advance(RHYTHM.pause * 2).await;
    let always = stream::repeat(()).then(|()| sleep(Duration::from_millis(100)));
    assert_eq!(looks(always, 4).await, [0, 10, 20, 30]);
}

#[tokio::test(start_paused = true)]
async fn many_changes_at_once_are_looked_at_together() {
    let burst = stream::repeat(()).take(1000).chain(stream::pending());
    assert_eq!(looks(burst, 4).await, [0, 10, 300, 600]);
}

#[tokio::test(start_paused = true)]
async fn it_is_looked_at_once_for_a_change_and_else_now_and_then() {
    let change = stream::once(sleep(Duration::from_secs(100))).chain(stream::pending());
    assert_eq!(looks(change, 4).await, [0, 100, 300, 600]);
    // One that comes in the pause is looked at after it.
    let soon = stream::once(sleep(Duration::from_secs(3))).chain(stream::pending());
    assert_eq!(looks(soon, 2).await, [0, 10]);
}

#[tokio::test]
async fn disabled_clusters_are_followed_and_do_not_count_as_failures() {
    let (node, other) = (Node::start().await, Other::start());
    let store = &node.service.store;
    let name = ClusterName::parse("", "test").unwrap();
    let key = TrustedClusterKey(name.clone());
    let known = ForeignCaRow { kind: CaKind::Tls.into(), keys: vec![other.ca.pem()] };
    let disabled = TrustedClusterRow {
        addresses: vec![other.server.address()],
        authorities: vec![known],
        disabled: true,
        ..TrustedClusterRow::default()
    };
    let put = async |row: &TrustedClusterRow| {
        let (key, row) = (key.clone(), row.clone());
        let put = store.transact(move |tx| {
            tx.put(&key, &row);
            Ok::<_, CoreError>(())
        });
        put.await.unwrap();
    };
    let row = async || {
        let (key, refresh) = (key.clone(), RefreshKey(name.clone()));
        let read = store.read(move |view| {
            let row = view.get(&key)?.unwrap().row;
            Ok::<_, CoreError>((row, view.get(&refresh)?.map(|stored| stored.row.error)))
        });
        read.await.unwrap()
    };
    put(&disabled).await;
    assert_eq!(look(store, 1).await.unwrap(), 0);
    let (followed, error) = row().await;
    assert_eq!((followed.authorities.len(), followed.disabled, error), (3, true, Some(String::new())));

    // What it tells is older than what is known.
    let ahead = TrustedClusterRow { bundle_revision: u64::MAX, ..followed };
    put(&ahead).await;
    assert_eq!(look(store, 1).await.unwrap(), 0);
    assert!(row().await.1.unwrap().contains("restored from a backup"));
    put(&TrustedClusterRow { disabled: false, ..ahead }).await;
    assert_eq!(look(store, 1).await.unwrap(), 1);
}
