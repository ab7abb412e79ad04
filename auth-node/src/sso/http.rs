//! Talks to providers, so many at a time. Where a connector names authorities, they alone are believed.

use std::{sync::OnceLock, time::Duration};

use futures::{FutureExt as _, future::BoxFuture};
use openidconnect::{AsyncHttpClient, HttpRequest, HttpResponse};
use reqwest::Client;

use crate::{
    error::{ApiError, described},
    outbound,
    places::{Place, Places, Room},
};

/// For a question and its answer, connection included.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Largest body of an answer that is read, in bytes.
const MAX_ANSWER: usize = 512 << 10;
/// Logins that ask providers at a time.
const MOST: usize = 32;
/// And those of one network.
const EACH: usize = 8;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Unanswered(String);

/// Bounds what is asked of providers.
pub(crate) struct Outbound {
    places: Places,
    /// Believes whom the system does. Made when it is first needed: a machine without authorities of its own serves all else.
    usual: OnceLock<Result<Client, String>>,
}

impl Outbound {
    pub(crate) fn new() -> Self {
        let room = Room {
            most: MOST,
            each: EACH,
            full: "single sign-on providers are asked too much at a time",
            own_full: "single sign-on providers are asked too much at a time for your network",
            measure: |_| (),
        };
        Self { places: Places::new(room), usual: OnceLock::new() }
    }

    /// A way to ask, for a login of a client of this network; or why there is none.
    ///
    /// # Errors
    /// [`ApiError::Busy`].
    pub(super) fn open(&self, network: String, anchors: &[String]) -> Result<Result<Http, String>, ApiError> {
        let place = self.places.take(network)?;
        let client = match anchors {
            [] => self.usual.get_or_init(|| client(anchors)).clone(),
            anchors => client(anchors),
        };
        Ok(client.map(|client| Http { client, _place: place }))
    }
}

/// A client that believes these authorities alone, or those of the system if there are none.
fn client(anchors: &[String]) -> Result<Client, String> {
    let builder = outbound::believing(outbound::client(TIMEOUT), anchors)?;
    builder.build().map_err(|error| described(&error))
}

/// Asks, while it has a place.
pub(super) struct Http {
    client: Client,
    _place: Place,
}

impl Http {
    /// Sends a request, and reads the answer, whatever it is.
    pub(super) async fn send(&self, request: HttpRequest) -> Result<HttpResponse, Unanswered> {
        let unanswered = |error: reqwest::Error| Unanswered(described(&error));
        let request = request.try_into().map_err(unanswered)?;
        let mut response = self.client.execute(request).await.map_err(unanswered)?;
        let mut answer = HttpResponse::default();
        *answer.status_mut() = response.status();
        *answer.headers_mut() = std::mem::take(response.headers_mut());
        *answer.body_mut() = outbound::body(&mut response, MAX_ANSWER).await.map_err(Unanswered)?;
        Ok(answer)
    }
}

/// For what speaks OpenID Connect.
impl<'c> AsyncHttpClient<'c> for Http {
    type Error = Unanswered;
    type Future = BoxFuture<'c, Result<HttpResponse, Unanswered>>;

    fn call(&'c self, request: HttpRequest) -> Self::Future {
        self.send(request).boxed()
    }
}

#[cfg(test)]
#[path = "http_tests.rs"]
mod tests;
