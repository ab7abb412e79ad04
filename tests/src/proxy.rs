//! The network between nodes: a proxy before each node, and a rule for each direction between two nodes.
//!
//! All members know a node under one address, so the proxy there must find out who is calling: the kernel's table of
//! TCP sockets names the caller's socket, and `/proc/PID/fd` the process that has it. What is held back is not
//! lost, as with TCP: it arrives when the rule changes, if nobody has given up meanwhile.

use std::{
    collections::BTreeMap,
    fs, io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::{AbortHandle, JoinSet},
    time::sleep,
};

/// Bytes that a direction takes at once.
const CHUNK: usize = 16 << 10;
/// The kernel's table may lack a socket while others come and go; then it is read again.
const LOOKS: usize = 5;

/// What happens to bytes in one direction of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// They pass.
    Pass,
    /// They pass so much later, a chunk at a time.
    Delay(Duration),
    /// They wait until the rule changes.
    Hold,
    /// Connections in which they are end, and new ones do too.
    Refuse,
}

/// The rules between nodes, and who the nodes are.
#[derive(Debug, Clone, Default)]
pub struct Links(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    rules: Mutex<BTreeMap<(u64, u64), watch::Sender<Rule>>>,
    /// Process of each node that runs.
    processes: Mutex<BTreeMap<u64, u32>>,
    strangers: AtomicU64,
}

impl Links {
    /// Sets the rule for what `from` sends to `to`.
    ///
    /// # Panics
    /// When another thread has panicked.
    pub fn set(&self, from: u64, to: u64, rule: Rule) {
        self.rule(from, to).send_replace(rule);
    }

    /// Lets everything pass.
    ///
    /// # Panics
    /// When another thread has panicked.
    pub fn heal(&self) {
        for rule in self.0.rules.lock().unwrap().values() {
            rule.send_replace(Rule::Pass);
        }
    }

    /// A node runs as this process.
    ///
    /// # Panics
    /// When another thread has panicked.
    pub fn runs(&self, node: u64, pid: u32) {
        self.0.processes.lock().unwrap().insert(node, pid);
    }

    /// Connections that were dropped because no node could be found that made them. Nodes that died since are
    /// among them.
    #[must_use]
    pub fn strangers(&self) -> u64 {
        self.0.strangers.load(Ordering::Relaxed)
    }

    fn rule(&self, from: u64, to: u64) -> watch::Sender<Rule> {
        let mut rules = self.0.rules.lock().unwrap();
        rules.entry((from, to)).or_insert_with(|| watch::channel(Rule::Pass).0).clone()
    }

    /// Which node has a socket from `port` to `to_port`.
    fn caller(&self, port: u16, to_port: u16) -> Option<u64> {
        let processes = self.0.processes.lock().unwrap().clone();
        (0..LOOKS).find_map(|_| {
            let table = fs::read_to_string("/proc/net/tcp").ok()?;
            let inode = table.lines().find_map(|line| inode(line, port, to_port))?;
            let socket = format!("socket:[{inode}]");
            processes.iter().find(|(_, pid)| has_file(**pid, &socket)).map(|(node, _)| *node)
        })
    }
}

/// The inode in a line of the kernel's table, if it is of that connection.
fn inode(line: &str, port: u16, to_port: u16) -> Option<&str> {
    let mut fields = line.split_whitespace().skip(1);
    let mut is = |port| {
        let (_, text) = fields.next()?.split_once(':')?;
        (u16::from_str_radix(text, 16).ok()? == port).then_some(())
    };
    is(port)?;
    is(to_port)?;
    fields.nth(6)
}

/// Whether a process has a file open.
fn has_file(pid: u32, name: &str) -> bool {
    let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    files.flatten().any(|file| fs::read_link(file.path()).is_ok_and(|link| link.as_os_str() == name))
}

/// The proxy before one node. Dropping it ends all connections through it.
#[derive(Debug)]
pub struct Proxy(AbortHandle);

impl Proxy {
    /// Listens on `port` for what is meant for `node`, which listens on `target`.
    ///
    /// # Panics
    /// When the port is taken.
    pub async fn start(links: &Links, node: u64, port: u16, target: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let links = links.clone();
        Self(tokio::spawn(accept(listener, links, node, port, target)).abort_handle())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn accept(listener: TcpListener, links: Links, node: u64, port: u16, target: u16) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let (client, address) = accepted.unwrap();
        let links = links.clone();
        connections.spawn(async move {
            let looking = links.clone();
            let found = tokio::task::spawn_blocking(move || looking.caller(address.port(), port));
            match found.await.unwrap() {
                Some(caller) => drop(connect(&links, client, caller, node, target).await),
                None => drop(links.0.strangers.fetch_add(1, Ordering::Relaxed)),
            }
        });
    }
}

/// Carries one connection until one side ends it or a rule does.
async fn connect(links: &Links, client: TcpStream, caller: u64, node: u64, target: u16) -> io::Result<()> {
    let (there, back) = (links.rule(caller, node).subscribe(), links.rule(node, caller).subscribe());
    if *there.borrow() == Rule::Refuse || *back.borrow() == Rule::Refuse {
        return Ok(());
    }
    let server = TcpStream::connect(("127.0.0.1", target)).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    tokio::select! {
        ended = carry(from_client, to_server, there) => ended,
        ended = carry(from_server, to_client, back) => ended,
    }
}

/// Carries one direction.
async fn carry(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut rule: watch::Receiver<Rule>,
) -> io::Result<()> {
    let mut refused = rule.clone();
    let carried = async move {
        let mut chunk = vec![0; CHUNK];
        loop {
            let length = from.read(&mut chunk).await?;
            let passes = rule.wait_for(|rule| *rule != Rule::Hold).await.map(|rule| *rule);
            if let Ok(Rule::Delay(time)) = passes {
                sleep(time).await;
            }
            if length == 0 {
                return Ok(());
            }
            to.write_all(&chunk[..length]).await?;
        }
    };
    tokio::select! {
        ended = carried => ended,
        _ = refused.wait_for(|rule| *rule == Rule::Refuse) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, timeout};

    use super::*;
    use crate::Port;

    const SOON: Duration = Duration::from_secs(20);
    const NOT_YET: Duration = Duration::from_millis(200);

    /// A server that says all again, behind a proxy; this process calls as node 1, and the server is node 2.
    async fn echo() -> (Links, Proxy, Port) {
        let (links, port) = (Links::default(), Port::lease());
        links.runs(1, std::process::id());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.split();
                    tokio::io::copy(&mut from, &mut to).await
                });
            }
        });
        let proxy = Proxy::start(&links, 2, port.number(), target).await;
        (links, proxy, port)
    }

    async fn call(stream: &mut TcpStream) -> io::Result<usize> {
        stream.write_all(b"x").await?;
        stream.read(&mut [0; 8]).await
    }

    #[tokio::test]
    async fn each_direction_has_a_rule() {
        let (links, _proxy, port) = echo().await;
        let mut stream = TcpStream::connect(port.address()).await.unwrap();
        assert_eq!(timeout(SOON, call(&mut stream)).await.unwrap().unwrap(), 1);
        for (from, to) in [(1, 2), (2, 1)] {
            // A link to somebody else is none of this connection's business.
            links.set(from, 3, Rule::Hold);
            links.set(3, to, Rule::Refuse);
            links.set(from, to, Rule::Hold);
            assert!(timeout(NOT_YET, call(&mut stream)).await.is_err());
            links.set(from, to, Rule::Pass);
            assert_eq!(timeout(SOON, stream.read(&mut [0; 8])).await.unwrap().unwrap(), 1);
        }
        links.set(2, 1, Rule::Delay(NOT_YET));
        let started = Instant::now();
        assert_eq!(timeout(SOON, call(&mut stream)).await.unwrap().unwrap(), 1);
        assert!(started.elapsed() >= NOT_YET);
    }

    #[tokio::test]
    async fn a_refused_link_ends_connections_old_and_new() {
        let (links, _proxy, port) = echo().await;
        let mut stream = TcpStream::connect(port.address()).await.unwrap();
        assert_eq!(timeout(SOON, call(&mut stream)).await.unwrap().unwrap(), 1);
        links.set(2, 1, Rule::Refuse);
        assert!(!matches!(timeout(SOON, stream.read(&mut [0; 8])).await.unwrap(), Ok(1)));
        let mut stream = TcpStream::connect(port.address()).await.unwrap();
        assert!(!matches!(timeout(SOON, call(&mut stream)).await.unwrap(), Ok(1)));
        links.heal();
        let mut stream = TcpStream::connect(port.address()).await.unwrap();
        assert_eq!(timeout(SOON, call(&mut stream)).await.unwrap().unwrap(), 1);
    }

    #[tokio::test]
    async fn a_stranger_is_not_let_in() {
        let (links, _proxy, port) = echo().await;
        links.runs(1, u32::MAX);
        let mut stream = TcpStream::connect(port.address()).await.unwrap();
        assert!(!matches!(timeout(SOON, call(&mut stream)).await.unwrap(), Ok(1)));
        assert_eq!(links.strangers(), 1);
    }
}
