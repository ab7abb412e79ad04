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
    devices::challenge,
};
use crate::{
    error::{ApiError, Problem},
    rpc::{self, login::Given},
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

/// Whose passkey is asked for.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Passkey {
    /// Empty: whoever it says.
    #[serde(default)]
    username: String,
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

/// Exchanges a username and a password for a session, or begins what else is asked of the user.
pub(super) async fn login(
    State(web): State<Arc<Web>>,
    asked: Asked,
    Body(login): Body<Login>,
) -> Result<Response, Problem> {
    let Login { username, password, token } = login;
    let call = asked.call("AuthenticateLocal")?;
    let work = rpc::login::with_second_factor(&web.service, &call, &username, Zeroizing::new(password));
    match web.carry_out(&call, work).await? {
        Given::Session(id, session) => logged_in(&id, &session, token),
        Given::StepUp(begun) => {
            let challenge = challenge(begun.challenge_id, &begun.options_json)?;
            Ok(Json(json!({ "step_up": challenge })).into_response())
        }
    }
}

/// Exchanges what an authenticator answered, after the password, for a session.
pub(super) async fn finish(
    State(web): State<Arc<Web>>,
    asked: Asked,
    Body(finish): Body<Finish>,
) -> Result<Response, Problem> {
    let Finish { challenge_id, credential, token } = finish;
    let call = asked.call("FinishWebAuthnLogin")?;
    let credential = credential.to_string();
    let work = rpc::webauthn::finish_step_up(&web.service, &call, &challenge_id, &credential);
    let reply = web.carry_out(&call, work).await?;
    authenticated(reply, token)
}

/// Begins a login with a passkey alone.
pub(super) async fn begin_passkey(
    State(web): State<Arc<Web>>,
    asked: Asked,
    Body(passkey): Body<Passkey>,
) -> Result<Response, Problem> {
    let call = asked.call("BeginWebAuthnLogin")?;
    let request = v1::BeginWebAuthnLoginRequest { username: passkey.username };
    let reply = web.carry_out(&call, rpc::webauthn::begin_login(&web.service, &call, request)).await?;
    Ok(Json(challenge(reply.challenge_id, &reply.options_json)?).into_response())
}

/// Exchanges what a passkey answered for a session.
pub(super) async fn finish_passkey(
    State(web): State<Arc<Web>>,
    asked: Asked,
    Body(finish): Body<Finish>,
) -> Result<Response, Problem> {
    let Finish { challenge_id, credential, token } = finish;
    let call = asked.call("FinishWebAuthnLogin")?;
    let request = v1::FinishWebAuthnLoginRequest { challenge_id, credential_json: credential.to_string() };
    let reply = web.carry_out(&call, rpc::webauthn::finish_login(&web.service, &call, request)).await?;
    authenticated(reply, token)
}

fn authenticated(reply: v1::FinishWebAuthnLoginResponse, token: bool) -> Result<Response, Problem> {
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
