//! The web: a JSON API over HTTPS with which browsers, and programs without gRPC, log in, and the pages that use it.
//!
//! It decides nothing: each path is one method of the API (`rpc`), carried in another way. What is new here is what
//! browsers bring: connections of either version of HTTP ([`connections`]), a session in a cookie that no script reads
//! ([`call`]), and other sites that make them send requests ([`guard`]). The pages ([`pages`]) are plain files, and hold
//! nothing that is not public.
//!
//! Under `/v1/webapi`; what is not a GET has the header `X-Mezite-Request: 1`, and a body, if any, of the type
//! `application/json`. An error is `{code, message, field, request_id}`.
//!
//! | path | request | answer |
//! | --- | --- | --- |
//! | `GET ping` | | `{cluster, version, second_factor, connectors, passkeys, relying_party_id, public_url}` |
//! | `POST login` | `{username, password, token}` | `{session}` and a cookie; with `"token": true`, `{session, session_id}`; or `{step_up: {challenge_id, options}}` |
//! | `POST login/finish` | `{challenge_id, credential, token}` | as `login` |
//! | `POST login/passkey` | `{username}`, which may be left out | `{challenge_id, options}` |
//! | `POST login/passkey/finish` | `{challenge_id, credential, token}` | as `login` |
//! | `POST sso/login` | `{connector, program: {challenge, port, path}}`, without a program for the browser itself | `{url}` and a cookie |
//! | `GET sso/callback/{connector}` | `?code&state`, from a provider | sends the browser on, with a cookie or to a program |
//! | `POST logout` | | `{}` |
//! | `GET session` | | `{session, roles}` |
//! | `POST invite` | `{secret, new_password}` | `{user}` |
//! | `GET devices` | | `{devices}` |
//! | `POST devices/begin` | `{passkey}` | `{challenge_id, options}` |
//! | `POST devices/finish` | `{challenge_id, credential, name}` | `{device}` |
//! | `DELETE devices/{id}` | | `{}` |
//! | `GET recordings` | `?user&login&node&state&labels&from&to&page_size&page_token`, each optional | `{recordings, next_page_token}` |
//! | `GET recordings/{id}` | | `{recording}` |
//! | `GET recordings/{id}/payload` | a header `Range`, if any | the payload, or a range of it |
//! | `GET spiffe/bundle` | | the bundle of the cluster's SPIFFE trust domain, as that standard says |

mod call;
mod connections;
mod devices;
mod guard;
mod invite;
mod lingering;
mod login;
mod pages;
mod ping;
mod recordings;
mod spiffe;
mod sso;
#[cfg(test)]
mod tests;
pub(crate) mod tls;

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Router,
    http::StatusCode,
    middleware,
    routing::{delete, get, post},
};
use mezite_daemon::program::listen;
use mezite_proto::transport::{ListenerLimits, TlsListener};
use tokio_util::sync::CancellationToken;

use crate::{
    beside::Beside,
    config::Config,
    error::Problem,
    fault::NodeError,
    places::{Places, Room},
    server::tls::Tls,
    service::Service,
};
use connections::Connections;

/// Largest body of a request, in bytes.
const MAX_BODY: usize = 64 << 10;
/// So much of a larger one is read and forgotten, in bytes: who is cut off while it sends does not see the answer.
const MAX_FORGOTTEN: usize = 1 << 20;
/// Of so many requests at a time, one network may have one.
const SHARES: usize = 4;

/// What handlers work with.
pub(crate) struct Web {
    service: Arc<Service>,
    /// For requests that are being carried out.
    places: Places,
}

impl Web {
    /// Of a node's service: it takes so many requests at a time.
    fn new(service: Arc<Service>, max_requests: usize) -> Self {
        let room = Room {
            most: max_requests,
            each: (max_requests / SHARES).max(1),
            full: "too many requests are being carried out",
            own_full: "too many requests of your network are being carried out",
            measure: |_| (),
        };
        Self { service, places: Places::new(room) }
    }
}

/// All that is served.
fn router(web: Arc<Web>) -> Router {
    let api = Router::new()
        .route("/ping", get(ping::ping))
        .route("/login", post(login::login))
        .route("/login/finish", post(login::finish))
        .route("/login/passkey", post(login::begin_passkey))
        .route("/login/passkey/finish", post(login::finish_passkey))
        .route("/sso/login", post(sso::begin))
        .route("/sso/callback/{connector}", get(sso::callback))
        .route("/logout", post(login::logout))
        .route("/session", get(login::session))
        .route("/invite", post(invite::accept))
        .route("/devices", get(devices::list))
        .route("/devices/begin", post(devices::begin))
        .route("/devices/finish", post(devices::finish))
        .route("/devices/{id}", delete(devices::remove))
        .route("/recordings", get(recordings::list))
        .route("/recordings/{id}", get(recordings::get))
        .route("/recordings/{id}/payload", get(recordings::payload))
        .route("/spiffe/bundle", get(spiffe::bundle));
    Router::new()
        .nest("/v1/webapi", api)
        .merge(pages::router())
        .fallback(nothing_here)
        .method_not_allowed_fallback(other_method)
        .layer(middleware::from_fn_with_state(Arc::clone(&web), guard::admit))
        .layer(middleware::map_response(guard::harden))
        .with_state(web)
}

async fn nothing_here() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "NOT_FOUND", "there is nothing here: the pages begin at /web/login")
}

async fn other_method() -> Problem {
    let message = "what is at this path is not used with this method";
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED", message)
}

/// Whether bytes are what some path reads: a body, a query, cookies.
pub(crate) fn is_readable(bytes: &[u8]) -> bool {
    let body = call::is::<login::Login>(bytes)
        || call::is::<login::Finish>(bytes)
        || call::is::<login::Passkey>(bytes)
        || call::is::<invite::Invite>(bytes)
        || call::is::<devices::Begin>(bytes)
        || call::is::<devices::Finish>(bytes)
        || call::is::<sso::Begin>(bytes);
    body || sso::is_answer(bytes) || recordings::is_wanted(bytes) || call::has_session(bytes)
}

/// A port on which the web is served, once [`Server::serve`] runs.
pub(crate) struct Server {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    listener: TlsListener,
    connections: Connections,
}

impl Server {
    /// Opens the port, if it is configured. `beside` runs what keeps its certificate up to date.
    ///
    /// # Errors
    /// When the address cannot be listened on, or the certificate that is configured cannot be used.
    pub(crate) async fn open(
        config: &Config,
        service: &Arc<Service>,
        tls: &Tls,
        beside: &Beside,
    ) -> Result<Option<Self>, NodeError> {
        let (web, limits) = (&config.web, &config.limits);
        if !web.enabled {
            return Ok(None);
        }
        let shown = match (&web.certificate_file, &web.key_file) {
            (Some(certificate), Some(key)) => {
                let files = tls::Files::load(certificate, key)?;
                let shown = files.shown();
                beside.spawn(files.follow());
                shown
            }
            _ => Arc::clone(&tls.web),
        };
        let (port, address) = listen(web.listen).await?;
        let bounds = ListenerLimits {
            handshake_timeout: limits.handshake_timeout,
            max_connections: web.max_connections,
            http1: true,
            proxies: config.trusted_proxies.as_slice().into(),
            ..ListenerLimits::default()
        };
        let routes = router(Arc::new(Web::new(Arc::clone(service), web.max_requests)));
        Ok(Some(Self {
            address,
            listener: TlsListener::new(port, shown, bounds),
            connections: Connections::new(routes, config),
        }))
    }

    /// Serves until `stop`; then takes no more connections and returns when the requests in hand were answered.
    pub(crate) async fn serve(self, stop: CancellationToken) {
        self.connections.serve(self.listener, stop).await;
    }
}
