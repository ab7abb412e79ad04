//! `users`: local users, their roles and traits.

use std::collections::BTreeMap;

use anyhow::Result;
use clap::{Args, Subcommand};
use mezite_client::{Client, Retry};
use mezite_proto::v1;
use serde::Serialize;
use tonic::Code;

use crate::{
    args::key_value,
    cmd::{
        call,
        invite::{InviteView, ProofArgs},
        list, present,
    },
    context::Context,
    exit::Usage,
    output::{self, Done, Report, Row},
};

/// Commands on users.
#[derive(Debug, Subcommand)]
pub(crate) enum Users {
    /// Create a user, with an invite to set its password, or with a password
    #[command(visible_alias = "create")]
    Add(Add),
    /// End a user's sessions and its password, and make an invite to set another, or give it another
    Reset(Reset),
    /// List users
    Ls,
    /// Show a user
    Get {
        /// Name of the user
        name: String,
    },
    /// Change a user's roles or traits; what is not given stays
    Update(Update),
    /// End the lockouts of a user, which too many wrong passwords began; its locks stay
    ClearLockout {
        /// Name of the user
        name: String,
    },
    /// Delete a user and end its sessions
    #[command(visible_alias = "delete")]
    Rm {
        /// Name of the user
        name: String,
    },
}

const ADD_EXAMPLES: &str = "\
Examples:
  mezctl users add alice --roles access --logins alice,deploy
  mezctl users add bob --roles developer --trait team=red --password-file bob.password

Without a password the user gets an invite: send it what is printed, over a way that others do not read.";

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
    #[command(flatten)]
    proof: ProofArgs,
}

/// Arguments of `users reset`.
#[derive(Debug, Args)]
pub(crate) struct Reset {
    /// Name of the user
    name: String,
    /// Remove its WebAuthn devices too: for who has lost them
    #[arg(long)]
    remove_devices: bool,
    /// Make a user of single sign-on one of this cluster alone, with the roles and traits that it had last
    #[arg(long)]
    make_local: bool,
    #[command(flatten)]
    proof: ProofArgs,
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
    pub(crate) fn apply(self, traits: &mut BTreeMap<String, v1::Strings>) -> Result<()> {
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
pub(crate) struct UserView {
    name: String,
    roles: Vec<String>,
    traits: BTreeMap<String, Vec<String>>,
    created_at: Option<String>,
    created_by: String,
    revision: u64,
    /// For those alone who manage users.
    lockouts: Vec<LockoutView>,
    /// For those alone who manage users.
    without_password: bool,
    /// When the invite ends that it has, if it has one; for those alone who manage users.
    invite_expires_at: Option<String>,
    /// By which it logs in; empty: it is a user of this cluster alone.
    connector: String,
    /// When it is forgotten if it does not log in again.
    expires_at: Option<String>,
}

/// A user that was made.
#[derive(Serialize)]
struct NewUser {
    #[serde(flatten)]
    user: UserView,
    #[serde(skip_serializing_if = "Option::is_none")]
    invite: Option<InviteView>,
}

impl Report for NewUser {
    fn text(&self) -> String {
        self.user.text() + &self.invite.as_ref().map(InviteView::text).unwrap_or_default()
    }
}

/// A user whose password was ended.
#[derive(Serialize)]
struct ResetUser {
    user: String,
    sessions_ended: u32,
    devices_removed: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    invite: Option<InviteView>,
}

impl Report for ResetUser {
    fn text(&self) -> String {
        let done = match &self.invite {
            Some(_) => "has no password any more",
            None => "has another password",
        };
        let invite = self.invite.as_ref().map(InviteView::text).unwrap_or_default();
        let devices = match self.devices_removed {
            0 => String::new(),
            count => format!(", {count} devices removed"),
        };
        format!("User {} {done}; {} sessions ended{devices}.\n{invite}", self.user, self.sessions_ended)
    }
}

#[derive(Serialize)]
struct LockoutView {
    /// `other`: all networks that the user has never logged in from.
    network: String,
    /// Whether the failures were those as all users together.
    of_all_users: bool,
    failures: u32,
    ends_at: Option<String>,
}

impl From<v1::Lockout> for LockoutView {
    fn from(lockout: v1::Lockout) -> Self {
        Self {
            network: if lockout.network.is_empty() { "other".to_owned() } else { lockout.network },
            of_all_users: lockout.of_all_users,
            failures: lockout.failures,
            ends_at: output::time(lockout.ends_at.as_ref()),
        }
    }
}

impl LockoutView {
    fn text(&self) -> String {
        let until = self.ends_at.as_deref().unwrap_or_default();
        let whose = if self.of_all_users { " as all users" } else { "" };
        format!("{} until {until} ({} failures{whose})", self.network, self.failures)
    }
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
            lockouts: user.lockouts.into_iter().map(LockoutView::from).collect(),
            without_password: user.without_password,
            invite_expires_at: output::time(user.invite_expires_at.as_ref()),
            connector: user.connector,
            expires_at: output::time(user.expires_at.as_ref()),
        }
    }
}

impl UserView {
    /// What is to be said of its password.
    fn password(&self) -> String {
        if !self.connector.is_empty() {
            let until = self.expires_at.as_deref().unwrap_or_default();
            return format!("none: by connector {}, kept until {until}", self.connector);
        }
        match (self.without_password, &self.invite_expires_at) {
            (false, _) => String::new(),
            (true, None) => "none, and no invite".into(),
            (true, Some(until)) => format!("none; invited until {until}"),
        }
    }

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
            ("password", self.password()),
            ("locked out", self.lockouts.iter().map(LockoutView::text).collect::<Vec<_>>().join(", ")),
        ])
    }
}

impl Row<5> for UserView {
    const HEADER: [&'static str; 5] = ["NAME", "ROLES", "TRAITS", "CREATED", "LOCKED OUT"];

    fn row(&self) -> [String; 5] {
        let created = self.created_at.clone().unwrap_or_default();
        let networks: Vec<_> = self.lockouts.iter().map(|lockout| lockout.network.as_str()).collect();
        [self.name.clone(), self.roles.join(","), self.traits(), created, networks.join(",")]
    }
}

pub(crate) async fn run(context: &Context, command: Users) -> Result<()> {
    match command {
        Users::Add(args) => add(context, args).await,
        Users::Reset(args) => reset(context, args).await,
        Users::Ls => ls(context).await,
        Users::Get { name } => get(context, name).await,
        Users::Update(args) => update(context, args).await,
        Users::ClearLockout { name } => clear_lockout(context, name).await,
        Users::Rm { name } => rm(context, name).await,
    }
}

async fn add(context: &Context, args: Add) -> Result<()> {
    let client = context.user().await?;
    let mut user = v1::User { name: args.name.clone(), roles: args.roles, ..Default::default() };
    args.traits.apply(&mut user.traits)?;
    let proof = args.proof.read(context, &client, &args.name).await?;
    let request = v1::CreateUserRequest {
        user: Some(user),
        password: proof.password.as_str().to_owned(),
        invite_ttl: proof.invite_ttl,
    };
    let reply = make(&client, request).await?;
    let invite = InviteView::new(proof, (reply.invite_secret, reply.invite_url), reply.invite_expires_at)?;
    context.print(&NewUser { user: present(reply.user, "the user")?.into(), invite })
}

async fn reset(context: &Context, args: Reset) -> Result<()> {
    let client = context.user().await?;
    let proof = args.proof.read(context, &client, &args.name).await?;
    let request = v1::ResetUserPasswordRequest {
        name: args.name.clone(),
        new_password: proof.password.as_str().to_owned(),
        invite_ttl: proof.invite_ttl,
        remove_devices: args.remove_devices,
        make_local: args.make_local,
    };
    let check = Retry::once("an invite that nobody has the secret of is of no use: repeat it");
    let reply = call!(client, check, reset_user_password, request)?;
    let v1::ResetUserPasswordResponse {
        sessions_ended,
        devices_removed,
        invite_secret,
        invite_expires_at,
        invite_url,
    } = reply;
    let invite = InviteView::new(proof, (invite_secret, invite_url), invite_expires_at)?;
    context.print(&ResetUser { user: args.name, sessions_ended, devices_removed, invite })
}

/// All users.
pub(crate) async fn all(client: &Client) -> Result<Vec<v1::User>> {
    Ok(list!(client, list_users, users, |page_token| v1::ListUsersRequest {
        page_size: mezite_client::PAGE_SIZE,
        page_token
    })?)
}

/// A user.
pub(crate) async fn one(client: &Client, name: String) -> Result<v1::User> {
    let reply = call!(client, Retry::Idempotent, get_user, v1::GetUserRequest { name })?;
    present(reply.user, "the user")
}

/// Replaces a user.
pub(crate) async fn replace(client: &Client, user: v1::User) -> Result<v1::User> {
    let check = Retry::once(format!("see `mezctl users get {}`", user.name));
    let reply = call!(client, check, update_user, v1::UpdateUserRequest { user: Some(user) })?;
    present(reply.user, "the user")
}

/// Creates a user.
pub(crate) async fn make(client: &Client, request: v1::CreateUserRequest) -> Result<v1::CreateUserResponse> {
    let name = request.user.as_ref().map(|user| user.name.clone()).unwrap_or_default();
    let check = Retry::once(format!("see `mezctl users get {name}`"));
    Ok(call!(client, check, create_user, request)?)
}

/// Deletes a user; answers how many sessions that ended, if it is known.
pub(crate) async fn delete(client: &Client, name: String) -> Result<Option<u32>> {
    match call!(client, Retry::Idempotent, delete_user, v1::DeleteUserRequest { name }) {
        Ok(reply) => Ok(Some(reply.sessions_ended)),
        Err(error) if error.repeated_with(Code::NotFound) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

async fn ls(context: &Context) -> Result<()> {
    let users = all(&context.user().await?).await?;
    context.print_list(users.into_iter().map(UserView::from).collect())
}

async fn get(context: &Context, name: String) -> Result<()> {
    context.print(&UserView::from(one(&context.user().await?, name).await?))
}

async fn update(context: &Context, args: Update) -> Result<()> {
    let client = context.user().await?;
    let mut user = one(&client, args.name).await?;
    if let Some(roles) = args.roles {
        user.roles = roles.into_iter().filter(|role| !role.is_empty()).collect();
    }
    args.traits.apply(&mut user.traits)?;
    // With the revision that was read: what somebody else changes meanwhile is not undone.
    context.print(&UserView::from(replace(&client, user).await?))
}

async fn rm(context: &Context, name: String) -> Result<()> {
    let done = match delete(&context.user().await?, name.clone()).await? {
        Some(ended) => format!("Deleted user {name}; {ended} sessions ended."),
        None => format!("Deleted user {name}."),
    };
    context.print(&Done::new(done))
}

async fn clear_lockout(context: &Context, name: String) -> Result<()> {
    let client = context.user().await?;
    let request = v1::ClearUserLockoutRequest { name: name.clone() };
    let v1::ClearUserLockoutResponse {} = call!(client, Retry::Idempotent, clear_user_lockout, request)?;
    context.print(&Done::new(format!("The lockouts of {name} were cleared.")))
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
