//! What is read of strangers' bytes, each reader by itself: for `tests/fuzz`, and for nothing else.

use auth_core::{spiffe::Attested, tables::SpiffeBundleRow};
use mezite_proto::v1::register_using_iam_method_request::Proof;

use crate::{iam, spiffe, web, webauthn};

/// Whether bytes are the body of a request of the web API, a query of one, or cookies.
pub fn webapi(bytes: &[u8]) -> bool {
    web::is_readable(bytes)
}

/// Whether bytes are what an authenticator answers.
pub fn credential(bytes: &[u8]) -> bool {
    str::from_utf8(bytes).is_ok_and(webauthn::is_readable)
}

/// The request that a proof is of, to AWS, at a time in milliseconds of Unix time: URL and headers. `None`: it is of none.
pub fn iam_request(proof: Proof, challenge: &str, now: u64) -> Option<(String, Vec<(String, String)>)> {
    let request = iam::Proof::parse(proof).ok()?.rebuild(&iam::Endpoints::Aws, challenge, now).ok()?;
    let headers = request.headers.iter().map(|(name, value)| ((*name).to_owned(), value.to_string()));
    Some((request.url, headers.collect()))
}

/// Partition and ARN that AWS tells by an answer. `None`: it tells none.
pub fn iam_answer(status: u16, body: &[u8]) -> Option<(String, String)> {
    match iam::answer::read(status, body, None) {
        iam::answer::Answer::Identity(identity) => {
            Some((identity.partition().to_owned(), identity.arn().to_owned()))
        }
        _ => None,
    }
}

/// Reads a bundle of a SPIFFE trust domain.
///
/// # Errors
/// What is wrong with it.
pub fn spiffe_bundle(document: &[u8]) -> Result<SpiffeBundleRow, String> {
    spiffe::bundle::read(document)
}

/// Verifies a JWT-SVID by the bundle of its trust domain.
///
/// # Errors
/// Why it is no good.
pub fn jwt_svid(token: &str, bundle: &[u8], audience: &str) -> Result<Attested, String> {
    let domain = spiffe::jwt::trust_domain(token)?;
    spiffe::jwt::verify(token, &domain, &spiffe::bundle::read(bundle)?, audience)
}
