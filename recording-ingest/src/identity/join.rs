//! From a token to an ingest that the cluster knows.
//!
//! Each step is on disk before the next one begins, and each can be done twice: a join that was interrupted anywhere
//! is finished by running it again. Where an ingest has joined, nothing is done, unless it is good for nothing any more.

use std::path::Path;

use mezite_client::{
    AuthClient, Client, ClientConfig, ClientError, ClusterTrust, FirstContact, Retry, RetryPolicy,
};
use mezite_daemon::{clock, files};
use mezite_proto::v1;
use zeroize::Zeroizing;

use super::{Folder, IdentityError, Progress, State, policy};
use crate::config::Config;

/// What became of a join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    /// The id that the cluster gave it.
    pub agent_id: String,
    /// Name of the cluster.
    pub cluster_name: String,
    /// Whether there was nothing left to do: it has joined, and the cluster has said nothing else, if it could be asked.
    pub already_joined: bool,
}

/// The join token in a file's only line; `-` is standard input.
///
/// # Errors
/// When there is no file, others can read it, or it has no line or several.
pub fn token_from(file: Option<&Path>) -> Result<Zeroizing<String>, IdentityError> {
    let bad = |reason: &str| IdentityError::Config { field: "--token-file", reason: reason.to_owned() };
    let text = files::read_secret_or_stdin(file.ok_or_else(|| bad("is needed to join"))?)?;
    match text.trim_ascii() {
        "" => Err(bad("is empty")),
        line if line.contains(char::is_whitespace) => Err(bad("has more than one line or word")),
        line => Ok(Zeroizing::new(line.to_owned())),
    }
}

/// Makes an ingest of the data folder. `token` is asked for the join token's secret where it is needed.
///
/// # Errors
/// See [`IdentityError`]. After any of them it can be called again.
pub async fn join(
    config: &Config,
    token: impl FnOnce() -> Result<Zeroizing<String>, IdentityError>,
) -> Result<Joined, IdentityError> {
    let folder = Folder::open(&config.data_dir)?;
    check(config)?;
    let (state, already_joined) = match folder.load()?.filter(|state| state.progress == Progress::Joined) {
        None => (enter(&folder, config, &token()?).await?, false),
        Some(state) => match useless(&folder, &state, config).await? {
            None => (resumed(state, config)?, true),
            Some(why) => {
                tracing::warn!(
                    id = state.agent_id,
                    why,
                    "the ingest in data_dir is none any more: a new one joins"
                );
                (succeed(&folder, config, &token()?).await?, false)
            }
        },
    };
    Ok(Joined { agent_id: state.agent_id, cluster_name: state.cluster_name, already_joined })
}

/// Joins as a new ingest, which is in the folder in place of the old one once it has.
async fn succeed(
    folder: &Folder,
    config: &Config,
    token: &Zeroizing<String>,
) -> Result<State, IdentityError> {
    let mut next = folder.next()?;
    if next.load()?.is_some_and(|state| !is_of(&state, config)) {
        folder.drop_next()?;
        next = folder.next()?;
    }
    let state = enter(&next, config, token).await?;
    drop(next);
    folder.take_up_next()?;
    Ok(state)
}

/// Does what is left to do of a join.
async fn enter(folder: &Folder, config: &Config, token: &Zeroizing<String>) -> Result<State, IdentityError> {
    let mut state = match folder.load()? {
        Some(state) => resumed(state, config)?,
        None => begin(folder, config).await?,
    };
    // Also where there are certificates: what is left of the join in the cluster may have ended since, or been removed.
    certify(folder, &mut state, config, token).await?;
    register(folder, &mut state, config, token).await?;
    Ok(state)
}

/// Why an ingest that has joined is of no use any more: it must join anew. `None`: it is good, as far as can be told now.
///
/// # Errors
/// When its files cannot be read.
async fn useless(
    folder: &Folder,
    state: &State,
    config: &Config,
) -> Result<Option<&'static str>, IdentityError> {
    let identity = match folder.identity(state) {
        Err(error @ IdentityError::File(_)) => return Err(error),
        Err(_) => return Ok(Some("its files are damaged")),
        Ok(identity) => identity,
    };
    if identity.is_over_at(clock::unix_seconds()) {
        return Ok(Some("its certificate has ended"));
    }
    let once = RetryPolicy { attempts_per_address: 1, ..policy(config) };
    let client = identity.client(config)?.with_policy(once);
    let call = |mut auth: AuthClient, request| async move { auth.agent_heartbeat(request).await };
    match client.call(Retry::Idempotent, report(config, state, 0), call).await.map_err(IdentityError::from) {
        Err(error) if error.is_removal() => Ok(Some("the cluster has it no more")),
        // What the configuration knows the cluster by decides then who is right.
        Err(IdentityError::Cluster(ClientError::Untrusted { .. })) => {
            Ok(Some("it and the cluster do not know each other by their authorities any more"))
        }
        Ok(_) | Err(_) => Ok(None),
    }
}

/// What an ingest reports of itself.
pub(crate) fn report(config: &Config, state: &State, load: u32) -> v1::AgentHeartbeatRequest {
    v1::AgentHeartbeatRequest {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        labels: config.labels.clone(),
        address: config.advertise.clone(),
        load,
        followed_trust_revision: state.followed_revision,
    }
}

fn check(config: &Config) -> Result<(), IdentityError> {
    let needed = [
        ("auth_servers", config.auth_servers.is_empty()),
        ("hostname", config.hostname.is_empty()),
        ("advertise", config.advertise.is_empty()),
        ("ca_pin", config.ca_pin.is_none() && config.ca_file.is_none()),
    ];
    match needed.into_iter().find(|(_, missing)| *missing) {
        Some((field, _)) => Err(IdentityError::Config { field, reason: "is needed to join".to_owned() }),
        None => Ok(()),
    }
}

/// Recognises the cluster, and keeps what a join that is interrupted from here on needs to go on.
async fn begin(folder: &Folder, config: &Config) -> Result<State, IdentityError> {
    let trust = recognise(config).await?;
    let state = State::new(trust.cluster_name(), &config.hostname, &config.additional_principals);
    folder.keep_trust(&trust)?;
    folder.ssh_key()?;
    folder.tls_key()?;
    folder.save(&state)?;
    Ok(state)
}

async fn recognise(config: &Config) -> Result<ClusterTrust, IdentityError> {
    let contact = match (&config.ca_pin, &config.ca_file) {
        (Some(pin), _) => FirstContact::Pin(pin.parse()?),
        (None, Some(path)) => {
            let missing =
                || IdentityError::Config { field: "ca_file", reason: "there is no such file".to_owned() };
            FirstContact::CaPem(files::read_text(path)?.ok_or_else(missing)?)
        }
        (None, None) => {
            return Err(IdentityError::Config { field: "ca_pin", reason: "is needed to join".to_owned() });
        }
    };
    Ok(contact.establish(&config.auth_servers, policy(config)).await?.trust)
}

/// A join goes on only as the host that it was begun as.
fn resumed(state: State, config: &Config) -> Result<State, IdentityError> {
    if is_of(&state, config) {
        return Ok(state);
    }
    let reason = format!("data_dir is of host {} with other names: use another folder", state.hostname);
    Err(IdentityError::Config { field: "hostname", reason })
}

fn is_of(state: &State, config: &Config) -> bool {
    state.hostname == config.hostname && state.principals == config.additional_principals
}

async fn certify(
    folder: &Folder,
    state: &mut State,
    config: &Config,
    token: &Zeroizing<String>,
) -> Result<(), IdentityError> {
    let trust = folder.trust(state)?;
    let client = Client::new(ClientConfig {
        policy: policy(config),
        ..ClientConfig::new(config.auth_servers.clone(), trust)
    })?;
    let issued = generate(&client, folder, state, token).await?;
    folder.keep_certificates(state, &issued)
}

/// Has certificates issued for the keys in the folder: by the token, or, where that is empty, by the certificate that
/// the client shows.
pub(crate) async fn generate(
    client: &Client,
    folder: &Folder,
    state: &State,
    token: &str,
) -> Result<v1::GenerateHostCertsResponse, IdentityError> {
    let request = v1::GenerateHostCertsRequest {
        token: token.to_owned(),
        ssh_public_key: folder.ssh_key()?.public_line(),
        tls_public_key: folder.tls_key()?.spki_der().into(),
        hostname: state.hostname.clone(),
        additional_principals: state.principals.clone(),
    };
    let call = |mut auth: AuthClient, request| async move { auth.generate_host_certs(request).await };
    // The cluster knows the keys again: with them, twice is still one use of the token.
    Ok(client.call(Retry::Idempotent, request, call).await?)
}

/// Enters the ingest in the registry.
async fn register(
    folder: &Folder,
    state: &mut State,
    config: &Config,
    token: &Zeroizing<String>,
) -> Result<(), IdentityError> {
    let client = folder.identity(state)?.client(config)?;
    let request = v1::RegisterAgentRequest {
        token: token.as_str().to_owned(),
        address: config.advertise.clone(),
        labels: config.labels.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let call = |mut auth: AuthClient, request| async move { auth.register_agent(request).await };
    let registered = client.call(Retry::Idempotent, request, call).await?;
    if registered.agent_id != state.agent_id {
        let what = format!("it registered another agent, {}", registered.agent_id);
        return Err(IdentityError::Answer(what));
    }
    state.progress = Progress::Joined;
    folder.save(state)
}
