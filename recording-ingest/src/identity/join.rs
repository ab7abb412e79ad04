//! From a token to an ingest that the cluster knows.
//!
//! Each step is on disk before the next one begins, and each can be done twice: a join that was interrupted anywhere
//! is finished by running it again.

use std::path::Path;

use mezite_client::{AuthClient, CaPin, Client, ClientConfig, ClusterTrust, FirstContact, Retry};
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
    /// Whether there was nothing left to do.
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
    let mut state = match folder.load()? {
        Some(state) => resumed(state, config)?,
        None => begin(&folder, config).await?,
    };
    let already_joined = state.progress == Progress::Joined && has_certificate(&folder, &state);
    if !already_joined {
        let token = token()?;
        if state.progress == Progress::Keys || !has_certificate(&folder, &state) {
            certify(&folder, &mut state, config, &token).await?;
        }
        register(&folder, &mut state, config, &token).await?;
    }
    Ok(Joined { agent_id: state.agent_id, cluster_name: state.cluster_name, already_joined })
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
        (Some(pin), _) => FirstContact::Pin(pin.parse::<CaPin>()?),
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
    if state.hostname == config.hostname && state.principals == config.additional_principals {
        return Ok(state);
    }
    let reason = format!("data_dir is of host {} with other names: use another folder", state.hostname);
    Err(IdentityError::Config { field: "hostname", reason })
}

fn has_certificate(folder: &Folder, state: &State) -> bool {
    folder.identity(state).is_ok_and(|identity| identity.is_valid_at(clock::unix_seconds()))
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
