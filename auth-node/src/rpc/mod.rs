//! The one table of the API's methods, and what is the same for all of them: a call is told who may make it,
//! what it brings and how long it may take; its handler runs; it is measured and logged; an error becomes a
//! status.
//!
//! A family's module parses, draws what is random, has the domain decide, and converts. It decides nothing
//! itself.

mod access;
mod access_requests;
mod agent_identities;
mod audit;
mod backup;
mod certs;
mod cluster;
mod cluster_config;
pub(crate) mod connectors;
pub(crate) mod convert;
#[cfg(test)]
mod full_tests;
mod iam;
mod joining;
pub(crate) mod locks;
pub(crate) mod login;
mod members;
mod nodes;
#[cfg(test)]
mod once_tests;
mod outcome;
mod ping;
mod presence;
pub(crate) mod recordings;
mod revocations;
mod roles;
mod rotation;
pub(crate) mod sessions;
mod spiffe;
pub(crate) mod sso;
#[cfg(test)]
pub(crate) mod testing;
mod tokens;
mod trust;
mod trusted_clusters;
pub(crate) mod users;
pub(crate) mod webauthn;

pub(crate) use agent_identities::ROOM as AGENT_IDENTITIES;
pub(crate) use outcome::carry_out;
pub(crate) use revocations::RevocationList;

use std::{pin::Pin, sync::Arc};

use auth_core::{CoreError, Credential};
use futures::Stream;
use mezite_daemon::{calls::Measured, traces};
use mezite_proto::{
    access as rules,
    v1::{self, auth_service_server::AuthService},
};
use tokio::time::Instant;
use tonic::{Request, Response, Status, Streaming};
use tracing::{Instrument as _, Span};

use crate::{
    authn::{self, Call, Here},
    error::ApiError,
    service::Service,
};
use outcome::{after_admission, end, within};

/// Methods that are declared and stay without an effect. They are authorised, and then UNIMPLEMENTED.
pub const RESERVED: &[&str] = &[
    "ArchiveAuditEvents",
    "ConfigurePlugin",
    "ListPlugins",
    "SetPluginEnabled",
    "CreateNotificationChannel",
    "ListNotificationChannels",
    "DisableNotificationChannel",
    "DeleteNotificationChannel",
    "ValidateTOTP",
];

/// The API, as tonic serves it.
#[derive(Clone)]
pub(crate) struct Api {
    service: Arc<Service>,
}

/// What a server-streaming method answers.
pub(crate) type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// A call that has begun.
struct Begun {
    call: Call,
    measured: Measured,
}

impl Begun {
    /// Ends the call: measures it, logs it, and tells the caller what went wrong.
    fn end<T>(self, result: Result<T, ApiError>) -> Result<Response<T>, Status> {
        let stranger = !matches!(self.call.credential, Credential::Session(_));
        end(&self.call.span, &self.call.origin, stranger, self.measured, result)
    }
}

impl Api {
    /// Of what handlers work with.
    pub(crate) fn new(service: Arc<Service>) -> Self {
        Self { service }
    }

    /// A call of one message each way, which has a deadline whether the client sets one or not.
    fn begin<T>(&self, method: &'static str, request: &Request<T>) -> Result<Begun, Status> {
        let longest = self.service.settings.call_timeout;
        self.begin_within(method, request, |metadata| {
            authn::deadline(metadata, longest).map(|left| Some(Instant::now() + left))
        })
    }

    /// A call that lasts as long as its messages flow.
    fn begin_stream<T>(&self, method: &'static str, request: &Request<T>) -> Result<Begun, Status> {
        self.begin_within(method, request, |_| Ok(None))
    }

    fn begin_within<T>(
        &self,
        method: &'static str,
        request: &Request<T>,
        deadline: impl FnOnce(&tonic::metadata::MetadataMap) -> Result<Option<Instant>, CoreError>,
    ) -> Result<Begun, Status> {
        let measured = Measured::begin(method);
        let settings = &self.service.settings;
        let origin = authn::origin(request.extensions(), settings.node_id);
        let span = authn::span(method, &origin);
        let here = Here { cluster: &settings.cluster, now: (self.service.clock)() / 1000 };
        let known = || authn::is_of_the_cluster(request.extensions(), here);
        traces::continue_trace(&span, known, |name| request.metadata().get(name)?.to_str().ok());
        let prepared = rules::rule(method)
            .ok_or_else(|| CoreError::Denied(format!("{method} has no access rule")))
            .and_then(|rule| {
                let credential = authn::credential(request.metadata(), request.extensions(), here)?;
                let key = authn::idempotency_key(request.metadata())?;
                Ok((rule, credential, key, deadline(request.metadata())?))
            });
        match prepared {
            Ok((method, credential, key, deadline)) => {
                Ok(Begun { call: Call { method, credential, origin, key, deadline, span }, measured })
            }
            Err(error) => Err(refused(end::<()>(&span, &origin, true, measured, Err(error.into())))),
        }
    }
}

fn refused(result: Result<Response<()>, Status>) -> Status {
    result.err().unwrap_or_else(|| Status::internal("internal error"))
}

/// Authorises, and then says that the method does nothing.
async fn reserved<Q, T: Send + 'static>(service: &Service, call: &Call, _request: Q) -> Result<T, ApiError> {
    service.read(call, |_, _| Err(CoreError::Unimplemented)).await
}

/// A line per method: its name, what it takes and answers, and its handler.
macro_rules! api {
    (
        unary { $($method:ident: $name:ident($request:ident) -> $reply:ident = $($handler:ident)::+;)+ }
        streaming { $($streaming:tt)* }
    ) => {
        #[tonic::async_trait]
        impl AuthService for Api {
            $(
                async fn $name(&self, request: Request<v1::$request>) -> Result<Response<v1::$reply>, Status> {
                    let begun = self.begin(stringify!($method), &request)?;
                    let (service, call) = (&self.service, &begun.call);
                    let work = async {
                        let result = $($handler)::+(service, call, request.into_inner()).await;
                        after_admission(service, call, result).await
                    };
                    let result = within(call.deadline, work).instrument(Span::clone(&call.span)).await;
                    begun.end(result)
                }
            )+

            $($streaming)*
        }

        /// Methods of one message each way, and their handlers.
        #[cfg(test)]
        const UNARY: &[(&str, &str)] = &[$((stringify!($method), stringify!($($handler)::+)),)+];
    };
}

api! {
    unary {
        // Login.
        Ping: ping(PingRequest) -> PingResponse = ping::ping;
        AuthenticateLocal:
            authenticate_local(AuthenticateLocalRequest) -> AuthenticateLocalResponse = login::authenticate_local;
        BeginWebAuthnLogin:
            begin_web_authn_login(BeginWebAuthnLoginRequest) -> BeginWebAuthnLoginResponse = webauthn::begin_login;
        FinishWebAuthnLogin:
            finish_web_authn_login(FinishWebAuthnLoginRequest) -> FinishWebAuthnLoginResponse = webauthn::finish_login;
        BeginSSOLogin: begin_sso_login(BeginSsoLoginRequest) -> BeginSsoLoginResponse = sso::begin;
        FinishSSOLogin: finish_sso_login(FinishSsoLoginRequest) -> FinishSsoLoginResponse = sso::finish;
        ChangePassword:
            change_password(ChangePasswordRequest) -> ChangePasswordResponse = login::change_password;
        AcceptInvite: accept_invite(AcceptInviteRequest) -> AcceptInviteResponse = login::accept_invite;
        Logout: logout(LogoutRequest) -> LogoutResponse = login::logout;
        BeginWebAuthnRegistration:
            begin_web_authn_registration(BeginWebAuthnRegistrationRequest) -> BeginWebAuthnRegistrationResponse = webauthn::begin_registration;
        FinishWebAuthnRegistration:
            finish_web_authn_registration(FinishWebAuthnRegistrationRequest) -> FinishWebAuthnRegistrationResponse = webauthn::finish_registration;
        ListWebAuthnDevices:
            list_web_authn_devices(ListWebAuthnDevicesRequest) -> ListWebAuthnDevicesResponse = webauthn::list;
        DeleteWebAuthnDevice:
            delete_web_authn_device(DeleteWebAuthnDeviceRequest) -> DeleteWebAuthnDeviceResponse = webauthn::delete;

        // Certificates.
        IssueUserCerts:
            issue_user_certs(IssueUserCertsRequest) -> IssueUserCertsResponse = certs::issue_user_certs;
        GetTrustBundle: get_trust_bundle(GetTrustBundleRequest) -> GetTrustBundleResponse = trust::get_bundle;
        GetRevocationList: get_revocation_list(GetRevocationListRequest) -> GetRevocationListResponse = revocations::get;
        GenerateHostCerts:
            generate_host_certs(GenerateHostCertsRequest) -> GenerateHostCertsResponse = joining::generate_host_certs;

        // Joining.
        ValidateJoinToken:
            validate_join_token(ValidateJoinTokenRequest) -> ValidateJoinTokenResponse = joining::validate_token;
        RegisterAgent: register_agent(RegisterAgentRequest) -> RegisterAgentResponse = joining::register;

        // Presence.
        AgentHeartbeat:
            agent_heartbeat(AgentHeartbeatRequest) -> AgentHeartbeatResponse = presence::heartbeat;
        DeregisterAgent:
            deregister_agent(DeregisterAgentRequest) -> DeregisterAgentResponse = joining::deregister;

        // Nodes.
        ListNodes: list_nodes(ListNodesRequest) -> ListNodesResponse = nodes::list;
        UpdateNode: update_node(UpdateNodeRequest) -> UpdateNodeResponse = nodes::update;

        // Agent identities: bots, CI jobs, AI agents.
        CreateAgentIdentity:
            create_agent_identity(CreateAgentIdentityRequest) -> CreateAgentIdentityResponse = agent_identities::create;
        UpdateAgentIdentity:
            update_agent_identity(UpdateAgentIdentityRequest) -> UpdateAgentIdentityResponse = agent_identities::update;
        DeleteAgentIdentity:
            delete_agent_identity(DeleteAgentIdentityRequest) -> DeleteAgentIdentityResponse = agent_identities::delete;
        GetAgentIdentity: get_agent_identity(GetAgentIdentityRequest) -> GetAgentIdentityResponse = agent_identities::get;
        ListAgentIdentities:
            list_agent_identities(ListAgentIdentitiesRequest) -> ListAgentIdentitiesResponse = agent_identities::list;
        BootstrapAgentIdentity:
            bootstrap_agent_identity(BootstrapAgentIdentityRequest) -> BootstrapAgentIdentityResponse = agent_identities::bootstrap;
        RenewAgentIdentity:
            renew_agent_identity(RenewAgentIdentityRequest) -> RenewAgentIdentityResponse = agent_identities::renew;
        AuthenticateSPIFFE:
            authenticate_spiffe(AuthenticateSpiffeRequest) -> AuthenticateSpiffeResponse = spiffe::authenticate;

        // SPIFFE.
        CreateSpiffeDomain:
            create_spiffe_domain(CreateSpiffeDomainRequest) -> CreateSpiffeDomainResponse = spiffe::create;
        GetSpiffeDomain: get_spiffe_domain(GetSpiffeDomainRequest) -> GetSpiffeDomainResponse = spiffe::get;
        ListSpiffeDomains:
            list_spiffe_domains(ListSpiffeDomainsRequest) -> ListSpiffeDomainsResponse = spiffe::list;
        UpdateSpiffeDomain:
            update_spiffe_domain(UpdateSpiffeDomainRequest) -> UpdateSpiffeDomainResponse = spiffe::update;
        DeleteSpiffeDomain:
            delete_spiffe_domain(DeleteSpiffeDomainRequest) -> DeleteSpiffeDomainResponse = spiffe::delete;
        IssueSVID: issue_svid(IssueSvidRequest) -> IssueSvidResponse = spiffe::issue;

        // Users and roles.
        GetUser: get_user(GetUserRequest) -> GetUserResponse = users::get;
        ListUsers: list_users(ListUsersRequest) -> ListUsersResponse = users::list;
        CreateUser: create_user(CreateUserRequest) -> CreateUserResponse = users::create;
        UpdateUser: update_user(UpdateUserRequest) -> UpdateUserResponse = users::update;
        DeleteUser: delete_user(DeleteUserRequest) -> DeleteUserResponse = users::delete;
        ResetUserPassword:
            reset_user_password(ResetUserPasswordRequest) -> ResetUserPasswordResponse = users::reset_password;
        ClearUserLockout: clear_user_lockout(ClearUserLockoutRequest) -> ClearUserLockoutResponse = users::clear_lockout;
        GetRole: get_role(GetRoleRequest) -> GetRoleResponse = roles::get;
        ListRoles: list_roles(ListRolesRequest) -> ListRolesResponse = roles::list;
        CreateRole: create_role(CreateRoleRequest) -> CreateRoleResponse = roles::create;
        UpdateRole: update_role(UpdateRoleRequest) -> UpdateRoleResponse = roles::update;
        DeleteRole: delete_role(DeleteRoleRequest) -> DeleteRoleResponse = roles::delete;

        // Tokens.
        CreateToken: create_token(CreateTokenRequest) -> CreateTokenResponse = tokens::create;
        GetToken: get_token(GetTokenRequest) -> GetTokenResponse = tokens::get;
        ListTokens: list_tokens(ListTokensRequest) -> ListTokensResponse = tokens::list;
        DeleteToken: delete_token(DeleteTokenRequest) -> DeleteTokenResponse = tokens::delete;

        // Locks.
        CreateLock: create_lock(CreateLockRequest) -> CreateLockResponse = locks::create;
        GetLock: get_lock(GetLockRequest) -> GetLockResponse = locks::get;
        ListLocks: list_locks(ListLocksRequest) -> ListLocksResponse = locks::list;
        DeleteLock: delete_lock(DeleteLockRequest) -> DeleteLockResponse = locks::delete;

        // Connectors: single sign-on providers.
        CreateConnector: create_connector(CreateConnectorRequest) -> CreateConnectorResponse = connectors::create;
        GetConnector: get_connector(GetConnectorRequest) -> GetConnectorResponse = connectors::get;
        ListConnectors: list_connectors(ListConnectorsRequest) -> ListConnectorsResponse = connectors::list;
        UpdateConnector: update_connector(UpdateConnectorRequest) -> UpdateConnectorResponse = connectors::update;
        DeleteConnector: delete_connector(DeleteConnectorRequest) -> DeleteConnectorResponse = connectors::delete;

        // Trusted clusters.
        CreateTrustedCluster:
            create_trusted_cluster(CreateTrustedClusterRequest) -> CreateTrustedClusterResponse = trusted_clusters::create;
        GetTrustedCluster:
            get_trusted_cluster(GetTrustedClusterRequest) -> GetTrustedClusterResponse = trusted_clusters::get;
        ListTrustedClusters:
            list_trusted_clusters(ListTrustedClustersRequest) -> ListTrustedClustersResponse = trusted_clusters::list;
        UpdateTrustedCluster:
            update_trusted_cluster(UpdateTrustedClusterRequest) -> UpdateTrustedClusterResponse = trusted_clusters::update;
        DeleteTrustedCluster:
            delete_trusted_cluster(DeleteTrustedClusterRequest) -> DeleteTrustedClusterResponse = trusted_clusters::delete;
        ExchangeTrust: exchange_trust(ExchangeTrustRequest) -> ExchangeTrustResponse = trusted_clusters::exchange;

        // Cluster configuration.
        GetClusterConfig: get_cluster_config(GetClusterConfigRequest) -> GetClusterConfigResponse = cluster_config::get;
        UpdateClusterConfig:
            update_cluster_config(UpdateClusterConfigRequest) -> UpdateClusterConfigResponse = cluster_config::update;

        // Certificate authorities.
        RotateCA: rotate_ca(RotateCaRequest) -> RotateCaResponse = rotation::rotate;
        GetCARotation: get_ca_rotation(GetCaRotationRequest) -> GetCaRotationResponse = rotation::get;

        // Sessions.
        ListActiveSessions:
            list_active_sessions(ListActiveSessionsRequest) -> ListActiveSessionsResponse = sessions::list;
        RevokeSession: revoke_session(RevokeSessionRequest) -> RevokeSessionResponse = sessions::revoke;

        // Audit.
        EmitAuditEvent: emit_audit_event(EmitAuditEventRequest) -> EmitAuditEventResponse = audit::emit;
        QueryAuditEvents: query_audit_events(QueryAuditEventsRequest) -> QueryAuditEventsResponse = audit::query;

        // Access requests.
        CreateAccessRequest:
            create_access_request(CreateAccessRequestRequest) -> CreateAccessRequestResponse = access_requests::create;
        GetAccessRequest: get_access_request(GetAccessRequestRequest) -> GetAccessRequestResponse = access_requests::get;
        ListAccessRequests:
            list_access_requests(ListAccessRequestsRequest) -> ListAccessRequestsResponse = access_requests::list;
        ReviewAccessRequest:
            review_access_request(ReviewAccessRequestRequest) -> ReviewAccessRequestResponse = access_requests::review;
        CancelAccessRequest:
            cancel_access_request(CancelAccessRequestRequest) -> CancelAccessRequestResponse = access_requests::cancel;

        // Recordings. Served by recording ingest; relayed by auth nodes.
        UploadSessionRecording:
            upload_session_recording(UploadSessionRecordingRequest) -> UploadSessionRecordingResponse = recordings::upload;
        ListSessionRecordings:
            list_session_recordings(ListSessionRecordingsRequest) -> ListSessionRecordingsResponse = recordings::list;
        GetSessionRecording:
            get_session_recording(GetSessionRecordingRequest) -> GetSessionRecordingResponse = recordings::get;

        // The nodes of the auth cluster itself.
        ListMembers: list_members(ListMembersRequest) -> ListMembersResponse = members::list;
        AddMember: add_member(AddMemberRequest) -> AddMemberResponse = members::add;
        RemoveMember: remove_member(RemoveMemberRequest) -> RemoveMemberResponse = members::remove;
        GetClusterStatus:
            get_cluster_status(GetClusterStatusRequest) -> GetClusterStatusResponse = cluster::status;
        CreateAuthJoinToken:
            create_auth_join_token(CreateAuthJoinTokenRequest) -> CreateAuthJoinTokenResponse = cluster::create_join_token;

        // Reserved: these answer UNIMPLEMENTED after authorization.
        ArchiveAuditEvents:
            archive_audit_events(ArchiveAuditEventsRequest) -> ArchiveAuditEventsResponse = reserved;
        ConfigurePlugin: configure_plugin(ConfigurePluginRequest) -> ConfigurePluginResponse = reserved;
        ListPlugins: list_plugins(ListPluginsRequest) -> ListPluginsResponse = reserved;
        SetPluginEnabled: set_plugin_enabled(SetPluginEnabledRequest) -> SetPluginEnabledResponse = reserved;
        CreateNotificationChannel:
            create_notification_channel(CreateNotificationChannelRequest) -> CreateNotificationChannelResponse = reserved;
        ListNotificationChannels:
            list_notification_channels(ListNotificationChannelsRequest) -> ListNotificationChannelsResponse = reserved;
        DisableNotificationChannel:
            disable_notification_channel(DisableNotificationChannelRequest) -> DisableNotificationChannelResponse = reserved;
        DeleteNotificationChannel:
            delete_notification_channel(DeleteNotificationChannelRequest) -> DeleteNotificationChannelResponse = reserved;
        ValidateTOTP: validate_totp(ValidateTotpRequest) -> ValidateTotpResponse = reserved;
    }

    streaming {
        type RegisterUsingIAMMethodStream = Replies<v1::RegisterUsingIamMethodResponse>;

        async fn register_using_iam_method(
            &self,
            request: Request<Streaming<v1::RegisterUsingIamMethodRequest>>,
        ) -> Result<Response<Self::RegisterUsingIAMMethodStream>, Status> {
            let begun = self.begin("RegisterUsingIAMMethod", &request)?;
            Ok(Response::new(iam::exchange(Arc::clone(&self.service), begun, request.into_inner())))
        }

        type WatchAccessStream = Replies<v1::WatchAccessResponse>;

        async fn watch_access(
            &self,
            request: Request<v1::WatchAccessRequest>,
        ) -> Result<Response<Self::WatchAccessStream>, Status> {
            let begun = self.begin_stream("WatchAccess", &request)?;
            let ends = authn::certificate_ends(request.extensions());
            let work = access::watch(Arc::clone(&self.service), begun.call.clone(), ends);
            let result = work.instrument(Span::clone(&begun.call.span)).await;
            begun.end(result)
        }

        async fn stream_session_recording(
            &self,
            request: Request<Streaming<v1::StreamSessionRecordingRequest>>,
        ) -> Result<Response<v1::StreamSessionRecordingResponse>, Status> {
            let begun = self.begin_stream("StreamSessionRecording", &request)?;
            let work = recordings::stream(&self.service, &begun.call, request.into_inner());
            let result = work.instrument(Span::clone(&begun.call.span)).await;
            begun.end(result)
        }

        type DownloadSessionRecordingStream = Replies<v1::DownloadSessionRecordingResponse>;

        async fn download_session_recording(
            &self,
            request: Request<v1::DownloadSessionRecordingRequest>,
        ) -> Result<Response<Self::DownloadSessionRecordingStream>, Status> {
            let begun = self.begin_stream("DownloadSessionRecording", &request)?;
            let work = recordings::download(&self.service, &begun.call, request.into_inner());
            let result = work.instrument(Span::clone(&begun.call.span)).await;
            begun.end(result)
        }

        type SaveBackupStream = Replies<v1::SaveBackupResponse>;

        async fn save_backup(
            &self,
            request: Request<v1::SaveBackupRequest>,
        ) -> Result<Response<Self::SaveBackupStream>, Status> {
            let begun = self.begin_stream("SaveBackup", &request)?;
            let work = backup::save(&self.service, &begun.call);
            let result = work.instrument(Span::clone(&begun.call.span)).await;
            begun.end(result)
        }
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
