//! `connectors`: single sign-on providers, from and to connector files.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand};
use mezite_client::{Client, Retry};
use mezite_proto::v1::{self, connector::Provider};
use serde::Serialize;
use tonic::Code;

use crate::{
    cmd::{call, list, present},
    connector_file::{ConnectorFile, REDACTED},
    context::Context,
    files,
    output::{self, Done, Report, Row},
    secret,
};

const CONNECTOR_FILE: &str = "\
A connector file, YAML (or the same in JSON):

kind: connector
metadata:
  name: corporate
  display_name: Corporate login
spec:
  mappings:                                 # who gets which roles; no match: no login
    - {claim: groups, value: admins, roles: [admin]}
  oidc:                                     # or github, or saml
    issuer_url: https://login.example.com
    client_id: mezite
    scopes: [profile, groups]

A github provider has client_id and organizations; a saml provider entity_id, sso_url and certificates (PEM).
A field that is not known is an error. `mezctl connectors get NAME` prints a connector in this form.";

/// Commands on connectors.
#[derive(Debug, Subcommand)]
pub(crate) enum Connectors {
    /// Create a connector from a file
    #[command(after_help = CONNECTOR_FILE, visible_alias = "create")]
    Add(Write),
    /// Replace a connector with that of a file; with `metadata.revision` only if it is still that one. Without a client
    /// secret, the one that is stored is kept, as long as issuer and client id are the same
    #[command(after_help = CONNECTOR_FILE)]
    Update(Write),
    /// List connectors
    Ls,
    /// Show a connector, its secret redacted, in the form of a connector file
    Get {
        /// Name of the connector
        name: String,
    },
    /// Delete a connector, with its secret
    #[command(visible_alias = "delete")]
    Rm {
        /// Name of the connector
        name: String,
    },
}

/// Which connector is written.
#[derive(Debug, Args)]
pub(crate) struct Write {
    /// Connector file, YAML or JSON, mode 0600 if the client secret is in it; `-` reads standard input
    file: PathBuf,
    /// File with the client secret, mode 0600
    #[arg(long, value_name = "FILE")]
    client_secret_file: Option<PathBuf>,
}

impl Write {
    /// The connector; without a client secret, `without` is sent in its place.
    fn connector(&self, without: Option<&str>) -> Result<v1::Connector> {
        let file = ConnectorFile::parse(&files::read_text(&self.file)?)?;
        if file.has_secret() {
            files::refuse_open(&self.file)?;
        }
        let secret = self.client_secret_file.as_deref().map(secret::line).transpose()?;
        file.connector(secret.as_ref(), without)
    }
}

#[derive(Serialize)]
#[serde(transparent)]
struct ConnectorReport(ConnectorFile);

impl Report for ConnectorReport {
    fn text(&self) -> String {
        output::yaml(&self.0).unwrap_or_default()
    }
}

#[derive(Serialize)]
pub(crate) struct ConnectorRow {
    name: String,
    provider: &'static str,
    display_name: String,
    roles: Vec<String>,
    revision: u64,
}

impl From<v1::Connector> for ConnectorRow {
    fn from(connector: v1::Connector) -> Self {
        let mut roles: Vec<_> = connector.mappings.into_iter().flat_map(|mapping| mapping.roles).collect();
        roles.sort_unstable();
        roles.dedup();
        Self {
            name: connector.name,
            provider: match connector.provider {
                Some(Provider::Oidc(_)) => "oidc",
                Some(Provider::Github(_)) => "github",
                Some(Provider::Saml(_)) => "saml",
                None => "unknown",
            },
            display_name: connector.display_name,
            roles,
            revision: connector.revision,
        }
    }
}

impl Row<5> for ConnectorRow {
    const HEADER: [&'static str; 5] = ["NAME", "PROVIDER", "ROLES", "REVISION", "DISPLAY NAME"];

    fn row(&self) -> [String; 5] {
        let (roles, revision) = (self.roles.join(","), self.revision.to_string());
        [self.name.clone(), self.provider.into(), roles, revision, self.display_name.clone()]
    }
}

pub(crate) async fn run(context: &Context, command: Connectors) -> Result<()> {
    match command {
        Connectors::Add(args) => add(context, args).await,
        Connectors::Update(args) => update(context, args).await,
        Connectors::Ls => ls(context).await,
        Connectors::Get { name } => get(context, name).await,
        Connectors::Rm { name } => rm(context, name).await,
    }
}

async fn add(context: &Context, args: Write) -> Result<()> {
    // The cluster counts revisions; a file that was printed by `connectors get` may carry one.
    let connector = v1::Connector { revision: 0, ..args.connector(None)? };
    context.print(&ConnectorReport(make(&context.user().await?, connector).await?.into()))
}

/// All connectors.
pub(crate) async fn all(client: &Client) -> Result<Vec<v1::Connector>> {
    Ok(list!(client, list_connectors, connectors, |page_token| v1::ListConnectorsRequest {
        page_size: mezite_client::PAGE_SIZE,
        page_token
    })?)
}

/// A connector.
pub(crate) async fn one(client: &Client, name: String) -> Result<v1::Connector> {
    let reply = call!(client, Retry::Idempotent, get_connector, v1::GetConnectorRequest { name })?;
    present(reply.connector, "the connector")
}

/// Creates a connector.
pub(crate) async fn make(client: &Client, connector: v1::Connector) -> Result<v1::Connector> {
    let (check, connector) = (check(&connector), Some(connector));
    let reply = call!(client, check, create_connector, v1::CreateConnectorRequest { connector })?;
    present(reply.connector, "the connector")
}

/// Replaces a connector.
pub(crate) async fn replace(client: &Client, connector: v1::Connector) -> Result<v1::Connector> {
    let (check, connector) = (check(&connector), Some(connector));
    let reply = call!(client, check, update_connector, v1::UpdateConnectorRequest { connector })?;
    present(reply.connector, "the connector")
}

/// Deletes a connector.
pub(crate) async fn delete(client: &Client, name: String) -> Result<()> {
    match call!(client, Retry::Idempotent, delete_connector, v1::DeleteConnectorRequest { name }) {
        Ok(v1::DeleteConnectorResponse {}) => Ok(()),
        Err(error) if error.repeated_with(Code::NotFound) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

async fn update(context: &Context, args: Write) -> Result<()> {
    let connector = args.connector(Some(REDACTED))?;
    context.print(&ConnectorReport(replace(&context.user().await?, connector).await?.into()))
}

fn check(connector: &v1::Connector) -> Retry {
    Retry::once(format!("see `mezctl connectors get {}`", connector.name))
}

async fn ls(context: &Context) -> Result<()> {
    let connectors = all(&context.user().await?).await?;
    context.print_list(connectors.into_iter().map(ConnectorRow::from).collect())
}

async fn get(context: &Context, name: String) -> Result<()> {
    context.print(&ConnectorReport(one(&context.user().await?, name).await?.into()))
}

async fn rm(context: &Context, name: String) -> Result<()> {
    delete(&context.user().await?, name.clone()).await?;
    context.print(&Done::new(format!("Deleted connector {name}.")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_that_help_shows_is_one() {
        let file: Vec<_> = CONNECTOR_FILE.split("\n\n").collect();
        let connector = ConnectorFile::parse(file[1]).unwrap().connector(None, Some(REDACTED)).unwrap();
        assert_eq!((connector.name.as_str(), connector.mappings.len()), ("corporate", 1));
    }
}
