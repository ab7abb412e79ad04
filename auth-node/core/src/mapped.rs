//! Roles that connectors and trusted clusters map to, or agent identities hold. Nobody maps to what it may not give; and a role that is mapped
//! cannot be deleted, so that none made later under its name is given by an old mapping.

use std::collections::BTreeSet;

use store_txn::{Read, ReadExt, Transaction, TransactionExt};

use crate::{
    CoreError,
    context::Holder,
    names::RoleName,
    role,
    tables::{MappedRoleKey, MapperKind, MarkRow, RoleKey},
};

/// Most roles of one mapping.
pub(crate) const MAX_ROLES: usize = 64;

impl MapperKind {
    /// For people.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Connector => "connector",
            Self::TrustedCluster => "trusted cluster",
            Self::AgentIdentity => "agent identity",
        }
    }
}

/// Reads the roles of one mapping, 1 to 64, none twice; their canonical names.
///
/// # Errors
/// [`CoreError::Invalid`] for `field`.
pub(crate) fn parse(field: &str, roles: &[String]) -> Result<Vec<RoleName>, CoreError> {
    if !(1..=MAX_ROLES).contains(&roles.len()) {
        return Err(CoreError::invalid(field, format!("1 to {MAX_ROLES} roles")));
    }
    let mut names = Vec::with_capacity(roles.len());
    for (index, role) in roles.iter().enumerate() {
        let field = format!("{field}[{index}]");
        let name = RoleName::parse(&field, role)?;
        if names.contains(&name) {
            return Err(CoreError::invalid(field, format!("role {name} is there twice")));
        }
        names.push(name);
    }
    Ok(names)
}

/// Checks that all of these roles are there, and that the caller may give them: an admin any, others what they hold.
///
/// # Errors
/// [`CoreError::NotFound`], [`CoreError::Denied`], [`CoreError::Storage`].
pub(crate) fn check(
    state: &mut (impl Read + ?Sized),
    caller: Holder<'_>,
    roles: &BTreeSet<RoleName>,
) -> Result<(), CoreError> {
    for name in roles {
        if state.get(&RoleKey(name.clone()))?.is_none() {
            return Err(role::not_found(name));
        }
    }
    may_manage(caller, roles)
}

/// Refuses whoever would manage a mapping to a role that it does not hold; an admin may.
///
/// # Errors
/// [`CoreError::Denied`].
pub(crate) fn may_manage(caller: Holder<'_>, roles: &BTreeSet<RoleName>) -> Result<(), CoreError> {
    match roles.iter().find(|name| !caller.is_admin() && !caller.holds(name)) {
        Some(role) => Err(CoreError::Denied(format!(
            "you do not hold role {role}, so you cannot map to it or manage what does"
        ))),
        None => Ok(()),
    }
}

/// Notes which roles a thing maps to now, and which it does not any more.
pub(crate) fn note(
    tx: &mut (impl Transaction + ?Sized),
    kind: MapperKind,
    name: &str,
    before: &BTreeSet<RoleName>,
    now: &BTreeSet<RoleName>,
) {
    let key = |role: &RoleName| MappedRoleKey { role: role.clone(), kind, name: name.to_owned() };
    before.difference(now).for_each(|role| tx.delete(&key(role)));
    now.difference(before).for_each(|role| tx.put(&key(role), &MarkRow {}));
}

/// Refuses when something maps to a role, or an agent identity holds it.
///
/// # Errors
/// [`CoreError::Precondition`], [`CoreError::Storage`].
pub(crate) fn refuse_if_mapped(state: &mut (impl Read + ?Sized), role: &RoleName) -> Result<(), CoreError> {
    match state.scan_under::<MappedRoleKey>(MappedRoleKey::front(role), None, 1)?.first() {
        Some((MappedRoleKey { kind: MapperKind::AgentIdentity, name, .. }, _)) => {
            Err(CoreError::Precondition(format!(
                "role {role} is held by agent identity {name}: take it from it first"
            )))
        }
        Some((MappedRoleKey { kind, name, .. }, _)) => Err(CoreError::Precondition(format!(
            "{} {name} maps to role {role}: take it out of its mappings first",
            kind.word()
        ))),
        None => Ok(()),
    }
}
