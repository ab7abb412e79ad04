//! Passwords in, sessions out. A password is verified outside of any transaction; what was verified is checked again
//! where the effect commits.

use std::ops::ControlFlow;

use auth_core::{
    CoreError, Credential,
    audit::EventType,
    login,
    names::{SessionHandle, UserName},
    secret::{PasswordHash, SecretDigest, SecretKind},
    session::{self, NewSession},
    tables::AuthMethod,
    user,
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use mezite_proto::v1;
use zeroize::Zeroizing;

use super::sessions;
use crate::{authn::Call, error::ApiError, once::Once, service::Service};

/// Exchanges a username and a password for a session.
pub(crate) async fn authenticate_local(
    service: &Service,
    call: &Call,
    request: v1::AuthenticateLocalRequest,
) -> Result<v1::AuthenticateLocalResponse, ApiError> {
    let password = Zeroizing::new(request.password);
    user::check_given_password("password", &password)?;
    // The request is its own credential: a session that has ended must not stand in the way of the next.
    let call = &Call { credential: Credential::None, ..call.clone() };
    let turn = service.passwords.admit()?;

    // What has no canonical form is nobody's name, and goes the way of all unknown names.
    let name = UserName::parse("username", &request.username).ok();
    let wanted = name.clone();
    let look_up = move |view: &mut raft_store::View<'_>| match &wanted {
        Some(name) => login::lookup(view, name),
        None => Ok(None),
    };
    let known = service.read(call, move |view, _| look_up(view)).await?;
    let known = name.zip(known.map(|(row, _)| PasswordHash::new(row.password_hash)));
    let verified = turn.verify(known.as_ref().map(|(_, hash)| hash), &password).await?;
    drop(turn);

    let target = known.as_ref().map(|(name, _)| name.clone());
    match log_in(service, call, known.filter(|_| verified)).await {
        // Whoever is locked out is told no more than a stranger.
        Err(ApiError::Core(error @ (login::WRONG | CoreError::Locked(_)))) => {
            let reason = match error {
                CoreError::Locked(reason) => vec![("reason", reason)],
                _ => Vec::new(),
            };
            // An unknown name is not written down: it may be a password in the wrong field.
            let target = target.map_or_else(|| "user:?".to_owned(), |name| format!("user:{name}"));
            service.audit(call, EventType::LoginFailed, target, reason).await?;
            Err(login::WRONG.into())
        }
        done => done,
    }
}

/// Makes the session of a user whose password was verified.
async fn log_in(
    service: &Service,
    call: &Call,
    verified: Option<(UserName, PasswordHash)>,
) -> Result<v1::AuthenticateLocalResponse, ApiError> {
    let (name, hash) = verified.ok_or(login::WRONG)?;
    let id = URL_SAFE_NO_PAD.encode(*Zeroizing::new(rand::random::<[u8; 32]>()));
    let new = NewSession {
        digest: SecretDigest::of(SecretKind::Session, &id),
        handle: SessionHandle::from_random(rand::random()),
        method: AuthMethod::Password,
    };
    let made =
        service.write(call, move |tx, context| login::complete(tx, context, &name, &hash, &new)).await?;
    Ok(v1::AuthenticateLocalResponse { session_id: id, session: Some(sessions::session(made.value)) })
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
    user::check_given_password("old_password", &old)?;
    user::check_new_password("new_password", &new)?;

    let own = |context: &auth_core::Context| {
        let caller = context.caller.user()?;
        Ok((caller.name.clone(), PasswordHash::new(caller.user.password_hash.clone())))
    };
    // Once it has taken effect, the old password is no more: the answer that it had comes first.
    let (name, verified) = match service.unless_answered(call, &once, move |_, context| own(context)).await? {
        ControlFlow::Break(answered) => return Ok(answered),
        ControlFlow::Continue(own) => own,
    };
    let turn = service.passwords.admit()?;
    if !turn.verify(Some(&verified), &old).await? {
        service.audit(call, EventType::PasswordChangeFailed, format!("user:{name}"), Vec::new()).await?;
        return Err(CoreError::invalid("old_password", "this is not your password").into());
    }
    if new == old {
        return Err(CoreError::invalid("new_password", "this is the password that you have").into());
    }
    let new_hash = turn.hash(&new).await?;
    drop(turn);
    let change = service.write_once(call, once, move |tx, context| {
        let sessions_ended = user::change_password(tx, context, &verified, &new_hash)?;
        Ok(v1::ChangePasswordResponse { sessions_ended })
    });
    change.await
}

#[cfg(test)]
#[path = "login_tests.rs"]
mod tests;
