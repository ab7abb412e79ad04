//! SIGTERM: what was begun is finished, what is new goes elsewhere, and the program ends with 0.

use std::time::{Duration, Instant};

use mezite_client::Retry;
use mezite_e2e::{ADMIN, Agent, AgentSpec, Cluster, Ingest, PASSWORD, Setup, api, call, http};
use mezite_proto::v1;
use nix::sys::signal::Signal;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::support::{asciicast, chunk, fetch, header, metadata, recording_id, upload};

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_told_to_stop_ends_well_and_comes_back_with_everything() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    for index in [leader, (leader + 1) % 3, (leader + 2) % 3] {
        let name = format!("user-{index}");
        cluster.add_user(&name, &["access"], &[]).await;
        let status = cluster.node(index).stop().await;
        assert_eq!(status.code(), Some(0));
        // The others serve, and one of them leads.
        let while_away = format!("while-{index}-was-away");
        cluster.add_user(&while_away, &["access"], &[]).await;
        let _ = cluster.ctl().ok(&["users", "get", &while_away]);
        cluster.node(index).start();
        cluster.node(index).ready().await;
        for name in [name, while_away] {
            call!(cluster.admin_at(index), get_user, v1::GetUserRequest { name }).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_in_progress_are_answered_before_the_node_ends() {
    let mut cluster = Cluster::start(1).await;
    let trust = cluster.trust().clone();
    let stub = api::stub(&cluster.nodes()[0].address(), &trust, api::tls(&trust, true, None));
    let (sender, mut answered) = mpsc::channel(64);
    // Password hashes, one after the other: the last of these takes its time.
    for _ in 0..16 {
        let (mut stub, sender) = (stub.clone(), sender.clone());
        tokio::spawn(async move {
            let request = v1::AuthenticateLocalRequest { username: ADMIN.into(), password: PASSWORD.into() };
            sender.send(stub.authenticate_local(request).await.map(drop)).await.unwrap();
        });
    }
    drop(sender);
    answered.recv().await.unwrap().unwrap();
    let status = cluster.node(0).stop().await;
    let mut count = 1;
    while let Some(answer) = answered.recv().await {
        answer.unwrap();
        count += 1;
    }
    assert_eq!((count, status.code()), (16, Some(0)));
}

/// What waits for a quorum that is gone does not keep the last node from ending: systemd kills what takes longer than 30 s.
#[tokio::test(flavor = "multi_thread")]
async fn the_last_node_ends_in_time_while_calls_and_jobs_wait_for_the_quorum() {
    // A look at whether there is a quorum waits for a quarter of this, but for a minute at most.
    let set = vec!["presence.ttl=10m".to_owned()];
    let mut cluster = Cluster::start_with(&Setup { nodes: 3, set, ..Setup::default() }).await;
    let _agent = Agent::join(&cluster, AgentSpec::default()).run();
    let last = cluster.leader().await;
    for index in (0..3).filter(|index| *index != last) {
        cluster.node(index).kill();
    }
    let trust = cluster.trust().clone();
    let stub = api::stub(&cluster.nodes()[last].address(), &trust, api::tls(&trust, true, None));
    let logins: Vec<_> = (0..4)
        .map(|_| {
            let mut stub = stub.clone();
            tokio::spawn(async move {
                loop {
                    let request =
                        v1::AuthenticateLocalRequest { username: ADMIN.into(), password: PASSWORD.into() };
                    let _ = stub.authenticate_local(request).await;
                }
            })
        })
        .collect();
    let diagnostics = cluster.nodes()[last].diagnostics_address();
    mezite_e2e::eventually("the node misses the quorum", Duration::from_secs(60), async || match http::get(
        &diagnostics,
        "/readyz",
    )
    .await
    {
        Ok((503, body)) if body.contains("no leader with a quorum") => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    // There is a look each second: the next one has begun by then.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let told = Instant::now();
    assert_eq!(cluster.node(last).stop().await.code(), Some(0));
    let took = told.elapsed();
    logins.iter().for_each(tokio::task::JoinHandle::abort);
    assert!(took < Duration::from_secs(15), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_connection_does_not_keep_a_node_from_ending() {
    let mut cluster = Cluster::start(1).await;
    let client = cluster.anonymous_at(0);
    client.ping().await.unwrap();
    // One that never finishes its handshake, too.
    let _silent = tokio::net::TcpStream::connect(cluster.nodes()[0].address()).await.unwrap();
    assert_eq!(cluster.node(0).stop().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ingest_that_leaves_says_how_far_it_got() {
    let cluster = Cluster::start(1).await;
    let (mut ingests, _) = Ingest::start_all(&cluster, 2).await;
    let agent = Agent::join(&cluster, AgentSpec::default());
    let client = agent.client(&cluster);
    let first = client.for_recordings(&[ingests[0].address()]).unwrap();
    let (id, cast) = (recording_id(), asciicast(200_000));

    let (sender, receiver) = mpsc::channel(8);
    sender.send(header(id, 0, Some(metadata("alice")))).await.unwrap();
    sender.send(chunk(0, &cast[..100_000])).await.unwrap();
    let receiver = std::sync::Arc::new(std::sync::Mutex::new(Some(receiver)));
    let call = tokio::spawn(async move {
        let send = |mut auth: mezite_client::AuthClient, ()| {
            let messages = ReceiverStream::new(receiver.lock().unwrap().take().unwrap());
            async move { auth.stream_session_recording(messages).await }
        };
        first.call(Retry::Idempotent, (), send).await
    });
    // The header has arrived once the recording is known.
    mezite_e2e::eventually("the recording begins", Duration::from_secs(60), async || {
        fetch(&cluster.admin(), id).await.map(drop)
    })
    .await;
    ingests[0].process().signal(Signal::SIGTERM);
    let reply = call.await.unwrap().unwrap();
    assert!(reply.reconnect);
    assert_eq!(reply.state(), v1::RecordingState::InProgress);
    assert!([0, 100_000].contains(&reply.committed_offset), "{reply:?}");
    assert_eq!(ingests[0].ended().await.code(), Some(0));
    drop(sender);

    let second = client.for_recordings(&[ingests[1].address()]).unwrap();
    let receipt = upload(&second, id, &metadata("alice"), &cast).await.unwrap();
    assert_eq!(receipt.manifest.length, cast.len() as u64);
    assert!(fetch(&cluster.admin(), id).await.unwrap().1 == cast);
}
