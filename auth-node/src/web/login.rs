//! Logging in and out, and who one is.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    http::header::SET_COOKIE,
    response::{IntoResponse as _, Response},
};
use mezite_proto::v1;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{
    Web,
    call::{Asked, Body, no_cookie, session_cookie},
};
use crate::{
    error::{ApiError, Problem},
    rpc,
};

/// A username and a password.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Login {
    username: String,
    password: String,
    /// Whether the session's id is wanted in the answer, as a program does that keeps it itself, and no cookie.
    #[serde(default)]
    token: bool,
}

/// What an authenticator answered to a challenge.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Finish {
    challenge_id: String,
    /// `AuthenticationResponseJSON` of WebAuthn Level 3.
    credential: Value,
    /// As at the beginning.
    #[serde(default)]
    token: bool,
}

/// A session, as its user sees it.
#[derive(Serialize)]
struct SessionView {
    user: String,
    /// How the user proved itself.
    method: &'static str,
    /// RFC 3339.
    created_at: String,
    /// RFC 3339.
    expires_at: String,
}

impl From<&v1::Session> for SessionView {
    fn from(session: &v1::Session) -> Self {
        let time =
            |time: &Option<prost_types::Timestamp>| time.map(|time| time.to_string()).unwrap_or_default();
        Self {
            user: session.user.clone(),
            method: match session.method() {
                v1::AuthMethod::Password => "password",
                v1::AuthMethod::Webauthn => "webauthn",
                v1::AuthMethod::Sso => "sso",
                v1::AuthMethod::Spiffe => "spiffe",
                v1::AuthMethod::AgentIdentity => "agent_identity",
                v1::AuthMethod::Unspecified => "unspecified",
            },
            created_at: time(&session.created_at),
            expires_at: time(&session.expires_at),
        }
    }
}

/// Exchanges a username and a password for a session.
pub(super) async fn login(
    State(web): State<Arc<Web>>,
    from: Asked,
    Body(login): Body<Login>,
) -> Result<Response, Problem> {
    let Login { username, password, token } = login;
    let call = asked.call("AuthenticateLocal")?;
    let work = async {
        let tried = rpc::login::verify(&web.service, &call, &username, Zeroizing::new(password)).await?;
        rpc::login::conclude(&web.service, &call, tried).await
    };
    let (id, session) = web.carry_out(&call, work).await?;
    logged_in(&id, &session, token)
}

/// Exchanges what an authenticator answered for a session.
pub(super) async fn finish(
    State(web): State<Arc<Web>>,
    from: Asked,
    Body(finish): Body<Finish>,
) -> Result<Response, Problem> {
    let Finish { challenge_id, credential, token } = finish;
    let call = asked.call("FinishWebAuthnLogin")?;
    let credential_json = credential.to_string();
    let request = v1::FinishWebAuthnLoginRequest { challenge_id, credential_json };
    let work = rpc::later::<_, v1::FinishWebAuthnLoginResponse>(&web.service, &call, request);
    let reply = web.carry_out(&call, work).await?;
    let none = || ApiError::Internal("a login without a session".into()).into_problem("");
    logged_in(&Zeroizing::new(reply.session_id), &reply.session.ok_or_else(none)?, token)
}

/// Hands out a new session: to a program its id, to a browser a cookie, of which no script learns.
fn logged_in(id: &Zeroizing<String>, session: &v1::Session, token: bool) -> Result<Response, Problem> {
    let view = SessionView::from(session);
    if token {
        return Ok(Json(json!({ "session": view, "session_id": id.as_str() })).into_response());
    }
    let seconds = |time: &Option<prost_types::Timestamp>| time.map_or(0, |time| time.seconds);
    let cookie = session_cookie(id, seconds(&session.expires_at) - seconds(&session.created_at))?;
    Ok(([(SET_COOKIE, cookie)], Json(json!({ "session": view }))).into_response())
}

/// Ends the session. The browser forgets it, whatever becomes of that.
pub(super) async fn logout(State(web): State<Arc<Web>>, asked: Asked) -> Response {
    let ended = async {
        let call = asked.call("Logout")?;
        web.carry_out(&call, rpc::login::logout(&web.service, &call, v1::LogoutRequest {})).await
    };
    let answer = match ended.await {
        Ok(v1::LogoutResponse {}) => Json(json!({})).into_response(),
        Err(problem) => problem.into_response(),
    };
    ([(SET_COOKIE, no_cookie())], answer).into_response()
}

/// Who one is: for whoever may see its own devices, which is anybody who has a session.
pub(super) async fn session(State(web): State<Arc<Web>>, asked: Asked) -> Result<Response, Problem> {
    let call = asked.call("ListWebAuthnDevices")?;
    let (session, roles) = web.carry_out(&call, rpc::sessions::own(&web.service, &call)).await?;
    Ok(Json(json!({ "session": SessionView::from(&session), "roles": roles })).into_response())
}
