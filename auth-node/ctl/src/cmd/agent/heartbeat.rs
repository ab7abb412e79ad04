//! `agent heartbeat` and `agent renew`: presence, trust and certificates of a host that has joined.

use std::time::Duration;

use anyhow::Result;
use clap::Args;
use mezite_client::{Client, ClientError, Retry};
use mezite_daemon::clock;
use mezite_proto::v1;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use super::{Folder, client_of};
use crate::{
    agent_dir::{AgentDir, AgentState},
    args::{key_value, label_map},
    cmd::{call, present},
    context::Context,
    output::{self, Done, Report},
};

/// Wait after a heartbeat that failed.
const AFTER_FAILURE: Duration = Duration::from_secs(5);
/// Least and longest wait between heartbeats, whatever the cluster says.
const INTERVAL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

const EXAMPLES: &str = "\
Examples:
  mezctl agent heartbeat --dir /etc/mezite              once, from a timer
  mezctl agent heartbeat --dir /etc/mezite --watch      as a service; SIGTERM ends it

New certificates are written when two thirds of their life are over. One that has ended cannot be renewed.";

/// Arguments of `agent heartbeat`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Heartbeat {
    #[command(flatten)]
    folder: Folder,
    /// Go on until interrupted, at the cluster's pace
    #[arg(long)]
    watch: bool,
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

#[derive(Serialize)]
struct Beat {
    agent_id: String,
    next_interval_seconds: f64,
    ingest_addresses: Vec<String>,
    trust_bundle_revision: u64,
    /// Whether new certificates were written: sshd must be reloaded.
    certificates_renewed: bool,
}

impl Report for Beat {
    fn text(&self) -> String {
        let renewed = if self.certificates_renewed { "yes: reload sshd" } else { "" };
        output::fields(&[
            ("agent id", self.agent_id.clone()),
            ("next in", format!("{:.1} s", self.next_interval_seconds)),
            ("ingests", self.ingest_addresses.join(", ")),
            ("trust bundle", format!("revision {}", self.trust_bundle_revision)),
            ("renewed", renewed.into()),
        ])
    }
}

pub(crate) async fn heartbeat(context: &Context, args: Heartbeat) -> Result<()> {
    let dir = AgentDir::new(&args.folder.dir)?;
    let mut state = dir.joined()?;
    if let Some(labels) = &args.labels {
        state.labels = label_map(labels)?;
    }
    if let Some(address) = args.address {
        state.address = address;
    }
    dir.save(&state)?;
    let mut pulse = Pulse { context, dir: &dir, state, load: args.load, client: None };
    if !args.watch {
        return pulse.beat().await.map(drop);
    }
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        ended = pulse.watch() => ended,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}

/// Whether a failure may be over at the next heartbeat.
fn passes(error: &anyhow::Error) -> bool {
    use tonic::Code;
    match error.downcast_ref::<ClientError>() {
        Some(ClientError::Config(_)) | None => false,
        Some(error) => !matches!(
            error.code(),
            Some(Code::Unauthenticated | Code::PermissionDenied | Code::NotFound | Code::InvalidArgument)
        ),
    }
}

/// An agent that reports. Its client is kept from beat to beat: it knows which addresses serve.
struct Pulse<'a> {
    context: &'a Context,
    dir: &'a AgentDir,
    state: AgentState,
    load: u32,
    /// Absent when there is none yet for the certificate and the CAs on disk.
    client: Option<Client>,
}

impl Pulse<'_> {
    /// Beats until the cluster says that the agent is no longer one.
    async fn watch(&mut self) -> Result<()> {
        loop {
            let wait = match self.beat().await {
                Ok(interval) => interval,
                Err(error) if passes(&error) => {
                    eprintln!("warning: {}", output::printable(&format!("{error:#}")));
                    AFTER_FAILURE
                }
                Err(error) => return Err(error),
            };
            tokio::time::sleep(wait.clamp(INTERVAL.0, INTERVAL.1)).await;
        }
    }

    async fn client(&mut self) -> Result<Client> {
        if let Some(client) = &self.client {
            return Ok(client.clone());
        }
        let client = client_of(self.context, self.dir, &self.state).await?;
        self.client = Some(client.clone());
        Ok(client)
    }

    async fn beat(&mut self) -> Result<Duration> {
        let certificates_renewed = self.renew_if_due().await?;
        let client = self.client().await?;
        let phases = self.state.phases.iter().map(|(&kind, &phase)| v1::AcknowledgedPhase { kind, phase });
        let request = v1::AgentHeartbeatRequest {
            version: env!("CARGO_PKG_VERSION").into(),
            labels: self.state.labels.clone(),
            address: self.state.address.clone(),
            load: self.load,
            acknowledged_phases: phases.collect(),
        };
        let reply = call!(client, Retry::Idempotent, agent_heartbeat, request)?;
        if reply.trust_bundle_revision != self.state.trust_bundle_revision {
            self.dir.keep_bundle(&mut self.state, &client.trust_bundle().await?)?;
            self.dir.save(&self.state)?;
            self.client = None;
        }
        let interval = Duration::try_from(present(reply.next_interval, "the interval")?).unwrap_or_default();
        self.context.print(&Beat {
            agent_id: self.state.agent_id.clone(),
            next_interval_seconds: interval.as_secs_f64(),
            ingest_addresses: reply.ingest_addresses,
            trust_bundle_revision: self.state.trust_bundle_revision,
            certificates_renewed,
        })?;
        Ok(interval)
    }

    async fn renew_if_due(&mut self) -> Result<bool> {
        let (lifetime, now) = (self.dir.lifetime()?, clock::unix_seconds());
        if now >= lifetime.1 {
            // A connection that was made before the end would hide it.
            self.client = None;
        }
        if !is_due(lifetime, now) {
            return Ok(false);
        }
        let client = self.client().await?;
        match certify(self.dir, &mut self.state, &client).await {
            Ok(()) => {
                self.client = None;
                Ok(true)
            }
            // There is a third of the old one's life left to try again in; presence does not wait for it.
            Err(error) if passes(&error) => {
                eprintln!("warning: not renewed yet: {}", output::printable(&format!("{error:#}")));
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}

/// Certificates are renewed when two thirds of their life are over, and never after it: then they are no credential.
fn is_due((not_before, not_after): (u64, u64), now: u64) -> bool {
    let due = not_after.saturating_sub(not_after.saturating_sub(not_before) / 3);
    now >= due && now < not_after
}

pub(crate) async fn renew(context: &Context, dir: &AgentDir) -> Result<()> {
    let mut state = dir.joined()?;
    let client = client_of(context, dir, &state).await?;
    certify(dir, &mut state, &client).await?;
    context.print(&Done::new(format!("Certificates of agent {} renewed; reload sshd.", state.agent_id)))
}

/// Gets new certificates for the same keys, by the certificate that the client shows.
async fn certify(dir: &AgentDir, state: &mut AgentState, client: &Client) -> Result<()> {
    let request = v1::GenerateHostCertsRequest {
        token: String::new(),
        ssh_public_key: dir.ssh_key()?.public_line(),
        tls_public_key: dir.tls_key()?.spki_der().into(),
        hostname: state.hostname.clone(),
        additional_principals: state.principals.clone(),
    };
    let issued = call!(client, Retry::Idempotent, generate_host_certs, request)?;
    if issued.agent_id != state.agent_id {
        anyhow::bail!("the cluster renewed another agent, {}", issued.agent_id);
    }
    dir.keep_certificates(state, &issued)?;
    dir.save(state)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_is_due_in_the_last_third() {
        assert!(!is_due((0, 300), 199));
        assert!(is_due((0, 300), 200));
        assert!(is_due((0, 300), 299));
        assert!(!is_due((0, 300), 300));
        assert!(!is_due((300, 0), 100));
    }

    #[test]
    fn a_watch_ends_only_when_the_agent_is_none_any_more() {
        let unavailable = ClientError::Unavailable {
            addresses: String::new(),
            attempts: 1,
            reason: String::new(),
            retry_after: None,
        };
        assert!(passes(&unavailable.into()));
        assert!(!passes(&ClientError::Config("no such key".into()).into()));
        assert!(!passes(&anyhow::anyhow!("disk full")));
    }
}
