//! `sessions`: logins that are active, and their end.

use anyhow::Result;
use clap::Subcommand;
use mezite_client::{Client, ClientError, Retry};
use mezite_proto::v1;
use serde::Serialize;
use tonic::Code;

use crate::{
    cmd::{call, list, seek},
    context::Context,
    exit::NotFound,
    output::{self, Done, Row},
};

/// Commands on login sessions.
#[derive(Debug, Subcommand)]
pub(crate) enum Sessions {
    /// List active sessions: your own, or everybody's for an admin
    Ls {
        /// Only this user's; `bot:NAME`: this agent identity's
        #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
        user: String,
    },
    /// Revoke a session: when this returns, no node honours it
    #[command(visible_aliases = ["rm", "delete"])]
    Revoke {
        /// Handle of the session, as `sessions ls` shows it
        handle: String,
    },
}

#[derive(Serialize)]
pub(crate) struct SessionView {
    handle: String,
    user: String,
    method: &'static str,
    client_address: String,
    created_at: Option<String>,
    /// Coarse: see `Session` in the API.
    last_used_at: Option<String>,
    expires_at: Option<String>,
}

impl From<v1::Session> for SessionView {
    fn from(session: v1::Session) -> Self {
        Self {
            method: word(session.method()),
            created_at: output::time(session.created_at.as_ref()),
            last_used_at: output::time(session.last_used_at.as_ref()),
            expires_at: output::time(session.expires_at.as_ref()),
            handle: session.handle,
            user: session.user,
            client_address: session.client_address,
        }
    }
}

/// How somebody logged in.
pub(crate) fn word(method: v1::AuthMethod) -> &'static str {
    match method {
        v1::AuthMethod::Password => "password",
        v1::AuthMethod::Webauthn => "webauthn",
        v1::AuthMethod::Sso => "sso",
        v1::AuthMethod::Spiffe => "spiffe",
        v1::AuthMethod::AgentIdentity => "agent-identity",
        v1::AuthMethod::Unspecified => "unknown",
    }
}

impl Row<7> for SessionView {
    const HEADER: [&'static str; 7] = ["HANDLE", "USER", "METHOD", "FROM", "CREATED", "LAST USED", "EXPIRES"];

    fn row(&self) -> [String; 7] {
        [
            self.handle.clone(),
            self.user.clone(),
            self.method.into(),
            self.client_address.clone(),
            self.created_at.clone().unwrap_or_default(),
            self.last_used_at.clone().unwrap_or_default(),
            self.expires_at.clone().unwrap_or_default(),
        ]
    }
}

pub(crate) async fn run(context: &Context, command: Sessions) -> Result<()> {
    match command {
        Sessions::Ls { user } => ls(context, &user).await,
        Sessions::Revoke { handle } => revoke(context, handle).await,
    }
}

fn page(user: &str, page_token: String) -> v1::ListActiveSessionsRequest {
    let user = user.to_owned();
    v1::ListActiveSessionsRequest { user, page_size: mezite_client::PAGE_SIZE, page_token }
}

/// Active sessions: of `user`, or, if it is empty, all that the caller sees.
pub(crate) async fn all(client: &Client, user: &str) -> Result<Vec<v1::Session>> {
    Ok(list!(client, list_active_sessions, sessions, |page_token| page(user, page_token))?)
}

fn handle_of(session: &v1::Session) -> &str {
    &session.handle
}

/// An active session that the caller sees.
pub(crate) async fn one(client: &Client, handle: &str) -> Result<v1::Session> {
    let mut found = None;
    let look = |page| Ok::<_, ClientError>(seek(page, handle, handle_of).map_break(|hit| found = hit));
    list!(client, list_active_sessions, sessions, |page_token| page("", page_token), look)?;
    found.ok_or_else(|| NotFound(format!("you see no active session {handle}")).into())
}

/// Revokes a session.
pub(crate) async fn delete(client: &Client, session: String) -> Result<()> {
    match call!(client, Retry::Idempotent, revoke_session, v1::RevokeSessionRequest { session }) {
        Ok(v1::RevokeSessionResponse {}) => Ok(()),
        Err(error) if error.repeated_with(Code::NotFound) => Ok(()),
        // It was the caller's own, and an earlier attempt had revoked it.
        Err(error) if error.repeated_with(Code::Unauthenticated) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

async fn ls(context: &Context, user: &str) -> Result<()> {
    let sessions = all(&context.user().await?, user).await?;
    context.print_list(sessions.into_iter().map(SessionView::from).collect())
}

async fn revoke(context: &Context, handle: String) -> Result<()> {
    delete(&context.user().await?, handle.clone()).await?;
    context.print(&Done::new(format!("Revoked session {handle}.")))
}
