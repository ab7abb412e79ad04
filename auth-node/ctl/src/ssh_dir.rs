//! What a profile has for ssh: a key, its certificate, and the lines by which hosts are recognised. One folder; the key stays
//! the same when the certificate is renewed, since ssh reads one after the other.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use mezite_pki::ssh::{CertificateInfo, SshKeyPair, parse_certificate};
use tokio::time::{Instant, sleep};

use crate::files::{create_dir, read_secret, try_lock};

/// Of a certificate's life, in how many parts the last one is in which it is renewed.
const PARTS: u64 = 3;
/// How often whoever waits looks whether another process still renews it.
const LOCK_POLL: Duration = Duration::from_millis(50);

/// Name of the private key; ssh finds the certificate by it.
pub(crate) const KEY: &str = "key";
/// Name of the certificate.
pub(crate) const CERTIFICATE: &str = "key-cert.pub";
/// Name of the lines by which ssh recognises hosts.
pub(crate) const KNOWN_HOSTS: &str = "known_hosts";

/// How a certificate stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It need not be looked at.
    Fresh,
    /// It is good until this time (Unix seconds), which is near.
    EndsAt(u64),
    /// There is none that is good.
    Over,
}

/// The folder.
#[derive(Debug)]
pub(crate) struct SshDir(PathBuf);

impl SshDir {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// How the certificate of this user stands at `now`, in Unix seconds. One that cannot be used is none.
    pub(crate) fn standing(&self, user: &str, now: u64) -> Standing {
        let line = fs::read_to_string(self.0.join(CERTIFICATE)).unwrap_or_default();
        let certificate = parse_certificate(line.trim()).ok();
        let key = self.key().ok().flatten();
        let has_known_hosts = self.0.join(KNOWN_HOSTS).exists();
        match (certificate, key) {
            (Some(certificate), Some(key)) if has_known_hosts => {
                let fits = certificate.public_key.line() == key.public_key().line();
                if fits && certificate.key_id == user { standing(&certificate, now) } else { Standing::Over }
            }
            _ => Standing::Over,
        }
    }

    /// The key, if there is one.
    ///
    /// # Errors
    /// When it cannot be read, or others can read it.
    pub(crate) fn key(&self) -> Result<Option<SshKeyPair>> {
        let path = self.0.join(KEY);
        if !path.exists() {
            return Ok(None);
        }
        let key = SshKeyPair::from_openssh(&read_secret(&path)?);
        key.map(Some).with_context(|| format!("{} is no key: remove it", path.display()))
    }

    /// Waits until no other process renews the certificate, so long at most. `None`: one still does.
    ///
    /// # Errors
    /// When the folder cannot be made or written.
    pub(crate) async fn lock(&self, most: Duration) -> Result<Option<File>> {
        create_dir(&self.0)?;
        let (path, end) = (self.0.join("lock"), Instant::now() + most);
        loop {
            let held = try_lock(&path)?;
            if held.is_some() || Instant::now() >= end {
                return Ok(held);
            }
            sleep(LOCK_POLL).await;
        }
    }

    /// Removes the certificate, if there is one.
    ///
    /// # Errors
    /// When it is still there.
    pub(crate) fn forget(&self) -> Result<()> {
        let path = self.0.join(CERTIFICATE);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", path.display()))
            }
            _ => Ok(()),
        }
    }
}

fn standing(certificate: &CertificateInfo, now: u64) -> Standing {
    let life = certificate.valid_before.saturating_sub(certificate.valid_after);
    match certificate.valid_before.saturating_sub(now) {
        0 => Standing::Over,
        // A clock that was set back.
        _ if now < certificate.valid_after => Standing::Over,
        left if left > life / PARTS => Standing::Fresh,
        _ => Standing::EndsAt(certificate.valid_before),
    }
}

#[cfg(test)]
mod tests {
    use mezite_pki::ssh::{SshCa, UserCertSpec, UserExtensions};

    use super::*;
    use crate::files::{PRIVATE, write_atomic};

    /// A folder with a certificate of alice from 1000 to 1300, and its key.
    fn folder() -> (tempfile::TempDir, SshDir) {
        let dir = tempfile::tempdir().unwrap();
        let folder = SshDir::new(dir.path().join("ssh"));
        create_dir(folder.path()).unwrap();
        let key = SshKeyPair::generate_ed25519("").unwrap();
        let certificate = SshCa::generate().unwrap().sign_user(&UserCertSpec {
            public_key: key.public_key().clone(),
            key_id: "alice".into(),
            principals: vec!["alice".into()],
            serial: 1,
            valid_after: 1000,
            valid_before: 1300,
            extensions: UserExtensions::default(),
            source_addresses: Vec::new(),
        });
        let file = |name: &str| folder.path().join(name);
        write_atomic(&file(KEY), key.private_openssh().unwrap().as_bytes(), PRIVATE).unwrap();
        write_atomic(&file(CERTIFICATE), certificate.unwrap().as_bytes(), PRIVATE).unwrap();
        write_atomic(&file(KNOWN_HOSTS), b"", PRIVATE).unwrap();
        (dir, folder)
    }

    #[test]
    fn a_certificate_is_renewed_in_the_last_third_of_its_life() {
        let (_dir, folder) = folder();
        for (now, standing) in [
            (999, Standing::Over),
            (1000, Standing::Fresh),
            (1199, Standing::Fresh),
            (1200, Standing::EndsAt(1300)),
            (1299, Standing::EndsAt(1300)),
            (1300, Standing::Over),
        ] {
            assert_eq!(folder.standing("alice", now), standing, "{now}");
        }
        assert_eq!(folder.standing("bob", 1100), Standing::Over, "another's");
    }

    #[test]
    fn a_certificate_without_all_that_belongs_to_it_is_none() {
        let (_dir, folder) = folder();
        let other = SshKeyPair::generate_ed25519("").unwrap().private_openssh().unwrap();
        write_atomic(&folder.path().join(KEY), other.as_bytes(), PRIVATE).unwrap();
        assert_eq!(folder.standing("alice", 1100), Standing::Over, "of another key");
        for missing in [KEY, CERTIFICATE, KNOWN_HOSTS] {
            let (_dir, folder) = self::folder();
            fs::remove_file(folder.path().join(missing)).unwrap();
            assert_eq!(folder.standing("alice", 1100), Standing::Over, "{missing}");
        }
        folder.forget().unwrap();
        folder.forget().unwrap();
        assert!(!folder.path().join(CERTIFICATE).exists());
    }
}
