//! The wire: TLS and nothing else, and no message that is too large.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use mezite_e2e::{Agent, AgentSpec, Cluster, Ingest, api, call};
use mezite_proto::v1::{self, auth_service_client::AuthServiceClient};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tonic::{Code, transport::Endpoint};

use crate::support::{chunk, header, metadata, recording_id};

/// What an HTTP/2 client says first (RFC 9113, section 3.4), with an empty SETTINGS frame.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const PATIENCE: Duration = Duration::from_secs(60);

/// What a server says to a client that speaks without TLS, until it hangs up.
async fn said_in_plaintext(address: &str, words: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let _ = stream.write_all(words).await;
    let mut said = Vec::new();
    // A reset is as good as an end.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut said)).await.expect("the server hangs up");
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn without_tls_there_is_no_answer() {
    let cluster = Cluster::start(1).await;
    let (ingests, _) = Ingest::start_all(&cluster, 1).await;
    let node = &cluster.nodes()[0];
    for address in [node.address(), node.peer_address(), ingests[0].address()] {
        for words in [PREFACE, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"] {
            let said = said_in_plaintext(&address, words).await;
            // At most a TLS alert (RFC 8446, section 5.1: content type 21).
            assert!(said.is_empty() || said[0] == 21, "{address}: {said:?}");
        }
        let plain = Endpoint::from_shared(format!("http://{address}")).unwrap().timeout(PATIENCE);
        let answer = match plain.connect().await {
            Ok(channel) => AuthServiceClient::new(channel).ping(v1::PingRequest {}).await.map(drop).ok(),
            Err(_) => None,
        };
        assert_eq!(answer, None, "{address}");
    }
    cluster.anonymous_at(0).ping().await.unwrap();
}

/// A stub over TLS that does not name HTTP/2 in its handshake.
async fn stub_without_alpn(
    address: &str,
    name: ServerName<'static>,
    tls: Arc<rustls::ClientConfig>,
) -> AuthServiceClient<tonic::transport::Channel> {
    let address: SocketAddr = address.parse().unwrap();
    let connector = tower::service_fn(move |_: tonic::transport::Uri| {
        let (name, tls) = (name.clone(), Arc::clone(&tls));
        async move {
            let stream = TcpStream::connect(address).await?;
            TlsConnector::from(tls).connect(name, stream).await.map(TokioIo::new)
        }
    });
    let endpoint = Endpoint::from_static("http://cluster").timeout(PATIENCE);
    AuthServiceClient::new(endpoint.connect_with_connector(connector).await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_without_alpn_is_http_2_all_the_same() {
    let cluster = Cluster::start(1).await;
    let tls = api::tls(cluster.trust(), false, None);
    let name = api::auth_server_name(cluster.trust());
    let mut stub = stub_without_alpn(&cluster.nodes()[0].address(), name, tls).await;
    let reply = stub.ping(v1::PingRequest {}).await.unwrap().into_inner();
    assert_eq!(reply.cluster_name, mezite_e2e::CLUSTER);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_another_cluster_is_not_believed() {
    let (cluster, other) = (Cluster::start(1).await, Cluster::start(1).await);
    let address = [other.nodes()[0].address()];
    let client = api::client(&address, cluster.trust(), Some(cluster.session()), None);
    let error = call!(client, list_users, v1::ListUsersRequest::default()).unwrap_err();
    assert!(matches!(error, mezite_client::ClientError::Untrusted { .. }), "{error:?}");
    // Nor does a first contact believe it: no password goes there.
    let ctl = mezite_e2e::Ctl::new(&cluster.dir().join("home-lost"), &address, cluster.ca_pin());
    let said = ctl.login(mezite_e2e::ADMIN, mezite_e2e::PASSWORD);
    assert!(said.code != 0 && said.stderr.contains("cannot be trusted"), "{said:?}");
    let request = v1::ListActiveSessionsRequest::default();
    let sessions = call!(other.admin(), list_active_sessions, request).unwrap().sessions;
    assert_eq!(sessions.len(), 2, "those of its own admin");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_too_large_is_refused_and_nothing_else_suffers() {
    let cluster = Cluster::start(1).await;
    let (ingests, store) = Ingest::start_all(&cluster, 1).await;
    let agent = Agent::join(&cluster, AgentSpec::default());
    let trust = cluster.trust();
    let mut stub = api::stub(&cluster.nodes()[0].address(), trust, api::tls(trust, true, None));
    let too_large = |code| matches!(code, Code::OutOfRange | Code::ResourceExhausted);

    let request = v1::AuthenticateLocalRequest { username: "x".repeat(5 << 20), password: "x".into() };
    let refused = stub.authenticate_local(request).await.unwrap_err();
    assert!(too_large(refused.code()), "{refused:?}");
    // The connection that carried it goes on.
    stub.ping(v1::PingRequest {}).await.unwrap();

    // A long string in a message that is not too large is a wrong field.
    let request = v1::AuthenticateLocalRequest { username: "x".repeat(1 << 20), password: "x".into() };
    let refused = stub.authenticate_local(request).await.unwrap_err();
    assert!(matches!(refused.code(), Code::InvalidArgument | Code::Unauthenticated), "{refused:?}");

    // A chunk above 1 MiB, at the ingest and through the node; one above what a message may be.
    let (certificate, key) = agent.pems();
    let tls = api::tls(trust, true, Some((&certificate, &key)));
    let relayed = api::stub(&cluster.nodes()[0].address(), trust, Arc::clone(&tls));
    let name = ServerName::try_from(format!("ingest.{}.mezite.internal", trust.cluster_name())).unwrap();
    let channel = mezite_proto::transport::channel(&ingests[0].address(), tls, name, PATIENCE).unwrap();
    let direct = AuthServiceClient::new(channel).max_encoding_message_size(usize::MAX);
    for mut stub in [relayed, direct] {
        for size in [(1 << 20) + 1, 6 << 20] {
            let id = recording_id();
            let messages = [header(id, 0, Some(metadata("alice"))), chunk(0, &vec![b'x'; size])];
            let refused = stub.stream_session_recording(tokio_stream::iter(messages)).await.unwrap_err();
            assert!(
                too_large(refused.code()) || refused.code() == Code::InvalidArgument,
                "{size} bytes: {refused:?}"
            );
            let probe = tokio_stream::iter([header(id, 0, None)]);
            let state =
                stub.stream_session_recording(probe).await.map(|reply| reply.into_inner().committed_offset);
            assert!(matches!(state, Ok(0)) || state.is_err_and(|error| error.code() == Code::NotFound));
        }
    }
    let segments = mezite_e2e::all_files(&store);
    assert!(segments.iter().all(|path| path.extension().is_none_or(|extension| extension != "seg")));
}
