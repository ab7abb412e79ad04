//! `sessions`: logins that are active, and their end.

use anyhow::Result;
use clap::Subcommand;
use mezite_client::Retry;
use mezite_proto::v1;
use serde::Serialize;
use tonic::Code;

use crate::{
    cmd::{call, list},
    context::Context,
    output::{self, Done, Row},
};

/// Commands on login sessions.
#[derive(Debug, Subcommand)]
pub(crate) enum Sessions {
    /// List active sessions: your own, or everybody's for an admin
    Ls {
        /// Only this user's
        #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
        user: String,
    },
    /// Revoke a session: when this returns, no node honours it
    Revoke {
        /// Handle of the session, as `sessions ls` shows it
        handle: String,
    },
}

#[derive(Serialize)]
struct SessionView {
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
            method: match session.method() {
                v1::AuthMethod::Password => "password",
                v1::AuthMethod::Webauthn => "webauthn",
                v1::AuthMethod::Sso => "sso",
                v1::AuthMethod::Spiffe => "spiffe",
                v1::AuthMethod::AgentIdentity => "agent-identity",
                v1::AuthMethod::Unspecified => "unknown",
            },
            created_at: output::time(session.created_at.as_ref()),
            last_used_at: output::time(session.last_used_at.as_ref()),
            expires_at: output::time(session.expires_at.as_ref()),
            handle: session.handle,
            user: session.user,
            client_address: session.client_address,
        }
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

async fn ls(context: &Context, user: &str) -> Result<()> {
    let client = context.user().await?;
    let sessions =
        list!(client, list_active_sessions, sessions, |page_token| v1::ListActiveSessionsRequest {
            user: user.to_owned(),
            page_size: mezite_client::PAGE_SIZE,
            page_token
        })?;
    context.print_list(sessions.into_iter().map(SessionView::from).collect())
}

async fn revoke(context: &Context, handle: String) -> Result<()> {
    let client = context.user().await?;
    let request = v1::RevokeSessionRequest { session: handle.clone() };
    match call!(client, Retry::Idempotent, revoke_session, request) {
        Ok(v1::RevokeSessionResponse {}) => {}
        Err(error) if error.repeated_with(Code::NotFound) => {}
        // It was the caller's own, and an earlier attempt had revoked it.
        Err(error) if error.repeated_with(Code::Unauthenticated) => {}
        Err(error) => return Err(error.into()),
    }
    context.print(&Done::new(format!("Revoked session {handle}.")))
}
