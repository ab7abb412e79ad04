//! The pages: plain files that are part of the program, and are served as they are. They hold nothing that is not public,
//! and what they show they ask the API for.

use std::sync::Arc;

use axum::{
    Router,
    http::{
        HeaderMap, HeaderValue, StatusCode,
        header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH},
    },
    response::{IntoResponse as _, Redirect, Response},
    routing::get,
};
use sha2::{Digest as _, Sha256};

use super::Web;

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

/// The page that plays a recording, whichever: what it plays it takes from its address.
pub(super) const PLAYER: &str = "/web/recordings/{id}";

/// What that page may load and do: beside what all may, compile the WebAssembly of the player, and make markup of strings by
/// the one policy that `recording.js` has for what the player's are.
const PLAYER_POLICY: &str = "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self'; \
                             connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'; \
                             require-trusted-types-for 'script'; trusted-types default";

/// Path, type and content of each.
pub(super) const FILES: &[(&str, &str, &str)] = &[
    ("/web/login", HTML, include_str!("pages/login.html")),
    ("/web/sso", HTML, include_str!("pages/sso.html")),
    ("/web/invite", HTML, include_str!("pages/invite.html")),
    ("/web/devices", HTML, include_str!("pages/devices.html")),
    ("/web/recordings", HTML, include_str!("pages/recordings.html")),
    (PLAYER, HTML, include_str!("pages/recording.html")),
    ("/web/style.css", CSS, include_str!("pages/style.css")),
    ("/web/icon.svg", SVG, include_str!("pages/icon.svg")),
    ("/web/api.js", SCRIPT, include_str!("pages/api.js")),
    ("/web/form.js", SCRIPT, include_str!("pages/form.js")),
    ("/web/passkey.js", SCRIPT, include_str!("pages/passkey.js")),
    ("/web/login.js", SCRIPT, include_str!("pages/login.js")),
    ("/web/sso.js", SCRIPT, include_str!("pages/sso.js")),
    ("/web/invite.js", SCRIPT, include_str!("pages/invite.js")),
    ("/web/devices.js", SCRIPT, include_str!("pages/devices.js")),
    ("/web/recordings.js", SCRIPT, include_str!("pages/recordings.js")),
    ("/web/recording.js", SCRIPT, include_str!("pages/recording.js")),
    ("/web/session.js", SCRIPT, include_str!("pages/session.js")),
    ("/web/asciinema-player.js", SCRIPT, include_str!("pages/asciinema-player/asciinema-player.min.js")),
    ("/web/asciinema-player.css", CSS, include_str!("pages/asciinema-player/asciinema-player.css")),
];

/// The pages, and a way to the first of them.
pub(super) fn router() -> Router<Arc<Web>> {
    let first = get(|| async { Redirect::to("/web/devices") });
    let routes = Router::new().route("/", first.clone()).route("/web", first);
    FILES.iter().fold(routes, |routes, (path, kind, content)| {
        let tag = tag(content);
        routes.route(
            path,
            get(move |headers: HeaderMap| async move { answer(path, kind, content, &tag, &headers) }),
        )
    })
}

/// Names a content.
fn tag(content: &str) -> String {
    format!("\"{}\"", hex::encode(Sha256::digest(content)))
}

/// A file, or that the browser has it already. It asks each time: after an upgrade it has the new one at once.
fn answer(path: &str, kind: &'static str, content: &'static str, tag: &str, headers: &HeaderMap) -> Response {
    let known = headers.get_all(IF_NONE_MATCH).iter().filter_map(|line| line.to_str().ok());
    let known =
        known.flat_map(|line| line.split(',')).any(|known| known.trim().trim_start_matches("W/") == tag);
    let always = HeaderValue::from_static("no-cache");
    let tag = HeaderValue::try_from(tag).unwrap_or(HeaderValue::from_static("\"\""));
    let same = [(CACHE_CONTROL, always), (ETAG, tag)];
    let mut response = if known {
        (StatusCode::NOT_MODIFIED, same).into_response()
    } else {
        (same, [(CONTENT_TYPE, HeaderValue::from_static(kind))], content).into_response()
    };
    // Of what the browser has already, too: the policy of the newest answer is the one that counts (RFC 9111, section 3.2).
    if path == PLAYER {
        response.headers_mut().insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(PLAYER_POLICY));
    }
    response
}
