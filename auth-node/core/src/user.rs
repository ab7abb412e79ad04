//! Local users: who there is, which roles and traits they have, and their passwords' hashes, which never leave this
//! crate but to be verified. Nobody gives what it does not hold, and the cluster never loses its last admin.

use std::collections::BTreeSet;

use prost::Message as _;
use store_txn::{Read, ReadExt, Transaction, TransactionExt, UnixMillis, Versioned};

use crate::{
    Context, CoreError, access_request,
    audit::{self, EventType},
    context::Holder,
    evaluate::Traits,
    host_login::is_trait_name,
    invite::{self, NewInvite},
    lockout,
    names::{RoleName, UserName},
    page::{Page, PageRequest},
    revocation, role,
    secret::PasswordHash,
    session,
    tables::{MemberRow, RoleKey, RoleMemberKey, StringsRow, TargetKind, UserKey, UserRow},
    trusted_cluster,
    webauthn::device,
};

const KIND: &str = "user";

/// Most roles of a user.
const MAX_ROLES: usize = 64;
/// Most traits of a user.
const MAX_TRAITS: usize = 64;
/// Most values of a trait.
const MAX_VALUES: usize = 64;
/// Longest value of a trait, in bytes.
const MAX_VALUE: usize = 256;
/// Largest traits in all: names and values, in bytes.
const MAX_TRAIT_BYTES: usize = 16 * 1024;
/// Rows that are looked at in one step.
const STEP: usize = 256;

/// A user as callers see it: everything but the password's hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Canonical name.
    pub name: UserName,
    /// Names of roles, ascending.
    pub roles: Vec<String>,
    /// For role templates.
    pub traits: Traits,
    /// Whether it has a password.
    pub has_password: bool,
    /// The connector that it logs in by; empty: it is a user of this cluster alone.
    pub connector: String,
    /// When it is forgotten if it does not log in again; `None`: never.
    pub expires_at_ms: Option<UnixMillis>,
    /// When it was made.
    pub created_at_ms: UnixMillis,
    /// Who made it.
    pub created_by: String,
    /// Rises with every change; 0 for a write of this same transaction.
    pub revision: u64,
}

/// What an admin gives a user.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Grants {
    /// Roles, at most 64; all must exist.
    pub roles: BTreeSet<RoleName>,
    /// Traits, at most 64 with at most 64 values of 1 to 256 bytes, 16 KiB in all. A trait's name has 1 to 63 characters
    /// of `[a-zA-Z0-9._-]`.
    pub traits: Traits,
}

impl Grants {
    /// Whether all of others is among these.
    pub(crate) fn include(&self, others: &Self) -> bool {
        others.roles.is_subset(&self.roles) && lacking(&self.traits, &others.traits).is_none()
    }
}

/// A trait of others of which these have not all values.
fn lacking<'a>(traits: &Traits, others: &'a Traits) -> Option<&'a String> {
    let has = |name: &String, value: &String| {
        traits.get(name).is_some_and(|strings| strings.values.contains(value))
    };
    let lacks =
        |(name, strings): &(&String, &StringsRow)| !strings.values.iter().all(|value| has(name, value));
    others.iter().find(lacks).map(|(name, _)| name)
}

/// A user to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewUser {
    /// Name.
    pub name: UserName,
    /// Roles and traits.
    pub grants: Grants,
    /// Its password, or what it sets one with.
    pub proof: Proof,
}

/// How a user that is made or reset proves itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proof {
    /// With a password of which this is the hash.
    Password(PasswordHash),
    /// Not at all, until it has set a password with this invite.
    Invite(NewInvite),
}

impl From<PasswordHash> for Proof {
    fn from(hash: PasswordHash) -> Self {
        Self::Password(hash)
    }
}

impl User {
    fn of(name: UserName, stored: Versioned<UserRow>) -> Self {
        let Versioned { revision, row } = stored;
        Self {
            name,
            has_password: !row.password_hash.is_empty(),
            expires_at_ms: Some(row.expires_at_ms).filter(|at| *at != 0),
            roles: row.roles,
            traits: row.traits,
            connector: row.connector,
            created_at_ms: row.created_at_ms,
            created_by: row.created_by,
            revision,
        }
    }
}

/// One user.
///
/// # Errors
/// [`CoreError::NotFound`], [`CoreError::Storage`].
pub fn get(state: &mut (impl Read + ?Sized), name: &UserName) -> Result<User, CoreError> {
    Ok(User::of(name.clone(), stored(state, name)?))
}

/// A page of the users, ordered by name.
///
/// # Errors
/// [`CoreError::Invalid`] for a page token that is not of this list; [`CoreError::Storage`].
pub fn list(state: &mut (impl Read + ?Sized), page: &PageRequest) -> Result<Page<User>, CoreError> {
    let after = page.after.as_deref().map(|text| UserName::parse("page_token", text)).transpose()?;
    let rows = state.scan(after.map(UserKey).as_ref(), page.size.saturating_add(1))?;
    let page = Page::cut(rows, page.size, |(_, user)| user.row.encoded_len(), |(key, _)| key.0.to_string());
    Ok(page.map(|(key, user)| User::of(key.0, user)))
}

/// Creates a user.
///
/// # Errors
/// [`CoreError::Invalid`], [`CoreError::NotFound`] for a role, [`CoreError::Denied`] for what the caller does not hold,
/// [`CoreError::AlreadyExists`], [`CoreError::Storage`].
pub fn create(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    new: &NewUser,
) -> Result<User, CoreError> {
    check_grants("user", &new.grants)?;
    roles_exist(tx, &new.grants.roles)?;
    // Whoever makes a user could be that user: so it must be a person.
    holds(context.caller.user()?.holder(), &new.grants)?;
    insert(tx, context, new)
}

/// Creates the first user of a cluster, an admin. The built-in roles must be there already.
///
/// # Errors
/// [`CoreError::Precondition`] when there is a user; else as [`create`].
pub fn create_first_admin(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    name: &UserName,
    password_hash: &PasswordHash,
) -> Result<User, CoreError> {
    if !tx.scan::<UserKey>(None, 1)?.is_empty() {
        return Err(CoreError::Precondition(
            "the cluster has users already: an admin makes more of them".into(),
        ));
    }
    let grants = Grants { roles: [RoleName::admin()].into(), traits: Traits::new() };
    roles_exist(tx, &grants.roles)?;
    insert(tx, context, &NewUser { name: name.clone(), grants, proof: password_hash.clone().into() })
}

fn insert(tx: &mut (impl Transaction + ?Sized), context: &Context, new: &NewUser) -> Result<User, CoreError> {
    let key = UserKey(new.name.clone());
    if tx.get(&key)?.is_some() {
        return Err(CoreError::AlreadyExists { kind: KIND, name: new.name.to_string() });
    }
    if let Some(cluster) = trusted_cluster::cluster_of(tx, &new.name)? {
        let reason =
            format!("names that end with @{cluster} are those of users of the trusted cluster {cluster}");
        return Err(CoreError::invalid("user.name", reason));
    }
    let row = UserRow {
        roles: texts(&new.grants.roles),
        traits: new.grants.traits.clone(),
        password_hash: String::new(),
        created_at_ms: tx.now(),
        created_by: context.caller.actor(),
        ..UserRow::default()
    };
    // Of one that was forgotten.
    access_request::forget_all_of(tx, &new.name)?;
    for role in &new.grants.roles {
        tx.put(&RoleMemberKey { role: role.clone(), user: new.name.clone() }, &MemberRow::default());
    }
    let fields = [("roles", row.roles.join(",")), ("traits", shown(&row.traits))];
    audit::append(tx, context, EventType::UserCreate, target(&new.name), &fields);
    let row = set_proof(tx, context, &new.name, row, &new.proof)?;
    Ok(User::of(new.name.clone(), Versioned { revision: 0, row }))
}

/// Replaces a user's roles and traits. Its sessions go on with the new ones; its certificates are revoked if something was
/// taken from it.
///
/// # Errors
/// [`CoreError::Invalid`], [`CoreError::NotFound`] for the user or a role, [`CoreError::StaleRevision`],
/// [`CoreError::Denied`] for what the caller does not hold, [`CoreError::Precondition`] when the last admin would lose
/// its role, [`CoreError::Storage`].
pub fn update(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    name: &UserName,
    revision: u64,
    grants: &Grants,
) -> Result<User, CoreError> {
    check_grants("user", grants)?;
    let current = stored(tx, name)?;
    CoreError::check_revision(KIND, name.as_str(), revision, current.revision)?;
    if !current.row.connector.is_empty() {
        let reason = format!(
            "the roles and traits of {name} come from connector {} at each login: change its mappings",
            current.row.connector
        );
        return Err(CoreError::Precondition(reason));
    }
    roles_exist(tx, &grants.roles)?;
    let caller = context.caller.holder()?;
    let before = held(&current.row)?;
    holds(caller, &before)?;
    holds(caller, grants)?;
    let is_admin = |grants: &Grants| grants.roles.iter().any(RoleName::is_admin);
    if is_admin(&before) && !is_admin(grants) {
        keep_an_admin(tx, name)?;
    }

    for role in before.roles.difference(&grants.roles) {
        tx.delete(&RoleMemberKey { role: role.clone(), user: name.clone() });
    }
    for role in grants.roles.difference(&before.roles) {
        tx.put(&RoleMemberKey { role: role.clone(), user: name.clone() }, &MemberRow::default());
    }
    let row = UserRow { roles: texts(&grants.roles), traits: grants.traits.clone(), ..current.row };
    tx.put(&UserKey(name.clone()), &row);
    if !grants.include(&before) {
        revocation::revoke(tx, TargetKind::User, name.as_str());
    }
    let fields = [("roles", row.roles.join(",")), ("traits", shown(&row.traits))];
    audit::append(tx, context, EventType::UserUpdate, target(name), &fields);
    Ok(User::of(name.clone(), Versioned { revision: 0, row }))
}

/// Deletes a user with its WebAuthn devices, ends its sessions and access requests, and revokes its certificates. Answers how many those were.
///
/// # Errors
/// [`CoreError::NotFound`], [`CoreError::Denied`] when the user has what the caller does not hold,
/// [`CoreError::Precondition`] for the last admin, [`CoreError::Storage`].
pub fn delete(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    name: &UserName,
) -> Result<u32, CoreError> {
    let current = stored(tx, name)?;
    let before = held(&current.row)?;
    holds(context.caller.holder()?, &before)?;
    if before.roles.iter().any(RoleName::is_admin) {
        keep_an_admin(tx, name)?;
    }
    for role in before.roles {
        tx.delete(&RoleMemberKey { role, user: name.clone() });
    }
    tx.delete(&UserKey(name.clone()));
    let ended = session::end_all_of(tx, &name.into(), None)?;
    revocation::revoke(tx, TargetKind::User, name.as_str());
    access_request::forget_all_of(tx, name)?;
    lockout::forget(tx, name);
    invite::forget(tx, name)?;
    device::forget_all_of(tx, name)?;
    audit::append(tx, context, EventType::UserDelete, target(name), &[("sessions_ended", ended.to_string())]);
    Ok(ended)
}

/// Sets a user's password, or makes an invite and the password that it has none any more; ends all its sessions and
/// lockouts, and revokes its certificates. Answers how many sessions those were. Its WebAuthn devices stay.
///
/// # Errors
/// [`CoreError::NotFound`], [`CoreError::Denied`] when the user has what the caller does not hold,
/// [`CoreError::Precondition`] for who would invite itself, and for a user of a connector; [`CoreError::Storage`].
pub fn reset_password(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    name: &UserName,
    proof: &Proof,
) -> Result<u32, CoreError> {
    let current = stored(tx, name)?;
    let caller = context.caller.user()?;
    // Who knows a user's password has what the user has.
    holds(caller.holder(), &held(&current.row)?)?;
    if caller.name == *name && matches!(proof, Proof::Invite(_)) {
        // Its session ends with this: if the answer is lost, nobody may be left who could help.
        let reason = "this would end your session and your password: change the password instead";
        return Err(CoreError::Precondition(reason.into()));
    }
    if !current.row.connector.is_empty() {
        let reason = format!(
            "{name} logs in by connector {}, and has no password: `mezctl users reset --make-local` makes it a user \
             of this cluster alone",
            current.row.connector
        );
        return Err(CoreError::Precondition(reason));
    }
    set_proof(tx, context, name, current.row, proof)?;
    lockout::forget(tx, name);
    let ended = session::end_all_of(tx, &name.into(), None)?;
    revocation::revoke(tx, TargetKind::User, name.as_str());
    audit::append(
        tx,
        context,
        EventType::PasswordReset,
        target(name),
        &[("sessions_ended", ended.to_string())],
    );
    Ok(ended)
}

/// Removes all WebAuthn devices of a user who has lost them: it registers another as its first one then. Answers how many
/// those were.
///
/// # Errors
/// [`CoreError::NotFound`], [`CoreError::Denied`] when the user has what the caller does not hold, [`CoreError::Storage`].
pub fn remove_devices(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    name: &UserName,
) -> Result<u32, CoreError> {
    let current = stored(tx, name)?;
    holds(context.caller.user()?.holder(), &held(&current.row)?)?;
    let removed = device::forget_all_of(tx, name)?;
    let fields = [("devices_removed", removed.to_string())];
    audit::append(tx, context, EventType::DeviceDelete, target(name), &fields);
    Ok(removed)
}

/// Sets the caller's own password, after the old one was verified against `verified`, and ends its other sessions.
/// Answers how many those were.
///
/// # Errors
/// [`CoreError::Precondition`] when the stored hash is not the verified one any more, and while the caller's network is
/// locked out; [`CoreError::Unauthenticated`], [`CoreError::Storage`].
pub fn change_password(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    verified: &PasswordHash,
    new_hash: &PasswordHash,
) -> Result<u32, CoreError> {
    let caller = context.caller.user()?;
    let current = stored(tx, &caller.name)?;
    if current.row.password_hash != verified.as_str() {
        return Err(CoreError::Precondition(
            "the password was changed meanwhile: try again with that one".into(),
        ));
    }
    // What was guessed while other guesses were counted is not taken either.
    lockout::check(tx, context, &caller.name)?;
    lockout::prove(tx, context, &caller.name)?;
    set_proof(tx, context, &caller.name, current.row, &new_hash.clone().into())?;
    let ended = session::end_all_of(tx, &(&caller.name).into(), Some(caller.digest))?;
    let fields = [("sessions_ended", ended.to_string())];
    audit::append(tx, context, EventType::PasswordChange, target(&caller.name), &fields);
    Ok(ended)
}

/// Writes the row of a user with its password, or without one and an invite, and ends the invite that it had.
fn set_proof(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    name: &UserName,
    row: UserRow,
    proof: &Proof,
) -> Result<UserRow, CoreError> {
    let password_hash = match proof {
        Proof::Password(hash) => {
            invite::forget(tx, name)?;
            hash.as_str().to_owned()
        }
        Proof::Invite(new) => {
            let expires_at_ms = invite::put(tx, context, name, new)?;
            let fields = [("expires_at_ms", expires_at_ms.to_string())];
            audit::append(tx, context, EventType::Invite, target(name), &fields);
            String::new()
        }
    };
    let row = UserRow { password_hash, ..row };
    tx.put(&UserKey(name.clone()), &row);
    Ok(row)
}

pub(crate) fn target(name: &UserName) -> String {
    format!("user:{name}")
}

pub(crate) fn stored(
    state: &mut (impl Read + ?Sized),
    name: &UserName,
) -> Result<Versioned<UserRow>, CoreError> {
    let not_found = || CoreError::NotFound { kind: KIND, name: name.to_string() };
    state.get(&UserKey(name.clone()))?.ok_or_else(not_found)
}

/// What a stored user has.
pub(crate) fn held(row: &UserRow) -> Result<Grants, CoreError> {
    granted(&row.roles, &row.traits)
}

/// What is stored as roles and traits.
pub(crate) fn granted(roles: &[String], traits: &Traits) -> Result<Grants, CoreError> {
    let names = roles.iter().map(|name| RoleName::parse("roles", name));
    Ok(Grants { roles: names.collect::<Result<_, _>>()?, traits: traits.clone() })
}

pub(crate) fn texts(roles: &BTreeSet<RoleName>) -> Vec<String> {
    roles.iter().map(RoleName::to_string).collect()
}

/// Traits as the audit log shows them: `logins=ann root,team=red`.
pub(crate) fn shown(traits: &Traits) -> String {
    let each = traits.iter().map(|(name, strings)| format!("{name}={}", strings.values.join(" ")));
    each.collect::<Vec<_>>().join(",")
}

/// Refuses what is out of bounds, as a field of `whose`.
///
/// # Errors
/// [`CoreError::Invalid`].
pub(crate) fn check_grants(whose: &str, grants: &Grants) -> Result<(), CoreError> {
    if grants.roles.len() > MAX_ROLES {
        return Err(CoreError::invalid(format!("{whose}.roles"), format!("at most {MAX_ROLES} roles")));
    }
    check_traits(whose, &grants.traits)
}

fn check_traits(whose: &str, traits: &Traits) -> Result<(), CoreError> {
    let invalid = |reason: String| Err(CoreError::invalid(format!("{whose}.traits"), reason));
    if traits.len() > MAX_TRAITS {
        return invalid(format!("at most {MAX_TRAITS} traits"));
    }
    for (name, strings) in traits {
        if !is_trait_name(name) {
            return invalid("a trait's name has 1 to 63 characters of a-z A-Z 0-9 . _ -".into());
        }
        if strings.values.len() > MAX_VALUES {
            return invalid(format!("trait {name} has more than {MAX_VALUES} values"));
        }
        let good =
            |value: &String| (1..=MAX_VALUE).contains(&value.len()) && !value.chars().any(char::is_control);
        if !strings.values.iter().all(good) {
            return invalid(format!(
                "a value of trait {name} has control characters, or not 1 to {MAX_VALUE} bytes"
            ));
        }
    }
    let bytes = |(name, strings): (&String, &StringsRow)| {
        name.len() + strings.values.iter().map(String::len).sum::<usize>()
    };
    if traits.iter().map(bytes).sum::<usize>() > MAX_TRAIT_BYTES {
        return invalid(format!("traits have at most {MAX_TRAIT_BYTES} bytes in all"));
    }
    Ok(())
}

/// Refuses a role that is not there.
///
/// # Errors
/// [`CoreError::NotFound`], [`CoreError::Storage`].
pub(crate) fn roles_exist(
    tx: &mut (impl Transaction + ?Sized),
    roles: &BTreeSet<RoleName>,
) -> Result<(), CoreError> {
    for name in roles {
        if tx.get(&RoleKey(name.clone()))?.is_none() {
            return Err(role::not_found(name));
        }
    }
    Ok(())
}

/// Refuses to manage a user who has what the caller does not hold itself.
///
/// # Errors
/// [`CoreError::NotFound`], [`CoreError::Denied`], [`CoreError::Storage`].
pub(crate) fn manages(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    name: &UserName,
) -> Result<(), CoreError> {
    let current = stored(tx, name)?;
    holds(context.caller.holder()?, &held(&current.row)?)
}

/// Refuses what the caller does not hold itself. An admin may give everything.
///
/// # Errors
/// [`CoreError::Denied`].
pub(crate) fn holds(caller: Holder<'_>, grants: &Grants) -> Result<(), CoreError> {
    if caller.is_admin() {
        return Ok(());
    }
    if let Some(role) = grants.roles.iter().find(|name| !caller.holds(name)) {
        return Err(CoreError::Denied(format!(
            "you do not hold role {role}, so you cannot give it or manage who has it"
        )));
    }
    if let Some(name) = lacking(caller.traits, &grants.traits) {
        let reason = format!(
            "you do not have all values of trait {name}, so you cannot give them or manage who has them"
        );
        return Err(CoreError::Denied(reason));
    }
    Ok(())
}

/// Refuses when nobody but `leaving` holds the role `admin` and can log in: who was invited may never come.
fn keep_an_admin(tx: &mut (impl Transaction + ?Sized), leaving: &UserName) -> Result<(), CoreError> {
    let mut after = None;
    loop {
        let front = RoleMemberKey::front(&RoleName::admin());
        let admins = tx.scan_under::<RoleMemberKey>(front, after.as_ref(), STEP)?;
        let last_step = admins.len() < STEP;
        for (key, _) in admins {
            let user = tx.get(&UserKey(key.user.clone()))?.filter(|_| key.user != *leaving);
            if user.is_some_and(|user| !user.row.password_hash.is_empty()) {
                return Ok(());
            }
            after = Some(key);
        }
        if last_step {
            let reason = format!(
                "{leaving} is the last admin who can log in: give another user who can the role admin first"
            );
            return Err(CoreError::Precondition(reason));
        }
    }
}

#[cfg(test)]
#[path = "user_tests.rs"]
mod tests;
