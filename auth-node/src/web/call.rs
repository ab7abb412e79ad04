//! What a request brings to a call: its session, in a cookie or a header, its body, its time; and how the answer goes back.

use std::{convert::Infallible, sync::Arc};

use auth_core::{CoreError, Credential, Origin};
use axum::{
    Json,
    extract::{FromRequest, FromRequestParts, Request},
    http::{
        HeaderMap, HeaderValue, StatusCode,
        header::{CONTENT_TYPE, COOKIE, RETRY_AFTER},
        request::Parts,
    },
    response::{IntoResponse, Response},
};
use futures::StreamExt as _;
use mezite_proto::access as rules;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::time::{Instant, timeout_at};
use tonic::metadata::MetadataMap;

use super::{MAX_BODY, MAX_FORGOTTEN, Web, guard::Deadline};
use crate::{
    authn::{self, Call, Here},
    error::{ApiError, Problem},
    rpc,
};

/// The cookie with the session's id. Browsers take one of this name for the whole of an origin alone, over TLS alone
/// (RFC 6265bis, section 4.1.3.2).
const SESSION_COOKIE: &str = "__Host-mezite-session";
/// No script reads it, and no other site's request carries it.
const ATTRIBUTES: &str = "Path=/; Secure; HttpOnly; SameSite=Strict";

/// Who asks, through what, and until when.
pub(super) struct Asked {
    credential: Result<Credential, CoreError>,
    origin: Origin,
    deadline: Option<Instant>,
}

impl FromRequestParts<Arc<Web>> for Asked {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, web: &Arc<Web>) -> Result<Self, Infallible> {
        let settings = &web.service.settings;
        let here = Here { cluster: &settings.cluster, now: (web.service.clock)() / 1000 };
        let metadata = MetadataMap::from_headers(parts.headers.clone());
        // A program says which session it means; a browser sends its cookie with everything.
        let credential = match authn::credential(&metadata, &parts.extensions, here) {
            Ok(Credential::None) => Ok(session(&parts.headers)),
            said => said,
        };
        let origin = parts.extensions.get::<Origin>().cloned();
        Ok(Self {
            credential,
            origin: origin.unwrap_or_else(|| authn::origin(&parts.extensions, settings.node_id)),
            deadline: parts.extensions.get::<Deadline>().map(|deadline| deadline.0),
        })
    }
}

impl Asked {
    /// A call of this method of the API.
    ///
    /// # Errors
    /// For a header `authorization` that holds no session.
    pub(super) fn call(self, method: &'static str) -> Result<Call, Problem> {
        let Self { credential, origin, deadline } = self;
        let unknown = || CoreError::Denied(format!("{method} has no access rule"));
        let prepared = rules::rule(method).ok_or_else(unknown).and_then(|rule| Ok((rule, credential?)));
        match prepared {
            Ok((method, credential)) => {
                let span = authn::span(method.method, &origin);
                Ok(Call { method, credential, origin, key: None, deadline, span })
            }
            Err(error) => Err(ApiError::from(error).into_problem(&origin.request_id)),
        }
    }
}

impl Web {
    /// Carries out a call.
    ///
    /// # Errors
    /// What the caller is told of it.
    pub(super) async fn carry_out<T>(
        &self,
        call: &Call,
        work: impl Future<Output = Result<T, ApiError>>,
    ) -> Result<T, Problem> {
        let done = rpc::carry_out(&self.service, call, work).await;
        done.map_err(|error| error.into_problem(&call.origin.request_id))
    }
}

/// The session in a request's cookies. What is none is as good as no cookie: whoever logs in gets another.
fn session(headers: &HeaderMap) -> Credential {
    let digest = cookie(headers, SESSION_COOKIE).and_then(authn::session_digest);
    digest.map_or(Credential::None, Credential::Session)
}

/// A cookie of a request, by its name.
pub(super) fn cookie<'a>(headers: &'a HeaderMap, wanted: &str) -> Option<&'a str> {
    let lines = headers.get_all(COOKIE).iter().filter_map(|line| line.to_str().ok());
    let mut cookies =
        lines.flat_map(|line| line.split(';')).filter_map(|cookie| cookie.trim().split_once('='));
    cookies.find(|(name, _)| *name == wanted).map(|(_, value)| value)
}

/// Has the browser keep a session for so many seconds.
///
/// # Errors
/// When the id is no text for a header, which no id is.
pub(super) fn session_cookie(id: &str, seconds: i64) -> Result<HeaderValue, Problem> {
    let cookie = format!("{SESSION_COOKIE}={id}; Max-Age={seconds}; {ATTRIBUTES}");
    let mut value = HeaderValue::try_from(cookie)
        .map_err(|_| ApiError::Internal("a session's id is no cookie".into()).into_problem(""))?;
    value.set_sensitive(true);
    Ok(value)
}

/// Has the browser forget its session.
pub(super) fn no_cookie() -> HeaderValue {
    const FORGET: &str = "__Host-mezite-session=; Max-Age=0; Path=/; Secure; HttpOnly; SameSite=Strict";
    HeaderValue::from_static(FORGET)
}

/// The body of a request: JSON, and said to be. A form of another site can say neither.
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<Arc<Web>> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &Arc<Web>) -> Result<Self, Problem> {
        if !is_json(request.headers()) {
            let message = "send JSON, with the header Content-Type: application/json";
            return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "NOT_JSON", message));
        }
        let deadline = request.extensions().get::<Deadline>().map(|deadline| deadline.0);
        let arriving = arrive(request);
        let bytes = match deadline {
            Some(deadline) => timeout_at(deadline, arriving).await.map_err(|_| {
                let message = "the request did not arrive within the time that is given to one";
                Problem::new(StatusCode::REQUEST_TIMEOUT, "TOO_SLOW", message)
            })?,
            None => arriving.await,
        }?;
        let malformed = |error: serde_json::Error| {
            let message = format!("the request is not as it must be: {error}");
            Problem::new(StatusCode::BAD_REQUEST, "MALFORMED", message)
        };
        serde_json::from_slice(&bytes).map(Self).map_err(malformed)
    }
}

/// Whether bytes are the body of such a request.
pub(super) fn is<T: DeserializeOwned>(bytes: &[u8]) -> bool {
    serde_json::from_slice::<T>(bytes).is_ok()
}

/// Whether bytes are cookies, with a session's among them.
pub(super) fn has_session(bytes: &[u8]) -> bool {
    let headers: HeaderMap =
        HeaderValue::from_bytes(bytes).into_iter().map(|value| (COOKIE, value)).collect();
    cookie(&headers, SESSION_COOKIE).is_some()
}

/// Reads a body of at most [`MAX_BODY`] bytes.
async fn arrive(request: Request) -> Result<Vec<u8>, Problem> {
    let mut chunks = request.into_body().into_data_stream();
    let (mut whole, mut length) = (Vec::new(), 0_usize);
    while let Some(chunk) = chunks.next().await {
        let broken = |_| Problem::new(StatusCode::BAD_REQUEST, "BROKEN", "the request broke off");
        let chunk = chunk.map_err(broken)?;
        length = length.saturating_add(chunk.len());
        if length > MAX_FORGOTTEN {
            break;
        }
        if length <= MAX_BODY {
            whole.extend_from_slice(&chunk);
        }
    }
    if length > MAX_BODY {
        let message = "the request is longer than any that is good";
        return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "TOO_LARGE", message));
    }
    Ok(whole)
}

fn is_json(headers: &HeaderMap) -> bool {
    let said = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = said.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json")
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = json!({
            "code": self.code,
            "message": self.message,
            "field": self.field,
            "request_id": self.request_id,
        });
        let mut response = (self.status, Json(body)).into_response();
        if let Some(pause) = self.retry_after {
            // In whole seconds (RFC 9110, section 10.2.3), and not before.
            let seconds = pause.as_secs() + u64::from(pause.subsec_nanos() > 0);
            response.headers_mut().insert(RETRY_AFTER, seconds.into());
        }
        response
    }
}
