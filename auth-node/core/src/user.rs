//! Local users: who there is, which roles and traits they have, and their passwords' hashes, which never leave this
//! crate but to be verified. Nobody gives what it does not hold, and the cluster never loses its last admin.

mod grants;

use prost::Message as _;
use store_txn::{Read, ReadExt, Transaction, TransactionExt, UnixMillis, Versioned};

pub use self::grants::Grants;
pub(crate) use self::grants::{check_grants, granted, held, holds, roles_exist, shown, texts};
use crate::{
    Context, CoreError, access_request,
    audit::{self, EventType},
    evaluate::Traits,
    invite::{self, NewInvite},
    lockout,
    names::{RoleName, UserName},
    page::{Page, PageRequest},
    revocation,
    secret::PasswordHash,
    session,
    tables::{MemberRow, RoleMemberKey, TargetKind, UserKey, UserRow},
    trusted_cluster,
    webauthn::device,
};

const KIND: &str = "user";

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
