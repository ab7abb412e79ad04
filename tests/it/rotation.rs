//! The rotation of the authorities' keys, with a stock sshd and ssh at every step.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use mezite_e2e::{
    Agent, AgentSpec, Cluster, Ctl, Ingest, PASSWORD, Port, Process, Setup, Sshd, account, eventually,
    secret_file,
};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::{EVERYWHERE, add_role, add_user, asciicast};

const PATIENCE: Duration = Duration::from_secs(60);
const FORWARD: [&str; 4] = ["init", "update-clients", "update-servers", "standby"];

/// A cluster with a host, whose agent reports every second and reloads its sshd, and a user of it.
struct World {
    service: Process,
    sshd: Sshd,
    agent: Agent,
    login: String,
    cluster: Cluster,
}

impl World {
    async fn start(nodes: usize) -> Self {
        let set = vec![r#"presence.interval="1s""#.to_owned(), r#"presence.ttl="10s""#.to_owned()];
        let cluster = Cluster::start_with(&Setup { nodes, set, ..Setup::default() }).await;
        let port = Port::lease();
        let agent = Agent::join(&cluster, AgentSpec { address: &port.address(), ..AgentSpec::default() });
        let sshd = Sshd::start(&agent, port).await;
        let service = agent.run_with(&["--reload", &sshd.reload()]);
        let login = account();
        add_role(&cluster, "everywhere", EVERYWHERE);
        add_user(&cluster, "alice", "everywhere", &login);
        let _ = cluster.ctl_named("alice").login("alice", PASSWORD).ok();
        let world = Self { service, sshd, agent, login, cluster };
        world.followed().await;
        world
    }

    /// The admin, who knows the cluster by its profile alone: the pin of the beginning does not outlive a rotation.
    fn admin(&self) -> Ctl {
        self.cluster.ctl().at(&self.cluster.addresses())
    }

    /// A certificate that is good for so long, in a folder of its own.
    fn certificate(&self, name: &str, ttl: &str) -> PathBuf {
        let folder = self.cluster.dir().join(name);
        let issue = ["certs", "issue", "--out", folder.to_str().unwrap(), "--ttl", ttl];
        let _ = self.cluster.ctl_named("alice").at(&self.cluster.addresses()).ok(&issue);
        folder
    }

    #[track_caller]
    fn logs_in(&self, folder: &Path, when: &str) {
        // An sshd that reads its configuration anew does not listen for a moment.
        let patient = self.sshd.client(folder).with(&["-o", "ConnectionAttempts=20"]);
        let output = patient.run(&self.login, "echo in");
        assert_eq!(output.stdout, "in\n", "{when}: {output:?}\n{}", self.sshd.log());
    }

    /// Where an authority's rotation stands.
    fn rotation(&self, kind: &str) -> Value {
        let all = self.admin().json(&["auth", "status"]);
        all.as_array().unwrap().iter().find(|one| one["kind"] == kind).unwrap().clone()
    }

    /// Waits until nobody lags.
    async fn followed(&self) {
        eventually("everybody has followed", PATIENCE, async || {
            let all = self.admin().json(&["auth", "status"]);
            let nobody = all.as_array().unwrap().iter().all(|one| one["lagging"] == 0);
            let online = self.admin().json(&["nodes", "ls"])[0]["online"] == true;
            if nobody && online { Ok(()) } else { Err(all) }
        })
        .await;
    }

    /// Takes a step as soon as nothing holds it up; what holds it up must be said.
    async fn rotate(&self, kind: &str, to: &str) {
        eventually("the step is taken", PATIENCE, async || {
            let output = self.admin().run(&["auth", "rotate", kind, "--to", to]);
            match output.code {
                0 => Ok(()),
                _ if output.stderr.contains("taken this phase up")
                    || output.stderr.contains("left to report")
                    || output.stderr.contains("still good") =>
                {
                    Err(output.stderr)
                }
                _ => panic!("{output:?}"),
            }
        })
        .await;
        assert_eq!(self.rotation(kind)["phase"], to);
    }

    fn keys(&self, kind: &str) -> Vec<String> {
        let exported = self.admin().json(&["auth", "export", kind]);
        exported["keys"].as_array().unwrap().iter().map(|key| key.as_str().unwrap().to_owned()).collect()
    }

    /// Takes a step, and logs in at once, once all have followed, and after sshd was reloaded; with a certificate of the
    /// phase before, where that is still to be good, and with one of this phase.
    async fn step(&self, kind: &str, to: &str) {
        // This step waits for the end of what was issued before the last one, which is up to 25 s.
        let life = if (kind, to) == ("host", "update-servers") { "60s" } else { "15s" };
        let before = self.certificate(&format!("before-{kind}-{to}"), life);
        self.rotate(kind, to).await;
        // The last step waits for the end of what the old key has signed; of this one it does not know.
        let at_once = self.certificate(&format!("at-once-{kind}-{to}"), "25s");
        self.logs_in(&at_once, &format!("{kind}, {to}, at once"));
        if to != "standby" {
            self.logs_in(&before, &format!("{kind}, {to}, with a certificate of the phase before"));
        }
        self.followed().await;
        self.logs_in(&at_once, &format!("{kind}, {to}, followed"));
        let fresh = self.certificate(&format!("fresh-{kind}-{to}"), "15s");
        self.logs_in(&fresh, &format!("{kind}, {to}, with a fresh certificate"));
    }
}

/// The issuer's key in the host certificate on disk, as ssh-keygen tells it.
fn signer(certificate: &Path) -> String {
    let shown =
        mezite_e2e::run(std::process::Command::new("ssh-keygen").args(["-L", "-f"]).arg(certificate)).ok();
    let line = shown.lines().find(|line| line.contains("Signing CA")).unwrap();
    line.split_whitespace().find(|word| word.starts_with("SHA256:")).unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn ssh_works_at_every_step_of_a_rotation_of_the_user_and_host_cas() {
    let world = World::start(1).await;
    for kind in ["user", "host"] {
        let (old, host_before) =
            (world.keys(kind), signer(&world.agent.file("ssh_host_ed25519_key-cert.pub")));
        let very_old = world.certificate(&format!("very-old-{kind}"), "10s");
        world.logs_in(&very_old, "before the rotation");
        for to in FORWARD {
            world.step(kind, to).await;
        }
        let new = world.keys(kind);
        assert!(old.len() == 1 && new.len() == 1 && old != new, "{old:?} {new:?}");
        let host_after = signer(&world.agent.file("ssh_host_ed25519_key-cert.pub"));
        assert_eq!(host_before != host_after, kind == "host");
        // Whoever has but the old key, believes the host no more.
        if kind == "host" {
            let output = world.sshd.client(&very_old).run(&world.login, "echo in");
            assert!(output.stderr.contains("Host key verification failed"), "{output:?}");
        }
    }
    assert!(world.sshd.log().contains("Received SIGHUP; restarting."), "sshd was reloaded");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_from_the_last_phase_leaves_the_old_keys_and_ssh_working() {
    let world = World::start(1).await;
    for kind in ["host", "user"] {
        let old = world.keys(kind);
        for to in &FORWARD[..3] {
            world.step(kind, to).await;
        }
        let _ = world.certificate(&format!("long-{kind}"), "1h");
        world.step(kind, "rollback").await;
        let both = world.keys(kind);
        assert!(both.len() == 2 && both[0] == old[0], "{both:?}");
        // A certificate of an hour by the new key holds it up, and --force says that it is to be cut off.
        let refused = world.admin().run(&["auth", "rotate", kind, "--to", "standby"]);
        match kind {
            "user" => assert!(refused.failed(1).contains("still good")),
            _ => {
                assert_eq!(refused.code, 0, "hosts have followed, and users' certificates are not of this CA")
            }
        }
        if kind == "user" {
            let _ = world.admin().ok(&["auth", "rotate", kind, "--to", "standby", "--force"]);
        }
        world.followed().await;
        assert_eq!(world.keys(kind), old);
        let fresh = world.certificate(&format!("after-{kind}"), "1m");
        world.logs_in(&fresh, "after the rollback");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_agent_that_does_not_follow_holds_the_rotation_up_unless_it_is_forced() {
    let mut world = World::start(1).await;
    world.service.signal(Signal::SIGSTOP);
    let _ = world.admin().ok(&["auth", "rotate", "host", "--to", "init"]);
    let said = world.admin().run(&["auth", "rotate", "host", "--to", "update-clients"]).failed(1);
    assert!(said.contains(&format!("agent:{}", world.agent.id)), "{said}");
    assert_eq!(world.rotation("host")["lagging_names"][0], format!("agent:{}", world.agent.id));
    // One that is offline is told of, and holds nothing up.
    eventually("the agent is offline", PATIENCE, async || {
        let rotation = world.rotation("host");
        if rotation["absent"] == 1 && rotation["lagging"] == 0 { Ok(()) } else { Err(rotation) }
    })
    .await;
    world.rotate("host", "update-clients").await;
    world.service.signal(Signal::SIGCONT);
    world.followed().await;
    // Forced, it is taken before anybody has followed.
    let _ = world.admin().ok(&["auth", "rotate", "host", "--to", "update-servers", "--force"]);
    world.followed().await;
    let folder = world.certificate("after", "1m");
    world.logs_in(&folder, "forced");
    let said = world.admin().run(&["auth", "rotate", "host", "--to", "init"]).failed(1);
    assert!(said.contains("it goes to standby or rollback"), "{said}");
    // As by a loop that did not hear the answer.
    let again = world.admin().run(&["auth", "rotate", "host", "--to", "update-servers"]);
    assert!(again.stderr.contains("in that phase already"), "{again:?}");
    let _ = again.ok();

    // One that was away for a whole rotation comes back with a certificate of the key that signs now.
    let certificate = world.agent.file("ssh_host_ed25519_key-cert.pub");
    let before = signer(&certificate);
    world.service.kill();
    for to in ["standby", "init", "update-clients", "update-servers", "standby"] {
        let _ = world.admin().ok(&["auth", "rotate", "host", "--to", to, "--force"]);
    }
    world.service = world.agent.run_with(&["--reload", &world.sshd.reload()]);
    eventually("it has a certificate of the new key", PATIENCE, async || {
        if signer(&certificate) == before { Err("it has the old one") } else { Ok(()) }
    })
    .await;
    world.followed().await;
    let folder = world.certificate("back", "1m");
    world.logs_in(&folder, "back again");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tls_and_peer_cas_rotate_under_agents_ingests_and_auth_nodes_that_restart() {
    let mut world = World::start(3).await;
    let (mut ingests, _store) = Ingest::start_all(&world.cluster, 1).await;
    let cast = world.cluster.dir().join("session.cast");
    fs::write(&cast, asciicast(10_000)).unwrap();
    for (round, kind) in ["peer", "tls"].into_iter().enumerate() {
        let old = world.keys(kind);
        for (phase, to) in FORWARD.into_iter().enumerate() {
            // The last step waits for certificates of users.
            let _ = world.certificate("short", "5s");
            world.rotate(kind, to).await;
            // Whoever starts in the middle of it comes up with what is on its disk.
            let restarted = (round + phase) % 3;
            world.cluster.node(restarted).kill();
            world.cluster.node(restarted).start();
            world.cluster.node(restarted).ready().await;
            let uploaded = world.agent.upload(&cast, &[]);
            assert!(uploaded["recording_id"].is_string() || uploaded["id"].is_string(), "{uploaded}");
        }
        world.followed().await;
        let new = world.keys(kind);
        assert!(old.len() == 1 && new.len() == 1 && old != new, "{kind}");
    }
    for index in 0..3 {
        world.cluster.node(index).kill();
    }
    ingests[0].kill();
    for index in 0..3 {
        world.cluster.node(index).start();
    }
    for index in 0..3 {
        world.cluster.node(index).ready().await;
    }
    ingests[0].start();
    ingests[0].ready().await;
    world.followed().await;
    let folder = world.certificate("after", "1m");
    world.logs_in(&folder, "after all of it");
    let _ = world.agent.upload(&cast, &[]);
}

/// Users who neither log in nor get certificates while the TLS CA is rotated.
#[tokio::test(flavor = "multi_thread")]
async fn any_command_of_a_user_follows_the_tls_ca() {
    let cluster = Cluster::start(1).await;
    let admin = cluster.ctl().at(&cluster.addresses());
    for user in ["alice", "bob"] {
        add_user(&cluster, user, "access", user);
        let _ = cluster.ctl_named(user).login(user, PASSWORD).ok();
    }
    let [alice, bob] = ["alice", "bob"].map(|user| cluster.ctl_named(user).by_profile());
    let profile = |ctl: &Ctl| -> Value {
        serde_json::from_str(&fs::read_to_string(ctl.home().join("profile.json")).unwrap()).unwrap()
    };
    // As if it was written that long ago.
    let age = |ctl: &Ctl| {
        let file = fs::File::options().write(true).open(ctl.home().join("profile.json")).unwrap();
        let written = file.metadata().unwrap().modified().unwrap();
        file.set_modified(written - Duration::from_secs(2 * 60 * 60)).unwrap();
    };
    let cas =
        |ctl: &Ctl| profile(ctl)["ca_certificates"].as_str().unwrap().matches("BEGIN CERTIFICATE").count();
    for to in ["init", "update-clients"] {
        eventually("the step is taken", PATIENCE, async || {
            let output = admin.run(&["auth", "rotate", "tls", "--to", to]);
            if output.code == 0 { Ok(()) } else { Err(output.stderr) }
        })
        .await;
    }
    let _ = alice.ok(&["nodes", "ls"]);
    assert_eq!(cas(&alice), 1, "they were looked at just now");
    age(&alice);
    // However many run at a time, each finds a whole profile and leaves one.
    let before = profile(&alice);
    let running: Vec<_> = (0..8).map(|_| alice.command(&["nodes", "ls"]).spawn().unwrap()).collect();
    for mut child in running {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(cas(&alice), 2);
    let after = profile(&alice);
    assert!(["session_id", "addresses", "user"].iter().all(|field| before[field] == after[field]));

    for to in ["update-servers", "standby"] {
        eventually("the step is taken", PATIENCE, async || {
            let output = admin.run(&["auth", "rotate", "tls", "--to", to, "--force"]);
            if output.code == 0 { Ok(()) } else { Err(output.stderr) }
        })
        .await;
    }
    // The one who ran nothing is left behind, and is told what to do.
    eventually("the server shows its new certificate", PATIENCE, async || {
        let output = bob.run(&["nodes", "ls"]);
        if output.code == 1 && output.stderr.contains("--ca-pin") { Ok(()) } else { Err(output.stderr) }
    })
    .await;
    let _ = alice.ok(&["nodes", "ls"]);
    age(&alice);
    // By whichever address: it knows her session. And also with a command that it refuses her.
    let elsewhere = [cluster.addresses(), vec!["127.0.0.1:9".into()]].concat();
    let _ = alice.at(&elsewhere).run(&["tokens", "ls"]).failed(3);
    assert_eq!(cas(&alice), 1, "the old one is forgotten");
    // Who is invited now is told the new one.
    let command = admin.json(&["users", "add", "carol"])["invite"]["command"].as_str().unwrap().to_owned();
    let pin = command.split(' ').next_back().unwrap();
    assert_eq!(admin.json(&["status"])["ca_pin"], pin);
    let carol = Ctl::new(&cluster.dir().join("carol"), &cluster.addresses(), pin);
    let guess = cluster.dir().join("guess");
    secret_file(&guess, "a password or an invite");
    let guess = guess.to_str().unwrap();
    let said = carol.run(&["accept-invite", "--secret-file", guess, "--password-file", guess]).failed(3);
    assert!(said.contains("invite"), "it was recognised by the pin: {said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_automatic_rotation_goes_through_all_phases_by_itself() {
    let mut world = World::start(3).await;
    let old = world.keys("host");
    let leader = world.cluster.leader().await;
    let started = world.admin().json(&["auth", "rotate", "host", "--grace-period", "6s"]);
    assert_eq!(started["phase"], "init");
    world.cluster.node(leader).kill();
    let folder = world.certificate("during", "1h");
    world.logs_in(&folder, "during it");
    eventually("the rotation is over", PATIENCE, async || {
        let rotation = world.rotation("host");
        if rotation["phase"] == "standby" { Ok(()) } else { Err(rotation) }
    })
    .await;
    let new = world.keys("host");
    assert!(new.len() == 1 && new != old, "{new:?}");
    let folder = world.certificate("after", "1h");
    world.logs_in(&folder, "after it");
    let events = world.admin().json(&["audit", "ls", "--event", "ca.rotate"]);
    assert_eq!(events.as_array().unwrap().len(), 4, "{events}");
}
