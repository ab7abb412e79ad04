use auth_core::{
    ca::{self, Kek},
    tables::{CaKey, CaKeyRow, CaKind, CaRow},
};
use mezite_pki::{
    identity::Identity,
    ssh::{SshCa, SshKeyPair, parse_certificate},
    x509::{CertificateInfo, KeyPair, X509Ca},
};
use sha2::{Digest as _, Sha256};
use store_txn::{ReadExt as _, TransactionExt as _};
use tonic::Code;

use super::*;
use crate::rpc::{
    sessions,
    testing::{Node, anonymous, assert_invalid, with},
};

/// A node whose cluster has authorities, and the identity `ci` without roles; the text of its secret.
async fn start() -> (Node, String) {
    let node = Node::start().await;
    let now = (node.service.clock)() / 1000;
    let committed = node.service.store.transact(move |tx| {
        let kek = Kek::new(Zeroizing::new([7; 32]));
        for kind in CaKind::ALL {
            let (public, private) = match kind {
                CaKind::Tls | CaKind::Peer | CaKind::Spiffe => {
                    let ca = X509Ca::generate("test", now - 60, now + 1_000_000).unwrap();
                    (ca.certificate_pem().to_owned(), ca.private_pem())
                }
                CaKind::User | CaKind::Host | CaKind::Audit => {
                    let ca = SshCa::generate().unwrap();
                    (ca.public_line(), ca.private_openssh().unwrap())
                }
            };
            let sealed_private = ca::seal(&kek, kind, &public, private.as_bytes(), [kind as u8; 12])?;
            tx.put(&CaKey(kind), &CaRow::new(CaKeyRow { public, sealed_private, created_at_ms: 0 }));
        }
        let cluster = tx.get(&auth_core::tables::ClusterKey)?.unwrap().row;
        let cluster = auth_core::tables::ClusterRow { name: "test.example".into(), ..cluster };
        tx.put(&auth_core::tables::ClusterKey, &cluster);
        Ok::<_, CoreError>(())
    });
    committed.await.map_err(ApiError::from).unwrap();
    let boss = node.boss().await;
    let secret = add(&node, &boss, "ci").await;
    (node, secret)
}

async fn add(node: &Node, boss: &str, name: &str) -> String {
    let identity = v1::AgentIdentity {
        name: name.into(),
        roles: vec!["access".into()],
        traits: [("logins".to_owned(), v1::Strings { values: vec!["deploy".into()] })].into(),
        ..Default::default()
    };
    let request = v1::CreateAgentIdentityRequest { identity: Some(identity), bootstrap_ttl: None };
    create(&node.service, &with(boss, "CreateAgentIdentity"), request).await.unwrap().bootstrap_secret
}

/// Keys of a client, and its call.
struct Client {
    ssh: String,
    tls: KeyPair,
    key: IdempotencyKey,
}

impl Client {
    fn new(number: u64) -> Self {
        Self {
            ssh: SshKeyPair::generate_ed25519("").unwrap().public_line(),
            tls: KeyPair::generate_p256().unwrap(),
            key: IdempotencyKey::parse(&format!("{number:064x}")).unwrap(),
        }
    }

    async fn bootstrap(
        &self,
        node: &Node,
        name: &str,
        secret: &str,
    ) -> Result<v1::AgentIdentityCredentials, ApiError> {
        let request = v1::BootstrapAgentIdentityRequest {
            name: name.into(),
            bootstrap_secret: secret.into(),
            ssh_public_key: self.ssh.clone(),
            tls_public_key: self.tls.spki_der().into(),
        };
        let call = Call { key: Some(self.key.clone()), ..anonymous("BootstrapAgentIdentity") };
        Ok(bootstrap(&node.service, &call, request).await?.credentials.unwrap())
    }

    /// By the certificate for the key of `shown`.
    async fn renew(
        &self,
        node: &Node,
        shown: &Self,
        generation: u64,
    ) -> Result<v1::AgentIdentityCredentials, ApiError> {
        let request = v1::RenewAgentIdentityRequest {
            generation,
            ssh_public_key: self.ssh.clone(),
            tls_public_key: self.tls.spki_der().into(),
        };
        let credential = Credential::AgentIdentity {
            name: IdentityName::parse("", "ci").unwrap(),
            key_digest: Sha256::digest(shown.tls.spki_der()).into(),
        };
        let call = Call { credential, key: Some(self.key.clone()), ..anonymous("RenewAgentIdentity") };
        Ok(renew(&node.service, &call, request).await?.credentials.unwrap())
    }
}

async fn whose(node: &Node, session: &str) -> Option<String> {
    let list = v1::ListActiveSessionsRequest::default();
    let listed = sessions::list(&node.service, &with(session, "ListActiveSessions"), list).await;
    listed.ok().map(|listed| listed.sessions[0].user.clone())
}

#[tokio::test]
async fn credentials_are_signed_for_the_keys_and_a_repetition_gets_the_same_session() {
    let (node, secret) = start().await;
    let (one, two) = (Client::new(1), Client::new(2));
    let first = one.bootstrap(&node, "ci", &secret).await.unwrap();
    let tls = CertificateInfo::from_pem(&first.tls_certificate).unwrap();
    let own = Identity::Bot { cluster: "test.example".into(), name: "ci".into() };
    assert_eq!((tls.identity, first.generation), (Some(own), 1));
    let end = u64::try_from(first.expires_at.as_ref().unwrap().seconds).unwrap();
    let ssh = parse_certificate(&first.ssh_certificate).unwrap();
    assert_eq!((ssh.key_id.as_str(), ssh.principals.as_slice()), ("bot:ci", &["deploy".to_owned()][..]));
    assert_eq!((tls.not_after + 1, ssh.valid_before), (end, end));
    assert!(first.trust_bundle.as_ref().unwrap().revision > 0 && first.ssh_refusal.is_empty());
    assert_eq!(whose(&node, &first.session_id).await.as_deref(), Some("bot:ci"));
    let again = one.bootstrap(&node, "CI", &secret).await.unwrap();
    assert_eq!((again.session_id.as_str(), again.generation), (first.session_id.as_str(), 1));

    let second = two.renew(&node, &one, 1).await.unwrap();
    assert_eq!(second.generation, 2);
    assert_ne!(second.session_id, first.session_id);
    assert_eq!(whose(&node, &first.session_id).await, None);
    let repeated = two.renew(&node, &one, 1).await.unwrap();
    assert_eq!((repeated.session_id.as_str(), repeated.generation), (second.session_id.as_str(), 2));
    assert_eq!(whose(&node, &second.session_id).await.as_deref(), Some("bot:ci"));

    let replayed = Client::new(3).renew(&node, &one, 1).await.unwrap_err();
    assert!(matches!(replayed, ApiError::Core(CoreError::Locked(_))), "{replayed:?}");
    assert_eq!(node.audited("agent_identity.replay").await.len(), 1);
    assert_eq!(node.audited("lock.create").await[0].actor, "cluster");
    assert_eq!(whose(&node, &second.session_id).await, None);
}

#[tokio::test]
async fn a_wrong_secret_and_an_unknown_identity_are_answered_alike() {
    let (node, secret) = start().await;
    let boss = node.boss().await;
    let other = add(&node, &boss, "other").await;
    let client = Client::new(1);
    let mut answers = std::collections::BTreeSet::new();
    for (name, secret) in [("ci", "wrong"), ("nobody", "wrong"), ("no name!", "wrong"), ("ci", &other)] {
        let refused = client.bootstrap(&node, name, secret).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{name}");
        answers.insert(refused.to_string());
    }
    client.bootstrap(&node, "ci", &secret).await.unwrap();
    answers.insert(Client::new(2).bootstrap(&node, "ci", &secret).await.unwrap_err().to_string());
    assert_eq!(answers.len(), 1, "{answers:?}");
    assert_eq!(node.audited("agent_identity.bootstrap.denied").await.len(), 5);
    let long = client.bootstrap(&node, "ci", &"x".repeat(257)).await;
    assert_invalid(long, "bootstrap_secret");
}

#[tokio::test]
async fn of_many_who_use_a_secret_at_once_one_gets_credentials() {
    let (node, secret) = start().await;
    let clients: Vec<_> = (1..=8).map(Client::new).collect();
    let tries = clients.iter().map(|client| client.bootstrap(&node, "ci", &secret));
    let done = futures::future::join_all(tries).await;
    assert_eq!(done.iter().filter(|done| done.is_ok()).count(), 1);
    assert_eq!(node.audited("agent_identity.bootstrap").await.len(), 1);
    // And of many attempts of one renewal, all.
    let winner = done.iter().position(Result::is_ok).unwrap();
    let next = Client::new(99);
    let tries = (0..8).map(|_| next.renew(&node, &clients[winner], 1));
    let done: Vec<_> = futures::future::join_all(tries).await.into_iter().map(Result::unwrap).collect();
    assert!(done.iter().all(|got| got.generation == 2 && got.session_id == done[0].session_id));
    assert_eq!(whose(&node, &done[0].session_id).await.as_deref(), Some("bot:ci"));
}

#[tokio::test]
async fn one_network_leaves_places_to_the_others_and_a_session_renews_nothing() {
    let (node, secret) = start().await;
    let boss = node.boss().await;
    let client = Client::new(1);
    let call = anonymous("BootstrapAgentIdentity");
    let places: Vec<_> = std::iter::from_fn(|| place(&node.service, &call).ok()).collect();
    assert_eq!(places.len(), ROOM.each);
    let busy = client.bootstrap(&node, "ci", &secret).await.unwrap_err();
    assert!(matches!(busy, ApiError::Busy { .. }), "{busy:?}");
    let mut elsewhere = call.clone();
    elsewhere.origin.client_address = "198.51.100.1".into();
    assert!(place(&node.service, &elsewhere).is_ok());
    drop(places);
    client.bootstrap(&node, "ci", &secret).await.unwrap();
    for call in [with(&boss, "RenewAgentIdentity"), anonymous("RenewAgentIdentity")] {
        let request = v1::RenewAgentIdentityRequest {
            generation: 1,
            ssh_public_key: client.ssh.clone(),
            tls_public_key: client.tls.spki_der().into(),
        };
        let refused = renew(&node.service, &call, request).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated);
    }
}

#[tokio::test]
async fn an_identity_is_shown_without_its_secret_and_a_reset_makes_another() {
    let (node, secret) = start().await;
    let boss = node.boss().await;
    let get_ci = async || {
        let request = v1::GetAgentIdentityRequest { name: "Ci".into() };
        get(&node.service, &with(&boss, "GetAgentIdentity"), request).await.unwrap().identity.unwrap()
    };
    let shown = get_ci().await;
    assert!(shown.bootstrap_expires_at.is_some() && !shown.bootstrapped);
    assert_eq!((shown.max_ttl.unwrap().seconds, shown.created_by.as_str()), (3600, "user:boss"));
    Client::new(1).bootstrap(&node, "ci", &secret).await.unwrap();
    let used = get_ci().await;
    assert!(used.bootstrap_expires_at.is_none() && used.bootstrapped && used.credentials_expire_at.is_some());
    assert_eq!(
        (used.revision, used.generation),
        (shown.revision, 1),
        "a bootstrap is no change of an admin's"
    );

    let call = || with(&boss, "UpdateAgentIdentity");
    let ttl = Some(prost_types::Duration { seconds: 60, nanos: 0 });
    let idle =
        v1::UpdateAgentIdentityRequest { identity: Some(used.clone()), reset: false, bootstrap_ttl: ttl };
    assert_invalid(update(&node.service, &call(), idle.clone()).await, "bootstrap_ttl");
    let reset = v1::UpdateAgentIdentityRequest { reset: true, ..idle };
    let reset = update(&node.service, &call(), reset).await.unwrap();
    assert_ne!(reset.bootstrap_secret, secret);
    assert_eq!(reset.identity.unwrap().generation, 0);
    let denied = Client::new(2).bootstrap(&node, "ci", &secret).await.unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied);
    Client::new(3).bootstrap(&node, "ci", &reset.bootstrap_secret).await.unwrap();

    let listed = list(&node.service, &with(&boss, "ListAgentIdentities"), Default::default()).await.unwrap();
    assert_eq!(listed.identities.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(), ["ci"]);
    let gone = v1::DeleteAgentIdentityRequest { name: "ci".into() };
    let gone = delete(&node.service, &with(&boss, "DeleteAgentIdentity"), gone).await.unwrap();
    assert_eq!(gone.sessions_ended, 1);
}
