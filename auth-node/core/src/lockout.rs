//! Lockouts: after too many failures, passwords are not taken for a while. They have nothing to do with the locks that
//! admins make, end by themselves, and are counted here for all nodes together.
//!
//! Failures count for a user and a network. So whoever guesses shuts out its own network and nobody else's; and whoever
//! guesses from many networks shuts out those alone that the user has never proved itself from. What is tried while it is
//! shut is not counted, so that a program with an old password does not keep its user out for ever.
//!
//! Beside that, failures from a network count for all users together that are not known from it (`crowd`): whoever tries a
//! few passwords of each of very many names is shut out with all names that are strange to its network.
//!
//! A name that is nobody's is counted in the same way and costs the same, and comes to the same answer.

mod crowd;
mod slots;

use std::net::IpAddr;

pub use slots::{SlotSecret, TypedName};
use store_txn::{Read, ReadExt, Transaction, TransactionExt, UnixMillis};

use crate::{
    Context, CoreError,
    audit::{self, EventType},
    cluster_config::{self, Settings},
    names::UserName,
    network::Network,
    tables::{FailingNetworkRow, KnownNetworkRow, LoginsKey, LoginsRow, NobodysLoginsKey},
    user,
};

use crowd::Crowd;

/// Failures from all networks that are not known, per failure of the threshold of one.
const STRANGE_FACTOR: u32 = 10;
/// Most networks that are not known of which failures are remembered one by one: those with the fewest go first. All of them
/// are counted in the sum, whose bound follows from the threshold.
const MAX_STRANGE: usize = 100;
/// Most networks of a user that are known: one more, and the one that was used least recently is not.
const MAX_KNOWN: usize = 16;
/// How long a network is known after the user has proved itself from it: 90 days.
const KNOWN_MS: UnixMillis = 90 * 24 * 3600 * 1000;
/// Most networks of which it is remembered that a name was refused for what was tried from them as others.
const MAX_SHUT: usize = 16;

/// Whose logins are counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Whose {
    /// A user's.
    User(UserName),
    /// Nobody's: those of the names of a slot.
    Nobody(u64),
}

/// That password logins of a user are refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lockout {
    /// The network that it is for; `None`: for all that the user has never proved itself from.
    pub network: Option<String>,
    /// Whether the failures were those from the network as all users together. It is for those that are not known from it.
    pub of_all_users: bool,
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
    /// What was tried from the network as others; `None` where that does not count.
    crowd: Option<Crowd>,
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
        let network = network(client_address);
        // Not read for those whom it does not keep out: their logins do not wait for others' failures to commit.
        let crowd = match is_known(&row, &network) {
            true => None,
            false => Crowd::load(state, &network, &settings)?,
        };
        Ok(Self { whose, network, row, crowd, settings, now: state.now() })
    }

    /// Whether no password is taken from this network now.
    pub(crate) fn are_shut(&self) -> bool {
        self.own_are_shut() || self.crowd_is_shut().is_some()
    }

    /// Whether what was tried from this network as others shuts it out.
    fn crowd_is_shut(&self) -> Option<&FailingNetworkRow> {
        self.crowd.as_ref().and_then(Crowd::shut)
    }

    /// Whether what was tried under the name itself shuts it.
    pub(crate) fn own_are_shut(&self) -> bool {
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

    /// Counts a failure. Not for tries that [`Self::are_shut`].
    fn fail(&mut self) {
        let until_ms = self.now.saturating_add(self.settings.lockout_ms);
        let LoginsRow { failing, known, .. } = &mut self.row;
        match failing.iter_mut().find(|failing| failing.network == self.network) {
            Some(failing) => {
                failing.failures = failing.failures.saturating_add(1);
                failing.until_ms = until_ms;
            }
            None => {
                make_room(failing, MAX_STRANGE, |failing| !among(known, &failing.network));
                failing.push(FailingNetworkRow { network: self.network.clone(), failures: 1, until_ms });
            }
        }
        if !is_known(&self.row, &self.network) {
            self.row.strange_failures = self.row.strange_failures.saturating_add(1);
            self.row.strange_until_ms = until_ms;
        }
        if let Some(crowd) = &mut self.crowd {
            crowd.fail(self.now, self.settings.lockout_ms);
        }
    }

    /// Forgets the failures from this network, and knows it from now on: the user has proved itself.
    pub(crate) fn succeed(&mut self) {
        let strange = !is_known(&self.row, &self.network);
        let own = |failing: &FailingNetworkRow| failing.network == self.network;
        if strange && let Some(failing) = self.row.failing.iter().find(|failing| own(failing)) {
            self.row.strange_failures = self.row.strange_failures.saturating_sub(failing.failures);
        }
        self.row.failing.retain(|failing| !own(failing));
        self.row.shut.retain(|shut| !own(shut));
        // Nothing that was counted for others is taken back, or keeps this user out any longer.
        self.crowd = None;
        self.row.known.retain(|known| known.network != self.network);
        self.row.known.sort_by_key(|known| std::cmp::Reverse(known.last_ms));
        self.row.known.truncate(MAX_KNOWN - 1);
        self.row.known.push(KnownNetworkRow { network: self.network.clone(), last_ms: self.now });
    }

    /// Keeps them. That nothing has changed is written too: a try takes as long whatever comes of it.
    pub(crate) fn save(mut self, tx: &mut (impl Transaction + ?Sized)) {
        self.note_crowd();
        let Self { whose, mut row, crowd, now, settings, .. } = self;
        if let Some(crowd) = crowd {
            crowd.save(tx);
        }
        let failing = row.failing.iter().chain(&row.shut).map(|failing| failing.until_ms);
        let known = row.known.iter().map(|known| known.last_ms.saturating_add(KNOWN_MS));
        row.expires_at_ms =
            failing.chain(known).max().unwrap_or_else(|| now.saturating_add(settings.lockout_ms));
        match whose {
            Whose::User(name) => tx.put(&LoginsKey(name), &row),
            Whose::Nobody(slot) => tx.put(&NobodysLoginsKey(slot), &row),
        }
    }

    /// Remembers beside the name that what was tried as others keeps it out from here: so it is seen where its own lockouts
    /// are, and ended with them.
    fn note_crowd(&mut self) {
        let Some(shut) = self.crowd_is_shut().cloned() else { return };
        self.row.shut.retain(|noted| noted.network != shut.network);
        if self.row.shut.len() >= MAX_SHUT {
            self.row.shut.drain(..1);
        }
        self.row.shut.push(shut);
    }
}

/// Forgets networks with failures until there is room for one more of those that `count`, of which there are at most `most`.
fn make_room(failing: &mut Vec<FailingNetworkRow>, most: usize, counts: impl Fn(&FailingNetworkRow) -> bool) {
    while failing.iter().filter(|failing| counts(failing)).count() >= most {
        let counted = failing.iter().enumerate().filter(|(_, failing)| counts(failing));
        let Some((least, _)) = counted.min_by_key(|(_, failing)| (failing.failures, failing.until_ms)) else {
            return;
        };
        failing.remove(least);
    }
}

/// The network that an address counts for: the /24 around an IPv4 address, the /64 around another; empty for what is no address.
pub fn network(client_address: &str) -> String {
    let address: Result<IpAddr, _> = client_address.parse();
    address.map_or_else(|_| String::new(), |address| Network::around(address).to_string())
}

/// What is stored, without what is past its time.
fn stored(state: &mut (impl Read + ?Sized), whose: &Whose) -> Result<LoginsRow, CoreError> {
    let now = state.now();
    let found = match whose {
        Whose::User(name) => state.get(&LoginsKey(name.clone()))?,
        Whose::Nobody(slot) => state.get(&NobodysLoginsKey(*slot))?,
    };
    let mut row = found.map(|found| found.row).unwrap_or_default();
    row.failing.retain(|failing| now < failing.until_ms);
    row.shut.retain(|shut| now < shut.until_ms);
    row.known.retain(|known| now < known.last_ms.saturating_add(KNOWN_MS));
    if row.strange_until_ms <= now {
        (row.strange_failures, row.strange_until_ms) = (0, 0);
    }
    Ok(row)
}

fn is_known(row: &LoginsRow, network: &str) -> bool {
    among(&row.known, network)
}

fn among(known: &[KnownNetworkRow], network: &str) -> bool {
    known.iter().any(|known| known.network == network)
}

/// Whether networks that are not known are shut out together.
fn strangers_are_out(row: &LoginsRow, threshold: u32) -> bool {
    row.strange_failures >= threshold.saturating_mul(STRANGE_FACTOR)
}

/// The lockouts of a user that last.
///
/// # Errors
/// [`CoreError::Storage`].
pub fn of(state: &mut (impl Read + ?Sized), name: &UserName) -> Result<Vec<Lockout>, CoreError> {
    let settings = cluster_config::settings(state)?;
    let row = stored(state, &Whose::User(name.clone()))?;
    let of = |failing: &FailingNetworkRow, of_all_users| Lockout {
        network: Some(failing.network.clone()),
        of_all_users,
        failures: failing.failures,
        until_ms: failing.until_ms,
    };
    let shut = row.failing.iter().filter(|failing| failing.failures >= settings.lockout_threshold);
    let mut lockouts: Vec<_> = shut.map(|failing| of(failing, false)).collect();
    if strangers_are_out(&row, settings.lockout_threshold) {
        let (failures, until_ms) = (row.strange_failures, row.strange_until_ms);
        lockouts.push(Lockout { network: None, of_all_users: false, failures, until_ms });
    }
    // As the networks are now: what was noted may have been ended since.
    for noted in row.shut.iter().filter(|noted| !is_known(&row, &noted.network)) {
        let crowd = Crowd::load(state, &noted.network, &settings)?;
        lockouts.extend(crowd.as_ref().and_then(Crowd::shut).map(|shut| of(shut, true)));
    }
    Ok(lockouts)
}

/// Refuses what takes the password of a user who has a session already, where its own failures have locked the caller's network
/// out. What was tried there as others is none of its business: how often it may guess is bounded by its own.
///
/// # Errors
/// [`CoreError::Precondition`], [`CoreError::Storage`].
pub fn check(state: &mut (impl Read + ?Sized), context: &Context, name: &UserName) -> Result<(), CoreError> {
    if Tries::load(state, Whose::User(name.clone()), &context.origin.client_address)?.own_are_shut() {
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

/// Counts a failure, and tells the audit log of the lockouts that it begins.
pub(crate) fn fail(tx: &mut (impl Transaction + ?Sized), context: &Context, tries: &mut Tries) {
    tries.fail();
    let until_ms = tries.now.saturating_add(tries.settings.lockout_ms).to_string();
    // As many as there are users and networks, and no more while they last: so they are recorded always.
    if let (Whose::User(name), true) = (&tries.whose, tries.own_are_shut()) {
        let fields = [("network", tries.network.clone()), ("until_ms", until_ms.clone())];
        audit::append(tx, context, EventType::Lockout, format!("user:{name}"), &fields);
    }
    if let Some(shut) = tries.crowd_is_shut() {
        let fields = [("failures", shut.failures.to_string()), ("until_ms", until_ms)];
        audit::append(tx, context, EventType::Lockout, format!("network:{}", shut.network), &fields);
    }
}

/// Ends the lockouts of a user, and forgets its failures; and those of the networks that it was refused from for what was
/// tried there as others.
///
/// # Errors
/// [`CoreError::NotFound`] when there is no such user; [`CoreError::Denied`] when the user has what the caller does not hold, for
/// whoever clears as often as it likes lets passwords be guessed without end; [`CoreError::Storage`].
pub fn clear(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    name: &UserName,
) -> Result<(), CoreError> {
    user::manages(tx, context, name)?;
    let mut tries = Tries::load(tx, Whose::User(name.clone()), "")?;
    tries.row.failing.clear();
    (tries.row.strange_failures, tries.row.strange_until_ms) = (0, 0);
    let shut = std::mem::take(&mut tries.row.shut);
    tries.crowd = None;
    let settings = tries.settings;
    tries.save(tx);
    let mut opened = Vec::new();
    for FailingNetworkRow { network, .. } in shut {
        let Some(mut crowd) = Crowd::load(tx, &network, &settings)? else { continue };
        if crowd.shut().is_some() {
            crowd.forget();
            crowd.save(tx);
            opened.push(network);
        }
    }
    let fields = (!opened.is_empty()).then(|| ("networks", opened.join(",")));
    audit::append(tx, context, EventType::LockoutClear, format!("user:{name}"), fields.as_slice());
    Ok(())
}

/// Forgets all of a user's tries, and which networks are known.
pub(crate) fn forget(tx: &mut (impl Transaction + ?Sized), name: &UserName) {
    tx.delete(&LoginsKey(name.clone()));
}

#[cfg(test)]
#[path = "lockout_tests.rs"]
mod tests;
