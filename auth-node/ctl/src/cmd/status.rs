//! `status`: the cluster, its members, and who the caller is.

use anyhow::Result;
use futures::future::join_all;
use mezite_client::{Client, ClientError, Retry, RetryPolicy};
use mezite_proto::v1;
use serde::Serialize;
use tonic::Code;

use crate::{
    cmd::{call, nodes::NodeView},
    context::{Cluster, Context},
    output::{self, Report, Row},
};

#[derive(Serialize)]
struct Status {
    cluster_name: String,
    /// Absent, as all that only a node can say, when no address serves.
    cluster_id: Option<String>,
    server_version: Option<String>,
    /// Pins of the TLS CAs, for the first contact of others.
    ca_pins: Vec<String>,
    addresses: Vec<AddressView>,
    ingest_addresses: Vec<String>,
    login: Option<LoginView>,
    /// Absent unless the caller is an admin.
    cluster: Option<ClusterView>,
}

#[derive(Serialize)]
struct AddressView {
    address: String,
    node_id: Option<u64>,
    /// Why it does not serve.
    error: Option<String>,
}

#[derive(Serialize)]
struct LoginView {
    user: String,
    expires_at: Option<String>,
    /// Whether the cluster honours the session; absent when it did not say.
    active: Option<bool>,
}

#[derive(Serialize)]
struct ClusterView {
    node_id: u64,
    leader_id: u64,
    term: u64,
    committed_index: u64,
    applied_index: u64,
    last_log_index: u64,
    snapshot_index: u64,
    database_size: u64,
    revision: u64,
    members: Vec<MemberView>,
    ingests: Vec<NodeView>,
    nodes_online: u32,
    nodes_total: u32,
}

#[derive(Serialize)]
struct MemberView {
    node_id: u64,
    role: &'static str,
    api_address: String,
    peer_address: String,
    matched_index: u64,
}

impl Row<5> for MemberView {
    const HEADER: [&'static str; 5] = ["NODE", "ROLE", "API", "PEER", "MATCHED"];

    fn row(&self) -> [String; 5] {
        [
            self.node_id.to_string(),
            self.role.into(),
            self.api_address.clone(),
            self.peer_address.clone(),
            // Only the leader knows.
            if self.matched_index == 0 { "-".into() } else { self.matched_index.to_string() },
        ]
    }
}

impl From<v1::GetClusterStatusResponse> for ClusterView {
    fn from(status: v1::GetClusterStatusResponse) -> Self {
        let leader_id = status.leader_id;
        let role = |member: &v1::Member| match member.voter {
            _ if member.node_id == leader_id => "leader",
            true => "voter",
            false => "learner",
        };
        let member = |member: v1::Member| MemberView {
            role: role(&member),
            node_id: member.node_id,
            api_address: member.api_address,
            peer_address: member.peer_address,
            matched_index: member.matched_index,
        };
        Self {
            node_id: status.node_id,
            leader_id,
            term: status.term,
            committed_index: status.committed_index,
            applied_index: status.applied_index,
            last_log_index: status.last_log_index,
            snapshot_index: status.snapshot_index,
            database_size: status.database_size,
            revision: status.revision,
            members: status.members.into_iter().map(member).collect(),
            ingests: status.ingests.into_iter().map(NodeView::from).collect(),
            nodes_online: status.nodes_online,
            nodes_total: status.nodes_total,
        }
    }
}

impl Report for Status {
    fn text(&self) -> String {
        let login = match &self.login {
            Some(LoginView { user, active: Some(false), .. }) => {
                format!("no more: the session of {user} has ended")
            }
            Some(LoginView { user, expires_at: Some(time), .. }) => format!("{user} until {time}"),
            Some(LoginView { user, expires_at: None, .. }) => user.clone(),
            None => "nobody".into(),
        };
        let mut text = output::fields(&[
            ("cluster", self.cluster_name.clone()),
            ("cluster id", self.cluster_id.clone().unwrap_or_default()),
            ("version", self.server_version.clone().unwrap_or_default()),
            ("ca pin", self.ca_pins.join(", ")),
            ("logged in", login),
            ("ingests", self.ingest_addresses.join(", ")),
        ]);
        let rows = self.addresses.iter().map(|one| {
            let node = one.node_id.map_or_else(|| "-".into(), |id| id.to_string());
            [one.address.clone(), node, one.error.clone().unwrap_or_else(|| "serves".into())]
        });
        text += &format!("\n{}", output::table(["ADDRESS", "NODE", "STATE"], rows));
        if let Some(cluster) = &self.cluster {
            text += &cluster.text();
        }
        text
    }
}

impl ClusterView {
    fn text(&self) -> String {
        let ingests = self.ingests.iter().map(Row::row);
        let leader = match self.leader_id {
            0 => "none".into(),
            id => id.to_string(),
        };
        let summary = output::fields(&[
            ("leader", leader),
            ("term", self.term.to_string()),
            ("committed", self.committed_index.to_string()),
            ("applied", format!("{} on node {}", self.applied_index, self.node_id)),
            ("revision", self.revision.to_string()),
            ("database", format!("{} bytes", self.database_size)),
            ("ssh nodes", format!("{} of {} online", self.nodes_online, self.nodes_total)),
        ]);
        format!(
            "\n{summary}\nMembers\n{}\nIngests\n{}",
            output::table(MemberView::HEADER, self.members.iter().map(Row::row)),
            output::table(NodeView::HEADER, ingests)
        )
    }
}

pub(crate) async fn status(context: &Context) -> Result<()> {
    let cluster = context.cluster(None).await?;
    let client = context.client(&cluster)?;
    let mut login = context.login_at(&cluster)?.map(|login| {
        (LoginView { user: login.user, expires_at: login.expires_at, active: None }, login.session)
    });
    let mut asked = ask_each(context, &cluster).await?;
    let pong = asked.iter().find_map(|(_, pong)| pong.as_ref().ok()).cloned();
    let mut members = Ok(None);
    if let (Some((view, session)), Some(_)) = (&mut login, &pong) {
        members = self::members(&client.with_session(Some(session.clone()))).await;
        view.active = match &members {
            Ok(_) => Some(true),
            Err(error) if error.code() == Some(Code::Unauthenticated) => Some(false),
            Err(_) => None,
        };
    }
    context.print(&Status {
        cluster_name: cluster.trust.cluster_name().to_owned(),
        cluster_id: pong.as_ref().map(|pong| pong.cluster_id.clone()),
        server_version: pong.as_ref().map(|pong| pong.server_version.clone()),
        ca_pins: cluster.trust.pins().iter().map(ToString::to_string).collect(),
        addresses: asked.iter().map(|(address, pong)| AddressView::new(address, pong)).collect(),
        ingest_addresses: pong.as_ref().map(|pong| pong.ingest_addresses.clone()).unwrap_or_default(),
        login: login.map(|(view, _)| view),
        cluster: members.as_mut().ok().and_then(Option::take),
    })?;
    // What could be seen is printed; that not all of it could is the outcome.
    match (pong, asked.pop(), members) {
        (None, Some((_, Err(error))), _) => Err(error.into()),
        (_, _, Err(error)) if error.code() != Some(Code::Unauthenticated) => Err(error.into()),
        _ => Ok(()),
    }
}

/// What an address answered to a ping.
type Asked = (String, Result<v1::PingResponse, ClientError>);

/// Asks each address by itself, once.
async fn ask_each(context: &Context, cluster: &Cluster) -> Result<Vec<Asked>> {
    let once = RetryPolicy { attempts_per_address: 1, ..context.policy };
    let ask = |address: String| async move {
        let one = Cluster { addresses: vec![address.clone()], trust: cluster.trust.clone() };
        let pong = context.client(&one)?.with_policy(once).ping().await;
        anyhow::Ok((address, pong))
    };
    join_all(cluster.addresses.iter().cloned().map(ask)).await.into_iter().collect()
}

impl AddressView {
    fn new(address: &str, pong: &Result<v1::PingResponse, ClientError>) -> Self {
        Self {
            address: address.to_owned(),
            node_id: pong.as_ref().ok().map(|pong| pong.node_id),
            error: pong.as_ref().err().map(reason),
        }
    }
}

fn reason(error: &ClientError) -> String {
    match error {
        ClientError::Unavailable { reason, .. } | ClientError::Untrusted { reason, .. } => reason.clone(),
        other => other.to_string(),
    }
}

/// The state of the auth cluster; `None` when only an admin may see it.
async fn members(client: &Client) -> Result<Option<ClusterView>, ClientError> {
    match call!(client, Retry::Idempotent, get_cluster_status, v1::GetClusterStatusRequest {}) {
        Ok(status) => Ok(Some(status.into())),
        Err(error) if error.code() == Some(Code::PermissionDenied) => Ok(None),
        Err(error) => Err(error),
    }
}
