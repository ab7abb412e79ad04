//! Looks whether a stopped node's data directory is sound, without changing anything in it.

mod log;
mod state;

use std::{fmt, path::Path};

use mezite_proto::peer;

use crate::{
    db::{self, Db, meta_key},
    error::StoreError,
    owner::Owner,
    raft::{log_store::read_meta, snapshot_file},
    state::{Applied, StateSnapshot, state_hash},
};

/// So many problems are listed; damage that touches every row would fill the memory.
const MAX_PROBLEMS: usize = 100;

/// What was found in a data directory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// What is wrong, a line each; the first hundred.
    pub problems: Vec<String>,
    /// Further problems that are not listed.
    pub more_problems: u64,
    /// Cluster that the directory belongs to; empty: to none.
    pub cluster_id: String,
    /// Node that the directory belongs to; 0: to none.
    pub node_id: u64,
    /// Term of the node's vote.
    pub term: u64,
    /// Whom it voted for in that term.
    pub voted_for: u64,
    /// Log entries up to here are gone: the snapshot has them.
    pub purged_index: Option<u64>,
    /// Log entries after that.
    pub log_entries: u64,
    /// Last log entry.
    pub last_log_index: Option<u64>,
    /// Last index known to be committed.
    pub committed_index: Option<u64>,
    /// Last index in the state.
    pub applied_index: Option<u64>,
    /// Revision of the state.
    pub revision: u64,
    /// Rows.
    pub rows: u64,
    /// Rows with an end.
    pub expiring_rows: u64,
    /// Append-only logs.
    pub logs: u64,
    /// Records in them.
    pub log_records: u64,
    /// Ids of transactions that are remembered.
    pub applied_ids: u64,
    /// Snapshot files.
    pub snapshots: u64,
    /// SHA-256 over the whole state.
    pub state_hash: [u8; 32],
}

impl CheckReport {
    /// Whether nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.problems.is_empty()
    }

    fn problem(&mut self, line: impl fmt::Display) {
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(line.to_string());
        } else {
            self.more_problems += 1;
        }
    }

    /// Notes a failure as a problem.
    fn note<T>(&mut self, result: Result<T, StoreError>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.problem(error);
                None
            }
        }
    }
}

impl fmt::Display for CheckReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let index = |index: Option<u64>| index.map_or_else(|| "none".into(), |index| index.to_string());
        writeln!(f, "owner      node {} of cluster {}", self.node_id, self.cluster_id)?;
        writeln!(f, "vote       term {} for node {}", self.term, self.voted_for)?;
        writeln!(
            f,
            "log        {} entries after {}, last {}, committed {}",
            self.log_entries,
            index(self.purged_index),
            index(self.last_log_index),
            index(self.committed_index)
        )?;
        writeln!(f, "state      applied {}, revision {}", index(self.applied_index), self.revision)?;
        writeln!(f, "rows       {}, {} with an end", self.rows, self.expiring_rows)?;
        writeln!(f, "logs       {} with {} records", self.logs, self.log_records)?;
        writeln!(f, "ids        {}", self.applied_ids)?;
        writeln!(f, "snapshots  {}", self.snapshots)?;
        write!(f, "state hash ")?;
        self.state_hash.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        writeln!(f)?;
        for problem in &self.problems {
            writeln!(f, "problem    {problem}")?;
        }
        match self.more_problems {
            0 => Ok(()),
            more => writeln!(f, "problem    and {more} more"),
        }
    }
}

/// Checks the data directory of a stopped node: format, owner and vote; that the log is whole and agrees with what
/// was purged, committed and applied; that every row and record decodes, the expiry index and the rows say the same,
/// and the hash chains of the logs hold up to their heads; and that snapshot files are sound and not ahead of the
/// state.
///
/// # Errors
/// When the directory cannot be looked at: it is not there, or a process uses it. What is wrong inside is in the
/// report.
pub fn check(data_dir: &Path) -> Result<CheckReport, StoreError> {
    let mut report = CheckReport::default();
    let path = data_dir.join("db");
    if !path.is_dir() {
        return Err(StoreError::DataDirectory(format!("there is no database in {}", path.display())));
    }
    let lock = db::lock(&path)?;
    let Some(db) = report.note(Db::open_read_only(&path, lock)) else { return Ok(report) };
    check_owner(&db, &mut report);
    let applied = check_state(&db, &mut report);
    log::check(&db, &applied, &mut report);
    check_snapshots(&data_dir.join("snapshots"), &applied, &mut report);
    Ok(report)
}

fn check_owner(db: &Db, report: &mut CheckReport) {
    match report.note(Owner::read(db)) {
        Some(Some(owner)) => (report.cluster_id, report.node_id) = (owner.cluster_id, owner.node_id),
        Some(None) => report.problem("the directory belongs to no node"),
        None => {}
    }
    if let Some(Some(vote)) = report.note(read_meta::<peer::Ballot>(db, meta_key::VOTE)) {
        (report.term, report.voted_for) = (vote.term, vote.node_id);
    }
}

fn check_state(db: &Db, report: &mut CheckReport) -> Applied {
    let Some(state) = report.note(StateSnapshot::take(db)) else { return Applied::default() };
    let applied = state.applied().clone();
    report.applied_index = applied.last_log_id.map(|id| id.index);
    report.revision = applied.revision;
    if applied.membership_log_id.map(|id| id.index) > report.applied_index {
        report.problem("the membership is newer than the state that it belongs to");
    }
    state::check(&state, report);
    report.state_hash = report.note(state_hash(&state)).unwrap_or_default();
    applied
}

fn check_snapshots(folder: &Path, applied: &Applied, report: &mut CheckReport) {
    if !folder.exists() {
        return;
    }
    for file in report.note(snapshot_file::complete(folder)).unwrap_or_default() {
        report.snapshots += 1;
        let Some(shown) = report.note(file.verify()) else { continue };
        let name = file.path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
        if name != snapshot_file::snapshot_id(&shown) {
            report.problem(format!("snapshot {name} is of another state than its name says"));
        }
        if shown.last_log_id.map(|id| id.index) > applied.last_log_id.map(|id| id.index) {
            report.problem(format!("snapshot {name} is ahead of the state"));
        }
    }
}

#[cfg(test)]
mod tests;
