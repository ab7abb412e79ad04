//! What workloads of other trust domains show, and what those domains tell. The crate `spiffe` is not ours, and reads the same.

use std::str;

use auth_core::spiffe::{SpiffeId, TrustDomain};
use auth_node::untrusted;
use serde_json::Value;

/// A text is the SPIFFE ID of a workload. Whatever is one here is one for others, and has the same trust domain.
pub(crate) fn spiffe_id(bytes: &[u8]) -> bool {
    let Ok(text) = str::from_utf8(bytes) else { return false };
    if let Ok(domain) = TrustDomain::parse("f", text) {
        assert_eq!(
            spiffe::TrustDomain::new(text).map(|theirs| theirs.to_string()).as_deref(),
            Ok(domain.as_str())
        );
    }
    let theirs = spiffe::SpiffeId::new(text);
    let Ok(id) = SpiffeId::parse("f", text) else {
        // The other way round, but for length: those without a path name no workload.
        assert!(
            !theirs.is_ok_and(|id| !id.path().is_empty() && text.len() <= 2048 && id.to_string() == text)
        );
        return false;
    };
    let Ok(theirs) = theirs else { panic!("{text} is no SPIFFE ID for others") };
    assert_eq!(id.trust_domain().as_str(), theirs.trust_domain().as_str());
    assert_eq!(id.as_str(), text);
    true
}

/// Bytes are a bundle. No private key of it is kept.
pub(crate) fn spiffe_bundle(bytes: &[u8]) -> bool {
    let Ok(bundle) = untrusted::spiffe_bundle(bytes) else { return false };
    for authority in &bundle.jwt_authorities {
        let Ok(Value::Object(key)) = serde_json::from_str(&authority.jwk) else {
            panic!("{}", authority.jwk)
        };
        assert!(!key.contains_key("d") && !key.contains_key("k"));
        assert_eq!(key.get("kid").and_then(Value::as_str), Some(authority.key_id.as_str()));
    }
    assert!(bundle.jwt_authorities.len().max(bundle.x509_authorities.len()) <= 32);
    true
}

/// The bundle of the trust domain that [`SVID`] is of: its one key, as of whom nobody has the other half any more.
const BUNDLE: &str = include_str!("../svid/bundle.json");
/// A token that it signed.
const SVID: &str = include_str!("../svid/token");

/// Bytes are a JWT-SVID that verifies: then they are the one token that was ever signed, or another signature of it.
pub(crate) fn jwt_svid(bytes: &[u8]) -> bool {
    let Ok(token) = str::from_utf8(bytes) else { return false };
    let verified = untrusted::jwt_svid(token, BUNDLE.as_bytes(), "mezite://fuzz");
    let Ok(attested) = verified else { return false };
    let signed = |token: &str| token.trim_end().rsplit_once('.').map(|(signed, _)| signed.to_owned());
    assert_eq!(signed(token), signed(SVID), "a token that nobody signed");
    assert_eq!(attested.spiffe_id, "spiffe://example.org/ci");
    true
}
