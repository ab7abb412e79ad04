//! `agent join`: from a token to a host that OpenSSH clients of the cluster can trust.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use mezite_client::{Client, IamError, IamSigner, Retry};
use mezite_daemon::clock;
use mezite_proto::v1::{self, register_using_iam_method_request::Init};
use serde::Serialize;
use zeroize::Zeroizing;

use super::{client_of, pulse, spool};
use crate::{
    agent_dir::{AgentDir, AgentState, Progress},
    args::{key_value, label_map},
    cmd::call,
    context::{Cluster, Context},
    exit::Usage,
    output::{self, Report},
    recording::desk::SOCKET,
    secret,
    sshd_config::{Recorder, Snippet},
};

const EXAMPLES: &str = "\
Examples:
  mezctl agent join --out /etc/mezite --token-file web.token --addr a.example:3025 --ca-pin sha256:…
  mezctl agent join --out /etc/mezite --token-file - --hostname web1.example.org --labels env=prod < web.token
  mezctl agent join --out /etc/mezite --method iam --token-name web
  mezctl agent join --out /etc/mezite --spool /var/spool/mezite        an agent that has joined: record from now on
  mezctl agent join --out /etc/mezite --no-spool                       and no more

Then put `Include /etc/mezite/sshd_config` at the top of /etc/ssh/sshd_config, keep `mezctl agent run --dir /etc/mezite`
running, and reload sshd. The service reads at its start where the spool is: after --spool start it anew first, and then
reload sshd; after --no-spool reload sshd first, and start the service anew when the spool is empty.";

/// Arguments of `agent join`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Join {
    /// Folder for keys, certificates and the sshd_config snippet
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// How it proves that it may join: by the secret of a token, or by the AWS identity that this host has
    #[arg(long, value_enum, default_value_t = Method::Token)]
    method: Method,
    /// File with the join token, mode 0600; `-` reads standard input
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// With --method iam: name of the token
    #[arg(long, value_name = "NAME")]
    token_name: Option<String>,
    /// With --method iam: AWS region whose STS the cluster asks who this is [default: that of the AWS environment]
    #[arg(long, value_name = "REGION")]
    region: Option<String>,
    /// DNS name of this host: the first principal of its certificate [default: the system's]
    #[arg(long)]
    hostname: Option<String>,
    /// Further names or IP addresses that the certificate is good for
    #[arg(long, value_delimiter = ',', value_name = "NAME,…")]
    principals: Vec<String>,
    /// host:port where sshd is reached [default: port 22 of the hostname]
    #[arg(long, value_name = "HOST:PORT")]
    address: Option<String>,
    /// Labels of the node
    #[arg(long, value_delimiter = ',', value_parser = key_value, value_name = "KEY=VALUE,…")]
    labels: Vec<(String, String)>,
    /// User that sshd lists principals as [default: nobody for root, else who runs this]
    #[arg(long, value_name = "USER")]
    principals_user: Option<String>,
    /// Record sessions: sshd runs each through `mezctl record`, and `agent run` keeps recordings in this folder until they are
    /// sent. It can be given to an agent that has joined
    #[arg(long, value_name = "DIR")]
    spool: Option<PathBuf>,
    /// Record sessions no more: sshd runs them as if this had never been asked for
    #[arg(long, conflicts_with = "spool")]
    no_spool: bool,
}

impl Join {
    /// Whether the host proves it by its AWS identity.
    pub(crate) fn is_by_iam(&self) -> bool {
        self.method == Method::Iam
    }
}

/// How a host proves that it may join.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Method {
    Token,
    Iam,
}

/// With what a host proves it.
enum Proof {
    /// The secret of a token, in this file.
    Secret(PathBuf),
    /// An AWS identity, for the token of this name.
    Iam { token_name: String, region: Option<String> },
}

impl Proof {
    fn of(args: &Join) -> Result<Self> {
        let Join { method, token_file, token_name, region, .. } = args;
        match (method, token_file, token_name) {
            (Method::Token, Some(file), None) if region.is_none() => Ok(Self::Secret(file.clone())),
            (Method::Token, None, _) => {
                Err(Usage("give --token-file, or --method iam and --token-name".into()).into())
            }
            (Method::Token, Some(_), _) => {
                Err(Usage("--token-name and --region are for --method iam".into()).into())
            }
            (Method::Iam, None, Some(name)) => {
                Ok(Self::Iam { token_name: name.clone(), region: region.clone() })
            }
            (Method::Iam, _, _) => {
                Err(Usage("--method iam takes --token-name, and no --token-file".into()).into())
            }
        }
    }
}

#[derive(Serialize)]
struct Joined {
    agent_id: String,
    cluster_name: String,
    hostname: String,
    dir: PathBuf,
    sshd_config: PathBuf,
    /// Where recordings are until they are sent; absent: sessions are not recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    spool: Option<PathBuf>,
    /// Whether there was nothing left to do.
    already_joined: bool,
}

impl Report for Joined {
    fn text(&self) -> String {
        let state = if self.already_joined { "had joined before" } else { "joined" };
        let dir = self.dir.display();
        let recordings = match &self.spool {
            Some(spool) => format!("in {} until they are sent", spool.display()),
            None => "none: --spool DIR has sessions recorded".into(),
        };
        output::fields(&[
            ("agent id", self.agent_id.clone()),
            ("cluster", self.cluster_name.clone()),
            ("hostname", format!("{} ({state})", self.hostname)),
            ("recordings", recordings),
            ("service", format!("mezctl agent run --dir {dir}")),
            ("sshd", format!("Include {} in sshd_config, and reload sshd", self.sshd_config.display())),
        ])
    }
}

pub(crate) async fn join(context: &Context, args: Join) -> Result<()> {
    let has_joined = |dir: AgentDir| dir.joined().is_ok();
    let proof = match AgentDir::new(&args.out).is_ok_and(has_joined) {
        // It proves nothing any more.
        true => None,
        false => Some(Proof::of(&args)?),
    };
    let dir = AgentDir::create(&args.out)?;
    // What sshd cannot be told is refused before anything is kept.
    let _ = principals_user(args.principals_user.as_deref())?;
    let (mut state, client) = begin(context, &dir, &args).await?;
    match &args.spool {
        Some(folder) => spool::keep(&dir, &mut state, Some(std::path::absolute(folder)?))?,
        None if args.no_spool => spool::keep(&dir, &mut state, None)?,
        None => {}
    }
    let already_joined = state.progress == Progress::Joined;
    if let Some(proof) = &proof {
        let secret = match proof {
            Proof::Secret(file) => {
                let token = secret::line(file)?;
                certify(&dir, &mut state, &client, &token).await?;
                Some(token)
            }
            Proof::Iam { token_name, region } => {
                attest(&dir, &mut state, &client, token_name, region.clone()).await?;
                None
            }
        };
        pulse::keep_revocations(&dir, &mut state, &client).await?;
        snippet(&dir, &state)?;
        if let Some(token) = secret {
            register(context, &dir, &state, &token).await?;
        }
        state.progress = Progress::Joined;
        dir.save(&state)?;
    }
    if !dir.has_revocations() {
        // Of an agent that joined with an earlier release.
        pulse::keep_revocations(&dir, &mut state, &client).await?;
    }
    snippet(&dir, &state)?;
    context.print(&Joined {
        sshd_config: dir.sshd_config_path(),
        dir: dir.path().to_owned(),
        spool: state.spool,
        agent_id: state.agent_id,
        cluster_name: state.cluster_name,
        hostname: state.hostname,
        already_joined,
    })
}

/// Where the join stands, from its beginning or from where it was interrupted, and a client without a certificate.
async fn begin(context: &Context, dir: &AgentDir, args: &Join) -> Result<(AgentState, Client)> {
    let before = dir.load()?;
    let known = match &before {
        Some(state) => Some(Cluster { addresses: state.addresses.clone(), trust: dir.trust(state)? }),
        None => None,
    };
    let cluster = context.cluster(known).await?;
    let client = context.client(&cluster)?;
    let hostname = match (&args.hostname, &before) {
        (Some(hostname), _) => hostname.clone(),
        (None, Some(before)) if before.progress == Progress::Joined => before.hostname.clone(),
        (None, _) => {
            nix::unistd::gethostname()?.into_string().map_err(|_| Usage("give --hostname".into()))?
        }
    };
    let mut wanted = AgentState::new(cluster.trust.cluster_name().to_owned(), cluster.addresses, hostname);
    wanted.principals.clone_from(&args.principals);
    wanted.address = args.address.clone().unwrap_or_else(|| format!("{}:22", wanted.hostname));
    wanted.labels = label_map(&args.labels)?;
    wanted.principals_user.clone_from(&args.principals_user);
    let state = match before {
        Some(before) => resume(before, wanted)?,
        None => wanted,
    };
    if state.progress == Progress::Joined {
        return Ok((changed(context, dir, state, args).await?, client));
    }
    // From here on the join can be finished by running it again, whatever happens.
    dir.keep_trust(&cluster.trust)?;
    dir.ssh_key()?;
    dir.tls_key()?;
    dir.save(&state)?;
    Ok((state, client))
}

/// Takes up what an agent that has joined may be told anew: `agent run` reports it once it is started again.
async fn changed(context: &Context, dir: &AgentDir, state: AgentState, args: &Join) -> Result<AgentState> {
    if !args.principals.is_empty() && args.principals != state.principals {
        let what = "its certificates are for other names: `mezctl agent leave`, and join again with these --principals";
        return Err(Usage(what.into()).into());
    }
    let labels = label_map(&args.labels)?;
    let addresses = state.addresses.clone();
    if dir.joined()?.addresses != addresses {
        // Addresses at which nobody is, or another cluster of this name, would cut the host off.
        let known = Cluster { addresses: addresses.clone(), trust: dir.trust(&state)? };
        let _ = context.client(&known)?.ping().await?;
    }
    dir.tell(|kept| {
        kept.addresses = addresses;
        if let Some(address) = &args.address {
            kept.address.clone_from(address);
        }
        if !labels.is_empty() {
            kept.labels = labels;
        }
        if args.principals_user.is_some() {
            kept.principals_user.clone_from(&args.principals_user);
        }
    })
}

/// Where an earlier join goes on. What the cluster has not been told for good may still be put right.
fn resume(mut before: AgentState, mut wanted: AgentState) -> Result<AgentState> {
    let same_names = before.hostname == wanted.hostname && before.principals == wanted.principals;
    let same_host = match before.progress {
        Progress::Keys => true,
        // The certificates that it has are for these names.
        Progress::Certified => same_names,
        Progress::Joined => before.hostname == wanted.hostname,
    };
    if !same_host || before.cluster_name != wanted.cluster_name {
        let (host, cluster) = (&before.hostname, &before.cluster_name);
        let what = format!(
            "the folder has agent {host} of cluster {cluster}: use another, or `mezctl agent leave` first"
        );
        return Err(Usage(what).into());
    }
    match before.progress {
        Progress::Keys => {
            wanted.spool = before.spool;
            return Ok(wanted);
        }
        Progress::Certified => {
            before.addresses = wanted.addresses;
            before.address = wanted.address;
            before.labels = wanted.labels;
            before.principals_user = wanted.principals_user;
        }
        Progress::Joined => before.addresses = wanted.addresses,
    }
    Ok(before)
}

/// Gets certificates, unless an earlier run did and they are still good.
async fn certify(
    dir: &AgentDir,
    state: &mut AgentState,
    client: &Client,
    token: &Zeroizing<String>,
) -> Result<()> {
    if state.progress == Progress::Certified
        && dir.lifetime().is_ok_and(|(_, end)| clock::unix_seconds() < end)
    {
        return Ok(());
    }
    let request = v1::GenerateHostCertsRequest { token: token.as_str().to_owned(), ..wanted(dir, state)? };
    // The cluster knows the keys again: with them, twice is still one use of the token.
    let issued = call!(client, Retry::Idempotent, generate_host_certs, request)?;
    dir.keep_certificates(state, &issued)?;
    state.progress = Progress::Certified;
    dir.save(state)
}

/// Certificates that the host asks for, without a token.
fn wanted(dir: &AgentDir, state: &AgentState) -> Result<v1::GenerateHostCertsRequest> {
    Ok(v1::GenerateHostCertsRequest {
        token: String::new(),
        ssh_public_key: dir.ssh_key()?.public_line(),
        tls_public_key: dir.tls_key()?.spki_der().into(),
        hostname: state.hostname.clone(),
        additional_principals: state.principals.clone(),
    })
}

/// How it registers, without a token.
fn registration(state: &AgentState) -> v1::RegisterAgentRequest {
    v1::RegisterAgentRequest {
        token: String::new(),
        address: state.address.clone(),
        labels: state.labels.clone(),
        version: env!("CARGO_PKG_VERSION").into(),
    }
}

/// Gets certificates and is entered in the registry, both by the AWS identity of this host.
async fn attest(
    dir: &AgentDir,
    state: &mut AgentState,
    client: &Client,
    token_name: &str,
    region: Option<String>,
) -> Result<()> {
    let failed = |error| match error {
        IamError::Client(error) => anyhow::Error::from(error),
        IamError::NoRegion => Usage(error.to_string()).into(),
        error => error.into(),
    };
    let signer = IamSigner::from_environment(region).await.map_err(failed)?;
    let init = Init {
        token_name: token_name.to_owned(),
        certs: Some(wanted(dir, state)?),
        agent: Some(registration(state)),
    };
    let joined = client.register_using_iam(&signer, init).await.map_err(failed)?;
    let issued = joined.certs.context("the cluster's reply lacks the certificates")?;
    dir.keep_certificates(state, &issued)?;
    state.progress = Progress::Certified;
    dir.save(state)
}

/// Enters the agent in the registry.
async fn register(
    context: &Context,
    dir: &AgentDir,
    state: &AgentState,
    token: &Zeroizing<String>,
) -> Result<()> {
    let client = client_of(context, dir, state).await?;
    let request = v1::RegisterAgentRequest { token: token.as_str().to_owned(), ..registration(state) };
    let registered = call!(client, Retry::Idempotent, register_agent, request)?;
    if registered.agent_id != state.agent_id {
        bail!("the cluster registered another agent, {}", registered.agent_id);
    }
    Ok(())
}

fn snippet(dir: &AgentDir, state: &AgentState) -> Result<()> {
    let socket = state.spool.as_ref().map(|spool| spool.join(SOCKET));
    let program = std::env::current_exe()?;
    let snippet = Snippet {
        recorder: socket.as_ref().map(|socket| Recorder { program: &program, socket }),
        dir: dir.path(),
        cluster_name: &state.cluster_name,
        agent_id: &state.agent_id,
        command_user: &principals_user(state.principals_user.as_deref())?,
    };
    dir.keep_sshd_config(&snippet.render()?)
}

/// Root's sshd lists principals as somebody who can do nothing; another's can only be itself.
fn principals_user(given: Option<&str>) -> Result<String> {
    let uid = nix::unistd::geteuid();
    let name = match given {
        Some(name) => name.to_owned(),
        None if uid.is_root() => "nobody".to_owned(),
        None => {
            nix::unistd::User::from_uid(uid)?.context("this user has no name: give --principals-user")?.name
        }
    };
    let usable = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    match name.chars().all(usable) && !name.is_empty() {
        true => Ok(name),
        false => {
            Err(Usage(format!("`{name}` cannot be named in sshd_config: give --principals-user")).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(progress: Progress, cluster: &str, hostname: &str, principal: &str) -> AgentState {
        let mut state = AgentState::new(cluster.into(), vec!["a:1".into()], hostname.into());
        state.progress = progress;
        state.principals = vec![principal.into()];
        state
    }

    #[test]
    fn a_join_goes_on_only_for_the_same_host_and_cluster() {
        use Progress::{Certified, Joined, Keys};
        let resume = |progress, cluster, hostname, principal| {
            let (mut before, mut wanted) =
                (state(progress, "c", "web1", "10.0.0.1"), state(Keys, cluster, hostname, principal));
            before.agent_id = "id".into();
            wanted.address = "web1:2222".into();
            super::resume(before, wanted)
        };
        // A name that the token does not allow can be put right; the certificates' names stay.
        let corrected = resume(Keys, "c", "web2", "10.0.0.2").unwrap();
        assert_eq!((corrected.hostname.as_str(), corrected.principals[0].as_str()), ("web2", "10.0.0.2"));
        let certified = resume(Certified, "c", "web1", "10.0.0.1").unwrap();
        assert_eq!((certified.agent_id.as_str(), certified.address.as_str()), ("id", "web1:2222"));
        assert_eq!(certified.progress, Certified);
        let joined = resume(Joined, "c", "web1", "10.0.0.2").unwrap();
        assert_eq!((joined.principals[0].as_str(), joined.address.as_str()), ("10.0.0.1", ""));

        for (progress, cluster, hostname, principal) in [
            (Keys, "d", "web1", "10.0.0.1"),
            (Certified, "d", "web1", "10.0.0.1"),
            (Certified, "c", "web2", "10.0.0.1"),
            (Certified, "c", "web1", "10.0.0.2"),
            (Joined, "c", "web2", "10.0.0.1"),
            (Joined, "d", "web1", "10.0.0.1"),
        ] {
            let refused = resume(progress, cluster, hostname, principal).unwrap_err();
            assert!(refused.is::<Usage>(), "{progress:?} {cluster} {hostname} {principal}");
        }
    }

    #[test]
    fn the_command_user_cannot_add_a_line() {
        assert_eq!(principals_user(Some("nobody")).unwrap(), "nobody");
        assert!(principals_user(Some("x\nPermitRootLogin yes")).is_err());
        assert!(principals_user(Some("")).is_err());
        assert!(principals_user(None).is_ok());
    }
}
