//! `top`: the cluster as it is now, kept up to date on a screen. It shows what the API tells, and computes no more than how
//! fast the cluster's revision rises.

use std::{
    io,
    time::{Duration, Instant},
};

use anyhow::Result;
use mezite_client::{Client, Retry};
use mezite_proto::v1;
use prost_types::Timestamp;
use serde::Serialize;

use crate::{
    cli::Format,
    cmd::{call, nodes, status},
    context::{Context, policy},
    exit::is_unavailable,
    live,
    look::is_capable,
    output::{self, Report},
};

/// How often it is shown anew.
const EVERY: Duration = Duration::from_secs(2);
/// How often it is looked which hosts are new: they are listed one after the other, however many there are.
const EVERY_LIST: Duration = Duration::from_secs(30);
/// How many of the newest hosts are told.
const NEWEST: usize = 10;
/// How long a look at the cluster may take, and then one at its addresses: a screen that is late misleads.
const PATIENCE: Duration = Duration::from_secs(4);
/// Lines for what is wrong, and around it.
const TROUBLE: usize = 5;
/// Lines that are not rows of a table.
const FRAME: usize = 10;

/// What is said of it in its help.
pub(crate) const HELP: &str = "\
It is for who may see the state of the cluster, as `mezctl cluster status`. LAG is how many log entries a member lacks, STREAMS
how many recordings an ingest takes in just now. The newest hosts are looked for every 30 seconds. `q` or Ctrl-C ends it.

While the cluster does not answer within a few seconds, the state of each address is shown, and what was seen last below it,
as OLD. Where standard output is no terminal, or with --format json or yaml, it is printed once.";

#[derive(Debug, Default, Serialize)]
struct View {
    cluster_name: String,
    /// Node that answered.
    node_id: u64,
    /// 0: none.
    leader_id: u64,
    term: u64,
    revision: u64,
    /// Transactions a second since the last look; absent at the first.
    revisions_per_second: Option<f64>,
    /// Bytes, on the node that answered.
    database_size: u64,
    database_full: bool,
    members: Vec<Member>,
    nodes_online: u32,
    nodes_total: u32,
    /// The newest first.
    newest_nodes: Vec<Agent>,
    ingests: Vec<Agent>,
}

#[derive(Debug, Serialize)]
struct Member {
    node_id: u64,
    role: &'static str,
    health: &'static str,
    lag: Option<u64>,
    database_size: u64,
    database_full: bool,
    api_address: String,
}

/// A host or an ingest.
#[derive(Debug, Clone, Serialize)]
struct Agent {
    hostname: String,
    online: bool,
    /// Of an ingest: recordings in hand.
    load: u32,
    registered_at: Option<String>,
    address: String,
}

impl From<v1::Node> for Agent {
    fn from(node: v1::Node) -> Self {
        Self {
            registered_at: output::time(node.registered_at.as_ref()),
            hostname: node.hostname,
            online: node.online,
            load: node.load,
            address: node.address,
        }
    }
}

impl From<v1::Member> for Member {
    fn from(member: v1::Member) -> Self {
        let view = super::cluster::MemberView::from(member.clone());
        Self {
            role: view.role(),
            health: view.health(),
            node_id: member.node_id,
            lag: member.lag,
            database_size: member.database_size,
            database_full: member.database_full,
            api_address: member.api_address,
        }
    }
}

impl From<v1::GetClusterStatusResponse> for View {
    fn from(status: v1::GetClusterStatusResponse) -> Self {
        Self {
            cluster_name: status.cluster_name,
            node_id: status.node_id,
            leader_id: status.leader_id,
            term: status.term,
            revision: status.revision,
            revisions_per_second: None,
            database_size: status.database_size,
            database_full: status.database_full,
            members: status.members.into_iter().map(Member::from).collect(),
            nodes_online: status.nodes_online,
            nodes_total: status.nodes_total,
            newest_nodes: Vec::new(),
            ingests: status.ingests.into_iter().map(Agent::from).collect(),
        }
    }
}

impl Report for View {
    fn text(&self) -> String {
        self.drawn(usize::MAX)
    }
}

impl View {
    /// As text of so many lines at most, as far as members and their frame leave room. Members are all there.
    fn drawn(&self, lines: usize) -> String {
        let room = lines.saturating_sub(FRAME + self.members.len());
        let ingests = room.div_ceil(2).min(self.ingests.len());
        let newest = (room - ingests).min(self.newest_nodes.len());
        let leader = match self.leader_id {
            0 => "none".to_owned(),
            id => id.to_string(),
        };
        let rate = self.revisions_per_second.map(|rate| format!(", {rate:.1}/s")).unwrap_or_default();
        let alarm =
            if self.database_full { ", full: it takes only what deletes, locks or revokes" } else { "" };
        let offline = self.nodes_total.saturating_sub(self.nodes_online);
        let streams: u64 = self.ingests.iter().map(|ingest| u64::from(ingest.load)).sum();
        format!(
            "cluster {}, leader {leader}, term {}, revision {}{rate}\n\
             database {}{alarm}\n\
             hosts {} online, {offline} offline; {streams} recordings coming in\n\n\
             {}\n{}\n{}",
            self.cluster_name,
            self.term,
            self.revision,
            output::size(self.database_size),
            self.nodes_online,
            self.members(),
            self.ingests(ingests),
            self.newest(newest),
        )
    }

    fn members(&self) -> String {
        let rows = self.members.iter().map(|member| {
            let full = if member.database_full { ", database full" } else { "" };
            [
                member.node_id.to_string(),
                member.role.to_owned(),
                member.lag.map_or_else(|| "unknown".into(), |lag| lag.to_string()),
                format!("{}{full}", member.health),
                output::size(member.database_size),
                member.api_address.clone(),
            ]
        });
        output::table(["NODE", "ROLE", "LAG", "HEALTH", "DATABASE", "API"], rows)
    }

    fn ingests(&self, count: usize) -> String {
        let rows = self.ingests.iter().take(count).map(|ingest| {
            [ingest.hostname.clone(), state(ingest), ingest.load.to_string(), ingest.address.clone()]
        });
        let table = output::table(["INGEST", "STATE", "STREAMS", "ADDRESS"], rows);
        match self.ingests.len() - count {
            0 => table,
            more => format!("{table}… {more} more\n"),
        }
    }

    fn newest(&self, count: usize) -> String {
        let rows = self.newest_nodes.iter().take(count).map(|node| {
            let since = node.registered_at.clone().unwrap_or_default();
            [node.hostname.clone(), state(node), since, node.address.clone()]
        });
        output::table(["NEWEST HOSTS", "STATE", "REGISTERED", "ADDRESS"], rows)
    }
}

fn state(agent: &Agent) -> String {
    if agent.online { "online" } else { "offline" }.to_owned()
}

/// What is remembered from one look to the next.
struct Watcher {
    client: Client,
    newest: Vec<Agent>,
    listed: Option<Instant>,
    last: Option<(Instant, u64)>,
}

impl Watcher {
    async fn look(&mut self) -> Result<View> {
        let request = v1::GetClusterStatusRequest {};
        let mut view = View::from(call!(self.client, Retry::Idempotent, get_cluster_status, request)?);
        let now = Instant::now();
        if let Some((then, revision)) = self.last.replace((now, view.revision)) {
            view.revisions_per_second = rate(view.revision.saturating_sub(revision), now - then);
        }
        if self.listed.is_none_or(|listed| now - listed >= EVERY_LIST) {
            self.newest = newest(&self.client).await?;
            self.listed = Some(now);
        }
        view.newest_nodes.clone_from(&self.newest);
        Ok(view)
    }
}

#[expect(clippy::cast_precision_loss, reason = "it is shown with one decimal")]
fn rate(count: u64, time: Duration) -> Option<f64> {
    (!time.is_zero()).then(|| count as f64 / time.as_secs_f64())
}

/// The hosts that registered last, the newest first.
async fn newest(client: &Client) -> Result<Vec<Agent>> {
    let mut nodes: Vec<v1::Node> = nodes::hosts(client).await?.map(|(node, _)| node).collect();
    let since =
        |node: &v1::Node| node.registered_at.map_or((0, 0), |Timestamp { seconds, nanos }| (seconds, nanos));
    nodes.sort_by_key(|node| std::cmp::Reverse(since(node)));
    Ok(nodes.into_iter().take(NEWEST).map(Agent::from).collect())
}

pub(crate) async fn top(context: &Context) -> Result<()> {
    let policy = policy(PATIENCE.min(context.policy.overall_timeout));
    let client = context.user().await?.with_policy(policy);
    let mut watcher = Watcher { client, newest: Vec::new(), listed: None, last: None };
    if context.format != Format::Text || !is_capable(&io::stdout()) {
        return context.print(&watcher.look().await?);
    }
    let mut seen: Option<(String, View)> = None;
    live::show(EVERY, async || {
        let rows = live::room().1;
        match watcher.look().await {
            Ok(view) => {
                let text = output::printable(&view.drawn(rows));
                seen = Some((live::now(), view));
                (text, Ok(()))
            }
            Err(error) if is_unavailable(&error) => {
                // Of the addresses is told also where nobody can tell more.
                let survey = status::survey(context, policy).await.unwrap_or_default();
                (output::printable(&with_survey(&survey, seen.as_ref(), rows)), Err(error))
            }
            Err(error) => (String::new(), Err(error)),
        }
    })
    .await
}

/// How the addresses are, and below it what was seen last, and when.
fn with_survey(survey: &str, seen: Option<&(String, View)>, rows: usize) -> String {
    let Some((at, view)) = seen else { return survey.to_owned() };
    let room = rows.saturating_sub(survey.lines().count() + TROUBLE);
    format!("{survey}\n{}", live::as_it_was(at, &view.drawn(room)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(number: usize) -> Agent {
        Agent {
            hostname: format!("web{number}.example.org"),
            online: number.is_multiple_of(2),
            load: 3,
            registered_at: Some("2026-11-24T09:20:00Z".into()),
            address: "10.0.0.1:3027".into(),
        }
    }

    fn view(members: u64, ingests: usize, nodes: usize) -> View {
        let member = |node_id| v1::Member { node_id, voter: true, lag: Some(0), ..Default::default() };
        View {
            cluster_name: "example".into(),
            leader_id: 1,
            members: (1..=members).map(|id| member(id).into()).collect(),
            ingests: (0..ingests).map(agent).collect(),
            newest_nodes: (0..nodes).map(agent).collect(),
            ..View::default()
        }
    }

    #[test]
    fn all_of_it_fits_a_terminal_of_80_by_24() {
        for (members, ingests, nodes) in [(1, 0, 0), (3, 2, 10), (5, 12, 10), (5, 0, 10), (7, 40, 10)] {
            let text = view(members, ingests, nodes).drawn(23);
            let count = text.lines().count();
            assert!(count <= 23, "{members} {ingests} {nodes}: {count}\n{text}");
            assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
            assert_eq!(text.matches("voter").count() as u64, members);
            assert!(text.contains("NEWEST HOSTS"), "{text}");
        }
        let text = view(3, 12, 10).drawn(23);
        assert!(text.contains("web0.example.org  online") && text.contains("more\n"), "{text}");
        assert!(text.contains("36 recordings"), "{text}");
    }

    #[test]
    fn what_is_wrong_is_told() {
        let full = View { database_full: true, nodes_total: 5, nodes_online: 3, ..view(1, 0, 0) };
        let text = View { leader_id: 0, ..full }.text();
        for part in
            ["leader none", "full: it takes only what deletes, locks or revokes", "3 online, 2 offline"]
        {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn what_was_seen_last_is_told_as_old_and_fits_beside_the_addresses() {
        let survey = "ADDRESS  NODE  STATE\na:1      1     no leader with a quorum\n";
        let seen = ("2026-11-24T09:20:00Z".to_owned(), view(3, 2, 10));
        let text = with_survey(survey, Some(&seen), 23);
        let (front, old) = text.split_once("OLD: as it was at 2026-11-24T09:20:00Z\n").unwrap();
        assert!(front.starts_with(survey) && old.contains("leader 1"), "{text}");
        assert!(text.lines().count() <= 21, "there is no room for the error: {text}");
        assert_eq!(with_survey(survey, None, 23), survey);
    }

    #[test]
    fn a_rate_needs_time() {
        assert_eq!(rate(10, Duration::from_secs(2)), Some(5.0));
        assert_eq!(rate(10, Duration::ZERO), None);
    }
}
