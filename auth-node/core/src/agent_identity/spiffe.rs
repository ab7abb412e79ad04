//! SPIFFE IDs (SPIFFE-ID, section 2): `spiffe://<trust domain>/<path>`. Only the one form of each is read.

use crate::CoreError;

/// Longest id, in bytes.
const MAX_ID: usize = 2048;
/// Longest trust domain, in bytes.
const MAX_TRUST_DOMAIN: usize = 255;

/// Checks that a text is the SPIFFE ID of a workload: one with a path.
///
/// # Errors
/// [`CoreError::Invalid`] for `field`.
pub(super) fn check(field: &str, text: &str) -> Result<(), CoreError> {
    let parts = text.strip_prefix("spiffe://").and_then(|rest| rest.split_once('/'));
    let good = text.len() <= MAX_ID
        && parts.is_some_and(|(domain, path)| is_trust_domain(domain) && path.split('/').all(is_segment));
    if good {
        return Ok(());
    }
    let reason = "a SPIFFE ID is spiffe://<trust domain>/<path>, at most 2048 bytes: the trust domain of [a-z0-9._-], \
                  each part of the path of [a-zA-Z0-9._-], and none is empty, . or ..";
    Err(CoreError::invalid(field, reason))
}

fn is_trust_domain(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte);
    (1..=MAX_TRUST_DOMAIN).contains(&text.len()) && text.bytes().all(allowed)
}

fn is_segment(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    !text.is_empty() && text != "." && text != ".." && text.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::assert_invalid;

    #[test]
    fn only_ids_of_workloads_in_their_one_form_are_read() {
        for good in
            ["spiffe://example.org/ci", "spiffe://a_b-c.d/ns/Default/sa/x_1.y", "spiffe://1.2.3.4/..a"]
        {
            assert_eq!(check("f", good), Ok(()), "{good}");
        }
        let long = format!("spiffe://{}/x", "a".repeat(256));
        let longer = format!("spiffe://a/{}", "x".repeat(2048));
        for bad in [
            "",
            "spiffe://",
            "spiffe://example.org",
            "spiffe://example.org/",
            "spiffe:///ci",
            "SPIFFE://example.org/ci",
            "spiffe://Example.org/ci",
            "spiffe://example.org:8080/ci",
            "spiffe://u@example.org/ci",
            "spiffe://example.org/ci/",
            "spiffe://example.org//ci",
            "spiffe://example.org/./ci",
            "spiffe://example.org/../ci",
            "spiffe://example.org/c%69",
            "spiffe://example.org/ci?x",
            "spiffe://example.org/ci#x",
            "spiffe://example.org/ci ",
            "https://example.org/ci",
            &long,
            &longer,
        ] {
            assert_invalid(check("f", bad), "f");
        }
    }
}
