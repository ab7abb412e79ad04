//! SPIFFE IDs (SPIFFE-ID, section 2): `spiffe://<trust domain>/<path>`. Only the one form of each is read.

use std::fmt;

use crate::CoreError;

/// Scheme and separator of every id.
pub(super) const SCHEME: &str = "spiffe://";
/// Longest id, in bytes.
const MAX_ID: usize = 2048;
/// Longest trust domain, in bytes.
const MAX_TRUST_DOMAIN: usize = 255;

/// The name of a trust domain: 1 to 255 bytes of `[a-z0-9._-]`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrustDomain(String);

impl TrustDomain {
    /// Reads one.
    ///
    /// # Errors
    /// [`CoreError::Invalid`] for `field`.
    pub fn parse(field: &str, text: &str) -> Result<Self, CoreError> {
        if is_trust_domain(text) {
            return Ok(Self(text.to_owned()));
        }
        let reason = "the name of a trust domain, such as example.org, without spiffe://: 1 to 255 bytes of [a-z0-9._-]";
        Err(CoreError::invalid(field, reason))
    }

    /// Its name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The SPIFFE ID of a workload: one with a path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId(String);

impl SpiffeId {
    /// Reads one.
    ///
    /// # Errors
    /// [`CoreError::Invalid`] for `field`.
    pub fn parse(field: &str, text: &str) -> Result<Self, CoreError> {
        let parts = text.strip_prefix(SCHEME).and_then(|rest| rest.split_once('/'));
        let good = text.len() <= MAX_ID
            && parts.is_some_and(|(domain, path)| is_trust_domain(domain) && path.split('/').all(is_segment));
        if good {
            return Ok(Self(text.to_owned()));
        }
        let reason = "a SPIFFE ID is spiffe://<trust domain>/<path>, at most 2048 bytes: the trust domain of [a-z0-9._-], \
                      each part of the path of [a-zA-Z0-9._-], and none is empty, . or ..";
        Err(CoreError::invalid(field, reason))
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The trust domain that it is of.
    pub fn trust_domain(&self) -> TrustDomain {
        let rest = self.0.strip_prefix(SCHEME).unwrap_or_default();
        TrustDomain(rest.split('/').next().unwrap_or_default().to_owned())
    }
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
            assert_eq!(SpiffeId::parse("f", good).unwrap().as_str(), good);
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
            assert_invalid(SpiffeId::parse("f", bad), "f");
        }
    }
    #[test]
    fn an_id_is_of_one_trust_domain() {
        let id = SpiffeId::parse("f", "spiffe://a_b-c.d/ns/x").unwrap();
        assert_eq!(id.trust_domain(), TrustDomain::parse("f", "a_b-c.d").unwrap());
        for bad in ["", "A.b", "a/b", "spiffe://a", "a:1", "u@a", "a b", "\u{e4}", &"a".repeat(256)] {
            assert_invalid(TrustDomain::parse("f", bad), "f");
        }
    }
}
