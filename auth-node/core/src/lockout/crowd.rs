//! Failures from one network as all users together that are not known from it: what shows that somebody tries a few passwords of
//! each of many names. They count from the first one on for as long as a lockout lasts, and no success takes them back: whoever has
//! a user of its own could go on for ever.
//!
//! Failures as users who are known from the network do not count, nor are those kept out. So an office, or all who come through
//! one load balancer, are not shut out by their own typing errors or by what a stranger among them does.

use store_txn::{Read, ReadExt, Transaction, TransactionExt, UnixMillis};

use super::{make_room, slots::SlotSecret};
use crate::{
    CoreError,
    cluster_config::Settings,
    tables::{FailingNetworkRow, NetworkLoginsKey, NetworkLoginsRow},
};

/// Failures from a network as all users together, per failure of the threshold of one.
pub(super) const CROWD_FACTOR: u32 = 10;
/// Networks of one slot that are remembered: those with the fewest failures go first.
pub(super) const SLOT_NETWORKS: usize = 16;

/// The failures from one network.
pub(super) struct Crowd {
    key: NetworkLoginsKey,
    row: NetworkLoginsRow,
    network: String,
    most: u32,
    changed: bool,
}

impl Crowd {
    /// `None` in a cluster in which nobody has tried to log in since there are such counts.
    ///
    /// # Errors
    /// [`CoreError::Storage`].
    pub(super) fn load(
        state: &mut (impl Read + ?Sized),
        network: &str,
        settings: &Settings,
    ) -> Result<Option<Self>, CoreError> {
        let Some(secret) = SlotSecret::load(state)? else { return Ok(None) };
        let key = NetworkLoginsKey(secret.of_network(network));
        let now = state.now();
        let mut row = state.get(&key)?.map(|found| found.row).unwrap_or_default();
        row.failing.retain(|failing| now < failing.until_ms);
        let most = settings.lockout_threshold.saturating_mul(CROWD_FACTOR);
        Ok(Some(Self { key, row, network: network.to_owned(), most, changed: false }))
    }

    /// What shuts the network out, if anything does.
    pub(super) fn shut(&self) -> Option<&FailingNetworkRow> {
        self.own().filter(|own| own.failures >= self.most)
    }

    fn own(&self) -> Option<&FailingNetworkRow> {
        self.row.failing.iter().find(|failing| failing.network == self.network)
    }

    /// Counts a failure at `now`. What it shuts out is shut for `lasts_ms`.
    pub(super) fn fail(&mut self, now: UnixMillis, lasts_ms: u64) {
        let until_ms = now.saturating_add(lasts_ms);
        let own = self.own().cloned();
        let mut own =
            own.unwrap_or_else(|| FailingNetworkRow { network: self.network.clone(), failures: 0, until_ms });
        own.failures = own.failures.saturating_add(1);
        if own.failures >= self.most {
            own.until_ms = until_ms;
        }
        self.forget();
        make_room(&mut self.row.failing, SLOT_NETWORKS, |_| true);
        self.row.failing.push(own);
    }

    /// Forgets the failures.
    pub(super) fn forget(&mut self) {
        self.changed = true;
        self.row.failing.retain(|failing| failing.network != self.network);
    }

    /// Keeps what has changed.
    pub(super) fn save(mut self, tx: &mut (impl Transaction + ?Sized)) {
        if !self.changed {
            return;
        }
        match self.row.failing.iter().map(|failing| failing.until_ms).max() {
            Some(until_ms) => {
                self.row.expires_at_ms = until_ms;
                tx.put(&self.key, &self.row);
            }
            None => tx.delete(&self.key),
        }
    }
}

#[cfg(test)]
#[path = "crowd_tests.rs"]
mod tests;
