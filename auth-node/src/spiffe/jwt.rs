//! JWT-SVIDs: tokens of workloads of other trust domains. Whoever has one may use it; so each is good for one audience, not for
//! long, and once.

use std::time::Duration;

use auth_core::{
    secret::{SecretDigest, SecretKind},
    spiffe::{Attested, TrustDomain},
    tables::SpiffeBundleRow,
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::json;
use spiffe::{JwtBundle, JwtBundleSet, JwtSvid};
use store_txn::UnixMillis;

use crate::error::described;

/// Longest token that is looked at, in bytes.
pub(crate) const MAX_TOKEN: usize = 16 << 10;
/// Coordinates of the base point of P-256 and P-384 (SEC 2), base64.
const P256: [&str; 2] =
    ["axfR8uEsQkf4vOblY6RA8ncDfYEt6zOg9KE5RdiYwpY", "T-NC4v4af5uO5-tKfA-eFivOM1drMV7Oy7ZAaDe_UfU"];
const P384: [&str; 2] = [
    "qofKIr6LBTeOscce8yCtdG4dO2KLp5uYWfdB4IJUKjhVAvJdv1UpbDpUXjhydgq3",
    "NhfeSpYmLG9dnpi_kpLcKfj0Hb0omhR86doxE7XwuMAKYLHOHX6BnXpDHXyQ6g5f",
];

/// The audience of tokens for the cluster of this name.
pub(crate) fn audience(cluster: &str) -> String {
    format!("mezite://{cluster}")
}

/// The trust domain that a token says it is of. Nothing is verified.
///
/// # Errors
/// Why it says none.
pub(crate) fn trust_domain(token: &str) -> Result<TrustDomain, String> {
    let svid = JwtSvid::parse_insecure(token).map_err(|error| described(&error))?;
    let name = svid.spiffe_id().trust_domain().as_str();
    TrustDomain::parse("sub", name).map_err(|error| error.to_string())
}

/// What is read of a token's header here; the rest is the verifier's.
#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: String,
}

/// What is read of its claims here.
#[derive(Deserialize)]
struct Claims {
    iat: Option<f64>,
}

/// Verifies a token by the bundle of its trust domain, and of no other: signature, algorithm, audience, `exp` and `nbf` by this
/// node's clock.
///
/// # Errors
/// Why it is no good, for the audit log.
pub(crate) fn verify(
    token: &str,
    domain: &TrustDomain,
    bundle: &SpiffeBundleRow,
    audience: &str,
) -> Result<Attested, String> {
    let header: Header = part(token, 0)?;
    let authority = bundle.jwt_authorities.iter().find(|authority| authority.key_id == header.kid);
    let jwk = match authority {
        Some(authority) => authority.jwk.clone(),
        None => decoy(&header),
    };
    let name = spiffe::TrustDomain::new(domain.as_str()).map_err(|error| error.to_string())?;
    let mut known = JwtBundle::new(name);
    known.add_jwk_authority_json(jwk.as_bytes()).map_err(|error| described(&error))?;
    let mut bundles = JwtBundleSet::new();
    bundles.add_bundle(known);
    let verified = JwtSvid::parse_and_validate(token, &bundles, &[audience]);
    if authority.is_none() {
        return Err(format!("no JWT authority of the trust domain has the key id {}", header.kid));
    }
    let svid = verified.map_err(|error| described(&error))?;
    let Claims { iat } = part(token, 1)?;
    let (signed, _) = token.rsplit_once('.').ok_or("it has no signature")?;
    let ends = u64::try_from(svid.claims().exp()).map_err(|_| "it has ended")?;
    Ok(Attested {
        spiffe_id: svid.claims().sub().to_owned(),
        issued_at_ms: iat.map(milliseconds),
        ends_at_ms: ends.saturating_mul(1000),
        // Of what is signed: one signature can be turned into another that is as good.
        bearer: Some(SecretDigest::of(SecretKind::JwtSvid, signed)),
    })
}

/// A time in seconds, which may have a fraction; what is before 1970 counts as that.
fn milliseconds(seconds: f64) -> UnixMillis {
    let since = Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX);
    UnixMillis::try_from(since.as_millis()).unwrap_or(UnixMillis::MAX)
}

/// A part of a token, read.
fn part<T: DeserializeOwned>(token: &str, index: usize) -> Result<T, String> {
    let encoded = token.split('.').nth(index).unwrap_or_default();
    let json = URL_SAFE_NO_PAD.decode(encoded).map_err(|_| "it is not in base64".to_owned())?;
    serde_json::from_slice(&json).map_err(|error| format!("it has parts that cannot be read: {error}"))
}

/// A key that nobody signs with: a token is verified by it where there is no other, so that it takes as long. What comes of it
/// counts for nothing.
fn decoy(header: &Header) -> String {
    let kid = &header.kid;
    let key = match header.alg.as_str() {
        "ES256" => json!({ "kty": "EC", "crv": "P-256", "x": P256[0], "y": P256[1], "kid": kid }),
        "ES384" => json!({ "kty": "EC", "crv": "P-384", "x": P384[0], "y": P384[1], "kid": kid }),
        _ => json!({ "kty": "RSA", "n": URL_SAFE_NO_PAD.encode([0xff; 256]), "e": "AQAB", "kid": kid }),
    };
    key.to_string()
}

#[cfg(test)]
#[path = "jwt_tests.rs"]
mod tests;
