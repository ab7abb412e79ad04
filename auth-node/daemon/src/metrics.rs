//! What the process counts, under Prometheus' naming rules. [`crate::diagnostics`] shows it.
//!
//! What there is to count is each program's own: it counts with the crate `metrics`.

use std::{convert::Infallible, sync::OnceLock, time::Duration};

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use metrics_process::Collector;

/// Upper bounds of every histogram's buckets, in seconds.
const BUCKETS: [f64; 13] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0];
/// How often measurements are tidied up.
const UPKEEP: Duration = Duration::from_secs(5);

static PAGE: OnceLock<Option<PrometheusHandle>> = OnceLock::new();

/// Starts counting. Further calls change nothing.
pub fn install() {
    PAGE.get_or_init(|| PrometheusBuilder::new().set_buckets(&BUCKETS).ok()?.install_recorder().ok());
}

/// The page in Prometheus's text format; empty before [`install`]. What it says of the process is of this moment.
pub(crate) fn page() -> String {
    Collector::default().collect();
    PAGE.get().and_then(Option::as_ref).map(PrometheusHandle::render).unwrap_or_default()
}

/// Drains what histograms have gathered, which would otherwise grow until the page is asked for.
pub(crate) async fn keep_up() -> Infallible {
    let mut ticks = tokio::time::interval(UPKEEP);
    loop {
        ticks.tick().await;
        if let Some(page) = PAGE.get().and_then(Option::as_ref) {
            page.run_upkeep();
        }
    }
}
