//! Which client certificates TLS lets in: those of the cluster, those of users of clusters that it trusts, and those of
//! workloads of SPIFFE trust domains that are let in. A certificate is judged by the authorities of the one cluster, or trust
//! domain, that it names, so that none can vouch for another's; and of other clusters users alone are let in. What they may do,
//! and whether they are still trusted, is looked at by each call.

use std::{collections::BTreeMap, fmt, sync::Arc};

use arc_swap::ArcSwap;
use auth_core::{
    names::ClusterName,
    spiffe::{self, TrustDomain},
    tables::{CaKind, SpiffeBundleKey, TrustedClusterKey, TrustedClusterRow},
    trusted_cluster,
};
use mezite_pki::{
    identity::Identity,
    x509::{CertificateInfo, Svid},
};
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

use crate::{fault::NodeError, spiffe::x509};

type Verifiers = BTreeMap<String, Arc<dyn ClientCertVerifier>>;

/// Whose users are let in beside those of the cluster.
pub(crate) struct Guests {
    /// Name of the cluster itself.
    cluster: String,
    /// By the name of the trusted cluster.
    verifiers: ArcSwap<Verifiers>,
    /// By the name of the SPIFFE trust domain.
    domains: ArcSwap<Verifiers>,
}

impl fmt::Debug for Guests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let domains = self.domains.load();
        f.debug_set().entries(self.verifiers.load().keys()).entries(domains.keys()).finish()
    }
}

impl Guests {
    /// Nobody yet, beside those of this cluster.
    pub(crate) fn new(cluster: &str) -> Self {
        Self { cluster: cluster.to_owned(), verifiers: ArcSwap::default(), domains: ArcSwap::default() }
    }

    /// Judges what the cluster's own verifier does not.
    pub(crate) fn beside(self: &Arc<Self>, own: Arc<dyn ClientCertVerifier>) -> Arc<dyn ClientCertVerifier> {
        Arc::new(ByCluster { own, guests: Arc::clone(self) })
    }

    /// Follows which clusters are trusted, and who vouches for workloads.
    pub(crate) async fn follow(self: Arc<Self>, store: Store) {
        // Before the rows are read, so that no change is missed.
        let revision = store.status().revision;
        let mut changes = store.watch(KeyRange::table(TrustedClusterKey::TABLE), revision);
        let mut bundles = store.watch(KeyRange::table(SpiffeBundleKey::TABLE), revision);
        loop {
            match store.read_local(|view| trusted_cluster::enabled(view)).await {
                Ok(clusters) => self.set(clusters),
                Err(error) => tracing::error!(%error, "which clusters are trusted cannot be read"),
            }
            match store.read_local(|view| spiffe::authorities(view)).await {
                Ok(domains) => self.set_domains(domains),
                Err(error) => tracing::error!(%error, "who vouches for workloads cannot be read"),
            }
            tokio::select! {
                changed = changes.next() => if changed.is_none() { return },
                changed = bundles.next() => if changed.is_none() { return },
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

    fn set_domains(&self, domains: impl IntoIterator<Item = (TrustDomain, Vec<Vec<u8>>)>) {
        let mut verifiers = Verifiers::new();
        // One without authorities lets nobody in.
        for (name, authorities) in domains.into_iter().filter(|(_, authorities)| !authorities.is_empty()) {
            match x509::verifier(&authorities) {
                Ok(verifier) => drop(verifiers.insert(name.to_string(), verifier)),
                Err(error) => tracing::error!(%name, error, "workloads of a trust domain cannot be let in"),
            }
        }
        self.domains.store(Arc::new(verifiers));
    }

    /// Whether nobody else is let in.
    fn is_empty(&self) -> bool {
        self.verifiers.load().is_empty() && self.domains.load().is_empty()
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
    /// The verifier of the cluster or trust domain that a certificate names; `None`: nobody who may come.
    fn of(&self, leaf: &CertificateDer<'_>) -> Option<Arc<dyn ClientCertVerifier>> {
        if let Ok(svid) = Svid::from_der(leaf) {
            return self.guests.domains.load().get(svid.trust_domain()).map(Arc::clone);
        }
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
        if self.guests.is_empty() { self.own.root_hint_subjects() } else { &[] }
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verifier = self.of(end_entity);
        if verifier.as_ref().is_some_and(|verifier| Arc::ptr_eq(verifier, &self.own)) {
            return self.own.verify_client_cert(end_entity, intermediates, now);
        }
        // Nobody learns from the alert which clusters and trust domains are let in: each refusal is that of a stranger.
        let judged = verifier.and_then(|them| them.verify_client_cert(end_entity, intermediates, now).ok());
        judged.ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))
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
    use mezite_pki::x509::{KeyPair, LeafSpec, SvidSpec, X509Ca};

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
    #[test]
    fn a_workload_is_judged_by_its_own_trust_domain_and_is_nobody_of_a_cluster() {
        let (own, red, blue) = (ca(), ca(), ca());
        let guests = Arc::new(Guests::new("own"));
        let judge = guests.beside(verifier(&row(&own)).unwrap());
        let svid = |ca: &X509Ca, id: &str| {
            let spec = SvidSpec {
                public_key: KeyPair::generate_p256().unwrap().spki_der(),
                spiffe_id: id.into(),
                not_before: 1,
                not_after: 3_000_000_000,
            };
            CertificateDer::from_pem_slice(ca.issue_svid(&spec).unwrap().as_bytes()).unwrap()
        };
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(1_800_000_000));
        let good = |certificate| judge.verify_client_cert(&certificate, &[], now).is_ok();
        assert!(!good(svid(&red, "spiffe://red/a")));

        let domain = |name: &str, ca: &X509Ca| {
            (TrustDomain::parse("", name).unwrap(), vec![ca.certificate_der().to_vec()])
        };
        guests.set_domains([domain("red", &red), domain("blue", &blue), domain("own", &blue)]);
        assert!(judge.root_hint_subjects().is_empty());
        assert!(good(svid(&red, "spiffe://red/a")) && good(svid(&blue, "spiffe://blue/a")));
        for (ca, id) in [
            (&red, "spiffe://blue/a"),
            (&blue, "spiffe://red/a"),
            (&own, "spiffe://red/a"),
            (&red, "spiffe://green/a"),
            (&red, "spiffe://Red/a"),
        ] {
            assert!(!good(svid(ca, id)), "{id}");
        }
        // It vouches for workloads alone, whatever its name.
        assert!(
            !good(leaf(&blue, agent("own"))) && !good(leaf(&red, user("red"))) && !good(leaf(&red, None))
        );
        assert!(good(leaf(&own, agent("own"))));
        guests.set_domains([(TrustDomain::parse("", "red").unwrap(), Vec::new())]);
        assert!(!good(svid(&red, "spiffe://red/a")) && judge.root_hint_subjects().len() == 1);
    }
}
