//! Certificates of a cluster for tests.

use mezite_pki::{
    identity::Identity,
    x509::{KeyPair, LeafSpec, X509Ca},
};
use mezite_proto::v1::{CaKind, GetTrustBundleResponse, TrustedCa};

use crate::{CaPin, ClientIdentity, ClusterTrust};

/// Name of the cluster.
pub const CLUSTER: &str = "test";

/// Unix seconds between which certificates are good: 2020 and 2096.
const LIFETIME: (u64, u64) = (1_577_836_800, 4_000_000_000);

/// A TLS CA.
pub struct TestCa(X509Ca);

/// A certificate with its key, PEM, and what its holder sends beside it.
#[derive(Clone)]
pub struct Leaf {
    /// The certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
    /// Certificates that a server sends after its own.
    pub chain: String,
}

impl Leaf {
    /// Sends other certificates after its own.
    #[must_use]
    pub fn with_chain(self, chain: &[&str]) -> Self {
        Self { chain: chain.concat(), ..self }
    }

    /// As a client shows it.
    pub fn client_identity(&self) -> ClientIdentity {
        ClientIdentity::from_pem(&self.certificate, &self.key).unwrap()
    }
}

impl TestCa {
    /// A new CA. All of them have the same name: a name proves nothing.
    pub fn new() -> Self {
        Self(X509Ca::generate("mezite test tls", LIFETIME.0, LIFETIME.1).unwrap())
    }

    /// Its certificate.
    pub fn pem(&self) -> String {
        self.0.certificate_pem().to_string()
    }

    /// Its pin.
    pub fn pin(&self) -> CaPin {
        self.trust().pins().remove(0)
    }

    /// What a client of the cluster knows.
    pub fn trust(&self) -> ClusterTrust {
        ClusterTrust::new(CLUSTER, &self.pem()).unwrap()
    }

    /// The cluster's trust bundle, with user CA keys as given.
    pub fn bundle(&self, trusted_user_ca_keys: &[&str]) -> GetTrustBundleResponse {
        let tls =
            TrustedCa { kind: CaKind::Tls.into(), certificates: vec![self.pem()], ..Default::default() };
        GetTrustBundleResponse {
            cluster_name: CLUSTER.into(),
            authorities: vec![tls],
            revision: 1,
            known_hosts: vec!["@cert-authority * ssh-ed25519 AAAA".into()],
            trusted_user_ca_keys: trusted_user_ca_keys.iter().map(|&line| line.to_owned()).collect(),
        }
    }

    /// Any certificate for TLS; the chain is the CA.
    pub fn issue(&self, identity: Option<Identity>, dns_names: &[&str], lifetime: (u64, u64)) -> Leaf {
        let key = KeyPair::generate_p256().unwrap();
        self.issue_for(&key.spki_der(), identity, dns_names, lifetime, key.private_pem().as_str())
    }

    /// A certificate for a key that is the holder's; `key` is put beside it as it is.
    pub fn issue_for(
        &self,
        spki_der: &[u8],
        identity: Option<Identity>,
        dns_names: &[&str],
        lifetime: (u64, u64),
        key: &str,
    ) -> Leaf {
        let spec = LeafSpec {
            public_key: spki_der.to_vec(),
            common_name: "test".into(),
            identity,
            dns_names: dns_names.iter().map(|&name| name.to_owned()).collect(),
            ip_addresses: Vec::new(),
            not_before: lifetime.0,
            not_after: lifetime.1,
            client_auth: true,
            server_auth: true,
        };
        Leaf { certificate: self.0.issue(&spec).unwrap(), key: key.to_owned(), chain: self.pem() }
    }

    /// Of an auth node, as the cluster issues it.
    pub fn auth_node(&self) -> Leaf {
        let identity = Identity::Auth { cluster: CLUSTER.into(), node_id: 1 };
        self.issue(Some(identity), &[&format!("{CLUSTER}.mezite.internal")], LIFETIME)
    }

    /// Of an ingest, as the cluster issues it.
    pub fn ingest(&self) -> Leaf {
        let identity = Identity::Ingest { cluster: CLUSTER.into(), id: AGENT.parse().unwrap() };
        self.issue(Some(identity), &[&format!("ingest.{CLUSTER}.mezite.internal")], LIFETIME)
    }

    /// Of an agent, with these names.
    pub fn agent(&self, dns_names: &[&str]) -> Leaf {
        let identity = Identity::Agent { cluster: CLUSTER.into(), id: AGENT.parse().unwrap() };
        self.issue(Some(identity), dns_names, LIFETIME)
    }
}

impl Default for TestCa {
    fn default() -> Self {
        Self::new()
    }
}

/// Some agent's id.
const AGENT: &str = "6f9619ff-8b86-4011-b42d-00c04fc964ff";
