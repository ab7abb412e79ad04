//! TLS of the node: its own certificate, issued by the cluster's TLS CA and renewed in memory, and whom it
//! believes.
//!
//! Everything here follows the rows of the TLS CA: when they change, or two thirds of the certificate's life
//! are over, all of it is made anew, and connections made from then on use it.

use std::{net::IpAddr, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use auth_core::{
    CoreError,
    ca::{self, ActiveCa},
    tables::{CaKey, CaKind},
};
use mezite_daemon::clock;
use mezite_pki::{
    identity::Identity,
    x509::{CertificateInfo, KeyPair, LeafSpec, X509Ca},
};
use mezite_proto::transport::ALPN_H2;
use raft_store::{Clock, Store, View, WatchEvent, Watcher};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig, crypto::CryptoProvider, server::WebPkiClientVerifier,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use store_txn::{Key as _, KeyRange, ReadExt as _};

use crate::{
    ca_keys::CaKeys,
    ca_rotation::Followed,
    config::{Config, host_of},
    fault::NodeError,
    metrics,
    server::guests::Guests,
    web,
};

/// Life of the node's certificate.
const LIFE: Duration = Duration::from_secs(7 * 24 * 3600);
/// It begins so much in the past, for clocks that are behind.
const BACKDATE: Duration = Duration::from_secs(60);
/// Pause after a renewal that failed.
const RETRY: Duration = Duration::from_secs(10);

/// What the node's certificate says.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    cluster: String,
    node_id: u64,
    dns_names: Vec<String>,
    ip_addresses: Vec<IpAddr>,
}

impl Names {
    /// Of a node of a cluster: the name that all its nodes have, the host that clients are told, and what is
    /// configured.
    pub(crate) fn new(config: &Config, cluster: &str, node_id: u64) -> Self {
        let mut dns_names = vec![format!("{cluster}.mezite.internal")];
        let mut ip_addresses = config.tls.ip_addresses.clone();
        let advertised = host_of(&config.advertise).map(str::to_ascii_lowercase);
        for host in advertised.into_iter().chain(config.web.host()) {
            match host.parse() {
                Ok(address) => ip_addresses.push(address),
                Err(_) => dns_names.push(host),
            }
        }
        dns_names.extend(config.tls.dns_names.iter().map(|name| name.to_ascii_lowercase()));
        dns_names.sort_unstable();
        dns_names.dedup();
        ip_addresses.sort_unstable();
        ip_addresses.dedup();
        Self { cluster: cluster.to_owned(), node_id, dns_names, ip_addresses }
    }

    fn spec(&self, public_key: Vec<u8>, authority: &X509Ca, now: u64) -> LeafSpec {
        LeafSpec {
            public_key,
            common_name: format!("mezite auth node {}", self.node_id),
            identity: Some(Identity::Auth { cluster: self.cluster.clone(), node_id: self.node_id }),
            dns_names: self.dns_names.clone(),
            ip_addresses: self.ip_addresses.clone(),
            not_before: now.saturating_sub(BACKDATE.as_secs()),
            not_after: (now + LIFE.as_secs()).min(authority.info().not_after),
            // It calls ingests with it.
            client_auth: true,
            server_auth: true,
        }
    }
}

/// The TLS CA: what signs, and whom to believe.
struct Authorities {
    active: ActiveCa,
    /// PEM certificates, the one that signs first.
    trusted: Vec<String>,
}

/// TLS of the node, as it is now.
#[derive(Clone)]
pub(crate) struct Tls {
    /// For the API.
    pub(crate) server: Arc<ArcSwap<ServerConfig>>,
    /// For the web API, where no other certificate is configured.
    pub(crate) web: Arc<ArcSwap<ServerConfig>>,
    /// For calls to ingests.
    pub(crate) client: Arc<ArcSwap<ClientConfig>>,
}

/// Keeps [`Tls`] up to date.
pub(crate) struct Renewal {
    store: Store,
    cas: Arc<CaKeys>,
    clock: Clock,
    names: Names,
    followed: Arc<Followed>,
    guests: Arc<Guests>,
    watcher: Watcher,
    tls: Tls,
    /// Unix seconds.
    due: u64,
}

/// One generation of TLS.
struct Made {
    configs: Configs,
    due: u64,
    /// Of the TLS CA's row.
    revision: u64,
}

/// Makes TLS of the node, and what keeps it up to date, and notes in `followed` what is taken up of the CA's row.
///
/// # Errors
/// When the TLS CA cannot be opened: the key-encryption key is not the cluster's.
pub(crate) async fn begin(
    store: &Store,
    cas: &Arc<CaKeys>,
    clock: &Clock,
    names: Names,
    followed: &Arc<Followed>,
    guests: &Arc<Guests>,
) -> Result<(Tls, Renewal), NodeError> {
    let range = KeyRange::table(CaKey::TABLE);
    // Before the rows are read, so that no change is missed.
    let watcher = store.watch(range, store.status().revision);
    let made = make(store, cas, clock, &names, guests).await?;
    followed.tls(made.revision);
    let tls = Tls {
        server: Arc::new(ArcSwap::from_pointee(made.configs.server)),
        web: Arc::new(ArcSwap::from_pointee(made.configs.web)),
        client: Arc::new(ArcSwap::from_pointee(made.configs.client)),
    };
    let renewal = Renewal {
        store: store.clone(),
        cas: Arc::clone(cas),
        clock: Arc::clone(clock),
        names,
        followed: Arc::clone(followed),
        guests: Arc::clone(guests),
        watcher,
        tls: tls.clone(),
        due: made.due,
    };
    Ok((tls, renewal))
}

impl Renewal {
    /// Renews what is due, for good.
    pub(crate) async fn run(mut self) {
        loop {
            tokio::select! {
                () = due(&self.clock, self.due) => (),
                event = self.watcher.next() => match event {
                    Some(WatchEvent::Change { .. } | WatchEvent::Resync { .. }) => (),
                    None => return,
                },
            }
            match make(&self.store, &self.cas, &self.clock, &self.names, &self.guests).await {
                Ok(made) => {
                    self.tls.server.store(Arc::new(made.configs.server));
                    self.tls.web.store(Arc::new(made.configs.web));
                    self.tls.client.store(Arc::new(made.configs.client));
                    self.due = made.due;
                    self.followed.tls(made.revision);
                    tracing::info!("the node's TLS certificate was renewed");
                }
                Err(error) => {
                    tracing::error!(%error, "the node's TLS certificate could not be renewed");
                    self.due = (self.clock)() / 1000 + RETRY.as_secs();
                }
            }
        }
    }
}

/// Resolves when the wall clock has come to `second` (Unix time).
async fn due(clock: &Clock, second: u64) {
    loop {
        let left = clock::pause(second, clock() / 1000);
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left).await;
    }
}

async fn make(
    store: &Store,
    cas: &Arc<CaKeys>,
    clock: &Clock,
    names: &Names,
    guests: &Arc<Guests>,
) -> Result<Made, NodeError> {
    let authorities = store.read_local(|view| {
        let active = ca::active(view, CaKind::Tls)?;
        let row = view.get(&CaKey(CaKind::Tls))?.map(|stored| stored.row);
        let others = row.into_iter().flat_map(|row| row.trusted).map(|key| key.public);
        let trusted = std::iter::once(active.key.public.clone()).chain(others).collect();
        let ends = [CaKind::Tls, CaKind::Peer, CaKind::Spiffe].map(|kind| (kind, end_of(view, kind)));
        Ok::<_, CoreError>((Authorities { active, trusted }, ends))
    });
    let (authorities, ends) = authorities.await?;
    for (kind, end) in ends {
        if let Some(end) = end {
            metrics::ca_expires(kind.name(), end);
        }
    }
    let authority = cas.x509(&authorities.active)?;
    let key = KeyPair::generate_p256()?;
    let now = clock() / 1000;
    let leaf = authority.issue(&names.spec(key.spki_der(), &authority, now))?;
    let end = CertificateInfo::from_pem(&leaf)?.not_after;
    metrics::certificate_expires("tls", end);
    let life = end.saturating_sub(now);
    let configs = configs(&leaf, &key, &authorities.trusted, guests)?;
    Ok(Made { configs, due: now + life * 2 / 3, revision: authorities.active.revision })
}

/// When the certificate ends that an authority signs with. `None`: it has none yet.
fn end_of(view: &mut View<'_>, kind: CaKind) -> Option<u64> {
    let active = ca::active(view, kind).ok()?;
    Some(CertificateInfo::from_pem(&active.key.public).ok()?.not_after)
}

/// TLS of all that the node serves and calls.
struct Configs {
    server: ServerConfig,
    web: ServerConfig,
    client: ClientConfig,
}

/// TLS for all sides. What is shown holds the CA's certificate too: a client that knows the cluster by a pin
/// alone finds it there.
fn configs(
    leaf: &str,
    key: &KeyPair,
    trusted: &[String],
    guests: &Arc<Guests>,
) -> Result<Configs, NodeError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    let mut chain = certificates(leaf)?;
    for (index, pem) in trusted.iter().enumerate() {
        for certificate in certificates(pem)? {
            roots.add(certificate.clone()).map_err(unusable)?;
            if index == 0 {
                chain.push(certificate);
            }
        }
    }
    let key = key.private_pem();
    let key = || PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(unusable);
    let roots = Arc::new(roots);
    let mut server = server_builder(&provider, &roots, guests)?
        .with_single_cert(chain.clone(), key()?)
        .map_err(unusable)?;
    server.alpn_protocols = vec![ALPN_H2.to_vec()];
    let web = web::tls::config(chain.clone(), key()?)?;
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key()?)
        .map_err(unusable)?;
    client.alpn_protocols = vec![ALPN_H2.to_vec()];
    Ok(Configs { server, web, client })
}

type ServerBuilder = rustls::ConfigBuilder<ServerConfig, rustls::server::WantsServerCert>;

/// A caller may come without a certificate, with a session or to log in; one that shows a certificate shows
/// one of the cluster, or of a user of a cluster that it trusts.
fn server_builder(
    provider: &Arc<CryptoProvider>,
    roots: &Arc<RootCertStore>,
    guests: &Arc<Guests>,
) -> Result<ServerBuilder, NodeError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(provider))
        .allow_unauthenticated()
        .build()
        .map_err(unusable)?;
    Ok(ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_client_cert_verifier(guests.beside(verifier)))
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, NodeError> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().map_err(unusable)
}

fn unusable(error: impl std::fmt::Display) -> NodeError {
    NodeError::Tls(error.to_string())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use auth_core::{
        ca::Kek,
        tables::{CaKeyRow, CaRow},
    };
    use store_txn::TransactionExt as _;
    use tokio_rustls::{TlsAcceptor, TlsConnector};
    use zeroize::Zeroizing;

    use super::*;
    use crate::rpc::testing::Node;

    const KEK: [u8; 32] = [3; 32];

    fn authority(now: u64) -> (X509Ca, CaKeyRow) {
        let ca = X509Ca::generate("test", now - 60, now + 3600).unwrap();
        let (public, private) = (ca.certificate_pem().to_owned(), ca.private_pem());
        let kek = Kek::new(Zeroizing::new(KEK));
        let sealed_private = ca::seal(&kek, CaKind::Tls, &public, private.as_bytes(), [0; 12]).unwrap();
        (ca, CaKeyRow { public, sealed_private, created_at_ms: 0 })
    }

    async fn put(store: &Store, row: CaRow) {
        let written = store.transact(move |tx| {
            tx.put(&CaKey(CaKind::Tls), &row);
            Ok::<_, CoreError>(())
        });
        written.await.map_err(|_| "not written").unwrap();
    }

    /// Whether a client that believes one authority, and shows a certificate of another, gets through the handshake.
    async fn connects(tls: &Tls, believes: &X509Ca, shows: &X509Ca, now: u64) -> bool {
        let key = KeyPair::generate_p256().unwrap();
        let spec = LeafSpec {
            public_key: key.spki_der(),
            common_name: "agent".into(),
            identity: Some(Identity::Agent {
                cluster: "test".into(),
                id: "6f9619ff-8b86-4011-b42d-00c04fc964ff".into(),
            }),
            dns_names: Vec::new(),
            ip_addresses: Vec::new(),
            not_before: now - 60,
            not_after: now + 60,
            client_auth: true,
            server_auth: false,
        };
        let mut roots = RootCertStore::empty();
        for certificate in certificates(believes.certificate_pem()).unwrap() {
            roots.add(certificate).unwrap();
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(
                certificates(&shows.issue(&spec).unwrap()).unwrap(),
                PrivateKeyDer::from_pem_slice(key.private_pem().as_bytes()).unwrap(),
            )
            .unwrap();
        let (here, there) = tokio::io::duplex(1 << 16);
        let name = "test.mezite.internal".try_into().unwrap();
        let (client, server) = tokio::join!(
            TlsConnector::from(Arc::new(client)).connect(name, here),
            TlsAcceptor::from(tls.server.load_full()).accept(there),
        );
        client.is_ok() && server.is_ok()
    }

    /// The active key signs, the one that is trusted beside it verifies, and neither takes a restart.
    #[tokio::test]
    async fn a_changed_authority_is_taken_over_without_a_restart() {
        let node = Node::start().await;
        let (store, clock): (_, Clock) = (node.service.store.clone(), Arc::new(clock::unix_ms));
        let now = clock() / 1000;
        let ((old, old_row), (new, new_row)) = (authority(now), authority(now));
        put(&store, CaRow::new(old_row.clone())).await;
        let cas = Arc::new(CaKeys::new(Arc::new(Kek::new(Zeroizing::new(KEK)))));
        let names = Names {
            cluster: "test".into(),
            node_id: 1,
            dns_names: vec!["test.mezite.internal".into()],
            ip_addresses: Vec::new(),
        };
        let (followed, guests) = (Arc::new(Followed::default()), Arc::new(Guests::new("test")));
        let (tls, renewal) = begin(&store, &cas, &clock, names, &followed, &guests).await.unwrap();
        assert!(connects(&tls, &old, &old, now).await);
        assert!(!connects(&tls, &new, &old, now).await && !connects(&tls, &old, &new, now).await);

        let running = tokio::spawn(renewal.run());
        let before = tls.server.load_full();
        put(&store, CaRow { trusted: vec![old_row], ..CaRow::new(new_row) }).await;
        while Arc::ptr_eq(&before, &tls.server.load_full()) {
            tokio::task::yield_now().await;
        }
        assert!(connects(&tls, &new, &old, now).await && connects(&tls, &new, &new, now).await);
        assert!(!connects(&tls, &old, &old, now).await, "what is trusted beside it signs nothing");
        running.abort();
    }

    #[tokio::test]
    async fn a_certificate_is_due_by_the_wall_clock_and_not_by_the_end_of_a_timer() {
        // Each look at it finds it only where the timer was set to.
        let seconds = Arc::new(AtomicU64::new(0));
        let looks = Arc::clone(&seconds);
        let clock: Clock = Arc::new(move || match looks.fetch_add(1, Ordering::SeqCst) {
            0 | 1 => 1_000,
            _ => 2_000,
        });
        let begun = tokio::time::Instant::now();
        due(&clock, 2).await;
        assert_eq!(seconds.load(Ordering::SeqCst), 3);
        assert!(begun.elapsed() >= Duration::from_secs(2), "{:?}", begun.elapsed());
    }
}
