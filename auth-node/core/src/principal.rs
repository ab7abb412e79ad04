//! Names and addresses of hosts: the principals that host certificates are issued for, the patterns with which a token
//! allows them, and where a service is reached. Who holds a name is not decided here.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
};

use crate::CoreError;

/// Longest DNS name, in bytes.
const MAX_DNS_NAME: usize = 253;
/// Longest label of a DNS name, in bytes.
const MAX_DNS_LABEL: usize = 63;
/// The domain whose names auth nodes and ingests are recognised by.
const INTERNAL: &str = "mezite.internal";
/// Names that hosts files give to the host itself, apart from those under `localhost`.
const LOOPBACK_NAMES: [&str; 9] = [
    "localhost",
    "loopback",
    "localhost4",
    "localhost6",
    "ip6-localhost",
    "ip6-loopback",
    "localhost.localdomain",
    "localhost4.localdomain4",
    "localhost6.localdomain6",
];

/// A name that a host certificate is good for, in its one canonical form.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Principal {
    /// A DNS name, in lower case.
    Dns(String),
    /// An IP address; never the IPv6 form of an IPv4 address.
    Ip(IpAddr),
}

impl Principal {
    /// Reads a DNS name or an IP address. A wildcard is neither.
    ///
    /// # Errors
    /// [`CoreError::Invalid`] for `field`.
    pub fn parse(field: &str, text: &str) -> Result<Self, CoreError> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Ip(address.to_canonical()));
        }
        dns_name(text).map(Self::Dns).ok_or_else(|| {
            let reason =
                "a DNS name of letters, digits, - and _, without a wildcard or a final dot, or an IP address";
            CoreError::invalid(field, reason)
        })
    }

    /// Reads a DNS name; an IP address is none.
    ///
    /// # Errors
    /// [`CoreError::Invalid`] for `field`.
    pub fn parse_dns(field: &str, text: &str) -> Result<Self, CoreError> {
        match Self::parse(field, text)? {
            Self::Ip(_) => {
                Err(CoreError::invalid(field, "a DNS name; addresses belong to the additional principals"))
            }
            name => Ok(name),
        }
    }

    /// Whether it means, on every host, that host itself.
    pub fn is_loopback(&self) -> bool {
        match self {
            Self::Dns(name) => LOOPBACK_NAMES.contains(&name.as_str()) || is_under(name, "localhost"),
            // Connecting to the unspecified address is connecting to oneself.
            Self::Ip(address) => address.is_loopback() || address.is_unspecified(),
        }
    }

    /// Whether it is one of the names that auth nodes and ingests are recognised by.
    pub fn is_internal(&self) -> bool {
        matches!(self, Self::Dns(name) if name == INTERNAL || is_under(name, INTERNAL))
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) => f.write_str(name),
            Self::Ip(address) => address.fmt(f),
        }
    }
}

/// Whether `name` is a subdomain of `domain`, at any depth.
fn is_under(name: &str, domain: &str) -> bool {
    name.strip_suffix(domain).is_some_and(|front| front.len() > 1 && front.ends_with('.'))
}

/// The canonical form of a DNS name. One that a resolver could read as an IPv4 address, such as `127.1` or `0x7f.1`, is
/// none.
fn dns_name(text: &str) -> Option<String> {
    let name = text.to_ascii_lowercase();
    let label = |label: &str| {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte);
        (1..=MAX_DNS_LABEL).contains(&label.len())
            && label.bytes().all(allowed)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last = name.rsplit('.').next().unwrap_or_default();
    let number = last.bytes().all(|byte| byte.is_ascii_digit())
        || last.strip_prefix("0x").is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
    (name.len() <= MAX_DNS_NAME && name.split('.').all(label) && !number).then_some(name)
}

/// What a token allows host certificates to be for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PrincipalPattern {
    /// This name.
    Exactly(Principal),
    /// Any subdomain of this DNS name, at any depth.
    Under(String),
}

impl PrincipalPattern {
    /// Reads a principal, or `*.` and a DNS name.
    ///
    /// # Errors
    /// [`CoreError::Invalid`] for `field`.
    pub fn parse(field: &str, text: &str) -> Result<Self, CoreError> {
        let Some(domain) = text.strip_prefix("*.") else {
            return Principal::parse(field, text).map(Self::Exactly);
        };
        let refused =
            || CoreError::invalid(field, "after `*.` there must be a DNS name, without another wildcard");
        dns_name(domain).map(Self::Under).ok_or_else(refused)
    }

    /// Whether it allows a name.
    pub fn allows(&self, principal: &Principal) -> bool {
        match (self, principal) {
            (Self::Exactly(name), other) => name == other,
            (Self::Under(domain), Principal::Dns(name)) => is_under(name, domain),
            (Self::Under(_), Principal::Ip(_)) => false,
        }
    }

    /// Whether it names exactly this one.
    pub fn names(&self, principal: &Principal) -> bool {
        matches!(self, Self::Exactly(name) if name == principal)
    }
}

impl fmt::Display for PrincipalPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exactly(name) => name.fmt(f),
            Self::Under(domain) => write!(f, "*.{domain}"),
        }
    }
}

/// Checks where a service is reached: `host:port`, with a DNS name, an IPv4 address, or an IPv6 address in brackets.
///
/// # Errors
/// [`CoreError::Invalid`] for `field`.
pub fn check_address(field: &str, address: &str) -> Result<(), CoreError> {
    let good = address.rsplit_once(':').is_some_and(|(host, port)| {
        let port_is_good = port.parse::<u16>().is_ok_and(|number| number != 0 && number.to_string() == port);
        let host_is_good = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            Some(inner) => inner.parse::<Ipv6Addr>().is_ok(),
            None => host.parse::<std::net::Ipv4Addr>().is_ok() || dns_name(host).is_some(),
        };
        port_is_good && host_is_good
    });
    if good {
        Ok(())
    } else {
        Err(CoreError::invalid(field, "host:port; an IPv6 address stands in brackets"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn principal(text: &str) -> Principal {
        Principal::parse("p", text).unwrap()
    }

    #[test]
    fn names_have_one_canonical_form() {
        for (text, canonical) in [
            ("Web-1.Example.COM", "web-1.example.com"),
            ("my_host", "my_host"),
            ("192.0.2.7", "192.0.2.7"),
            ("::ffff:192.0.2.7", "192.0.2.7"),
            ("2001:DB8:0:0::7", "2001:db8::7"),
        ] {
            assert_eq!(principal(text).to_string(), canonical);
        }
        let long = format!("{}.x", ["a".repeat(62).as_str(); 4].join("."));
        assert_eq!(long.len(), 253);
        assert!(Principal::parse("p", &long).is_ok());
    }

    #[test]
    fn no_wildcard_and_nothing_that_is_read_otherwise_is_a_principal() {
        let (long, label) = (format!("{}.xy", ["a".repeat(62).as_str(); 4].join(".")), "a".repeat(64));
        let bad = [
            "",
            ".",
            "a.",
            ".a",
            "a..b",
            "*",
            "*.example.com",
            "a*",
            "?",
            "!a",
            "a b",
            "a,b",
            "a\n",
            "a\0",
            "ä.example",
            "a/b",
            "a:22",
            "[::1]",
            "-a",
            "a-",
            "a.-b",
            "127.1",
            "1",
            "0x7f.1",
            "0x7f000001",
            "a.0x1f",
            "::1/128",
            "fe80::1%eth0",
            "010.0.0.1",
            &long,
            &label,
        ];
        for text in bad {
            assert!(Principal::parse("p", text).is_err(), "{text:?}");
        }
        assert!(Principal::parse_dns("p", "192.0.2.7").is_err() && Principal::parse_dns("p", "::1").is_err());
    }

    #[test]
    fn loopback_and_internal_names_are_known() {
        for text in [
            "localhost",
            "LOCALHOST",
            "a.localhost",
            "localhost.localdomain",
            "ip6-loopback",
            "127.0.0.1",
            "127.9.9.9",
            "::1",
            "0.0.0.0",
            "::",
            "::ffff:127.0.0.1",
        ] {
            assert!(principal(text).is_loopback(), "{text}");
        }
        for text in ["notlocalhost", "localhost.example", "128.0.0.1", "::2"] {
            assert!(!principal(text).is_loopback(), "{text}");
        }
        for text in ["prod.mezite.internal", "ingest.prod.mezite.INTERNAL", "mezite.internal"] {
            assert!(principal(text).is_internal(), "{text}");
        }
        for text in ["notmezite.internal", "mezite.internal.example"] {
            assert!(!principal(text).is_internal(), "{text}");
        }
    }

    #[test]
    fn patterns_allow_a_name_or_what_is_under_one() {
        let allows = |pattern, name| PrincipalPattern::parse("p", pattern).unwrap().allows(&principal(name));
        assert!(allows("Web1", "web1") && allows("*.example.com", "a.example.com") && allows("::1", "0::1"));
        assert!(allows("*.example.com", "a.b.Example.com"));
        for (pattern, name) in [
            ("web1", "web2"),
            ("*.example.com", "example.com"),
            ("*.example.com", "aexample.com"),
            ("*.example.com", "a.example.com.evil"),
            ("192.0.2.7", "192.0.2.8"),
        ] {
            assert!(!allows(pattern, name), "{pattern} {name}");
        }
        assert_eq!(PrincipalPattern::parse("p", "*.Example.com").unwrap().to_string(), "*.example.com");
        for bad in ["*", "*.", "*.*", "*.*.com", "a.*", "*a.com", "**.com", "*.127.1", ""] {
            assert!(PrincipalPattern::parse("p", bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn only_an_exact_pattern_names_a_principal() {
        let under = PrincipalPattern::parse("p", "*.localhost").unwrap();
        assert!(under.allows(&principal("a.localhost")) && !under.names(&principal("a.localhost")));
    }

    #[test]
    fn addresses_are_a_host_and_a_port() {
        for good in ["web1:22", "127.0.0.1:3027", "[::1]:65535", "a.example.com:1"] {
            assert!(check_address("address", good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "web1",
            ":22",
            "web1:",
            "web1:0",
            "web1:65536",
            "web1:022",
            "::1:22",
            "[::1]",
            "[::1]x:22",
            "a b:22",
            "http://a:22",
            "a:22/",
            "*:22",
            "[127.0.0.1]:22",
            "a:+1",
        ] {
            assert!(check_address("address", bad).is_err(), "{bad}");
        }
    }
}
