//! Trusted clusters: users of one cluster on the hosts of another, and what keeps them out.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use mezite_e2e::{
    Agent, AgentSpec, Cluster, Output, PASSWORD, Setup, account, api, call, eventually, secret_file,
};
use mezite_pki::x509::KeyPair;
use mezite_proto::v1::{self, AccessClass};
use serde_json::Value;
use tonic::Code;

use crate::{
    authz::{Caller, ask, channel, check, has},
    locks::{host, refused},
    support::{add_role, add_user},
};

const PATIENCE: Duration = Duration::from_secs(30);
/// How soon a host on which `mezctl agent run` runs refuses what is revoked.
const WITHIN: Duration = Duration::from_secs(5);

/// The cluster `home`, with a user `alice` who is a developer and `bob` who is not, both logged in.
async fn home() -> Cluster {
    let home = Cluster::start_with(&Setup { name: "home".into(), ..Setup::default() }).await;
    add_role(&home, "developer", "  allow: {}\n");
    for (user, role) in [("alice", "developer"), ("bob", "access")] {
        add_user(&home, user, role, user);
        let _ = home.ctl_named(user).login(user, PASSWORD).ok();
    }
    home
}

/// A token of `home` in a file.
fn token(home: &Cluster) -> PathBuf {
    let file = home.dir().join("trust.token");
    let made = home.ctl().json(&["trusted-clusters", "token", "--out", file.to_str().unwrap()]);
    assert!(made.get("token").is_none(), "it is in the file alone: {made}");
    file
}

/// Has a cluster trust `home`, with these mappings.
fn trust(here: &Cluster, home: &Cluster, token: &std::path::Path, maps: &[&str]) -> Output {
    let addresses = home.addresses().join(",");
    let mut add = vec!["trusted-clusters", "add", "home", "--addresses", &addresses];
    add.extend(["--token-file", token.to_str().unwrap()]);
    add.extend(maps.iter().flat_map(|map| ["--map", map]));
    here.ctl().run(&add)
}

/// Certificates of `here` for a user of `home`.
fn issue(here: &Cluster, home: &Cluster, user: &str) -> (PathBuf, Output) {
    let folder = home.dir().join(format!("certificates-{user}"));
    let at = here.addresses().join(",");
    let args =
        ["certs", "issue", "--out", folder.to_str().unwrap(), "--at", &at, "--at-ca-pin", here.ca_pin()];
    let output = home.ctl_named(user).by_profile().run(&[&["--format", "json"], &args[..]].concat());
    (folder, output)
}

/// The same, once it is possible: a node lets new guests in when it has heard of the change.
async fn issued(here: &Cluster, home: &Cluster, user: &str) -> (PathBuf, Value) {
    eventually("the guest is let in", PATIENCE, async || {
        let (folder, output) = issue(here, home, user);
        if output.code == 0 {
            Ok((folder, serde_json::from_str(&output.stdout).unwrap()))
        } else {
            Err(output.stderr)
        }
    })
    .await
}

/// What a user of `home` shows: certificate and key, PEM.
async fn shows(home: &Cluster, user: &str) -> (String, String) {
    let session = home.session_of(user).await;
    let client = home.user_at(0, &session);
    let key = KeyPair::generate_p256().unwrap();
    let request = v1::IssueUserCertsRequest { tls_public_key: key.spki_der().into(), ..Default::default() };
    let reply = call!(client, issue_user_certs, request).unwrap();
    assert!(reply.ssh_certificates.is_empty());
    (reply.tls_certificate, key.private_pem().to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_of_one_cluster_opens_a_host_of_another_until_it_may_not() {
    let (here, home) = (Cluster::start(3).await, home().await);
    let (_agent, sshd, _service) = host(&here).await;
    let login = account();
    let spec = format!(
        "  allow:\n    logins: [{login}, \"{{{{internal.logins}}}}\"]\n    node_labels: {{\"*\": \"*\"}}\n"
    );
    add_role(&here, "guest", &spec);
    let _ = trust(&here, &home, &token(&home), &["developer=guest"]).ok();

    let printed = here.dir().join("trusted.yaml");
    fs::write(&printed, here.ctl().ok(&["get", "trusted_cluster/home", "-o", "yaml"])).unwrap();
    let done = here.ctl().json(&["create", "--force", printed.to_str().unwrap()]);
    assert_eq!(done[0]["action"], "unchanged");

    let (folder, first) = issued(&here, &home, "alice").await;
    assert_eq!(first["key_id"], "alice@home");
    assert_eq!(first["principals"], serde_json::json!([login]), "a trait of another cluster is no login");
    let ssh = sshd.client(&folder);
    assert_eq!(ssh.run(&login, "echo in").ok(), "in\n");
    let log = here.ctl().json(&["audit", "ls", "--event", "cert.user.issue", "--limit", "1"]);
    assert_eq!((&log[0]["actor"], &log[0]["target"]), (&"user:alice@home".into(), &"user:alice@home".into()));

    // What is mapped to nothing gives nothing.
    let (_, bob) = issue(&here, &home, "bob");
    assert!(bob.failed(3).contains("none of your roles"));

    // A lock, as on any user; and the trust itself.
    let refused_soon = async || {
        let took = refused(&ssh, &sshd, Instant::now()).await;
        assert!(took < WITHIN, "{took:?}");
    };
    let lock = here.ctl().json(&["locks", "add", "user:alice@home", "--message", "laptop stolen"]);
    refused_soon().await;
    assert!(issue(&here, &home, "alice").1.failed(3).contains("laptop stolen"));
    let _ = here.ctl().ok(&["locks", "rm", lock["id"].as_str().unwrap()]);
    let _ = issued(&here, &home, "alice").await;
    assert_eq!(ssh.run(&login, "echo in").ok(), "in\n");

    let _ = here.ctl().ok(&["trusted-clusters", "update", "home", "--disable"]);
    refused_soon().await;
    assert_ne!(issue(&here, &home, "alice").1.code, 0);
    let _ = here.ctl().ok(&["trusted-clusters", "update", "home", "--enable"]);
    let _ = issued(&here, &home, "alice").await;
    assert_eq!(ssh.run(&login, "echo in").ok(), "in\n");

    // Fewer roles than before: what was issued by more ends.
    let _ = here.ctl().ok(&["trusted-clusters", "update", "home", "--map", "operator=guest"]);
    refused_soon().await;
    let said = issue(&here, &home, "alice").1.failed(3);
    assert!(said.contains("none of your roles"), "{said}");
    let _ = here.ctl().ok(&["trusted-clusters", "update", "home", "--map", "*=guest"]);
    let _ = issued(&here, &home, "bob").await;
    let _ = here.ctl().ok(&["trusted-clusters", "rm", "home"]);
    assert_ne!(issue(&here, &home, "bob").1.code, 0);
    assert_eq!(here.ctl().json(&["trusted-clusters", "ls"]), serde_json::json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_another_cluster_users_alone_come_and_may_do_two_things() {
    let (here, home) = (Cluster::start(1).await, home().await);
    add_role(&here, "guest", "  allow:\n    logins: [visitor]\n    node_labels: {\"*\": \"*\"}\n");
    let agent = Agent::join(&home, AgentSpec::default());
    let _ = Agent::join(&here, AgentSpec { hostname: "web2.example.org", ..AgentSpec::default() });
    let (alice, bob) = (shows(&home, "alice").await, shows(&home, "bob").await);
    let ask_with = async |identity: &(String, String), method: &str| {
        ask(&channel(&here, Some(identity)), None, method).await
    };
    // Before anybody is trusted nobody comes.
    let (code, reason) = ask_with(&alice, "ListNodes").await;
    assert!(code != Code::Ok && reason.is_empty(), "the handshake fails: {code:?} {reason}");

    // Even the role of admins opens no more to a guest.
    let _ = trust(&here, &home, &token(&home), &["developer=guest,admin"]).ok();
    eventually("guests are let in", PATIENCE, async || match ask_with(&alice, "ListNodes").await {
        (Code::Ok, _) => Ok(()),
        (code, reason) => Err(format!("{code:?} {reason}")),
    })
    .await;
    let guest =
        |name, identity: &(String, String), may: fn(&mezite_proto::access::MethodAccess) -> bool| Caller {
            name,
            session: None,
            identity: Some(identity.clone()),
            may,
            refusal: Code::PermissionDenied,
            reason: "DENIED",
        };
    check(&here, &guest("a guest", &alice, |rule| has(rule, AccessClass::RemoteUser))).await;
    check(&here, &guest("a guest whose roles are mapped to none", &bob, |_| false)).await;

    // An agent of the other cluster does not get through the handshake, nor do its auth nodes.
    let (code, reason) = ask_with(&agent.pems(), "ListNodes").await;
    assert!(code != Code::Ok && reason.is_empty(), "{code:?} {reason}");
    // And whoever comes by a connection that is still open is refused once the trust has ended.
    let open = channel(&here, Some(&alice));
    assert_eq!(ask(&open, None, "ListNodes").await.0, Code::Ok);
    let _ = here.ctl().ok(&["trusted-clusters", "update", "home", "--disable"]);
    assert_eq!(ask(&open, None, "ListNodes").await, (Code::Unauthenticated, "UNAUTHENTICATED".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_trusted_against_its_own_token_once() {
    let (here, home) = (Cluster::start(1).await, home().await);
    let file = token(&home);
    let text = std::fs::read_to_string(&file).unwrap();
    let (secret, pin) = text.trim().split_once('.').unwrap();
    assert_eq!(pin, home.ca_pin());

    // Whoever has not the pinned authority is not shown the token, which stays good.
    let wrong = home.dir().join("wrong.token");
    secret_file(&wrong, &format!("{secret}.{}", here.ca_pin()));
    let said = trust(&here, &home, &wrong, &[]).failed(1);
    assert!(said.contains("did not prove"), "{said}");
    secret_file(&wrong, secret);
    let said = trust(&here, &home, &wrong, &[]).failed(2);
    assert!(said.contains("no token of another cluster"), "{said}");
    let said = trust(&here, &home, &file, &["developer=nowhere"]).failed(4);
    assert!(said.contains("nowhere"), "{said}");
    let said = trust(&home, &home, &file, &[]).failed(2);
    assert!(said.contains("itself"), "{said}");
    // Nobody joins with it.
    let request = v1::ValidateJoinTokenRequest { token: secret.into() };
    api::refused(call!(home.anonymous_at(0), validate_join_token, request), Code::PermissionDenied);

    let _ = trust(&here, &home, &file, &["*=access"]).ok();
    let shown = here.ctl().json(&["trusted-clusters", "get", "home"]);
    assert_eq!((&shown["disabled"], &shown["refresh_error"]), (&false.into(), &"".into()));
    assert_eq!(shown["authorities"].as_array().unwrap().len(), 3);
    let exchanged = home.ctl().json(&["audit", "ls", "--event", "trust.exchange"]);
    assert_eq!(exchanged[0]["fields"]["cluster"], mezite_e2e::CLUSTER);
    // A name that one of its users would have is no local user's.
    let password = here.dir().join("alice.password");
    secret_file(&password, PASSWORD);
    let add =
        ["users", "add", "alice@home", "--roles", "access", "--password-file", password.to_str().unwrap()];
    let said = here.ctl().run(&add).failed(2);
    assert!(said.contains("trusted cluster home"), "{said}");

    let _ = here.ctl().ok(&["trusted-clusters", "rm", "home"]);
    let said = trust(&here, &home, &file, &[]).failed(1);
    assert!(said.contains("not accepted"), "{said}");
    assert_eq!(home.ctl().json(&["tokens", "ls"])[0]["kind"], "trusted-cluster");
    let _ = trust(&here, &home, &token(&home), &[]).ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trusted_cluster_that_cannot_be_asked_is_seen() {
    let (here, home) = (Cluster::start(1).await, home().await);
    let _ = trust(&here, &home, &token(&home), &[]).ok();
    let status = async |wanted: fn(&str) -> bool| {
        eventually("the cluster was asked", PATIENCE, async || {
            let listed = here.ctl().json(&["trusted-clusters", "ls"]);
            if wanted(listed[0]["refresh_error"].as_str().unwrap()) { Ok(()) } else { Err(listed) }
        })
        .await;
    };
    let update = |addresses: &str| {
        let _ = here.ctl().ok(&["trusted-clusters", "update", "home", "--addresses", addresses]);
    };
    // Another cluster answers there, and is not believed.
    update(&here.addresses().join(","));
    status(|error| error.contains("did not prove that it is this cluster")).await;
    update(&home.addresses().join(","));
    status(str::is_empty).await;
}
