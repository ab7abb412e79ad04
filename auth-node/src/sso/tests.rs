use std::sync::Arc;

use auth_core::sso::Refusal;
use mezite_proto::v1;
use serde_json::json;
use tonic::Code;

use super::*;
use crate::rpc::{
    connectors,
    testing::{Node, anonymous, with},
};

fn oidc(name: &str) -> v1::Connector {
    let oidc = v1::OidcConnector {
        // Nobody listens there.
        issuer_url: "https://127.0.0.1:9".into(),
        client_id: "mezite".into(),
        client_secret: "secret".into(),
        ..Default::default()
    };
    let provider = Some(v1::connector::Provider::Oidc(oidc));
    v1::Connector { name: name.into(), provider, ..Default::default() }
}

async fn add(node: &Node, connector: v1::Connector) {
    let boss = node.boss().await;
    let request = v1::CreateConnectorRequest { connector: Some(connector) };
    connectors::create(&node.service, &with(&boss, "CreateConnector"), request).await.unwrap();
}

/// A node that browsers reach.
async fn node() -> Node {
    let mut node = Node::start().await;
    Arc::get_mut(&mut node.service).unwrap().settings.web_origin = Some("https://login.example.com".into());
    node
}

fn back(state: &str) -> Back {
    Back {
        state: state.into(),
        code: "code".into(),
        browser: Some(Zeroizing::new("browser".into())),
        ..Back::default()
    }
}

async fn ended(node: &Node, connector: &str, back: Back) -> ApiError {
    let call = anonymous("FinishSSOLogin");
    match end(&node.service, &call, connector, back).await.unwrap().outcome {
        Ok(_) => panic!("it logs nobody in"),
        Err(error) => error,
    }
}

#[tokio::test]
async fn without_an_address_for_browsers_it_is_said_what_to_set() {
    let mut node = Node::start().await;
    Arc::get_mut(&mut node.service).unwrap().settings.web_origin = None;
    add(&node, oidc("corp")).await;
    let program = Program::new(vec![0xab; 32], 4321, "0123456789abcdef".into()).unwrap();
    let call = anonymous("BeginSSOLogin");
    for refused in [
        page(&node.service, &call, "corp", &program).await.map(drop),
        begin(&node.service, &call, "corp", None).await.map(drop),
    ] {
        let error = refused.unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition);
        assert!(error.to_string().contains("web.public_url"), "{error}");
    }
}

#[tokio::test]
async fn a_program_is_told_a_page_and_what_it_shows() {
    let node = node().await;
    add(&node, oidc("corp")).await;
    let program = Program::new(vec![0xab; 32], 4321, "0123456789abcdef".into()).unwrap();
    let call = anonymous("BeginSSOLogin");
    let (url, confirmation) = page(&node.service, &call, "CORP", &program).await.unwrap();
    let challenge = "ab".repeat(32);
    let fragment = format!("connector=corp&challenge={challenge}&port=4321&path=0123456789abcdef");
    assert_eq!(url, format!("https://login.example.com/web/sso#{fragment}"));
    assert_eq!(confirmation, "ABAB-ABAB");
    let none = page(&node.service, &call, "none", &program).await.unwrap_err();
    assert_eq!(none.code(), Code::NotFound);
}

#[tokio::test]
async fn a_provider_that_cannot_be_asked_begins_nothing() {
    let node = node().await;
    add(&node, oidc("corp")).await;
    let refused = begin(&node.service, &anonymous("BeginSSOLogin"), "corp", None).await;
    let error = refused.map(drop).unwrap_err();
    assert_eq!(error.code(), Code::Unavailable, "{error}");
    let call = anonymous("BeginSSOLogin");
    let holder = format!("sso:{}", passwords::network(&call.origin.client_address));
    while node.service.pace.admit(holder.clone()).is_ok() {}
    let busy = begin(&node.service, &call, "corp", None).await.map(drop).unwrap_err();
    assert_eq!(busy.code(), Code::ResourceExhausted, "{busy}");
}

#[tokio::test]
async fn what_comes_back_unknown_is_refused_alike_and_audited() {
    let node = node().await;
    add(&node, oidc("corp")).await;
    for (connector, state) in [
        ("corp", ""),
        ("corp", "1.secret"),
        ("corp", "no state"),
        ("none", "1.secret"),
        ("corp", &"x".repeat(9000)),
    ] {
        let error = ended(&node, connector, back(state)).await;
        assert_eq!(error.to_string(), Refusal::Anew.answer().to_string(), "{connector} {state}");
    }
    let refused = node.audited("user.login.failed").await;
    assert_eq!((refused.len(), refused[0].fields["method"].as_str()), (5, "sso"));
    let call = anonymous("FinishSSOLogin");
    let verifier = "v".repeat(43);
    let unknown = redeem(&node.service, &call, "code", &verifier).await.map(drop).unwrap_err();
    assert_eq!(unknown.to_string(), Refusal::Anew.answer().to_string());
    for (code, verifier) in
        [("c", "v".repeat(42)), ("c", "v".repeat(129)), ("c", " ".repeat(43)), (&"c".repeat(5000), verifier)]
    {
        let invalid = redeem(&node.service, &call, code, &verifier).await.map(drop).unwrap_err();
        assert_eq!(invalid.code(), Code::InvalidArgument, "{verifier}");
    }
}

#[test]
fn what_is_derived_depends_on_both_secrets_and_its_use() {
    let one = derived("nonce", "a", "b");
    for other in [
        derived("verifier", "a", "b"),
        derived("nonce", "b", "b"),
        derived("nonce", "a", "a"),
        derived("nonce", "ab", ""),
    ] {
        assert_ne!(one, other);
    }
    assert_eq!((one.len(), &one), (43, &derived("nonce", "a", "b")));
}

#[test]
fn claims_are_texts_or_lists_of_them_within_bounds() {
    let read = claims(&json!({
        "a": "x", "b": 7, "c": true, "d": ["x", 1, null, {"y": 1}], "e": null, "f": {"x": 1}, "g": [],
    }));
    let expected: Claims = [("a", &["x"][..]), ("b", &["7"]), ("c", &["true"]), ("d", &["x", "1"])]
        .into_iter()
        .map(|(name, values)| (name.to_owned(), values.iter().map(|&value| value.to_owned()).collect()))
        .collect();
    assert_eq!(read, Ok(expected));
    assert!(claims(&json!(["a"])).is_err());
    assert!(claims(&json!({ "a": vec!["x"; MAX_VALUES + 1] })).is_err());
    let many: serde_json::Map<_, _> = (0..=MAX_CLAIMS).map(|number| (number.to_string(), json!(1))).collect();
    assert!(claims(&Value::Object(many)).is_err());
}
