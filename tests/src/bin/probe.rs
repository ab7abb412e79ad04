//! Scratch.
#![allow(clippy::unwrap_used)]
use mezite_e2e::{
    control::{Answer, Control, Request},
    proxy::Rule,
    store_cluster::{Options, StoreCluster},
};
use std::time::{Duration, Instant};

#[tokio::main]
async fn main() {
    let options = Options {
        nodes: 3,
        snapshot_every: 400,
        keep_entries: 100,
        deadline: Duration::from_secs(3),
        stale_reads: false,
        small_disk: None,
        fake_clocks: false,
    };
    let cluster = StoreCluster::start(options).await;
    for ms in [0u64, 20, 40, 60, 100, 200] {
        for a in 1..=3 {
            for b in 1..=3 {
                if a != b {
                    cluster.links().set(
                        a,
                        b,
                        if ms == 0 { Rule::Pass } else { Rule::Delay(Duration::from_millis(ms)) },
                    );
                }
            }
        }
        let started = Instant::now();
        let (mut ok, mut bad) = (0, 0);
        let mut terms = vec![];
        let before = cluster.status(1).await.unwrap().term;
        while started.elapsed() < Duration::from_secs(8) {
            for id in 1..=3 {
                let mut c = Control::new(&cluster.nodes()[&id].control());
                match c
                    .ask(&Request::Put { key: "x".into(), value: 1, padding: 0 }, Duration::from_secs(4))
                    .await
                {
                    Answer::Written { .. } => ok += 1,
                    other => {
                        bad += 1;
                        if bad < 3 {
                            println!("{other:?}");
                        }
                    }
                }
            }
        }
        terms.push(cluster.status(1).await.map(|s| s.term));
        println!("delay {ms} ms each way: {ok} written, {bad} not; term {before} -> {terms:?}");
    }
}
