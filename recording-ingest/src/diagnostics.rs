//! Diagnostics over plain HTTP, on loopback unless configured otherwise: whether the process works (`/healthz`),
//! whether it should be sent calls (`/readyz`), and what it counts (`/metrics`).

use std::{io, sync::Arc};

use axum::{
    Router, extract::State, http::StatusCode, http::header::CONTENT_TYPE, response::IntoResponse,
    routing::get,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{clock, metrics, service::Ingest};

/// Type of the metrics page.
const PROMETHEUS_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Serves until `stop`.
pub(crate) async fn serve(
    ingest: Arc<Ingest>,
    listener: TcpListener,
    stop: CancellationToken,
) -> io::Result<()> {
    let pages = Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics_page))
        .with_state(ingest);
    // Cut, not drained: nobody's work hangs on it.
    tokio::select! {
        served = axum::serve(listener, pages).into_future() => served,
        () = stop.cancelled() => Ok(()),
    }
}

/// A restart is what helps a store that is not trusted any more.
async fn healthz(State(ingest): State<Arc<Ingest>>) -> impl IntoResponse {
    if ingest.objects.is_trusted() {
        (StatusCode::OK, "ok\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "the store takes no writes until a restart\n")
    }
}

async fn readyz(State(ingest): State<Arc<Ingest>>) -> impl IntoResponse {
    let reasons = ingest.unready(clock::unix_seconds());
    match reasons.is_empty() {
        true => (StatusCode::OK, "ok\n".to_owned()),
        false => (StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n") + "\n"),
    }
}

async fn metrics_page() -> impl IntoResponse {
    ([(CONTENT_TYPE, PROMETHEUS_TEXT)], metrics::page())
}
