//! The data folder: keys, certificates, whom to trust, and how far the joining has come.
//!
//! Keys are on disk before a token is used for them, so that a join that was interrupted goes on with the same keys
//! and is still one use of the token. Each file is replaced whole, and the state, which says what the others are good
//! for, is written last. One process uses a folder at a time.

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
};

use mezite_client::ClusterTrust;
use mezite_daemon::files::{PRIVATE, PUBLIC, create_dir, read_secret, read_text, try_lock, write_atomic};
use mezite_pki::{
    ssh::SshKeyPair,
    x509::{CertificateInfo, KeyPair},
};
use mezite_proto::v1;
use serde::{Deserialize, Serialize};

use super::{Identity, IdentityError};

/// Marks the state file.
const KIND: &str = "mezite.ingest";
/// Version of the state file that this program writes and reads.
const VERSION: u32 = 1;

const LOCK: &str = "lock";
pub(super) const STATE: &str = "ingest.json";
const SSH_KEY: &str = "ssh_host_ed25519_key";
const SSH_CERTIFICATE: &str = "ssh_host_ed25519_key-cert.pub";
const TLS_KEY: &str = "tls.key";
const TLS_CERTIFICATE: &str = "tls.crt";
const CA: &str = "ca.pem";
/// All files of an identity, but for the state, which says what they are good for.
pub(super) const IDENTITY: [&str; 5] = [SSH_KEY, SSH_CERTIFICATE, TLS_KEY, TLS_CERTIFICATE, CA];

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

/// What an ingest knows of itself beside its keys and certificates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct State {
    kind: String,
    version: u32,
    pub(crate) progress: Progress,
    pub(crate) cluster_name: String,
    /// First principal of its certificates.
    pub(crate) hostname: String,
    /// Further principals.
    pub(crate) principals: Vec<String>,
    /// Empty until there are certificates.
    pub(crate) agent_id: String,
    /// Of the CAs on disk.
    pub(crate) trust_bundle_revision: u64,
    /// Where the CAs on disk stand in their rotation, by the numbers of the API.
    pub(crate) phases: BTreeMap<i32, i32>,
    /// Whether the certificate on disk is of a key that does not sign any more.
    #[serde(default)]
    pub(crate) certificate_lags: bool,
    /// Revision of the trust bundle that is taken up in full: with a certificate of the key that signed then.
    #[serde(default)]
    pub(crate) followed_revision: u64,
}

impl State {
    /// At the beginning of a join.
    pub(crate) fn new(cluster_name: &str, hostname: &str, principals: &[String]) -> Self {
        Self {
            kind: KIND.to_owned(),
            version: VERSION,
            progress: Progress::Keys,
            cluster_name: cluster_name.to_owned(),
            hostname: hostname.to_owned(),
            principals: principals.to_vec(),
            agent_id: String::new(),
            trust_bundle_revision: 0,
            phases: BTreeMap::new(),
            certificate_lags: false,
            followed_revision: 0,
        }
    }
}

/// The data folder, locked until it is dropped.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    _lock: File,
}

impl Folder {
    /// Opens the folder; it is made if it is not there. A new identity that has joined in it is in place from then on.
    ///
    /// # Errors
    /// [`IdentityError::InUse`] while another process has it.
    pub(crate) fn open(path: &Path) -> Result<Self, IdentityError> {
        create_dir(path)?;
        let in_use = || IdentityError::InUse(path.display().to_string());
        let folder = Self { path: path.to_owned(), _lock: try_lock(&path.join(LOCK))?.ok_or_else(in_use)? };
        folder.take_up_next()?;
        Ok(folder)
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    fn write(&self, name: &str, bytes: &[u8], mode: u32) -> Result<(), IdentityError> {
        Ok(write_atomic(&self.file(name), bytes, mode)?)
    }

    fn text(&self, name: &'static str) -> Result<String, IdentityError> {
        let missing = || IdentityError::Malformed { file: name, reason: "is missing".to_owned() };
        read_text(&self.file(name))?.ok_or_else(missing)
    }

    /// How far the ingest has come; `None` when it has not begun.
    pub(crate) fn load(&self) -> Result<Option<State>, IdentityError> {
        let Some(text) = read_text(&self.file(STATE))? else { return Ok(None) };
        let bad = |reason: String| IdentityError::Malformed { file: STATE, reason };
        let state: State = serde_json::from_str(&text).map_err(|error| bad(error.to_string()))?;
        if state.kind != KIND || state.version != VERSION {
            return Err(bad("is of another program or version".to_owned()));
        }
        Ok(Some(state))
    }

    /// The state and identity of an ingest that has joined.
    pub(crate) fn joined(&self) -> Result<(State, Identity), IdentityError> {
        match self.load()? {
            Some(state) if state.progress == Progress::Joined => {
                let identity = self.identity(&state)?;
                Ok((state, identity))
            }
            _ => Err(IdentityError::NotJoined(self.path.display().to_string())),
        }
    }

    pub(crate) fn save(&self, state: &State) -> Result<(), IdentityError> {
        let bad =
            |error: serde_json::Error| IdentityError::Malformed { file: STATE, reason: error.to_string() };
        let text = serde_json::to_string_pretty(state).map_err(bad)?;
        self.write(STATE, format!("{text}\n").as_bytes(), PUBLIC)
    }

    /// The SSH host key, made and kept now if there is none.
    pub(crate) fn ssh_key(&self) -> Result<SshKeyPair, IdentityError> {
        let path = self.file(SSH_KEY);
        if path.exists() {
            return Ok(SshKeyPair::from_openssh(&read_secret(&path)?)?);
        }
        let key = SshKeyPair::generate_ed25519("")?;
        self.write(SSH_KEY, key.private_openssh()?.as_bytes(), PRIVATE)?;
        Ok(key)
    }

    /// The TLS key, made and kept now if there is none.
    pub(crate) fn tls_key(&self) -> Result<KeyPair, IdentityError> {
        let path = self.file(TLS_KEY);
        if path.exists() {
            return Ok(KeyPair::from_pem(&read_secret(&path)?)?);
        }
        let key = KeyPair::generate_p256()?;
        self.write(TLS_KEY, key.private_pem().as_bytes(), PRIVATE)?;
        Ok(key)
    }

    /// Keeps whom to trust before there are certificates: a join that goes on needs it.
    pub(crate) fn keep_trust(&self, trust: &ClusterTrust) -> Result<(), IdentityError> {
        self.write(CA, trust.ca_pem().as_bytes(), PUBLIC)
    }

    pub(crate) fn trust(&self, state: &State) -> Result<ClusterTrust, IdentityError> {
        Ok(ClusterTrust::new(&state.cluster_name, &self.text(CA)?)?)
    }

    /// The identity that the files make up.
    pub(crate) fn identity(&self, state: &State) -> Result<Identity, IdentityError> {
        let certificate = self.text(TLS_CERTIFICATE)?;
        let ssh_certificate = self.text(SSH_CERTIFICATE)?;
        let (trust, tls_key, ssh_key) = (self.trust(state)?, self.tls_key()?, self.ssh_key()?);
        let identity = Identity::new(trust, certificate, &tls_key, ssh_key, &ssh_certificate)?;
        if identity.agent_id().to_string() != state.agent_id {
            let reason = format!("is not of ingest {}", state.agent_id);
            return Err(IdentityError::Malformed { file: TLS_CERTIFICATE, reason });
        }
        Ok(identity)
    }

    /// Keeps what the cluster issued for the keys in the folder, and saves the state with it.
    ///
    /// # Errors
    /// When it is not for this ingest; then nothing has changed.
    pub(crate) fn keep_certificates(
        &self,
        state: &mut State,
        issued: &v1::GenerateHostCertsResponse,
    ) -> Result<(), IdentityError> {
        let missing = || IdentityError::Answer("it lacks the trust bundle".to_owned());
        let bundle = issued.trust_bundle.as_ref().ok_or_else(missing)?;
        let trust = trust_of(state, bundle)?;
        let (tls_key, ssh_key) = (self.tls_key()?, self.ssh_key()?);
        let tls_certificate = issued.tls_certificate.clone();
        let identity = Identity::new(trust, tls_certificate, &tls_key, ssh_key, &issued.ssh_certificate)?;
        let agent_id = identity.agent_id().to_string();
        // Before it is registered, a join that ended with its certificates goes on as another one.
        let known = state.progress != Progress::Joined || state.agent_id == agent_id;
        if agent_id != issued.agent_id || !known {
            return Err(IdentityError::Answer(format!("it is for ingest {agent_id}, not for this one")));
        }
        self.keep_bundle(state, bundle)?;
        let ssh_certificate = format!("{}\n", issued.ssh_certificate.trim_end());
        self.write(SSH_CERTIFICATE, ssh_certificate.as_bytes(), PUBLIC)?;
        self.write(TLS_CERTIFICATE, issued.tls_certificate.as_bytes(), PUBLIC)?;
        state.agent_id = agent_id;
        state.certificate_lags = false;
        if state.progress == Progress::Keys {
            state.progress = Progress::Certified;
        }
        self.save(state)
    }

    /// Keeps whom to trust. The state is not saved with it: the caller does that afterwards.
    ///
    /// # Errors
    /// When it is another cluster's, or has no usable CA; then nothing has changed.
    pub(crate) fn keep_bundle(
        &self,
        state: &mut State,
        bundle: &v1::GetTrustBundleResponse,
    ) -> Result<(), IdentityError> {
        self.keep_trust(&trust_of(state, bundle)?)?;
        state.trust_bundle_revision = bundle.revision;
        state.phases = bundle.authorities.iter().map(|ca| (ca.kind, ca.phase)).collect();
        state.certificate_lags = state.progress == Progress::Joined && self.lags_behind(bundle)?;
        Ok(())
    }

    /// Whether the certificate on disk is of another key than the one that signs for servers now.
    fn lags_behind(&self, bundle: &v1::GetTrustBundleResponse) -> Result<bool, IdentityError> {
        let tls = bundle.authorities.iter().find(|ca| ca.kind() == v1::CaKind::Tls);
        let Some(signer) = tls.and_then(|ca| ca.certificates.first()) else { return Ok(false) };
        let shown = CertificateInfo::from_pem(&self.text(TLS_CERTIFICATE)?)?;
        Ok(!shown.names_authority(&CertificateInfo::from_pem(signer)?))
    }
}

fn trust_of(state: &State, bundle: &v1::GetTrustBundleResponse) -> Result<ClusterTrust, IdentityError> {
    let trust = ClusterTrust::from_bundle(bundle)?;
    if trust.cluster_name() == state.cluster_name {
        Ok(trust)
    } else {
        let what = format!("the trust bundle is of another cluster, {}", trust.cluster_name());
        Err(IdentityError::Answer(what))
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use mezite_client::testing::{CLUSTER, TestCa};
    use mezite_pki::identity::Identity as Holder;

    use super::*;

    const ID: &str = "0b5c2f6e-6a1d-4c0e-9c55-1f2e3d4c5b6a";
    const OTHER: &str = "1b5c2f6e-6a1d-4c0e-9c55-1f2e3d4c5b6a";
    const LIFE: (u64, u64) = (1_600_000_000, 4_000_000_000);

    fn begun() -> (tempfile::TempDir, Folder, State) {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        let state = State::new(CLUSTER, "ingest1", &[]);
        folder.save(&state).unwrap();
        (dir, folder, state)
    }

    fn issued(ca: &TestCa, folder: &Folder, id: &str) -> v1::GenerateHostCertsResponse {
        let holder = Holder::Ingest { cluster: CLUSTER.into(), id: id.into() };
        let key = folder.tls_key().unwrap().spki_der();
        v1::GenerateHostCertsResponse {
            agent_id: id.into(),
            ssh_certificate: "ssh-ed25519-cert-v01@openssh.com AAAA".into(),
            tls_certificate: ca.issue_for(&key, Some(holder), &["a"], LIFE, "").certificate,
            trust_bundle: Some(ca.bundle(&[])),
            expires_at: None,
        }
    }

    #[test]
    fn one_process_uses_a_folder_at_a_time() {
        let (dir, folder, _) = begun();
        assert!(matches!(Folder::open(dir.path()), Err(IdentityError::InUse(_))));
        drop(folder);
        Folder::open(dir.path()).unwrap();
    }

    #[test]
    fn keys_stay_the_same_and_are_private() {
        let (dir, folder, _) = begun();
        let (ssh, tls) = (folder.ssh_key().unwrap().public_line(), folder.tls_key().unwrap().spki_der());
        assert_eq!(folder.ssh_key().unwrap().public_line(), ssh);
        assert_eq!(folder.tls_key().unwrap().spki_der(), tls);
        for name in [SSH_KEY, TLS_KEY] {
            let path = dir.path().join(name);
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
            fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        }
        assert!(matches!(folder.ssh_key(), Err(IdentityError::File(_))));
        assert!(matches!(folder.tls_key(), Err(IdentityError::File(_))));
    }

    #[test]
    fn what_was_issued_makes_up_the_identity() {
        let (_dir, folder, mut state) = begun();
        assert!(matches!(folder.joined(), Err(IdentityError::NotJoined(_))));
        let ca = TestCa::new();
        folder.keep_certificates(&mut state, &issued(&ca, &folder, ID)).unwrap();
        assert_eq!(folder.load().unwrap().unwrap(), state);
        assert_eq!((state.progress, state.agent_id.as_str()), (Progress::Certified, ID));
        assert!(matches!(folder.joined(), Err(IdentityError::NotJoined(_))));
        state.progress = Progress::Joined;
        folder.save(&state).unwrap();
        let (_, identity) = folder.joined().unwrap();
        assert_eq!((identity.agent_id().to_string().as_str(), identity.cluster_name()), (ID, CLUSTER));
    }

    #[test]
    fn an_answer_for_somebody_else_changes_nothing() {
        let (_dir, folder, mut state) = begun();
        let ca = TestCa::new();
        folder.keep_certificates(&mut state, &issued(&ca, &folder, ID)).unwrap();
        state.progress = Progress::Joined;
        let before = (state.clone(), folder.text(TLS_CERTIFICATE).unwrap(), folder.text(CA).unwrap());
        let right = issued(&TestCa::new(), &folder, ID);
        let mut elsewhere = right.clone();
        elsewhere.trust_bundle.as_mut().unwrap().cluster_name = "other".into();
        let wrong = [
            issued(&TestCa::new(), &folder, OTHER),
            v1::GenerateHostCertsResponse { agent_id: OTHER.into(), ..right.clone() },
            v1::GenerateHostCertsResponse { trust_bundle: None, ..right.clone() },
            v1::GenerateHostCertsResponse { tls_certificate: String::new(), ..right },
            elsewhere,
        ];
        for answer in wrong {
            assert!(folder.keep_certificates(&mut state, &answer).is_err());
            let after = (state.clone(), folder.text(TLS_CERTIFICATE).unwrap(), folder.text(CA).unwrap());
            assert_eq!(before, after);
        }
    }

    #[test]
    fn a_state_of_another_program_or_version_is_refused() {
        let (dir, folder, state) = begun();
        let text = fs::read_to_string(dir.path().join(STATE)).unwrap();
        for wrong in [
            text.replace(KIND, "mezite.other"),
            text.replace("\"version\": 1", "\"version\": 2"),
            text.replace("\"hostname\"", "\"colour\""),
            text[..20].to_owned(),
        ] {
            fs::write(dir.path().join(STATE), wrong).unwrap();
            assert!(matches!(folder.load(), Err(IdentityError::Malformed { .. })));
        }
        fs::write(dir.path().join(STATE), text).unwrap();
        assert_eq!(folder.load().unwrap(), Some(state));
    }
}
