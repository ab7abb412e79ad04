//! How calls come in: the TLS port with the recording RPCs and the health service. `router` finds the method, `tls`
//! says which certificate is shown and which are believed.

mod router;
mod tls;

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use ipnet::IpNet;
use mezite_daemon::clock;
use mezite_proto::{
    SERVICE_NAME,
    transport::{Gate, GateRules, ListenerLimits, TlsListener, is_of},
};
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic_health::{
    ServingStatus,
    pb::health_server,
    server::{HealthReporter, health_reporter},
};

pub(crate) use tls::server_config;

use crate::service::Ingest;
use router::Router;

/// HTTP/2 windows: the connection's well above a stream's, so that one stalled stream does not block the rest.
const STREAM_WINDOW: u32 = 512 << 10;
const CONNECTION_WINDOW: u32 = 4 << 20;

/// An HTTP/2 ping after so much silence finds a dead peer.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Connections without a client certificate, which only ask for the ingest's health. They must not take the agents'
/// places.
const MAX_ANONYMOUS: usize = 64;
/// Bytes of their requests that may be arriving.
const ANONYMOUS_BYTES: usize = 1 << 20;

/// How often the health service looks whether the ingest is ready.
const HEALTH_INTERVAL: Duration = Duration::from_millis(500);

/// Serves until `stop`; then takes no more connections and returns when the calls in hand were answered.
pub(crate) async fn serve(
    ingest: Arc<Ingest>,
    listener: TcpListener,
    proxies: Arc<[IpNet]>,
    tls: Arc<ArcSwap<ServerConfig>>,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let limits = ingest.limits();
    let listener_limits = ListenerLimits {
        handshake_timeout: limits.handshake_timeout,
        max_connections: limits.max_connections,
        max_anonymous: MAX_ANONYMOUS,
        proxies,
        ..ListenerLimits::default()
    };
    let (reporter, health) = health_reporter();
    let gate = Gate::new(GateRules {
        open: |path| is_of(path, health_server::SERVICE_NAME),
        beside: |_| false,
        lasting: router::lasts,
        request_timeout: limits.message_timeout,
        anonymous_bytes: ANONYMOUS_BYTES,
    });
    let server = Server::builder()
        .layer(gate)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(limits.max_streams_per_connection)
        .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
        .add_service(Router::new(Arc::clone(&ingest)))
        .add_service(health)
        .serve_with_incoming_shutdown(TlsListener::new(listener, tls, listener_limits), stop.cancelled());
    tokio::select! {
        served = server => served,
        never = report(&ingest, &reporter) => match never {},
    }
}

/// Keeps the health service up to date.
async fn report(ingest: &Ingest, reporter: &HealthReporter) -> std::convert::Infallible {
    loop {
        let ready = ingest.unready(clock::unix_seconds()).is_empty();
        let status = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
        reporter.set_service_status("", status).await;
        reporter.set_service_status(SERVICE_NAME, status).await;
        if ingest.is_leaving() {
            // It does not come back.
            return std::future::pending().await;
        }
        tokio::select! {
            () = tokio::time::sleep(HEALTH_INTERVAL) => (),
            () = ingest.leaving() => (),
        }
    }
}
