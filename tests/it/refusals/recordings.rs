//! Recordings: whose they are, what they are called, and that nothing but what was sent is kept.

use std::path::{Path, PathBuf};

use mezite_client::{Client, ClientError, UploadError};
use mezite_e2e::{Agent, AgentSpec, Cluster, Ingest, all_files, api, call};
use mezite_proto::v1::{self, stream_session_recording_request::Message};
use recording_format::ObjectKey;
use sha2::{Digest as _, Sha256};
use tonic::Code;

use crate::support::{asciicast, chunk, header, metadata, recording_id, stream, upload};

/// One auth node, one ingest, two agents; a client of each agent that goes to the ingest, and one through the node.
struct Scene {
    ingests: Vec<Ingest>,
    store: PathBuf,
    one: [Client; 2],
    other: [Client; 2],
    // The last: the others write to its folder until they end.
    cluster: Cluster,
}

async fn scene() -> Scene {
    let cluster = Cluster::start(1).await;
    let (ingests, store) = Ingest::start_all(&cluster, 1).await;
    let agent = |hostname| Agent::join(&cluster, AgentSpec { hostname, ..AgentSpec::default() });
    let clients = |agent: &Agent| {
        let relayed = agent.client(&cluster);
        [relayed.for_recordings(&[ingests[0].address()]).unwrap(), relayed]
    };
    let (one, other) = (agent("web1.example.org"), agent("web2.example.org"));
    let (one, other) = (clients(&one), clients(&other));
    Scene { cluster, ingests, store, one, other }
}

/// All objects of a store but the notices for the cluster, which go when it was told.
fn recordings(store: &Path) -> Vec<PathBuf> {
    all_files(store).into_iter().filter(|file| !file.starts_with(store.join(ObjectKey::AUDIT))).collect()
}

fn whole(id: impl ToString, data: &[u8]) -> v1::UploadSessionRecordingRequest {
    v1::UploadSessionRecordingRequest {
        recording_id: id.to_string(),
        metadata: Some(metadata("alice")),
        data: data.to_vec().into(),
        payload_sha256: Sha256::digest(data).to_vec().into(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_cannot_write_complete_or_read_anothers_recording() {
    let scene = scene().await;
    let cast = asciicast(20_000);
    let (open, sealed) = (recording_id(), recording_id());
    let begun = vec![header(open, 0, Some(metadata("alice"))), chunk(0, &cast)];
    assert_eq!(stream(&scene.one[0], begun).await.unwrap().committed_offset, cast.len() as u64);
    upload(&scene.one[0], sealed, &metadata("alice"), &cast).await.unwrap();
    let before = recordings(&scene.store);

    for (route, client) in scene.other.iter().enumerate() {
        for id in [open, sealed] {
            let probe = vec![header(id, 0, None)];
            api::refused(stream(client, probe).await, Code::PermissionDenied);
            let more = vec![header(id, cast.len() as u64, None), chunk(cast.len() as u64, b"more")];
            api::refused(stream(client, more).await, Code::PermissionDenied);
            let again = vec![header(id, 0, Some(metadata("alice"))), chunk(0, &cast)];
            api::refused(stream(client, again).await, Code::PermissionDenied);
            let request = whole(id, &cast);
            api::refused(call!(client, upload_session_recording, request), Code::PermissionDenied);
            match upload(client, id, &metadata("alice"), &cast).await {
                Err(UploadError::Client(error)) => assert_eq!(error.code(), Some(Code::PermissionDenied)),
                other => panic!("route {route}: {other:?}"),
            }
            // Recordings are read by people, through an auth node.
            let get = v1::GetSessionRecordingRequest {
                recording_id: id.to_string(),
                limit: 10,
                ..Default::default()
            };
            api::refused(call!(client, get_session_recording, get), Code::PermissionDenied);
        }
        let list = v1::ListSessionRecordingsRequest::default();
        api::refused(call!(client, list_session_recordings, list), Code::PermissionDenied);
    }
    assert_eq!(recordings(&scene.store), before);
    let receipt = upload(&scene.one[0], open, &metadata("alice"), &cast).await.unwrap();
    assert_eq!(receipt.manifest.length, cast.len() as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_writes_without_an_agents_certificate() {
    let scene = scene().await;
    let trust = scene.cluster.trust();
    let address = [scene.cluster.nodes()[0].address()];
    let anonymous = api::client(&address, trust, None, None);
    let admin = scene.cluster.admin();
    let direct = |client: &Client| client.for_recordings(&[scene.ingests[0].address()]).unwrap();
    for (client, relayed) in [
        (direct(&anonymous), Code::Unauthenticated),
        (anonymous, Code::Unauthenticated),
        (direct(&admin), Code::Unauthenticated),
        (admin, Code::PermissionDenied),
    ] {
        let begin = vec![header(recording_id(), 0, Some(metadata("alice"))), chunk(0, b"x")];
        api::refused(stream(&client, begin).await, relayed);
        api::refused(call!(client, upload_session_recording, whole(recording_id(), b"x")), relayed);
    }
    assert!(all_files(&scene.store).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_is_a_uuid_and_never_a_path() {
    let scene = scene().await;
    let good = recording_id().to_string();
    let admin = scene.cluster.admin();
    for id in [
        "",
        ".",
        "..",
        "../../../../../tmp/x",
        "/etc/passwd",
        "a/b",
        "%2e%2e%2f",
        "..\\x",
        "x\0y",
        &good.to_uppercase(),
        &good.replace('-', ""),
        &format!("{good}/../x"),
        &format!("{{{good}}}"),
        &format!(" {good}"),
    ] {
        // The one spelling that has no other case is not wrong.
        if id == good {
            continue;
        }
        for client in &scene.one {
            let begin = vec![header(id, 0, Some(metadata("alice"))), chunk(0, b"x")];
            api::refused(stream(client, begin).await, Code::InvalidArgument);
            api::refused(call!(client, upload_session_recording, whole(id, b"x")), Code::InvalidArgument);
        }
        let get = v1::GetSessionRecordingRequest { recording_id: id.into(), limit: 10, ..Default::default() };
        api::refused(call!(admin, get_session_recording, get), Code::InvalidArgument);
        let download = v1::DownloadSessionRecordingRequest { recording_id: id.into(), offset: 0 };
        api::refused(call!(admin, download_session_recording, download).map(drop), Code::InvalidArgument);
    }
    assert!(all_files(&scene.store).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn names_elsewhere_are_never_paths_either() {
    let cluster = Cluster::start(1).await;
    let admin = cluster.admin();
    for name in ["../x", "a/b", "x\0y", "a b", "{{internal.logins}}", "*", &"x".repeat(64)] {
        let user = v1::User { name: name.into(), roles: vec!["access".into()], ..Default::default() };
        let request = v1::CreateUserRequest {
            user: Some(user),
            password: mezite_e2e::PASSWORD.into(),
            ..Default::default()
        };
        let status = api::refused(call!(admin, create_user, request), Code::InvalidArgument);
        assert!(status.violations.iter().any(|violation| violation.field.contains("name")), "{status:?}");

        let role = v1::Role { name: name.into(), ..Default::default() };
        let request = v1::CreateRoleRequest { role: Some(role) };
        let status = api::refused(call!(admin, create_role, request), Code::InvalidArgument);
        assert!(status.violations.iter().any(|violation| violation.field.contains("name")), "{status:?}");

        let kind = v1::TokenKind::Node.into();
        let request = v1::CreateTokenRequest { name: name.into(), kind, ..Default::default() };
        api::refused(call!(admin, create_token, request), Code::InvalidArgument);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_arrives_damaged_or_out_of_place_is_not_kept() {
    let scene = scene().await;
    let cast = asciicast(50_000);
    for client in &scene.one {
        let id = recording_id();
        let mut damaged = chunk(10_000, &cast[10_000..20_000]);
        if let Some(Message::Chunk(chunk)) = &mut damaged.message {
            chunk.crc32c ^= 1;
        }
        let begin = header(id, 0, Some(metadata("alice")));
        let messages = vec![begin.clone(), chunk(0, &cast[..10_000]), damaged];
        api::refused(stream(client, messages).await, Code::DataLoss);
        let probed = stream(client, vec![header(id, 0, None)]).await.unwrap();
        assert_eq!((probed.committed_offset, probed.state()), (10_000, v1::RecordingState::InProgress));

        let ahead = vec![header(id, 30_000, None), chunk(30_000, &cast[30_000..])];
        let refused = api::refused(stream(client, ahead).await, Code::OutOfRange);
        assert!(refused.message.contains("10000"), "{refused}");
        // What is there already is the same twice; what overlaps is cut.
        let overlap =
            vec![header(id, 0, None), chunk(0, &cast[..10_000]), chunk(5_000, &cast[5_000..20_000])];
        assert_eq!(stream(client, overlap).await.unwrap().committed_offset, 20_000);

        let receipt = upload(client, id, &metadata("alice"), &cast).await.unwrap();
        assert_eq!(receipt.manifest.length, cast.len() as u64);
        let again = upload(client, id, &metadata("alice"), &cast).await.unwrap();
        assert_eq!(again.signed.manifest, receipt.signed.manifest, "the same receipt again");
        let mut other = cast.clone();
        other[0] ^= 1;
        match call!(client, upload_session_recording, whole(id, &other)) {
            Err(ClientError::Status(status)) => assert_eq!(status.code, Code::FailedPrecondition),
            other => panic!("{other:?}"),
        }
    }
}
