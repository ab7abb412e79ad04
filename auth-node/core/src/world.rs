//! The cluster of [`crate::testing`] with certificate authorities, tokens and agents, for the tests of this crate.

use std::{ops, sync::OnceLock};

use mezite_pki::{
    ssh::SshKeyPair,
    x509::{KeyPair, X509Ca},
};
use sha2::{Digest, Sha256};
use store_txn::{ReadExt, TransactionExt, memory::MemoryTransaction};
use zeroize::Zeroizing;

use crate::{
    Context, CoreError, Credential, Verdict, ca, context,
    evaluate::Traits,
    join::{self, HostCertRequest, HostCerts},
    labels::Labels,
    names::{AgentId, TokenName},
    node,
    presence::{self, Report},
    registration::{self, Registered},
    secret::{SecretDigest, SecretKind},
    tables::{CaKey, CaKeyRow, CaKind, CaRow, ClusterKey, JoinMethod, NodeKind},
    testing::{Cluster, anonymous},
    token::{self, NewToken},
};

pub(crate) const KEK: [u8; 32] = [9; 32];

pub(crate) fn kek() -> ca::Kek {
    ca::Kek::new(Zeroizing::new(KEK))
}

/// Authorities, made once: what they say is not what is tested.
fn authorities() -> &'static [(CaKind, String, Vec<u8>)] {
    static MADE: OnceLock<Vec<(CaKind, String, Vec<u8>)>> = OnceLock::new();
    MADE.get_or_init(|| {
        let make = |kind| {
            let (public, private) = match kind {
                CaKind::User | CaKind::Host | CaKind::Audit => {
                    let key = mezite_pki::ssh::SshCa::generate().unwrap();
                    (key.public_line(), key.private_openssh().unwrap())
                }
                CaKind::Tls | CaKind::Peer | CaKind::Spiffe => {
                    let key = X509Ca::generate("test", 1, 4_000_000_000).unwrap();
                    (key.certificate_pem().to_owned(), key.private_pem())
                }
            };
            let sealed = ca::seal(&kek(), kind, &public, private.as_bytes(), [kind as u8; 12]).unwrap();
            (kind, public, sealed)
        };
        CaKind::ALL.map(make).to_vec()
    })
}

/// A host's keys, and what it got.
pub(crate) struct Host {
    pub(crate) ssh: SshKeyPair,
    pub(crate) tls: KeyPair,
    pub(crate) kind: NodeKind,
    pub(crate) id: Option<AgentId>,
}

impl Host {
    pub(crate) fn new(kind: NodeKind) -> Self {
        let (ssh, tls) = (SshKeyPair::generate_ed25519("").unwrap(), KeyPair::generate_p256().unwrap());
        Self { ssh, tls, kind, id: None }
    }

    pub(crate) fn key_digest(&self) -> [u8; 32] {
        Sha256::digest(self.tls.spki_der()).into()
    }

    pub(crate) fn request(&self, hostname: &str, additional: &[&str]) -> HostCertRequest {
        let additional: Vec<_> = additional.iter().map(|&name| name.to_owned()).collect();
        HostCertRequest::new(&self.ssh.public_line(), self.tls.spki_der(), hostname, &additional, 77).unwrap()
    }

    pub(crate) fn id(&self) -> AgentId {
        self.id.clone().unwrap()
    }

    /// What its certificate makes of its calls.
    pub(crate) fn credential(&self) -> Credential {
        let (id, key_digest) = (self.id(), self.key_digest());
        match self.kind {
            NodeKind::Ingest => Credential::Ingest { id, key_digest },
            _ => Credential::Agent { id, key_digest },
        }
    }
}

pub(crate) fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

pub(crate) fn secret(text: &str) -> SecretDigest {
    SecretDigest::of(SecretKind::JoinToken, text)
}

pub(crate) fn token_name(text: &str) -> TokenName {
    TokenName::parse("name", text).unwrap()
}

/// A token called `name` whose secret is its name.
pub(crate) fn new_token(name: &str, kind: NodeKind) -> NewToken {
    NewToken {
        name: token_name(name),
        kind,
        method: JoinMethod::Token,
        ttl: None,
        max_uses: 0,
        labels: Labels::new(),
        allowed_principals: Vec::new(),
        secret: secret(name),
        iam_rules: Vec::new(),
    }
}

/// A token for many SSH nodes whose principals match one of these patterns.
pub(crate) fn allowing(name: &str, patterns: &[&str]) -> NewToken {
    let allowed_principals = patterns.iter().map(|&pattern| pattern.to_owned()).collect();
    NewToken { allowed_principals, max_uses: 100, ..new_token(name, NodeKind::Ssh) }
}

pub(crate) fn report(address: &str, own: &[(&str, &str)]) -> Report {
    Report::new("1.0".into(), labels(own), address.into(), 0).unwrap()
}

pub(crate) struct World {
    cluster: Cluster,
    agents: u8,
}

impl ops::Deref for World {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.cluster
    }
}

impl ops::DerefMut for World {
    fn deref_mut(&mut self) -> &mut Cluster {
        &mut self.cluster
    }
}

impl World {
    pub(crate) fn new() -> Self {
        let mut cluster = Cluster::new();
        // Late enough that a lifetime can begin before.
        cluster.now = 100_000;
        cluster
            .run(|tx| {
                let mut row = tx.get(&ClusterKey)?.unwrap().row;
                row.name = "test".into();
                row.next_node_id = 2;
                tx.put(&ClusterKey, &row);
                for (kind, public, sealed) in authorities() {
                    let key =
                        CaKeyRow { public: public.clone(), sealed_private: sealed.clone(), created_at_ms: 1 };
                    tx.put(&CaKey(*kind), &CaRow::new(key));
                }
                Ok(())
            })
            .unwrap();
        Self { cluster, agents: 0 }
    }

    /// Works as somebody without a credential does.
    pub(crate) fn run<T>(
        &mut self,
        work: impl FnOnce(&mut MemoryTransaction<'_>, &Context) -> Result<T, CoreError>,
    ) -> Result<T, CoreError> {
        self.cluster.run(|tx| work(tx, &anonymous()))
    }

    /// Works as the holder of a credential does.
    pub(crate) fn with<T>(
        &mut self,
        credential: &Credential,
        work: impl FnOnce(&mut MemoryTransaction<'_>, &Context) -> Result<T, CoreError>,
    ) -> Result<T, CoreError> {
        self.cluster.run(|tx| {
            let caller = context::authenticate(tx, credential)?;
            work(tx, &Context { caller, ..anonymous() })
        })
    }

    pub(crate) fn add_token(&mut self, new: NewToken) {
        let boss = self.boss;
        if !self.is_honoured(boss) {
            self.boss = self.cluster.log_in("boss");
        }
        self.admin(|tx, context| token::create(tx, context, new)).unwrap();
    }

    /// Asks for certificates with a token, as a host does that has none yet; the host keeps its id.
    pub(crate) fn certify(
        &mut self,
        host: &mut Host,
        token: &str,
        request: &HostCertRequest,
    ) -> Result<HostCerts, CoreError> {
        self.agents += 1;
        let fresh = AgentId::from_random([self.agents; 16]);
        let certs = self
            .run(|tx, context| join::certify(tx, context, Some(secret(token)), request, &fresh))
            .and_then(Verdict::into_result)?;
        host.id = Some(certs.agent_id.clone());
        Ok(certs)
    }

    /// The same, by the host's own keys.
    pub(crate) fn ask(
        &mut self,
        host: &mut Host,
        token: &str,
        hostname: &str,
        additional: &[&str],
    ) -> Result<HostCerts, CoreError> {
        let request = host.request(hostname, additional);
        self.certify(host, token, &request)
    }

    pub(crate) fn renew(&mut self, host: &Host, request: &HostCertRequest) -> Result<HostCerts, CoreError> {
        let fresh = AgentId::from_random([255; 16]);
        self.with(&host.credential(), |tx, context| join::certify(tx, context, None, request, &fresh))
            .and_then(Verdict::into_result)
    }

    pub(crate) fn register(
        &mut self,
        host: &Host,
        token: &str,
        report: &Report,
    ) -> Result<Registered, CoreError> {
        self.with(&host.credential(), |tx, context| {
            registration::register(tx, context, secret(token), report)
        })
        .and_then(Verdict::into_result)
    }

    /// A host that has joined under this name, with these labels of its own.
    pub(crate) fn joined(&mut self, kind: NodeKind, hostname: &str, own: &[(&str, &str)]) -> Host {
        let token = format!("for-{}", hostname.replace('.', "-"));
        self.add_token(new_token(&token, kind));
        let mut host = Host::new(kind);
        self.ask(&mut host, &token, hostname, &[]).unwrap();
        self.register(&host, &token, &report(&format!("{hostname}:22"), own)).unwrap();
        host
    }

    pub(crate) fn beat(&mut self, host: &Host, report: &Report) -> Result<AgentId, CoreError> {
        self.report(&host.credential(), report)
    }

    /// Reports as the holder of a credential does.
    pub(crate) fn report(&mut self, credential: &Credential, report: &Report) -> Result<AgentId, CoreError> {
        let reports = [(credential.clone(), report.clone())];
        self.cluster.run(|tx| presence::record(tx, &reports))?.remove(0)
    }

    pub(crate) fn node(&mut self, host: &Host) -> Option<node::Node> {
        self.cluster.run(|tx| node::get(tx, &host.id())).unwrap()
    }

    /// A user with one role and these traits, logged in.
    pub(crate) fn user_with(&mut self, user: &str, role: &str, traits: Traits) -> SecretDigest {
        let grants = crate::user::Grants { traits, ..crate::testing::grants(&[role]) };
        self.add_user(user, grants);
        self.log_in(user)
    }

    /// Names of the events in the audit log, from the `from`th on.
    pub(crate) fn events(&mut self, from: usize) -> Vec<String> {
        self.audit().into_iter().skip(from).map(|row| row.event).collect()
    }
}

/// Checks that a result is a denial that says this.
#[track_caller]
pub(crate) fn assert_denied<T: std::fmt::Debug>(result: Result<T, CoreError>, says: &str) {
    match result {
        Err(CoreError::Denied(reason)) if reason.contains(says) => {}
        other => panic!("expected a denial that says {says:?}, got {other:?}"),
    }
}
