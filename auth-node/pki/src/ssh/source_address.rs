//! The `source-address` critical option: from where a user certificate may be used. Its syntax is that of OpenSSH's
//! `addr_match_cidr_list`, which refuses the whole list, and so the certificate, for one entry that it dislikes.

use std::net::IpAddr;

use crate::{PkiError, text};

/// Most entries.
const MAX_ENTRIES: usize = 32;

/// The option's value: the entries in canonical form, joined by commas; `None` when there are none.
///
/// An entry is an IP address or a network such as `10.0.0.0/8`. Host bits must be zero, as OpenSSH demands. IPv6
/// forms of IPv4 addresses are refused: OpenSSH compares such clients as IPv4, so that the entry would match nobody.
///
/// # Errors
/// [`PkiError::InvalidSourceAddress`], [`PkiError::TooMany`] above 32 entries.
pub(super) fn option_value(entries: &[String]) -> Result<Option<String>, PkiError> {
    if entries.len() > MAX_ENTRIES {
        return Err(PkiError::TooMany { what: "source addresses", limit: MAX_ENTRIES });
    }
    let canonical =
        |entry: &String| network(entry).ok_or_else(|| PkiError::InvalidSourceAddress(text::shown(entry)));
    let canonical = entries.iter().map(canonical).collect::<Result<Vec<_>, _>>()?;
    Ok((!canonical.is_empty()).then(|| canonical.join(",")))
}

fn network(entry: &str) -> Option<String> {
    let (address, length) = match entry.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (entry, None),
    };
    let address: IpAddr = address.parse().ok()?;
    let (bits, width) = match address {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()), 32),
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => return None,
        IpAddr::V6(v6) => (v6.to_bits(), 128),
    };
    let Some(length) = length else { return Some(address.to_string()) };
    let prefix: u32 = length.parse().ok().filter(|prefix: &u32| prefix.to_string() == length)?;
    let host_bits = u32::checked_sub(width, prefix)?;
    // Shifting by all 128 bits is not defined; then all bits are host bits.
    let mask = 1_u128.checked_shl(host_bits).map_or(u128::MAX, |bit| bit - 1);
    (bits & mask == 0).then(|| format!("{address}/{prefix}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(entries: &[&str]) -> Result<Option<String>, PkiError> {
        option_value(&entries.iter().map(|&entry| entry.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn addresses_and_networks_are_joined_in_canonical_form() {
        assert_eq!(value(&[]), Ok(None));
        let good =
            ["192.0.2.1", "10.0.0.0/8", "0.0.0.0/0", "192.0.2.1/32", "2001:DB8:0::/32", "::/0", "::1/128"];
        let joined = "192.0.2.1,10.0.0.0/8,0.0.0.0/0,192.0.2.1/32,2001:db8::/32,::/0,::1/128";
        assert_eq!(value(&good), Ok(Some(joined.into())));
    }

    #[test]
    fn what_openssh_would_refuse_is_refused() {
        let bad = [
            "",
            " ",
            "*",
            "any",
            "host.example",
            "10.0.0.1/8",
            "10.0.0.0/33",
            "10.0.0.0/",
            "10.0.0.0/-1",
            "10.0.0.0/08",
            "10.0.0.0/+8",
            "10.0.0.0/8/8",
            "10.0.0.0/255.0.0.0",
            "10.0.0",
            "010.0.0.0/8",
            "10.0.0.0 /8",
            "!10.0.0.0/8",
            "10.0.0.0/8,0.0.0.0/0",
            "2001:db8::1/32",
            "::/129",
            "fe80::1%eth0",
            "[::1]",
            "::ffff:192.0.2.1",
            "::ffff:0.0.0.0/96",
            "10.0.0.0/8\n",
        ];
        for entry in bad {
            assert_eq!(value(&["192.0.2.1", entry]), Err(PkiError::InvalidSourceAddress(text::shown(entry))));
        }
        assert!(matches!(value(&["::1"; 33]), Err(PkiError::TooMany { .. })));
        assert!(value(&["::1"; 32]).is_ok());
    }
}
