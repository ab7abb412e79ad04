//! Clients that read and write registers, sets, lists and accounts through any node, and write down what they saw.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::{sync::watch, task::JoinHandle};

use crate::{
    control::{Answer, Control, Request},
    history::{ACCOUNTS, Event, LISTS, REGISTERS, SETS},
    store_cluster::Addresses,
};

/// Accounts, and what each holds at first.
const COUNT: u64 = 8;
const BALANCE: u64 = 100;
/// What all hold together.
pub(crate) const TOTAL: u64 = COUNT * BALANCE;
/// So many registers are in use at once; each is given up after so many calls, so that the search for an order ends.
const REGISTERS_AT_ONCE: u64 = 4;
const CALLS: u64 = 120;
/// So many sets and lists are in use at once; each is given up after so many calls.
const GROUPS_AT_ONCE: u64 = 2;
const GROUP_CALLS: u64 = 150;
/// After a refusal a client waits so long: a node that is down refuses at once.
const PAUSE: Duration = Duration::from_millis(20);

/// What the clients share.
pub(crate) struct Shared {
    epoch: Instant,
    addresses: Addresses,
    /// A client waits longer than a node.
    patience: Duration,
    events: Mutex<Vec<Event>>,
    acknowledged: AtomicU64,
    /// No value is written twice.
    values: AtomicU64,
    calls: [AtomicU64; 3],
}

impl Shared {
    pub(crate) fn new(addresses: Addresses, patience: Duration) -> Arc<Self> {
        Arc::new(Self {
            epoch: Instant::now(),
            addresses,
            patience,
            events: Mutex::default(),
            acknowledged: AtomicU64::new(0),
            values: AtomicU64::new(1),
            calls: Default::default(),
        })
    }

    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap()
    }

    fn value(&self) -> u64 {
        self.values.fetch_add(1, Ordering::Relaxed)
    }

    /// The object of a kind that the next call goes to.
    fn object(&self, kind: usize, at_once: u64, calls: u64) -> u64 {
        let call = self.calls[kind].fetch_add(1, Ordering::Relaxed);
        call / (at_once * calls) * at_once + call % at_once
    }

    /// Asks through a connection, and writes down what came of it.
    pub(crate) async fn ask(
        &self,
        client: usize,
        node: u64,
        control: &mut Control,
        request: Request,
    ) -> Answer {
        let invoked = self.now();
        let answer = control.ask(&request, self.patience).await;
        let event = Event { client, node, request, answer: answer.clone(), invoked, returned: self.now() };
        self.events.lock().unwrap().push(event);
        if matches!(answer, Answer::Written { .. }) {
            self.acknowledged.fetch_add(1, Ordering::Relaxed);
        }
        answer
    }

    /// Opens the accounts. They are there when this returns, and were opened once.
    pub(crate) async fn open_accounts(&self) {
        let rows: Vec<_> = (0..COUNT).map(|account| (format!("{ACCOUNTS}{account}"), BALANCE)).collect();
        let nodes = self.addresses.borrow().clone();
        let (node, address) = nodes.first().unwrap();
        let answer = self.ask(0, *node, &mut Control::new(address), Request::Fill { rows }).await;
        assert!(matches!(answer, Answer::Written { .. }), "{answer:?}");
    }

    /// Reads everything through each node. What a node does not answer is asked again, as often as it takes.
    pub(crate) async fn read_all(&self, attempts: usize) -> Result<(), String> {
        for (node, address) in self.addresses.borrow().clone() {
            let mut control = Control::new(&address);
            for prefix in [REGISTERS, SETS, LISTS, ACCOUNTS] {
                let mut left = attempts;
                loop {
                    let request = Request::Scan { prefix: prefix.into() };
                    match self.ask(0, node, &mut control, request).await {
                        Answer::Rows { .. } => break,
                        other if left == 0 => return Err(format!("node {node} does not answer: {other:?}")),
                        _ => left -= 1,
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        Ok(())
    }

    /// All that was written down.
    pub(crate) fn take(&self) -> Vec<Event> {
        std::mem::take(&mut self.events.lock().unwrap())
    }

    /// How many writes were acknowledged.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }
}

/// Clients that work until they are told to stop.
pub(crate) struct Clients {
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Clients {
    pub(crate) fn start(shared: &Arc<Shared>, count: usize, seed: u64) -> Self {
        let (stop, stopped) = watch::channel(false);
        let tasks = (1..=count).map(|number| {
            let client = Client {
                number,
                shared: Arc::clone(shared),
                random: StdRng::seed_from_u64(seed.wrapping_mul(1_000).wrapping_add(number as u64)),
                nodes: BTreeMap::new(),
                last_seen: BTreeMap::new(),
            };
            tokio::spawn(client.run(stopped.clone()))
        });
        Self { stop, tasks: tasks.collect() }
    }

    /// Stops them, each after its call.
    pub(crate) async fn stop(self) {
        self.stop.send_replace(true);
        for task in self.tasks {
            task.await.unwrap();
        }
    }
}

struct Client {
    number: usize,
    shared: Arc<Shared>,
    random: StdRng,
    nodes: BTreeMap<u64, Control>,
    /// What registers held when this client last looked.
    last_seen: BTreeMap<String, Option<u64>>,
}

impl Client {
    async fn run(mut self, stopped: watch::Receiver<bool>) {
        while !*stopped.borrow() {
            let addresses = self.shared.addresses.borrow().clone();
            self.nodes.retain(|node, _| addresses.iter().any(|(id, _)| id == node));
            let (node, address) = addresses[self.random.random_range(0..addresses.len())].clone();
            let request = self.request();
            let control = self.nodes.entry(node).or_insert_with(|| Control::new(&address));
            let answer = self.shared.ask(self.number, node, control, request.clone()).await;
            self.learn(request, &answer);
            if matches!(answer, Answer::Failed { .. } | Answer::Unknown { .. }) {
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    fn request(&mut self) -> Request {
        let shared = Arc::clone(&self.shared);
        match self.random.random_range(0..100) {
            0..40 => self.register(),
            40..58 => {
                let (group, value) = (shared.object(1, GROUPS_AT_ONCE, GROUP_CALLS), shared.value());
                match self.random.random_range(0..3) {
                    0 => Request::Scan { prefix: format!("{SETS}{group}/") },
                    _ => Request::Put { key: format!("{SETS}{group}/{value}"), value, padding: 0 },
                }
            }
            58..74 => {
                let group = shared.object(2, GROUPS_AT_ONCE, GROUP_CALLS);
                let list = format!("{LISTS}{group}/");
                match self.random.random_range(0..3) {
                    0 => Request::Scan { prefix: list },
                    _ => Request::Append { list, element: shared.value() },
                }
            }
            74..92 => {
                let [from, to] = [(); 2].map(|()| self.random.random_range(0..COUNT));
                Request::Transfer {
                    from: format!("{ACCOUNTS}{from}"),
                    to: format!("{ACCOUNTS}{to}"),
                    amount: self.random.random_range(1..30),
                }
            }
            _ => Request::Scan { prefix: ACCOUNTS.into() },
        }
    }

    fn register(&mut self) -> Request {
        let number = self.shared.object(0, REGISTERS_AT_ONCE, CALLS);
        let key = format!("{REGISTERS}{number}");
        let value = self.shared.value();
        match self.random.random_range(0..10) {
            0..4 => Request::Get { key },
            4..7 => Request::Put { key, value, padding: 0 },
            _ => {
                let expected = self.last_seen.get(&key).copied().flatten();
                Request::Cas { key, expected, value }
            }
        }
    }

    /// Remembers what a register holds, so that some of the calls that depend on it write.
    fn learn(&mut self, request: Request, answer: &Answer) {
        match (request, answer) {
            (Request::Get { key }, Answer::Rows { rows, .. }) => {
                self.last_seen.insert(key, rows.first().map(|(_, value)| *value));
            }
            (Request::Put { key, value, .. } | Request::Cas { key, value, .. }, Answer::Written { .. }) => {
                self.last_seen.insert(key, Some(value));
            }
            _ => {}
        }
    }
}
