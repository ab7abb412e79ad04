//! What hosts and AWS send when a host joins by what it is to AWS.

use auth_node::untrusted;
use mezite_proto::v1::register_using_iam_method_request::Proof;
use prost::Message as _;

/// The time that the corpus is of: 2026-11-29T00:00:00Z, in milliseconds.
const NOW: u64 = 1_795_910_400_000;

/// Bytes are a proof that a request can be built of. It goes to AWS, with the headers that were agreed on, and says what was
/// sent in the form that AWS reads, alone.
pub(crate) fn iam_proof(bytes: &[u8]) -> bool {
    let Ok(proof) = Proof::decode(bytes) else { return false };
    let Some((url, headers)) = untrusted::iam_request(proof.clone(), "challenge", NOW) else { return false };
    let host = url.strip_prefix("https://sts.").and_then(|rest| rest.strip_suffix('/')).unwrap_or_default();
    let domain = host.strip_prefix(&format!("{}.", proof.region)).unwrap_or_default();
    assert!(matches!(domain, "amazonaws.com" | "amazonaws.com.cn"), "{url}");
    let value = |name: &str| headers.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str());
    assert_eq!(value("authorization"), Some(proof.authorization.as_str()));
    assert_eq!(value("x-mezite-challenge"), Some("challenge"));
    assert_eq!(value("x-amz-date"), Some(proof.amz_date.as_str()));
    assert_eq!(headers.len(), if proof.security_token.is_empty() { 5 } else { 6 });
    for (name, value) in &headers {
        assert!(value.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()), "{name}: {value:?}");
    }
    true
}

/// Bytes are what AWS says to a signature that it knows: an account and an ARN, which are of one another.
pub(crate) fn iam_answer(bytes: &[u8]) -> bool {
    for status in [403, 429, 500] {
        assert_eq!(untrusted::iam_answer(status, bytes), None, "nobody is known by an error");
    }
    let Some((partition, arn)) = untrusted::iam_answer(200, bytes) else { return false };
    assert!(arn.starts_with(&format!("arn:{partition}:")) && arn.len() <= 2048, "{arn}");
    true
}
