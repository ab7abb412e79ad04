//! Whose recordings ingests take: of agents that are registered now, as every one of them knows within a second, and
//! goes on to know while no auth node can be asked.

use std::time::Duration;

use mezite_client::{Client, ClientIdentity};
use mezite_e2e::{
    Agent, AgentSpec, Cluster, Ingest, all_files,
    api::{self, HostKeys},
    call, eventually, http,
};
use mezite_proto::{transport, v1};
use rustls::pki_types::ServerName;
use tokio::{sync::mpsc, task::JoinHandle, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use crate::support::{asciicast, chunk, fetch, header, metadata, recording_id, stream, upload};

/// Long enough for a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// Every ingest knows of a removal so long after it was committed.
const WITHIN: Duration = Duration::from_secs(1);

/// A call that stays open, after it brought a header and some bytes.
struct Open {
    id: recording_format::RecordingId,
    sender: mpsc::Sender<v1::StreamSessionRecordingRequest>,
    reply: JoinHandle<Result<v1::StreamSessionRecordingResponse, Status>>,
}

impl Open {
    /// `name` is the one that the server at `address` proves.
    async fn begin(cluster: &Cluster, agent: &Agent, address: &str, name: String) -> Self {
        let (certificate, key) = agent.pems();
        let tls = api::tls(cluster.trust(), true, Some((&certificate, &key)));
        let name = ServerName::try_from(name).unwrap();
        let channel = transport::channel(address, tls, name, PATIENCE).unwrap();
        let mut stub = v1::auth_service_client::AuthServiceClient::new(channel);
        let (id, (sender, messages)) = (recording_id(), mpsc::channel(8));
        let begun = v1::RecordingMetadata { node: agent.hostname.clone(), ..metadata("alice") };
        sender.send(header(id, 0, Some(begun))).await.unwrap();
        sender.send(chunk(0, b"hello")).await.unwrap();
        let reply = tokio::spawn(async move {
            let answered = stub.stream_session_recording(ReceiverStream::new(messages)).await;
            answered.map(tonic::Response::into_inner)
        });
        // The header has arrived once the recording is known.
        eventually("the recording begins", PATIENCE, async || fetch(&cluster.admin(), id).await.map(drop))
            .await;
        Self { id, sender, reply }
    }

    async fn direct(cluster: &Cluster, agent: &Agent, ingest: &Ingest) -> Self {
        let name = format!("ingest.{}.mezite.internal", cluster.trust().cluster_name());
        Self::begin(cluster, agent, &ingest.address(), name).await
    }

    async fn relayed(cluster: &Cluster, agent: &Agent, index: usize) -> Self {
        let name = format!("{}.mezite.internal", cluster.trust().cluster_name());
        Self::begin(cluster, agent, &cluster.nodes()[index].address(), name).await
    }

    /// Why it is cut off, by then.
    async fn cut(self, deadline: Instant) -> Status {
        let reply = tokio::time::timeout_at(deadline, self.reply).await.expect("it goes on");
        reply.unwrap().unwrap_err()
    }
}

/// A metric of an ingest.
async fn number(ingest: &Ingest, name: &str) -> Result<u64, String> {
    let page =
        http::get(&ingest.diagnostics_address(), "/metrics").await.map_err(|error| error.to_string())?.1;
    let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|value| value.parse().ok()).ok_or(page)
}

/// Waits until an ingest knows so many agents.
async fn knows(ingest: &Ingest, agents: u64) {
    eventually("the ingest knows its agents", PATIENCE, async || {
        match number(ingest, "mezite_ingest_agents_known").await? {
            known if known == agents => Ok(()),
            known => Err(known.to_string()),
        }
    })
    .await;
}

fn begin(hostname: &str) -> Vec<v1::StreamSessionRecordingRequest> {
    let metadata = v1::RecordingMetadata { node: hostname.to_owned(), ..metadata("alice") };
    vec![header(recording_id(), 0, Some(metadata)), chunk(0, b"x")]
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_removed_is_cut_off_everywhere_within_a_second() {
    is_cut_off(|agent| vec!["nodes".into(), "rm".into(), agent.id.clone()]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_locked_is_cut_off_everywhere_within_a_second() {
    is_cut_off(|agent| vec!["locks".into(), "add".into(), format!("node:{}", agent.id)]).await;
}

async fn is_cut_off(by: impl FnOnce(&Agent) -> Vec<String>) {
    let cluster = Cluster::start(3).await;
    let (ingests, _) = Ingest::start_all(&cluster, 2).await;
    let join = |hostname| Agent::join(&cluster, AgentSpec { hostname, ..AgentSpec::default() });
    let (agent, other) = (join("web1.example.org"), join("web2.example.org"));
    let mut open = Vec::new();
    for ingest in &ingests {
        open.push(Open::direct(&cluster, &agent, ingest).await);
    }
    for index in 0..3 {
        open.push(Open::relayed(&cluster, &agent, index).await);
    }
    let stays = Open::direct(&cluster, &other, &ingests[0]).await;
    let ids: Vec<_> = open.iter().map(|open| open.id).collect();

    let by = by(&agent);
    let _ = cluster.ctl().ok(&by.iter().map(String::as_str).collect::<Vec<_>>());
    let deadline = Instant::now() + WITHIN;
    for open in open {
        let cut = open.cut(deadline).await;
        assert_eq!(cut.code(), Code::Unauthenticated, "{cut:?}");
        assert!(cut.message().contains("new token"), "{cut:?}");
    }
    // A new one is refused by both ingests, and by every auth node.
    let client = agent.client(&cluster);
    for ingest in &ingests {
        let direct = client.for_recordings(&[ingest.address()]).unwrap();
        api::refused(stream(&direct, begin(&agent.hostname)).await, Code::Unauthenticated);
    }
    for node in cluster.nodes() {
        let relayed = api::client(&[node.address()], cluster.trust(), None, Some(&agent.identity()));
        let error = stream(&relayed, begin(&agent.hostname)).await.unwrap_err();
        assert!(matches!(error.code(), Some(Code::Unauthenticated | Code::PermissionDenied)), "{error:?}");
    }
    // What came is kept, and nobody else was disturbed.
    for id in ids {
        let (recording, payload) = fetch(&cluster.admin(), id).await.unwrap();
        assert_eq!((recording.state(), payload.as_slice()), (v1::RecordingState::InProgress, &b"hello"[..]));
    }
    drop(stays.sender);
    assert_eq!(stays.reply.await.unwrap().unwrap().committed_offset, 5);
}

/// Keys of a host, and what it shows with the certificates that it got for them.
async fn certified(cluster: &Cluster, token: &str, hostname: &str) -> ClientIdentity {
    let (keys, client) = (HostKeys::new(), cluster.anonymous_at(0));
    let issued = call!(client, generate_host_certs, keys.request(token, hostname)).unwrap();
    keys.identity(&issued)
}

/// Registers the holder of a certificate, through one node.
async fn register(cluster: &Cluster, index: usize, identity: &ClientIdentity, token: &str) {
    let address = [cluster.nodes()[index].address()];
    let request = v1::RegisterAgentRequest {
        token: token.into(),
        address: "127.0.0.1:22".into(),
        labels: Default::default(),
        version: "1.0.0".into(),
    };
    call!(api::client(&address, cluster.trust(), None, Some(identity)), register_agent, request).unwrap();
}

/// A client that goes to this ingest, and through auth nodes only when that is not there.
fn direct(cluster: &Cluster, identity: &ClientIdentity, ingest: &Ingest) -> Client {
    let client = api::client(&cluster.addresses(), cluster.trust(), None, Some(identity));
    client.for_recordings(&[ingest.address()]).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_a_certificate_and_never_registered_is_refused() {
    let cluster = Cluster::start(1).await;
    let (ingests, store) = Ingest::start_all(&cluster, 2).await;
    let token = cluster.token(v1::TokenKind::Node).await;
    let hostname = "web1.example.org";
    let identity = certified(&cluster, &token, hostname).await;
    let relayed = api::client(&cluster.addresses(), cluster.trust(), None, Some(&identity));
    let clients =
        [direct(&cluster, &identity, &ingests[0]), direct(&cluster, &identity, &ingests[1]), relayed];
    for client in &clients {
        api::refused(stream(client, begin(hostname)).await, Code::Unauthenticated);
    }
    assert!(all_files(&store).is_empty());
    register(&cluster, 0, &identity, &token).await;
    for client in &clients {
        assert_eq!(stream(client, begin(hostname)).await.unwrap().committed_offset, 1);
        // For its own host alone.
        let refused = api::refused(stream(client, begin("web2.example.org")).await, Code::InvalidArgument);
        assert_eq!(refused.violations[0].field, "metadata.node");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_recording_of_a_fresh_agent_is_taken() {
    let cluster = Cluster::start(3).await;
    let (ingests, _) = Ingest::start_all(&cluster, 2).await;
    let request =
        v1::CreateTokenRequest { kind: v1::TokenKind::Node.into(), max_uses: 100, ..Default::default() };
    let token = call!(cluster.admin(), create_token, request).unwrap().secret;
    for round in 0..24 {
        let hostname = format!("web{round}.example.org");
        let identity = certified(&cluster, &token, &hostname).await;
        let client = match round % 4 {
            3 => api::client(&cluster.addresses(), cluster.trust(), None, Some(&identity)),
            _ => direct(&cluster, &identity, &ingests[round % 2]),
        };
        register(&cluster, round % 3, &identity, &token).await;
        let sent = stream(&client, begin(&hostname)).await;
        assert_eq!(sent.unwrap_or_else(|error| panic!("{round}: {error:?}")).committed_offset, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn registered_agents_go_on_without_auth_nodes_and_removals_count_once_one_is_back() {
    let mut cluster = Cluster::start(3).await;
    let (ingests, _) = Ingest::start_all(&cluster, 1).await;
    let ingest = &ingests[0];
    let join = |hostname| Agent::join(&cluster, AgentSpec { hostname, ..AgentSpec::default() });
    let (agent, other) = (join("web1.example.org"), join("web2.example.org"));
    let token = cluster.token(v1::TokenKind::Node).await;
    let stranger = certified(&cluster, &token, "web3.example.org").await;
    let stranger = direct(&cluster, &stranger, ingest);
    knows(ingest, 2).await;
    let (open, cut) =
        (Open::direct(&cluster, &agent, ingest).await, Open::direct(&cluster, &other, ingest).await);

    // A node that stops sends the ingest to another, and does not wait for it.
    for index in 0..2 {
        assert_eq!(cluster.node(index).stop().await.code(), Some(0));
        let log = cluster.nodes()[index].log();
        assert!(!log.contains("not answered in time"), "{log}");
        if index == 0 {
            api::refused(stream(&stranger, begin("web3.example.org")).await, Code::Unauthenticated);
        }
    }
    // The last one has no quorum: it cannot say who is registered, and nobody else can.
    let unavailable = eventually("the ingest is told nothing", PATIENCE, async || {
        let once = stranger
            .with_policy(mezite_client::RetryPolicy { attempts_per_address: 1, ..*stranger.policy() });
        match stream(&once, begin("web3.example.org")).await.unwrap_err() {
            error if error.code() == Some(Code::Unauthenticated) => Err(error.to_string()),
            error => Ok(error),
        }
    });
    let unavailable = unavailable.await;
    assert!(matches!(unavailable, mezite_client::ClientError::Unavailable { .. }), "{unavailable:?}");
    let status = cluster.ctl().run(&["status"]);
    assert!(status.code == 5 && status.stdout.contains("no leader with a quorum"), "{status:?}");
    cluster.node(2).kill();

    let cast = asciicast(1 << 20);
    let client = direct(&cluster, &agent.identity(), ingest);
    let id = recording_id();
    upload(&client, id, &metadata("alice"), &cast).await.unwrap();
    open.sender.send(chunk(5, b" world")).await.unwrap();
    drop(open.sender);
    assert_eq!(open.reply.await.unwrap().unwrap().committed_offset, 11);
    assert_eq!(http::get(&ingest.diagnostics_address(), "/readyz").await.unwrap().0, 200);

    for index in 0..3 {
        cluster.node(index).start();
    }
    for index in 0..3 {
        cluster.node(index).ready().await;
    }
    let _ = cluster.ctl().ok(&["nodes", "rm", &other.id]);
    let cut = cut.cut(Instant::now() + PATIENCE).await;
    assert_eq!(cut.code(), Code::Unauthenticated, "{cut:?}");
    knows(ingest, 1).await;
    api::refused(stream(&stranger, begin("web3.example.org")).await, Code::Unauthenticated);
    assert!(fetch(&cluster.admin(), id).await.unwrap().1 == cast);
}
