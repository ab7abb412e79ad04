use auth_core::tables::{CaKey, CaKeyRow, CaRow};
use mezite_pki::{ssh::SshCa, x509::X509Ca};
use store_txn::TransactionExt as _;
use tonic::Code;

use super::*;
use crate::rpc::{
    testing::{Node, Other, anonymous, assert_invalid, with},
    tokens,
};

/// A node whose cluster has authorities, and a session of an admin.
async fn node() -> (Node, String) {
    let node = Node::start().await;
    let put = node.service.store.transact(|tx| {
        let line = || SshCa::generate().map(|ca| ca.public_line()).map_err(CoreError::pki("ca"));
        let tls = X509Ca::generate("tls", 1, 4_000_000_000).map_err(CoreError::pki("ca"))?;
        let all = [
            (CaKind::Tls, tls.certificate_pem().to_owned()),
            (CaKind::User, line()?),
            (CaKind::Host, line()?),
        ];
        for (kind, public) in all {
            let key = CaKeyRow { public, sealed_private: Vec::new(), created_at_ms: 0 };
            tx.put(&CaKey(kind), &CaRow::new(key));
        }
        Ok::<_, CoreError>(())
    });
    put.await.map_err(ApiError::from).unwrap();
    let boss = node.boss().await;
    (node, boss)
}

async fn trust_it(
    node: &Node,
    session: &str,
    cluster: v1::TrustedCluster,
    token: String,
) -> Result<v1::TrustedCluster, ApiError> {
    within_seconds(60, node, session, cluster, token).await
}

/// By a client that waits for so long.
async fn within_seconds(
    seconds: u64,
    node: &Node,
    session: &str,
    cluster: v1::TrustedCluster,
    token: String,
) -> Result<v1::TrustedCluster, ApiError> {
    let call = Call {
        deadline: Some(Instant::now() + Duration::from_secs(seconds)),
        ..with(session, "CreateTrustedCluster")
    };
    let request = v1::CreateTrustedClusterRequest { trusted_cluster: Some(cluster), token };
    Ok(create(&node.service, &call, request).await?.trusted_cluster.unwrap())
}

/// Methods that the other cluster was called with.
fn asked(other: &Other) -> Vec<String> {
    other.server.calls().into_iter().map(|call| call.method).collect()
}

#[tokio::test]
async fn a_cluster_is_trusted_by_what_it_says_against_its_token() {
    let (node, boss) = node().await;
    let other = Other::start();
    let made = trust_it(&node, &boss, other.trusted(), other.token("one")).await.unwrap();
    assert_eq!((made.name.as_str(), made.disabled, made.refresh_error.as_str()), ("test", false, ""));
    let kinds: Vec<_> = made.authorities.iter().map(v1::TrustedCa::kind).collect();
    assert_eq!(kinds, [v1::CaKind::User, v1::CaKind::Host, v1::CaKind::Tls]);
    assert_eq!(made.authorities[2].certificates, [other.ca.pem()]);
    let calls = other.server.calls();
    let request: v1::ExchangeTrustRequest = calls.last().unwrap().request();
    assert_eq!((request.token.as_str(), request.cluster_name.as_str()), ("one", "test.example"));
    let record = node.audited("trusted_cluster.create").await.remove(0);
    assert_eq!((record.actor.as_str(), record.target.as_str()), ("user:boss", "trusted_cluster:test"));
}

#[tokio::test]
async fn what_can_be_refused_before_is_refused_before_the_token_is_shown() {
    let (node, boss) = node().await;
    let other = Other::start();
    let token = || other.token("one");
    let cluster = |change: fn(&mut v1::TrustedCluster)| {
        let mut cluster = other.trusted();
        change(&mut cluster);
        cluster
    };
    let none = trust_it(&node, &boss, cluster(|it| it.name.clear()), token()).await;
    assert_invalid(none, "trusted_cluster.name");
    for bad in ["", "one", ".sha256:00", "one.sha256:00", "one."] {
        assert_invalid(trust_it(&node, &boss, other.trusted(), bad.into()).await, "token");
    }
    let ghost = |it: &mut v1::TrustedCluster| {
        it.role_mappings = vec![v1::RoleMapping { remote: "x".into(), local: vec!["ghost".into()] }];
    };
    let ghost = trust_it(&node, &boss, cluster(ghost), token()).await.unwrap_err();
    assert_eq!((ghost.code(), asked(&other).len()), (Code::NotFound, 0));
    // Neither whoever has no part in that pin is shown the token, nor a cluster of another name.
    let stranger = Other::start();
    let wrong = within_seconds(2, &node, &boss, other.trusted(), stranger.token("one")).await.unwrap_err();
    assert_eq!(wrong.code(), Code::FailedPrecondition);
    assert!(wrong.to_string().contains("did not prove"), "{wrong}");
    let misnamed = trust_it(&node, &boss, cluster(|it| it.name = "prod".into()), token()).await;
    assert_invalid(misnamed, "trusted_cluster.name");
    assert_eq!(asked(&other), ["GetTrustBundle"]);
    trust_it(&node, &boss, other.trusted(), token()).await.unwrap();
}

#[tokio::test]
async fn a_token_that_is_spent_in_vain_is_told_of() {
    let (node, boss) = node().await;
    let other = Other::start();
    trust_it(&node, &boss, other.trusted(), other.token("one")).await.unwrap();
    let again = trust_it(&node, &boss, other.trusted(), other.token("two")).await.unwrap_err();
    assert_eq!(again.code(), Code::AlreadyExists, "seen before it is spent");
    let request = v1::DeleteTrustedClusterRequest { name: "test".into() };
    delete(&node.service, &with(&boss, "DeleteTrustedCluster"), request).await.unwrap();
    let spent = trust_it(&node, &boss, other.trusted(), other.token("one")).await.unwrap_err();
    assert_eq!(spent.code(), Code::FailedPrecondition);
    assert!(spent.to_string().contains("the token is spent"), "{spent}");

    // What another admin did meanwhile is found at the commit.
    let call = with(&boss, "CreateTrustedCluster");
    let raced = super::spent(&call, CoreError::AlreadyExists { kind: "x", name: "y".into() }.into());
    assert_eq!(raced.code(), Code::FailedPrecondition);
    assert!(raced.to_string().contains("is spent"), "{raced}");
    let unknown = super::spent(&call, StoreError::OutcomeUnknown.into());
    assert!(matches!(unknown, ApiError::Store(StoreError::OutcomeUnknown)));
    let ours = super::spent(&call, CoreError::Internal("/secret/path".into()).into());
    assert!(ours.is_ours());
}

#[tokio::test]
async fn a_closed_port_is_answered_like_an_open_one_and_like_another_cluster() {
    let (node, boss) = node().await;
    let (other, stranger) = (Other::start(), Other::start());
    // One that takes connections and says nothing, one that closes them, one that speaks no TLS.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let curt = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let open = [silent.local_addr().unwrap(), curt.local_addr().unwrap()].map(|address| address.to_string());
    let curt = tokio::spawn(async move {
        while let Ok((mut stream, _)) = curt.accept().await {
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, b"220 mail\r\n").await;
        }
    });
    let addresses = [mezite_client::testing::dead_address(), stranger.server.address()];
    let attempts = addresses.into_iter().chain(open).map(|address| {
        let cluster = v1::TrustedCluster { addresses: vec![address], ..other.trusted() };
        let (node, boss, token) = (&node, &boss, other.token("one"));
        async move {
            let begun = Instant::now();
            let failed = within_seconds(4, node, boss, cluster, token).await.unwrap_err();
            (failed.code(), failed.to_string(), begun.elapsed())
        }
    });
    let answers = futures::future::join_all(attempts).await;
    let (code, told, _) = answers[0].clone();
    assert_eq!(code, Code::FailedPrecondition);
    assert!(
        told.contains("could not be reached, or did not prove") && told.contains("request id r"),
        "{told}"
    );
    for (of, answer, took) in answers {
        assert_eq!((of, answer), (code, told.clone()));
        // Half of the call's time, whatever is found; the other half is for the commit.
        assert!(took >= Duration::from_millis(1_900), "{took:?} tells what was found");
        assert!(took < Duration::from_secs(4), "the answer is there before the deadline");
    }
    curt.abort();
}

#[tokio::test]
async fn a_token_of_this_cluster_gets_its_authorities_once() {
    let (node, boss) = node().await;
    let request = v1::CreateTokenRequest { kind: v1::TokenKind::TrustedCluster.into(), ..Default::default() };
    let made = tokens::create(&node.service, &with(&boss, "CreateToken"), request).await.unwrap();
    assert_eq!(made.token.as_ref().unwrap().kind(), v1::TokenKind::TrustedCluster);
    let token = Token::parse(&made.secret);
    assert!(token.is_ok(), "it is one for a cluster that trusts this one");
    let (secret, pin) = made.secret.split_once('.').unwrap();
    let tls = node.service.store.read(|view| auth_core::trust::tls_pin(view)).await.map_err(ApiError::from);
    assert_eq!(pin, tls.unwrap());

    let ask = |secret: &str, id: u8| {
        let request = v1::ExchangeTrustRequest {
            token: secret.into(),
            cluster_name: "there".into(),
            exchange_id: vec![id; 32].into(),
        };
        let service = std::sync::Arc::clone(&node.service);
        async move { exchange(&service, &anonymous("ExchangeTrust"), request).await }
    };
    let told = ask(secret, 1).await.unwrap().trust_bundle.unwrap();
    assert_eq!(told.authorities.len(), 3);
    assert_eq!(ask(secret, 1).await.unwrap().trust_bundle.unwrap(), told);
    let refused = ask(secret, 2).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let denied = node.audited("trust.exchange.denied").await;
    assert_eq!((denied.len(), denied[0].actor.as_str()), (1, "anonymous"));
    assert!(!format!("{denied:?}").contains(secret));
    // Neither a part of an id nor too much of a secret is looked at.
    let short = v1::ExchangeTrustRequest { exchange_id: vec![1; 31].into(), ..Default::default() };
    assert_invalid(exchange(&node.service, &anonymous("ExchangeTrust"), short).await, "exchange_id");
    assert_invalid(ask(&"x".repeat(257), 3).await, "token");
}
