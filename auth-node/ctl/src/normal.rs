//! The form in which two documents that want the same are equal: names in the spelling in which the cluster keeps them, and
//! what it keeps without an order in one. It is for comparing alone; the cluster is sent what the file says.

use std::net::IpAddr;

use unicode_normalization::UnicodeNormalization as _;

/// The spelling in which the cluster keeps a user's, role's or connector's name.
pub(crate) fn name(spelling: &str) -> String {
    spelling.nfkc().collect::<String>().to_lowercase()
}

/// As [`name`], of what may have none.
pub(crate) fn optional_name(spelling: &mut Option<String>) {
    *spelling = spelling.take().map(|spelling| name(&spelling));
}

/// A set of names.
pub(crate) fn names(spellings: &mut Vec<String>) {
    *spellings = spellings.iter().map(|spelling| name(spelling)).collect();
    set(spellings);
}

/// A list without an order, in which once is as good as twice.
pub(crate) fn set<T: Ord>(list: &mut Vec<T>) {
    list.sort_unstable();
    list.dedup();
}

/// A set of IP addresses, networks, and names and patterns of hosts.
pub(crate) fn hosts(entries: &mut Vec<String>) {
    *entries = entries.iter().map(|entry| host(entry)).collect();
    set(entries);
}

fn host(entry: &str) -> String {
    let (address, prefix) = match entry.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (entry, None),
    };
    let Ok(address) = address.parse::<IpAddr>().map(|address| address.to_canonical()) else {
        return entry.to_ascii_lowercase();
    };
    let whole = if address.is_ipv4() { "32" } else { "128" };
    match prefix.filter(|prefix| *prefix != whole) {
        Some(prefix) => format!("{address}/{prefix}"),
        None => address.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_one_are_one() {
        assert_eq!(name("ＡＮＮ@Example.COM"), "ann@example.com");
        let mut roles = ["dev", "Admin", "DEV"].map(str::to_owned).to_vec();
        names(&mut roles);
        assert_eq!(roles, ["admin", "dev"]);
        for (entry, kept) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("192.0.2.7/32", "192.0.2.7"),
            ("2001:DB8::0/32", "2001:db8::/32"),
            ("2001:DB8:0::7/128", "2001:db8::7"),
            ("::ffff:192.0.2.7", "192.0.2.7"),
            ("*.Example.ORG", "*.example.org"),
        ] {
            assert_eq!(host(entry), kept);
        }
    }
}
