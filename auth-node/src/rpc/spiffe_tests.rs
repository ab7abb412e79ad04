use std::collections::BTreeSet;

use auth_core::names::IdentityName;
use mezite_pki::x509::{CertificateInfo, KeyPair, SvidSpec, X509Ca, certificate_der};
use serde_json::{Value, json};
use tonic::Code;

use super::*;
use crate::{
    rpc::{
        agent_identities,
        testing::{Node, anonymous, assert_invalid, with},
    },
    spiffe::testing::{Issuer, claims, with_other_signature},
};

const ID: &str = "spiffe://red.example/ns/ci";
const US: &str = "mezite://test.example";

/// A node that lets the workloads of `red.example` in, one of which is the identity `ci`.
struct World {
    node: Node,
    boss: String,
    issuer: Issuer,
    ca: X509Ca,
}

impl World {
    async fn start() -> Self {
        let node = Node::start().await;
        let now = (node.service.clock)() / 1000;
        let ca = X509Ca::generate("red", now - 100, now + 100_000).unwrap();
        let world = Self { boss: node.boss().await, node, issuer: Issuer::new("k"), ca };
        let bundle = world.bundle(&[&world.issuer], 1);
        world.add("red.example", &bundle).await.unwrap();
        let identity = v1::AgentIdentity {
            name: "ci".into(),
            roles: vec!["access".into()],
            spiffe_ids: vec![ID.into()],
            ..Default::default()
        };
        let request = v1::CreateAgentIdentityRequest { identity: Some(identity), bootstrap_ttl: None };
        let call = with(&world.boss, "CreateAgentIdentity");
        agent_identities::create(&world.node.service, &call, request).await.unwrap();
        world
    }

    fn now(&self) -> u64 {
        (self.node.service.clock)() / 1000
    }

    fn bundle(&self, issuers: &[&Issuer], sequence: u64) -> Value {
        use base64::{Engine as _, engine::general_purpose::STANDARD};
        let x5c = [STANDARD.encode(self.ca.certificate_der())];
        let mut keys = vec![json!({ "use": "x509-svid", "kty": "EC", "x5c": x5c })];
        keys.extend(issuers.iter().map(|issuer| issuer.jwk()));
        json!({ "keys": keys, "spiffe_sequence": sequence })
    }

    async fn add(&self, name: &str, bundle: &Value) -> Result<v1::SpiffeDomain, ApiError> {
        let domain =
            v1::SpiffeDomain { trust_domain: name.into(), bundle: bundle.to_string(), ..Default::default() };
        let request = v1::CreateSpiffeDomainRequest { domain: Some(domain) };
        let made = create(&self.node.service, &with(&self.boss, "CreateSpiffeDomain"), request).await?;
        Ok(made.domain.unwrap())
    }

    async fn show(&self, token: &str) -> Result<v1::AuthenticateSpiffeResponse, ApiError> {
        let request = v1::AuthenticateSpiffeRequest { svid: Some(Svid::Jwt(token.into())) };
        authenticate(&self.node.service, &anonymous("AuthenticateSPIFFE"), request).await
    }

    async fn show_chain(&self, chain: Vec<Vec<u8>>) -> Result<v1::AuthenticateSpiffeResponse, ApiError> {
        let call = Call { credential: Credential::Svid(chain), ..anonymous("AuthenticateSPIFFE") };
        let request = v1::AuthenticateSpiffeRequest { svid: Some(Svid::X509(true)) };
        authenticate(&self.node.service, &call, request).await
    }

    fn svid(&self, ca: &X509Ca, id: &str) -> Vec<u8> {
        let now = self.now();
        let spec = SvidSpec {
            public_key: KeyPair::generate_p256().unwrap().spki_der(),
            spiffe_id: id.into(),
            not_before: now - 60,
            not_after: now + 600,
        };
        certificate_der(&ca.issue_svid(&spec).unwrap()).unwrap()
    }

    async fn reasons(&self) -> Vec<String> {
        let denied = self.node.audited("spiffe.login.denied").await;
        denied.into_iter().map(|row| row.fields["reason"].clone()).collect()
    }
}

#[tokio::test]
async fn a_token_gives_a_session_once_and_refusals_are_alike_whatever_they_are_for() {
    let world = World::start().await;
    let good = || world.issuer.token(&claims(ID, US, world.now()));
    let token = good();
    let made = world.show(&token).await.unwrap();
    let session = made.session.unwrap();
    assert_eq!((session.user.as_str(), session.method()), ("bot:ci", v1::AuthMethod::Spiffe));
    let own = v1::ListActiveSessionsRequest::default();
    let call = with(&made.session_id, "ListActiveSessions");
    let listed = sessions::list(&world.node.service, &call, own).await.unwrap();
    assert_eq!(listed.sessions[0].handle, session.handle);

    let (stranger, blue) = (Issuer::new("k"), Issuer::new("k"));
    world.add("blue.example", &world.bundle(&[&blue], 1)).await.unwrap();
    let token_of =
        |issuer: &Issuer, id: &str, audience: &str| issuer.token(&claims(id, audience, world.now()));
    let old = |by: u64| world.issuer.token(&claims(ID, US, world.now() - by));
    let mut long = claims(ID, US, world.now());
    long["exp"] = json!(world.now() + 7200);
    let mut answers = BTreeSet::new();
    for (what, token, why) in [
        ("used", token.clone(), "used before"),
        ("used, its signature turned", with_other_signature(&token), "used before"),
        ("somebody else's key", token_of(&stranger, ID, US), "InvalidSignature"),
        ("the key of another trust domain", token_of(&blue, ID, US), "InvalidSignature"),
        ("an unknown trust domain", token_of(&blue, "spiffe://green.example/x", US), "not let in"),
        ("nobody's id", token_of(&world.issuer, "spiffe://red.example/ns/cd", US), "no agent identity"),
        ("another cluster", token_of(&world.issuer, ID, "mezite://other"), "InvalidAudience"),
        ("ended", old(301), "ExpiredSignature"),
        ("lives long", world.issuer.token(&long), "longer than an hour"),
        ("malformed", "x".into(), "malformed"),
    ] {
        let refused = world.show(&token).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{what}");
        answers.insert(refused.to_string());
        let told = world.reasons().await.pop().unwrap();
        assert!(told.contains(why), "{what}: {told}");
    }
    assert_eq!(answers.len(), 1, "{answers:?}");
    let all = format!("{:?}", world.node.audit().await);
    assert!(!all.contains(&token) && !all.contains(token.rsplit_once('.').unwrap().1));

    // What is too long is not looked at.
    let before = world.reasons().await.len();
    let huge = format!("{}{}", good(), "x".repeat(jwt::MAX_TOKEN));
    assert_invalid(world.show(&huge).await, "jwt");
    let nothing = v1::AuthenticateSpiffeRequest { svid: None };
    let nothing = authenticate(&world.node.service, &anonymous("AuthenticateSPIFFE"), nothing).await;
    assert_invalid(nothing, "svid");
    assert_eq!(world.reasons().await.len(), before);
    world.show(&good()).await.unwrap();
}

#[tokio::test]
async fn of_many_who_show_one_token_at_once_one_gets_a_session() {
    let world = World::start().await;
    let token = world.issuer.token(&claims(ID, US, world.now()));
    let tries = (0..8).map(|_| world.show(&token));
    let done = futures::future::join_all(tries).await;
    assert_eq!(done.iter().filter(|done| done.is_ok()).count(), 1);
    assert_eq!(world.node.audited("spiffe.login").await.len(), 1);
    assert!(world.reasons().await.iter().all(|reason| reason == "it was used before"));
}

#[tokio::test]
async fn a_certificate_counts_where_tls_has_let_it_in_and_is_verified_again() {
    let world = World::start().await;
    let chain = vec![world.svid(&world.ca, ID)];
    let made = world.show_chain(chain.clone()).await.unwrap();
    assert_eq!(made.session.unwrap().user, "bot:ci");
    world.show_chain(chain.clone()).await.unwrap();
    let other = X509Ca::generate("red", world.now() - 100, world.now() + 100_000).unwrap();
    for (what, chain) in [
        ("another authority", vec![world.svid(&other, ID)]),
        ("nobody's id", vec![world.svid(&world.ca, "spiffe://red.example/ns/cd")]),
        ("another trust domain", vec![world.svid(&world.ca, "spiffe://blue.example/ns/ci")]),
        ("an authority", vec![world.ca.certificate_der().to_vec()]),
    ] {
        let refused = world.show_chain(chain).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{what}");
    }
    // Without the certificate of the connection there is nothing to prove, whatever the request says.
    let ask = async |call: Call, x509| {
        let request = v1::AuthenticateSpiffeRequest { svid: Some(Svid::X509(x509)) };
        authenticate(&world.node.service, &call, request).await
    };
    for call in [anonymous("AuthenticateSPIFFE"), with(&world.boss, "AuthenticateSPIFFE")] {
        assert_eq!(ask(call, true).await.unwrap_err().code(), Code::Unauthenticated);
    }
    let ci = IdentityName::parse("", "ci").unwrap();
    let bot = Credential::AgentIdentity { name: ci, key_digest: [1; 32] };
    let bot = Call { credential: bot, ..anonymous("AuthenticateSPIFFE") };
    assert_eq!(ask(bot, true).await.unwrap_err().code(), Code::Unauthenticated);
    assert_invalid(ask(anonymous("AuthenticateSPIFFE"), false).await, "svid");

    // The bundle that is known now decides, also for a connection of before.
    let domain = v1::SpiffeDomain {
        trust_domain: "red.example".into(),
        bundle: json!({ "keys": [] }).to_string(),
        ..Default::default()
    };
    let request = v1::UpdateSpiffeDomainRequest { domain: Some(domain) };
    let emptied =
        update(&world.node.service, &with(&world.boss, "UpdateSpiffeDomain"), request).await.unwrap();
    assert_eq!(emptied.domain.unwrap().x509_authorities, 0);
    assert_eq!(world.show_chain(chain).await.unwrap_err().code(), Code::PermissionDenied);
    let token = world.issuer.token(&claims(ID, US, world.now()));
    assert_eq!(world.show(&token).await.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test]
async fn a_trust_domain_is_shown_with_what_is_known_of_its_bundle() {
    let world = World::start().await;
    let (service, call) = (&world.node.service, |method| with(&world.boss, method));
    let wanted = v1::GetSpiffeDomainRequest { trust_domain: "red.example".into() };
    let shown = get(service, &call("GetSpiffeDomain"), wanted.clone()).await.unwrap().domain.unwrap();
    assert_eq!((shown.x509_authorities, shown.jwt_authorities, shown.sequence), (1, 1, Some(1)));
    assert!(shown.bundle.is_empty() && shown.endpoint.is_none() && shown.bundle_good_until.is_none());
    assert_eq!((shown.created_by.as_str(), shown.revision > 0), ("user:boss", true));

    let web_ca = format!("text\n{}", world.ca.certificate_pem());
    let endpoint = v1::SpiffeBundleEndpoint {
        url: "https://red.example/bundle".into(),
        web_ca_certificates: web_ca,
        ..Default::default()
    };
    let followed = v1::SpiffeDomain { endpoint: Some(endpoint.clone()), ..shown.clone() };
    let request = v1::UpdateSpiffeDomainRequest { domain: Some(followed.clone()) };
    let updated = update(service, &call("UpdateSpiffeDomain"), request).await.unwrap().domain.unwrap();
    assert_eq!(updated.endpoint.as_ref().unwrap().web_ca_certificates, world.ca.certificate_pem());
    assert!(updated.bundle_good_until.is_some() && updated.x509_authorities == 1);
    let stale = v1::UpdateSpiffeDomainRequest { domain: Some(followed) };
    let stale = update(service, &call("UpdateSpiffeDomain"), stale).await.unwrap_err();
    assert_eq!(stale.code(), Code::Aborted);
    let malformed = v1::SpiffeBundleEndpoint { web_ca_certificates: "x".into(), ..endpoint };
    let malformed = v1::SpiffeDomain { endpoint: Some(malformed), ..shown.clone() };
    let request = v1::UpdateSpiffeDomainRequest { domain: Some(malformed) };
    let refused = update(service, &call("UpdateSpiffeDomain"), request).await;
    assert_invalid(refused, "domain.endpoint.web_ca_certificates");
    assert_invalid(
        world.add("blue.example", &json!({ "keys": [{ "use": "x509-svid" }] })).await,
        "domain.bundle",
    );

    let listed = list(service, &call("ListSpiffeDomains"), Default::default()).await.unwrap().domains;
    assert_eq!(listed.iter().map(|it| it.trust_domain.as_str()).collect::<Vec<_>>(), ["red.example"]);
    let gone = v1::DeleteSpiffeDomainRequest { trust_domain: "red.example".into() };
    let mapped = delete(service, &call("DeleteSpiffeDomain"), gone).await.unwrap_err();
    assert_eq!(mapped.code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn an_identity_gets_an_svid_that_the_clusters_bundle_vouches_for() {
    let world = World::start().await;
    let service = &world.node.service;
    let token = || world.issuer.token(&claims(ID, US, world.now()));
    let session = world.show(&token()).await.unwrap().session_id;
    let key = KeyPair::generate_p256().unwrap();
    let request = v1::IssueSvidRequest { public_key: key.spki_der().into() };
    let none = issue(service, &with(&session, "IssueSVID"), request.clone()).await.unwrap_err();
    assert_eq!(none.code(), Code::FailedPrecondition, "the cluster has no such authority yet");

    let new = service.cas.generate(auth_core::tables::CaKind::Spiffe, "test.example", world.now()).unwrap();
    let name = |tx: &mut raft_store::StoreTransaction<'_>| {
        use auth_core::tables::{ClusterKey, ClusterRow};
        use store_txn::{ReadExt as _, TransactionExt as _};
        let row = tx.get(&ClusterKey)?.unwrap().row;
        tx.put(&ClusterKey, &ClusterRow { name: "test.example".into(), ..row });
        Ok::<_, CoreError>(())
    };
    let added = service.store.transact(move |tx| {
        name(tx)?;
        let context = auth_core::Context { caller: auth_core::Caller::Cluster, origin: Default::default() };
        auth_core::ca::add(tx, &context, &new)
    });
    assert!(added.await.map_err(ApiError::from).unwrap().value);
    let issued = issue(service, &with(&session, "IssueSVID"), request.clone()).await.unwrap();
    assert_eq!(issued.spiffe_id, "spiffe://test.example/bot/ci");
    let ca = CertificateInfo::from_pem(&issued.bundle).unwrap();
    assert!(ca.is_ca);
    let der = certificate_der(&issued.certificate).unwrap();
    assert!(mezite_pki::x509::is_signed_by(&der, &issued.bundle).unwrap());
    let svid = mezite_pki::x509::Svid::from_der(&der).unwrap();
    assert_eq!(svid.spiffe_id, issued.spiffe_id);
    assert_eq!(u64::try_from(issued.expires_at.unwrap().seconds).unwrap(), svid.not_after + 1);
    for call in [with(&world.boss, "IssueSVID"), anonymous("IssueSVID")] {
        assert!(issue(service, &call, request.clone()).await.is_err());
    }
}
