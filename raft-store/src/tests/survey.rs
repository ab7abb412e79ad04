//! How the members are, whichever of them is asked.

use mezite_proto::peer;
use prost::Message;

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_node_knows_how_all_are() {
    let mut cluster = Cluster::start(3, Limits::default()).await;
    put(&cluster.store(0), "k", "v").await.unwrap();
    let leader = cluster.leader().await;
    for index in 0..3 {
        let store = cluster.store(index);
        eventually("all are well, and level", async || {
            let survey = store.survey().await;
            survey.len() == 3
                && survey.iter().all(|one| {
                    let well = one.report.as_ref().is_ok_and(|report| {
                        report.problem.is_none() && report.leader_id == Some(leader as u64 + 1)
                    });
                    well && one.lag == Some(0) && one.member.matched_index.is_some()
                })
        })
        .await;
    }
    // One that is gone is told apart, with what the leader knows of it.
    let (asked, gone) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.kill(gone).await;
    let store = cluster.store(asked);
    for n in 0..10 {
        put(&store, "k", &n.to_string()).await.unwrap();
    }
    let survey = store.survey().await;
    for (index, one) in survey.iter().enumerate() {
        assert_eq!(one.report.is_ok(), index != gone, "{one:?}");
    }
    assert!(survey[gone].lag.is_some_and(|lag| lag >= 10), "{survey:?}");
}

#[test]
fn golden_bytes() {
    let response = peer::ReportResponse {
        problem: "x".into(),
        leader_id: 1,
        term: 2,
        last_log_index: 3,
        committed_index: 4,
        applied_index: 5,
        snapshot_index: 6,
        database_size: 7,
        database_full: true,
        progress: vec![peer::Progress { node_id: 1, matched_index: 2 }],
    };
    let golden = [
        0x0a, 1, b'x', 0x10, 1, 0x18, 2, 0x20, 3, 0x28, 4, 0x30, 5, 0x38, 6, 0x40, 7, 0x48, 1, 0x52, 4, 0x08,
        1, 0x10, 2,
    ];
    assert_eq!(response.encode_to_vec(), golden);
    assert_eq!(peer::ReportResponse::decode(&golden[..]).unwrap(), response);
    assert_eq!(peer::ReportRequest {}.encode_to_vec(), [0; 0]);
}
