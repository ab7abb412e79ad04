//! The second factor: of whom it is required, and what a session that was made with a password alone may do where it is.
//!
//! The cluster's configuration asks for one of everybody (`webauthn`), or of whoever has a device (`optional`); a role, of those
//! who hold it (`require_mfa`). A single sign-on counts as one where its connector says that the provider asks for it. The configuration closes everything to a session without one, but what it takes to get one; a
//! role, the certificates alone.

use store_txn::Read;

use crate::{
    Caller, CoreError, cluster_config,
    context::{Role, UserCaller},
    evaluate::{Access, Traits},
    names::UserName,
    tables::{AuthMethod, SecondFactor},
    webauthn::device,
};

/// Refuses a session that was made without a second factor where the cluster's configuration asks for more.
///
/// # Errors
/// [`CoreError::Denied`], [`CoreError::Storage`].
pub fn check(state: &mut (impl Read + ?Sized), caller: &Caller) -> Result<(), CoreError> {
    let Caller::User(user) = caller else { return Ok(()) };
    if user.has_second_factor() || !is_configured(state, &user.name)? {
        return Ok(());
    }
    if user.method() == AuthMethod::Sso {
        let reason = "a second factor is required, and the single sign-on that you came by is not known to ask for one: \
                      an administrator says so in its connector, where the provider does";
        return Err(CoreError::Denied(reason.into()));
    }
    let reason = match device::has_any(state, &user.name)? {
        true => {
            "a second factor is required, and this session was made with a password alone: log in with your \
             authenticator on the cluster's web page"
        }
        false => {
            "a second factor is required, and you have no device yet: register one on the cluster's web page, and log in \
             with it"
        }
    };
    Err(CoreError::Denied(reason.into()))
}

/// Whether a second factor is required of a user, by the cluster's configuration or by a role.
///
/// # Errors
/// [`CoreError::Storage`].
pub(crate) fn is_required(state: &mut (impl Read + ?Sized), user: &UserCaller) -> Result<bool, CoreError> {
    Ok(asks(&user.roles, &user.user.traits) || is_configured(state, &user.name)?)
}

/// Whether a user must have a device: by the cluster's configuration, or by a role. Where a second factor is `optional`, whoever
/// has come by one may do without from then on.
///
/// # Errors
/// [`CoreError::Storage`].
pub(crate) fn must_have_device(
    state: &mut (impl Read + ?Sized),
    user: &UserCaller,
) -> Result<bool, CoreError> {
    let everybody = cluster_config::settings(state)?.second_factor == SecondFactor::Webauthn;
    Ok(everybody || asks(&user.roles, &user.user.traits))
}

/// Whether the configuration asks a user for one.
fn is_configured(state: &mut (impl Read + ?Sized), name: &UserName) -> Result<bool, CoreError> {
    match cluster_config::settings(state)?.second_factor {
        SecondFactor::Unspecified | SecondFactor::Off => Ok(false),
        SecondFactor::Optional => device::has_any(state, name),
        SecondFactor::Webauthn => Ok(true),
    }
}

/// Whether a role asks for one.
fn asks(roles: &[Role], traits: &Traits) -> bool {
    Access::of(roles, traits).options().require_mfa
}

#[cfg(test)]
#[path = "second_factor_tests.rs"]
mod tests;
