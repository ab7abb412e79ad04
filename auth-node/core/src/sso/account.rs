//! Users of connectors. One is made when it first logs in, is written anew at each login, and is forgotten some weeks after
//! the last. A name is of who had it first: a user of this cluster alone, or one account of one provider.

use store_txn::{ReadExt, Transaction, TransactionExt};

use super::identity::Identity;
use crate::{
    Context, CoreError, access_request,
    audit::{self, EventType},
    names::{ConnectorName, UserName},
    revocation,
    tables::{MemberRow, RoleMemberKey, TargetKind, UserKey, UserRow},
    trusted_cluster,
    user::{held, holds, shown, stored, target, texts},
};

/// How long a user is remembered after its last login, in milliseconds: for longer than any session lasts. As long its name is
/// no other account's.
const KEPT_MS: u64 = 31 * 24 * 60 * 60 * 1000;

/// Whose a name is to be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Account<'a> {
    pub(super) connector: &'a ConnectorName,
    /// Who it is at the provider, and at which.
    pub(super) subject: &'a str,
}

impl Account<'_> {
    /// Whether a user is this account's.
    pub(super) fn is_of(&self, user: &UserRow) -> bool {
        user.connector == self.connector.as_str() && user.subject == self.subject
    }

    /// Why a name is not for it.
    ///
    /// # Errors
    /// [`CoreError::Storage`].
    pub(super) fn refusal(
        &self,
        tx: &mut (impl Transaction + ?Sized),
        name: &UserName,
    ) -> Result<Option<String>, CoreError> {
        if let Some(user) = tx.get(&UserKey(name.clone()))? {
            return Ok(match user.row.connector.as_str() {
                _ if self.is_of(&user.row) => None,
                "" => Some("there is a user of this name that is of no connector".into()),
                other => Some(format!("the name is another account's, of connector {other}")),
            });
        }
        let cluster = trusted_cluster::cluster_of(tx, name)?;
        Ok(cluster.map(|cluster| format!("the name would be one of the trusted cluster {cluster}")))
    }

    /// Makes the user, or gives it what it has now and takes what it has not any more.
    ///
    /// # Errors
    /// [`CoreError::Storage`].
    pub(super) fn put(
        &self,
        tx: &mut (impl Transaction + ?Sized),
        context: &Context,
        identity: &Identity,
    ) -> Result<UserRow, CoreError> {
        let Identity { name, grants, left_out } = identity;
        let before = tx.get(&UserKey(name.clone()))?.map(|user| user.row);
        let row = UserRow {
            roles: texts(&grants.roles),
            traits: grants.traits.clone(),
            expires_at_ms: tx.now().saturating_add(KEPT_MS),
            ..before.clone().unwrap_or_else(|| UserRow {
                created_at_ms: tx.now(),
                created_by: format!("connector:{}", self.connector),
                connector: self.connector.to_string(),
                subject: self.subject.to_owned(),
                ..UserRow::default()
            })
        };
        tx.put(&UserKey(name.clone()), &row);
        let member = |role| RoleMemberKey { role, user: name.clone() };
        let had = before.as_ref().map(held).transpose()?;
        for role in had.iter().flat_map(|had| had.roles.difference(&grants.roles)) {
            tx.delete(&member(role.clone()));
        }
        for role in &grants.roles {
            tx.put(&member(role.clone()), &MemberRow { expires_at_ms: row.expires_at_ms });
        }
        let event = match &had {
            None => {
                // Of one that was forgotten.
                access_request::forget_all_of(tx, name)?;
                EventType::UserCreate
            }
            Some(had) if had == grants => return Ok(row),
            Some(had) => {
                if !grants.include(had) {
                    revocation::revoke(tx, TargetKind::User, name.as_str());
                }
                EventType::UserUpdate
            }
        };
        let mut fields = vec![
            ("roles", row.roles.join(",")),
            ("traits", shown(&row.traits)),
            ("connector", row.connector.clone()),
            ("subject", row.subject.clone()),
        ];
        if !left_out.is_empty() {
            fields.push(("left_out", left_out.join(",")));
        }
        audit::append(tx, context, event, target(name), &fields);
        Ok(row)
    }
}

/// Makes a user of a connector one of this cluster alone, with the roles and traits that it had last. It has no password
/// yet: what gives it one comes after this, in the same transaction. One that is of no connector stays as it is.
///
/// # Errors
/// [`CoreError::NotFound`], [`CoreError::Denied`] when the user has what the caller does not hold, [`CoreError::Storage`].
pub fn make_local(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    name: &UserName,
) -> Result<(), CoreError> {
    let row = stored(tx, name)?.row;
    let grants = held(&row)?;
    holds(context.caller.user()?.holder(), &grants)?;
    if row.connector.is_empty() {
        return Ok(());
    }
    for role in grants.roles {
        tx.put(&RoleMemberKey { role, user: name.clone() }, &MemberRow::default());
    }
    let fields = [("connector", row.connector.clone()), ("subject", row.subject.clone())];
    audit::append(tx, context, EventType::UserMakeLocal, target(name), &fields);
    let local = UserRow { connector: String::new(), subject: String::new(), expires_at_ms: 0, ..row };
    tx.put(&UserKey(name.clone()), &local);
    Ok(())
}
