//! What an operator does, and may do wrong: `init`, `join`, keys, folders, and what a node tells of itself.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command, time::Duration};

use mezite_e2e::{
    ADMIN, Agent, AgentSpec, AuthNode, CLUSTER, Cluster, Ingest, IngestSpec, PASSWORD, Process, Scratch,
    Setup, all_files, api, call, eventually, http, run, secret_file,
};
use mezite_proto::v1;
use tonic::Code;

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

const INIT: [&str; 4] = ["--cluster-name", CLUSTER, "--admin-user", ADMIN];

#[tokio::test(flavor = "multi_thread")]
async fn init_makes_a_password_and_tells_it_once() {
    let scratch = Scratch::new();
    let mut node = AuthNode::configure("alone", scratch.path(), &Setup::default());
    let said = node.run("run", &[]);
    assert!(said.code != 0 && said.stderr.contains("auth-node init"), "{said:?}");

    let printed = node.run("init", &INIT).ok();
    let password = printed.lines().find_map(|line| line.strip_prefix("password")).unwrap();
    let password = password.split_whitespace().next().unwrap().to_owned();
    assert!(password.len() >= 20, "{printed}");
    let pin = printed.lines().find_map(|line| line.strip_prefix("ca pin")).unwrap().trim().to_owned();
    for file in all_files(&node.data_dir()) {
        let content = fs::read(&file).unwrap();
        let found = content.windows(password.len()).any(|part| part == password.as_bytes());
        assert!(!found, "{} has the password", file.display());
    }

    // Again, it changes nothing and says why.
    let kek = fs::read(node.data_dir().join("kek")).unwrap();
    let again = node.run("init", &INIT);
    assert!(again.code != 0 && again.stderr.contains("auth-node run"), "{again:?}");
    let if_needed = node.run("init", &[&INIT[..], &["--if-needed"]].concat()).ok();
    assert!(if_needed.contains("is here already"), "{if_needed}");
    assert_eq!(fs::read(node.data_dir().join("kek")).unwrap(), kek);

    node.start();
    node.ready().await;
    let ctl = mezite_e2e::Ctl::new(&scratch.path().join("home"), &[node.address()], &pin);
    let _ = ctl.login(ADMIN, &password).ok();

    // Two processes never share a folder.
    let second = node.run("run", &[]);
    assert!(second.code != 0 && second.stderr.contains("used by another auth-node process"), "{second:?}");
    let _ = ctl.by_profile().ok(&["users", "ls"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_with_secrets_are_private_and_refused_if_they_are_not() {
    let scratch = Scratch::new();
    let node = AuthNode::configure("alone", scratch.path(), &Setup::default());
    let password = scratch.path().join("password");
    fs::write(&password, PASSWORD).unwrap();
    let with_file = [&INIT[..], &["--admin-password-file", password.to_str().unwrap()]].concat();
    let said = node.run("init", &with_file);
    assert!(said.code != 0 && said.stderr.contains("chmod 600"), "{said:?}");
    secret_file(&scratch.path().join("short"), "short");
    let short = scratch.path().join("short");
    let said = node.run("init", &[&INIT[..], &["--admin-password-file", short.to_str().unwrap()]].concat());
    assert!(said.code != 0 && said.stderr.contains("12"), "{said:?}");
    fs::set_permissions(&password, fs::Permissions::from_mode(0o600)).unwrap();
    let _ = node.run("init", &with_file).ok();

    assert_eq!(mode(&node.data_dir()) & 0o077, 0, "nobody else looks into the folder");
    let secrets: Vec<_> = all_files(&node.data_dir())
        .into_iter()
        .filter(|path| {
            let text = fs::read(path).unwrap();
            let has = |part: &[u8]| text.windows(part.len()).any(|found| found == part);
            has(b"PRIVATE KEY") || has(b"mezite-kek")
        })
        .collect();
    assert!(secrets.len() >= 2, "the key-encryption key and the peer key: {secrets:?}");
    for path in &secrets {
        assert_eq!(mode(path), 0o600, "{}", path.display());
        fs::set_permissions(path, fs::Permissions::from_mode(0o640)).unwrap();
        let said = node.run("run", &[]);
        assert!(said.code != 0 && said.stderr.contains("chmod 600"), "{}: {said:?}", path.display());
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    }

    // No CA key is in the database in the clear: what was found above are the peer's and the folder's own.
    let store: Vec<_> = secrets.iter().filter(|path| path.to_string_lossy().contains("store")).collect();
    assert!(store.is_empty(), "{store:?}");

    // Without its key-encryption key, and with another one, a node does not start.
    let (kek, away) = (node.data_dir().join("kek"), scratch.path().join("kek"));
    fs::rename(&kek, &away).unwrap();
    let said = node.run("run", &[]);
    assert!(said.code != 0 && said.stderr.contains("kek"), "{said:?}");
    secret_file(&kek, &format!("mezite-kek-v1:{}\n", "ab".repeat(32)));
    let said = node.run("run", &[]);
    assert!(said.code != 0 && !said.stderr.contains(&"ab".repeat(32)), "{said:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_database_is_for_its_owner_alone_whatever_the_umask_is() {
    let scratch = Scratch::new();
    let mut node = AuthNode::configure("alone", scratch.path(), &Setup::default());
    let init = node.command("init", &INIT);
    let mut careless = Command::new("sh");
    careless.args(["-c", "umask 0; exec \"$0\" \"$@\""]).arg(init.get_program()).args(init.get_args());
    for (name, value) in init.get_envs() {
        match value {
            Some(value) => careless.env(name, value),
            None => careless.env_remove(name),
        };
    }
    let _ = run(&mut careless).ok();
    let (data, store) = (node.data_dir(), node.data_dir().join("store"));
    assert_eq!((mode(&data), mode(&store)), (0o700, 0o700));
    let open: Vec<_> = all_files(&data).into_iter().filter(|file| !file.starts_with(&store)).collect();
    assert!(open.len() >= 5, "{open:?}");
    for file in open {
        assert_eq!(mode(&file) & 0o022, 0, "others write {}", file.display());
    }

    // What is wider is narrowed; the folder around it may be the service manager's.
    for path in [&data, &store] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    node.start();
    node.ready().await;
    assert_eq!((mode(&data), mode(&store)), (0o755, 0o700));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_database_is_gone_does_not_come_back() {
    let mut cluster = Cluster::start(3).await;
    let victim = (cluster.leader().await + 1) % 3;
    let id = cluster.status_of(victim).await.unwrap().node_id;
    cluster.node(victim).kill();
    let store = cluster.nodes()[victim].data_dir().join("store");
    let away = cluster.dir().join("away");
    fs::rename(&store, &away).unwrap();
    for attempt in 0..2 {
        let log = cluster.dir().join(format!("wiped-{attempt}.log"));
        let command = cluster.nodes()[victim].command("run", &[]);
        let mut wiped = Process::spawn("the wiped node", command, &log);
        assert_ne!(wiped.exited(Duration::from_secs(60)).await.code(), Some(0));
        let said = wiped.log();
        let remove = format!("remove node {id}");
        for words in [store.to_str().unwrap(), "is gone", &remove, "join anew with another data_dir"] {
            assert!(said.contains(words), "{words:?} is not in {said}");
        }
    }
    assert!(all_files(&store).is_empty(), "a database was made");
    // The others do without it, and it was nothing else that was in the way.
    cluster.add_user("alice", &["access"], &[]).await;
    fs::remove_dir_all(&store).unwrap();
    fs::rename(&away, &store).unwrap();
    cluster.node(victim).start();
    cluster.node(victim).ready().await;
    call!(cluster.admin_at(victim), get_user, v1::GetUserRequest { name: "alice".into() }).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn joining_again_changes_nothing() {
    let cluster = Cluster::start(2).await;
    let node = &cluster.nodes()[1];
    let said = node.run("init", &INIT);
    assert_ne!(said.code, 0, "a node of a cluster does not become another's");
    let ids = async || {
        let status = cluster.status_of(0).await.unwrap();
        status.members.iter().map(|member| member.node_id).collect::<Vec<_>>()
    };
    assert_eq!(ids().await, [1, 2]);

    let (mut ingests, store) = Ingest::start_all(&cluster, 1).await;
    let id = ingests[0].id();
    ingests[0].kill();
    // Joined, it needs no token any more.
    let printed = ingests[0].run("join", &[]).ok();
    assert!(printed.contains("had joined") && printed.contains(&id), "{printed}");
    ingests[0].start();
    ingests[0].ready().await;
    let token = cluster.token_file("node.token", &cluster.token(v1::TokenKind::Node).await);
    let other = Ingest::configure(&cluster, "ingest-9", &IngestSpec::local(&store));
    let refused = other.run("join", &["--token-file", token.to_str().unwrap()]);
    assert_ne!(refused.code, 0, "a token for SSH nodes let an ingest join");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_falls_silent_is_offline() {
    let set = ["presence.interval='500ms'", "presence.ttl='1500ms'"].map(str::to_owned).to_vec();
    let cluster = Cluster::start_with(&Setup { set, ..Setup::default() }).await;
    let agent = Agent::join(&cluster, AgentSpec::default());
    let admin = cluster.admin();
    let online = async || {
        let request = v1::ListNodesRequest { online_only: true, ..Default::default() };
        call!(admin, list_nodes, request).unwrap().nodes.len()
    };
    // On a busy machine the question may come later than the report lasts.
    let reports = async || {
        eventually("it is online", Duration::from_secs(60), async || {
            let _ = agent.heartbeat();
            if online().await == 1 { Ok(()) } else { Err("it is offline") }
        })
        .await;
    };
    reports().await;
    eventually("it is offline", Duration::from_secs(60), async || {
        if online().await == 0 { Ok(()) } else { Err("it is online") }
    })
    .await;
    let node =
        call!(admin, list_nodes, v1::ListNodesRequest::default()).unwrap().nodes.remove(0).node.unwrap();
    assert!(!node.online && node.last_seen_at.is_some(), "{node:?}");
    reports().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_tells_what_it_does_and_no_secret() {
    let cluster = Cluster::start(1).await;
    let node = &cluster.nodes()[0];
    let diagnostics = node.diagnostics_address();
    let _ = api::log_in(&cluster.anonymous_at(0), ADMIN, "wrong horse battery staple").await.unwrap_err();
    for page in ["/healthz", "/readyz"] {
        assert_eq!(http::get(&diagnostics, page).await.unwrap().0, 200, "{page}");
    }
    assert_eq!(http::get(&diagnostics, "/../data/kek").await.unwrap().0, 404);
    let (status, metrics) = http::get(&diagnostics, "/metrics").await.unwrap();
    assert_eq!(status, 200);
    let line = r#"grpc_server_handled_total{method="AuthenticateLocal",code="Unauthenticated"} 1"#;
    assert!(metrics.contains(line), "{metrics}");
    assert!(metrics.contains("grpc_server_handling_seconds"), "{metrics}");

    let nobody = v1::GetUserRequest { name: "nobody".into() };
    api::refused(call!(&cluster.admin(), get_user, nobody), Code::NotFound);
    let log = node.log();
    assert!(log.contains("GetUser"), "the refusal is logged: {log}");
    assert!(!log.contains("AuthenticateLocal"), "strangers fill no log: {log}");
    for secret in [PASSWORD, "wrong horse", cluster.session().expose(), "PRIVATE KEY"] {
        assert!(!log.contains(secret) && !metrics.contains(secret), "{secret}");
    }
}

/// A hash takes 19 MiB. What many of them took must not stay.
#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_logins_leaves_no_memory_behind() {
    const LOGINS: usize = 200;
    const AT_A_TIME: usize = 16;
    let cluster = Cluster::start(1).await;
    let node = &cluster.nodes()[0];
    let before = node.process().resident_bytes();
    let stormers = (0..AT_A_TIME).map(|_| {
        let client = cluster.anonymous_at(0);
        async move {
            for _ in 0..LOGINS / AT_A_TIME {
                let _ = api::log_in(&client, ADMIN, "wrong horse battery staple").await.unwrap_err();
            }
        }
    });
    futures::future::join_all(stormers).await;
    let grown = node.process().resident_bytes().saturating_sub(before) >> 20;
    assert!(grown < 150, "{grown} MiB more after {LOGINS} logins");
}
