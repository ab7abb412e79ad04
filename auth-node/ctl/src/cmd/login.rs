//! `login`, `logout`, `passwd`: the user's own session and password.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use mezite_client::{Client, ClientError, ClusterTrust, Retry, SessionSecret};
use mezite_proto::v1;
use serde::Serialize;
use tonic::Code;

use crate::{
    cmd::{call, present, sso},
    context::{Cluster, Context},
    exit::Usage,
    output::{self, Done, Report},
    profile::{LoginState, Profile},
    secret,
    ssh_dir::SshDir,
};

const LOGIN_EXAMPLES: &str = "\
Examples:
  mezctl login --addr a.example:3025,b.example:3025 --ca-pin sha256:… --user alice
  mezctl login                                 the same cluster and user again
  mezctl login --sso corporate                 by a provider, in a browser on this machine
  mezctl login --password-file - < secret      in a script";

/// Arguments of `login`.
#[derive(Debug, Args)]
#[command(after_help = LOGIN_EXAMPLES)]
pub(crate) struct Login {
    /// Who logs in [default: who did last]
    #[arg(long, short, env = "MEZITE_USER", hide_env_values = true, value_name = "NAME")]
    user: Option<String>,
    /// File with the password, mode 0600; `-` reads standard input [default: ask on the terminal]
    #[arg(long, env = "MEZITE_PASSWORD_FILE", hide_env_values = true, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Log in by single sign-on, with the connector of this name, in a browser on this machine
    #[arg(long, value_name = "CONNECTOR")]
    sso: Option<String>,
    /// With --sso: only print the address, and open no browser
    #[arg(long, requires = "sso")]
    no_browser: bool,
}

impl Login {
    /// Whether a provider says who logs in.
    pub(crate) fn is_by_sso(&self) -> bool {
        self.sso.is_some()
    }
}

/// Arguments of `passwd`.
#[derive(Debug, Args)]
pub(crate) struct Passwd {
    /// File with the old password, mode 0600 [default: ask]
    #[arg(long, value_name = "FILE")]
    old_password_file: Option<PathBuf>,
    /// File with the new password, mode 0600; 12 characters or more [default: ask twice]
    #[arg(long, value_name = "FILE")]
    new_password_file: Option<PathBuf>,
}

#[derive(Serialize)]
struct LoggedIn {
    cluster_name: String,
    user: String,
    session: String,
    expires_at: Option<String>,
}

impl Report for LoggedIn {
    fn text(&self) -> String {
        let until = self.expires_at.as_ref().map(|time| format!(" until {time}")).unwrap_or_default();
        format!("Logged in to {} as {}{until}.", self.cluster_name, self.user)
    }
}

pub(crate) async fn login(context: &Context, args: Login) -> Result<()> {
    if let Some(connector) = &args.sso {
        let cluster = context.cluster(None).await?;
        let client = context.client(&cluster)?;
        let (id, session) = sso::login(&client, connector, !args.no_browser).await?;
        return keep(context, cluster, &client, id.as_str().to_owned(), session).await;
    }
    let last = context.home.load()?.and_then(|profile| profile.last_user);
    let given = args.user.filter(|user| !user.is_empty());
    let username = given.or(last);
    // Whoever lacks both is told of both.
    let cluster = context.cluster(None).await?;
    let username = username.ok_or_else(|| Usage("who logs in? give --user NAME".into()))?;
    let client = context.client(&cluster)?;
    let password = secret::existing(
        args.password_file.as_deref(),
        "--password-file",
        &format!("Password of {username}: "),
    )?;
    let request = v1::AuthenticateLocalRequest { username, password: password.as_str().to_owned() };
    // A second login that was not needed leaves a session that ends by itself.
    let reply = call!(client, Retry::Idempotent, authenticate_local, request)?;
    let session = present(reply.session, "the session")?;
    keep(context, cluster, &client, reply.session_id, session).await
}

/// Keeps a session in the profile.
async fn keep(
    context: &Context,
    cluster: Cluster,
    client: &Client,
    id: String,
    session: v1::Session,
) -> Result<()> {
    let trust = refreshed(&client.trust_bundle().await, cluster.trust);
    let report = LoggedIn {
        cluster_name: trust.cluster_name().to_owned(),
        user: session.user.clone(),
        session: session.handle,
        expires_at: output::time(session.expires_at.as_ref()),
    };
    let login = LoginState {
        user: session.user,
        session: SessionSecret::new(id)?,
        expires_at: report.expires_at.clone(),
    };
    let (addresses, last_user) = (cluster.addresses, Some(login.user.clone()));
    context.home.save(&Profile { addresses, trust, last_user, login: Some(login) })?;
    // It may be another's, of another cluster, or without roles that were given meanwhile.
    SshDir::new(context.home.ssh()).forget()?;
    context.print(&report)
}

/// The CAs as they are now; what is known already when they cannot be had, for the login has succeeded.
fn refreshed(bundle: &Result<v1::GetTrustBundleResponse, ClientError>, known: ClusterTrust) -> ClusterTrust {
    let fresh = bundle.as_ref().ok().and_then(|bundle| ClusterTrust::from_bundle(bundle).ok());
    fresh.filter(|fresh| fresh.cluster_name() == known.cluster_name()).unwrap_or(known)
}

pub(crate) async fn logout(context: &Context) -> Result<()> {
    let Some(Profile { addresses, trust, login: Some(login), .. }) = context.home.load()? else {
        return Err(context.nobody());
    };
    let cluster = Cluster { addresses, trust };
    let client = context.client(&cluster)?.with_session(Some(login.session.clone()));
    match call!(client, Retry::Idempotent, logout, v1::LogoutRequest {}) {
        Ok(v1::LogoutResponse {}) => {}
        // It had ended already.
        Err(error) if error.code() == Some(Code::Unauthenticated) => {}
        Err(error) => return Err(error.into()),
    }
    // A login that was made meanwhile stays.
    let ended = |now: Profile| {
        let session = login.session.expose();
        let same = now.login.as_ref().is_some_and(|now| now.session.expose() == session);
        same.then_some(Profile { login: None, ..now })
    };
    if context.home.update(|now| now.and_then(ended))? {
        SshDir::new(context.home.ssh()).forget()?;
    }
    context.print(&Done::new(format!("Logged {} out.", login.user)))
}

pub(crate) async fn passwd(context: &Context, args: Passwd) -> Result<()> {
    let client = context.user().await?;
    let old = secret::existing(args.old_password_file.as_deref(), "--old-password-file", "Old password: ")?;
    let new =
        secret::new_password(args.new_password_file.as_deref(), "--new-password-file", "New password: ")?;
    let request = v1::ChangePasswordRequest {
        old_password: old.as_str().to_owned(),
        new_password: new.as_str().to_owned(),
    };
    let check = Retry::once("see which password `mezctl login` takes");
    let reply = call!(client, check, change_password, request)?;
    context.print(&Done::new(format!(
        "Password changed; {} other session{} ended.",
        reply.sessions_ended,
        if reply.sessions_ended == 1 { "" } else { "s" }
    )))
}
