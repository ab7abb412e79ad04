//! `bot`: this program's own credentials, kept fresh: an agent identity.

use std::{
    path::{Path, PathBuf},
    time::{Duration, UNIX_EPOCH},
};

use anyhow::Result;
use clap::{Args, Subcommand};
use mezite_client::{Client, ClientConfig, Retry};
use mezite_daemon::clock;
use mezite_proto::v1;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, sleep},
};

use super::agent::pulse::{SVID_PAUSE, is_due, passes, reload};
use crate::{
    bot_dir::{About, BotDir, Whose},
    cmd::{call, present},
    context::{Cluster, Context},
    exit::Usage,
    log,
    output::{self, Report},
    secret,
};

/// Wait after an attempt that failed.
const AFTER_FAILURE: Duration = Duration::from_secs(5);
/// How often it is looked whether a renewal is due.
const TICK: Duration = Duration::from_secs(2);
/// How often it is asked whom to trust.
const TRUST_INTERVAL: Duration = Duration::from_secs(300);

const EXAMPLES: &str = "\
Examples:
  mezctl bot run --identity ci --secret-file ci.secret --out /var/lib/ci/mezite --addr a.example:3025 --ca-pin sha256:…
  ssh -F /var/lib/ci/mezite/ssh_config deploy@web1.example.org

The folder has key, key-cert.pub, known_hosts, tls.key, tls.crt, ca.pem and session, under `current`: all of them are
replaced at one time, when two thirds of their life are over. Beside it are svid.pem, svid_key.pem and bundle.pem: the
identity's X.509-SVID, for whoever speaks SPIFFE. Whoever keeps one of them open is told with --reload.
The secret is good once: the file can be removed afterwards. A copy of the folder that is used elsewhere locks the
identity.";

/// Commands of an agent identity.
#[derive(Debug, Subcommand)]
pub(crate) enum Bot {
    /// Get credentials for a bootstrap secret, and keep them fresh, as a service
    Run(Run),
    /// Get the next credentials now, of a folder that no `bot run` keeps
    Renew(Renew),
}

/// Arguments of `bot run`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Run {
    /// Name of the agent identity
    #[arg(long, value_name = "NAME")]
    identity: String,
    /// File with the bootstrap secret, mode 0600; needed for the first time, and after a reset
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// Folder for keys and credentials
    #[arg(long, alias = "dir", value_name = "DIR")]
    out: PathBuf,
    /// Do what is to be done now, and end
    #[arg(long)]
    once: bool,
    /// Shell command that is run after each renewal, and again until it succeeds
    #[arg(long, value_name = "COMMAND")]
    reload: Option<String>,
}

/// Arguments of `bot renew`.
#[derive(Debug, Args)]
pub(crate) struct Renew {
    /// Folder of the agent identity, as `bot run` wrote it
    #[arg(long, alias = "dir", value_name = "DIR")]
    out: PathBuf,
}

/// The bot's credentials are none any more, and cannot be renewed by themselves.
#[derive(Debug, thiserror::Error)]
#[error("the credentials ended at {at}: an admin runs `mezctl agent-identities reset {identity}`")]
pub(crate) struct Over {
    identity: String,
    /// RFC 3339.
    at: String,
}

#[derive(Serialize)]
struct Fresh {
    identity: String,
    generation: u64,
    dir: PathBuf,
    expires_at: String,
    /// Why there is no SSH certificate.
    #[serde(skip_serializing_if = "String::is_empty")]
    ssh_refusal: String,
}

impl Report for Fresh {
    fn text(&self) -> String {
        output::fields(&[
            ("identity", self.identity.clone()),
            ("generation", self.generation.to_string()),
            ("folder", self.dir.display().to_string()),
            ("expires", self.expires_at.clone()),
            ("no ssh", self.ssh_refusal.clone()),
        ])
    }
}

pub(crate) async fn run(context: &Context, command: Bot) -> Result<()> {
    match command {
        Bot::Run(args) => keep(context, args).await,
        Bot::Renew(args) => {
            let dir = BotDir::open(&args.out)?;
            let whose = dir.whose()?.ok_or_else(|| none(&dir))?;
            let about = dir.about()?.ok_or_else(|| none(&dir))?;
            Keeper { context, dir, whose, secret: None, reload: None }.renew(&about).await.map(drop)
        }
    }
}

fn none(dir: &BotDir) -> Usage {
    Usage(format!("{} has no agent identity: run `mezctl bot run`", dir.path().display()))
}

/// A bootstrap secret, and what is kept of it.
struct Secret {
    text: zeroize::Zeroizing<String>,
    digest: String,
}

/// The secret of a file; `None` where there is no such file any more, of a folder that does not need it.
fn read_secret(file: Option<&Path>, needed: bool) -> Result<Option<Secret>> {
    let Some(file) = file.filter(|file| needed || file.exists()) else {
        return match needed {
            true => Err(Usage("there are no credentials yet: give --secret-file".into()).into()),
            false => Ok(None),
        };
    };
    let text = secret::line(file)?;
    let digest = hex::encode(Sha256::digest(text.as_bytes()));
    Ok(Some(Secret { text, digest }))
}

async fn keep(context: &Context, args: Run) -> Result<()> {
    let dir = BotDir::open(&args.out)?;
    let secret = read_secret(args.secret_file.as_deref(), dir.about()?.is_none())?;
    let whose = whose(context, &dir, &args.identity).await?;
    let keeper = Keeper { context, dir, whose, secret, reload: args.reload };
    if args.once {
        keeper.step().await?;
        keeper.keep_svid(false).await;
        return Ok(());
    }
    log::begin(context.format);
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        ended = keeper.serve() => ended,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}

/// Whose folder it is, from its beginning on.
async fn whose(context: &Context, dir: &BotDir, identity: &str) -> Result<Whose> {
    let known = match dir.whose()? {
        Some(whose) if whose.identity != identity => {
            let (other, cluster) = (&whose.identity, &whose.cluster_name);
            let what = format!("the folder has agent identity {other} of cluster {cluster}: use another");
            return Err(Usage(what).into());
        }
        Some(whose) => return Ok(whose),
        None => context.cluster(None).await?,
    };
    let whose = Whose::new(identity.to_owned(), known.trust.cluster_name().to_owned(), known.addresses);
    dir.begin(&whose, &known.trust)?;
    Ok(whose)
}

/// Keeps a folder.
struct Keeper<'a> {
    context: &'a Context,
    dir: BotDir,
    whose: Whose,
    secret: Option<Secret>,
    /// Shell command that tells of new credentials.
    reload: Option<String>,
}

impl Keeper<'_> {
    /// Goes on until the cluster says that this is no agent identity any more.
    async fn serve(&self) -> Result<()> {
        let (mut trust_at, mut svid_at) = (Instant::now(), Instant::now());
        loop {
            let mut done = self.step().await;
            if done.is_ok() && Instant::now() >= trust_at {
                trust_at = Instant::now() + TRUST_INTERVAL;
                done = self.follow_trust().await;
            }
            if done.is_ok() && Instant::now() >= svid_at {
                svid_at = Instant::now() + self.keep_svid(false).await;
            }
            match done {
                Ok(()) => sleep(TICK).await,
                Err(error) if passes(&error) => {
                    output::warn(&format!("{error:#}"));
                    sleep(AFTER_FAILURE).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Does what is to be done now: the first credentials, the next ones, and telling of them.
    async fn step(&self) -> Result<()> {
        // What an attempt before could not put in its place is an answer that counts.
        self.dir.settle()?;
        let about = self.dir.about()?;
        let begins =
            |secret: &Secret| about.as_ref().is_none_or(|about| about.secret_digest != secret.digest);
        let mut about = match (&about, self.secret.as_ref().filter(|secret| begins(secret))) {
            (_, Some(secret)) => self.bootstrap(secret).await?,
            (Some(about), None) if is_due(self.dir.lifetime()?, clock::unix_seconds()) => {
                self.renew(about).await?
            }
            (Some(about), None) => {
                self.check_life()?;
                about.clone()
            }
            (None, None) => return Err(none(&self.dir).into()),
        };
        if about.reload_pending {
            if let Some(command) = &self.reload {
                reload(command).await?;
            }
            about.reload_pending = false;
            self.dir.save(&about)?;
        }
        Ok(())
    }

    /// The first credentials, for a secret.
    async fn bootstrap(&self, secret: &Secret) -> Result<About> {
        let prepared = self.dir.prepare(0, &secret.digest)?;
        let cluster = self.cluster().await?;
        let client = self.context.client(&cluster)?;
        let request = v1::BootstrapAgentIdentityRequest {
            name: self.whose.identity.clone(),
            bootstrap_secret: secret.text.as_str().to_owned(),
            ssh_public_key: prepared.ssh.public_line(),
            tls_public_key: prepared.tls.spki_der().into(),
        };
        let reply = call!(client, Retry::Keyed(prepared.key.clone()), bootstrap_agent_identity, request)?;
        let got = present(reply.credentials, "the credentials")?;
        let about = self.dir.keep(&self.whose, &prepared, &got)?;
        self.tell(&got)?;
        Ok(about)
    }

    /// The next credentials, by those that there are.
    async fn renew(&self, about: &About) -> Result<About> {
        self.check_life()?;
        let prepared = self.dir.prepare(about.generation, &about.secret_digest)?;
        let cluster = self.cluster().await?;
        let config = ClientConfig::new(cluster.addresses, cluster.trust);
        let (identity, policy) = (Some(self.dir.identity()?), self.context.policy);
        let client = Client::new(ClientConfig { identity, policy, ..config })?;
        let request = v1::RenewAgentIdentityRequest {
            generation: about.generation,
            ssh_public_key: prepared.ssh.public_line(),
            tls_public_key: prepared.tls.spki_der().into(),
        };
        let reply = call!(client, Retry::Keyed(prepared.key.clone()), renew_agent_identity, request)?;
        let got = present(reply.credentials, "the credentials")?;
        let about = self.dir.keep(&self.whose, &prepared, &got)?;
        self.tell(&got)?;
        Ok(about)
    }

    /// Fetches whom to trust: a CA may be rotated between two renewals.
    async fn follow_trust(&self) -> Result<()> {
        let Some(mut about) = self.dir.about()? else { return Ok(()) };
        let bundle = self.context.client(&self.cluster().await?)?.trust_bundle().await?;
        if bundle.revision > about.trust_bundle_revision {
            self.dir.keep_trust(&self.whose, &mut about, &bundle)?;
            self.keep_svid(true).await;
        }
        Ok(())
    }

    /// Renews the SVID, where that is due, or it is wanted; answers how long it is not to be looked at again. Nothing else waits
    /// for it.
    async fn keep_svid(&self, wanted: bool) -> Duration {
        let svid = self.dir.svid();
        if !wanted && !svid.is_due() {
            return TICK;
        }
        let renew = async {
            let Cluster { addresses, trust } = self.cluster().await?;
            let (session, policy) = (Some(self.dir.session()?), self.context.policy);
            let config = ClientConfig { session, policy, ..ClientConfig::new(addresses, trust) };
            svid.renew(&Client::new(config)?).await
        };
        match renew.await {
            Ok(()) => TICK,
            Err(error) => {
                output::warn(&format!("no SVID yet: {error:#}"));
                SVID_PAUSE
            }
        }
    }

    async fn cluster(&self) -> Result<Cluster> {
        let (addresses, trust) = (self.whose.addresses.clone(), self.dir.trust(&self.whose)?);
        self.context.cluster(Some(Cluster { addresses, trust })).await
    }

    /// Refuses credentials that have ended: with them, nothing can be renewed.
    fn check_life(&self) -> Result<()> {
        let (_, end) = self.dir.lifetime()?;
        if clock::unix_seconds() < end {
            return Ok(());
        }
        let at = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(end)).to_string();
        Err(Over { identity: self.whose.identity.clone(), at }.into())
    }

    fn tell(&self, got: &v1::AgentIdentityCredentials) -> Result<()> {
        self.context.print(&Fresh {
            identity: self.whose.identity.clone(),
            generation: got.generation,
            dir: self.dir.path().to_owned(),
            expires_at: output::time(got.expires_at.as_ref()).unwrap_or_default(),
            ssh_refusal: got.ssh_refusal.clone(),
        })
    }
}
