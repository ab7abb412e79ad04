//! How calls come in: the TLS port with the API, the health service and reflection.

pub(crate) mod guests;
pub(crate) mod tls;

use std::{convert::Infallible, sync::Arc, time::Duration};

use mezite_daemon::diagnostics::Health as _;
use mezite_proto::{
    DESCRIPTOR_SET, MAX_REPLY, SERVICE_NAME,
    transport::{Gate, GateRules, ListenerLimits, TlsListener, is_of},
    v1::auth_service_server::{self, AuthServiceServer},
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic_health::{
    ServingStatus,
    server::{HealthReporter, health_reporter},
};

use crate::{
    config::Config, fault::NodeError, readiness::Readiness, rpc::Api, server::tls::Tls, service::Service,
};

/// Largest message that is taken, in bytes: what clients send.
const MAX_MESSAGE: usize = 4 << 20;
/// Largest metadata of a call, in bytes.
const MAX_METADATA: u32 = 16 << 10;

/// HTTP/2 windows: the connection's well above a stream's, so that one stalled stream does not block the
/// rest.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;

/// An HTTP/2 ping after so much silence finds a dead client, whose place another can then have. Agents that live report more
/// often than that, and are not asked.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(90);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// The one method, for agents alone, whose request lasts; its relay bounds the silence between its messages.
const LASTING: &str = "/mezite.v1.AuthService/StreamSessionRecording";

/// How often the health service looks whether the node is ready.
const HEALTH_INTERVAL: Duration = Duration::from_millis(500);

/// Serves until `stop`; then takes no more connections and returns when the calls in hand were answered.
///
/// # Errors
/// When the reflection service cannot be built, or serving breaks down.
pub(crate) async fn serve(
    service: Arc<Service>,
    readiness: Arc<Readiness>,
    listener: TcpListener,
    tls: Tls,
    config: &Config,
    stop: CancellationToken,
) -> Result<(), NodeError> {
    let limits = &config.limits;
    let listener_limits = ListenerLimits {
        proxies: config.trusted_proxies.as_slice().into(),
        handshake_timeout: limits.handshake_timeout,
        max_connections: limits.max_connections,
        max_anonymous: limits.anonymous_connections(),
        ..ListenerLimits::default()
    };
    let api = AuthServiceServer::new(Api::new(service))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_REPLY);
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let failed = |error: tonic_reflection::server::Error| NodeError::Failed(error.to_string());
    let (reporter, health) = health_reporter();
    let incoming = TlsListener::new(listener, Arc::clone(&tls.server), listener_limits);
    let gate = Gate::new(GateRules {
        // People come with a session, and whoever joins with a token.
        open: |_| true,
        beside: |path| !is_of(path, auth_service_server::SERVICE_NAME),
        lasting: |path| path == LASTING,
        request_timeout: limits.call_timeout,
        anonymous_bytes: limits.max_anonymous_bytes,
    });
    let server = Server::builder()
        .layer(gate)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(limits.max_streams_per_connection)
        .http2_max_header_list_size(MAX_METADATA)
        .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
        .add_service(api)
        .add_service(health)
        .add_service(reflection().build_v1().map_err(failed)?)
        .add_service(reflection().build_v1alpha().map_err(failed)?)
        .serve_with_incoming_shutdown(incoming, stop.cancelled());
    tokio::select! {
        served = server => served.map_err(|error| NodeError::Failed(error.to_string())),
        never = report(&readiness, &reporter) => match never {},
    }
}

/// Keeps the health service up to date.
async fn report(readiness: &Readiness, reporter: &HealthReporter) -> Infallible {
    loop {
        let ready = readiness.ready().await.is_ok();
        let status = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
        reporter.set_service_status("", status).await;
        reporter.set_service_status(SERVICE_NAME, status).await;
        if readiness.is_leaving() {
            // It does not come back.
            return std::future::pending().await;
        }
        tokio::select! {
            () = tokio::time::sleep(HEALTH_INTERVAL) => (),
            () = readiness.leaving() => (),
        }
    }
}
