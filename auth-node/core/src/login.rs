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
    webauthn::{
        ceremony::NewCeremony,
        login::{BegunLogin, begin_step_up},
    },
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
    match judge(tx, context, attempt)? {
        Some(proved) => grant(tx, context, proved, &attempt.new).map(Verdict::Granted),
        None => Ok(Verdict::Refused(WRONG)),
    }
}

/// What a right password has given.
#[derive(Debug, PartialEq)]
pub enum Given {
    /// The session.
    Session(SessionRow),
    /// What an authenticator is asked.
    StepUp(BegunLogin),
}

/// As [`conclude`], but that of a user with a device the second half of the login is begun, which is the authenticator's. `None`:
/// the cluster has no relying party, and so nobody has one that is of use.
///
/// # Errors
/// [`CoreError::Storage`].
pub fn conclude_or_step_up(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    attempt: &Attempt,
    step_up: Option<&NewCeremony>,
) -> Result<Verdict<Given>, CoreError> {
    let Some(proved) = judge(tx, context, attempt)? else { return Ok(Verdict::Refused(WRONG)) };
    if let Some(new) = step_up {
        let verified = PasswordHash::new(proved.row.password_hash.clone());
        if let Some(begun) = begin_step_up(tx, context, &proved.name, &verified, new)? {
            return Ok(Verdict::Granted(Given::StepUp(begun)));
        }
    }
    Ok(Verdict::Granted(Given::Session(grant(tx, context, proved, &attempt.new)?)))
}

/// Whose password was verified.
struct Proved {
    name: UserName,
    row: UserRow,
    roles: Vec<Role>,
    tries: Tries,
}

/// Whose password was verified, if its logins are not shut and there is no lock on it. `None`: counted, written and audited,
/// whatever it is, so that nothing but the audit log tells what.
fn judge(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    attempt: &Attempt,
) -> Result<Option<Proved>, CoreError> {
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
        match lock::reason(lock::check_user(tx, name, &roles))? {
            None => return Ok(Some(Proved { name: name.clone(), row: row.clone(), roles, tries })),
            locked => locked,
        }
    } else {
        lockout::fail(tx, context, &mut tries);
        None
    };
    tries.save(tx);
    let target = user.map_or_else(|| "user:?".to_owned(), |(name, _)| format!("user:{name}"));
    let fields: Vec<_> = reason.into_iter().map(|reason| ("reason", reason)).collect();
    audit::append_refusal(tx, context, EventType::LoginFailed, target, &fields);
    Ok(None)
}

/// Whether the password that was verified is still the user's.
fn is_verified(row: &UserRow, attempt: &Attempt) -> bool {
    let of_user = |verified: &PasswordHash| verified.as_str() == row.password_hash;
    !row.password_hash.is_empty() && attempt.verified.as_ref().is_some_and(of_user)
}

fn grant(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    Proved { name, row: user, roles, mut tries }: Proved,
    new: &NewSession,
) -> Result<SessionRow, CoreError> {
    tries.succeed();
    tries.save(tx);
    let session = session::create(tx, context, &name, new)?;
    let fields = [("user", name.to_string())];
    let caller =
        UserCaller { name, user, roles, digest: new.digest, session: session.clone(), use_is_due: false };
    let context = Context { caller: Caller::User(Box::new(caller)), origin: context.origin.clone() };
    audit::append(tx, &context, EventType::Login, session::target(&session), &fields);
    Ok(session)
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
