//! Addresses of the service, and the names that servers at them must prove.

use rustls_pki_types::ServerName;

use crate::ClientError;

/// An address to connect to, and whom to expect there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// host:port.
    pub(crate) address: String,
    /// Name that the server's certificate must carry.
    pub(crate) server_name: ServerName<'static>,
    /// Lower tiers are asked first; the next one only while none of them works.
    pub(crate) tier: u8,
}

impl Target {
    /// The address, host:port.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }
}

/// Takes a list such as `a.example:3025,[::1]:3025` apart. Empty entries and repetitions are dropped.
///
/// # Errors
/// [`ClientError::Config`] when an entry is not host:port, or the list is empty.
pub fn parse_addresses<I>(entries: I) -> Result<Vec<String>, ClientError>
where
    I: IntoIterator,
    I::Item: AsRef<str>,
{
    let mut addresses: Vec<String> = Vec::new();
    for entry in entries {
        for address in entry.as_ref().split(',').map(str::trim).filter(|address| !address.is_empty()) {
            check(address)?;
            if !addresses.iter().any(|known| known == address) {
                addresses.push(address.to_owned());
            }
        }
    }
    if addresses.is_empty() {
        return Err(ClientError::Config("no address of the cluster is known".into()));
    }
    Ok(addresses)
}

fn check(address: &str) -> Result<(), ClientError> {
    let wrong = || ClientError::Config(format!("`{address}` is not an address: write host:port"));
    let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let host_ok = match bare {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => ServerName::try_from(host).is_ok() && !host.contains(':'),
    };
    match port.parse::<u16>() {
        Ok(port) if port > 0 && host_ok => Ok(()),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_taken_apart() {
        let addresses =
            parse_addresses(["a.example:3025, 127.0.0.1:1,", "[::1]:3025", "a.example:3025"]).unwrap();
        assert_eq!(addresses, ["a.example:3025", "127.0.0.1:1", "[::1]:3025"]);
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for wrong in [
            "",
            "host",
            "host:",
            "host:0",
            "host:65536",
            ":3025",
            "::1:3025",
            "a b:1",
            "https://a:1",
            "[x]:1",
        ] {
            assert!(matches!(parse_addresses([wrong]), Err(ClientError::Config(_))), "{wrong}");
        }
    }
}
