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

use crate::{metrics, supervisor};

/// Type of the metrics page.
const PROMETHEUS_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// How a program is, asked anew each time.
pub trait Health: Send + Sync + 'static {
    /// Whether the process is of use.
    ///
    /// # Errors
    /// Why a restart would help.
    fn alive(&self) -> Result<(), String>;

    /// Whether it should be sent calls.
    ///
    /// # Errors
    /// Why not.
    fn ready(&self) -> impl Future<Output = Result<(), String>> + Send;
}

/// Serves until `stop`; for as long, it keeps what is counted tidy, and tells the supervisor that the program lives.
///
/// # Errors
/// When the port breaks down.
pub async fn serve<H: Health>(
    health: Arc<H>,
    listener: TcpListener,
    stop: CancellationToken,
) -> io::Result<()> {
    let pages = Router::new()
        .route("/healthz", get(healthz::<H>))
        .route("/readyz", get(readyz::<H>))
        .route("/metrics", get(metrics_page))
        .with_state(Arc::clone(&health));
    // Cut, not drained: nobody's work hangs on it.
    tokio::select! {
        served = axum::serve(listener, pages).into_future() => served,
        never = metrics::keep_up() => match never {},
        never = supervisor::keep_alive(&*health) => match never {},
        () = stop.cancelled() => Ok(()),
    }
}

async fn healthz<H: Health>(State(health): State<Arc<H>>) -> impl IntoResponse {
    answer(health.alive())
}

async fn readyz<H: Health>(State(health): State<Arc<H>>) -> impl IntoResponse {
    answer(health.ready().await)
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
    };

    use super::*;
    use crate::program::listen;

    #[derive(Default)]
    struct Patient {
        well: AtomicBool,
    }

    impl Health for Patient {
        fn alive(&self) -> Result<(), String> {
            Ok(())
        }

        async fn ready(&self) -> Result<(), String> {
            if self.well.load(Ordering::Relaxed) { Ok(()) } else { Err("it coughs".to_owned()) }
        }
    }

    #[tokio::test]
    async fn a_page_says_how_the_program_is_now() {
        let (listener, address) = listen(([127, 0, 0, 1], 0).into()).await.unwrap();
        let (patient, stop) = (Arc::new(Patient::default()), CancellationToken::new());
        let serving = tokio::spawn(serve(Arc::clone(&patient), listener, stop.clone()));
        let get = async |path: &str| {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        };
        let starts = |answer: &str, status: &str| answer.starts_with(&format!("HTTP/1.1 {status} "));

        assert!(starts(&get("/healthz").await, "200"));
        let unready = get("/readyz").await;
        assert!(starts(&unready, "503") && unready.ends_with("\r\n\r\nit coughs\n"), "{unready}");
        patient.well.store(true, Ordering::Relaxed);
        let ready = get("/readyz").await;
        assert!(starts(&ready, "200") && ready.ends_with("\r\n\r\nok\n"), "{ready}");
        let metrics = get("/metrics").await;
        assert!(starts(&metrics, "200") && metrics.contains(PROMETHEUS_TEXT), "{metrics}");
        assert!(starts(&get("/colour").await, "404"));

        stop.cancel();
        serving.await.unwrap().unwrap();
        assert!(listen(([192, 0, 2, 1], 0).into()).await.unwrap_err().to_string().contains("192.0.2.1"));
    }
}
