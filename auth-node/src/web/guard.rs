//! What every request goes through, and every answer: a place, a time, and what keeps other sites out.
//!
//! A browser sends what any page tells it to. So what changes something must be said by a page of this origin: the session
//! cookie is `SameSite=Strict`; a header that forms cannot set is asked for, and with it browsers ask first, which nobody is
//! answered; and where a browser says which page it is, that must be one of ours.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::{
        HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri,
        header::{
            CACHE_CONTROL, CONTENT_SECURITY_POLICY, HOST, ORIGIN, REFERRER_POLICY, STRICT_TRANSPORT_SECURITY,
            X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
        },
    },
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use tokio::time::Instant;

use super::Web;
use crate::{authn, error::Problem, passwords};

/// Any value of it will do.
const OURS: &str = "x-mezite-request";
/// What a browser says of the page that made it send a request (W3C Fetch Metadata).
const FETCH_SITE: &str = "sec-fetch-site";

/// What a page may load and do: its own scripts, styles and images, and talk to this origin.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      form-action 'none'; base-uri 'none'; frame-ancestors 'none'; \
                      require-trusted-types-for 'script'; trusted-types 'none'";
/// Two years: what browsers keep of an origin that is reached by TLS alone.
const TLS_ALONE: &str = "max-age=63072000";

/// When a request must have arrived and been carried out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline(pub(super) Instant);

/// Admits a request: it has a place of its network's while it is carried out, and a deadline; and what changes something is
/// said by no other site.
pub(super) async fn admit(State(web): State<Arc<Web>>, mut request: Request, next: Next) -> Response {
    let origin = authn::origin(request.extensions(), web.service.settings.node_id);
    let place = match web.places.take(passwords::network(&origin.client_address)) {
        Ok(place) => place,
        Err(error) => return error.into_problem(&origin.request_id).into_response(),
    };
    if let Err(problem) = check_site(&request, web.service.settings.web_origin.as_deref()) {
        return problem.into_response();
    }
    let deadline = Deadline(Instant::now() + web.service.settings.call_timeout);
    request.extensions_mut().insert(deadline);
    request.extensions_mut().insert(origin);
    let response = next.run(request).await;
    drop(place);
    response
}

/// Refuses what another site may have made a browser send.
fn check_site(request: &Request, public: Option<&str>) -> Result<(), Problem> {
    if matches!(*request.method(), Method::GET | Method::HEAD) {
        // Changes nothing, and nobody else can read the answer.
        return Ok(());
    }
    let headers = request.headers();
    let refused = |message: &str| Err(Problem::new(StatusCode::FORBIDDEN, "CROSS_SITE", message));
    if !headers.contains_key(OURS) {
        return refused("a request that changes something carries the header X-Mezite-Request: 1");
    }
    let said = |name: &str| headers.get_all(name).iter().map(HeaderValue::as_bytes).collect::<Vec<_>>();
    if said(FETCH_SITE).iter().any(|site| !matches!(*site, b"same-origin" | b"none")) {
        return refused("a page of another site made this request: open the login page itself");
    }
    let ours = |origin: &[u8]| {
        let here = host(headers, request.uri()).map(|host| format!("https://{}", host.to_ascii_lowercase()));
        here.is_some_and(|here| here.as_bytes() == origin)
            || public.is_some_and(|url| url.as_bytes() == origin)
    };
    if !said(ORIGIN.as_str()).into_iter().all(ours) {
        return refused(
            "the page that made this request is not of this address: open it where web.public_url says",
        );
    }
    Ok(())
}

/// What the client calls this server.
fn host<'a>(headers: &'a HeaderMap, uri: &'a Uri) -> Option<&'a str> {
    let named = headers.get(HOST).and_then(|host| host.to_str().ok());
    uri.authority().map(|authority| authority.as_str()).or(named)
}

/// Tells browsers what they are to refuse. An answer that says nothing of it is kept nowhere.
pub(super) async fn harden(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    // A page that needs more than the others says so itself.
    headers.entry(CONTENT_SECURITY_POLICY).or_insert(HeaderValue::from_static(POLICY));
    for (name, value) in [
        (STRICT_TRANSPORT_SECURITY, TLS_ALONE),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        (REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}
