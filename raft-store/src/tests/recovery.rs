//! Backup, restore and recovery of a cluster in use.

use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;

use super::*;
use crate::{CheckReport, check, export, restore};

fn assert_sound(folder: &Path) -> CheckReport {
    let started = Instant::now();
    loop {
        // The lock is free a moment after the last handle is gone.
        match check(folder) {
            Ok(report) => {
                assert!(report.is_sound(), "{report}");
                return report;
            }
            Err(error) => assert!(started.elapsed() < PATIENCE, "{error}"),
        }
    }
}

/// A cluster whose first node was restored from a file.
async fn restored_cluster(backup: &Path, state_hash: [u8; 32]) -> Cluster {
    let authority = Authority::new();
    let node = |id| Node {
        folder: tempfile::tempdir().unwrap(),
        identity: authority.identity(id),
        port: Port::lease(),
        store: None,
        clock_error: Arc::default(),
    };
    let nodes = vec![node(1), node(2)];
    let (limits, timing) = (Limits::default(), PROMPT);
    let mut cluster = Cluster { authority, nodes, limits, timing, link: None };
    let first = &cluster.nodes[0];
    let settings = config(first.folder.path(), first.port.number());
    let restored = restore(&settings, CLUSTER, 1, backup).unwrap();
    assert_eq!(restored.state_hash, assert_sound(first.folder.path()).state_hash);
    if state_hash != [0; 32] {
        assert_eq!(restored.state_hash, state_hash);
    }
    let again = restore(&settings, CLUSTER, 1, backup).unwrap_err().to_string();
    assert!(again.contains("is not empty (db"), "{again}");
    cluster.open(0).await;
    cluster.store(0).initialize().await.unwrap();
    let status = cluster.store(0).status();
    assert_eq!((status.members.len(), status.revision), (1, restored.revision));
    cluster
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_of_a_cluster_in_use_becomes_a_new_cluster() {
    let mut cluster = Cluster::start(3, Limits::default()).await;
    for n in 0..50 {
        put(&cluster.store(n % 3), &format!("before{n}"), "v").await.unwrap();
    }
    // It is told soon when the cluster has stopped.
    let store = cluster.store(1).within(Duration::from_secs(5));
    let writing = tokio::spawn(async move {
        for n in 0.. {
            if put(&store, &format!("during{n}"), "v").await.is_err() {
                return n;
            }
        }
        unreachable!()
    });
    let backup = cluster.store(2).backup().await.unwrap();
    let (length, sha256, revision) = (backup.length(), backup.sha256(), backup.revision());
    let mut bytes = Vec::new();
    backup.into_reader().read_to_end(&mut bytes).await.unwrap();
    assert_eq!((bytes.len() as u64, Sha256::digest(&bytes).as_slice()), (length, &sha256[..]));
    assert!(revision >= 50);
    let left = |node: &Node| std::fs::read_dir(node.folder.path().join("snapshots")).unwrap().count();
    assert_eq!(left(&cluster.nodes[2]), 0);

    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &bytes).unwrap();
    let mut new = restored_cluster(file.path(), [0; 32]).await;
    for n in 0..50 {
        assert_eq!(get(&new.store(0), &format!("before{n}")).await.as_deref(), Some("v"));
    }
    assert!(put(&new.store(0), "after", "v").await.unwrap() > revision);
    // A node that joins has what the log does not.
    new.open(1).await;
    new.activate(1, Role::Voter).await;
    assert_eq!(get(&new.store(1), "before7").await.as_deref(), Some("v"));
    assert_eq!(get(&new.store(1), "after").await.as_deref(), Some("v"));
    new.assert_replicas_equal().await;

    for index in 0..3 {
        cluster.stop(index).await;
    }
    assert!(writing.await.unwrap() > 0);
    for node in &cluster.nodes {
        assert_sound(node.folder.path());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_surviving_node_becomes_a_new_cluster() {
    let limits = Limits { snapshot_every: 40, keep_entries: 10, ..Limits::default() };
    let mut cluster = Cluster::start(3, limits).await;
    for n in 0..100 {
        put(&cluster.store(n % 3), &format!("k{n}"), "v").await.unwrap();
    }
    cluster.store(2).confirm(PATIENCE).await.unwrap();
    for index in 0..3 {
        cluster.stop(index).await;
    }
    let survivor = cluster.nodes[2].folder.path();
    let before = assert_sound(survivor);
    let out = survivor.join("recovered");
    let exported = export(survivor, &out).unwrap();
    assert_eq!((exported.node_id, exported.cluster_id.as_str()), (3, CLUSTER));
    assert_eq!(exported.length, std::fs::metadata(&out).unwrap().len());
    assert!(export(survivor, &out).unwrap_err().to_string().contains("exists already"));
    // The directory is as it was: the node could still go back.
    let after = assert_sound(survivor);
    assert_eq!((after.applied_index, after.state_hash), (before.applied_index, before.state_hash));
    assert!(!survivor.join("export.tmp").exists());
    let new = restored_cluster(&out, [0; 32]).await;
    for n in 0..100 {
        assert_eq!(get(&new.store(0), &format!("k{n}")).await.as_deref(), Some("v"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_has_the_tail_of_the_log() {
    let mut cluster = Cluster::start(1, Limits::default()).await;
    put(&cluster.store(0), "a", "1").await.unwrap();
    cluster.stop(0).await;
    let folder = cluster.nodes[0].folder.path();
    let last = assert_sound(folder).last_log_index.unwrap();
    {
        // An entry that was synced and not yet applied when the node died.
        use prost::Message;
        let db = crate::db::Db::open(&folder.join("db")).unwrap();
        let write =
            mezite_proto::peer::Write { key: "tail".into(), value: Some("2".into()), expires_at_ms: 0 };
        let transaction = mezite_proto::peer::Transaction {
            writes: vec![write],
            not_after_ms: wall_clock() + 1000,
            ..Default::default()
        };
        let batch = mezite_proto::peer::Batch {
            stamp_ms: wall_clock(),
            transactions: vec![transaction],
            sweep_limit: 0,
        };
        let entry = mezite_proto::peer::Entry {
            log_id: Some(mezite_proto::peer::LogId { term: 1, leader_id: 1, index: last + 1 }),
            payload: Some(mezite_proto::peer::entry::Payload::Batch(batch.encode_to_vec().into())),
        };
        let bytes = [&[1][..], &entry.encode_to_vec()].concat();
        db.rocks().put_cf(&db.raft_log().unwrap(), (last + 1).to_be_bytes(), bytes).unwrap();
    }
    let out = folder.join("out");
    let exported = export(folder, &out).unwrap();
    assert_eq!((exported.replayed, exported.applied_index), (1, last + 1));
    let new = restored_cluster(&out, [0; 32]).await;
    assert_eq!(get(&new.store(0), "a").await.as_deref(), Some("1"));
    assert_eq!(get(&new.store(0), "tail").await.as_deref(), Some("2"));
}

#[tokio::test]
async fn a_damaged_backup_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("backup");
    std::fs::write(&file, b"MZSTSNAP\0\0\0\x01rest").unwrap();
    let target = folder.path().join("data");
    let error = restore(&config(&target, 1), CLUSTER, 1, &file).unwrap_err().to_string();
    assert!(error.contains("snapshot"), "{error}");
    assert_eq!(std::fs::read_dir(&target).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_deleted_gives_its_space_back_and_a_full_database_takes_deletes() {
    const LIMIT: u64 = 24 << 20;
    let limits = Limits {
        snapshot_every: 20,
        keep_entries: 5,
        max_database_bytes: LIMIT,
        transaction_bytes: 1 << 20,
        ..Limits::default()
    };
    let cluster = Cluster::start(1, limits).await;
    let store = cluster.store(0);
    // Of what this thread counts, which is what it proposes.
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let counted = recorder.handle();
    let _counting = metrics::set_default_local_recorder(&recorder);
    // Each value is random: nothing is compressed away.
    let write = async |n: usize| {
        let value: Vec<u8> = (0..8192).flat_map(|_| rand::random::<u64>().to_be_bytes()).collect();
        let key = format!("k{n}").into_bytes();
        let put = store.transact(move |tx| {
            tx.put_raw(key.clone(), value.clone(), None);
            Ok::<_, TxError>(())
        });
        put.await
    };
    let mut written = 0;
    let refused = loop {
        match write(written).await {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
        assert!(written < 2_000, "it never was full: {:?}", store.status());
    };
    assert!(
        matches!(refused, TransactError::Store(StoreError::DatabaseFull { limit: LIMIT, size }) if size > LIMIT),
        "{refused}"
    );
    assert!(store.status().database_full);
    let (counted, refusal) = (counted.render(), "raft_proposals_failed_total{reason=\"database_full\"} 1");
    assert!(counted.contains(refusal), "{counted}");
    for n in 0..written {
        let delete = store.transact(move |tx| {
            tx.delete_raw(format!("k{n}").into_bytes());
            Ok::<_, TxError>(())
        });
        delete.await.unwrap();
    }
    let started = Instant::now();
    loop {
        store.compact().await.unwrap();
        if !store.status().database_full {
            break;
        }
        assert!(started.elapsed() < PATIENCE, "{:?}", store.status());
    }
    write(0).await.unwrap();
    assert!(store.status().database_size < LIMIT / 2, "{:?}", store.status());
}

/// The leader's disk counts too, not only that of the node that took the call.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_leader_takes_only_deletes_of_a_follower_that_is_not_full() {
    let mut cluster = Cluster::start(1, Limits { max_database_bytes: 1, ..Limits::default() }).await;
    cluster.limits = Limits::default();
    let follower = cluster.add().await;
    cluster.activate(follower, Role::Learner).await;
    let follower = cluster.store(follower);
    assert!(!follower.status().database_full && cluster.store(0).status().database_full);
    match put(&follower, "k", "v").await {
        Err(TransactError::Store(StoreError::DatabaseFull { size, limit: 1 })) if size > 1 => {}
        answer => panic!("{answer:?}"),
    }
    let delete = follower.transact(|tx| {
        tx.delete_raw(b"k".to_vec());
        Ok::<_, TxError>(())
    });
    delete.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_and_purge_go_on_under_load() {
    let limits = Limits { snapshot_every: 25, keep_entries: 8, batch_transactions: 4, ..Limits::default() };
    let mut cluster = Cluster::start(3, limits).await;
    let work = (0..30).map(|task| {
        let store = cluster.store(task % 3);
        async move {
            for n in 0..20 {
                put(&store, &format!("t{task}"), &n.to_string()).await.unwrap();
            }
        }
    });
    join_all(work).await;
    for task in 0..30 {
        assert_eq!(get(&cluster.store((task + 1) % 3), &format!("t{task}")).await.as_deref(), Some("19"));
    }
    cluster.assert_replicas_equal().await;
    // A snapshot that is being taken is not stopped in the middle.
    for store in cluster.running() {
        whole_snapshot(&store).await;
    }
    for index in 0..3 {
        cluster.stop(index).await;
        let report = assert_sound(cluster.nodes[index].folder.path());
        assert!(report.purged_index > Some(50) && report.snapshots == 1, "{report}");
        assert!(report.log_entries < 100, "{report}");
    }
}

/// Waits until a node that nobody writes to has a snapshot of all that it holds, and answers its index.
async fn whole_snapshot(store: &Store) -> u64 {
    let mut index = 0;
    eventually("there is a snapshot of everything", async || {
        store.trigger_snapshot().await.unwrap();
        let status = store.status();
        index = status.snapshot_index;
        index == status.last_log_index
    })
    .await;
    index
}

/// The sender leaves out what the receiver has: here it could not even send it, because its own copy of that part is
/// damaged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_of_a_snapshot_is_resumed() {
    let limits = Limits { snapshot_every: 30, keep_entries: 5, ..Limits::default() };
    let mut cluster = Cluster::start_patient(3, limits).await;
    let away = (cluster.leader().await + 1) % 3;
    cluster.stop(away).await;
    let leader = cluster.leader().await;
    for n in 0..100 {
        put(&cluster.store(leader), &format!("k{n:03}"), &"v".repeat(5000)).await.unwrap();
    }
    // Nothing is written any more, so this snapshot is the one that will be sent.
    let index = whole_snapshot(&cluster.store(leader)).await;
    let files = std::fs::read_dir(cluster.nodes[leader].folder.path().join("snapshots")).unwrap();
    let is_this = |path: &std::path::PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap();
        name.starts_with(&format!("{index:020}-")) && name.ends_with(".snap")
    };
    let path = files.map(|entry| entry.unwrap().path()).find(is_this).unwrap();
    let sound = std::fs::read(&path).unwrap();
    let half = sound.len() / 2;
    let partial = cluster.nodes[away].folder.path().join("snapshots").join(path.file_name().unwrap());
    std::fs::write(partial.with_extension("part"), &sound[..half]).unwrap();
    let mut damaged = sound.clone();
    damaged[1000..half].fill(0);
    // In one step: the leader, which looks for the node that is away, may be reading it.
    let exchanged = path.with_extension("tmp");
    std::fs::write(&exchanged, &damaged).unwrap();
    std::fs::rename(&exchanged, &path).unwrap();
    cluster.open(away).await;
    let back = cluster.store(away);
    let caught_up = back.read(|view| view.get_raw(b"k099"));
    assert!(caught_up.await.unwrap().is_some());
    eventually("it tells of the snapshot", async || back.status().snapshot_index == index).await;
    assert!(std::fs::read(&partial).unwrap() == sound);
    cluster.assert_replicas_equal().await;
}
