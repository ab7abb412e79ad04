//! Bounds of what requests hold: every string, every list and every map of every method, by the descriptor of the API. What
//! would have no end is refused by its name.

use std::time::Duration;

use http::uri::PathAndQuery;
use mezite_client::SessionSecret;
use mezite_e2e::{
    Agent, AgentSpec, Cluster, Ingest, PASSWORD,
    api::{self, HostKeys},
};
use mezite_pki::ssh::SshKeyPair;
use mezite_proto::{
    DESCRIPTOR_SET, SERVICE_NAME,
    access::{self, METHODS},
    transport,
    v1::{self, AccessClass, TokenKind, lock_target::Target},
};
use prost::Message as _;
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MapKey, MethodDescriptor, ReflectMessage as _,
    Value,
};
use tonic::{Code, Request, Status, client::Grpc, metadata::MetadataValue, transport::Channel};
use tonic_prost::ProstCodec;
use tonic_types::StatusExt as _;

use crate::support::{metadata, recording_id};

/// Bytes of a string that is too long, and still in a message that is not too large.
const LONG: usize = 1 << 20;
/// Entries of a list that is too long.
const MANY: usize = 20_000;

/// What a server says for itself; on the way in it is not looked at.
const SAID_BY_THE_SERVER: [&str; 16] = [
    "CreateAgentIdentity identity.created_by",
    "UpdateAgentIdentity identity.created_by",
    "CreateUser user.created_by",
    "UpdateUser user.created_by",
    "CreateUser user.connector",
    "UpdateUser user.connector",
    "CreateUser user.lockouts",
    "UpdateUser user.lockouts",
    "CreateTrustedCluster trusted_cluster.authorities",
    "UpdateTrustedCluster trusted_cluster.authorities",
    "CreateTrustedCluster trusted_cluster.refresh_error",
    "UpdateTrustedCluster trusted_cluster.refresh_error",
    "CreateSpiffeDomain domain.created_by",
    "UpdateSpiffeDomain domain.created_by",
    "CreateSpiffeDomain domain.refresh_error",
    "UpdateSpiffeDomain domain.refresh_error",
];
/// Where another field that is missing is refused first: `auth-core connector::tests::every_field_of_a_provider_is_checked`
/// has their bounds.
const PROVIDERS: [&str; 3] = ["connector.oidc.", "connector.github.", "connector.saml."];
/// Relayed as it is: `recording-ingest::it refusals::messages_out_of_bounds_leave_nothing_behind` has its bounds.
const OF_INGESTS: &str = "UploadSessionRecording";

/// A request that is right but for what is too long in it: so that nothing else is what is refused.
fn right(method: &str, token: &str, agent: &Agent) -> Vec<u8> {
    let key = SshKeyPair::generate_ed25519("").unwrap().public_line();
    let user = Some(v1::User { name: "ann".into(), roles: vec!["access".into()], ..Default::default() });
    let role = Some(v1::Role { name: "role".into(), ..Default::default() });
    let name = "ann".to_owned();
    let password = "a password of ann".to_owned();
    let request_id = "0".repeat(32);
    match method {
        "ChangePassword" => {
            v1::ChangePasswordRequest { old_password: PASSWORD.into(), new_password: password }
                .encode_to_vec()
        }
        "IssueUserCerts" => {
            v1::IssueUserCertsRequest { ssh_public_keys: vec![key], ..Default::default() }.encode_to_vec()
        }
        "GenerateHostCerts" => HostKeys::new().request(token, "web9.example.org").encode_to_vec(),
        "RegisterAgent" => v1::RegisterAgentRequest {
            token: token.into(),
            address: "web9.example.org:22".into(),
            ..Default::default()
        }
        .encode_to_vec(),
        "UpdateNode" => {
            v1::UpdateNodeRequest { agent_id: agent.id.clone(), ..Default::default() }.encode_to_vec()
        }
        "CreateUser" => v1::CreateUserRequest { user, password, invite_ttl: None }.encode_to_vec(),
        "UpdateUser" => v1::UpdateUserRequest { user }.encode_to_vec(),
        "ResetUserPassword" => {
            v1::ResetUserPasswordRequest { name, new_password: password, ..Default::default() }
                .encode_to_vec()
        }
        "CreateAgentIdentity" | "UpdateAgentIdentity" => {
            // Both messages have the identity in their first field.
            let identity = Some(v1::AgentIdentity { name, ..Default::default() });
            v1::CreateAgentIdentityRequest { identity, bootstrap_ttl: None }.encode_to_vec()
        }
        "BootstrapAgentIdentity" => v1::BootstrapAgentIdentityRequest {
            name,
            bootstrap_secret: "guessed".into(),
            ssh_public_key: key,
            tls_public_key: HostKeys::new().tls.spki_der().into(),
        }
        .encode_to_vec(),
        "BeginSSOLogin" => v1::BeginSsoLoginRequest {
            connector: "corporate".into(),
            challenge: vec![1; 32].into(),
            port: 40_000,
            path: "0123456789abcdef".into(),
        }
        .encode_to_vec(),
        "RenewAgentIdentity" => v1::RenewAgentIdentityRequest {
            generation: 1,
            ssh_public_key: key,
            tls_public_key: HostKeys::new().tls.spki_der().into(),
        }
        .encode_to_vec(),
        "CreateRole" => v1::CreateRoleRequest { role }.encode_to_vec(),
        "UpdateRole" => v1::UpdateRoleRequest { role }.encode_to_vec(),
        "CreateToken" => {
            v1::CreateTokenRequest { kind: TokenKind::Node.into(), ..Default::default() }.encode_to_vec()
        }
        "CreateLock" => {
            let target = Some(v1::LockTarget { target: Some(Target::Login("nobody".into())) });
            v1::CreateLockRequest { target, ..Default::default() }.encode_to_vec()
        }
        "AcceptInvite" => {
            v1::AcceptInviteRequest { secret: "guessed".into(), new_password: password }.encode_to_vec()
        }
        "CreateConnector" | "UpdateConnector" => {
            // Both messages have the connector in their first field.
            let connector = Some(v1::Connector { name: "corporate".into(), ..Default::default() });
            v1::CreateConnectorRequest { connector }.encode_to_vec()
        }
        "CreateTrustedCluster" | "UpdateTrustedCluster" => {
            let cluster = v1::TrustedCluster {
                name: "other".into(),
                addresses: vec!["other.example.org:3025".into()],
                ..Default::default()
            };
            v1::UpdateTrustedClusterRequest { trusted_cluster: Some(cluster) }.encode_to_vec()
        }
        "CreateSpiffeDomain" | "UpdateSpiffeDomain" => {
            // Both messages have the trust domain in their first field.
            let url = "https://spiffe.example.org/bundle".to_owned();
            let domain = v1::SpiffeDomain {
                trust_domain: "example.org".into(),
                endpoint: Some(v1::SpiffeBundleEndpoint { url, ..Default::default() }),
                ..Default::default()
            };
            v1::CreateSpiffeDomainRequest { domain: Some(domain) }.encode_to_vec()
        }
        "ExchangeTrust" => v1::ExchangeTrustRequest {
            token: token.into(),
            exchange_id: vec![1; 32].into(),
            cluster_name: "other".into(),
        }
        .encode_to_vec(),
        "EmitAuditEvent" => v1::EmitAuditEventRequest {
            event: "session.start".into(),
            target: "session:1".into(),
            ..Default::default()
        }
        .encode_to_vec(),
        "CreateAccessRequest" => {
            v1::CreateAccessRequestRequest { roles: vec!["access".into()], ..Default::default() }
                .encode_to_vec()
        }
        "ReviewAccessRequest" => {
            v1::ReviewAccessRequestRequest { request_id, ..Default::default() }.encode_to_vec()
        }
        "UploadSessionRecording" => v1::UploadSessionRecordingRequest {
            recording_id: recording_id().to_string(),
            metadata: Some(metadata("ann")),
            data: b"x".as_slice().into(),
            payload_sha256: vec![0; 32].into(),
        }
        .encode_to_vec(),
        _ => Vec::new(),
    }
}

/// A value of one string or one message.
fn small(field: &Kind, number: usize) -> Value {
    match field {
        Kind::String => Value::String(format!("x{number}")),
        Kind::Bytes => Value::Bytes(b"x".as_slice().into()),
        Kind::Message(message) => Value::Message(DynamicMessage::new(message.clone())),
        Kind::Enum(_) => Value::EnumNumber(1),
        _ => Value::Bool(true),
    }
}

/// What is too long in a field that has no end by its type.
fn too_long(field: &FieldDescriptor) -> Vec<Value> {
    let kind = field.kind();
    if field.is_map() {
        let Kind::Message(entry) = kind else { return Vec::new() };
        let value = entry.map_entry_value_field().kind();
        let one = |key: String| (MapKey::String(key), small(&value, 1));
        let mut maps =
            vec![(0..MANY).map(|number| one(format!("x{number}"))).collect(), [one("x".repeat(LONG))].into()];
        if matches!(value, Kind::String) {
            maps.push([(MapKey::String("x".into()), Value::String("x".repeat(LONG)))].into());
        }
        return maps.into_iter().map(Value::Map).collect();
    }
    let text = match kind {
        Kind::String => Some(Value::String("x".repeat(LONG))),
        Kind::Bytes => Some(Value::Bytes(vec![b'x'; LONG].into())),
        _ => None,
    };
    if field.is_list() {
        let many = (0..MANY).map(|number| small(&kind, number)).collect();
        return [Some(many), text.map(|text| vec![text])].into_iter().flatten().map(Value::List).collect();
    }
    text.into_iter().collect()
}

/// Every way to make a message too long, with the path of the field that is.
fn variants(message: &DynamicMessage, path: &str) -> Vec<(String, DynamicMessage)> {
    let mut found = Vec::new();
    for field in message.descriptor().fields() {
        let path = if path.is_empty() { field.name().to_owned() } else { format!("{path}.{}", field.name()) };
        for value in too_long(&field) {
            let mut changed = message.clone();
            changed.set_field(&field, value);
            found.push((path.clone(), changed));
        }
        if let Kind::Message(inner) = field.kind()
            && !field.is_list()
            && !field.is_map()
            && !inner.full_name().starts_with("google.protobuf.")
        {
            let present = message.get_field(&field).as_message().cloned();
            let present = present.unwrap_or_else(|| DynamicMessage::new(inner));
            for (path, value) in variants(&present, &path) {
                let mut changed = message.clone();
                changed.set_field(&field, Value::Message(value));
                found.push((path, changed));
            }
        }
    }
    found
}

async fn ask(
    channel: &Channel,
    session: Option<&SessionSecret>,
    method: &MethodDescriptor,
    message: DynamicMessage,
) -> Result<(), Status> {
    let mut request = Request::new(message);
    request.set_timeout(Duration::from_secs(30));
    if let Some(session) = session {
        let bearer = MetadataValue::try_from(format!("Bearer {}", session.expose())).unwrap();
        request.metadata_mut().insert("authorization", bearer);
    }
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.map_err(|error| Status::unknown(error.to_string()))?;
    let path = PathAndQuery::try_from(format!("/{SERVICE_NAME}/{}", method.name())).unwrap();
    grpc.unary(request, path, ProstCodec::<DynamicMessage, ()>::default()).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_string_list_and_map_of_every_request_has_a_bound() {
    let cluster = Cluster::start(1).await;
    let _ingests = Ingest::start_all(&cluster, 1).await;
    cluster.add_user("ann", &["access"], &[]).await;
    let agent = Agent::join(&cluster, AgentSpec::default());
    let token = cluster.token(TokenKind::Node).await;
    let trust = cluster.trust();
    let connect = |identity| {
        let (tls, name) = (api::tls(trust, true, identity), api::auth_server_name(trust));
        transport::channel(&cluster.addresses()[0], tls, name, Duration::from_secs(20)).unwrap()
    };
    let (certificate, key) = agent.pems();
    let (plain, certified) = (connect(None), connect(Some((&certificate, &key))));

    let pool = DescriptorPool::decode(DESCRIPTOR_SET).unwrap();
    let service = pool.get_service_by_name(SERVICE_NAME).unwrap();
    let (mut tried, mut wrong) = (0, Vec::new());
    for method in service.methods().filter(|method| !method.is_client_streaming()) {
        let by_agent = ["RegisterAgent", "AgentHeartbeat", "UploadSessionRecording", "IssueSVID"]
            .contains(&method.name());
        let rule = access::rule(method.name()).unwrap();
        let (channel, session) = match (by_agent, rule.classes.contains(&AccessClass::Public)) {
            (true, _) => (&certified, None),
            (false, true) if method.name() != "DeregisterAgent" => (&plain, None),
            (false, _) => (&plain, Some(cluster.session())),
        };
        let right = right(method.name(), &token, &agent);
        let right = DynamicMessage::decode(method.input(), right.as_slice()).unwrap();
        for (path, message) in variants(&right, "") {
            let name = format!("{} {path}", method.name());
            let elsewhere = PROVIDERS.iter().any(|provider| path.starts_with(provider));
            if elsewhere || SAID_BY_THE_SERVER.contains(&name.as_str()) || method.name() == OF_INGESTS {
                continue;
            }
            let answer = ask(channel, session, &method, message).await;
            if answer.as_ref().is_err_and(|status| status.code() == Code::Unimplemented) {
                continue;
            }
            tried += 1;
            let field = path.rsplit('.').next().unwrap();
            let named = answer.as_ref().is_err_and(|status| {
                let details = status.get_details_bad_request();
                let violations = details.map(|details| details.field_violations).unwrap_or_default();
                status.code() == Code::InvalidArgument
                    && violations.iter().any(|violation| violation.field.contains(field))
            });
            if !named {
                wrong.push(format!("{name}: {answer:.300?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "of {tried}:\n{}", wrong.join("\n"));
    assert!(tried > 120 && METHODS.len() > 60, "{tried}");
}
