//! The line of `known_hosts` with which a client trusts a host authority.

use super::SshPublicKey;
use crate::{PkiError, text};

/// Most patterns in one line.
const MAX_PATTERNS: usize = 64;

/// Longest pattern, in bytes.
const MAX_PATTERN: usize = 255;

/// `@cert-authority <patterns> <key>`, without a line end: trust the authority for hosts that match a pattern.
///
/// Patterns are those of sshd(8): host names with `*` and `?`, `!` before one that must not match, `[host]:port`.
/// The key's comment is dropped.
///
/// # Errors
/// [`PkiError::Incomplete`] without a pattern, [`PkiError::TooMany`] above 64, [`PkiError::InvalidName`] for one of no
/// or more than 255 bytes or with other characters, and those of [`SshPublicKey::parse`].
pub fn known_hosts_line(cluster_patterns: &[String], ca_public_line: &str) -> Result<String, PkiError> {
    if cluster_patterns.is_empty() {
        return Err(PkiError::Incomplete("at least one host pattern"));
    }
    if cluster_patterns.len() > MAX_PATTERNS {
        return Err(PkiError::TooMany { what: "host patterns", limit: MAX_PATTERNS });
    }
    if let Some(bad) = cluster_patterns.iter().find(|pattern| !is_pattern(pattern)) {
        return Err(text::refused("this host pattern", bad));
    }
    let key = SshPublicKey::parse(ca_public_line)?;
    Ok(format!("@cert-authority {} {}", cluster_patterns.join(","), key.line()))
}

fn is_pattern(pattern: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-_*?:[]".contains(&byte);
    let positive = pattern.strip_prefix('!').unwrap_or(pattern);
    pattern.len() <= MAX_PATTERN && !positive.is_empty() && positive.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ssh::SshCa;

    fn line(patterns: &[&str], key: &str) -> Result<String, PkiError> {
        known_hosts_line(&patterns.iter().map(|&pattern| pattern.to_owned()).collect::<Vec<_>>(), key)
    }

    #[test]
    fn the_line_has_patterns_and_key_but_no_comment() {
        let key = SshCa::generate().unwrap().public_line();
        let commented = format!("{key} the host authority\n");
        let expected = format!("@cert-authority *.example.com,!bad.example.com,[h]:2222 {key}");
        assert_eq!(line(&["*.example.com", "!bad.example.com", "[h]:2222"], &commented), Ok(expected));
    }

    #[test]
    fn patterns_cannot_smuggle_a_line_a_key_or_a_marker() {
        let key = SshCa::generate().unwrap().public_line();
        assert!(matches!(line(&[], &key), Err(PkiError::Incomplete(_))));
        assert!(matches!(line(&["*"; 65], &key), Err(PkiError::TooMany { .. })));
        let long = "a".repeat(256);
        for bad in
            ["", "!", "!!a", "a b", "a,b", "a\n@cert-authority", "#a", "|1|x|y", "ä", "@revoked", &long]
        {
            assert!(matches!(line(&[bad], &key), Err(PkiError::InvalidName { .. })), "{bad:?}");
        }
        assert!(matches!(line(&["*"], "nonsense"), Err(PkiError::Malformed { .. })));
    }
}
