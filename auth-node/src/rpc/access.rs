//! What data planes follow: whose calls they may take.

use std::{sync::Arc, time::Duration};

use auth_core::{Credential, roster::Agent};
use futures::{StreamExt as _, stream};
use mezite_proto::v1::{self, watch_access_response::Event as Told};

use super::Replies;
use crate::{
    access::{Event, Feed},
    authn::Call,
    error::ApiError,
    news::{Listener, News},
    service::Service,
};

/// Tells an ingest which agents are registered, or an agent what is new, as long as it listens. Its certificate is good up
/// to the second `ends` (Unix time).
pub(crate) async fn watch(
    service: Arc<Service>,
    call: Call,
    ends: u64,
) -> Result<Replies<v1::WatchAccessResponse>, ApiError> {
    let request_id = call.origin.request_id.clone();
    let source = match call.credential {
        Credential::Agent { .. } => {
            let agent = service.read(&call, |_, context| Ok(context.caller.actor())).await?;
            let left = ends.saturating_add(1).saturating_sub((service.clock)() / 1000);
            Source::News(service.news.listen(agent, Duration::from_secs(left))?)
        }
        _ => Source::Roster(Box::new(Feed::begin(service, call, ends).await?)),
    };
    let told = stream::unfold(Some(source), move |source| {
        let request_id = request_id.clone();
        async move {
            let mut source = source?;
            match source.next().await {
                Ok(told) => Some((Ok(told), Some(source))),
                Err(error) => {
                    tracing::debug!(request_id, %error, "a listener is told no more");
                    Some((Err(error.into_status(&request_id)), None))
                }
            }
        }
    });
    Ok(told.boxed())
}

/// What is told.
enum Source {
    /// To an ingest.
    Roster(Box<Feed>),
    /// To an agent.
    News(Listener),
}

impl Source {
    async fn next(&mut self) -> Result<v1::WatchAccessResponse, ApiError> {
        Ok(match self {
            Self::Roster(feed) => message(feed.next().await?),
            Self::News(listener) => news(listener.next().await?),
        })
    }
}

fn news(news: News) -> v1::WatchAccessResponse {
    let told = v1::AccessNews {
        trust_bundle_revision: news.trust_bundle,
        revocation_revision: news.revocations,
        recording_mode: news.recording_mode.into(),
    };
    v1::WatchAccessResponse { event: Some(Told::News(told)) }
}

fn message(event: Event) -> v1::WatchAccessResponse {
    let told = match event {
        Event::Listing => Told::Listing(v1::AccessListing {}),
        Event::Registered(agents) => {
            Told::Registered(v1::AccessAgents { agents: agents.into_iter().map(agent).collect() })
        }
        Event::Removed(id) => Told::Removed(v1::AccessRemoval { agent_id: id.into() }),
        Event::Listed => Told::Listed(v1::AccessListed {}),
        Event::Current(revision) => Told::Current(v1::AccessCurrent { revision }),
    };
    v1::WatchAccessResponse { event: Some(told) }
}

fn agent(agent: Agent) -> v1::AccessAgent {
    v1::AccessAgent { agent_id: agent.id.into(), hostname: agent.hostname }
}

#[cfg(test)]
#[path = "access_tests.rs"]
mod tests;
