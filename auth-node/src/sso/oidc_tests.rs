use std::str::FromStr as _;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use openidconnect::{
    JsonWebKeyId, PrivateSigningKey,
    core::{CoreEdDsaPrivateSigningKey, CoreHmacKey},
};
use serde_json::json;

use super::*;

const ISSUER: &str = "https://login.example.com";
const CLIENT: &str = "mezite";
const SECRET: &str = "a client secret that the issuer knows as well";
const NONCE: &str = "the nonce of this login";
const NOW: i64 = 1_800_000_000;
/// The example of RFC 8410, section 10.3, and another key.
const KEY: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----\n";
const OTHER: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f\n-----END PRIVATE KEY-----\n";

fn key(pem: &str) -> CoreEdDsaPrivateSigningKey {
    CoreEdDsaPrivateSigningKey::from_ed25519_pem(pem, Some(JsonWebKeyId::new("k".into()))).unwrap()
}

fn claims() -> Value {
    json!({
        "iss": ISSUER, "aud": CLIENT, "sub": "s-1", "nonce": NONCE, "iat": NOW - 1, "exp": NOW + 300,
        "preferred_username": "ann", "groups": ["devs", 7], "address": {"locality": "x"},
    })
}

/// The claims, with a change.
fn with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    match value {
        Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
        value => claims[name] = value,
    }
    claims
}

fn encoded(header: &Value, claims: &Value) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}", part(header), part(claims))
}

fn signed(by: &CoreEdDsaPrivateSigningKey, claims: &Value) -> String {
    let message = encoded(&json!({ "alg": "EdDSA", "kid": "k" }), claims);
    let signature = by.sign(&CoreJwsSigningAlgorithm::EdDsa, message.as_bytes()).unwrap();
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
}

fn verify(token: &str) -> Result<(String, serde_json::Map<String, Value>), String> {
    let keys = JsonWebKeySet::new(vec![key(KEY).as_verification_key()]);
    let expected = Expected {
        client_id: CLIENT,
        issuer: &IssuerUrl::new(ISSUER.into()).unwrap(),
        keys: &keys,
        nonce: NONCE,
        now: DateTime::from_timestamp(NOW, 0).unwrap(),
    };
    let token = Token::from_str(token).map_err(|error| error.to_string())?;
    let verified = expected.verify(&token, &AccessToken::new("an access token".into()));
    verified.map(|(subject, claims)| (subject.as_str().to_owned(), claims))
}

#[test]
fn a_good_token_tells_whose_it_is_and_all_that_it_says() {
    let (subject, said) = verify(&signed(&key(KEY), &claims())).unwrap();
    assert_eq!(subject, "s-1");
    let claims = super::super::claims(&Value::Object(said)).unwrap();
    assert_eq!(claims["preferred_username"], ["ann"]);
    assert_eq!(claims["groups"], ["devs", "7"]);
    assert!(!claims.contains_key("address"));
    // Within what clocks differ by.
    verify(&signed(&key(KEY), &with("iat", json!(NOW + 60)))).unwrap();
}

#[test]
fn a_token_of_another_issuer_client_login_or_time_is_refused() {
    for (name, value) in [
        ("iss", json!("https://evil.example.com")),
        ("iss", json!("https://login.example.com/")),
        ("iss", Value::Null),
        ("aud", json!("another")),
        ("aud", json!([CLIENT, "another"])),
        ("aud", json!([])),
        ("aud", Value::Null),
        ("nonce", json!("the nonce of another login")),
        ("nonce", json!("")),
        ("nonce", Value::Null),
        ("exp", json!(NOW)),
        ("exp", json!(NOW - 1)),
        ("exp", Value::Null),
        ("iat", json!(NOW - 601)),
        ("iat", json!(NOW + 601)),
        ("iat", Value::Null),
        ("sub", Value::Null),
        ("sub", json!("")),
        ("sub", json!("x".repeat(256))),
        ("at_hash", json!("AAAAAAAAAAAAAAAAAAAAAA")),
    ] {
        let refused = verify(&signed(&key(KEY), &with(name, value.clone())));
        assert!(refused.is_err(), "{name} {value}: {refused:?}");
    }
}

#[test]
fn a_token_that_the_issuer_has_not_signed_with_a_public_key_is_refused() {
    let good = signed(&key(KEY), &claims());
    let (message, signature) = good.rsplit_once('.').unwrap();
    let hmac = |secret: &[u8], algorithm: &str| {
        let message = encoded(&json!({ "alg": algorithm, "kid": "k" }), &claims());
        let by = CoreHmacKey::new(secret.to_vec());
        let signature = by.sign(&CoreJwsSigningAlgorithm::HmacSha256, message.as_bytes()).unwrap();
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
    };
    let public = serde_json::to_value(key(KEY).as_verification_key()).unwrap();
    let public = URL_SAFE_NO_PAD.decode(public["x"].as_str().unwrap()).unwrap();
    let none = encoded(&json!({ "alg": "none" }), &claims());
    let mut other = signed(&key(KEY), &with("preferred_username", json!("root")));
    other.truncate(other.rfind('.').unwrap());
    for (what, token) in [
        ("alg none", format!("{none}.")),
        ("alg none with a signature", format!("{none}.{signature}")),
        ("HS256 with the client secret", hmac(SECRET.as_bytes(), "HS256")),
        ("HS256 with the public key", hmac(&public, "HS256")),
        ("HS256 that calls itself EdDSA", hmac(&public, "EdDSA")),
        (
            "RS256 in name",
            format!("{}.{signature}", encoded(&json!({ "alg": "RS256", "kid": "k" }), &claims())),
        ),
        ("another key", signed(&key(OTHER), &claims())),
        ("other claims", format!("{other}.{signature}")),
        ("no signature", format!("{message}.")),
        ("two parts", message.to_owned()),
        ("nothing", String::new()),
        ("dots", "..".to_owned()),
    ] {
        assert!(verify(&token).is_err(), "{what}");
    }
    verify(&good).unwrap();
}

#[test]
fn an_access_token_is_the_one_that_the_id_token_speaks_of() {
    let hash = |text: &str| {
        let token = AccessToken::new(text.into());
        let hash = AccessTokenHash::from_token(
            &token,
            &CoreJwsSigningAlgorithm::EdDsa,
            &key(KEY).as_verification_key(),
        );
        json!(hash.unwrap().as_str())
    };
    verify(&signed(&key(KEY), &with("at_hash", hash("an access token")))).unwrap();
    assert!(verify(&signed(&key(KEY), &with("at_hash", hash("another")))).is_err());
}

#[test]
fn an_address_is_verified_by_whoever_tells_it() {
    let map = |value: Value| value.as_object().unwrap().clone();
    for (signed, more, all) in [
        (json!({ "email": "a" }), json!({ "email": "b", "email_verified": true }), json!({ "email": "a" })),
        (json!({ "email_verified": true }), json!({ "email": "b" }), json!({ "email": "b" })),
        (
            json!({ "groups": ["x"] }),
            json!({ "groups": ["y"], "email": "b", "email_verified": true }),
            json!({ "groups": ["x"], "email": "b", "email_verified": true }),
        ),
    ] {
        let mut claims = map(signed);
        with_more(&mut claims, map(more));
        assert_eq!(Value::Object(claims), all);
    }
}
