//! Measurements, under Prometheus' naming rules. The embedding program installs the recorder.

use std::time::Duration;

/// Time of one synced write of the log.
pub(crate) fn fsync(elapsed: Duration) {
    metrics::histogram!("raft_log_fsync_seconds").record(elapsed);
}

/// Entries were applied.
pub(crate) fn applied(elapsed: Duration, entries: usize, remembered_ids: usize) {
    metrics::histogram!("raft_apply_seconds").record(elapsed);
    metrics::counter!("raft_applied_entries_total").increment(entries as u64);
    metrics::gauge!("raft_idempotency_ids").set(remembered_ids as f64);
}

/// A snapshot was taken.
pub(crate) fn snapshot_built(elapsed: Duration) {
    metrics::histogram!("raft_snapshot_seconds").record(elapsed);
}

/// Watchers there are.
pub(crate) fn watchers(count: usize) {
    metrics::gauge!("raft_watchers").set(count as f64);
}

/// A batch was proposed.
pub(crate) fn proposed(elapsed: Duration, transactions: usize) {
    metrics::histogram!("raft_commit_seconds").record(elapsed);
    metrics::histogram!("raft_batch_transactions").record(transactions as f64);
}

/// Proposals that were not applied.
pub(crate) fn proposal_failed(reason: &'static str) {
    metrics::counter!("raft_proposals_failed_total", "reason" => reason).increment(1);
}

/// What the Raft core says of itself.
pub(crate) fn core(leader: bool, term: u64, applied: u64, last_log: u64) {
    metrics::gauge!("raft_is_leader").set(if leader { 1.0 } else { 0.0 });
    metrics::gauge!("raft_term").set(term as f64);
    metrics::gauge!("raft_applied_index").set(applied as f64);
    metrics::gauge!("raft_last_log_index").set(last_log as f64);
}
