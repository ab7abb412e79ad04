//! Hosts and ingests that join, report, renew and leave, and the certificates that users get for them.

use mezite_client::ClientIdentity;
use mezite_pki::{
    identity::Identity,
    ssh::{CertificateKind, SshKeyPair, SshPublicKey, parse_certificate},
    x509::{CertificateInfo, KeyPair},
};

use super::*;

/// A host's keys, and its identity once it has one.
struct Host {
    ssh: SshKeyPair,
    tls: KeyPair,
    additional: Vec<String>,
    certificate: String,
    id: String,
}

impl Host {
    fn new() -> Self {
        let (ssh, tls) = (SshKeyPair::generate_ed25519("").unwrap(), KeyPair::generate_p256().unwrap());
        Self { ssh, tls, additional: Vec::new(), certificate: String::new(), id: String::new() }
    }

    fn request(&self, token: &str, hostname: &str) -> v1::GenerateHostCertsRequest {
        v1::GenerateHostCertsRequest {
            token: token.into(),
            ssh_public_key: self.ssh.public_line(),
            tls_public_key: self.tls.spki_der().into(),
            hostname: hostname.into(),
            additional_principals: self.additional.clone(),
        }
    }

    async fn certify(
        &mut self,
        client: &Client,
        token: &str,
        hostname: &str,
    ) -> Result<v1::GenerateHostCertsResponse, ClientError> {
        let certs = call!(client, generate_host_certs, self.request(token, hostname))?;
        self.certificate.clone_from(&certs.tls_certificate);
        self.id.clone_from(&certs.agent_id);
        Ok(certs)
    }

    /// A client that shows its certificate.
    async fn client(&self, cluster: &Cluster) -> Client {
        let identity = ClientIdentity::from_pem(&self.certificate, &self.tls.private_pem()).unwrap();
        let addresses = vec![cluster.handle.address().to_string()];
        let config = ClientConfig::new(addresses, cluster.trust().await);
        Client::new(ClientConfig { identity: Some(identity), ..config }).unwrap()
    }
}

fn registration(token: &str, address: &str) -> v1::RegisterAgentRequest {
    let labels = [("env".to_owned(), "dev".to_owned())].into();
    v1::RegisterAgentRequest { token: token.into(), address: address.into(), labels, version: "1.0".into() }
}

async fn token(admin: &Client, kind: v1::TokenKind) -> String {
    let request = v1::CreateTokenRequest { kind: kind.into(), ..Default::default() };
    call!(admin, create_token, request).unwrap().secret
}

fn code<T: std::fmt::Debug>(result: Result<T, ClientError>) -> Code {
    result.unwrap_err().code().unwrap()
}

/// A host that has joined.
async fn joined(cluster: &Cluster, admin: &Client, kind: v1::TokenKind, hostname: &str) -> (Host, Client) {
    let (mut host, secret) = (Host::new(), token(admin, kind).await);
    host.certify(&cluster.client().await, &secret, hostname).await.unwrap();
    let agent = host.client(cluster).await;
    let registered = call!(agent, register_agent, registration(&secret, &format!("{hostname}:22"))).unwrap();
    assert_eq!((registered.agent_id.as_str(), registered.cluster_name.as_str()), (host.id.as_str(), CLUSTER));
    (host, agent)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_joins_reports_renews_and_leaves() {
    let cluster = Cluster::start().await;
    let (admin, anybody) = (cluster.admin().await, cluster.client().await);
    let secret = token(&admin, v1::TokenKind::Node).await;
    let valid = call!(anybody, validate_join_token, v1::ValidateJoinTokenRequest { token: secret.clone() });
    assert_eq!(valid.unwrap().kind(), v1::TokenKind::Node);

    let mut host = Host { additional: vec!["192.0.2.7".into()], ..Host::new() };
    let certs = host.certify(&anybody, &secret, "Web1.example").await.unwrap();
    let bundle = certs.trust_bundle.clone().unwrap();
    let ssh = parse_certificate(&certs.ssh_certificate).unwrap();
    assert_eq!(
        (ssh.kind, ssh.principals),
        (CertificateKind::Host, vec!["web1.example".into(), "192.0.2.7".into()])
    );
    let host_ca = bundle.authorities.iter().find(|ca| ca.kind() == v1::CaKind::Host).unwrap();
    let host_ca = SshPublicKey::parse(&host_ca.ssh_public_keys[0]).unwrap();
    assert_eq!(ssh.ca_fingerprint, host_ca.fingerprint());
    assert_eq!(bundle.known_hosts, [format!("@cert-authority * {}", host_ca.line())]);
    let tls = CertificateInfo::from_pem(&certs.tls_certificate).unwrap();
    assert_eq!(tls.identity, Some(Identity::Agent { cluster: CLUSTER.into(), id: host.id.clone() }));

    // Before it has registered it is nobody.
    let agent = host.client(&cluster).await;
    let beat = |version: &str| v1::AgentHeartbeatRequest { version: version.into(), ..Default::default() };
    assert_eq!(code(call!(agent, agent_heartbeat, beat("1.0"))), Code::Unauthenticated);
    assert_eq!(
        code(call!(agent, generate_host_certs, host.request("", "web1.example"))),
        Code::Unauthenticated
    );
    for _ in 0..2 {
        let registered = call!(agent, register_agent, registration(&secret, "web1.example:22")).unwrap();
        assert_eq!(registered.agent_id, host.id);
    }
    let told = call!(agent, agent_heartbeat, beat("1.1")).unwrap();
    assert_eq!((told.trust_bundle_revision, told.phases.len()), (bundle.revision, bundle.authorities.len()));
    let listed = call!(admin, list_nodes, v1::ListNodesRequest::default()).unwrap().nodes;
    let node = listed[0].node.clone().unwrap();
    assert_eq!((node.agent_id.as_str(), node.version.as_str(), node.online), (host.id.as_str(), "1.1", true));

    // One token is one join: of its keys, and of nobody else's.
    let again = host.certify(&anybody, &secret, "web1.example").await.unwrap();
    assert_eq!(again.agent_id, node.agent_id);
    let mut other = Host::new();
    assert_eq!(code(other.certify(&anybody, &secret, "web2.example").await), Code::PermissionDenied);
    let used = call!(anybody, validate_join_token, v1::ValidateJoinTokenRequest { token: secret.clone() });
    assert_eq!(code(used), Code::PermissionDenied);

    let renewed = call!(agent, generate_host_certs, host.request("", "web1.example")).unwrap();
    assert_eq!(renewed.agent_id, host.id);
    assert_eq!(
        code(call!(agent, generate_host_certs, host.request("", "web2.example"))),
        Code::PermissionDenied
    );

    call!(agent, deregister_agent, v1::DeregisterAgentRequest::default()).unwrap();
    assert_eq!(code(call!(agent, agent_heartbeat, beat("1.1"))), Code::Unauthenticated);
    assert!(call!(admin, list_nodes, v1::ListNodesRequest::default()).unwrap().nodes.is_empty());
    cluster.handle.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agents_certificate_is_its_own() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin().await;
    let (host, agent) = joined(&cluster, &admin, v1::TokenKind::Node, "web1").await;
    let mut second = Host::new();
    let secret = token(&admin, v1::TokenKind::Node).await;
    // The names are the first host's.
    assert_eq!(code(second.certify(&cluster.client().await, &secret, "web1").await), Code::PermissionDenied);
    second.certify(&cluster.client().await, &secret, "web2").await.unwrap();
    // One agent's certificate does not finish another's join.
    assert_eq!(code(call!(agent, generate_host_certs, second.request("", "web2"))), Code::InvalidArgument);
    let finished = call!(agent, register_agent, registration(&secret, "web2:22")).unwrap();
    assert_eq!(finished.agent_id, host.id, "it is told what it is, whatever token it shows");
    // An agent is not a user, and not an admin.
    assert_eq!(code(call!(agent, list_nodes, v1::ListNodesRequest::default())), Code::PermissionDenied);
    assert_eq!(code(call!(agent, list_tokens, v1::ListTokensRequest::default())), Code::PermissionDenied);
    let nobody = call!(cluster.client().await, agent_heartbeat, v1::AgentHeartbeatRequest::default());
    assert_eq!(code(nobody), Code::Unauthenticated);
    cluster.handle.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_heartbeats_are_answered_together() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin().await;
    let (_, agent) = joined(&cluster, &admin, v1::TokenKind::Node, "web1").await;
    let (ingest, _) = joined(&cluster, &admin, v1::TokenKind::Ingest, "ingest1").await;
    assert_ne!(ingest.id, "");
    let before = call!(admin, get_cluster_status, v1::GetClusterStatusRequest {}).unwrap();
    assert_eq!((before.ingests.len(), before.nodes_total, before.nodes_online), (1, 1, 1));
    let begun = Instant::now();
    let beats = (0..100).map(|load| {
        let agent = agent.clone();
        tokio::spawn(async move {
            let request = v1::AgentHeartbeatRequest { load, ..Default::default() };
            call!(agent, agent_heartbeat, request)
        })
    });
    for beat in futures::future::join_all(beats).await {
        assert_eq!(beat.unwrap().unwrap().ingest_addresses, ["ingest1:22"]);
    }
    let transactions = call!(admin, get_cluster_status, v1::GetClusterStatusRequest {}).unwrap().revision;
    let most = 3 + begun.elapsed().as_secs();
    assert!(
        transactions - before.revision <= most,
        "{} transactions for 100 reports",
        transactions - before.revision
    );
    cluster.handle.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn users_get_certificates_for_what_their_roles_allow() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin().await;
    let (host, _) = joined(&cluster, &admin, v1::TokenKind::Node, "web1").await;
    let conditions = v1::RoleConditions {
        logins: vec!["deploy".into()],
        node_labels: [("env".to_owned(), v1::Strings { values: vec!["dev".into()] })].into(),
        ..Default::default()
    };
    let role = v1::Role { name: "deployer".into(), allow: Some(conditions), ..Default::default() };
    call!(admin, create_role, v1::CreateRoleRequest { role: Some(role) }).unwrap();
    let user = v1::User { name: "ann".into(), roles: vec!["deployer".into()], ..Default::default() };
    let request = v1::CreateUserRequest {
        user: Some(user),
        password: "a password of ann".into(),
        ..Default::default()
    };
    call!(admin, create_user, request).unwrap();
    let ann = log_in(&cluster.client().await, "ann", "a password of ann").await.unwrap();

    let listed = call!(ann, list_nodes, v1::ListNodesRequest::default()).unwrap().nodes;
    assert_eq!((listed.len(), listed[0].logins.as_slice()), (1, &["deploy".to_owned()][..]));
    let (ssh, tls) = (SshKeyPair::generate_ed25519("").unwrap(), KeyPair::generate_p256().unwrap());
    let request = v1::IssueUserCertsRequest {
        ssh_public_keys: vec![ssh.public_line()],
        tls_public_key: tls.spki_der().into(),
        ttl: Some(prost_types::Duration { seconds: 600, nanos: 0 }),
        ..Default::default()
    };
    let certs = call!(ann, issue_user_certs, request.clone()).unwrap();
    let parsed = parse_certificate(&certs.ssh_certificates[0]).unwrap();
    assert_eq!((parsed.kind, parsed.key_id.as_str()), (CertificateKind::User, "ann"));
    assert_eq!(parsed.principals, [format!("deploy@{}", host.id)]);
    assert_eq!(parsed.extensions.keys().collect::<Vec<_>>(), ["permit-pty"]);
    assert!(parsed.valid_before - parsed.valid_after <= 660);
    let identity = CertificateInfo::from_pem(&certs.tls_certificate).unwrap().identity;
    assert_eq!(identity, Some(Identity::User { cluster: CLUSTER.into(), name: "ann".into() }));
    let bundle = call!(cluster.client().await, get_trust_bundle, v1::GetTrustBundleRequest {}).unwrap();
    assert_eq!(bundle.trusted_user_ca_keys.len(), 1);
    let user_ca = SshPublicKey::parse(&bundle.trusted_user_ca_keys[0]).unwrap();
    assert_eq!(parsed.ca_fingerprint, user_ca.fingerprint());

    let with = |change: fn(&mut v1::IssueUserCertsRequest)| {
        let mut request = request.clone();
        change(&mut request);
        request
    };
    let refused = call!(ann, issue_user_certs, with(|it| it.logins = vec!["root".into()]));
    assert_eq!(code(refused), Code::PermissionDenied);
    let refused = call!(ann, issue_user_certs, with(|it| it.node = "web9".into()));
    assert_eq!(code(refused), Code::PermissionDenied);
    let refused = call!(ann, issue_user_certs, with(|it| it.ttl = Some(prost_types::Duration::default())));
    assert_eq!(code(refused), Code::InvalidArgument);
    let refused = call!(cluster.client().await, issue_user_certs, with(|it| it.ssh_public_keys = vec![]));
    assert_eq!(code(refused), Code::Unauthenticated);

    // What an admin says of a node counts at once.
    let labels = [("env".to_owned(), "prod".to_owned())].into();
    let update = v1::UpdateNodeRequest { agent_id: host.id.clone(), admin_labels: labels, revision: 0 };
    let updated = call!(admin, update_node, update).unwrap().node.unwrap();
    assert!(updated.revision > 0 && updated.online);
    assert_eq!(code(call!(ann, issue_user_certs, request)), Code::PermissionDenied);
    assert!(call!(ann, list_nodes, v1::ListNodesRequest::default()).unwrap().nodes.is_empty());
    let stale =
        v1::UpdateNodeRequest { agent_id: host.id, revision: updated.revision - 1, ..Default::default() };
    assert_eq!(code(call!(admin, update_node, stale)), Code::Aborted);
    cluster.handle.stop().await;
}
