//! What is told of a trusted cluster, field by field: by the admin who trusts it, and by itself.

use std::collections::BTreeSet;

use mezite_pki::{
    ssh::SshPublicKey,
    x509::{CertificateInfo, authority_certificate},
};

use crate::{
    CoreError, mapped,
    names::{ClusterName, RoleName},
    principal::check_address,
    tables::{CaKind, ForeignCaRow, RoleMappingRow},
};

/// Stands for every role there.
pub(super) const ANY: &str = "*";

/// Most addresses.
const MAX_ADDRESSES: usize = 16;
/// Longest address, in bytes.
const MAX_ADDRESS: usize = 512;
/// Most mappings.
const MAX_MAPPINGS: usize = 64;
/// Most keys of one authority: that of a rotation that is going on, and those of earlier ones.
const MAX_KEYS: usize = 16;
/// Longest key or certificate that another cluster tells, in bytes.
const MAX_KEY: usize = 8 << 10;
/// Most bytes of all that are kept of a cluster's.
const MAX_ALL: usize = 64 << 10;

/// A cluster to trust, or what is to be changed of it: checked but for what the state says.
#[derive(Debug, Clone, PartialEq)]
pub struct NewTrustedCluster {
    pub(super) name: ClusterName,
    pub(super) addresses: Vec<String>,
    pub(super) mappings: Vec<RoleMappingRow>,
    pub(super) disabled: bool,
    pub(super) roles: BTreeSet<RoleName>,
}

impl NewTrustedCluster {
    /// Reads it: 1 to 16 addresses; at most 64 mappings, each of a role there or `*` to 1 to 64 roles here.
    ///
    /// # Errors
    /// [`CoreError::Invalid`] names the field.
    pub fn new(
        name: &str,
        addresses: Vec<String>,
        mappings: Vec<RoleMappingRow>,
        disabled: bool,
    ) -> Result<Self, CoreError> {
        let name = ClusterName::parse("trusted_cluster.name", name)?;
        check_addresses(&addresses)?;
        let (mappings, roles) = checked(mappings)?;
        Ok(Self { name, addresses, mappings, disabled, roles })
    }

    /// Its name.
    pub fn name(&self) -> &ClusterName {
        &self.name
    }

    /// Its addresses, host:port.
    pub fn addresses(&self) -> &[String] {
        &self.addresses
    }
}

fn check_addresses(addresses: &[String]) -> Result<(), CoreError> {
    const FIELD: &str = "trusted_cluster.addresses";
    if !(1..=MAX_ADDRESSES).contains(&addresses.len()) {
        return Err(CoreError::invalid(FIELD, format!("1 to {MAX_ADDRESSES} addresses of its auth nodes")));
    }
    for (index, address) in addresses.iter().enumerate() {
        let field = format!("{FIELD}[{index}]");
        if address.len() > MAX_ADDRESS {
            return Err(CoreError::invalid(field, format!("at most {MAX_ADDRESS} bytes")));
        }
        check_address(&field, address)?;
        if addresses.iter().take(index).any(|before| before == address) {
            return Err(CoreError::invalid(field, format!("{address} is there twice")));
        }
    }
    Ok(())
}

/// Mappings as they are stored, and all roles here that they give.
fn checked(
    mut mappings: Vec<RoleMappingRow>,
) -> Result<(Vec<RoleMappingRow>, BTreeSet<RoleName>), CoreError> {
    const FIELD: &str = "trusted_cluster.role_mappings";
    if mappings.len() > MAX_MAPPINGS {
        return Err(CoreError::invalid(FIELD, format!("at most {MAX_MAPPINGS} mappings")));
    }
    let (mut all, mut seen) = (BTreeSet::new(), BTreeSet::new());
    for (index, mapping) in mappings.iter_mut().enumerate() {
        let field = format!("{FIELD}[{index}]");
        if mapping.remote != ANY {
            mapping.remote = RoleName::parse(&format!("{field}.remote"), &mapping.remote)?.into();
        }
        if !seen.insert(mapping.remote.clone()) {
            let reason = format!("{} is mapped twice: put its roles together", mapping.remote);
            return Err(CoreError::invalid(format!("{field}.remote"), reason));
        }
        let roles = mapped::parse(&format!("{field}.local"), &mapping.local)?;
        mapping.local = roles.iter().map(RoleName::to_string).collect();
        all.extend(roles);
    }
    Ok((mappings, all))
}

/// The authorities that another cluster told, checked: of users, of hosts, and of TLS.
#[derive(Debug, Clone, PartialEq)]
pub struct Authorities {
    pub(super) rows: Vec<ForeignCaRow>,
    pub(super) revision: u64,
}

impl Authorities {
    /// Reads what a trust bundle of this revision says: OpenSSH public keys of users' and hosts' authorities, PEM
    /// certificates of that for TLS. What it says of others is passed over. Each has at most 8 KiB, and all of them 64 KiB.
    ///
    /// # Errors
    /// Why it cannot be used, for people.
    pub fn new(told: Vec<(CaKind, Vec<String>)>, revision: u64) -> Result<Self, String> {
        let mut rows = Vec::new();
        for kind in [CaKind::User, CaKind::Host, CaKind::Tls] {
            let keys = told.iter().filter(|(of, _)| *of == kind).flat_map(|(_, keys)| keys);
            let keys: Result<Vec<_>, _> = keys.take(MAX_KEYS + 1).map(|key| canonical(kind, key)).collect();
            let keys = keys.map_err(|reason| format!("its {} CA: {reason}", kind.name()))?;
            if !(1..=MAX_KEYS).contains(&keys.len()) {
                return Err(format!("its {} CA has not 1 to {MAX_KEYS} keys", kind.name()));
            }
            rows.push(ForeignCaRow { kind: kind.into(), keys });
        }
        let all: usize = rows.iter().flat_map(|row| &row.keys).map(String::len).sum();
        if all > MAX_ALL {
            return Err(format!(
                "its keys and certificates have {all} bytes, and at most {MAX_ALL} are taken"
            ));
        }
        Ok(Self { rows, revision })
    }

    /// Keys of one authority.
    pub fn keys(&self, kind: CaKind) -> &[String] {
        keys(&self.rows, kind)
    }

    /// Fingerprints and pins of all keys, for the audit log.
    pub(super) fn fingerprints(&self) -> Result<Vec<String>, CoreError> {
        let all = self.rows.iter().flat_map(|row| row.keys.iter().map(move |key| (row.kind, key)));
        let of = |(kind, key): (i32, &String)| match CaKind::try_from(kind) {
            Ok(CaKind::Tls) => CertificateInfo::from_pem(key).map(|info| info.spki_pin),
            _ => SshPublicKey::parse(key).map(|key| key.fingerprint()),
        };
        all.map(of).collect::<Result<_, _>>().map_err(|error| CoreError::Internal(error.to_string()))
    }
}

fn canonical(kind: CaKind, key: &str) -> Result<String, String> {
    if key.len() > MAX_KEY {
        return Err(format!("a key or certificate of {} bytes, and at most {MAX_KEY} are taken", key.len()));
    }
    let read = match kind {
        CaKind::Tls | CaKind::Peer | CaKind::Spiffe => authority_certificate(key),
        CaKind::User | CaKind::Host | CaKind::Audit => SshPublicKey::parse(key).map(|key| key.line()),
    };
    read.map_err(|error| error.to_string())
}

/// Keys of one authority of another cluster.
pub(super) fn keys(rows: &[ForeignCaRow], kind: CaKind) -> &[String] {
    let row = rows.iter().find(|row| CaKind::try_from(row.kind) == Ok(kind));
    row.map(|row| row.keys.as_slice()).unwrap_or_default()
}

#[cfg(test)]
#[path = "input_tests.rs"]
mod tests;
