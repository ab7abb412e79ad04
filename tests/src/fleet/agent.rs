//! An agent, as the cluster sees it.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use mezite_client::ClusterTrust;
use mezite_proto::{
    transport,
    v1::{self, auth_service_client::AuthServiceClient},
};
use rustls::{
    ClientConfig,
    client::Resumption,
    sign::{CertifiedKey, SingleCertAndKey},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio::sync::Mutex;
use tonic::{Streaming, transport::Channel};

use crate::api::{self, HostKeys};

/// Agents that connect from one local address. The system gives it 28,232 ports, and searches long when half of them are taken,
/// be it by connections that were closed a minute ago.
const FROM_ONE_ADDRESS: usize = 5_000;
/// A connection is made, and what there is no leader for is served, within this, on a machine that is busy.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// A heartbeat is given up after this.
const BEAT_TIMEOUT: Duration = Duration::from_secs(10);
/// Nodes that are tried for one heartbeat, and the pause between two that fail.
const ATTEMPTS: u32 = 6;
const PAUSE: Duration = Duration::from_millis(500);

/// The API over a connection.
pub(super) type Stub = AuthServiceClient<Channel>;

/// What agents know of the cluster.
#[derive(Debug)]
pub(super) struct Site {
    /// Of the auth nodes.
    pub(super) addresses: Vec<String>,
    trust: ClusterTrust,
    /// Without a certificate.
    tls: ClientConfig,
    epoch: Instant,
}

impl Site {
    /// A cluster at these addresses.
    pub(super) fn new(addresses: Vec<String>, trust: ClusterTrust) -> Self {
        let mut tls = Arc::unwrap_or_clone(api::tls(&trust, true, None));
        // Its cache has places for hundreds of servers.
        tls.resumption = Resumption::disabled();
        Self { addresses, trust, tls, epoch: Instant::now() }
    }

    /// A connection to a node without a certificate.
    pub(super) async fn connect_as_stranger(&self, node: usize) -> Result<Stub> {
        self.connect(Ipv4Addr::LOCALHOST.into(), node, &Arc::new(self.tls.clone())).await
    }

    /// TLS with a certificate and its key, PEM.
    fn tls_with(&self, certificate: &str, key: &str) -> Result<Arc<ClientConfig>> {
        let chain = CertificateDer::pem_slice_iter(certificate.as_bytes()).collect::<Result<_, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes())?;
        let certified = CertifiedKey::from_der(chain, key, self.tls.crypto_provider())?;
        let mut tls = self.tls.clone();
        tls.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(certified));
        Ok(Arc::new(tls))
    }

    async fn connect(&self, local: IpAddr, node: usize, tls: &Arc<ClientConfig>) -> Result<Stub> {
        let (address, name) = (&self.addresses[node], api::auth_server_name(&self.trust));
        let channel = transport::connect_from(local, address, Arc::clone(tls), name, CONNECT_TIMEOUT);
        Ok(AuthServiceClient::new(channel.await.with_context(|| format!("connecting to {address}"))?))
    }
}

/// The connection that an agent keeps, and the news that come over it: none while nothing happens.
#[derive(Debug)]
struct Connection {
    node: usize,
    stub: Stub,
    _news: Streaming<v1::WatchAccessResponse>,
}

/// An agent that has joined.
#[derive(Debug)]
pub struct Agent {
    /// Its id.
    pub id: String,
    pub(super) number: usize,
    site: Arc<Site>,
    tls: Arc<ClientConfig>,
    connection: Mutex<Option<Connection>>,
    /// When the last heartbeat that was answered was sent, in milliseconds since the site's epoch, and when it was answered.
    sent_ms: AtomicU64,
    answered_ms: AtomicU64,
    silent: AtomicBool,
}

/// Labels of the agent of this number: `rack`, of which each of 100 values has one agent in a hundred, `env=dev` for one in
/// ten and `env=prod` for the others, and `os`, which is the same for all.
#[must_use]
pub fn labels(number: usize) -> BTreeMap<String, String> {
    let env = if number.is_multiple_of(10) { "dev" } else { "prod" };
    let pairs = [("rack", format!("r{}", number % 100)), ("env", env.to_owned()), ("os", "linux".to_owned())];
    pairs.map(|(key, value)| (key.to_owned(), value)).into()
}

fn hostname(number: usize) -> String {
    format!("host-{number:06}.example.org")
}

impl Agent {
    /// Joins through a connection without a certificate, registers over one of its own, and keeps that.
    pub(super) async fn join(site: &Arc<Site>, stranger: &Stub, token: &str, number: usize) -> Result<Self> {
        let keys = HostKeys::new();
        let request = keys.request(token, &hostname(number));
        // Whoever asks again with its keys goes on with the join that it has.
        let issued = served("GenerateHostCerts", || {
            let (mut stub, request) = (stranger.clone(), request.clone());
            async move { stub.generate_host_certs(request).await }
        });
        let issued = issued.await?;
        let tls = site.tls_with(&issued.tls_certificate, &keys.tls.private_pem())?;
        let agent = Self {
            id: issued.agent_id,
            number,
            site: Arc::clone(site),
            tls,
            connection: Mutex::default(),
            sent_ms: AtomicU64::default(),
            answered_ms: AtomicU64::default(),
            silent: AtomicBool::default(),
        };
        let (sent, node) = (site.epoch.elapsed(), agent.home());
        let stub = agent.site.connect(agent.local(), node, &agent.tls).await?;
        let request = v1::RegisterAgentRequest {
            token: token.to_owned(),
            address: hostname(number) + ":22",
            labels: labels(number),
            version: env!("CARGO_PKG_VERSION").into(),
        };
        let registered = served("RegisterAgent", || {
            let (mut stub, request) = (stub.clone(), request.clone());
            async move { stub.register_agent(request).await }
        });
        registered.await?;
        agent.answered(sent);
        *agent.connection.lock().await = Some(Connection::listening(node, stub).await?);
        Ok(agent)
    }

    /// The node that it asks first.
    fn home(&self) -> usize {
        self.number % self.site.addresses.len()
    }

    /// Where it connects from.
    fn local(&self) -> IpAddr {
        let block = u8::try_from(self.number / FROM_ONE_ADDRESS).unwrap_or(u8::MAX - 2);
        Ipv4Addr::new(127, 0, 1, block + 2).into()
    }

    fn report(&self) -> v1::AgentHeartbeatRequest {
        v1::AgentHeartbeatRequest {
            version: env!("CARGO_PKG_VERSION").into(),
            labels: labels(self.number),
            address: hostname(self.number) + ":22",
            load: 1,
            followed_trust_revision: 0,
        }
    }

    /// Reports over the connection that it keeps; when that fails, over one to the next node, as the product's client does.
    /// Answers how often it failed before.
    ///
    /// # Errors
    /// Why the last attempt failed.
    pub async fn beat(&self) -> Result<u32> {
        let mut kept = self.connection.lock().await;
        let mut node = kept.as_ref().map_or_else(|| self.home(), |kept| kept.node);
        for failed in 0..ATTEMPTS {
            let attempt = tokio::time::timeout(BEAT_TIMEOUT, self.attempt(node, &mut kept)).await;
            match attempt.context("no answer").and_then(|answered| answered) {
                Ok(()) => return Ok(failed),
                Err(error) if failed + 1 == ATTEMPTS => return Err(error),
                Err(_) => {
                    *kept = None;
                    node = (node + 1) % self.site.addresses.len();
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        anyhow::bail!("no attempt was made")
    }

    async fn attempt(&self, node: usize, kept: &mut Option<Connection>) -> Result<()> {
        let connection = match kept {
            Some(connection) => connection,
            None => {
                let stub = self.site.connect(self.local(), node, &self.tls).await?;
                kept.insert(Connection::listening(node, stub).await?)
            }
        };
        let sent = self.site.epoch.elapsed();
        connection.stub.agent_heartbeat(self.report()).await?;
        self.answered(sent);
        Ok(())
    }

    /// Reports once, over the connection that it keeps.
    ///
    /// # Errors
    /// Why the last attempt failed.
    pub async fn beat_once(&self) -> Result<()> {
        let mut kept = self.connection.lock().await;
        let node = kept.as_ref().map_or_else(|| self.home(), |kept| kept.node);
        tokio::time::timeout(BEAT_TIMEOUT, self.attempt(node, &mut kept)).await?
    }

    /// Reports once, over a connection that is made for it.
    ///
    /// # Errors
    /// Why the last attempt failed.
    pub async fn beat_anew(&self) -> Result<()> {
        let sent = self.site.epoch.elapsed();
        let mut stub = self.site.connect(self.local(), self.home(), &self.tls).await?;
        stub.agent_heartbeat(self.report()).await?;
        self.answered(sent);
        Ok(())
    }

    fn answered(&self, sent: Duration) {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        self.sent_ms.store(millis(sent), Ordering::Relaxed);
        self.answered_ms.store(millis(self.site.epoch.elapsed()), Ordering::Relaxed);
    }

    /// From now on it reports no more, where [`super::Pace`] has it report.
    pub fn fall_silent(&self) {
        self.silent.store(true, Ordering::Relaxed);
    }

    /// Whether it reports no more.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        self.silent.load(Ordering::Relaxed)
    }

    /// When the last heartbeat that was answered was sent, and when it was answered.
    #[must_use]
    pub fn last(&self) -> (Instant, Instant) {
        let at = |millis: &AtomicU64| self.site.epoch + Duration::from_millis(millis.load(Ordering::Relaxed));
        (at(&self.sent_ms), at(&self.answered_ms))
    }
}

/// What a call answers; where there is no leader, once there is one.
async fn served<T, F: Future<Output = Result<tonic::Response<T>, tonic::Status>>>(
    what: &'static str,
    mut call: impl FnMut() -> F,
) -> Result<T> {
    let deadline = Instant::now() + CONNECT_TIMEOUT;
    loop {
        match call().await {
            Ok(answered) => return Ok(answered.into_inner()),
            Err(status) if status.code() == tonic::Code::Unavailable && Instant::now() < deadline => {
                tokio::time::sleep(PAUSE).await;
            }
            Err(status) => return Err(status).context(what),
        }
    }
}

impl Connection {
    async fn listening(node: usize, stub: Stub) -> Result<Self> {
        let news = served("WatchAccess", || {
            let mut stub = stub.clone();
            async move { stub.watch_access(v1::WatchAccessRequest {}).await }
        });
        Ok(Self { node, _news: news.await?, stub })
    }
}
