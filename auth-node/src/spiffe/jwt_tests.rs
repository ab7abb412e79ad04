use auth_core::{CoreError, tables::JwtAuthorityRow};
use mezite_daemon::clock;
use serde_json::{Value, json};

use super::*;
use crate::spiffe::testing::{Issuer, claims, signed, with_other_signature};

const ID: &str = "spiffe://red.example/ns/ci";
const US: &str = "mezite://here";

fn domain(name: &str) -> TrustDomain {
    TrustDomain::parse("", name).unwrap()
}

fn bundle(issuers: &[&Issuer]) -> SpiffeBundleRow {
    let row =
        |issuer: &&Issuer| JwtAuthorityRow { key_id: issuer.key_id.clone(), jwk: issuer.jwk().to_string() };
    SpiffeBundleRow { jwt_authorities: issuers.iter().map(row).collect(), ..SpiffeBundleRow::default() }
}

fn now() -> u64 {
    clock::unix_seconds()
}

/// As it is verified: by the bundle of the trust domain that it names, if there is one.
fn judge(token: &str, bundles: &[(&str, &SpiffeBundleRow)]) -> Result<Attested, String> {
    let named = trust_domain(token)?;
    let none = SpiffeBundleRow::default();
    let bundle = bundles.iter().find(|(name, _)| domain(name) == named).map_or(&none, |(_, bundle)| *bundle);
    verify(token, &named, bundle, US)
}

fn with(mut claims: Value, name: &str, value: Value) -> Value {
    claims[name] = value;
    claims
}

#[test]
fn a_token_of_the_trust_domain_for_this_cluster_is_good() {
    for issuer in [Issuer::new("k"), Issuer::rsa("k")] {
        let known = bundle(&[&Issuer::new("other"), &issuer]);
        let red = [("red.example", &known)];
        let at = now();
        let got = judge(&issuer.token(&claims(ID, US, at)), &red).unwrap();
        assert_eq!((got.spiffe_id.as_str(), got.ends_at_ms), (ID, (at + 300) * 1000));
        assert_eq!((got.issued_at_ms, got.bearer.is_some()), (Some(at * 1000), true));
        // Others may be meant too, and nobody has to say when it was made.
        let others = with(claims(ID, US, at), "aud", json!(["https://other", US]));
        assert!(judge(&issuer.token(&others), &red).is_ok());
        let one = json!({ "sub": ID, "aud": US, "exp": at + 60, "iat": 0.5 });
        assert_eq!(judge(&issuer.token(&one), &red).unwrap().issued_at_ms, Some(500));
        let silent = json!({ "sub": ID, "aud": US, "exp": at + 60 });
        assert_eq!(judge(&issuer.token(&silent), &red).unwrap().issued_at_ms, None);
    }
}

#[test]
fn no_signature_is_good_but_one_of_the_trust_domains_own_keys_in_an_allowed_algorithm() {
    let (issuer, rsa, stranger) = (Issuer::new("k"), Issuer::rsa("r"), Issuer::new("k"));
    let known = bundle(&[&issuer, &rsa]);
    let red = [("red.example", &known)];
    let good = claims(ID, US, now());
    let header = |alg: &str, kid: &str| json!({ "alg": alg, "kid": kid });
    let unsigned = |alg: &str| format!("{}.", signed(&header(alg, "k"), &good));
    let mut torn = issuer.token(&good);
    torn.truncate(torn.len() - 2);
    let valid = issuer.token(&good);
    let (front, signature) = valid.rsplit_once('.').unwrap();
    let other = signed(&header("ES256", "k"), &claims("spiffe://red.example/root", US, now()));
    for (what, token) in [
        ("none", unsigned("none")),
        ("None", unsigned("None")),
        ("an empty signature", unsigned("ES256")),
        ("no signature", front.to_owned()),
        ("a signature that is cut", torn),
        ("a signature of something else", format!("{other}.{signature}")),
        ("somebody else's key", stranger.token(&good)),
        ("an RSA key as the secret of an HMAC", rsa.confused(&header("HS256", "r"), &good)),
        ("an EC key as the secret of an HMAC", issuer.confused(&header("HS256", "k"), &good)),
        ("an HMAC that is called an RSA signature", rsa.confused(&header("RS256", "r"), &good)),
        ("an algorithm that is not the key's", issuer.with_header(&header("RS256", "k"), &good)),
        ("another algorithm of the same family", issuer.with_header(&header("ES384", "k"), &good)),
        ("EdDSA", issuer.with_header(&header("EdDSA", "k"), &good)),
        ("the id of another key", issuer.with_header(&header("ES256", "r"), &good)),
        ("a key id that nobody has", issuer.with_header(&header("ES256", "x"), &good)),
        ("no key id", issuer.with_header(&json!({ "alg": "ES256" }), &good)),
        (
            "a key of its own",
            stranger.with_header(&json!({ "alg": "ES256", "kid": "k", "jwk": stranger.jwk() }), &good),
        ),
        (
            "a key from elsewhere",
            stranger.with_header(&json!({ "alg": "ES256", "kid": "k", "jku": "https://evil" }), &good),
        ),
        (
            "what must be understood",
            issuer.with_header(&json!({ "alg": "ES256", "kid": "k", "crit": [] }), &good),
        ),
        (
            "another sort of token",
            issuer.with_header(&json!({ "alg": "ES256", "kid": "k", "typ": "at+jwt" }), &good),
        ),
        ("nothing", String::new()),
        ("dots", "...".into()),
        ("no base64", "a!.b.c".into()),
    ] {
        assert!(judge(&token, &red).is_err(), "{what}");
    }
    assert!(judge(&valid, &red).is_ok());
}

#[test]
fn a_key_vouches_for_its_own_trust_domain_alone_also_where_key_ids_collide() {
    let (red, blue) = (Issuer::new("the same id"), Issuer::new("the same id"));
    let (of_red, of_blue) = (bundle(&[&red]), bundle(&[&blue]));
    let known = [("red.example", &of_red), ("blue.example", &of_blue)];
    let (id_red, id_blue) = (claims(ID, US, now()), claims("spiffe://blue.example/ns/ci", US, now()));
    assert!(judge(&red.token(&id_red), &known).is_ok() && judge(&blue.token(&id_blue), &known).is_ok());
    for foreign in [red.token(&id_blue), blue.token(&id_red)] {
        assert!(judge(&foreign, &known).is_err());
    }
    // A trust domain that is not let in: what it is verified by is nobody's.
    let green = red.token(&claims("spiffe://green.example/x", US, now()));
    assert!(judge(&green, &known).unwrap_err().contains("no JWT authority"));
}

#[test]
fn the_decoy_keys_are_read_and_sign_nothing_that_counts() {
    let issuer = Issuer::new("k");
    for alg in ["ES256", "ES384", "RS256", "PS512"] {
        let header = Header { alg: alg.into(), kid: "k".into() };
        let mut known = JwtBundle::new(spiffe::TrustDomain::new("red.example").unwrap());
        known.add_jwk_authority_json(decoy(&header).as_bytes()).unwrap();
        let mut bundles = JwtBundleSet::new();
        bundles.add_bundle(known);
        let token = issuer.with_header(&json!({ "alg": alg, "kid": "k" }), &claims(ID, US, now()));
        // The signature was looked at.
        let refused = described(&JwtSvid::parse_and_validate(&token, &bundles, &[US]).unwrap_err());
        assert!(refused.contains("cannot decode token"), "{alg}: {refused}");
    }
}

#[test]
fn a_token_is_for_this_cluster_now() {
    let issuer = Issuer::new("k");
    let known = bundle(&[&issuer]);
    let (at, good) = (now(), claims(ID, US, now()));
    for (what, name, value) in [
        ("another cluster", "aud", json!(["mezite://there"])),
        ("a list without us", "aud", json!(["mezite://there", "https://here", "here", "mezite://here/"])),
        ("a front of ours", "aud", json!("mezite://here.example")),
        ("nobody", "aud", json!([])),
        ("no text", "aud", json!(7)),
        ("ended", "exp", json!(at - 1)),
        ("ended long ago", "exp", json!(0)),
        ("before time", "exp", json!(-1)),
        ("no end", "exp", json!(null)),
        ("an end that is no number", "exp", json!("tomorrow")),
        ("not yet", "nbf", json!(at + 3600)),
        ("a beginning that is no number", "nbf", json!("now")),
        ("a time of issue that is no number", "iat", json!("now")),
        ("no workload", "sub", json!("")),
        ("a user", "sub", json!("ann")),
        ("an id of the web", "sub", json!("https://red.example/ns/ci")),
    ] {
        let token = issuer.token(&with(good.clone(), name, value));
        assert!(judge(&token, &[("red.example", &known)]).is_err(), "{what}");
    }
    for missing in ["aud", "exp", "sub"] {
        let mut claims = good.clone();
        claims.as_object_mut().unwrap().remove(missing);
        assert!(judge(&issuer.token(&claims), &[("red.example", &known)]).is_err(), "{missing}");
    }
    assert_eq!(audience("here"), US);
    assert!(matches!(TrustDomain::parse("f", "Red.example"), Err(CoreError::Invalid { .. })));
}

/// What is signed tells one token from another: a signature that was turned into another one makes no new token of it.
#[test]
fn a_token_is_known_again_with_another_signature() {
    let issuer = Issuer::new("k");
    let known = bundle(&[&issuer]);
    let red = [("red.example", &known)];
    let token = issuer.token(&claims(ID, US, now()));
    let turned = with_other_signature(&token);
    assert_ne!(token, turned);
    let (first, second) = (judge(&token, &red).unwrap(), judge(&turned, &red).unwrap());
    assert_eq!(first.bearer, second.bearer);
    // Another one of the same workload is another one.
    let other = issuer.token(&with(claims(ID, US, now()), "jti", json!("2")));
    assert_ne!(judge(&other, &red).unwrap().bearer, first.bearer);
}
