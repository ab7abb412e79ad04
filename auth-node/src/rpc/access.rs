//! What data planes follow: whose calls they may take.

use std::sync::Arc;

use auth_core::roster::Agent;
use futures::{StreamExt as _, stream};
use mezite_proto::v1::{self, watch_access_response::Event as Told};

use super::Replies;
use crate::{
    access::{Event, Feed},
    authn::Call,
    error::ApiError,
    service::Service,
};

/// Tells an ingest which agents are registered, as long as it listens. Its certificate is good up to the second `ends`
/// (Unix time).
pub(crate) async fn watch(
    service: Arc<Service>,
    call: Call,
    ends: u64,
) -> Result<Replies<v1::WatchAccessResponse>, ApiError> {
    let request_id = call.origin.request_id.clone();
    let feed = Feed::begin(service, call, ends).await?;
    let told = stream::unfold(Some(feed), move |feed| {
        let request_id = request_id.clone();
        async move {
            let mut feed = feed?;
            match feed.next().await {
                Ok(event) => Some((Ok(message(event)), Some(feed))),
                Err(error) => {
                    tracing::info!(request_id, %error, "an ingest is told no more");
                    Some((Err(error.into_status(&request_id)), None))
                }
            }
        }
    });
    Ok(told.boxed())
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
