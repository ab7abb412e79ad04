//! `cluster`: the nodes of the auth cluster itself, and backups of its state.

use std::{io::Write as _, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, bail};
use clap::Subcommand;
use mezite_client::{Client, Retry, RetryPolicy};
use mezite_proto::v1;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tonic::Streaming;

use crate::{
    args::{human_duration, proto_duration},
    cmd::{call, list, nodes::NodeView, present},
    confirm,
    context::Context,
    files::{PRIVATE, Pending},
    output::{self, Done, Report, Row},
    progress::Progress,
};

/// A backup is written on the node before its first byte comes; that takes as long as the state is large.
const BACKUP_PATIENCE: Duration = Duration::from_secs(600);
/// The longest silence within a backup.
const SILENCE: Duration = Duration::from_secs(60);

/// Commands on the auth cluster.
#[derive(Debug, Subcommand)]
pub(crate) enum Cluster {
    /// List the nodes of the auth cluster: role, lag behind the leader, health
    Ls,
    /// Show the state of the auth cluster
    Status,
    /// Make a node that has joined as a learner a voter
    Add {
        /// Id of the node, as `mezctl cluster ls` shows it
        node: u64,
    },
    /// Remove a node for ever, or one that has joined and never ran: its id never returns
    ///
    /// Refused where the voters that remain could not reach a quorum now. Remove those that are gone first, or bring them
    /// back.
    ///
    /// The machine still holds the key-encryption key and the state, and with them the keys of all CAs: destroy its data
    /// directory. If it may have got into other hands, exchange the key of every CA: `mezctl auth rotate`.
    #[command(visible_alias = "delete")]
    Rm {
        /// Id of the node, as `mezctl cluster ls` shows it
        node: u64,
        /// Although the rest has no quorum now: nothing can be written any more until enough of the rest is back
        #[arg(long)]
        force: bool,
        /// Without a question: in a terminal it is asked first, and said what remains
        #[arg(long, short)]
        yes: bool,
    },
    /// Save a consistent backup of the cluster's state, while it serves
    ///
    /// It holds password hashes: keep it like one. CA keys in it are sealed under the key-encryption key (the file `kek` of
    /// each auth node), which is not in it: keep that elsewhere. `auth-node restore` needs both.
    Backup {
        /// File to write it to, mode 0600
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Create a single-use token with which another auth node joins
    #[command(
        after_help = "On the new machine, in the same hour: `auth-node join --help` says how it is used."
    )]
    Token {
        /// How long it is good for, a day at most
        #[arg(long, default_value = "1h", value_parser = human_duration, value_name = "DURATION")]
        ttl: Duration,
        /// File to write the token to, mode 0600, instead of printing it
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
}

/// The alarm of a database that is over its bound.
const FULL: &str = "the database is full: it takes only what deletes, locks or revokes";

/// A member of the auth cluster.
#[derive(Serialize)]
pub(crate) struct MemberView {
    node_id: u64,
    role: &'static str,
    health: &'static str,
    /// Log entries that it lacks; absent if no leader said so.
    lag: Option<u64>,
    api_address: String,
    peer_address: String,
    matched_index: u64,
    database_size: u64,
    database_full: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    problem: String,
}

impl MemberView {
    /// What it is to the others.
    pub(crate) fn role(&self) -> &'static str {
        self.role
    }

    /// How it is.
    pub(crate) fn health(&self) -> &'static str {
        self.health
    }
}

impl Row<6> for MemberView {
    const HEADER: [&'static str; 6] = ["NODE", "ROLE", "LAG", "HEALTH", "API", "PEER"];

    fn row(&self) -> [String; 6] {
        let full = if self.database_full { ", database full" } else { "" };
        let health = match self.problem.as_str() {
            "" => format!("{}{full}", self.health),
            problem => format!("{}{full}: {problem}", self.health),
        };
        [
            self.node_id.to_string(),
            self.role.into(),
            self.lag.map_or_else(|| "unknown".into(), |lag| lag.to_string()),
            health,
            self.api_address.clone(),
            self.peer_address.clone(),
        ]
    }
}

impl Report for MemberView {
    fn text(&self) -> String {
        output::table(Self::HEADER, [self.row()])
    }
}

impl From<v1::Member> for MemberView {
    fn from(member: v1::Member) -> Self {
        Self {
            role: match (member.leader, member.voter) {
                _ if member.health() == v1::MemberHealth::NeverRan => "joined",
                (true, _) => "leader",
                (false, true) => "voter",
                (false, false) => "learner",
            },
            health: match member.health() {
                v1::MemberHealth::Ready => "ready",
                v1::MemberHealth::NotReady => "not ready",
                v1::MemberHealth::Unreachable => "unreachable",
                v1::MemberHealth::NeverRan => "never ran",
                v1::MemberHealth::Unspecified => "unknown",
            },
            node_id: member.node_id,
            lag: member.lag,
            api_address: member.api_address,
            peer_address: member.peer_address,
            matched_index: member.matched_index,
            database_size: member.database_size,
            database_full: member.database_full,
            problem: member.problem,
        }
    }
}

/// The state of the auth cluster.
#[derive(Serialize)]
pub(crate) struct ClusterView {
    cluster_name: String,
    cluster_id: String,
    node_id: u64,
    leader_id: u64,
    term: u64,
    committed_index: u64,
    applied_index: u64,
    last_log_index: u64,
    snapshot_index: u64,
    database_size: u64,
    database_full: bool,
    revision: u64,
    members: Vec<MemberView>,
    ingests: Vec<NodeView>,
    nodes_online: u32,
    nodes_total: u32,
}

impl From<v1::GetClusterStatusResponse> for ClusterView {
    fn from(status: v1::GetClusterStatusResponse) -> Self {
        Self {
            cluster_name: status.cluster_name,
            cluster_id: status.cluster_id,
            node_id: status.node_id,
            leader_id: status.leader_id,
            term: status.term,
            committed_index: status.committed_index,
            applied_index: status.applied_index,
            last_log_index: status.last_log_index,
            snapshot_index: status.snapshot_index,
            database_size: status.database_size,
            database_full: status.database_full,
            revision: status.revision,
            members: status.members.into_iter().map(MemberView::from).collect(),
            ingests: status.ingests.into_iter().map(NodeView::from).collect(),
            nodes_online: status.nodes_online,
            nodes_total: status.nodes_total,
        }
    }
}

impl Report for ClusterView {
    fn text(&self) -> String {
        let named = [("cluster", self.cluster_name.clone()), ("cluster id", self.cluster_id.clone())];
        format!("{}\n{}", output::fields(&named), self.summary())
    }
}

impl ClusterView {
    /// All but what it is called.
    pub(crate) fn summary(&self) -> String {
        let leader = match self.leader_id {
            0 => "none".into(),
            id => id.to_string(),
        };
        let alarm = if self.database_full { FULL } else { "" };
        let fields = output::fields(&[
            ("leader", leader),
            ("term", self.term.to_string()),
            ("committed", self.committed_index.to_string()),
            ("applied", format!("{} on node {}", self.applied_index, self.node_id)),
            ("last log", self.last_log_index.to_string()),
            ("snapshot", self.snapshot_index.to_string()),
            ("revision", self.revision.to_string()),
            ("database", output::size(self.database_size)),
            ("alarm", alarm.into()),
            ("ssh nodes", format!("{} of {} online", self.nodes_online, self.nodes_total)),
        ]);
        format!(
            "{fields}\nMembers\n{}\nIngests\n{}",
            output::table(MemberView::HEADER, self.members.iter().map(Row::row)),
            output::table(NodeView::HEADER, self.ingests.iter().map(Row::row))
        )
    }
}

#[derive(Serialize)]
struct Saved {
    file: PathBuf,
    cluster_id: String,
    revision: u64,
    applied_index: u64,
    size: u64,
    sha256: String,
}

impl Report for Saved {
    fn text(&self) -> String {
        output::fields(&[
            ("backup", self.file.display().to_string()),
            ("cluster id", self.cluster_id.clone()),
            ("revision", self.revision.to_string()),
            ("size", output::size(self.size)),
            ("sha256", self.sha256.clone()),
            ("keep", "it holds password hashes; `auth-node restore` needs a node's kek file as well".into()),
        ])
    }
}

#[derive(Serialize)]
struct AuthJoinToken {
    /// As `mezctl tokens ls` shows it.
    #[serde(skip_serializing_if = "String::is_empty")]
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_file: Option<PathBuf>,
    ca_pin: String,
    peer_addresses: Vec<String>,
    expires_at: Option<String>,
}

impl Report for AuthJoinToken {
    fn text(&self) -> String {
        let file = self.token_file.as_ref().map(|file| file.display().to_string());
        let peers = self.peer_addresses.join(",");
        let command = format!(
            "auth-node join --config FILE --token-file {} --ca-pin {} --peer {peers}",
            file.as_deref().unwrap_or("FILE"),
            self.ca_pin
        );
        output::fields(&[
            ("name", self.name.clone()),
            ("token", self.token.clone().unwrap_or_default()),
            ("token file", file.unwrap_or_default()),
            ("ca pin", self.ca_pin.clone()),
            ("peers", peers),
            ("expires", self.expires_at.clone().unwrap_or_default()),
            ("use it with", command),
        ])
    }
}

pub(crate) async fn run(context: &Context, command: Cluster) -> Result<()> {
    match command {
        Cluster::Ls => ls(context).await,
        Cluster::Status => status(context).await,
        Cluster::Add { node } => add(context, node).await,
        Cluster::Rm { node, force, yes } => rm(context, node, force, yes).await,
        Cluster::Backup { out } => backup(context, out).await,
        Cluster::Token { ttl, out } => token(context, ttl, out).await,
    }
}

async fn ls(context: &Context) -> Result<()> {
    let members = members(&context.user().await?).await?;
    context.print_list(members.into_iter().map(MemberView::from).collect())
}

async fn members(client: &Client) -> Result<Vec<v1::Member>> {
    Ok(list!(client, list_members, members, |page_token| v1::ListMembersRequest {
        page_size: mezite_client::PAGE_SIZE,
        page_token
    })?)
}

async fn status(context: &Context) -> Result<()> {
    let client = context.user().await?;
    let request = v1::GetClusterStatusRequest {};
    let status = call!(client, Retry::Idempotent, get_cluster_status, request)?;
    context.print(&ClusterView::from(status))
}

async fn add(context: &Context, node_id: u64) -> Result<()> {
    let client = context.user().await?;
    let reply = call!(client, Retry::Idempotent, add_member, v1::AddMemberRequest { node_id })?;
    context.print(&MemberView::from(present(reply.member, "the member")?))
}

async fn rm(context: &Context, node_id: u64, force: bool, yes: bool) -> Result<()> {
    let client = context.user().await?;
    if !yes && confirm::can_ask() {
        let left = what_is_left(&members(&client).await?, node_id);
        if let Some(left) = left
            && !confirm::ask(&format!("{left}\nRemove node {node_id} for ever?"))?
        {
            bail!("node {node_id} is not removed");
        }
    }
    call!(client, Retry::Idempotent, remove_member, v1::RemoveMemberRequest { node_id, force })?;
    context.print(&Done::new(format!(
        "node {node_id} is removed; its process ends by itself. Destroy its data: the keys of the CAs are in it."
    )))
}

/// What goes with a node, and what is left; `None`: it is no member.
fn what_is_left(members: &[v1::Member], node_id: u64) -> Option<String> {
    let gone = MemberView::from(members.iter().find(|member| member.node_id == node_id)?.clone());
    let voters = members.iter().filter(|member| member.voter && member.node_id != node_id);
    let voters: Vec<_> = voters.map(|member| member.node_id.to_string()).collect();
    let (left, lost) = match voters.len() {
        0 => ("no voter".to_owned(), ""),
        count => (
            format!("{count} voter{} ({})", if count == 1 { "" } else { "s" }, voters.join(", ")),
            if count < 3 { ": when one of them fails, nothing can be written" } else { "" },
        ),
    };
    let MemberView { role, health, api_address, .. } = gone;
    Some(format!("node {node_id} ({role}, {health}, {api_address}) goes; what is left is {left}{lost}."))
}

async fn backup(context: &Context, out: PathBuf) -> Result<()> {
    let patience = context.policy.overall_timeout.max(BACKUP_PATIENCE);
    let policy = RetryPolicy { call_timeout: patience, overall_timeout: patience, ..context.policy };
    let client = context.user().await?.with_policy(policy);
    let mut file = Pending::create(&out)?;
    let mut pieces = call!(client, Retry::Idempotent, save_backup, v1::SaveBackupRequest {})?;
    let head = next(&mut pieces).await?.context("the cluster's backup is empty")?;
    let (mut hasher, mut size) = (Sha256::new(), 0);
    let progress = Progress::bytes("saving", head.length);
    while let Some(piece) = next(&mut pieces).await? {
        progress.advance(piece.data.len() as u64);
        hasher.update(&piece.data);
        size += piece.data.len() as u64;
        file.file().write_all(&piece.data).with_context(|| format!("cannot write {}", out.display()))?;
    }
    drop(progress);
    let digest = hasher.finalize();
    if size != head.length || digest[..] != head.sha256[..] {
        bail!("the backup did not arrive whole: {size} bytes of {}; nothing was kept", head.length);
    }
    file.write(PRIVATE, |_| Ok(()))?;
    context.print(&Saved {
        file: out,
        cluster_id: head.cluster_id,
        revision: head.revision,
        applied_index: head.applied_index,
        size,
        sha256: hex::encode(digest),
    })
}

async fn next(pieces: &mut Streaming<v1::SaveBackupResponse>) -> Result<Option<v1::SaveBackupResponse>> {
    let next = tokio::time::timeout(SILENCE, pieces.message()).await;
    let next = next.context("the backup broke off: no more bytes came")?;
    next.map_err(|status| anyhow::anyhow!("the backup broke off: {}", status.message()))
}

async fn token(context: &Context, ttl: Duration, out: Option<PathBuf>) -> Result<()> {
    let client = context.user().await?;
    let file = out.as_deref().map(Pending::create).transpose()?;
    let request = v1::CreateAuthJoinTokenRequest { ttl: Some(proto_duration(ttl)) };
    let check = Retry::once("run it again: a token that nobody has ends by itself");
    let reply = call!(client, check, create_auth_join_token, request)?;
    let mut report = AuthJoinToken {
        name: reply.name,
        token: Some(reply.token),
        token_file: None,
        ca_pin: reply.ca_pin,
        peer_addresses: reply.peer_addresses,
        expires_at: output::time(reply.expires_at.as_ref()),
    };
    if let Some(file) = file {
        file.write_secret(&report.token.take().unwrap_or_default())?;
        report.token_file.clone_from(&out);
    }
    context.print(&report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_knows_is_unknown_and_what_is_wrong_is_told() {
        let row = |member: v1::Member| MemberView::from(member).row();
        let unknown = row(v1::Member { node_id: 3, ..Default::default() });
        assert_eq!(unknown[..4], ["3", "learner", "unknown", "unknown"]);
        let health = v1::MemberHealth::NotReady.into();
        let lags =
            v1::Member { voter: true, lag: Some(9), health, problem: "it lags".into(), ..Default::default() };
        assert_eq!(row(lags)[1..4], ["voter", "9", "not ready: it lags"]);
        let leads = v1::Member { voter: true, leader: true, database_full: true, ..Default::default() };
        assert_eq!(row(leads)[1..4], ["leader", "unknown", "unknown, database full"]);
        let joined = v1::Member { health: v1::MemberHealth::NeverRan.into(), ..Default::default() };
        assert_eq!(row(joined)[1..4], ["joined", "unknown", "never ran"]);
    }
    #[test]
    fn who_removes_a_node_is_told_what_is_left() {
        let member = |node_id, voter| v1::Member { node_id, voter, ..Default::default() };
        let left = |voters: u64, gone| {
            let members: Vec<_> = (1..=voters).map(|id| member(id, true)).chain([member(9, false)]).collect();
            what_is_left(&members, gone)
        };
        assert_eq!(left(2, 7), None);
        let one = left(2, 1).unwrap();
        assert!(one.contains("1 voter (2): when one of them fails"), "{one}");
        assert!(left(3, 3).unwrap().contains("2 voters (1, 2): when one of them fails"));
        assert!(left(4, 1).unwrap().ends_with("3 voters (2, 3, 4)."));
        assert!(left(3, 9).unwrap().contains("3 voters (1, 2, 3)."));
        assert!(left(1, 1).unwrap().contains("no voter"));
    }
}
