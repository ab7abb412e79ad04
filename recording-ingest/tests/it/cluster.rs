//! A cluster to be an ingest of: its CA, an auth node that answers what an ingest asks, and ingests.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{Stream, StreamExt as _, stream};
use mezite_client::testing::{CLUSTER, Call, FakeServer, Leaf, Replies, TestCa};
use mezite_daemon::config::Settings as _;
use mezite_pki::identity::Identity;
use mezite_proto::v1::{self, watch_access_response::Event};
use prost::Message as _;
use recording_ingest::{Handle, IdentityError, Joined, config::Config, join, start};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};
use zeroize::Zeroizing;

use crate::wire::{Wire, eventually};

/// Unix seconds between which certificates are good: 2020 and 2096.
pub(crate) const LIFETIME: (u64, u64) = (1_577_836_800, 4_000_000_000);
pub(crate) const INGEST_ID: &str = "0b5c2f6e-6a1d-4c0e-9c55-1f2e3d4c5b6a";
/// The id of an ingest that joins in place of that one.
pub(crate) const NEXT_INGEST_ID: &str = "1b5c2f6e-6a1d-4c0e-9c55-1f2e3d4c5b6a";
pub(crate) const AGENT: &str = "6f9619ff-8b86-4011-b42d-00c04fc964ff";
pub(crate) const OTHER_AGENT: &str = "7f9619ff-8b86-4011-b42d-00c04fc964ff";
/// Hostname of every agent.
pub(crate) const HOSTNAME: &str = "agent.example";
pub(crate) const TOKEN: &str = "the-join-token";
/// How often the auth node says that it is current.
const CONFIRM: Duration = Duration::from_secs(1);

/// What the auth node answers, for a test to change.
pub(crate) struct Script {
    pub(crate) ca: TestCa,
    /// Of the certificates that it issues.
    pub(crate) lifetime: Mutex<(u64, u64)>,
    /// The id that an ingest gets.
    pub(crate) ingest_id: Mutex<&'static str>,
    /// Whether it has the ingest in its registry, for who has registered.
    registered: Mutex<bool>,
    /// Whether its token lets an agent join instead of an ingest.
    pub(crate) issues_to_agents: Mutex<bool>,
    pub(crate) bundle: Mutex<v1::GetTrustBundleResponse>,
    /// Methods that fail the next time, after they did their work.
    pub(crate) failing: Mutex<BTreeMap<&'static str, u32>>,
    roster: Mutex<Roster>,
}

/// The registered agents, and who is told of them.
#[derive(Default)]
struct Roster {
    agents: BTreeMap<String, String>,
    listeners: Vec<mpsc::UnboundedSender<Result<Vec<u8>, Status>>>,
}

impl Roster {
    fn tell(&mut self, event: Event) {
        let message = encoded(event);
        self.listeners.retain(|listener| listener.send(Ok(message.clone())).is_ok());
    }

    fn listing(&self) -> Vec<Event> {
        let agent = |(id, hostname): (&String, &String)| v1::AccessAgent {
            agent_id: id.clone(),
            hostname: hostname.clone(),
        };
        vec![
            Event::Listing(v1::AccessListing {}),
            Event::Registered(v1::AccessAgents { agents: self.agents.iter().map(agent).collect() }),
            Event::Listed(v1::AccessListed {}),
            Event::Current(v1::AccessCurrent { revision: 1 }),
        ]
    }
}

fn not_registered() -> Status {
    let details = ErrorDetails::with_error_info("NOT_REGISTERED", "mezite", HashMap::new());
    Status::with_error_details(
        Code::Unauthenticated,
        "this agent is not registered, or not any more",
        details,
    )
}

fn encoded(event: Event) -> Vec<u8> {
    v1::WatchAccessResponse { event: Some(event) }.encode_to_vec()
}

/// The word that the node is current, again and again.
fn current() -> impl Stream<Item = Result<Vec<u8>, Status>> {
    stream::unfold(tokio::time::interval(CONFIRM), |mut ticks| async move {
        ticks.tick().await;
        Some((Ok(encoded(Event::Current(v1::AccessCurrent { revision: 1 }))), ticks))
    })
}

impl Script {
    /// Registers an agent, or gives it another name.
    pub(crate) fn register(&self, id: &str, hostname: &str) {
        let mut roster = self.roster.lock().unwrap();
        roster.agents.insert(id.to_owned(), hostname.to_owned());
        let agent = v1::AccessAgent { agent_id: id.to_owned(), hostname: hostname.to_owned() };
        roster.tell(Event::Registered(v1::AccessAgents { agents: vec![agent] }));
    }

    /// Removes an agent.
    pub(crate) fn remove(&self, id: &str) {
        let mut roster = self.roster.lock().unwrap();
        roster.agents.remove(id).unwrap();
        roster.tell(Event::Removed(v1::AccessRemoval { agent_id: id.to_owned() }));
    }

    /// Removes an agent, of which nobody is told; all are told of those that are left.
    pub(crate) fn remove_and_list(&self, id: &str) {
        let mut roster = self.roster.lock().unwrap();
        roster.agents.remove(id).unwrap();
        roster.listing().into_iter().for_each(|event| roster.tell(event));
    }

    /// Tells all listeners that this node is not the one to tell them.
    pub(crate) fn send_away(&self) {
        let mut roster = self.roster.lock().unwrap();
        for listener in std::mem::take(&mut roster.listeners) {
            // It may have gone.
            let _ = listener.send(Err(Status::unavailable("this node cannot confirm that it is current")));
        }
    }

    /// Removes the ingest, which is not told so but by what it is answered.
    pub(crate) fn remove_ingest(&self) {
        *self.registered.lock().unwrap() = false;
    }

    /// How many are being told.
    pub(crate) fn listeners(&self) -> usize {
        let mut roster = self.roster.lock().unwrap();
        roster.listeners.retain(|listener| !listener.is_closed());
        roster.listeners.len()
    }

    fn listen(&self) -> Replies {
        let mut roster = self.roster.lock().unwrap();
        let (listener, changes) = mpsc::unbounded_channel();
        roster.listeners.push(listener);
        let listing: Vec<_> = roster.listing().into_iter().map(|event| Ok(encoded(event))).collect();
        let told = stream::select(UnboundedReceiverStream::new(changes), current());
        stream::iter(listing).chain(told).boxed()
    }

    fn replies(&self, call: &Call) -> Result<Replies, Status> {
        let reply = self.answer(call)?;
        match call.method.as_str() {
            "WatchAccess" => Ok(self.listen()),
            _ => Ok(stream::iter([Ok(reply)]).boxed()),
        }
    }

    fn answer(&self, call: &Call) -> Result<Vec<u8>, Status> {
        let reply = match call.method.as_str() {
            "GetTrustBundle" => self.bundle.lock().unwrap().encode_to_vec(),
            "GenerateHostCerts" => self.issue(call)?.encode_to_vec(),
            "RegisterAgent" => {
                assert!(call.certified);
                *self.registered.lock().unwrap() = true;
                let agent_id = self.ingest_id.lock().unwrap().to_string();
                v1::RegisterAgentResponse { agent_id, ..Default::default() }.encode_to_vec()
            }
            "AgentHeartbeat" | "WatchAccess" if call.certified && !*self.registered.lock().unwrap() => {
                return Err(not_registered());
            }
            "AgentHeartbeat" if call.certified => v1::AgentHeartbeatResponse {
                next_interval: None,
                trust_bundle_revision: self.bundle.lock().unwrap().revision,
                ..Default::default()
            }
            .encode_to_vec(),
            "WatchAccess" if call.certified => Vec::new(),
            "EmitAuditEvent" if call.certified => v1::EmitAuditEventResponse::default().encode_to_vec(),
            other => return Err(Status::unimplemented(other.to_owned())),
        };
        match self.failing.lock().unwrap().get_mut(call.method.as_str()).filter(|left| **left > 0) {
            Some(left) => {
                *left -= 1;
                Err(Status::failed_precondition("as the test wants it"))
            }
            None => Ok(reply),
        }
    }

    fn issue(&self, call: &Call) -> Result<v1::GenerateHostCertsResponse, Status> {
        let request: v1::GenerateHostCertsRequest = call.request();
        if request.token != TOKEN && !(request.token.is_empty() && call.certified) {
            return Err(Status::permission_denied("no such token"));
        }
        let agent_id = self.ingest_id.lock().unwrap().to_string();
        let (cluster, id) = (CLUSTER.to_owned(), agent_id.clone());
        let identity = match *self.issues_to_agents.lock().unwrap() {
            true => Identity::Agent { cluster, id },
            false => Identity::Ingest { cluster, id },
        };
        let names = [format!("ingest.{CLUSTER}.mezite.internal"), request.hostname];
        let names = names.each_ref().map(String::as_str);
        let lifetime = *self.lifetime.lock().unwrap();
        let leaf = self.ca.issue_for(&request.tls_public_key, Some(identity), &names, lifetime, "");
        Ok(v1::GenerateHostCertsResponse {
            agent_id,
            ssh_certificate: "ssh-ed25519-cert-v01@openssh.com AAAA".into(),
            tls_certificate: leaf.certificate,
            trust_bundle: Some(self.bundle.lock().unwrap().clone()),
            expires_at: None,
        })
    }
}

pub(crate) struct Cluster {
    pub(crate) script: Arc<Script>,
    pub(crate) auth: FakeServer,
    pub(crate) dir: TempDir,
}

impl Cluster {
    pub(crate) fn new() -> Self {
        let ca = TestCa::new();
        let script = Arc::new(Script {
            bundle: Mutex::new(ca.bundle(&[])),
            ca,
            lifetime: Mutex::new(LIFETIME),
            ingest_id: Mutex::new(INGEST_ID),
            registered: Mutex::new(true),
            issues_to_agents: Mutex::default(),
            failing: Mutex::default(),
            roster: Mutex::default(),
        });
        for agent in [AGENT, OTHER_AGENT] {
            script.register(agent, HOSTNAME);
        }
        let auth = auth_node("127.0.0.1:0", &script);
        Self { script, auth, dir: tempfile::tempdir().unwrap() }
    }

    /// Starts the auth node again, at its address.
    pub(crate) fn restart_auth(&mut self) {
        self.auth.kill();
        self.auth = auth_node(&self.auth.address(), &self.script);
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    /// Configuration of the ingest with this name; each has a folder of its own, and all share the store.
    pub(crate) fn config(&self, name: &str, set: &[&str]) -> Config {
        let text = format!(
            "data_dir = '{data}'\nstore = 'file://{store}'\nauth_servers = ['{auth}']\nca_pin = '{pin}'\n\
             listen = '127.0.0.1:0'\ndiagnostics_listen = '127.0.0.1:0'\nadvertise = 'ingest.example:3027'\n\
             hostname = 'ingest.example'\ndisk.refuse_new = 0\ndisk.refuse_appends = 0\n[limits]\nsegment_bytes = 65536\n[index]\nrefresh_interval = '20ms'\n\
             [control]\nheartbeat_interval = '50ms'\nrenewal_check_interval = '50ms'\ncall_timeout = '20s'\n\
             report_interval = '20ms'\n",
            data = self.dir.path().join(name).display(),
            store = self.store().display(),
            auth = self.auth.address(),
            pin = self.script.ca.pin(),
        );
        let set: Vec<String> = set.iter().map(|&flag| flag.to_owned()).collect();
        Config::parse(&text, [], &set).unwrap()
    }

    pub(crate) async fn join(&self, config: &Config) -> Result<Joined, IdentityError> {
        join(config, || Ok(Zeroizing::new(TOKEN.to_owned()))).await
    }

    /// Joins and starts the ingest with this name, and waits until it is ready.
    pub(crate) async fn ingest(&self, name: &str, set: &[&str]) -> Handle {
        let config = self.config(name, set);
        self.join(&config).await.unwrap();
        let handle = start(config).await.unwrap();
        let diagnostics = handle.diagnostics_address();
        eventually(|| async move { crate::wire::page(diagnostics, "/readyz").await.0 == 200 }).await;
        handle
    }

    pub(crate) fn agent(&self, id: &str) -> Leaf {
        let identity = Identity::Agent { cluster: CLUSTER.into(), id: id.into() };
        self.script.ca.issue(Some(identity), &[HOSTNAME], LIFETIME)
    }

    /// A connection of an agent.
    pub(crate) fn as_agent(&self, ingest: &Handle, id: &str) -> Wire {
        Wire::new(ingest, &self.script.ca, Some(&self.agent(id)))
    }

    /// A connection of an auth node.
    pub(crate) fn as_auth(&self, ingest: &Handle) -> Wire {
        Wire::new(ingest, &self.script.ca, Some(&self.script.ca.auth_node()))
    }

    /// Names of the calls that the auth node got.
    pub(crate) fn calls(&self, method: &str) -> usize {
        self.auth.calls().iter().filter(|call| call.method == method).count()
    }

    /// All objects of the store, by their keys.
    pub(crate) fn objects(&self) -> Vec<String> {
        let mut keys = Vec::new();
        walk(&self.store(), &self.store(), &mut keys);
        keys.sort();
        keys
    }
}

fn auth_node(address: &str, script: &Arc<Script>) -> FakeServer {
    let answering = Arc::clone(script);
    // The CA goes with the certificate: a first contact by pin needs it.
    FakeServer::streaming_at(address, &script.ca.auth_node(), &script.ca, move |call| {
        let answering = Arc::clone(&answering);
        async move { answering.replies(&call) }
    })
}

fn walk(root: &Path, dir: &Path, keys: &mut Vec<String>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => walk(root, &path, keys),
            false => keys.push(path.strip_prefix(root).unwrap().display().to_string()),
        }
    }
}

/// Long enough for a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
