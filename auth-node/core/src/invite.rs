//! Invites: a secret, good once and for a time, with which a user sets its password. So no admin knows it, and none is
//! sent around. A user has one invite at most: what gives it a password or another invite ends the one it has.

use std::time::Duration;

use store_txn::{Read, ReadExt, Transaction, TransactionExt, UnixMillis};

use crate::{
    Context, CoreError,
    audit::{self, EventType},
    context, lock, lockout,
    names::UserName,
    secret::{PasswordHash, SecretDigest},
    session,
    tables::{InviteKey, InviteRow, InviteSecretKey, InviteSecretRow, UserKey, UserRow},
    verdict::{Refusal, Stop, Verdict, audited},
};

/// Life of an invite when its maker does not say.
const DEFAULT_TTL: Duration = Duration::from_secs(3600);
/// Shortest and longest life of an invite.
const TTL: std::ops::RangeInclusive<Duration> = Duration::from_secs(60)..=Duration::from_secs(7 * 24 * 3600);

/// What the holder of a secret is told that is no good, whatever is wrong with it.
const NOT_ACCEPTED: &str = "the invite is not accepted: it is unknown, used, replaced, or past its end; \
                            ask an administrator for a new one";

/// An invite to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewInvite {
    secret: SecretDigest,
    ttl_ms: UnixMillis,
}

impl NewInvite {
    /// Of the digest of a secret. `ttl` unset: one hour; 1 minute to 7 days.
    ///
    /// # Errors
    /// [`CoreError::Invalid`] for `invite_ttl`.
    pub fn new(secret: SecretDigest, ttl: Option<Duration>) -> Result<Self, CoreError> {
        let ttl = ttl.unwrap_or(DEFAULT_TTL);
        if !TTL.contains(&ttl) {
            return Err(CoreError::invalid("invite_ttl", "from 1 minute to 7 days"));
        }
        Ok(Self { secret, ttl_ms: u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX) })
    }
}

/// Makes the invite of a user, in place of the one that it has. What makes it appends the audit record.
///
/// # Errors
/// [`CoreError::Storage`].
pub(crate) fn put(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    user: &UserName,
    new: &NewInvite,
) -> Result<UnixMillis, CoreError> {
    forget(tx, user)?;
    let expires_at_ms = tx.now().saturating_add(new.ttl_ms);
    let row = InviteRow {
        secret_digest: new.secret.0.to_vec(),
        expires_at_ms,
        created_by: context.caller.actor(),
        epoch: session::epoch(tx)?,
    };
    tx.put(&InviteKey(user.clone()), &row);
    tx.put(&InviteSecretKey(new.secret), &InviteSecretRow { user: user.to_string(), expires_at_ms });
    Ok(expires_at_ms)
}

/// Ends the invite of a user, if it has one.
///
/// # Errors
/// [`CoreError::Storage`].
pub(crate) fn forget(tx: &mut (impl Transaction + ?Sized), user: &UserName) -> Result<(), CoreError> {
    let key = InviteKey(user.clone());
    if let Some(invite) = tx.get(&key)? {
        if let Ok(digest) = invite.row.secret_digest.as_slice().try_into() {
            tx.delete(&InviteSecretKey(SecretDigest(digest)));
        }
        tx.delete(&key);
    }
    Ok(())
}

/// When the invite of a user ends, if it has one.
///
/// # Errors
/// [`CoreError::Storage`].
pub fn ends_at(state: &mut (impl Read + ?Sized), user: &UserName) -> Result<Option<UnixMillis>, CoreError> {
    let epoch = session::epoch(state)?;
    let invite = state.get(&InviteKey(user.clone()))?.map(|invite| invite.row);
    Ok(invite.filter(|invite| invite.epoch == epoch).map(|invite| invite.expires_at_ms))
}

/// Whose invite a secret is of, if it is good.
///
/// # Errors
/// [`CoreError::Storage`].
pub fn holder(state: &mut (impl Read + ?Sized), secret: SecretDigest) -> Result<Option<UserName>, CoreError> {
    match find(state, secret) {
        Ok((name, _)) => Ok(Some(name)),
        Err(Stop::Refused(_)) => Ok(None),
        Err(Stop::Failed(error)) => Err(error),
    }
}

/// Uses an invite: its user has this password from now on. Answers who that is. A refusal is audited.
///
/// # Errors
/// [`CoreError::Storage`].
pub fn accept(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    secret: SecretDigest,
    hash: Option<&PasswordHash>,
) -> Result<Verdict<UserName>, CoreError> {
    let decision = use_up(tx, context, secret, hash);
    audited(tx, context, EventType::InviteDenied, decision)
}

fn use_up(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    secret: SecretDigest,
    hash: Option<&PasswordHash>,
) -> Result<UserName, Stop> {
    let (name, user) = find(tx, secret)?;
    // Where there was no such invite yet, nothing was hashed.
    let hash = hash.ok_or_else(|| refused("invite", "the invite was made meanwhile"))?;
    forget(tx, &name)?;
    tx.put(&UserKey(name.clone()), &UserRow { password_hash: hash.as_str().to_owned(), ..user });
    lockout::forget(tx, &name);
    lockout::prove(tx, context, &name)?;
    audit::append(tx, context, EventType::InviteAccept, target(&name), &[]);
    Ok(name)
}

/// The user of a good secret. Whoever is locked is refused, and keeps the invite.
fn find(state: &mut (impl Read + ?Sized), secret: SecretDigest) -> Result<(UserName, UserRow), Stop> {
    let unknown = || refused("invite", "the invite is unknown, used, replaced, or past its end");
    let name = state.get(&InviteSecretKey(secret))?.ok_or_else(unknown)?.row.user;
    let name = UserName::parse("invite", &name)?;
    let invite = state.get(&InviteKey(name.clone()))?.ok_or_else(unknown)?.row;
    if invite.secret_digest != secret.0 {
        return Err(unknown());
    }
    if invite.epoch != session::epoch(state)? {
        return Err(refused(target(&name), "the invite is of the cluster that this one was made from"));
    }
    let user = state.get(&UserKey(name.clone()))?.ok_or_else(unknown)?.row;
    let roles = context::roles(state, &user)?;
    match lock::reason(lock::check_user(state, &name, &roles))? {
        Some(reason) => Err(refused(target(&name), reason)),
        None => Ok((name, user)),
    }
}

/// A refusal by which the caller cannot tell what is wrong with the invite.
fn refused(target: impl Into<String>, reason: impl Into<String>) -> Stop {
    let answer = CoreError::Denied(NOT_ACCEPTED.into());
    Stop::Refused(Refusal { answer, reason: reason.into(), target: target.into() })
}

fn target(name: &UserName) -> String {
    format!("user:{name}")
}

#[cfg(test)]
#[path = "invite_tests.rs"]
mod tests;
