//! `agent leave`: the end of a host in the cluster.

use anyhow::Result;
use clap::Args;
use mezite_client::Retry;
use mezite_proto::v1;
use tonic::Code;

use super::{Folder, client_of, spool};
use crate::{
    agent_dir::{AgentDir, Progress},
    cmd::call,
    context::Context,
    exit::Usage,
    output::Done,
};

/// Arguments of `agent leave`.
#[derive(Debug, Args)]
pub(crate) struct Leave {
    #[command(flatten)]
    folder: Folder,
    /// Only remove the files: the cluster has forgotten this agent, or its certificate has ended
    #[arg(long)]
    local: bool,
    /// Leave although the spool holds sessions or events that were not sent; they stay there
    #[arg(long)]
    force: bool,
}

pub(crate) async fn leave(context: &Context, args: Leave) -> Result<()> {
    let dir = AgentDir::new(&args.folder.dir)?;
    let Some(state) = dir.load()? else {
        return Err(Usage(format!("{} has no agent", dir.path().display())).into());
    };
    if let Some(folder) = state.spool.as_ref().filter(|_| !args.force) {
        spool::refuse_unsent(&dir, folder, args.local)?;
    }
    // One that has certificates holds its names, whether it has registered or not.
    if state.progress != Progress::Keys && !args.local {
        let client = client_of(context, &dir, &state).await?;
        match call!(client, Retry::Idempotent, deregister_agent, v1::DeregisterAgentRequest::default()) {
            Ok(v1::DeregisterAgentResponse {}) => {}
            // An earlier attempt had deregistered it, and its certificate is nobody's any more.
            Err(error)
                if [Code::NotFound, Code::Unauthenticated, Code::PermissionDenied]
                    .iter()
                    .any(|&code| error.repeated_with(code)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    dir.clear()?;
    let done = match state.progress {
        // The token may have been used all the same, by a call whose answer was lost. Without a certificate there is
        // nothing to show for it.
        Progress::Keys => {
            "Removed the keys. If the cluster holds the name of this host nevertheless, an admin finds it with `mezctl \
             nodes ls --unfinished`, and frees it with `mezctl nodes rm`."
        }
        Progress::Certified | Progress::Joined => {
            "Left the cluster. Remove the Include line from sshd_config, and reload sshd."
        }
    };
    let farewell = state.spool.as_ref().map_or_else(String::new, |folder| spool::farewell(folder));
    context.print(&Done::new(format!("{done}{farewell}")))
}
