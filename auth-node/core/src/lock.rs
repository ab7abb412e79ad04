//! Locks: whoever or whatever one is on is kept out, wherever that is decided, from the commit on. What was issued before
//! is revoked with it, and stays so when the lock ends.
//!
//! Nobody locks itself out, and only an admin an admin: so whoever can lift a lock is always left.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use prost::Message as _;
use store_txn::{Read, ReadExt, Transaction, TransactionExt, UnixMillis, Versioned};

use crate::{
    Context, CoreError,
    audit::{self, EventType},
    context::{Caller, Role},
    host_login::is_login,
    join,
    names::{AgentId, DeviceId, IdentityName, LockId, RoleName, UserName},
    page::{Page, PageRequest},
    revocation,
    tables::{
        AgentIdentityKey, DeviceKey, LockKey, LockRow, LockTargetKey, LockTargetRow, NodeKey, RoleKey,
        RoleMemberKey, TargetKind, UserKey,
    },
    trusted_cluster,
};

const KIND: &str = "lock";

/// Longest message, in bytes.
const MAX_MESSAGE: usize = 1024;
/// Shortest and longest life of a lock that ends by itself.
const TTL: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(10 * 366 * 24 * 3600);
/// Rows that are looked at in one step.
const STEP: usize = 256;
/// Most locks of a kind that are looked up at once; where there are more, each thing is looked up by itself.
const MOST_AT_ONCE: usize = 1024;

/// What is locked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A user, of this cluster or of a trusted one: it can do nothing.
    User(UserName),
    /// A role: who holds it can do nothing.
    Role(RoleName),
    /// A login on hosts: nobody gets a certificate for it.
    Login(String),
    /// A node or ingest: its certificates are no credential, and nobody gets one for it.
    Node(AgentId),
    /// A WebAuthn device: nobody logs in with it, and sessions that were made with it can do nothing.
    Device(DeviceId),
    /// An agent identity: it can do nothing.
    AgentIdentity(IdentityName),
}

impl Target {
    /// Reads a login.
    ///
    /// # Errors
    /// [`CoreError::Invalid`] for `field`.
    pub fn login(field: &str, text: &str) -> Result<Self, CoreError> {
        if is_login(text) {
            return Ok(Self::Login(text.to_owned()));
        }
        Err(CoreError::invalid(field, "this is not the name of a login"))
    }

    /// What kind of thing it is.
    pub fn kind(&self) -> TargetKind {
        match self {
            Self::User(_) => TargetKind::User,
            Self::Role(_) => TargetKind::Role,
            Self::Login(_) => TargetKind::Login,
            Self::Node(_) => TargetKind::Node,
            Self::Device(_) => TargetKind::Device,
            Self::AgentIdentity(_) => TargetKind::AgentIdentity,
        }
    }

    /// Its name or id.
    pub fn name(&self) -> &str {
        match self {
            Self::User(name) => name.as_str(),
            Self::Role(name) => name.as_str(),
            Self::Login(login) => login,
            Self::Node(id) => id.as_str(),
            Self::Device(id) => id.as_str(),
            Self::AgentIdentity(name) => name.as_str(),
        }
    }
}

impl TargetKind {
    /// For people.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Unspecified => "nothing",
            Self::User => "user",
            Self::Role => "role",
            Self::Login => "login",
            Self::Node => "node",
            Self::Device => "device",
            Self::AgentIdentity => "agent identity",
            Self::Session => "session",
            Self::TrustedCluster => "trusted cluster",
            Self::NodeLabels => "labels of node",
        }
    }
}

/// A lock to make.
#[derive(Debug, Clone)]
pub struct NewLock {
    /// Its id.
    pub id: LockId,
    /// What to lock.
    pub target: Target,
    /// Shown to the one who is locked out; at most 1024 bytes, without control characters.
    pub message: String,
    /// How long; `None`: until it is deleted. From 1 second to 10 years.
    pub ttl: Option<Duration>,
}

/// Makes a lock, and revokes what was issued to or for what it is on.
///
/// # Errors
/// [`CoreError::Invalid`]; [`CoreError::NotFound`] for what is not there; [`CoreError::Precondition`] for who would lock
/// itself out; [`CoreError::Denied`] for who is no admin and would lock one; [`CoreError::Unauthenticated`];
/// [`CoreError::Storage`].
pub fn create(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    new: NewLock,
) -> Result<LockRow, CoreError> {
    let NewLock { id, target, message, ttl } = new;
    if message.len() > MAX_MESSAGE || message.chars().any(char::is_control) {
        let reason = format!("at most {MAX_MESSAGE} bytes, without control characters");
        return Err(CoreError::invalid("message", reason));
    }
    if ttl.is_some_and(|ttl| !TTL.contains(&ttl)) {
        return Err(CoreError::invalid("ttl", "from 1 second to 10 years"));
    }
    exists(tx, &target)?;
    leaves_the_caller(tx, &context.caller, &target)?;
    let ttl_ms = ttl.map(|ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX));
    let expires_at_ms = ttl_ms.map_or(0, |ttl| tx.now().saturating_add(ttl));
    Ok(put(tx, context, id, &target, message, expires_at_ms))
}

/// Writes a lock, whoever makes it, and revokes what was issued to or for what it is on. It ends at a time, or at 0 never.
pub(crate) fn put(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    id: LockId,
    target: &Target,
    message: String,
    expires_at_ms: UnixMillis,
) -> LockRow {
    let (kind, name) = (target.kind(), target.name().to_owned());
    let row = LockRow {
        kind: kind.into(),
        name: name.clone(),
        message,
        created_at_ms: tx.now(),
        created_by: context.caller.actor(),
        expires_at_ms,
    };
    tx.put(&LockKey(id.clone()), &row);
    let on = LockTargetKey { kind, name: name.clone(), id: id.clone() };
    tx.put(&on, &LockTargetRow { expires_at_ms: row.expires_at_ms });
    revocation::revoke(tx, kind, &name);
    let fields = [
        ("lock_id", id.to_string()),
        ("message", row.message.clone()),
        ("expires_at_ms", row.expires_at_ms.to_string()),
    ];
    audit::append(tx, context, EventType::LockCreate, on_target(kind, &name), &fields);
    row
}

/// One lock.
///
/// # Errors
/// [`CoreError::NotFound`], [`CoreError::Storage`].
pub fn get(state: &mut (impl Read + ?Sized), id: &LockId) -> Result<LockRow, CoreError> {
    let not_found = || CoreError::NotFound { kind: KIND, name: id.to_string() };
    Ok(state.get(&LockKey(id.clone()))?.ok_or_else(not_found)?.row)
}

/// A page of the locks, ordered by id.
///
/// # Errors
/// [`CoreError::Invalid`] for a page token that is not of this list; [`CoreError::Storage`].
pub fn list(
    state: &mut (impl Read + ?Sized),
    page: &PageRequest,
) -> Result<Page<(LockId, Versioned<LockRow>)>, CoreError> {
    let after = page.after(LockId::parse)?;
    let rows = state.scan(after.map(LockKey).as_ref(), page.size.saturating_add(1))?;
    let locks = rows.into_iter().map(|(key, row)| (key.0, row)).collect();
    Ok(Page::cut(locks, page.size, |(_, lock)| lock.row.encoded_len(), |(id, _)| id.to_string()))
}

/// Removes a lock. What it revoked stays revoked.
///
/// # Errors
/// [`CoreError::NotFound`]; [`CoreError::Denied`] for one on an admin, which is for admins to lift as it was to make;
/// [`CoreError::Storage`].
pub fn delete(tx: &mut (impl Transaction + ?Sized), context: &Context, id: &LockId) -> Result<(), CoreError> {
    let row = get(tx, id)?;
    let kind = row.kind();
    if on_admin(tx, kind, &row.name)? && !context.caller.holder()?.is_admin() {
        return Err(CoreError::Denied("lifting a lock on an admin needs the role admin".into()));
    }
    tx.delete(&LockKey(id.clone()));
    tx.delete(&LockTargetKey { kind, name: row.name.clone(), id: id.clone() });
    let fields = [("lock_id", id.to_string())];
    audit::append(tx, context, EventType::LockDelete, on_target(kind, &row.name), &fields);
    Ok(())
}

fn on_target(kind: TargetKind, name: &str) -> String {
    format!("{}:{name}", kind.word())
}

fn exists(tx: &mut (impl Transaction + ?Sized), target: &Target) -> Result<(), CoreError> {
    let there = match target {
        Target::User(name) => {
            tx.get(&UserKey(name.clone()))?.is_some() || trusted_cluster::cluster_of(tx, name)?.is_some()
        }
        Target::Role(name) => tx.get(&RoleKey(name.clone()))?.is_some(),
        Target::Login(_) => true,
        Target::AgentIdentity(name) => tx.get(&AgentIdentityKey(name.clone()))?.is_some(),
        Target::Node(id) => tx.get(&NodeKey(id.clone()))?.is_some() || join::unfinished(tx, id)?.is_some(),
        Target::Device(id) => tx.get(&DeviceKey(id.clone()))?.is_some(),
    };
    let not_found = || CoreError::NotFound { kind: target.kind().word(), name: target.name().to_owned() };
    there.then_some(()).ok_or_else(not_found)
}

fn leaves_the_caller(
    tx: &mut (impl Transaction + ?Sized),
    caller: &Caller,
    target: &Target,
) -> Result<(), CoreError> {
    let holder = caller.holder()?;
    let own = match (target, caller) {
        (Target::User(name), Caller::User(user)) => user.name == *name,
        (Target::AgentIdentity(name), Caller::AgentIdentity(identity)) => identity.name == *name,
        (Target::Device(id), Caller::User(user)) => user.session.device == id.as_str(),
        (Target::Role(name), _) => holder.holds(name),
        _ => false,
    };
    if own {
        return Err(CoreError::Precondition("this would lock you out yourself".into()));
    }
    if on_admin(tx, target.kind(), target.name())? && !holder.is_admin() {
        return Err(CoreError::Denied("locking an admin needs the role admin".into()));
    }
    Ok(())
}

/// Whether a lock on a thing is one on an admin.
fn on_admin(tx: &mut (impl Transaction + ?Sized), kind: TargetKind, name: &str) -> Result<bool, CoreError> {
    let user = match kind {
        TargetKind::User => name.to_owned(),
        TargetKind::Device => match DeviceId::parse(name) {
            Some(id) => tx.get(&DeviceKey(id))?.map(|device| device.row.user).unwrap_or_default(),
            None => String::new(),
        },
        TargetKind::AgentIdentity => {
            let identity = tx.get(&AgentIdentityKey(IdentityName::parse("target.agent_identity", name)?))?;
            return Ok(
                identity.is_some_and(|found| found.row.roles.iter().any(|role| role == RoleName::ADMIN))
            );
        }
        TargetKind::Role => return Ok(name == RoleName::ADMIN),
        _ => return Ok(false),
    };
    // A lock may outlive the device that it is on.
    if user.is_empty() {
        return Ok(false);
    }
    let member = RoleMemberKey { role: RoleName::admin(), user: UserName::parse("target.user", &user)? };
    Ok(tx.get(&member)?.is_some())
}

/// A lock on a thing, if there is one.
///
/// # Errors
/// [`CoreError::Storage`].
pub(crate) fn on(
    state: &mut (impl Read + ?Sized),
    kind: TargetKind,
    name: &str,
) -> Result<Option<LockRow>, CoreError> {
    let rows = state.scan_under::<LockTargetKey>(LockTargetKey::front(kind, name), None, 1)?;
    match rows.into_iter().next() {
        Some((key, _)) => Ok(state.get(&LockKey(key.id))?.map(|stored| stored.row)),
        None => Ok(None),
    }
}

/// Refuses when there is a lock on a thing.
///
/// # Errors
/// [`CoreError::Locked`], [`CoreError::Storage`].
pub(crate) fn check(state: &mut (impl Read + ?Sized), kind: TargetKind, name: &str) -> Result<(), CoreError> {
    match on(state, kind, name)? {
        Some(lock) => Err(refusal(&lock)),
        None => Ok(()),
    }
}

/// The locks on things of a kind, looked up at once for many of them.
pub(crate) struct Known {
    kind: TargetKind,
    /// By name, a lock on each. `None`: there are too many to look up at once.
    on: Option<BTreeMap<String, LockId>>,
}

impl Known {
    /// # Errors
    /// [`CoreError::Storage`].
    pub(crate) fn read(state: &mut (impl Read + ?Sized), kind: TargetKind) -> Result<Self, CoreError> {
        let front = LockTargetKey::kind_front(kind);
        let rows = state.scan_under::<LockTargetKey>(front, None, MOST_AT_ONCE + 1)?;
        let few = rows.len() <= MOST_AT_ONCE;
        let on = few.then(|| rows.into_iter().map(|(key, _)| (key.name, key.id)).collect());
        Ok(Self { kind, on })
    }

    /// As [`check`].
    ///
    /// # Errors
    /// [`CoreError::Locked`], [`CoreError::Storage`].
    pub(crate) fn check(&self, state: &mut (impl Read + ?Sized), name: &str) -> Result<(), CoreError> {
        let Some(on) = &self.on else { return check(state, self.kind, name) };
        let Some(id) = on.get(name) else { return Ok(()) };
        state.get(&LockKey(id.clone()))?.map_or(Ok(()), |lock| Err(refusal(&lock.row)))
    }
}

/// The reason of a lock that a check has found.
///
/// # Errors
/// What else the check has failed by.
pub(crate) fn reason(checked: Result<(), CoreError>) -> Result<Option<String>, CoreError> {
    match checked {
        Ok(()) => Ok(None),
        Err(CoreError::Locked(reason)) => Ok(Some(reason)),
        Err(error) => Err(error),
    }
}

/// Refuses a user on whom, or on one of whose roles, there is a lock.
///
/// # Errors
/// [`CoreError::Locked`], [`CoreError::Storage`].
pub(crate) fn check_user(
    state: &mut (impl Read + ?Sized),
    name: &UserName,
    roles: &[Role],
) -> Result<(), CoreError> {
    check_with_roles(state, TargetKind::User, name.as_str(), roles)
}

/// Refuses an agent identity on which, or on one of whose roles, there is a lock.
///
/// # Errors
/// [`CoreError::Locked`], [`CoreError::Storage`].
pub(crate) fn check_identity(
    state: &mut (impl Read + ?Sized),
    name: &IdentityName,
    roles: &[Role],
) -> Result<(), CoreError> {
    check_with_roles(state, TargetKind::AgentIdentity, name.as_str(), roles)
}

fn check_with_roles(
    state: &mut (impl Read + ?Sized),
    kind: TargetKind,
    name: &str,
    roles: &[Role],
) -> Result<(), CoreError> {
    check(state, kind, name)?;
    roles.iter().try_for_each(|role| check(state, TargetKind::Role, role.name.as_str()))
}

fn refusal(lock: &LockRow) -> CoreError {
    let (what, name) = (lock.kind().word(), &lock.name);
    let why = if lock.message.is_empty() { "ask an administrator" } else { lock.message.as_str() };
    CoreError::Locked(format!("{what} {name} is locked: {why}"))
}

/// Names of all things of a kind on which there is a lock.
///
/// # Errors
/// [`CoreError::Storage`].
pub(crate) fn all_on(
    state: &mut (impl Read + ?Sized),
    kind: TargetKind,
) -> Result<BTreeSet<String>, CoreError> {
    let (mut names, mut after) = (BTreeSet::new(), None);
    loop {
        let rows =
            state.scan_under::<LockTargetKey>(LockTargetKey::kind_front(kind), after.as_ref(), STEP)?;
        let last_step = rows.len() < STEP;
        after = rows.last().map(|(key, _)| key.clone());
        names.extend(rows.into_iter().map(|(key, _)| key.name));
        if last_step {
            return Ok(names);
        }
    }
}

#[cfg(test)]
#[path = "lock_tests.rs"]
mod tests;
