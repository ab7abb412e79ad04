//! What an ingest counts.

use std::time::Duration;

use metrics::{counter, gauge, histogram};
use recording_format::RecordingState;

pub(crate) fn received(bytes: usize) {
    counter!("mezite_ingest_received_bytes_total").increment(bytes as u64);
}

pub(crate) fn segment_written(bytes: u64, took: Duration) {
    counter!("mezite_ingest_segments_total").increment(1);
    counter!("mezite_ingest_segment_bytes_total").increment(bytes);
    histogram!("mezite_ingest_segment_write_seconds").record(took.as_secs_f64());
}

pub(crate) fn recording_begun() {
    counter!("mezite_ingest_recordings_begun_total").increment(1);
}

/// `state` is one of the manifest's.
pub(crate) fn recording_sealed(state: RecordingState) {
    let state = match state {
        RecordingState::Complete => "complete",
        RecordingState::Interrupted => "interrupted",
        RecordingState::Truncated => "truncated",
    };
    counter!("mezite_ingest_recordings_sealed_total", "state" => state).increment(1);
}

/// From an agent's half-close, or what else ends a call, until the answer that says what is durable.
pub(crate) fn acknowledged(took: Duration) {
    histogram!("mezite_ingest_ack_seconds").record(took.as_secs_f64());
}

/// Recordings that are open, and when the one of them that is longest so was begun, or its agent last said that it goes on though
/// nothing comes; in Unix milliseconds.
pub(crate) fn open_recordings(open: usize, oldest_ms: Option<u64>) {
    gauge!("mezite_ingest_open_recordings").set(open as f64);
    // 0: none is open.
    gauge!("mezite_ingest_oldest_open_recording_timestamp_seconds").set(oldest_ms.unwrap_or(0) as f64 / 1e3);
}

/// Its age is how far lists may be behind the store.
pub(crate) fn index_refreshed(unix_ms: u64) {
    gauge!("mezite_ingest_index_refreshed_timestamp_seconds").set(unix_ms as f64 / 1e3);
}

/// An object that did not verify was put aside.
pub(crate) fn quarantined() {
    counter!("mezite_ingest_quarantined_objects_total").increment(1);
}

pub(crate) fn recording_deleted() {
    counter!("mezite_ingest_recordings_deleted_total").increment(1);
}

/// Sealed and deleted recordings of which the cluster is still to be told, and since when of the first, in Unix milliseconds.
pub(crate) fn untold(events: usize, oldest_ms: Option<u64>) {
    gauge!("mezite_ingest_audit_pending").set(events as f64);
    // 0: there is none.
    gauge!("mezite_ingest_audit_oldest_pending_timestamp_seconds").set(oldest_ms.unwrap_or(0) as f64 / 1e3);
}

/// Bytes that calls hold in memory of what `limits.memory_bytes` gives them.
pub(crate) fn memory(bytes: usize) {
    gauge!("mezite_ingest_memory_held_bytes").set(bytes as f64);
}

/// Bytes that are free under a `file://` store, and all there are.
pub(crate) fn disk(free: u64, size: u64) {
    gauge!("mezite_ingest_store_size_bytes").set(size as f64);
    gauge!("mezite_ingest_store_free_bytes").set(free as f64);
}

/// With less than this free, no recording is begun, or grows.
pub(crate) fn disk_marks(refuse_new: u64, refuse_appends: u64) {
    gauge!("mezite_ingest_store_mark_bytes", "mark" => "refuse_new").set(refuse_new as f64);
    gauge!("mezite_ingest_store_mark_bytes", "mark" => "refuse_appends").set(refuse_appends as f64);
}

/// `kind`: `full`, `failed` or `untrusted`.
pub(crate) fn store_error(kind: &'static str) {
    counter!("mezite_ingest_store_errors_total", "kind" => kind).increment(1);
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
