//! Invites: made by who manages users, and `accept-invite`, with which a user sets its password.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::Args;
use mezite_client::{Client, ClusterTrust, Retry};
use mezite_proto::v1;
use serde::Serialize;
use tonic::Code;
use zeroize::Zeroizing;

use crate::{
    args::{human_duration, proto_duration},
    cmd::call,
    context::{Cluster, Context},
    exit::Usage,
    files::Pending,
    output::{self, Done, Report},
    profile::Profile,
    secret,
};

/// How a user gets its password.
#[derive(Debug, Args)]
pub(crate) struct ProofArgs {
    /// Give it this password instead of an invite: file, mode 0600; 12 characters or more; `-` reads standard input
    // Without the environment variable of `login`: that is the admin's own password.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["ask_password", "invite_ttl", "out"])]
    password_file: Option<PathBuf>,
    /// Give it a password instead of an invite, and ask for that twice on the terminal
    #[arg(long, conflicts_with_all = ["invite_ttl", "out"])]
    ask_password: bool,
    /// How long the invite is good for, 1m to 7d [default: 1h]
    #[arg(long, value_parser = human_duration, value_name = "DURATION")]
    invite_ttl: Option<Duration>,
    /// File to write the secret of the invite to, mode 0600, instead of printing it
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// What is to be sent, and where the secret goes that comes back.
pub(crate) struct Proof<'a> {
    /// Empty: an invite.
    pub(crate) password: Zeroizing<String>,
    pub(crate) invite_ttl: Option<prost_types::Duration>,
    out: Option<(&'a Path, Pending<'a>)>,
    /// What an invited user is to run.
    command: String,
}

impl ProofArgs {
    /// Reads the password; or makes the file for the secret, and asks how the cluster will be recognised.
    pub(crate) async fn read(&self, context: &Context, client: &Client, user: &str) -> Result<Proof<'_>> {
        let (password, command) = match (&self.password_file, self.ask_password) {
            (None, false) => (Zeroizing::default(), accept_command(context, client).await?),
            (file, _) => {
                let prompt = format!("Password for {user}: ");
                (secret::new_password(file.as_deref(), "--password-file", &prompt)?, String::new())
            }
        };
        let out = self.out.as_deref().map(|path| anyhow::Ok((path, Pending::create(path)?))).transpose()?;
        Ok(Proof { password, invite_ttl: self.invite_ttl.map(proto_duration), out, command })
    }
}

/// What an invited user is to run: with the pin of the CA by which servers are known now, which the profile may not have
/// heard of yet.
async fn accept_command(context: &Context, client: &Client) -> Result<String> {
    let trust = ClusterTrust::from_bundle(&context.trust_bundle(client).await?)?;
    let pin = trust.pins().first().map(|pin| format!(" --ca-pin {pin}")).unwrap_or_default();
    Ok(format!("mezctl accept-invite --addr {}{pin}", client.addresses().join(",")))
}

/// An invite that was made.
#[derive(Serialize)]
pub(crate) struct InviteView {
    expires_at: Option<String>,
    /// With it, the user sets its password; absent when it went to a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    secret_file: Option<PathBuf>,
    /// Or opens this page, where the cluster knows its own address on the web; absent when the secret, which is in it, went to
    /// a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    link: Option<String>,
    /// What the user is to run. It asks for the secret and the password.
    command: String,
}

impl InviteView {
    /// Of what the cluster answered; `None` when it made no invite.
    pub(crate) fn new(
        proof: Proof<'_>,
        (secret, link): (String, String),
        expires_at: Option<prost_types::Timestamp>,
    ) -> Result<Option<Self>> {
        if secret.is_empty() {
            return Ok(None);
        }
        let (secret, secret_file, link) = match proof.out {
            Some((path, out)) => {
                out.write_secret(&Zeroizing::new(secret))?;
                (None, Some(path.to_owned()), None)
            }
            None => (Some(secret), None, Some(link).filter(|link| !link.is_empty())),
        };
        let (expires_at, command) = (output::time(expires_at.as_ref()), proof.command);
        Ok(Some(Self { expires_at, secret, secret_file, link, command }))
    }
}

impl Report for InviteView {
    fn text(&self) -> String {
        let file = self.secret_file.as_ref().map(|file| file.display().to_string()).unwrap_or_default();
        output::fields(&[
            ("link", self.link.clone().unwrap_or_default()),
            ("invite", self.command.clone()),
            ("secret", self.secret.clone().unwrap_or_default()),
            ("secret file", file),
            ("good until", self.expires_at.clone().unwrap_or_default()),
        ])
    }
}

const ACCEPT_EXAMPLES: &str = "\
Examples:
  mezctl accept-invite --addr a.example:3025 --ca-pin sha256:…      asks for the secret and the new password
  mezctl accept-invite --secret-file invite --password-file new     in a script";

/// Arguments of `accept-invite`.
#[derive(Debug, Args)]
#[command(after_help = ACCEPT_EXAMPLES)]
pub(crate) struct Accept {
    /// File with the secret of the invite, mode 0600; `-` reads standard input [default: ask]
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// File with the new password, mode 0600; 12 characters or more [default: ask twice]
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
}

pub(crate) async fn accept(context: &Context, args: Accept) -> Result<()> {
    let dash = |file: &Option<PathBuf>| file.as_ref().is_some_and(|file| file.as_os_str() == "-");
    if dash(&args.secret_file) && dash(&args.password_file) {
        return Err(Usage("standard input is one file: give another for the password".into()).into());
    }
    let cluster = context.cluster(None).await?;
    let client = context.client(&cluster)?;
    let secret = secret::existing(args.secret_file.as_deref(), "--secret-file", "Secret of the invite: ")?;
    let password = secret::new_password(args.password_file.as_deref(), "--password-file", "New password: ")?;
    let request = v1::AcceptInviteRequest {
        secret: secret.as_str().to_owned(),
        new_password: password.as_str().to_owned(),
    };
    let user = match call!(client, Retry::Idempotent, accept_invite, request) {
        Ok(reply) => reply.user,
        Err(error) if error.repeated_with(Code::PermissionDenied) => {
            return Err(error).context(
                "an answer was lost, and the invite may have been used by then: see whether `mezctl login` \
                 takes the new password",
            );
        }
        Err(error) => return Err(error.into()),
    };
    // So that the login needs no options.
    let Cluster { addresses, trust } = cluster;
    context.home.update(|profile| match profile {
        Some(_) => None,
        None => Some(Profile { addresses, trust, last_user: None, login: None }),
    })?;
    context.print(&Done::new(format!(
        "The password of {user} is set: log in with `mezctl login --user {user}`."
    )))
}
