//! Nodes that die: what was acknowledged is there, and those who work go on.

use std::{
    collections::BTreeSet,
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use mezite_client::{Client, ClientError, Retry};
use mezite_e2e::{
    ADMIN, Agent, AgentSpec, Cluster, Ingest, PASSWORD, Port, Setup, Sshd, account, api, call, eventually,
};
use mezite_proto::v1;
use nix::sys::signal::Signal;
use tokio::task::JoinHandle;
use tonic::Code;

use crate::support::{
    add_role, add_user, asciicast, certificates, chunk, fetch, header, metadata, recording_id, stream, upload,
};

const CLIENTS: usize = 8;
/// Acknowledged writes that each client must have before the next thing happens.
const PROGRESS: u64 = 3;
/// A client works through any one death in this time.
const GOES_ON: Duration = Duration::from_secs(60);
/// Of the questions that a node finds when it wakes.
const QUESTIONS: usize = 8;
/// Bytes of one on the wire, at least: a frame of headers and one of an empty message (RFC 9113, 4.1; gRPC puts 5 bytes before a message).
const LEAST_QUESTION: usize = 9 + 9 + 5;

/// What one client wrote.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// Acknowledged, and not deleted since.
    pub(crate) kept: BTreeSet<String>,
    /// Acknowledged deletions.
    deleted: BTreeSet<String>,
}

/// A client that writes, reads what it wrote, and deletes some of it, until it is told to stop.
struct Worker {
    name: String,
    client: Client,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    ledger: Ledger,
}

impl Worker {
    async fn work(mut self) -> Ledger {
        for turn in 0_u64.. {
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            let name = format!("{}-{turn}", self.name);
            // Users cost a password hash.
            let done =
                if turn % 8 == 0 { self.create_user(&name).await } else { self.create_token(&name).await };
            done.unwrap_or_else(|error| panic!("{name}: {error:?}"));
            self.read(&name).await;
            self.ledger.kept.insert(name);
            self.acknowledged.fetch_add(1, Ordering::Relaxed);
            if turn % 5 == 4 {
                self.delete_one().await;
            }
        }
        self.ledger
    }

    async fn create_user(&self, name: &str) -> Result<(), ClientError> {
        let user = v1::User { name: name.into(), roles: vec!["access".into()], ..Default::default() };
        let request =
            v1::CreateUserRequest { user: Some(user), password: PASSWORD.into(), ..Default::default() };
        let create =
            |mut auth: mezite_client::AuthClient, request| async move { auth.create_user(request).await };
        self.client.call(Retry::once("look"), request, create).await.map(drop)
    }

    async fn create_token(&self, name: &str) -> Result<(), ClientError> {
        let kind = v1::TokenKind::Node.into();
        let request = v1::CreateTokenRequest { name: name.into(), kind, ..Default::default() };
        let create =
            |mut auth: mezite_client::AuthClient, request| async move { auth.create_token(request).await };
        self.client.call(Retry::once("look"), request, create).await.map(drop)
    }

    /// What was acknowledged is seen at once, whichever node is asked now.
    async fn read(&self, name: &str) {
        let found = match is_user(name) {
            true => call!(self.client, get_user, v1::GetUserRequest { name: name.into() }).map(drop),
            false => call!(self.client, get_token, v1::GetTokenRequest { name: name.into() }).map(drop),
        };
        found.unwrap_or_else(|error| panic!("{name} was acknowledged: {error:?}"));
    }

    async fn delete_one(&mut self) {
        let Some(name) = self.ledger.kept.iter().find(|name| !is_user(name)).cloned() else { return };
        match call!(self.client, delete_token, v1::DeleteTokenRequest { name: name.clone() }) {
            Ok(_) => {}
            Err(error) if error.repeated_with(Code::NotFound) => {}
            Err(error) => panic!("{name}: {error:?}"),
        }
        self.ledger.kept.remove(&name);
        self.ledger.deleted.insert(name);
    }
}

fn is_user(name: &str) -> bool {
    name.rsplit('-').next().unwrap().parse::<u64>().unwrap().is_multiple_of(8)
}

/// The clients, at work.
pub(crate) struct Workers {
    stop: Arc<AtomicBool>,
    counters: Vec<Arc<AtomicU64>>,
    tasks: Vec<JoinHandle<Ledger>>,
}

impl Workers {
    pub(crate) fn start(cluster: &Cluster) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (mut counters, mut tasks) = (Vec::new(), Vec::new());
        for number in 0..CLIENTS {
            // Each begins at another node of the list.
            let mut addresses = cluster.addresses();
            let nodes = addresses.len();
            addresses.rotate_left(number % nodes);
            let acknowledged = Arc::new(AtomicU64::new(0));
            let worker = Worker {
                name: format!("client{number}"),
                client: api::client(&addresses, cluster.trust(), Some(cluster.session()), None),
                stop: Arc::clone(&stop),
                acknowledged: Arc::clone(&acknowledged),
                ledger: Ledger::default(),
            };
            counters.push(acknowledged);
            tasks.push(tokio::spawn(worker.work()));
        }
        Self { stop, counters, tasks }
    }

    /// Waits until each client has done some more.
    pub(crate) async fn go_on(&self) {
        let read = || self.counters.iter().map(|counter| counter.load(Ordering::Relaxed)).collect::<Vec<_>>();
        let before = read();
        eventually("every client goes on", GOES_ON, async || {
            if let Some(task) = self.tasks.iter().position(JoinHandle::is_finished) {
                panic!("client {task} has failed");
            }
            let now = read();
            match before.iter().zip(&now).all(|(before, now)| *now >= before + PROGRESS) {
                true => Ok(()),
                false => Err(format!("from {before:?} to {now:?}")),
            }
        })
        .await;
    }

    /// Tells them to finish; what they wrote.
    pub(crate) async fn finish(self) -> Ledger {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Ledger::default();
        for task in self.tasks {
            let ledger = tokio::time::timeout(GOES_ON, task).await.expect("every client finishes").unwrap();
            all.kept.extend(ledger.kept);
            all.deleted.extend(ledger.deleted);
        }
        all
    }
}

/// The names of all users and tokens, as one node has them.
async fn names(cluster: &Cluster, index: usize) -> BTreeSet<String> {
    let client = &cluster.admin_at(index);
    let tokens = mezite_client::all_pages(|page_token| async move {
        let request = v1::ListTokensRequest { page_size: 1000, page_token };
        let reply = call!(client, list_tokens, request)?;
        Ok((reply.tokens, reply.next_page_token))
    });
    let users = mezite_client::all_pages(|page_token| async move {
        let request = v1::ListUsersRequest { page_size: 1000, page_token };
        let reply = call!(client, list_users, request)?;
        Ok((reply.users, reply.next_page_token))
    });
    let tokens = tokens.await.unwrap().into_iter().map(|token| token.name);
    let users = users.await.unwrap().into_iter().map(|user| user.name).filter(|name| name != ADMIN);
    // Those that let the other nodes and hosts join are not the clients'.
    tokens.chain(users).filter(|name| name.starts_with("client")).collect()
}

pub(crate) async fn assert_kept(cluster: &Cluster, ledger: &Ledger) {
    let mut before = None;
    for index in 0..cluster.nodes().len() {
        let found = names(cluster, index).await;
        let lost: Vec<_> = ledger.kept.difference(&found).collect();
        assert!(lost.is_empty(), "node {index} lost {lost:?}");
        let back: Vec<_> = ledger.deleted.intersection(&found).collect();
        assert!(back.is_empty(), "on node {index} these are back: {back:?}");
        let strange: Vec<_> = found.difference(&ledger.kept).collect();
        assert!(strange.is_empty(), "nobody wrote {strange:?} of node {index}");
        assert!(before.is_none_or(|before| before == found), "node {index} differs from the one before");
        before = Some(found);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_acknowledged_write_is_lost_whichever_node_is_killed() {
    let mut cluster = Cluster::start(3).await;
    let workers = Workers::start(&cluster);
    workers.go_on().await;
    let mut victims = BTreeSet::new();
    // The leader, then whichever were not killed yet, and the leader of then.
    let first = cluster.leader().await;
    for victim in [first, (first + 1) % 3, (first + 2) % 3] {
        kill(&mut cluster, &workers, victim).await;
        victims.insert(victim);
    }
    let last = cluster.leader().await;
    kill(&mut cluster, &workers, last).await;
    assert_eq!(victims.len(), 3);

    let ledger = workers.finish().await;
    assert!(ledger.kept.len() > CLIENTS * 5 && !ledger.deleted.is_empty());
    eprintln!("kept: {}, deleted: {}", ledger.kept.len(), ledger.deleted.len());
    assert_kept(&cluster, &ledger).await;

    // And when all of them die at once.
    (0..3).for_each(|index| cluster.node(index).kill());
    (0..3).for_each(|index| cluster.node(index).start());
    for index in 0..3 {
        cluster.node(index).ready().await;
    }
    assert_kept(&cluster, &ledger).await;
    let name = ledger.kept.iter().find(|name| is_user(name)).unwrap();
    api::log_in(&cluster.anonymous_at(0), name, PASSWORD).await.unwrap();
}

/// Kills a node while the clients work, sees them go on without it, and has it back.
async fn kill(cluster: &mut Cluster, workers: &Workers, victim: usize) {
    cluster.node(victim).kill();
    workers.go_on().await;
    cluster.node(victim).start();
    cluster.node(victim).ready().await;
    workers.go_on().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_majority_nothing_is_guessed() {
    let set = vec!["raft.deadline='3s'".to_owned()];
    let mut cluster = Cluster::start_with(&Setup { nodes: 3, set, ..Setup::default() }).await;
    cluster.add_user("alice", &["access"], &[]).await;
    let leader = cluster.leader().await;
    let follower = (leader + 1) % 3;
    cluster.node(leader).kill();
    cluster.node((leader + 2) % 3).kill();

    // Alone, a node neither reads nor writes; it says so, and when to try again.
    let mut policy = *cluster.admin().policy();
    policy.attempts_per_address = 2;
    let client = cluster.admin_at(follower).with_policy(policy);
    let anonymous = cluster.anonymous_at(follower).with_policy(policy);
    let (read, write, login) = tokio::join!(
        async { call!(client, list_users, v1::ListUsersRequest::default()).map(drop) },
        async { call!(client, delete_user, v1::DeleteUserRequest { name: "alice".into() }).map(drop) },
        async { api::log_in(&anonymous, "alice", PASSWORD).await.map(drop) },
    );
    for answer in [read, write, login] {
        match answer {
            Err(ClientError::Unavailable { retry_after: Some(wait), attempts: 2, .. }) => {
                assert!(wait < Duration::from_secs(10), "{wait:?}");
            }
            other => panic!("{other:?}"),
        }
    }
    // What needs no majority is answered.
    cluster.anonymous_at(follower).ping().await.unwrap();
    cluster.anonymous_at(follower).trust_bundle().await.unwrap();
    let address = cluster.nodes()[follower].diagnostics_address();
    eventually("it is not ready", Duration::from_secs(60), async || {
        match mezite_e2e::http::get(&address, "/readyz").await {
            Ok((200, _)) => Err("it is".to_owned()),
            Ok(_) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    })
    .await;
    assert_eq!(mezite_e2e::http::get(&address, "/healthz").await.unwrap().0, 200);

    cluster.node(leader).start();
    cluster.node(leader).ready().await;
    cluster.node(follower).ready().await;
    let session = cluster.session_of("alice").await;
    call!(cluster.user_at(follower, &session), list_users, v1::ListUsersRequest::default()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recording_outlives_the_ingest_that_took_its_beginning() {
    let cluster = Cluster::start(1).await;
    let (mut ingests, _) = Ingest::start_all(&cluster, 2).await;
    let agent = Agent::join(&cluster, AgentSpec::default());
    let client = agent.client(&cluster);
    let at = |ingest: &Ingest| client.for_recordings(&[ingest.address()]).unwrap();
    let (id, cast) = (recording_id(), asciicast(3 << 20));
    let begun = vec![header(id, 0, Some(metadata("alice"))), chunk(0, &cast[..1 << 20])];
    let acknowledged = stream(&at(&ingests[0]), begun).await.unwrap().committed_offset;
    assert_eq!(acknowledged, 1 << 20);
    let addresses: Vec<_> = ingests.iter().map(Ingest::address).collect();
    let second = at(&ingests[1]);
    ingests[0].kill();

    // Another replica knows every byte that was acknowledged, and goes on.
    let probed = stream(&second, vec![header(id, 0, None)]).await.unwrap();
    assert_eq!((probed.committed_offset, probed.state()), (acknowledged, v1::RecordingState::InProgress));
    let receipt =
        upload(&client.for_recordings(&addresses).unwrap(), id, &metadata("alice"), &cast).await.unwrap();
    assert_eq!(receipt.manifest.ingest_id.to_string(), ingests[1].id());
    assert!(fetch(&cluster.admin(), id).await.unwrap().1 == cast);

    // The first one comes back, and both answer the same.
    ingests[0].start();
    ingests[0].ready().await;
    ingests[1].kill();
    let again = upload(&at(&ingests[0]), id, &metadata("alice"), &cast).await.unwrap();
    assert_eq!(again.signed, receipt.signed);
    assert!(fetch(&cluster.admin(), id).await.unwrap().1 == cast);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ingest_takes_recordings_while_no_auth_node_lives() {
    let mut cluster = Cluster::start(1).await;
    let (mut ingests, _) = Ingest::start_all(&cluster, 1).await;
    let agent = Agent::join(&cluster, AgentSpec::default());
    let client = agent.client(&cluster).for_recordings(&[ingests[0].address()]).unwrap();
    let (before, after) = (recording_id(), recording_id());
    let cast = asciicast(1 << 20);
    cluster.node(0).kill();
    upload(&client, before, &metadata("alice"), &cast).await.unwrap();
    // Also one that is started meanwhile: it goes by the trust bundle that it has.
    ingests[0].kill();
    ingests[0].start();
    ingests[0].ready().await;
    upload(&client, after, &metadata("alice"), &cast).await.unwrap();

    cluster.node(0).start();
    cluster.node(0).ready().await;
    for id in [before, after] {
        assert!(fetch(&cluster.admin(), id).await.unwrap().1 == cast);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_slept_does_not_answer_from_the_past() {
    let cluster = Cluster::start(3).await;
    cluster.add_user("alice", &["access"], &[]).await;
    for round in 0..4 {
        let leader = cluster.leader().await;
        // The leader does not know that it is none any more; a follower, that it is behind.
        let sleeper = if round % 2 == 0 { leader } else { (leader + 1) % 3 };
        revoke_while_asleep(&cluster, sleeper, sleeper == leader).await;
    }
}

/// Ends a session while a node sleeps, and asks that node as it wakes.
async fn revoke_while_asleep(cluster: &Cluster, sleeper: usize, leads: bool) {
    let session = cluster.session_of("alice").await;
    let id = cluster.status_of(sleeper).await.unwrap().node_id;
    let trust = cluster.trust();
    let stub = api::stub(&cluster.nodes()[sleeper].address(), trust, api::tls(trust, true, None));
    let ask = || {
        let (mut stub, mut request) = (stub.clone(), tonic::Request::new(v1::ListUsersRequest::default()));
        let bearer = format!("Bearer {}", session.expose()).parse().unwrap();
        request.metadata_mut().insert("authorization", bearer);
        async move { stub.list_users(request).await }
    };
    ask().await.unwrap();

    let asleep = Asleep::put(cluster.nodes()[sleeper].process());
    let others: Vec<_> = (0..3).filter(|index| *index != sleeper).collect();
    for index in &others {
        eventually("a leader that is awake", GOES_ON, async || match cluster.status_of(*index).await {
            Ok(status) if status.leader_id != 0 && (status.leader_id != id || !leads) => Ok(()),
            Ok(status) => Err(status.leader_id.to_string()),
            Err(error) => Err(error),
        })
        .await;
    }
    let request = v1::RevokeSessionRequest { session: session.expose().to_owned() };
    call!(cluster.admin_at(others[0]), revoke_session, request).unwrap();

    // Questions wait for it when it wakes, before it can have heard of anything.
    let port = cluster.nodes()[sleeper].address();
    let before = unread(&port);
    let mut asked: Vec<_> = (0..QUESTIONS).map(|_| tokio::spawn(ask())).collect();
    eventually("questions wait", GOES_ON, async || {
        let waiting = unread(&port).saturating_sub(before);
        if waiting >= QUESTIONS * LEAST_QUESTION { Ok(()) } else { Err(waiting) }
    })
    .await;
    drop(asleep);
    asked.extend((0..QUESTIONS).map(|_| tokio::spawn(ask())));
    for answer in asked {
        let refused = answer.await.unwrap().expect_err("it answered from the past");
        let honest = [Code::Unauthenticated, Code::Unavailable, Code::DeadlineExceeded];
        assert!(honest.contains(&refused.code()), "{refused:?}");
    }
    let result = call!(cluster.user_at(sleeper, &session), list_users, v1::ListUsersRequest::default());
    api::refused(result, Code::Unauthenticated);
}

/// Bytes that were sent to a port of this machine, and that the process behind it has not read yet (proc(5): `net/tcp`).
fn unread(address: &str) -> usize {
    let (_, port) = address.rsplit_once(':').unwrap();
    let local = format!(":{:04X}", port.parse::<u16>().unwrap());
    let connections = fs::read_to_string("/proc/net/tcp").unwrap();
    let queues = connections.lines().filter_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let is_established = fields[3] == "01";
        (is_established && fields[1].ends_with(&local))
            .then(|| fields[4].split_once(':').unwrap().1.to_owned())
    });
    queues.map(|queue| usize::from_str_radix(&queue, 16).unwrap()).sum()
}

/// A process that does not run, until this is dropped.
struct Asleep<'a>(&'a mezite_e2e::Process);

impl<'a> Asleep<'a> {
    fn put(process: &'a mezite_e2e::Process) -> Self {
        process.signal(Signal::SIGSTOP);
        Self(process)
    }
}

impl Drop for Asleep<'_> {
    fn drop(&mut self) {
        self.0.signal(Signal::SIGCONT);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_reaches_a_host_and_a_recording_lands_while_any_one_node_is_dead() {
    let mut cluster = Cluster::start(3).await;
    let (_ingests, _) = Ingest::start_all(&cluster, 2).await;
    let login = account();
    add_role(
        &cluster,
        "everywhere",
        "  allow:\n    logins: [\"{{internal.logins}}\"]\n    node_labels: {\"*\": \"*\"}\n",
    );
    add_user(&cluster, "alice", "everywhere", &login);
    let port = Port::lease();
    let agent = Agent::join(&cluster, AgentSpec { address: &port.address(), ..AgentSpec::default() });
    let sshd = Sshd::start(&agent, port).await;
    let cast = asciicast(1 << 20);
    let file = cluster.dir().join("session.cast");
    std::fs::write(&file, &cast).unwrap();

    let leader = cluster.leader().await;
    for victim in [leader, (leader + 1) % 3, (leader + 2) % 3] {
        cluster.node(victim).kill();
        // At once, with the addresses of all three: the dead one is somebody else's concern.
        let (folder, _) = certificates(&cluster, "alice", &[]);
        assert_eq!(sshd.client(&folder).run(&login, "echo in").ok(), "in\n");
        let uploaded = agent.upload(&file, &["--user", "alice"]);
        let id = uploaded["recording_id"].as_str().unwrap().parse().unwrap();
        let ctl = cluster.ctl_named("alice").at(&cluster.addresses());
        let listed = ctl.json(&["recordings", "ls"]);
        assert!(listed.as_array().unwrap().iter().any(|one| one["recording_id"] == uploaded["recording_id"]));
        assert!(fetch(&cluster.admin(), id).await.unwrap().1 == cast);
        cluster.node(victim).start();
        cluster.node(victim).ready().await;
    }
}
