//! `agent heartbeat` and `agent renew`: once each, from a timer or by hand.

use anyhow::Result;
use clap::Args;

use super::{
    Folder, client_of,
    pulse::{Pulse, certify},
};
use crate::{
    agent_dir::AgentDir,
    args::{key_value, label_map},
    context::Context,
    output::Done,
};

const EXAMPLES: &str = "\
Examples:
  mezctl agent heartbeat --dir /etc/mezite       once, from a timer

As a service: `mezctl agent run`.

New certificates are written when two thirds of their life are over. One that has ended cannot be renewed.";

/// What `agent heartbeat` and `agent run` take.
#[derive(Debug, Args)]
pub(crate) struct Reported {
    #[command(flatten)]
    folder: Folder,
    /// New labels of the node, all of them
    #[arg(long, value_delimiter = ',', value_parser = key_value, value_name = "KEY=VALUE,…")]
    labels: Option<Vec<(String, String)>>,
    /// New host:port where sshd is reached
    #[arg(long, value_name = "HOST:PORT")]
    address: Option<String>,
    /// SSH sessions in hand
    #[arg(long, default_value_t = 0, value_name = "COUNT")]
    load: u32,
}

impl Reported {
    /// The agent, with what is new about it on disk.
    pub(crate) fn pulse(self, context: &Context) -> Result<Pulse<'_>> {
        let dir = AgentDir::new(&self.folder.dir)?;
        let mut state = dir.joined()?;
        let labels = self.labels.as_deref().map(label_map).transpose()?;
        if labels.is_some() || self.address.is_some() {
            state = dir.tell(|kept| {
                if let Some(labels) = labels {
                    kept.labels = labels;
                }
                if let Some(address) = self.address {
                    kept.address = address;
                }
            })?;
        }
        Ok(Pulse::new(context, dir, state, self.load))
    }
}

/// Arguments of `agent heartbeat`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Heartbeat {
    #[command(flatten)]
    reported: Reported,
}

pub(crate) async fn heartbeat(context: &Context, args: Heartbeat) -> Result<()> {
    args.reported.pulse(context)?.beat().await.map(drop)
}

pub(crate) async fn renew(context: &Context, dir: &AgentDir) -> Result<()> {
    let mut state = dir.joined()?;
    let client = client_of(context, dir, &state).await?;
    certify(dir, &mut state, &client).await?;
    context.print(&Done::new(format!("Certificates of agent {} renewed; reload sshd.", state.agent_id)))
}
