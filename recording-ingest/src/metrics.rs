//! What an ingest counts.

use std::time::Duration;

use metrics::{counter, gauge, histogram};

pub(crate) fn received(bytes: usize) {
    counter!("mezite_ingest_received_bytes_total").increment(bytes as u64);
}

pub(crate) fn segment_written(bytes: usize, took: Duration) {
    counter!("mezite_ingest_segments_total").increment(1);
    counter!("mezite_ingest_segment_bytes_total").increment(bytes as u64);
    histogram!("mezite_ingest_segment_write_seconds").record(took.as_secs_f64());
}

pub(crate) fn recording_begun() {
    counter!("mezite_ingest_recordings_begun_total").increment(1);
}

pub(crate) fn recording_sealed() {
    counter!("mezite_ingest_recordings_sealed_total").increment(1);
}

pub(crate) fn refused(method: &'static str, reason: &'static str) {
    counter!("mezite_ingest_refused_total", "method" => method, "reason" => reason).increment(1);
}

pub(crate) fn open_streams(open: usize) {
    gauge!("mezite_ingest_open_streams").set(open as f64);
}

pub(crate) fn heartbeat(success: bool) {
    let result = if success { "success" } else { "failure" };
    counter!("mezite_ingest_heartbeats_total", "result" => result).increment(1);
}

/// `told`: whether there was a complete listing since the start.
pub(crate) fn roster(agents: usize, told: bool) {
    gauge!("mezite_ingest_agents_known").set(agents as f64);
    gauge!("mezite_ingest_agents_listed").set(if told { 1.0 } else { 0.0 });
}

/// Its age is how long this ingest may not have heard of a removal.
pub(crate) fn roster_confirmed(unix_seconds: u64) {
    gauge!("mezite_ingest_agents_confirmed_timestamp_seconds").set(unix_seconds as f64);
}

pub(crate) fn certificate_expires(unix_seconds: u64) {
    gauge!("mezite_ingest_certificate_expiry_timestamp_seconds").set(unix_seconds as f64);
}
