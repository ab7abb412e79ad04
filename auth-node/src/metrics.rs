//! Measurements of calls, under Prometheus' naming rules. [`crate::diagnostics`] shows them.

use std::{sync::OnceLock, time::Instant};

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tonic::Code;

static PAGE: OnceLock<Option<PrometheusHandle>> = OnceLock::new();

/// Starts counting. Further calls change nothing.
pub(crate) fn install() {
    PAGE.get_or_init(|| {
        let buckets = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0];
        let builder = PrometheusBuilder::new().set_buckets(&buckets).ok()?;
        builder.install_recorder().ok()
    });
}

/// The page in Prometheus's text format; empty before [`install`].
pub(crate) fn page() -> String {
    PAGE.get().and_then(Option::as_ref).map(PrometheusHandle::render).unwrap_or_default()
}

/// A call that is being carried out. One that is dropped before its end was cancelled by its client.
pub(crate) struct Measured {
    method: &'static str,
    begun: Instant,
    code: Code,
}

impl Measured {
    /// A call begins.
    pub(crate) fn begin(method: &'static str) -> Self {
        Self { method, begun: Instant::now(), code: Code::Cancelled }
    }

    /// It has ended.
    pub(crate) fn end(mut self, code: Code) {
        self.code = code;
    }
}

impl Drop for Measured {
    fn drop(&mut self) {
        let code = format!("{:?}", self.code);
        metrics::counter!("grpc_server_handled_total", "method" => self.method, "code" => code).increment(1);
        metrics::histogram!("grpc_server_handling_seconds", "method" => self.method)
            .record(self.begun.elapsed().as_secs_f64());
    }
}

/// A refusal is not written into the audit log, since there are too many.
pub(crate) fn refusal_unrecorded() {
    metrics::counter!("mezite_auth_refusals_unrecorded_total").increment(1);
}

/// Recordings that are being downloaded.
pub(crate) fn downloads(count: usize) {
    metrics::gauge!("mezite_auth_downloads").set(f64::from(u32::try_from(count).unwrap_or(u32::MAX)));
}

/// Recordings that are being relayed to ingests.
pub(crate) fn relays(count: usize) {
    metrics::gauge!("mezite_auth_relays").set(f64::from(u32::try_from(count).unwrap_or(u32::MAX)));
}

/// Ingests that follow who has access.
pub(crate) fn access_listeners(count: usize) {
    metrics::gauge!("mezite_auth_access_listeners").set(f64::from(u32::try_from(count).unwrap_or(u32::MAX)));
}

/// Drains what histograms have gathered, which would otherwise grow until the page is asked for.
pub(crate) fn upkeep() {
    if let Some(page) = PAGE.get().and_then(Option::as_ref) {
        page.run_upkeep();
    }
}
