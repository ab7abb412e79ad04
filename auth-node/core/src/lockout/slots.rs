//! Slots: rows that many names or many networks share, so that there are only so many rows whatever is tried. Which slot is
//! whose depends on a secret of the cluster: nobody can find out beforehand what shares one.

use std::fmt;

use sha2::{Digest, Sha256};
use store_txn::{Read, ReadExt, Transaction, TransactionExt};

use crate::{
    CoreError,
    tables::{SlotSecretKey, SlotSecretRow},
};

/// Rows for all names that are nobody's.
pub(super) const NAME_SLOTS: u64 = 1024;
/// Rows for all networks.
pub(super) const NETWORK_SLOTS: u64 = 4096;
/// First part of the digest of a name.
const NAME_DOMAIN: &[u8] = b"mezite login name\0";
/// First part of the digest that says which slot is a name's.
const NAME_SLOT_DOMAIN: &[u8] = b"mezite login slot\0";
/// First part of the digest that says which slot is a network's.
const NETWORK_SLOT_DOMAIN: &[u8] = b"mezite network slot\0";

/// A name under which somebody tries to log in, as a digest: it may be a password in the wrong field.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TypedName([u8; 32]);

impl TypedName {
    /// Of a name: its canonical form, or as it was given if it has none.
    pub fn of(name: &str) -> Self {
        Self(Sha256::new().chain_update(NAME_DOMAIN).chain_update(name).finalize().into())
    }

    /// For a row, where a login is finished in another call.
    pub(crate) fn to_bytes(self) -> [u8; 32] {
        self.0
    }

    /// What a row has; one of none at all where that is no such digest.
    pub(crate) fn from_stored(bytes: &[u8]) -> Self {
        bytes.try_into().map_or_else(|_| Self::of(""), Self)
    }
}

impl fmt::Debug for TypedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TypedName(..)")
    }
}

/// What slots depend on: 256 random bits.
#[derive(Clone, PartialEq, Eq)]
pub struct SlotSecret([u8; 32]);

impl SlotSecret {
    /// One that is used if the cluster has none yet.
    pub fn from_random(random: [u8; 32]) -> Self {
        Self(random)
    }

    /// The cluster's, if it has one: releases before this one made none, and nothing is counted in the slots that need it.
    ///
    /// # Errors
    /// [`CoreError::Storage`].
    pub(super) fn load(state: &mut (impl Read + ?Sized)) -> Result<Option<Self>, CoreError> {
        let stored = state.get(&SlotSecretKey)?;
        Ok(stored.and_then(|stored| stored.row.secret.as_slice().try_into().ok()).map(Self))
    }

    /// The cluster's; this one from now on if it has none.
    ///
    /// # Errors
    /// [`CoreError::Storage`].
    pub(crate) fn load_or_keep(&self, tx: &mut (impl Transaction + ?Sized)) -> Result<Self, CoreError> {
        if let Some(secret) = Self::load(tx)? {
            return Ok(secret);
        }
        tx.put(&SlotSecretKey, &SlotSecretRow { secret: self.0.to_vec() });
        Ok(self.clone())
    }

    /// Where a name is counted that is nobody's.
    pub(crate) fn of_name(&self, name: TypedName) -> u64 {
        self.slot(NAME_SLOT_DOMAIN, &name.0, NAME_SLOTS)
    }

    /// Where a network is counted.
    pub(super) fn of_network(&self, network: &str) -> u64 {
        self.slot(NETWORK_SLOT_DOMAIN, network.as_bytes(), NETWORK_SLOTS)
    }

    /// One of so many. No more of the digest than that is used or shown to anybody, so the secret before what is digested is
    /// as good as an HMAC.
    fn slot(&self, domain: &[u8], of: &[u8], slots: u64) -> u64 {
        let digest = Sha256::new().chain_update(domain).chain_update(self.0).chain_update(of).finalize();
        digest.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes)) % slots
    }
}

impl fmt::Debug for SlotSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SlotSecret(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Cluster;

    #[test]
    fn slots_cannot_be_computed_without_the_secret_of_the_cluster_which_is_made_once() {
        let (one, two) = (SlotSecret::from_random([1; 32]), SlotSecret::from_random([2; 32]));
        let names: Vec<_> = (0..200).map(|number| TypedName::of(&format!("name{number}"))).collect();
        let alike = names.iter().filter(|name| one.of_name(**name) == two.of_name(**name)).count();
        assert!(alike < 10, "{alike}");
        let networks: Vec<_> = (0..200).map(|number| format!("10.0.{number}.0/24")).collect();
        let alike = networks.iter().filter(|of| one.of_network(of) == two.of_network(of)).count();
        assert!(alike < 10, "{alike}");
        assert!(names.iter().all(|name| one.of_name(*name) < NAME_SLOTS));
        assert!(networks.iter().all(|network| one.of_network(network) < NETWORK_SLOTS));

        let mut cluster = Cluster::new();
        cluster
            .run(|tx| {
                tx.delete(&SlotSecretKey);
                Ok(())
            })
            .unwrap();
        assert_eq!(cluster.run(|tx| SlotSecret::load(tx)), Ok(None));
        assert_eq!(cluster.run(|tx| one.load_or_keep(tx)), Ok(one.clone()));
        assert_eq!(cluster.run(|tx| two.load_or_keep(tx)), Ok(one.clone()));
        assert_eq!(cluster.run(|tx| SlotSecret::load(tx)), Ok(Some(one.clone())));
        assert_eq!(format!("{one:?} {:?}", TypedName::of("hunter2")), "SlotSecret(..) TypedName(..)");
    }
}
