//! What a user is given: roles and traits, and who may give which.

use std::collections::BTreeSet;

use store_txn::{ReadExt, Transaction};

use crate::{
    CoreError,
    context::Holder,
    evaluate::Traits,
    host_login::is_trait_name,
    names::RoleName,
    role,
    tables::{RoleKey, StringsRow, UserRow},
};

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
