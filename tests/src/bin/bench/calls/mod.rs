//! What three auth nodes do for their clients, in calls a second.

pub(crate) mod issue;
pub(crate) mod login;

use std::time::Duration;

use anyhow::Result;
use mezite_e2e::{Cluster, api};
use mezite_proto::v1::{PingRequest, auth_service_client::AuthServiceClient};
use tonic::{Request, metadata::AsciiMetadataValue, transport::Channel};

use crate::{
    load::{self, CONNECTIONS, Figures},
    report::{Report, millis},
};

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

/// A row of calls; `of` is what their rate is set beside, and by which name.
fn row(report: &mut Report, name: String, figures: &Figures, of: (&'static str, Option<f64>)) {
    report.row(
        name,
        &[
            ("calls/s", Some(figures.rate)),
            ("p50 ms", Some(millis(figures.p50))),
            ("p99 ms", Some(millis(figures.p99))),
            ("failed", Some(figures.failed as f64)),
            (of.0, of.1.map(|rate| figures.rate / rate)),
        ],
    );
}

/// A row of what is no call; and, where that was measured, a column for what calls a second come to beside it.
fn rate(report: &mut Report, name: &str, a_second: f64, calls: Option<(&'static str, f64)>) {
    let ratio = calls.map(|(column, rate)| (column, Some(rate / a_second)));
    let figures: Vec<_> = [("a second", Some(a_second))].into_iter().chain(ratio).collect();
    report.row(name, &figures);
}
