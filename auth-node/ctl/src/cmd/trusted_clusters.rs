//! `trusted-clusters`: other clusters, whose users are let in.

use std::{path::PathBuf, time::Duration};

use anyhow::Result;
use clap::{ArgGroup, Args, Subcommand};
use mezite_client::{Client, Retry};
use mezite_proto::v1;
use serde::Serialize;
use tonic::Code;

use crate::{
    args::{human_duration, proto_duration},
    cmd::{call, list, present},
    context::Context,
    files::Pending,
    output::{self, Done, Report, Row},
    secret,
};

const ADD_EXAMPLES: &str = "\
Examples:
  # At the cluster `home`, whose users are to be let in, by one of its admins:
  mezctl trusted-clusters token --out home.token
  # Here, by an admin of this cluster; every other role of `home` gives nothing:
  mezctl trusted-clusters add home --addresses a.home.example:3025 --map developer=guest --token-file home.token
  # Then, by a user of `home` who is logged in there:
  mezctl certs issue --out ~/.ssh/here --at a.here.example:3025 --at-ca-pin sha256:…

Roles here for users of another cluster must name their logins: traits of another cluster do not count.";

/// Commands on trusted clusters.
#[derive(Debug, Subcommand)]
pub(crate) enum TrustedClusters {
    /// Trust another cluster: let its users in, with the roles here that theirs are mapped to
    #[command(after_help = ADD_EXAMPLES)]
    Add(Add),
    /// Make a one-time token with which another cluster comes to trust this one; it is shown once
    Token(Token),
    /// List trusted clusters
    Ls,
    /// Show a trusted cluster
    Get {
        /// Name of the cluster
        name: String,
    },
    /// Change where a trusted cluster is, what its roles are here, or whether it is trusted for now
    Update(Update),
    /// Trust a cluster no more, and revoke what was issued to its users
    #[command(visible_alias = "delete")]
    Rm {
        /// Name of the cluster
        name: String,
    },
}

/// Arguments of `trusted-clusters add`.
#[derive(Debug, Args)]
pub(crate) struct Add {
    /// Name of the cluster, as it has it itself
    name: String,
    /// Addresses of its auth nodes
    #[arg(long, value_delimiter = ',', required = true, value_name = "HOST:PORT,…")]
    addresses: Vec<String>,
    /// Roles here for a role there, or for any with `*`; may be given more than once
    #[arg(long = "map", value_parser = mapping, value_name = "ROLE=ROLE,…")]
    maps: Vec<v1::RoleMapping>,
    /// File with the token that an admin of the other cluster made, mode 0600; `-` reads standard input
    #[arg(long, value_name = "FILE")]
    token_file: PathBuf,
    /// Do not let its users in yet
    #[arg(long)]
    disabled: bool,
}

/// Arguments of `trusted-clusters token`.
#[derive(Debug, Args)]
pub(crate) struct Token {
    /// How long it is good for, 1m to 30d
    #[arg(long, default_value = "1h", value_parser = human_duration, value_name = "DURATION")]
    ttl: Duration,
    /// File to write the token to, mode 0600, instead of printing it
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Arguments of `trusted-clusters update`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("change").required(true).multiple(true))]
pub(crate) struct Update {
    /// Name of the cluster
    name: String,
    /// Addresses of its auth nodes, in place of those that are known
    #[arg(long, value_delimiter = ',', group = "change", value_name = "HOST:PORT,…")]
    addresses: Vec<String>,
    /// Mappings in place of all that there are; may be given more than once
    #[arg(long = "map", value_parser = mapping, group = "change", value_name = "ROLE=ROLE,…")]
    maps: Vec<v1::RoleMapping>,
    /// Let nobody in, and revoke what was issued
    #[arg(long, group = "change", conflicts_with = "enable")]
    disable: bool,
    /// Let its users in again
    #[arg(long, group = "change")]
    enable: bool,
}

/// `developer=guest,reader`.
fn mapping(text: &str) -> Result<v1::RoleMapping, String> {
    match text.split_once('=') {
        Some((remote, local)) if !remote.is_empty() && !local.is_empty() => Ok(v1::RoleMapping {
            remote: remote.to_owned(),
            local: local.split(',').map(str::to_owned).collect(),
        }),
        _ => Err("write it as ROLE-THERE=ROLE-HERE,…".into()),
    }
}

#[derive(Serialize)]
pub(crate) struct ClusterView {
    name: String,
    addresses: Vec<String>,
    role_mappings: Vec<MappingView>,
    disabled: bool,
    /// When it was last asked for its authorities, and answered.
    refreshed_at: Option<String>,
    /// Why it could not be asked the last time; empty: it could.
    refresh_error: String,
    authorities: Vec<AuthorityView>,
    revision: u64,
}

#[derive(Serialize)]
struct MappingView {
    remote: String,
    local: Vec<String>,
}

#[derive(Serialize)]
struct AuthorityView {
    kind: String,
    keys: Vec<String>,
}

impl From<v1::TrustedCluster> for ClusterView {
    fn from(cluster: v1::TrustedCluster) -> Self {
        let mapping = |it: v1::RoleMapping| MappingView { remote: it.remote, local: it.local };
        let authority = |it: v1::TrustedCa| AuthorityView {
            kind: it.kind().as_str_name().trim_start_matches("CA_KIND_").to_ascii_lowercase(),
            keys: it.ssh_public_keys.into_iter().chain(it.certificates).collect(),
        };
        Self {
            name: cluster.name,
            addresses: cluster.addresses,
            role_mappings: cluster.role_mappings.into_iter().map(mapping).collect(),
            disabled: cluster.disabled,
            refreshed_at: output::time(cluster.refreshed_at.as_ref()),
            refresh_error: cluster.refresh_error,
            authorities: cluster.authorities.into_iter().map(authority).collect(),
            revision: cluster.revision,
        }
    }
}

impl ClusterView {
    fn mappings(&self) -> String {
        let one = |mapping: &MappingView| format!("{}={}", mapping.remote, mapping.local.join(","));
        self.role_mappings.iter().map(one).collect::<Vec<_>>().join(" ")
    }

    fn state(&self) -> &'static str {
        if self.disabled { "disabled" } else { "enabled" }
    }
}

impl Report for ClusterView {
    fn text(&self) -> String {
        output::fields(&[
            ("name", self.name.clone()),
            ("state", self.state().into()),
            ("addresses", self.addresses.join(",")),
            ("role mappings", self.mappings()),
            ("refreshed", self.refreshed_at.clone().unwrap_or_default()),
            ("refresh error", self.refresh_error.clone()),
            ("revision", self.revision.to_string()),
        ])
    }
}

impl Row<6> for ClusterView {
    const HEADER: [&'static str; 6] = ["NAME", "STATE", "ADDRESSES", "ROLE MAPPINGS", "REFRESHED", "ERROR"];

    fn row(&self) -> [String; 6] {
        let refreshed = self.refreshed_at.clone().unwrap_or_default();
        let (addresses, error) = (self.addresses.join(","), self.refresh_error.clone());
        [self.name.clone(), self.state().into(), addresses, self.mappings(), refreshed, error]
    }
}

#[derive(Serialize)]
struct NewToken {
    name: String,
    expires_at: Option<String>,
    /// Absent when it went to a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_file: Option<PathBuf>,
}

impl Report for NewToken {
    fn text(&self) -> String {
        let file = self.token_file.as_ref().map(|file| file.display().to_string()).unwrap_or_default();
        output::fields(&[
            ("name", self.name.clone()),
            ("expires", self.expires_at.clone().unwrap_or_default()),
            ("token", self.token.clone().unwrap_or_default()),
            ("token file", file),
        ])
    }
}

pub(crate) async fn run(context: &Context, command: TrustedClusters) -> Result<()> {
    match command {
        TrustedClusters::Add(args) => add(context, args).await,
        TrustedClusters::Token(args) => token(context, args).await,
        TrustedClusters::Ls => ls(context).await,
        TrustedClusters::Get { name } => {
            let cluster = one(&context.user().await?, name).await?;
            context.print(&ClusterView::from(cluster))
        }
        TrustedClusters::Update(args) => update(context, args).await,
        TrustedClusters::Rm { name } => rm(context, name).await,
    }
}

async fn add(context: &Context, args: Add) -> Result<()> {
    let token = secret::line(&args.token_file)?;
    let client = context.user().await?;
    let check = Retry::once(format!("see `mezctl trusted-clusters get {}`", args.name));
    let cluster = v1::TrustedCluster {
        name: args.name,
        addresses: args.addresses,
        role_mappings: args.maps,
        disabled: args.disabled,
        ..v1::TrustedCluster::default()
    };
    let request =
        v1::CreateTrustedClusterRequest { trusted_cluster: Some(cluster), token: token.as_str().to_owned() };
    let reply = call!(client, check, create_trusted_cluster, request)?;
    context.print(&ClusterView::from(present(reply.trusted_cluster, "the trusted cluster")?))
}

async fn token(context: &Context, args: Token) -> Result<()> {
    let client = context.user().await?;
    let out = args.out.as_deref().map(Pending::create).transpose()?;
    let request = v1::CreateTokenRequest {
        kind: v1::TokenKind::TrustedCluster.into(),
        ttl: Some(proto_duration(args.ttl)),
        ..v1::CreateTokenRequest::default()
    };
    let check = Retry::once("see `mezctl tokens ls`: a token whose secret nobody has is of no use");
    let reply = call!(client, check, create_token, request)?;
    let made = present(reply.token, "the token")?;
    let mut report = NewToken {
        expires_at: output::time(made.expires_at.as_ref()),
        name: made.name,
        token: Some(reply.secret),
        token_file: None,
    };
    if let Some(out) = out {
        out.write_secret(&report.token.take().unwrap_or_default())?;
        report.token_file.clone_from(&args.out);
    }
    context.print(&report)
}

/// All trusted clusters.
pub(crate) async fn all(client: &Client) -> Result<Vec<v1::TrustedCluster>> {
    Ok(list!(client, list_trusted_clusters, trusted_clusters, |page_token| {
        v1::ListTrustedClustersRequest { page_size: mezite_client::PAGE_SIZE, page_token }
    })?)
}

/// Replaces a trusted cluster's addresses, mappings and switch.
pub(crate) async fn replace(client: &Client, cluster: v1::TrustedCluster) -> Result<v1::TrustedCluster> {
    let check = Retry::once(format!("see `mezctl trusted-clusters get {}`", cluster.name));
    let request = v1::UpdateTrustedClusterRequest { trusted_cluster: Some(cluster) };
    let reply = call!(client, check, update_trusted_cluster, request)?;
    present(reply.trusted_cluster, "the trusted cluster")
}

/// Ends the trust in a cluster.
pub(crate) async fn delete(client: &Client, name: String) -> Result<()> {
    match call!(client, Retry::Idempotent, delete_trusted_cluster, v1::DeleteTrustedClusterRequest { name }) {
        Ok(v1::DeleteTrustedClusterResponse {}) => Ok(()),
        Err(error) if error.repeated_with(Code::NotFound) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// A trusted cluster.
pub(crate) async fn one(client: &Client, name: String) -> Result<v1::TrustedCluster> {
    let request = v1::GetTrustedClusterRequest { name };
    let reply = call!(client, Retry::Idempotent, get_trusted_cluster, request)?;
    present(reply.trusted_cluster, "the trusted cluster")
}

async fn ls(context: &Context) -> Result<()> {
    let clusters = all(&context.user().await?).await?;
    context.print_list(clusters.into_iter().map(ClusterView::from).collect())
}

async fn update(context: &Context, args: Update) -> Result<()> {
    let client = context.user().await?;
    // With the revision that was read: what somebody else changes meanwhile is not undone.
    let mut cluster = one(&client, args.name).await?;
    if !args.addresses.is_empty() {
        cluster.addresses = args.addresses;
    }
    if !args.maps.is_empty() {
        cluster.role_mappings = args.maps;
    }
    cluster.disabled = (cluster.disabled || args.disable) && !args.enable;
    context.print(&ClusterView::from(replace(&client, cluster).await?))
}

async fn rm(context: &Context, name: String) -> Result<()> {
    delete(&context.user().await?, name.clone()).await?;
    context.print(&Done::new(format!("Cluster {name} is not trusted any more.")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_a_role_there_and_roles_here() {
        let read = mapping("dev=guest,reader").unwrap();
        assert_eq!(
            (read.remote.as_str(), read.local.as_slice()),
            ("dev", &["guest".into(), "reader".into()][..])
        );
        assert_eq!(mapping("*=guest").unwrap().remote, "*");
        for wrong in ["", "dev", "=guest", "dev="] {
            assert!(mapping(wrong).is_err(), "{wrong}");
        }
    }
}
