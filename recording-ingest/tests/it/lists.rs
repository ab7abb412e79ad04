//! Lists: filters, pages, tokens, and an index that is lost.

use std::fs;

use mezite_proto::v1::{ListSessionRecordingsRequest as List, RecordingMetadata, RecordingState};
use prost_types::Timestamp;
use tonic::Code;

use crate::{
    cluster::{AGENT, Cluster, HOSTNAME},
    wire::{Wire, chunk, header, id, last, metadata},
};

async fn write(agent: &Wire, n: u8, user: &str, started: i64, seal: bool) {
    let metadata = RecordingMetadata {
        user: user.into(),
        started_at: Some(Timestamp { seconds: started, nanos: 0 }),
        labels: [("n".to_owned(), n.to_string())].into(),
        ..metadata()
    };
    let mut messages = vec![header(id(n), 0, Some(metadata)), chunk(0, b"x")];
    messages.extend(seal.then(|| last(b"x")));
    agent.stream(messages).await.unwrap();
}

async fn listed(auth: &Wire, request: List) -> Vec<u8> {
    let reply = auth.list(request).await.unwrap();
    assert_eq!(reply.next_page_token, "");
    reply.recordings.iter().map(|row| u8::from_str_radix(&row.recording_id[..2], 16).unwrap()).collect()
}

async fn four(cluster: &Cluster, agent: &Wire) {
    assert!(cluster.objects().is_empty());
    write(agent, 1, "alice", 1_700_000_000, true).await;
    write(agent, 2, "bob", 1_700_000_300, true).await;
    write(agent, 3, "alice", 1_700_000_100, false).await;
    write(agent, 4, "alice", 1_700_000_200, true).await;
}

#[tokio::test]
async fn filters_narrow_a_list_that_is_newest_first() {
    let cluster = Cluster::new();
    let ingest = cluster.ingest("a", &[]).await;
    let auth = cluster.as_auth(&ingest);
    four(&cluster, &cluster.as_agent(&ingest, AGENT)).await;
    assert_eq!(listed(&auth, List::default()).await, [2, 4, 3, 1]);
    let time = |seconds| Some(Timestamp { seconds, nanos: 0 });
    for (request, expected) in [
        (List { user: "alice".into(), ..List::default() }, vec![4, 3, 1]),
        (List { user: "carol".into(), ..List::default() }, vec![]),
        (List { login: "root".into(), node: HOSTNAME.into(), ..List::default() }, vec![2, 4, 3, 1]),
        (List { node: "db".into(), ..List::default() }, vec![]),
        (List { state: RecordingState::InProgress.into(), ..List::default() }, vec![3]),
        (List { state: RecordingState::Complete.into(), ..List::default() }, vec![2, 4, 1]),
        (List { labels: [("n".to_owned(), "4".to_owned())].into(), ..List::default() }, vec![4]),
        (List { to: time(1_700_000_200), ..List::default() }, vec![3, 1]),
        (List { from: time(1_700_000_200), ..List::default() }, vec![2, 4, 3]),
    ] {
        assert_eq!(listed(&auth, request.clone()).await, expected, "{request:?}");
    }
}

#[tokio::test]
async fn pages_lose_nothing_and_tokens_are_checked() {
    let cluster = Cluster::new();
    let ingest = cluster.ingest("a", &[]).await;
    let auth = cluster.as_auth(&ingest);
    four(&cluster, &cluster.as_agent(&ingest, AGENT)).await;
    let alices = |page_token: &str| List {
        user: "alice".into(),
        page_size: 2,
        page_token: page_token.into(),
        ..List::default()
    };
    let first = auth.list(alices("")).await.unwrap();
    assert_eq!(first.recordings.len(), 2);
    let token = first.next_page_token;
    assert_eq!(listed(&auth, alices(&token)).await, [1]);
    for wrong in [
        List { user: "bob".into(), ..alices(&token) },
        alices("../../etc/passwd"),
        alices(&"0".repeat(1 << 20)),
        List { state: 77, ..List::default() },
        List { user: "x".repeat(256), ..List::default() },
        List { from: Some(Timestamp { seconds: -1, nanos: 0 }), ..List::default() },
    ] {
        assert_eq!(auth.list(wrong).await.unwrap_err().code(), Code::InvalidArgument);
    }
}

#[tokio::test]
async fn what_a_crash_left_undone_after_the_seal_is_done() {
    let cluster = Cluster::new();
    let ingest = cluster.ingest("a", &[]).await;
    write(&cluster.as_agent(&ingest, AGENT), 1, "alice", 1_700_000_000, true).await;
    let entry = format!("idx/v1/2023/11/14/22/1700000000000-{}-0000.json", id(1));
    let marker = format!("open/v1/{}", id(1));
    let is_whole = async || {
        let objects = cluster.objects();
        objects.contains(&entry) && !objects.contains(&marker)
    };
    assert!(is_whole().await);
    // A replica that runs comes across what another one left behind.
    fs::write(cluster.store().join(&marker), "{}").unwrap();
    crate::wire::eventually(is_whole).await;
    assert!(ingest.stop().await);
    // As does one that starts.
    fs::remove_file(cluster.store().join(&entry)).unwrap();
    fs::write(cluster.store().join(&marker), "{}").unwrap();
    let ingest = cluster.ingest("a", &[]).await;
    crate::wire::eventually(is_whole).await;
    assert_eq!(listed(&cluster.as_auth(&ingest), List::default()).await, [1]);
}

#[tokio::test]
async fn a_lost_index_is_built_again_from_the_recordings() {
    let cluster = Cluster::new();
    let ingest = cluster.ingest("a", &[]).await;
    four(&cluster, &cluster.as_agent(&ingest, AGENT)).await;
    assert!(ingest.stop().await);
    for prefix in ["idx", "open"] {
        fs::remove_dir_all(cluster.store().join(prefix)).unwrap();
    }
    let ingest = cluster.ingest("a", &[]).await;
    let auth = cluster.as_auth(&ingest);
    crate::wire::eventually(|| async { listed(&auth, List::default()).await == [2, 4, 3, 1] }).await;
}
