//! What an auth node counts.

use std::time::Instant;

use auth_core::node::Counts;
use tonic::Code;

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

    /// What it has taken so far.
    pub(crate) fn milliseconds(&self) -> f64 {
        (self.begun.elapsed().as_secs_f64() * 1e6).round() / 1e3
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

/// A certificate of this node, of a kind (`peer`, `tls`, `web`), is good until then, in Unix seconds.
pub(crate) fn certificate_expires(kind: &'static str, unix_seconds: u64) {
    metrics::gauge!("mezite_auth_certificate_expiry_timestamp_seconds", "kind" => kind)
        .set(unix_seconds as f64);
}

/// The certificate of an authority of the cluster, of a kind (`peer`, `tls`, `spiffe`), is good until then, in Unix seconds.
pub(crate) fn ca_expires(kind: &'static str, unix_seconds: u64) {
    metrics::gauge!("mezite_auth_ca_expiry_timestamp_seconds", "kind" => kind).set(unix_seconds as f64);
}

/// A refusal is not in the audit log: there are too many, or its record could not be written.
pub(crate) fn refusal_unrecorded() {
    metrics::counter!("mezite_auth_refusals_unrecorded_total").increment(1);
}

/// Whether an automatic rotation of an authority's key is due, and something holds it up.
pub(crate) fn rotation_held(kind: &'static str, held: bool) {
    metrics::gauge!("mezite_auth_ca_rotation_held", "kind" => kind).set(f64::from(u8::from(held)));
}

/// So many that are alive have not taken up the phase of the rotation of an authority's key.
pub(crate) fn rotation_laggards(kind: &'static str, count: u32) {
    metrics::gauge!("mezite_auth_ca_rotation_laggards", "kind" => kind).set(f64::from(count));
}

/// The agents that are registered, by whether they report; `None`: another node counts them.
pub(crate) fn agents(counts: Option<Counts>) {
    let tell = |state: &'static str, count: Option<u32>| {
        metrics::gauge!("mezite_auth_agents", "state" => state).set(count.map_or(f64::NAN, f64::from));
    };
    tell("online", counts.map(|counts| counts.online));
    tell("offline", counts.map(|counts| counts.total.saturating_sub(counts.online)));
}

/// Trusted clusters, not disabled, that could not be asked for their authorities the last time.
pub(crate) fn trusted_clusters_unrefreshed(count: usize) {
    metrics::gauge!("mezite_auth_trusted_clusters_unrefreshed")
        .set(f64::from(u32::try_from(count).unwrap_or(u32::MAX)));
}

/// So many heartbeats were written in one transaction. The metric's count is that of transactions, its sum that of heartbeats.
pub(crate) fn heartbeats(count: usize) {
    metrics::histogram!("mezite_auth_heartbeat_batch")
        .record(f64::from(u32::try_from(count).unwrap_or(u32::MAX)));
}

/// Recordings that are being downloaded.
pub(crate) fn downloads(count: usize) {
    metrics::gauge!("mezite_auth_downloads").set(f64::from(u32::try_from(count).unwrap_or(u32::MAX)));
}

/// Recordings that are being relayed to ingests.
pub(crate) fn relays(count: usize) {
    metrics::gauge!("mezite_auth_relays").set(f64::from(u32::try_from(count).unwrap_or(u32::MAX)));
}

/// Agents that are told what is new.
pub(crate) fn news_listeners(count: usize) {
    metrics::gauge!("mezite_auth_news_listeners").set(f64::from(u32::try_from(count).unwrap_or(u32::MAX)));
}

/// Ingests that follow who has access.
pub(crate) fn access_listeners(count: usize) {
    metrics::gauge!("mezite_auth_access_listeners").set(f64::from(u32::try_from(count).unwrap_or(u32::MAX)));
}
