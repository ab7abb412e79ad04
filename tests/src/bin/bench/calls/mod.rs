//! What three auth nodes do for their clients, in calls a second.

pub(crate) mod issue;
pub(crate) mod login;

use std::time::Duration;

use anyhow::Result;
use mezite_e2e::{Cluster, api};
use mezite_proto::v1::{PingRequest, auth_service_client::AuthServiceClient};
use tonic::{Request, metadata::AsciiMetadataValue, transport::Channel};

use crate::load::{self, CONNECTIONS, Figures};

/// A client of one auth node, on a connection that it shares.
pub(super) type Stub = AuthServiceClient<Channel>;

/// So many clients, spread over the nodes, on as many connections as clients share at most.
fn clients(cluster: &Cluster, count: usize) -> Vec<Stub> {
    let trust = cluster.trust();
    let addresses = cluster.addresses();
    let connections = addresses.iter().cycle().take(count.clamp(1, CONNECTIONS));
    let stubs: Vec<_> =
        connections.map(|address| api::stub(address, trust, api::tls(trust, true, None))).collect();
    stubs.into_iter().cycle().take(count).collect()
}

/// What a session proves itself by.
fn bearer(session: &str) -> Result<AsciiMetadataValue> {
    Ok(format!("Bearer {session}").parse()?)
}

/// A request with a session.
fn with<T>(message: T, bearer: &AsciiMetadataValue) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", bearer.clone());
    request
}

/// Calls that do nothing: as fast as calls can be here.
async fn pings(cluster: &Cluster, count: usize, time: Duration) -> Result<Figures> {
    let ping = |mut stub: Stub| async move {
        stub.ping(PingRequest::default()).await?;
        Ok(())
    };
    load::closed_loop(clients(cluster, count), time, ping, async || Ok(())).await
}

/// One line of a table.
fn line(name: &str, figures: &Figures, beside: Option<&Figures>) -> String {
    let share = beside.map_or(String::new(), |beside| format!("{:.0} %", 100.0 * figures.rate / beside.rate));
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    format!(
        "{name:<34}{:>10.0}{:>10}{:>10.2}{:>10.2}{:>8}",
        figures.rate,
        share,
        ms(figures.p50),
        ms(figures.p99),
        figures.failed
    )
}

/// The head of a table whose shares are of `beside`.
fn head(beside: &str) -> String {
    format!("{:<34}{:>10}{:>10}{:>10}{:>10}{:>8}", "", "a second", beside, "p50 ms", "p99 ms", "failed")
}
