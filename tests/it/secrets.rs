//! Secrets on their way through the programs: whoever reads a log, at whatever level, learns none of them.

use std::fs;

use mezite_client::SessionSecret;
use mezite_e2e::{ADMIN, Agent, AgentSpec, BotCall, Cluster, PASSWORD, Setup, api, call, http};
use mezite_proto::v1::{self, TokenKind};
use serde_json::json;
use tonic::Code;

use crate::{
    support::{add_user, certificates},
    web::Curl,
};

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_logged_at_any_level() {
    let set = vec!["log.level='trace'".to_owned()];
    let cluster = Cluster::start_with(&Setup { set, nodes: 2, ..Setup::default() }).await;
    let admin = cluster.admin();
    let mut secrets = vec![PASSWORD.to_owned(), cluster.session().expose().to_owned()];

    // Sessions: made, used, revoked by their id, and guessed.
    add_user(&cluster, "alice", "access", "alice");
    let session = cluster.session_of("alice").await;
    let revoke = |session: &SessionSecret| v1::RevokeSessionRequest { session: session.expose().into() };
    call!(admin, revoke_session, revoke(&session)).unwrap();
    let again = cluster.session_of("alice").await;
    let guessed = SessionSecret::new("a-session-that-somebody-guessed".into()).unwrap();
    for session in [&session, &guessed] {
        call!(cluster.user_at(1, session), list_users, v1::ListUsersRequest::default()).unwrap_err();
        call!(admin, revoke_session, revoke(session)).unwrap_err();
    }
    let wrong = "wrong horse battery staple";
    api::log_in(&cluster.anonymous_at(1), ADMIN, wrong).await.unwrap_err();
    let changed = "a password that is new";
    let request = v1::ChangePasswordRequest { old_password: PASSWORD.into(), new_password: changed.into() };
    call!(cluster.user_at(1, &again), change_password, request).unwrap();
    secrets.extend([&session, &guessed, &again].map(|session| session.expose().to_owned()));
    secrets.extend([wrong, changed].map(str::to_owned));
    let request = v1::ResetUserPasswordRequest {
        name: "alice".into(),
        new_password: PASSWORD.into(),
        ..Default::default()
    };
    call!(admin, reset_user_password, request).unwrap();

    // By the web: a session in an answer, sent as a cookie and in a header, and a password that is wrong.
    let curl = Curl::new(&cluster, 1);
    for version in ["--http1.1", "--http2"] {
        let given = json!({ "username": "alice", "password": PASSWORD, "token": true });
        let answer = curl.post(&[version], "/v1/webapi/login", &given);
        let id = answer.body["session_id"].as_str().unwrap().to_owned();
        for header in [format!("Cookie: __Host-mezite-session={id}"), format!("Authorization: Bearer {id}")] {
            let own = curl.get(&[version, "--header", &header], "/v1/webapi/session");
            assert_eq!(own.body["session"]["user"], "alice", "{own:?}");
        }
        let given = json!({ "username": "alice", "password": wrong });
        assert_eq!(curl.post(&[version], "/v1/webapi/login", &given).status, 401);
        secrets.push(id);
    }

    // Tokens: of hosts, used and guessed, and of an auth node.
    let token = cluster.token(TokenKind::Node).await;
    let file = cluster.token_file("token", &token);
    let agent = Agent::join_with(&cluster, AgentSpec::default(), &file);
    let guessed = "a-token-that-somebody-guessed";
    let request = v1::ValidateJoinTokenRequest { token: guessed.into() };
    call!(cluster.anonymous_at(1), validate_join_token, request).unwrap_err();
    let made = cluster.dir().join("auth.token");
    let _ = cluster.ctl().ok(&["cluster", "token", "--out", made.to_str().unwrap()]);
    secrets.extend([token, guessed.to_owned(), fs::read_to_string(made).unwrap().trim().to_owned()]);

    // Invites: made with a user and by a reset, used, and guessed.
    let request = v1::CreateUserRequest {
        user: Some(v1::User { name: "bob".into(), ..Default::default() }),
        ..Default::default()
    };
    let first = call!(admin, create_user, request).unwrap().invite_secret;
    let reset = v1::ResetUserPasswordRequest { name: "bob".into(), ..Default::default() };
    let second = call!(admin, reset_user_password, reset).unwrap().invite_secret;
    let guessed = "an-invite-that-somebody-guessed";
    let accept =
        |secret: &str| v1::AcceptInviteRequest { secret: secret.into(), new_password: changed.into() };
    for refused in [&first, guessed] {
        call!(cluster.anonymous_at(1), accept_invite, accept(refused)).unwrap_err();
    }
    call!(cluster.anonymous_at(1), accept_invite, accept(&second)).unwrap();
    call!(cluster.anonymous_at(1), accept_invite, accept(&second)).unwrap_err();
    secrets.extend([first, second, guessed.to_owned()]);

    // Bootstrap secrets of an agent identity, used and guessed, and the session that one gave.
    let secret = cluster.agent_identity("ci", &["access"], &["ci"]).await;
    let (bot, guessed) = (BotCall::new(), "a-bootstrap-secret-that-somebody-guessed");
    bot.bootstrap(&cluster.anonymous_at(1), "ci", guessed).await.unwrap_err();
    let got = bot.bootstrap(&cluster.anonymous_at(1), "ci", &secret).await.unwrap();
    secrets.extend([secret, guessed.to_owned(), got.session_id, bot.key.expose().to_owned()]);

    // Client secrets of a connector: one that is kept, its successor, and one of a connector that is refused.
    let connector = |name: &str, secret: &str| {
        let github = v1::GithubConnector {
            client_id: "Iv1".into(),
            client_secret: secret.into(),
            organizations: vec!["mezite-io".into()],
            ..Default::default()
        };
        let provider = Some(v1::connector::Provider::Github(github));
        Some(v1::Connector { name: name.into(), provider, ..Default::default() })
    };
    let [kept, successor, refused] =
        ["client-secret-that-is-kept", "client-secret-that-follows", "client-secret-of-none"];
    let create = |name: &str, secret: &str| v1::CreateConnectorRequest { connector: connector(name, secret) };
    call!(admin, create_connector, create("github", kept)).unwrap();
    call!(admin, create_connector, create("github", refused)).unwrap_err();
    call!(admin, create_connector, create("no name", refused)).unwrap_err();
    let update = v1::UpdateConnectorRequest { connector: connector("github", successor) };
    call!(admin, update_connector, update).unwrap();
    secrets.extend([kept, successor, refused].map(str::to_owned));

    // What a browser brings back from a provider, and a program for its session; and a token of a workload.
    let [code, state, browser, redeemed, verifier] = ["code", "state", "browser", "redeemed", "verifier"]
        .map(|what| format!("{what}-of-a-login-that-somebody-guessed-{what}"));
    let cookie = format!("Cookie: __Host-mezite-sso={browser}");
    let back = format!("/v1/webapi/sso/callback/github?code={code}&state=1.{state}");
    assert_eq!(curl.get(&["--header", &cookie], &back).status, 303);
    let finish = v1::FinishSsoLoginRequest { code: redeemed.clone(), verifier: verifier.clone() };
    call!(cluster.anonymous_at(1), finish_sso_login, finish).unwrap_err();
    let jwt = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJzcGlmZmU6Ly9hL2IifQ.a-signature-that-somebody-guessed";
    let svid = Some(v1::authenticate_spiffe_request::Svid::Jwt(jwt.into()));
    call!(cluster.anonymous_at(1), authenticate_spiffe, v1::AuthenticateSpiffeRequest { svid }).unwrap_err();
    secrets.extend([code, state, browser, redeemed, verifier, jwt.to_owned()]);

    // Tokens of trusted clusters: given away, used, and brought by an admin of the cluster that is to trust.
    let request = v1::CreateTokenRequest { kind: TokenKind::TrustedCluster.into(), ..Default::default() };
    let token = call!(admin, create_token, request).unwrap().secret;
    let secret = token.split_once('.').unwrap().0.to_owned();
    let brought = v1::CreateTrustedClusterRequest {
        trusted_cluster: Some(v1::TrustedCluster {
            name: "elsewhere".into(),
            addresses: cluster.addresses(),
            ..Default::default()
        }),
        token: token.clone(),
    };
    // The cluster there is this one, and has another name.
    api::refused(call!(admin, create_trusted_cluster, brought), Code::InvalidArgument);
    let exchange = |secret: &str, id: u8| v1::ExchangeTrustRequest {
        token: secret.into(),
        cluster_name: "elsewhere".into(),
        exchange_id: vec![id; 32].into(),
    };
    call!(cluster.anonymous_at(1), exchange_trust, exchange(&secret, 1)).unwrap();
    call!(cluster.anonymous_at(1), exchange_trust, exchange(&secret, 2)).unwrap_err();
    let guessed = "an-exchange-that-somebody-guessed";
    call!(cluster.anonymous_at(1), exchange_trust, exchange(guessed, 3)).unwrap_err();
    secrets.extend([secret, guessed.to_owned()]);

    // Keys, of which only the public sides come.
    let _ = certificates(&cluster, "alice", &["--tls"]);
    let _ = agent.ctl().ok(&["agent", "renew", "--dir", agent.dir.to_str().unwrap()]);
    secrets.push("PRIVATE KEY".into());
    let audit = cluster.ctl().json(&["audit", "ls", "--limit", "1000"]).to_string();
    for event in [
        "user.invite.accept",
        "user.invite.denied",
        "connector.update",
        "trust.exchange.denied",
        "user.login.failed",
    ] {
        assert!(audit.contains(event), "{event} is where a secret would be found");
    }
    for node in cluster.nodes() {
        let kek = fs::read_to_string(node.data_dir().join("kek")).unwrap();
        secrets.push(kek.trim().rsplit(':').next().unwrap().to_owned());
        let (_, metrics) = http::get(&node.diagnostics_address(), "/metrics").await.unwrap();
        assert!(metrics.contains("grpc_server_handled_total"), "{metrics}");
        let log = node.log();
        assert!(log.contains("TRACE") && log.len() > 100_000, "it tells all that it can");
        for secret in &secrets {
            assert!(secret.len() > 8, "{secret:?} could be there by chance");
            for (place, text) in [("its log", &log), ("its metrics", &metrics), ("the audit log", &audit)] {
                assert!(!text.contains(secret.as_str()), "{} has {secret:?} in {place}", node.address());
            }
        }
    }
}
