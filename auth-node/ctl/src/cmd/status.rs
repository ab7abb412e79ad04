//! `status`: the cluster, its members, and who the caller is.

use anyhow::Result;
use futures::future::join_all;
use mezite_client::{Client, ClientError, Retry, RetryPolicy};
use mezite_proto::v1;
use serde::Serialize;
use tonic::Code;

use crate::{
    cmd::{call, cluster::ClusterView},
    context::{Cluster, Context},
    output::{self, Report},
};

#[derive(Serialize)]
struct Status {
    cluster_name: String,
    /// Absent, as all that only a node can say, when no address serves.
    cluster_id: Option<String>,
    server_version: Option<String>,
    /// Pins of the TLS CAs, for the first contact of others.
    ca_pins: Vec<String>,
    addresses: Vec<AddressView>,
    ingest_addresses: Vec<String>,
    login: Option<LoginView>,
    /// Absent unless the caller is an admin.
    cluster: Option<ClusterView>,
}

#[derive(Serialize)]
struct AddressView {
    address: String,
    node_id: Option<u64>,
    /// Why it does not serve.
    error: Option<String>,
}

#[derive(Serialize)]
struct LoginView {
    user: String,
    expires_at: Option<String>,
    /// Whether the cluster honours the session; absent when it did not say.
    active: Option<bool>,
}

impl Report for Status {
    fn text(&self) -> String {
        let login = match &self.login {
            Some(LoginView { user, active: Some(false), .. }) => {
                format!("no more: the session of {user} has ended")
            }
            Some(LoginView { user, expires_at: Some(time), .. }) => format!("{user} until {time}"),
            Some(LoginView { user, expires_at: None, .. }) => user.clone(),
            None => "nobody".into(),
        };
        let mut text = output::fields(&[
            ("cluster", self.cluster_name.clone()),
            ("cluster id", self.cluster_id.clone().unwrap_or_default()),
            ("version", self.server_version.clone().unwrap_or_default()),
            ("ca pin", self.ca_pins.join(", ")),
            ("logged in", login),
            ("ingests", self.ingest_addresses.join(", ")),
        ]);
        let rows = self.addresses.iter().map(|one| {
            let node = one.node_id.map_or_else(|| "-".into(), |id| id.to_string());
            [one.address.clone(), node, one.error.clone().unwrap_or_else(|| "serves".into())]
        });
        text += &format!("\n{}", output::table(["ADDRESS", "NODE", "STATE"], rows));
        if let Some(cluster) = &self.cluster {
            text += &format!("\n{}", cluster.summary());
        }
        text
    }
}

pub(crate) async fn status(context: &Context) -> Result<()> {
    let cluster = context.cluster(None).await?;
    let client = context.client(&cluster)?;
    context.note_use(&client)?;
    let mut login = context.login_at(&cluster)?.map(|login| {
        (LoginView { user: login.user, expires_at: login.expires_at, active: None }, login.session)
    });
    let mut asked = ask_each(context, &cluster).await?;
    let pong = asked.iter().find_map(|(_, pong)| pong.as_ref().ok()).cloned();
    let mut members = Ok(None);
    if let (Some((view, session)), Some(_)) = (&mut login, &pong) {
        members = self::members(&client.with_session(Some(session.clone()))).await;
        view.active = match &members {
            Ok(_) => Some(true),
            Err(error) if error.code() == Some(Code::Unauthenticated) => Some(false),
            Err(_) => None,
        };
    }
    context.print(&Status {
        cluster_name: cluster.trust.cluster_name().to_owned(),
        cluster_id: pong.as_ref().map(|pong| pong.cluster_id.clone()),
        server_version: pong.as_ref().map(|pong| pong.server_version.clone()),
        ca_pins: cluster.trust.pins().iter().map(ToString::to_string).collect(),
        addresses: asked.iter().map(|(address, pong)| AddressView::new(address, pong)).collect(),
        ingest_addresses: pong.as_ref().map(|pong| pong.ingest_addresses.clone()).unwrap_or_default(),
        login: login.map(|(view, _)| view),
        cluster: members.as_mut().ok().and_then(Option::take),
    })?;
    // What could be seen is printed; that not all of it could is the outcome.
    match (pong, asked.pop(), members) {
        (None, Some((_, Err(error))), _) => Err(error.into()),
        (_, _, Err(error)) if error.code() != Some(Code::Unauthenticated) => Err(error.into()),
        _ => Ok(()),
    }
}

/// What an address answered to a ping.
type Asked = (String, Result<v1::PingResponse, ClientError>);

/// Asks each address by itself, once.
async fn ask_each(context: &Context, cluster: &Cluster) -> Result<Vec<Asked>> {
    let once = RetryPolicy { attempts_per_address: 1, ..context.policy };
    let ask = |address: String| async move {
        let one = Cluster { addresses: vec![address.clone()], trust: cluster.trust.clone() };
        let pong = context.client(&one)?.with_policy(once).ping().await;
        anyhow::Ok((address, pong))
    };
    join_all(cluster.addresses.iter().cloned().map(ask)).await.into_iter().collect()
}

impl AddressView {
    fn new(address: &str, pong: &Result<v1::PingResponse, ClientError>) -> Self {
        Self {
            address: address.to_owned(),
            node_id: pong.as_ref().ok().map(|pong| pong.node_id),
            error: pong.as_ref().err().map(reason),
        }
    }
}

fn reason(error: &ClientError) -> String {
    match error {
        ClientError::Unavailable { reason, .. } | ClientError::Untrusted { reason, .. } => reason.clone(),
        other => other.to_string(),
    }
}

/// The state of the auth cluster; `None` when only an admin may see it.
async fn members(client: &Client) -> Result<Option<ClusterView>, ClientError> {
    match call!(client, Retry::Idempotent, get_cluster_status, v1::GetClusterStatusRequest {}) {
        Ok(status) => Ok(Some(status.into())),
        Err(error) if error.code() == Some(Code::PermissionDenied) => Ok(None),
        Err(error) => Err(error),
    }
}
