//! Measurements, under Prometheus' naming rules. The embedding program installs the recorder.

use std::{collections::BTreeSet, sync::Once, time::Duration};

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

use crate::status::Status;

const GAUGES: [(&str, Unit, &str); 19] = [
    ("raft_is_leader", Unit::Count, "1 if this node leads, else 0"),
    ("raft_has_leader", Unit::Count, "1 if this node knows a leader, else 0"),
    ("raft_has_quorum", Unit::Count, "1 if this node hears a quorum by way of a leader, else 0"),
    ("raft_is_voter", Unit::Count, "1 if this node votes, else 0"),
    ("raft_voters", Unit::Count, "Members that vote"),
    ("raft_term", Unit::Count, "Raft term"),
    ("raft_committed_index", Unit::Count, "Last log index known to be committed"),
    ("raft_applied_index", Unit::Count, "Last log index applied"),
    ("raft_last_log_index", Unit::Count, "Last index in the log"),
    ("raft_peer_lag_entries", Unit::Count, "Log entries that a peer lacks, as the leader knows"),
    ("raft_proposals_pending", Unit::Count, "Transactions that wait to be proposed"),
    ("raft_snapshot_index", Unit::Count, "Last log index in the newest snapshot"),
    ("raft_snapshot_bytes", Unit::Bytes, "Size of the newest snapshot"),
    ("raft_database_bytes", Unit::Bytes, "Bytes in table files and memory tables"),
    (
        "raft_database_max_bytes",
        Unit::Bytes,
        "Bound above which only what deletes or takes access away is taken; 0 for none",
    ),
    ("raft_watchers", Unit::Count, "Watchers of the state"),
    ("raft_idempotency_ids", Unit::Count, "Ids of applied transactions that are remembered"),
    ("raft_members", Unit::Count, "Members of the cluster"),
    ("raft_clock_offset_seconds", Unit::Seconds, "How far the members' time is ahead of this node's clock"),
];

const COUNTERS: [(&str, &str); 6] = [
    ("raft_applied_entries_total", "Log entries applied"),
    ("raft_proposals_failed_total", "Proposals that were not applied, by reason"),
    ("raft_elections_total", "Elections in which this node stood"),
    ("raft_leader_changes_total", "Changes of the leader that this node saw"),
    ("raft_forwarded_total", "Transactions that went to the leader"),
    ("raft_watch_resyncs_total", "Watchers that were told to read the state anew"),
];

const HISTOGRAMS: [(&str, Unit, &str); 6] = [
    ("raft_log_fsync_seconds", Unit::Seconds, "Time of one synced write of the log"),
    ("raft_commit_seconds", Unit::Seconds, "Time from proposing a batch to its answer"),
    ("raft_apply_seconds", Unit::Seconds, "Time of applying a run of log entries"),
    ("raft_batch_transactions", Unit::Count, "Transactions in one proposed batch"),
    ("raft_snapshot_seconds", Unit::Seconds, "Time of taking a snapshot"),
    ("raft_read_index_seconds", Unit::Seconds, "Time of one round that confirms the leader"),
];

/// Describes every measurement to the recorder; once in a process.
pub(crate) fn describe() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for (name, unit, text) in GAUGES {
            describe_gauge!(name, unit, text);
        }
        for (name, text) in COUNTERS {
            describe_counter!(name, Unit::Count, text);
        }
        for (name, unit, text) in HISTOGRAMS {
            describe_histogram!(name, unit, text);
        }
    });
}

/// Time of one synced write of the log.
pub(crate) fn fsync(elapsed: Duration) {
    histogram!("raft_log_fsync_seconds").record(elapsed);
}

/// Entries were applied.
pub(crate) fn applied(elapsed: Duration, entries: usize, remembered_ids: usize) {
    histogram!("raft_apply_seconds").record(elapsed);
    counter!("raft_applied_entries_total").increment(entries as u64);
    gauge!("raft_idempotency_ids").set(remembered_ids as f64);
}

/// A snapshot was taken.
pub(crate) fn snapshot_built(elapsed: Duration) {
    histogram!("raft_snapshot_seconds").record(elapsed);
}

/// Watchers there are.
pub(crate) fn watchers(count: usize) {
    gauge!("raft_watchers").set(count as f64);
}

/// A watcher was told to read the state anew.
pub(crate) fn watch_resync() {
    counter!("raft_watch_resyncs_total").increment(1);
}

/// A batch was proposed.
pub(crate) fn proposed(elapsed: Duration, transactions: usize) {
    histogram!("raft_commit_seconds").record(elapsed);
    histogram!("raft_batch_transactions").record(transactions as f64);
}

/// Transactions go to the leader.
pub(crate) fn forwarded(transactions: usize) {
    counter!("raft_forwarded_total").increment(transactions as u64);
}

/// Proposals that were not applied.
pub(crate) fn proposal_failed(reason: &'static str) {
    counter!("raft_proposals_failed_total", "reason" => reason).increment(1);
}

/// One round that confirms the leader.
pub(crate) fn read_index(elapsed: Duration) {
    histogram!("raft_read_index_seconds").record(elapsed);
}

/// The members' time was asked for.
pub(crate) fn clock_offset(ms: i64) {
    gauge!("raft_clock_offset_seconds").set(ms as f64 / 1000.0);
}

/// Another leader is known.
pub(crate) fn leader_changed() {
    counter!("raft_leader_changes_total").increment(1);
}

/// This node stood for election.
pub(crate) fn election() {
    counter!("raft_elections_total").increment(1);
}

/// Sizes that are measured.
pub(crate) struct Sizes {
    /// Transactions that wait to be proposed.
    pub(crate) pending: usize,
    /// Of the newest snapshot.
    pub(crate) snapshot_bytes: u64,
    /// Bound of the database; 0: none.
    pub(crate) max_database_bytes: u64,
}

/// What a node says of itself. `peers` are those that were told of before, and of which the last number must not stay.
pub(crate) fn status(status: &Status, has_quorum: bool, sizes: Sizes, peers: &mut BTreeSet<u64>) {
    let Sizes { pending, snapshot_bytes, max_database_bytes } = sizes;
    let flag = |is: bool| f64::from(u8::from(is));
    let voters = || status.members.iter().filter(|member| member.voter);
    gauge!("raft_has_quorum").set(flag(has_quorum && !status.removed));
    gauge!("raft_is_voter").set(flag(voters().any(|member| member.node_id == status.node_id)));
    gauge!("raft_voters").set(voters().count() as f64);
    gauge!("raft_database_max_bytes").set(max_database_bytes as f64);
    let leads = status.leader_id == Some(status.node_id);
    gauge!("raft_is_leader").set(flag(leads));
    gauge!("raft_has_leader").set(flag(status.leader_id.is_some()));
    gauge!("raft_term").set(status.term as f64);
    gauge!("raft_committed_index").set(status.committed_index as f64);
    gauge!("raft_applied_index").set(status.applied_index as f64);
    gauge!("raft_last_log_index").set(status.last_log_index as f64);
    gauge!("raft_proposals_pending").set(pending as f64);
    gauge!("raft_snapshot_index").set(status.snapshot_index as f64);
    gauge!("raft_snapshot_bytes").set(snapshot_bytes as f64);
    gauge!("raft_database_bytes").set(status.database_size as f64);
    gauge!("raft_members").set(status.members.len() as f64);
    let others = || status.members.iter().filter(|member| member.node_id != status.node_id);
    let now: BTreeSet<u64> = others().map(|member| member.node_id).collect();
    for gone in peers.difference(&now) {
        gauge!("raft_peer_lag_entries", "peer" => gone.to_string()).set(f64::NAN);
    }
    *peers = now;
    for member in others() {
        // Only the leader knows; a gauge of a time as leader would stay and mislead.
        let lag = match member.matched_index {
            Some(matched) if leads => status.last_log_index.saturating_sub(matched) as f64,
            _ => f64::NAN,
        };
        gauge!("raft_peer_lag_entries", "peer" => member.node_id.to_string()).set(lag);
    }
}
