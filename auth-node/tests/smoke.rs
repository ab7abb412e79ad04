//! Nodes in this process, over real sockets, TLS and disks: made, joined, called by the client that everybody
//! uses, and stopped.
#![cfg(test)]

use std::{
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use auth_node::{Handle, Init, Join, NodeError, config::Config, init, join, start};
use mezite_client::{
    AuthClient, Client, ClientConfig, ClientError, ClusterTrust, FirstContact, Retry, RetryPolicy,
    SessionSecret,
};
use mezite_daemon::config::Settings as _;
use mezite_proto::{transport, v1};
use mezite_test_ports::Port;
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::Code;
use zeroize::Zeroizing;

const CLUSTER: &str = "test.example";
const PASSWORD: &str = "correct horse battery";
const PATIENCE: Duration = Duration::from_secs(30);

macro_rules! call {
    ($client:expr, $method:ident, $request:expr) => {
        $client
            .call(Retry::Idempotent, $request, |mut auth: AuthClient, request| async move {
                auth.$method(request).await
            })
            .await
    };
}

#[path = "smoke/auth_nodes.rs"]
mod auth_nodes;
#[path = "smoke/joining.rs"]
mod joining;

/// A node's configuration, and the ports that are in it, for as long as they are kept.
fn config(dir: &Path) -> (Config, [Port; 2]) {
    let ports = [Port::lease(), Port::lease()];
    let [api, peer] = ports.each_ref().map(Port::address);
    let text = format!(
        "data_dir = {dir:?}\nlisten = '{api}'\nadvertise = '{api}'\npeer_listen = '{peer}'\n\
         peer_advertise = '{peer}'\ndiagnostics_listen = '127.0.0.1:0'\n\
         web.listen = '127.0.0.1:0'\n"
    );
    (Config::parse(&text, [], &[]).unwrap(), ports)
}

fn new_cluster() -> Init {
    let admin_password = Some(Zeroizing::new(PASSWORD.to_owned()));
    Init { cluster_name: CLUSTER.into(), admin_user: "Root".into(), admin_password }
}

/// The database's lock is free a moment after the last handle is gone.
async fn started(config: &Config) -> Handle {
    let begun = Instant::now();
    loop {
        match start(config.clone()).await {
            Ok(handle) => return handle,
            Err(error) if begun.elapsed() > PATIENCE => panic!("{error}"),
            Err(_) => tokio::task::yield_now().await,
        }
    }
}

struct Cluster {
    _dir: TempDir,
    config: Config,
    _ports: [Port; 2],
    handle: Handle,
    pin: String,
}

impl Cluster {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (config, ports) = config(dir.path());
        let made = init(&config, new_cluster()).await.unwrap();
        let pin = made.ca_pin.clone();
        assert_eq!(
            (made.cluster_name.as_str(), made.admin_user.as_str(), made.resumed),
            (CLUSTER, "root", false)
        );
        assert!(made.admin_password.is_none());
        made.finish().unwrap();
        let handle = started(&config).await;
        Self { _dir: dir, config, _ports: ports, handle, pin }
    }

    async fn trust(&self) -> ClusterTrust {
        let contact = FirstContact::Pin(self.pin.parse().unwrap());
        contact.establish(&[self.handle.address().to_string()], RetryPolicy::default()).await.unwrap().trust
    }

    async fn client(&self) -> Client {
        client(self.handle.address(), self.trust().await)
    }

    async fn admin(&self) -> Client {
        let client = self.client().await;
        log_in(&client, "root", PASSWORD).await.unwrap()
    }
}

fn client(address: SocketAddr, trust: ClusterTrust) -> Client {
    Client::new(ClientConfig::new(vec![address.to_string()], trust)).unwrap()
}

async fn log_in(client: &Client, username: &str, password: &str) -> Result<Client, ClientError> {
    let request = v1::AuthenticateLocalRequest { username: username.into(), password: password.into() };
    let reply = call!(client, authenticate_local, request)?;
    Ok(client.with_session(Some(SessionSecret::new(reply.session_id).unwrap())))
}

async fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await.unwrap();
    reply
}

#[tokio::test(flavor = "multi_thread")]
async fn one_node_serves_from_init_to_stop() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let pong = client.ping().await.unwrap();
    assert_eq!((pong.cluster_name.as_str(), pong.node_id), (CLUSTER, 1));

    let wrong = log_in(&client, "root", "not the password").await.unwrap_err();
    let unknown = log_in(&client, "nobody", "not the password").await.unwrap_err();
    assert_eq!(wrong.code(), Some(Code::Unauthenticated));
    assert_eq!((wrong.to_string(), wrong.code()), (unknown.to_string(), unknown.code()));

    let admin = log_in(&client, "ROOT", PASSWORD).await.unwrap();
    let user = v1::User { name: "ann".into(), roles: vec!["access".into()], ..Default::default() };
    let request = v1::CreateUserRequest {
        user: Some(user),
        password: "a password of ann".into(),
        ..Default::default()
    };
    call!(admin, create_user, request.clone()).unwrap();
    assert_eq!(call!(admin, create_user, request.clone()).unwrap_err().code(), Some(Code::AlreadyExists));
    let users = call!(admin, list_users, v1::ListUsersRequest::default()).unwrap().users;
    assert_eq!(users.iter().map(|user| user.name.as_str()).collect::<Vec<_>>(), ["ann", "root"]);

    // Ann may look, and not make; nobody without a session may look.
    let ann = log_in(&client, "ann", "a password of ann").await.unwrap();
    assert!(call!(ann, list_users, v1::ListUsersRequest::default()).is_ok());
    assert_eq!(call!(ann, create_user, request.clone()).unwrap_err().code(), Some(Code::PermissionDenied));
    assert_eq!(call!(client, create_user, request).unwrap_err().code(), Some(Code::Unauthenticated));
    call!(ann, logout, v1::LogoutRequest {}).unwrap();
    let ended = call!(ann, list_users, v1::ListUsersRequest::default()).unwrap_err();
    assert_eq!(ended.code(), Some(Code::Unauthenticated));

    // Declared methods that do nothing: only after authorisation.
    let reserved = v1::ValidateTotpRequest {};
    assert_eq!(call!(client, validate_totp, reserved).unwrap_err().code(), Some(Code::Unauthenticated));
    assert_eq!(call!(admin, validate_totp, reserved).unwrap_err().code(), Some(Code::Unimplemented));

    let diagnostics = cluster.handle.diagnostics_address();
    assert!(get(diagnostics, "/healthz").await.starts_with("HTTP/1.1 200"));
    assert!(get(diagnostics, "/readyz").await.starts_with("HTTP/1.1 200"));
    let metrics = get(diagnostics, "/metrics").await;
    assert!(metrics.contains(r#"grpc_server_handled_total{method="CreateUser",code="Ok"}"#), "{metrics}");
    assert!(cluster.handle.stop().await, "every call was answered");
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_grpc_clients_find_health_and_reflection() {
    use tonic_health::pb::{
        HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
    };
    use tonic_reflection::pb::v1 as reflection;

    let cluster = Cluster::start().await;
    let mut roots = rustls::RootCertStore::empty();
    let trust = cluster.trust().await;
    for certificate in CertificateDer::pem_slice_iter(trust.ca_pem().as_bytes()) {
        roots.add(certificate.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let mut tls = builder.unwrap().with_root_certificates(roots).with_no_client_auth();
    tls.alpn_protocols = vec![transport::ALPN_H2.to_vec()];
    // By the address in the certificate, as a client that knows nothing of the product does.
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let address = cluster.handle.address().to_string();
    let channel = transport::connect(&address, Arc::new(tls), name, PATIENCE).await.unwrap();

    let begun = Instant::now();
    let mut health = HealthClient::new(channel.clone());
    loop {
        let service = mezite_proto::SERVICE_NAME.to_owned();
        let found = health.check(HealthCheckRequest { service }).await;
        if found.is_ok_and(|reply| reply.get_ref().status() == ServingStatus::Serving) {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "it never served");
    }
    let mut client = reflection::server_reflection_client::ServerReflectionClient::new(channel);
    let ask = reflection::server_reflection_request::MessageRequest::ListServices(String::new());
    let ask = reflection::ServerReflectionRequest { host: String::new(), message_request: Some(ask) };
    let mut replies = client.server_reflection_info(futures::stream::iter([ask])).await.unwrap().into_inner();
    let reply = replies.message().await.unwrap().unwrap();
    assert!(format!("{reply:?}").contains(mezite_proto::SERVICE_NAME), "{reply:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_node_joins_once_and_is_as_good_as_the_first() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin().await;
    let made = call!(admin, create_auth_join_token, v1::CreateAuthJoinTokenRequest::default()).unwrap();
    let how = |token: &str, pin: &str| Join {
        token: Zeroizing::new(token.to_owned()),
        ca_pin: pin.to_owned(),
        peers: made.peer_addresses.clone(),
        learner: false,
    };

    let dir = tempfile::tempdir().unwrap();
    let (second, _ports_of_second) = config(dir.path());
    // Without a token nothing is begun.
    assert!(join(&second, || Err(NodeError::Refused("no token".into()))).await.is_err());
    assert!(!dir.path().join("node.json").exists());
    // Another cluster's pin, and a token that nobody made: the right ones are good afterwards.
    assert!(
        join(&second, || Ok(how(&made.token, &cluster.pin))).await.is_err(),
        "that is the pin of the TLS CA"
    );
    let refused = join(&second, || Ok(how("guessed", &made.ca_pin))).await.unwrap_err().to_string();
    assert!(refused.starts_with("joining through ") && refused.contains(": the join token is not accepted"));
    let joined = join(&second, || Ok(how(&made.token, &made.ca_pin))).await.unwrap();
    assert_eq!((joined.node_id, joined.already), (2, false));
    let again = join(&second, || unreachable!("nothing is left to do")).await.unwrap();
    assert_eq!((again.node_id, again.already), (2, true));

    // The token is used up: another node gets nothing.
    let dir = tempfile::tempdir().unwrap();
    let (third, _ports_of_third) = config(dir.path());
    assert!(join(&third, || Ok(how(&made.token, &made.ca_pin))).await.is_err());
    assert!(!third.kek_path().exists());

    let handle = started(&second).await;
    let client = client(handle.address(), cluster.trust().await);
    let on_second = log_in(&client, "root", PASSWORD).await.unwrap();
    let status = call!(on_second, get_cluster_status, v1::GetClusterStatusRequest {}).unwrap();
    assert_eq!(status.node_id, 2);
    assert_eq!(
        status.members.iter().map(|it| (it.node_id, it.voter)).collect::<Vec<_>>(),
        [(1, true), (2, true)]
    );
    assert_eq!(status.members[0].api_address, cluster.config.advertise);

    // A session that the first node ended is nothing to the second.
    let request = v1::AuthenticateLocalRequest { username: "root".into(), password: PASSWORD.into() };
    let session = call!(client, authenticate_local, request).unwrap().session_id;
    let user = client.with_session(Some(SessionSecret::new(session.clone()).unwrap()));
    assert!(call!(user, list_users, v1::ListUsersRequest::default()).is_ok());
    call!(admin, revoke_session, v1::RevokeSessionRequest { session }).unwrap();
    let refused = call!(user, list_users, v1::ListUsersRequest::default()).unwrap_err();
    assert_eq!(refused.code(), Some(Code::Unauthenticated));
    handle.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn init_is_resumed_and_never_touches_a_cluster() {
    let dir = tempfile::tempdir().unwrap();
    let (config, _ports) = config(dir.path());
    let new = || Init { admin_password: None, ..new_cluster() };
    let first = init(&config, new()).await.unwrap();
    let password = first.admin_password.clone().unwrap();
    let (id, pin) = (first.cluster_id.clone(), first.ca_pin.clone());
    // The operator was not told: as if the process had died.
    drop(first);

    let begun = Instant::now();
    let again = loop {
        match init(&config, new()).await {
            Ok(again) => break again,
            Err(error) if begun.elapsed() > PATIENCE => panic!("{error}"),
            Err(_) => tokio::task::yield_now().await,
        }
    };
    assert!(again.resumed);
    assert_eq!(
        (&again.cluster_id, &again.ca_pin, again.admin_password.as_ref()),
        (&id, &pin, Some(&password))
    );
    drop(again);
    assert!(
        matches!(start(config.clone()).await, Err(NodeError::Refused(_))),
        "the operator was not told yet"
    );

    let begun = Instant::now();
    let wrong = loop {
        let other = Init { cluster_name: "other".into(), ..new() };
        match init(&config, other).await {
            Err(error @ NodeError::Core(_)) => break error,
            Err(error) if begun.elapsed() > PATIENCE => panic!("{error}"),
            Err(_) => tokio::task::yield_now().await,
            Ok(_) => panic!("it is another cluster"),
        }
    };
    assert!(wrong.to_string().contains(CLUSTER), "{wrong}");

    let begun = Instant::now();
    loop {
        match init(&config, new()).await {
            Ok(last) => break last.finish().unwrap(),
            Err(error) if begun.elapsed() > PATIENCE => panic!("{error}"),
            Err(_) => tokio::task::yield_now().await,
        }
    }
    let refused = init(&config, new()).await.err().unwrap();
    assert!(
        matches!(&refused, NodeError::Member { .. }) && refused.to_string().contains("nothing was changed"),
        "{refused}"
    );
    let mut left: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(left, ["kek", "lock", "node.json", "peer-ca.crt", "peer.crt", "peer.key", "store"]);
    let handle = started(&config).await;
    let contact = FirstContact::Pin(pin.parse().unwrap());
    let addresses = [handle.address().to_string()];
    let trust = contact.establish(&addresses, RetryPolicy::default()).await.unwrap().trust;
    log_in(&client(handle.address(), trust), "root", &password).await.unwrap();
    handle.stop().await;
}
