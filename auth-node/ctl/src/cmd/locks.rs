//! `locks`: who and what is kept out.

use std::time::Duration;

use anyhow::Result;
use clap::{Args, Subcommand};
use mezite_client::{Client, Retry};
use mezite_proto::v1::{self, lock_target::Target};
use serde::Serialize;
use tonic::Code;

use crate::{
    args::{human_duration, proto_duration},
    cmd::{call, list, present},
    context::Context,
    exit::Usage,
    output::{self, Done, Report, Row},
};

/// Commands on locks.
#[derive(Debug, Subcommand)]
pub(crate) enum Locks {
    /// Lock a user, agent identity, role, login, node or device out: when this returns, no node of the cluster lets it in, and its certificates
    /// are revoked
    #[command(visible_alias = "create")]
    Add(Add),
    /// List locks
    Ls,
    /// Show a lock
    Get {
        /// Id of the lock
        id: String,
    },
    /// Remove a lock; certificates that it revoked stay revoked
    #[command(visible_alias = "delete")]
    Rm {
        /// Id of the lock
        id: String,
    },
}

const ADD_EXAMPLES: &str = "\
Examples:
  mezctl locks add user:alice --message 'laptop stolen, call 1234'
  mezctl locks add role:contractor --ttl 8h
  mezctl locks add login:root
  mezctl locks add node:6f9d2a54-…              by the agent id that `mezctl nodes ls` shows

Running SSH sessions go on: end them on the host. New ones are refused within seconds, where `mezctl agent run` runs.";

/// Arguments of `locks add`.
#[derive(Debug, Args)]
#[command(after_help = ADD_EXAMPLES)]
pub(crate) struct Add {
    /// What to lock: user:NAME, agent-identity:NAME, role:NAME, login:NAME, node:AGENT-ID, or device:ID of a WebAuthn device
    target: String,
    /// Shown to the one who is locked out
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    message: String,
    /// How long [default: until it is removed]
    #[arg(long, value_parser = human_duration, value_name = "DURATION")]
    ttl: Option<Duration>,
}

/// What `kind:name` names.
pub(crate) fn target(text: &str) -> Result<Target> {
    let (kind, name) = text.split_once(':').unwrap_or((text, ""));
    let name = name.to_owned();
    Ok(match kind {
        _ if name.is_empty() => return Err(unknown(text)),
        "user" => Target::User(name),
        "role" => Target::Role(name),
        "login" => Target::Login(name),
        "node" => Target::Node(name),
        "device" => Target::Device(name),
        "agent-identity" => Target::AgentIdentity(name),
        _ => return Err(unknown(text)),
    })
}

/// How a target is written.
pub(crate) fn shown(target: Option<v1::LockTarget>) -> String {
    match target.and_then(|target| target.target) {
        Some(Target::User(name)) => format!("user:{name}"),
        Some(Target::Role(name)) => format!("role:{name}"),
        Some(Target::Login(name)) => format!("login:{name}"),
        Some(Target::Node(id)) => format!("node:{id}"),
        Some(Target::Device(id)) => format!("device:{id}"),
        Some(Target::AgentIdentity(name)) => format!("agent-identity:{name}"),
        None => "unknown".into(),
    }
}

fn unknown(text: &str) -> anyhow::Error {
    let forms = "user:NAME, agent-identity:NAME, role:NAME, login:NAME, node:AGENT-ID or device:ID";
    Usage(format!("`{text}` cannot be locked: write {forms}")).into()
}

#[derive(Serialize)]
pub(crate) struct LockView {
    id: String,
    target: String,
    message: String,
    created_by: String,
    created_at: Option<String>,
    /// Absent: until it is removed.
    expires_at: Option<String>,
}

impl From<v1::Lock> for LockView {
    fn from(lock: v1::Lock) -> Self {
        Self {
            target: shown(lock.target),
            created_at: output::time(lock.created_at.as_ref()),
            expires_at: output::time(lock.expires_at.as_ref()),
            id: lock.lock_id,
            message: lock.message,
            created_by: lock.created_by,
        }
    }
}

impl Report for LockView {
    fn text(&self) -> String {
        output::fields(&[
            ("id", self.id.clone()),
            ("target", self.target.clone()),
            ("message", self.message.clone()),
            ("created by", self.created_by.clone()),
            ("created", self.created_at.clone().unwrap_or_default()),
            ("expires", self.expires_at.clone().unwrap_or_else(|| "when it is removed".into())),
        ])
    }
}

impl Row<5> for LockView {
    const HEADER: [&'static str; 5] = ["ID", "TARGET", "EXPIRES", "CREATED BY", "MESSAGE"];

    fn row(&self) -> [String; 5] {
        [
            self.id.clone(),
            self.target.clone(),
            self.expires_at.clone().unwrap_or_default(),
            self.created_by.clone(),
            self.message.clone(),
        ]
    }
}

pub(crate) async fn run(context: &Context, command: Locks) -> Result<()> {
    match command {
        Locks::Add(args) => add(context, args).await,
        Locks::Ls => ls(context).await,
        Locks::Get { id } => get(context, id).await,
        Locks::Rm { id } => rm(context, id).await,
    }
}

/// Makes a lock.
pub(crate) async fn make(client: &Client, request: v1::CreateLockRequest) -> Result<v1::Lock> {
    let reply = call!(client, Retry::once("see `mezctl locks ls`"), create_lock, request)?;
    present(reply.lock, "the lock")
}

/// All locks.
pub(crate) async fn all(client: &Client) -> Result<Vec<v1::Lock>> {
    Ok(list!(client, list_locks, locks, |page_token| v1::ListLocksRequest {
        page_size: mezite_client::PAGE_SIZE,
        page_token
    })?)
}

/// A lock.
pub(crate) async fn one(client: &Client, lock_id: String) -> Result<v1::Lock> {
    let reply = call!(client, Retry::Idempotent, get_lock, v1::GetLockRequest { lock_id })?;
    present(reply.lock, "the lock")
}

/// Removes a lock.
pub(crate) async fn delete(client: &Client, lock_id: String) -> Result<()> {
    match call!(client, Retry::Idempotent, delete_lock, v1::DeleteLockRequest { lock_id }) {
        Ok(v1::DeleteLockResponse {}) => Ok(()),
        Err(error) if error.repeated_with(Code::NotFound) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

async fn add(context: &Context, args: Add) -> Result<()> {
    let target = Some(v1::LockTarget { target: Some(target(&args.target)?) });
    let request = v1::CreateLockRequest { target, message: args.message, ttl: args.ttl.map(proto_duration) };
    context.print(&LockView::from(make(&context.user().await?, request).await?))
}

async fn ls(context: &Context) -> Result<()> {
    let locks = all(&context.user().await?).await?;
    context.print_list(locks.into_iter().map(LockView::from).collect())
}

async fn get(context: &Context, lock_id: String) -> Result<()> {
    context.print(&LockView::from(one(&context.user().await?, lock_id).await?))
}

async fn rm(context: &Context, lock_id: String) -> Result<()> {
    delete(&context.user().await?, lock_id.clone()).await?;
    context.print(&Done::new(format!("Removed lock {lock_id}.")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_kind_and_a_name() {
        assert_eq!(target("user:ann@example.com").unwrap(), Target::User("ann@example.com".into()));
        assert_eq!(target("login:a:b").unwrap(), Target::Login("a:b".into()));
        for bad in ["", "user", "user:", "users:ann", ":ann", "device:"] {
            assert!(target(bad).unwrap_err().is::<Usage>(), "{bad}");
        }
    }
}
