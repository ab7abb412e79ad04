//! Agent identities: on all nodes, before a stock sshd, and as `mezctl bot` keeps them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use mezite_e2e::{
    Bot, BotCall, Cluster, Ctl, Process, Scratch, Setup, account, api, call, eventually, run, tools,
};
use mezite_pki::ssh::parse_certificate;
use mezite_proto::v1;
use nix::sys::signal::Signal;
use serde_json::Value;
use tonic::Code;

use crate::{
    locks::{host, refused},
    support::{EVERYWHERE, add_role, ssh_folder},
};

const PATIENCE: Duration = Duration::from_secs(60);

async fn whose(cluster: &Cluster, node: usize, bot: &Bot) -> Option<String> {
    let list = v1::ListActiveSessionsRequest::default();
    let listed = call!(cluster.user_at(node, &bot.session()), list_active_sessions, list).ok()?;
    Some(listed.sessions[0].user.clone())
}

/// Writes what ssh wants of a bot's credentials into a folder.
fn write_folder(cluster: &Cluster, name: &str, bot: &Bot) -> PathBuf {
    let folder = cluster.dir().join(name);
    let bundle = bot.credentials.trust_bundle.as_ref().unwrap();
    ssh_folder(&folder, &bot.ssh, &bot.credentials.ssh_certificate, &bundle.known_hosts);
    folder
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bot_begins_on_one_node_renews_on_another_and_a_replay_locks_it_everywhere() {
    let cluster = Cluster::start(3).await;
    let (_agent, sshd, _service) = host(&cluster).await;
    let login = account();
    add_role(&cluster, "everywhere", EVERYWHERE);
    // A user of the same name, who may log in as nobody.
    cluster.add_user("ci", &["auditor"], &[]).await;
    let secret = cluster.agent_identity("ci", &["everywhere"], &[&login]).await;

    // Of all who use the secret at once, on all nodes, one gets anything.
    let calls: Vec<_> = (0..6).map(|_| BotCall::new()).collect();
    let clients: Vec<_> = (0..6).map(|index| cluster.anonymous_at(index % 3)).collect();
    let tries = calls.iter().zip(&clients).map(|(call, client)| call.bootstrap(client, "ci", &secret));
    let mut done = futures::future::join_all(tries).await;
    let winner = done.iter().position(Result::is_ok).unwrap();
    assert_eq!(done.iter().filter(|done| done.is_ok()).count(), 1);
    let first = done.swap_remove(winner).unwrap();
    let call = calls.into_iter().nth(winner).unwrap();
    // Its answer was lost: it asks another node.
    let again = call.bootstrap(&cluster.anonymous_at((winner + 1) % 3), "ci", &secret).await.unwrap();
    assert_eq!((&again.session_id, again.generation), (&first.session_id, 1));
    let first = call.into_bot(again);
    assert_eq!(whose(&cluster, 2, &first).await.as_deref(), Some("bot:ci"));

    // sshd lets it in under its own name.
    let folder = write_folder(&cluster, "first", &first);
    let ssh = sshd.client(&folder);
    assert_eq!(ssh.run(&login, "echo in").ok(), "in\n");
    sshd.says("ID bot:ci ").await;
    let info = parse_certificate(first.credentials.ssh_certificate.trim()).unwrap();
    assert_eq!(info.key_id, "bot:ci");

    let next = BotCall::new();
    let got = next.renew(&cluster, 1, &first, 1).await.unwrap();
    let repeated = next.renew(&cluster, 2, &first, 1).await.unwrap();
    assert_eq!((got.generation, repeated.generation), (2, 2));
    assert_eq!(got.session_id, repeated.session_id);
    let second = next.into_bot(repeated);
    assert_eq!(whose(&cluster, 0, &first).await, None);
    assert_eq!(whose(&cluster, 0, &second).await.as_deref(), Some("bot:ci"));
    let newer = write_folder(&cluster, "second", &second);
    let newer = sshd.client(&newer);
    assert_eq!(newer.run(&login, "echo in").ok(), "in\n");

    // A thief has a copy of what the first generation was.
    let stolen = BotCall::new().renew(&cluster, 0, &first, 1).await;
    let since = Instant::now();
    let status = api::refused(stolen, Code::PermissionDenied);
    assert_eq!(status.reason.as_deref(), Some("LOCKED"));
    for node in 0..3 {
        assert_eq!(whose(&cluster, node, &second).await, None, "{node}");
    }
    let renewal = BotCall::new().renew(&cluster, 1, &second, 2).await;
    assert_eq!(api::refused(renewal, Code::PermissionDenied).reason.as_deref(), Some("LOCKED"));
    refused(&newer, &sshd, since).await;
    refused(&ssh, &sshd, since).await;
    let locks = cluster.ctl().json(&["locks", "ls"]);
    assert_eq!(locks.as_array().unwrap().len(), 1);
    assert_eq!(locks[0]["target"], "agent-identity:ci");
    assert!(locks[0]["message"].as_str().unwrap().contains("two copies"), "{locks}");
    let audit = cluster.ctl().json(&["audit", "ls", "--limit", "1000"]).to_string();
    for event in ["agent_identity.create", "agent_identity.bootstrap", "agent_identity.bootstrap.denied"] {
        assert!(audit.contains(event), "{event}");
    }
    assert!(audit.contains("agent_identity.renew") && audit.contains("agent_identity.replay"));
}

/// `mezctl bot` of a folder, for a secret in a file.
struct Kept {
    ctl: Ctl,
    dir: PathBuf,
    secret: PathBuf,
}

impl Kept {
    fn new(cluster: &Cluster, secret: &str) -> Self {
        let ctl = cluster.ctl_named("bot");
        Self { ctl, dir: cluster.dir().join("bot-ci"), secret: cluster.token_file("ci.secret", secret) }
    }

    fn args<'a>(&'a self, more: &[&'a str]) -> Vec<&'a str> {
        let (dir, secret) = (self.dir.to_str().unwrap(), self.secret.to_str().unwrap());
        [&["bot", "run", "--identity", "ci", "--secret-file", secret, "--out", dir], more].concat()
    }

    fn renew(&self) -> mezite_e2e::Output {
        self.ctl.by_profile().run(&["bot", "renew", "--out", self.dir.to_str().unwrap()])
    }

    fn about(&self) -> Value {
        about(&self.dir)
    }
}

/// What the current set of a folder says of itself.
fn about(dir: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(dir.join("current/set.json")).unwrap()).unwrap()
}

/// Checks that what the current set has is good.
async fn check(cluster: &Cluster, dir: &Path) {
    check_files(dir);
    let session = fs::read_to_string(dir.join("current/session")).unwrap();
    let session = mezite_client::SessionSecret::new(session.trim().to_owned()).unwrap();
    let list = v1::ListActiveSessionsRequest::default();
    let listed = call!(cluster.user_at(0, &session), list_active_sessions, list).unwrap();
    assert_eq!(listed.sessions[0].user, "bot:ci");
}

/// Checks that keys and certificates of the current set fit, as `ssh-keygen` sees it.
fn check_files(dir: &Path) {
    let current = dir.join("current");
    let public = run(Command::new("ssh-keygen").arg("-y").arg("-f").arg(current.join("key"))).ok();
    let certificate = fs::read_to_string(current.join("key-cert.pub")).unwrap();
    let shown = run(Command::new("ssh-keygen").arg("-L").arg("-f").arg(current.join("key-cert.pub"))).ok();
    assert!(shown.contains("Key ID: \"bot:ci\""), "{shown}");
    let fingerprint = |line: &str| {
        let file = dir.join("compared.pub");
        fs::write(&file, line).unwrap();
        let printed = run(Command::new("ssh-keygen").arg("-l").arg("-f").arg(&file)).ok();
        fs::remove_file(&file).unwrap();
        printed.split(' ').nth(1).unwrap().to_owned()
    };
    assert_eq!(fingerprint(&public), fingerprint(&certificate));
    let read = |name: &str| fs::read_to_string(current.join(name)).unwrap();
    mezite_client::ClientIdentity::from_pem(&read("tls.crt"), &read("tls.key")).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn mezctl_keeps_a_bot_and_a_process_that_is_killed_at_any_moment_does_not_lose_it() {
    let cluster = Cluster::start(1).await;
    let (_agent, sshd, _service) = host(&cluster).await;
    let login = account();
    add_role(&cluster, "everywhere", EVERYWHERE);
    let secret = cluster.agent_identity("ci", &["everywhere"], &[&login]).await;
    let bot = Kept::new(&cluster, &secret);
    let wrong =
        Kept { secret: cluster.token_file("wrong.secret", "guessed"), ..Kept::new(&cluster, "guessed") };
    let said = wrong.ctl.run(&wrong.args(&["--once"])).failed(3);
    assert!(said.contains("not accepted") && said.contains("agent-identities reset"), "{said}");

    // Killed at moments that move on a little each time, from its start to its end: until one was quick enough.
    let bot = Kept { secret: cluster.token_file("ci.secret", &secret), ..bot };
    let mut killed = 0;
    for milliseconds in (0..).map(|step| step * 7) {
        let command = bot.ctl.command(&bot.args(&["--once"]));
        let mut process = Process::spawn("bot", command, &cluster.dir().join("bot.log"));
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
        match process.ended() {
            Some(status) => {
                assert!(status.success(), "{status}");
                break;
            }
            None => {
                process.kill();
                killed += 1;
            }
        }
    }
    assert!(killed > 1, "it was never killed");
    assert_eq!(bot.about()["generation"], 1);
    check(&cluster, &bot.dir).await;
    let folder = bot.dir.join("current");
    assert_eq!(sshd.client(&folder).run(&login, "echo in").ok(), "in\n");

    let mut generation = 1;
    for milliseconds in (0..).map(|step| step * 7) {
        let args = ["bot", "renew", "--out", bot.dir.to_str().unwrap()];
        let command = bot.ctl.by_profile().command(&args);
        let mut process = Process::spawn("bot", command, &cluster.dir().join("bot.log"));
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
        let ended = process.ended();
        process.kill();
        let now = bot.about()["generation"].as_u64().unwrap();
        // What the one before had asked for when it was killed may have come to its end since it was looked at.
        assert!((generation..=generation + 2).contains(&now), "{now} after {generation}");
        generation = now;
        check_files(&bot.dir);
        if let Some(status) = ended {
            assert!(status.success(), "{status}");
            break;
        }
    }
    assert!(generation > 1);
    let _ = bot.renew().ok();
    check(&cluster, &bot.dir).await;
    let kept = call!(cluster.admin(), get_agent_identity, v1::GetAgentIdentityRequest { name: "ci".into() });
    assert_eq!(kept.unwrap().identity.unwrap().generation, bot.about()["generation"].as_u64().unwrap());
    assert_eq!(cluster.ctl().json(&["locks", "ls"]).as_array().unwrap().len(), 0);

    // A snippet with which a stock ssh logs in.
    let config = fs::read_to_string(bot.dir.join("ssh_config")).unwrap();
    assert!(config.contains("current/key-cert.pub"), "{config}");
    let options = ["-F", bot.dir.join("ssh_config").to_str().unwrap()].map(str::to_owned);
    let mut ssh = Command::new("ssh");
    ssh.args(&options).args(["-p", &sshd.number().to_string(), "-o", "HostKeyAlias=web1.example.org"]);
    ssh.args(["-o", "BatchMode=yes", "-o", "IdentityAgent=none", &format!("{login}@127.0.0.1"), "echo in"]);
    assert_eq!(run(&mut ssh).ok(), "in\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_copies_of_a_folder_lock_the_identity_and_a_reset_begins_anew() {
    let cluster = Cluster::start(1).await;
    add_role(&cluster, "everywhere", EVERYWHERE);
    let secret = cluster.agent_identity("ci", &["everywhere"], &["deploy"]).await;
    let bot = Kept::new(&cluster, &secret);
    let _ = bot.ctl.ok(&bot.args(&["--once"]));
    // Once is enough: nothing is due, and the secret is not needed any more.
    fs::remove_file(&bot.secret).unwrap();
    let _ = bot.ctl.by_profile().ok(&bot.args(&["--once"]));
    assert_eq!(bot.about()["generation"], 1);

    let copy = Kept { dir: cluster.dir().join("copy"), ctl: bot.ctl.clone(), secret: bot.secret.clone() };
    let _ = run(Command::new("cp").arg("-a").arg(&bot.dir).arg(&copy.dir)).ok();
    let _ = copy.renew().ok();
    let said = bot.renew().failed(3);
    assert!(said.contains("two copies"), "{said}");
    let said = copy.renew().failed(3);
    assert!(said.contains("locked"), "{said}");
    let locks = cluster.ctl().json(&["locks", "ls"]);
    assert_eq!(locks[0]["target"], "agent-identity:ci");

    // An admin has looked into it.
    let fresh = cluster.dir().join("fresh.secret");
    let _ = cluster.ctl().ok(&["locks", "rm", locks[0]["id"].as_str().unwrap()]);
    let reset = ["agent-identities", "reset", "ci", "--out", fresh.to_str().unwrap()];
    let _ = cluster.ctl().ok(&reset);
    let _ = copy.renew().failed(3);
    let again = Kept { secret: fresh, ..bot };
    let _ = again.ctl.by_profile().ok(&again.args(&["--once"]));
    assert_eq!(again.about()["generation"], 1);
    check(&cluster, &again.dir).await;
    let _ = cluster.ctl().ok(&["agent-identities", "rm", "ci"]);
    let said = again.renew().failed(3);
    assert!(said.contains("deleted"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_renews_when_two_thirds_are_over_and_tells_of_it() {
    let scratch = Scratch::new();
    let offset = scratch.path().join("offset");
    fs::write(&offset, "+0").unwrap();
    let clock = tools::shifted_clock(&offset);
    let cluster = Cluster::start_with(&Setup { env: clock.clone(), ..Setup::default() }).await;
    add_role(&cluster, "everywhere", EVERYWHERE);
    let secret = cluster.agent_identity("ci", &["everywhere"], &["deploy"]).await;
    let bot = Kept::new(&cluster, &secret);
    let told = cluster.dir().join("told");
    let reload = format!("echo told >> {}", told.display());
    let start = || {
        let mut command = bot.ctl.command(&bot.args(&["--reload", &reload]));
        command.envs(clock.clone());
        Process::spawn("bot", command, &cluster.dir().join("bot.log"))
    };
    let reaches = async |process: &mut Process, generation: u64, lines: usize| {
        eventually("the bot has renewed, and told of it", PATIENCE, async || {
            process.assert_running();
            let now = fs::exists(bot.dir.join("current/set.json")).unwrap().then(|| bot.about());
            let told = fs::read_to_string(&told).unwrap_or_default().lines().count();
            let there = now
                .as_ref()
                .is_some_and(|about| about["generation"] == generation && about["reload_pending"] == false);
            if there && told == lines { Ok(()) } else { Err(format!("{now:?}, told {told}")) }
        })
        .await;
    };
    let mut process = start();
    reaches(&mut process, 1, 1).await;
    fs::write(&offset, "+41m").unwrap();
    reaches(&mut process, 2, 2).await;
    process.kill();
    let mut process = start();
    fs::write(&offset, "+82m").unwrap();
    reaches(&mut process, 3, 3).await;
    check_is_one(&cluster).await;
    process.signal(Signal::SIGTERM);
    assert!(process.exited(PATIENCE).await.success());

    // Who was away for too long is told what to do.
    fs::write(&offset, "+200m").unwrap();
    let mut process = start();
    assert_eq!(process.exited(PATIENCE).await.code(), Some(3));
    let log = fs::read_to_string(cluster.dir().join("bot.log")).unwrap();
    assert!(log.contains("agent-identities reset ci"), "{log}");
}

/// Nothing has locked it.
async fn check_is_one(cluster: &Cluster) {
    let listed = call!(cluster.admin(), list_locks, v1::ListLocksRequest::default()).unwrap();
    assert!(listed.locks.is_empty(), "{listed:?}");
}
