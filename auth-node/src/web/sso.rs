//! Single sign-on: a page of ours begins, the browser comes back from the provider, and is sent on: to the page of who it is
//! now, to the program that it logs in, or to the login page, with a word that says what went wrong.
//!
//! It comes back by a link of another site, as nothing else here does. What it may do with it is bound by a cookie of its own,
//! which comes with such a link, and the state, which is good once.

use std::sync::Arc;

use auth_core::sso::{Program, Refusal};
use axum::{
    Json,
    extract::{Path, Query, State, rejection::QueryRejection},
    http::{
        HeaderMap, HeaderValue, StatusCode,
        header::{LOCATION, SET_COOKIE},
    },
    response::{IntoResponse as _, Response},
};
use serde::Deserialize;
use serde_json::json;
use zeroize::Zeroizing;

use super::{
    Web,
    call::{Asked, Body, cookie, session_cookie},
};
use crate::{
    error::{ApiError, Problem},
    rpc,
    sso::{self, Back, Outcome},
};

/// The cookie with the secret of the browser that has begun.
const BROWSER_COOKIE: &str = "__Host-mezite-sso";
/// It comes with the link by which a provider sends the browser back.
const ATTRIBUTES: &str = "Path=/; Secure; HttpOnly; SameSite=Lax";
/// Where somebody is shown who it is.
const HOME: &str = "/web/devices";
/// What is wrong when nothing was refused: the login may begin anew.
const FAILED: &str = "failed";

/// By which connector somebody logs in.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Begin {
    connector: String,
    /// The program that it is for.
    program: Option<OfProgram>,
}

/// What a program says to be found by.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OfProgram {
    /// In hexadecimal digits.
    challenge: String,
    port: u32,
    path: String,
}

/// What a provider hands back (RFC 6749, section 4.1.2; RFC 9207). Whatever else it says is nothing to us.
#[derive(Default, Deserialize)]
pub(super) struct Answer {
    #[serde(default)]
    state: String,
    #[serde(default)]
    code: String,
    #[serde(default)]
    error: String,
    iss: Option<String>,
}

/// Whether bytes are the query of what a provider hands back.
pub(super) fn is_answer(bytes: &[u8]) -> bool {
    let uri = axum::http::Uri::try_from([b"/?", bytes].concat());
    uri.is_ok_and(|uri| {
        Query::<Answer>::try_from_uri(&uri).is_ok_and(|Query(answer)| !answer.state.is_empty())
    })
}

/// Begins: tells the page where to go.
pub(super) async fn begin(
    State(web): State<Arc<Web>>,
    from: Asked,
    Body(begin): Body<Begin>,
) -> Result<Response, Problem> {
    let call = from.call("BeginSSOLogin")?;
    let of_program = |of: OfProgram| {
        // What is no hexadecimal number has not the length of a challenge either.
        Program::new(hex::decode(of.challenge).unwrap_or_default(), of.port, of.path)
    };
    let work = async {
        let program = begin.program.map(of_program).transpose()?;
        sso::begin(&web.service, &call, &begin.connector, program).await
    };
    let begun = web.carry_out(&call, work).await?;
    let life = auth_core::sso::LIFE_MS / 1000;
    let cookie = format!("{BROWSER_COOKIE}={}; Max-Age={life}; {ATTRIBUTES}", begun.browser.as_str());
    Ok(([(SET_COOKIE, header(&cookie, true)?)], Json(json!({ "url": begun.url }))).into_response())
}

/// Goes on when the browser comes back.
pub(super) async fn callback(
    State(web): State<Arc<Web>>,
    from: Asked,
    Path(connector): Path<String>,
    headers: HeaderMap,
    answer: Result<Query<Answer>, QueryRejection>,
) -> Result<Response, Problem> {
    let call = from.call("FinishSSOLogin")?;
    // What cannot be read has no state.
    let Answer { state, code, error, iss } = answer.map(|Query(answer)| answer).unwrap_or_default();
    let browser = cookie(&headers, BROWSER_COOKIE).map(|secret| Zeroizing::new(secret.to_owned()));
    let back = Back { state, code, error, issuer: iss, browser };
    let mut program = None;
    let work = async {
        let ended = sso::end(&web.service, &call, &connector, back).await?;
        program = ended.program;
        ended.outcome
    };
    let outcome = rpc::carry_out(&web.service, &call, work).await;
    match (outcome, program) {
        (Ok(Outcome::Session(id, session)), _) => {
            let seconds = session.expires_at_ms.saturating_sub(session.created_at_ms) / 1000;
            let seconds = i64::try_from(seconds).unwrap_or_default();
            sent_back(HOME, Some(session_cookie(&id, seconds)?))
        }
        (Ok(Outcome::Code(code)), Some(program)) => sent_back(&at(&program, "code", &code), None),
        (Ok(Outcome::Code(_)), None) => {
            Err(ApiError::Internal("a code for no program".into()).into_problem(&call.origin.request_id))
        }
        (Err(error), program) => {
            let word = match &error {
                ApiError::Core(refused) => Refusal::of(refused).map_or(FAILED, Refusal::word),
                _ => FAILED,
            };
            match program {
                Some(program) => sent_back(&at(&program, "error", word), None),
                None => sent_back(&format!("/web/login#sso-{word}"), None),
            }
        }
    }
}

/// Where a program listens, with a word for it.
fn at(program: &Program, name: &str, value: &str) -> String {
    format!("http://127.0.0.1:{}/{}?{name}={value}", program.port(), program.path())
}

/// Sends the browser on, which forgets the secret of this login, and keeps a session.
fn sent_back(to: &str, session: Option<HeaderValue>) -> Result<Response, Problem> {
    let mut response = StatusCode::SEE_OTHER.into_response();
    let forget = header(&format!("{BROWSER_COOKIE}=; Max-Age=0; {ATTRIBUTES}"), false)?;
    let headers = response.headers_mut();
    headers.insert(LOCATION, header(to, true)?);
    headers.append(SET_COOKIE, forget);
    if let Some(session) = session {
        headers.append(SET_COOKIE, session);
    }
    Ok(response)
}

fn header(text: &str, sensitive: bool) -> Result<HeaderValue, Problem> {
    let mut value = HeaderValue::try_from(text).map_err(|_| {
        ApiError::Internal("an address or a secret is no text for a header".into()).into_problem("")
    })?;
    value.set_sensitive(sensitive);
    Ok(value)
}
