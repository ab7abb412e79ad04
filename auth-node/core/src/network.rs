//! IP networks that a role lets certificates be used from, and what several such lists have in common. The syntax is
//! the one that `mezite-pki` signs and OpenSSH reads.

use std::{collections::BTreeSet, fmt, net::IpAddr};

use crate::CoreError;

/// Most networks in one role, and in one certificate.
pub const MAX_NETWORKS: usize = 32;

/// An IP network, or a single address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Network {
    address: IpAddr,
    prefix: u32,
}

impl Network {
    /// Reads an IP address or a network such as `10.0.0.0/8`. Host bits must be zero. IPv6 forms of IPv4 addresses are
    /// refused: OpenSSH compares such clients as IPv4, so that the network would match nobody. `None`: it is neither.
    pub fn parse(text: &str) -> Option<Self> {
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().ok()?;
        if matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some()) {
            return None;
        }
        let width = width(address);
        let prefix = match length {
            None => width,
            Some(length) => length.parse().ok().filter(|prefix: &u32| prefix.to_string() == length)?,
        };
        let network = Self { address, prefix };
        (prefix <= width && high_bits(address, prefix) == high_bits(address, width)).then_some(network)
    }

    /// The network around an address that one holder most likely has all of: its /24, or for IPv6 its /64, of which a single
    /// host can take any address.
    pub fn around(address: IpAddr) -> Self {
        let (address, prefix) = match address.to_canonical() {
            IpAddr::V4(v4) => (IpAddr::V4((v4.to_bits() & 0xffff_ff00).into()), 24),
            IpAddr::V6(v6) => (IpAddr::V6((v6.to_bits() >> 64 << 64).into()), 64),
        };
        Self { address, prefix }
    }

    /// Whether every address of `other` is one of this.
    pub fn contains(&self, other: &Self) -> bool {
        width(self.address) == width(other.address)
            && self.prefix <= other.prefix
            && high_bits(self.address, self.prefix) == high_bits(other.address, self.prefix)
    }
}

fn width(address: IpAddr) -> u32 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The address with all but its first `prefix` bits cleared.
fn high_bits(address: IpAddr, prefix: u32) -> u128 {
    let bits = match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    };
    // Shifting by all 128 bits is not defined; then no bit stays.
    let host_bits = width(address).saturating_sub(prefix);
    u128::MAX.checked_shl(host_bits).map_or(0, |mask| bits & mask)
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.prefix == width(self.address) {
            return write!(f, "{}", self.address);
        }
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// From where certificates may be used.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum SourceAddresses {
    /// From anywhere.
    #[default]
    Anywhere,
    /// From an address in any one of these; from nowhere when there are none. None of them is part of another.
    Only(BTreeSet<Network>),
}

impl SourceAddresses {
    /// What one list says: no entries mean anywhere. An entry that is no network matches nobody.
    pub fn of(entries: &[String]) -> Self {
        if entries.is_empty() {
            return Self::Anywhere;
        }
        Self::Only(outermost(entries.iter().filter_map(|entry| Network::parse(entry)).collect()))
    }

    /// The addresses that both allow.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Anywhere, only) | (only, Self::Anywhere) => only,
            (Self::Only(left), Self::Only(right)) => {
                // Two networks have nothing in common unless one is part of the other.
                let inner = |outer: &BTreeSet<Network>, inner: &BTreeSet<Network>| {
                    let covered = |network: &&Network| outer.iter().any(|outer| outer.contains(network));
                    inner.iter().filter(covered).copied().collect::<BTreeSet<_>>()
                };
                Self::Only(outermost(&inner(&left, &right) | &inner(&right, &left)))
            }
        }
    }

    /// The entries of a certificate; none: from anywhere.
    ///
    /// # Errors
    /// [`CoreError::Denied`] when no address is allowed; [`CoreError::Precondition`] when it takes more than 32 entries
    /// to say which are.
    pub fn entries(&self) -> Result<Vec<String>, CoreError> {
        let Self::Only(networks) = self else { return Ok(Vec::new()) };
        if networks.is_empty() {
            let reason =
                "your roles have no source address in common, so no certificate would be good anywhere";
            return Err(CoreError::Denied(reason.into()));
        }
        if networks.len() > MAX_NETWORKS {
            let reason = format!("your roles together have more than {MAX_NETWORKS} source addresses");
            return Err(CoreError::Precondition(reason));
        }
        Ok(networks.iter().map(Network::to_string).collect())
    }
}

/// Without the networks that are part of others.
fn outermost(networks: BTreeSet<Network>) -> BTreeSet<Network> {
    let within_other =
        |network: &Network| networks.iter().any(|other| other != network && other.contains(network));
    networks.iter().filter(|network| !within_other(network)).copied().collect()
}

#[cfg(test)]
mod tests {
    use mezite_pki::ssh::{SshCa, SshKeyPair, UserCertSpec, UserExtensions};

    use super::*;

    fn list(entries: &[&str]) -> SourceAddresses {
        SourceAddresses::of(&entries.iter().map(|&entry| entry.to_owned()).collect::<Vec<_>>())
    }

    fn common(left: &[&str], right: &[&str]) -> Result<Vec<String>, CoreError> {
        let both = list(left).and(list(right));
        assert_eq!(both, list(right).and(list(left)));
        both.entries()
    }

    #[test]
    fn what_is_accepted_is_what_the_pki_signs() {
        let ca = SshCa::generate().unwrap();
        let key = SshKeyPair::generate_ed25519("").unwrap();
        let signs = |entry: &str| {
            let spec = UserCertSpec {
                public_key: key.public_key().clone(),
                key_id: "ann".into(),
                principals: vec!["ann".into()],
                serial: 1,
                valid_after: 1,
                valid_before: 2,
                extensions: UserExtensions::default(),
                source_addresses: vec![entry.into()],
            };
            ca.sign_user(&spec).is_ok()
        };
        let good =
            ["192.0.2.1", "10.0.0.0/8", "0.0.0.0/0", "192.0.2.1/32", "2001:DB8:0::/32", "::/0", "::1/128"];
        for entry in good {
            let network = Network::parse(entry).unwrap();
            assert!(signs(entry) && signs(&network.to_string()), "{entry}");
        }
        let bad = [
            "",
            "*",
            "any",
            "10.0.0.1/8",
            "10.0.0.0/33",
            "10.0.0.0/",
            "10.0.0.0/-1",
            "10.0.0.0/08",
            "10.0.0.0/+8",
            "10.0.0.0/8/8",
            "10.0.0",
            "010.0.0.0/8",
            "10.0.0.0 /8",
            "2001:db8::1/32",
            "::/129",
            "fe80::1%eth0",
            "[::1]",
            "::ffff:192.0.2.1",
            "::ffff:0.0.0.0/96",
            "10.0.0.0/8\n",
        ];
        for entry in bad {
            assert!(Network::parse(entry).is_none() && !signs(entry), "{entry:?}");
        }
    }

    #[test]
    fn the_network_around_an_address_is_what_its_holder_can_take_addresses_of() {
        for (address, network) in [
            ("192.0.2.77", "192.0.2.0/24"),
            ("::ffff:192.0.2.77", "192.0.2.0/24"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ] {
            let around = Network::around(address.parse().unwrap());
            assert_eq!(around.to_string(), network);
            assert_eq!(Network::parse(network), Some(around));
        }
    }

    #[test]
    fn lists_narrow_each_other() {
        assert_eq!(common(&[], &[]), Ok(vec![]));
        assert_eq!(common(&["10.0.0.0/8"], &[]), Ok(vec!["10.0.0.0/8".into()]));
        assert_eq!(common(&["10.0.0.0/8", "::/0"], &["10.1.0.0/16"]), Ok(vec!["10.1.0.0/16".into()]));
        assert_eq!(
            common(&["10.0.0.0/8", "192.0.2.1"], &["10.9.0.0/16", "192.0.2.0/24", "2001:db8::/32"]),
            Ok(vec!["10.9.0.0/16".into(), "192.0.2.1".into()])
        );
        assert_eq!(common(&["0.0.0.0/0"], &["192.0.2.1/32"]), Ok(vec!["192.0.2.1".into()]));
        assert_eq!(common(&["10.0.0.0/8", "10.1.0.0/16"], &[]), Ok(vec!["10.0.0.0/8".into()]));
    }

    #[test]
    fn nothing_in_common_never_means_anywhere() {
        assert!(matches!(common(&["10.0.0.0/8"], &["192.0.2.0/24"]), Err(CoreError::Denied(_))));
        assert!(matches!(common(&["0.0.0.0/0"], &["::/0"]), Err(CoreError::Denied(_))));
        assert!(matches!(list(&["rubbish"]).entries(), Err(CoreError::Denied(_))));
    }

    #[test]
    fn more_entries_than_a_certificate_holds_are_refused() {
        let many: Vec<String> = (0..33).map(|n| format!("192.0.2.{n}")).collect();
        assert!(matches!(SourceAddresses::of(&many).entries(), Err(CoreError::Precondition(_))));
        assert_eq!(SourceAddresses::of(&many[..32]).entries().unwrap().len(), 32);
    }
}
