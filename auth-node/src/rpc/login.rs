//! Passwords in, sessions out. A password is verified outside of any transaction; what was verified is checked again
//! where the effect commits.

use std::ops::ControlFlow;

use auth_core::{
    CoreError, Credential, invite,
    lockout::{self, SlotSecret, TypedName},
    login::{self, Attempt},
    names::{SessionHandle, UserName},
    password,
    secret::{PasswordHash, SecretDigest, SecretKind},
    session::{self, Listed, NewSession},
    tables::{AuthMethod, SessionRow},
    user,
};
use mezite_proto::v1;
use zeroize::Zeroizing;

use super::{convert, sessions};
use crate::{
    authn::Call,
    error::ApiError,
    once::Once,
    passwords,
    service::Service,
    webauthn::{self, Begun},
};

/// Longest username that is looked at, in bytes: far longer than any name, in whatever spelling.
const MAX_USERNAME: usize = 1024;
/// Longest secret of an invite that is looked at, in bytes.
const MAX_SECRET: usize = 256;

/// Exchanges a username and a password for a session.
pub(crate) async fn authenticate_local(
    service: &Service,
    call: &Call,
    request: v1::AuthenticateLocalRequest,
) -> Result<v1::AuthenticateLocalResponse, ApiError> {
    let tried = verify(service, call, &request.username, Zeroizing::new(request.password)).await?;
    let (id, session) = conclude(service, call, tried).await?;
    Ok(v1::AuthenticateLocalResponse { session_id: id.as_str().to_owned(), session: Some(session) })
}

/// A try to log in whose password was looked at. Whether it was the right one is not told before it was counted.
pub(crate) struct Tried {
    /// As it was typed.
    typed: TypedName,
    /// The name, if what was typed is one.
    name: Option<UserName>,
    /// What the password was found to be the one of, if it was.
    verified: Option<PasswordHash>,
}

impl Tried {
    /// What is decided on, and the id of the session that it makes if it is a good one.
    fn attempt(self) -> (Zeroizing<String>, Attempt) {
        let id = convert::secret();
        let new = NewSession {
            digest: SecretDigest::of(SecretKind::Session, &id),
            handle: SessionHandle::from_random(rand::random()),
            method: AuthMethod::Password,
        };
        let Self { typed, name, verified } = self;
        let slot_secret = SlotSecret::from_random(rand::random());
        (id, Attempt { typed, slot_secret, name, verified, new })
    }
}

/// Looks whether a password is the one of a name. It takes as long whatever there is of that name.
///
/// # Errors
/// [`CoreError::Invalid`] for what is too long; [`ApiError::Busy`]; [`ApiError::Store`].
pub(crate) async fn verify(
    service: &Service,
    call: &Call,
    username: &str,
    password: Zeroizing<String>,
) -> Result<Tried, ApiError> {
    password::check_given("password", &password)?;
    if username.len() > MAX_USERNAME {
        return Err(CoreError::invalid("username", "it is too long to be a name").into());
    }
    let call = &without_session(call);
    let turn = service.passwords.admit(passwords::network(&call.origin.client_address))?;

    // What has no canonical form is nobody's name, and goes the way of all unknown names.
    let name = UserName::parse("username", username).ok();
    let wanted = name.clone();
    let known = service.read(call, move |view, _| match &wanted {
        Some(name) => login::lookup(view, name),
        None => Ok(None),
    });
    let known = known.await?;
    let matches = turn.verify(known.as_ref(), &password).await?;
    let typed = TypedName::of(name.as_ref().map_or(username, UserName::as_str));
    Ok(Tried { typed, name, verified: known.filter(|_| matches) })
}

/// Makes the session of a try that was a good one, and counts any other: the session's id, and the session.
///
/// # Errors
/// [`login::WRONG`]; [`ApiError::Store`].
pub(crate) async fn conclude(
    service: &Service,
    call: &Call,
    tried: Tried,
) -> Result<(Zeroizing<String>, v1::Session), ApiError> {
    let call = &without_session(call);
    let (id, attempt) = tried.attempt();
    // Also what is refused is written: as many failures as there were, on all nodes together, are counted.
    let session = service.decide(call, move |tx, context| login::conclude(tx, context, &attempt)).await?;
    Ok((id, shown(session)))
}

fn shown(session: SessionRow) -> v1::Session {
    let last_used_ms = session.created_at_ms;
    sessions::session(Listed { session, last_used_ms })
}

/// What a username and a password give.
pub(crate) enum Given {
    /// A session: its id, and what lists show of it.
    Session(Zeroizing<String>, v1::Session),
    /// The second half of the login, which an authenticator answers.
    StepUp(Begun),
}

/// As [`authenticate_local`], for a login that asks whoever has a device for it, once the password was found to be right. A wrong
/// password, and a right one that logs nobody in, go the same way, and are answered alike.
///
/// # Errors
/// As of [`verify`] and [`conclude`].
pub(crate) async fn with_second_factor(
    service: &Service,
    call: &Call,
    username: &str,
    password: Zeroizing<String>,
) -> Result<Given, ApiError> {
    let (id, attempt) = verify(service, call, username, password).await?.attempt();
    let call = &without_session(call);
    let step_up = webauthn::step_up(service, call).await?;
    let ceremony = step_up.as_ref().map(|step_up| step_up.ceremony.clone());
    let decided = service.decide(call, move |tx, context| {
        login::conclude_or_step_up(tx, context, &attempt, ceremony.as_ref())
    });
    match (decided.await?, step_up) {
        (login::Given::Session(session), _) => Ok(Given::Session(id, shown(session))),
        (login::Given::StepUp(begun), Some(step_up)) => Ok(Given::StepUp(step_up.asked(begun))),
        (login::Given::StepUp(_), None) => Err(ApiError::Internal("a step-up of no relying party".into())),
    }
}

/// The request is its own credential: a session that has ended must not stand in the way of the next.
fn without_session(call: &Call) -> Call {
    Call { credential: Credential::None, ..call.clone() }
}

/// Ends the session that the call is made with.
pub(crate) async fn logout(
    service: &Service,
    call: &Call,
    _request: v1::LogoutRequest,
) -> Result<v1::LogoutResponse, ApiError> {
    service.write(call, |tx, context| session::logout(tx, context)).await?;
    Ok(v1::LogoutResponse {})
}

/// Changes the caller's own password and ends its other sessions.
pub(crate) async fn change_password(
    service: &Service,
    call: &Call,
    request: v1::ChangePasswordRequest,
) -> Result<v1::ChangePasswordResponse, ApiError> {
    let once = Once::of(call, &request);
    let (old, new) = (Zeroizing::new(request.old_password), Zeroizing::new(request.new_password));
    password::check_given("old_password", &old)?;
    let cluster = service.settings.cluster.as_str();
    password::check_new("new_password", &new, &[cluster])?;
    // Before the old one is verified, so that nothing is told of it that is not counted.
    if password::normalized(&new) == password::normalized(&old) {
        return Err(CoreError::invalid("new_password", "this is the old one").into());
    }

    // Once it has taken effect, the old password is no more: the answer that it had comes first.
    let own = service.unless_answered(call, &once, |view, context| {
        let caller = context.caller.user()?;
        lockout::check(view, context, &caller.name)?;
        Ok((caller.name.clone(), PasswordHash::new(caller.user.password_hash.clone())))
    });
    let (name, verified) = match own.await? {
        ControlFlow::Break(answered) => return Ok(answered),
        ControlFlow::Continue(own) => own,
    };
    password::check_new("new_password", &new, &[name.as_str(), cluster])?;
    let turn = service.passwords.admit(format!("user:{name}"))?;
    if !turn.verify(Some(&verified).filter(|hash| !hash.as_str().is_empty()), &old).await? {
        return service.decide(call, |tx, context| login::refuse_old_password(tx, context)).await;
    }
    let new_hash = turn.hash(&new).await?;
    drop(turn);
    let change = service.write_once(call, once, move |tx, context| {
        let sessions_ended = user::change_password(tx, context, &verified, &new_hash)?;
        Ok(v1::ChangePasswordResponse { sessions_ended })
    });
    change.await
}

/// Sets a password with an invite.
pub(crate) async fn accept_invite(
    service: &Service,
    call: &Call,
    request: v1::AcceptInviteRequest,
) -> Result<v1::AcceptInviteResponse, ApiError> {
    let (secret, password) = (Zeroizing::new(request.secret), Zeroizing::new(request.new_password));
    if secret.len() > MAX_SECRET {
        return Err(CoreError::invalid("secret", "it is too long to be of an invite").into());
    }
    let cluster = service.settings.cluster.as_str();
    password::check_new("new_password", &password, &[cluster])?;
    let call = &without_session(call);
    let secret = SecretDigest::of(SecretKind::Invite, &secret);
    // Whoever has no good secret has nothing hashed, and is refused where that is audited.
    let hash = match service.read(call, move |view, _| invite::holder(view, secret)).await? {
        Some(name) => {
            password::check_new("new_password", &password, &[name.as_str(), cluster])?;
            Some(service.passwords.admit(format!("user:{name}"))?.hash(&password).await?)
        }
        None => None,
    };
    let accept = service.decide(call, move |tx, context| invite::accept(tx, context, secret, hash.as_ref()));
    Ok(v1::AcceptInviteResponse { user: accept.await?.into() })
}

#[cfg(test)]
#[path = "login_tests.rs"]
mod tests;
