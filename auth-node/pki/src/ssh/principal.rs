//! Principals: the names that an SSH certificate is good for. Which of them a holder may have is decided elsewhere.

use std::net::IpAddr;

use crate::{PkiError, text};

/// Most principals that OpenSSH reads in one certificate (`SSHKEY_CERT_MAX_PRINCIPALS`).
const MAX_PRINCIPALS: usize = 256;

/// Longest principal, in bytes. A DNS name has at most 253.
const MAX_PRINCIPAL: usize = 255;

/// Characters that OpenSSH's tools give a meaning where principals are listed or matched as patterns.
const SPECIAL: &[u8] = b",*?!\"'\\";

/// Checks the logins of a user certificate.
///
/// # Errors
/// [`PkiError::NoPrincipals`], [`PkiError::TooManyPrincipals`] and [`PkiError::InvalidName`].
pub(super) fn check_logins(principals: &[String]) -> Result<(), PkiError> {
    let allowed = |byte: u8| byte.is_ascii_graphic() && !SPECIAL.contains(&byte);
    check(principals, "this login", |login| login.bytes().all(allowed))
}

/// Checks the host names, in lower case, and IP addresses of a host certificate. A wildcard is no host name.
///
/// # Errors
/// As [`check_logins`].
pub(super) fn check_hosts(principals: &[String]) -> Result<(), PkiError> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_".contains(&byte);
    check(principals, "this host name", |host| host.bytes().all(allowed) || host.parse::<IpAddr>().is_ok())
}

fn check(principals: &[String], what: &'static str, good: impl Fn(&str) -> bool) -> Result<(), PkiError> {
    // OpenSSH takes an empty list for "any name".
    if principals.is_empty() {
        return Err(PkiError::NoPrincipals);
    }
    if principals.len() > MAX_PRINCIPALS {
        return Err(PkiError::TooManyPrincipals { limit: MAX_PRINCIPALS });
    }
    let refused = principals.iter().find(|name| !(1..=MAX_PRINCIPAL).contains(&name.len()) || !good(name));
    refused.map_or(Ok(()), |name| Err(text::refused(what, name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn a_certificate_for_everyone_cannot_be_asked_for() {
        assert_eq!(check_logins(&[]), Err(PkiError::NoPrincipals));
        assert_eq!(check_hosts(&[]), Err(PkiError::NoPrincipals));
        assert!(check_logins(&names(&["ann", ""])).is_err());
        assert!(check_hosts(&names(&["a.example", ""])).is_err());
        assert!(check_hosts(&names(&["*"])).is_err());
    }

    #[test]
    fn the_count_is_bounded_as_in_openssh() {
        let many = |count| (0..count).map(|n| format!("u{n}")).collect::<Vec<_>>();
        assert_eq!(check_logins(&many(256)), Ok(()));
        assert_eq!(check_logins(&many(257)), Err(PkiError::TooManyPrincipals { limit: 256 }));
    }

    #[test]
    fn logins_hold_nothing_that_a_list_or_pattern_would() {
        let good = [
            "root",
            "ann@6f9619ff-8b86-4011-b42d-00c04fc964ff",
            "svc_$x",
            "a.b-c+d",
            "x".repeat(255).as_str(),
        ]
        .map(str::to_owned);
        assert_eq!(check_logins(&good), Ok(()));
        let long = "x".repeat(256);
        for bad in ["a,root", "a b", "a\n", "\0", "*", "r?ot", "!root", "ännn", "a\"", "a\\b", &long] {
            assert!(
                matches!(check_logins(&names(&["ok", bad])), Err(PkiError::InvalidName { .. })),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn hosts_are_names_in_lower_case_or_addresses() {
        assert_eq!(
            check_hosts(&names(&["web-1.example.com", "my_host", "192.0.2.7", "2001:db8::7"])),
            Ok(())
        );
        for bad in
            ["*.example.com", "web-?", "Web", "a b", "a,b", "[2001:db8::7]", "2001:db8::/32", "a:22", "h\n"]
        {
            assert!(matches!(check_hosts(&names(&[bad])), Err(PkiError::InvalidName { .. })), "{bad:?}");
        }
    }
}
