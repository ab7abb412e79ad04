//! `role`: what its holders may do. The document is the role file, as `mezctl roles` reads and prints it.

use anyhow::Result;
use mezite_client::Client;
use mezite_proto::v1;

use super::{Kind, Made, Options};
use crate::{
    cmd::roles::{self, RoleRow},
    output,
    role_file::RoleFile,
};

pub(super) struct Role;

impl Kind for Role {
    const NAME: &'static str = "role";
    const PLURAL: &'static str = "roles";
    type Item = v1::Role;
    type Document = RoleFile;
    const REPLACEABLE: bool = true;

    fn name(document: &RoleFile) -> Option<&str> {
        Some(document.name())
    }

    fn settle(document: &mut RoleFile) {
        document.settle();
    }

    fn table(roles: Vec<v1::Role>) -> String {
        output::table_of(&roles.into_iter().map(RoleRow::from).collect::<Vec<_>>())
    }

    async fn all(client: &Client) -> Result<Vec<v1::Role>> {
        roles::all(client).await
    }

    async fn one(client: &Client, name: &str) -> Result<v1::Role> {
        roles::one(client, name.to_owned()).await
    }

    async fn create(client: &Client, document: RoleFile, _: &Options) -> Result<Made> {
        Ok(Made::plain(roles::make(client, document.into()).await?.name))
    }

    async fn replace(client: &Client, document: RoleFile) -> Result<()> {
        roles::replace(client, document.into()).await.map(drop)
    }

    async fn remove(client: &Client, name: &str) -> Result<()> {
        roles::delete(client, name.to_owned()).await
    }
}
