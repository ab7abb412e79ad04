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
    profile::LoginState,
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
        text += &format!("\n{}", table(&self.addresses));
        if let Some(cluster) = &self.cluster {
            text += &format!("\n{}", cluster.summary());
        }
        text
    }
}

pub(crate) async fn status(context: &Context) -> Result<()> {
    let cluster = context.cluster(None).await?;
    let client = context.client(&cluster)?;
    let login = context.login_at(&cluster)?;
    let asked = ask_each(context, &cluster, context.policy).await?;
    let pong = asked.iter().find_map(|(_, pong)| pong.as_ref().ok());
    let is_served = asked.iter().any(|(_, pong)| problem(pong).is_none());
    let user = client.with_session(login.as_ref().map(|login| login.session.clone()));
    let (trust, phase) = match pong {
        Some(_) => now_trusted(context, &user).await.unwrap_or_default(),
        None => Default::default(),
    };
    let pins = trust.as_ref().unwrap_or(&cluster.trust).pins();
    let pins: Vec<_> = pins.iter().map(ToString::to_string).collect();
    let members = match login {
        Some(_) if is_served => Some(members(&user).await),
        _ => None,
    };
    context.print(&Status {
        cluster_name: cluster.trust.cluster_name().to_owned(),
        cluster_id: pong.map(|pong| pong.cluster_id.clone()),
        server_version: pong.map(|pong| pong.server_version.clone()),
        ca_pin: trust.and_then(|_| pins.first().cloned()),
        ca_pins: pins,
        phase,
        addresses: views(&asked),
        ingest_addresses: pong.map(|pong| pong.ingest_addresses.clone()).unwrap_or_default(),
        login: login.map(|login| LoginView::new(login, members.as_ref())),
        cluster: members
            .as_ref()
            .and_then(|seen| seen.as_ref().ok().cloned().flatten())
            .map(ClusterView::from),
    })?;
    // What could be seen is printed; that not all of it could is the outcome.
    match members {
        _ if !is_served => Err(nobody_serves(asked).into()),
        Some(Err(error)) if error.code() != Some(Code::Unauthenticated) => Err(error.into()),
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
async fn ask_each(context: &Context, cluster: &Cluster, policy: RetryPolicy) -> Result<Vec<Asked>> {
    let once = RetryPolicy { attempts_per_address: 1, ..policy };
    let ask = |address: String| async move {
        let one = Cluster { addresses: vec![address.clone()], trust: cluster.trust.clone() };
        let pong = context.client(&one)?.with_policy(once).ping().await;
        anyhow::Ok((address, pong))
    };
    join_all(cluster.addresses.iter().cloned().map(ask)).await.into_iter().collect()
}

/// How each address of the profile is, within the bounds of `policy`: what can be told where no call is served.
pub(crate) async fn survey(context: &Context, policy: RetryPolicy) -> Result<String> {
    let cluster = context.cluster(None).await?;
    Ok(table(&views(&ask_each(context, &cluster, policy).await?)))
}

fn views(asked: &[Asked]) -> Vec<AddressView> {
    asked.iter().map(|(address, pong)| AddressView::new(address, pong)).collect()
}

fn table(addresses: &[AddressView]) -> String {
    let rows = addresses.iter().map(|one| {
        let node = one.node_id.map_or_else(|| "-".into(), |id| id.to_string());
        [one.address.clone(), node, one.error.clone().unwrap_or_else(|| "serves".into())]
    });
    output::table(["ADDRESS", "NODE", "STATE"], rows)
}

impl AddressView {
    fn new(address: &str, pong: &Result<v1::PingResponse, ClientError>) -> Self {
        Self {
            address: address.to_owned(),
            node_id: pong.as_ref().ok().map(|pong| pong.node_id),
            error: problem(pong),
        }
    }
}

impl LoginView {
    fn new(login: LoginState, members: Option<&Seen>) -> Self {
        let active = match members {
            Some(Ok(_)) => Some(true),
            Some(Err(error)) if error.code() == Some(Code::Unauthenticated) => Some(false),
            Some(Err(_)) | None => None,
        };
        Self { user: login.user, expires_at: login.expires_at, active }
    }
}

/// Why a node does not serve; `None`: it does.
fn problem(pong: &Result<v1::PingResponse, ClientError>) -> Option<String> {
    match pong {
        Ok(pong) => Some(pong.problem.clone()).filter(|problem| !problem.is_empty()),
        Err(ClientError::Unavailable { reason, .. } | ClientError::Untrusted { reason, .. }) => {
            Some(reason.clone())
        }
        Err(other) => Some(other.to_string()),
    }
}

/// What is said when no address serves: what a node tells of itself, if one answers.
fn nobody_serves(asked: Vec<Asked>) -> ClientError {
    let addresses = asked.iter().map(|(address, _)| address.as_str()).collect::<Vec<_>>().join(", ");
    let attempts = u32::try_from(asked.len()).unwrap_or(u32::MAX);
    let told = asked.iter().find_map(|(_, pong)| Some(pong.as_ref().ok()?.problem.clone()));
    match (told, asked.into_iter().next_back()) {
        (None, Some((_, Err(error)))) => error,
        (told, _) => {
            let reason = told.unwrap_or_default();
            ClientError::Unavailable { addresses, attempts, reason, retry_after: None }
        }
    }
}

/// The state of the auth cluster as far as the caller may see it, which is none of it unless it is an admin.
type Seen = Result<Option<v1::GetClusterStatusResponse>, ClientError>;

async fn members(client: &Client) -> Seen {
    match call!(client, Retry::Idempotent, get_cluster_status, v1::GetClusterStatusRequest {}) {
        Ok(status) => Ok(Some(status)),
        Err(error) if error.code() == Some(Code::PermissionDenied) => Ok(None),
        Err(error) => Err(error),
    }
}
