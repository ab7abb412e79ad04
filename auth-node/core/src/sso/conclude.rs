//! The end of a login: the session of who has proved itself, or a code with which its program fetches that.

use store_txn::{ReadExt, Transaction, TransactionExt};

use super::{
    Claims, Program, Refusal, Way,
    account::Account,
    identity::{self, Identity},
    refuse, refuse_user, way,
};
use crate::{
    Caller, Context, CoreError, Verdict,
    audit::{self, EventType},
    context::{Role, UserCaller, roles},
    lock,
    names::{ConnectorName, UserName},
    secret::SecretDigest,
    session::{self, NewSession},
    tables::{AuthMethod, ConnectorRow, SessionRow, SsoCodeKey, SsoCodeRow, UserKey, UserRow},
    user::target,
};

/// How long a program has to fetch its session, in milliseconds.
const CODE_LIFE_MS: u64 = 60 * 1000;
/// Longest name of an account, in bytes: an issuer's URL, and a subject of at most 255 characters.
const MAX_SUBJECT: usize = 2048;

/// What a provider said of whoever logs in, verified.
#[derive(Debug, Clone)]
pub struct Proved {
    /// By which connector.
    pub way: Way,
    /// Who it is, and at which provider: the same name there may be somebody else's later.
    pub subject: String,
    /// What is said of it.
    pub claims: Claims,
}

/// What a login is to end with.
#[derive(Debug, Clone)]
pub enum Next {
    /// This session.
    Session(NewSession),
    /// A code of this digest, for a program.
    Code(SecretDigest, Program),
}

/// What a login has ended with.
#[derive(Debug, Clone, PartialEq)]
pub enum Done {
    /// The session.
    Session(SessionRow),
    /// The code is good.
    Code,
}

/// Makes or renews the user whom a provider has proved, and its session or code; or refuses, and audits why.
///
/// # Errors
/// [`CoreError::Storage`].
pub fn conclude(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    proved: &Proved,
    next: &Next,
) -> Result<Verdict<Done>, CoreError> {
    let connector = &proved.way.name;
    match way(tx, connector) {
        Ok(now) if now.revision == proved.way.revision => {}
        Ok(_) | Err(CoreError::NotFound { .. } | CoreError::Precondition(_)) => {
            let reason = "the connector was changed or removed meanwhile";
            return Ok(refuse(tx, context, connector, reason, Refusal::Anew));
        }
        Err(error) => return Err(error),
    }
    let account = Account { connector, subject: &proved.subject };
    let mut identity = match identity::of(&proved.way.row, &proved.claims) {
        Ok(identity) => identity,
        Err(reason) => {
            let reason = format!("{reason} ({})", proved.subject);
            return Ok(refuse(tx, context, connector, &reason, Refusal::NotLetIn));
        }
    };
    let named = target(&identity.name);
    if let Some(reason) = refusal(tx, &account, &mut identity)? {
        let reason = format!("{reason} ({})", proved.subject);
        return Ok(refuse_user(tx, context, connector, named, &reason, Refusal::NotLetIn));
    }
    let user = account.put(tx, context, &identity)?;
    let name = identity.name;
    match next {
        Next::Session(new) => {
            let session = grant(tx, context, (name, user), &proved.way.row, new)?;
            Ok(Verdict::Granted(Done::Session(session)))
        }
        Next::Code(digest, program) => {
            let row = SsoCodeRow {
                user: name.into(),
                connector: user.connector,
                subject: user.subject,
                challenge: program.challenge().to_vec(),
                epoch: session::epoch(tx)?,
                expires_at_ms: tx.now().saturating_add(CODE_LIFE_MS),
                connector_revision: proved.way.revision,
            };
            tx.put(&SsoCodeKey(*digest), &row);
            Ok(Verdict::Granted(Done::Code))
        }
    }
}

/// Why somebody is not let in. Roles that are gone are taken from it.
fn refusal(
    tx: &mut (impl Transaction + ?Sized),
    account: &Account<'_>,
    identity: &mut Identity,
) -> Result<Option<String>, CoreError> {
    if account.subject.len() > MAX_SUBJECT {
        return Ok(Some("the provider's name for it is too long".into()));
    }
    if let Some(reason) = account.refusal(tx, &identity.name)? {
        return Ok(Some(reason));
    }
    let roles = existing(tx, identity)?;
    if roles.is_empty() {
        return Ok(Some("none of the roles that it is mapped to is there".into()));
    }
    identity.grants.roles = roles.iter().map(|role| role.name.clone()).collect();
    lock::reason(lock::check_user(tx, &identity.name, &roles))
}

fn existing(tx: &mut (impl Transaction + ?Sized), identity: &Identity) -> Result<Vec<Role>, CoreError> {
    let row = UserRow { roles: crate::user::texts(&identity.grants.roles), ..UserRow::default() };
    roles(tx, &row)
}

/// Makes the session of a user that has proved itself.
fn grant(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    (name, user): (UserName, UserRow),
    connector: &ConnectorRow,
    new: &NewSession,
) -> Result<SessionRow, CoreError> {
    let new = NewSession { method: AuthMethod::Sso, ..new.clone() };
    let session = session::create_of_connector(tx, context, &name, &new, connector.second_factor)?;
    let fields = [
        ("user", name.to_string()),
        ("method", "sso".to_owned()),
        ("connector", user.connector.clone()),
        ("subject", user.subject.clone()),
    ];
    let roles = roles(tx, &user)?;
    let caller =
        UserCaller { name, user, roles, digest: new.digest, session: session.clone(), use_is_due: false };
    let context = Context { caller: Caller::User(Box::new(caller)), origin: context.origin.clone() };
    audit::append(tx, &context, EventType::Login, session::target(&session), &fields);
    Ok(session)
}

/// Exchanges the code of a program that has this verifier's SHA-256 for its session. The code is gone then, whatever comes
/// of it. A refusal is audited.
///
/// # Errors
/// [`CoreError::Storage`].
pub fn redeem(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    code: SecretDigest,
    verifier: [u8; 32],
    new: &NewSession,
) -> Result<Verdict<SessionRow>, CoreError> {
    let key = SsoCodeKey(code);
    let Some(row) = tx.get(&key)?.map(|code| code.row) else {
        return Ok(no_code(tx, context, "user:?".into(), "the code is unknown, used, or past its end"));
    };
    tx.delete(&key);
    let (name, connector) =
        (UserName::parse("code.user", &row.user)?, ConnectorName::parse("code.connector", &row.connector)?);
    if row.epoch != session::epoch(tx)? || row.challenge != verifier {
        return Ok(no_code(tx, context, target(&name), "the code is of another program"));
    }
    let account = Account { connector: &connector, subject: &row.subject };
    let user = tx.get(&UserKey(name.clone()))?.map(|user| user.row).filter(|user| account.is_of(user));
    let (Some(user), Ok(way)) = (user, way(tx, &connector)) else {
        return Ok(no_code(tx, context, target(&name), "the user or its connector is gone"));
    };
    if way.revision != row.connector_revision {
        return Ok(no_code(tx, context, target(&name), "the connector was changed meanwhile"));
    }
    let held = roles(tx, &user)?;
    if let Some(reason) = lock::reason(lock::check_user(tx, &name, &held))? {
        return Ok(refuse_user(tx, context, &connector, target(&name), &reason, Refusal::NotLetIn));
    }
    grant(tx, context, (name, user), &way.row, new).map(Verdict::Granted)
}

fn no_code<T>(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    target: String,
    reason: &str,
) -> Verdict<T> {
    let fields = [("reason", reason.to_owned()), ("method", "sso".to_owned())];
    audit::append_refusal(tx, context, EventType::LoginFailed, target, &fields);
    Verdict::Refused(Refusal::Anew.answer())
}

#[cfg(test)]
#[path = "conclude_tests.rs"]
mod tests;
