//! Who of another cluster is let in, and as whom: decided by what the state says now, for every call.

use std::collections::BTreeSet;

use mezite_pki::x509::is_signed_by;
use store_txn::{Read, ReadExt};

use super::input::{ANY, keys};
use crate::{
    CoreError,
    context::Role,
    names::{ClusterName, RoleName, UserName},
    remote::{RemoteCaller, RemoteCredential},
    tables::{CaKind, RoleKey, TrustedClusterKey, TrustedClusterRow},
};

/// Tells who a user of another cluster is here. One whose roles are mapped to none is somebody without a role.
///
/// # Errors
/// [`CoreError::Unauthenticated`] for a cluster that is not trusted or is disabled, and for a certificate that an authority of
/// the cluster that it names did not sign; [`CoreError::Storage`].
pub(crate) fn admit(
    state: &mut (impl Read + ?Sized),
    shown: &RemoteCredential,
) -> Result<RemoteCaller, CoreError> {
    let refused =
        CoreError::Unauthenticated("the client certificate is of a cluster that this one does not trust");
    let row = state.get(&TrustedClusterKey(shown.cluster.clone()))?.map(|stored| stored.row);
    let Some(row) = row.filter(|row| !row.disabled && signed(row, &shown.certificate)) else {
        return Err(refused);
    };
    let too_long = CoreError::Unauthenticated(
        "name and cluster of this user are longer than 63 characters together: it cannot be let in here",
    );
    let name = shown.name.at(&shown.cluster).ok_or(too_long)?;
    let mut roles = Vec::new();
    for name in mapped(&row, &shown.roles)? {
        if let Some(role) = state.get(&RoleKey(name.clone()))? {
            roles.push(Role { name, row: role.row });
        }
    }
    Ok(RemoteCaller { name, cluster: shown.cluster.clone(), roles, ends_at_ms: shown.ends_at_ms })
}

/// Whether a TLS authority of the cluster signed a certificate.
fn signed(row: &TrustedClusterRow, certificate: &[u8]) -> bool {
    let authorities = keys(&row.authorities, CaKind::Tls);
    authorities.iter().any(|authority| is_signed_by(certificate, authority) == Ok(true))
}

/// The roles here of somebody with these roles there.
fn mapped(row: &TrustedClusterRow, remote: &[String]) -> Result<BTreeSet<RoleName>, CoreError> {
    // Who has no role has none that could be any.
    let matches = |of: &String| remote.contains(of) || (of == ANY && !remote.is_empty());
    let matching = row.mappings.iter().filter(|mapping| matches(&mapping.remote));
    let names = matching.flat_map(|mapping| &mapping.local);
    names.map(|name| RoleName::parse("trusted_cluster.role_mappings", name)).collect()
}

/// The trusted cluster, disabled or not, of whose users this name could be one.
///
/// # Errors
/// [`CoreError::Storage`].
pub(crate) fn cluster_of(
    state: &mut (impl Read + ?Sized),
    name: &UserName,
) -> Result<Option<ClusterName>, CoreError> {
    // No cluster's name has an @.
    let cluster = name.as_str().rsplit_once('@').and_then(|(_, it)| ClusterName::parse("", it).ok());
    let Some(cluster) = cluster else { return Ok(None) };
    let trusted = state.get(&TrustedClusterKey(cluster.clone()))?.is_some();
    Ok(trusted.then_some(cluster))
}
