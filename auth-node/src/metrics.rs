//! What an auth node counts beside its calls.

use auth_core::node::Counts;

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
