//! How all members are, each by its own word, whichever of them is asked.

use std::{sync::Arc, time::Duration};

use futures::future::join_all;
use mezite_proto::peer;

use crate::{
    Store,
    status::{MemberStatus, NotReady},
    store::Inner,
};

/// A member that does not answer within this is not reachable.
const ANSWER: Duration = Duration::from_secs(2);

/// How a member is, by its own word.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Why it should not be sent work now; `None`: it should.
    pub problem: Option<String>,
    /// Leader that it knows.
    pub leader_id: Option<u64>,
    /// Its term.
    pub term: u64,
    /// Last index in its log.
    pub last_log_index: u64,
    /// Last index known to it as committed.
    pub committed_index: u64,
    /// Last index in its state.
    pub applied_index: u64,
    /// Last index in its snapshot.
    pub snapshot_index: u64,
    /// Bytes of its database.
    pub database_size: u64,
    /// Whether the database is over its bound.
    pub database_full: bool,
}

/// A member and how it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Surveyed {
    /// The member. Its `matched_index` is the leader's, whichever node was asked; `None` when no leader answered.
    pub member: MemberStatus,
    /// Log entries that it lacks, as the leader sees it; `None` when no leader answered.
    pub lag: Option<u64>,
    /// Its own word; else why there is none.
    pub report: Result<Report, String>,
}

impl Store {
    /// Asks every member that this node knows, itself included, how it is; at the same time, and two seconds at most.
    /// Members are ascending by id. A member of an earlier release that does not know the question counts as not
    /// answering.
    pub async fn survey(&self) -> Vec<Surveyed> {
        let members = self.inner.core.status().members;
        let asked = join_all(members.iter().map(|member| ask(&self.inner, member))).await;
        // After an election two may say that they lead; the later term is right.
        let leads = |(member, answer): &(&MemberStatus, &Result<peer::ReportResponse, String>)| {
            answer.as_ref().is_ok_and(|report| report.leader_id == member.node_id)
        };
        let leader = members.iter().zip(&asked).filter(leads).filter_map(|(member, answer)| {
            answer.as_ref().ok().map(|report| (report.term, member.node_id, report.clone()))
        });
        let leader = leader.max_by_key(|(term, ..)| *term);
        let surveyed = members.into_iter().zip(asked).map(|(mut member, answer)| {
            member.matched_index = leader.as_ref().and_then(|(_, leader_id, report)| {
                let of = |progress: &&peer::Progress| progress.node_id == member.node_id;
                let matched = report.progress.iter().find(of).map(|progress| progress.matched_index);
                if *leader_id == member.node_id { Some(report.last_log_index) } else { matched }
            });
            let last = leader.as_ref().map(|(.., report)| report.last_log_index);
            let lag = last.zip(member.matched_index).map(|(last, matched)| last.saturating_sub(matched));
            Surveyed { member, lag, report: answer.map(Report::from) }
        });
        surveyed.collect()
    }
}

async fn ask(inner: &Arc<Inner>, member: &MemberStatus) -> Result<peer::ReportResponse, String> {
    if member.node_id == inner.core.node_id() {
        return Ok(inner.report().await);
    }
    let client = inner.pool.get(member.node_id, &member.peer_address);
    let mut client = client.map_err(|error| error.to_string())?;
    let answer = tokio::time::timeout(ANSWER, client.report(peer::ReportRequest {})).await;
    match answer {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(status.message().to_owned()),
        Err(_) => Err("it does not answer".to_owned()),
    }
}

impl From<peer::ReportResponse> for Report {
    fn from(response: peer::ReportResponse) -> Self {
        Self {
            problem: Some(response.problem).filter(|problem| !problem.is_empty()),
            leader_id: Some(response.leader_id).filter(|leader_id| *leader_id != 0),
            term: response.term,
            last_log_index: response.last_log_index,
            committed_index: response.committed_index,
            applied_index: response.applied_index,
            snapshot_index: response.snapshot_index,
            database_size: response.database_size,
            database_full: response.database_full,
        }
    }
}

impl Inner {
    /// How this node is.
    pub(crate) async fn report(&self) -> peer::ReportResponse {
        let node_id = self.core.node_id();
        let health = match self.progress.is_removed(node_id) {
            true => Err(NotReady::Removed),
            false => self.core.health().await,
        };
        let status = self.status();
        let leads = status.leader_id == Some(node_id);
        let progress = status.members.iter().filter(|_| leads).filter_map(|member| {
            let matched_index = member.matched_index?;
            Some(peer::Progress { node_id: member.node_id, matched_index })
        });
        peer::ReportResponse {
            problem: health.as_ref().err().map(ToString::to_string).unwrap_or_default(),
            leader_id: status.leader_id.unwrap_or_default(),
            term: status.term,
            last_log_index: status.last_log_index,
            committed_index: health.unwrap_or(status.committed_index),
            applied_index: status.applied_index,
            snapshot_index: status.snapshot_index,
            database_size: status.database_size,
            database_full: status.database_full,
            progress: progress.collect(),
        }
    }
}
