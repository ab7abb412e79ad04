//! `roles`: what users may do, from and to role files.

use std::path::PathBuf;

use anyhow::Result;
use clap::Subcommand;
use mezite_client::{Client, Retry};
use mezite_proto::v1;
use serde::Serialize;
use tonic::Code;

use crate::{
    cmd::{call, list, present},
    context::Context,
    files,
    output::{self, Done, Report, Row},
    role_file::RoleFile,
};

const ROLE_FILE: &str = "\
A role file, YAML (or the same in JSON):

kind: role
metadata:
  name: developer
  description: Test systems, by day
spec:
  allow:
    logins: [dev, \"{{internal.logins}}\"]  # names, or what the user's trait `logins` says
    node_labels:                            # nodes that have one value of each; \"*\": \"*\" is all
      env: [dev, test]
  deny:                                     # wins
    logins: [root]
  options:
    max_session_ttl: 8h
    permit_port_forwarding: true

A field that is not known is an error. `mezctl roles get NAME` prints a role in this form.";

/// Commands on roles.
#[derive(Debug, Subcommand)]
pub(crate) enum Roles {
    /// Create a role from a file
    #[command(after_help = ROLE_FILE, visible_alias = "add")]
    Create {
        /// Role file, YAML or JSON; `-` reads standard input
        file: PathBuf,
    },
    /// Replace a role with that of a file; with `metadata.revision` only if it is still that one
    #[command(after_help = ROLE_FILE)]
    Update {
        /// Role file, YAML or JSON; `-` reads standard input
        file: PathBuf,
    },
    /// List roles
    Ls,
    /// Show a role, in the form of a role file
    Get {
        /// Name of the role
        name: String,
    },
    /// Delete a role that nobody holds
    #[command(visible_alias = "delete")]
    Rm {
        /// Name of the role
        name: String,
    },
}

#[derive(Serialize)]
#[serde(transparent)]
struct RoleReport(RoleFile);

impl Report for RoleReport {
    fn text(&self) -> String {
        output::yaml(&self.0).unwrap_or_default()
    }
}

#[derive(Serialize)]
pub(crate) struct RoleRow {
    name: String,
    description: String,
    logins: Vec<String>,
    built_in: bool,
    revision: u64,
}

impl From<v1::Role> for RoleRow {
    fn from(role: v1::Role) -> Self {
        Self {
            name: role.name,
            description: role.description,
            logins: role.allow.unwrap_or_default().logins,
            built_in: role.built_in,
            revision: role.revision,
        }
    }
}

impl Row<5> for RoleRow {
    const HEADER: [&'static str; 5] = ["NAME", "LOGINS", "BUILT-IN", "REVISION", "DESCRIPTION"];

    fn row(&self) -> [String; 5] {
        let built_in = if self.built_in { "yes" } else { "no" };
        let (revision, description) = (self.revision.to_string(), self.description.clone());
        [self.name.clone(), self.logins.join(","), built_in.into(), revision, description]
    }
}

pub(crate) async fn run(context: &Context, command: Roles) -> Result<()> {
    match command {
        Roles::Create { file } => create(context, file).await,
        Roles::Update { file } => update(context, file).await,
        Roles::Ls => ls(context).await,
        Roles::Get { name } => get(context, name).await,
        Roles::Rm { name } => rm(context, name).await,
    }
}

/// All roles.
pub(crate) async fn all(client: &Client) -> Result<Vec<v1::Role>> {
    Ok(list!(client, list_roles, roles, |page_token| v1::ListRolesRequest {
        page_size: mezite_client::PAGE_SIZE,
        page_token
    })?)
}

/// A role.
pub(crate) async fn one(client: &Client, name: String) -> Result<v1::Role> {
    let reply = call!(client, Retry::Idempotent, get_role, v1::GetRoleRequest { name })?;
    present(reply.role, "the role")
}

/// Creates a role.
pub(crate) async fn make(client: &Client, role: v1::Role) -> Result<v1::Role> {
    // The cluster counts revisions; a file that was printed by `roles get` may carry one.
    let role = v1::Role { revision: 0, ..role };
    let reply = call!(client, check(&role), create_role, v1::CreateRoleRequest { role: Some(role) })?;
    present(reply.role, "the role")
}

/// Replaces a role.
pub(crate) async fn replace(client: &Client, role: v1::Role) -> Result<v1::Role> {
    let reply = call!(client, check(&role), update_role, v1::UpdateRoleRequest { role: Some(role) })?;
    present(reply.role, "the role")
}

/// Deletes a role.
pub(crate) async fn delete(client: &Client, name: String) -> Result<()> {
    match call!(client, Retry::Idempotent, delete_role, v1::DeleteRoleRequest { name }) {
        Ok(v1::DeleteRoleResponse {}) => Ok(()),
        Err(error) if error.repeated_with(Code::NotFound) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn check(role: &v1::Role) -> Retry {
    Retry::once(format!("see `mezctl roles get {}`", role.name))
}

async fn create(context: &Context, file: PathBuf) -> Result<()> {
    let role = RoleFile::parse(&files::read_text(&file)?)?.into();
    let made = make(&context.user().await?, role).await?;
    context.print(&RoleReport(made.into()))
}

async fn update(context: &Context, file: PathBuf) -> Result<()> {
    let role = RoleFile::parse(&files::read_text(&file)?)?.into();
    let replaced = replace(&context.user().await?, role).await?;
    context.print(&RoleReport(replaced.into()))
}

async fn ls(context: &Context) -> Result<()> {
    let roles = all(&context.user().await?).await?;
    context.print_list(roles.into_iter().map(RoleRow::from).collect())
}

async fn get(context: &Context, name: String) -> Result<()> {
    let role = one(&context.user().await?, name).await?;
    context.print(&RoleReport(role.into()))
}

async fn rm(context: &Context, name: String) -> Result<()> {
    delete(&context.user().await?, name.clone()).await?;
    context.print(&Done::new(format!("Deleted role {name}.")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_that_help_shows_is_one() {
        let file: Vec<_> = ROLE_FILE.split("\n\n").collect();
        let role = v1::Role::from(RoleFile::parse(file[1]).unwrap());
        assert_eq!((role.name.as_str(), role.allow.unwrap().node_labels.len()), ("developer", 1));
        assert_eq!(role.options.unwrap().max_session_ttl.unwrap().seconds, 8 * 3600);
    }
}
