//! Follows what an auth node tells of who may write, at whichever node serves it.

use std::{convert::Infallible, sync::Arc, time::Duration};

use mezite_client::{AuthClient, Client, NOT_REGISTERED, Retry, RetryPolicy, StatusError};
use mezite_daemon::clock;
use mezite_proto::v1::{self, watch_access_response::Event as Told};
use recording_format::AgentId;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::Event;
use crate::{
    config::Config,
    identity::{Identity, IdentityError},
    metrics,
    service::Ingest,
};

/// A node says at least every 5 s that it is current. One that is silent for longer than this is given up.
const SILENCE: Duration = Duration::from_secs(10);

/// Why following ends.
#[derive(Debug, thiserror::Error)]
enum Lost {
    /// No auth node began to tell.
    #[error(transparent)]
    Call(#[from] mezite_client::ClientError),
    /// There is no identity to call with.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The node ended it, or the connection broke.
    #[error("it ended: {0}")]
    Ended(Box<Status>),
    /// The node said nothing.
    #[error("nothing was said for {SILENCE:?}")]
    Silent,
    /// The node told something that cannot be.
    #[error("what was told cannot be read: {0}")]
    Malformed(&'static str),
}

/// Keeps what the ingest knows of who may write up to date.
#[derive(Debug)]
pub(crate) struct Follower {
    config: Config,
    ingest: Arc<Ingest>,
    /// The identity that the client shows, and the client.
    client: Option<(Arc<Identity>, Client)>,
    /// Attempts that failed since there was a complete listing.
    failures: u32,
}

impl Lost {
    /// Whether the cluster says that this ingest is not in its registry.
    fn is_removal(&self) -> bool {
        match self {
            Self::Call(error) => error.has_reason(NOT_REGISTERED),
            Self::Ended(status) => StatusError::from(&**status).reason.as_deref() == Some(NOT_REGISTERED),
            Self::Identity(_) | Self::Silent | Self::Malformed(_) => false,
        }
    }
}

impl Follower {
    pub(crate) fn new(config: Config, ingest: Arc<Ingest>) -> Self {
        Self { config, ingest, client: None, failures: 0 }
    }

    /// Goes on until cancelled.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        tokio::select! {
            never = self.follow() => match never {},
            () = stop.cancelled() => (),
        }
    }

    async fn follow(&mut self) -> Infallible {
        loop {
            let Err(lost) = self.listen().await else {
                // Until the new listing is complete, nobody tells.
                self.ingest.access.lost();
                continue;
            };
            if let Some((_, client)) = &self.client {
                // Another node may do better.
                client.leave_last_server();
            }
            if lost.is_removal() {
                self.ingest.remove();
            }
            self.ingest.access.lost();
            self.note(&lost);
            self.failures = self.failures.saturating_add(1);
            sleep(RetryPolicy::default().backoff(self.failures, rand::random())).await;
        }
    }

    fn note(&self, lost: &Lost) {
        if self.failures > 0 {
            tracing::debug!(%lost, "no auth node tells which agents are registered");
        } else if self.ingest.access.was_told() {
            tracing::warn!(%lost, "no auth node tells which agents are registered: the last known ones are");
        } else {
            tracing::warn!(%lost, "no auth node has told which agents are registered: certificates alone decide");
        }
    }

    /// Listens to one node. Ends without an error when the ingest has a new identity, to show that one.
    async fn listen(&mut self) -> Result<(), Lost> {
        let mut renewals = self.ingest.renewals();
        let client = self.client()?;
        let watch = |mut auth: AuthClient, request| async move { auth.watch_access(request).await };
        let mut told = client.call(Retry::Idempotent, v1::WatchAccessRequest {}, watch).await?;
        loop {
            tokio::select! {
                biased;
                // It ends with the ingest alone.
                _ = renewals.changed() => return Ok(()),
                event = next(&mut told) => self.take(event?),
            }
        }
    }

    fn take(&mut self, event: Option<Event>) {
        let Some(event) = event else { return };
        match &event {
            Event::Listed => {
                tracing::info!("it is known which agents are registered");
                self.failures = 0;
            }
            Event::Current => metrics::roster_confirmed(clock::unix_seconds()),
            Event::Listing | Event::Registered(_) | Event::Removed(_) => {}
        }
        self.ingest.access.take(event);
    }

    /// A client of its own, with one attempt at each address: where to go on is decided here.
    fn client(&mut self) -> Result<Client, Lost> {
        let identity = self.ingest.identity();
        if let Some((shown, client)) = &self.client
            && Arc::ptr_eq(shown, &identity)
        {
            return Ok(client.clone());
        }
        let client = identity.client(&self.config)?;
        let policy = RetryPolicy { attempts_per_address: 1, ..*client.policy() };
        let client = client.with_policy(policy);
        self.client = Some((identity, client.clone()));
        Ok(client)
    }
}

/// The next event; `None` for one of a later release.
async fn next(told: &mut Streaming<v1::WatchAccessResponse>) -> Result<Option<Event>, Lost> {
    match timeout(SILENCE, told.message()).await {
        Err(_) => Err(Lost::Silent),
        Ok(Err(status)) => Err(Lost::Ended(Box::new(status))),
        Ok(Ok(None)) => Err(Lost::Ended(Box::new(Status::unavailable("the node ended it")))),
        Ok(Ok(Some(message))) => message.event.map(read).transpose(),
    }
}

fn read(told: Told) -> Result<Event, Lost> {
    let id = |text: &str| text.parse::<AgentId>().map_err(|_| Lost::Malformed("an agent's id"));
    Ok(match told {
        Told::Listing(v1::AccessListing {}) => Event::Listing,
        Told::Registered(v1::AccessAgents { agents }) => {
            let agents = agents.into_iter().map(|agent| Ok((id(&agent.agent_id)?, agent.hostname)));
            Event::Registered(agents.collect::<Result<_, Lost>>()?)
        }
        Told::Removed(v1::AccessRemoval { agent_id }) => Event::Removed(id(&agent_id)?),
        Told::Listed(v1::AccessListed {}) => Event::Listed,
        Told::Current(v1::AccessCurrent { .. }) => Event::Current,
        Told::News(v1::AccessNews { .. }) => return Err(Lost::Malformed("what only agents are told")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_agent_is_not_taken() {
        let removed = |agent_id: &str| read(Told::Removed(v1::AccessRemoval { agent_id: agent_id.into() }));
        let id = AgentId::from_bytes([7; 16]);
        assert_eq!(removed(&id.to_string()).unwrap(), Event::Removed(id));
        assert!(matches!(removed("../x"), Err(Lost::Malformed(_))));
        let agent = v1::AccessAgent { agent_id: String::new(), hostname: "web1".into() };
        let registered = read(Told::Registered(v1::AccessAgents { agents: vec![agent] }));
        assert!(matches!(registered, Err(Lost::Malformed(_))));
    }
}
