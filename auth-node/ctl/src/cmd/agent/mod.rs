//! `agent`: this host as an SSH node of the cluster.

mod heartbeat;
mod join;
mod leave;
pub(crate) mod pulse;
mod run;
mod spool;

use std::{
    fmt,
    path::PathBuf,
    time::{Duration, UNIX_EPOCH},
};

use anyhow::Result;
use clap::{Args, Subcommand};
use mezite_client::{Client, ClientConfig, ClientError};
use mezite_daemon::clock;

use crate::{
    agent_dir::{AgentDir, AgentState},
    context::{Cluster, Context},
    exit::CLOCK_FIRST,
};

/// Commands of an agent.
#[derive(Debug, Subcommand)]
pub(crate) enum Agent {
    /// Join the cluster with a token; run it again to finish a join that was interrupted, with a new token if the first
    /// one has ended
    Join(join::Join),
    /// Keep this host in the cluster, as a service: heartbeats, trust, revocations, renewal
    Run(run::Run),
    /// Report once that this host lives; renew its certificates when it is time
    Heartbeat(heartbeat::Heartbeat),
    /// Get new certificates for the same keys
    Renew(Folder),
    /// Leave the cluster, and remove the agent's files
    Leave(leave::Leave),
}

/// The agent's certificate is no credential any more, and cannot be renewed by itself.
#[derive(Debug, thiserror::Error)]
pub(crate) struct Ended {
    /// RFC 3339.
    at: String,
    /// Where its recordings are.
    spool: Option<PathBuf>,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = &self.at;
        write!(
            f,
            "the agent's certificate ended at {at}: {CLOCK_FIRST}; if that is right, run `mezctl agent leave --local`, and \
             join with a new token"
        )?;
        match &self.spool {
            Some(spool) => write!(f, " and --spool {}", spool.display()),
            None => Ok(()),
        }
    }
}

/// The cluster says that it does not have this agent any more: what ends `agent run` for good.
#[derive(Debug, thiserror::Error)]
#[error("this host is no agent of the cluster any more")]
pub(crate) struct Gone(#[source] pub(crate) ClientError);

/// Where the agent is.
#[derive(Debug, Args)]
pub(crate) struct Folder {
    /// Folder of the agent, as `agent join` wrote it
    #[arg(long, alias = "out", value_name = "DIR")]
    dir: PathBuf,
}

pub(crate) async fn run(context: &Context, command: Agent) -> Result<()> {
    match command {
        Agent::Join(args) => join::join(context, args).await,
        Agent::Run(args) => run::run(context, args).await,
        Agent::Heartbeat(args) => heartbeat::heartbeat(context, args).await,
        Agent::Renew(folder) => heartbeat::renew(context, &AgentDir::new(&folder.dir)?).await,
        Agent::Leave(args) => leave::leave(context, args).await,
    }
}

/// An agent that has joined, and a client with its certificate.
pub(crate) async fn client(context: &Context, dir: &AgentDir) -> Result<(AgentState, Client)> {
    let state = dir.joined()?;
    let client = client_of(context, dir, &state).await?;
    Ok((state, client))
}

async fn client_of(context: &Context, dir: &AgentDir, state: &AgentState) -> Result<Client> {
    let (_, end) = dir.lifetime()?;
    if clock::unix_seconds() >= end {
        let at = UNIX_EPOCH + Duration::from_secs(end);
        let at = humantime::format_rfc3339_seconds(at).to_string();
        return Err(Ended { at, spool: state.spool.clone() }.into());
    }
    let known = Cluster { addresses: state.addresses.clone(), trust: dir.trust(state)? };
    let cluster = context.cluster(Some(known)).await?;
    let config = ClientConfig::new(cluster.addresses, cluster.trust);
    Ok(Client::new(ClientConfig { identity: Some(dir.identity()?), policy: context.policy, ..config })?)
}
