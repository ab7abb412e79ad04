//! The X.509-SVID of an agent or agent identity, in its folder: `svid.pem`, `svid_key.pem` and `bundle.pem`, for whoever speaks
//! SPIFFE on that machine. Readers read one file after the other: so the key stays, and certificate and key always fit.

use std::path::{Path, PathBuf};

use anyhow::Result;
use mezite_client::{Client, Retry};
use mezite_daemon::clock;
use mezite_pki::x509::{KeyPair, Svid, certificate_der};
use mezite_proto::v1;

use crate::{
    cmd::call,
    files::{PRIVATE, PUBLIC, read_secret, read_text, write_atomic},
};

const KEY: &str = "svid_key.pem";
const CERTIFICATE: &str = "svid.pem";
const BUNDLE: &str = "bundle.pem";

/// Its files, in the order in which leaving removes them.
pub(crate) const FILES: [&str; 3] = [CERTIFICATE, KEY, BUNDLE];

/// The folder.
#[derive(Debug)]
pub(crate) struct SvidDir(PathBuf);

impl SvidDir {
    /// Of a folder that is there.
    pub(crate) fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// Whether half of the life of the SVID is over, or there is none.
    pub(crate) fn is_due(&self) -> bool {
        is_due(self.lifetime(), clock::unix_seconds())
    }

    /// From when to when the SVID is good, in Unix seconds; `None` when there is none that can be read.
    fn lifetime(&self) -> Option<(u64, u64)> {
        let text = read_text(&self.0.join(CERTIFICATE)).ok()?;
        let svid = Svid::from_der(&certificate_der(&text).ok()?).ok()?;
        Some((svid.not_before, svid.not_after))
    }

    /// Gets an SVID as whom the client is, and keeps it.
    pub(crate) async fn renew(&self, client: &Client) -> Result<()> {
        let public_key = self.key()?.spki_der().into();
        let request = v1::IssueSvidRequest { public_key };
        let issued = call!(client, Retry::Idempotent, issue_svid, request)?;
        // Whoever shows the new one trusts those that others show.
        write_atomic(&self.0.join(BUNDLE), issued.bundle.as_bytes(), PUBLIC)?;
        write_atomic(&self.0.join(CERTIFICATE), issued.certificate.as_bytes(), PUBLIC)
    }

    /// The key, made and kept now if there is none.
    fn key(&self) -> Result<KeyPair> {
        let path = self.0.join(KEY);
        if path.exists() {
            return Ok(KeyPair::from_pem(&read_secret(&path)?)?);
        }
        let key = KeyPair::generate_p256()?;
        write_atomic(&path, key.private_pem().as_bytes(), PRIVATE)?;
        Ok(key)
    }
}

fn is_due(lifetime: Option<(u64, u64)>, now: u64) -> bool {
    lifetime.is_none_or(|(from, to)| now >= from + to.saturating_sub(from) / 2)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use mezite_pki::x509::{SvidSpec, X509Ca};

    use super::*;

    #[test]
    fn it_is_renewed_when_half_of_its_life_is_over() {
        for (now, due) in [(99, false), (150, false), (200, true), (301, true)] {
            assert_eq!(is_due(Some((100, 300)), now), due, "{now}");
        }
        assert!(is_due(None, 0));
    }

    #[test]
    fn the_key_is_made_once_and_is_for_its_owner_alone() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = SvidDir::new(scratch.path());
        assert!(dir.is_due() && dir.lifetime().is_none());
        let key = dir.key().unwrap();
        assert_eq!(dir.key().unwrap().spki_der(), key.spki_der());
        assert_eq!(scratch.path().join(KEY).metadata().unwrap().mode() & 0o777, 0o600);

        let now = clock::unix_seconds();
        let ca = X509Ca::generate("test", now - 100, now + 1000).unwrap();
        let spec = SvidSpec {
            public_key: key.spki_der(),
            spiffe_id: "spiffe://test/bot/ci".into(),
            not_before: now - 60,
            not_after: now + 600,
        };
        write_atomic(&scratch.path().join(CERTIFICATE), ca.issue_svid(&spec).unwrap().as_bytes(), PUBLIC)
            .unwrap();
        assert_eq!(dir.lifetime(), Some((now - 60, now + 600)));
        assert!(!dir.is_due());
    }
}
