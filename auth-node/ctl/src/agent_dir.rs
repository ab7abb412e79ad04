//! An agent's folder: its keys, its certificates, whom it trusts, and how far its joining has come.
//!
//! Keys are on disk before a token is used for them, so that a join that was interrupted goes on with the same keys
//! and is still one use of the token.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use mezite_client::{ClientIdentity, ClusterTrust};
use mezite_pki::{
    ssh::{SshKeyPair, SshPublicKey, parse_certificate},
    x509::{CertificateInfo, KeyPair},
};
use mezite_proto::v1;
use serde::{Deserialize, Serialize};

use crate::{
    cmd::certs::lines,
    exit::Usage,
    files::{PRIVATE, PUBLIC, create_dir, lock, read_secret, read_text, write_atomic},
    recording::mode::Mode,
    svid_dir::{self, SvidDir},
};

/// Marks the state file.
const KIND: &str = "mezite.ctl.agent";
/// Version of the state file that this program writes and reads.
const VERSION: u32 = 1;

const STATE: &str = "agent.json";
const SSH_KEY: &str = "ssh_host_ed25519_key";
const SSH_PUBLIC: &str = "ssh_host_ed25519_key.pub";
const SSH_CERTIFICATE: &str = "ssh_host_ed25519_key-cert.pub";
const TLS_KEY: &str = "tls.key";
const TLS_CERTIFICATE: &str = "tls.crt";
const CA: &str = "ca.pem";
const USER_CAS: &str = "trusted_user_ca_keys";
const REVOKED_KEYS: &str = "revoked_keys";
const KNOWN_HOSTS: &str = "known_hosts";
const SSHD_CONFIG: &str = "sshd_config";
/// Of who writes the state file.
const LOCK: &str = "agent.lock";

/// All files, in the order in which leaving removes them: what tells how far it came goes last.
const ALL: [&str; 15] = [
    SSHD_CONFIG,
    svid_dir::FILES[0],
    svid_dir::FILES[1],
    svid_dir::FILES[2],
    TLS_CERTIFICATE,
    TLS_KEY,
    SSH_CERTIFICATE,
    SSH_PUBLIC,
    SSH_KEY,
    USER_CAS,
    REVOKED_KEYS,
    KNOWN_HOSTS,
    CA,
    LOCK,
    STATE,
];

/// How far a join has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Progress {
    /// There are keys; the token may have been used for them.
    Keys,
    /// There are certificates.
    Certified,
    /// The cluster has it in its registry.
    Joined,
}

/// What an agent knows of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AgentState {
    kind: String,
    version: u32,
    pub(crate) progress: Progress,
    pub(crate) cluster_name: String,
    /// Auth nodes, host:port.
    pub(crate) addresses: Vec<String>,
    /// First principal of the host certificate.
    pub(crate) hostname: String,
    /// Further principals.
    pub(crate) principals: Vec<String>,
    /// host:port of sshd.
    pub(crate) address: String,
    pub(crate) labels: BTreeMap<String, String>,
    /// Empty until there are certificates.
    pub(crate) agent_id: String,
    /// Of the trust bundle on disk.
    pub(crate) trust_bundle_revision: u64,
    /// Of the revocation list on disk.
    #[serde(default)]
    pub(crate) revocation_revision: u64,
    /// Where the CAs of the bundle on disk stand in their rotation, by the numbers of the API.
    pub(crate) phases: BTreeMap<i32, i32>,
    /// Whether the certificates on disk are of keys that do not sign any more.
    #[serde(default)]
    pub(crate) certificates_lag: bool,
    /// Whether sshd has still to be told of the certificates on disk.
    #[serde(default)]
    pub(crate) reload_pending: bool,
    /// Revision of the trust bundle that is taken up in full: sshd has it, and certificates of the keys that signed then.
    #[serde(default)]
    pub(crate) followed_revision: u64,
    /// What the cluster wants of sessions that cannot be recorded, as it said last.
    #[serde(default)]
    pub(crate) recording_mode: Mode,
    /// Ingests, host:port, as the cluster said last: recordings go on while no auth node can be asked.
    #[serde(default)]
    pub(crate) ingest_addresses: Vec<String>,
    /// Where recordings are until they are sent; none: sessions are not recorded.
    #[serde(default)]
    pub(crate) spool: Option<PathBuf>,
    /// As whom sshd lists principals; none: as whom it does where nobody says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) principals_user: Option<String>,
}

impl AgentState {
    /// At the beginning of a join.
    pub(crate) fn new(cluster_name: String, addresses: Vec<String>, hostname: String) -> Self {
        Self {
            kind: KIND.into(),
            version: VERSION,
            progress: Progress::Keys,
            cluster_name,
            addresses,
            hostname,
            principals: Vec::new(),
            address: String::new(),
            labels: BTreeMap::new(),
            agent_id: String::new(),
            trust_bundle_revision: 0,
            revocation_revision: 0,
            phases: BTreeMap::new(),
            certificates_lag: false,
            reload_pending: false,
            followed_revision: 0,
            recording_mode: Mode::default(),
            ingest_addresses: Vec::new(),
            spool: None,
            principals_user: None,
        }
    }

    /// Whether the cluster has SVIDs for its agents: one that was made before there were any may have none yet.
    pub(crate) fn has_svids(&self) -> bool {
        self.phases.contains_key(&v1::CaKind::Spiffe.into())
    }

    fn encode(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    fn decode(text: &str) -> Result<Self> {
        let state: Self = serde_json::from_str(text)?;
        if state.kind != KIND || state.version != VERSION {
            bail!("it is of another program or version");
        }
        Ok(state)
    }
}

/// The folder.
#[derive(Debug, Clone)]
pub(crate) struct AgentDir(PathBuf);

impl AgentDir {
    /// A folder that is there.
    pub(crate) fn new(path: &Path) -> Result<Self> {
        match path.canonicalize() {
            Ok(path) => Ok(Self(path)),
            Err(error) => Err(Usage(format!("{} is no agent's folder: {error}", path.display())).into()),
        }
    }

    /// A folder that is made if it is not there.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        create_dir(path)?;
        Self::new(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Where its SVID is.
    pub(crate) fn svid(&self) -> SvidDir {
        SvidDir::new(&self.0)
    }

    pub(crate) fn sshd_config_path(&self) -> PathBuf {
        self.file(SSHD_CONFIG)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// How far the agent has come; `None` when it has not begun.
    pub(crate) fn load(&self) -> Result<Option<AgentState>> {
        let path = self.file(STATE);
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.with_context(|| format!("cannot read {}", path.display()))?,
        };
        AgentState::decode(&text).map(Some).with_context(|| format!("{} cannot be read", path.display()))
    }

    /// The state of an agent that has joined.
    pub(crate) fn joined(&self) -> Result<AgentState> {
        match self.load()? {
            Some(state) if state.progress == Progress::Joined => Ok(state),
            _ => {
                let what = format!("{} has no agent that joined: run `mezctl agent join`", self.0.display());
                Err(Usage(what).into())
            }
        }
    }

    /// Keeps what an agent knows of itself, but for what it is told: that changes by [`Self::tell`] alone, also while a service
    /// runs which was told otherwise when it began.
    pub(crate) fn save(&self, state: &AgentState) -> Result<()> {
        let _lock = lock(&self.file(LOCK))?;
        self.write(&match self.load() {
            Ok(Some(kept)) if kept.progress == Progress::Joined => AgentState {
                addresses: kept.addresses,
                address: kept.address,
                labels: kept.labels,
                spool: kept.spool,
                principals_user: kept.principals_user,
                ..state.clone()
            },
            Ok(Some(kept)) => AgentState { spool: kept.spool, ..state.clone() },
            Ok(None) | Err(_) => state.clone(),
        })
    }

    /// Changes what an agent is told by who runs its host: where auth nodes are, where its sshd is, its labels, its spool, and as whom
    /// sshd lists principals. All else stays as it is now, whatever the caller knew of it.
    pub(crate) fn tell(&self, change: impl FnOnce(&mut AgentState)) -> Result<AgentState> {
        let _lock = lock(&self.file(LOCK))?;
        let mut state = self.load()?.with_context(|| format!("{} has no agent", self.0.display()))?;
        change(&mut state);
        self.write(&state)?;
        Ok(state)
    }

    fn write(&self, state: &AgentState) -> Result<()> {
        write_atomic(&self.file(STATE), state.encode()?.as_bytes(), PUBLIC)
    }

    /// The SSH host key, made and kept now if there is none.
    pub(crate) fn ssh_key(&self) -> Result<SshKeyPair> {
        let path = self.file(SSH_KEY);
        if path.exists() {
            return Ok(SshKeyPair::from_openssh(&read_secret(&path)?)?);
        }
        let key = SshKeyPair::generate_ed25519("")?;
        write_atomic(&path, key.private_openssh()?.as_bytes(), PRIVATE)?;
        write_atomic(&self.file(SSH_PUBLIC), format!("{}\n", key.public_line()).as_bytes(), PUBLIC)?;
        Ok(key)
    }

    /// The TLS key, made and kept now if there is none.
    pub(crate) fn tls_key(&self) -> Result<KeyPair> {
        let path = self.file(TLS_KEY);
        if path.exists() {
            return Ok(KeyPair::from_pem(&read_secret(&path)?)?);
        }
        let key = KeyPair::generate_p256()?;
        write_atomic(&path, key.private_pem().as_bytes(), PRIVATE)?;
        Ok(key)
    }

    /// Keeps what the cluster issued. The state is not among it: the caller saves that afterwards.
    pub(crate) fn keep_certificates(
        &self,
        state: &mut AgentState,
        issued: &v1::GenerateHostCertsResponse,
    ) -> Result<()> {
        let bundle = issued.trust_bundle.as_ref().context("the cluster's reply lacks the trust bundle")?;
        self.keep_bundle(state, bundle)?;
        if state.progress == Progress::Joined {
            // Before sshd can have the certificate: after a crash it is told once more than it need be.
            state.reload_pending = true;
            self.save(state)?;
        }
        let certificate = format!("{}\n", issued.ssh_certificate.trim_end());
        write_atomic(&self.file(SSH_CERTIFICATE), certificate.as_bytes(), PUBLIC)?;
        // By its time a renewal is due: it goes last.
        write_atomic(&self.file(TLS_CERTIFICATE), issued.tls_certificate.as_bytes(), PUBLIC)?;
        state.agent_id.clone_from(&issued.agent_id);
        state.certificates_lag = false;
        if state.progress != Progress::Joined {
            // Whoever joins starts or reloads sshd.
            state.followed_revision = state.trust_bundle_revision;
        }
        Ok(())
    }

    /// Keeps whom to trust. sshd reads the user CAs at every login.
    pub(crate) fn keep_bundle(
        &self,
        state: &mut AgentState,
        bundle: &v1::GetTrustBundleResponse,
    ) -> Result<()> {
        let trust = ClusterTrust::from_bundle(bundle)?;
        if trust.cluster_name() != state.cluster_name {
            bail!("the trust bundle is of another cluster, {}", trust.cluster_name());
        }
        if bundle.trusted_user_ca_keys.is_empty() {
            bail!("the trust bundle has no user CA");
        }
        write_atomic(&self.file(CA), trust.ca_pem().as_bytes(), PUBLIC)?;
        write_atomic(&self.file(KNOWN_HOSTS), lines(&bundle.known_hosts).as_bytes(), PUBLIC)?;
        write_atomic(&self.file(USER_CAS), lines(&bundle.trusted_user_ca_keys).as_bytes(), PUBLIC)?;
        state.trust_bundle_revision = bundle.revision;
        state.phases = bundle.authorities.iter().map(|ca| (ca.kind, ca.phase)).collect();
        state.certificates_lag = state.progress == Progress::Joined && self.lags_behind(bundle)?;
        Ok(())
    }

    /// Whether the certificates on disk are of other keys than those that sign now. An agent is a client of the TLS CA.
    fn lags_behind(&self, bundle: &v1::GetTrustBundleResponse) -> Result<bool> {
        let of_kind = |kind| bundle.authorities.iter().find(|ca| ca.kind() == kind);
        let tls = of_kind(v1::CaKind::Tls).and_then(|ca| {
            let ahead = ca.phase() == v1::RotationPhase::UpdateClients;
            ca.certificates.get(usize::from(ahead)).or(ca.certificates.first())
        });
        let host = of_kind(v1::CaKind::Host).and_then(|ca| ca.ssh_public_keys.first());
        let tls_lags = match tls {
            Some(signer) => {
                let shown = CertificateInfo::from_pem(&read_text(&self.file(TLS_CERTIFICATE))?)?;
                !shown.names_authority(&CertificateInfo::from_pem(signer)?)
            }
            None => false,
        };
        let host_lags = match host {
            Some(signer) => {
                let shown = parse_certificate(read_text(&self.file(SSH_CERTIFICATE))?.trim())?;
                shown.ca_fingerprint != SshPublicKey::parse(signer)?.fingerprint()
            }
            None => false,
        };
        Ok(tls_lags || host_lags)
    }

    /// Whose signatures on users' certificates count: a key a line.
    pub(crate) fn user_cas(&self) -> Result<String> {
        read_text(&self.file(USER_CAS))
    }

    /// Whether there is a revocation list on disk.
    pub(crate) fn has_revocations(&self) -> bool {
        self.file(REVOKED_KEYS).exists()
    }

    /// Keeps which certificates are revoked. sshd reads them at every login, and refuses all while the file is missing.
    pub(crate) fn keep_revocations(&self, krl: &[u8]) -> Result<()> {
        write_atomic(&self.file(REVOKED_KEYS), krl, PUBLIC)
    }

    /// Keeps whom to trust before there are certificates: a join that goes on needs it.
    pub(crate) fn keep_trust(&self, trust: &ClusterTrust) -> Result<()> {
        write_atomic(&self.file(CA), trust.ca_pem().as_bytes(), PUBLIC)
    }

    pub(crate) fn trust(&self, state: &AgentState) -> Result<ClusterTrust> {
        Ok(ClusterTrust::new(&state.cluster_name, &read_text(&self.file(CA))?)?)
    }

    /// The certificate and key that the agent shows.
    pub(crate) fn identity(&self) -> Result<ClientIdentity> {
        let chain = read_text(&self.file(TLS_CERTIFICATE))?;
        Ok(ClientIdentity::from_pem(&chain, &read_secret(&self.file(TLS_KEY))?)?)
    }

    /// From when to when the agent's certificate is good, in Unix seconds.
    pub(crate) fn lifetime(&self) -> Result<(u64, u64)> {
        let info = CertificateInfo::from_pem(&read_text(&self.file(TLS_CERTIFICATE))?)?;
        Ok((info.not_before, info.not_after))
    }

    pub(crate) fn keep_sshd_config(&self, snippet: &str) -> Result<()> {
        write_atomic(&self.file(SSHD_CONFIG), snippet.as_bytes(), PUBLIC)
    }

    /// Removes all that belongs to the agent, and nothing else in the folder.
    pub(crate) fn clear(&self) -> Result<()> {
        for name in ALL {
            match fs::remove_file(self.file(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(error)
                        .with_context(|| format!("cannot remove {}", self.file(name).display()));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "agent_dir_tests.rs"]
mod tests;
