//! What handlers work with, for their tests: a node's service over a real store, of one member, and calls to it. The
//! cluster has the built-in roles and one admin, `boss`; it has no certificate authorities.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use arc_swap::ArcSwap;
use auth_core::{
    Caller, Context, CoreError, Credential, Origin,
    audit::{self, AuditRow},
    ca::Kek,
    names::UserName,
    presence::PresenceTtl,
    role,
    secret::{SecretDigest, SecretKind},
    tables::{ClusterKey, ClusterRow, RoleKey},
    user,
};
use mezite_client::testing::{FakeServer, TestCa};
use mezite_daemon::clock;
use mezite_pki::{
    ssh::SshCa,
    x509::{KeyPair, LeafSpec, X509Ca},
};
use mezite_proto::{access, v1};
use prost::Message as _;
use raft_store::{Clock, Fatal, Limits, PeerIdentity, Store, StoreConfig, Timing, peer_dns_name};
use rustls::{ClientConfig, RootCertStore};
use store_txn::TransactionExt as _;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use zeroize::Zeroizing;

use super::{RevocationList, login};
use crate::{
    access::Listeners,
    attendance::Attendance,
    authn::{self, Call},
    ca_keys::CaKeys,
    config::{IamConfig, LimitsConfig},
    error::ApiError,
    iam::Sts,
    ingests::LiveIngests,
    news::Board,
    pace::Pace,
    passwords::PasswordPool,
    places::Places,
    presence::Presence,
    recent::Recent,
    relay::Relay,
    service::{PROBLEM_LIFE, Service, Settings},
    sso::Outbound,
    uses::Uses,
};

const CLUSTER: &str = "test.example";
const CLUSTER_ID: &str = "0123-test";

/// Ingests that may follow at a time who has access.
pub(super) const MAX_LISTENERS: usize = 6;

/// Where browsers reach it.
pub(crate) const WEB: &str = "https://login.test.example";

/// Password of the admin `boss`.
pub(crate) const BOSS: &str = "the password of boss";

/// A node's service.
pub(crate) struct Node {
    pub(crate) service: Arc<Service>,
    /// Cancelled: the node stops.
    pub(super) stopping: CancellationToken,
    _folder: TempDir,
}

impl Node {
    pub(crate) async fn start() -> Self {
        Self::start_within(Limits::default()).await
    }

    /// One whose store has other bounds.
    pub(super) async fn start_within(limits: Limits) -> Self {
        // As the program does when it starts.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let clock: Clock = Arc::new(clock::unix_ms);
        let config = StoreConfig {
            data_dir: folder.path().to_owned(),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            advertise: "127.0.0.1:0".into(),
            app_address: String::new(),
            clock: Arc::clone(&clock),
            timing: Timing::default(),
            limits,
        };
        let fatal = Fatal::new(|reason| panic!("{reason}"));
        let store = Store::open(config, identity(clock() / 1000), fatal).await.unwrap();
        store.initialize().await.unwrap();

        let passwords = PasswordPool::new(1, 7).unwrap();
        let hash = passwords.admit("test".into()).unwrap().hash(&Zeroizing::new(BOSS.into())).await.unwrap();
        let rows = store.transact(move |tx| {
            tx.put(&ClusterKey, &ClusterRow { session_epoch: 1, ..ClusterRow::default() });
            for role in role::built_ins() {
                tx.put(&RoleKey(role.name), &role.row);
            }
            let context = Context { caller: Caller::Anonymous, origin: Origin::default() };
            user::create_first_admin(tx, &context, &UserName::parse("name", "boss")?, &hash)
        });
        rows.await.unwrap();

        let ttl = PresenceTtl(Duration::from_secs(60));
        let stopping = CancellationToken::new();
        let ingests = Arc::new(LiveIngests::new(store.clone(), ttl));
        let service = Service {
            passwords,
            cas: Arc::new(CaKeys::new(Arc::new(Kek::new(Zeroizing::new([7; 32]))))),
            presence: Presence::start(store.clone(), Arc::clone(&ingests)),
            ingests,
            problem: Recent::new(PROBLEM_LIFE),
            attendance: Arc::new(Attendance::new(ttl)),
            uses: Uses::start(store.clone()),
            pace: Pace::default(),
            identities: Places::new(super::AGENT_IDENTITIES),
            backups: Arc::new(tokio::sync::Semaphore::new(1)),
            refusals: Arc::default(),
            relay: Relay::new(CLUSTER, tls(), &LimitsConfig::default()).unwrap(),
            sts: Sts::new(&IamConfig::default()).unwrap(),
            outbound: Outbound::new(),
            revocation_list: RevocationList::default(),
            news: Board::start(store.clone(), MAX_LISTENERS, stopping.clone()),
            access: Listeners::new(MAX_LISTENERS, stopping.clone()),
            settings: Settings {
                node_id: 1,
                cluster_id: CLUSTER_ID.into(),
                cluster: CLUSTER.into(),
                heartbeat_interval: Duration::from_secs(20),
                presence_ttl: ttl,
                call_timeout: Duration::from_secs(30),
                store_deadline: Duration::from_secs(10),
                message_timeout: Duration::from_secs(10),
                web_origin: Some(WEB.into()),
            },
            clock,
            store,
        };
        Self { service: Arc::new(service), stopping, _folder: folder }
    }

    /// Logs in, and answers the session's id.
    pub(crate) async fn log_in(&self, username: &str, password: &str) -> Result<String, ApiError> {
        let request = v1::AuthenticateLocalRequest { username: username.into(), password: password.into() };
        let reply =
            login::authenticate_local(&self.service, &anonymous("AuthenticateLocal"), request).await?;
        Ok(reply.session_id)
    }

    pub(crate) async fn boss(&self) -> String {
        self.log_in("boss", BOSS).await.unwrap()
    }

    /// All audit records so far.
    pub(crate) async fn audit(&self) -> Vec<AuditRow> {
        let read = self.service.store.read(|view| audit::records(view, 1, usize::MAX));
        let records: Vec<_> = read.await.map_err(ApiError::from).unwrap();
        records.into_iter().map(|(_, row)| row).collect()
    }

    /// The audit records of one event.
    pub(crate) async fn audited(&self, event: &str) -> Vec<AuditRow> {
        self.audit().await.into_iter().filter(|row| row.event == event).collect()
    }
}

/// Another cluster, `test`: one auth node of it, which answers an exchange once for each token, whatever that is.
pub(crate) struct Other {
    pub(crate) server: FakeServer,
    pub(crate) ca: TestCa,
}

impl Other {
    /// A token of it that is never spent.
    pub(super) const FOR_MANY: &str = "for-many";

    pub(crate) fn start() -> Self {
        let ca = TestCa::new();
        let mut bundle = ca.bundle(&[]);
        for kind in [v1::CaKind::User, v1::CaKind::Host] {
            let ssh_public_keys = vec![SshCa::generate().unwrap().public_line()];
            bundle.authorities.push(v1::TrustedCa {
                kind: kind.into(),
                ssh_public_keys,
                ..Default::default()
            });
        }
        let used = Mutex::new(BTreeMap::new());
        let server = FakeServer::start(&ca.auth_node(), &ca, move |call| {
            let reply = match call.method.as_str() {
                "GetTrustBundle" => Ok(bundle.encode_to_vec()),
                "ExchangeTrust" => {
                    let v1::ExchangeTrustRequest { token, exchange_id, .. } = call.request();
                    let for_many = token == Self::FOR_MANY;
                    let first =
                        used.lock().unwrap().entry(token).or_insert_with(|| exchange_id.clone()).clone();
                    let told = v1::ExchangeTrustResponse { trust_bundle: Some(bundle.clone()) };
                    match for_many || first == exchange_id {
                        true => Ok(told.encode_to_vec()),
                        false => Err(Status::permission_denied("the token is spent")),
                    }
                }
                other => Err(Status::unimplemented(other.to_owned())),
            };
            async move { reply }
        });
        Self { server, ca }
    }

    /// A token of it, as its CreateToken would answer it.
    pub(super) fn token(&self, secret: &str) -> String {
        format!("{secret}.{}", self.ca.pin())
    }

    /// How it is trusted.
    pub(super) fn trusted(&self) -> v1::TrustedCluster {
        v1::TrustedCluster {
            name: "test".into(),
            addresses: vec![self.server.address()],
            ..v1::TrustedCluster::default()
        }
    }
}

/// A call of a method without a credential.
pub(crate) fn anonymous(method: &str) -> Call {
    let origin = Origin {
        node_id: 1,
        request_id: "r".into(),
        client_address: "192.0.2.9".into(),
        ..Origin::default()
    };
    let method = access::rule(method).unwrap();
    let span = authn::span(method.method, &origin);
    Call { method, credential: Credential::None, origin, key: None, deadline: None, span }
}

/// A call of a method with a session.
pub(crate) fn with(session: &str, method: &str) -> Call {
    let credential = Credential::Session(SecretDigest::of(SecretKind::Session, session));
    Call { credential, ..anonymous(method) }
}

/// Checks that a result is a refusal of this field.
#[track_caller]
pub(crate) fn assert_invalid<T: std::fmt::Debug>(result: Result<T, ApiError>, wanted: &str) {
    match result {
        Err(ApiError::Core(CoreError::Invalid { field, .. })) if field == wanted => {}
        other => panic!("expected a refusal of {wanted}, got {other:?}"),
    }
}

fn identity(now: u64) -> PeerIdentity {
    let ca = X509Ca::generate("test peer CA", now - 60, now + 3600).unwrap();
    let key = KeyPair::generate_p256().unwrap();
    let leaf = LeafSpec {
        public_key: key.spki_der(),
        common_name: "node".into(),
        identity: None,
        dns_names: vec![peer_dns_name(CLUSTER_ID, 1)],
        ip_addresses: Vec::new(),
        not_before: now - 60,
        not_after: now + 3600,
        client_auth: true,
        server_auth: true,
    };
    let certificate = ca.issue(&leaf).unwrap();
    PeerIdentity::from_pem(CLUSTER_ID, 1, &certificate, &key.private_pem(), ca.certificate_pem()).unwrap()
}

/// For ingests, of which there are none.
fn tls() -> Arc<ArcSwap<ClientConfig>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    Arc::new(ArcSwap::from_pointee(
        config.with_root_certificates(RootCertStore::empty()).with_no_client_auth(),
    ))
}
