//! `trusted_cluster`: another cluster whose users are let in. The token that it takes to begin is in no document.

use anyhow::Result;
use mezite_client::Client;
use mezite_proto::v1;
use serde::{Deserialize, Serialize};

use super::{
    Kind, Made, Options,
    document::{Document, refuse_existing},
};
use crate::{
    cmd::trusted_clusters::{self, ClusterView},
    exit::Usage,
    normal, output,
};

pub(super) struct TrustedCluster;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Spec {
    addresses: Vec<String>,
    #[serde(default)]
    role_mappings: Vec<Mapping>,
    #[serde(default)]
    disabled: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mapping {
    remote: String,
    local: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Status {
    refreshed_at: Option<String>,
    refresh_error: String,
}

type ClusterDocument = Document<Spec, Status>;

impl From<v1::TrustedCluster> for ClusterDocument {
    fn from(cluster: v1::TrustedCluster) -> Self {
        let mapping = |it: v1::RoleMapping| Mapping { remote: it.remote, local: it.local };
        let spec = Spec {
            addresses: cluster.addresses,
            role_mappings: cluster.role_mappings.into_iter().map(mapping).collect(),
            disabled: cluster.disabled,
        };
        let status = Status {
            refreshed_at: output::time(cluster.refreshed_at.as_ref()),
            refresh_error: cluster.refresh_error,
        };
        Self::new(TrustedCluster::NAME, cluster.name, Some(cluster.revision), spec, status)
    }
}

impl Kind for TrustedCluster {
    const NAME: &'static str = "trusted_cluster";
    const PLURAL: &'static str = "trusted_clusters";
    type Item = v1::TrustedCluster;
    type Document = ClusterDocument;
    const REPLACEABLE: bool = true;

    fn name(document: &ClusterDocument) -> Option<&str> {
        document.name()
    }

    fn check(document: &ClusterDocument, _: &Options) -> Result<()> {
        document.needed_name().map(drop)
    }

    /// Addresses stay as they stand: they are asked in this order.
    fn settle(document: &mut ClusterDocument) {
        for mapping in &mut document.spec.role_mappings {
            mapping.remote = normal::name(&mapping.remote);
            normal::names(&mut mapping.local);
        }
        normal::set(&mut document.spec.role_mappings);
    }

    fn table(clusters: Vec<v1::TrustedCluster>) -> String {
        output::table_of(&clusters.into_iter().map(ClusterView::from).collect::<Vec<_>>())
    }

    async fn all(client: &Client) -> Result<Vec<v1::TrustedCluster>> {
        trusted_clusters::all(client).await
    }

    async fn one(client: &Client, name: &str) -> Result<v1::TrustedCluster> {
        trusted_clusters::one(client, name.to_owned()).await
    }

    async fn create(client: &Client, document: ClusterDocument, _: &Options) -> Result<Made> {
        refuse_existing::<Self>(client, document.name()).await?;
        let what = "a cluster comes to be trusted with its token: use `mezctl trusted-clusters add`";
        Err(Usage(what.into()).into())
    }

    async fn replace(client: &Client, document: ClusterDocument) -> Result<()> {
        let mapping = |it: Mapping| v1::RoleMapping { remote: it.remote, local: it.local };
        let cluster = v1::TrustedCluster {
            name: document.needed_name()?,
            revision: document.revision(),
            addresses: document.spec.addresses,
            role_mappings: document.spec.role_mappings.into_iter().map(mapping).collect(),
            disabled: document.spec.disabled,
            ..Default::default()
        };
        trusted_clusters::replace(client, cluster).await.map(drop)
    }

    async fn remove(client: &Client, name: &str) -> Result<()> {
        trusted_clusters::delete(client, name.to_owned()).await
    }
}
