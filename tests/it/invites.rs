//! Invites: users who set their own password, through whichever node, once.

use std::fs;

use mezite_e2e::{Cluster, Ctl, PASSWORD, api, call, secret_file};
use mezite_proto::v1;
use tonic::Code;

/// Sets a password with an invite, as its user does with what was printed.
fn accept(cluster: &Cluster, ctl: &Ctl, secret: &str, password: &str) -> mezite_e2e::Output {
    let (secret_path, password_path) = (cluster.dir().join("invite"), cluster.dir().join("chosen"));
    secret_file(&secret_path, secret);
    secret_file(&password_path, password);
    let (secret, password) = (secret_path.to_str().unwrap(), password_path.to_str().unwrap());
    ctl.run(&["accept-invite", "--secret-file", secret, "--password-file", password])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_is_invited_sets_its_own_password_and_logs_in() {
    let cluster = Cluster::start(3).await;
    let added = cluster.ctl().json(&["users", "add", "alice", "--roles", "access"]);
    let invite = &added["invite"];
    let secret = invite["secret"].as_str().unwrap();
    let command = invite["command"].as_str().unwrap();
    assert!(command.starts_with("mezctl accept-invite --addr ") && command.contains("--ca-pin sha256:"));
    assert!(!command.contains(secret), "others of the host see arguments");
    assert_eq!(added["without_password"], true);

    // Without a password it is a name like any that is not there.
    let client = cluster.anonymous_at(1);
    let refused = api::refused(api::log_in(&client, "alice", PASSWORD).await, Code::Unauthenticated);
    let unknown = api::refused(api::log_in(&client, "nobody", PASSWORD).await, Code::Unauthenticated);
    assert_eq!((refused.message, refused.reason), (unknown.message, unknown.reason));

    let alice = cluster.ctl_named("alice");
    let said = accept(&cluster, &alice, "guessed", PASSWORD).failed(3);
    assert!(said.contains("mezctl users reset"), "no role helps: {said}");
    assert!(said.contains("invite"), "{said}");
    assert!(accept(&cluster, &alice, secret, PASSWORD).ok().contains("alice"));
    let used = accept(&cluster, &alice, secret, "another good password").failed(3);
    assert_eq!(used, said, "a used one is answered as an unknown one is");
    for index in 0..3 {
        api::log_in(&cluster.anonymous_at(index), "alice", PASSWORD).await.unwrap();
    }

    // A reset ends the password and the sessions, on every node, before it answers.
    let session = cluster.session_of("alice").await;
    let file = cluster.dir().join("invite-of-alice");
    let reset = cluster.ctl().json(&["users", "reset", "alice", "--out", file.to_str().unwrap()]);
    assert!(reset["sessions_ended"].as_u64().unwrap() >= 1 && reset["invite"].get("secret").is_none());
    for index in 0..3 {
        let client = cluster.user_at(index, &session);
        api::refused(call!(client, list_users, v1::ListUsersRequest::default()), Code::Unauthenticated);
        let client = cluster.anonymous_at(index);
        api::refused(api::log_in(&client, "alice", PASSWORD).await, Code::Unauthenticated);
    }
    let secret = fs::read_to_string(&file).unwrap();
    let _ = accept(&cluster, &alice, secret.trim(), "another good password").ok();
    let _ = alice.login("alice", "another good password").ok();

    // Or an admin gives a password.
    let password = cluster.dir().join("given");
    secret_file(&password, PASSWORD);
    let given = ["users", "reset", "alice", "--password-file", password.to_str().unwrap()];
    assert!(cluster.ctl().ok(&given).contains("another password"));
    let _ = alice.login("alice", PASSWORD).ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_who_use_an_invite_on_all_nodes_at_once_one_succeeds() {
    let cluster = Cluster::start(3).await;
    for round in 0..5 {
        let user = v1::User { name: format!("user-{round}"), ..Default::default() };
        let request = v1::CreateUserRequest { user: Some(user), ..Default::default() };
        let secret = call!(cluster.admin(), create_user, request).unwrap().invite_secret;
        let tries = (0..6).map(|index| {
            let client = cluster.anonymous_at(index % 3);
            let new_password = format!("the password of try {index}");
            let request =
                v1::AcceptInviteRequest { secret: secret.clone(), new_password: new_password.clone() };
            async move { (call!(client, accept_invite, request), new_password) }
        });
        let mut accepted = Vec::new();
        for (result, password) in futures::future::join_all(tries).await {
            match result {
                Ok(reply) => accepted.push((reply.user, password)),
                refused => drop(api::refused(refused, Code::PermissionDenied)),
            }
        }
        let [(user, password)] = accepted.as_slice() else { panic!("{accepted:?}") };
        api::log_in(&cluster.anonymous_at(0), user, password).await.unwrap();
    }
}
