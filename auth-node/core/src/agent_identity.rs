//! Agent identities: bots, CI jobs, AI agents. One has roles and traits as a user has, and no password: it begins with a
//! secret that is good once, and from then on renews its credentials by those that it has. Its names are a space of their
//! own; wherever a user's name could be, it has `bot:` in front, so that neither ever passes for the other.
//!
//! Nobody gives an identity what it does not hold, and a role that one holds cannot be deleted. What is for people alone no
//! identity may do, whatever its roles: see [`Caller::user`](crate::Caller::user).

mod credentials;
mod request;
#[cfg(test)]
mod testing;

use std::{collections::BTreeSet, time::Duration};

use prost::Message as _;
use store_txn::{Read, ReadExt, Transaction, TransactionExt, UnixMillis, Versioned};

pub(crate) use self::credentials::Known;
pub use self::{
    credentials::{Credentials, Shown, bootstrap, candidates, holder, renew},
    request::{CredentialRequest, Fresh},
};
use crate::{
    Context, CoreError,
    audit::{self, EventType},
    evaluate::Traits,
    mapped,
    names::{IdentityName, RoleName},
    page::{Page, PageRequest},
    revocation,
    secret::SecretDigest,
    session::{self, Owner},
    spiffe::SpiffeId,
    tables::{
        AgentIdentityKey, AgentIdentityRow, AgentIdentityStateKey, AgentIdentityStateRow, BootstrapSecretKey,
        BootstrapSecretRow, IdentityTlsKeyKey, MapperKind, SpiffeIdKey, SpiffeIdRow, TargetKind,
    },
    user::{self, Grants},
};

const KIND: &str = "agent identity";

/// Life of a bootstrap secret when its maker does not say.
const DEFAULT_BOOTSTRAP_TTL: Duration = Duration::from_secs(3600);
/// Shortest and longest life of a bootstrap secret.
const BOOTSTRAP_TTL: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(60)..=Duration::from_secs(7 * 24 * 3600);
/// Life of an identity's credentials when nobody says.
const DEFAULT_MAX_TTL: Duration = Duration::from_secs(3600);
/// Shortest and longest life of an identity's credentials. They are renewed after two thirds of it: an attempt that was
/// given up is over long before the next renewal.
const MAX_TTL: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(300)..=Duration::from_secs(7 * 24 * 3600);
/// Most SPIFFE IDs of an identity.
const MAX_SPIFFE_IDS: usize = 16;
/// Rows that are looked at in one step.
const STEP: usize = 256;

/// An agent identity as callers see it.
#[derive(Debug, Clone, PartialEq)]
pub struct AgentIdentity {
    /// Canonical name.
    pub name: IdentityName,
    /// What an admin says of it.
    pub row: AgentIdentityRow,
    /// Of its last credentials; 0 before the first.
    pub generation: u64,
    /// When those end; 0 before the first.
    pub ends_at_ms: UnixMillis,
    /// When its bootstrap secret ends that was not used yet; 0: it has none.
    pub secret_ends_at_ms: UnixMillis,
    /// Rises with every change that an admin makes; 0 for a write of this same transaction.
    pub revision: u64,
}

/// What an admin wants an agent identity to be, checked by itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    name: IdentityName,
    grants: Grants,
    max_ttl_ms: u64,
    spiffe_ids: Vec<String>,
}

impl Wanted {
    /// `max_ttl` unset: one hour; 5 minutes to 7 days. At most 16 SPIFFE IDs, none twice. Roles and traits as a user's.
    ///
    /// # Errors
    /// [`CoreError::Invalid`].
    pub fn new(
        name: IdentityName,
        roles: BTreeSet<RoleName>,
        traits: Traits,
        max_ttl: Option<Duration>,
        spiffe_ids: Vec<String>,
    ) -> Result<Self, CoreError> {
        let grants = Grants { roles, traits };
        user::check_grants("identity", &grants)?;
        let max_ttl = max_ttl.unwrap_or(DEFAULT_MAX_TTL);
        if !MAX_TTL.contains(&max_ttl) {
            return Err(CoreError::invalid("identity.max_ttl", "from 5 minutes to 7 days"));
        }
        if spiffe_ids.len() > MAX_SPIFFE_IDS {
            return Err(CoreError::invalid("identity.spiffe_ids", format!("at most {MAX_SPIFFE_IDS}")));
        }
        for (index, id) in spiffe_ids.iter().enumerate() {
            SpiffeId::parse(&format!("identity.spiffe_ids[{index}]"), id)?;
        }
        let ids: BTreeSet<_> = spiffe_ids.iter().cloned().collect();
        if ids.len() != spiffe_ids.len() {
            return Err(CoreError::invalid("identity.spiffe_ids", "one is there twice"));
        }
        let max_ttl_ms = u64::try_from(max_ttl.as_millis()).unwrap_or(u64::MAX);
        Ok(Self { name, grants, max_ttl_ms, spiffe_ids: ids.into_iter().collect() })
    }

    /// Its name.
    pub fn name(&self) -> &IdentityName {
        &self.name
    }
}

/// A bootstrap secret to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewSecret {
    digest: SecretDigest,
    ttl_ms: UnixMillis,
}

impl NewSecret {
    /// Of the digest of a secret. `ttl` unset: one hour; 1 minute to 7 days.
    ///
    /// # Errors
    /// [`CoreError::Invalid`] for `bootstrap_ttl`.
    pub fn new(digest: SecretDigest, ttl: Option<Duration>) -> Result<Self, CoreError> {
        let ttl = ttl.unwrap_or(DEFAULT_BOOTSTRAP_TTL);
        if !BOOTSTRAP_TTL.contains(&ttl) {
            return Err(CoreError::invalid("bootstrap_ttl", "from 1 minute to 7 days"));
        }
        Ok(Self { digest, ttl_ms: u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX) })
    }
}

/// One agent identity.
///
/// # Errors
/// [`CoreError::NotFound`], [`CoreError::Storage`].
pub fn get(state: &mut (impl Read + ?Sized), name: &IdentityName) -> Result<AgentIdentity, CoreError> {
    let Versioned { revision, row } = stored(state, name)?;
    complete(state, name.clone(), revision, row)
}

/// A page of the agent identities, ordered by name.
///
/// # Errors
/// [`CoreError::Invalid`] for a page token that is not of this list; [`CoreError::Storage`].
pub fn list(state: &mut (impl Read + ?Sized), page: &PageRequest) -> Result<Page<AgentIdentity>, CoreError> {
    let after = page.after.as_deref().map(|text| IdentityName::parse("page_token", text)).transpose()?;
    let rows = state.scan(after.map(AgentIdentityKey).as_ref(), page.size.saturating_add(1))?;
    let Page { items, next } =
        Page::cut(rows, page.size, |(_, stored)| stored.row.encoded_len(), |(key, _)| key.0.to_string());
    let complete =
        |(key, stored): (AgentIdentityKey, Versioned<_>)| complete(state, key.0, stored.revision, stored.row);
    Ok(Page { items: items.into_iter().map(complete).collect::<Result<_, _>>()?, next })
}

/// The agent identity that a SPIFFE ID is of, if there is one.
///
/// # Errors
/// [`CoreError::Storage`].
pub fn by_spiffe_id(state: &mut (impl Read + ?Sized), id: &str) -> Result<Option<IdentityName>, CoreError> {
    let found = state.get(&SpiffeIdKey(id.to_owned()))?;
    found.map(|found| IdentityName::parse("spiffe_ids", &found.row.identity)).transpose()
}

/// Creates an agent identity with a bootstrap secret.
///
/// # Errors
/// [`CoreError::NotFound`] for a role, [`CoreError::Denied`] for what the caller does not hold,
/// [`CoreError::AlreadyExists`] for the identity or a SPIFFE ID, [`CoreError::Storage`].
pub fn create(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    wanted: &Wanted,
    secret: &NewSecret,
) -> Result<AgentIdentity, CoreError> {
    let name = &wanted.name;
    user::roles_exist(tx, &wanted.grants.roles)?;
    user::holds(context.caller.holder()?, &wanted.grants)?;
    if tx.get(&AgentIdentityKey(name.clone()))?.is_some() {
        return Err(CoreError::AlreadyExists { kind: KIND, name: name.to_string() });
    }
    take_spiffe_ids(tx, name, &[], &wanted.spiffe_ids)?;
    let row = AgentIdentityRow {
        roles: user::texts(&wanted.grants.roles),
        traits: wanted.grants.traits.clone(),
        max_ttl_ms: wanted.max_ttl_ms,
        spiffe_ids: wanted.spiffe_ids.clone(),
        created_at_ms: tx.now(),
        created_by: context.caller.actor(),
    };
    mapped::note(tx, MapperKind::AgentIdentity, name.as_str(), &BTreeSet::new(), &wanted.grants.roles);
    tx.put(&AgentIdentityKey(name.clone()), &row);
    let state = begin(tx, name, secret)?;
    let mut fields = told(&row).to_vec();
    fields.push(("secret_ends_at_ms", state.secret_ends_at_ms.to_string()));
    audit::append(tx, context, EventType::IdentityCreate, name.principal(), &fields);
    complete(tx, name.clone(), 0, row)
}

/// Replaces an agent identity's roles, traits, longest life and SPIFFE IDs; its certificates are revoked if something was
/// taken from it, and sessions end that were made by a SPIFFE ID which is not its any more. With a `secret` it begins anew with that: its sessions end, all its certificates are revoked, and what
/// it had cannot be renewed.
///
/// # Errors
/// [`CoreError::NotFound`] for the identity or a role, [`CoreError::StaleRevision`], [`CoreError::Denied`] for what the
/// caller does not hold, [`CoreError::AlreadyExists`] for a SPIFFE ID, [`CoreError::Storage`].
pub fn update(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    wanted: &Wanted,
    revision: u64,
    secret: Option<&NewSecret>,
) -> Result<AgentIdentity, CoreError> {
    let name = &wanted.name;
    let current = stored(tx, name)?;
    CoreError::check_revision(KIND, name.as_str(), revision, current.revision)?;
    user::roles_exist(tx, &wanted.grants.roles)?;
    let (caller, before) =
        (context.caller.holder()?, user::granted(&current.row.roles, &current.row.traits)?);
    user::holds(caller, &before)?;
    user::holds(caller, &wanted.grants)?;
    take_spiffe_ids(tx, name, &current.row.spiffe_ids, &wanted.spiffe_ids)?;
    let lost_ids = current.row.spiffe_ids.iter().any(|id| !wanted.spiffe_ids.contains(id));
    session::end_without_spiffe_id(tx, name, &wanted.spiffe_ids)?;

    mapped::note(tx, MapperKind::AgentIdentity, name.as_str(), &before.roles, &wanted.grants.roles);
    let row = AgentIdentityRow {
        roles: user::texts(&wanted.grants.roles),
        traits: wanted.grants.traits.clone(),
        max_ttl_ms: wanted.max_ttl_ms,
        spiffe_ids: wanted.spiffe_ids.clone(),
        ..current.row
    };
    tx.put(&AgentIdentityKey(name.clone()), &row);
    audit::append(tx, context, EventType::IdentityUpdate, name.principal(), &told(&row));
    match secret {
        Some(secret) => reset(tx, context, name, secret)?,
        None if lost_ids || !wanted.grants.include(&before) => {
            revocation::revoke(tx, TargetKind::AgentIdentity, name.as_str());
        }
        None => {}
    }
    complete(tx, name.clone(), 0, row)
}

/// Deletes an agent identity, ends its sessions and revokes its certificates. Answers how many sessions those were.
///
/// # Errors
/// [`CoreError::NotFound`], [`CoreError::Denied`] when it has what the caller does not hold, [`CoreError::Storage`].
pub fn delete(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    name: &IdentityName,
) -> Result<u32, CoreError> {
    let current = stored(tx, name)?.row;
    let before = user::granted(&current.roles, &current.traits)?;
    user::holds(context.caller.holder()?, &before)?;
    mapped::note(tx, MapperKind::AgentIdentity, name.as_str(), &before.roles, &BTreeSet::new());
    take_spiffe_ids(tx, name, &current.spiffe_ids, &[])?;
    let ended = end(tx, name)?;
    tx.delete(&AgentIdentityStateKey(name.clone()));
    tx.delete(&AgentIdentityKey(name.clone()));
    let fields = [("sessions_ended", ended.to_string())];
    audit::append(tx, context, EventType::IdentityDelete, name.principal(), &fields);
    Ok(ended)
}

/// Has an identity begin anew with a secret.
fn reset(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    name: &IdentityName,
    secret: &NewSecret,
) -> Result<(), CoreError> {
    let ended = end(tx, name)?;
    let state = begin(tx, name, secret)?;
    let fields =
        [("sessions_ended", ended.to_string()), ("secret_ends_at_ms", state.secret_ends_at_ms.to_string())];
    audit::append(tx, context, EventType::IdentityReset, name.principal(), &fields);
    Ok(())
}

/// Writes the state of an identity that has nothing yet but a secret.
fn begin(
    tx: &mut (impl Transaction + ?Sized),
    name: &IdentityName,
    secret: &NewSecret,
) -> Result<AgentIdentityStateRow, CoreError> {
    let ends_at_ms = tx.now().saturating_add(secret.ttl_ms);
    let state = AgentIdentityStateRow {
        secret_digest: secret.digest.0.to_vec(),
        secret_ends_at_ms: ends_at_ms,
        epoch: session::epoch(tx)?,
        ..AgentIdentityStateRow::default()
    };
    tx.put(&AgentIdentityStateKey(name.clone()), &state);
    let row = BootstrapSecretRow { identity: name.to_string(), expires_at_ms: ends_at_ms };
    tx.put(&BootstrapSecretKey(secret.digest), &row);
    Ok(state)
}

/// Takes all that an identity has: its sessions, certificates, keys and secret. Answers how many sessions those were.
fn end(tx: &mut (impl Transaction + ?Sized), name: &IdentityName) -> Result<u32, CoreError> {
    let ended = session::end_all_of(tx, &Owner::AgentIdentity(name.clone()), None)?;
    revocation::revoke(tx, TargetKind::AgentIdentity, name.as_str());
    if let Some(state) = tx.get(&AgentIdentityStateKey(name.clone()))? {
        forget_secret(tx, &state.row);
    }
    let mut after = None;
    loop {
        let front = IdentityTlsKeyKey::front(name);
        let keys = tx.scan_under::<IdentityTlsKeyKey>(front, after.as_ref(), STEP)?;
        let last_step = keys.len() < STEP;
        for (key, _) in keys {
            tx.delete(&key);
            after = Some(key);
        }
        if last_step {
            return Ok(ended);
        }
    }
}

/// Ends the bootstrap secret of an identity, if it has one.
fn forget_secret(tx: &mut (impl Transaction + ?Sized), state: &AgentIdentityStateRow) {
    if let Ok(digest) = state.secret_digest.as_slice().try_into() {
        tx.delete(&BootstrapSecretKey(SecretDigest(digest)));
    }
}

/// Notes which SPIFFE IDs are an identity's now: each is of one alone.
fn take_spiffe_ids(
    tx: &mut (impl Transaction + ?Sized),
    name: &IdentityName,
    before: &[String],
    now: &[String],
) -> Result<(), CoreError> {
    for id in now {
        if by_spiffe_id(tx, id)?.is_some_and(|other| other != *name) {
            return Err(CoreError::AlreadyExists { kind: "agent identity with SPIFFE ID", name: id.clone() });
        }
    }
    before.iter().filter(|id| !now.contains(id)).for_each(|id| tx.delete(&SpiffeIdKey(id.clone())));
    let row = SpiffeIdRow { identity: name.to_string() };
    now.iter().filter(|id| !before.contains(id)).for_each(|id| tx.put(&SpiffeIdKey(id.clone()), &row));
    Ok(())
}

/// What the audit log tells of an identity.
fn told(row: &AgentIdentityRow) -> [(&'static str, String); 4] {
    [
        ("roles", row.roles.join(",")),
        ("traits", user::shown(&row.traits)),
        ("max_ttl_ms", row.max_ttl_ms.to_string()),
        ("spiffe_ids", row.spiffe_ids.join(",")),
    ]
}

fn complete(
    state: &mut (impl Read + ?Sized),
    name: IdentityName,
    revision: u64,
    row: AgentIdentityRow,
) -> Result<AgentIdentity, CoreError> {
    let (now, epoch) = (state.now(), session::epoch(state)?);
    let stands = state.get(&AgentIdentityStateKey(name.clone()))?.map(|found| found.row).unwrap_or_default();
    let unused = stands.generation == 0 && stands.epoch == epoch && now < stands.secret_ends_at_ms;
    let secret_ends_at_ms = if unused { stands.secret_ends_at_ms } else { 0 };
    let (generation, ends_at_ms) = (stands.generation, stands.ends_at_ms);
    Ok(AgentIdentity { name, row, generation, ends_at_ms, secret_ends_at_ms, revision })
}

fn stored(
    state: &mut (impl Read + ?Sized),
    name: &IdentityName,
) -> Result<Versioned<AgentIdentityRow>, CoreError> {
    let not_found = || CoreError::NotFound { kind: KIND, name: name.to_string() };
    state.get(&AgentIdentityKey(name.clone()))?.ok_or_else(not_found)
}

#[cfg(test)]
#[path = "agent_identity_tests.rs"]
mod tests;
