//! Diagnostics over plain HTTP, on loopback unless configured otherwise: whether the process works
//! (`/healthz`), whether it should be sent calls (`/readyz`), and what it counts (`/metrics`).

use std::{io, sync::Arc};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{metrics, readiness::Readiness};

/// Type of the metrics page.
const PROMETHEUS_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Serves until `stop`.
///
/// # Errors
/// When the port breaks down.
pub(crate) async fn serve(
    readiness: Arc<Readiness>,
    listener: TcpListener,
    stop: CancellationToken,
) -> io::Result<()> {
    let pages = Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics_page))
        .with_state(readiness);
    // Cut, not drained: nobody's work hangs on it.
    tokio::select! {
        served = axum::serve(listener, pages).into_future() => served,
        () = stop.cancelled() => Ok(()),
    }
}

async fn healthz(State(readiness): State<Arc<Readiness>>) -> impl IntoResponse {
    answer(readiness.alive())
}

async fn readyz(State(readiness): State<Arc<Readiness>>) -> impl IntoResponse {
    answer(readiness.check().await)
}

fn answer(state: Result<(), String>) -> (StatusCode, String) {
    match state {
        Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, reason + "\n"),
    }
}

async fn metrics_page() -> impl IntoResponse {
    ([(CONTENT_TYPE, PROMETHEUS_TEXT)], metrics::page())
}
