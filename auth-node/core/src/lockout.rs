//! Lockouts: after too many failures, passwords are not taken for a while. They have nothing to do with the locks that
//! admins make, end by themselves, and are counted here for all nodes together.
//!
//! Failures count for a user and a network. So whoever guesses shuts out its own network and nobody else's; and whoever
//! guesses from many networks shuts out those alone that the user has never proved itself from. What is tried while it is
//! shut is not counted, so that a program with an old password does not keep its user out for ever.
//!
//! A name that is nobody's is counted in the same way and costs the same, and comes to the same answer.

use std::net::IpAddr;

use sha2::{Digest, Sha256};
use store_txn::{Read, ReadExt, Transaction, TransactionExt, UnixMillis};

use crate::{
    Context, CoreError,
    audit::{self, EventType},
    cluster_config::{self, Settings},
    names::UserName,
    network::Network,
    tables::{FailingNetworkRow, KnownNetworkRow, LoginsKey, LoginsRow, NobodysLoginsKey, UserKey},
};

/// Failures from all networks that are not known, per failure of the threshold of one.
const STRANGE_FACTOR: u32 = 10;
/// Most networks that are not known of which failures are remembered. More are as good as the bound on those failures.
const MAX_STRANGE: usize = 100;
/// Most networks of a user that are known: one more, and the one that was used least recently is not.
const MAX_KNOWN: usize = 16;
/// How long a network is known after the user has proved itself from it: 90 days.
const KNOWN_MS: UnixMillis = 90 * 24 * 3600 * 1000;
/// Rows for all names that are nobody's.
const SLOTS: u64 = 1024;
/// First part of the digest that says which of them is a name's.
const SLOT_DOMAIN: &[u8] = b"mezite login slot\0";

/// Whose logins are counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Whose {
    /// A user's.
    User(UserName),
    /// Nobody's: those of the names of a slot.
    Nobody(Slot),
}

/// Where a name is counted that is nobody's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot(u64);

impl Slot {
    /// Of a name: its canonical form, or as it was given if it has none.
    pub fn of(name: &str) -> Self {
        let digest = Sha256::new().chain_update(SLOT_DOMAIN).chain_update(name).finalize();
        let number = digest.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
        Self(number % SLOTS)
    }
}

/// That password logins of a user are refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lockout {
    /// The network that it is for; `None`: for all that the user has never proved itself from.
    pub network: Option<String>,
    /// Failures that were counted.
    pub failures: u32,
    /// When it ends.
    pub until_ms: UnixMillis,
}

/// The tries under a name, as they count for one network.
pub(crate) struct Tries {
    whose: Whose,
    network: String,
    row: LoginsRow,
    settings: Settings,
    now: UnixMillis,
}

impl Tries {
    /// Those from the network of a client.
    ///
    /// # Errors
    /// [`CoreError::Storage`].
    pub(crate) fn load(
        state: &mut (impl Read + ?Sized),
        whose: Whose,
        client_address: &str,
    ) -> Result<Self, CoreError> {
        let settings = cluster_config::settings(state)?;
        let row = stored(state, &whose)?;
        Ok(Self { whose, network: network(client_address), row, settings, now: state.now() })
    }

    /// Whether no password is taken from this network now.
    pub(crate) fn are_shut(&self) -> bool {
        let threshold = self.settings.lockout_threshold;
        let failing = self.row.failing.iter().find(|failing| failing.network == self.network);
        if failing.is_some_and(|failing| failing.failures >= threshold) {
            return true;
        }
        !is_known(&self.row, &self.network) && strangers_are_out(&self.row, threshold)
    }

    /// Whether the user has proved itself from this network.
    #[cfg(test)]
    pub(crate) fn is_known(&self) -> bool {
        is_known(&self.row, &self.network)
    }

    /// Counts a failure. Answers until when the lockout lasts that it begins, if it does. Not for tries that
    /// [`Self::are_shut`].
    pub(crate) fn fail(&mut self) -> Option<UnixMillis> {
        let until_ms = self.now.saturating_add(self.settings.lockout_ms);
        match self.row.failing.iter_mut().find(|failing| failing.network == self.network) {
            Some(failing) => {
                failing.failures = failing.failures.saturating_add(1);
                failing.until_ms = until_ms;
            }
            None => {
                let network = self.network.clone();
                self.row.failing.push(FailingNetworkRow { network, failures: 1, until_ms });
            }
        }
        if !is_known(&self.row, &self.network) {
            self.row.strange_failures = self.row.strange_failures.saturating_add(1);
            self.row.strange_until_ms = until_ms;
        }
        self.are_shut().then_some(until_ms)
    }

    /// Forgets the failures from this network, and knows it from now on: the user has proved itself.
    pub(crate) fn succeed(&mut self) {
        let strange = !is_known(&self.row, &self.network);
        let own = |failing: &FailingNetworkRow| failing.network == self.network;
        if strange && let Some(failing) = self.row.failing.iter().find(|failing| own(failing)) {
            self.row.strange_failures = self.row.strange_failures.saturating_sub(failing.failures);
        }
        self.row.failing.retain(|failing| !own(failing));
        self.row.known.retain(|known| known.network != self.network);
        self.row.known.sort_by_key(|known| std::cmp::Reverse(known.last_ms));
        self.row.known.truncate(MAX_KNOWN - 1);
        self.row.known.push(KnownNetworkRow { network: self.network.clone(), last_ms: self.now });
    }

    /// Keeps them. That nothing has changed is written too: a try takes as long whatever comes of it.
    pub(crate) fn save(self, tx: &mut (impl Transaction + ?Sized)) {
        let Self { whose, mut row, now, settings, .. } = self;
        let failing = row.failing.iter().map(|failing| failing.until_ms);
        let known = row.known.iter().map(|known| known.last_ms.saturating_add(KNOWN_MS));
        row.expires_at_ms =
            failing.chain(known).max().unwrap_or_else(|| now.saturating_add(settings.lockout_ms));
        match whose {
            Whose::User(name) => tx.put(&LoginsKey(name), &row),
            Whose::Nobody(slot) => tx.put(&NobodysLoginsKey(slot.0), &row),
        }
    }
}

/// The network that an address counts for.
fn network(client_address: &str) -> String {
    let address: Result<IpAddr, _> = client_address.parse();
    address.map_or_else(|_| String::new(), |address| Network::around(address).to_string())
}

/// What is stored, without what is past its time.
fn stored(state: &mut (impl Read + ?Sized), whose: &Whose) -> Result<LoginsRow, CoreError> {
    let now = state.now();
    let found = match whose {
        Whose::User(name) => state.get(&LoginsKey(name.clone()))?,
        Whose::Nobody(slot) => state.get(&NobodysLoginsKey(slot.0))?,
    };
    let mut row = found.map(|found| found.row).unwrap_or_default();
    row.failing.retain(|failing| now < failing.until_ms);
    row.known.retain(|known| now < known.last_ms.saturating_add(KNOWN_MS));
    if row.strange_until_ms <= now {
        (row.strange_failures, row.strange_until_ms) = (0, 0);
    }
    Ok(row)
}

fn is_known(row: &LoginsRow, network: &str) -> bool {
    row.known.iter().any(|known| known.network == network)
}

/// Whether networks that are not known are shut out together.
fn strangers_are_out(row: &LoginsRow, threshold: u32) -> bool {
    let strange = row.failing.iter().filter(|failing| !is_known(row, &failing.network)).count();
    row.strange_failures >= threshold.saturating_mul(STRANGE_FACTOR) || strange >= MAX_STRANGE
}

/// The lockouts of a user that last.
///
/// # Errors
/// [`CoreError::Storage`].
pub fn of(state: &mut (impl Read + ?Sized), name: &UserName) -> Result<Vec<Lockout>, CoreError> {
    let threshold = cluster_config::settings(state)?.lockout_threshold;
    let row = stored(state, &Whose::User(name.clone()))?;
    let shut = row.failing.iter().filter(|failing| failing.failures >= threshold);
    let mut lockouts: Vec<_> = shut
        .map(|failing| Lockout {
            network: Some(failing.network.clone()),
            failures: failing.failures,
            until_ms: failing.until_ms,
        })
        .collect();
    if strangers_are_out(&row, threshold) {
        let (failures, until_ms) = (row.strange_failures, row.strange_until_ms);
        lockouts.push(Lockout { network: None, failures, until_ms });
    }
    Ok(lockouts)
}

/// Refuses what takes the password of a user whose caller's network is locked out. For callers who know that there is
/// such a user.
///
/// # Errors
/// [`CoreError::Precondition`], [`CoreError::Storage`].
pub fn check(state: &mut (impl Read + ?Sized), context: &Context, name: &UserName) -> Result<(), CoreError> {
    if Tries::load(state, Whose::User(name.clone()), &context.origin.client_address)?.are_shut() {
        return Err(shut());
    }
    Ok(())
}

/// What is answered while no password is taken, to callers who know that there is such a user.
pub(crate) fn shut() -> CoreError {
    CoreError::Precondition(
        "too many wrong passwords of late: wait until they are forgotten, or have an administrator clear the lockout"
            .into(),
    )
}

/// Notes that a user has proved itself from the network of its call.
///
/// # Errors
/// [`CoreError::Storage`].
pub(crate) fn prove(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    name: &UserName,
) -> Result<(), CoreError> {
    let mut tries = Tries::load(tx, Whose::User(name.clone()), &context.origin.client_address)?;
    tries.succeed();
    tries.save(tx);
    Ok(())
}

/// Counts a failure of a user, and tells the audit log when it begins a lockout.
pub(crate) fn fail(tx: &mut (impl Transaction + ?Sized), context: &Context, tries: &mut Tries) {
    let Some(until_ms) = tries.fail() else { return };
    // As many as there are users and networks, and no more while they last: so they are recorded always.
    if let Whose::User(name) = &tries.whose {
        let fields = [("network", tries.network.clone()), ("until_ms", until_ms.to_string())];
        audit::append(tx, context, EventType::Lockout, format!("user:{name}"), &fields);
    }
}

/// Ends the lockouts of a user, and forgets its failures.
///
/// # Errors
/// [`CoreError::NotFound`] when there is no such user; [`CoreError::Storage`].
pub fn clear(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    name: &UserName,
) -> Result<(), CoreError> {
    if tx.get(&UserKey(name.clone()))?.is_none() {
        return Err(CoreError::NotFound { kind: "user", name: name.to_string() });
    }
    let mut tries = Tries::load(tx, Whose::User(name.clone()), "")?;
    tries.row.failing.clear();
    (tries.row.strange_failures, tries.row.strange_until_ms) = (0, 0);
    tries.save(tx);
    audit::append(tx, context, EventType::LockoutClear, format!("user:{name}"), &[]);
    Ok(())
}

/// Forgets all of a user's tries, and which networks are known.
pub(crate) fn forget(tx: &mut (impl Transaction + ?Sized), name: &UserName) {
    tx.delete(&LoginsKey(name.clone()));
}

#[cfg(test)]
#[path = "lockout_tests.rs"]
mod tests;
