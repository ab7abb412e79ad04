//! What the members of a cluster trust: the public sides of its certificate authorities. Nothing in it is secret.

use mezite_pki::{ssh::known_hosts_line, x509::CertificateInfo};
use store_txn::{Read, ReadExt};

use crate::{
    CoreError, ca, cluster,
    tables::{CaKey, CaKeyRow, CaKind, CaRow, RotationPhase},
};

/// Hosts that the host CA vouches for: all of them, since a certificate names its hosts itself.
const EVERY_HOST: &str = "*";

/// The cluster's authorities.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustBundle {
    /// Name of the cluster.
    pub cluster_name: String,
    /// One per kind, in the order of their numbers.
    pub authorities: Vec<Authority>,
    /// Rises with every change of an authority.
    pub revision: u64,
}

/// The public side of one authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority {
    /// Which one.
    pub kind: CaKind,
    /// OpenSSH public key lines (user, host, audit), or PEM certificates (TLS, peer, SPIFFE). All verify; the first one signs,
    /// for clients perhaps another.
    pub keys: Vec<String>,
    /// Where its rotation stands.
    pub phase: RotationPhase,
}

impl TrustBundle {
    /// Public keys or certificates of one authority; none when there is no such authority yet.
    pub fn keys(&self, kind: CaKind) -> &[String] {
        self.authorities.iter().find(|ca| ca.kind == kind).map(|ca| ca.keys.as_slice()).unwrap_or_default()
    }

    /// `@cert-authority` lines for known_hosts, without line ends.
    ///
    /// # Errors
    /// [`CoreError::Internal`] for a stored key that cannot be read.
    pub fn known_hosts(&self) -> Result<Vec<String>, CoreError> {
        let line = |key: &String| known_hosts_line(&[EVERY_HOST.to_owned()], key);
        let lines: Result<_, _> = self.keys(CaKind::Host).iter().map(line).collect();
        lines.map_err(|error| CoreError::Internal(format!("a key of the host CA: {error}")))
    }

    /// Lines for sshd's TrustedUserCAKeys, without line ends.
    pub fn trusted_user_ca_keys(&self) -> Vec<String> {
        self.keys(CaKind::User).to_vec()
    }

    /// PEM of the TLS CA's certificates, one after the other.
    pub fn tls_ca_certificates(&self) -> String {
        self.keys(CaKind::Tls).iter().map(|pem| format!("{}\n", pem.trim_end())).collect()
    }
}

/// The trust bundle.
///
/// # Errors
/// [`CoreError::Precondition`] before the cluster was made; [`CoreError::Storage`].
pub fn bundle(state: &mut (impl Read + ?Sized)) -> Result<TrustBundle, CoreError> {
    let cluster_name = cluster::get(state)?.row.name;
    let mut bundle = TrustBundle { cluster_name, authorities: Vec::new(), revision: 0 };
    for kind in CaKind::ALL {
        if let Some(stored) = state.get(&CaKey(kind))? {
            bundle.revision = bundle.revision.max(stored.revision);
            bundle.authorities.push(authority(kind, stored.row));
        }
    }
    Ok(bundle)
}

/// Pin of the TLS CA that signs: `sha256:` and hexadecimal digits.
///
/// # Errors
/// [`CoreError::Precondition`] before the cluster was made; [`CoreError::Internal`]; [`CoreError::Storage`].
pub fn tls_pin(state: &mut (impl Read + ?Sized)) -> Result<String, CoreError> {
    let certificate = ca::active(state, CaKind::Tls)?.key.public;
    let read = CertificateInfo::from_pem(&certificate);
    read.map(|info| info.spki_pin).map_err(|error| CoreError::Internal(format!("the TLS CA: {error}")))
}

/// Revision of the trust bundle.
///
/// # Errors
/// [`CoreError::Storage`].
pub fn revision(state: &mut (impl Read + ?Sized)) -> Result<u64, CoreError> {
    let mut revision = 0;
    for kind in CaKind::ALL {
        revision = revision.max(state.get(&CaKey(kind))?.map_or(0, |stored| stored.revision));
    }
    Ok(revision)
}

/// The kinds of authorities that there are, and where the rotation of each stands.
///
/// # Errors
/// [`CoreError::Storage`].
pub fn phases(state: &mut (impl Read + ?Sized)) -> Result<Vec<(CaKind, RotationPhase)>, CoreError> {
    let mut phases = Vec::new();
    for kind in CaKind::ALL {
        phases.extend(state.get(&CaKey(kind))?.map(|stored| (kind, stored.row.phase())));
    }
    Ok(phases)
}

fn authority(kind: CaKind, row: CaRow) -> Authority {
    let phase = row.phase();
    let keys = row.active.into_iter().chain(row.trusted);
    Authority { kind, keys: keys.map(|CaKeyRow { public, .. }| public).collect(), phase }
}

#[cfg(test)]
mod tests {
    use store_txn::TransactionExt;

    use super::*;
    use crate::world::World;

    #[test]
    fn the_bundle_has_every_authority_and_the_one_that_signs_first() {
        let mut world = World::new();
        let before = world.run(|tx, _| bundle(tx)).unwrap();
        assert_eq!(before.cluster_name, "test");
        assert_eq!(before.authorities.iter().map(|ca| ca.kind).collect::<Vec<_>>(), CaKind::ALL);
        let host = before.keys(CaKind::Host)[0].clone();
        assert_eq!(before.known_hosts().unwrap(), [format!("@cert-authority * {host}")]);
        assert_eq!(before.trusted_user_ca_keys(), before.keys(CaKind::User));
        assert_eq!(world.run(|tx, _| revision(tx)).unwrap(), before.revision);

        world
            .run(|tx, _| {
                let mut row = tx.get(&CaKey(CaKind::Host))?.unwrap().row;
                let other = mezite_pki::ssh::SshCa::generate().unwrap().public_line();
                row.trusted.push(CaKeyRow { public: other, ..CaKeyRow::default() });
                tx.put(&CaKey(CaKind::Host), &row);
                Ok(())
            })
            .unwrap();
        let after = world.run(|tx, _| bundle(tx)).unwrap();
        assert!(after.revision > before.revision);
        assert_eq!(
            (after.keys(CaKind::Host)[0].as_str(), after.known_hosts().unwrap().len()),
            (host.as_str(), 2)
        );
    }

    #[test]
    fn no_private_key_is_in_the_bundle() {
        let shown = format!("{:?}", World::new().run(|tx, _| bundle(tx)).unwrap());
        assert!(!shown.contains("PRIVATE") && !shown.contains("sealed"));
    }
}
