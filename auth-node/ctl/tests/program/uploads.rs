//! What a host could not send by itself, sent by hand; and what is said of what is not taken.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use mezite_client::{Session, Spool, testing::Call, testing::receipt};
use mezite_proto::v1::{self, stream_session_recording_request::Message};
use prost::Message as _;
use recording_format::{Digest, RecordingId};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::cluster::{AGENT, Cluster};

/// Another agent's.
const OTHERS: &str = "0190a1b2-0000-4000-8000-000000000001";
/// Sealed at the size limit.
const LONG: &str = "0190a1b2-0000-4000-8000-000000000002";
/// Sealed, with another payload.
const SEALED: &str = "0190a1b2-0000-4000-8000-000000000003";
/// For which nobody has room now.
const WAITING: &str = "0190a1b2-0000-4000-8000-000000000004";

/// What was begun, by id.
type Taken = Arc<Mutex<BTreeMap<String, (v1::RecordingMetadata, Vec<u8>)>>>;

fn take(taken: &Taken, call: &Call) -> Result<v1::StreamSessionRecordingResponse, Status> {
    let mut taken = taken.lock().unwrap();
    let mut reply = v1::StreamSessionRecordingResponse::default();
    for message in call.requests::<v1::StreamSessionRecordingRequest>() {
        match message.message.unwrap() {
            Message::Header(header) => {
                reply.recording_id = header.recording_id;
                match (reply.recording_id.as_str(), header.metadata) {
                    (OTHERS, _) => {
                        let why = ErrorDetails::with_error_info("NOT_OWNER", "mezite", HashMap::new());
                        let said = "the recording belongs to another agent";
                        return Err(Status::with_error_details(Code::PermissionDenied, said, why));
                    }
                    (WAITING, _) => return Err(Status::resource_exhausted("no room")),
                    (LONG, _) => {
                        reply.committed_offset = 3;
                        reply.set_state(v1::RecordingState::Truncated);
                        return Ok(reply);
                    }
                    (SEALED, _) => taken.insert(SEALED.into(), (Default::default(), b"another\n".into())),
                    (id, Some(metadata)) => taken.insert(id.into(), (metadata, Vec::new())),
                    (id, None) if taken.contains_key(id) => None,
                    (_, None) => return Err(Status::not_found("no such recording")),
                };
            }
            Message::Chunk(chunk) => {
                taken.get_mut(&reply.recording_id).unwrap().1.extend_from_slice(&chunk.data);
            }
            Message::Final(_) => reply.set_state(v1::RecordingState::Complete),
        }
    }
    let payload = &taken[&reply.recording_id].1;
    reply.committed_offset = payload.len() as u64;
    if reply.recording_id == SEALED {
        reply.set_state(v1::RecordingState::Complete);
    }
    if reply.state() == v1::RecordingState::Complete {
        let id = reply.recording_id.parse().unwrap();
        reply.receipt = Some(receipt(id, AGENT.parse().unwrap(), payload));
    }
    Ok(reply)
}

/// A cluster in which a host has joined.
fn joined() -> (Cluster, Taken) {
    let taken = Taken::default();
    let shared = Arc::clone(&taken);
    let cluster = Cluster::answering(move |call| match call.method.as_str() {
        "StreamSessionRecording" if call.certified => Ok(take(&shared, call)?.encode_to_vec()),
        _ => Err(Status::permission_denied("not for you")),
    });
    let join = ["agent", "join", "--out", "agent", "--token-file", "token", "--hostname", "web1.example.org"];
    cluster.first(&join).ok();
    (cluster, taken)
}

/// What `agent run` set aside: a session of ann's, on a host of this name.
fn set_aside(cluster: &Cluster, node: &str) -> PathBuf {
    let root = cluster.path("spool");
    let (spool, _) = Spool::open(&root, 1 << 20).unwrap();
    let id: RecordingId = OTHERS.parse().unwrap();
    let mut session = Session::new(id, 1_700_000_000_000, Digest::of(b"secret"));
    (session.user, session.login) = ("ann".into(), "root".into());
    (session.node, session.format) = (node.into(), "asciicast-v3".into());
    session.labels.insert("command".into(), "ls -l 'a b'".into());
    let mut writer = spool.create(session).unwrap();
    writer.append(b"a line\n").unwrap();
    writer.end(1_700_000_005_000, &[]).unwrap();
    let aside = root.join("aside").join(OTHERS);
    fs::rename(root.join("sessions").join(OTHERS), &aside).unwrap();
    aside
}

#[test]
fn what_was_set_aside_is_sent_as_a_new_recording_of_the_same_session() {
    for (node, recorded_on) in [("web1.example.org", None), ("old.example.org", Some("old.example.org"))] {
        let (cluster, taken) = joined();
        let aside = set_aside(&cluster, node);
        let printed =
            cluster.run(&["recordings", "upload", aside.to_str().unwrap(), "--agent", "agent"]).ok();
        let taken = taken.lock().unwrap();
        let (id, (metadata, payload)) = taken.first_key_value().unwrap();
        assert!(printed.contains(id) && id != OTHERS && taken.len() == 1, "{printed}");
        assert_eq!(payload, b"a line\n");
        assert_eq!((metadata.user.as_str(), metadata.login.as_str()), ("ann", "root"));
        // The cluster takes what is of the agent's own host alone.
        assert_eq!((metadata.node.as_str(), metadata.format.as_str()), ("web1.example.org", "asciicast-v3"));
        let seconds = |time: Option<prost_types::Timestamp>| time.unwrap().seconds;
        assert_eq!(
            (seconds(metadata.started_at), seconds(metadata.ended_at)),
            (1_700_000_000, 1_700_000_005)
        );
        let label = |name: &str| metadata.labels.get(name).map(String::as_str);
        assert_eq!(label("command"), Some("ls -l 'a b'"));
        assert_eq!((label("recorded_as"), label("recorded_on")), (Some(OTHERS), recorded_on));
        assert!(aside.join("payload").exists());
    }
}

#[test]
fn what_is_not_as_it_was_recorded_is_not_sent_as_if_it_were() {
    let (cluster, taken) = joined();
    let aside = set_aside(&cluster, "web1.example.org");
    let folder = aside.to_str().unwrap();
    fs::write(aside.join("payload"), b"A LINE\n").unwrap();
    let said = cluster.run(&["recordings", "upload", folder, "--agent", "agent"]).fails(1);
    assert!(said.contains("is not what was recorded any more"), "{said}");
    assert!(taken.lock().unwrap().is_empty());
    let payload = format!("{folder}/payload");
    cluster.run(&["recordings", "upload", &payload, "--agent", "agent", "--user", "ann"]).ok();
    // Any other folder is none.
    let said = cluster.run(&["recordings", "upload", "spool", "--agent", "agent"]).fails(2);
    assert!(said.contains("no recording of a spool"), "{said}");
}

#[test]
fn who_cannot_send_a_recording_is_told_what_helps() {
    let (cluster, _) = joined();
    fs::write(cluster.path("session.cast"), b"a line\n").unwrap();
    let upload = |id: &str, code| {
        let line = ["recordings", "upload", "session.cast", "--agent=agent", "--timeout=1s", "--id", id];
        cluster.run(&line).fails(code)
    };
    let again = |id: &str| format!("send it again with --id {id}");
    for (id, code, says) in [
        (OTHERS, 3, "belongs to another agent"),
        (LONG, 1, "3 of 7 bytes are kept"),
        (SEALED, 1, "another payload under this id"),
    ] {
        let said = upload(id, code);
        assert!(said.contains(says) && said.contains(id) && !said.contains(&again(id)), "{said}");
    }
    let said = upload(WAITING, 1);
    assert!(said.contains(&again(WAITING)), "{said}");
    let said = cluster.run(&["recordings", "verify", "session.cast"]).fails(2);
    assert!(said.contains("--receipt"), "{said}");
}
