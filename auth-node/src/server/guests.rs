//! Which client certificates TLS lets in: those of the cluster, and those of users of clusters that it trusts. A certificate
//! is judged by the authorities of the one cluster that it names, so that none can vouch for another's; and of other
//! clusters users alone are let in. What they may do, and whether they are still trusted, is looked at by each call.

use std::{collections::BTreeMap, fmt, sync::Arc};

use arc_swap::ArcSwap;
use auth_core::{
    names::ClusterName,
    tables::{CaKind, TrustedClusterKey, TrustedClusterRow},
    trusted_cluster,
};
use mezite_pki::{identity::Identity, x509::CertificateInfo};
use raft_store::Store;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use rustls_pki_types::{CertificateDer, UnixTime, pem::PemObject as _};
use store_txn::{Key as _, KeyRange};
use tokio_util::sync::CancellationToken;

use crate::fault::NodeError;

type Verifiers = BTreeMap<String, Arc<dyn ClientCertVerifier>>;

/// Whose users are let in beside those of the cluster.
pub(crate) struct Guests {
    /// Name of the cluster itself.
    cluster: String,
    /// By the name of the trusted cluster.
    verifiers: ArcSwap<Verifiers>,
}

impl fmt::Debug for Guests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.verifiers.load().keys()).finish()
    }
}

impl Guests {
    /// Nobody yet, beside those of this cluster.
    pub(crate) fn new(cluster: &str) -> Self {
        Self { cluster: cluster.to_owned(), verifiers: ArcSwap::default() }
    }

    /// Judges what the cluster's own verifier does not.
    pub(crate) fn beside(self: &Arc<Self>, own: Arc<dyn ClientCertVerifier>) -> Arc<dyn ClientCertVerifier> {
        Arc::new(ByCluster { own, guests: Arc::clone(self) })
    }

    /// Follows which clusters are trusted, until `stop`.
    pub(crate) async fn follow(self: Arc<Self>, store: Store, stop: CancellationToken) {
        // Before the rows are read, so that no change is missed.
        let mut changes = store.watch(KeyRange::table(TrustedClusterKey::TABLE), store.status().revision);
        loop {
            match store.read_local(|view| trusted_cluster::enabled(view)).await {
                Ok(clusters) => self.set(clusters),
                Err(error) => tracing::error!(%error, "which clusters are trusted cannot be read"),
            }
            tokio::select! {
                () = stop.cancelled() => return,
                changed = changes.next() => if changed.is_none() { return },
            }
        }
    }

    fn set(&self, clusters: impl IntoIterator<Item = (ClusterName, TrustedClusterRow)>) {
        let mut verifiers = Verifiers::new();
        for (name, row) in clusters {
            match verifier(&row) {
                Ok(verifier) => drop(verifiers.insert(name.into(), verifier)),
                Err(error) => tracing::error!(%name, %error, "users of a trusted cluster cannot be let in"),
            }
        }
        self.verifiers.store(Arc::new(verifiers));
    }
}

fn verifier(row: &TrustedClusterRow) -> Result<Arc<dyn ClientCertVerifier>, NodeError> {
    let unusable = |error: &dyn fmt::Display| NodeError::Tls(error.to_string());
    let mut roots = RootCertStore::empty();
    for pem in trusted_cluster::keys(row, CaKind::Tls) {
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| unusable(&error))?;
        roots.add(certificate).map_err(|error| unusable(&error))?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
    verifier.map_err(|error| unusable(&error))
}

/// Judges each certificate by the authorities of the cluster that it names.
#[derive(Debug)]
struct ByCluster {
    own: Arc<dyn ClientCertVerifier>,
    guests: Arc<Guests>,
}

impl ByCluster {
    /// The verifier of the cluster that a certificate names; `None`: nobody who may come.
    fn of(&self, leaf: &CertificateDer<'_>) -> Option<Arc<dyn ClientCertVerifier>> {
        let identity = CertificateInfo::from_der(leaf).ok().and_then(|info| info.identity);
        let foreign = identity.filter(|identity| identity.cluster() != self.guests.cluster);
        let Some(foreign) = foreign else { return Some(Arc::clone(&self.own)) };
        let verifiers = self.guests.verifiers.load();
        match (verifiers.get(foreign.cluster()), foreign) {
            (None, _) => Some(Arc::clone(&self.own)),
            (Some(theirs), Identity::User { .. }) => Some(Arc::clone(theirs)),
            (
                Some(_),
                Identity::Agent { .. }
                | Identity::Ingest { .. }
                | Identity::Auth { .. }
                | Identity::Bot { .. },
            ) => None,
        }
    }
}

impl ClientCertVerifier for ByCluster {
    fn offer_client_auth(&self) -> bool {
        self.own.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.own.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Without hints a client shows what it has; with those of this cluster alone, a guest might show nothing.
        if self.guests.verifiers.load().is_empty() { self.own.root_hint_subjects() } else { &[] }
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let refused = || Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure);
        self.of(end_entity).ok_or_else(refused)?.verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.own.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.own.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.own.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use auth_core::tables::ForeignCaRow;
    use mezite_pki::x509::{KeyPair, LeafSpec, X509Ca};

    use super::*;

    const ID: &str = "6f9619ff-8b86-4011-b42d-00c04fc964ff";

    fn ca() -> X509Ca {
        // All of the same name: a name proves nothing.
        X509Ca::generate("tls", 1, 4_000_000_000).unwrap()
    }

    fn leaf(ca: &X509Ca, identity: Option<Identity>) -> CertificateDer<'static> {
        let pem = ca.issue(&LeafSpec {
            public_key: KeyPair::generate_p256().unwrap().spki_der(),
            common_name: "x".into(),
            identity,
            dns_names: vec!["x".into()],
            ip_addresses: vec![],
            not_before: 1,
            not_after: 3_000_000_000,
            client_auth: true,
            server_auth: false,
        });
        CertificateDer::from_pem_slice(pem.unwrap().as_bytes()).unwrap()
    }

    fn row(ca: &X509Ca) -> TrustedClusterRow {
        let keys = vec![ca.certificate_pem().to_owned()];
        let authorities = vec![ForeignCaRow { kind: CaKind::Tls.into(), keys }];
        TrustedClusterRow { authorities, ..TrustedClusterRow::default() }
    }

    fn user(cluster: &str) -> Option<Identity> {
        Some(Identity::User { cluster: cluster.into(), name: "ann".into() })
    }

    fn agent(cluster: &str) -> Option<Identity> {
        Some(Identity::Agent { cluster: cluster.into(), id: ID.into() })
    }

    #[test]
    fn a_certificate_is_judged_by_the_cluster_that_it_names_and_foreigners_are_users() {
        let (own, red, blue, stranger) = (ca(), ca(), ca(), ca());
        let guests = Arc::new(Guests::new("own"));
        let judge = guests.beside(verifier(&row(&own)).unwrap());
        let good = |ca: &X509Ca, identity| {
            let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(1_800_000_000));
            judge.verify_client_cert(&leaf(ca, identity), &[], now).is_ok()
        };
        assert!(good(&own, agent("own")) && good(&own, None) && !good(&red, user("red")));
        let hints = judge.root_hint_subjects().len();
        assert_eq!(hints, 1);

        let name = |name: &str| ClusterName::parse("", name).unwrap();
        guests.set([(name("red"), row(&red)), (name("blue"), row(&blue))]);
        assert!(judge.root_hint_subjects().is_empty());
        assert!(good(&own, agent("own")) && good(&red, user("red")) && good(&blue, user("blue")));
        // Whoever is trusted vouches for itself alone.
        for (ca, identity) in [
            (&red, agent("own")),
            (&red, user("own")),
            (&red, user("blue")),
            (&blue, user("red")),
            (&own, user("red")),
            (&stranger, user("red")),
            (&red, user("green")),
            (&red, None),
        ] {
            assert!(!good(ca, identity.clone()), "{identity:?}");
        }
        // Of others users alone come.
        for identity in [
            agent("red"),
            Some(Identity::Ingest { cluster: "red".into(), id: ID.into() }),
            Some(Identity::Auth { cluster: "red".into(), node_id: 1 }),
            Some(Identity::Bot { cluster: "red".into(), name: "ann".into() }),
        ] {
            assert!(!good(&red, identity.clone()), "{identity:?}");
        }

        guests.set([(name("blue"), row(&blue))]);
        assert!(!good(&red, user("red")) && good(&blue, user("blue")));
        // What is stored under the own name changes nothing for the own.
        guests.set([(name("own"), row(&red))]);
        assert!(!good(&red, agent("own")) && !good(&red, user("own")) && good(&own, agent("own")));
    }
}
