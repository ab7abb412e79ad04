//! The keys of the certificate authorities, opened. They are in this process' memory alone, from the first signature
//! on; which key signs is told by the state, in the transaction that decides to sign.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use auth_core::{
    CoreError,
    ca::{self, ActiveCa, Kek, NewCa},
    tables::CaKind,
};
use mezite_pki::{
    PkiError,
    ssh::SshCa,
    x509::{LeafSpec, SvidSpec, X509Ca},
};
use zeroize::Zeroizing;

use crate::new_ca;

/// Opens the authorities' keys, each once for a revision of its row.
pub(crate) struct CaKeys {
    kek: Arc<Kek>,
    ssh: Opened<SshCa>,
    x509: Opened<X509Ca>,
}

impl CaKeys {
    /// For keys that are sealed under this key-encryption key.
    pub(crate) fn new(kek: Arc<Kek>) -> Self {
        Self { kek, ssh: Opened::new(), x509: Opened::new() }
    }

    /// What the cluster's secrets are sealed under.
    pub(crate) fn kek(&self) -> &Kek {
        &self.kek
    }

    /// An SSH authority that signs now: of users, of hosts, or of the audit log.
    ///
    /// # Errors
    /// [`CoreError::Internal`] when the key does not open: this node's key-encryption key is not the cluster's, or the
    /// row was altered.
    pub(crate) fn ssh(&self, active: &ActiveCa) -> Result<Arc<SshCa>, CoreError> {
        self.ssh.get(active, || {
            let opened = SshCa::from_openssh(&self.private(active)?).map_err(unusable(active))?;
            if opened.public_line() != active.key.public {
                return Err(unusable(active)(PkiError::KeyMismatch));
            }
            Ok(opened)
        })
    }

    /// An X.509 authority that signs now: TLS, peer or SPIFFE.
    ///
    /// # Errors
    /// As [`CaKeys::ssh`].
    pub(crate) fn x509(&self, active: &ActiveCa) -> Result<Arc<X509Ca>, CoreError> {
        self.x509.get(active, || {
            X509Ca::from_pems(&active.key.public, &self.private(active)?).map_err(unusable(active))
        })
    }

    /// Signs a leaf certificate of the TLS CA. It ends with its authority at the latest: answers it in PEM, and the
    /// Unix second in which it ends.
    ///
    /// # Errors
    /// As [`CaKeys::ssh`]; [`CoreError::Internal`] for a specification that cannot be signed.
    pub(crate) fn leaf(&self, active: &ActiveCa, spec: LeafSpec) -> Result<(String, u64), CoreError> {
        self.user_leaf(active, spec, &[])
    }

    /// As [`CaKeys::leaf`], for a user with these roles.
    ///
    /// # Errors
    /// As [`CaKeys::leaf`].
    pub(crate) fn user_leaf(
        &self,
        active: &ActiveCa,
        mut spec: LeafSpec,
        roles: &[String],
    ) -> Result<(String, u64), CoreError> {
        let authority = self.x509(active)?;
        spec.not_after = spec.not_after.min(authority.info().not_after);
        let pem = authority.issue_to_user(&spec, roles).map_err(unusable(active))?;
        Ok((pem, spec.not_after.saturating_add(1)))
    }

    /// Signs an X.509-SVID. It ends with its authority at the latest: answers it in PEM, and the Unix second in which it ends.
    ///
    /// # Errors
    /// As of [`CaKeys::leaf`].
    pub(crate) fn svid(&self, active: &ActiveCa, mut spec: SvidSpec) -> Result<(String, u64), CoreError> {
        let authority = self.x509(active)?;
        spec.not_after = spec.not_after.min(authority.info().not_after);
        let pem = authority.issue_svid(&spec).map_err(unusable(active))?;
        Ok((pem, spec.not_after.saturating_add(1)))
    }

    /// A new key for an authority of a cluster, its private side sealed. `now` is in Unix seconds.
    ///
    /// # Errors
    /// As [`new_ca::generate`].
    pub(crate) fn generate(&self, kind: CaKind, cluster: &str, now: u64) -> Result<NewCa, CoreError> {
        new_ca::generate(&self.kek, kind, cluster, now)
    }

    fn private(&self, active: &ActiveCa) -> Result<Zeroizing<String>, CoreError> {
        let (key, kind) = (&active.key, active.kind);
        let mut private = ca::unseal(&self.kek, kind, &key.public, &key.sealed_private)?;
        let text = String::from_utf8(std::mem::take(&mut *private)).map_err(|error| {
            drop(Zeroizing::new(error.into_bytes()));
            unusable(active)(PkiError::Malformed { expected: "a private key" })
        });
        text.map(Zeroizing::new)
    }
}

/// What an authority's key or certificate cannot do, for the log.
fn unusable(active: &ActiveCa) -> impl Fn(PkiError) -> CoreError {
    let kind = active.kind.name();
    move |error| CoreError::Internal(format!("the {kind} CA: {error}"))
}

/// Authorities of one sort that were opened, by kind and public side: while one is rotated, two of its keys sign.
struct Opened<T>(Mutex<BTreeMap<(CaKind, String), Entry<T>>>);

/// An authority, and the revision of the row that it was opened from.
struct Entry<T> {
    revision: u64,
    authority: Arc<T>,
}

impl<T> Opened<T> {
    fn new() -> Self {
        Self(Mutex::new(BTreeMap::new()))
    }

    /// The authority that signs, opened now unless it was.
    fn get(
        &self,
        active: &ActiveCa,
        open: impl FnOnce() -> Result<T, CoreError>,
    ) -> Result<Arc<T>, CoreError> {
        let (place, revision) = ((active.kind, active.key.public.clone()), active.revision);
        let mut opened = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = opened.get_mut(&place) {
            known.revision = known.revision.max(revision);
            return Ok(Arc::clone(&known.authority));
        }
        let authority = Arc::new(open()?);
        // A row that was changed may have dropped what it named before.
        opened.retain(|(kind, _), known| *kind != active.kind || known.revision >= revision);
        opened.insert(place, Entry { revision, authority: Arc::clone(&authority) });
        Ok(authority)
    }
}

#[cfg(test)]
mod tests {
    use auth_core::{ca::KEK_LENGTH, tables::CaKeyRow};
    use mezite_pki::x509::KeyPair;

    use super::*;

    fn kek(byte: u8) -> Arc<Kek> {
        Arc::new(Kek::new(Zeroizing::new([byte; KEK_LENGTH])))
    }

    fn active(kind: CaKind, revision: u64, public: String, private: &str) -> ActiveCa {
        let sealed_private = ca::seal(&kek(1), kind, &public, private.as_bytes(), [0; 12]).unwrap();
        ActiveCa { kind, revision, key: CaKeyRow { public, sealed_private, created_at_ms: 0 } }
    }

    fn user_ca(revision: u64) -> ActiveCa {
        let ca = SshCa::generate().unwrap();
        active(CaKind::User, revision, ca.public_line(), &ca.private_openssh().unwrap())
    }

    fn tls_ca(not_after: u64) -> ActiveCa {
        let ca = X509Ca::generate("test", 1, not_after).unwrap();
        active(CaKind::Tls, 1, ca.certificate_pem().to_owned(), &ca.private_pem())
    }

    #[test]
    fn a_key_is_opened_once() {
        let cas = CaKeys::new(kek(1));
        let (first, second) = (user_ca(1), user_ca(2));
        let opened = cas.ssh(&first).unwrap();
        assert_eq!(opened.public_line(), first.key.public);
        assert!(Arc::ptr_eq(&opened, &cas.ssh(&first).unwrap()));
        let rotated = cas.ssh(&second).unwrap();
        assert_eq!(rotated.public_line(), second.key.public);
        // In the middle of a rotation both keys sign.
        let first = ActiveCa { revision: 2, ..first };
        let again = cas.ssh(&first).unwrap();
        assert!(
            Arc::ptr_eq(&again, &cas.ssh(&first).unwrap())
                && Arc::ptr_eq(&rotated, &cas.ssh(&second).unwrap())
        );
        // A restored state may have another key at the same revision.
        let other = user_ca(2);
        assert_eq!(cas.ssh(&other).unwrap().public_line(), other.key.public);
    }

    #[test]
    fn a_new_key_opens() {
        let cas = CaKeys::new(kek(1));
        for kind in CaKind::ALL {
            let NewCa { public, sealed_private, .. } = cas.generate(kind, "test", 1_700_000_000).unwrap();
            let key = CaKeyRow { public: public.clone(), sealed_private, created_at_ms: 0 };
            let active = ActiveCa { kind, revision: 1, key };
            match kind {
                CaKind::Tls | CaKind::Peer | CaKind::Spiffe => {
                    assert_eq!(cas.x509(&active).unwrap().certificate_pem(), public);
                }
                CaKind::User | CaKind::Host | CaKind::Audit => {
                    assert_eq!(cas.ssh(&active).unwrap().public_line(), public);
                }
            }
        }
    }

    #[test]
    fn another_clusters_key_encryption_key_opens_nothing() {
        let cas = CaKeys::new(kek(2));
        assert!(matches!(cas.ssh(&user_ca(1)), Err(CoreError::Internal(_))));
        assert!(matches!(cas.x509(&tls_ca(1000)), Err(CoreError::Internal(_))));
    }

    #[test]
    fn the_private_key_is_the_one_of_the_public_side() {
        let (one, other) = (SshCa::generate().unwrap(), SshCa::generate().unwrap());
        let mixed = active(CaKind::Host, 1, one.public_line(), &other.private_openssh().unwrap());
        assert!(matches!(CaKeys::new(kek(1)).ssh(&mixed), Err(CoreError::Internal(_))));
    }

    #[test]
    fn a_leaf_ends_with_its_authority() {
        let cas = CaKeys::new(kek(1));
        let spec = |not_after| LeafSpec {
            public_key: KeyPair::generate_p256().unwrap().spki_der(),
            common_name: "a".into(),
            identity: None,
            dns_names: vec!["a".into()],
            ip_addresses: vec![],
            not_before: 10,
            not_after,
            client_auth: true,
            server_auth: false,
        };
        let tls = tls_ca(1000);
        assert_eq!(cas.leaf(&tls, spec(500)).unwrap().1, 501);
        assert_eq!(cas.leaf(&tls, spec(5000)).unwrap().1, 1001);
    }
}
