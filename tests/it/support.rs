//! What several subjects need.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use mezite_client::{
    AuthClient, Client, ClientError, Payload, Receipt, Retry, UploadError, UploadLimits, Uploader,
};
use mezite_e2e::{Cluster, PASSWORD, call, secret_file};
use mezite_pki::{
    ssh::SshKeyPair,
    x509::{KeyPair, LeafSpec, X509Ca},
};
use mezite_proto::v1::{self, stream_session_recording_request::Message};
use recording_format::{Digest, RecordingId};
use serde_json::Value;
use tokio::{
    io,
    net::{TcpListener, TcpSocket},
};

/// What a role opens that opens every host to the logins of who holds it.
pub(crate) const EVERYWHERE: &str = r#"
  allow:
    logins: ["{{internal.logins}}"]
    node_labels: {"*": "*"}
"#;

/// An authority, and by it a server's certificate (PEM) for `localhost` and 127.0.0.1, with its key. They last for long: until 2096.
pub(crate) fn server_certificate() -> (X509Ca, String, KeyPair) {
    let (from, until) = (1_577_836_800, 4_000_000_000);
    let (ca, key) = (X509Ca::generate("web", from, until).unwrap(), KeyPair::generate_p256().unwrap());
    let leaf = ca.issue(&LeafSpec {
        public_key: key.spki_der(),
        common_name: "localhost".into(),
        identity: None,
        dns_names: vec!["localhost".into()],
        ip_addresses: vec!["127.0.0.1".parse().unwrap()],
        not_before: from,
        not_after: until,
        client_auth: false,
        server_auth: true,
    });
    (ca, leaf.unwrap(), key)
}

/// A recorded terminal session, asciicast v3, of at least so many bytes: the same each time, no two lines alike.
pub(crate) fn asciicast(bytes: usize) -> Vec<u8> {
    let mut cast = String::from(r#"{"version":3,"term":{"cols":80,"rows":24},"timestamp":1795512000}"#);
    cast.push('\n');
    for line in 0_u64.. {
        if cast.len() >= bytes {
            break;
        }
        let noise = line.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        cast.push_str(&format!(
            "[0.0{}, \"o\", \"{line:08} {noise:016x} $ make test\\r\\n\"]\n",
            line % 90 + 10
        ));
    }
    cast.into_bytes()
}

/// A random UUID (RFC 9562, version 4).
pub(crate) fn recording_id() -> RecordingId {
    let mut bytes: [u8; 16] = rand_bytes();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    RecordingId::from_bytes(bytes)
}

fn rand_bytes() -> [u8; 16] {
    std::array::from_fn(|_| rand::random())
}

/// Metadata of a session of this user.
pub(crate) fn metadata(user: &str) -> v1::RecordingMetadata {
    v1::RecordingMetadata {
        user: user.into(),
        login: "root".into(),
        node: "web1.example.org".into(),
        started_at: Some(prost_types::Timestamp { seconds: 1_795_512_000, nanos: 0 }),
        ended_at: Some(prost_types::Timestamp { seconds: 1_795_512_060, nanos: 0 }),
        format: "asciicast-v3".into(),
        labels: Default::default(),
    }
}

/// The first message of a call.
pub(crate) fn header(
    id: impl ToString,
    start_offset: u64,
    metadata: Option<v1::RecordingMetadata>,
) -> v1::StreamSessionRecordingRequest {
    let header = v1::RecordingHeader { recording_id: id.to_string(), start_offset, metadata };
    v1::StreamSessionRecordingRequest { message: Some(Message::Header(header)) }
}

/// A run of bytes.
pub(crate) fn chunk(offset: u64, data: &[u8]) -> v1::StreamSessionRecordingRequest {
    let chunk =
        v1::RecordingChunk { offset, crc32c: crc32c::crc32c(data), data: Bytes::copy_from_slice(data) };
    v1::StreamSessionRecordingRequest { message: Some(Message::Chunk(chunk)) }
}

/// What ends a recording.
pub(crate) fn last(total_length: u64, payload: Digest) -> v1::StreamSessionRecordingRequest {
    let payload_sha256 = payload.as_bytes().to_vec().into();
    let end = v1::RecordingFinal { total_length, payload_sha256, ended_at: metadata("").ended_at };
    v1::StreamSessionRecordingRequest { message: Some(Message::Final(end)) }
}

/// One call of StreamSessionRecording.
pub(crate) async fn stream(
    client: &Client,
    messages: Vec<v1::StreamSessionRecordingRequest>,
) -> Result<v1::StreamSessionRecordingResponse, ClientError> {
    let send = |mut auth: AuthClient, messages| async move {
        auth.stream_session_recording(futures::stream::iter::<Vec<_>>(messages)).await
    };
    client.call(Retry::Idempotent, messages, send).await
}

/// Sends a whole recording as an agent does, until there is a receipt.
pub(crate) async fn upload(
    client: &Client,
    id: RecordingId,
    metadata: &v1::RecordingMetadata,
    payload: &[u8],
) -> Result<Receipt, UploadError> {
    let mut payload = Payload::measure(std::io::Cursor::new(payload.to_vec())).await.unwrap();
    Uploader::new(client.clone(), UploadLimits::default()).upload(id, metadata, &mut payload).await
}

/// Fetches a whole recording, range by range.
pub(crate) async fn fetch(client: &Client, id: RecordingId) -> Result<(v1::Recording, Vec<u8>), ClientError> {
    let mut payload = Vec::new();
    loop {
        let offset = payload.len() as u64;
        let request = v1::GetSessionRecordingRequest {
            recording_id: id.to_string(),
            offset,
            limit: 1 << 20,
            ..Default::default()
        };
        let reply = call!(client, get_session_recording, request)?;
        payload.extend_from_slice(&reply.data);
        let recording = reply.recording.unwrap();
        if reply.data.is_empty() || payload.len() as u64 >= recording.size {
            return Ok((recording, payload));
        }
    }
}

/// Creates a role from the text of a role file.
pub(crate) fn add_role(cluster: &Cluster, name: &str, spec: &str) {
    let text = format!("kind: role\nmetadata:\n  name: {name}\nspec:\n{spec}");
    let file = cluster.dir().join(format!("role-{name}.yaml"));
    fs::write(&file, text).unwrap();
    let _ = cluster.ctl().ok(&["roles", "create", file.to_str().unwrap()]);
}

/// Creates a user with `mezctl`, with the password that all users here have.
pub(crate) fn add_user(cluster: &Cluster, name: &str, roles: &str, logins: &str) {
    let file = cluster.dir().join("new.password");
    secret_file(&file, PASSWORD);
    let file = file.to_str().unwrap();
    let add = ["users", "add", name, "--roles", roles, "--logins", logins, "--password-file", file];
    let _ = cluster.ctl().ok(&add);
}

/// Logs a user in through `mezctl`, gets certificates, and answers the folder and what was printed.
pub(crate) fn certificates(cluster: &Cluster, user: &str, args: &[&str]) -> (PathBuf, Value) {
    let ctl = cluster.ctl_named(user);
    let _ = ctl.login(user, PASSWORD).ok();
    let folder = cluster.dir().join(format!("certificates-{user}"));
    let issue = ["certs", "issue", "--out", folder.to_str().unwrap()];
    let issued = ctl.by_profile().json(&[&issue, args].concat());
    (folder, issued)
}

/// The texts of a JSON list.
pub(crate) fn texts(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect()
}

/// Writes what `ssh` wants of a user's certificate into a new folder.
pub(crate) fn ssh_folder(folder: &Path, key: &SshKeyPair, certificate: &str, known_hosts: &[String]) {
    fs::create_dir(folder).unwrap();
    secret_file(&folder.join("key"), &key.private_openssh().unwrap());
    fs::write(folder.join("key-cert.pub"), certificate).unwrap();
    fs::write(folder.join("known_hosts"), known_hosts.join("\n") + "\n").unwrap();
}

/// Has whoever has a session get a certificate for ssh, and writes it into a new folder.
pub(crate) async fn user_certificate(client: &Client, folder: &Path) -> Result<(), ClientError> {
    let key = SshKeyPair::generate_ed25519("").unwrap();
    let request =
        v1::IssueUserCertsRequest { ssh_public_keys: vec![key.public_line()], ..Default::default() };
    let issued = call!(client, issue_user_certs, request)?;
    ssh_folder(folder, &key, &issued.ssh_certificates[0], &issued.known_hosts);
    Ok(())
}

/// The address of a node for clients who are to be seen at another one than this machine's usual: what connects to it is
/// passed on from there.
pub(crate) async fn seen_at(source: Ipv4Addr, node: &str) -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let (at, node) = (listener.local_addr().unwrap(), node.parse().unwrap());
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind((source, 0).into()).unwrap();
            tokio::spawn(async move {
                let mut server = socket.connect(node).await.unwrap();
                // Its end is for its two ends to notice.
                let _ = io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    at.to_string()
}
