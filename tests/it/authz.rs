//! Who may call what: every method of the API by every kind of caller, as it goes over the wire. What the table says is
//! tested beside it (`auth-node/src/authz.rs`); here, that it is what decides.

use std::{collections::BTreeMap, fs, time::Duration};

use http::uri::PathAndQuery;
use mezite_client::SessionSecret;
use mezite_e2e::{
    Agent, AgentSpec, Bot, Cluster, PASSWORD, Scratch, Setup,
    api::{self, HostKeys},
    call, eventually, tools,
};
use mezite_proto::{
    access::{METHODS, MethodAccess},
    transport,
    v1::{self, AccessClass, TokenKind},
};
use rustls::pki_types::ServerName;
use tonic::{Code, Request, Status, client::Grpc, metadata::MetadataValue, transport::Channel};
use tonic_prost::ProstCodec;
use tonic_types::StatusExt as _;

use crate::support::{add_role, add_user};

/// Methods that answer UNIMPLEMENTED for good.
const RESERVED: [&str; 9] = [
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

/// Who calls.
pub(crate) struct Caller {
    pub(crate) name: &'static str,
    pub(crate) session: Option<SessionSecret>,
    /// Certificate and key, PEM.
    pub(crate) identity: Option<(String, String)>,
    /// Whether it may call a method.
    pub(crate) may: fn(&MethodAccess) -> bool,
    /// What it is refused with.
    pub(crate) refusal: Code,
    pub(crate) reason: &'static str,
}

pub(crate) fn has(rule: &MethodAccess, class: AccessClass) -> bool {
    rule.classes.contains(&class)
}

/// A connection with a certificate, or none.
pub(crate) fn channel(cluster: &Cluster, identity: Option<&(String, String)>) -> Channel {
    let identity = identity.map(|(certificate, key)| (certificate.as_str(), key.as_str()));
    let name = ServerName::try_from(format!("{}.mezite.internal", cluster.trust().cluster_name())).unwrap();
    let tls = api::tls(cluster.trust(), true, identity);
    transport::channel(&cluster.addresses()[0], tls, name, Duration::from_secs(20)).unwrap()
}

/// Calls a method with an empty message; answers the code, and the reason of an error.
pub(crate) async fn ask(channel: &Channel, session: Option<&SessionSecret>, method: &str) -> (Code, String) {
    let mut request = Request::new(tokio_stream::once(()));
    request.set_timeout(Duration::from_secs(20));
    if let Some(session) = session {
        let bearer = MetadataValue::try_from(format!("Bearer {}", session.expose())).unwrap();
        request.metadata_mut().insert("authorization", bearer);
    }
    let mut grpc = Grpc::new(channel.clone());
    let path = PathAndQuery::try_from(format!("/mezite.v1.AuthService/{method}")).unwrap();
    let answered = async {
        grpc.ready().await.map_err(|error| Status::unknown(error.to_string()))?;
        let mut replies = grpc.streaming(request, path, ProstCodec::<(), ()>::default()).await?.into_inner();
        replies.message().await
    };
    match answered.await {
        Ok(_) => (Code::Ok, String::new()),
        Err(status) => {
            let reason = status.get_details_error_info().map(|info| info.reason).unwrap_or_default();
            (status.code(), reason)
        }
    }
}

/// Methods in an order in which no call takes away what the next one needs.
fn methods() -> Vec<&'static MethodAccess> {
    let last = |rule: &&MethodAccess| ["Logout", "DeregisterAgent"].contains(&rule.method);
    METHODS.iter().filter(|rule| !last(rule)).chain(METHODS.iter().filter(last)).collect()
}

/// Calls everything that is not for everybody, and compares.
pub(crate) async fn check(cluster: &Cluster, caller: &Caller) {
    let channel = channel(cluster, caller.identity.as_ref());
    let mut wrong = BTreeMap::new();
    for rule in methods().into_iter().filter(|rule| !has(rule, AccessClass::Public)) {
        let (code, reason) = ask(&channel, caller.session.as_ref(), rule.method).await;
        let refused = matches!(code, Code::Unauthenticated | Code::PermissionDenied);
        let good = match (caller.may)(rule) {
            true => !refused,
            false => code == caller.refusal && reason == caller.reason,
        };
        if !good {
            wrong.insert(rule.method, (code, reason));
        }
    }
    assert!(wrong.is_empty(), "{}: {wrong:?}", caller.name);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_method_by_every_kind_of_caller() {
    let cluster = Cluster::start(1).await;
    add_role(&cluster, "reviewer", "  allow:\n    rules: [{resources: [audit], verbs: [list]}]\n");
    for (user, role) in
        [("plain", "access"), ("auditor", "auditor"), ("reviewer", "reviewer"), ("chief", "admin")]
    {
        add_user(&cluster, user, role, user);
    }
    add_user(&cluster, "locked", "admin", "locked");
    let session = async |user: &str| Some(cluster.session_of(user).await);
    let locked = session("locked").await;
    let ended = session("plain").await;
    let revoke = v1::RevokeSessionRequest { session: ended.as_ref().unwrap().expose().to_owned() };
    call!(cluster.admin(), revoke_session, revoke).unwrap();
    let _ = cluster.ctl().ok(&["locks", "add", "user:locked"]);

    let join = |hostname| Agent::join(&cluster, AgentSpec { hostname, ..AgentSpec::default() });
    let (agent, gone, barred) =
        (join("web1.example.org"), join("web2.example.org"), join("web3.example.org"));
    let _ = cluster.ctl().ok(&["nodes", "rm", &gone.id]);
    let _ = cluster.ctl().ok(&["locks", "add", &format!("node:{}", barred.id)]);
    let ingest = ingest(&cluster).await;

    let (plain_bot, reviewing_bot, chief_bot) = (
        Bot::start(&cluster, "plain", &["access"]).await,
        Bot::start(&cluster, "reviewer", &["reviewer"]).await,
        Bot::start(&cluster, "chief", &["admin"]).await,
    );
    let locked_bot = Bot::start(&cluster, "locked", &["admin"]).await;
    let _ = cluster.ctl().ok(&["locks", "add", "agent-identity:locked"]);

    let nobody = |name, session| Caller {
        name,
        session,
        identity: None,
        may: |_| false,
        refusal: Code::Unauthenticated,
        reason: "UNAUTHENTICATED",
    };
    let user = |name, session, may| Caller {
        name,
        session,
        identity: None,
        may,
        refusal: Code::PermissionDenied,
        reason: "DENIED",
    };
    let holder = |name, identity, may| Caller { identity: Some(identity), ..user(name, None, may) };
    let callers = [
        nobody("nobody", None),
        nobody("a session that never was", Some(SessionSecret::new("guessed".into()).unwrap())),
        nobody("a session that was revoked", ended),
        user("a user", session("plain").await, |rule| has(rule, AccessClass::User)),
        user("an auditor", session("auditor").await, |rule| {
            has(rule, AccessClass::User) || rule.rule == Some(("audit", "list"))
        }),
        user("a user with one rule", session("reviewer").await, |rule| {
            has(rule, AccessClass::User) || rule.rule == Some(("audit", "list"))
        }),
        user("an admin", session("chief").await, |rule| {
            has(rule, AccessClass::User) || has(rule, AccessClass::Admin)
        }),
        Caller { reason: "LOCKED", ..user("an admin who is locked", locked, |_| false) },
        holder("an agent", agent.pems(), |rule| has(rule, AccessClass::Agent)),
        Caller {
            identity: Some(gone.pems()),
            reason: "NOT_REGISTERED",
            ..nobody("an agent that was removed", None)
        },
        Caller { reason: "LOCKED", ..holder("an agent that is locked", barred.pems(), |_| false) },
        holder("an ingest", ingest, |rule| has(rule, AccessClass::Service)),
        user("a bot", Some(plain_bot.session()), |rule| has(rule, AccessClass::AgentIdentity)),
        user("a bot with one rule", Some(reviewing_bot.session()), |rule| {
            has(rule, AccessClass::AgentIdentity) || rule.rule == Some(("audit", "list"))
        }),
        user("a bot that is an admin", Some(chief_bot.session()), |rule| {
            has(rule, AccessClass::AgentIdentity) || has(rule, AccessClass::Admin)
        }),
        Caller { reason: "LOCKED", ..user("a bot that is locked", Some(locked_bot.session()), |_| false) },
        // Its certificate is good for a renewal alone.
        Caller { identity: Some(chief_bot.pems()), ..nobody("a bot without its session", None) },
    ];
    assert!(METHODS.iter().filter(|rule| !has(rule, AccessClass::Public)).count() > 60);
    for caller in &callers {
        check(&cluster, caller).await;
    }
    let plain = channel(&cluster, None);
    for reserved in RESERVED {
        let (code, _) = ask(&plain, Some(cluster.session()), reserved).await;
        assert_eq!(code, Code::Unimplemented, "{reserved}");
    }
}

/// What an ingest shows.
async fn ingest(cluster: &Cluster) -> (String, String) {
    let token = cluster.token(TokenKind::Ingest).await;
    let (keys, client) = (HostKeys::new(), cluster.anonymous_at(0));
    let issued = call!(client, generate_host_certs, keys.request(&token, "ingest1.example.org")).unwrap();
    let identity = keys.identity(&issued);
    let holder = api::client(&cluster.addresses(), cluster.trust(), None, Some(&identity));
    let request = v1::RegisterAgentRequest { token, address: "127.0.0.1:1".into(), ..Default::default() };
    call!(holder, register_agent, request).unwrap();
    (issued.tls_certificate, keys.tls.private_pem().to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_has_expired_may_call_nothing() {
    let scratch = Scratch::new();
    let offset = scratch.path().join("offset");
    fs::write(&offset, "+0").unwrap();
    let setup = Setup { env: tools::shifted_clock(&offset), ..Setup::default() };
    let cluster = Cluster::start_with(&setup).await;
    let minute = Some(prost_types::Duration { seconds: 60, nanos: 0 });
    let config = v1::ClusterConfig { session_ttl: minute, ..Default::default() };
    call!(cluster.admin(), update_cluster_config, v1::UpdateClusterConfigRequest { config: Some(config) })
        .unwrap();
    cluster.add_user("ann", &["admin"], &[]).await;
    let session = api::log_in(&cluster.anonymous_at(0), "ann", PASSWORD).await.unwrap();
    let caller = Caller {
        name: "a session that has expired",
        session: Some(session),
        identity: None,
        may: |_| false,
        refusal: Code::Unauthenticated,
        reason: "UNAUTHENTICATED",
    };
    let channel = channel(&cluster, None);
    assert_eq!(ask(&channel, caller.session.as_ref(), "ListUsers").await.0, Code::Ok);
    fs::write(&offset, "+61s").unwrap();
    eventually("the node has looked at its clock", Duration::from_secs(20), async || {
        match ask(&channel, caller.session.as_ref(), "ListUsers").await.0 {
            Code::Ok => Err("it is still good"),
            _ => Ok(()),
        }
    })
    .await;
    check(&cluster, &caller).await;
}
