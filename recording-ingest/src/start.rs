//! Starting and stopping: from a configuration to a serving ingest, and from there to an empty one.

use std::{net::SocketAddr, sync::Arc};

use arc_swap::ArcSwap;
use mezite_daemon::{
    diagnostics,
    program::{ListenError, listen},
};
use rustls::ServerConfig;
use tokio::{
    task::JoinHandle,
    time::{Instant, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    abandon::Abandoned,
    access::Follower,
    config::Config,
    control::Control,
    identity::{Folder, IdentityError, State},
    metrics,
    objects::{Objects, StoreError, s3},
    report::Reporter,
    retention::Retention,
    server,
    service::Ingest,
};

/// Why an ingest does not start, or ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There is no identity, or none that can be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The store cannot be opened.
    #[error("the store cannot be opened: {0}")]
    Store(String),
    /// An address cannot be listened on.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The cluster does not have this ingest any more; its process ends.
    #[error(
        "ingest {agent_id} is not in the registry of cluster {cluster_name} any more: it was removed, or the cluster was \
         restored from before it joined. To serve again, join anew: `recording-ingest join` with a new token"
    )]
    Removed {
        /// The id that it had.
        agent_id: String,
        /// Name of the cluster.
        cluster_name: String,
    },
    /// The port of the recording RPCs broke down.
    #[error("serving ended: {0}")]
    Serve(String),
}

/// A running ingest. Dropping it does not stop it: call [`Handle::stop`].
#[derive(Debug)]
pub struct Handle {
    ingest: Arc<Ingest>,
    address: SocketAddr,
    diagnostics_address: SocketAddr,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
    /// Ends the server's accepting.
    drain: CancellationToken,
    /// Ends what runs beside the calls.
    stop: CancellationToken,
    beside: TaskTracker,
}

/// Starts an ingest that has joined. When this returns, its ports are open.
///
/// # Errors
/// See [`StartError`].
pub async fn start(config: Config) -> Result<Handle, StartError> {
    mezite_daemon::metrics::install();
    let folder = Folder::open(&config.data_dir)?;
    let (state, identity) = folder.joined()?;
    let tls = Arc::new(ArcSwap::from_pointee(server::server_config(&identity)?));
    metrics::certificate_expires(identity.expires_at());
    let ingest = Arc::new(Ingest::new(open_store(&config).await?, identity, &config));
    let (recordings, address) = listen(config.listen).await?;
    let (diagnostics, diagnostics_address) = listen(config.diagnostics_listen).await?;
    let proxies = config.trusted_proxies.as_slice().into();
    let interval = config.index.refresh_interval;
    let abandoned = Abandoned::new(Arc::clone(&ingest), config.abandon.grace);
    let retention = Retention::new(Arc::clone(&ingest), &config.retention);
    let contact = Contact::new(config, folder, state, &ingest, &tls)?;
    tracing::info!(%address, %diagnostics_address, id = %ingest.identity().agent_id(), "serving");

    let (drain, stop, beside) = (CancellationToken::new(), CancellationToken::new(), TaskTracker::new());
    let server = server::serve(Arc::clone(&ingest), recordings, proxies, Arc::clone(&tls), drain.clone());
    let server = tokio::spawn(server);
    beside.spawn(diagnostics::serve(Arc::clone(&ingest), diagnostics, stop.clone()));
    let (tail, ended) = (Arc::clone(&ingest), stop.clone());
    beside.spawn(async move { tail.tail.run(interval, ended).await });
    // Who leaves seals and deletes nothing more of its own accord.
    beside.spawn(abandoned.run(ingest.until_leaving()));
    if let Some(retention) = retention {
        beside.spawn(retention.run(ingest.until_leaving()));
    }
    beside.spawn(contact.run(stop.clone()));
    beside.close();
    Ok(Handle { ingest, address, diagnostics_address, server, drain, stop, beside })
}

async fn open_store(config: &Config) -> Result<Objects, StartError> {
    let (url, disk) = (config.store.clone(), config.disk.clone());
    let opened = if s3::split(&url).is_some() {
        Objects::open_bucket(&url, &config.s3).await
    } else {
        let open = move || {
            let mut objects = Objects::open(&url)?;
            objects.watch_disk(&disk)?;
            Ok(objects)
        };
        let opened = tokio::task::spawn_blocking(open).await;
        opened.map_err(|error| StartError::Store(error.to_string()))?
    };
    match opened {
        Ok(objects) => Ok(objects),
        Err(StoreError::Failed(what)) => Err(StartError::Store(what)),
        Err(error @ (StoreError::Full | StoreError::Untrusted)) => Err(StartError::Store(error.to_string())),
    }
}

/// What holds the data folder while the ingest runs.
enum Contact {
    /// Follows the cluster.
    Cluster(Box<(Control, Follower, Reporter)>),
    /// No auth node is configured.
    Nobody(Folder),
}

impl Contact {
    fn new(
        config: Config,
        folder: Folder,
        state: State,
        ingest: &Arc<Ingest>,
        tls: &Arc<ArcSwap<ServerConfig>>,
    ) -> Result<Self, IdentityError> {
        if config.auth_servers.is_empty() {
            tracing::warn!(
                "auth_servers is empty: no heartbeats, the certificate is not renewed, and agents are judged by their \
                 certificates alone"
            );
            ingest.access.lost();
            return Ok(Self::Nobody(folder));
        }
        let follower = Follower::new(config.clone(), Arc::clone(ingest));
        let reporter = Reporter::new(config.clone(), Arc::clone(ingest));
        let control = Control::new(config, folder, state, Arc::clone(ingest), Arc::clone(tls))?;
        Ok(Self::Cluster(Box::new((control, follower, reporter))))
    }

    async fn run(self, stop: CancellationToken) {
        match self {
            Self::Cluster(contact) => {
                let (control, follower, reporter) = *contact;
                tokio::join!(control.run(stop.clone()), follower.run(stop.clone()), reporter.run(stop));
            }
            Self::Nobody(_folder) => stop.cancelled().await,
        }
    }
}

impl Handle {
    /// Address of the recording RPCs.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Address of the diagnostics.
    #[must_use]
    pub fn diagnostics_address(&self) -> SocketAddr {
        self.diagnostics_address
    }

    /// Resolves when serving ended without having been asked to; or when the cluster says that it does not have this ingest any
    /// more, which is [`StartError::Removed`]: then it has begun to leave, and is stopped as any other.
    pub async fn broken(&mut self) -> StartError {
        let ended = tokio::select! {
            ended = &mut self.server => ended,
            () = self.ingest.removed() => {
                let identity = self.ingest.identity();
                let (agent_id, cluster_name) = (identity.agent_id().to_string(), identity.cluster_name().to_owned());
                return StartError::Removed { agent_id, cluster_name };
            }
        };
        StartError::Serve(match ended {
            Ok(Ok(())) => "the port was closed".to_owned(),
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        })
    }

    /// Leaves: takes no more connections, makes durable what was received, answers open calls with what is durable,
    /// and stops. Takes `limits.drain_timeout` at most; answers whether every call was answered by then.
    pub async fn stop(mut self) -> bool {
        let deadline = Instant::now() + self.ingest.limits().drain_timeout;
        self.ingest.leave();
        self.drain.cancel();
        let calls = timeout_at(deadline, self.ingest.calls_ended()).await;
        let answers = timeout_at(deadline, &mut self.server).await;
        self.server.abort();
        self.stop.cancel();
        self.beside.wait().await;
        calls.is_ok() && answers.is_ok()
    }
}
