//! `node`: an SSH node. It joins by itself; what a document says is the labels that an admin gives it.

use std::collections::BTreeMap;

use anyhow::{Error, Result};
use mezite_client::Client;
use mezite_proto::v1;
use serde::{Deserialize, Serialize};

use super::{
    Kind, Made, Options,
    document::{Document, refuse_existing},
};
use crate::{cmd::nodes, exit::Usage, output, role_file::unique_keys};

pub(super) struct Node;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Spec {
    /// All labels that an admin gives it.
    #[serde(default, deserialize_with = "unique_keys")]
    admin_labels: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Status {
    hostname: String,
    address: String,
    agent_labels: BTreeMap<String, String>,
    online: bool,
    version: String,
    last_seen_at: Option<String>,
    registered_at: Option<String>,
    /// Logins that the caller has there.
    logins: Vec<String>,
}

type NodeDocument = Document<Spec, Status>;

impl From<v1::AccessibleNode> for NodeDocument {
    fn from(accessible: v1::AccessibleNode) -> Self {
        let node = accessible.node.unwrap_or_default();
        let status = Status {
            last_seen_at: output::time(node.last_seen_at.as_ref()),
            registered_at: output::time(node.registered_at.as_ref()),
            hostname: node.hostname,
            address: node.address,
            agent_labels: node.agent_labels,
            online: node.online,
            version: node.version,
            logins: accessible.logins,
        };
        let spec = Spec { admin_labels: node.admin_labels };
        Self::new(Node::NAME, node.agent_id, Some(node.revision), spec, status)
    }
}

fn joins_by_itself() -> Error {
    let what = "a node joins by itself, with `mezctl agent join`: a document changes its labels, with its id as \
                `metadata.name`";
    Usage(what.into()).into()
}

impl Kind for Node {
    const NAME: &'static str = "node";
    const PLURAL: &'static str = "nodes";
    type Item = v1::AccessibleNode;
    type Document = NodeDocument;
    const REPLACEABLE: bool = true;

    fn name(document: &NodeDocument) -> Option<&str> {
        document.name()
    }

    fn check(document: &NodeDocument, _: &Options) -> Result<()> {
        if document.name().is_some() { Ok(()) } else { Err(joins_by_itself()) }
    }

    /// Its name is an id and its labels are a map: there is one way to say it.
    fn settle(_: &mut NodeDocument) {}

    fn table(nodes: Vec<v1::AccessibleNode>) -> String {
        output::table_of(&nodes.into_iter().filter_map(nodes::view).collect::<Vec<_>>())
    }

    async fn all(client: &Client) -> Result<Vec<v1::AccessibleNode>> {
        nodes::all(client).await
    }

    async fn one(client: &Client, name: &str) -> Result<v1::AccessibleNode> {
        nodes::one(client, name).await
    }

    async fn create(client: &Client, document: NodeDocument, _: &Options) -> Result<Made> {
        refuse_existing::<Self>(client, document.name()).await?;
        Err(joins_by_itself())
    }

    async fn replace(client: &Client, document: NodeDocument) -> Result<()> {
        let (agent_id, revision) = (document.needed_name()?, document.revision());
        let request = v1::UpdateNodeRequest { agent_id, admin_labels: document.spec.admin_labels, revision };
        nodes::replace(client, request).await.map(drop)
    }

    async fn remove(client: &Client, name: &str) -> Result<()> {
        nodes::delete(client, nodes::id(client, name).await?).await
    }
}
