//! Whole commands, against a server that answers as the test says.

use std::{
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use clap::Parser as _;
use mezite_client::testing::{CLUSTER, Call, FakeServer, TestCa};
use mezite_daemon::clock;
use mezite_pki::{
    identity::Identity,
    ssh::{SshCa, SshPublicKey, UserCertSpec, UserExtensions},
};
use mezite_proto::v1;
use prost::Message as _;
use tonic::{Code, Status};

use crate::{
    cli::Cli,
    context::Context,
    exit::{NoProfile, NotLoggedIn},
    files,
};

const AGENT: &str = "6f9619ff-8b86-4011-b42d-00c04fc964ff";

/// A cluster, and the folder of who talks to it.
struct World {
    dir: tempfile::TempDir,
    ca: Arc<TestCa>,
    server: FakeServer,
}

impl World {
    fn new(answer: impl Fn(&TestCa, &Call) -> Result<Vec<u8>, Status> + Send + Sync + 'static) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca = Arc::new(TestCa::new());
        let shared = Arc::clone(&ca);
        let server = FakeServer::start(&ca.auth_node(), &ca, move |call| {
            let answer = match call.method.as_str() {
                "GetTrustBundle" => Ok(shared.bundle(&["ssh-ed25519 AAAA"]).encode_to_vec()),
                "GetRevocationList" => {
                    let krl = b"SSHKRL".to_vec().into();
                    Ok(v1::GetRevocationListResponse { krl, revision: 0 }.encode_to_vec())
                }
                _ => answer(&shared, &call),
            };
            async move { answer }
        });
        files::write_atomic(&dir.path().join("password"), b"correct horse\n", files::PRIVATE).unwrap();
        files::write_atomic(&dir.path().join("token"), b"t0ken\n", files::PRIVATE).unwrap();
        Self { dir, ca, server }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs a command line; `@name` stands for a file of this world.
    async fn run(&self, line: &str) -> anyhow::Result<()> {
        let home = format!("--home={}", self.path("home").display());
        let mut args = vec!["mezctl".to_owned(), home];
        args.extend(line.split_whitespace().map(|word| match word.strip_prefix('@') {
            Some(name) => self.path(name).display().to_string(),
            None => word.to_owned(),
        }));
        let cli = Cli::try_parse_from(args)?;
        super::run(&Context::new(cli.global)?, cli.command).await
    }

    /// As [`World::run`], as the first contact.
    async fn first(&self, line: &str) -> anyhow::Result<()> {
        self.run(&format!("{line} --addr {} --ca-pin {}", self.server.address(), self.ca.pin())).await
    }

    fn calls(&self) -> Vec<String> {
        self.server
            .calls()
            .into_iter()
            .map(|call| call.method)
            .filter(|method| method != "GetTrustBundle" && method != "GetRevocationList")
            .collect()
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().mode() & 0o7777
}

fn bearer(call: &Call) -> Option<&str> {
    call.metadata.get("authorization").and_then(|value| value.to_str().ok())
}

fn users(_: &TestCa, call: &Call) -> Result<Vec<u8>, Status> {
    match call.method.as_str() {
        "AuthenticateLocal" => match call.request::<v1::AuthenticateLocalRequest>().password.as_str() {
            "correct horse" => {
                let session = v1::Session { handle: "h1".into(), user: "alice".into(), ..Default::default() };
                let reply =
                    v1::AuthenticateLocalResponse { session_id: "c0ffee".into(), session: Some(session) };
                Ok(reply.encode_to_vec())
            }
            _ => Err(Status::unauthenticated("wrong username or password")),
        },
        _ if bearer(call) != Some("Bearer c0ffee") => Err(Status::unauthenticated("no session")),
        "ListUsers" => Ok(v1::ListUsersResponse::default().encode_to_vec()),
        "Logout" => Ok(Vec::new()),
        _ => Err(Status::permission_denied("not for you")),
    }
}

#[tokio::test]
async fn a_login_is_used_by_later_commands_and_ends_with_a_logout() {
    let world = World::new(users);
    assert!(world.run("users ls").await.unwrap_err().is::<NoProfile>());
    world.first("login --user Alice --password-file @password").await.unwrap();
    assert_eq!(mode(&world.path("home/profile.json")), 0o600);
    // Neither an address nor a pin is needed any more, nor a name.
    world.run("users ls").await.unwrap();
    world.run("login --password-file @password").await.unwrap();
    world.run("logout").await.unwrap();
    assert!(world.run("users ls").await.unwrap_err().is::<NotLoggedIn>());
    world.run("login --password-file @password").await.unwrap();
    let calls = ["AuthenticateLocal", "ListUsers", "AuthenticateLocal", "Logout", "AuthenticateLocal"];
    assert_eq!(world.calls(), calls);
}

#[tokio::test]
async fn a_wrong_password_keeps_nothing() {
    let world = World::new(users);
    files::write_atomic(&world.path("password"), b"wrong\n", files::PRIVATE).unwrap();
    let error = world.first("login --user alice --password-file @password").await.unwrap_err();
    let code = error.downcast_ref::<mezite_client::ClientError>().and_then(|error| error.code());
    assert_eq!(code, Some(Code::Unauthenticated));
    assert!(!world.path("home/profile.json").exists());
}

#[tokio::test]
async fn a_first_contact_needs_a_pin_and_the_right_one() {
    let world = World::new(users);
    let login = format!("login --user alice --password-file @password --addr {}", world.server.address());
    assert!(world.run(&login).await.unwrap_err().is::<crate::exit::Usage>());
    let wrong = format!("{login} --ca-pin {}", TestCa::new().pin());
    assert!(world.run(&wrong).await.is_err());
    assert!(world.calls().is_empty(), "no password was sent");
}

#[tokio::test]
async fn a_session_is_not_shown_to_another_cluster() {
    let (world, other) = (World::new(users), World::new(users));
    world.first("login --user alice --password-file @password").await.unwrap();
    let elsewhere = format!("users ls --addr {} --ca-pin {}", other.server.address(), other.ca.pin());
    assert!(world.run(&elsewhere).await.unwrap_err().is::<NotLoggedIn>());
    // An address alone changes nothing about whom to trust.
    assert!(world.run(&format!("users ls --addr {}", other.server.address())).await.is_err());
    assert!(other.calls().is_empty());
    world.run("users ls").await.unwrap();
}

/// An agent's certificates, good in this time.
fn certificates(
    ca: &TestCa,
    request: &v1::GenerateHostCertsRequest,
    lifetime: (u64, u64),
) -> v1::GenerateHostCertsResponse {
    let identity = Identity::Agent { cluster: CLUSTER.into(), id: AGENT.into() };
    let names = [request.hostname.as_str()];
    let leaf = ca.issue_for(&request.tls_public_key, Some(identity), &names, lifetime, "");
    v1::GenerateHostCertsResponse {
        agent_id: AGENT.into(),
        ssh_certificate: format!("certificate of {}", request.ssh_public_key),
        tls_certificate: leaf.certificate,
        trust_bundle: Some(ca.bundle(&["ssh-ed25519 AAAA"])),
        expires_at: None,
    }
}

fn joining(ca: &TestCa, call: &Call) -> Result<Vec<u8>, Status> {
    match call.method.as_str() {
        "GenerateHostCerts" => {
            let request: v1::GenerateHostCertsRequest = call.request();
            assert_eq!((request.token.as_str(), request.hostname.as_str()), ("t0ken", "web1.example.org"));
            Ok(certificates(ca, &request, (0, 4_000_000_000)).encode_to_vec())
        }
        "RegisterAgent" => {
            assert!(call.certified);
            let request: v1::RegisterAgentRequest = call.request();
            assert_eq!(request.address, "web1.example.org:22");
            Ok(v1::RegisterAgentResponse { agent_id: AGENT.into(), ..Default::default() }.encode_to_vec())
        }
        "AgentHeartbeat" | "DeregisterAgent" if !call.certified => Err(Status::unauthenticated("who?")),
        "AgentHeartbeat" => {
            let next_interval = Some(prost_types::Duration { seconds: 10, nanos: 0 });
            Ok(v1::AgentHeartbeatResponse { next_interval, trust_bundle_revision: 1, ..Default::default() }
                .encode_to_vec())
        }
        "DeregisterAgent" => Ok(Vec::new()),
        _ => Err(Status::permission_denied("not for you")),
    }
}

const JOIN: &str =
    "agent join --out @agent --token-file @token --hostname web1.example.org --labels env=prod";

#[tokio::test]
async fn an_agent_joins_reports_and_leaves() {
    let world = World::new(joining);
    world.first(JOIN).await.unwrap();
    for (name, expected) in [
        ("ssh_host_ed25519_key", 0o600),
        ("tls.key", 0o600),
        ("ssh_host_ed25519_key-cert.pub", 0o644),
        ("tls.crt", 0o644),
        ("ca.pem", 0o644),
        ("trusted_user_ca_keys", 0o644),
        ("sshd_config", 0o644),
    ] {
        assert_eq!(mode(&world.path("agent").join(name)), expected, "{name}");
    }
    // It is known where the cluster is; a join that is done is not done again.
    world.run(JOIN).await.unwrap();
    world.run("agent heartbeat --dir @agent").await.unwrap();
    world.run("agent leave --dir @agent").await.unwrap();
    assert_eq!(std::fs::read_dir(world.path("agent")).unwrap().count(), 0);
    assert_eq!(world.calls(), ["GenerateHostCerts", "RegisterAgent", "AgentHeartbeat", "DeregisterAgent"]);
}

/// SSH public keys that certificates were asked for.
type Keys = Arc<Mutex<Vec<String>>>;

/// A world that answers like `joining`, but fails the first call of `method`.
fn failing_once(method: &'static str) -> (Keys, World) {
    let (failed, keys) = (AtomicBool::new(false), Keys::default());
    let seen = Arc::clone(&keys);
    let world = World::new(move |ca, call| {
        if call.method == "GenerateHostCerts" {
            seen.lock().unwrap().push(call.request::<v1::GenerateHostCertsRequest>().ssh_public_key);
        }
        if call.method == method && !failed.swap(true, Ordering::SeqCst) {
            return Err(Status::internal("the answer was lost"));
        }
        joining(ca, call)
    });
    (keys, world)
}

#[tokio::test]
async fn a_join_that_broke_off_is_finished_with_the_same_keys() {
    let (keys, world) = failing_once("GenerateHostCerts");
    assert!(world.first(JOIN).await.is_err());
    world.run(JOIN).await.unwrap();
    let keys = keys.lock().unwrap();
    assert_eq!(keys.len(), 2);
    assert_eq!(keys[0], keys[1]);
}

#[tokio::test]
async fn a_join_that_broke_off_before_it_was_registered_does_not_ask_for_certificates_again() {
    let (keys, world) = failing_once("RegisterAgent");
    assert!(world.first(JOIN).await.is_err());
    assert!(world.run("agent heartbeat --dir @agent").await.is_err(), "it has not joined");
    world.run(JOIN).await.unwrap();
    assert_eq!(keys.lock().unwrap().len(), 1);
    assert_eq!(world.calls(), ["GenerateHostCerts", "RegisterAgent", "RegisterAgent"]);
}

/// A world whose certificates for a token are good in this time, and for long when they are renewed.
fn renewing(first: (u64, u64)) -> World {
    World::new(move |ca, call| match call.method.as_str() {
        "GenerateHostCerts" => {
            let request: v1::GenerateHostCertsRequest = call.request();
            let lifetime = match request.token.as_str() {
                "" if call.certified => (0, 4_000_000_000),
                "" => return Err(Status::unauthenticated("who?")),
                _ => first,
            };
            Ok(certificates(ca, &request, lifetime).encode_to_vec())
        }
        _ => joining(ca, call),
    })
}

#[tokio::test]
async fn certificates_in_their_last_third_are_renewed_with_the_heartbeat() {
    let now = clock::unix_seconds();
    let world = renewing((now - 200, now + 100));
    world.first(JOIN).await.unwrap();
    let read = |name: &str| std::fs::read_to_string(world.path("agent").join(name)).unwrap();
    let (certificate, keys) = (read("tls.crt"), (read("tls.key"), read("ssh_host_ed25519_key")));
    world.run("agent heartbeat --dir @agent").await.unwrap();
    assert_ne!(read("tls.crt"), certificate);
    assert_eq!((read("tls.key"), read("ssh_host_ed25519_key")), keys);
    world.run("agent heartbeat --dir @agent").await.unwrap();
    let calls =
        ["GenerateHostCerts", "RegisterAgent", "GenerateHostCerts", "AgentHeartbeat", "AgentHeartbeat"];
    assert_eq!(world.calls(), calls);
}

#[tokio::test]
async fn a_certificate_that_ended_is_said_to_have() {
    let now = clock::unix_seconds();
    let world = renewing((now - 200, now - 100));
    // The registration already needs it.
    let error = world.first(JOIN).await.unwrap_err();
    assert!(error.is::<super::agent::Ended>(), "{error:?}");
    assert_eq!(world.calls(), ["GenerateHostCerts"]);
}

#[tokio::test]
async fn a_new_trust_bundle_is_fetched_with_the_heartbeat() {
    let world = World::new(|ca, call| match call.method.as_str() {
        // With the certificates there was an older one.
        "GenerateHostCerts" => {
            let mut issued = certificates(ca, &call.request(), (0, 4_000_000_000));
            issued.trust_bundle.as_mut().unwrap().revision = 0;
            Ok(issued.encode_to_vec())
        }
        _ => joining(ca, call),
    });
    world.first(JOIN).await.unwrap();
    let trusted = world.path("agent").join("trusted_user_ca_keys");
    std::fs::remove_file(&trusted).unwrap();
    world.run("agent heartbeat --dir @agent --labels env=test").await.unwrap();
    assert_eq!(std::fs::read_to_string(&trusted).unwrap(), "ssh-ed25519 AAAA\n");
    let calls = world.server.calls();
    let beat = calls.iter().find(|call| call.method == "AgentHeartbeat").unwrap();
    let beat: v1::AgentHeartbeatRequest = beat.request();
    assert_eq!((beat.labels["env"].as_str(), beat.followed_trust_revision), ("test", 0));
    // Whoever rotates a CA waits for those who have not followed yet.
    let last = calls.iter().rfind(|call| call.method == "AgentHeartbeat").unwrap();
    assert_eq!(last.request::<v1::AgentHeartbeatRequest>().followed_trust_revision, 1);
}

#[tokio::test]
async fn a_revocation_list_that_is_missing_is_fetched_with_the_heartbeat() {
    let world = World::new(joining);
    world.first(JOIN).await.unwrap();
    let list = world.path("agent").join("revoked_keys");
    std::fs::remove_file(&list).unwrap();
    world.run("agent heartbeat --dir @agent").await.unwrap();
    assert_eq!(std::fs::read(&list).unwrap(), b"SSHKRL");
}

/// The token ended between the two calls: the certificates are there, and another token registers them.
#[tokio::test]
async fn a_join_that_broke_off_is_finished_with_another_token() {
    let world = World::new(|ca, call| match call.method.as_str() {
        "RegisterAgent" if call.request::<v1::RegisterAgentRequest>().token != "an0ther" => {
            Err(Status::permission_denied("the join token is not accepted"))
        }
        _ => joining(ca, call),
    });
    assert!(world.first(JOIN).await.is_err());
    assert!(world.run(JOIN).await.is_err());
    files::write_atomic(&world.path("token"), b"an0ther\n", files::PRIVATE).unwrap();
    world.run(JOIN).await.unwrap();
    world.run("agent heartbeat --dir @agent").await.unwrap();
    let calls = ["GenerateHostCerts", "RegisterAgent", "RegisterAgent", "RegisterAgent", "AgentHeartbeat"];
    assert_eq!(world.calls(), calls);
}

#[tokio::test]
async fn an_agent_that_has_certificates_gives_its_names_back_when_it_leaves() {
    let (_, world) = failing_once("RegisterAgent");
    assert!(world.first(JOIN).await.is_err());
    world.run("agent leave --dir @agent").await.unwrap();
    assert_eq!(std::fs::read_dir(world.path("agent")).unwrap().count(), 0);
    assert_eq!(world.calls(), ["GenerateHostCerts", "RegisterAgent", "DeregisterAgent"]);

    // What holds the names is not thrown away while the cluster has not heard of it.
    let world = World::new(|ca, call| match call.method.as_str() {
        "RegisterAgent" | "DeregisterAgent" => Err(Status::permission_denied("not now")),
        _ => joining(ca, call),
    });
    assert!(world.first(JOIN).await.is_err());
    assert!(world.run("agent leave --dir @agent").await.is_err());
    assert!(world.path("agent/tls.key").exists());
    world.run("agent leave --local --dir @agent").await.unwrap();
    assert_eq!(std::fs::read_dir(world.path("agent")).unwrap().count(), 0);
}

#[tokio::test]
async fn an_agent_without_certificates_leaves_without_a_word() {
    let (_, world) = failing_once("GenerateHostCerts");
    assert!(world.first(JOIN).await.is_err());
    world.run("agent leave --dir @agent").await.unwrap();
    assert_eq!(std::fs::read_dir(world.path("agent")).unwrap().count(), 0);
    assert_eq!(world.calls(), ["GenerateHostCerts"]);
}

#[tokio::test]
async fn a_folder_of_one_host_is_not_used_for_another() {
    let world = World::new(joining);
    world.first(JOIN).await.unwrap();
    let other = JOIN.replace("web1", "web2");
    assert!(world.run(&other).await.unwrap_err().is::<crate::exit::Usage>());
}

/// Issues what is asked for to alice, as a cluster does.
fn issued(ca: &TestCa, call: &Call) -> Vec<u8> {
    let request: v1::IssueUserCertsRequest = call.request();
    let spec = |line: &String| UserCertSpec {
        public_key: SshPublicKey::parse(line).unwrap(),
        key_id: "alice".into(),
        principals: vec!["deploy".into()],
        serial: 1,
        valid_after: 1,
        valid_before: 4_000_000_000,
        extensions: UserExtensions::default(),
        source_addresses: Vec::new(),
    };
    let authority = SshCa::generate().unwrap();
    let ssh = request.ssh_public_keys.iter().map(|line| authority.sign_user(&spec(line)).unwrap());
    let identity = Identity::User { cluster: CLUSTER.into(), name: "alice".into() };
    let tls = match request.tls_public_key.is_empty() {
        true => String::new(),
        false => {
            ca.issue_for(&request.tls_public_key, Some(identity), &[], (0, 4_000_000_000), "").certificate
        }
    };
    let ssh_certificates = ssh.collect();
    v1::IssueUserCertsResponse { ssh_certificates, tls_certificate: tls, ..Default::default() }
        .encode_to_vec()
}

/// Another cluster may call itself as it likes, and name authorities of its own.
#[tokio::test]
async fn what_another_cluster_says_of_this_one_is_not_kept() {
    let world = World::new(|ca, call| match call.method.as_str() {
        "IssueUserCerts" => Ok(issued(ca, call)),
        _ => users(ca, call),
    });
    let other = Arc::new(TestCa::new());
    let theirs = Arc::clone(&other);
    let there = FakeServer::start(&other.auth_node(), &world.ca, move |call| {
        let answer = match call.method.as_str() {
            "GetTrustBundle" => theirs.bundle(&["ssh-ed25519 AAAA"]).encode_to_vec(),
            _ => issued(&theirs, &call),
        };
        async move { Ok(answer) }
    });
    world.first("login --user alice --password-file @password").await.unwrap();
    let issue = format!("certs issue --out @keys --at {} --at-ca-pin {}", there.address(), other.pin());
    world.run(&issue).await.unwrap();
    assert!(world.path("keys").join("key-cert.pub").exists());
    let profile = std::fs::read_to_string(world.path("home/profile.json")).unwrap();
    let profile: serde_json::Value = serde_json::from_str(&profile).unwrap();
    assert_eq!(profile["ca_certificates"].as_str().unwrap().trim(), world.ca.pem().trim());
    world.run("users ls").await.unwrap();
}
