//! A node of the replicated store and nothing else, for tests: what it is asked comes over loopback, a line of JSON
//! each. It dies with whoever started it.

mod work;

use std::{env, fs, process::ExitCode, sync::Arc, time::Duration};

use mezite_daemon::clock;
use mezite_e2e::control::{NodeConfig, Request};
use nix::sys::{prctl, signal::Signal};
use raft_store::{Fatal, Limits, PeerIdentity, Role, Store, StoreConfig, Timing};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufStream},
    net::{TcpListener, TcpStream},
    signal::unix::{SignalKind, signal},
};

type Error = Box<dyn std::error::Error>;

#[tokio::main]
async fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).init();
    match run().await {
        Ok(code) => code,
        Err(error) => {
            tracing::error!(%error, "the node cannot run");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<ExitCode, Error> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    let path = env::args_os().nth(1).ok_or("usage: store-node CONFIG")?;
    let config: NodeConfig = serde_json::from_slice(&fs::read(path)?)?;
    let (config, mut terminated) = (Arc::new(config), signal(SignalKind::terminate())?);
    let store = Store::open(store_config(&config)?, identity(&config)?, Fatal::abort()).await?;
    let listener = TcpListener::bind(&config.control).await?;
    tracing::info!(node_id = config.node_id, "open");
    if !config.members.is_empty() {
        tokio::spawn(activate(store.clone(), Arc::clone(&config)));
    }
    tokio::spawn(serve(listener, store.clone(), Arc::clone(&config)));
    tokio::select! {
        _ = terminated.recv() => {}
        reason = store.dead() => {
            tracing::error!(reason, "the Raft core is dead");
            return Ok(ExitCode::FAILURE);
        }
    }
    store.shutdown().await;
    tracing::info!("stopped");
    Ok(ExitCode::SUCCESS)
}

fn identity(config: &NodeConfig) -> Result<PeerIdentity, Error> {
    let [certificate, key, authority] = &config.identity;
    let (certificate, key) = (fs::read_to_string(certificate)?, fs::read_to_string(key)?);
    let authority = fs::read_to_string(authority)?;
    Ok(PeerIdentity::from_pem(&config.cluster_id, config.node_id, &certificate, &key, &authority)?)
}

fn store_config(config: &NodeConfig) -> Result<StoreConfig, Error> {
    let deadline = Duration::from_millis(config.deadline_ms);
    Ok(StoreConfig {
        data_dir: config.data_dir.clone(),
        listen: config.listen.parse()?,
        advertise: config.advertise.clone(),
        app_address: config.control.clone(),
        // A test may have faked it.
        clock: Arc::new(clock::unix_ms),
        timing: Timing { deadline, ..Timing::default() },
        limits: Limits {
            snapshot_every: config.snapshot_every,
            keep_entries: config.keep_entries,
            ..Limits::default()
        },
    })
}

async fn activate(store: Store, config: Arc<NodeConfig>) {
    match store.activate(&config.members, Role::Voter).await {
        Ok(()) => tracing::info!("this node votes"),
        Err(error) => tracing::error!(%error, "this node does not vote"),
    }
}

async fn serve(listener: TcpListener, store: Store, config: Arc<NodeConfig>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let (store, stale_reads) = (store.clone(), config.stale_reads);
                tokio::spawn(async move {
                    if let Err(error) = converse(stream, store, stale_reads).await {
                        tracing::debug!(%error, "a connection has ended");
                    }
                });
            }
            Err(error) => {
                tracing::error!(%error, "accepting a connection failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn converse(stream: TcpStream, store: Store, stale_reads: bool) -> Result<(), Error> {
    stream.set_nodelay(true)?;
    let (mut stream, mut line) = (BufStream::new(stream), String::new());
    while stream.read_line(&mut line).await? > 0 {
        let request: Request = serde_json::from_str(&line)?;
        let mut answer = serde_json::to_string(&work::answer(&store, request, stale_reads).await)?;
        answer.push('\n');
        stream.write_all(answer.as_bytes()).await?;
        stream.flush().await?;
        line.clear();
    }
    Ok(())
}
