//! `users`: local users, their roles and traits.

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::Result;
use clap::{Args, Subcommand};
use mezite_client::Retry;
use mezite_proto::v1;
use serde::Serialize;
use tonic::Code;

use crate::{
    args::key_value,
    cmd::{call, list, present},
    context::Context,
    exit::Usage,
    output::{self, Done, Report, Row},
    secret,
};

/// Commands on users.
#[derive(Debug, Subcommand)]
pub(crate) enum Users {
    /// Create a user
    Add(Add),
    /// List users
    Ls,
    /// Show a user
    Get {
        /// Name of the user
        name: String,
    },
    /// Change a user's roles or traits; what is not given stays
    Update(Update),
    /// Delete a user and end its sessions
    Rm {
        /// Name of the user
        name: String,
    },
}

const ADD_EXAMPLES: &str = "\
Examples:
  mezctl users add alice --roles access --logins alice,deploy
  mezctl users add bob --roles developer --trait team=red --password-file bob.password";

/// Arguments of `users add`.
#[derive(Debug, Args)]
#[command(after_help = ADD_EXAMPLES)]
pub(crate) struct Add {
    /// Name: 1 to 63 bytes of [a-z0-9._@-]
    name: String,
    /// Roles that it holds
    #[arg(long, value_delimiter = ',', value_name = "ROLE,…")]
    roles: Vec<String>,
    #[command(flatten)]
    traits: TraitArgs,
    /// File with the user's first password, mode 0600; 12 bytes or more; `-` reads standard input [default: ask twice]
    // Without the environment variable of `login`: that is the admin's own password.
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
}

/// Arguments of `users update`.
#[derive(Debug, Args)]
pub(crate) struct Update {
    /// Name of the user
    name: String,
    /// Replaces its roles
    #[arg(long, value_delimiter = ',', value_name = "ROLE,…")]
    roles: Option<Vec<String>>,
    #[command(flatten)]
    traits: TraitArgs,
}

/// Traits, for role templates.
#[derive(Debug, Args)]
pub(crate) struct TraitArgs {
    /// Trait `logins`: what `{{internal.logins}}` in a role stands for
    #[arg(long, value_delimiter = ',', value_name = "LOGIN,…")]
    logins: Option<Vec<String>>,
    /// Another trait, with its values; can be given for several
    #[arg(long = "trait", value_parser = key_value, value_name = "NAME=VALUE,…")]
    traits: Vec<(String, String)>,
}

impl TraitArgs {
    fn apply(self, traits: &mut BTreeMap<String, v1::Strings>) -> Result<()> {
        let mut given = BTreeMap::new();
        for (name, values) in self.traits {
            let values = values.split(',').map(str::trim).filter(|value| !value.is_empty());
            if given.insert(name.clone(), values.map(str::to_owned).collect()).is_some() {
                return Err(Usage(format!("trait `{name}` is given twice")).into());
            }
        }
        if let Some(logins) = self.logins
            && given.insert("logins".into(), logins).is_some()
        {
            return Err(Usage("trait `logins` is given twice".into()).into());
        }
        for (name, values) in given {
            match values.is_empty() {
                true => drop(traits.remove(&name)),
                false => drop(traits.insert(name, v1::Strings { values })),
            }
        }
        Ok(())
    }
}

#[derive(Serialize)]
struct UserView {
    name: String,
    roles: Vec<String>,
    traits: BTreeMap<String, Vec<String>>,
    created_at: Option<String>,
    created_by: String,
    revision: u64,
}

impl From<v1::User> for UserView {
    fn from(user: v1::User) -> Self {
        Self {
            created_at: output::time(user.created_at.as_ref()),
            name: user.name,
            roles: user.roles,
            traits: user.traits.into_iter().map(|(name, strings)| (name, strings.values)).collect(),
            created_by: user.created_by,
            revision: user.revision,
        }
    }
}

impl UserView {
    fn traits(&self) -> String {
        let each = self.traits.iter().map(|(name, values)| format!("{name}={}", values.join(",")));
        each.collect::<Vec<_>>().join(" ")
    }
}

impl Report for UserView {
    fn text(&self) -> String {
        output::fields(&[
            ("name", self.name.clone()),
            ("roles", self.roles.join(",")),
            ("traits", self.traits()),
            ("created", self.created_at.clone().unwrap_or_default()),
            ("created by", self.created_by.clone()),
            ("revision", self.revision.to_string()),
        ])
    }
}

impl Row<4> for UserView {
    const HEADER: [&'static str; 4] = ["NAME", "ROLES", "TRAITS", "CREATED"];

    fn row(&self) -> [String; 4] {
        let created = self.created_at.clone().unwrap_or_default();
        [self.name.clone(), self.roles.join(","), self.traits(), created]
    }
}

pub(crate) async fn run(context: &Context, command: Users) -> Result<()> {
    match command {
        Users::Add(args) => add(context, args).await,
        Users::Ls => ls(context).await,
        Users::Get { name } => get(context, name).await,
        Users::Update(args) => update(context, args).await,
        Users::Rm { name } => rm(context, name).await,
    }
}

async fn add(context: &Context, args: Add) -> Result<()> {
    let client = context.user().await?;
    let mut user = v1::User { name: args.name.clone(), roles: args.roles, ..Default::default() };
    args.traits.apply(&mut user.traits)?;
    let password =
        secret::new_password(args.password_file.as_deref(), &format!("Password for {}: ", args.name))?;
    let request = v1::CreateUserRequest { user: Some(user), password: password.as_str().to_owned() };
    let check = Retry::once(format!("see `mezctl users get {}`", args.name));
    let reply = call!(client, check, create_user, request)?;
    context.print(&UserView::from(present(reply.user, "the user")?))
}

async fn ls(context: &Context) -> Result<()> {
    let client = context.user().await?;
    let users = list!(client, list_users, users, |page_token| v1::ListUsersRequest {
        page_size: mezite_client::PAGE_SIZE,
        page_token
    })?;
    context.print_list(users.into_iter().map(UserView::from).collect())
}

async fn get(context: &Context, name: String) -> Result<()> {
    let client = context.user().await?;
    let reply = call!(client, Retry::Idempotent, get_user, v1::GetUserRequest { name })?;
    context.print(&UserView::from(present(reply.user, "the user")?))
}

async fn update(context: &Context, args: Update) -> Result<()> {
    let client = context.user().await?;
    let request = v1::GetUserRequest { name: args.name.clone() };
    let mut user = present(call!(client, Retry::Idempotent, get_user, request)?.user, "the user")?;
    if let Some(roles) = args.roles {
        user.roles = roles.into_iter().filter(|role| !role.is_empty()).collect();
    }
    args.traits.apply(&mut user.traits)?;
    // With the revision that was read: what somebody else changes meanwhile is not undone.
    let check = Retry::once(format!("see `mezctl users get {}`", args.name));
    let reply = call!(client, check, update_user, v1::UpdateUserRequest { user: Some(user) })?;
    context.print(&UserView::from(present(reply.user, "the user")?))
}

async fn rm(context: &Context, name: String) -> Result<()> {
    let client = context.user().await?;
    match call!(client, Retry::Idempotent, delete_user, v1::DeleteUserRequest { name: name.clone() }) {
        Ok(reply) => context
            .print(&Done::new(format!("Deleted user {name}; {} sessions ended.", reply.sessions_ended))),
        Err(error) if error.repeated_with(Code::NotFound) => {
            context.print(&Done::new(format!("Deleted user {name}.")))
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn traits(logins: Option<&[&str]>, pairs: &[(&str, &str)]) -> TraitArgs {
        TraitArgs {
            logins: logins.map(|logins| logins.iter().map(|&login| login.to_owned()).collect()),
            traits: pairs.iter().map(|&(name, values)| (name.to_owned(), values.to_owned())).collect(),
        }
    }

    #[test]
    fn traits_replace_by_name_and_an_empty_one_is_removed() {
        let mut map = BTreeMap::from([
            ("logins".to_owned(), v1::Strings { values: vec!["a".into()] }),
            ("team".to_owned(), v1::Strings { values: vec!["red".into()] }),
            ("kept".to_owned(), v1::Strings { values: vec!["x".into()] }),
        ]);
        traits(Some(&["b", "c"]), &[("team", "")]).apply(&mut map).unwrap();
        assert_eq!(map["logins"].values, ["b", "c"]);
        assert_eq!(map.keys().collect::<Vec<_>>(), ["kept", "logins"]);
    }

    #[test]
    fn a_trait_given_twice_is_refused() {
        let mut map = BTreeMap::new();
        assert!(traits(Some(&["a"]), &[("logins", "b")]).apply(&mut map).is_err());
        assert!(traits(None, &[("team", "a"), ("team", "b")]).apply(&mut map).is_err());
    }
}
