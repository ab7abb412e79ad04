//! `nodes`: the SSH nodes that the caller may see, with the ingests for who sees all, their labels, and their removal.

use std::{collections::BTreeMap, ops::ControlFlow};

use anyhow::Result;
use clap::{Args, Subcommand};
use mezite_client::{Client, ClientError, Retry};
use mezite_proto::v1;
use serde::Serialize;
use tonic::Code;

use crate::{
    args::{key_value, label_map},
    cmd::{call, list, present, seek},
    context::Context,
    exit::{NotFound, Usage},
    output::{self, Done, Report, Row},
};

/// Commands on nodes.
#[derive(Debug, Subcommand)]
pub(crate) enum Nodes {
    /// List the SSH nodes that your roles let you see, and the ingests for who sees all
    Ls(Ls),
    /// Replace the labels that an admin gave a node
    Update(Update),
    /// Remove a node or an ingest that will not come back, registered or not: its certificates end, its names are free
    #[command(visible_alias = "delete")]
    Rm {
        /// Hostname of the node, where one alone has it, or agent id, as `mezctl nodes ls` shows them
        #[arg(value_name = "NODE")]
        node: String,
    },
}

/// Arguments of `nodes ls`.
#[derive(Debug, Args)]
pub(crate) struct Ls {
    /// Only nodes with all of these labels
    #[arg(long, value_delimiter = ',', value_parser = key_value, value_name = "KEY=VALUE,…")]
    labels: Vec<(String, String)>,
    /// Only nodes that are online
    #[arg(long)]
    online: bool,
    /// Instead, joins of nodes and ingests that were not finished, for admins: each holds its names until its
    /// certificates end, or until `mezctl nodes rm`
    #[arg(long, conflicts_with = "online")]
    unfinished: bool,
}

/// Arguments of `nodes update`.
#[derive(Debug, Args)]
pub(crate) struct Update {
    /// Hostname of the node, where one alone has it, or agent id, as `mezctl nodes ls` shows them
    #[arg(value_name = "NODE")]
    node: String,
    /// The labels, all of them
    #[arg(long, value_delimiter = ',', value_parser = key_value, value_name = "KEY=VALUE,…", required_unless_present = "no_labels")]
    labels: Vec<(String, String)>,
    /// Remove all labels
    #[arg(long, conflicts_with = "labels")]
    no_labels: bool,
    /// Only if it is still this revision [default: whichever it is]
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    revision: u64,
}

/// A node, as several commands show it.
#[derive(Serialize)]
pub(crate) struct NodeView {
    agent_id: String,
    kind: &'static str,
    hostname: String,
    address: String,
    online: bool,
    labels: BTreeMap<String, String>,
    admin_labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logins: Option<Vec<String>>,
    version: String,
    last_seen_at: Option<String>,
    registered_at: Option<String>,
    load: u32,
    revision: u64,
}

impl From<v1::Node> for NodeView {
    fn from(node: v1::Node) -> Self {
        let mut labels = node.agent_labels.clone();
        labels.extend(node.admin_labels.clone());
        Self {
            kind: match node.kind() {
                v1::NodeKind::Ssh => "ssh",
                v1::NodeKind::Ingest => "ingest",
                v1::NodeKind::Unspecified => "unknown",
            },
            last_seen_at: output::time(node.last_seen_at.as_ref()),
            registered_at: output::time(node.registered_at.as_ref()),
            agent_id: node.agent_id,
            hostname: node.hostname,
            address: node.address,
            online: node.online,
            labels,
            admin_labels: node.admin_labels,
            logins: None,
            version: node.version,
            load: node.load,
            revision: node.revision,
        }
    }
}

impl Report for NodeView {
    fn text(&self) -> String {
        output::fields(&[
            ("agent id", self.agent_id.clone()),
            ("kind", self.kind.into()),
            ("hostname", self.hostname.clone()),
            ("address", self.address.clone()),
            ("online", if self.online { "yes" } else { "no" }.into()),
            ("labels", output::pairs(&self.labels)),
            ("admin's", output::pairs(&self.admin_labels)),
            ("version", self.version.clone()),
            ("last seen", self.last_seen_at.clone().unwrap_or_default()),
            ("registered", self.registered_at.clone().unwrap_or_default()),
            ("revision", self.revision.to_string()),
        ])
    }
}

impl Row<7> for NodeView {
    const HEADER: [&'static str; 7] =
        ["HOSTNAME", "KIND", "ADDRESS", "ONLINE", "LOGINS", "LABELS", "AGENT ID"];

    fn row(&self) -> [String; 7] {
        [
            self.hostname.clone(),
            self.kind.into(),
            self.address.clone(),
            if self.online { "yes" } else { "no" }.into(),
            self.logins.clone().unwrap_or_default().join(","),
            output::pairs(&self.labels),
            self.agent_id.clone(),
        ]
    }
}

pub(crate) async fn run(context: &Context, command: Nodes) -> Result<()> {
    match command {
        Nodes::Ls(args) => ls(context, args).await,
        Nodes::Update(args) => update(context, args).await,
        Nodes::Rm { node } => rm(context, &node).await,
    }
}

fn page(page_token: String) -> v1::ListNodesRequest {
    v1::ListNodesRequest { page_size: mezite_client::PAGE_SIZE, page_token, ..Default::default() }
}

/// The nodes that the caller sees, of whichever kind.
pub(crate) async fn all(client: &Client) -> Result<Vec<v1::AccessibleNode>> {
    Ok(list!(client, list_nodes, nodes, |page_token| page(page_token))?)
}

/// The SSH nodes that the caller sees.
pub(crate) async fn hosts(client: &Client) -> Result<impl Iterator<Item = (v1::Node, Vec<String>)>> {
    let of_node = |accessible: v1::AccessibleNode| Some((accessible.node?, accessible.logins));
    Ok(all(client)
        .await?
        .into_iter()
        .filter_map(of_node)
        .filter(|(node, _)| node.kind() == v1::NodeKind::Ssh))
}

fn id_of(accessible: &v1::AccessibleNode) -> &str {
    accessible.node.as_ref().map_or("", |node| &node.agent_id)
}

/// A node that the caller sees, by its agent id, or by its hostname where no other has that.
pub(crate) async fn one(client: &Client, name: &str) -> Result<v1::AccessibleNode> {
    if !is_id(name) {
        return called(client, name).await;
    }
    let mut found = None;
    let look = |page| Ok::<_, ClientError>(seek(page, name, id_of).map_break(|hit| found = hit));
    list!(client, list_nodes, nodes, |page_token| page(page_token), look)?;
    found.ok_or_else(|| {
        NotFound(format!("you see no node with the agent id {name}: `mezctl nodes ls` lists them")).into()
    })
}

/// The one node that the caller sees with this hostname.
async fn called(client: &Client, hostname: &str) -> Result<v1::AccessibleNode> {
    let mut found = Vec::new();
    let look = |page: Vec<v1::AccessibleNode>| {
        let has_it =
            |one: &v1::AccessibleNode| one.node.as_ref().is_some_and(|node| node.hostname == hostname);
        found.extend(page.into_iter().filter(has_it));
        Ok::<_, ClientError>(ControlFlow::<()>::Continue(()))
    };
    list!(client, list_nodes, nodes, |page_token| page(page_token), look)?;
    match (found.pop(), found.as_slice()) {
        (Some(one), []) => Ok(one),
        (Some(one), others) => {
            let ids: Vec<&str> = others.iter().chain([&one]).map(id_of).collect();
            Err(Usage(format!("{hostname} is not one node: give one of the ids {}", ids.join(", "))).into())
        }
        (None, _) => Err(NotFound(format!(
            "you see no node {hostname}: `mezctl nodes ls` lists them, and `mezctl nodes ls --unfinished` joins that were not finished"
        ))
        .into()),
    }
}

/// The agent id of a node, which may be named by its hostname.
pub(crate) async fn id(client: &Client, name: &str) -> Result<String> {
    if is_id(name) { Ok(name.to_owned()) } else { Ok(id_of(&called(client, name).await?).to_owned()) }
}

/// Whether it is a UUID, as agent ids are.
fn is_id(text: &str) -> bool {
    text.len() == 36 && text.chars().all(|c| c.is_ascii_hexdigit() || c == '-')
}

/// Replaces the labels that an admin gave a node.
pub(crate) async fn replace(client: &Client, request: v1::UpdateNodeRequest) -> Result<v1::Node> {
    let check = Retry::once("see the labels with `mezctl nodes ls`");
    present(call!(client, check, update_node, request)?.node, "the node")
}

/// Removes a node.
pub(crate) async fn delete(client: &Client, agent_id: String) -> Result<()> {
    match call!(client, Retry::Idempotent, deregister_agent, v1::DeregisterAgentRequest { agent_id }) {
        Ok(v1::DeregisterAgentResponse {}) => Ok(()),
        // An earlier attempt had removed it.
        Err(error) if error.repeated_with(Code::NotFound) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// A node as it is shown, with what the caller may do there.
pub(crate) fn view(accessible: v1::AccessibleNode) -> Option<NodeView> {
    accessible.node.map(|node| NodeView { logins: Some(accessible.logins), ..node.into() })
}

async fn ls(context: &Context, args: Ls) -> Result<()> {
    let labels = &label_map(&args.labels)?;
    let client = context.user().await?;
    // There may be more than fit in memory, or than anybody reads.
    let (mut listing, mut read) = (context.listing(), true);
    let request = |page_token| v1::ListNodesRequest {
        labels: labels.clone(),
        online_only: args.online,
        unfinished: args.unfinished,
        ..self::page(page_token)
    };
    let print = |page: Vec<_>| {
        let nodes: Vec<NodeView> = page.into_iter().filter_map(view).collect();
        let shown = listing.print(&nodes)?;
        read = shown.is_continue();
        anyhow::Ok(shown)
    };
    list!(client, list_nodes, nodes, |page_token| request(page_token), print)?;
    if read { listing.end() } else { Ok(()) }
}

async fn update(context: &Context, args: Update) -> Result<()> {
    let admin_labels = label_map(&args.labels)?;
    let client = context.user().await?;
    let agent_id = id(&client, &args.node).await?;
    let request = v1::UpdateNodeRequest { agent_id, admin_labels, revision: args.revision };
    context.print(&NodeView::from(replace(&client, request).await?))
}

async fn rm(context: &Context, node: &str) -> Result<()> {
    let client = context.user().await?;
    let agent_id = id(&client, node).await?;
    delete(&client, agent_id.clone()).await?;
    let name = if agent_id == node { String::new() } else { format!("{node}, ") };
    context.print(&Done::new(format!("Removed {name}{agent_id}.")))
}
