//! The profile: which cluster a user works with, and the session. One file, readable by its owner alone.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::{Context as _, Result, bail};
use mezite_client::{ClusterTrust, SessionSecret};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::files::{PRIVATE, create_dir, lock, read_secret, write_atomic};

/// Marks the file.
const KIND: &str = "mezite.ctl.profile";
/// Version of the file that this program writes and reads.
const VERSION: u32 = 1;

/// The file.
pub(crate) const PROFILE: &str = "profile.json";
/// Held by who writes it.
pub(crate) const LOCK: &str = "profile.lock";
/// Folder with what ssh needs, as `mezctl certs refresh` keeps it.
const SSH: &str = "ssh";

/// Folder of a profile.
#[derive(Debug, Clone)]
pub(crate) struct Home {
    dir: PathBuf,
    name: String,
}

impl Home {
    /// The folder of the profile of this name.
    pub(crate) fn new(dir: PathBuf, name: String) -> Self {
        Self { dir, name }
    }

    /// Name of the profile.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Folder with the key and certificate for ssh.
    pub(crate) fn ssh(&self) -> PathBuf {
        self.dir.join(SSH)
    }

    /// Whether there is a profile.
    pub(crate) fn exists(&self) -> bool {
        self.file().exists()
    }

    /// Removes the profile, with what ssh had of it. Its folder stays where it has anything else.
    pub(crate) fn remove(&self) -> Result<()> {
        let failed = || format!("cannot remove the profile in {}", self.dir.display());
        match fs::remove_dir_all(self.ssh()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error).with_context(failed),
            _ => {}
        }
        fs::remove_file(self.file()).with_context(failed)?;
        let _ = fs::remove_file(self.dir.join(LOCK)).and_then(|()| fs::remove_dir(&self.dir));
        Ok(())
    }

    fn file(&self) -> PathBuf {
        self.dir.join(PROFILE)
    }

    /// The profile, if there is one.
    pub(crate) fn load(&self) -> Result<Option<Profile>> {
        let path = self.file();
        match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
            Ok(_) => {}
        }
        Profile::decode(&read_secret(&path)?, &path).map(Some)
    }

    /// Replaces the profile.
    pub(crate) fn save(&self, profile: &Profile) -> Result<()> {
        self.update(|_| Some(profile.clone())).map(drop)
    }

    /// Replaces the profile with what `change` makes of the one that is there; `None`: it stays as it is. No other process
    /// writes it in between. Answers whether it was replaced.
    pub(crate) fn update(&self, change: impl FnOnce(Option<Profile>) -> Option<Profile>) -> Result<bool> {
        create_dir(&self.dir)?;
        // Whoever has it writes a small file.
        let _held = lock(&self.dir.join(LOCK))?;
        let Some(profile) = change(self.load()?) else { return Ok(false) };
        write_atomic(&self.file(), profile.encode()?.as_bytes(), PRIVATE)?;
        Ok(true)
    }

    /// When the profile was written; `None` when there is none, or that cannot be told.
    pub(crate) fn written(&self) -> Option<SystemTime> {
        fs::metadata(self.file()).ok()?.modified().ok()
    }
}

/// What a user's commands work with.
#[derive(Clone)]
pub(crate) struct Profile {
    pub(crate) addresses: Vec<String>,
    pub(crate) trust: ClusterTrust,
    /// Who logged in last, also after a logout.
    pub(crate) last_user: Option<String>,
    pub(crate) login: Option<LoginState>,
}

/// A login.
#[derive(Clone)]
pub(crate) struct LoginState {
    pub(crate) user: String,
    pub(crate) session: SessionSecret,
    /// RFC 3339.
    pub(crate) expires_at: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    kind: String,
    version: u32,
    cluster_name: String,
    addresses: Vec<String>,
    ca_certificates: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    session_id: Option<Zeroizing<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    session_expires_at: Option<String>,
}

/// What a file of any version says first.
#[derive(Deserialize)]
struct Heading {
    kind: String,
    version: u32,
}

impl Profile {
    fn encode(&self) -> Result<Zeroizing<String>> {
        let login = self.login.as_ref();
        let stored = Stored {
            kind: KIND.into(),
            version: VERSION,
            cluster_name: self.trust.cluster_name().into(),
            addresses: self.addresses.clone(),
            ca_certificates: self.trust.ca_pem().into(),
            user: login.map(|login| login.user.clone()).or_else(|| self.last_user.clone()),
            session_id: login.map(|login| Zeroizing::new(login.session.expose().into())),
            session_expires_at: login.and_then(|login| login.expires_at.clone()),
        };
        Ok(Zeroizing::new(serde_json::to_string_pretty(&stored)? + "\n"))
    }

    fn decode(text: &str, path: &Path) -> Result<Self> {
        let unreadable = || format!("{} cannot be read: remove it, and log in again", path.display());
        let heading: Heading = serde_json::from_str(text).with_context(unreadable)?;
        if heading.kind != KIND || heading.version != VERSION {
            bail!("{} is of another program or version: remove it, and log in again", path.display());
        }
        let stored: Stored = serde_json::from_str(text).with_context(unreadable)?;
        let last_user = stored.user.clone();
        let login = match (stored.user, stored.session_id) {
            (Some(user), Some(session)) => Some(LoginState {
                user,
                session: SessionSecret::new(session.as_str().to_owned())?,
                expires_at: stored.session_expires_at,
            }),
            _ => None,
        };
        let trust =
            ClusterTrust::new(&stored.cluster_name, &stored.ca_certificates).with_context(unreadable)?;
        Ok(Self { addresses: stored.addresses, trust, last_user, login })
    }
}

#[cfg(test)]
#[path = "profile_tests.rs"]
mod tests;
