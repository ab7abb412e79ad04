//! The two lists: methods that take effect once, each with a request and another one that would be as good; and those that can be
//! repeated as they are. Whoever adds a method that writes enters it in one of them.

use std::sync::OnceLock;

use futures::{FutureExt as _, future::BoxFuture};
use mezite_proto::{
    IDEMPOTENCY_KEY,
    v1::{self, auth_service_server::AuthService as _},
};
use prost::Message;
use tonic::{Request, Status, metadata::MetadataValue};

use crate::rpc::{
    Api,
    testing::{BOSS, Other},
};

/// Access requests: one of somebody else, and two of the caller.
pub(super) const THEIRS: &str = "11111111111111111111111111111111";
pub(super) const OURS: &str = "22222222222222222222222222222222";
pub(super) const OURS_TOO: &str = "33333333333333333333333333333333";
pub(super) const AGENT: &str = "6f9619ff-8b86-4011-b42d-00c04fc964ff";

/// Which of two requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    This,
    Other,
}

pub(super) type Answer = Result<Vec<u8>, Status>;

/// A method that takes effect once.
pub(super) struct Case {
    pub(super) method: &'static str,
    /// The audit event of its effect.
    pub(super) event: &'static str,
    /// Calls it with a session and, if there is one, an idempotency key. [`Asked::Other`] is a request that differs
    /// and would be as good.
    pub(super) call: fn(Api, Credentials, Asked, Revisions) -> BoxFuture<'static, Answer>,
    /// The secret in its reply.
    pub(super) secret: fn(&[u8]) -> Option<String>,
}

/// What a call brings.
#[derive(Clone)]
pub(super) struct Credentials {
    pub(super) session: String,
    pub(super) key: Option<&'static str>,
}

/// Revisions of what the methods change, as they were at the beginning.
#[derive(Debug, Clone, Copy)]
pub(super) struct Revisions {
    pub(super) ann: u64,
    pub(super) dev: u64,
    pub(super) node: u64,
    pub(super) connector: u64,
}

impl Credentials {
    pub(super) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let bearer = MetadataValue::try_from(format!("Bearer {}", self.session)).unwrap();
        request.metadata_mut().insert("authorization", bearer);
        if let Some(key) = self.key {
            request.metadata_mut().insert(IDEMPOTENCY_KEY, MetadataValue::from_static(key));
        }
        request
    }
}

fn no_secret(_: &[u8]) -> Option<String> {
    None
}

/// Builds a case: `$asked` and `$at` are there to make the request of.
macro_rules! case {
    ($method:literal, $event:literal, $name:ident, $secret:expr, |$asked:ident, $at:ident| $request:expr) => {
        Case {
            method: $method,
            event: $event,
            call: |api, credentials, $asked, $at| {
                let _ = &$at;
                let request = credentials.request($request);
                async move { api.$name(request).await.map(|reply| reply.into_inner().encode_to_vec()) }
                    .boxed()
            },
            secret: $secret,
        }
    };
}

/// Another cluster, for as long as the tests run.
fn other() -> &'static Other {
    static OTHER: OnceLock<Other> = OnceLock::new();
    OTHER.get_or_init(Other::start)
}

/// A trust domain whose bundle has no keys, and one of two numbers.
pub(super) fn spiffe_domain(name: &str, asked: Asked) -> v1::SpiffeDomain {
    let bundle = pick(asked, r#"{"keys":[],"spiffe_sequence":1}"#, r#"{"keys":[],"spiffe_sequence":2}"#);
    v1::SpiffeDomain { trust_domain: name.into(), bundle: bundle.into(), ..Default::default() }
}

pub(super) fn github(name: &str, client_secret: &str) -> v1::Connector {
    let github = v1::GithubConnector {
        client_id: "Iv1".into(),
        client_secret: client_secret.into(),
        organizations: vec!["mezite-io".into()],
        ..Default::default()
    };
    let provider = Some(v1::connector::Provider::Github(github));
    v1::Connector { name: name.into(), provider, ..Default::default() }
}

fn pick<T>(asked: Asked, this: T, other: T) -> T {
    if asked == Asked::This { this } else { other }
}

/// Every method that takes effect once.
pub(super) fn cases() -> Vec<Case> {
    vec![
        case!("CreateUser", "user.create", create_user, no_secret, |asked, _at| {
            // Other in nothing but the password.
            let user = v1::User { name: "bob".into(), roles: vec!["access".into()], ..Default::default() };
            let password = pick(asked, "a password of bob", "a passwort of bob").to_owned();
            v1::CreateUserRequest { user: Some(user), password, ..Default::default() }
        }),
        case!(
            "CreateUser",
            "user.create",
            create_user,
            |reply| Some(v1::CreateUserResponse::decode(reply).unwrap().invite_secret),
            |asked, _at| {
                let user = v1::User { name: "bob".into(), ..Default::default() };
                let seconds = pick(asked, 60, 61);
                let invite_ttl = Some(prost_types::Duration { seconds, nanos: 0 });
                v1::CreateUserRequest { user: Some(user), invite_ttl, ..Default::default() }
            }
        ),
        case!(
            "ResetUserPassword",
            "user.password.reset",
            reset_user_password,
            |reply| Some(v1::ResetUserPasswordResponse::decode(reply).unwrap().invite_secret),
            |asked, _at| {
                let seconds = pick(asked, 60, 61);
                let invite_ttl = Some(prost_types::Duration { seconds, nanos: 0 });
                v1::ResetUserPasswordRequest { name: "ann".into(), invite_ttl, ..Default::default() }
            }
        ),
        case!("UpdateUser", "user.update", update_user, no_secret, |asked, at| {
            let roles = vec![pick(asked, "auditor", "dev").to_owned()];
            let user = v1::User { name: "ann".into(), roles, revision: at.ann, ..Default::default() };
            v1::UpdateUserRequest { user: Some(user) }
        }),
        case!("ResetUserPassword", "user.password.reset", reset_user_password, no_secret, |asked, _at| {
            let new_password = pick(asked, "another password", "a third password").to_owned();
            v1::ResetUserPasswordRequest { name: "ann".into(), new_password, ..Default::default() }
        }),
        case!("ChangePassword", "user.password.change", change_password, no_secret, |asked, _at| {
            let new_password = pick(asked, "another password", "a third password").to_owned();
            v1::ChangePasswordRequest { old_password: BOSS.into(), new_password }
        }),
        case!("CreateRole", "role.create", create_role, no_secret, |asked, _at| {
            let description = pick(asked, "this", "other").to_owned();
            let role = v1::Role { name: "ops".into(), description, ..Default::default() };
            v1::CreateRoleRequest { role: Some(role) }
        }),
        case!("UpdateRole", "role.update", update_role, no_secret, |asked, at| {
            let description = pick(asked, "this", "other").to_owned();
            let role = v1::Role { name: "dev".into(), description, revision: at.dev, ..Default::default() };
            v1::UpdateRoleRequest { role: Some(role) }
        }),
        case!(
            "CreateToken",
            "token.create",
            create_token,
            |reply| Some(v1::CreateTokenResponse::decode(reply).unwrap().secret),
            |asked, _at| v1::CreateTokenRequest {
                kind: v1::TokenKind::Node.into(),
                max_uses: pick(asked, 1, 2),
                ..Default::default()
            }
        ),
        case!("UpdateNode", "node.update", update_node, no_secret, |asked, at| {
            let admin_labels = [("env".to_owned(), pick(asked, "this", "other").to_owned())].into();
            v1::UpdateNodeRequest { agent_id: AGENT.into(), admin_labels, revision: at.node }
        }),
        case!("CreateLock", "lock.create", create_lock, no_secret, |asked, _at| {
            let message = pick(asked, "this", "other").to_owned();
            let target = Some(v1::lock_target::Target::User("ann".into()));
            v1::CreateLockRequest { target: Some(v1::LockTarget { target }), message, ttl: None }
        }),
        case!(
            "UpdateClusterConfig",
            "cluster_config.update",
            update_cluster_config,
            no_secret,
            |asked, _at| {
                let audit_max_events = pick(asked, 5_000, 6_000);
                let config = v1::ClusterConfig { audit_max_events, ..Default::default() };
                v1::UpdateClusterConfigRequest { config: Some(config) }
            }
        ),
        case!(
            "CreateAccessRequest",
            "access_request.create",
            create_access_request,
            no_secret,
            |asked, _at| {
                let reason = pick(asked, "this", "other").to_owned();
                v1::CreateAccessRequestRequest { roles: vec!["dev".into()], reason, ..Default::default() }
            }
        ),
        case!(
            "ReviewAccessRequest",
            "access_request.deny",
            review_access_request,
            no_secret,
            |asked, _at| {
                let reason = pick(asked, "this", "other").to_owned();
                v1::ReviewAccessRequestRequest { request_id: THEIRS.into(), approve: false, reason }
            }
        ),
        case!(
            "CancelAccessRequest",
            "access_request.cancel",
            cancel_access_request,
            no_secret,
            |asked, _at| {
                v1::CancelAccessRequestRequest { request_id: pick(asked, OURS, OURS_TOO).into() }
            }
        ),
        case!(
            "CreateAgentIdentity",
            "agent_identity.create",
            create_agent_identity,
            |reply| Some(v1::CreateAgentIdentityResponse::decode(reply).unwrap().bootstrap_secret),
            |asked, _at| {
                let identity = v1::AgentIdentity { name: "ci".into(), ..Default::default() };
                let bootstrap_ttl = Some(prost_types::Duration { seconds: pick(asked, 60, 61), nanos: 0 });
                v1::CreateAgentIdentityRequest { identity: Some(identity), bootstrap_ttl }
            }
        ),
        case!(
            "UpdateAgentIdentity",
            "agent_identity.reset",
            update_agent_identity,
            |reply| Some(v1::UpdateAgentIdentityResponse::decode(reply).unwrap().bootstrap_secret),
            |asked, _at| {
                let identity = v1::AgentIdentity { name: "known".into(), ..Default::default() };
                let bootstrap_ttl = Some(prost_types::Duration { seconds: pick(asked, 60, 61), nanos: 0 });
                v1::UpdateAgentIdentityRequest { identity: Some(identity), reset: true, bootstrap_ttl }
            }
        ),
        case!("RotateCA", "ca.rotate", rotate_ca, no_secret, |asked, _at| {
            let kind = pick(asked, v1::CaKind::Peer, v1::CaKind::Tls);
            let target_phase = v1::RotationPhase::Init.into();
            v1::RotateCaRequest { kind: kind.into(), target_phase, ..Default::default() }
        }),
        case!("EmitAuditEvent", "session.start", emit_audit_event, no_secret, |asked, _at| {
            let target = pick(asked, "session:1", "session:2").to_owned();
            v1::EmitAuditEventRequest { event: "session.start".into(), target, ..Default::default() }
        }),
        case!("CreateConnector", "connector.create", create_connector, no_secret, |asked, _at| {
            // Other in nothing but the secret.
            let connector = github("new", pick(asked, "this", "other"));
            v1::CreateConnectorRequest { connector: Some(connector) }
        }),
        case!("UpdateConnector", "connector.update", update_connector, no_secret, |asked, at| {
            let connector = github("known", pick(asked, "this", "other"));
            let connector = v1::Connector { revision: at.connector, ..connector };
            v1::UpdateConnectorRequest { connector: Some(connector) }
        }),
        case!("CreateSpiffeDomain", "spiffe_domain.create", create_spiffe_domain, no_secret, |asked, _at| {
            v1::CreateSpiffeDomainRequest { domain: Some(spiffe_domain("new", asked)) }
        }),
        case!("UpdateSpiffeDomain", "spiffe_domain.update", update_spiffe_domain, no_secret, |asked, _at| {
            v1::UpdateSpiffeDomainRequest { domain: Some(spiffe_domain("known", asked)) }
        }),
        case!(
            "CreateTrustedCluster",
            "trusted_cluster.create",
            create_trusted_cluster,
            no_secret,
            |asked, _at| {
                let disabled = pick(asked, false, true);
                let cluster = v1::TrustedCluster { disabled, ..other().trusted() };
                let token = other().token(Other::FOR_MANY);
                v1::CreateTrustedClusterRequest { trusted_cluster: Some(cluster), token }
            }
        ),
        case!(
            "UpdateTrustedCluster",
            "trusted_cluster.update",
            update_trusted_cluster,
            no_secret,
            |asked, _at| {
                let addresses = vec![pick(asked, "a.example:1", "b.example:1").to_owned()];
                let cluster = v1::TrustedCluster { name: "known".into(), addresses, ..Default::default() };
                v1::UpdateTrustedClusterRequest { trusted_cluster: Some(cluster) }
            }
        ),
        case!(
            "CreateAuthJoinToken",
            "auth_node.token.create",
            create_auth_join_token,
            |reply| Some(v1::CreateAuthJoinTokenResponse::decode(reply).unwrap().token),
            |asked, _at| {
                let ttl = prost_types::Duration { seconds: pick(asked, 60, 61), nanos: 0 };
                v1::CreateAuthJoinTokenRequest { ttl: Some(ttl) }
            }
        ),
    ]
}

/// Methods that need no key, beside those that only read: a repetition has no effect of its own, or one that is as good
/// as the first.
pub(super) const REPEATABLE: &[&str] = &[
    // A session, or certificates, that nobody has end by themselves.
    "AuthenticateLocal",
    "IssueUserCerts",
    // What it used is used: a repetition is refused, and its caller sees by a login what became of it.
    "AcceptInvite",
    // A challenge that nobody answers ends by itself, and one that was answered is used: its caller begins anew, and a
    // registered device is in the list.
    "BeginWebAuthnLogin",
    "FinishWebAuthnLogin",
    "BeginSSOLogin",
    "FinishSSOLogin",
    "BeginWebAuthnRegistration",
    "FinishWebAuthnRegistration",
    // The same token, or certificate, with the same keys is the same join or renewal.
    "GenerateHostCerts",
    "RegisterAgent",
    // The same call for the same keys, as its idempotency key says, has one generation and one session.
    "BootstrapAgentIdentity",
    // A token is used, and whose answer was lost shows another one; a session or certificate that nobody has ends by itself.
    "AuthenticateSPIFFE",
    "IssueSVID",
    "RenewAgentIdentity",
    // Reports how it is now.
    "AgentHeartbeat",
    // What is gone is gone; that it was not there is what a repetition is told.
    "Logout",
    "DeregisterAgent",
    "DeleteUser",
    "DeleteWebAuthnDevice",
    "DeleteRole",
    "DeleteToken",
    "DeleteLock",
    "RevokeSession",
    // What is forgotten is forgotten.
    "ClearUserLockout",
    "DeleteConnector",
    "DeleteTrustedCluster",
    "DeleteAgentIdentity",
    "DeleteSpiffeDomain",
    // The same token with the same id is the same exchange.
    "ExchangeTrust",
    // A change of the members is asked for until it is so.
    "AddMember",
    "RemoveMember",
    // Whoever sends it again sends the same bytes at the same offsets.
    "UploadSessionRecording",
];
