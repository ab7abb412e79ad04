//! Bundles in their JSON form (SPIFFE Trust Domain and Bundle, section 4): read from others, and written for the cluster's own
//! trust domain.

use std::collections::BTreeMap;

use auth_core::tables::{JwtAuthorityRow, SpiffeBundleRow};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use mezite_pki::{
    PkiError,
    x509::{AuthorityKey, check_svid_authority},
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// Longest document that is read, in bytes.
pub(crate) const MAX_DOCUMENT: usize = 128 << 10;
/// Most authorities of either sort.
const MAX_AUTHORITIES: usize = 32;
/// Longest key that is kept, in bytes.
const MAX_KEY: usize = 8 << 10;
/// Longest id of a key, in bytes.
const MAX_KEY_ID: usize = 256;
/// What may be in a key that verifies (RFC 7517, 7518). All else, above all what only the signer may know, is not kept.
const PUBLIC: [&str; 10] = ["kty", "kid", "use", "alg", "key_ops", "crv", "x", "y", "n", "e"];
/// What only the signer may know: whoever publishes it has no key.
const PRIVATE: [&str; 2] = ["d", "k"];
/// From one question for the cluster's own bundle to the next, in seconds: a step of a rotation waits for as long.
const REFRESH_HINT_S: u64 = 300;

#[derive(Deserialize)]
struct Document {
    keys: Vec<Map<String, Value>>,
    spiffe_sequence: Option<u64>,
    spiffe_refresh_hint: Option<u64>,
}

/// Reads a bundle. Keys of a use that is not known are passed over, as the standard says.
///
/// # Errors
/// What is wrong with it, for people.
pub(crate) fn read(document: &[u8]) -> Result<SpiffeBundleRow, String> {
    if document.len() > MAX_DOCUMENT {
        return Err(format!("a bundle has at most {MAX_DOCUMENT} bytes"));
    }
    let read: Document = serde_json::from_slice(document)
        .map_err(|error| format!("this is no SPIFFE bundle, a JWK set in JSON: {error}"))?;
    let (mut x509_authorities, mut jwt_authorities) = (Vec::new(), BTreeMap::new());
    for (index, key) in read.keys.iter().enumerate() {
        let at = |reason: String| format!("keys[{index}]: {reason}");
        match text(key, "use") {
            Some("x509-svid") => x509_authorities.push(certificate(key).map_err(at)?),
            Some("jwt-svid") => {
                let authority = jwt_authority(key).map_err(at)?;
                if let Some(other) = jwt_authorities.insert(authority.key_id.clone(), authority) {
                    return Err(at(format!("there is another key with the id {}", other.key_id)));
                }
            }
            _ => {}
        }
    }
    if x509_authorities.len().max(jwt_authorities.len()) > MAX_AUTHORITIES {
        return Err(format!("a bundle has at most {MAX_AUTHORITIES} keys of each use"));
    }
    Ok(SpiffeBundleRow {
        x509_authorities,
        jwt_authorities: jwt_authorities.into_values().collect(),
        sequence: read.spiffe_sequence,
        refresh_hint_s: read.spiffe_refresh_hint.unwrap_or_default(),
    })
}

fn text<'a>(key: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    key.get(name).and_then(Value::as_str)
}

/// The certificate of an X.509 authority.
fn certificate(key: &Map<String, Value>) -> Result<Vec<u8>, String> {
    let chain = key.get("x5c").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let [Value::String(encoded)] = chain else {
        return Err("x5c has the certificate of the authority, and no other".into());
    };
    let der = STANDARD.decode(encoded).map_err(|_| "x5c is not in base64".to_owned())?;
    if der.len() > MAX_KEY {
        return Err(format!("a certificate has at most {MAX_KEY} bytes"));
    }
    check_svid_authority(&der).map_err(|error| error.to_string())?;
    Ok(der)
}

fn jwt_authority(key: &Map<String, Value>) -> Result<JwtAuthorityRow, String> {
    let key_id = text(key, "kid").unwrap_or_default();
    if !(1..=MAX_KEY_ID).contains(&key_id.len()) {
        return Err(format!("kid, 1 to {MAX_KEY_ID} bytes, is needed"));
    }
    let kind = text(key, "kty").unwrap_or_default();
    if !matches!(kind, "EC" | "RSA") {
        return Err("kty is EC or RSA: no other key signs JWT-SVIDs".into());
    }
    if PRIVATE.iter().any(|name| key.contains_key(*name)) {
        return Err("there is a private key in it".into());
    }
    let public = key.iter().filter(|(name, _)| PUBLIC.contains(&name.as_str()));
    let public: Map<_, _> = public.map(|(name, value)| (name.clone(), value.clone())).collect();
    let jwk = Value::Object(public).to_string();
    if jwk.len() > MAX_KEY {
        return Err(format!("a key has at most {MAX_KEY} bytes"));
    }
    Ok(JwtAuthorityRow { key_id: key_id.to_owned(), jwk })
}

/// The bundle of the cluster's own trust domain: its authorities, PEM, of a revision that rises with each change of them.
///
/// # Errors
/// A stored authority cannot be read.
pub(crate) fn write(authorities: &[String], revision: u64) -> Result<Value, PkiError> {
    let key = |pem: &String| {
        let AuthorityKey { der, x, y } = AuthorityKey::from_pem(pem)?;
        Ok(json!({
            "use": "x509-svid",
            "kty": "EC",
            "crv": "P-256",
            "x": URL_SAFE_NO_PAD.encode(x),
            "y": URL_SAFE_NO_PAD.encode(y),
            "x5c": [STANDARD.encode(der)],
        }))
    };
    let keys = authorities.iter().map(key).collect::<Result<Vec<_>, PkiError>>()?;
    Ok(json!({ "keys": keys, "spiffe_sequence": revision, "spiffe_refresh_hint": REFRESH_HINT_S }))
}

#[cfg(test)]
#[path = "bundle_tests.rs"]
mod tests;
