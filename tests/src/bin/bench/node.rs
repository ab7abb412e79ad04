//! A member of the store's cluster: the store behind the same calls that etcd answers, and nothing else. With `--bare`
//! there is no store behind them: what then is left is what a call costs by itself.

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use anyhow::{Context as _, Result};
use arc_swap::ArcSwap;
use metrics_exporter_prometheus::PrometheusBuilder;
use mezite_daemon::clock;
use mezite_proto::transport::{ListenerLimits, TlsListener};
use raft_store::{Fatal, Limits, Role, Store, StoreConfig, StoreError, Timing, TransactError};
use store_txn::{Read as _, Transaction as _, TxError};
use tokio::net::TcpListener;
use tonic::{Request, Response, Status};

use crate::{
    api::{
        KeyValue, PutRequest, PutResponse, RangeRequest, RangeResponse, ResponseHeader, StatusRequest,
        StatusResponse,
        kv_server::{Kv, KvServer},
        maintenance_server::{Maintenance, MaintenanceServer},
    },
    certificates::Certificates,
};

/// Settings of a member.
#[derive(Debug, clap::Args)]
pub(crate) struct NodeArgs {
    /// Its id, 1 to 3.
    #[arg(long)]
    id: u64,
    /// Its data.
    #[arg(long)]
    data: PathBuf,
    /// Folder of the certificates.
    #[arg(long)]
    certificates: PathBuf,
    /// Where clients connect.
    #[arg(long)]
    listen: SocketAddr,
    /// Where metrics are shown.
    #[arg(long)]
    metrics: SocketAddr,
    /// Where the members' peer listeners are, in the order of their ids.
    #[arg(long, value_delimiter = ',')]
    peers: Vec<SocketAddr>,
    /// Answers without a store.
    #[arg(long)]
    bare: bool,
}

/// Runs until it is killed.
pub(crate) async fn run(args: NodeArgs) -> Result<()> {
    let certificates = Certificates::at(&args.certificates);
    let recorder = PrometheusBuilder::new().install_recorder()?;
    let page = axum::Router::new().route("/metrics", axum::routing::get(async move || recorder.render()));
    let metrics = TcpListener::bind(args.metrics).await?;
    tokio::spawn(async move { axum::serve(metrics, page).await });

    let store = if args.bare { None } else { Some(open(&args, &certificates).await?) };
    let tls = Arc::new(ArcSwap::from_pointee(certificates.server_config(args.id)?));
    let listener = TcpListener::bind(args.listen).await?;
    let incoming = TlsListener::new(listener, tls, ListenerLimits::default());
    let member = Member(store);
    tonic::transport::Server::builder()
        .add_service(KvServer::new(member.clone()))
        .add_service(MaintenanceServer::new(member))
        .serve_with_incoming(incoming)
        .await?;
    Ok(())
}

async fn open(args: &NodeArgs, certificates: &Certificates) -> Result<Store> {
    let members: Vec<_> = (1..).zip(args.peers.iter().map(SocketAddr::to_string)).collect();
    let own = usize::try_from(args.id - 1).ok().and_then(|index| args.peers.get(index).copied());
    let listen = own.context("the id is not of a peer")?;
    let config = StoreConfig {
        data_dir: args.data.clone(),
        listen,
        advertise: listen.to_string(),
        app_address: args.listen.to_string(),
        clock: Arc::new(clock::unix_ms),
        timing: Timing::default(),
        limits: Limits::default(),
    };
    let store = Store::open(config, certificates.identity(args.id)?, Fatal::abort()).await?;
    if args.id == 1 {
        store.initialize().await?;
    } else {
        store.activate(&members, Role::Voter).await?;
    }
    Ok(store)
}

#[derive(Clone)]
struct Member(Option<Store>);

fn to_status(error: TransactError<TxError>) -> Status {
    match error {
        TransactError::Store(StoreError::Overloaded) => Status::resource_exhausted(error.to_string()),
        TransactError::Store(StoreError::Unavailable(_)) => Status::unavailable(error.to_string()),
        other => Status::internal(other.to_string()),
    }
}

#[tonic::async_trait]
impl Kv for Member {
    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let Some(store) = &self.0 else { return Ok(Response::new(Default::default())) };
        let PutRequest { key, value } = request.into_inner();
        let put = store.transact(move |transaction| {
            transaction.put_raw(key.to_vec(), value.to_vec(), None);
            Ok::<_, TxError>(())
        });
        let revision = put.await.map_err(to_status)?.revision.cast_signed();
        Ok(Response::new(PutResponse { header: Some(ResponseHeader { revision, ..Default::default() }) }))
    }

    async fn range(&self, request: Request<RangeRequest>) -> Result<Response<RangeResponse>, Status> {
        let RangeRequest { key, serializable, .. } = request.into_inner();
        let Some(store) = &self.0 else { return Ok(Response::new(Default::default())) };
        let wanted = key.clone();
        let row = if serializable {
            store.read_local(move |view| view.get_raw(&wanted)).await
        } else {
            store.read(move |view| view.get_raw(&wanted)).await
        };
        let found = row.map_err(to_status)?.map(|row| KeyValue {
            key,
            value: row.value.into(),
            mod_revision: row.revision.cast_signed(),
            ..Default::default()
        });
        let kvs: Vec<_> = found.into_iter().collect();
        let count = i64::try_from(kvs.len()).unwrap_or_default();
        Ok(Response::new(RangeResponse { header: Some(ResponseHeader::default()), kvs, more: false, count }))
    }
}

#[tonic::async_trait]
impl Maintenance for Member {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let status = self.0.as_ref().map(Store::status).unwrap_or_default();
        Ok(Response::new(StatusResponse {
            header: Some(ResponseHeader { member_id: status.node_id, ..Default::default() }),
            leader: status.leader_id.unwrap_or_default(),
            raft_index: status.applied_index,
            raft_term: status.term,
            ..Default::default()
        }))
    }
}
