//! `connector`: a single sign-on provider. The document is the connector file, as `mezctl connectors` reads and prints it.

use anyhow::Result;
use mezite_client::Client;
use mezite_proto::v1;

use super::{Kind, Made, Options};
use crate::{
    cmd::connectors::{self, ConnectorRow},
    connector_file::{ConnectorFile, REDACTED},
    output,
};

pub(super) struct Connector;

impl Kind for Connector {
    const NAME: &'static str = "connector";
    const PLURAL: &'static str = "connectors";
    type Item = v1::Connector;
    type Document = ConnectorFile;
    const REPLACEABLE: bool = true;

    fn name(document: &ConnectorFile) -> Option<&str> {
        Some(document.name())
    }

    fn check(document: &ConnectorFile, _: &Options) -> Result<()> {
        document.check()
    }

    fn has_secret(document: &ConnectorFile) -> bool {
        document.has_secret()
    }

    fn settle(document: &mut ConnectorFile) {
        document.settle();
    }

    /// The secret that is stored is kept where the document has none.
    fn fill(document: &mut ConnectorFile, current: &ConnectorFile) {
        document.keep_secret_of(current);
    }

    fn table(connectors: Vec<v1::Connector>) -> String {
        output::table_of(&connectors.into_iter().map(ConnectorRow::from).collect::<Vec<_>>())
    }

    async fn all(client: &Client) -> Result<Vec<v1::Connector>> {
        connectors::all(client).await
    }

    async fn one(client: &Client, name: &str) -> Result<v1::Connector> {
        connectors::one(client, name.to_owned()).await
    }

    async fn create(client: &Client, document: ConnectorFile, _: &Options) -> Result<Made> {
        let connector = v1::Connector { revision: 0, ..document.connector(None, None)? };
        Ok(Made::plain(connectors::make(client, connector).await?.name))
    }

    async fn replace(client: &Client, document: ConnectorFile) -> Result<()> {
        connectors::replace(client, document.connector(None, Some(REDACTED))?).await.map(drop)
    }

    async fn remove(client: &Client, name: &str) -> Result<()> {
        connectors::delete(client, name.to_owned()).await
    }
}
