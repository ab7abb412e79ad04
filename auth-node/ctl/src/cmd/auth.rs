//! `auth`: the cluster's certificate authorities, and the rotation of their keys.

use std::{path::PathBuf, time::Duration};

use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};
use mezite_client::Retry;
use mezite_proto::v1;
use serde::Serialize;
use tonic::Code;

use crate::{
    args::{human_duration, proto_duration},
    cmd::{call, certs::lines, present},
    context::Context,
    exit::Usage,
    files::{PUBLIC, write_atomic},
    output::{self, Report, Row},
};

/// Commands on the cluster's certificate authorities.
#[derive(Debug, Subcommand)]
pub(crate) enum Auth {
    /// Show where the rotation of each authority stands, and what holds it up
    Status,
    /// Exchange the key of an authority, step by step or by itself
    Rotate(Rotate),
    /// Print what an authority is trusted by: public keys, or certificates
    Export(Export),
}

const ROTATE_EXAMPLES: &str = "\
Examples:
  mezctl auth rotate host --to init
  mezctl auth rotate host --to update-clients
  mezctl auth rotate host --to update-servers
  mezctl auth rotate host --to standby               the old key is forgotten
  mezctl auth rotate host --to rollback              from any phase but standby; then --to standby
  mezctl auth rotate user --grace-period 48h         all of it, by itself

A step is refused while live agents, ingests or auth nodes have not taken the phase up. Certificates of users from before
are waited for by the last step of `user` and `tls`, and by `update-servers` of `host`; credentials of agent identities by the
last step of `spiffe`: see `mezctl auth status`. --force goes on all the same; what has not followed is cut off.
After the TLS CA was rotated, a first contact takes its new pin (`mezctl status`).";

/// Arguments of `auth rotate`.
#[derive(Debug, Args)]
#[command(after_help = ROTATE_EXAMPLES)]
pub(crate) struct Rotate {
    /// Which authority
    #[arg(value_enum)]
    kind: Kind,
    /// The phase to go to
    #[arg(long, value_enum, required_unless_present = "grace_period", conflicts_with = "grace_period")]
    to: Option<Phase>,
    /// Begin, and go through all phases by itself in this time, 3s to 90d
    #[arg(long, value_parser = human_duration, value_name = "DURATION")]
    grace_period: Option<Duration>,
    /// Go on although something has not followed
    #[arg(long)]
    force: bool,
}

impl Rotate {
    /// Whether it is in the phase to which it is to go.
    fn is_reached(&self, rotation: &v1::CaRotation) -> bool {
        rotation.kind() == self.kind.wire() && self.to.map(Phase::wire) == Some(rotation.phase())
    }
}

/// Arguments of `auth export`.
#[derive(Debug, Args)]
pub(crate) struct Export {
    /// Which authority
    #[arg(value_enum)]
    kind: Kind,
    /// As `@cert-authority` lines for known_hosts
    #[arg(long)]
    known_hosts: bool,
    /// File to write [default: print]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// Signs SSH certificates of users
    User,
    /// Signs SSH certificates of hosts
    Host,
    /// Signs the certificates of the API's servers and clients
    Tls,
    /// Signs the certificates that auth nodes show each other
    Peer,
    /// Signs X.509-SVIDs
    Spiffe,
    /// Signs checkpoints of the audit log
    Audit,
}

impl Kind {
    fn wire(self) -> v1::CaKind {
        match self {
            Self::User => v1::CaKind::User,
            Self::Host => v1::CaKind::Host,
            Self::Tls => v1::CaKind::Tls,
            Self::Peer => v1::CaKind::Peer,
            Self::Spiffe => v1::CaKind::Spiffe,
            Self::Audit => v1::CaKind::Audit,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Phase {
    /// The new key is made, and everybody comes to trust it
    Init,
    /// The new key signs for users and agents
    UpdateClients,
    /// The new key signs for servers too
    UpdateServers,
    /// The rotation ends: the other key is forgotten
    Standby,
    /// The old key signs again
    Rollback,
}

impl Phase {
    fn wire(self) -> v1::RotationPhase {
        match self {
            Self::Init => v1::RotationPhase::Init,
            Self::UpdateClients => v1::RotationPhase::UpdateClients,
            Self::UpdateServers => v1::RotationPhase::UpdateServers,
            Self::Standby => v1::RotationPhase::Standby,
            Self::Rollback => v1::RotationPhase::Rollback,
        }
    }
}

#[derive(Serialize)]
struct RotationView {
    kind: &'static str,
    phase: &'static str,
    since: Option<String>,
    next_at: Option<String>,
    lagging: u32,
    lagging_names: Vec<String>,
    absent: u32,
    /// Seconds for which those that are absent hold the next step up all the same.
    absent_held_for_s: Option<i64>,
    outstanding_certificates: u32,
    outstanding_until: Option<String>,
    revision: u64,
}

impl From<v1::CaRotation> for RotationView {
    fn from(rotation: v1::CaRotation) -> Self {
        Self {
            kind: match rotation.kind() {
                v1::CaKind::User => "user",
                v1::CaKind::Host => "host",
                v1::CaKind::Tls => "tls",
                v1::CaKind::Peer => "peer",
                v1::CaKind::Spiffe => "spiffe",
                v1::CaKind::Audit => "audit",
                v1::CaKind::Unspecified => "?",
            },
            phase: match rotation.phase() {
                v1::RotationPhase::Standby => "standby",
                v1::RotationPhase::Init => "init",
                v1::RotationPhase::UpdateClients => "update-clients",
                v1::RotationPhase::UpdateServers => "update-servers",
                v1::RotationPhase::Rollback => "rollback",
                v1::RotationPhase::Unspecified => "?",
            },
            since: output::time(rotation.phase_started_at.as_ref()),
            next_at: output::time(rotation.next_phase_at.as_ref()),
            lagging: rotation.lagging_agents,
            lagging_names: rotation.lagging_names,
            absent: rotation.absent_agents,
            absent_held_for_s: rotation.absent_held_for.map(|left| left.seconds + i64::from(left.nanos > 0)),
            outstanding_certificates: rotation.outstanding_certificates,
            outstanding_until: output::time(rotation.outstanding_until.as_ref()),
            revision: rotation.revision,
        }
    }
}

impl Report for RotationView {
    fn text(&self) -> String {
        output::fields(&[
            ("authority", self.kind.into()),
            ("phase", self.phase.into()),
            ("since", self.since.clone().unwrap_or_default()),
            ("moves on", self.next_at.clone().unwrap_or_default()),
            ("revision", self.revision.to_string()),
        ])
    }
}

impl Row<6> for RotationView {
    const HEADER: [&'static str; 6] = ["CA", "PHASE", "SINCE", "MOVES ON", "HELD UP BY", "ABSENT"];

    fn row(&self) -> [String; 6] {
        let mut held = Vec::new();
        if self.lagging > 0 {
            held.push(format!("{} lag: {}", self.lagging, self.lagging_names.join(", ")));
        }
        if let Some(left) = self.absent_held_for_s {
            held.push(format!("{} absent, which have {left} s left to report after an outage", self.absent));
        }
        if let Some(until) = &self.outstanding_until {
            held.push(format!("{} certificates of users until {until}", self.outstanding_certificates));
        }
        [
            self.kind.into(),
            self.phase.into(),
            self.since.clone().unwrap_or_default(),
            self.next_at.clone().unwrap_or_default(),
            held.join("; "),
            self.absent.to_string(),
        ]
    }
}

#[derive(Serialize)]
struct Exported {
    keys: Vec<String>,
}

impl Report for Exported {
    fn text(&self) -> String {
        lines(&self.keys)
    }
}

pub(crate) async fn run(context: &Context, command: Auth) -> Result<()> {
    match command {
        Auth::Status => status(context).await,
        Auth::Rotate(args) => rotate(context, args).await,
        Auth::Export(args) => export(context, args).await,
    }
}

async fn status(context: &Context) -> Result<()> {
    let client = context.user().await?;
    let reply = call!(client, Retry::Idempotent, get_ca_rotation, v1::GetCaRotationRequest {})?;
    context.follow_trust(&client).await;
    context.print_list(reply.rotations.into_iter().map(RotationView::from).collect())
}

async fn rotate(context: &Context, args: Rotate) -> Result<()> {
    let client = context.user().await?;
    // Of whoever may rotate and not look, the cluster says whether it can be done.
    let reached = match call!(client, Retry::Idempotent, get_ca_rotation, v1::GetCaRotationRequest {}) {
        Ok(reply) => reply.rotations.into_iter().find(|rotation| args.is_reached(rotation)),
        Err(error) if error.code() == Some(Code::PermissionDenied) => None,
        Err(error) => return Err(error.into()),
    };
    if let Some(rotation) = reached {
        output::say("it is in that phase already");
        // The answer that was lost was of the new authority.
        context.follow_trust(&client).await;
        return context.print(&RotationView::from(rotation));
    }
    let request = v1::RotateCaRequest {
        kind: args.kind.wire().into(),
        target_phase: args.to.unwrap_or(Phase::Init).wire().into(),
        grace_period: args.grace_period.map(proto_duration),
        force: args.force,
        revision: 0,
    };
    let reply = call!(client, Retry::once("see `mezctl auth status`"), rotate_ca, request)?;
    // Whoever rotates the TLS CA is not to be locked out by it.
    context.follow_trust(&client).await;
    context.print(&RotationView::from(present(reply.rotation, "the rotation")?))
}

async fn export(context: &Context, args: Export) -> Result<()> {
    if args.known_hosts && args.kind != Kind::Host {
        return Err(Usage(
            "known_hosts lines are of the host CA: mezctl auth export host --known-hosts".into(),
        )
        .into());
    }
    let cluster = context.cluster(None).await?;
    let bundle = context.client(&cluster)?.trust_bundle().await?;
    let keys = if args.known_hosts {
        bundle.known_hosts
    } else {
        let of_kind = |ca: &v1::TrustedCa| ca.kind() == args.kind.wire();
        let authority = present(bundle.authorities.into_iter().find(of_kind), "this authority")?;
        [authority.ssh_public_keys, authority.certificates].concat()
    };
    match args.out {
        Some(path) => write_atomic(&path, lines(&keys).as_bytes(), PUBLIC),
        None => context.print(&Exported { keys }),
    }
}
