//! Who and what is refused, and that nothing is left of it.

use std::time::Duration;

use bytes::Bytes;
use http::uri::PathAndQuery;
use mezite_client::testing::{CLUSTER, TestCa};
use mezite_pki::identity::Identity;
use mezite_proto::{
    SERVICE_NAME,
    access::METHODS,
    v1::{
        DownloadSessionRecordingRequest, RecordingChunk, RecordingMetadata, RecordingState,
        StreamSessionRecordingRequest, UploadSessionRecordingRequest, auth_service_client::AuthServiceClient,
        stream_session_recording_request::Message,
    },
};
use recording_ingest::Handle;
use tokio::sync::mpsc;
use tonic::{Code, transport::Endpoint};
use tonic_prost::ProstCodec;
use tonic_types::StatusExt as _;

use crate::{
    cluster::{AGENT, Cluster, INGEST_ID, LIFETIME, OTHER_AGENT},
    wire::{Reply, Wire, chunk, header, id, last, metadata, payload, reason, sha256, wrapped},
};

const RECORDING_METHODS: [&str; 5] = [
    "StreamSessionRecording",
    "UploadSessionRecording",
    "ListSessionRecordings",
    "GetSessionRecording",
    "DownloadSessionRecording",
];

/// The codes of all five methods, called in a form that is right.
async fn codes(wire: &Wire) -> [Code; 5] {
    let name = id(1).to_string();
    let code = |result: Result<(), tonic::Status>| result.map_or_else(|status| status.code(), |()| Code::Ok);
    [
        code(wire.probe(id(1)).await.map(drop)),
        code(wire.upload(&name, b"hello").await.map(drop)),
        code(wire.list(Default::default()).await.map(drop)),
        code(wire.get(&name, 0, 1).await.map(drop)),
        code(wire.download(&name, 0).await.map(drop)),
    ]
}

#[tokio::test]
async fn without_a_certificate_of_the_cluster_nothing_is_answered_but_health() {
    let cluster = Cluster::new();
    let ingest = cluster.ingest("a", &[]).await;
    let nobody = Wire::new(&ingest, &cluster.script.ca, None);
    assert_eq!(codes(&nobody).await, [Code::Unauthenticated; 5]);
    let mut health = tonic_health::pb::health_client::HealthClient::new(nobody.channel.clone());
    let request = tonic_health::pb::HealthCheckRequest { service: SERVICE_NAME.into() };
    crate::wire::eventually(|| {
        let (mut health, request) = (health.clone(), request.clone());
        async move { health.check(request).await.unwrap().into_inner().status == 1 }
    })
    .await;
    assert!(health.check(tonic_health::pb::HealthCheckRequest { service: "other".into() }).await.is_err());

    // Of another CA of the same name, and one that has expired: TLS refuses both.
    let identity = || Some(Identity::Agent { cluster: CLUSTER.into(), id: AGENT.into() });
    let foreign = TestCa::new().issue(identity(), &["a"], LIFETIME);
    let expired = cluster.script.ca.issue(identity(), &["a"], (LIFETIME.0, LIFETIME.0 + 60));
    for leaf in [foreign, expired] {
        let refused = Wire::new(&ingest, &cluster.script.ca, Some(&leaf)).probe(id(1)).await.unwrap_err();
        assert!(std::error::Error::source(&refused).is_some(), "the server answered: {refused:?}");
    }
    assert!(cluster.objects().is_empty());
}

#[tokio::test]
async fn plaintext_gets_no_answer() {
    let cluster = Cluster::new();
    let ingest = cluster.ingest("a", &[]).await;
    let endpoint = Endpoint::from_shared(format!("http://{}", ingest.address())).unwrap();
    let refused = match endpoint.connect().await {
        Err(_) => return,
        Ok(channel) => {
            AuthServiceClient::new(channel).ping(mezite_proto::v1::PingRequest {}).await.unwrap_err()
        }
    };
    assert!(std::error::Error::source(&refused).is_some(), "the server answered: {refused:?}");
}

#[tokio::test]
async fn only_agents_write_and_only_auth_nodes_read() {
    let cluster = Cluster::new();
    let ingest = cluster.ingest("a", &[]).await;
    let agent = cluster.as_agent(&ingest, AGENT);
    assert_eq!(
        codes(&agent).await,
        [Code::NotFound, Code::Ok, Code::PermissionDenied, Code::PermissionDenied, Code::PermissionDenied]
    );
    let auth = cluster.as_auth(&ingest);
    assert_eq!(
        codes(&auth).await,
        [Code::PermissionDenied, Code::PermissionDenied, Code::Ok, Code::Ok, Code::Ok]
    );
    let (cluster_name, other) = (CLUSTER.to_owned(), "other".to_owned());
    for identity in [
        Some(Identity::Ingest { cluster: cluster_name.clone(), id: INGEST_ID.into() }),
        Some(Identity::User { cluster: cluster_name, name: "alice".into() }),
        Some(Identity::Agent { cluster: other.clone(), id: AGENT.into() }),
        Some(Identity::Auth { cluster: other, node_id: 1 }),
    ] {
        let leaf = cluster.script.ca.issue(identity, &["a"], LIFETIME);
        let wire = Wire::new(&ingest, &cluster.script.ca, Some(&leaf));
        assert_eq!(codes(&wire).await, [Code::PermissionDenied; 5]);
    }
    let nameless = cluster.script.ca.issue(None, &["a"], LIFETIME);
    let nameless = Wire::new(&ingest, &cluster.script.ca, Some(&nameless));
    assert_eq!(codes(&nameless).await, [Code::Unauthenticated; 5]);
}

#[tokio::test]
async fn an_agent_cannot_touch_anothers_recording() {
    let cluster = Cluster::new();
    let ingest = cluster.ingest("a", &[]).await;
    let owner = cluster.as_agent(&ingest, AGENT);
    owner.stream(vec![header(id(1), 0, Some(metadata())), chunk(0, b"hello")]).await.unwrap();
    let thief = cluster.as_agent(&ingest, OTHER_AGENT);
    // To say whose calls one relays is the auth nodes' privilege.
    let liar = cluster.as_agent(&ingest, OTHER_AGENT).relaying(AGENT);
    for wire in [&thief, &liar] {
        for messages in [
            vec![header(id(1), 0, None)],
            vec![header(id(1), 0, Some(metadata()))],
            vec![header(id(1), 5, None), chunk(5, b"!")],
            vec![header(id(1), 5, None), last(b"hello")],
        ] {
            let refused = wire.stream(messages).await.unwrap_err();
            assert_eq!((refused.code(), reason(&refused).0.as_str()), (Code::PermissionDenied, "NOT_OWNER"));
        }
        let refused = wire.upload(&id(1).to_string(), b"hello").await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
    }
    let sealed = owner.stream(vec![header(id(1), 5, None), last(b"hello")]).await.unwrap();
    assert_eq!((sealed.state(), sealed.committed_offset), (RecordingState::Complete, 5));
    assert_eq!(thief.probe(id(1)).await.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test]
async fn an_auth_node_writes_for_the_agent_that_it_names() {
    let cluster = Cluster::new();
    let ingest = cluster.ingest("a", &[]).await;
    let relay = cluster.as_auth(&ingest).relaying(AGENT);
    relay.stream(vec![header(id(1), 0, Some(metadata())), chunk(0, b"hello")]).await.unwrap();
    let refused = cluster.as_auth(&ingest).relaying(OTHER_AGENT).probe(id(1)).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert_eq!(
        cluster.as_auth(&ingest).relaying("../x").probe(id(1)).await.unwrap_err().code(),
        Code::PermissionDenied
    );
    // The agent itself can go on with it.
    assert_eq!(cluster.as_agent(&ingest, AGENT).probe(id(1)).await.unwrap().committed_offset, 5);
    let sealed = relay.stream(vec![header(id(1), 5, None), last(b"hello")]).await.unwrap();
    let manifest = recording_format::Manifest::decode(id(1), &sealed.receipt.unwrap().manifest).unwrap();
    assert_eq!((manifest.relayed_by.as_deref(), manifest.agent_certificate_sha256), (Some("auth:1"), None));
    assert_eq!(manifest.agent_id.to_string(), AGENT);
}

#[tokio::test]
async fn every_other_method_is_an_auth_nodes() {
    let cluster = Cluster::new();
    let ingest = cluster.ingest("a", &[]).await;
    let wire = cluster.as_auth(&ingest);
    let mut grpc = tonic::client::Grpc::new(wire.channel.clone());
    assert!(RECORDING_METHODS.iter().all(|name| METHODS.iter().any(|rule| rule.method == *name)));
    let others = METHODS.iter().map(|rule| rule.method).filter(|name| !RECORDING_METHODS.contains(name));
    for method in others.chain(["NoSuchMethod"]) {
        grpc.ready().await.unwrap();
        let path: PathAndQuery = format!("/{SERVICE_NAME}/{method}").parse().unwrap();
        let codec = ProstCodec::<(), ()>::default();
        let refused = grpc.unary(tonic::Request::new(()), path, codec).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unimplemented, "{method}");
        assert!(refused.message().contains("call an auth node"), "{method}");
    }
}

#[tokio::test]
async fn ids_with_path_characters_are_refused_everywhere() {
    let cluster = Cluster::new();
    let ingest = cluster.ingest("a", &[]).await;
    let (agent, auth) = (cluster.as_agent(&ingest, AGENT), cluster.as_auth(&ingest));
    for bad in
        ["", ".", "../../etc/passwd", "/etc/passwd", "01010101-0101-0101-0101-01010101010/", "a\0b", "%2e%2e"]
    {
        let named = Message::Header(mezite_proto::v1::RecordingHeader {
            recording_id: bad.into(),
            start_offset: 0,
            metadata: Some(metadata()),
        });
        let refusals = [
            agent.stream(vec![named]).await.unwrap_err(),
            agent.upload(bad, b"x").await.unwrap_err(),
            auth.get(bad, 0, 1).await.unwrap_err(),
            auth.download(bad, 0).await.unwrap_err(),
        ];
        for refused in refusals {
            assert_eq!(refused.code(), Code::InvalidArgument, "{bad:?}");
            let fields = refused.get_details_bad_request().unwrap().field_violations;
            assert!(fields[0].field.ends_with("recording_id"), "{fields:?}");
        }
    }
    assert!(cluster.objects().is_empty());
}

#[tokio::test]
async fn messages_out_of_bounds_leave_nothing_behind() {
    let cluster = Cluster::new();
    let ingest = cluster.ingest("a", &[]).await;
    let agent = cluster.as_agent(&ingest, AGENT);
    let begin = || header(id(1), 0, Some(metadata()));
    let wide = RecordingMetadata { user: "x".repeat(256), ..metadata() };
    let invalid = [
        vec![chunk(0, b"x")],
        vec![last(b"")],
        vec![begin(), begin()],
        vec![begin(), last(b""), chunk(0, b"x")],
        vec![header(id(2), 0, Some(wide))],
        vec![begin(), chunk(0, &payload((1 << 20) + 1))],
        vec![begin(), chunk(0, &payload(5 << 20))],
        vec![begin(), chunk(u64::MAX, b"x")],
        vec![
            begin(),
            Message::Final(mezite_proto::v1::RecordingFinal { total_length: 0, ..Default::default() }),
        ],
    ];
    for (n, messages) in invalid.into_iter().enumerate() {
        let refused = agent.stream(messages).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{n}: {refused:?}");
    }
    let mut empty = agent.request(tokio_stream::iter([Default::default()]));
    *empty.get_mut() = tokio_stream::iter([Default::default()]);
    let refused = agent.client.clone().stream_session_recording(empty).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    // The greatest that is taken.
    let full = payload(1 << 20);
    let reply = agent.stream(vec![begin(), chunk(0, &full), last(&full)]).await.unwrap();
    assert_eq!((reply.committed_offset, reply.state()), (1 << 20, RecordingState::Complete));
}

#[tokio::test]
async fn a_gap_is_out_of_range_and_a_bad_checksum_data_loss() {
    let cluster = Cluster::new();
    let ingest = cluster.ingest("a", &[]).await;
    let agent = cluster.as_agent(&ingest, AGENT);
    let ahead = agent.stream(vec![header(id(2), 4, Some(metadata()))]).await.unwrap_err();
    assert_eq!((ahead.code(), reason(&ahead).1["expected_offset"].as_str()), (Code::OutOfRange, "0"));
    assert_eq!(agent.probe(id(2)).await.unwrap_err().code(), Code::NotFound);

    let begin = header(id(1), 0, Some(metadata()));
    let ahead = agent.stream(vec![begin, chunk(0, b"hello"), chunk(6, b"x")]).await.unwrap_err();
    assert_eq!((ahead.code(), reason(&ahead).1["expected_offset"].as_str()), (Code::OutOfRange, "5"));
    // What came before the gap is kept.
    assert_eq!(agent.probe(id(1)).await.unwrap().committed_offset, 5);
    assert_eq!(agent.stream(vec![header(id(1), 6, None)]).await.unwrap_err().code(), Code::OutOfRange);

    let damaged = Message::Chunk(RecordingChunk { offset: 5, data: Bytes::from_static(b" wor"), crc32c: 1 });
    let refused = agent.stream(vec![header(id(1), 5, None), damaged, chunk(9, b"ld")]).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).0.as_str()), (Code::DataLoss, "BAD_CHECKSUM"));
    assert_eq!(agent.probe(id(1)).await.unwrap().committed_offset, 5);
}

#[tokio::test]
async fn an_end_that_is_not_the_stored_one_is_refused() {
    let cluster = Cluster::new();
    let ingest = cluster.ingest("a", &[]).await;
    let agent = cluster.as_agent(&ingest, AGENT);
    agent.stream(vec![header(id(1), 0, Some(metadata())), chunk(0, b"hello")]).await.unwrap();
    for (end, code, why) in [
        (last(b"hellO"), Code::DataLoss, "PAYLOAD_MISMATCH"),
        (last(b"hell"), Code::FailedPrecondition, "TOTAL_TOO_SMALL"),
        (last(b"hello!"), Code::OutOfRange, "OFFSET_AHEAD"),
    ] {
        let refused = agent.stream(vec![header(id(1), 5, None), end]).await.unwrap_err();
        assert_eq!((refused.code(), reason(&refused).0.as_str()), (code, why));
    }
    let other = RecordingMetadata { user: "mallory".into(), ..metadata() };
    let refused = agent.stream(vec![header(id(1), 5, Some(other))]).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).0.as_str()), (Code::FailedPrecondition, "METADATA_DIFFERS"));
    let sealed = agent.stream(vec![header(id(1), 5, Some(metadata())), last(b"hello")]).await.unwrap();
    assert_eq!(sealed.state(), RecordingState::Complete);
}

#[tokio::test]
async fn an_upload_with_a_wrong_digest_leaves_nothing_behind() {
    let cluster = Cluster::new();
    let ingest = cluster.ingest("a", &[]).await;
    let agent = cluster.as_agent(&ingest, AGENT);
    let upload = |sha256: Bytes| UploadSessionRecordingRequest {
        recording_id: id(1).to_string(),
        metadata: Some(metadata()),
        data: Bytes::from_static(b"hello"),
        payload_sha256: sha256,
    };
    for (digest, code) in
        [(sha256(b"other"), Code::DataLoss), (Bytes::from_static(b"short"), Code::InvalidArgument)]
    {
        let refused = agent.client.clone().upload_session_recording(upload(digest)).await.unwrap_err();
        assert_eq!(refused.code(), code);
    }
    assert!(cluster.objects().is_empty());
}

/// Begins the only recording that an ingest has, and waits until it counts.
async fn open_and_hold(
    ingest: &Handle,
    agent: &Wire,
) -> (mpsc::Sender<StreamSessionRecordingRequest>, Reply) {
    let (sender, reply) = agent.open();
    sender.send(wrapped(header(id(1), 0, Some(metadata())))).await.unwrap();
    let diagnostics = ingest.diagnostics_address();
    crate::wire::eventually(|| async move {
        crate::wire::page(diagnostics, "/metrics").await.1.contains("mezite_ingest_open_streams 1")
    })
    .await;
    (sender, reply)
}

#[tokio::test]
async fn only_so_many_calls_write_at_a_time() {
    let cluster = Cluster::new();
    let ingest = cluster.ingest("a", &["limits.max_streams=1"]).await;
    let agent = cluster.as_agent(&ingest, AGENT);
    let (sender, reply) = open_and_hold(&ingest, &agent).await;
    let refused = agent.probe(id(1)).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).0.as_str()), (Code::ResourceExhausted, "TOO_MANY_STREAMS"));
    assert_eq!(refused.get_details_retry_info().unwrap().retry_delay, Some(Duration::from_secs(1)));
    drop(sender);
    reply.await.unwrap().unwrap();
    agent.probe(id(1)).await.unwrap();
}

#[tokio::test]
async fn one_agent_leaves_places_to_the_others() {
    let cluster = Cluster::new();
    let ingest = cluster.ingest("a", &["limits.max_streams_per_agent=1"]).await;
    let agent = cluster.as_agent(&ingest, AGENT);
    let (sender, reply) = open_and_hold(&ingest, &agent).await;
    // By whichever way.
    for way in [agent.clone(), cluster.as_auth(&ingest).relaying(AGENT)] {
        let refused = way.probe(id(2)).await.unwrap_err();
        let told = (refused.code(), reason(&refused).0);
        assert_eq!(told, (Code::ResourceExhausted, "TOO_MANY_STREAMS".to_owned()));
        assert!(refused.get_details_retry_info().unwrap().retry_delay.is_some());
    }
    let other = cluster.as_agent(&ingest, OTHER_AGENT);
    other.stream(vec![header(id(3), 0, Some(metadata())), chunk(0, b"x"), last(b"x")]).await.unwrap();
    drop(sender);
    reply.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_download_that_nobody_reads_gives_its_place_up() {
    let cluster = Cluster::new();
    let settings = ["limits.max_downloads=1", "limits.message_timeout=1s"];
    let ingest = cluster.ingest("a", &settings).await;
    let data = payload(12 << 20);
    let mut messages = vec![header(id(1), 0, Some(metadata()))];
    let pieces = data.chunks(1 << 20).enumerate();
    messages.extend(pieces.map(|(number, piece)| chunk((number as u64) << 20, piece)));
    messages.push(last(&data));
    cluster.as_agent(&ingest, AGENT).stream(messages).await.unwrap();

    let (unread, auth) = (cluster.as_auth(&ingest), cluster.as_auth(&ingest));
    let name = id(1).to_string();
    let request = DownloadSessionRecordingRequest { recording_id: name.clone(), offset: 0 };
    let mut unread = unread.client.clone().download_session_recording(request).await.unwrap().into_inner();
    let refused = auth.download(&name, 0).await.unwrap_err();
    assert_eq!(
        (refused.code(), reason(&refused).0.as_str()),
        (Code::ResourceExhausted, "TOO_MANY_DOWNLOADS")
    );
    crate::wire::eventually(|| async { auth.download(&name, 0).await.is_ok_and(|all| all == data) }).await;
    // Who comes back to it finds that it is not whole.
    let ended = loop {
        match unread.message().await {
            Ok(piece) => assert!(piece.is_some(), "it looks whole"),
            Err(ended) => break ended,
        }
    };
    assert_eq!((ended.code(), reason(&ended).0.as_str()), (Code::DeadlineExceeded, "IDLE"));
}

#[tokio::test]
async fn silence_ends_a_call_and_keeps_what_it_brought() {
    let cluster = Cluster::new();
    let ingest = cluster.ingest("a", &["limits.message_timeout=2s"]).await;
    let agent = cluster.as_agent(&ingest, AGENT);
    let (sender, reply) = agent.open();
    sender.send(wrapped(header(id(1), 0, Some(metadata())))).await.unwrap();
    sender.send(wrapped(chunk(0, b"hello"))).await.unwrap();
    let refused = reply.await.unwrap().unwrap_err();
    assert_eq!((refused.code(), reason(&refused).0.as_str()), (Code::DeadlineExceeded, "IDLE"));
    assert_eq!(agent.probe(id(1)).await.unwrap().committed_offset, 5);
}
