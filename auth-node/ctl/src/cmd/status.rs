//! `status`: the cluster, its members, and who the caller is.

use anyhow::Result;
use futures::future::join_all;
use mezite_client::{Client, ClientError, ClusterTrust, Retry, RetryPolicy};
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
    /// Pin of the TLS CA by which servers are known now, for the first contact of others.
    ca_pin: Option<String>,
    /// Pins of all TLS CAs that are trusted: the cluster's, or, when no address serves, the profile's.
    ca_pins: Vec<String>,
    /// Where the rotation of the TLS CA stands.
    #[serde(skip)]
    phase: v1::RotationPhase,
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

impl Status {
    /// What is to be said of the CAs that are trusted and by which no server is known now.
    fn other_pins(&self) -> String {
        let role = match (&self.ca_pin, self.phase) {
            (None, _) => "known from before",
            (_, v1::RotationPhase::Init | v1::RotationPhase::UpdateClients) => "next in the rotation",
            _ => "on its way out",
        };
        let others = self.ca_pins.iter().filter(|pin| self.ca_pin.as_ref() != Some(*pin));
        others.map(|pin| format!("{pin} ({role})\n")).collect()
    }
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
            ("ca pin", self.ca_pin.clone().unwrap_or_else(|| "none can be told now".into())),
            ("also trusted", self.other_pins()),
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
    let mut login = context.login_at(&cluster)?.map(|login| {
        (LoginView { user: login.user, expires_at: login.expires_at, active: None }, login.session)
    });
    let mut asked = ask_each(context, &cluster).await?;
    let pong = asked.iter().find_map(|(_, pong)| pong.as_ref().ok()).cloned();
    let user = client.with_session(login.as_ref().map(|(_, session)| session.clone()));
    let (trust, phase) = match &pong {
        Some(_) => now_trusted(context, &user).await.unwrap_or_default(),
        None => Default::default(),
    };
    let pins = trust.as_ref().unwrap_or(&cluster.trust).pins();
    let pins: Vec<_> = pins.iter().map(ToString::to_string).collect();
    let mut members = Ok(None);
    if let (Some((view, _)), Some(_)) = (&mut login, &pong) {
        members = self::members(&user).await;
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
        ca_pin: trust.and_then(|_| pins.first().cloned()),
        ca_pins: pins,
        phase,
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

/// The CAs as they are now, the one by which servers are known first, and where the rotation of the TLS CA stands.
async fn now_trusted(
    context: &Context,
    client: &Client,
) -> Result<(Option<ClusterTrust>, v1::RotationPhase)> {
    let bundle = context.trust_bundle(client).await?;
    let tls = bundle.authorities.iter().find(|ca| ca.kind() == v1::CaKind::Tls);
    let phase = tls.map(v1::TrustedCa::phase).unwrap_or_default();
    Ok((Some(ClusterTrust::from_bundle(&bundle)?), phase))
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
