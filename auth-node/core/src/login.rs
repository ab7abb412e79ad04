//! Logging in with a password. The password itself is verified elsewhere, slowly, outside of any transaction; so the
//! login has two halves: look up what to verify against, and, once verified, make the session only if the user and its
//! password are still the same.

use store_txn::{Read, ReadExt, Transaction};

use crate::{
    Caller, Context, CoreError,
    audit::{self, EventType},
    context::{UserCaller, roles},
    lock,
    names::UserName,
    secret::PasswordHash,
    session::{self, NewSession},
    tables::{SessionRow, UserKey, UserRow},
};

/// The one answer to a name and a password that do not belong together, whichever of them is wrong.
pub const WRONG: CoreError = CoreError::Unauthenticated("wrong username or password");

/// The user of a name and the revision of its row, if there is one.
///
/// # Errors
/// [`CoreError::Storage`].
pub fn lookup(
    state: &mut (impl Read + ?Sized),
    name: &UserName,
) -> Result<Option<(UserRow, u64)>, CoreError> {
    Ok(state.get(&UserKey(name.clone()))?.map(|user| (user.row, user.revision)))
}

/// Makes the session of a user whose password was verified against `verified`.
///
/// # Errors
/// [`WRONG`] when the user is gone, or has another password by now; [`CoreError::Locked`], which is for the audit log: the
/// caller is told [`WRONG`]; [`CoreError::Storage`].
pub fn complete(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    name: &UserName,
    verified: &PasswordHash,
    new: &NewSession,
) -> Result<SessionRow, CoreError> {
    let user = tx.get(&UserKey(name.clone()))?.ok_or(WRONG)?.row;
    if user.password_hash != verified.as_str() {
        return Err(WRONG);
    }
    let roles = roles(tx, &user)?;
    lock::check_user(tx, name, &roles)?;
    let session = session::create(tx, context, name, new)?;
    let caller = UserCaller { name: name.clone(), user, roles, digest: new.digest, session: session.clone() };
    let context = Context { caller: Caller::User(Box::new(caller)), origin: context.origin.clone() };
    audit::append(tx, &context, EventType::Login, session::target(&session), &[("user", name.to_string())]);
    Ok(session)
}

#[cfg(test)]
#[path = "login_tests.rs"]
mod tests;
