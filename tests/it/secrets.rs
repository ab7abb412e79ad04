//! Secrets on their way through the programs: whoever reads a log, at whatever level, learns none of them.

use std::fs;

use mezite_client::SessionSecret;
use mezite_e2e::{ADMIN, Agent, AgentSpec, Cluster, PASSWORD, Setup, api, call};
use mezite_proto::v1::{self, TokenKind};

use crate::support::{add_user, certificates};

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
        invite_ttl: None,
    };
    call!(admin, reset_user_password, request).unwrap();

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

    // Keys, of which only the public sides come.
    let _ = certificates(&cluster, "alice", &["--tls"]);
    let _ = agent.ctl().ok(&["agent", "renew", "--dir", agent.dir.to_str().unwrap()]);
    secrets.push("PRIVATE KEY".into());
    for node in cluster.nodes() {
        let kek = fs::read_to_string(node.data_dir().join("kek")).unwrap();
        secrets.push(kek.trim().rsplit(':').next().unwrap().to_owned());
        let log = node.log();
        assert!(log.contains("TRACE") && log.len() > 100_000, "it tells all that it can");
        for secret in &secrets {
            assert!(
                secret.len() > 8 && !log.contains(secret),
                "{} has {secret:?} in its log",
                node.address()
            );
        }
    }
}
