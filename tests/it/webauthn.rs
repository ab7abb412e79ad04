//! WebAuthn over several nodes, with an authenticator in software: what one node begins, another finishes, once.

use mezite_client::{Client, ClientError, RetryPolicy, SessionSecret, testing::Authenticator};
use mezite_e2e::{ADMIN, Cluster, PASSWORD, api, call};
use mezite_pki::ssh::SshKeyPair;
use mezite_proto::v1;
use serde_json::Value;
use tonic::Code;

use crate::support::add_role;

pub(crate) const ORIGIN: &str = "https://mezite.example.com";

/// A cluster of three nodes whose pages are at [`ORIGIN`].
async fn cluster() -> Cluster {
    let cluster = Cluster::start(3).await;
    configure(&cluster);
    cluster
}

/// Has the pages of a cluster be at [`ORIGIN`].
pub(crate) fn configure(cluster: &Cluster) {
    let set = ["config", "set", "--webauthn-rp-id", "example.com", "--webauthn-origins", ORIGIN];
    let _ = cluster.ctl().ok(&set);
}

/// Registers a credential of an authenticator, begun at the first node and finished at the last: the device.
pub(crate) async fn register(
    cluster: &Cluster,
    session: &SessionSecret,
    device: &mut Authenticator,
    passkey: bool,
) -> Result<v1::WebAuthnDevice, ClientError> {
    let request = v1::BeginWebAuthnRegistrationRequest { passkey };
    let begun = call!(cluster.user_at(0, session), begin_web_authn_registration, request)?;
    let request = v1::FinishWebAuthnRegistrationRequest {
        challenge_id: begun.challenge_id,
        credential_json: device.create(&begun.options_json),
        name: "a key".into(),
    };
    Ok(call!(cluster.user_at(cluster.nodes().len() - 1, session), finish_web_authn_registration, request)?
        .device
        .unwrap())
}

pub(crate) async fn begin(client: &Client, username: &str) -> v1::BeginWebAuthnLoginResponse {
    let request = v1::BeginWebAuthnLoginRequest { username: username.into() };
    call!(client, begin_web_authn_login, request).unwrap()
}

pub(crate) async fn finish(
    client: &Client,
    challenge_id: String,
    credential_json: String,
) -> Result<v1::FinishWebAuthnLoginResponse, ClientError> {
    let request = v1::FinishWebAuthnLoginRequest { challenge_id, credential_json };
    call!(client, finish_web_authn_login, request)
}

/// Logs in with an authenticator, whatever is asked for: begun at one node and finished at another.
async fn log_in(
    cluster: &Cluster,
    username: &str,
    device: &mut Authenticator,
) -> Result<(SessionSecret, v1::Session), ClientError> {
    let begun = begin(&cluster.anonymous_at(2), username).await;
    let answer = device.force(&begun.options_json);
    let reply = finish(&cluster.anonymous_at(0), begun.challenge_id, answer).await?;
    Ok((SessionSecret::new(reply.session_id).unwrap(), reply.session.unwrap()))
}

pub(crate) fn ids(begun: &v1::BeginWebAuthnLoginResponse) -> Vec<String> {
    let options: Value = serde_json::from_str(&begun.options_json).unwrap();
    let ids = options["allowCredentials"].as_array().unwrap().iter();
    ids.map(|credential| credential["id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_is_registered_and_logs_in_through_whichever_nodes() {
    let cluster = cluster().await;
    cluster.add_user("alice", &["access"], &[]).await;
    let session = cluster.session_of("alice").await;
    let mut device = Authenticator::new(ORIGIN);
    let registered = register(&cluster, &session, &mut device, true).await.unwrap();
    assert!(registered.passkey && registered.relying_party_id == "example.com");

    for username in ["Alice", ""] {
        let begun = begin(&cluster.anonymous_at(1), username).await;
        let answer = device.get(&begun.options_json).unwrap();
        let reply = finish(&cluster.anonymous_at(2), begun.challenge_id, answer).await.unwrap();
        let made = reply.session.unwrap();
        assert_eq!((made.user.as_str(), made.method()), ("alice", v1::AuthMethod::Webauthn));
        let session = SessionSecret::new(reply.session_id).unwrap();
        let client = cluster.user_at(0, &session);
        let listed = call!(client, list_web_authn_devices, v1::ListWebAuthnDevicesRequest::default());
        let listed = listed.unwrap().devices;
        assert_eq!((listed.len(), &listed[0].device_id), (1, &registered.device_id));
        assert!(listed[0].last_used_at.is_some());
    }
    let alice = cluster.ctl_named("alice");
    let _ = alice.login("alice", PASSWORD).ok();
    assert!(alice.ok(&["devices", "ls"]).contains("passkey"));
    // Nothing requires it, so whoever is logged in may take it away.
    let _ = alice.ok(&["devices", "rm", &registered.device_id]);
    assert_eq!(alice.json(&["devices", "ls"]), Value::Array(Vec::new()));
    assert!(alice.run(&["devices", "rm", &registered.device_id]).failed(4).contains("device"));
    api::refused(log_in(&cluster, "alice", &mut device).await, Code::Unauthenticated);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_who_finish_one_login_on_all_nodes_at_once_one_succeeds() {
    let cluster = cluster().await;
    let mut device = Authenticator::new(ORIGIN);
    // The same counter again and again would be refused for that.
    device.step = 0;
    register(&cluster, cluster.session(), &mut device, true).await.unwrap();
    for _ in 0..5 {
        let begun = begin(&cluster.anonymous_at(0), ADMIN).await;
        let answer = device.get(&begun.options_json).unwrap();
        let tries = (0..6).map(|index| {
            let once = RetryPolicy { attempts_per_address: 1, ..RetryPolicy::default() };
            let client = cluster.anonymous_at(index % 3).with_policy(once);
            let (challenge, answer) = (begun.challenge_id.clone(), answer.clone());
            async move { finish(&client, challenge, answer).await }
        });
        let results = futures::future::join_all(tries).await;
        let (good, refused): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
        assert_eq!((good.len(), refused.len()), (1, 5), "{refused:?}");
        for refused in refused {
            api::refused(refused, Code::Unauthenticated);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_authenticator_answers_is_refused_alike_whatever_is_wrong_with_it() {
    let cluster = cluster().await;
    let _ = cluster.ctl().ok(&["config", "set", "--lockout-threshold", "100"]);
    cluster.add_user("alice", &["access"], &[]).await;
    let mut device = Authenticator::new(ORIGIN);
    register(&cluster, &cluster.session_of("alice").await, &mut device, true).await.unwrap();
    let mut admins = Authenticator::new(ORIGIN);
    register(&cluster, cluster.session(), &mut admins, true).await.unwrap();
    let (_, _) = log_in(&cluster, "alice", &mut device).await.unwrap();

    let mut answers = Vec::new();
    let twists: [fn(&mut Authenticator); 6] = [
        |it| it.origin = "https://evil.example.com".into(),
        |it| it.relying_party = Some("example.org".into()),
        |it| it.challenge = Some(vec![7; 32]),
        |it| it.verifies = false,
        |it| it.user_handle = Some(vec![1; 16]),
        |it| it.step = 0,
    ];
    for twist in twists {
        twist(&mut device);
        let refused = api::refused(log_in(&cluster, "alice", &mut device).await, Code::Unauthenticated);
        answers.push((refused.message, refused.reason));
        (device.origin, device.verifies, device.step) = (ORIGIN.into(), true, 1);
        (device.relying_party, device.challenge, device.user_handle) = (None, None, None);
        log_in(&cluster, "alice", &mut device).await.unwrap();
    }
    for name in ["alice", "nobody"] {
        let refused = api::refused(log_in(&cluster, name, &mut admins).await, Code::Unauthenticated);
        answers.push((refused.message, refused.reason));
    }
    let client = cluster.anonymous_at(0);
    let answer = admins.force(&begin(&client, "").await.options_json);
    let guessed = finish(&client, "1.guessed".into(), answer).await;
    let refused = api::refused(guessed, Code::Unauthenticated);
    answers.push((refused.message, refused.reason));
    answers.dedup();
    assert_eq!(answers.len(), 1, "{answers:?}");
    let suspects = cluster.ctl().ok(&["audit", "ls", "--event", "user.device.suspect"]);
    assert!(suspects.contains("user.device.suspect"), "{suspects}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_unknown_is_answered_alike_by_every_node() {
    let cluster = cluster().await;
    cluster.add_user("alice", &["access"], &[]).await;
    for name in ["alice", "nobody", "no name"] {
        let mut answers = Vec::new();
        for index in 0..3 {
            answers.push(ids(&begin(&cluster.anonymous_at(index), name).await));
        }
        answers.dedup();
        assert_eq!(answers.len(), 1, "{name}: {answers:?}");
        assert!(!answers[0].is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_a_second_factor_is_required_a_password_alone_gets_no_certificates() {
    let cluster = cluster().await;
    add_role(&cluster, "anywhere", "  allow:\n    logins: [root]\n    node_labels: {\"*\": \"*\"}\n");
    cluster.add_user("alice", &["anywhere"], &[]).await;
    let said = cluster.ctl().run(&["config", "set", "--second-factor", "webauthn"]).failed(1);
    assert!(said.contains("register a device"), "{said}");
    let mut admins = Authenticator::new(ORIGIN);
    register(&cluster, cluster.session(), &mut admins, true).await.unwrap();
    let (admin, _) = log_in(&cluster, ADMIN, &mut admins).await.unwrap();
    let client = cluster.user_at(0, &admin);
    let config = call!(client, get_cluster_config, v1::GetClusterConfigRequest {}).unwrap().config.unwrap();
    let config = v1::ClusterConfig { second_factor: v1::SecondFactor::Webauthn.into(), ..config };
    call!(client, update_cluster_config, v1::UpdateClusterConfigRequest { config: Some(config) }).unwrap();

    let weak = cluster.session_of("alice").await;
    let key = SshKeyPair::generate_ed25519("").unwrap().public_line();
    let request = v1::IssueUserCertsRequest { ssh_public_keys: vec![key], ..Default::default() };
    for index in 0..3 {
        let issue = call!(cluster.user_at(index, &weak), issue_user_certs, request.clone());
        api::refused(issue, Code::PermissionDenied);
        let list = call!(cluster.user_at(index, &weak), list_nodes, v1::ListNodesRequest::default());
        api::refused(list, Code::PermissionDenied);
    }
    let mut device = Authenticator::new(ORIGIN);
    let registered = register(&cluster, &weak, &mut device, true).await.unwrap();
    let another = register(&cluster, &weak, &mut Authenticator::new(ORIGIN), true).await;
    api::refused(another, Code::PermissionDenied);
    let (session, _) = log_in(&cluster, "alice", &mut device).await.unwrap();
    call!(cluster.user_at(1, &session), issue_user_certs, request.clone()).unwrap();

    let remove = v1::DeleteWebAuthnDeviceRequest { device_id: registered.device_id.clone() };
    let last = call!(cluster.user_at(2, &session), delete_web_authn_device, remove.clone());
    api::refused(last, Code::FailedPrecondition);
    let by_password = call!(cluster.user_at(2, &weak), delete_web_authn_device, remove);
    api::refused(by_password, Code::PermissionDenied);

    // Whoever has lost its devices gets a reset that says so, and begins as a new user does.
    let reset = v1::ResetUserPasswordRequest {
        name: "alice".into(),
        new_password: PASSWORD.into(),
        remove_devices: true,
        ..Default::default()
    };
    assert_eq!(call!(client, reset_user_password, reset).unwrap().devices_removed, 1);
    api::refused(log_in(&cluster, "alice", &mut device).await, Code::Unauthenticated);
    let weak = cluster.session_of("alice").await;
    register(&cluster, &weak, &mut device, false).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_on_a_device_holds_on_every_node() {
    let cluster = cluster().await;
    cluster.add_user("alice", &["access"], &[]).await;
    let password = cluster.session_of("alice").await;
    let mut device = Authenticator::new(ORIGIN);
    let registered = register(&cluster, &password, &mut device, true).await.unwrap();
    let (session, _) = log_in(&cluster, "alice", &mut device).await.unwrap();
    let _ = cluster.ctl().ok(&[
        "locks",
        "add",
        &format!("device:{}", registered.device_id),
        "--message",
        "stolen",
    ]);
    for index in 0..3 {
        let list = call!(cluster.user_at(index, &session), list_users, v1::ListUsersRequest::default());
        assert!(api::refused(list, Code::PermissionDenied).message.contains("stolen"));
        call!(cluster.user_at(index, &password), list_users, v1::ListUsersRequest::default()).unwrap();
    }
    api::refused(log_in(&cluster, "alice", &mut device).await, Code::Unauthenticated);
}
