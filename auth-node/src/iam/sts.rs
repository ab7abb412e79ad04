//! Asks STS who has signed a request: so many at a time, and of each network fewer.

use std::{path::Path, sync::OnceLock, time::Duration};

use auth_core::{CoreError, iam::AwsIdentity};
use reqwest::{Certificate, Client};
use store_txn::UnixMillis;

use super::{
    answer::{self, Answer},
    request::{BODY, Endpoints, Proof, SignedRequest},
};
use crate::{
    config::{IamConfig, host_of},
    error::{ApiError, described},
    fault::NodeError,
    outbound, passwords,
    places::{Places, Room},
};

/// For a question and its answer, connection included.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Largest body of an answer that is read, in bytes.
const MAX_ANSWER: usize = 64 << 10;
/// Questions at a time.
const MOST: usize = 32;
/// And those of one network.
const EACH: usize = 8;

/// Asks STS.
pub(crate) struct Sts {
    endpoints: Endpoints,
    /// Whom to believe; `None`: whom the system does.
    authorities: Option<Vec<Certificate>>,
    /// Made when it is first needed: a machine without authorities of its own serves all else.
    client: OnceLock<Result<Client, String>>,
    places: Places,
}

/// The host, or host:port, of an `https://` URL that has nothing else. `None`: it is none.
pub(crate) fn authority(endpoint: &str) -> Option<&str> {
    let authority = endpoint.strip_prefix("https://")?;
    let with_port = [authority.to_owned(), format!("{authority}:443")];
    with_port.iter().any(|address| host_of(address).is_some()).then_some(authority)
}

impl Sts {
    /// As the configuration says.
    ///
    /// # Errors
    /// [`NodeError::Malformed`] for authorities that cannot be read.
    pub(crate) fn new(config: &IamConfig) -> Result<Self, NodeError> {
        let endpoints = match config.sts_endpoint.as_deref().and_then(authority) {
            Some(authority) => Endpoints::Configured(authority.to_owned()),
            None => Endpoints::Aws,
        };
        let room = Room {
            most: MOST,
            each: EACH,
            full: "AWS is asked too much at a time",
            own_full: "AWS is asked too much at a time for your network",
            measure: |_| (),
        };
        Ok(Self {
            endpoints,
            authorities: config.sts_ca_file.as_deref().map(authorities).transpose()?,
            client: OnceLock::new(),
            places: Places::new(room),
        })
    }

    /// Builds the request that a proof is of.
    ///
    /// # Errors
    /// As of [`Proof::rebuild`].
    pub(crate) fn rebuild(
        &self,
        proof: Proof,
        challenge: &str,
        now: UnixMillis,
    ) -> Result<SignedRequest, CoreError> {
        proof.rebuild(&self.endpoints, challenge, now)
    }

    /// Asks, for a client at this address, who has signed a request; or why AWS does not know, for the audit log.
    ///
    /// # Errors
    /// [`ApiError::Busy`] when it is asked too much; [`ApiError::Unavailable`] when there is no answer that tells either.
    pub(crate) async fn ask(
        &self,
        client_address: &str,
        request: SignedRequest,
    ) -> Result<Result<AwsIdentity, String>, ApiError> {
        let _place = self.places.take(passwords::network(client_address))?;
        let answer = match self.client() {
            Ok(client) => send(client, request).await.unwrap_or_else(Answer::Unusable),
            Err(reason) => Answer::Unusable(reason.clone()),
        };
        match answer {
            Answer::Identity(identity) => Ok(Ok(identity)),
            Answer::Refused(reason) => Ok(Err(reason)),
            Answer::Unusable(reason) => {
                tracing::warn!(reason, "AWS STS cannot be asked who joins");
                Err(ApiError::Unavailable("AWS cannot be asked now who joins: try again, or another region"))
            }
        }
    }

    fn client(&self) -> &Result<Client, String> {
        self.client.get_or_init(|| {
            let builder = outbound::client(TIMEOUT);
            let builder = match &self.authorities {
                Some(authorities) => builder.tls_certs_only(authorities.clone()),
                None => builder,
            };
            builder.build().map_err(|error| described(&error))
        })
    }
}

fn authorities(file: &Path) -> Result<Vec<Certificate>, NodeError> {
    let malformed = |reason: String| NodeError::Malformed {
        file: file.to_owned(),
        reason: format!("cannot be used: {reason}"),
    };
    let pem = std::fs::read(file).map_err(|error| malformed(error.to_string()))?;
    let found = Certificate::from_pem_bundle(&pem).map_err(|error| malformed(described(&error)))?;
    if found.is_empty() {
        return Err(malformed("there is no certificate in it".into()));
    }
    Ok(found)
}

/// Sends a request, and reads what may be an answer. An error is why there is none.
async fn send(client: &Client, request: SignedRequest) -> Result<Answer, String> {
    let mut post = client.post(&request.url).body(BODY);
    for (name, value) in &request.headers {
        post = post.header(*name, value.as_str());
    }
    let mut response = post.send().await.map_err(|error| described(&error))?;
    let status = response.status().as_u16();
    let body = outbound::body(&mut response, MAX_ANSWER).await?;
    Ok(answer::read(status, &body, request.partition))
}

#[cfg(test)]
#[path = "sts_tests.rs"]
mod tests;
