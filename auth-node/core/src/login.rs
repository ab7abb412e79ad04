//! Logging in with a password. The password itself is verified elsewhere, slowly, outside of any transaction; so the
//! login has two halves: look up what to verify against, and, once that is done, decide in one transaction, in which a
//! failure is counted too.

use store_txn::{Read, ReadExt, Transaction};

use crate::{
    Caller, Context, CoreError, Verdict,
    audit::{self, EventType},
    context::{Role, UserCaller, roles},
    lock,
    lockout::{self, SlotSecret, Tries, TypedName, Whose},
    names::UserName,
    secret::PasswordHash,
    session::{self, NewSession},
    tables::{SessionRow, UserKey, UserRow},
};

/// The one answer to a name and a password that do not belong together, whichever of them is wrong, and to all that are
/// given while the name's logins are shut.
pub const WRONG: CoreError = CoreError::Unauthenticated(
    "wrong username or password, or too many tries of late: after those, wait a while",
);

/// A try to log in.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// The name, if what was given is one.
    pub name: Option<UserName>,
    /// By what it is counted if it is nobody's. It is not written down itself: it may be a password in the wrong field.
    pub typed: TypedName,
    /// What slots are to depend on, if the cluster has no such secret yet.
    pub slot_secret: SlotSecret,
    /// What the password was found to be the one of, if it was.
    pub verified: Option<PasswordHash>,
    /// The session to make.
    pub new: NewSession,
}

/// What the password of a name is to be verified against, if it is a user's who has one.
///
/// # Errors
/// [`CoreError::Storage`].
pub fn lookup(state: &mut (impl Read + ?Sized), name: &UserName) -> Result<Option<PasswordHash>, CoreError> {
    let user = state.get(&UserKey(name.clone()))?.filter(|user| !user.row.password_hash.is_empty());
    Ok(user.map(|user| PasswordHash::new(user.row.password_hash)))
}

/// Makes the session of a user whose password was verified; or counts the failure, and audits it. Either is refused with
/// [`WRONG`] while the name's logins are shut.
///
/// # Errors
/// [`CoreError::Storage`].
pub fn conclude(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    attempt: &Attempt,
) -> Result<Verdict<SessionRow>, CoreError> {
    let user = match &attempt.name {
        Some(name) => tx.get(&UserKey(name.clone()))?.map(|user| (name.clone(), user.row)),
        None => None,
    };
    let secret = attempt.slot_secret.load_or_keep(tx)?;
    let whose = match &user {
        Some((name, _)) => Whose::User(name.clone()),
        None => Whose::Nobody(secret.of_name(attempt.typed)),
    };
    let mut tries = Tries::load(tx, whose, &context.origin.client_address)?;
    let reason = if tries.are_shut() {
        Some("too many failures".to_owned())
    } else if let Some((name, row)) = user.as_ref().filter(|(_, row)| is_verified(row, attempt)) {
        let roles = roles(tx, row)?;
        match lock::check_user(tx, name, &roles) {
            Ok(()) => {
                tries.succeed();
                tries.save(tx);
                return grant(tx, context, (name.clone(), row.clone()), roles, &attempt.new);
            }
            Err(CoreError::Locked(reason)) => Some(reason),
            Err(error) => return Err(error),
        }
    } else {
        lockout::fail(tx, context, &mut tries);
        None
    };
    tries.save(tx);
    let target = user.map_or_else(|| "user:?".to_owned(), |(name, _)| format!("user:{name}"));
    let fields: Vec<_> = reason.into_iter().map(|reason| ("reason", reason)).collect();
    audit::append_refusal(tx, context, EventType::LoginFailed, target, &fields);
    Ok(Verdict::Refused(WRONG))
}

/// Whether the password that was verified is still the user's.
fn is_verified(row: &UserRow, attempt: &Attempt) -> bool {
    let of_user = |verified: &PasswordHash| verified.as_str() == row.password_hash;
    !row.password_hash.is_empty() && attempt.verified.as_ref().is_some_and(of_user)
}

fn grant(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    (name, user): (UserName, UserRow),
    roles: Vec<Role>,
    new: &NewSession,
) -> Result<Verdict<SessionRow>, CoreError> {
    let session = session::create(tx, context, &name, new)?;
    let fields = [("user", name.to_string())];
    let caller =
        UserCaller { name, user, roles, digest: new.digest, session: session.clone(), use_is_due: false };
    let context = Context { caller: Caller::User(Box::new(caller)), origin: context.origin.clone() };
    audit::append(tx, &context, EventType::Login, session::target(&session), &fields);
    Ok(Verdict::Granted(session))
}

/// Counts an old password that is not the caller's, and audits it: always a refusal.
///
/// # Errors
/// [`CoreError::Unauthenticated`] when the caller is not a user; [`CoreError::Storage`].
pub fn refuse_old_password<T>(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
) -> Result<Verdict<T>, CoreError> {
    let name = context.caller.user()?.name.clone();
    let target = format!("user:{name}");
    let mut tries = Tries::load(tx, Whose::User(name), &context.origin.client_address)?;
    let answer = if tries.own_are_shut() {
        // As the right one is answered then: whoever has a session is not kept out by what was tried as others.
        lockout::shut()
    } else {
        lockout::fail(tx, context, &mut tries);
        CoreError::invalid("old_password", "this is not your password")
    };
    tries.save(tx);
    audit::append_refusal(tx, context, EventType::PasswordChangeFailed, target, &[]);
    Ok(Verdict::Refused(answer))
}

#[cfg(test)]
#[path = "login_tests.rs"]
mod tests;
