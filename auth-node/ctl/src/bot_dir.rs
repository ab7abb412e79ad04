//! The folder of an agent identity: its keys, its credentials, and what it was about to ask for.
//!
//! Each set of credentials is a folder of its own, written whole before it is named by its number; `current`, a symbolic
//! link, leads to the last one. So whoever reads through it has files that belong together, and a process that dies between
//! any two steps leaves the set before, or the new one.
//!
//! What is asked for is on disk before it is: the keys, and the idempotency key by which the cluster knows the call again. A
//! process that dies before it has kept an answer asks the same once more, and gets it. Without that, the next call would
//! look like that of a thief who has a copy.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use mezite_client::{ClientIdentity, ClusterTrust, IdempotencyKey, SessionSecret};
use mezite_pki::{
    ssh::SshKeyPair,
    x509::{CertificateInfo, KeyPair},
};
use mezite_proto::v1;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use zeroize::Zeroizing;

use crate::{
    cmd::{certs::lines, present},
    exit::Usage,
    files::{PRIVATE, PUBLIC, create_dir, read_secret, read_text, try_lock, write_atomic},
    svid_dir::SvidDir,
};

/// Marks the file that says whose folder it is.
const KIND: &str = "mezite.ctl.bot";
/// Version of the files that this program writes and reads.
const VERSION: u32 = 1;

const WHOSE: &str = "bot.json";
const LOCK: &str = "bot.lock";
const SETS: &str = "sets";
const NEXT: &str = "next";
const CURRENT: &str = "current";
const SSH_CONFIG: &str = "ssh_config";

const SSH_KEY: &str = "key";
const SSH_PUBLIC: &str = "key.pub";
const SSH_CERTIFICATE: &str = "key-cert.pub";
const KNOWN_HOSTS: &str = "known_hosts";
const TLS_KEY: &str = "tls.key";
const TLS_CERTIFICATE: &str = "tls.crt";
const CA: &str = "ca.pem";
const SESSION: &str = "session";
/// What a set says of itself: it is written last.
const ABOUT: &str = "set.json";
/// What is asked for with the keys beside it: it is written last.
const CALL: &str = "call.json";

/// Whose folder it is, and of which cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Whose {
    kind: String,
    version: u32,
    pub(crate) identity: String,
    pub(crate) cluster_name: String,
    /// Auth nodes, host:port.
    pub(crate) addresses: Vec<String>,
}

impl Whose {
    pub(crate) fn new(identity: String, cluster_name: String, addresses: Vec<String>) -> Self {
        Self { kind: KIND.into(), version: VERSION, identity, cluster_name, addresses }
    }
}

/// What a set of credentials says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct About {
    pub(crate) generation: u64,
    /// Of the trust bundle beside it.
    pub(crate) trust_bundle_revision: u64,
    /// Digest of the bootstrap secret that it all began with: another one begins anew.
    pub(crate) secret_digest: String,
    /// Whether who uses them has still to be told of them.
    pub(crate) reload_pending: bool,
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CallFile {
    /// Of the credentials that it is asked with; 0: with the secret.
    generation: u64,
    /// Digest of the secret.
    secret_digest: String,
    idempotency_key: String,
}

/// A call that is on disk, and can be made again.
pub(crate) struct Prepared {
    pub(crate) ssh: SshKeyPair,
    pub(crate) tls: KeyPair,
    pub(crate) key: IdempotencyKey,
    secret_digest: String,
}

/// The folder. One process works on it at a time.
#[derive(Debug)]
pub(crate) struct BotDir {
    path: PathBuf,
    _lock: File,
}

impl BotDir {
    /// A folder that is made if it is not there.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        create_dir(path)?;
        let path = path.canonicalize().with_context(|| format!("cannot use {}", path.display()))?;
        // Where the file system has no locks, whoever starts two has to know.
        let Some(lock) = try_lock(&path.join(LOCK))? else {
            let what = format!(
                "another process, such as `mezctl bot run`, keeps {} and renews what is in it by itself: there can be one at a \
                 time",
                path.display()
            );
            return Err(Usage(what).into());
        };
        let dir = Self { path, _lock: lock };
        create_dir(&dir.path.join(SETS))?;
        dir.settle()?;
        Ok(dir)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whose it is; `None` before it is anybody's.
    pub(crate) fn whose(&self) -> Result<Option<Whose>> {
        let whose: Option<Whose> = read_json(&self.path.join(WHOSE))?;
        if whose.as_ref().is_some_and(|whose| whose.kind != KIND || whose.version != VERSION) {
            bail!("{} is of another program or version", self.path.join(WHOSE).display());
        }
        Ok(whose)
    }

    /// Says whose it is, and whom it trusts until there are credentials.
    pub(crate) fn begin(&self, whose: &Whose, trust: &ClusterTrust) -> Result<()> {
        write_atomic(&self.path.join(SSH_CONFIG), self.ssh_config()?.as_bytes(), PUBLIC)?;
        write_atomic(&self.path.join(CA), trust.ca_pem().as_bytes(), PUBLIC)?;
        write_json(&self.path.join(WHOSE), whose, PUBLIC)
    }

    /// What the last set says of itself; `None`: there is none.
    pub(crate) fn about(&self) -> Result<Option<About>> {
        match self.last()? {
            Some(number) => read_json(&self.set(number).join(ABOUT)),
            None => Ok(None),
        }
    }

    /// Whom to trust: as the last set says, or as it was said in the beginning.
    pub(crate) fn trust(&self, whose: &Whose) -> Result<ClusterTrust> {
        let place = self.last()?.map_or_else(|| self.path.clone(), |number| self.set(number));
        Ok(ClusterTrust::new(&whose.cluster_name, &read_text(&place.join(CA))?)?)
    }

    /// The certificate and key of the last set.
    pub(crate) fn identity(&self) -> Result<ClientIdentity> {
        let set = self.last_set()?;
        let chain = read_text(&set.join(TLS_CERTIFICATE))?;
        Ok(ClientIdentity::from_pem(&chain, &read_secret(&set.join(TLS_KEY))?)?)
    }

    /// The session of the last set.
    pub(crate) fn session(&self) -> Result<SessionSecret> {
        let text = read_secret(&self.last_set()?.join(SESSION))?;
        Ok(SessionSecret::new(text.trim_end().to_owned())?)
    }

    /// Where its SVID is: beside the sets, for it is renewed more often.
    pub(crate) fn svid(&self) -> SvidDir {
        SvidDir::new(&self.path)
    }

    /// From when to when the last set is good, in Unix seconds.
    pub(crate) fn lifetime(&self) -> Result<(u64, u64)> {
        let info = CertificateInfo::from_pem(&read_text(&self.last_set()?.join(TLS_CERTIFICATE))?)?;
        Ok((info.not_before, info.not_after))
    }

    /// A call for the credentials after those of a generation, or, after 0, for the first ones by a secret with this digest: the
    /// one that was prepared before and not answered yet, or a new one.
    pub(crate) fn prepare(&self, generation: u64, secret_digest: &str) -> Result<Prepared> {
        let next = self.path.join(NEXT);
        let secret_digest = secret_digest.to_owned();
        if let Some(call) = read_json::<CallFile>(&next.join(CALL))?
            && (call.generation, &call.secret_digest) == (generation, &secret_digest)
        {
            return Ok(Prepared {
                ssh: SshKeyPair::from_openssh(&read_secret(&next.join(SSH_KEY))?)?,
                tls: KeyPair::from_pem(&read_secret(&next.join(TLS_KEY))?)?,
                key: IdempotencyKey::new(call.idempotency_key)?,
                secret_digest,
            });
        }
        // Before its call: else what is left could be taken for an answer that was kept.
        remove_file(&next.join(ABOUT))?;
        remove_dir(&next)?;
        create_dir(&next)?;
        // ssh reads its key and certificate one after the other: the key stays, so that they always fit.
        let ssh = match generation {
            0 => SshKeyPair::generate_ed25519("")?,
            _ => SshKeyPair::from_openssh(&read_secret(&self.last_set()?.join(SSH_KEY))?)?,
        };
        let (tls, key) = (KeyPair::generate_p256()?, IdempotencyKey::random());
        write_atomic(&next.join(SSH_KEY), ssh.private_openssh()?.as_bytes(), PRIVATE)?;
        write_atomic(&next.join(SSH_PUBLIC), format!("{}\n", ssh.public_line()).as_bytes(), PUBLIC)?;
        write_atomic(&next.join(TLS_KEY), tls.private_pem().as_bytes(), PRIVATE)?;
        let idempotency_key = key.expose().to_owned();
        let call = CallFile { generation, secret_digest: secret_digest.clone(), idempotency_key };
        write_json(&next.join(CALL), &call, PRIVATE)?;
        Ok(Prepared { ssh, tls, key, secret_digest })
    }

    /// Keeps what a prepared call was answered: from then on it is the last set.
    pub(crate) fn keep(
        &self,
        whose: &Whose,
        prepared: &Prepared,
        got: &v1::AgentIdentityCredentials,
    ) -> Result<About> {
        let next = self.path.join(NEXT);
        let bundle = present(got.trust_bundle.as_ref(), "the trust bundle")?;
        write_trust(&next, whose, bundle)?;
        match got.ssh_certificate.trim_end() {
            // One of an answer before this one.
            "" => remove_file(&next.join(SSH_CERTIFICATE))?,
            line => write_atomic(&next.join(SSH_CERTIFICATE), format!("{line}\n").as_bytes(), PUBLIC)?,
        }
        write_atomic(&next.join(TLS_CERTIFICATE), got.tls_certificate.as_bytes(), PUBLIC)?;
        let session = Zeroizing::new(format!("{}\n", got.session_id));
        write_atomic(&next.join(SESSION), session.as_bytes(), PRIVATE)?;
        let about = About {
            generation: got.generation,
            trust_bundle_revision: bundle.revision,
            secret_digest: prepared.secret_digest.clone(),
            reload_pending: true,
        };
        write_json(&next.join(ABOUT), &about, PUBLIC)?;
        // With the answer on disk, nobody makes the call again.
        remove_file(&next.join(CALL))?;
        self.settle()?;
        Ok(about)
    }

    /// Keeps whom to trust now, in the last set.
    pub(crate) fn keep_trust(
        &self,
        whose: &Whose,
        about: &mut About,
        bundle: &v1::GetTrustBundleResponse,
    ) -> Result<()> {
        write_trust(&self.last_set()?, whose, bundle)?;
        about.trust_bundle_revision = bundle.revision;
        self.save(about)
    }

    /// Keeps what the last set says of itself.
    pub(crate) fn save(&self, about: &About) -> Result<()> {
        write_json(&self.last_set()?.join(ABOUT), about, PUBLIC)
    }

    /// Finishes what was begun: a set that is complete gets its number, `current` leads to the last one, and those before
    /// it go.
    pub(crate) fn settle(&self) -> Result<()> {
        let next = self.path.join(NEXT);
        // Once its call is gone, what is there is an answer that was kept.
        if next.join(ABOUT).exists() && !next.join(CALL).exists() {
            let number = self.last()?.unwrap_or_default() + 1;
            rename(&next, &self.set(number))?;
            sync_dir(&self.path.join(SETS))?;
            sync_dir(&self.path)?;
        }
        let Some(last) = self.last()? else { return Ok(()) };
        let wanted = Path::new(SETS).join(last.to_string());
        let current = self.path.join(CURRENT);
        if fs::read_link(&current).ok().as_deref() != Some(&wanted) {
            let made = self.path.join(".current");
            remove_file(&made)?;
            symlink(&wanted, &made).with_context(|| format!("cannot make {}", made.display()))?;
            rename(&made, &current)?;
            sync_dir(&self.path)?;
        }
        for number in self.numbers()?.into_iter().filter(|number| *number != last) {
            remove_dir(&self.set(number))?;
        }
        Ok(())
    }

    fn set(&self, number: u64) -> PathBuf {
        self.path.join(SETS).join(number.to_string())
    }

    /// The folder of the last set.
    fn last_set(&self) -> Result<PathBuf> {
        let number = self.last()?.with_context(|| format!("{} has no credentials", self.path.display()))?;
        Ok(self.set(number))
    }

    fn last(&self) -> Result<Option<u64>> {
        Ok(self.numbers()?.into_iter().max())
    }

    fn numbers(&self) -> Result<Vec<u64>> {
        let sets = self.path.join(SETS);
        let cannot = || format!("cannot read {}", sets.display());
        let mut numbers = Vec::new();
        for entry in fs::read_dir(&sets).with_context(cannot)? {
            let name = entry.with_context(cannot)?.file_name();
            numbers.extend(name.to_str().and_then(|name| name.parse::<u64>().ok()));
        }
        Ok(numbers)
    }

    /// With which ssh logs in as the bot.
    fn ssh_config(&self) -> Result<String> {
        let special = |c: char| c.is_control() || "\"%$".contains(c);
        let dir = self.path.to_str().filter(|path| !path.contains(special)).ok_or_else(|| {
            Usage(format!("{} cannot be named in ssh_config: use another folder", self.path.display()))
        })?;
        let file = |name: &str| format!("\"{dir}/{CURRENT}/{name}\"");
        Ok(format!(
            "# Include it in an ssh_config, under a Host line that names the cluster's hosts, or use ssh -F.\n\
             IdentityFile {}\nCertificateFile {}\nUserKnownHostsFile {}\nIdentitiesOnly yes\nStrictHostKeyChecking yes\n",
            file(SSH_KEY),
            file(SSH_CERTIFICATE),
            file(KNOWN_HOSTS)
        ))
    }
}

fn write_trust(place: &Path, whose: &Whose, bundle: &v1::GetTrustBundleResponse) -> Result<()> {
    let trust = ClusterTrust::from_bundle(bundle)?;
    if trust.cluster_name() != whose.cluster_name {
        bail!("the trust bundle is of another cluster, {}", trust.cluster_name());
    }
    write_atomic(&place.join(CA), trust.ca_pem().as_bytes(), PUBLIC)?;
    write_atomic(&place.join(KNOWN_HOSTS), lines(&bundle.known_hosts).as_bytes(), PUBLIC)
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => Zeroizing::new(read.with_context(|| format!("cannot read {}", path.display()))?),
    };
    serde_json::from_str(&text).map(Some).with_context(|| format!("{} cannot be read", path.display()))
}

fn write_json(path: &Path, value: &impl Serialize, mode: u32) -> Result<()> {
    let text = Zeroizing::new(serde_json::to_string_pretty(value)? + "\n");
    write_atomic(path, text.as_bytes(), mode)
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).with_context(|| format!("cannot move {} to {}", from.display(), to.display()))
}

fn sync_dir(path: &Path) -> Result<()> {
    File::open(path).and_then(|dir| dir.sync_all()).with_context(|| format!("cannot sync {}", path.display()))
}

fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        removed => removed.with_context(|| format!("cannot remove {}", path.display()))?,
    }
    path.parent().map_or(Ok(()), sync_dir)
}

fn remove_dir(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.with_context(|| format!("cannot remove {}", path.display())),
    }
}

#[cfg(test)]
#[path = "bot_dir_tests.rs"]
mod tests;
