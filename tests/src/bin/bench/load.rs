//! Clients in a closed loop: each makes its next call when the one before is answered.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use mezite_e2e::percentile;
use mezite_proto::transport;
use rand::RngExt as _;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::task::JoinSet;
use tonic::transport::Channel;

use crate::api::{PutRequest, RangeRequest, kv_client::KvClient};

/// Bytes of a value.
pub(crate) const VALUE_BYTES: usize = 256;
/// Keys that there are.
pub(crate) const KEYS: u32 = 10_000;
/// Connections that the clients share at most, as in etcd's own benchmarks.
pub(crate) const CONNECTIONS: usize = 100;
/// Before anything is counted.
const WARM_UP: Duration = Duration::from_secs(1);
/// A call that takes longer has failed.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// What the clients do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// Write a random key.
    Put,
    /// Read a random key, linearizably.
    Get,
}

/// What came of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Figures {
    /// Answered calls a second.
    pub(crate) rate: f64,
    /// Calls that failed within the time that counts.
    pub(crate) failed: usize,
    /// Half of the answers took no longer.
    pub(crate) p50: Duration,
    /// Of a hundred answers, 99 took no longer.
    pub(crate) p99: Duration,
}

impl Figures {
    /// Of calls that took so many microseconds each, within a time.
    pub(crate) fn of(mut times: Vec<u32>, failed: usize, within: Duration) -> Self {
        times.sort_unstable();
        let time_of = |share| Duration::from_micros(percentile(&times, share).unwrap_or_default().into());
        Self { failed, rate: times.len() as f64 / within.as_secs_f64(), p50: time_of(50), p99: time_of(99) }
    }
}

/// A key, by its number.
pub(crate) fn key(number: u32) -> Bytes {
    Bytes::from(format!("key-{number:08}"))
}

/// A value that does not compress.
pub(crate) fn value() -> Bytes {
    let mut bytes = vec![0; VALUE_BYTES];
    rand::rng().fill(bytes.as_mut_slice());
    bytes.into()
}

/// A client of a member at an address, on a connection of its own.
pub(crate) async fn connect(address: &str, tls: &Arc<ClientConfig>) -> Result<Channel> {
    let name = ServerName::try_from("127.0.0.1")?;
    let channel = transport::connect(address, Arc::clone(tls), name, CALL_TIMEOUT).await;
    channel.with_context(|| format!("connecting to {address}"))
}

/// Runs clients, spread over the members at `addresses`. `begin` is called when the warm-up is over, `end` when the time
/// is: what they take is what the time cost.
pub(crate) async fn run(
    addresses: &[String],
    tls: &Arc<ClientConfig>,
    clients: usize,
    work: Work,
    time: Duration,
    begin: impl AsyncFnOnce() -> Result<()>,
) -> Result<Figures> {
    let mut channels = Vec::new();
    for address in addresses.iter().cycle().take(clients.clamp(1, CONNECTIONS)) {
        channels.push(connect(address, tls).await?);
    }
    let clients = channels.into_iter().cycle().take(clients).map(KvClient::new).collect();
    closed_loop(clients, time, move |client| call(client, work, value()), begin).await
}

/// Runs clients, each of which makes its next call when the one before is answered. `begin` is called when the warm-up is over: what
/// is measured besides counts from then on.
pub(crate) async fn closed_loop<C, F, A>(
    clients: Vec<C>,
    time: Duration,
    call: F,
    begin: impl AsyncFnOnce() -> Result<()>,
) -> Result<Figures>
where
    C: Clone + Send + 'static,
    F: Fn(C) -> A + Clone + Send + 'static,
    A: Future<Output = Result<()>> + Send,
{
    let begins = Instant::now() + WARM_UP;
    let ends = begins + time;
    let mut running = JoinSet::new();
    for client in clients {
        let call = call.clone();
        running.spawn(async move { client_loop(client, call, begins, ends).await });
    }
    tokio::time::sleep_until(begins.into()).await;
    begin().await?;
    let (mut times, mut failed) = (Vec::new(), 0);
    while let Some(done) = running.join_next().await {
        let (own, failures) = done?;
        times.extend(own);
        failed += failures;
    }
    Ok(Figures::of(times, failed, time))
}

/// Times of the calls that ended within the time that counts, in microseconds, and how many failed.
async fn client_loop<C: Clone, A: Future<Output = Result<()>>>(
    client: C,
    call: impl Fn(C) -> A,
    begins: Instant,
    ends: Instant,
) -> (Vec<u32>, usize) {
    let (mut times, mut failed) = (Vec::new(), 0);
    let mut now = Instant::now();
    while now < ends {
        let started = now;
        let answered = tokio::time::timeout(CALL_TIMEOUT, call(client.clone())).await;
        now = Instant::now();
        if now < begins || now >= ends {
            continue;
        }
        match answered {
            Ok(Ok(())) => times.push(u32::try_from((now - started).as_micros()).unwrap_or(u32::MAX)),
            Ok(Err(_)) | Err(_) => failed += 1,
        }
    }
    (times, failed)
}

async fn call(mut client: KvClient<Channel>, work: Work, value: Bytes) -> Result<()> {
    let key = key(rand::random_range(0..KEYS));
    match work {
        Work::Put => drop(client.put(PutRequest { key, value }).await?),
        Work::Get => {
            let request = RangeRequest { key, ..Default::default() };
            let found = client.range(request).await?.into_inner().kvs;
            ensure!(found.first().is_some_and(|row| row.value.len() == VALUE_BYTES), "no value");
        }
    }
    Ok(())
}

/// Writes every key once.
pub(crate) async fn fill(address: &str, tls: &Arc<ClientConfig>) -> Result<()> {
    let channel = connect(address, tls).await?;
    let mut running = JoinSet::new();
    for lane in 0..64 {
        let mut client = KvClient::new(channel.clone());
        running.spawn(async move {
            for number in (lane..KEYS).step_by(64) {
                client.put(PutRequest { key: key(number), value: value() }).await?;
            }
            Ok::<_, tonic::Status>(())
        });
    }
    while let Some(done) = running.join_next().await {
        done??;
    }
    Ok(())
}
