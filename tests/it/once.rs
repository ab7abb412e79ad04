//! Calls that must not happen twice, while nodes die: each is done, and done once.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use mezite_client::{AuthClient, Client, Retry};
use mezite_e2e::{Agent, AgentSpec, Cluster, Ctl, PASSWORD, all_files, api, call, eventually, secret_file};
use mezite_proto::{IDEMPOTENCY_KEY, v1};
use serde_json::{Value, json};
use tokio::task::{AbortHandle, JoinHandle};
use tonic::{Code, Request, metadata::MetadataValue};

/// Acknowledged calls that each worker must have before the next thing happens.
const PROGRESS: u64 = 3;
/// Workers that count, and such that make tokens; nodes that die have some of their calls in hand.
const COUNTING: usize = 6;
const MAKING: usize = 3;
/// A worker works through any one death in this time.
const GOES_ON: Duration = Duration::from_secs(30);
const NEW_PASSWORD: &str = "another correct password";

/// Calls a method that must not happen twice.
macro_rules! once {
    ($client:expr, $method:ident, $request:expr) => {
        $client
            .call(Retry::once("look"), $request, |mut auth: AuthClient, request| async move {
                auth.$method(request).await
            })
            .await
            .unwrap_or_else(|error| panic!("{}: {error:?}", stringify!($method)))
    };
}

/// One worker's way of telling how far it is, and of being told to stop.
#[derive(Clone)]
struct Line {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
}

impl Line {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    fn done<T>(&self, value: T) -> T {
        self.done.fetch_add(1, Ordering::Relaxed);
        value
    }
}

/// The workers, whatever they do.
#[derive(Default)]
struct Crew {
    stop: Arc<AtomicBool>,
    workers: Vec<(Line, AbortHandle)>,
}

impl Crew {
    fn add<T>(&mut self, work: impl FnOnce(Line) -> JoinHandle<T>) -> JoinHandle<T> {
        let line = Line { stop: Arc::clone(&self.stop), done: Arc::default() };
        let task = work(line.clone());
        self.workers.push((line, task.abort_handle()));
        task
    }

    /// Waits until each has done some more.
    async fn go_on(&self) {
        let read =
            || self.workers.iter().map(|(line, _)| line.done.load(Ordering::Relaxed)).collect::<Vec<_>>();
        let before = read();
        eventually("every worker goes on", GOES_ON, async || {
            if let Some(worker) = self.workers.iter().position(|(_, task)| task.is_finished()) {
                panic!("worker {worker} has failed");
            }
            let now = read();
            match before.iter().zip(&now).all(|(before, now)| *now >= before + PROGRESS) {
                true => Ok(()),
                false => Err(format!("from {before:?} to {now:?}")),
            }
        })
        .await;
    }

    fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

async fn finished<T>(task: JoinHandle<T>) -> T {
    tokio::time::timeout(GOES_ON, task).await.expect("every worker finishes").unwrap()
}

/// Counts in a user's trait, each time on the revision of the time before: what happened twice, or not at all, would be
/// refused the next time.
async fn count(client: Client, mut user: v1::User, line: Line) -> (v1::User, u64) {
    let mut turn = 0;
    while line.goes_on() {
        turn += 1;
        let values = vec![format!("{turn}")];
        user.traits.insert("turn".into(), v1::Strings { values });
        let request = v1::UpdateUserRequest { user: Some(user.clone()) };
        let updated = once!(client, update_user, request).user.unwrap();
        assert!(updated.revision > user.revision);
        assert_eq!(updated, v1::User { revision: updated.revision, ..user });
        user = line.done(updated);
    }
    (user, turn)
}

/// Makes tokens, and sees that the secret of each is the one that was made.
async fn make_tokens(client: Client, line: Line) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    while line.goes_on() {
        let request = v1::CreateTokenRequest { kind: v1::TokenKind::Node.into(), ..Default::default() };
        let made = once!(client, create_token, request);
        let token = made.token.unwrap();
        let found = call!(client, get_token, v1::GetTokenRequest { name: token.name.clone() });
        assert_eq!(found.unwrap().token, Some(token.clone()));
        call!(client, validate_join_token, v1::ValidateJoinTokenRequest { token: made.secret }).unwrap();
        assert!(line.done(names.insert(token.name)));
    }
    names
}

/// What an admin did with `mezctl`: as it was printed last.
#[derive(Debug, Default)]
struct Administered {
    users: BTreeMap<String, Value>,
    roles: BTreeMap<String, Value>,
    tokens: BTreeMap<String, Value>,
    /// Names of the tokens for auth nodes.
    auth_tokens: BTreeSet<String>,
    node: Value,
}

/// An admin at the command line.
struct Admin {
    ctl: Ctl,
    dir: PathBuf,
    password: PathBuf,
    line: Line,
}

impl Admin {
    /// A command that must succeed: what it printed.
    fn json(&self, args: &[&str]) -> Value {
        self.line.done(self.ctl.json(args))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn work(self, node: Value) -> Administered {
        let mut did = Administered { node, ..Administered::default() };
        for turn in 0_u64.. {
            if !self.line.goes_on() {
                break;
            }
            let name = format!("once-{turn}");
            did.users.insert(name.clone(), self.user(&name));
            did.roles.insert(name.clone(), self.role(&name));
            did.tokens.insert(name.clone(), self.token(&name));
            did.node = self.label(&did.node, turn);
            let file = self.file(&format!("{name}.auth"));
            let made = self.json(&["cluster", "token", "--out", file.to_str().unwrap()]);
            assert_eq!(made["token_file"], file.to_str().unwrap());
            assert!(did.auth_tokens.insert(made["name"].as_str().unwrap().to_owned()));
        }
        did
    }

    fn user(&self, name: &str) -> Value {
        let password = self.password.to_str().unwrap();
        let made = self.json(&["users", "add", name, "--roles", "access", "--password-file", password]);
        let updated =
            self.json(&["users", "update", name, "--roles", "access,auditor", "--trait", "team=red"]);
        assert!(updated["revision"].as_u64() > made["revision"].as_u64());
        updated
    }

    fn role(&self, name: &str) -> Value {
        let file = self.file(&format!("{name}.role"));
        let text = format!("kind: role\nmetadata: {{name: {name}, description: one}}\nspec: {{}}\n");
        fs::write(&file, text).unwrap();
        let mut role = self.json(&["roles", "create", file.to_str().unwrap()]);
        // With the revision that it was printed with.
        role["metadata"]["description"] = json!("two");
        fs::write(&file, role.to_string()).unwrap();
        self.json(&["roles", "update", file.to_str().unwrap()])
    }

    fn token(&self, name: &str) -> Value {
        let file = self.file(&format!("{name}.token"));
        let mut made = self.json(&["tokens", "add", "--name", name, "--out", file.to_str().unwrap()]);
        made.as_object_mut().unwrap().remove("secret_file");
        made
    }

    fn label(&self, node: &Value, turn: u64) -> Value {
        let (id, revision) = (node["agent_id"].as_str().unwrap(), node["revision"].to_string());
        let label = format!("turn={turn}");
        self.json(&["nodes", "update", id, "--labels", &label, "--revision", &revision])
    }
}

/// Changes a user's password back and forth: the one that it has in the end.
fn change_passwords(ctl: &Ctl, dir: &Path, line: &Line) -> &'static str {
    let passwords = [PASSWORD, NEW_PASSWORD];
    let files = ["one.password", "two.password"].map(|name| dir.join(name));
    for (file, password) in files.iter().zip(passwords) {
        secret_file(file, password);
    }
    let [one, two] = files.each_ref().map(|file| file.to_str().unwrap());
    let mut changed = false;
    while line.goes_on() {
        let (old, new) = if changed { (two, one) } else { (one, two) };
        let _ = line.done(ctl.ok(&["passwd", "--old-password-file", old, "--new-password-file", new]));
        changed = !changed;
    }
    passwords[usize::from(changed)]
}

/// What a node lists, by name.
fn listed(ctl: &Ctl, family: &str) -> BTreeMap<String, Value> {
    let list = ctl.json(&[family, "ls"]);
    let entries = list.as_array().unwrap().iter().cloned();
    entries.map(|entry| (entry["name"].as_str().unwrap().to_owned(), entry)).collect()
}

fn ours(list: &BTreeMap<String, Value>) -> BTreeMap<String, Value> {
    let ours = list.iter().filter(|(name, _)| name.starts_with("once-"));
    ours.map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// Checks that a node has what was acknowledged, and nothing else.
fn assert_as_acknowledged(ctl: &Ctl, did: &Administered, made: &BTreeSet<String>, before: &BTreeSet<String>) {
    assert_eq!(ours(&listed(ctl, "users")), did.users);
    let tokens = listed(ctl, "tokens");
    assert_eq!(ours(&tokens), did.tokens);
    let others = tokens.into_keys().filter(|name| !did.tokens.contains_key(name) && !before.contains(name));
    assert_eq!(others.collect::<BTreeSet<_>>(), made | &did.auth_tokens);
    // A list shows less of a role than its file does.
    let essence = |role: &Value| (role["description"].clone(), role["revision"].clone());
    let found: BTreeMap<_, _> =
        ours(&listed(ctl, "roles")).iter().map(|(name, role)| (name.clone(), essence(role))).collect();
    let wanted: BTreeMap<_, _> =
        did.roles.iter().map(|(name, role)| (name.clone(), essence(&role["metadata"]))).collect();
    assert_eq!(found, wanted);
    let node = &ctl.json(&["nodes", "ls"])[0];
    assert_eq!(
        (&node["revision"], &node["admin_labels"]),
        (&did.node["revision"], &did.node["admin_labels"])
    );
}

/// Kills a node while everybody works, sees them go on without it, and has it back.
async fn kill(cluster: &mut Cluster, crew: &Crew, victim: usize) {
    cluster.node(victim).kill();
    crew.go_on().await;
    cluster.node(victim).start();
    cluster.node(victim).ready().await;
    crew.go_on().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_works_with_the_address_list_finishes_whichever_node_is_killed() {
    let mut cluster = Cluster::start(3).await;
    let agent = Agent::join(&cluster, AgentSpec::default());
    let ctl = cluster.ctl().at(&cluster.addresses());
    let pat = cluster.ctl_named("pat");
    cluster.add_user("pat", &["access"], &[]).await;
    let _ = pat.login("pat", PASSWORD).ok();
    let before: BTreeSet<_> = listed(&ctl, "tokens").into_keys().collect();
    let password = cluster.dir().join("new.password");
    secret_file(&password, PASSWORD);

    let mut crew = Crew::default();
    // Each begins at another node of the list.
    let client = |turns: usize| {
        let mut addresses = cluster.addresses();
        addresses.rotate_left(turns % 3);
        api::client(&addresses, cluster.trust(), Some(cluster.session()), None)
    };
    let (mut counting, mut making) = (Vec::new(), Vec::new());
    for number in 0..COUNTING {
        let name = format!("counted-{number}");
        cluster.add_user(&name, &["access"], &[]).await;
        let user = call!(client(0), get_user, v1::GetUserRequest { name }).unwrap().user.unwrap();
        counting.push(crew.add(|line| tokio::spawn(count(client(number), user, line))));
    }
    for number in 0..MAKING {
        making.push(crew.add(|line| tokio::spawn(make_tokens(client(number), line))));
    }
    let node = ctl.json(&["nodes", "ls"])[0].clone();
    assert_eq!(node["agent_id"], agent.id.as_str());
    let administering = crew.add(|line| {
        let admin = Admin { ctl: ctl.clone(), dir: cluster.dir().to_owned(), password, line };
        tokio::task::spawn_blocking(move || admin.work(node))
    });
    let changing = crew.add(|line| {
        let (ctl, dir) = (pat.by_profile(), cluster.dir().to_owned());
        tokio::task::spawn_blocking(move || change_passwords(&ctl, &dir, &line))
    });

    crew.go_on().await;
    let leader = cluster.leader().await;
    for victim in [leader, (leader + 1) % 3, (leader + 2) % 3] {
        kill(&mut cluster, &crew, victim).await;
    }
    crew.stop();

    let did = finished(administering).await;
    let password = finished(changing).await;
    let (mut made, mut counted) = (BTreeSet::new(), Vec::new());
    for task in making {
        made.extend(finished(task).await);
    }
    for task in counting {
        counted.push(finished(task).await);
    }
    let turns: Vec<_> = counted.iter().map(|(_, turns)| turns).collect();
    eprintln!("{} rounds of mezctl, {} tokens, counted to {turns:?}", did.users.len(), made.len());
    for index in 0..3 {
        let address = [cluster.nodes()[index].address()];
        assert_as_acknowledged(&ctl.at(&address), &did, &made, &before);
        for (user, turn) in &counted {
            let found =
                call!(cluster.admin_at(index), get_user, v1::GetUserRequest { name: user.name.clone() });
            let found = found.unwrap().user.unwrap();
            assert_eq!((&found, &found.traits["turn"].values[0]), (user, &turn.to_string()));
        }
    }
    api::log_in(&cluster.anonymous_at(0), "pat", password).await.unwrap();
    let other = if password == PASSWORD { NEW_PASSWORD } else { PASSWORD };
    api::refused(api::log_in(&cluster.anonymous_at(1), "pat", other).await, Code::Unauthenticated);
}

#[tokio::test(flavor = "multi_thread")]
async fn whichever_node_is_asked_again_gives_the_answer_that_was_lost() {
    let mut cluster = Cluster::start(3).await;
    let key = hex::encode(rand::random::<[u8; 32]>());
    let ask = async |cluster: &Cluster, index: usize| {
        let tls = api::tls(cluster.trust(), true, None);
        let mut stub = api::stub(&cluster.nodes()[index].address(), cluster.trust(), tls);
        let kind = v1::TokenKind::Node.into();
        let mut request =
            Request::new(v1::CreateTokenRequest { name: "lost-answer".into(), kind, ..Default::default() });
        let bearer = format!("Bearer {}", cluster.session().expose());
        let metadata = request.metadata_mut();
        metadata.insert("authorization", MetadataValue::try_from(bearer).unwrap());
        metadata.insert(IDEMPOTENCY_KEY, MetadataValue::try_from(key.as_str()).unwrap());
        stub.create_token(request).await.unwrap().into_inner()
    };
    let leader = cluster.leader().await;
    let first = ask(&cluster, leader).await;
    cluster.node(leader).kill();
    for index in [(leader + 1) % 3, (leader + 2) % 3] {
        cluster.node(index).ready().await;
        assert_eq!(ask(&cluster, index).await, first);
    }
    // And when all of them died.
    for index in [(leader + 1) % 3, (leader + 2) % 3] {
        cluster.node(index).kill();
    }
    (0..3).for_each(|index| cluster.node(index).start());
    for index in 0..3 {
        cluster.node(index).ready().await;
        assert_eq!(ask(&cluster, index).await, first);
    }

    // It is kept sealed: no file of any node has the secret, nor the key that opens it.
    for index in 0..3 {
        let files = all_files(&cluster.nodes()[index].data_dir());
        let holds = |text: &str| {
            files.iter().any(|file| {
                fs::read(file).unwrap().windows(text.len()).any(|window| window == text.as_bytes())
            })
        };
        assert!(holds("lost-answer"), "this is where it would be");
        assert!(!holds(&first.secret) && !holds(&key));
    }
}
