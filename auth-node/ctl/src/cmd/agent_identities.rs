//! `agent-identities`: bots, CI jobs, AI agents.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use anyhow::Result;
use clap::{Args, Subcommand};
use mezite_client::{Client, Retry};
use mezite_proto::v1;
use serde::Serialize;
use tonic::Code;
use zeroize::Zeroizing;

use crate::{
    args::{Human, human_duration, proto_duration, shown_duration},
    cmd::{call, list, present, users::TraitArgs},
    context::Context,
    files::Pending,
    output::{self, Done, Report, Row},
};

/// Commands on agent identities.
#[derive(Debug, Subcommand)]
pub(crate) enum AgentIdentities {
    /// Create an agent identity, and the secret that its program begins with
    #[command(visible_alias = "create")]
    Add(Add),
    /// List agent identities
    Ls,
    /// Show an agent identity
    Get {
        /// Name of the identity
        name: String,
    },
    /// Change an identity's roles, traits, longest life or SPIFFE IDs; what is not given stays
    Update(Update),
    /// Take all that an identity has, and make another secret for it
    Reset(Reset),
    /// Delete an agent identity, end its sessions and revoke its certificates
    #[command(visible_alias = "delete")]
    Rm {
        /// Name of the identity
        name: String,
    },
}

const ADD_EXAMPLES: &str = "\
Examples:
  mezctl agent-identities add ci --roles deployer --logins deploy --max-ttl 1h --out ci.secret
  mezctl bot run --identity ci --secret-file ci.secret --out /var/lib/ci/mezite      where the program runs";

/// Arguments of `agent-identities add`.
#[derive(Debug, Args)]
#[command(after_help = ADD_EXAMPLES)]
pub(crate) struct Add {
    /// Name: 1 to 63 bytes of [a-z0-9._@-]; users have names of their own
    name: String,
    /// Roles that it holds
    #[arg(long, value_delimiter = ',', value_name = "ROLE,…")]
    roles: Vec<String>,
    #[command(flatten)]
    traits: TraitArgs,
    /// Longest life of its certificates, 5m to 7d [default: 1h]
    #[arg(long, value_parser = human_duration, value_name = "DURATION")]
    max_ttl: Option<Duration>,
    /// SPIFFE IDs that are its
    #[arg(long, value_delimiter = ',', value_name = "ID,…")]
    spiffe_ids: Vec<String>,
    #[command(flatten)]
    secret: SecretArgs,
}

/// Arguments of `agent-identities update`.
#[derive(Debug, Args)]
pub(crate) struct Update {
    /// Name of the identity
    name: String,
    /// Replaces its roles
    #[arg(long, value_delimiter = ',', value_name = "ROLE,…")]
    roles: Option<Vec<String>>,
    #[command(flatten)]
    traits: TraitArgs,
    /// Longest life of its certificates, 5m to 7d
    #[arg(long, value_parser = human_duration, value_name = "DURATION")]
    max_ttl: Option<Duration>,
    /// Replaces its SPIFFE IDs
    #[arg(long, value_delimiter = ',', value_name = "ID,…")]
    spiffe_ids: Option<Vec<String>>,
}

/// Arguments of `agent-identities reset`.
#[derive(Debug, Args)]
pub(crate) struct Reset {
    /// Name of the identity
    name: String,
    #[command(flatten)]
    secret: SecretArgs,
}

/// The secret that is made.
#[derive(Debug, Args)]
struct SecretArgs {
    /// How long the secret is good for, 1m to 7d [default: 1h]
    #[arg(long, value_parser = human_duration, value_name = "DURATION")]
    bootstrap_ttl: Option<Duration>,
    /// File to write the secret to, mode 0600, instead of printing it
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Serialize)]
pub(crate) struct IdentityView {
    name: String,
    roles: Vec<String>,
    traits: BTreeMap<String, Vec<String>>,
    max_ttl: Option<Human>,
    spiffe_ids: Vec<String>,
    generation: u64,
    /// When its last credentials end; absent before the first.
    credentials_expire_at: Option<String>,
    /// When the secret ends that was not used yet.
    bootstrap_expires_at: Option<String>,
    created_at: Option<String>,
    created_by: String,
    revision: u64,
}

impl From<v1::AgentIdentity> for IdentityView {
    fn from(identity: v1::AgentIdentity) -> Self {
        let traits = identity.traits.into_iter().map(|(name, strings)| (name, strings.values));
        Self {
            max_ttl: Human::of(identity.max_ttl),
            credentials_expire_at: output::time(identity.credentials_expire_at.as_ref()),
            bootstrap_expires_at: output::time(identity.bootstrap_expires_at.as_ref()),
            created_at: output::time(identity.created_at.as_ref()),
            name: identity.name,
            roles: identity.roles,
            traits: traits.collect(),
            spiffe_ids: identity.spiffe_ids,
            generation: identity.generation,
            created_by: identity.created_by,
            revision: identity.revision,
        }
    }
}

impl IdentityView {
    fn traits(&self) -> String {
        let each = self.traits.iter().map(|(name, values)| format!("{name}={}", values.join(",")));
        each.collect::<Vec<_>>().join(" ")
    }

    fn max_ttl(&self) -> String {
        self.max_ttl.map(|ttl| shown_duration(ttl.0)).unwrap_or_default()
    }

    /// What it has now.
    fn has(&self) -> String {
        match (&self.credentials_expire_at, &self.bootstrap_expires_at) {
            (Some(until), _) => format!("generation {}, until {until}", self.generation),
            (None, Some(until)) => format!("a secret, until {until}"),
            (None, None) if !self.spiffe_ids.is_empty() => "SPIFFE IDs alone".into(),
            (None, None) => "nothing: reset it".into(),
        }
    }
}

impl Report for IdentityView {
    fn text(&self) -> String {
        output::fields(&[
            ("name", self.name.clone()),
            ("roles", self.roles.join(",")),
            ("traits", self.traits()),
            ("max ttl", self.max_ttl()),
            ("spiffe ids", self.spiffe_ids.join(",")),
            ("has", self.has()),
            ("created", self.created_at.clone().unwrap_or_default()),
            ("created by", self.created_by.clone()),
            ("revision", self.revision.to_string()),
        ])
    }
}

impl Row<5> for IdentityView {
    const HEADER: [&'static str; 5] = ["NAME", "ROLES", "TRAITS", "MAX TTL", "HAS"];

    fn row(&self) -> [String; 5] {
        [self.name.clone(), self.roles.join(","), self.traits(), self.max_ttl(), self.has()]
    }
}

/// An identity with a secret that was made.
#[derive(Serialize)]
struct WithSecret {
    #[serde(flatten)]
    identity: IdentityView,
    /// Absent when it went to a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    secret_file: Option<PathBuf>,
}

impl Report for WithSecret {
    fn text(&self) -> String {
        let secret = self.secret.clone().unwrap_or_default();
        let file = self.secret_file.as_ref().map(|file| file.display().to_string()).unwrap_or_default();
        self.identity.text() + &output::fields(&[("secret", secret), ("secret file", file)])
    }
}

pub(crate) async fn run(context: &Context, command: AgentIdentities) -> Result<()> {
    match command {
        AgentIdentities::Add(args) => add(context, args).await,
        AgentIdentities::Ls => ls(context).await,
        AgentIdentities::Get { name } => get(context, name).await,
        AgentIdentities::Update(args) => update(context, args).await,
        AgentIdentities::Reset(args) => reset(context, args).await,
        AgentIdentities::Rm { name } => rm(context, name).await,
    }
}

async fn add(context: &Context, args: Add) -> Result<()> {
    let client = context.user().await?;
    let out = args.secret.out.as_deref().map(Pending::create).transpose()?;
    let mut identity = v1::AgentIdentity {
        name: args.name,
        roles: args.roles,
        max_ttl: args.max_ttl.map(proto_duration),
        spiffe_ids: args.spiffe_ids,
        ..Default::default()
    };
    args.traits.apply(&mut identity.traits)?;
    let bootstrap_ttl = args.secret.bootstrap_ttl.map(proto_duration);
    let request = v1::CreateAgentIdentityRequest { identity: Some(identity), bootstrap_ttl };
    let reply = make(&client, request).await?;
    let identity = present(reply.identity, "the identity")?;
    print_secret(context, identity, reply.bootstrap_secret, out, args.secret.out.as_deref())
}

async fn reset(context: &Context, args: Reset) -> Result<()> {
    let client = context.user().await?;
    let out = args.secret.out.as_deref().map(Pending::create).transpose()?;
    let identity = one(&client, args.name.clone()).await?;
    let request = v1::UpdateAgentIdentityRequest {
        identity: Some(identity),
        reset: true,
        bootstrap_ttl: args.secret.bootstrap_ttl.map(proto_duration),
    };
    let check = Retry::once("a secret that nobody has is of no use: repeat it");
    let reply = call!(client, check, update_agent_identity, request)?;
    let identity = present(reply.identity, "the identity")?;
    print_secret(context, identity, reply.bootstrap_secret, out, args.secret.out.as_deref())
}

fn print_secret(
    context: &Context,
    identity: v1::AgentIdentity,
    secret: String,
    out: Option<Pending<'_>>,
    path: Option<&std::path::Path>,
) -> Result<()> {
    let identity = identity.into();
    context.print(&match out {
        Some(out) => {
            out.write_secret(&Zeroizing::new(secret))?;
            WithSecret { identity, secret: None, secret_file: path.map(PathBuf::from) }
        }
        None => WithSecret { identity, secret: Some(secret), secret_file: None },
    })
}

/// Creates an agent identity; its secret is in the reply.
pub(crate) async fn make(
    client: &Client,
    request: v1::CreateAgentIdentityRequest,
) -> Result<v1::CreateAgentIdentityResponse> {
    let name = request.identity.as_ref().map(|identity| identity.name.clone()).unwrap_or_default();
    let check = Retry::once(format!("see `mezctl agent-identities get {name}`"));
    Ok(call!(client, check, create_agent_identity, request)?)
}

/// All agent identities.
pub(crate) async fn all(client: &Client) -> Result<Vec<v1::AgentIdentity>> {
    Ok(list!(client, list_agent_identities, identities, |page_token| v1::ListAgentIdentitiesRequest {
        page_size: mezite_client::PAGE_SIZE,
        page_token
    })?)
}

/// An agent identity.
pub(crate) async fn one(client: &Client, name: String) -> Result<v1::AgentIdentity> {
    let request = v1::GetAgentIdentityRequest { name };
    let reply = call!(client, Retry::Idempotent, get_agent_identity, request)?;
    present(reply.identity, "the identity")
}

/// Replaces what an agent identity is.
pub(crate) async fn replace(client: &Client, identity: v1::AgentIdentity) -> Result<v1::AgentIdentity> {
    let check = Retry::once(format!("see `mezctl agent-identities get {}`", identity.name));
    let request = v1::UpdateAgentIdentityRequest { identity: Some(identity), ..Default::default() };
    let reply = call!(client, check, update_agent_identity, request)?;
    present(reply.identity, "the identity")
}

/// Deletes an agent identity; answers how many sessions that ended, if it is known.
pub(crate) async fn delete(client: &Client, name: String) -> Result<Option<u32>> {
    let request = v1::DeleteAgentIdentityRequest { name };
    match call!(client, Retry::Idempotent, delete_agent_identity, request) {
        Ok(reply) => Ok(Some(reply.sessions_ended)),
        Err(error) if error.repeated_with(Code::NotFound) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

async fn ls(context: &Context) -> Result<()> {
    let identities = all(&context.user().await?).await?;
    context.print_list(identities.into_iter().map(IdentityView::from).collect())
}

async fn get(context: &Context, name: String) -> Result<()> {
    context.print(&IdentityView::from(one(&context.user().await?, name).await?))
}

async fn update(context: &Context, args: Update) -> Result<()> {
    let client = context.user().await?;
    let mut identity = one(&client, args.name).await?;
    let given = |list: Vec<String>| list.into_iter().filter(|text| !text.is_empty()).collect();
    if let Some(roles) = args.roles {
        identity.roles = given(roles);
    }
    if let Some(spiffe_ids) = args.spiffe_ids {
        identity.spiffe_ids = given(spiffe_ids);
    }
    if let Some(max_ttl) = args.max_ttl {
        identity.max_ttl = Some(proto_duration(max_ttl));
    }
    args.traits.apply(&mut identity.traits)?;
    // With the revision that was read: what somebody else changes meanwhile is not undone.
    context.print(&IdentityView::from(replace(&client, identity).await?))
}

async fn rm(context: &Context, name: String) -> Result<()> {
    let done = match delete(&context.user().await?, name.clone()).await? {
        Some(ended) => format!("Deleted agent identity {name}; {ended} sessions ended."),
        None => format!("Deleted agent identity {name}."),
    };
    context.print(&Done::new(done))
}
