//! Names in TLS certificates: what may stand as common name and as DNS name.

use rustls_pki_types::DnsName;

use crate::{PkiError, text};

/// Longest common name (RFC 5280, `ub-common-name`), in characters; here bytes.
const MAX_COMMON_NAME: usize = 64;

/// Checks a common name.
///
/// # Errors
/// [`PkiError::InvalidName`].
pub(super) fn check_common_name(name: &str) -> Result<(), PkiError> {
    text::check("this common name", name, MAX_COMMON_NAME)
}

/// Checks a DNS name: in lower case, without a wildcard or a final dot, and not one that a client would read as an IP
/// address.
///
/// # Errors
/// [`PkiError::InvalidName`].
pub(super) fn check_dns_name(name: &str) -> Result<(), PkiError> {
    let last_label = name.rsplit('.').next().unwrap_or_default();
    let good = DnsName::try_from(name).is_ok()
        && !last_label.is_empty()
        && !last_label.bytes().all(|byte| byte.is_ascii_digit())
        && !name.bytes().any(|byte| byte.is_ascii_uppercase());
    if good { Ok(()) } else { Err(text::refused("this DNS name", name)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dns_names_are_plain() {
        let long = format!("{}.example", ["a".repeat(60).as_str(); 4].join("."));
        assert_eq!(long.len(), 251);
        for good in [
            "a",
            "web-1.example.com",
            "prod.mezite.internal",
            "my_host",
            "1.example",
            "xn--4ca.example",
            &long,
        ] {
            assert_eq!(check_dns_name(good), Ok(()), "{good}");
        }
        let (too_long, label) = (format!("{long}.xy"), format!("{}.example", "a".repeat(64)));
        let bad = [
            "",
            ".",
            "a.",
            ".a",
            "a..b",
            "*",
            "*.example.com",
            "Web",
            "a b",
            "a,b",
            "192.0.2.1",
            "2001:db8::1",
            "a.1",
            "ä.example",
            "a\n",
            "a/b",
            "a:1",
            "-a.example",
            "a-.example",
            &too_long,
            &label,
        ];
        for name in bad {
            assert!(matches!(check_dns_name(name), Err(PkiError::InvalidName { .. })), "{name:?}");
        }
    }

    #[test]
    fn common_names_are_bounded() {
        assert_eq!(check_common_name("mezite prod TLS CA"), Ok(()));
        for bad in ["", "a\0", "a\nb", &"x".repeat(65)] {
            assert!(check_common_name(bad).is_err(), "{bad:?}");
        }
    }
}
