//! Locks and revocations, as far as they reach: every auth node when the reply is there, running streams within a second,
//! and a stock sshd within five.

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use mezite_client::ClientError;
use mezite_e2e::{Agent, AgentSpec, Cluster, Port, Process, Ssh, Sshd, account, api, call, eventually, run};
use mezite_proto::v1;
use tonic::Code;

use crate::support::{EVERYWHERE, add_role, add_user, certificates};

const PATIENCE: Duration = Duration::from_secs(30);
/// A certificate that is revoked is refused by a host on which `mezctl agent run` runs so long after at the latest.
const WITHIN: Duration = Duration::from_secs(5);

/// A host with an sshd and the service that keeps its files.
pub(crate) async fn host(cluster: &Cluster) -> (Agent, Sshd, Process) {
    let port = Port::lease();
    let agent = Agent::join(cluster, AgentSpec { address: &port.address(), ..AgentSpec::default() });
    let sshd = Sshd::start(&agent, port).await;
    let service = agent.run();
    // It has reported once it is seen.
    eventually("the agent is online", PATIENCE, async || {
        let nodes = cluster.ctl().json(&["nodes", "ls"]);
        if nodes[0]["online"] == true { Ok(()) } else { Err(nodes) }
    })
    .await;
    (agent, sshd, service)
}

/// How `ssh-keygen -Q` judges a certificate.
fn is_revoked(list: &Path, certificate: &Path) -> bool {
    let output = run(Command::new("ssh-keygen").arg("-Q").arg("-f").arg(list).arg(certificate));
    let revoked = output.stdout.contains("REVOKED");
    assert_eq!(output.code, i32::from(revoked), "{output:?}");
    revoked
}

/// Waits until a login is refused because its certificate is revoked; answers how long that took.
pub(crate) async fn refused(ssh: &Ssh, sshd: &Sshd, since: Instant) -> Duration {
    let login = account();
    let output = eventually("the certificate is refused", PATIENCE, async || {
        let output = ssh.run(&login, "echo in");
        if output.code == 0 { Err("it is still accepted") } else { Ok(output) }
    });
    let said = output.await.failed(255);
    let took = since.elapsed();
    assert!(said.contains("Permission denied (publickey)"), "{said}");
    sshd.says("revoked by file").await;
    took
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_reaches_a_stock_sshd_within_seconds_and_revokes_for_good() {
    let cluster = Cluster::start(3).await;
    let (agent, sshd, service) = host(&cluster).await;
    let login = account();
    add_role(&cluster, "everywhere", EVERYWHERE);
    for user in ["alice", "bob"] {
        add_user(&cluster, user, "everywhere", &login);
    }
    let (alice, _) = certificates(&cluster, "alice", &[]);
    let (bob, _) = certificates(&cluster, "bob", &[]);
    for folder in [&alice, &bob] {
        assert_eq!(sshd.client(folder).run(&login, "echo in").ok(), "in\n");
    }
    let (list, certificate) = (agent.file("revoked_keys"), alice.join("key-cert.pub"));
    assert!(!is_revoked(&list, &certificate));

    let since = Instant::now();
    let lock = cluster.ctl().json(&["locks", "add", "user:alice", "--message", "laptop stolen"]);
    let took = refused(&sshd.client(&alice), &sshd, since).await;
    assert!(took < WITHIN, "{took:?}");
    eprintln!("refused {took:?} after the lock");
    assert!(is_revoked(&list, &certificate) && !is_revoked(&list, &bob.join("key-cert.pub")));
    assert_eq!(sshd.client(&bob).run(&login, "echo in").ok(), "in\n");

    // What is locked gets nothing new, and is told why, but for a login.
    let ctl = cluster.ctl_named("alice");
    let said = ctl.by_profile().run(&["certs", "issue", "--out", alice.to_str().unwrap()]).failed(3);
    assert!(said.contains("laptop stolen"), "{said}");
    let said = ctl.login("alice", mezite_e2e::PASSWORD).failed(3);
    assert!(!said.contains("stolen") && !said.contains("locked"), "{said}");

    let id = lock["id"].as_str().unwrap();
    assert_eq!(cluster.ctl().json(&["locks", "ls"])[0]["target"], "user:alice");
    let _ = cluster.ctl().ok(&["locks", "rm", id]);
    assert!(is_revoked(&list, &certificate), "unlocking brings nothing back");
    let (alice, _) = certificates(&cluster, "alice", &[]);
    assert_eq!(sshd.client(&alice).run(&login, "echo in").ok(), "in\n");

    // The node that the agent listens to may die.
    let since = Instant::now();
    let _ = cluster.ctl().ok(&["users", "rm", "alice"]);
    let took = refused(&sshd.client(&alice), &sshd, since).await;
    assert!(took < WITHIN, "{took:?}");
    drop(service);
}

#[tokio::test(flavor = "multi_thread")]
async fn revocations_are_followed_when_auth_nodes_die() {
    let mut cluster = Cluster::start(3).await;
    let (_agent, sshd, _service) = host(&cluster).await;
    let login = account();
    add_role(&cluster, "everywhere", EVERYWHERE);
    for victim in 0..3 {
        let user = format!("user{victim}");
        add_user(&cluster, &user, "everywhere", &login);
        let (folder, _) = certificates(&cluster, &user, &[]);
        let ssh = sshd.client(&folder);
        assert_eq!(ssh.run(&login, "echo in").ok(), "in\n");
        cluster.node(victim).kill();
        let _ = cluster.ctl().ok(&["locks", "add", &format!("user:{user}")]);
        let since = Instant::now();
        let took = refused(&ssh, &sshd, since).await;
        // With a dead node there may be an election in it, and a connection that has to be given up.
        assert!(took < 2 * WITHIN, "{took:?}");
        cluster.node(victim).start();
        cluster.node(victim).ready().await;
    }
}

/// Loops of the next test. The rule has no exception, so a long run by hand finds no more than this.
fn rounds() -> usize {
    std::env::var("MEZITE_REVOCATION_ROUNDS").map_or(60, |rounds| rounds.parse().unwrap())
}

#[track_caller]
fn assert_refused<T: std::fmt::Debug>(result: Result<T, ClientError>, code: Code) {
    match result {
        Err(error) if error.code() == Some(code) => {}
        other => panic!("expected {code:?}, got {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_revoked_on_one_node_is_refused_by_every_other_once_the_reply_is_there() {
    let cluster = Cluster::start(3).await;
    add_role(&cluster, "everywhere", EVERYWHERE);
    add_user(&cluster, "alice", "everywhere", "alice");
    let get = || v1::GetUserRequest { name: "alice".into() };
    for round in 0..rounds() {
        let (here, there) = (round % 3, (round + 1 + round / 3 % 2) % 3);
        let session = cluster.session_of("alice").await;
        let user = api::client(&[cluster.nodes()[there].address()], cluster.trust(), Some(&session), None);
        call!(user, get_user, get()).unwrap();
        if round % 2 == 0 {
            let revoke = v1::RevokeSessionRequest { session: session.expose().to_owned() };
            call!(cluster.admin_at(here), revoke_session, revoke).unwrap();
            assert_refused(call!(user, get_user, get()), Code::Unauthenticated);
            continue;
        }
        let target = Some(v1::lock_target::Target::User("alice".into()));
        let lock = v1::CreateLockRequest { target: Some(v1::LockTarget { target }), ..Default::default() };
        let lock = call!(cluster.admin_at(here), create_lock, lock).unwrap().lock.unwrap();
        assert_refused(call!(user, get_user, get()), Code::PermissionDenied);
        let unlock = v1::DeleteLockRequest { lock_id: lock.lock_id };
        call!(cluster.admin_at(here), delete_lock, unlock).unwrap();
        call!(user, get_user, get()).unwrap();
    }
}
